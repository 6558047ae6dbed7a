//! A disk whose reads take as long as one likes: a file over another file, served by FUSE from this process.
//!
//! The kernel's protocol, spoken just so far that one read-only file can be opened and read, past the page cache. Owns
//! the mount and a thread that answers; each read waits on a thread of its own, so reads at once do not wait for
//! each other. Needs root. What is not known is refused with `ENOSYS`, which the kernel takes as "do without".

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::process::run;

/// Larger than any request, none of which carries data.
const REQUEST_BYTES_MAX: usize = 256 * 1024;
const IN_HEADER_BYTES: usize = 40;
const STEP: Duration = Duration::from_millis(1);

/// Opcodes of `linux/fuse.h`.
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
/// Reads of up to a MiB are one request each, or two where the reader's buffer does not begin with a page.
const FUSE_MAX_PAGES: u32 = 1 << 22;
const PAGES_MAX: u16 = 256;
/// Reads do not go through the page cache.
const FOPEN_DIRECT_IO: u32 = 1;

/// See the module.
pub struct SlowDisk {
    path: PathBuf,
    shared: Arc<Shared>,
}

struct Shared {
    image: File,
    len: u64,
    delay_us: AtomicU64,
    reads: AtomicU64,
}

impl SlowDisk {
    /// Shows `image` at `at`, a path that does not exist yet; no read takes longer than it has to so far.
    pub fn mount(image: &Path, at: &Path) -> Result<Self> {
        File::create(at)?;
        let image = File::open(image)?;
        let len = image.metadata()?.len();
        let shared = Arc::new(Shared { image, len, delay_us: AtomicU64::new(0), reads: AtomicU64::new(0) });
        let device =
            OpenOptions::new().read(true).write(true).open("/dev/fuse").context("opening /dev/fuse")?;
        let options = format!("fd={},rootmode=100000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let [place, options] = [at.as_os_str().as_bytes(), options.as_bytes()].map(CString::new);
        let (place, options) = (place?, options?);
        let flags = libc::MS_NOSUID | libc::MS_NODEV;
        // SAFETY: all four are strings that end with zero and live through the call, which keeps none of them.
        let answer = unsafe {
            let kind = c"fuse".as_ptr();
            libc::mount(c"vbr-slow-disk".as_ptr(), place.as_ptr(), kind, flags, options.as_ptr().cast())
        };
        if answer != 0 {
            return Err(std::io::Error::last_os_error())
                .with_context(|| format!("mounting {}", at.display()));
        }
        let serving = shared.clone();
        // Ends when the file system is unmounted and nobody has the file open.
        std::thread::spawn(move || serve(&Arc::new(device), &serving));
        Ok(Self { path: at.to_path_buf(), shared })
    }

    /// From now on each read takes this long at least, those that wait already included.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.delay_us.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    /// Reads that were answered so far.
    pub fn reads(&self) -> u64 {
        self.shared.reads.load(Ordering::Relaxed)
    }

    /// Reads a second over the next span.
    pub fn reads_per_second(&self, span: Duration) -> f64 {
        let (before, started) = (self.reads(), Instant::now());
        std::thread::sleep(span);
        (self.reads() - before) as f64 / started.elapsed().as_secs_f64()
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.set_delay(Duration::ZERO);
        if let Err(error) = run("umount", ["-l".as_ref(), self.path.as_os_str()]) {
            eprintln!("{error:#}");
        }
    }
}

fn serve(device: &Arc<File>, shared: &Arc<Shared>) {
    let mut buffer = vec![0; REQUEST_BYTES_MAX];
    loop {
        let read = match (&**device).read(&mut buffer) {
            Ok(read) if read >= IN_HEADER_BYTES => read,
            Ok(_) => return,
            // A request that was taken back, or a signal.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR | libc::EAGAIN)) => {
                continue;
            }
            Err(_) => return, // Unmounted.
        };
        let request = &buffer[..read];
        let (opcode, unique) = (word(request, 4), long(request, 8));
        let body = &request[IN_HEADER_BYTES..];
        let answer = match opcode {
            FORGET | BATCH_FORGET | INTERRUPT => continue,
            INIT => Ok(init(body)),
            GETATTR => Ok(attributes(shared.len)),
            OPEN => Ok([&0u64.to_ne_bytes()[..], &FOPEN_DIRECT_IO.to_ne_bytes(), &[0; 4]].concat()),
            READ => {
                let (device, shared) = (device.clone(), shared.clone());
                let (offset, size) = (long(body, 8), word(body, 16));
                std::thread::spawn(move || reply(&device, unique, shared.read(offset, size)));
                continue;
            }
            RELEASE | FLUSH => Ok(Vec::new()),
            _ => Err(libc::ENOSYS),
        };
        reply(device, unique, answer);
    }
}

