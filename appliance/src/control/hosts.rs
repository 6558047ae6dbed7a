//! Hosts and what can be replicated from them.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;
use vbr_api::{ErrorResponse, Host, List, One, PowerRequest, Removed, Vm};

use super::reply::{Body, Name, Params, Reply, created, list as items, one};
use super::{Api, blocking};
use crate::error::Problem;

/// All hosts.
#[utoipa::path(get, path = "/v1/hosts", tag = "hosts", responses(
    (status = 200, body = List<Host>), (status = "default", body = ErrorResponse)))]
pub(super) async fn list(State(api): State<Api>) -> Reply<Json<List<Host>>> {
    Ok(items(blocking(move || api.hosts.list()).await?))
}

/// Adds a host; the same definition again is success.
#[utoipa::path(post, path = "/v1/hosts", tag = "hosts", request_body = Host, responses(
    (status = 201, body = One<Host>), (status = 200, body = One<Host>), (status = "default", body = ErrorResponse)))]
pub(super) async fn add(State(api): State<Api>, Body(host): Body<Host>) -> Reply<Response> {
    let (host, new) = blocking(move || api.hosts.add(host)).await?;
    Ok(created(host, new))
}

/// One host.
#[utoipa::path(get, path = "/v1/hosts/{name}", tag = "hosts", params(("name" = String, Path)), responses(
    (status = 200, body = One<Host>), (status = "default", body = ErrorResponse)))]
pub(super) async fn show(State(api): State<Api>, Name(name): Name) -> Reply<Json<One<Host>>> {
    let host = blocking(move || {
        api.hosts.list()?.into_iter().find(|host| host.name == name).ok_or_else(|| {
            Problem::not_found(format!("host \"{name}\""), "`vbrctl host list` shows the hosts of this site")
        })
    });
    Ok(one(host.await?))
}

/// Forgets a host.
#[utoipa::path(delete, path = "/v1/hosts/{name}", tag = "hosts", params(("name" = String, Path)), responses(
    (status = 200, body = One<Removed>), (status = "default", body = ErrorResponse)))]
pub(super) async fn remove(State(api): State<Api>, Name(name): Name) -> Reply<Json<One<Removed>>> {
    let removed = blocking(move || {
        api.hosts.remove(&name).map(|()| Removed { removed: vec![name], ..Removed::default() })
    });
    Ok(one(removed.await?))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct VmQuery {
    /// Of this host; of all unless said.
    host: Option<String>,
}

/// Shuts a VM down (its disks can be read until it is switched off), starts it again, or switches it off.
#[utoipa::path(post, path = "/v1/vms/power", tag = "hosts", request_body = PowerRequest, responses(
    (status = 200, body = One<PowerRequest>), (status = "default", body = ErrorResponse)))]
pub(super) async fn power(
    State(api): State<Api>,
    Body(request): Body<PowerRequest>,
) -> Reply<Json<One<PowerRequest>>> {
    Ok(one(blocking(move || api.hosts.power(&request).map(|()| request)).await?))
}

/// What can be replicated.
#[utoipa::path(get, path = "/v1/vms", tag = "hosts", params(VmQuery), responses(
    (status = 200, body = List<Vm>), (status = "default", body = ErrorResponse)))]
pub(super) async fn vms(State(api): State<Api>, Params(query): Params<VmQuery>) -> Reply<Json<List<Vm>>> {
    Ok(items(blocking(move || api.hosts.vms(query.host.as_deref())).await?))
}
