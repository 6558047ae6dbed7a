//! Batches: needed chunks packed into one zstd frame with what both sites hold as its prefix, and back.
//!
//! Pure. One mechanism for literals and deltas: bytes that resemble a base become matches into the
//! prefix. Window, hash and chain logs are always set: the defaults of level 3 lose most of the gain with
//! a prefix larger than the batch (measured: 121 MiB instead of 37 on a day of a database). What does not
//! shrink is found by a probe of the batch, and goes raw.

use std::time::Instant;

use bytes::Bytes;
use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd::zstd_safe::{CCtx, CParameter, DCtx, DParameter, ErrorCode, InBuffer, OutBuffer, get_error_name};

use super::branches;
use super::effort::Effort;
use crate::block::CHUNK_BYTES;
use crate::limits::{BATCH_ENTRIES_MAX, BATCH_PLAIN_BYTES_MAX, BATCH_STORED_BYTES_MAX};
use crate::wire::message::{Batch, BatchHeader, Codec, Entry, PrefixRun};

/// Pieces of a batch that the probe looks at.
const PROBE_PIECES: usize = 16;
/// A zstd block.
const BLOCK_BYTES: usize = 128 * 1024;
/// Bytes in a piece.
const PROBE_PIECE_BYTES: usize = 4096;

/// Pieces of [`SIZING_PIECE_BYTES`] on which harder work is tried. (Twice or four times as many tell no more.)
const TRIAL_PIECES: usize = 8;
/// Bytes of each chunk that are compressed to see how large the batch will be.
const SIZING_PIECE_BYTES: usize = 2048;
/// What those pieces may come to, in sum: what shrinks at all came out at 40 to 88 % of it.
const SIZED_BYTES_MAX: usize = 2 * 1024 * 1024 - CHUNK_BYTES;

/// What goes wrong with a batch.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The encoder or decoder failed.
    #[error("zstd: {0}")]
    Codec(&'static str),
    /// The decoded data has another length than the recipe says.
    #[error("batch holds {found} bytes of plain data, its recipe says {expected}")]
    Length {
        /// By the recipe.
        expected: usize,
        /// In the payload.
        found: usize,
    },
}

impl From<ErrorCode> for BatchError {
    fn from(code: ErrorCode) -> Self {
        Self::Codec(get_error_name(code))
    }
}

/// A reference prefix: where it comes from, and its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    /// In order.
    pub runs: Vec<PrefixRun>,
    /// Concatenated.
    pub bytes: Vec<u8>,
}

/// How hard a batch is worked on.
pub struct Work {
    effort: Effort,
    limit: Option<(Instant, Effort)>,
    late: Option<f64>,
}

impl Work {
    /// As long as it takes.
    pub fn of(effort: &Effort) -> Self {
        Self { effort: *effort, limit: None, late: None }
    }

    /// Until then; what is not done is begun again with `instead`.
    pub fn until(effort: &Effort, until: Instant, instead: &Effort) -> Self {
        Self { limit: Some((until, *instead)), ..Self::of(effort) }
    }

    /// The part that was done when the time was up, if it was.
    pub fn late(&self) -> Option<f64> {
        self.late
    }

    fn compress(&mut self, plain: &[u8], prefix: &[u8]) -> Result<Vec<u8>, BatchError> {
        let Some((until, instead)) = &self.limit else { return compress(plain, prefix, &self.effort) };
        match compress_until(plain, prefix, &self.effort, *until)? {
            Ok(stored) => Ok(stored),
            Err(part) => {
                self.late = Some(part);
                compress(plain, prefix, instead)
            }
        }
    }
}

/// Gathers the chunks of one batch.
#[derive(Default)]
pub struct BatchBuilder {
    entries: Vec<Entry>,
    plain: Vec<u8>,
    /// Where the plain bytes of each entry end.
    ends: Vec<usize>,
    /// Stored bytes to expect, from a piece of each chunk.
    expected: usize,
}

