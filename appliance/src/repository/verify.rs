//! Verification: every chunk of a restore point is read and held against its manifest.
//!
//! The point is leased while it runs, and its result is noted in the point's state. Zeroes are checked too: where the
//! manifest says nothing, the disk must hold nothing. An order reads only; on a schedule, chunks that are found damaged
//! are mended where their content can be had ([`verify_and_mend`]). Memory: one page of ids, one MiB, and
//! [`PLACES_MAX`] places.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use vbr_api::{BadChunk, VerifyReport};

use super::RepositoryError;
use super::datastore::{FindChunk, Mended, Point, Replica};
use super::manifest::{PageTable, blank_page};
use crate::block::{BlockRead, CHUNK_BYTES, ChunkId, DomainKey, Geometry, PAGE_BYTES, PAGE_CHUNKS, is_zero};

/// Bad places that are listed; all are counted.
const BAD_LISTED_MAX: usize = 100;

/// Damaged chunks of which the places are remembered: 256 MiB of them.
const PLACES_MAX: usize = 4096;

/// Verifies a point and notes the result. Damage is in the report; an error means that it could not be
/// carried out.
pub fn verify(point: &Arc<Point>, key: &DomainKey) -> Result<VerifyReport, RepositoryError> {
    let (started, mut pace) = (Instant::now(), |_: u64| true);
    let mut walk = Walk::new(point, key, &mut pace)?;
    if !walk.point(point)? {
        return Err(RepositoryError::invalid(point.title(), "the verification was ended"));
    }
    note(walk.report, point, started, 0)
}

/// What a scheduled verification came to.
pub struct Outcome {
    /// What is left of the damage.
    pub report: VerifyReport,
    /// Chunks of the point that were damaged and are whole again.
    pub mended: u64,
    /// Places in other points of its replica that were mended with them.
    pub elsewhere: u64,
    /// Other points that have the same damage, and are marked for it.
    pub alike: Vec<String>,
    /// It could not be mended now, because the replica is in use.
    pub postponed: bool,
}

/// The same at the caller's pace, who hears of bytes read; where it answers false the verification ends, without a
/// result. Damaged chunks that `find` brings are written again.
pub fn verify_and_mend(
    replica: &Replica,
    point: &Arc<Point>,
    key: &DomainKey,
    pace: &mut dyn FnMut(u64) -> bool,
    find: FindChunk<'_>,
) -> Result<Option<Outcome>, RepositoryError> {
    let (mut walk, started) = (Walk::new(point, key, pace)?, Instant::now());
    if !walk.point(point)? {
        return Ok(None);
    }
    let (report, places) = (walk.report, walk.places);
    let mut outcome = Outcome { report, mended: 0, elsewhere: 0, alike: Vec::new(), postponed: false };
    for (disk, chunks) in &places {
        let done = replica.mend(point, *disk, chunks, key, find).unwrap_or_else(|error| {
            tracing::warn!(%error, disk, "{} is damaged and could not be mended now", point.title());
            outcome.postponed |= error.is_passing();
            Mended::default()
        });
        let whole: HashSet<u64> = done.chunks.into_iter().collect();
        let is_whole =
            |bad: &BadChunk| bad.disk == *disk && whole.contains(&(bad.offset / CHUNK_BYTES as u64));
        outcome.report.bad.retain(|bad| !is_whole(bad));
        outcome.report.bad_chunks = outcome.report.bad_chunks.saturating_sub(whole.len() as u64);
        outcome.mended += whole.len() as u64;
        outcome.elsewhere += done.elsewhere;
        let left: Vec<u64> = chunks.iter().filter(|chunk| !whole.contains(*chunk)).copied().collect();
        if !left.is_empty() && !outcome.postponed {
            outcome.alike.extend(replica.mark_alike(point, *disk, &left, key));
        }
    }
    outcome.report = note(outcome.report, point, started, outcome.mended)?;
    Ok(Some(outcome))
}

/// Completes the report, and keeps its result with the point.
fn note(
    mut report: VerifyReport,
    point: &Point,
    started: Instant,
    mended: u64,
) -> Result<VerifyReport, RepositoryError> {
    report.ok = report.bad_chunks == 0;
    report.duration_ms = started.elapsed().as_millis() as u64;
    if point.unreadable().is_none() {
        point.mark_mended(report.ok, mended, jiff::Timestamp::now())?;
    }
    Ok(report)
}

/// A verification under way.
struct Walk<'a> {
    report: VerifyReport,
    /// Of each disk, the chunks that were found damaged.
    places: BTreeMap<u16, Vec<u64>>,
    key: &'a DomainKey,
    pace: &'a mut dyn FnMut(u64) -> bool,
}

impl<'a> Walk<'a> {
    fn new(
        point: &Point,
        key: &'a DomainKey,
        pace: &'a mut dyn FnMut(u64) -> bool,
    ) -> Result<Self, RepositoryError> {
        check_domain(point, key)?;
        let report = VerifyReport {
            point: point.id().to_string(),
            ok: false,
            read_bytes: 0,
            chunks: 0,
            bad_chunks: 0,
            bad: Vec::new(),
            duration_ms: 0,
        };
        Ok(Self { report, places: BTreeMap::new(), key, pace })
    }

