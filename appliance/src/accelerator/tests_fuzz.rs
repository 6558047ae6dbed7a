//! Fuzzing what a target does with a batch: its message is taken apart and its frame decoded, after
//! mutations of sound ones. Nothing may panic, decode to more than was declared, or take more memory.
//!
//! A plain mutator, because damage that matters lies in counts, lengths and zstd's own headers, which
//! random bytes never reach. `VBR_FUZZ_SECONDS=N` goes on for so long; some seconds' worth otherwise.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::batch::{BatchBuilder, Prefix, Work, decode};
use super::effort::Effort;
use crate::block::{CHUNK_BYTES, ShortId};
use crate::limits::{BATCH_PLAIN_BYTES_MAX, BATCH_STORED_BYTES_MAX};
use crate::wire::message::{Message, PrefixFrom, PrefixRun};

const ROUNDS: u64 = 4_000;
/// The frame type of a batch.
const BATCH: u8 = 36;

/// xorshift64*: a round is repeated by its number.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

fn noise(len: usize, seed: u8) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut out);
    out
}

/// Text, noise and copies of the prefix, at every effort; with the prefix that belongs to each.
fn corpus() -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    let base = noise(3 * CHUNK_BYTES, 1);
    for (n, effort) in Effort::tiers().iter().enumerate() {
        let mut builder = BatchBuilder::default();
        let text: Vec<u8> = (0..CHUNK_BYTES / 16).flat_map(|n| format!("{n:015}\n").into_bytes()).collect();
        builder.literal(0, 7, &text);
        builder.literal(0, 8, &base[1000..1000 + CHUNK_BYTES]);
        builder.copy(0, 9, ShortId([5; 16]));
        builder.literal(1, 10, &noise(CHUNK_BYTES, n as u8 + 2)[..777]);
        let from = |chunk| PrefixFrom::Built { disk: 0, chunk };
        let runs = (0..3).map(|chunk| PrefixRun { from: from(chunk), blocks: u16::MAX }).collect();
        let prefix = if effort.bases { Prefix { runs, bytes: base.clone() } } else { Prefix::default() };
        let bytes = prefix.bytes.clone();
        for batch in builder.finish(prefix, &mut Work::of(effort)).unwrap() {
            let (kind, head, tail) = Message::Batch(batch).encode();
            assert_eq!(kind, BATCH);
            all.push(([&head[..], &tail[..]].concat(), bytes.clone()));
        }
    }
    all
}

fn mutate(message: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    // The recipe and the frame's head are where structure is: half of all mutations go there.
    let near = random.below(2) == 0;
    let span = if near { message.len().min(160) } else { message.len() };
    let at = random.below(span);
    match random.below(7) {
        0 => message[at] ^= 1 << random.below(8),
        1 => message[at] = [0, 1, 0x7F, 0x80, 0xFF][random.below(5)],
        2 => message.truncate(at.max(1)),
        3 => {
            let len = random.below(40).min(message.len() - at);
            message.drain(at..at + len);
        }
        4 => {
            let len = random.below(40).min(message.len() - at);
            let piece = message[at..at + len].to_vec();
            message.splice(at..at, piece);
        }
        5 => {
            let from = random.below(other.len());
            let len = random.below(400).min(other.len() - from);
            message.splice(at..at, other[from..from + len].iter().copied());
        }
        _ => {
            let number = [u32::MAX, 1 << 31, BATCH_PLAIN_BYTES_MAX as u32 + 1, 0][random.below(4)];
            for (slot, byte) in message.iter_mut().skip(at).zip(number.to_be_bytes()) {
                *slot = byte;
            }
        }
    }
    if message.is_empty() {
        message.push(0);
    }
}

/// What the target does before it looks at a chunk.
fn take(message: &[u8], prefix: &[u8]) -> bool {
    let Ok(Message::Batch(batch)) = Message::decode(BATCH, Bytes::copy_from_slice(message)) else {
        return false;
    };
    assert!(batch.header.plain_len as usize <= BATCH_PLAIN_BYTES_MAX);
    match decode(&batch, prefix) {
        Ok(plain) => {
            assert_eq!(plain.len(), batch.header.plain_len as usize);
            assert!(plain.capacity() <= BATCH_PLAIN_BYTES_MAX.max(message.len()));
            true
        }
        Err(_) => false,
    }
}

#[test]
fn no_damage_to_a_batch_does_harm() {
    let corpus = corpus();
    assert!(corpus.iter().all(|(message, prefix)| take(message, prefix)));
    assert!(corpus.iter().all(|(message, _)| message.len() < BATCH_STORED_BYTES_MAX));
    let seconds = std::env::var("VBR_FUZZ_SECONDS").ok().and_then(|value| value.parse().ok());
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let (mut round, mut sound) = (0u64, 0u64);
    while end.map_or(round < ROUNDS, |end| Instant::now() < end) {
        round += 1;
        let mut random = Random(round.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let (message, prefix) = &corpus[random.below(corpus.len())];
        let other = &corpus[random.below(corpus.len())].0;
        let mut message = message.clone();
        for _ in 0..=random.below(4) {
            mutate(&mut message, other, &mut random);
        }
        // Sometimes with another prefix than the one it was made with, as after a base that went bad.
        let prefix = if random.below(8) == 0 { &prefix[..prefix.len() / 2] } else { prefix };
        sound += u64::from(take(&message, prefix));
    }
    println!("{round} damaged batches, {sound} of them still decoded");
    assert!(sound > 0 && sound < round, "the mutations do too little or too much: {sound} of {round}");
}