impl BatchBuilder {
    /// Adds a chunk's bytes.
    pub fn literal(&mut self, disk: u16, chunk: u64, data: &[u8]) {
        self.plain.extend_from_slice(data);
        self.entries.push(Entry::Literal { disk, chunk });
        self.ends.push(self.plain.len());
        let piece =
            data.get(data.len() / 2..).map_or(data, |rest| rest.get(..SIZING_PIECE_BYTES).unwrap_or(rest));
        let stored = compress(piece, &[], &Effort::PROBE).map_or(piece.len(), |stored| stored.len());
        self.expected += data.len() * stored.min(piece.len()) / piece.len().max(1);
    }

    /// Adds a reference to a literal sent earlier.
    pub fn copy(&mut self, disk: u16, chunk: u64, id: crate::block::ShortId) {
        self.entries.push(Entry::Copy { disk, chunk, id });
        self.ends.push(self.plain.len());
    }

    /// Stored bytes to expect without bases, from a piece of each chunk.
    pub fn expected_bytes(&self) -> usize {
        self.expected
    }

    /// What pieces of it come to at the first tier that has to be worth its time, against the tier before; 1 where
    /// nothing tells. Some 10 ms.
    pub fn trial(&self) -> f64 {
        let step = (self.plain.len() / TRIAL_PIECES).max(1);
        let pieces = self.plain.chunks(step).filter_map(|part| part.get(..SIZING_PIECE_BYTES));
        let sample: Vec<u8> = pieces.take(TRIAL_PIECES).flatten().copied().collect();
        let [less, more] =
            Effort::TRIALS.map(|effort| compress(&sample, &[], &effort).map_or(0, |stored| stored.len()));
        if less == 0 || more >= less { 1.0 } else { more as f64 / less as f64 }
    }

    /// Plain bytes so far.
    pub fn plain_bytes(&self) -> usize {
        self.plain.len()
    }

    /// The bytes of the literals so far.
    pub fn plain(&self) -> &[u8] {
        &self.plain
    }

    /// True where the next chunk belongs into another batch of at most this many plain bytes, or of about
    /// [`BATCH_STORED_BYTES_MAX`] stored ones as far as pieces of the chunks tell.
    pub fn is_full(&self, plain_bytes: usize) -> bool {
        self.plain.len() + CHUNK_BYTES > plain_bytes.min(BATCH_PLAIN_BYTES_MAX)
            || self.expected >= SIZED_BYTES_MAX
            || self.entries.len() >= BATCH_ENTRIES_MAX
    }

    /// The nth entry, a literal, shares nothing with what the target has: if it is code, it goes as such.
    pub fn as_code(&mut self, nth: usize) {
        let from = nth.checked_sub(1).map_or(0, |before| self.ends[before]);
        if let Entry::Literal { disk, chunk } = self.entries[nth]
            && branches::looks_like_code(&self.plain[from..self.ends[nth]])
        {
            self.entries[nth] = Entry::Code { disk, chunk };
        }
    }

    /// Closes the batch. What came out larger than a message may be (content that looked as if it shrank)
    /// is cut into smaller ones, without bases.
    pub fn finish(mut self, prefix: Prefix, work: &mut Work) -> Result<Vec<Batch>, BatchError> {
        let mut from = 0;
        for (entry, end) in self.entries.iter().zip(&self.ends) {
            if let Entry::Code { chunk, .. } = entry {
                branches::add_places(&mut self.plain[from..*end], chunk.wrapping_mul(CHUNK_BYTES as u64));
            }
            from = *end;
        }
        let whole = pack(&self.entries, &self.plain, prefix, work)?;
        if whole.payload.len() <= BATCH_STORED_BYTES_MAX {
            return Ok(vec![whole]);
        }
        let (mut batches, mut first, mut from) = (Vec::new(), 0, 0);
        for (n, end) in self.ends.iter().enumerate() {
            let last = n + 1 == self.ends.len();
            if last || end - from + CHUNK_BYTES > BATCH_STORED_BYTES_MAX / 2 {
                let (entries, plain) = (self.entries.get(first..=n), self.plain.get(from..*end));
                let part =
                    pack(entries.unwrap_or_default(), plain.unwrap_or_default(), Prefix::default(), work)?;
                batches.push(part);
                (first, from) = (n + 1, *end);
            }
        }
        Ok(batches)
    }
}

