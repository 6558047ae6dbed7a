//! Mending: chunks that a sealed point's image does not hold any more are written into it again.
//!
//! What is written is what the manifest names, held against its id before and after, so it is right for whatever shares
//! the place: an overlay above that has nothing of its own there has the same id there, and a write into a reflinked
//! file is seen by that file alone. So points of the replica that have the same chunk at the same place are looked at
//! too, the oldest first: what is mended in an overlay's chain is whole for all above it, and where the file system
//! shares extents, they share the new one.
//!
//! Owns nothing. While it writes nothing is begun, sealed or removed, and of overlays nobody reads or builds the
//! chains (exclusive lease). Not its job: finding the damage, and the content. Bounds: [`BATCH_CHUNKS`] chunks in memory,
//! [`POINTS_MAX`] points.

use std::collections::HashSet;
use std::sync::Arc;

use vbr_api::{DiskFormat, Moment};

use super::building::lock;
use super::building_disk::Image;
use super::lease::{ExclusiveLease, Scope};
use super::point::Point;
use super::raw::RawDisk;
use super::record::DiskRecord;
use super::replica::{EXCLUSIVE_PATIENCE, Replica};
use crate::block::{BlockRead, ChunkId, DomainKey, Geometry, PAGE_CHUNKS};
use crate::repository::RepositoryError;

/// Chunks in memory at a time.
const BATCH_CHUNKS: usize = 64;
/// Points that are looked at beside the one that is mended, the newest.
const POINTS_MAX: usize = 64;
/// Damaged points that one scheduled verification reads again.
const DAMAGED_MAX: usize = 4;

/// Brings the content of a chunk: disk, chunk, id.
pub type FindChunk<'a> = &'a mut dyn FnMut(u16, u64, ChunkId) -> Option<Vec<u8>>;

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// Chunks of the point that are whole again.
    pub chunks: Vec<u64>,
    /// Places in other points of the replica that were mended with them.
    pub elsewhere: u64,
}

/// A chunk as it should be.
struct Content {
    chunk: u64,
    id: ChunkId,
    data: Vec<u8>,
}

impl Replica {
    /// What a scheduled verification reads: the newest good point, then damaged ones, which may be mended by now.
    pub fn to_verify(&self) -> Vec<Arc<Point>> {
        let points = self.points().into_iter().rev();
        let damaged =
            points.filter(|point| point.bad() && point.unreadable().is_none() && !point.is_retiring());
        self.latest().into_iter().chain(damaged.take(DAMAGED_MAX)).collect()
    }

    /// Writes chunks of a disk again that its image does not hold; durable when this returns. What `find` does not
    /// bring stays as it is.
    pub fn mend(
        &self,
        point: &Arc<Point>,
        disk: u16,
        chunks: &[u64],
        key: &DomainKey,
        find: FindChunk<'_>,
    ) -> Result<Mended, RepositoryError> {
        let mut mended = Mended::default();
        for batch in chunks.chunks(BATCH_CHUNKS) {
            // Found before anything is held: it may lie in another point of this replica.
            let content = contents(point, disk, batch, key, find);
            if !content.is_empty() {
                self.write_again(point, disk, &content, key, &mut mended)?;
            }
        }
        Ok(mended)
    }

    /// Marks other good points that have the same damage, so that no session builds on it and the source is asked for
    /// the chunks again. Answers their ids.
    pub fn mark_alike(&self, point: &Arc<Point>, disk: u16, chunks: &[u64], key: &DomainKey) -> Vec<String> {
        let others =
            self.points().into_iter().rev().filter(|other| other.is_good() && other.id() != point.id());
        let damaged = others.take(POINTS_MAX).filter(|other| {
            let Ok(reader) = other.open_disk(disk) else { return false };
            let geometry = Geometry { disk_len: reader.len() };
            chunks.iter().take(BATCH_CHUNKS).any(|chunk| {
                let id = id_at(other, disk, *chunk).filter(|id| id_at(point, disk, *chunk) == Some(*id));
                id.is_some_and(|id| !holds(&*reader, geometry, *chunk, id, key))
            })
        });
        let marked = damaged.filter(|other| other.mark_verified(false, Moment::now()).is_ok());
        marked.map(|other| other.id().to_string()).collect()
    }

    fn write_again(
        &self,
        point: &Arc<Point>,
        disk: u16,
        content: &[Content],
        key: &DomainKey,
        mended: &mut Mended,
    ) -> Result<(), RepositoryError> {
        let _work = self.work();
        if point.is_retiring() {
            return Err(RepositoryError::Busy { what: point.title(), why: "it is being removed".into() });
        }
        self.check_space()?;
        let _alone = self.alone(point)?;
        let mut others = self.points();
        others.retain(|other| other.unreadable().is_none() && !other.is_retiring());
        let newest = others.len().saturating_sub(POINTS_MAX);
        let chosen = others.into_iter().enumerate();
        let chosen = chosen.filter(|(n, other)| *n >= newest || other.id() == point.id());
        let mut first = None;
        for (_, other) in chosen {
            let written = self.write_in(&other, disk, content, key, &mut first);
            match written {
                Ok((whole, _)) if other.id() == point.id() => mended.chunks.extend(whole),
                Ok((_, written)) => mended.elsewhere += written,
                Err(error) if other.id() == point.id() => return Err(error),
                Err(error) => tracing::info!(%error, "{} could not be mended with another", other.title()),
            }
        }
        Ok(())
    }

