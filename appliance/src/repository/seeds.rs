//! Seeds: disk images that a target reads chunks from in place, where they lie.
//!
//! Owns `seeds.json` in the state directory: which images, by a key that index entries name, and what they
//! looked like when they were indexed. An image is opened for each read and closed again (qcow2 shortly after),
//! so that a disk can be taken away at any time. Nothing here is trusted: whoever gets a chunk gets it re-hashed, and an image
//! that is gone, changed or bad is the same as a chunk that is not held. What a peer asks for is opened beneath
//! the directories that the site allows, without symbolic links. Not its job: indexing (the job does).
//! Bounds: [`SEEDS_MAX`] images, [`OPEN_MAX`] open qcow2 images.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use vbr_api::DiskFormat;

use crate::block::{BlockRead, CHUNK_BYTES, ChunkId, ChunkSource, DomainKey, DomainTag, Geometry, ShortId};
use crate::block_file::RawFile;
use crate::error::Problem;
use crate::limits::SEEDS_MAX;
use crate::nbd::{ImageSpec, QsdExport};
use crate::repository::beneath;
use crate::repository::datastore::Datastores;

/// Open qcow2 images: each is a child process.
const OPEN_MAX: usize = 2;
/// An open image that nobody read for this long is closed.
const IDLE: Duration = Duration::from_secs(20);
/// Longest path that is taken.
const PATH_BYTES_MAX: usize = 4096;

/// An image that chunks may be read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed {
    /// Absolute.
    pub path: PathBuf,
    /// Declared, never probed.
    pub format: DiskFormat,
    /// The allowed directory that it was found beneath, for one that a peer asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beneath: Option<PathBuf>,
    /// Length of the file, and its time of change: what it was when it was indexed.
    pub stamp: (u64, i64),
    /// Dedup domains that it was indexed for.
    #[serde(default)]
    pub domains: Vec<DomainTag>,
}

impl Seed {
    /// What index entries name it by; never that of a replica (those are of another derivation).
    pub fn key(&self) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_derive_key("vbr 2026 key of a seed");
        hasher.update(self.format.as_str().as_bytes());
        hasher.update(b"\0");
        hasher.update(self.path.as_os_str().as_encoded_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        key
    }

    /// Names, in the index, that all of it is known to a domain.
    pub fn mark(&self, tag: DomainTag) -> Vec<u8> {
        [&b"seed"[..], &self.key(), &tag.0].concat()
    }

    /// As people write it.
    pub fn title(&self) -> String {
        match self.format {
            DiskFormat::Raw => self.path.display().to_string(),
            DiskFormat::Qcow2 => format!("{},format=qcow2", self.path.display()),
        }
    }

    /// The file, however it may be opened.
    fn file(&self) -> io::Result<File> {
        let Some(directory) = &self.beneath else {
            let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
            return OpenOptions::new().read(true).custom_flags(flags).open(&self.path);
        };
        let relative =
            self.path.strip_prefix(directory).map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        Ok(beneath::open(File::open(directory)?, relative, flags, Mode::empty())?.into())
    }

    /// What its file looks like now.
    fn look(&self) -> io::Result<(u64, i64)> {
        let file = self.file()?;
        let meta = file.metadata()?;
        let nanoseconds = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
        Ok((RawFile::from_file(file)?.len(), nanoseconds))
    }

    /// True where it is as it was.
    pub fn is_unchanged(&self) -> bool {
        self.look().is_ok_and(|stamp| stamp == self.stamp)
    }
}

struct Open {
    key: [u8; 16],
    reader: Arc<dyn BlockRead>,
    used: Instant,
}

/// See the module.
pub struct Seeds {
    record: PathBuf,
    directories: Vec<PathBuf>,
    runtime_dir: PathBuf,
    write: fn(&Path, &[u8]) -> io::Result<()>,
    list: RwLock<Vec<Seed>>,
    /// Held by whoever changes the record.
    changing: Mutex<()>,
    open: Mutex<Vec<Open>>,
}

