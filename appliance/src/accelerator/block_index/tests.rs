use std::collections::HashMap;

use proptest::prelude::*;

use super::tests_measure::{id, ids, short};
use super::*;

const TAG: DomainTag = DomainTag(*b"domain-a");
const OTHER: DomainTag = DomainTag(*b"domain-b");

fn small() -> BlockIndex {
    BlockIndex::new(MEMORY_BYTES_MIN)
}

#[test]
fn names_of_blocks() {
    let key = DomainKey([7; 32]);
    let mut chunk = vec![0; CHUNK_BYTES];
    chunk[4096..8192].fill(1);
    chunk[15 * 4096..].fill(1);
    let names = block_ids(&key, &chunk);
    let hash = *blake3::keyed_hash(&key.0, &chunk[4096..8192]).as_bytes();
    assert_eq!(names[1].unwrap().0.to_be_bytes(), hash[..8]);
    assert_eq!((names[1], names.iter().flatten().count()), (names[15], 2), "zeroes have no name");
    let tail = block_ids(&key, &chunk[4096..8192 + 100]);
    assert_eq!((tail[0], tail[1]), (names[1], None), "a short block has no name");
    assert_eq!(block_ids(&key, &[]), [None; CHUNK_BLOCKS]);
    assert_eq!(block_ids(&key, &vec![1; 2 * CHUNK_BYTES]), block_ids(&key, &vec![1; CHUNK_BYTES]));
    assert_ne!(block_id(&DomainKey([8; 32]), &chunk[4096..8192]), names[1]);
}

#[test]
fn finds_within_a_domain() {
    let index = small();
    index.insert(TAG, short(1), &ids(0, 1));
    for block in 0..16 {
        let hint = index.lookup(TAG, id(0, 1, block)).unwrap();
        assert_eq!((hint.chunk, usize::from(hint.block)), (short(1), block));
        assert_eq!(index.lookup(OTHER, id(0, 1, block)), None);
    }
    assert_eq!(index.lookup_all(TAG, &[None, Some(id(0, 2, 0))]), [None, None]);
    assert_eq!(index.stats().entries, 16);
    index.insert(TAG, short(9), &[None; CHUNK_BLOCKS]);
    assert_eq!(index.stats().chunks, 1, "nothing to lead to");
}

#[test]
fn the_newest_chunk_wins() {
    let index = small();
    index.insert(TAG, short(1), &ids(0, 1));
    let mut moved = [None; CHUNK_BLOCKS];
    moved[3..].copy_from_slice(&ids(0, 1)[..13]);
    index.insert(TAG, short(2), &moved);
    let hint = index.lookup(TAG, id(0, 1, 0)).unwrap();
    assert_eq!((hint.chunk, hint.block), (short(2), 3));
    assert_eq!(index.lookup(TAG, id(0, 1, 15)).unwrap().chunk, short(1));
    assert_eq!(index.stats().entries, 16);
}

#[test]
fn what_fails_is_forgotten() {
    let index = small();
    index.insert(TAG, short(1), &ids(0, 1));
    index.insert(TAG, short(2), &ids(0, 2));
    let hint = index.lookup(TAG, id(0, 1, 5)).unwrap();
    index.forget_block(TAG, id(0, 1, 5), &hint);
    assert_eq!(index.lookup(TAG, id(0, 1, 5)), None);
    assert!(index.lookup(TAG, id(0, 1, 6)).is_some());
    index.forget_chunk(TAG, &hint);
    index.forget_chunk(TAG, &hint);
    assert!(index.lookup_all(TAG, &ids(0, 1)).iter().all(Option::is_none));
    assert!(index.lookup_all(TAG, &ids(0, 2)).iter().all(Option::is_some));
    assert_eq!(index.stats().forgotten, 2);
    index.insert(TAG, short(1), &ids(0, 1));
    assert!(index.lookup_all(TAG, &ids(0, 1)).iter().all(Option::is_some));
}

