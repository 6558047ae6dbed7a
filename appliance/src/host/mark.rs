//! Marks: what a file or block device looks like now, so that any later change shows.
//!
//! A file is marked by device, inode, size, mtime and ctime; a block device by the kernel's counters of
//! writes and discards. Two marks are equal only if nothing was written between them.
//!
//! Files: a descriptor is synced first, for the kernel takes the time of a store into a shared mapping
//! only when the page faults, and it faults again only after it was written back. A time stamp is as
//! coarse as a timer tick, so a mark counts as settled only where its times are older than the start of
//! that sync by [`GRANULARITY`]. Devices: the sync brings buffered writes to the counters.
//!
//! What cannot be seen: stores through a mapping of a tmpfs file, writes to a device from another
//! machine, or past a partition through its whole disk. Owns no state. Bounds: [`ROUNDS_MAX`] waits.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Advice, fadvise, fsync, major, minor};
use rustix::io::Errno;

/// Time stamps may lag by a tick of the kernel's timer: 10 ms at most, with room.
const GRANULARITY: Duration = Duration::from_millis(50);
/// Attempts to find files that nobody writes to.
const ROUNDS_MAX: usize = 5;
const ROUND_PAUSE: Duration = Duration::from_millis(60);

/// What a disk looked like. An unprovable mark equals nothing, itself included.
#[derive(Clone, Debug)]
pub(super) enum Mark {
    /// device, inode, size, mtime and ctime in nanoseconds.
    File { device: u64, inode: u64, size: u64, mtime: i128, ctime: i128 },
    /// Everything that a write moves, for one life of one device.
    Device { boot: String, device: u64, sequence: String, size: u64, sectors: [u64; 2] },
    /// It was being written all the time, or its counters do not count.
    Unprovable { why: String },
}

impl PartialEq for Mark {
    fn eq(&self, other: &Self) -> bool {
        self.words().is_some_and(|words| other.words() == Some(words))
    }
}

impl Mark {
    /// The mark at this moment, after a sync.
    pub fn now(file: &File) -> io::Result<Self> {
        sync(file)?;
        let meta = file.metadata()?;
        if meta.file_type().is_block_device() { device_mark(file, &meta) } else { Ok(file_mark(&meta)) }
    }

    /// Marks that a later change cannot equal: waits until the files' times are old enough. What
    /// is written all the time becomes unprovable.
    pub fn settled(files: &[&File]) -> io::Result<Vec<Self>> {
        let mut marks = Vec::new();
        for round in 0..ROUNDS_MAX {
            if round > 0 {
                thread::sleep(ROUND_PAUSE);
            }
            let begun = SystemTime::now();
            marks = files.iter().map(|file| Self::now(file)).collect::<io::Result<Vec<_>>>()?;
            if !marks.iter().any(|mark| mark.is_fresh(begun)) {
                return Ok(marks);
            }
        }
        let begun = SystemTime::now();
        for (mark, file) in marks.iter_mut().zip(files) {
            *mark = Self::now(file)?;
            if mark.is_fresh(begun) {
                *mark = Self::Unprovable { why: "it is being written to right now".into() };
            }
        }
        Ok(marks)
    }

    /// Why nothing can be proven with it.
    pub fn doubt(&self) -> Option<&str> {
        match self {
            Self::Unprovable { why } => Some(why),
            _ => None,
        }
    }

    /// Everything in it, as text that identities are hashed from.
    pub fn words(&self) -> Option<String> {
        match self {
            Self::File { device, inode, size, mtime, ctime } => {
                Some(format!("file {device} {inode} {size} {mtime} {ctime}"))
            }
            Self::Device { boot, device, sequence, size, sectors } => {
                Some(format!("device {boot} {device} {sequence} {size} {sectors:?}"))
            }
            Self::Unprovable { .. } => None,
        }
    }

    /// True where a write right after it might leave the same times.
    fn is_fresh(&self, sync_begun: SystemTime) -> bool {
        let Self::File { mtime, ctime, .. } = self else { return false };
        let begun = sync_begun.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128);
        let oldest = begun - GRANULARITY.as_nanos() as i128;
        // A time far ahead of the clock is not one that a write would set now.
        let newest = begun + Duration::from_secs(3600).as_nanos() as i128;
        [*mtime, *ctime].iter().any(|time| (oldest..newest).contains(time))
    }
}

fn sync(file: &File) -> io::Result<()> {
    match fsync(file) {
        // File systems without a sync, or mounted read-only, have nothing to write back.
        Ok(()) | Err(Errno::INVAL | Errno::ROFS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn file_mark(meta: &fs::Metadata) -> Mark {
    let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    Mark::File {
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.len(),
        mtime: nanos(meta.mtime(), meta.mtime_nsec()),
        ctime: nanos(meta.ctime(), meta.ctime_nsec()),
    }
}

fn device_mark(file: &File, meta: &fs::Metadata) -> io::Result<Mark> {
    let device = meta.rdev();
    let size = rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?;
    let doubt = |why: &str| Ok(Mark::Unprovable { why: format!("{why}: changes cannot be detected") });
    let Some(stat) = counters(device) else {
        return doubt("the kernel shows no counters for this device");
    };
    if iostats_off(device) {
        return doubt("the kernel does not count writes to this device (queue/iostats is 0)");
    }
    let read =
        |path: PathBuf| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let boot = read("/proc/sys/kernel/random/boot_id".into());
    // Sectors written and discarded. Not requests: our own sync counts as a write of no sectors.
    let sectors = [6, 13].map(|field| stat.get(field).copied().unwrap_or(0));
    Ok(Mark::Device { boot, device, sequence: read(sysfs(device).join("diskseq")), size, sectors })
}

/// Makes sure that the kernel counts what happens on this device, and that reads come from the device
/// and not from what an earlier session left in memory. Gives the reason where nothing is counted.
pub(super) fn prepare_device(file: &File, path: &str) -> io::Result<Option<String>> {
    let device = file.metadata()?.rdev();
    sync(file)?;
    // A file system mounted from the device writes past the device's own page cache.
    let _ = fadvise(file, 0, None, Advice::DontNeed);
    let Some(before) = counters(device) else { return Ok(None) };
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT | libc::O_NONBLOCK).open(path)?;
    let mut buffer = vec![0u8; 8192];
    let skip = buffer.as_ptr().align_offset(4096).min(4096);
    if direct.read_at(&mut buffer[skip..skip + 4096], 0).is_err() {
        return Ok(None);
    }
    let counted = counters(device).is_some_and(|after| after.first() > before.first());
    Ok((!counted).then(|| "the kernel does not count what happens on this device".to_owned()))
}

fn sysfs(device: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)))
}

/// The fields of `/sys/dev/block/M:m/stat`. Writes through a partition count for its disk too, and what
/// device mapper sends below counts there, so a device's own counters see all that reaches it.
fn counters(device: u64) -> Option<Vec<u64>> {
    let text = fs::read_to_string(sysfs(device).join("stat")).ok()?;
    let fields: Vec<u64> = text.split_whitespace().take(32).map_while(|word| word.parse().ok()).collect();
    (fields.len() >= 11).then_some(fields)
}

fn iostats_off(device: u64) -> bool {
    let off = |path: PathBuf| fs::read_to_string(path).is_ok_and(|text| text.trim() == "0");
    // A partition's queue is its disk's.
    let own = sysfs(device);
    let parent = fs::canonicalize(&own).ok().and_then(|path| path.parent().map(PathBuf::from));
    off(own.join("queue/iostats")) || parent.is_some_and(|path| off(path.join("queue/iostats")))
}
