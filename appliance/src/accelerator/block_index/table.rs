//! Buckets of eight words, one cache line each: memory of the block index and of the table of first
//! branches. Knows nothing of what a word means but that 0 is none.
//!
//! Words lie newest first without gaps, so a word's position is its age and no clock is stored. The
//! memory is asked for as zeroes, which the system hands out page by page as buckets come into use.
//! Owned and locked by the caller. Bounds: fixed at [`Table::new`].

/// Words in a bucket.
pub(in crate::accelerator) const BUCKET_WORDS: usize = 8;
/// Bytes in a bucket: a cache line.
pub(in crate::accelerator) const BUCKET_BYTES: usize = 64;
/// Buckets that are written to a file at a time: at most 1 MiB.
pub(in crate::accelerator) const PIECE_BUCKETS: usize = 16 * 1024;

/// Eight words, newest first.
pub(in crate::accelerator) type Bucket = [u64; BUCKET_WORDS];

pub(in crate::accelerator) struct Table {
    words: Vec<u64>,
    /// Words before the first whole cache line.
    skip: usize,
    buckets: usize,
    used: u64,
}

impl Table {
    /// An empty table. Takes 56 bytes beyond its buckets, to lie on cache lines.
    pub fn new(buckets: usize) -> Self {
        let words = vec![0; buckets.saturating_mul(BUCKET_WORDS).saturating_add(BUCKET_WORDS - 1)];
        let skip = words.as_ptr().align_offset(BUCKET_BYTES).min(BUCKET_WORDS - 1);
        Self { words, skip, buckets, used: 0 }
    }

    /// Words in use.
    pub fn used(&self) -> u64 {
        self.used
    }

    pub fn memory_bytes(&self) -> u64 {
        self.words.len() as u64 * 8
    }

    /// A bucket to read; none is there past the end.
    pub fn bucket(&self, number: usize) -> Option<&Bucket> {
        let start = number.checked_mul(BUCKET_WORDS)?.checked_add(self.skip)?;
        self.words.get(start..)?.first_chunk()
    }

    /// A bucket to mark words in. Words come and go only by [`Table::put`] and [`Table::remove`].
    pub fn bucket_mut(&mut self, number: usize) -> Option<&mut Bucket> {
        let start = number.checked_mul(BUCKET_WORDS)?.checked_add(self.skip)?;
        self.words.get_mut(start..)?.first_chunk_mut()
    }

    /// Writes a word as the newest, in place of the one at `at` (which may be a free one).
    pub fn put(&mut self, number: usize, at: usize, word: u64) {
        let Some(part) = self.bucket_mut(number).and_then(|bucket| bucket.get_mut(..=at)) else { return };
        part.rotate_right(1);
        let old = std::mem::replace(&mut part[0], word);
        self.used += u64::from(old == 0);
    }

    /// Takes a word out.
    pub fn remove(&mut self, number: usize, at: usize) {
        let Some(part) = self.bucket_mut(number).and_then(|bucket| bucket.get_mut(at..)) else { return };
        let Some(word) = part.first_mut() else { return };
        let old = std::mem::take(word);
        part.rotate_left(1);
        self.used -= u64::from(old != 0);
    }

    /// Appends some buckets in the form of the file: for each a byte with the number of its words,
    /// then the words, big endian.
    pub fn encode(&self, from: usize, out: &mut Vec<u8>) {
        for number in from..from.saturating_add(PIECE_BUCKETS).min(self.buckets) {
            let Some(bucket) = self.bucket(number) else { return };
            let words = bucket.iter().take_while(|word| **word != 0);
            out.push(words.clone().count() as u8);
            words.for_each(|word| out.extend_from_slice(&word.to_be_bytes()));
        }
    }

    /// Fills empty buckets from what [`Table::encode`] wrote; words that `keep` refuses are left out.
    /// `None` where the bytes are not that.
    pub fn decode(&mut self, from: usize, mut bytes: &[u8], mut keep: impl FnMut(u64) -> bool) -> Option<()> {
        for number in from..from.saturating_add(PIECE_BUCKETS).min(self.buckets) {
            let (count, rest) = bytes.split_first()?;
            let (words, rest) = rest.split_at_checked(usize::from(*count).checked_mul(8)?)?;
            bytes = rest;
            let words = words.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
            let mut free = self.bucket_mut(number)?.iter_mut();
            let mut used = 0;
            for word in words.filter(|word| *word != 0 && keep(*word)) {
                *free.next()? = word;
                used += 1;
            }
            self.used += used;
        }
        bytes.is_empty().then_some(())
    }
}
