//! The unix sockets of the management API: who may connect, who did, and stale files.
//!
//! The socket for orders has mode 0660 and group `vbradm` where that group exists and may be given, else 0600. That for
//! questions has 0666. What a caller may do follows from its credentials as well: see [`super::access`].

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::CONNECTIONS_MAX;
use super::access::{Access, Credentials, Groups, ORDER_GROUP as GROUP, peer_groups};
use crate::error::Problem;

/// Connections of those who may only look that are served at once.
const VIEWERS_MAX: usize = 32;
/// After an accept that failed for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why the socket could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers on it.
    #[error("{}: another vbrd answers on this socket", .0.display())]
    InUse(PathBuf),
    /// Something else lies there.
    #[error("{}: is there and is no socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refuses.
    #[error("{}: {what}: {error}", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
}

impl From<SocketError> for Problem {
    fn from(error: SocketError) -> Self {
        let next = match &error {
            SocketError::InUse(_) => "stop the other vbrd, or give this one another --socket",
            SocketError::NotASocket(_) => "move that file away, or give vbrd another --socket",
            SocketError::Io { .. } => "check that the directory exists and that vbrd may write to it",
        };
        Problem::new("socket", "the socket of the management API", error.to_string(), next)
    }
}

/// The bound socket; its file goes when it is dropped.
pub struct ControlSocket {
    listener: UnixListener,
    path: OwnFile,
    rule: Rule,
}

/// What callers of a socket may do.
#[derive(Clone, Copy)]
struct Rule {
    groups: Groups,
    /// No more than this, whoever they are.
    most: Access,
    own_uid: u32,
    connections_max: usize,
}

impl Rule {
    fn new(most: Access, connections_max: usize) -> Self {
        let own_uid = rustix::process::geteuid().as_raw();
        Self { groups: Groups::of_system(), most, own_uid, connections_max }
    }

    fn judge(&self, stream: &UnixStream) -> Caller {
        let Ok(cred) = stream.peer_cred() else { return Caller::default() };
        // Without them the caller has its first group alone.
        let groups = peer_groups(stream.as_fd()).unwrap_or_default();
        let credentials = Credentials { uid: cred.uid(), gid: cred.gid(), groups };
        let access = self.groups.access(&credentials, self.own_uid).min(self.most);
        Caller { uid: Some(cred.uid()), pid: cred.pid(), access }
    }
}

/// Removed on drop, if it is still the one we made.
struct OwnFile {
    path: PathBuf,
    inode: Option<(u64, u64)>,
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        if self.inode.is_some() && self.inode == inode(&self.path) {
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// Takes the socket for orders; must be called inside the runtime.
pub(super) fn bind(path: &Path) -> Result<ControlSocket, SocketError> {
    let mode = || if give_to_group(path) { 0o660 } else { 0o600 };
    bind_with(path, Rule::new(Access::Order, CONNECTIONS_MAX), mode)
}

/// The same for questions. Anybody may connect: credentials say who is answered.
pub(super) fn bind_view(path: &Path) -> Result<ControlSocket, SocketError> {
    bind_with(path, Rule::new(Access::Look, VIEWERS_MAX), || 0o666)
}

fn bind_with(path: &Path, rule: Rule, mode: impl FnOnce() -> u32) -> Result<ControlSocket, SocketError> {
    let fail = |what| move |error| SocketError::Io { path: path.to_owned(), what, error };
    clear_stale(path)?;
    let listener = UnixListener::bind(path).map_err(fail("cannot be bound"))?;
    // Between bind and here the process's umask (0077) keeps others out.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode()))
        .map_err(fail("cannot set its mode"))?;
    Ok(ControlSocket { listener, path: OwnFile { path: path.to_owned(), inode: inode(path) }, rule })
}

/// A socket file that nobody answers on is left over from a crash.
fn clear_stale(path: &Path) -> Result<(), SocketError> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(socket = %path.display(), "replacing the socket of a vbrd that is gone");
            std::fs::remove_file(path).map_err(|error| SocketError::Io {
                path: path.to_owned(),
                what: "is left over and cannot be removed",
                error,
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Answered, or busy, or not ours to ask: somebody is there.
        _ => Err(SocketError::InUse(path.to_owned())),
    }
}

fn give_to_group(path: &Path) -> bool {
    let Some(gid) = group_id(GROUP) else { return false };
    // Under systemd it is our own group, and chown(2) is filtered.
    if std::fs::metadata(path).is_ok_and(|meta| meta.gid() == gid) {
        return true;
    }
    match std::os::unix::fs::chown(path, None, Some(gid)) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(group = GROUP, %error, "only the user of vbrd can use the management API: its socket cannot be given to the group");
            false
        }
    }
}

/// From `/etc/group`: the group is a system group that our package makes.
pub(super) fn group_id(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1).and_then(|gid| gid.parse().ok())).flatten()
    })
}

/// From `/etc/passwd`; none for users that are known elsewhere.
pub(super) fn user_name(uid: u32) -> Option<String> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

impl ControlSocket {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path.path
    }

    pub(super) async fn serve(self, router: Router, shutdown: CancellationToken) -> io::Result<()> {
        let Self { listener, path, rule } = self;
        let bounded = Bounded { listener, rule, permits: Arc::new(Semaphore::new(rule.connections_max)) };
        let served = axum::serve(bounded, router.into_make_service_with_connect_info::<Caller>())
            .with_graceful_shutdown(shutdown.cancelled_owned())
            .await;
        drop(path);
        served
    }
}

/// Who is at the other end of the connection, as the kernel says.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Caller {
    pub uid: Option<u32>,
    pub pid: Option<i32>,
    pub access: Access,
}

impl Connected<IncomingStream<'_, Bounded>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Self {
        *stream.remote_addr()
    }
}

/// Accepts a bounded number of connections at once.
pub(super) struct Bounded {
    listener: UnixListener,
    rule: Rule,
    permits: Arc<Semaphore>,
}

impl Listener for Bounded {
    type Io = Guarded;
    type Addr = Caller;

    async fn accept(&mut self) -> (Guarded, Caller) {
        // The semaphore is never closed; without a permit the connection is still bounded by the backlog.
        let permit = self.permits.clone().acquire_owned().await.ok();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let caller = self.rule.judge(&stream);
                    return (Guarded { stream, _permit: permit }, caller);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the socket of the management API");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Caller> {
        Ok(Caller::default())
    }
}

/// A connection and its place among the bounded number.
pub(super) struct Guarded {
    stream: UnixStream,
    _permit: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stale_sockets_are_replaced_and_live_ones_are_not() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("vbrd.sock");
        let first = bind(&path).expect("free");
        assert!(matches!(bind(&path), Err(SocketError::InUse(_))));
        drop(first);
        assert!(!path.exists());

        // A vbrd that was killed leaves its file behind.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
        assert!(path.exists());
        let second = bind(&path).expect("stale");
        let mode = std::fs::metadata(&path).expect("meta").permissions().mode() & 0o777;
        assert!(mode == 0o600 || mode == 0o660, "{mode:o}");
        drop(second);

        std::fs::write(&path, b"letter").expect("file");
        assert!(matches!(bind(&path), Err(SocketError::NotASocket(_))));
        assert!(path.exists());
    }

    #[test]
    fn groups() {
        assert_eq!(group_id("root"), Some(0));
        assert_eq!(group_id("no-such-group-here"), None);
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!(user_name(u32::MAX), None);
    }
}
