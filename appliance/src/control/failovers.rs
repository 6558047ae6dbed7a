//! Starting replicas at this site.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;
use vbr_api::{BootTest, ErrorResponse, Failover, FailoverRequest, List, One, PlannedRequest, TestRequest};

use super::reference::{PointRef, ReplicaRef};
use super::reply::{Body, Params, Reply, list as items, one};
use super::{Api, blocking};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ReplicaQuery {
    /// `[SITE/]REPLICA`
    replica: String,
}

/// Every replica, and what runs of it.
#[utoipa::path(get, path = "/v1/failovers", tag = "failover", responses(
    (status = 200, body = List<Failover>), (status = "default", body = ErrorResponse)))]
pub(super) async fn list(State(api): State<Api>) -> Reply<Json<List<Failover>>> {
    Ok(items(blocking(move || api.failovers.list()).await?))
}

/// One replica, and what runs of it.
#[utoipa::path(get, path = "/v1/failovers/one", tag = "failover", params(ReplicaQuery), responses(
    (status = 200, body = One<Failover>), (status = "default", body = ErrorResponse)))]
pub(super) async fn show(
    State(api): State<Api>,
    Params(query): Params<ReplicaQuery>,
) -> Reply<Json<One<Failover>>> {
    let replica = ReplicaRef::parse(&query.replica)?;
    Ok(one(blocking(move || api.failovers.show(&replica)).await?))
}

/// Starts the VM from a restore point. From then on no session replicates into it. A VM that is off is started again.
#[utoipa::path(post, path = "/v1/failovers/start", tag = "failover", request_body = FailoverRequest, responses(
    (status = 200, body = One<Failover>), (status = "default", body = ErrorResponse)))]
pub(super) async fn start(
    State(api): State<Api>,
    Body(request): Body<FailoverRequest>,
) -> Reply<Json<One<Failover>>> {
    let point = PointRef::parse(&request.point)?;
    Ok(one(blocking(move || api.failovers.start(&point, &request)).await?))
}

/// Starts a restore point away from everybody, looks, and throws away what it wrote. Answers when that is over.
#[utoipa::path(post, path = "/v1/failovers/test", tag = "failover", request_body = TestRequest, responses(
    (status = 200, body = One<BootTest>), (status = "default", body = ErrorResponse)))]
pub(super) async fn test(
    State(api): State<Api>,
    Body(request): Body<TestRequest>,
) -> Reply<Json<One<BootTest>>> {
    let point = PointRef::parse(&request.start.point)?;
    let permit = api.heavy.clone().acquire_owned().await;
    let shutdown = api.shutdown.clone();
    let test = blocking(move || {
        let _permit = permit;
        api.failovers.test(&point, &request, &|| shutdown.is_cancelled())
    });
    Ok(one(test.await?))
}

/// Moves the VM here in order: it is replicated, shut down at its source, replicated once more, and started here. Answers when
/// that is done. The source must have granted `manage`.
#[utoipa::path(post, path = "/v1/failovers/planned", tag = "failover", request_body = PlannedRequest, responses(
    (status = 200, body = One<Failover>), (status = "default", body = ErrorResponse)))]
pub(super) async fn planned(
    State(api): State<Api>,
    Body(request): Body<PlannedRequest>,
) -> Reply<Json<One<Failover>>> {
    Ok(one(api.failovers.planned(request).await?))
}

/// Ends a failover or a test; what was written here is thrown away.
#[utoipa::path(post, path = "/v1/failovers/undo", tag = "failover", params(ReplicaQuery), responses(
    (status = 200, body = One<Failover>), (status = "default", body = ErrorResponse)))]
pub(super) async fn undo(
    State(api): State<Api>,
    Params(query): Params<ReplicaQuery>,
) -> Reply<Json<One<Failover>>> {
    let replica = ReplicaRef::parse(&query.replica)?;
    Ok(one(blocking(move || api.failovers.undo(&replica)).await?))
}

/// The VM stays here for good.
#[utoipa::path(post, path = "/v1/failovers/commit", tag = "failover", params(ReplicaQuery), responses(
    (status = 200, body = One<Failover>), (status = "default", body = ErrorResponse)))]
pub(super) async fn commit(
    State(api): State<Api>,
    Params(query): Params<ReplicaQuery>,
) -> Reply<Json<One<Failover>>> {
    let replica = ReplicaRef::parse(&query.replica)?;
    Ok(one(blocking(move || api.failovers.commit(&replica)).await?))
}
