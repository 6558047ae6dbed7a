//! One image, exported by a `qemu-storage-daemon` of its own.
//!
//! Owns the child, its private directory (0700, locked while it lives, removed at the end) and the
//! client. Formats and the whole backing chain are declared: no file's content decides what is opened.
//! Not its job: choosing or creating images.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use vbr_api::DiskFormat;

use super::process::{Running, STORAGE_DAEMON, failed, tool_path, words};
use super::{ConnectOptions, NbdClient, NbdError, SILENCE_MAX, qcow2_check_header};
use crate::block::{BlockRead, BlockWrite, Extent};

const EXPORT: &str = "disk";
/// The image, inside the daemon.
const NODE: &str = "disk0";
const SOCKET: &str = "nbd.sock";
const PID_FILE: &str = "pid";
const STDERR_FILE: &str = "stderr";
const DIR_PREFIX: &str = "qsd-";

/// From the start of the child to its readiness. It takes 40 ms; a disk that is written full by others stretched it beyond
/// half a minute once, and a child that ends or fails is noticed at once anyway.
const READY_TIME: Duration = Duration::from_secs(120);
/// A writer is given this long to write back its metadata when it is closed.
const CLOSE_TIME: Duration = Duration::from_secs(30);
/// Images in one chain.
pub const CHAIN_MAX: usize = 200;

/// A declared backing image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingImage {
    /// Absolute path.
    pub path: PathBuf,
    /// Never probed.
    pub format: DiskFormat,
}

/// What is to be opened, all of it declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// Absolute path of a file or a block device.
    pub path: PathBuf,
    /// Never probed.
    pub format: DiskFormat,
    /// The backing chain, nearest first; empty for an image that stands alone.
    pub backing: Vec<BackingImage>,
    /// Whether it is written.
    pub writable: bool,
    /// Exact length in bytes; none takes it from the file (raw) or its header (qcow2).
    pub disk_len: Option<u64>,
}

impl ImageSpec {
    /// A read-only image that stands alone.
    pub fn read_only(path: impl Into<PathBuf>, format: DiskFormat) -> Self {
        Self { path: path.into(), format, backing: Vec::new(), writable: false, disk_len: None }
    }
}

/// What a child is to export: the node `disk0` that its arguments make.
pub(super) struct Serve {
    /// For messages.
    pub image: String,
    /// Objects and nodes, in an order in which each finds what it names.
    pub args: Vec<String>,
    pub writable: bool,
    pub disk_len: Option<u64>,
}

/// A running export. Dropping it stops and reaps the child; after writes, call [`QsdExport::close`]
/// (or at least flush) first.
pub struct QsdExport {
    // Dropped in this order: the connection, the child, its directory.
    client: NbdClient,
    child: Running,
    _dir: PrivateDir,
    image: String,
}

impl QsdExport {
    /// Checks the headers, starts the child and connects. Blocks for up to two minutes.
    pub fn open(spec: ImageSpec, runtime_dir: &Path) -> Result<Self, NbdError> {
        let disk_len = match spec.disk_len {
            Some(len) => Some(len),
            None => own_len(&spec)?,
        };
        check_chain(&spec)?;
        let args =
            blockdevs(&spec, NODE)?.iter().flat_map(|node| ["--blockdev".into(), node.to_string()]).collect();
        let image = spec.path.display().to_string();
        Self::serve(Serve { image, args, writable: spec.writable, disk_len }, runtime_dir)
    }

    /// Starts the child, waits for it and connects.
    pub(super) fn serve(order: Serve, runtime_dir: &Path) -> Result<Self, NbdError> {
        let dir = PrivateDir::create(runtime_dir)?;
        let mut child = start(&order, &dir)?;
        wait_ready(&mut child, &dir, &order.image)?;
        let options = ConnectOptions {
            socket: dir.through_descriptor(SOCKET),
            export: EXPORT.into(),
            disk_len: order.disk_len,
            writable: order.writable,
            timeout: SILENCE_MAX,
        };
        Ok(Self { client: NbdClient::connect(options)?, child, _dir: dir, image: order.image })
    }

    /// The client of this export.
    pub fn client(&self) -> &NbdClient {
        &self.client
    }

