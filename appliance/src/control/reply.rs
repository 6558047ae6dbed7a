//! From [`Problem`] to an HTTP answer, and from an HTTP request to checked values.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use vbr_api::{ErrorResponse, List, One, SCHEMA};

use crate::error::Problem;

/// What a handler answers.
pub(super) type Reply<T> = Result<T, Failure>;

/// A [`Problem`] as an answer.
pub(super) struct Failure(pub Problem);

/// The code of the problem that a response tells, for whoever looks at the response alone.
#[derive(Clone)]
pub(super) struct ProblemCode(pub String);

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = ErrorResponse { schema: SCHEMA, error: self.0.body() };
        let mut response = (status_of(&self.0), axum::Json(body)).into_response();
        response.extensions_mut().insert(ProblemCode(self.0.code));
        response
    }
}

/// The console's exit status follows from it.
pub(super) fn status_of(problem: &Problem) -> StatusCode {
    match problem.code.as_str() {
        "not_found" => StatusCode::NOT_FOUND,
        "invalid" | "ambiguous" => StatusCode::BAD_REQUEST,
        "not_allowed" => StatusCode::FORBIDDEN,
        "conflict" => StatusCode::CONFLICT,
        _ if problem.retry => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// `200` and one object.
pub(super) fn one<T: Serialize>(item: T) -> axum::Json<One<T>> {
    axum::Json(One::new(item))
}

/// `200` and a list.
pub(super) fn list<T: Serialize>(items: Vec<T>) -> axum::Json<List<T>> {
    axum::Json(List::new(items))
}

/// `201` where the thing is new, `200` where it was there already.
pub(super) fn created<T: Serialize>(item: T, new: bool) -> Response {
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    (status, one(item)).into_response()
}

/// A JSON body; nothing at all means an empty object.
pub(super) struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let fault = |why: String| {
            Failure(Problem::invalid(
                "the request's body",
                why,
                "see GET /v1/openapi.json for what this order takes",
            ))
        };
        let bytes = Bytes::from_request(request, state).await.map_err(|e| fault(e.body_text()))?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text).map(Self).map_err(|e| fault(e.to_string()))
    }
}

/// The query, all of it known.
pub(super) struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        Query::from_request_parts(parts, state).await.map(|Query(value)| Self(value)).map_err(|e| {
            Failure(Problem::invalid(
                "the request's query",
                e.body_text(),
                "see GET /v1/openapi.json for what this order takes",
            ))
        })
    }
}

/// The `{name}` of a path, checked.
pub(super) struct Name(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let name = path.map(|Path(name)| name).map_err(|e| invalid_name(&e.body_text()))?;
        if vbr_api::name_is_valid(&name) { Ok(Self(name)) } else { Err(invalid_name(&name)) }
    }
}

fn invalid_name(name: &str) -> Failure {
    let name: String = name.chars().take(80).collect();
    Failure(Problem::invalid(
        format!("\"{name}\""),
        "that is no name",
        "names have 1 to 64 of a-z, 0-9, `.`, `_`, `-` and begin with a letter or digit",
    ))
}

/// No such route.
pub(super) async fn unknown_route(request: Request) -> Failure {
    Failure(Problem::not_found(
        format!("{} {}", request.method(), request.uri().path()),
        "GET /v1/openapi.json lists what there is; vbrctl and vbrd may be of different versions",
    ))
}

/// The route exists, with another method.
pub(super) async fn unknown_method(request: Request) -> Response {
    let problem = Problem::invalid(
        format!("{} {}", request.method(), request.uri().path()),
        "this route has no such method",
        "GET /v1/openapi.json lists what there is",
    );
    (StatusCode::METHOD_NOT_ALLOWED, Failure(problem)).into_response()
}
