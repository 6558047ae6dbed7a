//! One POST over plain HTTP/1.1. The body of the answer is nobody's business and is not read.

use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Failed;
use crate::config::Webhook;

/// Delivers; the answer has to come within the timeout and be a success.
pub(super) async fn post(webhook: &Webhook, body: &[u8], timeout: Duration) -> Result<(), Failed> {
    let answered = tokio::time::timeout(timeout, exchange(webhook, body)).await;
    let status = match answered {
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

async fn exchange(webhook: &Webhook, body: &[u8]) -> Result<StatusCode, String> {
    let stream = TcpStream::connect(&webhook.authority).await.map_err(|error| error.to_string())?;
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
