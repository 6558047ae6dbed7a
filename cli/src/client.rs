//! HTTP/1 and JSON to vbrd over its unix socket.
//!
//! One connection a request, so that a restart of vbrd never leaves a stale one behind. Owns nothing but the
//! socket's path. An answer is at most [`ANSWER_BYTES_MAX`]; the export stream is passed on piece by piece and
//! never held. Retrying is the caller's business (see `reconnect.rs`).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE, USER_AGENT};
use hyper::http::request::Builder;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use vbr_api::{ErrorResponse, List, One};

use crate::exit::Exit;
use crate::failure::Failure;

/// Largest JSON answer that is taken: some 50,000 sessions.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Time for an order that needs no disk and no link.
const QUICK: Duration = Duration::from_secs(120);

/// Names the peer that is to carry out an order.
const SITE_HEADER: &str = "vbr-site";

/// Where vbrd listens, and whom orders are for.
#[derive(Clone)]
pub struct Client {
    socket: PathBuf,
    /// None: the vbrd at the socket itself.
    site: Option<String>,
}

/// How long an answer may take.
#[derive(Clone, Copy)]
pub enum Patience {
    Quick,
    /// Reads disks or crosses the link: as long as it takes, Ctrl-C ends it.
    Long,
    AtMost(Duration),
}

/// A JSON answer.
pub struct Document {
    pub status: u16,
    pub text: String,
}

/// A binary answer that is still arriving.
pub struct Stream {
    body: Incoming,
    /// Drives the connection for as long as the body is read.
    _driver: JoinSet<()>,
}

