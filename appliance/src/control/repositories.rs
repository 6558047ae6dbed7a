//! The source's backup repository: what it knows of its jobs' replicas.

use axum::Json;
use axum::extract::State;
use vbr_api::{ErrorResponse, List, One, Repository, RepositoryReport};

use super::reply::{Name, Reply, list as items, one};
use super::{Api, blocking};

/// All repositories.
#[utoipa::path(get, path = "/v1/repositories", tag = "repositories", responses(
    (status = 200, body = List<Repository>), (status = "default", body = ErrorResponse)))]
pub(super) async fn list(State(api): State<Api>) -> Reply<Json<List<Repository>>> {
    Ok(items(blocking(move || api.jobs.repositories()).await?))
}

/// The repository of one job.
#[utoipa::path(get, path = "/v1/repositories/{job}", tag = "repositories", params(("job" = String, Path)), responses(
    (status = 200, body = One<Repository>), (status = "default", body = ErrorResponse)))]
pub(super) async fn show(State(api): State<Api>, Name(job): Name) -> Reply<Json<One<Repository>>> {
    Ok(one(blocking(move || api.jobs.repository(&job)).await?))
}

/// Checks the manifests and compares them with the target's last point.
#[utoipa::path(post, path = "/v1/repositories/{job}/verify", tag = "repositories",
    params(("job" = String, Path)), responses(
    (status = 200, body = One<RepositoryReport>), (status = "default", body = ErrorResponse)))]
pub(super) async fn verify(State(api): State<Api>, Name(job): Name) -> Reply<Json<One<RepositoryReport>>> {
    Ok(one(api.jobs.repository_verify(&job).await?))
}

/// Fetches the manifests from the target again; no disk data crosses the link.
#[utoipa::path(post, path = "/v1/repositories/{job}/rebuild", tag = "repositories",
    params(("job" = String, Path)), responses(
    (status = 200, body = One<RepositoryReport>), (status = "default", body = ErrorResponse)))]
pub(super) async fn rebuild(State(api): State<Api>, Name(job): Name) -> Reply<Json<One<RepositoryReport>>> {
    Ok(one(api.jobs.repository_rebuild(&job).await?))
}
