//! Where anchors lie: a gear hash over 64-byte windows, sampled by content.
//!
//! A window's hash depends on its 64 bytes alone, so the same bytes give the same anchors wherever they
//! lie, on whatever alignment. Pure; 1.4 GB/s a core.

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
pub fn scan(data: &[u8], mut found: impl FnMut(usize, Anchor)) {
    let mut hash = 0u64;
    for byte in data.iter().take(WINDOW_BYTES - 1) {
        hash = (hash << 1).wrapping_add(GEAR[*byte as usize]);
    }
    let mut last = None;
    for (at, byte) in data.iter().enumerate().skip(WINDOW_BYTES - 1) {
        hash = (hash << 1).wrapping_add(GEAR[*byte as usize]);
        if hash >> (64 - SAMPLE_BITS) == 0 && last != Some(hash) {
            last = Some(hash);
            found(at, Anchor(mix(hash)));
        }
    }
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
