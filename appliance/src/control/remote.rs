//! The remote console: orders for another site are handed on to it, and orders of peers are carried out here.
//!
//! An order names another site in the header [`SITE_HEADER`]. What comes from a peer takes the same routes as what comes
//! from the socket, behind a list of what a remote console may do ([`ALLOWED`]); a route that is not on it is refused,
//! so a new one is refused until somebody decides. Never on it: grants, invitations, pairings, keys, the site's state, and
//! whatever reads or writes a file that the order names. Disks of a job must be listed by a host of this site
//! ([`guard_job`]). Whether a peer may do anything at all follows from its grant, which the composition root looks up.
//!
//! Owns nothing. Bounds: bodies of [`BODY_BYTES_MAX`], answers of [`ANSWER_BYTES_MAX`].

use std::collections::HashSet;

use axum::body::{Body, to_bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};
use tower::ServiceExt;
use vbr_api::{ErrorResponse, name_is_valid};

use super::orders::{RemoteAnswer, RemoteOrder};
use super::reply::{Failure, ProblemCode};
use super::{Api, BODY_BYTES_MAX, blocking};
use crate::error::Problem;

/// Names the peer that is to carry out the order.
pub const SITE_HEADER: &str = "vbr-site";
/// Largest answer to a remote console.
pub const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What a remote console may order, and ask.
const ALLOWED: &[(Method, &str)] = &[
    (Method::GET, "/v1/status"),
    (Method::GET, "/v1/config"),
    (Method::GET, "/v1/cache"),
    (Method::GET, "/v1/metrics"),
    (Method::GET, "/v1/cache/warm"),
    (Method::GET, "/v1/cache/warm/{id}"),
    (Method::POST, "/v1/cache/warm/{id}/cancel"),
    (Method::GET, "/v1/tasks"),
    (Method::GET, "/v1/tasks/{name}"),
    (Method::POST, "/v1/tasks/{name}/run"),
    (Method::GET, "/v1/audit"),
    (Method::GET, "/v1/doctor"),
    (Method::GET, "/v1/openapi.json"),
    (Method::GET, "/v1/peers"),
    (Method::GET, "/v1/peers/{name}"),
    (Method::GET, "/v1/rotation"),
    (Method::GET, "/v1/hosts"),
    (Method::GET, "/v1/hosts/{name}"),
    (Method::GET, "/v1/vms"),
    (Method::POST, "/v1/vms/power"),
    (Method::GET, "/v1/jobs"),
    (Method::POST, "/v1/jobs"),
    (Method::GET, "/v1/jobs/{name}"),
    (Method::DELETE, "/v1/jobs/{name}"),
    (Method::PATCH, "/v1/jobs/{name}"),
    (Method::POST, "/v1/jobs/{name}/run"),
    (Method::POST, "/v1/jobs/{name}/enable"),
    (Method::POST, "/v1/jobs/{name}/disable"),
    (Method::GET, "/v1/jobs/{name}/plan"),
    (Method::GET, "/v1/jobs/{name}/history"),
    (Method::GET, "/v1/jobs/{name}/log"),
    (Method::GET, "/v1/sessions"),
    (Method::GET, "/v1/sessions/{id}"),
    (Method::POST, "/v1/sessions/{id}/cancel"),
    (Method::GET, "/v1/repositories"),
    (Method::GET, "/v1/repositories/{job}"),
    (Method::POST, "/v1/repositories/{job}/verify"),
    (Method::POST, "/v1/repositories/{job}/rebuild"),
    (Method::GET, "/v1/replicas"),
    (Method::GET, "/v1/replicas/one"),
    (Method::POST, "/v1/replicas/verify"),
    (Method::GET, "/v1/failovers"),
    (Method::GET, "/v1/failovers/one"),
    (Method::POST, "/v1/failovers/start"),
    (Method::POST, "/v1/failovers/test"),
    (Method::POST, "/v1/failovers/planned"),
    (Method::POST, "/v1/failovers/undo"),
    (Method::POST, "/v1/failovers/commit"),
    (Method::POST, "/v1/failbacks/start"),
    // By force or not: whether another site can be asked, this one knows best.
    (Method::POST, "/v1/failbacks/undo"),
    (Method::POST, "/v1/failbacks/commit"),
    (Method::GET, "/v1/restore-points"),
    (Method::GET, "/v1/restore-points/one"),
    // Not by force: neither the minimum age nor the newest point.
    (Method::DELETE, "/v1/restore-points/one"),
    (Method::POST, "/v1/restore-points/verify"),
    (Method::POST, "/v1/restore-points/pin"),
    (Method::GET, "/v1/throttle"),
    (Method::POST, "/v1/throttle"),
    (Method::DELETE, "/v1/throttle"),
    (Method::DELETE, "/v1/throttle/{name}"),
];

