//! NBD client and qemu-storage-daemon processes: how qcow2 is read and written.
//!
//! [`QsdExport`] owns one `qemu-storage-daemon` child that exports one image over a unix socket in a
//! private directory; [`NbdClient`] speaks to it. Formats and backing chains are declared by the
//! caller and never probed: [`qcow2_check_header`] refuses what was not declared before qemu opens it.
//!
//! [`serve`] is the other side: a disk of ours for a client of somebody else.
//!
//! Everything here blocks: callers run it on blocking threads. It knows nothing of jobs, hosts or
//! datastores. Bounds: [`DEPTH_MAX`] requests in flight on a connection, [`LANES_MAX`] connections for
//! a reader, [`READ_BYTES_MAX`] and [`WRITE_BYTES_MAX`] a request; whatever a server declares is
//! checked before anything is allocated for it; every wait has a timeout.

mod bitmap;
mod client;
mod connection;
mod export;
mod process;
mod protocol;
mod qcow2;
mod remote;
mod serve;
mod status;
mod uri;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use bitmap::dirty_extents;
pub use client::{ConnectOptions, NbdClient};
pub use export::{BackingImage, CHAIN_MAX, ImageSpec, PrivateDir, QsdExport, blockdevs, check_chain};
pub use process::{VIRSH, find_tool, qemu_img, qemu_img_within, qemu_utils_missing, run_tool, run_within};
pub use qcow2::{Qcow2Error, Qcow2Header, parse_qcow2_header, qcow2_check_header};
pub use remote::{RemoteExport, list_exports};
pub use serve::serve;
pub use uri::{NbdAddress, NbdUri};

/// Requests in flight on one connection; qemu serves 16 at once.
pub const DEPTH_MAX: usize = 16;
/// Connections that one reader may use; a writer has one, so that its order is known.
pub const LANES_MAX: usize = 4;
/// Bytes in one READ request.
pub const READ_BYTES_MAX: usize = 256 * 1024;
/// Bytes in one WRITE request.
pub const WRITE_BYTES_MAX: usize = 1024 * 1024;
/// Bytes in one WRITE_ZEROES request.
const ZERO_BYTES_MAX: u64 = 256 << 20;
/// Bytes that one BLOCK_STATUS request asks about.
const STATUS_BYTES_MAX: u64 = 1 << 30;
/// Extents that one BLOCK_STATUS reply may hold; qemu stops at 131,072.
const STATUS_EXTENTS_MAX: usize = 128 * 1024;
/// Silence after which a server is given up.
pub const SILENCE_MAX: Duration = Duration::from_secs(120);

/// What can go wrong with an image that is opened through qemu.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// qemu-img or qemu-storage-daemon is not installed.
    #[error("{0}")]
    ToolMissing(String),
    /// The image's header is not what was declared, or is refused.
    #[error("{path}: {source}")]
    Header {
        /// The image.
        path: PathBuf,
        /// Why it was refused.
        source: Qcow2Error,
    },
    /// A file or directory could not be used.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A path that cannot be handed to qemu.
    #[error("{path}: {why}")]
    Path {
        /// Which one.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// A qemu tool failed; its own words are kept.
    #[error("{tool} failed on {image}: {why}")]
    Tool {
        /// Name of the program.
        tool: &'static str,
        /// What it was used on.
        image: String,
        /// Its standard error, shortened.
        why: String,
    },
    /// Another program (a running VM, most likely) holds the image.
    #[error("{image} is in use by another program: {why}")]
    Locked {
        /// The image.
        image: String,
        /// What qemu said.
        why: String,
    },
    /// A qemu tool did not answer in time and was stopped.
    #[error("{tool} on {image} did not finish within {seconds} s and was stopped")]
    Timeout {
        /// Name of the program.
        tool: &'static str,
        /// What it was used on.
        image: String,
        /// The bound.
        seconds: u64,
    },
    /// The connection failed or was closed.
    #[error("the NBD connection failed: {0}")]
    Connection(#[from] io::Error),
    /// The server broke the protocol; the connection is not used again.
    #[error("the NBD server broke the protocol: {0}")]
    Protocol(String),
    /// The server refused an option.
    #[error("the NBD server refused {option}: {why}")]
    Refused {
        /// Name of the option.
        option: &'static str,
        /// Its words.
        why: String,
    },
    /// The export is not as long as was declared.
    #[error("the export holds {export} bytes, declared were {declared}")]
    Length {
        /// Bytes the server says.
        export: u64,
        /// Bytes the caller said.
        declared: u64,
    },
    /// The server answered a request with an error; the connection lives on.
    #[error("the NBD server failed a {command} at {offset}: {source}")]
    Request {
        /// READ, WRITE, …
        command: &'static str,
        /// Where.
        offset: u64,
        /// As an error of this system.
        source: io::Error,
    },
    /// A write failed earlier: nothing after it can be trusted to be on the disk.
    #[error("an earlier write failed: {0}")]
    WriteFailed(String),
}

impl NbdError {
    /// The nearest kind of input and output error.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Connection(source) | Self::Request { source, .. } | Self::File { source, .. } => {
                source.kind()
            }
            Self::ToolMissing(_) => io::ErrorKind::NotFound,
            Self::Header { .. } | Self::Protocol(_) | Self::Length { .. } => io::ErrorKind::InvalidData,
            Self::Timeout { .. } => io::ErrorKind::TimedOut,
            Self::Locked { .. } => io::ErrorKind::ResourceBusy,
            _ => io::ErrorKind::Other,
        }
    }
}

impl From<NbdError> for io::Error {
    fn from(error: NbdError) -> Self {
        io::Error::new(error.kind(), error)
    }
}