    /// Flushes, has the child close the image properly and waits for it.
    pub fn close(mut self) -> Result<(), NbdError> {
        self.client.flush()?;
        if self.child.stop(CLOSE_TIME) {
            return Ok(());
        }
        let seconds = CLOSE_TIME.as_secs();
        Err(NbdError::Timeout { tool: STORAGE_DAEMON, image: std::mem::take(&mut self.image), seconds })
    }

    /// Removes directories of exports whose process is gone (after a crash). Best effort.
    pub fn sweep(runtime_dir: &Path) {
        for entry in fs::read_dir(runtime_dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let ours = entry.file_name().to_string_lossy().starts_with(DIR_PREFIX);
            let age = entry
                .metadata()
                .and_then(|m| m.modified())
                .ok()
                .and_then(|t| SystemTime::now().duration_since(t).ok());
            // A young directory may not be locked yet.
            if !ours || age.is_none_or(|age| age < Duration::from_secs(60)) {
                continue;
            }
            if File::open(&path)
                .is_ok_and(|dir| flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok())
            {
                let _ = fs::remove_dir_all(&path);
            }
        }
    }
}

impl BlockRead for QsdExport {
    fn len(&self) -> u64 {
        self.client.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.client.read_at(offset, buf)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        self.client.next_data(from)
    }
}

impl BlockWrite for QsdExport {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.client.write_at(offset, data)
    }

    fn zero_at(&self, offset: u64, len: u64) -> io::Result<()> {
        self.client.zero_at(offset, len)
    }

    fn flush(&self) -> io::Result<()> {
        self.client.flush()
    }
}

/// The exact length where the file itself says it; none for a block device (the server's word).
fn own_len(spec: &ImageSpec) -> Result<Option<u64>, NbdError> {
    if spec.format == DiskFormat::Qcow2 {
        return Ok(Some(qcow2_check_header(&spec.path, !spec.backing.is_empty())?.virtual_size));
    }
    let meta = metadata(&spec.path)?;
    Ok(meta.is_file().then_some(meta.len()))
}

/// Every qcow2 header in the chain may name only what was declared.
pub fn check_chain(spec: &ImageSpec) -> Result<(), NbdError> {
    let chain = spec.backing.iter().map(|image| (&image.path, image.format));
    let all: Vec<_> = std::iter::once((&spec.path, spec.format)).chain(chain).collect();
    if all.len() > CHAIN_MAX {
        return Err(NbdError::Path { path: spec.path.clone(), why: "the backing chain is too long" });
    }
    for (index, (path, format)) in all.iter().enumerate() {
        if !path.is_absolute() {
            return Err(NbdError::Path { path: path.to_path_buf(), why: "the path must be absolute" });
        }
        let kind = metadata(path)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(NbdError::Path {
                path: path.to_path_buf(),
                why: "it is neither a file nor a block device",
            });
        }
        let has_backing = index + 1 < all.len();
        match format {
            DiskFormat::Qcow2 => drop(qcow2_check_header(path, has_backing)?),
            DiskFormat::Raw if has_backing => {
                return Err(NbdError::Path {
                    path: path.to_path_buf(),
                    why: "a raw image has no backing file",
                });
            }
            DiskFormat::Raw => {}
        }
    }
    Ok(())
}

fn metadata(path: &Path) -> Result<fs::Metadata, NbdError> {
    fs::metadata(path).map_err(|source| NbdError::File { path: path.into(), source })
}

fn start(order: &Serve, dir: &PrivateDir) -> Result<Running, NbdError> {
    let mut command = Command::new(tool_path(STORAGE_DAEMON)?);
    // Paths of the socket and the pid file are relative, for a socket's path is at most 107 bytes.
    command.current_dir(&dir.path).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null());
    let stderr_path = dir.path.join(STDERR_FILE);
    let stderr = File::create(&stderr_path).map_err(|source| NbdError::File { path: stderr_path, source })?;
    command.stderr(stderr).args(&order.args);
    command.arg("--nbd-server").arg(format!("addr.type=unix,addr.path={SOCKET},max-connections=8"));
    let export = json!({
        "type": "nbd", "id": "export", "node-name": NODE, "name": EXPORT, "writable": order.writable,
    });
    command.arg("--export").arg(export.to_string());
    command.arg("--pidfile").arg(PID_FILE);
    Running::spawn(STORAGE_DAEMON, command, order.writable)
}

