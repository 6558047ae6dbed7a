use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::accelerator::block_index::LoadError;

const FIRST_BYTES: usize = 1 << 20;
const SEED: [u8; 32] = *b"a seed of 32 bytes, for a filter";

pub(super) fn id(n: u64) -> ShortId {
    let hash = blake3::hash(&n.to_le_bytes());
    ShortId(*hash.as_bytes().first_chunk().unwrap())
}

/// Makes a chunk shared.
pub(super) fn share(set: &SharedSet, n: u64) {
    set.note(id(n), 1);
    set.note(id(n), 2);
}

/// Asks until there is no more; the number of deltas.
pub(super) fn catch_up(set: &SharedSet, filter: &mut SharedFilter) -> Vec<Delta> {
    let mut deltas = Vec::new();
    loop {
        let delta = set.delta(filter.cursor());
        // As the wire does.
        let sent = delta.pack();
        assert!(sent.len() < PART_BYTES_MAX + 100);
        filter.apply(&Delta::unpack(&sent).unwrap()).unwrap();
        let more = delta.more;
        deltas.push(delta);
        if !more {
            return deltas;
        }
    }
}

fn bits(filter: &SharedFilter) -> &[u8] {
    filter.bloom.as_ref().map_or(&[], Bloom::as_slice)
}

/// The whole filter as a new source gets it.
fn whole(set: &SharedSet) -> SharedFilter {
    let mut filter = SharedFilter::default();
    catch_up(set, &mut filter);
    filter
}

#[test]
fn two_branches_make_a_chunk_shared() {
    let set = SharedSet::new(FIRST_BYTES, SEED);
    assert_eq!(set.note(id(1), 7), Noted::First);
    assert_eq!(set.note(id(1), 7), Noted::Same);
    assert!(!set.may_contain(id(1)));
    assert_eq!(set.note(id(1), 8), Noted::Shared);
    assert_eq!(set.note(id(1), 7), Noted::Known);
    assert!(set.may_contain(id(1)));
    assert_eq!((set.stats().keys, set.stats().first_branches), (1, 0));
}

#[test]
fn a_source_without_a_filter_asks() {
    let filter = SharedFilter::default();
    assert!(filter.may_contain(id(1)) && !filter.is_loaded());
    assert_eq!((filter.cursor(), filter.false_positive_rate(), filter.memory_bytes()), (None, None, 0));
}

#[test]
fn a_filter_of_few_keys_costs_little() {
    let set = SharedSet::new(FIRST_BYTES, SEED);
    let cost = |set: &SharedSet| set.delta(None).cost(set.delta(None).pack().len());
    assert!(cost(&set) < 200, "an empty one: {}", cost(&set));
    (0..1000).for_each(|n| share(&set, n));
    assert!(cost(&set) < 13_000, "a thousand keys: {}", cost(&set));
    let grown = SharedSet::new(8 << 20, SEED);
    (0..70_000).for_each(|n| share(&grown, n));
    assert!((200_000..240_000).contains(&cost(&grown)), "both parts: {}", cost(&grown));
    assert!(Delta::unpack(b"no frame").is_err());
    let bomb = zstd::bulk::compress(&vec![0; 2 * DELTA_BYTES_MAX], 3).unwrap();
    assert!(Delta::unpack(&bomb).is_err(), "its plain size is bounded");
}

#[test]
fn a_source_keeps_up() {
    let set = SharedSet::new(FIRST_BYTES, SEED);
    let mut filter = whole(&set);
    assert!(filter.is_loaded() && !filter.may_contain(id(1)));
    (0..500).for_each(|n| share(&set, n));
    let deltas = catch_up(&set, &mut filter);
    assert!(deltas.len() == 1 && deltas[0].full.is_none());
    assert!((0..500).all(|n| filter.may_contain(id(n))));
    assert_eq!(bits(&filter), bits(&whole(&set)));
    let idle = set.delta(filter.cursor());
    assert!(idle.additions.is_empty() && idle.full.is_none() && !idle.more);
    assert!(postcard::to_stdvec(&idle).unwrap().len() < 32, "asking in vain costs little");
}

