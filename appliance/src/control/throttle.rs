//! Throttling rules.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use vbr_api::{ErrorResponse, One, Removed, Throttle, ThrottleSpec, Throttles};

use super::reply::{Body, Name, Reply, created, one};
use super::{Api, blocking};

/// All rules, and what they come to for each connected peer.
#[utoipa::path(get, path = "/v1/throttle", tag = "throttle", responses(
    (status = 200, body = One<Throttles>), (status = "default", body = ErrorResponse)))]
pub(super) async fn list(State(api): State<Api>) -> Reply<Json<One<Throttles>>> {
    Ok(one(blocking(move || api.throttle.list()).await?))
}

/// Sets a rule, in the place of one of the same name. It acts at once.
#[utoipa::path(post, path = "/v1/throttle", tag = "throttle", request_body = ThrottleSpec, responses(
    (status = 201, body = One<Throttle>), (status = 200, body = One<Throttle>),
    (status = "default", body = ErrorResponse)))]
pub(super) async fn set(State(api): State<Api>, Body(spec): Body<ThrottleSpec>) -> Reply<Response> {
    let (rule, new) = api.throttle.set(spec).await?;
    Ok(created(rule, new))
}

/// Forgets a rule.
#[utoipa::path(delete, path = "/v1/throttle/{name}", tag = "throttle", params(("name" = String, Path)), responses(
    (status = 200, body = One<Removed>), (status = "default", body = ErrorResponse)))]
pub(super) async fn clear(State(api): State<Api>, Name(name): Name) -> Reply<Json<One<Removed>>> {
    Ok(one(Removed { removed: api.throttle.clear(Some(name)).await?, overridden: Vec::new() }))
}

/// Forgets all rules.
#[utoipa::path(delete, path = "/v1/throttle", tag = "throttle", responses(
    (status = 200, body = One<Removed>), (status = "default", body = ErrorResponse)))]
pub(super) async fn clear_all(State(api): State<Api>) -> Reply<Json<One<Removed>>> {
    Ok(one(Removed { removed: api.throttle.clear(None).await?, overridden: Vec::new() }))
}