impl Shared {
    fn read(&self, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_micros(self.delay_us.load(Ordering::Relaxed)) {
            std::thread::sleep(STEP);
        }
        let len = u64::from(size).min(self.len.saturating_sub(offset));
        let mut data = vec![0; len as usize];
        self.image.read_exact_at(&mut data, offset).map_err(|_| libc::EIO)?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        Ok(data)
    }
}

/// An answer is one write; one that nobody waits for any more is refused, which is nothing to us.
fn reply(mut device: &File, unique: u64, answer: Result<Vec<u8>, i32>) {
    let (error, body) = match answer {
        Ok(body) => (0, body),
        Err(number) => (-number, Vec::new()),
    };
    let len = (16 + body.len()) as u32;
    let message = [&len.to_ne_bytes()[..], &error.to_ne_bytes(), &unique.to_ne_bytes(), &body].concat();
    let _ = device.write(&message);
}

/// `fuse_init_out`: version 7.31, and large reads.
fn init(body: &[u8]) -> Vec<u8> {
    let readahead = word(body, 8);
    let mut out = Vec::new();
    for number in [7, 31, readahead, FUSE_MAX_PAGES] {
        out.extend(number.to_ne_bytes());
    }
    out.extend(16u16.to_ne_bytes()); // Requests in the background.
    out.extend(12u16.to_ne_bytes()); // And when they are too many.
    out.extend((128u32 << 10).to_ne_bytes()); // The longest write.
    out.extend(1u32.to_ne_bytes()); // Nanoseconds.
    out.extend(PAGES_MAX.to_ne_bytes());
    out.resize(64, 0);
    out
}

/// `fuse_attr_out`: a file that was written long ago and does not change.
fn attributes(len: u64) -> Vec<u8> {
    const LONG_AGO: u64 = 1_700_000_000;
    let mut out = Vec::new();
    // Valid for a second.
    for number in [1u64, 0, 1, len, len.div_ceil(512), LONG_AGO, LONG_AGO, LONG_AGO] {
        out.extend(number.to_ne_bytes());
    }
    let mode = libc::S_IFREG | 0o444;
    for number in [0u32, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        out.extend(number.to_ne_bytes());
    }
    out
}

/// A number in a message; zero where the message is too short.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{self, MIB};
    use crate::process::is_root;
    use crate::work::WorkDir;

    #[test]
    fn it_holds_what_the_image_holds_and_takes_its_time() {
        if !is_root() {
            println!("skipped: mounts need root");
            return;
        }
        let dir = WorkDir::new().unwrap();
        let (image, at) = (dir.join("image"), dir.join("slow"));
        disk::random(&image, MIB + 77, 1).unwrap();
        let slow = SlowDisk::mount(&image, &at).unwrap();
        assert_eq!(std::fs::read(&at).unwrap(), std::fs::read(&image).unwrap());
        let file = File::open(&at).unwrap();
        assert_eq!(file.metadata().unwrap().len(), MIB + 77);
        slow.set_delay(Duration::from_millis(50));
        let (before, started, mut data) = (slow.reads(), Instant::now(), vec![0; MIB as usize / 2]);
        for _ in 0..4 {
            file.read_exact_at(&mut data, 0).unwrap();
        }
        assert!(started.elapsed() >= Duration::from_millis(200), "{:?}", started.elapsed());
        assert_eq!(slow.reads() - before, 4, "each read is one, and none comes from memory");
    }
}
