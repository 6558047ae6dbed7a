//! QMP: orders to a running qemu through its monitor's socket, file descriptors included.
//!
//! One order at a time; what comes in between (events) is not looked at. A monitor serves one client: whoever else uses
//! it has to go first, so connections are held for moments only. Everything blocks. Bounds: a line of [`LINE_BYTES_MAX`],
//! [`PATIENCE`] for an answer.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, Read};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

/// A line of a monitor: the nodes of a VM with many disks.
const LINE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// As the kernel bounds it.
const SOCKET_PATH_MAX: usize = 107;
/// File descriptors with one order.
const FDS_MAX: usize = 64;
/// For one answer. Ending a copy may wait for a write of the guest.
const PATIENCE: Duration = Duration::from_secs(30);
/// For the greeting: who has to wait longer has somebody else before him.
const GREETING: Duration = Duration::from_secs(5);

/// What went wrong with a monitor.
#[derive(Debug, thiserror::Error)]
pub(in crate::host) enum QmpError {
    /// The socket cannot be used.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Another client holds it.
    #[error("its monitor does not answer: another program uses it")]
    Busy,
    /// Its images are being made independent: a filter of qemu's own comes and goes over them.
    #[error(
        "its failover was committed, and its images are still being made independent of the restore points"
    )]
    Committing,
    /// It said something that is no QMP.
    #[error("its monitor broke the protocol: {0}")]
    Protocol(String),
    /// It answered with an error.
    #[error("{command}: {why}")]
    Refused {
        /// The order.
        command: String,
        /// Its words.
        why: String,
    },
}

/// A monitor that was greeted.
pub(in crate::host) struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and takes command mode.
    pub fn connect(path: &Path) -> Result<Self, QmpError> {
        let stream = dial(path)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut monitor = Self { reader: BufReader::new(stream) };
        let greeting = match monitor.line(Instant::now() + GREETING) {
            Err(QmpError::Io(error)) if timed_out(&error) => return Err(QmpError::Busy),
            greeting => greeting?,
        };
        if !greeting["QMP"].is_object() {
            return Err(QmpError::Protocol("it does not greet; is this the socket of a QMP monitor?".into()));
        }
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// An order and its answer.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        self.order(command, arguments, None)
    }

    /// An order that hands over a file descriptor.
    pub fn execute_with(
        &mut self,
        command: &str,
        arguments: &Value,
        fd: BorrowedFd<'_>,
    ) -> Result<Value, QmpError> {
        self.order(command, arguments, Some(fd))
    }

    fn order(
        &mut self,
        command: &str,
        arguments: &Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        let mut text = json!({ "execute": command, "arguments": arguments }).to_string();
        text.push('\n');
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        send_with(self.reader.get_ref(), text.as_bytes(), &fds)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut answer = self.line(deadline)?;
            if let Some(returned) = answer.get_mut("return") {
                return Ok(returned.take());
            }
            if let Some(error) = answer.get("error") {
                let why = error["desc"].as_str().unwrap_or("it gives no reason").to_owned();
                return Err(QmpError::Refused { command: command.to_owned(), why });
            }
            if answer.get("event").is_none() {
                return Err(QmpError::Protocol("an answer without a result".into()));
            }
        }
    }

    fn line(&mut self, deadline: Instant) -> Result<Value, QmpError> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.reader.get_ref().set_read_timeout(Some(left))?;
        let mut line = Vec::new();
        (&mut self.reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the VM has ended").into());
        }
        serde_json::from_slice(&line).map_err(|error| QmpError::Protocol(error.to_string()))
    }
}

/// A socket's path is at most 107 bytes long; that of a datastore is not.
pub(in crate::host) fn dial(path: &Path) -> io::Result<UnixStream> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return UnixStream::connect(path);
    };
    if path.as_os_str().len() <= SOCKET_PATH_MAX {
        return UnixStream::connect(path);
    }
    let directory = File::open(directory)?;
    let near = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    UnixStream::connect(near.join(name))
}

/// Sends all of it, and file descriptors with its beginning: at most [`FDS_MAX`].
pub(in crate::host) fn send_with(stream: &UnixStream, text: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        let why = format!("{} file descriptors are too many for a message", fds.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let mut sent = 0;
    while sent < text.len() {
        let part = [IoSlice::new(&text[sent..])];
        match sendmsg(stream, &part, &mut control, SendFlags::NOSIGNAL) {
            Ok(bytes) => sent += bytes,
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        control.clear(); // They went with the first byte.
    }
    Ok(())
}

fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
