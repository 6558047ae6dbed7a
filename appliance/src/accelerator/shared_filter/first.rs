//! Which branch brought a chunk first? As long as it is remembered, a second branch shows.
//!
//! Words of 32 bits of fingerprint and 32 of branch, in buckets of eight, newest first (see
//! [`Table`]): the word that was touched longest ago goes. A chunk that is taken for another
//! (once in 500 million) is called shared too early, which costs a question.
//! Bounds: its table.

use crate::accelerator::block_index::table::{BUCKET_BYTES, Bucket, Table};
use crate::block::ShortId;

/// What is known of a chunk when a branch refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Not remembered; now it is.
    New,
    /// By the same branch.
    Same,
    /// By another; no longer remembered here.
    Other,
}

pub(super) struct FirstBranches {
    pub table: Table,
    pub buckets: usize,
}

impl FirstBranches {
    pub fn new(memory_bytes: usize) -> Self {
        let buckets = (memory_bytes.saturating_sub(BUCKET_BYTES) / BUCKET_BYTES).clamp(1, u32::MAX as usize);
        Self { table: Table::new(buckets), buckets }
    }

    pub fn note(&mut self, id: ShortId, branch: u32) -> Seen {
        let [.., a, b, c, d, e, f, g, h] = id.0;
        let place = u64::from(u32::from_be_bytes([a, b, c, d]));
        let number = (place.wrapping_mul(self.buckets as u64) >> 32) as usize;
        let fingerprint = u64::from(u32::from_be_bytes([e, f, g, h]).max(1));
        let word = fingerprint << 32 | u64::from(branch);
        let Some(bucket) = self.table.bucket(number) else { return Seen::New };
        let of = |wanted: &dyn Fn(u64) -> bool, bucket: &Bucket| bucket.iter().position(|word| wanted(*word));
        match of(&|word| word >> 32 == fingerprint, bucket) {
            Some(at) if bucket[at] == word => {
                self.table.put(number, at, word);
                Seen::Same
            }
            Some(at) => {
                self.table.remove(number, at);
                Seen::Other
            }
            None => {
                let at = of(&|word| word == 0, bucket).unwrap_or(bucket.len() - 1);
                self.table.put(number, at, word);
                Seen::New
            }
        }
    }
}