#[test]
fn growth_is_a_new_epoch_that_loses_nothing() {
    let set = SharedSet::new(8 << 20, SEED);
    let mut filter = whole(&set);
    let first = set.stats();
    (0..70_000).for_each(|n| share(&set, n));
    let stats = set.stats();
    assert_eq!((first.keys_max, stats.keys_max), (1 << 16, 1 << 18));
    assert_eq!(stats.epoch, first.epoch.wrapping_add(1));
    let deltas = catch_up(&set, &mut filter);
    assert!(deltas.iter().all(|delta| delta.full.is_some()));
    // What the smaller filter took for shared by mistake was not told, and has to be learned again.
    let missing = (0..70_000).filter(|n| !filter.may_contain(id(*n))).count();
    assert!(missing < 700, "{missing}");
    assert_eq!(bits(&filter), bits(&whole(&set)));
}

#[test]
fn parts_go_on_while_keys_are_added() {
    let set = SharedSet::new(32 << 20, SEED);
    (0..300_000).for_each(|n| share(&set, n));
    let (mut filter, mut parts) = (SharedFilter::default(), 0);
    loop {
        let delta = set.delta(filter.cursor());
        filter.apply(&delta).unwrap();
        parts += usize::from(delta.full.is_some());
        share(&set, 1_000_000 + parts as u64);
        if filter.is_loaded() {
            break;
        }
    }
    assert!(parts >= 2, "a megabyte each");
    catch_up(&set, &mut filter);
    assert!((0..=parts as u64).skip(1).all(|n| filter.may_contain(id(1_000_000 + n))));
    assert_eq!(bits(&filter), bits(&whole(&set)));
}

#[test]
fn what_is_far_behind_gets_the_whole_filter() {
    let set = SharedSet::new(32 << 20, SEED);
    let mut filter = whole(&set);
    (0..30_000).for_each(|n| share(&set, n));
    let deltas = catch_up(&set, &mut filter);
    assert!(deltas.len() == 1 && deltas[0].full.is_some(), "30,000 additions are longer than 78 KB");
}

#[test]
fn the_oldest_half_goes_when_it_is_full() {
    // Kept short by a file that claims a full filter.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shared");
    let mut head = SEED.to_vec();
    head.extend_from_slice(&5u64.to_be_bytes());
    head.extend_from_slice(&(KEYS_MAX as u32).to_be_bytes());
    head.extend_from_slice(&(KEYS_MAX as u32).to_be_bytes());
    head.extend_from_slice(&0u64.to_be_bytes());
    let mut writer =
        crate::accelerator::block_index::checked_file::Writer::create(&path, b"VBRSHAR", 1).unwrap();
    writer.piece(&head).unwrap();
    for from in (0..KEYS_MAX as u64).step_by(65_536) {
        let keys: Vec<u8> = (from..from + 65_536).flat_map(|n| Key::of(id(n)).0.to_be_bytes()).collect();
        writer.piece(&keys).unwrap();
    }
    writer.finish().unwrap();
    let (set, error) = SharedSet::load(&path, FIRST_BYTES, [0; 32]);
    assert!(error.is_none(), "{error:?}");
    let full = set.stats();
    assert!((full.keys, full.epoch) == (KEYS_MAX as u64, 5) && full.filter_bytes < FILTER_BYTES_MAX as u64);
    assert!((0.009..0.011).contains(&full.false_positive_rate), "{full:?}");
    (10_000_000..10_000_010).for_each(|n| share(&set, n));
    let stats = set.stats();
    assert!(stats.keys <= KEYS_MAX as u64 / 2 + 10 && stats.epoch == 6, "{stats:?}");
    let filter = whole(&set);
    assert!((KEYS_MAX as u64 / 2..KEYS_MAX as u64).all(|n| filter.may_contain(id(n))));
    assert!((0..1000).filter(|n| filter.may_contain(id(*n))).count() < 50);
}

#[test]
fn a_target_that_lost_additions_finds_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shared");
    let set = SharedSet::new(FIRST_BYTES, SEED);
    (0..3000).for_each(|n| share(&set, n));
    set.save(&path).unwrap();
    let (mut before, mut after) = (whole(&set), whole(&set));
    (3000..3100).for_each(|n| share(&set, n));
    catch_up(&set, &mut after);

    let (set, error) = SharedSet::load(&path, FIRST_BYTES, [0; 32]);
    assert!(error.is_none(), "{error:?}");
    assert!(set.delta(before.cursor()).full.is_none(), "a filter of before the crash stays good");
    assert!(set.delta(after.cursor()).full.is_some(), "it has keys that were lost");
    (5000..5200).for_each(|n| share(&set, n));
    assert!(set.delta(after.cursor()).full.is_some(), "others are at their positions");
    for filter in [&mut before, &mut after] {
        catch_up(&set, filter);
        assert_eq!(bits(filter), bits(&whole(&set)));
    }
}