impl Seeds {
    /// Reads the record; one that is damaged is an empty one, and why. `directories`: where images may lie that peers ask
    /// for. `write` writes a file whole and durably.
    pub fn open(
        record: PathBuf,
        directories: Vec<PathBuf>,
        runtime_dir: &Path,
        write: fn(&Path, &[u8]) -> io::Result<()>,
    ) -> (Self, Option<String>) {
        let (list, why) = match std::fs::read(&record) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), None),
            Err(error) => (Vec::new(), Some(error.to_string())),
            Ok(bytes) => match serde_json::from_slice::<Vec<Seed>>(&bytes) {
                Ok(list) => (list, None),
                Err(error) => (Vec::new(), Some(error.to_string())),
            },
        };
        let (list, runtime_dir) = (RwLock::new(list), runtime_dir.to_owned());
        let (changing, open) = (Mutex::default(), Mutex::default());
        (Self { record, directories, runtime_dir, write, list, changing, open }, why)
    }

    /// Every image that was indexed, or is.
    pub fn all(&self) -> Vec<Seed> {
        self.list.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An image that the operator of this site names.
    pub fn image(&self, path: &str, format: DiskFormat) -> Result<Seed, Problem> {
        let what = format!("the image {path}");
        let path = checked(path, &what)?;
        let seed = Seed { path, format, beneath: None, stamp: (0, 0), domains: Vec::new() };
        let stamp = seed.look().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Problem::not_found(&what, "check the path: it is one of the machine that vbrd runs on")
            }
            io::ErrorKind::InvalidInput => Problem::invalid(&what, error.to_string(), "name an image"),
            _ => Problem::io(&what, &error),
        })?;
        Ok(Seed { stamp, ..seed })
    }

    /// An image that a peer names: only beneath the allowed directories.
    pub fn image_for_peer(&self, path: &str, format: DiskFormat) -> Result<Seed, Problem> {
        let what = format!("the seed {path}");
        let path = checked(path, &what)?;
        let allowed =
            self.directories.iter().find(|directory| path.starts_with(directory) && path != **directory);
        let Some(directory) = allowed else { return Err(self.not_allowed(what)) };
        // A datastore may have a site of this name: what belongs to another peer is not a seed.
        let inside = path.ancestors().take_while(|above| above.starts_with(directory));
        if inside.skip(1).any(|above| above.join("replica.json").exists()) {
            return Err(self.not_allowed(what));
        }
        let beneath = Some(directory.clone());
        let seed = Seed { path, format, beneath, stamp: (0, 0), domains: Vec::new() };
        let stamp = seed.look().map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP | libc::EXDEV) => self.not_allowed(&what),
            Some(libc::ENOENT | libc::ENOTDIR) => {
                Problem::not_found(&what, "the target's administrator puts it into a seed directory there")
            }
            _ => Problem::io(&what, &error),
        })?;
        Ok(Seed { stamp, ..seed })
    }

    fn not_allowed(&self, what: impl Into<String>) -> Problem {
        Problem::not_allowed(
            what,
            "it is not beneath a seed directory of the target",
            "the target's administrator puts the image into one (seed.directories in its configuration)",
        )
    }

    /// Enters an image for a domain, durably; the oldest goes where there are too many.
    pub fn enter(&self, seed: &Seed, tag: DomainTag) -> Result<(), Problem> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list = self.all();
        let mut seed = seed.clone();
        if let Some(at) = list.iter().position(|other| other.key() == seed.key()) {
            seed.domains = list.remove(at).domains;
        }
        seed.domains.retain(|other| *other != tag);
        seed.domains.push(tag);
        list.push(seed);
        if list.len() > SEEDS_MAX {
            list.remove(0);
        }
        let text = serde_json::to_vec_pretty(&list).map_err(|e| {
            Problem::new("internal", "the seeds cannot be written", e.to_string(), "report this")
        })?;
        (self.write)(&self.record, &text)
            .map_err(|e| Problem::io(format!("the record of seeds {}", self.record.display()), &e))?;
        *self.list.write().unwrap_or_else(PoisonError::into_inner) = list;
        Ok(())
    }

    /// The entry of an image.
    pub fn entered(&self, key: [u8; 16]) -> Option<Seed> {
        self.list
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .find(|seed| seed.key() == key)
            .cloned()
    }

    /// Opens an image for reading. Blocking.
    pub fn reader(&self, seed: &Seed) -> Result<Arc<dyn BlockRead>, Problem> {
        let what = || format!("opening {}", seed.title());
        match seed.format {
            DiskFormat::Raw => {
                let file = seed.file().and_then(RawFile::from_file);
                Ok(Arc::new(file.map_err(|error| Problem::io(what(), &error))?))
            }
            DiskFormat::Qcow2 => self.qcow2(seed).map_err(|why| {
                Problem::new(
                    "seed",
                    what(),
                    why,
                    "check the image with qemu-img check, and how it is declared",
                )
            }),
        }
    }

    fn qcow2(&self, seed: &Seed) -> Result<Arc<dyn BlockRead>, String> {
        let key = seed.key();
        let mut open = self.opened();
        if let Some(found) = open.iter_mut().find(|open| open.key == key) {
            found.used = Instant::now();
            return Ok(found.reader.clone());
        }
        // Where the descriptor leads, links resolved; a file with a backing file is refused there.
        let file = seed.file().map_err(|error| error.to_string())?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .map_err(|error| error.to_string())?;
        let export = QsdExport::open(ImageSpec::read_only(path, seed.format), &self.runtime_dir);
        let reader: Arc<dyn BlockRead> = Arc::new(export.map_err(|error| error.to_string())?);
        if open.len() >= OPEN_MAX {
            let oldest = open.iter().enumerate().min_by_key(|(_, open)| open.used).map(|(at, _)| at);
            oldest.map(|at| open.swap_remove(at));
        }
        open.push(Open { key, reader: reader.clone(), used: Instant::now() });
        Ok(reader)
    }

    fn opened(&self) -> MutexGuard<'_, Vec<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes images that nobody reads any more. Blocking.
    pub fn close_idle(&self) {
        let now = Instant::now();
        let mut open = self.opened();
        let idle: Vec<Open> = open.extract_if(.., |open| now.duration_since(open.used) > IDLE).collect();
        drop(open);
        drop(idle);
    }

    fn read(&self, seed: [u8; 16], chunk: u64, id: ShortId, key: &DomainKey) -> Option<(ChunkId, Vec<u8>)> {
        let seed = self.entered(seed)?;
        if !seed.domains.contains(&key.tag()) {
            return None;
        }
        let reader = self.reader(&seed).ok()?;
        let range = Geometry { disk_len: reader.len() }.chunk_range(chunk);
        let mut data =
            vec![0; usize::try_from(range.end - range.start).ok().filter(|len| *len <= CHUNK_BYTES)?];
        reader.read_at(range.start, &mut data).ok()?;
        let found = key.chunk_id(&data);
        (found.short() == id).then_some((found, data))
    }
}

/// Restore points first, then seeds: all that is read in place.
pub struct InPlace {
    /// Restore points.
    pub points: Arc<Datastores>,
    /// Images.
    pub seeds: Arc<Seeds>,
}

impl ChunkSource for InPlace {
    fn read_chunk(
        &self,
        replica: [u8; 16],
        disk: u16,
        chunk: u64,
        id: ShortId,
        key: &DomainKey,
    ) -> Option<(ChunkId, Vec<u8>)> {
        let point = self.points.read_chunk(replica, disk, chunk, id, key);
        point.or_else(|| self.seeds.read(replica, chunk, id, key))
    }
}

/// A path that means the same to everybody.
fn checked(path: &str, what: &str) -> Result<PathBuf, Problem> {
    let fits = path.len() <= PATH_BYTES_MAX && !path.contains('\0');
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    let path = Path::new(path);
    if fits && path.is_absolute() && path.components().all(plain) {
        return Ok(path.components().collect());
    }
    Err(Problem::invalid(what, "it is not an absolute path without `..`", "give the full path of the image"))
}

#[cfg(test)]
#[path = "seeds_tests.rs"]
mod tests;
