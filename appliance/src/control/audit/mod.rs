//! The audit log: every order that changes something, or tried to, with who gave it and what came of it.
//!
//! An order is entered when it is over and before its answer leaves, durably; one whose caller left before, too. Never
//! entered: secrets. What of a body is kept is named in [`KEPT`], everything else is left out. Where the log cannot be
//! written the order stands, and the log of vbrd tells it: a full disk must not keep anybody from removing something.
//! Bounds: [`DETAIL_BYTES_MAX`] an entry besides its path; the files' are in [`log`].

mod log;

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::IntoParams;
use vbr_api::{AuditCaller, AuditEntry, ErrorResponse, List, Moment};

pub use log::AuditLog;

use super::remote::{Remote, addressee};
use super::reply::{Failure, Params, ProblemCode, Reply, list as items};
use super::socket::{Caller, user_name};
use super::{Api, BODY_BYTES_MAX, STATE_BYTES_MAX, blocking};
use crate::error::Problem;

/// Fields of bodies that are kept. No code, no passphrase, no key is ever among them.
const KEPT: &[&str] = &[
    "name",
    "domain",
    "valid_ms",
    "quota_bytes",
    "max_points",
    "manage",
    "driver",
    "directories",
    "uris",
    "tls_dir",
    "target",
    "vm",
    "disks",
    "exclude",
    "keep",
    "keep_calendar",
    "free_space",
    "rate_bps",
    "schedule",
    "priority",
    "retry",
    "map",
    "enabled",
    "change",
    "drop_disks",
    "allow_live",
    "for_ms",
    "until",
    "peer",
    "network",
    "days",
    "hours",
    "with",
    "replace",
];
/// Of all details of an entry together.
const DETAIL_BYTES_MAX: usize = 2048;
/// Of a path with its query.
const PATH_CHARS_MAX: usize = 512;
/// Entries of one answer.
const LINES_MAX: usize = 10_000;
/// Unless said.
const LINES: usize = 100;
/// Questions by their method, and yet data leaves.
const EXPORTS: &[&str] = &["/v1/restore-points/export", "/v1/restore-points/nbd", "/v1/jobs/{name}/seed"];

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// Entries of this moment (RFC 3339) and after it.
    #[param(value_type = Option<String>)]
    since: Option<Moment>,
    /// The newest so many: 100 unless said, 10,000 at most.
    lines: Option<usize>,
}

/// What was ordered at this site, oldest first.
#[utoipa::path(get, path = "/v1/audit", tag = "site", params(AuditQuery), responses(
    (status = 200, body = List<AuditEntry>), (status = "default", body = ErrorResponse)))]
pub(super) async fn list(
    State(api): State<Api>,
    Params(query): Params<AuditQuery>,
) -> Reply<Json<List<AuditEntry>>> {
    let lines = query.lines.unwrap_or(LINES);
    if lines == 0 || lines > LINES_MAX {
        let why = format!("{lines} entries were asked for; 1 to {LINES_MAX} may be");
        return Err(
            Problem::invalid("the audit log", why, "ask for fewer, or for those --since a moment").into()
        );
    }
    let Some(log) = api.audit else { return Ok(items(Vec::new())) };
    Ok(items(blocking(move || log.read(query.since, lines)).await?))
}

/// Enters orders; tells the log of vbrd of them, of questions only when debugging.
pub(super) async fn record(State(api): State<Api>, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let (started, caller) = (Instant::now(), caller(&request));
    let route = request.extensions().get::<MatchedPath>().map(|route| route.as_str().to_owned());
    let exports = route.as_deref().is_some_and(|route| EXPORTS.contains(&route));
    let is_question = method == Method::GET && !exports;
    let shown = (caller.uid, caller.pid, caller.peer.clone());
    let response = match api.audit.clone() {
        Some(log) if !is_question => entered(log, caller, route, request, next).await,
        _ => next.run(request).await,
    };
    let (status, ms, (uid, pid, peer)) =
        (response.status().as_u16(), started.elapsed().as_millis() as u64, shown);
    if is_question {
        tracing::debug!(%method, path, status, ms, uid, pid, peer, "answered");
    } else {
        tracing::info!(%method, path, status, ms, uid, pid, peer, "order");
    }
    response
}

/// An order that was refused for its caller's sake, without its body.
pub(super) fn refusal(request: &Request, status: u16) -> AuditEntry {
    let route = request.extensions().get::<MatchedPath>().map(|route| route.as_str().to_owned());
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    AuditEntry {
        sequence: 0,
        at: Moment::now(),
        caller: caller(request),
        site: addressee(request.headers()).map(|site| site.chars().take(64).collect()),
        method: request.method().to_string(),
        route,
        path: path.chars().take(PATH_CHARS_MAX).collect(),
        details: Map::new(),
        outcome: "not_allowed".to_owned(),
        status,
        took_ms: 0,
    }
}