#[test]
fn what_is_kept_is_what_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shared");
    let set = SharedSet::new(FIRST_BYTES, SEED);
    (0..2000).for_each(|n| share(&set, n));
    (2000..4000).for_each(|n| assert_eq!(set.note(id(n), 1), Noted::First));
    set.save(&path).unwrap();
    let (again, error) = SharedSet::load(&path, FIRST_BYTES, [9; 32]);
    assert!(error.is_none(), "{error:?}");
    let (old, new) = (set.stats(), again.stats());
    assert_eq!((old.epoch, old.keys, old.first_branches), (new.epoch, new.keys, new.first_branches));
    assert_eq!(set.delta(None), again.delta(None));
    assert_eq!(again.note(id(3000), 1), Noted::Same);
    assert_eq!(again.note(id(3000), 2), Noted::Shared);
    let (other, error) = SharedSet::load(&path, FIRST_BYTES * 2, [9; 32]);
    assert!(error.is_none() && other.stats().first_branches == 0 && other.stats().keys == old.keys);
    let (none, error) = SharedSet::load(&dir.path().join("none"), FIRST_BYTES, [9; 32]);
    assert!(matches!(error, Some(LoadError::Missing(_))) && none.stats().keys == 0);
    assert_ne!(none.stats().epoch, old.epoch, "another set");
}

#[test]
fn a_source_keeps_its_filter_over_restarts() {
    let set = SharedSet::new(FIRST_BYTES, SEED);
    (0..500).for_each(|n| share(&set, n));
    let filter = whole(&set);
    let kept = postcard::to_stdvec(&filter).unwrap();
    let mut again: SharedFilter = postcard::from_bytes(&kept).unwrap();
    assert_eq!((again.cursor(), bits(&again)), (filter.cursor(), bits(&filter)));
    share(&set, 9999);
    assert!(catch_up(&set, &mut again)[0].full.is_none() && again.may_contain(id(9999)));
    let none: SharedFilter =
        postcard::from_bytes(&postcard::to_stdvec(&SharedFilter::default()).unwrap()).unwrap();
    assert!(!none.is_loaded());
}

/// A small sound filter, with its parameters as given.
fn forged(hashes: u32, bits: usize) -> Vec<u8> {
    let mut bytes = vec![1];
    bytes.extend_from_slice(&(bits as u64).to_le_bytes());
    bytes.extend_from_slice(&hashes.to_le_bytes());
    bytes.extend_from_slice(&SEED);
    bytes.resize(bytes.len() + bits, 0xff);
    bytes
}

fn delta_of(bytes: Vec<u8>) -> Delta {
    let full = Some(FilterPart { total: bytes.len() as u32, offset: 0, bytes });
    Delta { epoch: 1, from: 0, position: 9, check: 3, full, additions: vec![], more: false }
}

#[test]
fn a_hostile_target_harms_nobody() {
    let mut filter = SharedFilter::default();
    assert_eq!(filter.apply(&delta_of(forged(7, 100))), Ok(()));
    assert_eq!(filter.false_positive_rate(), Some(1.0), "and shows");
    let cursor = filter.cursor();
    let good = delta_of(forged(7, 100));
    let plain = Delta { full: None, from: 9, ..good.clone() };
    let three = rice::encode(vec![1, 2, 3], Key::BITS);
    let part = |total: u32, offset: u32, len: usize| Delta {
        full: Some(FilterPart { total, offset, bytes: vec![0; len] }),
        ..good.clone()
    };
    for (bad, error) in [
        (Delta { epoch: 2, ..plain.clone() }, FilterError::OutOfOrder),
        (Delta { from: 8, ..plain.clone() }, FilterError::OutOfOrder),
        (Delta { position: 10, ..plain.clone() }, FilterError::OutOfOrder),
        (Delta { additions: three.clone(), ..plain.clone() }, FilterError::OutOfOrder),
        (Delta { position: u32::MAX, ..plain.clone() }, FilterError::TooLarge),
        (
            Delta { position: 12, additions: three[..7].to_vec(), ..plain.clone() },
            FilterError::Malformed("it is cut short"),
        ),
    ] {
        assert_eq!(filter.apply(&bad), Err(error));
        assert_eq!(filter.cursor(), cursor);
    }
    for bad in [
        part(u32::MAX, 0, 10),
        part(5 << 20, 0, PART_BYTES_MAX + 1),
        part(100, 0, 0),
        part(0, 0, 0),
        part(100, 0, 101),
        part(100, 50, 50),
        part(100, 0, 100),
        delta_of(forged(0, 100)),
        delta_of(forged(u32::MAX, 100)),
        delta_of(forged(7, 0)),
        delta_of(vec![]),
    ] {
        assert!(filter.apply(&bad).is_err());
        assert!(
            filter.may_contain(id(1)) && filter.cursor().is_none(),
            "the old one answers; all is asked anew"
        );
        assert!(filter.memory_bytes() < 1000);
    }
    filter.apply(&part(3 << 20, 0, 1000)).unwrap();
    assert_eq!(filter.apply(&plain), Err(FilterError::OutOfOrder), "additions between the parts");
    assert!(filter.apply(&part(3 << 20, 999, 1000)).is_err());
    assert_eq!(
        filter.apply(&Delta { position: 12, additions: three, ..plain }),
        Err(FilterError::OutOfOrder)
    );
}

