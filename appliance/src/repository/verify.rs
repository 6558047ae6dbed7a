//! Verification: every chunk of a restore point is read and held against its manifest.
//!
//! Reads only; the point is leased while it runs, and its result is noted in the point's state. Zeroes
//! are checked too: where the manifest says nothing, the disk must hold nothing. Memory: one page of
//! ids and one MiB.

use std::sync::Arc;
use std::time::Instant;

use vbr_api::{BadChunk, VerifyReport};

use super::RepositoryError;
use super::datastore::Point;
use super::manifest::{PageTable, blank_page};
use crate::block::{BlockRead, CHUNK_BYTES, ChunkId, DomainKey, Geometry, PAGE_BYTES, PAGE_CHUNKS, is_zero};

/// Bad places that are listed; all are counted.
const BAD_LISTED_MAX: usize = 100;

/// Verifies a point and notes the result. Damage is in the report; an error means that it could not be
/// carried out.
pub fn verify(point: &Arc<Point>, key: &DomainKey) -> Result<VerifyReport, RepositoryError> {
    let report = verify_paced(point, key, &mut |_| true)?;
    report.ok_or_else(|| RepositoryError::invalid(point.title(), "the verification was ended"))
}

/// The same at the caller's pace, who hears of bytes read; where it answers false the verification ends, without a
/// result.
pub fn verify_paced(
    point: &Arc<Point>,
    key: &DomainKey,
    pace: &mut dyn FnMut(u64) -> bool,
) -> Result<Option<VerifyReport>, RepositoryError> {
    check_domain(point, key)?;
    let started = Instant::now();
    let report = VerifyReport {
        point: point.id().to_string(),
        ok: false,
        read_bytes: 0,
        chunks: 0,
        bad_chunks: 0,
        bad: Vec::new(),
        duration_ms: 0,
    };
    let mut walk = Walk { report, key, pace };
    match point.disks() {
        Err(error) => note_bad(&mut walk.report, 0, 0, error.to_string()),
        Ok(disks) => {
            for disk in 0..disks.len() as u16 {
                match verify_disk(point, disk, &mut walk) {
                    // Somebody removes it meanwhile, or a tool is missing: that says nothing of the data.
                    Err(error @ (RepositoryError::Busy { .. } | RepositoryError::Tool { .. })) => {
                        return Err(error);
                    }
                    Err(error) => note_bad(&mut walk.report, disk, 0, error.to_string()),
                    Ok(true) => {}
                    Ok(false) => return Ok(None),
                }
            }
        }
    }
    let mut report = walk.report;
    report.ok = report.bad_chunks == 0;
    report.duration_ms = started.elapsed().as_millis() as u64;
    if point.unreadable().is_none() {
        point.mark_verified(report.ok, jiff::Timestamp::now())?;
    }
    Ok(Some(report))
}

/// A verification under way.
struct Walk<'a> {
    report: VerifyReport,
    key: &'a DomainKey,
    pace: &'a mut dyn FnMut(u64) -> bool,
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
    let (report, key) = (&mut walk.report, walk.key);
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
            report.chunks += 1;
            report.read_bytes += chunk.len() as u64;
            if !whole && let Err(error) = reader.read_at(offset, chunk) {
                note_bad(report, disk, offset, format!("it cannot be read: {error}"));
                continue;
            }
            let id = &ids[from + n];
            let fits = if id.is_zero() { is_zero(chunk) } else { key.chunk_id(chunk) == *id };
            if !fits {
                note_bad(report, disk, offset, "its content differs from the manifest".into());
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
