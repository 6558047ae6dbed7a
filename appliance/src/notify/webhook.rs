//! One POST over HTTP/1.1, plain or inside TLS. The body of the answer is nobody's business and is not read.
//!
//! Whom TLS trusts is what the machine trusts: the certificates of its `ca-certificates`, read anew for each try, so that
//! one that was added counts at once.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::Failed;
use crate::config::Webhook;

/// Delivers; the answer has to come within the timeout and be a success.
pub(super) async fn post(webhook: &Webhook, body: &[u8], timeout: Duration) -> Result<(), Failed> {
    let delivered = async {
        let trust = if webhook.tls { Some(system_trust().await?) } else { None };
        exchange(webhook, body, trust).await
    };
    let status = match tokio::time::timeout(timeout, delivered).await {
        Ok(answered) => answered.map_err(Failed::Passing)?,
        Err(_) => return Err(Failed::Passing(format!("no answer within {} s", timeout.as_secs_f32()))),
    };
    let said = || format!("it answered {status}");
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(Failed::Passing(said())),
        status if status.is_server_error() => Err(Failed::Passing(said())),
        _ => Err(Failed::Final(said())),
    }
}

async fn exchange(
    webhook: &Webhook,
    body: &[u8],
    trust: Option<RootCertStore>,
) -> Result<StatusCode, String> {
    let stream = TcpStream::connect(&webhook.authority).await.map_err(|error| error.to_string())?;
    let Some(trust) = trust else { return request(webhook, body, stream).await };
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(trust)
        .with_no_client_auth();
    let name = ServerName::try_from(webhook.name().to_owned()).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = stream
        .map_err(|error| format!("{error}; an own authority has to be among the machine's certificates"))?;
    request(webhook, body, stream).await
}

/// What this machine trusts.
async fn system_trust() -> Result<RootCertStore, String> {
    let load = || {
        let found = rustls_native_certs::load_native_certs();
        let mut trust = RootCertStore::empty();
        let (added, _) = trust.add_parsable_certificates(found.certs);
        (trust, added, found.errors)
    };
    match tokio::task::spawn_blocking(load).await.map_err(|error| error.to_string())? {
        (trust, added, _) if added > 0 => Ok(trust),
        (_, _, errors) => Err(match errors.first() {
            Some(error) => format!("this machine's certificates cannot be read: {error}"),
            None => "this machine trusts no certificate; install ca-certificates".into(),
        }),
    }
}

async fn request(
    webhook: &Webhook,
    body: &[u8],
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<StatusCode, String> {
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let request = Request::post(&webhook.path)
        .header(HOST, &webhook.host)
        .header(CONTENT_TYPE, "application/json")
        .header(CONNECTION, "close")
        .header(USER_AGENT, concat!("vbrd/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::copy_from_slice(body)))
        .map_err(|error| error.to_string())?;
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(sender.send_request(request));
    tokio::select! {
        answer = &mut answer => return answer.map(|answer| answer.status()).map_err(|error| error.to_string()),
        // It may end because the answer is there.
        _ = &mut connection => {}
    }
    answer.await.map(|answer| answer.status()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

    use super::*;

    /// A server for `localhost` that answers one request over TLS; its address and certificate.
    async fn server(tasks: &mut tokio::task::JoinSet<Option<String>>) -> (u16, CertificateDer<'static>) {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(own.key_pair.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tasks.spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.ok()?;
            let (mut request, mut piece) = (String::new(), [0; 4096]);
            while !request.ends_with('}') {
                let read = stream.read(&mut piece).await.unwrap();
                assert!(read > 0, "{request}");
                request.push_str(std::str::from_utf8(&piece[..read]).unwrap());
            }
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            stream.shutdown().await.unwrap();
            Some(request)
        });
        (port, own.cert.der().clone())
    }

    fn hook(host: &str, port: u16) -> Webhook {
        crate::config::parse_webhook(&format!("https://{host}:{port}/hook")).unwrap()
    }

    #[tokio::test]
    async fn tls_delivers_to_whom_the_machine_trusts() {
        let mut tasks = tokio::task::JoinSet::new();
        let (port, certificate) = server(&mut tasks).await;
        let mut trust = RootCertStore::empty();
        trust.add(certificate).unwrap();
        let status = exchange(&hook("localhost", port), b"{}", Some(trust)).await.unwrap();
        assert_eq!(status, StatusCode::NO_CONTENT);
        let request = tasks.join_next().await.unwrap().unwrap().unwrap();
        assert!(request.starts_with("POST /hook HTTP/1.1\r\n"), "{request}");
        assert!(request.contains(&format!("host: localhost:{port}")), "{request}");
    }

    #[tokio::test]
    async fn tls_tells_nothing_to_anybody_else() {
        for (host, trusted) in [("localhost", false), ("127.0.0.1", true)] {
            let mut tasks = tokio::task::JoinSet::new();
            let (port, certificate) = server(&mut tasks).await;
            let mut trust = RootCertStore::empty();
            if trusted {
                trust.add(certificate).unwrap();
            }
            let why = exchange(&hook(host, port), b"{}", Some(trust)).await.unwrap_err();
            assert!(why.contains("certificate"), "{why}");
            assert_eq!(tasks.join_next().await.unwrap().unwrap(), None, "{host}");
        }
    }
}
