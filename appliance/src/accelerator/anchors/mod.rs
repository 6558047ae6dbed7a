//! Content anchors: where, among all disks that were sent, bytes like these lie.
//!
//! A gear hash over 64-byte windows, sampled 1 in 512, leads from content to a place: a 4 KiB block of
//! the newest image of a disk. It finds what moved, on any alignment: a database's log that carries its
//! pages, a package's files in other blocks. The source takes the blocks around each hit as the reference
//! prefix of a batch.
//!
//! An *image* is one disk of one job at one restore point. While a session runs the disk has two: the
//! base, and the one being built. At the seal the new one takes over what did not change and the rest of
//! the old one is forgotten. Nothing here is ever trusted: whoever uses a place reads the content,
//! verifies its id and asks the target whether it has it. So a stale table costs bytes, never data.
//!
//! `gear`: where anchors lie. `table`: the bounded table. `file`: how it survives restarts. One mutex,
//! held for some microseconds a chunk. Bound: `accelerator.anchor_memory` bytes, and [`IMAGES_MAX`]
//! images.

mod file;
pub mod gear;
mod table;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_measure;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

pub use self::gear::Anchor;
pub use self::table::Place;

use self::file::Head;
use self::table::{AnchorTable, Penalty};
use super::block_index::LoadError;

/// Bytes in a block, the grain of places.
pub const BLOCK_BYTES: usize = 4096;
/// Blocks in a chunk.
pub const CHUNK_BLOCKS: usize = crate::block::CHUNK_BYTES / BLOCK_BYTES;
/// Images known at once: disks of jobs, twice while a session runs.
pub const IMAGES_MAX: usize = 4096;

/// One disk of one job.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DiskKey {
    /// Job name.
    pub job: String,
    /// Disk number.
    pub disk: u16,
}

/// What an image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageState {
    /// The disk at its last sealed restore point.
    Sealed,
    /// The disk as this session builds it.
    Building(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Image {
    disk: DiskKey,
    state: ImageState,
    /// The round in which it was last used.
    used: u64,
    /// Part of its content was never scanned.
    partial: bool,
}

/// The images of one disk in one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionImages {
    /// The base restore point's, where it is known.
    pub base: Option<u16>,
    /// The one being built.
    pub building: u16,
}

/// Where an anchor was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Whose content.
    pub disk: DiskKey,
    /// Which image of it.
    pub state: ImageState,
    /// 4 KiB block of the disk.
    pub block: u32,
}

/// Figures for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnchorStats {
    /// Entries in use.
    pub entries: u64,
    /// Entries there is room for.
    pub capacity: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Disks known.
    pub disks: u64,
}

struct Inner {
    table: AnchorTable,
    images: Vec<Option<Image>>,
    penalties: Vec<Penalty>,
    round: u64,
    dirty: bool,
}

/// See the module.
pub struct AnchorStore {
    inner: Mutex<Inner>,
    path: PathBuf,
}

