//! How much of many chunks the target has, from the answers for some of them. Pure.
//!
//! The sample is the chunks with the smallest ids: ids are keyed hashes, so whether the target has a chunk
//! and where its id lies have nothing to do with each other, and no other sample of this size is better.
//! The filter of shared chunks splits them in two strata, of which one is mostly known and one mostly
//! unknown; each is estimated by itself, so the split can only narrow the error.

use crate::block::ShortId;

/// Chunks of which at most so many are asked about are asked about one by one.
pub const ASK_MAX: usize = 32_768;

/// A stratum with fewer samples says nothing by itself.
const STRATUM_MIN: u64 = 100;
/// Of a normal distribution, for 95 %.
const Z95: f64 = 1.96;

/// Ids to ask about: all of them, or a random sample of [`ASK_MAX`].
pub fn to_ask(mut ids: Vec<ShortId>) -> Vec<ShortId> {
    if ids.len() > ASK_MAX {
        ids.select_nth_unstable(ASK_MAX);
        ids.truncate(ASK_MAX);
    }
    ids
}

/// Chunks of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stratum {
    /// All of them.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many the target was asked about.
    pub asked: u64,
    /// How many of these it has.
    pub known: u64,
}

/// What the target lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Unseen {
    /// Bytes of the chunks that it does not have.
    pub bytes: u64,
    /// With 95 % confidence no further off than this.
    pub error_bytes: u64,
}

/// From what the target said of a sample of two strata.
pub fn unseen(strata: [Stratum; 2]) -> Unseen {
    let [a, b] = strata;
    let few = |stratum: &Stratum| stratum.asked < STRATUM_MIN && stratum.asked < stratum.chunks;
    let merged = Stratum {
        chunks: a.chunks + b.chunks,
        bytes: a.bytes + b.bytes,
        asked: a.asked + b.asked,
        known: a.known + b.known,
    };
    let strata = if few(&a) || few(&b) { [merged, Stratum::default()] } else { strata };
    let (mut bytes, mut variance) = (0.0, 0.0);
    for stratum in strata.iter().filter(|stratum| stratum.asked > 0) {
        let (all, asked, known) = (stratum.chunks as f64, stratum.asked as f64, stratum.known as f64);
        bytes += stratum.bytes as f64 * (1.0 - known / asked);
        // As if two more had been known and two not: a share of 0 or 1 in a sample is not sure for the rest.
        let share = (known + 2.0) / (asked + 4.0);
        let left = ((all - asked) / (all - 1.0).max(1.0)).max(0.0);
        variance += (stratum.bytes as f64).powi(2) * share * (1.0 - share) / asked * left;
    }
    Unseen { bytes: bytes.round() as u64, error_bytes: (Z95 * variance.sqrt()).ceil() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u64) -> ShortId {
        ShortId(*blake3::hash(&n.to_le_bytes()).as_bytes().first_chunk().unwrap())
    }

    #[test]
    fn few_ids_are_all_asked_about_and_exact() {
        let ids: Vec<_> = (0..ASK_MAX as u64).map(id).collect();
        assert_eq!(to_ask(ids.clone()), ids);
        let exact = unseen([
            Stratum { chunks: 50, bytes: 500, asked: 50, known: 10 },
            Stratum { chunks: 7, bytes: 70, asked: 7, known: 7 },
        ]);
        assert_eq!(exact, Unseen { bytes: 400, error_bytes: 0 });
        assert_eq!(unseen([Stratum::default(); 2]), Unseen::default());
    }

    #[test]
    fn a_sample_is_no_larger_than_a_question_and_without_repetition() {
        let mut sample = to_ask((0..100_000).map(id).collect());
        sample.sort_unstable();
        sample.dedup();
        assert_eq!(sample.len(), ASK_MAX);
    }

    #[test]
    fn a_small_stratum_is_not_taken_at_its_word() {
        let strata = [
            Stratum { chunks: 1_000_000, bytes: 1_000_000, asked: 32_700, known: 16_350 },
            Stratum { chunks: 2000, bytes: 2000, asked: 68, known: 0 },
        ];
        let found = unseen(strata);
        assert!((495_000..510_000).contains(&found.bytes), "{found:?}");
        assert!((4000..8000).contains(&found.error_bytes), "{found:?}");
    }

    /// What is true, what is estimated of it from a sample of `to_ask`, and the error that is told.
    fn trial(
        chunks: u64,
        shared: u64,
        known_of_shared: u64,
        known_of_others: u64,
        seed: u64,
    ) -> (f64, Unseen) {
        let mut truth = 0;
        let number = |n: u64| n ^ seed << 32;
        let is_shared = |n: u64| n % 100 < shared;
        let is_known = |n: u64| n / 100 % 100 < if is_shared(n) { known_of_shared } else { known_of_others };
        let mut strata = [Stratum::default(); 2];
        let mut of = std::collections::HashMap::new();
        for n in 0..chunks {
            let stratum = &mut strata[usize::from(is_shared(n))];
            stratum.chunks += 1;
            stratum.bytes += 65_536;
            truth += u64::from(!is_known(n)) * 65_536;
            of.insert(id(number(n)), n);
        }
        for id in to_ask(of.keys().copied().collect()) {
            let stratum = &mut strata[usize::from(is_shared(of[&id]))];
            stratum.asked += 1;
            stratum.known += u64::from(is_known(of[&id]));
        }
        (truth as f64, unseen(strata))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_truth_is_within_the_error(
            chunks in 33_000u64..90_000,
            shared in 0u64..=100,
            known_of_shared in 0u64..=100,
            known_of_others in 0u64..=100,
            seed in any::<u32>(),
        ) {
            let (truth, found) = trial(chunks, shared, known_of_shared, known_of_others, seed.into());
            // Three times the half-width of 95 %: once in some 100 million trials.
            let off = (truth - found.bytes as f64).abs();
            prop_assert!(off <= 3.0 * found.error_bytes as f64 + 65_536.0, "{truth} {found:?}");
            prop_assert!(found.error_bytes as f64 <= 0.012 * chunks as f64 * 65_536.0, "{found:?}");
        }

        #[test]
        fn the_estimate_stays_within_what_there_is(
            a in any::<(u16, u16, u16)>(),
            b in any::<(u16, u16, u16)>(),
        ) {
            let stratum = |(chunks, asked, known): (u16, u16, u16)| {
                let asked = asked.min(chunks);
                let (chunks, known) = (u64::from(chunks), u64::from(known.min(asked)));
                Stratum { chunks, bytes: chunks * 65_536, asked: asked.into(), known }
            };
            let strata = [stratum(a), stratum(b)];
            let found = unseen(strata);
            prop_assert!(found.bytes <= strata[0].bytes + strata[1].bytes);
        }
    }

    #[test]
    fn strata_narrow_the_error() {
        let split = unseen([
            Stratum { chunks: 500_000, bytes: 500_000, asked: 16_384, known: 16_300 },
            Stratum { chunks: 500_000, bytes: 500_000, asked: 16_384, known: 80 },
        ]);
        let one = Stratum { chunks: 1_000_000, bytes: 1_000_000, asked: 32_768, known: 16_380 };
        let whole = unseen([one, Stratum::default()]);
        assert!(split.error_bytes * 5 < whole.error_bytes, "{split:?} {whole:?}");
    }
}