#[test]
fn a_foolish_source_gets_the_whole_filter() {
    let set = SharedSet::new(FIRST_BYTES, SEED);
    (0..10).for_each(|n| share(&set, n));
    let at = whole(&set).cursor().unwrap();
    for wrong in [
        Cursor { epoch: at.epoch ^ 1, ..at },
        Cursor { position: 11, ..at },
        Cursor { position: u32::MAX, ..at },
        Cursor { check: 0, ..at },
        Cursor { part: Some(u32::MAX), ..at },
        Cursor { part: Some(0), ..at },
    ] {
        assert_eq!(set.delta(Some(wrong)).full.map(|part| part.offset), Some(0), "{wrong:?}");
    }
}

/// A set and a delta of every kind, byte for byte.
fn golden() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shared");
    let set = SharedSet::new(256, SEED);
    let mut filter = whole(&set);
    (0..20).for_each(|n| share(&set, n));
    set.note(id(100), 3);
    let additions = catch_up(&set, &mut filter).remove(0);
    set.save(&path).unwrap();
    // The filter's form, small: seed, hashes and bits.
    let mut bloom = Bloom::<Key>::new_with_seed(32, 27, &SEED).unwrap();
    (0..20).for_each(|n| bloom.set(&Key::of(id(n))));
    [std::fs::read(&path).unwrap(), postcard::to_stdvec(&additions).unwrap(), bloom.to_bytes()].concat()
}

#[test]
#[ignore = "writes the golden file; only for a new version of the format"]
fn write_golden() {
    std::fs::write("src/accelerator/shared_filter/golden/shared-v1.bin", golden()).unwrap();
}

