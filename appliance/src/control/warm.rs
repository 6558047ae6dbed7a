//! Warming: images and restore points whose chunks are to count as known.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;
use vbr_api::{ErrorResponse, List, One, WarmRequest, Warming};

use super::reply::{Body, Name, Params, Reply, list as items, one};
use super::{Api, WAIT_MAX, blocking};

/// Orders one; the one that is under way for the same is given back.
#[utoipa::path(post, path = "/v1/cache/warm", tag = "cache", request_body = WarmRequest, responses(
    (status = 200, body = One<Warming>), (status = "default", body = ErrorResponse)))]
pub(super) async fn order(
    State(api): State<Api>,
    Body(request): Body<WarmRequest>,
) -> Reply<Json<One<Warming>>> {
    Ok(one(blocking(move || api.warmings.order(request)).await?))
}

/// Those that wait, run, or are over.
#[utoipa::path(get, path = "/v1/cache/warm", tag = "cache", responses(
    (status = 200, body = List<Warming>), (status = "default", body = ErrorResponse)))]
pub(super) async fn list(State(api): State<Api>) -> Reply<Json<List<Warming>>> {
    Ok(items(blocking(move || api.warmings.list()).await?))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitQuery {
    /// Long poll: answer when its state changed, or after this many milliseconds (at most 60,000).
    wait_ms: Option<u64>,
}

/// One of them.
#[utoipa::path(get, path = "/v1/cache/warm/{id}", tag = "cache", params(("id" = String, Path), WaitQuery), responses(
    (status = 200, body = One<Warming>), (status = "default", body = ErrorResponse)))]
pub(super) async fn show(
    State(api): State<Api>,
    Name(id): Name,
    Params(query): Params<WaitQuery>,
) -> Reply<Json<One<Warming>>> {
    let at_most = Duration::from_millis(query.wait_ms.unwrap_or(0)).min(WAIT_MAX);
    let wait = api.warmings.wait(&id, at_most);
    tokio::select! {
        warming = wait => return Ok(one(warming?)),
        () = api.shutdown.cancelled() => {}
    }
    Ok(one(api.warmings.wait(&id, Duration::ZERO).await?))
}

/// Ends one; what was read of it stays known.
#[utoipa::path(post, path = "/v1/cache/warm/{id}/cancel", tag = "cache", params(("id" = String, Path)), responses(
    (status = 200, body = One<Warming>), (status = "default", body = ErrorResponse)))]
pub(super) async fn cancel(State(api): State<Api>, Name(id): Name) -> Reply<Json<One<Warming>>> {
    Ok(one(blocking(move || api.warmings.cancel(&id)).await?))
}
