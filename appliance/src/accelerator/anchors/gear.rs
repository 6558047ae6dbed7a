//! Where anchors lie: a gear hash over 64-byte windows, sampled by content.
//!
//! A window's hash depends on its 64 bytes alone, so the same bytes give the same anchors wherever they
//! lie, on whatever alignment. Pure.

/// Bytes a window spans.
pub const WINDOW_BYTES: usize = 64;
/// One window in 512 is an anchor: its hash begins with this many zero bits. (One in 1,024 sends 0.4 % more
/// of the image sequence. A table that is full thins to what it has room for, whatever this says.)
const SAMPLE_BITS: u32 = 9;

const GEAR: [u64; 256] = gear();

/// Random words, the same in every build: splitmix64 from a fixed seed.
const fn gear() -> [u64; 256] {
    let mut table = [0u64; 256];
    let mut state = 0x7662_7220_616e_6368u64;
    let mut n = 0;
    while n < 256 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[n] = word ^ (word >> 31);
        n += 1;
    }
    table
}

/// An anchor: what its window holds, hashed. Equal windows have equal anchors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Anchor(pub u64);

/// Calls `found` with the offset of the window's last byte and the anchor, ascending. A run of one
/// repeated window (a constant fill) gives one anchor, not thousands.
///
/// Each hash waits for the one before it, so two halves are hashed side by side: 3.3 GB/s a core instead of 1.9
/// (64 MiB of a Debian disk; four lanes are no quicker).
pub fn scan(data: &[u8], mut found: impl FnMut(usize, Anchor)) {
    let lane_bytes = data.len().saturating_sub(WINDOW_BYTES - 1) / 2 / STEPS * STEPS;
    let first = Lane::new(data, 0, lane_bytes);
    let second = Lane::new(data, lane_bytes, lane_bytes);
    let (mut left, mut right) = (Vec::with_capacity(64), Vec::with_capacity(64));
    let (mut left_hash, mut right_hash) = (first.hash, second.hash);
    for (step, (left_bytes, right_bytes)) in first.steps.iter().zip(second.steps).enumerate() {
        for n in 0..STEPS {
            left_hash = roll(left_hash, left_bytes[n]);
            right_hash = roll(right_hash, right_bytes[n]);
            keep(&mut left, first.start + step * STEPS + n, left_hash);
            keep(&mut right, second.start + step * STEPS + n, right_hash);
        }
    }
    let end = second.start + lane_bytes;
    for (at, byte) in data.iter().enumerate().skip(end) {
        right_hash = roll(right_hash, *byte);
        keep(&mut right, at, right_hash);
    }
    let mut last = None;
    for (at, hash) in left.into_iter().chain(right) {
        if last != Some(hash) {
            last = Some(hash);
            found(at, Anchor(mix(hash)));
        }
    }
}

/// Bytes of each lane between two looks at whether they end.
const STEPS: usize = 4;

/// Some windows in a row.
struct Lane<'a> {
    /// Where their last bytes are.
    start: usize,
    steps: &'a [[u8; STEPS]],
    /// Of what comes before `start`.
    hash: u64,
}

impl<'a> Lane<'a> {
    /// The `count` windows from the one that begins here.
    fn new(data: &'a [u8], first: usize, count: usize) -> Self {
        let start = (first + WINDOW_BYTES - 1).min(data.len());
        let hash = data[first..start].iter().fold(0, |hash, byte| roll(hash, *byte));
        Self { start, steps: data[start..start + count].as_chunks().0, hash }
    }
}

/// Keeps the hash where it is an anchor's and not the last one's.
#[inline(always)]
fn keep(hits: &mut Vec<(usize, u64)>, at: usize, hash: u64) {
    if hash >> (64 - SAMPLE_BITS) == 0 && hits.last().is_none_or(|(_, last)| *last != hash) {
        hits.push((at, hash));
    }
}

fn roll(hash: u64, byte: u8) -> u64 {
    (hash << 1).wrapping_add(GEAR[byte as usize])
}

/// Spreads what the sample left over all 64 bits.
fn mix(hash: u64) -> u64 {
    let mut word = hash;
    word = (word ^ (word >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    word = (word ^ (word >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ (word >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(len: usize, seed: u8) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut out);
        out
    }

    fn anchors(data: &[u8]) -> Vec<(usize, Anchor)> {
        let mut all = Vec::new();
        scan(data, |at, anchor| all.push((at, anchor)));
        all
    }

    #[test]
    fn one_window_in_about_five_hundred() {
        let count = anchors(&noise(4 << 20, 1)).len();
        assert!((7200..9200).contains(&count), "{count}");
    }

    #[test]
    fn constant_data_has_no_flood_of_anchors() {
        for byte in 0..=255 {
            assert!(anchors(&vec![byte; 65536]).len() <= 1);
        }
    }

    /// The table is on disk by these numbers.
    #[test]
    fn golden() {
        let first = anchors(&noise(1 << 16, 7));
        assert_eq!(format!("{:x?}", &first[..2]), GOLDEN);
    }
    const GOLDEN: &str = "[(3d0, Anchor(ee88f7d2ab0ec450)), (49b, Anchor(f124a837fb22f64c))]";

    /// What `scan` means, a byte at a time.
    fn plainly(data: &[u8]) -> Vec<(usize, Anchor)> {
        let (mut hash, mut last, mut all) = (0, None, Vec::new());
        for (at, byte) in data.iter().enumerate() {
            hash = roll(hash, *byte);
            if at + 1 >= WINDOW_BYTES && hash >> (64 - SAMPLE_BITS) == 0 && last != Some(hash) {
                last = Some(hash);
                all.push((at, Anchor(mix(hash))));
            }
        }
        all
    }

    proptest! {
        #[test]
        fn lanes_find_what_a_single_pass_finds(
            parts in prop::collection::vec((any::<u8>(), 0usize..300, 1usize..40), 0..40),
        ) {
            // Noise and repeated pieces: runs of one window cross from lane to lane.
            let mut data = Vec::new();
            for (seed, len, times) in parts {
                let part = noise(len.min(if times % 3 == 0 { 3 } else { 300 }), seed);
                (0..times * times).for_each(|_| data.extend_from_slice(&part));
            }
            data.truncate(200_000);
            prop_assert_eq!(anchors(&data), plainly(&data));
            let short = &data[..data.len().min(140)];
            (0..=short.len()).for_each(|len| assert_eq!(anchors(&short[..len]), plainly(&short[..len])));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn anchors_move_with_the_content(shift in 0usize..5000, seed in any::<u8>()) {
            let data = noise(100_000, seed);
            let mut moved = noise(shift, seed.wrapping_add(1));
            moved.extend_from_slice(&data);
            let there: Vec<_> = anchors(&moved).into_iter().filter(|(at, _)| *at >= shift + WINDOW_BYTES).collect();
            let here: Vec<_> = anchors(&data)
                .into_iter()
                .map(|(at, anchor)| (at + shift, anchor))
                .filter(|(at, _)| *at >= shift + WINDOW_BYTES)
                .collect();
            prop_assert_eq!(there, here);
        }
    }
}
