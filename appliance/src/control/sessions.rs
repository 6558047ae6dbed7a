//! Sessions.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;
use vbr_api::{ErrorResponse, List, One, Session};

use super::reply::{Name, Params, Reply, list as items, one};
use super::{Api, WAIT_MAX, blocking};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct SessionsQuery {
    /// Of this job; of all unless said.
    job: Option<String>,
    /// Only those that are not over.
    #[serde(default)]
    active: bool,
}

/// Sessions, newest first.
#[utoipa::path(get, path = "/v1/sessions", tag = "sessions", params(SessionsQuery), responses(
    (status = 200, body = List<Session>), (status = "default", body = ErrorResponse)))]
pub(super) async fn list(
    State(api): State<Api>,
    Params(query): Params<SessionsQuery>,
) -> Reply<Json<List<Session>>> {
    Ok(items(blocking(move || api.jobs.sessions(query.job.as_deref(), query.active)).await?))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitQuery {
    /// Long poll: answer when the session changed, or after this many milliseconds (at most 60,000).
    wait_ms: Option<u64>,
}

/// One session, running or past.
#[utoipa::path(get, path = "/v1/sessions/{id}", tag = "sessions", params(("id" = String, Path), WaitQuery), responses(
    (status = 200, body = One<Session>), (status = "default", body = ErrorResponse)))]
pub(super) async fn show(
    State(api): State<Api>,
    Name(id): Name,
    Params(query): Params<WaitQuery>,
) -> Reply<Json<One<Session>>> {
    if let Some(ms) = query.wait_ms {
        let wait = api.jobs.wait(&id, Duration::from_millis(ms).min(WAIT_MAX));
        tokio::select! {
            session = wait => return Ok(one(session?)),
            // A daemon that stops answers what it knows rather than making its console wait.
            () = api.shutdown.cancelled() => {}
        }
    }
    Ok(one(blocking(move || api.jobs.session(&id)).await?))
}

/// Stops a session for good; what was sent stays in the target's cache.
#[utoipa::path(post, path = "/v1/sessions/{id}/cancel", tag = "sessions", params(("id" = String, Path)), responses(
    (status = 200, body = One<Session>), (status = "default", body = ErrorResponse)))]
pub(super) async fn cancel(State(api): State<Api>, Name(id): Name) -> Reply<Json<One<Session>>> {
    Ok(one(blocking(move || api.jobs.cancel(&id)).await?))
}