#[test]
fn full_it_keeps_its_bound_the_newest_and_a_part_of_the_old() {
    let memory = 1 << 20;
    let index = BlockIndex::new(memory);
    let full = index.stats().entries_max / 16;
    let inserted = full * 6;
    (0..inserted).for_each(|chunk| index.insert(TAG, short(chunk), &ids(0, chunk)));
    let stats = index.stats();
    assert!(stats.memory_bytes <= memory as u64 && stats.entries <= stats.entries_max, "{stats:?}");
    assert!(stats.entries_max * 11 > memory as u64 * 9 / 10, "most of the memory is used: {stats:?}");
    assert_eq!(stats.chunks, stats.chunks_max);
    let found = |age: u64| {
        let chunks = (0..full / 10).map(|n| inserted - 1 - age * full / 10 - n);
        let some = chunks.map(|c| {
            let hints = index.lookup_all(TAG, &ids(0, c));
            hints.iter().flatten().filter(|h| h.chunk == short(c)).count()
        });
        some.map(|blocks| (blocks as u64, u64::from(blocks > 0)))
            .fold((0, 0), |a, b| (a.0 + b.0 * 100, a.1 + b.1 * 100))
    };
    let share = |age: u64, each: u64| (found(age).0 / each / 16, found(age).1 / each);
    let each = full / 10;
    assert!(share(0, each).0 >= 98, "newest {:?}", share(0, each));
    let (blocks, chunks) = share(15, each);
    assert!(blocks < 40 && chunks > 85, "one and a half times its size ago: {blocks} {chunks}");
    assert_eq!(share(26, each), (0, 0), "past the ring");
}

#[test]
fn what_was_asked_for_outlives_what_was_not() {
    let survivors = |ask: bool| {
        let index = BlockIndex::thinned(1 << 20, 1);
        let full = index.stats().entries_max / 16;
        (0..full).for_each(|chunk| index.insert(TAG, short(chunk), &ids(0, chunk)));
        if ask {
            (0..100).for_each(|chunk| drop(index.lookup_all(TAG, &ids(0, chunk))));
        }
        (full..full * 2).for_each(|chunk| index.insert(TAG, short(chunk), &ids(0, chunk)));
        (0..100).map(|chunk| index.lookup_all(TAG, &ids(0, chunk)).iter().flatten().count()).sum::<usize>()
    };
    assert!(survivors(true) > survivors(false) + 400, "{} {}", survivors(true), survivors(false));
}

#[test]
fn sequence_numbers_wrap() {
    for next in [1u64, 5, 1 << 34, (1 << 34) + 3, 7 << 34] {
        let word = |sequence: u64| entry::pack(Spread::of(TAG, BlockId(1)), sequence, 3);
        assert_eq!(entry::sequence(word(next - 1), next, 4), Some(next - 1));
        assert_eq!(entry::sequence(word(next), next, 4), None, "not yet there");
        assert_eq!(entry::sequence(word(next.wrapping_sub(5)), next, 4), None, "gone");
    }
    assert_eq!(entry::sequence(0, 0, 4), None);
}

/// What a lookup of all blocks of a chunk gave: right hints, and wrong ones, which verification catches
/// (some 5 in 10 million by the length of the fingerprint).
fn right_and_wrong(index: &BlockIndex, chunk: u64) -> (usize, usize) {
    let hints = index.lookup_all(TAG, &ids(0, chunk)).into_iter().enumerate();
    let right = hints.filter_map(|(block, hint)| Some((block, hint?)));
    let right: Vec<bool> =
        right.map(|(block, hint)| (hint.chunk, usize::from(hint.block)) == (short(chunk), block)).collect();
    let wrong = right.iter().filter(|right| !**right).count();
    (right.len() - wrong, wrong)
}

