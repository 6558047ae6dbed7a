//! The export stream: extents of a disk over HTTP.
//!
//! A blocking reader on one side, the connection on the other, a bounded channel between: a slow
//! console slows the reader down, and a console that goes away stops it. The console writes the file
//! itself, with its caller's rights; vbrd never writes to a path it was told.

use std::io;

use axum::body::Bytes;
use futures::Stream;
use tokio::sync::mpsc;

use super::orders::Export;

/// The stream's media type.
pub(super) const MEDIA_TYPE: &str = "application/vnd.vbr.extents";
/// Records between reader and connection.
const RECORDS_QUEUED_MAX: usize = 8;
/// Longest data of one record.
const RECORD_BYTES_MAX: usize = 1024 * 1024;

/// Starts reading. `held` is dropped when the reader has ended.
pub(super) fn stream<H: Send + 'static>(
    export: Export,
    what: String,
    held: H,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(RECORDS_QUEUED_MAX);
    drop(tokio::task::spawn_blocking(move || {
        let _held = held;
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the console went away");
        let mut sink = |offset: u64, data: &[u8]| {
            for (index, part) in data.chunks(RECORD_BYTES_MAX).enumerate() {
                let at = offset + (index * RECORD_BYTES_MAX) as u64;
                sender.blocking_send(Ok(record(at, part))).map_err(|_| gone())?;
            }
            Ok(())
        };
        match export(&mut sink) {
            Ok(disk_len) => drop(sender.blocking_send(Ok(record(disk_len, &[])))),
            Err(problem) if sender.is_closed() => {
                tracing::debug!(what, %problem, "export ended by its console")
            }
            Err(problem) => {
                tracing::warn!(what, %problem, "export failed; the console was told by a stream without an end");
                drop(sender.blocking_send(Err(io::Error::other(problem.to_string()))));
            }
        }
    }));
    futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|item| (item, receiver))
    })
}

fn record(offset: u64, data: &[u8]) -> Bytes {
    let mut record = Vec::with_capacity(12 + data.len());
    record.extend_from_slice(&offset.to_be_bytes());
    record.extend_from_slice(&(data.len() as u32).to_be_bytes());
    record.extend_from_slice(data);
    record.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Problem;
    use futures::StreamExt;

    async fn bytes(export: Export) -> (Vec<u8>, bool) {
        let mut stream = std::pin::pin!(stream(export, "disk".into(), ()));
        let (mut all, mut whole) = (Vec::new(), true);
        while let Some(item) = stream.next().await {
            match item {
                Ok(part) => all.extend_from_slice(&part),
                Err(_) => whole = false,
            }
        }
        (all, whole)
    }

    #[tokio::test]
    async fn records_and_their_end() {
        let export: Export = Box::new(|sink| {
            sink(65_536, b"abc").map_err(|e| Problem::io("sink", &e))?;
            Ok(100_000)
        });
        let (all, whole) = bytes(export).await;
        let mut expected = Vec::new();
        expected.extend_from_slice(&65_536u64.to_be_bytes());
        expected.extend_from_slice(&3u32.to_be_bytes());
        expected.extend_from_slice(b"abc");
        expected.extend_from_slice(&100_000u64.to_be_bytes());
        expected.extend_from_slice(&0u32.to_be_bytes());
        assert_eq!((all, whole), (expected, true));
    }

    #[tokio::test]
    async fn a_failed_export_has_no_end() {
        let export: Export = Box::new(|sink| {
            sink(0, &vec![1; RECORD_BYTES_MAX + 1]).map_err(|e| Problem::io("sink", &e))?;
            Err(Problem::new("damaged", "chunk 7", "differs from the manifest", "verify the point"))
        });
        let (all, whole) = bytes(export).await;
        assert_eq!((all.len(), whole), (RECORD_BYTES_MAX + 1 + 24, false));
    }

    #[tokio::test]
    async fn a_console_that_leaves_stops_the_reader() {
        let (ended, wait) = tokio::sync::oneshot::channel::<()>();
        let export: Export = Box::new(|sink| {
            loop {
                sink(0, &[1]).map_err(|e| Problem::io("sink", &e))?;
            }
        });
        let mut stream = Box::pin(stream(export, "disk".into(), ended));
        assert!(stream.next().await.is_some());
        drop(stream);
        // The held value is dropped with the reader, which closes the channel.
        assert!(tokio::time::timeout(std::time::Duration::from_secs(10), wait).await.expect("ends").is_err());
    }
}
