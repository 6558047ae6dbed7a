//! Jobs.

use axum::Json;
use axum::body::Body as SentBody;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;
use vbr_api::{ErrorResponse, Job, JobEdit, JobSpec, List, One, Plan, Removed, RunRequest, Session};

use super::export;
use super::reply::{Body, Name, Params, Reply, created, list as items, one};
use super::{Api, blocking};

/// All jobs.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", responses(
    (status = 200, body = List<Job>), (status = "default", body = ErrorResponse)))]
pub(super) async fn list(State(api): State<Api>) -> Reply<Json<List<Job>>> {
    Ok(items(blocking(move || api.jobs.list()).await?))
}

/// Creates a job; the same definition again is success.
#[utoipa::path(post, path = "/v1/jobs", tag = "jobs", request_body = JobSpec, responses(
    (status = 201, body = One<Job>), (status = 200, body = One<Job>), (status = "default", body = ErrorResponse)))]
pub(super) async fn create(State(api): State<Api>, Body(spec): Body<JobSpec>) -> Reply<Response> {
    let (job, new) = blocking(move || api.jobs.create(spec)).await?;
    Ok(created(job, new))
}

/// One job.
#[utoipa::path(get, path = "/v1/jobs/{name}", tag = "jobs", params(("name" = String, Path)), responses(
    (status = 200, body = One<Job>), (status = "default", body = ErrorResponse)))]
pub(super) async fn show(State(api): State<Api>, Name(name): Name) -> Reply<Json<One<Job>>> {
    Ok(one(blocking(move || api.jobs.show(&name)).await?))
}

/// Changes what is named of a job's definition; a session that is not over goes on with what it began with.
#[utoipa::path(patch, path = "/v1/jobs/{name}", tag = "jobs", params(("name" = String, Path)),
    request_body = JobEdit, responses(
    (status = 200, body = One<Job>), (status = "default", body = ErrorResponse)))]
pub(super) async fn edit(
    State(api): State<Api>,
    Name(name): Name,
    Body(edit): Body<JobEdit>,
) -> Reply<Json<One<Job>>> {
    Ok(one(blocking(move || api.jobs.edit(&name, edit)).await?))
}

/// Forgets a job. Its replica stays at the target.
#[utoipa::path(delete, path = "/v1/jobs/{name}", tag = "jobs", params(("name" = String, Path)), responses(
    (status = 200, body = One<Removed>), (status = "default", body = ErrorResponse)))]
pub(super) async fn remove(State(api): State<Api>, Name(name): Name) -> Reply<Json<One<Removed>>> {
    let removed = blocking(move || {
        api.jobs.remove(&name).map(|()| Removed { removed: vec![name], ..Removed::default() })
    });
    Ok(one(removed.await?))
}

/// Starts a session; answers the running one where there is one.
#[utoipa::path(post, path = "/v1/jobs/{name}/run", tag = "jobs", params(("name" = String, Path)),
    request_body = RunRequest, responses(
    (status = 200, body = One<Session>), (status = "default", body = ErrorResponse)))]
pub(super) async fn run(
    State(api): State<Api>,
    Name(name): Name,
    Body(request): Body<RunRequest>,
) -> Reply<Json<One<Session>>> {
    Ok(one(api.jobs.run(&name, request).await?))
}

/// Enables a job.
#[utoipa::path(post, path = "/v1/jobs/{name}/enable", tag = "jobs", params(("name" = String, Path)), responses(
    (status = 200, body = One<Job>), (status = "default", body = ErrorResponse)))]
pub(super) async fn enable(State(api): State<Api>, Name(name): Name) -> Reply<Json<One<Job>>> {
    Ok(one(blocking(move || api.jobs.set_enabled(&name, true)).await?))
}

/// Disables a job.
#[utoipa::path(post, path = "/v1/jobs/{name}/disable", tag = "jobs", params(("name" = String, Path)), responses(
    (status = 200, body = One<Job>), (status = "default", body = ErrorResponse)))]
pub(super) async fn disable(State(api): State<Api>, Name(name): Name) -> Reply<Json<One<Job>>> {
    Ok(one(blocking(move || api.jobs.set_enabled(&name, false)).await?))
}

/// A dry run: what a session would read, send and retire.
#[utoipa::path(get, path = "/v1/jobs/{name}/plan", tag = "jobs", params(("name" = String, Path)), responses(
    (status = 200, body = One<Plan>), (status = "default", body = ErrorResponse)))]
pub(super) async fn plan(State(api): State<Api>, Name(name): Name) -> Reply<Json<One<Plan>>> {
    Ok(one(api.jobs.plan(&name).await?))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct SeedQuery {
    /// Number of the disk; 0 unless said.
    #[serde(default)]
    disk: u16,
}

/// The content of one of a job's disks, from a snapshot, to be carried to the target: records as of
/// `/v1/restore-points/export`, of whole chunks of 64 KiB that are not zero.
#[utoipa::path(get, path = "/v1/jobs/{name}/seed", tag = "jobs", params(("name" = String, Path), SeedQuery), responses(
    (status = 200, content_type = "application/vnd.vbr.extents", description = "a stream of extents"),
    (status = "default", body = ErrorResponse)))]
pub(super) async fn seed(
    State(api): State<Api>,
    Name(name): Name,
    Params(query): Params<SeedQuery>,
) -> Reply<Response> {
    let permit = api.heavy.clone().acquire_owned().await;
    let what = format!("disk {} of job {name}", query.disk);
    let source = blocking(move || api.jobs.seed(&name, query.disk)).await?;
    let sent = SentBody::from_stream(export::stream(source, what, permit));
    Ok(([(CONTENT_TYPE, export::MEDIA_TYPE)], sent).into_response())
}

/// Finished sessions, newest first.
#[utoipa::path(get, path = "/v1/jobs/{name}/history", tag = "jobs", params(("name" = String, Path)), responses(
    (status = 200, body = List<Session>), (status = "default", body = ErrorResponse)))]
pub(super) async fn history(State(api): State<Api>, Name(name): Name) -> Reply<Json<List<Session>>> {
    Ok(items(blocking(move || api.jobs.history(&name)).await?))
}
