//! Jobs.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use vbr_api::{ErrorResponse, Job, JobEdit, JobSpec, List, One, Plan, Removed, RunRequest, Session};

use super::reply::{Body, Name, Reply, created, list as items, one};
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

/// Finished sessions, newest first.
#[utoipa::path(get, path = "/v1/jobs/{name}/history", tag = "jobs", params(("name" = String, Path)), responses(
    (status = 200, body = List<Session>), (status = "default", body = ErrorResponse)))]
pub(super) async fn history(State(api): State<Api>, Name(name): Name) -> Reply<Json<List<Session>>> {
    Ok(items(blocking(move || api.jobs.history(&name)).await?))
}
