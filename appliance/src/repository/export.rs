//! Export: a disk of a restore point as a stream of data runs, each chunk re-hashed before it is given out.
//!
//! Zeroes are left out; what the manifest calls zero is zero, whatever the image holds. The point is
//! leased while it runs. Memory: one page of ids and one MiB.

use std::io;
use std::sync::Arc;

use super::RepositoryError;
use super::datastore::Point;
use super::verify::check_domain;
use crate::block::{CHUNK_BYTES, ChunkId, DomainKey, PAGE_CHUNKS};

/// Chunks read at a time: 1 MiB.
const RUN_CHUNKS: usize = 16;

/// Gives a disk's data to `sink` in ascending order, at most 1 MiB at a time, and answers its exact
/// length. Nothing that does not fit the manifest is given out: that ends the export with an error.
pub fn export(
    point: &Arc<Point>,
    disk: u16,
    key: &DomainKey,
    mut sink: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> Result<u64, RepositoryError> {
    check_domain(point, key)?;
    let reader = point.open_disk(disk)?;
    let table = point.table(disk)?;
    let geometry = table.geometry();
    let what = |offset: u64| format!("disk {disk} of {} at byte {offset}", point.title());
    let mut buffer = vec![0; RUN_CHUNKS * CHUNK_BYTES];
    for (page, _) in table.iter() {
        let Some(ids) = point.page(disk, *page)? else { continue };
        let mut at = 0;
        while at < PAGE_CHUNKS {
            let run = ids[at..].iter().take(RUN_CHUNKS).take_while(|id| !id.is_zero()).count();
            if run == 0 {
                at += 1;
                continue;
            }
            let first = page * PAGE_CHUNKS as u64 + at as u64;
            let (start, end) =
                (geometry.chunk_range(first).start, geometry.chunk_range(first + run as u64 - 1).end);
            let data = &mut buffer[..(end - start) as usize];
            reader.read_at(start, data).map_err(|e| RepositoryError::io(what(start), e))?;
            check_run(data, &ids[at..at + run], key).map_err(|n| {
                RepositoryError::damaged(
                    what(start + (n * CHUNK_BYTES) as u64),
                    "its content differs from the manifest",
                )
            })?;
            sink(start, data).map_err(|e| RepositoryError::io("the receiver of the export", e))?;
            at += run;
        }
    }
    Ok(geometry.disk_len)
}

/// The number of the first chunk that does not fit.
fn check_run(data: &[u8], ids: &[ChunkId], key: &DomainKey) -> Result<(), usize> {
    let chunks = data.chunks(CHUNK_BYTES);
    if chunks.len() != ids.len() {
        return Err(chunks.len().min(ids.len()));
    }
    chunks.zip(ids).position(|(chunk, id)| key.chunk_id(chunk) != *id).map_or(Ok(()), Err)
}
