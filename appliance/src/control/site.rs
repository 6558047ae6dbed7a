//! The site as a whole: status, configuration, cache, metrics.

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
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

/// For Prometheus.
#[utoipa::path(get, path = "/v1/metrics", tag = "site", responses(
    (status = 200, body = String), (status = "default", body = ErrorResponse)))]
pub(super) async fn metrics(State(api): State<Api>) -> Reply<impl IntoResponse> {
    let text = blocking(move || api.site.metrics()).await?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text))
}

/// Serves `/metrics`, and nothing else, until the API ends.
pub(super) async fn serve_metrics(api: Api, listener: TcpListener) -> std::io::Result<()> {
    let shutdown = api.shutdown.clone();
    let router = Router::new().route("/metrics", get(metrics)).with_state(api);
    axum::serve(listener, router).with_graceful_shutdown(async move { shutdown.cancelled().await }).await
}