    /// Overlay chains are nobody else's meanwhile; raw images need nothing.
    fn alone(&self, point: &Point) -> Result<Option<ExclusiveLease>, RepositoryError> {
        let overlay = |disk: &DiskRecord| disk.image == DiskFormat::Qcow2;
        if !self.shared.all_records().iter().any(|record| record.disks.iter().any(overlay)) {
            return Ok(None);
        }
        let busy = |why: &str| RepositoryError::Busy { what: point.title(), why: why.into() };
        if lock(&self.open_building).upgrade().is_some_and(|open| !open.is_over()) {
            return Err(busy("a session builds upon its replica"));
        }
        let evict = || self.shared.core.caches.evict(self.shared.key);
        let lease = self.shared.leases.exclusive(Scope::Replica, EXCLUSIVE_PATIENCE, evict);
        lease.map(Some).map_err(|_| busy("its replica is being read"))
    }

    /// Into one point, what it has at the same places and does not hold. Answers which chunks it holds now, and how
    /// many of them were written. `first`: the first raw image that was mended, and where.
    fn write_in(
        &self,
        point: &Point,
        disk: u16,
        content: &[Content],
        key: &DomainKey,
        first: &mut Option<(RawDisk, HashSet<u64>)>,
    ) -> Result<(Vec<u64>, u64), RepositoryError> {
        let shared = &self.shared;
        let record = shared.record(point.id())?;
        let record = shared.disk_of(&record, disk)?;
        let geometry = Geometry { disk_len: record.disk_len };
        let here: Vec<&Content> =
            content.iter().filter(|content| id_at(point, disk, content.chunk) == Some(content.id)).collect();
        if here.is_empty() {
            return Ok((Vec::new(), 0));
        }
        let is_whole = |reader: &dyn BlockRead, content: &Content| {
            holds(reader, geometry, content.chunk, content.id, key)
        };
        let reader = shared.open_image(point.id(), disk)?;
        let (whole, bad): (Vec<&Content>, Vec<&Content>) =
            here.into_iter().partition(|content| is_whole(&*reader, content));
        drop(reader);
        let mut whole: Vec<u64> = whole.iter().map(|content| content.chunk).collect();
        if bad.is_empty() {
            return Ok((whole, 0));
        }
        let image = self.open_writable(&shared.point_dir(point.id()), record)?;
        let failed = |error| RepositoryError::io(format!("mending disk {disk} of {}", point.title()), error);
        for content in &bad {
            put(&image, geometry, content, first).map_err(failed)?;
        }
        image.disk().flush().map_err(failed)?;
        if let Image::Raw(raw) = &image {
            raw.forget_cached(); // What is looked at now comes from the disk.
        }
        let mended: HashSet<u64> = bad
            .iter()
            .filter(|content| is_whole(image.disk(), content))
            .map(|content| content.chunk)
            .collect();
        let written = mended.len() as u64;
        whole.extend(&mended);
        match image {
            Image::Raw(raw) if first.is_none() => *first = Some((raw, mended)),
            Image::Raw(_) => {}
            Image::Overlay(overlay) => overlay.close().map_err(|error| failed(error.into()))?,
        }
        Ok((whole, written))
    }
}

/// Writes one chunk, or shares it with an image that was mended before.
fn put(
    image: &Image,
    geometry: Geometry,
    content: &Content,
    first: &Option<(RawDisk, HashSet<u64>)>,
) -> std::io::Result<()> {
    let range = geometry.chunk_range(content.chunk);
    let len = range.end - range.start;
    if content.id.is_zero() {
        return image.disk().zero_at(range.start, len);
    }
    if let (Image::Raw(raw), Some((from, places))) = (image, first)
        && places.contains(&content.chunk)
        && raw.copy_from(from, range.start, len).is_ok()
    {
        return Ok(());
    }
    image.disk().write_at(range.start, &content.data)
}

/// What belongs at these places, as far as it is found.
fn contents(point: &Point, disk: u16, chunks: &[u64], key: &DomainKey, find: FindChunk<'_>) -> Vec<Content> {
    let content = |chunk: &u64| {
        let id = id_at(point, disk, *chunk)?;
        let data = if id.is_zero() { Vec::new() } else { find(disk, *chunk, id)? };
        (key.chunk_id(&data) == id).then_some(Content { chunk: *chunk, id, data })
    };
    chunks.iter().filter_map(content).collect()
}

/// The id that the manifest names; none where it cannot be read, or the disk is shorter.
fn id_at(point: &Point, disk: u16, chunk: u64) -> Option<ChunkId> {
    let disk_len = point.table_len(disk).ok()?;
    if chunk >= (Geometry { disk_len }).chunks() {
        return None;
    }
    let page = point.page(disk, chunk / PAGE_CHUNKS as u64).ok()?;
    page.map_or(Some(ChunkId::ZERO), |ids| ids.get((chunk % PAGE_CHUNKS as u64) as usize).copied())
}

fn holds(reader: &dyn BlockRead, geometry: Geometry, chunk: u64, id: ChunkId, key: &DomainKey) -> bool {
    let mut data = vec![0; geometry.chunk_len(chunk)];
    reader.read_at(geometry.chunk_range(chunk).start, &mut data).is_ok() && key.chunk_id(&data) == id
}