#[test]
fn formats_are_the_golden_ones() {
    let wanted = include_bytes!("golden/shared-v1.bin");
    assert!(golden() == wanted, "a format changed: raise its version and add a golden file");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against a map of sets: what two branches referred to is found by every source, however it
    /// caught up; hardly anything else is; and additions make the same filter as the whole.
    #[test]
    fn agrees_with_the_model(
        notes in prop::collection::vec((0u64..400, 0u32..4), 1..1500),
        every in 1usize..200,
        restart in 0usize..3000,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shared");
        let mut set = SharedSet::new(FIRST_BYTES, SEED);
        let mut branches: HashMap<u64, HashSet<u32>> = HashMap::new();
        let mut filter = SharedFilter::default();
        for (at, (chunk, branch)) in notes.iter().enumerate() {
            let known = branches.entry(*chunk).or_default();
            let (was_new, was_shared) = (known.is_empty(), known.len() > 1);
            let added = known.insert(*branch);
            let expected = match (was_shared, was_new, added) {
                (true, ..) => Noted::Known,
                (_, true, _) => Noted::First,
                (_, _, true) => Noted::Shared,
                _ => Noted::Same,
            };
            let noted = set.note(id(*chunk), *branch);
            // With so few keys a mistake of the filter is out of the question.
            prop_assert_eq!(noted, expected);
            if at == restart {
                set.save(&path).unwrap();
                let (again, error) = SharedSet::load(&path, FIRST_BYTES, [1; 32]);
                prop_assert!(error.is_none());
                set = again;
            }
            if at % every == 0 {
                catch_up(&set, &mut filter);
            }
        }
        catch_up(&set, &mut filter);
        let fresh = whole(&set);
        prop_assert_eq!(bits(&filter), bits(&fresh));
        prop_assert_eq!(filter.cursor(), fresh.cursor());
        for (chunk, known) in &branches {
            prop_assert_eq!(filter.may_contain(id(*chunk)), known.len() > 1);
        }
    }

    /// However many chunks come: the table of first branches keeps its size, and a chunk is called
    /// shared only if it is.
    #[test]
    fn first_branches_are_bounded(count in 1u64..3000, memory in 0usize..4096) {
        let set = SharedSet::new(memory, SEED);
        for n in 0..count {
            prop_assert_eq!(set.note(id(n), 1), Noted::First);
        }
        prop_assert!(set.stats().first_branches * 8 <= memory.max(128) as u64);
        for n in count.saturating_sub(3)..count {
            prop_assert!(matches!(set.note(id(n), 2), Noted::Shared | Noted::First));
        }
    }

    #[test]
    fn rice_round_trip(mut numbers in prop::collection::vec(0u64..1 << 40, 0..400), dense in any::<bool>()) {
        if dense {
            numbers.iter_mut().for_each(|n| *n %= 500);
        }
        let coded = rice::encode(numbers.clone(), Key::BITS);
        // Random numbers take log2(2^40 / n) + 1.6 bits; no numbers take more than one bit above 2 + that.
        prop_assert!(coded.len() <= 6 + numbers.len() * 6);
        numbers.sort_unstable();
        prop_assert_eq!(rice::decode(&coded, Key::BITS, numbers.len()).unwrap(), numbers.clone());
        if !numbers.is_empty() {
            prop_assert!(rice::decode(&coded, Key::BITS, numbers.len() - 1).is_err());
            prop_assert!(rice::decode(&[&coded[..], &[0]].concat(), Key::BITS, 1000).is_err());
            prop_assert!(rice::decode(&coded[..coded.len() - 1], Key::BITS, 1000).is_err());
        }
    }

    #[test]
    fn garbage_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        low in 0u8..48,
        count in any::<u32>(),
        patch in any::<prop::sample::Index>(),
    ) {
        let mut coded = vec![low];
        coded.extend_from_slice(&(count % 5000).to_be_bytes());
        coded.extend_from_slice(&bytes);
        for numbers in [rice::decode(&bytes, Key::BITS, 1000), rice::decode(&coded, Key::BITS, 1000)].into_iter().flatten() {
            prop_assert!(numbers.len() <= 1000 && numbers.is_sorted() && numbers.iter().all(|n| n >> 40 == 0));
        }
        if let Ok(delta) = postcard::from_bytes::<Delta>(&bytes) {
            let _ = SharedFilter::default().apply(&delta);
        }
        if let Ok(filter) = postcard::from_bytes::<SharedFilter>(&bytes) {
            filter.may_contain(id(1));
        }
        // Sound answers with a few bytes changed.
        let set = SharedSet::new(FIRST_BYTES, SEED);
        let mut filter = whole(&set);
        (0..50).for_each(|n| share(&set, n));
        for cursor in [None, filter.cursor()] {
            let mut sent = postcard::to_stdvec(&set.delta(cursor)).unwrap();
            let at = if cursor.is_none() { patch.index(64) } else { patch.index(sent.len()) };
            sent.iter_mut().skip(at).zip(&bytes).take(4).for_each(|(old, new)| *old = *new);
            if let Ok(delta) = postcard::from_bytes::<Delta>(&sent) {
                let _ = filter.apply(&delta);
                filter.may_contain(id(1));
                prop_assert!(filter.memory_bytes() <= 2 * FILTER_BYTES_MAX);
            }
        }
        // A file with any bytes in place of its own, with a good sum.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shared");
        SharedSet::new(FIRST_BYTES / 64, SEED).save(&path).unwrap();
        let mut file = std::fs::read(&path).unwrap();
        file.truncate(file.len() - 32);
        let at = 8 + patch.index(file.len() - 8);
        file.iter_mut().skip(at).zip(&bytes).for_each(|(old, new)| *old = *new);
        let sum = *blake3::hash(&file).as_bytes();
        std::fs::write(&path, [&file[..], &sum].concat()).unwrap();
        let (set, _) = SharedSet::load(&path, FIRST_BYTES / 64, SEED);
        (0..100).for_each(|n| share(&set, n));
        prop_assert!(set.stats().keys <= set.stats().keys_max);
    }
}
