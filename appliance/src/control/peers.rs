//! Pairing and peers.

use axum::Json;
use axum::extract::State;
use vbr_api::{ErrorResponse, GrantRequest, Invite, InviteRequest, JoinRequest, List, One, Peer, Removed};

use super::reply::{Body, Name, Reply, list as items, one};
use super::{Api, blocking};
use crate::error::Problem;

/// All peers.
#[utoipa::path(get, path = "/v1/peers", tag = "peers", responses(
    (status = 200, body = List<Peer>), (status = "default", body = ErrorResponse)))]
pub(super) async fn list(State(api): State<Api>) -> Reply<Json<List<Peer>>> {
    Ok(items(blocking(move || api.peers.list()).await?))
}

/// One peer.
#[utoipa::path(get, path = "/v1/peers/{name}", tag = "peers", params(("name" = String, Path)), responses(
    (status = 200, body = One<Peer>), (status = "default", body = ErrorResponse)))]
pub(super) async fn show(State(api): State<Api>, Name(name): Name) -> Reply<Json<One<Peer>>> {
    let peer = blocking(move || {
        api.peers.list()?.into_iter().find(|peer| peer.name == name).ok_or_else(|| {
            Problem::not_found(format!("peer \"{name}\""), "`vbrctl peer list` shows the peers of this site")
        })
    });
    Ok(one(peer.await?))
}

/// A new pairing code, good for one use.
#[utoipa::path(post, path = "/v1/peers/invite", tag = "peers", request_body = InviteRequest, responses(
    (status = 200, body = One<Invite>), (status = "default", body = ErrorResponse)))]
pub(super) async fn invite(
    State(api): State<Api>,
    Body(request): Body<InviteRequest>,
) -> Reply<Json<One<Invite>>> {
    Ok(one(api.peers.invite(request).await?))
}

/// Pairs with the site that made the code.
#[utoipa::path(post, path = "/v1/peers/join", tag = "peers", request_body = JoinRequest, responses(
    (status = 200, body = One<Peer>), (status = "default", body = ErrorResponse)))]
pub(super) async fn join(State(api): State<Api>, Body(request): Body<JoinRequest>) -> Reply<Json<One<Peer>>> {
    Ok(one(api.peers.join(request).await?))
}

/// Sets what a peer may fill at this site.
#[utoipa::path(post, path = "/v1/peers/{name}/grant", tag = "peers", params(("name" = String, Path)),
    request_body = GrantRequest, responses(
    (status = 200, body = One<Peer>), (status = "default", body = ErrorResponse)))]
pub(super) async fn grant(
    State(api): State<Api>,
    Name(name): Name,
    Body(request): Body<GrantRequest>,
) -> Reply<Json<One<Peer>>> {
    Ok(one(api.peers.grant(&name, request).await?))
}

/// Takes a peer's rights and cuts its connections.
#[utoipa::path(post, path = "/v1/peers/{name}/revoke", tag = "peers", params(("name" = String, Path)), responses(
    (status = 200, body = One<Peer>), (status = "default", body = ErrorResponse)))]
pub(super) async fn revoke(State(api): State<Api>, Name(name): Name) -> Reply<Json<One<Peer>>> {
    Ok(one(api.peers.revoke(&name).await?))
}

/// Forgets a peer. What it replicated stays.
#[utoipa::path(delete, path = "/v1/peers/{name}", tag = "peers", params(("name" = String, Path)), responses(
    (status = 200, body = One<Removed>), (status = "default", body = ErrorResponse)))]
pub(super) async fn remove(State(api): State<Api>, Name(name): Name) -> Reply<Json<One<Removed>>> {
    api.peers.remove(&name).await?;
    Ok(one(Removed { removed: vec![name], ..Removed::default() }))
}