impl Client {
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, site: None }
    }

    /// The same for a peer of that vbrd.
    pub fn at(&self, site: Option<String>) -> Self {
        Self { socket: self.socket.clone(), site }
    }

    /// Where vbrd listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The peer that carries out orders; none: the vbrd at the socket.
    pub fn site(&self) -> Option<&str> {
        self.site.as_deref()
    }

    pub async fn get(&self, path: &str) -> Result<Document, Failure> {
        self.order(Method::GET, path, None, Patience::Quick).await
    }

    pub async fn get_patiently(&self, path: &str, patience: Patience) -> Result<Document, Failure> {
        self.order(Method::GET, path, None, patience).await
    }

    pub async fn delete(&self, path: &str) -> Result<Document, Failure> {
        self.order(Method::DELETE, path, None, Patience::Long).await
    }

    pub async fn post(&self, path: &str, patience: Patience) -> Result<Document, Failure> {
        self.order(Method::POST, path, None, patience).await
    }

    pub async fn post_json(&self, path: &str, body: &impl Serialize) -> Result<Document, Failure> {
        let body = serde_json::to_string(body).map_err(|error| nonsense(path, &error.to_string()))?;
        self.order(Method::POST, path, Some(body), Patience::Quick).await
    }

    /// The same of what takes a while.
    pub async fn post_json_patiently(&self, path: &str, body: &impl Serialize) -> Result<Document, Failure> {
        let body = serde_json::to_string(body).map_err(|error| nonsense(path, &error.to_string()))?;
        self.order(Method::POST, path, Some(body), Patience::Long).await
    }

    pub async fn patch_json(&self, path: &str, body: &impl Serialize) -> Result<Document, Failure> {
        let body = serde_json::to_string(body).map_err(|error| nonsense(path, &error.to_string()))?;
        self.order(Method::PATCH, path, Some(body), Patience::Quick).await
    }

    /// An order whose answer is binary, and short.
    pub async fn post_for_bytes(&self, path: &str, body: &impl Serialize) -> Result<Vec<u8>, Failure> {
        let body = serde_json::to_string(body).map_err(|error| nonsense(path, &error.to_string()))?;
        let (response, _driver) = self.send(Method::POST, path, Some(body)).await?;
        if !response.status().is_success() {
            return Err(refusal(&self.collect(response).await?, path));
        }
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok(body.map_err(|error| self.lost(error.as_ref()))?.to_bytes().to_vec())
    }

    /// Opens a binary stream; an error answer becomes a failure.
    pub async fn stream(&self, path: &str) -> Result<Stream, Failure> {
        let (response, driver) = self.send(Method::GET, path, None).await?;
        if response.status().is_success() {
            return Ok(Stream { body: response.into_body(), _driver: driver });
        }
        let document = self.collect(response).await?;
        Err(refusal(&document, path))
    }

    /// A connection that speaks another protocol from here on.
    pub async fn upgrade(&self, path: &str, protocol: &'static str) -> Result<TokioIo<Upgraded>, Failure> {
        let request = self.request(Method::GET, path).header(CONNECTION, "upgrade").header(UPGRADE, protocol);
        let (response, _driver) = self.send_request(request, path, None).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(&self.collect(response).await?, path));
        }
        let upgraded = hyper::upgrade::on(response).await;
        Ok(TokioIo::new(upgraded.map_err(|error| self.lost(&error))?))
    }

    async fn order(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
        patience: Patience,
    ) -> Result<Document, Failure> {
        let answer = async {
            let (response, _driver) = self.send(method, path, body).await?;
            self.collect(response).await
        };
        let document = match patience {
            Patience::Long => answer.await?,
            Patience::Quick => self.in_time(QUICK, answer).await?,
            Patience::AtMost(limit) => self.in_time(limit, answer).await?,
        };
        if !(200..300).contains(&document.status) {
            return Err(refusal(&document, path));
        }
        Ok(document)
    }

    async fn in_time<T>(
        &self,
        limit: Duration,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| {
            Err(Failure::gone(
                format!("vbrd at {} does not answer", self.socket.display()),
                format!("no answer within {} s", limit.as_secs()),
                "look at its log: journalctl -u vbrd",
            ))
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<(Response<Incoming>, JoinSet<()>), Failure> {
        self.send_request(self.request(method, path), path, body).await
    }

    fn request(&self, method: Method, path: &str) -> Builder {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "vbrd")
            .header(USER_AGENT, concat!("vbrctl/", env!("CARGO_PKG_VERSION")));
        match &self.site {
            Some(site) => request.header(SITE_HEADER, site),
            None => request,
        }
    }

    async fn send_request(
        &self,
        mut request: Builder,
        path: &str,
        body: Option<String>,
    ) -> Result<(Response<Incoming>, JoinSet<()>), Failure> {
        let stream = self.connect().await.map_err(|error| unreachable(&self.socket, &error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.lost(&error))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // What breaks the connection also breaks the request or the body, which report it.
            let _ = connection.with_upgrades().await;
        });
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| nonsense(path, &error.to_string()))?;
        let response = sender.send_request(request).await.map_err(|error| self.lost(&error))?;
        Ok((response, driver))
    }

    /// The socket for orders; where that is not for us, the one beside it, for those who may only look.
    async fn connect(&self) -> std::io::Result<UnixStream> {
        match UnixStream::connect(&self.socket).await {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                UnixStream::connect(view_socket(&self.socket)).await.map_err(|_| error)
            }
            other => other,
        }
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Document, Failure> {
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let bytes = body.map_err(|error| self.lost(error.as_ref()))?.to_bytes();
        Ok(Document { status, text: String::from_utf8_lossy(&bytes).into_owned() })
    }

    fn lost(&self, error: &(dyn std::error::Error + 'static)) -> Failure {
        let cause = error.source().map(|source| format!(" ({source})")).unwrap_or_default();
        Failure::gone(
            format!("Lost the connection to vbrd at {}", self.socket.display()),
            format!("{error}{cause}"),
            "see if it runs (systemctl status vbrd), then try again; what was ordered before may have been done",
        )
    }
}

impl Document {
    /// A single object.
    pub fn one<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let one: One<T> = serde_json::from_str(&self.text).map_err(|error| self.odd(&error))?;
        Ok(one.item)
    }

    /// A list's items.
    pub fn list<T: DeserializeOwned>(&self) -> Result<Vec<T>, Failure> {
        let list: List<T> = serde_json::from_str(&self.text).map_err(|error| self.odd(&error))?;
        Ok(list.items)
    }

    /// True where the text is JSON and not empty.
    pub fn is_json(&self) -> bool {
        serde_json::from_str::<IgnoredAny>(&self.text).is_ok()
    }

    /// What is passed through as JSON must be JSON.
    pub fn checked(&self) -> Result<(), Failure> {
        serde_json::from_str::<IgnoredAny>(&self.text).map(|_| ()).map_err(|error| self.odd(&error))
    }

    fn odd(&self, error: &serde_json::Error) -> Failure {
        nonsense("the answer of vbrd", &error.to_string())
    }
}

