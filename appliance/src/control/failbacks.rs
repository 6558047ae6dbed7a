//! VMs go back to the sites that they came from.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;
use vbr_api::{ErrorResponse, FailbackRequest, Failover, One};

use super::Api;
use super::reference::ReplicaRef;
use super::reply::{Body, Params, Reply, one};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct UndoQuery {
    /// `[SITE/]REPLICA`
    replica: String,
    /// Also where that site cannot be asked; whoever orders it has made sure that the VM does not run there.
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct CommitQuery {
    /// `[SITE/]REPLICA`
    replica: String,
}

/// Brings the VM back to the site that it came from: it is replicated there, shut down here, replicated once more, and started
/// there. Answers when that is done. That site must have granted `manage`. Ordered again, it goes on.
#[utoipa::path(post, path = "/v1/failbacks/start", tag = "failover", request_body = FailbackRequest, responses(
    (status = 200, body = One<Failover>), (status = "default", body = ErrorResponse)))]
pub(super) async fn start(
    State(api): State<Api>,
    Body(request): Body<FailbackRequest>,
) -> Reply<Json<One<Failover>>> {
    Ok(one(api.failovers.fail_back(request).await?))
}

/// The VM is here again, as it was when it was shut down here; what was written there since is thrown away.
#[utoipa::path(post, path = "/v1/failbacks/undo", tag = "failover", params(UndoQuery), responses(
    (status = 200, body = One<Failover>), (status = "default", body = ErrorResponse)))]
pub(super) async fn undo(
    State(api): State<Api>,
    Params(query): Params<UndoQuery>,
) -> Reply<Json<One<Failover>>> {
    let replica = ReplicaRef::parse(&query.replica)?;
    Ok(one(api.failovers.undo_failback(replica, query.force).await?))
}

/// The VM stays there for good; what was written here is thrown away, and the replica takes sessions again.
#[utoipa::path(post, path = "/v1/failbacks/commit", tag = "failover", params(CommitQuery), responses(
    (status = 200, body = One<Failover>), (status = "default", body = ErrorResponse)))]
pub(super) async fn commit(
    State(api): State<Api>,
    Params(query): Params<CommitQuery>,
) -> Reply<Json<One<Failover>>> {
    let replica = ReplicaRef::parse(&query.replica)?;
    Ok(one(api.failovers.commit_failback(replica).await?))
}