/// What a remote console may say of a job. A field that is not here may name files or commands.
const JOB_FIELDS: &[&str] = &[
    "name",
    "vm",
    "disks",
    "exclude",
    "target",
    "keep",
    "keep_calendar",
    "free_space",
    "rate_bps",
    "schedule",
    "priority",
    "retry",
    "map",
    "enabled",
];

/// A peer that gives an order, and whom it gives it for.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Its name here.
    pub peer: String,
    /// Its identity.
    pub peer_id: String,
    /// As its site says.
    pub user: Option<String>,
}

/// Carries out orders of peers.
#[derive(Clone)]
pub struct RemoteConsole {
    router: axum::Router,
}

impl RemoteConsole {
    /// Over all routes of a site.
    pub fn new(api: Api) -> Self {
        Self { router: api.router() }
    }

    /// Carries out an order of a peer that was granted `manage`. Whatever goes wrong is an answer, too.
    pub async fn answer(&self, remote: Remote, order: RemoteOrder) -> RemoteAnswer {
        let request = Request::builder().method(order.method.as_str()).uri(order.path.as_str());
        let request = match request.extension(remote).body(Body::from(order.body)) {
            Ok(request) => request,
            Err(error) => {
                let next = "update vbr at both sites to the same version";
                let problem = Problem::invalid("the order of a remote console", error.to_string(), next);
                return collected(Failure(problem).into_response()).await;
            }
        };
        match self.router.clone().oneshot(request).await {
            Ok(response) => collected(response).await,
            Err(never) => match never {},
        }
    }
}

async fn collected(response: Response) -> RemoteAnswer {
    let status = response.status().as_u16();
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or("application/octet-stream").to_owned();
    match to_bytes(response.into_body(), ANSWER_BYTES_MAX).await {
        Ok(body) => RemoteAnswer { status, content_type, body: body.to_vec() },
        Err(error) => {
            let next = "ask for less at once, or ask at that site";
            let problem =
                Problem::new("too_large", "the answer to a remote console", error.to_string(), next);
            let body = ErrorResponse { schema: vbr_api::SCHEMA, error: problem.body() };
            let body = serde_json::to_vec(&body).unwrap_or_default();
            RemoteAnswer { status: 500, content_type: "application/json".into(), body }
        }
    }
}

/// The peer that a request is for; none: this site.
pub(super) fn addressee(headers: &HeaderMap) -> Option<String> {
    headers.get(SITE_HEADER).map(|site| String::from_utf8_lossy(site.as_bytes()).into_owned())
}

/// Lets a request through, hands it on, or refuses it.
pub(super) async fn admit(State(api): State<Api>, request: Request, next: Next) -> Response {
    let admitted = if request.extensions().get::<Remote>().is_some() {
        guard(&api, request).await
    } else if let Some(site) = addressee(request.headers()) {
        return forward(&api, &site, request)
            .await
            .unwrap_or_else(|problem| Failure(problem).into_response());
    } else {
        Ok(request)
    };
    match admitted {
        Ok(request) => next.run(request).await,
        Err(problem) => Failure(problem).into_response(),
    }
}

async fn guard(api: &Api, request: Request) -> Result<Request, Problem> {
    let route = request.extensions().get::<MatchedPath>().map(|route| route.as_str().to_owned());
    let method = request.method().clone();
    // What does not exist is answered as such.
    let Some(route) = route else { return Ok(request) };
    if !ALLOWED.iter().any(|(allowed, path)| (allowed, *path) == (&method, route.as_str())) {
        return Err(refused(&method, &route, "this is for consoles at the site itself, whatever it granted"));
    }
    if request.uri().query().is_some_and(|query| query.contains("force")) {
        return Err(refused(
            &method,
            &route,
            "what retention keeps is removed by force at the site itself only",
        ));
    }
    let names_disks =
        matches!((method.as_str(), route.as_str()), ("POST", "/v1/jobs") | ("PATCH", "/v1/jobs/{name}"));
    if !names_disks {
        return Ok(request);
    }
    let (parts, body) = request.into_parts();
    let bytes = to_bytes(body, BODY_BYTES_MAX)
        .await
        .map_err(|error| Problem::invalid("the request's body", error.to_string(), "order less at once"))?;
    // What does not parse is refused by the handler, in its words.
    if let Ok(Value::Object(mut body)) = serde_json::from_slice(&bytes) {
        let spec = if method == Method::PATCH { body.remove("change") } else { Some(Value::Object(body)) };
        if let Some(Value::Object(spec)) = spec {
            let hosts = api.hosts.clone();
            blocking(move || {
                guard_job(&spec, || {
                    let disks = hosts.vms(None)?.into_iter().flat_map(|vm| vm.disks);
                    Ok(disks.map(|disk| disk.path).collect())
                })
            })
            .await?;
        }
    }
    Ok(Request::from_parts(parts, Body::from(bytes)))
}

