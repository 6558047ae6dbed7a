//! The life of a site: its key pair changes, a peer takes the place of another, its state leaves and comes back.

use axum::Json;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, post};
use data_encoding::BASE64;
use vbr_api::{ErrorResponse, One, Peer, ReplaceRequest, Rotation, StateExport, StateImport, StateSummary};

use super::orders::LifeOrders;
use super::reply::{Body, Name, Reply, one};
use super::{Api, STATE_BYTES_MAX, blocking};
use crate::error::Problem;

/// The state's media type.
const MEDIA_TYPE: &str = "application/vnd.vbr.state";

fn life(api: Api) -> Result<std::sync::Arc<dyn LifeOrders>, Problem> {
    api.life
        .ok_or_else(|| Problem::new("internal", "the order", "this vbrd does not offer it", "report this"))
}

/// How far a change of the key pair has got.
#[utoipa::path(get, path = "/v1/rotation", tag = "peers", responses(
    (status = 200, body = One<Rotation>), (status = "default", body = ErrorResponse)))]
pub(super) async fn rotation(State(api): State<Api>) -> Reply<Json<One<Rotation>>> {
    let life = life(api)?;
    Ok(one(blocking(move || life.rotation()).await?))
}

/// Gives this site another key pair, once every peer knows of it.
#[utoipa::path(post, path = "/v1/rotation", tag = "peers", responses(
    (status = 200, body = One<Rotation>), (status = "default", body = ErrorResponse)))]
pub(super) async fn rotate(State(api): State<Api>) -> Reply<Json<One<Rotation>>> {
    Ok(one(life(api)?.rotate().await?))
}

/// Keeps the old key pair after all.
#[utoipa::path(delete, path = "/v1/rotation", tag = "peers", responses(
    (status = 200, body = One<Rotation>), (status = "default", body = ErrorResponse)))]
pub(super) async fn cancel_rotation(State(api): State<Api>) -> Reply<Json<One<Rotation>>> {
    let life = life(api)?;
    Ok(one(blocking(move || life.cancel_rotation()).await?))
}

/// Another peer takes this one's place: its name, grants, quota and replicas.
#[utoipa::path(post, path = "/v1/peers/{name}/replace", tag = "peers", params(("name" = String, Path)),
    request_body = ReplaceRequest, responses(
    (status = 200, body = One<Peer>), (status = "default", body = ErrorResponse)))]
pub(super) async fn replace(
    State(api): State<Api>,
    Name(name): Name,
    Body(request): Body<ReplaceRequest>,
) -> Reply<Json<One<Peer>>> {
    Ok(one(life(api)?.replace(&name, &request.with).await?))
}

/// Keys, peers, jobs, hosts and rules, sealed under a passphrase.
#[utoipa::path(post, path = "/v1/state/export", tag = "site", request_body = StateExport, responses(
    (status = 200, body = Vec<u8>, content_type = "application/vnd.vbr.state"),
    (status = "default", body = ErrorResponse)))]
pub(super) async fn export_state(
    State(api): State<Api>,
    Body(request): Body<StateExport>,
) -> Reply<impl IntoResponse> {
    let life = life(api)?;
    let sealed = blocking(move || life.export_state(&request.passphrase)).await?;
    Ok(([(CONTENT_TYPE, MEDIA_TYPE)], sealed))
}

/// With a bound of its own: a state is longer than other orders.
pub(super) fn import_route() -> MethodRouter<Api> {
    post(import_state).layer(DefaultBodyLimit::max(STATE_BYTES_MAX))
}

/// Takes over what was exported; vbrd restarts with it.
#[utoipa::path(post, path = "/v1/state/import", tag = "site", request_body = StateImport, responses(
    (status = 200, body = One<StateSummary>), (status = "default", body = ErrorResponse)))]
pub(super) async fn import_state(
    State(api): State<Api>,
    Body(request): Body<StateImport>,
) -> Reply<Json<One<StateSummary>>> {
    let life = life(api)?;
    let state = BASE64.decode(request.state.as_bytes()).map_err(|error| {
        Problem::invalid("the state to import", error.to_string(), "see GET /v1/openapi.json")
    })?;
    Ok(one(blocking(move || life.import_state(&request.passphrase, &state, request.replace)).await?))
}