impl AnchorStore {
    /// Opens the table in `path`, or an empty one; the second value says why one that was there is not
    /// used.
    pub fn open(path: &Path, memory_bytes: usize) -> (Self, Option<String>) {
        let (mut inner, why) = match file::load(path, memory_bytes) {
            Ok((table, images, round)) => {
                (Inner { table, images, penalties: Vec::new(), round, dirty: false }, None)
            }
            Err(LoadError::Missing(_)) => (Inner::empty(memory_bytes), None),
            Err(why) => (Inner::empty(memory_bytes), Some(why.to_string())),
        };
        inner.rank();
        (Self { inner: Mutex::new(inner), path: path.to_path_buf() }, why)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session begins or goes on with a disk. `None` where too many images are known.
    pub fn begin(&self, disk: &DiskKey, session: &str) -> Option<SessionImages> {
        let mut inner = self.lock();
        inner.round += 1;
        let building = ImageState::Building(session.to_string());
        let base = inner.find(disk, &ImageState::Sealed);
        let building = match inner.find(disk, &building) {
            Some(number) => number,
            None => inner.add(Image { disk: disk.clone(), state: building, used: 0, partial: false })?,
        };
        inner.touch(base);
        inner.touch(Some(building));
        inner.rank();
        Some(SessionImages { base, building })
    }

    /// Where these anchors were seen; in order, one for each.
    pub fn find(&self, anchors: impl IntoIterator<Item = Anchor>) -> Vec<Option<Place>> {
        let inner = self.lock();
        anchors.into_iter().map(|anchor| inner.table.get(anchor)).collect()
    }

    /// What a place's image is.
    pub fn image(&self, number: u16) -> Option<(DiskKey, ImageState)> {
        let inner = self.lock();
        let image = inner.images.get(usize::from(number))?.as_ref()?;
        Some((image.disk.clone(), image.state.clone()))
    }

    /// Content of an image: anchors and the blocks they lie in.
    pub fn put(&self, image: u16, anchors: impl IntoIterator<Item = (Anchor, u32)>) {
        let mut inner = self.lock();
        let Inner { table, penalties, dirty, .. } = &mut *inner;
        for (anchor, block) in anchors {
            let penalty = |number: u16| penalties.get(usize::from(number)).copied().unwrap_or(Penalty::MAX);
            table.put(anchor, Place { image, block }, penalty);
        }
        *dirty = true;
    }

    /// A session sealed its point: what it built is each disk's newest image now, and what the base has
    /// in chunks that `unchanged` names stays as part of it.
    /// `whole`: everything that was sent was scanned.
    pub fn sealed(&self, job: &str, session: &str, whole: bool, unchanged: impl Fn(u16, u64) -> bool) {
        let mut inner = self.lock();
        let mut moves = vec![None; inner.images.len()];
        let building = ImageState::Building(session.to_string());
        for disk in inner.disks(job) {
            let Some(new) = inner.find(&disk, &building) else { continue };
            let mut partial = !whole;
            if let Some(old) = inner.find(&disk, &ImageState::Sealed) {
                partial |= inner.images[usize::from(old)].as_ref().is_some_and(|image| image.partial);
                moves[usize::from(old)] = Some((new, disk.disk));
                inner.images[usize::from(old)] = None;
            }
            if let Some(image) = inner.images[usize::from(new)].as_mut() {
                (image.state, image.partial) = (ImageState::Sealed, partial);
            }
        }
        inner.table.retain(|place| match moves.get(usize::from(place.image)).copied().flatten() {
            None => Some(place),
            Some((new, disk)) => {
                let chunk = u64::from(place.block) / CHUNK_BLOCKS as u64;
                unchanged(disk, chunk).then_some(Place { image: new, ..place })
            }
        });
        inner.dirty = true;
        inner.rank();
    }

    /// A session ended without a point.
    pub fn discard(&self, session: &str) {
        self.lock().drop_images(|image| image.state != ImageState::Building(session.to_string()));
    }

    /// After a restart: of what was being built only these sessions go on.
    pub fn sweep(&self, living: &[String]) {
        self.lock().drop_images(|image| match &image.state {
            ImageState::Sealed => true,
            ImageState::Building(session) => living.contains(session),
        });
    }

    /// A job is gone.
    pub fn forget(&self, job: &str) {
        self.lock().drop_images(|image| image.disk.job != job);
    }

    /// True where a sealed image of this disk is known and all of it was scanned.
    pub fn knows(&self, disk: &DiskKey) -> bool {
        let inner = self.lock();
        let found = inner.find(disk, &ImageState::Sealed);
        let image = found.and_then(|number| inner.images.get(usize::from(number))?.as_ref());
        image.is_some_and(|image| !image.partial)
    }

    /// All of a disk's content was scanned.
    pub fn learned(&self, image: u16) {
        if let Some(Some(image)) = self.lock().images.get_mut(usize::from(image)) {
            image.partial = false;
        }
    }

    /// A place for the sealed image of a disk whose anchors are learned again from its content.
    pub fn relearn(&self, disk: &DiskKey) -> Option<u16> {
        let mut inner = self.lock();
        let round = inner.round;
        let number = match inner.find(disk, &ImageState::Sealed) {
            Some(number) => number,
            None => inner.add(Image {
                disk: disk.clone(),
                state: ImageState::Sealed,
                used: round,
                partial: false,
            })?,
        };
        inner.rank();
        Some(number)
    }

    /// Writes the table where it changed since. Blocking; sessions go on meanwhile.
    pub fn save(&self) -> std::io::Result<()> {
        let head = {
            let mut inner = self.lock();
            if !inner.dirty {
                return Ok(());
            }
            inner.dirty = false;
            let (images, buckets) = (inner.images.clone(), inner.table.buckets() as u64);
            Head { round: inner.round, images, buckets }
        };
        let saved = file::write(&self.path, &head, |buckets, out| self.lock().table.encode(buckets, out));
        if saved.is_err() {
            self.lock().dirty = true; // The next time tries again.
        }
        saved
    }

    /// Figures.
    pub fn stats(&self) -> AnchorStats {
        let inner = self.lock();
        AnchorStats {
            entries: inner.table.len() as u64,
            capacity: inner.table.capacity() as u64,
            memory_bytes: inner.table.memory_bytes() as u64,
            disks: inner.images.iter().flatten().filter(|image| image.state == ImageState::Sealed).count()
                as u64,
        }
    }
}

impl Inner {
    fn empty(memory_bytes: usize) -> Self {
        let table = AnchorTable::new(memory_bytes);
        Self { table, images: Vec::new(), penalties: Vec::new(), round: 0, dirty: false }
    }