/// Enters it, durably.
pub(super) async fn enter(api: &Api, entry: AuditEntry) {
    if let Some(log) = api.audit.clone() {
        drop(tokio::task::spawn_blocking(move || keep(&log, entry)).await);
    }
}

async fn entered(
    log: Arc<AuditLog>,
    caller: AuditCaller,
    route: Option<String>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let most = if route.as_deref() == Some("/v1/state/import") { STATE_BYTES_MAX } else { BODY_BYTES_MAX };
    let site = addressee(&parts.headers).map(|site| site.chars().take(64).collect());
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let mut entry = AuditEntry {
        sequence: 0,
        at: Moment::now(),
        caller,
        site,
        method: parts.method.to_string(),
        route,
        path: path.chars().take(PATH_CHARS_MAX).collect(),
        details: Map::new(),
        outcome: "abandoned".to_owned(),
        status: 0,
        took_ms: 0,
    };
    let (started, mut unfinished) = (Instant::now(), Unfinished { log, entry: None });
    let response = match to_bytes(body, most).await {
        Ok(bytes) => {
            entry.details = details(&bytes);
            unfinished.entry = Some(entry);
            next.run(Request::from_parts(parts, Body::from(bytes))).await
        }
        Err(error) => {
            unfinished.entry = Some(entry);
            let next = "see GET /v1/openapi.json for what this order takes";
            Failure(Problem::invalid("the request's body", error.to_string(), next)).into_response()
        }
    };
    if let Some(mut entry) = unfinished.entry.take() {
        let code = response.extensions().get::<ProblemCode>().map(|code| code.0.clone());
        entry.status = response.status().as_u16();
        let fallback = || format!("http_{}", entry.status);
        let done = response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS;
        entry.outcome = match done {
            true => "done".to_owned(),
            false => code.unwrap_or_else(fallback),
        };
        entry.took_ms = started.elapsed().as_millis() as u64;
        let log = unfinished.log.clone();
        drop(tokio::task::spawn_blocking(move || keep(&log, entry)).await);
    }
    response
}

/// An order whose caller may leave before it is answered.
struct Unfinished {
    log: Arc<AuditLog>,
    entry: Option<AuditEntry>,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(entry) = self.entry.take() else { return };
        let log = self.log.clone();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || keep(&log, entry))),
            Err(_) => keep(&log, entry),
        }
    }
}

fn keep(log: &AuditLog, entry: AuditEntry) {
    let (method, path, outcome) = (entry.method.clone(), entry.path.clone(), entry.outcome.clone());
    if let Err(error) = log.append(entry) {
        tracing::error!(%error, method, path, outcome, "an order could not be entered into the audit log: free space in the state directory");
    }
}

fn caller(request: &Request) -> AuditCaller {
    if let Some(remote) = request.extensions().get::<Remote>() {
        return AuditCaller {
            user: remote.user.clone(),
            peer: Some(remote.peer.clone()),
            peer_id: Some(remote.peer_id.clone()),
            ..AuditCaller::default()
        };
    }
    let caller = request.extensions().get::<ConnectInfo<Caller>>().map(|info| info.0).unwrap_or_default();
    AuditCaller {
        uid: caller.uid,
        pid: caller.pid,
        user: caller.uid.and_then(user_name),
        ..AuditCaller::default()
    }
}

/// The name of whoever is at the other end of the socket.
pub(super) fn user(request: &Request) -> Option<String> {
    caller(request).user
}

/// What may be kept of a body.
fn details(body: &Bytes) -> Map<String, Value> {
    let Ok(Value::Object(body)) = serde_json::from_slice(body) else { return Map::new() };
    let mut left = DETAIL_BYTES_MAX;
    let mut kept = Map::new();
    let said = |(key, value): &(String, Value)| !value.is_null() && KEPT.contains(&key.as_str());
    for (key, value) in body.into_iter().filter(said) {
        let bytes = value.to_string().len();
        let value = if bytes <= left { value } else { Value::from(format!("{bytes} bytes")) };
        left = left.saturating_sub(bytes);
        kept.insert(key, value);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_masses_are_left_out() {
        let body = Bytes::from_static(
            br#"{"code":"vbr1secret","name":"dr","passphrase":"x","manage":true,"keep":null}"#,
        );
        let text = Value::Object(details(&body)).to_string();
        assert_eq!(text, r#"{"manage":true,"name":"dr"}"#);
        let long = format!(r#"{{"disks":"{}","name":"web"}}"#, "x".repeat(5000));
        let kept = details(&Bytes::from(long));
        assert_eq!(kept["disks"], "5002 bytes");
        assert!(details(&Bytes::from_static(b"[1]")).is_empty());
        for secret in ["code", "passphrase", "state", "key"] {
            assert!(!KEPT.contains(&secret), "{secret}");
        }
    }
}
