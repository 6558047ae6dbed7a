//! Replicas kept at this site.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;
use vbr_api::{ErrorResponse, List, One, Removed, Replica, VerifyReport};

use super::reference::ReplicaRef;
use super::reply::{Params, Reply, list as items, one};
use super::{Api, blocking};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ReplicaQuery {
    /// `[SITE/]REPLICA`
    replica: String,
}

/// All replicas.
#[utoipa::path(get, path = "/v1/replicas", tag = "replicas", responses(
    (status = 200, body = List<Replica>), (status = "default", body = ErrorResponse)))]
pub(super) async fn list(State(api): State<Api>) -> Reply<Json<List<Replica>>> {
    Ok(items(blocking(move || api.replicas.replicas()).await?))
}

/// One replica.
#[utoipa::path(get, path = "/v1/replicas/one", tag = "replicas", params(ReplicaQuery), responses(
    (status = 200, body = One<Replica>), (status = "default", body = ErrorResponse)))]
pub(super) async fn show(
    State(api): State<Api>,
    Params(query): Params<ReplicaQuery>,
) -> Reply<Json<One<Replica>>> {
    let replica = ReplicaRef::parse(&query.replica)?;
    Ok(one(blocking(move || api.replicas.replica(&replica)).await?))
}

/// Removes a replica with all its restore points.
#[utoipa::path(delete, path = "/v1/replicas/one", tag = "replicas", params(ReplicaQuery), responses(
    (status = 200, body = One<Removed>), (status = "default", body = ErrorResponse)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Params(query): Params<ReplicaQuery>,
) -> Reply<Json<One<Removed>>> {
    let replica = ReplicaRef::parse(&query.replica)?;
    Ok(one(blocking(move || api.replicas.remove_replica(&replica)).await?))
}

/// Reads and re-hashes every restore point of a replica.
#[utoipa::path(post, path = "/v1/replicas/verify", tag = "replicas", params(ReplicaQuery), responses(
    (status = 200, body = List<VerifyReport>), (status = "default", body = ErrorResponse)))]
pub(super) async fn verify(
    State(api): State<Api>,
    Params(query): Params<ReplicaQuery>,
) -> Reply<Json<List<VerifyReport>>> {
    let replica = ReplicaRef::parse(&query.replica)?;
    let permit = api.heavy.clone().acquire_owned().await;
    let reports = blocking(move || {
        let _permit = permit;
        api.replicas.verify_replica(&replica)
    });
    Ok(items(reports.await?))
}
