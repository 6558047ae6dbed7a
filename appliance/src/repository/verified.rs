//! A disk of a restore point, read at any offset: each chunk is held against the manifest before any of it is given out.
//!
//! What the manifest calls zero is zero, whatever the image holds. The point is leased while it is open. Memory: the chunk
//! and the page of ids that were read last.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::datastore::Point;
use super::verify::check_domain;
use super::{PageIds, RepositoryError};
use crate::block::{BlockRead, CHUNK_BYTES, ChunkId, DomainKey, Extent, Geometry, PAGE_CHUNKS};

/// See the module.
pub struct VerifiedDisk {
    point: Arc<Point>,
    disk: u16,
    key: DomainKey,
    reader: Arc<dyn BlockRead>,
    geometry: Geometry,
    recent: Mutex<Recent>,
}

/// What was read last.
#[derive(Default)]
struct Recent {
    /// Number of the page; none: it is all zero.
    page: Option<(u64, Option<PageIds>)>,
    chunk: Option<u64>,
    data: Vec<u8>,
}

impl VerifiedDisk {
    /// Opens a disk, which holds the point.
    pub fn open(point: Arc<Point>, disk: u16, key: DomainKey) -> Result<Self, RepositoryError> {
        check_domain(&point, &key)?;
        let (reader, geometry) = (point.open_disk(disk)?, point.table(disk)?.geometry());
        if reader.len() != geometry.disk_len {
            return Err(RepositoryError::damaged(
                point.title(),
                "an image's length differs from its manifest",
            ));
        }
        Ok(Self { point, disk, key, reader, geometry, recent: Mutex::default() })
    }

    fn id(&self, recent: &mut Recent, chunk: u64) -> io::Result<ChunkId> {
        let (page, position) = (chunk / PAGE_CHUNKS as u64, (chunk % PAGE_CHUNKS as u64) as usize);
        if recent.page.as_ref().is_none_or(|(last, _)| *last != page) {
            recent.page = Some((page, self.point.page(self.disk, page).map_err(io::Error::other)?));
        }
        let ids = recent.page.as_ref().and_then(|(_, ids)| ids.as_ref());
        Ok(ids.map_or(ChunkId::ZERO, |ids| ids[position]))
    }

    /// Has `recent.data` hold a chunk.
    fn load(&self, recent: &mut Recent, chunk: u64) -> io::Result<()> {
        if recent.chunk == Some(chunk) {
            return Ok(());
        }
        let id = self.id(recent, chunk)?;
        recent.chunk = None;
        recent.data.clear();
        recent.data.resize(self.geometry.chunk_len(chunk), 0);
        if !id.is_zero() {
            let start = self.geometry.chunk_range(chunk).start;
            self.reader.read_at(start, &mut recent.data)?;
            if self.key.chunk_id(&recent.data) != id {
                let what = format!("disk {} of {} at byte {start}", self.disk, self.point.title());
                let why = format!("{what} differs from its manifest");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
        }
        recent.chunk = Some(chunk);
        Ok(())
    }
}

impl BlockRead for VerifiedDisk {
    fn len(&self) -> u64 {
        self.geometry.disk_len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.len());
        if end.is_none() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (chunk, from) = (at / CHUNK_BYTES as u64, (at % CHUNK_BYTES as u64) as usize);
            self.load(&mut recent, chunk)?;
            let part = (recent.data.len() - from).min(buf.len() - done);
            buf[done..done + part].copy_from_slice(&recent.data[from..from + part]);
            done += part;
        }
        Ok(())
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        self.reader.next_data(from)
    }
}
