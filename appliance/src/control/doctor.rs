//! What commonly goes wrong, and whether vbrd can read a disk.
//!
//! Bounds: [`DISKS_MAX`] disks an order.

use axum::Json;
use axum::extract::State;
use vbr_api::{DisksRequest, DoctorReport, ErrorResponse, One};

use super::reply::{Body, Reply, one};
use super::{Api, blocking};
use crate::error::Problem;

/// Disks that are tried at once.
const DISKS_MAX: usize = 256;

/// Looks at what commonly goes wrong: network, clock, space, tools, access to disks, peers.
#[utoipa::path(get, path = "/v1/doctor", tag = "site", responses(
    (status = 200, body = One<DoctorReport>), (status = "default", body = ErrorResponse)))]
pub(super) async fn examine(State(api): State<Api>) -> Reply<Json<One<DoctorReport>>> {
    let checks = blocking(move || api.doctor.examine()).await?;
    Ok(one(DoctorReport { checks }))
}

/// Opens images and block devices as vbrd does, and reads their beginning.
#[utoipa::path(post, path = "/v1/doctor/disks", tag = "site", request_body = DisksRequest, responses(
    (status = 200, body = One<DoctorReport>), (status = "default", body = ErrorResponse)))]
pub(super) async fn try_disks(
    State(api): State<Api>,
    Body(request): Body<DisksRequest>,
) -> Reply<Json<One<DoctorReport>>> {
    let disks = request.disks;
    if disks.is_empty() || disks.len() > DISKS_MAX || disks.iter().any(|disk| !disk.starts_with('/')) {
        let why =
            format!("{} disks were named; 1 to {DISKS_MAX} may be, each with its whole path", disks.len());
        return Err(Problem::invalid("try disks", why, "name paths that begin with /").into());
    }
    let checks = blocking(move || api.doctor.try_disks(&disks)).await?;
    Ok(one(DoctorReport { checks }))
}