impl Stream {
    /// The next piece; none at the end.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| {
                Failure::new(
                    Exit::Failed,
                    "stream_broken",
                    "The stream from vbrd broke off",
                    error.to_string(),
                    "look at its log (journalctl -u vbrd), then try again",
                )
            })?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }
}

/// Percent-encodes one path segment or one query value.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// `/run/vbr/vbrd.sock` -> `/run/vbr/vbrd-view.sock`
pub fn view_socket(socket: &Path) -> PathBuf {
    let stem = socket.file_stem().unwrap_or_default().to_string_lossy();
    let ending =
        socket.extension().map(|ending| format!(".{}", ending.to_string_lossy())).unwrap_or_default();
    socket.with_file_name(format!("{stem}-view{ending}"))
}

fn unreachable(socket: &Path, error: &std::io::Error) -> Failure {
    let what = format!("Cannot reach vbrd at {}", socket.display());
    match error.kind() {
        ErrorKind::PermissionDenied => Failure::new(
            Exit::NotAllowed,
            "not_allowed",
            what,
            error.to_string(),
            "run vbrctl as root or as a member of the group vbradm (orders) or vbrview (questions)",
        ),
        ErrorKind::NotFound => Failure::gone(
            what,
            "there is no such socket",
            "start it (systemctl start vbrd), or name its socket with --socket PATH or VBR_SOCKET",
        ),
        ErrorKind::ConnectionRefused => {
            Failure::gone(what, "nobody listens on this socket", "start it: systemctl start vbrd")
        }
        _ => Failure::gone(what, error.to_string(), "check --socket and VBR_SOCKET, and that vbrd runs"),
    }
}

fn refusal(document: &Document, path: &str) -> Failure {
    let exit = Exit::of_http(document.status);
    let mut failure = match serde_json::from_str::<ErrorResponse>(&document.text) {
        Ok(response) => {
            let mut failure = Failure::new(exit, "", "", "", "");
            failure.body = response.error;
            failure
        }
        Err(_) => {
            let why: String = document.text.trim().chars().take(500).collect();
            Failure::new(
                exit,
                &format!("http_{}", document.status),
                format!("vbrd refused the order (HTTP {})", document.status),
                if why.is_empty() { format!("no reason was given for {path}") } else { why },
                "check that vbrctl and vbrd have the same version: vbrctl --version, vbrctl status",
            )
        }
    };
    // 503 while vbrd starts or drains: the same order succeeds a little later.
    if document.status == 503 {
        failure.kind = crate::failure::Kind::Gone;
    }
    failure
}

fn nonsense(what: &str, why: &str) -> Failure {
    Failure::new(
        Exit::Failed,
        "bad_answer",
        format!("Cannot understand {what}"),
        why,
        "check that vbrctl and vbrd have the same version: vbrctl --version, vbrctl status",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Kind;

    fn document(status: u16, text: &str) -> Document {
        Document { status, text: text.into() }
    }

    #[test]
    fn encoding() {
        assert_eq!(encode("hq/web@latest"), "hq%2Fweb%40latest");
        assert_eq!(encode("a b&c=ä"), "a%20b%26c%3D%C3%A4");
    }

    #[test]
    fn an_error_answer_keeps_its_words() {
        let text = r#"{"schema":1,"error":{"code":"not_found","what":"No job x","why":"w","next_step":"n","retry":false}}"#;
        let failure = refusal(&document(404, text), "/v1/jobs/x");
        assert_eq!((failure.exit, failure.body.code.as_str()), (Exit::NotFound, "not_found"));
        assert_eq!(failure.kind, Kind::Final);
    }

    #[test]
    fn plain_text_answers_are_still_readable() {
        let failure = refusal(&document(422, "missing field `target`"), "/v1/jobs");
        assert_eq!(failure.exit, Exit::Usage);
        assert_eq!(failure.body.why, "missing field `target`");
        assert_eq!(refusal(&document(503, ""), "/v1/jobs").kind, Kind::Gone);
    }
}