    /// All disks of a point; false where it was ended.
    fn point(&mut self, point: &Arc<Point>) -> Result<bool, RepositoryError> {
        let disks = match point.disks() {
            Ok(disks) => disks.len() as u16,
            Err(error) => {
                note_bad(&mut self.report, 0, 0, error.to_string());
                0
            }
        };
        for disk in 0..disks {
            match verify_disk(point, disk, self) {
                // Somebody removes it meanwhile, or a tool is missing: that says nothing of the data.
                Err(error @ (RepositoryError::Busy { .. } | RepositoryError::Tool { .. })) => {
                    return Err(error);
                }
                Err(error) => note_bad(&mut self.report, disk, 0, error.to_string()),
                Ok(true) => {}
                Ok(false) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn damaged(&mut self, disk: u16, offset: u64, why: String) {
        note_bad(&mut self.report, disk, offset, why);
        if self.places.values().map(Vec::len).sum::<usize>() < PLACES_MAX {
            self.places.entry(disk).or_default().push(offset / CHUNK_BYTES as u64);
        }
    }
}

/// Refuses a key that is not the one the point was made with.
pub(super) fn check_domain(point: &Point, key: &DomainKey) -> Result<(), RepositoryError> {
    if key.tag() == point.domain_tag() {
        return Ok(());
    }
    Err(RepositoryError::invalid(point.title(), "it was made in another dedup domain than the key given"))
}

/// False where it was ended.
fn verify_disk(point: &Point, disk: u16, walk: &mut Walk<'_>) -> Result<bool, RepositoryError> {
    let reader = point.open_disk(disk)?;
    let table = point.table(disk)?;
    let geometry = table.geometry();
    if reader.len() != geometry.disk_len {
        return Err(RepositoryError::damaged(point.title(), "an image's length differs from its manifest"));
    }
    let mut next = 0;
    while let Some(page) = next_page(&*reader, &table, next)
        .map_err(|e| RepositoryError::io(format!("disk {disk} of {}", point.title()), e))?
    {
        next = page + 1;
        let ids = match point.page(disk, page) {
            Ok(ids) => ids.unwrap_or_else(blank_page),
            Err(error) => {
                note_bad(&mut walk.report, disk, page * PAGE_BYTES, error.to_string());
                continue;
            }
        };
        if !verify_page(&*reader, geometry, (disk, page), &ids, walk) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The first page from `from` on that the manifest names or in which the disk has data.
fn next_page(reader: &dyn BlockRead, table: &PageTable, from: u64) -> std::io::Result<Option<u64>> {
    let start = from.saturating_mul(PAGE_BYTES);
    if start >= table.disk_len() {
        return Ok(None);
    }
    let by_table = table.range(from).next().map(|(page, _)| *page);
    if by_table == Some(from) {
        return Ok(by_table);
    }
    let by_data = reader.next_data(start)?.map(|extent| extent.offset / PAGE_BYTES);
    Ok(by_table.into_iter().chain(by_data).min())
}

/// False where it was ended.
fn verify_page(
    reader: &dyn BlockRead,
    geometry: Geometry,
    (disk, page): (u16, u64),
    ids: &[ChunkId; PAGE_CHUNKS],
    walk: &mut Walk<'_>,
) -> bool {
    const PIECE: usize = 16;
    let count = geometry.page_chunks(page);
    let first = page * PAGE_CHUNKS as u64;
    let mut buffer = vec![0; PIECE * CHUNK_BYTES];
    for from in (0..count).step_by(PIECE) {
        let to = (from + PIECE).min(count);
        let start = geometry.chunk_range(first + from as u64).start;
        let end = geometry.chunk_range(first + to as u64 - 1).end;
        let data = &mut buffer[..(end - start) as usize];
        // A piece that cannot be read is read chunk by chunk, to find the bad ones.
        let whole = reader.read_at(start, data).is_ok();
        for (n, chunk) in data.chunks_mut(CHUNK_BYTES).enumerate() {
            let offset = start + (n * CHUNK_BYTES) as u64;
            walk.report.chunks += 1;
            walk.report.read_bytes += chunk.len() as u64;
            if !whole && let Err(error) = reader.read_at(offset, chunk) {
                walk.damaged(disk, offset, format!("it cannot be read: {error}"));
                continue;
            }
            let id = &ids[from + n];
            let fits = if id.is_zero() { is_zero(chunk) } else { walk.key.chunk_id(chunk) == *id };
            if !fits {
                walk.damaged(disk, offset, "its content differs from the manifest".into());
            }
        }
        if !(walk.pace)(end - start) {
            return false;
        }
    }
    true
}

fn note_bad(report: &mut VerifyReport, disk: u16, offset: u64, why: String) {
    report.bad_chunks += 1;
    if report.bad.len() < BAD_LISTED_MAX {
        report.bad.push(BadChunk { disk, offset, why });
    }
}