/// The nodes of qemu's block layer for an image and its chain, the deepest backing image first: a node must exist before
/// another names it. The image's own is called `name`.
pub fn blockdevs(spec: &ImageSpec, name: &str) -> Result<Vec<Value>, NbdError> {
    let mut nodes = Vec::new();
    let mut below: Option<String> = None;
    for (index, image) in spec.backing.iter().enumerate().rev() {
        let name = format!("{name}-{}", index + 1);
        nodes.extend(image_nodes(&name, &image.path, image.format, false, below.as_deref())?);
        below = Some(name);
    }
    nodes.extend(image_nodes(name, &spec.path, spec.format, spec.writable, below.as_deref())?);
    Ok(nodes)
}

fn image_nodes(
    name: &str,
    path: &Path,
    format: DiskFormat,
    writable: bool,
    below: Option<&str>,
) -> Result<[Value; 2], NbdError> {
    let Some(filename) = path.to_str() else {
        return Err(NbdError::Path { path: path.into(), why: "qemu takes only paths in UTF-8" });
    };
    let driver = if metadata(path)?.file_type().is_block_device() { "host_device" } else { "file" };
    let protocol = json!({
        "driver": driver, "node-name": format!("{name}-file"), "filename": filename,
        "read-only": !writable, "auto-read-only": false, "discard": "unmap", "locking": "auto",
        "aio": "threads", "cache": { "direct": false, "no-flush": false },
    });
    let mut node = json!({
        "driver": format.as_str(), "node-name": name, "file": format!("{name}-file"),
        "read-only": !writable, "auto-read-only": false, "discard": "unmap", "detect-zeroes": "off",
    });
    if format == DiskFormat::Qcow2 {
        // Said in every case, null included: then the header's own backing file is never opened.
        node["backing"] = below.map_or(Value::Null, |name| json!(name));
    }
    Ok([protocol, node])
}

fn wait_ready(child: &mut Running, dir: &PrivateDir, image: &str) -> Result<(), NbdError> {
    let (deadline, mut pause) = (Instant::now() + READY_TIME, Duration::from_millis(1));
    loop {
        // The pid file is written when everything on the command line is up.
        if fs::metadata(dir.path.join(PID_FILE)).is_ok_and(|meta| meta.len() > 0) {
            return Ok(());
        }
        if let Some(status) = child.poll()? {
            let mut text = String::new();
            if let Ok(file) = File::open(dir.path.join(STDERR_FILE)) {
                let _ = file.take(64 * 1024).read_to_string(&mut text);
            }
            let why = if text.trim().is_empty() { format!("it ended with {status}") } else { words(&text) };
            return Err(failed(STORAGE_DAEMON, image.into(), why));
        }
        if Instant::now() >= deadline {
            let seconds = READY_TIME.as_secs();
            return Err(NbdError::Timeout { tool: STORAGE_DAEMON, image: image.into(), seconds });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// A directory of 0700 under the runtime directory, locked while it lives.
pub struct PrivateDir {
    path: PathBuf,
    handle: File,
}

impl PrivateDir {
    /// With a name of its own; gone when dropped.
    pub fn create(runtime_dir: &Path) -> Result<Self, NbdError> {
        let fail = |path: &Path, source| NbdError::File { path: path.into(), source };
        if !runtime_dir.is_dir() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(runtime_dir);
            made.map_err(|source| fail(runtime_dir, source))?;
        }
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|error| fail(runtime_dir, io::Error::other(error.to_string())))?;
        let name: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        // Absolute, for the child starts elsewhere.
        let base = fs::canonicalize(runtime_dir).map_err(|source| fail(runtime_dir, source))?;
        let path = base.join(format!("{DIR_PREFIX}{name}"));
        DirBuilder::new().mode(0o700).create(&path).map_err(|source| fail(&path, source))?;
        let opened = File::open(&path).and_then(|handle| {
            flock(&handle, FlockOperation::NonBlockingLockExclusive)?;
            Ok(handle)
        });
        match opened {
            Ok(handle) => Ok(Self { path, handle }),
            Err(source) => {
                let _ = fs::remove_dir(&path);
                Err(fail(&path, source))
            }
        }
    }

    /// Where it lies, for other processes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path that is short however deep the directory lies.
    pub fn through_descriptor(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.handle.as_raw_fd()))
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
