//! Figures, not checks: `cargo test --lib block_index::tests_measure -- --ignored --nocapture`.

use std::time::Duration;

use super::*;

/// Processor time of this thread: other work on the machine does not count.
pub(in crate::accelerator) fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

const TAG: DomainTag = DomainTag(*b"measured");

/// Uniform, and different for every block of every chunk; salt 0 is what gets inserted.
pub(super) fn id(salt: u64, chunk: u64, block: usize) -> BlockId {
    let mut z = (chunk * 16 + block as u64).wrapping_add(salt << 60).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    BlockId((z ^ z >> 31).max(1))
}

pub(super) fn ids(salt: u64, chunk: u64) -> BlockIds {
    std::array::from_fn(|block| Some(id(salt, chunk, block)))
}

pub(super) fn short(chunk: u64) -> ShortId {
    let mut short = [0; 16];
    // Not of all zeroes, which no chunk has that is inserted.
    short[..8].copy_from_slice(&(chunk + 1).to_be_bytes());
    ShortId(short)
}

fn rate(what: &str, count: u64, start: Duration) {
    let seconds = (cpu() - start).as_secs_f64();
    println!("{what}: {:.2} M/s ({:.0} ns each)", count as f64 / seconds / 1e6, seconds * 1e9 / count as f64);
}

#[test]
#[ignore = "takes 1.3 GB of memory and a minute"]
fn a_hundred_million_entries() {
    let memory = 1_300 << 20;
    let index = BlockIndex::new(memory);
    let full = index.stats().entries_max / 16;
    let mut inserted = 0;
    for (name, until) in [("to 80 % of its size", full * 4 / 5), ("to its size", full), ("beyond", full * 2)]
    {
        let (start, from) = (cpu(), inserted);
        while inserted < until {
            index.insert(TAG, short(inserted), &ids(0, inserted));
            inserted += 1;
        }
        rate(&format!("insert, blocks, {name}"), (until - from) * 16, start);
        println!(
            "  {:.2} GB/s of chunks",
            (until - from) as f64 * 65536.0 / (cpu() - start).as_secs_f64() / 1e9
        );
        let stats = index.stats();
        println!("  {inserted} chunks inserted: {stats:?}");
        println!(
            "  {:.2} bytes an entry in use, {:.1} % of the blocks found",
            stats.memory_bytes as f64 / stats.entries as f64,
            stats.entries as f64 / (inserted * 16) as f64 * 100.0
        );
    }
    for (name, salt) in [("present or thinned out", 0), ("absent", 1)] {
        let asked = 2_000_000;
        let (start, mut found, mut wrong) = (cpu(), 0u64, 0u64);
        for n in 0..asked {
            let chunk = inserted - 1 - n * 7919 % (full / 4);
            for (block, hint) in index.lookup_all(TAG, &ids(salt, chunk)).into_iter().enumerate() {
                found += u64::from(hint.is_some());
                wrong += u64::from(hint.is_some_and(|h| (h.chunk, h.block) != (short(chunk), block as u8)));
            }
        }
        rate(
            &format!("lookup, blocks, {name}: {found} of {} found, {wrong} wrong", asked * 16),
            asked * 16,
            start,
        );
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("blocks");
    let start = cpu();
    index.save(&path).unwrap();
    println!("save: {:.1} s, {} bytes", (cpu() - start).as_secs_f64(), path.metadata().unwrap().len());
    let start = cpu();
    let (loaded, error) = BlockIndex::load(&path, memory);
    println!("load: {:.1} s, {error:?}, {:?}", (cpu() - start).as_secs_f64(), loaded.stats());
}

/// Of the blocks of a chunk that moved by some blocks, those that are found: as the index answers, and
/// where the caller compares all blocks of every chunk it reads.
fn found_of_moved(index: &BlockIndex, chunk: u64, shift: usize) -> (usize, usize) {
    let old = |n: usize| (chunk + ((n + shift) / 16) as u64, (n + shift) % 16);
    let asked: BlockIds = std::array::from_fn(|n| Some(id(0, old(n).0, old(n).1)));
    let hints = index.lookup_all(TAG, &asked);
    let read: Vec<ShortId> = hints.iter().flatten().map(|hint| hint.chunk).collect();
    let found = (0..16).filter(|n| read.contains(&short(old(*n).0))).count();
    (read.len(), found)
}

#[test]
#[ignore = "prints what thinning gains"]
fn thinning() {
    for keep_every in [1, 2, 4, 8] {
        let index = BlockIndex::thinned(64 << 20, keep_every);
        let full = index.stats().entries_max / 16;
        let inserted = full * 4;
        (0..inserted).for_each(|chunk| index.insert(TAG, short(chunk), &ids(0, chunk)));
        println!("1 of {keep_every} kept; {:?}", index.stats());
        let (mut single, mut run) = (0.0, 0.0);
        for tenth in 1..=30 {
            // So many times its size ago.
            let (mut asked, mut alone, mut together) = (0, 0, 0);
            let age = full * tenth / 10;
            for n in 0..400 {
                let (a, t) =
                    found_of_moved(&index, inserted - age + n % (full / 10 - 1), 1 + n as usize * 7 % 15);
                (asked, alone, together) = (asked + 16, alone + a, together + t);
            }
            let share = |n: usize| n as f64 / f64::from(asked) * 100.0;
            (single, run) = (single + share(alone) / 1000.0, run + share(together) / 1000.0);
            if tenth % 2 == 0 {
                println!(
                    "  age {:.1}: one by one {:5.1} %, whole chunks {:5.1} %",
                    tenth as f64 / 10.0,
                    share(alone),
                    share(together)
                );
            }
        }
        println!("  sum over ages, in sizes of the index: one by one {single:.2}, whole chunks {run:.2}");
    }
}

#[test]
#[ignore = "prints the speed of naming blocks"]
fn naming() {
    let mut chunk = vec![0; CHUNK_BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut chunk);
    let key = DomainKey([7; 32]);
    let start = cpu();
    let count = 20_000;
    let named: usize =
        (0..count).map(|_| block_ids(&key, std::hint::black_box(&chunk)).iter().flatten().count()).sum();
    let rate = (count * CHUNK_BYTES) as f64 / (cpu() - start).as_secs_f64() / 1e9;
    println!("block_ids: {rate:.2} GB/s ({named} blocks)");
}