#[test]
fn sessions_share_it() {
    let index = BlockIndex::new(1 << 20);
    let mut saved = Vec::new();
    std::thread::scope(|scope| {
        for session in 0..4u64 {
            let index = &index;
            scope.spawn(move || {
                let mut wrong = 0;
                for chunk in (0..3000).map(|n| session * 1_000_000 + n) {
                    index.insert(TAG, short(chunk), &ids(0, chunk));
                    wrong += right_and_wrong(index, chunk).1;
                }
                assert!(wrong < 4, "{wrong}");
            });
        }
        let dir = tempfile::tempdir().unwrap();
        for n in 0..5 {
            index.save(&dir.path().join("blocks")).unwrap();
            let (copy, error) = BlockIndex::load(&dir.path().join("blocks"), 1 << 20);
            assert!(error.is_none(), "{n}: {error:?}");
            saved.push(copy);
        }
    });
    saved.push(index);
    for copy in saved {
        let chunks = (0..4).flat_map(|session| (0..3000).map(move |n| session * 1_000_000 + n));
        let wrong: usize = chunks.map(|chunk| right_and_wrong(&copy, chunk).1).sum();
        assert!(wrong < 6, "{wrong}");
    }
}

fn golden_index() -> BlockIndex {
    let index = small();
    for chunk in 0..3 {
        index.insert(TAG, short(chunk), &ids(0, chunk));
    }
    assert!(index.lookup(TAG, id(0, 1, 2)).is_some());
    index
}

#[test]
#[ignore = "writes the golden file; only for a new version of the format"]
fn write_golden() {
    golden_index().save(Path::new("src/accelerator/block_index/golden/blocks-v1.bin")).unwrap();
}

#[test]
fn file_format_is_the_golden_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blocks");
    golden_index().save(&path).unwrap();
    let golden = include_bytes!("golden/blocks-v1.bin");
    assert!(
        std::fs::read(&path).unwrap() == golden,
        "the format changed: raise its version and add a golden file"
    );
    std::fs::write(&path, golden).unwrap();
    let (index, error) = BlockIndex::load(&path, MEMORY_BYTES_MIN);
    assert!(error.is_none(), "{error:?}");
    for chunk in 0..3 {
        let hints = index.lookup_all(TAG, &ids(0, chunk));
        assert!(hints.iter().all(|hint| hint.is_some_and(|hint| hint.chunk == short(chunk))));
    }
}

#[test]
fn damage_gives_an_empty_index_and_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blocks");
    let load = || {
        let (index, error) = BlockIndex::load(&path, MEMORY_BYTES_MIN);
        assert_eq!(index.stats().entries, if error.is_some() { 0 } else { 48 });
        error.map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(load().ends_with("does not exist yet"));
    golden_index().save(&path).unwrap();
    assert_eq!(load(), "");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing temporary is left");
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bad).unwrap();
        assert_ne!(load(), "", "a changed byte {at}");
        std::fs::write(&path, &good[..at]).unwrap();
        assert_ne!(load(), "", "cut at {at}");
    }
    std::fs::write(&path, [&good[..], b"x"].concat()).unwrap();
    assert_ne!(load(), "");
    std::fs::write(&path, &good).unwrap();
    let (index, error) = BlockIndex::load(&path, 1 << 20);
    assert!(matches!(error, Some(LoadError::Other { .. })) && index.stats().entries == 0);
    assert!(golden_index().save(&dir.path().join("no/such/place")).is_err());
}

