//! What the site does by itself: background workers, logs of jobs, notifications.

use axum::Json;
use axum::extract::State;
use vbr_api::{ErrorResponse, JobLogEntry, JobLogQuery, List, NotifyHook, One, Task};

use super::reply::{Name, Params, Reply, list as items, one};
use super::{Api, blocking};

/// Background workers: what each does, its last run, its next one.
#[utoipa::path(get, path = "/v1/tasks", tag = "housekeeping", responses(
    (status = 200, body = List<Task>), (status = "default", body = ErrorResponse)))]
pub(super) async fn tasks(State(api): State<Api>) -> Reply<Json<List<Task>>> {
    Ok(items(blocking(move || api.housekeeping.tasks()).await?))
}

/// One background worker.
#[utoipa::path(get, path = "/v1/tasks/{name}", tag = "housekeeping", params(("name" = String, Path)), responses(
    (status = 200, body = One<Task>), (status = "default", body = ErrorResponse)))]
pub(super) async fn task(State(api): State<Api>, Name(name): Name) -> Reply<Json<One<Task>>> {
    Ok(one(blocking(move || api.housekeeping.task(&name)).await?))
}

/// Lets a background worker run now; one that runs is left running.
#[utoipa::path(post, path = "/v1/tasks/{name}/run", tag = "housekeeping", params(("name" = String, Path)),
    responses((status = 200, body = One<Task>), (status = "default", body = ErrorResponse)))]
pub(super) async fn run_task(State(api): State<Api>, Name(name): Name) -> Reply<Json<One<Task>>> {
    Ok(one(blocking(move || api.housekeeping.run_task(&name)).await?))
}

/// What happened to a job: the newest entries, oldest first.
#[utoipa::path(get, path = "/v1/jobs/{name}/log", tag = "jobs", params(("name" = String, Path), JobLogQuery),
    responses((status = 200, body = List<JobLogEntry>), (status = "default", body = ErrorResponse)))]
pub(super) async fn job_log(
    State(api): State<Api>,
    Name(name): Name,
    Params(query): Params<JobLogQuery>,
) -> Reply<Json<List<JobLogEntry>>> {
    Ok(items(blocking(move || api.housekeeping.job_log(&name, &query)).await?))
}

/// Who is told of what, and whether that arrives.
#[utoipa::path(get, path = "/v1/notify", tag = "housekeeping", responses(
    (status = 200, body = List<NotifyHook>), (status = "default", body = ErrorResponse)))]
pub(super) async fn hooks(State(api): State<Api>) -> Reply<Json<List<NotifyHook>>> {
    Ok(items(blocking(move || api.housekeeping.hooks()).await?))
}

/// Sends a test to a hook. It is queued like any other notification.
#[utoipa::path(post, path = "/v1/notify/{name}/test", tag = "housekeeping", params(("name" = String, Path)),
    responses((status = 200, body = One<NotifyHook>), (status = "default", body = ErrorResponse)))]
pub(super) async fn test_hook(State(api): State<Api>, Name(name): Name) -> Reply<Json<One<NotifyHook>>> {
    Ok(one(blocking(move || api.housekeeping.test_hook(&name)).await?))
}
