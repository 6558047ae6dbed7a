//! A disk whose free extents read as zeroes.

use std::io;
use std::sync::Arc;

use crate::block::{BlockRead, Extent};

/// A disk seen through the mask of its free space. Owns nothing but the two shared parts; holds no buffer.
pub struct MaskedDisk {
    inner: Arc<dyn BlockRead>,
    free: Arc<[Extent]>,
}

impl MaskedDisk {
    /// Masks `free` (an answer of [`super::map`]: ascending and disjoint) on a disk.
    pub fn new(inner: Arc<dyn BlockRead>, free: Arc<[Extent]>) -> Self {
        Self { inner, free }
    }

    /// The mask.
    pub fn free(&self) -> &Arc<[Extent]> {
        &self.free
    }

    /// The first free extent that ends after `offset`.
    fn free_after(&self, offset: u64) -> Option<Extent> {
        self.free.get(self.free.partition_point(|extent| extent.end() <= offset)).copied()
    }
}

impl BlockRead for MaskedDisk {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.len());
        let Some(end) = end else {
            let why = format!("{} bytes at {offset} of a disk of {} bytes", buf.len(), self.len());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        };
        let (mut at, mut rest) = (offset, buf);
        while at < end {
            let (is_free, until) = match self.free_after(at) {
                Some(free) if free.offset <= at => (true, free.end().min(end)),
                Some(free) => (false, free.offset.min(end)),
                None => (false, end),
            };
            let (now, later) = rest.split_at_mut((until - at) as usize);
            if is_free {
                now.fill(0);
            } else {
                self.inner.read_at(at, now)?;
            }
            (at, rest) = (until, later);
        }
        Ok(())
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        let mut at = from;
        // Each turn passes a free extent or answers, so there are at most as many as extents.
        loop {
            if at >= self.len() {
                return Ok(None);
            }
            let Some(data) = self.inner.next_data(at)? else { return Ok(None) };
            let start = data.offset.max(at);
            let end = data.end();
            if end <= start {
                return Ok(None);
            }
            match self.free_after(start) {
                Some(free) if free.offset <= start => at = free.end(),
                Some(free) => return Ok(Some(Extent { offset: start, len: free.offset.min(end) - start })),
                None => return Ok(Some(Extent { offset: start, len: end - start })),
            }
        }
    }
}
