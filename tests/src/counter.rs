//! Our own counter: what a plain, honest method would send, computed on the same images.
//!
//! Fixed 64 KiB chunks, each sent once in the whole sequence (BLAKE3), the unseen ones compressed by
//! zstd-3 in 4 MiB frames, 16 bytes of recipe a new chunk. Beside it, what two simpler methods send:
//! zstd-3 of all data, and zstd-3 of the blocks that changed since the previous version.
//! Zero chunks cost nothing in any of them. Bounds: 32 bytes a chunk seen.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::disk::{end, next_data};

const CHUNK: usize = 64 * 1024;
const FRAME: usize = 4 * 1024 * 1024;
const RECIPE_BYTES_PER_CHUNK: u64 = 16;

/// What one image would cost.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Count {
    /// Length of the disk.
    pub virtual_bytes: u64,
    /// Chunks that are not all zero, in bytes.
    pub data_bytes: u64,
    /// Of these, what differs from the previous version at the same place (all of it without one).
    pub changed_bytes: u64,
    /// Of these, what the sequence has not had yet.
    pub unseen_bytes: u64,
    /// Unseen chunks compressed, and 16 bytes each.
    pub counter_bytes: u64,
    /// zstd-3 of all data.
    pub zstd_all_bytes: u64,
    /// zstd-3 of the changed chunks.
    pub zstd_changed_bytes: u64,
}

/// The counter's memory over a sequence of images.
#[derive(Default)]
pub struct Counter {
    seen: HashSet<[u8; 32]>,
}

impl Counter {
    /// Counts an image after all those before it. `previous` is the same disk's older version.
    pub fn count(&mut self, image: &Path, previous: Option<&Path>) -> Result<Count> {
        let file = File::open(image).with_context(|| format!("opening {}", image.display()))?;
        let older = previous.map(File::open).transpose()?;
        let older_len = older.as_ref().map(end).transpose()?.unwrap_or(0);
        let len = end(&file)?;
        let mut count = Count { virtual_bytes: len, ..Count::default() };
        let (mut unseen, mut all, mut changed) = (Frames::new()?, Frames::new()?, Frames::new()?);
        let (mut chunk, mut before) = (vec![0u8; CHUNK], vec![0u8; CHUNK]);
        let mut at = 0;
        while at < len {
            at = next_data(&file, at, len)? / CHUNK as u64 * CHUNK as u64;
            if at >= len {
                break;
            }
            let take = (len - at).min(CHUNK as u64) as usize;
            file.read_exact_at(&mut chunk[..take], at)?;
            let data = &chunk[..take];
            if data.iter().any(|byte| *byte != 0) {
                count.data_bytes += take as u64;
                all.push(data)?;
                if !same_at(older.as_ref(), older_len, at, data, &mut before[..take])? {
                    count.changed_bytes += take as u64;
                    changed.push(data)?;
                    if self.seen.insert(*blake3::hash(data).as_bytes()) {
                        count.unseen_bytes += take as u64;
                        count.counter_bytes += RECIPE_BYTES_PER_CHUNK;
                        unseen.push(data)?;
                    }
                }
            }
            at += CHUNK as u64;
        }
        count.counter_bytes += unseen.finish()?;
        count.zstd_all_bytes = all.finish()?;
        count.zstd_changed_bytes = changed.finish()?;
        Ok(count)
    }
}

fn same_at(older: Option<&File>, older_len: u64, at: u64, data: &[u8], buffer: &mut [u8]) -> Result<bool> {
    match older {
        Some(file) if at + data.len() as u64 <= older_len => {
            file.read_exact_at(buffer, at)?;
            Ok(buffer == data)
        }
        _ => Ok(false),
    }
}

/// zstd-3 frames of 4 MiB; only their length is kept.
struct Frames {
    plain: Vec<u8>,
    compressor: zstd::bulk::Compressor<'static>,
    bytes: u64,
}

impl Frames {
    fn new() -> Result<Self> {
        Ok(Self { plain: Vec::with_capacity(FRAME), compressor: zstd::bulk::Compressor::new(3)?, bytes: 0 })
    }

    fn push(&mut self, data: &[u8]) -> Result<()> {
        if self.plain.len() + data.len() > FRAME {
            self.flush()?;
        }
        self.plain.extend_from_slice(data);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if !self.plain.is_empty() {
            self.bytes += self.compressor.compress(&self.plain)?.len() as u64;
            self.plain.clear();
        }
        Ok(())
    }

    fn finish(mut self) -> Result<u64> {
        self.flush()?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{MIB, copy, random, set_len, write_random};

    #[test]
    fn each_chunk_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        random(&a, 2 * MIB, 1).unwrap();
        set_len(&a, 8 * MIB).unwrap();
        copy(&a, &b).unwrap();
        write_random(&b, 4 * MIB, 65_536, 9).unwrap();
        let mut counter = Counter::default();
        let first = counter.count(&a, None).unwrap();
        assert_eq!((first.data_bytes, first.unseen_bytes), (2 * MIB, 2 * MIB));
        assert!(first.counter_bytes > 2 * MIB && first.counter_bytes < 2 * MIB + 4096);
        let second = counter.count(&b, Some(&a)).unwrap();
        assert_eq!((second.changed_bytes, second.unseen_bytes), (65_536, 65_536));
        assert_eq!(counter.count(&b, None).unwrap().unseen_bytes, 0);
    }
}
