//! Restore points kept at this site.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;
use vbr_api::{ErrorResponse, List, One, PinRequest, Removed, RestorePoint, VerifyReport};

use super::export::{self, MEDIA_TYPE};
use super::reference::{PointRef, ReplicaRef};
use super::reply::{Body as Sent, Params, Reply, list as items, one};
use super::{Api, blocking};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PointsQuery {
    /// Of this replica (`[SITE/]REPLICA`); of all unless said.
    replica: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PointQuery {
    /// `[SITE/]REPLICA@ID` or `[SITE/]REPLICA@latest`
    point: String,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RemoveQuery {
    /// `[SITE/]REPLICA@ID` or `[SITE/]REPLICA@latest`
    point: String,
    /// Although it is younger than the minimum age, or the newest.
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ExportQuery {
    /// `[SITE/]REPLICA@ID` or `[SITE/]REPLICA@latest`
    pub point: String,
    /// Number of the disk; 0 unless said.
    #[serde(default)]
    pub disk: u16,
}

/// Restore points, oldest first.
#[utoipa::path(get, path = "/v1/restore-points", tag = "restore points", params(PointsQuery), responses(
    (status = 200, body = List<RestorePoint>), (status = "default", body = ErrorResponse)))]
pub(super) async fn list(
    State(api): State<Api>,
    Params(query): Params<PointsQuery>,
) -> Reply<Json<List<RestorePoint>>> {
    let replica = query.replica.as_deref().map(ReplicaRef::parse).transpose()?;
    Ok(items(blocking(move || api.replicas.points(replica.as_ref())).await?))
}

/// One restore point.
#[utoipa::path(get, path = "/v1/restore-points/one", tag = "restore points", params(PointQuery), responses(
    (status = 200, body = One<RestorePoint>), (status = "default", body = ErrorResponse)))]
pub(super) async fn show(
    State(api): State<Api>,
    Params(query): Params<PointQuery>,
) -> Reply<Json<One<RestorePoint>>> {
    let point = PointRef::parse(&query.point)?;
    Ok(one(blocking(move || api.replicas.point(&point)).await?))
}

/// Removes a restore point. Never a pinned one; one that the minimum age keeps, and the newest, by force only.
#[utoipa::path(delete, path = "/v1/restore-points/one", tag = "restore points", params(RemoveQuery), responses(
    (status = 200, body = One<Removed>), (status = "default", body = ErrorResponse)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Params(query): Params<RemoveQuery>,
) -> Reply<Json<One<Removed>>> {
    let point = PointRef::parse(&query.point)?;
    Ok(one(blocking(move || api.replicas.remove_point(&point, query.force)).await?))
}

/// Pins a restore point: it is not removed until the pin lapses or is taken off.
#[utoipa::path(post, path = "/v1/restore-points/pin", tag = "restore points", params(PointQuery),
    request_body = PinRequest, responses(
    (status = 200, body = One<RestorePoint>), (status = "default", body = ErrorResponse)))]
pub(super) async fn pin(
    State(api): State<Api>,
    Params(query): Params<PointQuery>,
    Sent(request): Sent<PinRequest>,
) -> Reply<Json<One<RestorePoint>>> {
    let point = PointRef::parse(&query.point)?;
    Ok(one(blocking(move || api.replicas.pin_point(&point, request)).await?))
}

/// Takes the pin off a restore point.
#[utoipa::path(post, path = "/v1/restore-points/unpin", tag = "restore points", params(PointQuery), responses(
    (status = 200, body = One<RestorePoint>), (status = "default", body = ErrorResponse)))]
pub(super) async fn unpin(
    State(api): State<Api>,
    Params(query): Params<PointQuery>,
) -> Reply<Json<One<RestorePoint>>> {
    let point = PointRef::parse(&query.point)?;
    Ok(one(blocking(move || api.replicas.unpin_point(&point)).await?))
}

/// Reads and re-hashes a restore point.
#[utoipa::path(post, path = "/v1/restore-points/verify", tag = "restore points", params(PointQuery), responses(
    (status = 200, body = One<VerifyReport>), (status = "default", body = ErrorResponse)))]
pub(super) async fn verify(
    State(api): State<Api>,
    Params(query): Params<PointQuery>,
) -> Reply<Json<One<VerifyReport>>> {
    let point = PointRef::parse(&query.point)?;
    let permit = api.heavy.clone().acquire_owned().await;
    let report = blocking(move || {
        let _permit = permit;
        api.replicas.verify_point(&point)
    });
    Ok(one(report.await?))
}

/// The content of a disk, verified chunk by chunk: records `u64 offset, u32 len, data` (big endian,
/// ascending, zeroes left out), ended by `u64 disk_len, u32 0`. Without that end it failed.
#[utoipa::path(get, path = "/v1/restore-points/export", tag = "restore points", params(ExportQuery), responses(
    (status = 200, content_type = "application/vnd.vbr.extents", description = "a stream of extents"),
    (status = "default", body = ErrorResponse)))]
pub(super) async fn export(State(api): State<Api>, Params(query): Params<ExportQuery>) -> Reply<Response> {
    let point = PointRef::parse(&query.point)?;
    let permit = api.heavy.clone().acquire_owned().await;
    let what = format!("disk {} of {point}", query.disk);
    let source = blocking(move || api.replicas.export(&point, query.disk)).await?;
    let body = Body::from_stream(export::stream(source, what, permit));
    Ok(([(CONTENT_TYPE, MEDIA_TYPE)], body).into_response())
}
