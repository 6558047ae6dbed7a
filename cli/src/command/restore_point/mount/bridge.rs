//! From unix sockets that the storage daemon knows to connections of vbrd that speak NBD: one socket a disk.
//!
//! On a thread of its own with a runtime of its own: when the command ends, file systems are unmounted while this still
//! carries what they read. A connection that vbrd ends is ended here as well; the storage daemon comes again, and with it a
//! new one.

use std::fs::{DirBuilder, remove_dir_all};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::Opened;
use crate::client::{Client, encode};
use crate::failure::Failure;

/// See the module. Ends when it is dropped.
pub struct Bridge {
    directory: PathBuf,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Bridge {
    /// Listens, once it is known that vbrd gives out the first disk.
    pub fn start(client: Client, opened: &Opened) -> Result<Self, Failure> {
        let directory = private_directory().map_err(|error| {
            Failure::io("Cannot make a directory for the work", &std::env::temp_dir(), &error)
        })?;
        let (end, ended) = oneshot::channel();
        let mut bridge = Self { directory, end: Some(end), thread: None };
        let disks: Vec<(PathBuf, String)> = opened
            .disks
            .iter()
            .map(|disk| {
                let query = format!("point={}&disk={}", encode(&opened.name), disk.number);
                (bridge.socket(disk.number), format!("/v1/restore-points/nbd?{query}"))
            })
            .collect();
        let (ready, is_ready) = sync_channel(1);
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let failed = |error: io::Error| Failure::io("Cannot listen", Path::new("a socket"), &error);
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(failed(error)))),
            };
            runtime.block_on(async move {
                let listeners = match listen(&client, &disks).await {
                    Ok(listeners) => listeners,
                    Err(failure) => return drop(ready.send(Err(failure))),
                };
                drop(ready.send(Ok(())));
                let mut carried = JoinSet::new();
                for (listener, path) in listeners {
                    carried.spawn(accept(listener, client.clone(), path));
                }
                // An error: the bridge is gone, which says the same.
                drop(ended.await);
            });
        };
        bridge.thread = Some(std::thread::spawn(work));
        match is_ready.recv() {
            Ok(Ok(())) => Ok(bridge),
            Ok(Err(failure)) => Err(failure),
            Err(error) => Err(Failure::gone("Cannot reach vbrd", error.to_string(), "try again")),
        }
    }

    /// The directory of the work: 0700.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where a disk is to be had.
    pub fn socket(&self, disk: u16) -> PathBuf {
        self.directory.join(format!("nbd{disk}"))
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        drop(remove_dir_all(&self.directory));
    }
}

/// A refusal is heard here rather than by the storage daemon.
async fn listen(
    client: &Client,
    disks: &[(PathBuf, String)],
) -> Result<Vec<(UnixListener, String)>, Failure> {
    let mut listeners = Vec::new();
    for (socket, path) in disks {
        drop(client.upgrade(path, "nbd").await?);
        let listener = UnixListener::bind(socket);
        let fail = |error: io::Error| Failure::io("Cannot listen", socket, &error);
        listeners.push((listener.map_err(fail)?, path.clone()));
    }
    Ok(listeners)
}

async fn accept(listener: UnixListener, client: Client, path: String) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        connections.spawn(carry(stream, client.clone(), path.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Until either side ends. vbrd away: the storage daemon sees its connection end, and tries again.
async fn carry(mut stream: UnixStream, client: Client, path: String) {
    if let Ok(mut disk) = client.upgrade(&path, "nbd").await {
        drop(copy_bidirectional(&mut stream, &mut disk).await);
    }
}

/// Short, for a socket's path is at most 107 bytes.
fn private_directory() -> io::Result<PathBuf> {
    let base = std::env::temp_dir();
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for attempt in 0..100 {
        let path = base.join(format!("vbr-mount-{}-{attempt}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}