fn pack(entries: &[Entry], plain: &[u8], prefix: Prefix, work: &mut Work) -> Result<Batch, BatchError> {
    let plain_len = plain.len() as u32;
    let mut header =
        BatchHeader { entries: entries.to_vec(), prefix: Vec::new(), codec: Codec::Raw, plain_len };
    if plain.is_empty() || (prefix.bytes.is_empty() && !shrinks(plain)?) {
        return Ok(Batch { header, payload: Bytes::copy_from_slice(plain) });
    }
    let stored = work.compress(plain, &prefix.bytes)?;
    if stored.len() >= plain.len() {
        return Ok(Batch { header, payload: Bytes::copy_from_slice(plain) });
    }
    (header.codec, header.prefix) = (Codec::Zstd, prefix.runs);
    Ok(Batch { header, payload: Bytes::from(stored) })
}

/// Compresses pieces from all over the batch: where even they do not shrink, nothing will.
fn shrinks(plain: &[u8]) -> Result<bool, BatchError> {
    if plain.len() <= 4 * PROBE_PIECES * PROBE_PIECE_BYTES {
        return Ok(true); // Trying costs less than asking.
    }
    let step = plain.len() / PROBE_PIECES;
    let pieces = plain.chunks(step).filter_map(|part| part.get(..PROBE_PIECE_BYTES));
    let sample: Vec<u8> = pieces.take(PROBE_PIECES).flatten().copied().collect();
    Ok(compress(&sample, &[], &Effort::PROBE)?.len() < sample.len() / 100 * 97)
}

fn context(effort: &Effort) -> Result<CCtx<'static>, BatchError> {
    let mut context = CCtx::create();
    context.set_parameter(CParameter::CompressionLevel(effort.level))?;
    context.set_parameter(CParameter::WindowLog(effort.window_log))?;
    if let Some((hash_log, chain_log)) = effort.tables {
        context.set_parameter(CParameter::HashLog(hash_log))?;
        context.set_parameter(CParameter::ChainLog(chain_log))?;
    }
    if let Some((search_log, min_match)) = effort.search {
        context.set_parameter(CParameter::SearchLog(search_log))?;
        context.set_parameter(CParameter::MinMatch(min_match))?;
    }
    context.set_parameter(CParameter::ContentSizeFlag(false))?;
    Ok(context)
}

/// One frame. The buffer is never larger than zstd's own bound for this much data.
fn compress(plain: &[u8], prefix: &[u8], effort: &Effort) -> Result<Vec<u8>, BatchError> {
    let mut context = context(effort)?;
    if !prefix.is_empty() {
        context.ref_prefix(prefix)?;
    }
    let mut stored = Vec::with_capacity(zstd::zstd_safe::compress_bound(plain.len()));
    context.compress2(&mut stored, plain)?;
    stored.shrink_to_fit(); // It waits in queues; the bound is as large as the plain data.
    Ok(stored)
}

/// The same, block by block, with a look at the clock before each: the frame, or the part that was done
/// when the time was up.
fn compress_until(
    plain: &[u8],
    prefix: &[u8],
    effort: &Effort,
    until: Instant,
) -> Result<Result<Vec<u8>, f64>, BatchError> {
    let mut context = context(effort)?;
    // Without it tables and window are those of a stream that never ends.
    context.set_pledged_src_size(Some(plain.len() as u64))?;
    if !prefix.is_empty() {
        context.ref_prefix(prefix)?;
    }
    let mut stored = Vec::with_capacity(zstd::zstd_safe::compress_bound(plain.len()));
    let mut output = OutBuffer::around(&mut stored);
    for (n, block) in plain.chunks(BLOCK_BYTES).enumerate() {
        if Instant::now() > until {
            return Ok(Err((n * BLOCK_BYTES) as f64 / plain.len() as f64));
        }
        let mut input = InBuffer::around(block);
        while input.pos() < block.len() {
            context.compress_stream2(&mut output, &mut input, ZSTD_EndDirective::ZSTD_e_continue)?;
        }
    }
    let mut nothing = InBuffer::around(&[]);
    if context.compress_stream2(&mut output, &mut nothing, ZSTD_EndDirective::ZSTD_e_end)? != 0 {
        return Err(BatchError::Codec("a frame is larger than its bound"));
    }
    stored.shrink_to_fit();
    Ok(Ok(stored))
}

