//! The site as a whole: status, configuration, cache.

use axum::Json;
use axum::extract::State;
use vbr_api::{CacheStats, ConfigView, ErrorResponse, One, Status};

use super::reply::{Reply, one};
use super::{Api, blocking};

/// Site, peers, running sessions, lag, warnings.
#[utoipa::path(get, path = "/v1/status", tag = "site", responses(
    (status = 200, body = One<Status>), (status = "default", body = ErrorResponse)))]
pub(super) async fn status(State(api): State<Api>) -> Reply<Json<One<Status>>> {
    Ok(one(blocking(move || api.site.status()).await?))
}

/// The effective configuration.
#[utoipa::path(get, path = "/v1/config", tag = "site", responses(
    (status = 200, body = One<ConfigView>), (status = "default", body = ErrorResponse)))]
pub(super) async fn config(State(api): State<Api>) -> Reply<Json<One<ConfigView>>> {
    Ok(one(blocking(move || api.site.config()).await?))
}

/// The global cache.
#[utoipa::path(get, path = "/v1/cache", tag = "site", responses(
    (status = 200, body = One<CacheStats>), (status = "default", body = ErrorResponse)))]
pub(super) async fn cache(State(api): State<Api>) -> Reply<Json<One<CacheStats>>> {
    Ok(one(blocking(move || api.site.cache()).await?))
}