/// A remote console must not have any file of this site replicated to wherever it likes.
fn guard_job(
    spec: &Map<String, Value>,
    listed: impl FnOnce() -> Result<HashSet<String>, Problem>,
) -> Result<(), Problem> {
    if let Some(field) = spec.keys().find(|field| !JOB_FIELDS.contains(&field.as_str())) {
        let why = format!("a remote console may not say \"{field}\" of a job");
        return Err(not_here("the job's definition", why));
    }
    let disks = spec.get("disks").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if disks.is_empty() {
        return Ok(());
    }
    let listed = listed()?;
    for path in disks.iter().filter_map(|disk| disk.get("path").and_then(Value::as_str)) {
        if !listed.contains(path) {
            return Err(Problem::not_allowed(
                format!("the disk {path}"),
                "a remote console may name disks that a host of that site lists (vbrctl vm list), and no other file",
                "at that site: vbrctl host add NAME --directory DIRECTORY, or create the job there",
            ));
        }
    }
    Ok(())
}

fn refused(method: &Method, route: &str, why: &str) -> Problem {
    not_here(&format!("{method} {route} by a remote console"), why.to_owned())
}

fn not_here(what: &str, why: String) -> Problem {
    Problem::not_allowed(what, why, "run vbrctl at that site")
}

async fn forward(api: &Api, site: &str, request: Request) -> Result<Response, Problem> {
    let Some(consoles) = api.console.clone() else {
        return Err(Problem::not_allowed(
            format!("site {site}"),
            "this vbrd hands no orders on",
            "run vbrctl there",
        ));
    };
    if !name_is_valid(site) {
        return Err(Problem::invalid(
            format!("site {site:?}"),
            "that is no name of a peer",
            "`vbrctl peer list` shows the peers of this site",
        ));
    }
    let user = super::audit::user(&request);
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_BYTES_MAX).await.map_err(|error| {
        Problem::invalid("the request's body", error.to_string(), "order this at that site")
    })?;
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let order = RemoteOrder { method: parts.method.to_string(), path, body: body.to_vec(), user };
    let answer = consoles.forward(site, order).await?;
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let code = (!status.is_success())
        .then(|| serde_json::from_slice::<ErrorResponse>(&answer.body).ok())
        .flatten()
        .map(|response| ProblemCode(response.error.code));
    let mut response = (status, [(CONTENT_TYPE, answer.content_type)], answer.body).into_response();
    if let Some(code) = code {
        response.extensions_mut().insert(code);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::routes;

    /// What a remote manager may never do, by name: moving one of them to the list must be a decision.
    #[test]
    fn what_is_not_for_remote_consoles() {
        let refused: Vec<String> = routes::table()
            .into_iter()
            .filter(|(method, path, _)| !ALLOWED.contains(&(method.clone(), path)))
            .map(|(method, path, _)| format!("{method} {path}"))
            .collect();
        let expected = [
            "POST /v1/cache/warm",
            // It names files, and its answer tells whether they are there.
            "POST /v1/doctor/disks",
            "DELETE /v1/peers/{name}",
            "POST /v1/peers/invite",
            "POST /v1/peers/join",
            "POST /v1/peers/{name}/grant",
            "POST /v1/peers/{name}/revoke",
            "POST /v1/peers/{name}/replace",
            "POST /v1/rotation",
            "DELETE /v1/rotation",
            "POST /v1/hosts",
            "DELETE /v1/hosts/{name}",
            "GET /v1/jobs/{name}/seed",
            "DELETE /v1/replicas/one",
            "POST /v1/restore-points/unpin",
            "GET /v1/restore-points/export",
            "GET /v1/restore-points/nbd",
            // Addresses and commands may hold secrets.
            "GET /v1/notify",
            "POST /v1/notify/{name}/test",
            "POST /v1/state/export",
            "POST /v1/state/import",
        ];
        assert_eq!(refused, expected);
        for (method, path) in ALLOWED {
            let is_route = routes::table().iter().any(|(m, p, _)| (m, *p) == (method, *path));
            assert!(is_route, "{method} {path} is no route");
        }
    }

    #[test]
    fn a_job_names_listed_disks_only() {
        let check = |text: &str| {
            let Ok(Value::Object(spec)) = serde_json::from_str(text) else { panic!("{text}") };
            guard_job(&spec, || Ok(HashSet::from(["/srv/web.img".to_owned()])))
                .map_err(|problem| problem.code)
        };
        assert_eq!(check(r#"{"name":"a","disks":[{"path":"/srv/web.img","format":"raw"}]}"#), Ok(()));
        assert_eq!(check(r#"{"name":"a","vm":"lab/web","keep":3}"#), Ok(()));
        let denied = Err("not_allowed".to_owned());
        assert_eq!(check(r#"{"disks":[{"path":"/srv/web.img"},{"path":"/etc/shadow"}]}"#), denied);
        assert_eq!(check(r#"{"disks":[{"path":"/srv/../srv/web.img"}]}"#), denied);
        assert_eq!(check(r#"{"name":"a","before":"rm -rf /"}"#), denied);
    }
}
