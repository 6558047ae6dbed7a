//! One disk of a restore point over NBD, on the connection that asked for it.
//!
//! `GET /v1/restore-points/nbd` with `Upgrade: nbd` turns the connection into one that speaks NBD, read only, whatever export
//! it names. The point is held for as long as the connection is open, so a client that comes again after a restart of vbrd
//! holds it again. One blocking thread a connection; bound: [`NBD_CONNECTIONS_MAX`].

use std::io::{self, Read, Write};

use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use vbr_api::ErrorResponse;

use super::points::ExportQuery;
use super::reference::PointRef;
use super::reply::{Params, Reply};
use super::{Api, blocking};
use crate::error::Problem;

/// Disks that are read this way at once.
pub const NBD_CONNECTIONS_MAX: usize = 16;
/// As in the header `Upgrade`.
const PROTOCOL: &str = "nbd";

/// One disk over NBD (fixed newstyle, read only), each chunk verified before it is given out; what does not fit its manifest
/// is an I/O error. Asks for `Connection: upgrade` and `Upgrade: nbd`.
#[utoipa::path(get, path = "/v1/restore-points/nbd", tag = "restore points", params(ExportQuery), responses(
    (status = 101, description = "the connection speaks NBD from here on"),
    (status = "default", body = ErrorResponse)))]
pub(super) async fn serve(
    State(api): State<Api>,
    Params(query): Params<ExportQuery>,
    mut request: Request,
) -> Reply<Response> {
    let point = PointRef::parse(&query.point)?;
    let what = format!("disk {} of {point}", query.disk);
    let upgrade = request.extensions_mut().remove::<OnUpgrade>().filter(|_| asked_for(request.headers()));
    let Some(upgrade) = upgrade else {
        let why = "it answers on a connection that is upgraded to nbd, and this one is not";
        return Err(Problem::invalid(what, why, "vbrctl restore-point mount does that").into());
    };
    let Ok(permit) = api.disk_readers.clone().try_acquire_owned() else {
        let why = format!("{NBD_CONNECTIONS_MAX} disks are being read this way already");
        return Err(Problem::new("busy", what, why, "unmount one of them, then try again").retry().into());
    };
    let stop = api.shutdown.clone();
    let disk = blocking(move || api.replicas.read_disk(&point, query.disk)).await?;
    drop(tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let runtime = Handle::current();
        let stopped = stop.cancelled();
        let upgraded = runtime.block_on(async {
            tokio::select! {
                biased;
                () = stopped => None,
                upgraded = upgrade => upgraded.ok(),
            }
        });
        let Some(upgraded) = upgraded else { return };
        tracing::info!(what, "a client reads it over nbd");
        let mut stream = Blocking { io: TokioIo::new(upgraded), runtime, stop };
        match crate::nbd::serve(&mut stream, &*disk) {
            Ok(()) => tracing::info!(what, "the client has left"),
            Err(error) => tracing::info!(what, %error, "the connection of the client ended"),
        }
    }));
    Ok((StatusCode::SWITCHING_PROTOCOLS, [(CONNECTION, "upgrade"), (UPGRADE, PROTOCOL)]).into_response())
}

fn asked_for(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|name| name.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes()))
}

/// The connection for a blocking thread; it ends when vbrd does.
struct Blocking {
    io: TokioIo<Upgraded>,
    runtime: Handle,
    stop: CancellationToken,
}

impl Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => Ok(0),
                read = self.io.read(buffer) => read,
            }
        })
    }
}

impl Write for Blocking {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => Err(io::ErrorKind::ConnectionAborted.into()),
                written = self.io.write(data) => written,
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.runtime.block_on(self.io.flush())
    }
}