    fn find(&self, disk: &DiskKey, state: &ImageState) -> Option<u16> {
        let found = |image: &Option<Image>| {
            image.as_ref().is_some_and(|image| image.disk == *disk && image.state == *state)
        };
        self.images.iter().position(found).map(|number| number as u16)
    }

    fn disks(&self, job: &str) -> Vec<DiskKey> {
        let mut disks: Vec<DiskKey> =
            self.images.iter().flatten().map(|image| image.disk.clone()).filter(|d| d.job == job).collect();
        disks.sort_by_key(|disk| disk.disk);
        disks.dedup();
        disks
    }

    fn add(&mut self, image: Image) -> Option<u16> {
        if let Some(free) = self.images.iter().position(Option::is_none) {
            self.images[free] = Some(image);
            return Some(free as u16);
        }
        if self.images.len() >= IMAGES_MAX {
            return None;
        }
        self.images.push(Some(image));
        Some(self.images.len() as u16 - 1)
    }

    fn touch(&mut self, number: Option<u16>) {
        let round = self.round;
        if let Some(image) = number.and_then(|number| self.images.get_mut(usize::from(number))?.as_mut()) {
            image.used = round;
        }
    }

    /// An image that had no session in the last four rounds of all disks is thinned once for each
    /// doubling since: least recently used goes first, but thins before it goes.
    fn rank(&mut self) {
        let living = self.images.iter().flatten().count().max(1) as u64;
        let round = self.round;
        let penalty = |image: &Option<Image>| match image {
            None => Penalty::MAX,
            Some(image) => {
                let rounds = round.saturating_sub(image.used) / (4 * living);
                (u64::BITS - rounds.leading_zeros()).min(16) as Penalty
            }
        };
        self.penalties = self.images.iter().map(penalty).collect();
    }

    fn drop_images(&mut self, keep: impl Fn(&Image) -> bool) {
        let mut dropped = false;
        for image in &mut self.images {
            if image.as_ref().is_some_and(|image| !keep(image)) {
                *image = None;
                dropped = true;
            }
        }
        if dropped {
            let Self { table, images, .. } = self;
            let lives = |number: u16| images.get(usize::from(number)).is_some_and(Option::is_some);
            table.retain(|place| lives(place.image).then_some(place));
            self.dirty = true;
        }
        self.rank();
    }
}