/// Garbage with a good sum reaches what is behind it.
fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = *blake3::hash(&bytes).as_bytes();
    bytes.extend_from_slice(&sum);
    bytes
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u64, [Option<u16>; 16]),
    Ask(u16),
    Forget(u16),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    // Few blocks, so that chunks share many; few chunks would never fill the ring.
    let blocks = prop::array::uniform16(prop::option::weighted(0.8, 0u16..400));
    prop_oneof![
        8 => (0u64..1 << 60, blocks).prop_map(|(chunk, blocks)| Step::Insert(chunk, blocks)),
        8 => (0u16..400).prop_map(Step::Ask),
        2 => (0u16..400).prop_map(Step::Forget),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against the trivial model: the newest chunk of each block, and what each chunk holds.
    #[test]
    fn hints_lead_where_the_block_is(steps in prop::collection::vec(step(), 1..300)) {
        let name = |block: u16| id(0, u64::from(block), 0);
        let dir = tempfile::tempdir().unwrap();
        let (mut index, mut newest) = (small(), HashMap::new());
        let mut content: HashMap<(u64, u8), u16> = HashMap::new();
        for step in steps {
            match step {
                Step::Insert(chunk, blocks) => {
                    index.insert(TAG, short(chunk), &blocks.map(|block| block.map(name)));
                    for (n, block) in blocks.iter().enumerate() {
                        if let Some(block) = block {
                            content.insert((chunk, n as u8), *block);
                            newest.insert(*block, (chunk, n as u8));
                        }
                    }
                }
                Step::Ask(block) => {
                    let hint = index.lookup(TAG, name(block));
                    // It is far from full, so nothing may be lost.
                    let expected = newest.get(&block).map(|(chunk, n)| (short(*chunk), *n));
                    prop_assert_eq!(hint.map(|hint| (hint.chunk, hint.block)), expected);
                    prop_assert_eq!(index.lookup(OTHER, name(block)), None);
                }
                Step::Forget(block) => if let Some(hint) = index.lookup(TAG, name(block)) {
                    let n = hint.chunk.0[..8].try_into().map(u64::from_be_bytes).unwrap() - 1;
                    prop_assert_eq!(content.get(&(n, hint.block)), Some(&block));
                    index.forget_chunk(TAG, &hint);
                    newest.retain(|_, place| place.0 != n);
                },
                Step::Restart => {
                    let path = dir.path().join("blocks");
                    let before = index.stats();
                    index.save(&path).unwrap();
                    let (loaded, error) = BlockIndex::load(&path, MEMORY_BYTES_MIN);
                    prop_assert!(error.is_none(), "{:?}", error);
                    let (old, new) = (before, loaded.stats());
                    prop_assert_eq!((old.entries, old.chunks, old.memory_bytes), (new.entries, new.chunks, new.memory_bytes));
                    index = loaded;
                }
            }
        }
    }

    /// Overfull, whatever is inserted: hardly a hint fails its verification, the bound holds, and a saved index answers as the living one.
    #[test]
    fn overfull_it_stays_sound(seed in any::<u64>(), chunks in 1u64..2500, back in 1u64..600) {
        let dir = tempfile::tempdir().unwrap();
        let index = small();
        let seed = seed >> 8;
        (0..chunks).for_each(|n| index.insert(TAG, short(seed + n), &ids(0, seed + n)));
        let stats = index.stats();
        prop_assert!(stats.memory_bytes <= MEMORY_BYTES_MIN as u64);
        prop_assert!(stats.entries <= stats.entries_max && stats.chunks <= stats.chunks_max);
        index.save(&dir.path().join("blocks")).unwrap();
        let (loaded, error) = BlockIndex::load(&dir.path().join("blocks"), MEMORY_BYTES_MIN);
        prop_assert!(error.is_none());
        let mut all_wrong = 0;
        for n in chunks.saturating_sub(back)..chunks {
            let (right, wrong) = right_and_wrong(&index, seed + n);
            prop_assert_eq!((right, wrong), right_and_wrong(&loaded, seed + n));
            prop_assert!(n + 40 < chunks || right >= 13, "the newest are there: {}", right);
            all_wrong += wrong;
        }
        prop_assert!(all_wrong < 3, "{}", all_wrong);
    }

    #[test]
    fn garbage_files_are_refused(
        garbage in prop::collection::vec(any::<u8>(), 0..400),
        from in 0usize..4000,
        len in any::<u32>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blocks");
        golden_index().save(&path).unwrap();
        let good = std::fs::read(&path).unwrap();
        let body = &good[..good.len() - 32];
        let from = from % body.len();
        let patched: Vec<u8> = body.iter().take(from).chain(&garbage).chain(body.iter().skip(from + garbage.len())).copied().collect();
        let lengths = [&body[..from], &len.to_be_bytes(), &garbage].concat();
        for bytes in [seal(patched), seal(lengths), seal(garbage.clone()), garbage] {
            std::fs::write(&path, bytes).unwrap();
            let (index, error) = BlockIndex::load(&path, MEMORY_BYTES_MIN);
            prop_assert!(error.is_none() || index.stats().entries == 0);
            // What came through is in use like any other.
            (0..600).for_each(|chunk| index.insert(TAG, short(chunk), &ids(0, chunk)));
            let stats = index.stats();
            prop_assert!(stats.entries <= stats.entries_max);
            index.save(&path).unwrap();
        }
    }
}
