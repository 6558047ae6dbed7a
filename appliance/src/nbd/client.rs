//! A disk behind an NBD server, as [`BlockRead`] and [`BlockWrite`].
//!
//! Owns its connections: one for a writer, up to [`LANES_MAX`] for a reader (opened when threads read at
//! the same time). The length is the caller's: a server may round up to a sector, and what lies past
//! the declared end is neither asked for nor shown. Not its job: starting a server.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use super::connection::Connection;
use super::protocol::ALLOCATION;
use super::status::{Answer, KnownExtents};
use super::{LANES_MAX, NbdError, SILENCE_MAX, STATUS_BYTES_MAX};
use crate::block::{BlockRead, BlockWrite, Extent};

/// A server may export this much more than was declared: one sector, less a byte.
const ROUNDING_BYTES_MAX: u64 = 511;

/// How to reach an export.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Unix socket of the server.
    pub socket: PathBuf,
    /// Name of the export.
    pub export: String,
    /// Exact length of the disk in bytes; none takes the server's word.
    pub disk_len: Option<u64>,
    /// Whether writes are wanted.
    pub writable: bool,
    /// Silence after which the server is given up.
    pub timeout: Duration,
}

impl ConnectOptions {
    /// A read-only client with the usual timeout and the server's length.
    pub fn new(socket: impl Into<PathBuf>, export: &str) -> Self {
        Self {
            socket: socket.into(),
            export: export.into(),
            disk_len: None,
            writable: false,
            timeout: SILENCE_MAX,
        }
    }
}

/// A client of one export.
pub struct NbdClient {
    options: ConnectOptions,
    len: u64,
    can_status: bool,
    lanes: Vec<Mutex<Option<Connection>>>,
    next_lane: AtomicUsize,
    known: Mutex<KnownExtents>,
    /// A writer whose connection broke may have lost writes: it stays broken.
    broken: Mutex<Option<String>>,
}

impl NbdClient {
    /// Connects and checks the export's length and rights.
    pub fn connect(options: ConnectOptions) -> Result<Self, NbdError> {
        let stream = UnixStream::connect(&options.socket)?;
        Self::with_stream(stream, options)
    }

    pub(super) fn with_stream(stream: UnixStream, options: ConnectOptions) -> Result<Self, NbdError> {
        let first = Connection::start(stream, &options.export, ALLOCATION, options.timeout)?;
        let (export, declared) = (first.info.size, options.disk_len.unwrap_or(first.info.size));
        if declared > export
            || export - declared > ROUNDING_BYTES_MAX
            || export > crate::limits::DISK_BYTES_MAX
        {
            return Err(NbdError::Length { export, declared });
        }
        if options.writable && first.info.read_only {
            return Err(NbdError::Refused { option: "writing", why: "the export is read-only".into() });
        }
        let lanes = if options.writable || !first.info.multi_conn { 1 } else { LANES_MAX };
        let can_status = first.info.context.is_some();
        let mut lanes: Vec<_> = (0..lanes).map(|_| Mutex::new(None)).collect();
        lanes[0] = Mutex::new(Some(first));
        Ok(Self {
            options,
            len: declared,
            can_status,
            lanes,
            next_lane: AtomicUsize::new(0),
            known: Mutex::default(),
            broken: Mutex::default(),
        })
    }

    /// Runs `work` on a free connection; a connection that failed is not used again.
    fn with_connection<T>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, NbdError>,
    ) -> Result<T, NbdError> {
        if let Some(why) = lock(&self.broken).as_ref() {
            return Err(NbdError::WriteFailed(why.clone()));
        }
        let mut lane = self.free_lane();
        if lane.is_none() {
            let stream = UnixStream::connect(&self.options.socket)?;
            *lane = Some(Connection::start(stream, &self.options.export, ALLOCATION, self.options.timeout)?);
        }
        let Some(connection) = lane.as_mut() else {
            return Err(NbdError::Protocol("no connection".into()));
        };
        let result = work(connection);
        if let Err(error @ (NbdError::Connection(_) | NbdError::Protocol(_))) = &result {
            *lane = None;
            if self.options.writable {
                *lock(&self.broken) = Some(error.to_string());
            }
        }
        result
    }

    fn free_lane(&self) -> MutexGuard<'_, Option<Connection>> {
        for lane in &self.lanes {
            match lane.try_lock() {
                Ok(guard) => return guard,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        let index = self.next_lane.fetch_add(1, Ordering::Relaxed) % self.lanes.len();
        lock(&self.lanes[index])
    }

    fn check_range(&self, offset: u64, len: u64) -> io::Result<()> {
        if offset.checked_add(len).is_some_and(|end| end <= self.len) {
            return Ok(());
        }
        let why = format!("{len} bytes at {offset} of a disk of {} bytes", self.len);
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, why))
    }

    /// Only a writer has one connection, and so an order among its writes.
    fn check_writable(&self) -> io::Result<()> {
        if self.options.writable {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "the export was opened for reading"))
    }

    fn forget_extents(&self) {
        *lock(&self.known) = KnownExtents::default();
    }
}

impl BlockRead for NbdClient {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check_range(offset, buf.len() as u64)?;
        if buf.is_empty() {
            return Ok(());
        }
        Ok(self.with_connection(|connection| connection.read(offset, buf))?)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        if !self.can_status {
            return Ok((from < self.len).then(|| Extent { offset: from, len: self.len - from }));
        }
        let mut known = lock(&self.known);
        let mut at = from;
        while at < self.len {
            match known.answer(at) {
                Answer::Data(extent) => return Ok(Some(extent)),
                Answer::ZeroesUntil(end) => at = end,
                Answer::Unknown => {
                    let ask = (self.len - at).min(STATUS_BYTES_MAX);
                    let runs = self.with_connection(|connection| connection.status(at, ask))?;
                    *known = KnownExtents::new(at, &runs, self.len);
                }
            }
        }
        Ok(None)
    }
}

impl BlockWrite for NbdClient {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_writable()?;
        self.check_range(offset, data.len() as u64)?;
        let result = self.with_connection(|connection| connection.write(offset, data));
        self.forget_extents();
        Ok(result?)
    }

    fn zero_at(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_writable()?;
        self.check_range(offset, len)?;
        let result = self.with_connection(|connection| connection.zero(offset, len));
        self.forget_extents();
        Ok(result?)
    }

    fn flush(&self) -> io::Result<()> {
        if !self.options.writable {
            return Ok(());
        }
        Ok(self.with_connection(Connection::flush)?)
    }
}

impl Drop for NbdClient {
    fn drop(&mut self) {
        for lane in &mut self.lanes {
            if let Some(connection) = lane.get_mut().unwrap_or_else(PoisonError::into_inner) {
                connection.disconnect();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