/// The plain data of a batch, given the bytes of its prefix. Allocates no more than the recipe's bounded
/// length.
pub fn decode(batch: &Batch, prefix: &[u8]) -> Result<Vec<u8>, BatchError> {
    let expected = batch.header.plain_len as usize;
    let plain = match batch.header.codec {
        Codec::Raw => batch.payload.to_vec(),
        Codec::Zstd => {
            let mut context = DCtx::create();
            context.set_parameter(DParameter::WindowLogMax(super::effort::WINDOW_LOG_MAX))?;
            if !prefix.is_empty() {
                context.ref_prefix(prefix)?;
            }
            let mut plain = Vec::with_capacity(expected);
            context.decompress(&mut plain, &batch.payload)?;
            plain
        }
    };
    let found = plain.len();
    if found == expected { Ok(plain) } else { Err(BatchError::Length { expected, found }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut out);
        out
    }

    fn pack(chunks: &[&[u8]], prefix: Prefix, effort: &Effort) -> Batch {
        let mut builder = BatchBuilder::default();
        for (n, chunk) in chunks.iter().enumerate() {
            builder.literal(1, n as u64, chunk);
        }
        let mut batches = builder.finish(prefix, &mut Work::of(effort)).unwrap();
        assert_eq!(batches.len(), 1);
        batches.remove(0)
    }

    #[test]
    fn what_takes_too_long_is_begun_again_with_less() {
        let tiers = Effort::tiers();
        let text: Vec<u8> =
            (0..200_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_string().into_bytes()).collect();
        let text = &text[..CHUNK_BYTES * 16];
        let builder = || {
            let mut builder = BatchBuilder::default();
            text.chunks(CHUNK_BYTES).enumerate().for_each(|(n, data)| builder.literal(0, n as u64, data));
            builder
        };
        let hour = std::time::Duration::from_secs(3600);
        let hardest = &tiers[tiers.len() - 1];
        let mut whole = Work::of(hardest);
        let mut early = Work::until(hardest, Instant::now() + hour, &tiers[1]);
        let mut late = Work::until(hardest, Instant::now(), &tiers[1]);
        let mut plain = Work::of(&tiers[1]);
        let stored = [&mut whole, &mut early, &mut late, &mut plain].map(|work| {
            let batches = builder().finish(Prefix::default(), work).unwrap();
            assert_eq!(decode(&batches[0], &[]).unwrap(), text);
            batches[0].payload.len()
        });
        assert_eq!((whole.late(), early.late(), late.late()), (None, None, Some(0.0)));
        assert_eq!(stored[2], stored[3]);
        assert!(stored[0] < stored[3] && stored[1].abs_diff(stored[0]) < stored[0] / 500, "{stored:?}");
    }

    #[test]
    fn incompressible_batches_go_raw() {
        let noise = noise(1 << 20);
        let chunks: Vec<&[u8]> = noise.chunks(CHUNK_BYTES).collect();
        let batch = pack(&chunks, Prefix::default(), &Effort::tiers()[1]);
        assert_eq!(batch.header.codec, Codec::Raw);
        assert_eq!(decode(&batch, &[]).unwrap(), noise);
    }

    /// Chunks whose middle is zeroes look as if they shrank: what comes out too large is cut.
    #[test]
    fn no_batch_is_larger_than_a_message() {
        let noise = noise(4 << 20);
        let mut builder = BatchBuilder::default();
        for (n, chunk) in noise.chunks(CHUNK_BYTES).enumerate() {
            let mut chunk = chunk.to_vec();
            chunk[CHUNK_BYTES / 2..CHUNK_BYTES / 2 + SIZING_PIECE_BYTES].fill(0);
            builder.literal(0, n as u64, &chunk);
        }
        assert!(!builder.is_full(BATCH_PLAIN_BYTES_MAX + CHUNK_BYTES) || builder.plain_bytes() == 4 << 20);
        let plain = builder.plain().to_vec();
        let batches = builder.finish(Prefix::default(), &mut Work::of(&Effort::tiers()[3])).unwrap();
        assert!(batches.len() > 1);
        assert!(batches.iter().all(|batch| batch.payload.len() <= BATCH_STORED_BYTES_MAX));
        let joined: Vec<u8> = batches.iter().flat_map(|batch| decode(batch, &[]).unwrap()).collect();
        assert!(joined == plain);
        assert_eq!(batches.iter().map(|batch| batch.header.entries.len()).sum::<usize>(), 64);
    }

    #[test]
    fn content_that_does_not_shrink_closes_a_batch_early() {
        let noise = noise(4 << 20);
        let mut builder = BatchBuilder::default();
        for chunk in noise.chunks(CHUNK_BYTES) {
            if builder.is_full(BATCH_PLAIN_BYTES_MAX) {
                break;
            }
            builder.literal(0, 0, chunk);
        }
        assert!(builder.plain_bytes() <= SIZED_BYTES_MAX + CHUNK_BYTES, "{}", builder.plain_bytes());
    }

    #[test]
    fn builders_close_at_their_size() {
        let mut builder = BatchBuilder::default();
        let chunk = vec![1; CHUNK_BYTES];
        while !builder.is_full(1 << 20) {
            builder.literal(0, 0, &chunk);
        }
        assert_eq!(builder.plain_bytes(), 1 << 20);
    }

    #[test]
    fn a_base_makes_noise_small_at_every_effort() {
        let base = noise(1 << 20);
        let mut changed = base.clone();
        changed.rotate_left(12_345);
        changed[500_000] ^= 1;
        for effort in Effort::tiers().iter().filter(|effort| effort.bases) {
            let prefix = Prefix { runs: Vec::new(), bytes: base.clone() };
            let chunks: Vec<&[u8]> = changed.chunks(CHUNK_BYTES).collect();
            let batch = pack(&chunks, prefix, effort);
            assert!(batch.payload.len() < 4096, "{effort:?}: {}", batch.payload.len());
            assert!(decode(&batch, &base).unwrap() == changed);
            assert!(decode(&batch, &base[1..]).map_or(true, |plain| plain != changed));
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let stored = zstd::encode_all(&vec![0u8; 64 << 20][..], 3).unwrap();
        let header = BatchHeader { entries: vec![], prefix: vec![], codec: Codec::Zstd, plain_len: 4096 };
        assert!(decode(&Batch { header, payload: Bytes::from(stored) }, &[]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn round_trip(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..2000), 1..40),
            prefix in prop::collection::vec(any::<u8>(), 0..4000),
            tier in 0..Effort::tiers().len(),
        ) {
            let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let bytes = prefix.clone();
            let batch = pack(&chunks, Prefix { runs: Vec::new(), bytes }, &Effort::tiers()[tier]);
            prop_assert_eq!(decode(&batch, &prefix).unwrap(), chunks.concat());
        }

        #[test]
        fn garbage_never_panics(
            payload in prop::collection::vec(any::<u8>(), 0..4000),
            prefix in prop::collection::vec(any::<u8>(), 0..400),
            plain_len in 0u32..(4 << 20),
        ) {
            let header = BatchHeader { entries: vec![], prefix: vec![], codec: Codec::Zstd, plain_len };
            let _ = decode(&Batch { header, payload: Bytes::from(payload) }, &prefix);
        }
    }
}
