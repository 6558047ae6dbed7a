//! Figures, not checks: `cargo test --lib global_cache::tests_measure -- --ignored --nocapture`.

use std::path::Path;
use std::time::Instant;

use super::format::Entry;
use super::index::{Index, Location, PackRow};
use crate::block::{ChunkId, DomainTag, PAGE_CHUNKS};
use crate::database::Database;
use crate::limits::DATABASE_MEMORY_BYTES;

const TAG: DomainTag = DomainTag(*b"measured");
/// 655 GB of unique data.
const CHUNKS: u64 = 10_000_000;
/// Records in a pack of 64 MiB whose chunks shrink to a third, and in one group commit.
const PACK_RECORDS: u64 = 3000;
const COMMIT_RECORDS: u64 = 150;
const TB_CHUNKS: f64 = 1e12 / 65536.0;

fn id(n: u64) -> ChunkId {
    ChunkId(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

fn disk_bytes(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).unwrap().flatten();
    files.map(|file| file.metadata().map_or(0, |meta| meta.len())).sum()
}

/// Resident memory of this process.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn speed(what: &str, count: u64, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    let gbit = count as f64 / seconds * 65536.0 * 8.0 / 1e9;
    println!("{what}: {:.2} M/s, which is {gbit:.0} Gbit/s of chunks", count as f64 / seconds / 1e6);
}

#[test]
#[ignore = "takes 2 GB of disk and some minutes"]
fn ten_million_chunks() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let before = resident();
    let index = Index::new(Database::open(dir.path(), DATABASE_MEMORY_BYTES).unwrap());
    let start = Instant::now();
    for first in (0..CHUNKS).step_by(COMMIT_RECORDS as usize) {
        let pack = first / PACK_RECORDS;
        let records: Vec<_> = (first..(first + COMMIT_RECORDS).min(CHUNKS))
            .map(|n| {
                let offset = (n % PACK_RECORDS) as u32 * 22_000;
                let entry = Entry { tag: TAG, id: id(n), offset, stored_len: 21_900, plain_len: 65_536 };
                ((TAG, entry.id.short()), Location::of(pack, &entry))
            })
            .collect();
        index.commit(&records, &[(pack, PackRow::default())], pack + 1, false).unwrap();
    }
    speed("entered, packs", CHUNKS, start);
    let packs_bytes = disk_bytes(dir.path());
    let start = Instant::now();
    for page in 0..CHUNKS / PAGE_CHUNKS as u64 {
        let ids: Vec<ChunkId> = (0..PAGE_CHUNKS as u64).map(|n| id(page * PAGE_CHUNKS as u64 + n)).collect();
        index.put_page(TAG, [7; 16], 0, page, &ids).unwrap();
    }
    speed("entered, places on a replica's disk", CHUNKS, start);
    let disk = disk_bytes(dir.path());
    for (what, from) in [("offered, all known", 0), ("offered, all unknown", CHUNKS)] {
        let start = Instant::now();
        let mut found = 0;
        for page in 0..200 {
            // What one offer names: a page of ids from all over.
            let keys: Vec<_> = (0..PAGE_CHUNKS as u64)
                .map(|n| (TAG, id(from + (page * 1_000_003 + n * 9_973) % CHUNKS).short()))
                .collect();
            found += index.lookup_many(&keys).iter().flatten().count();
        }
        speed(what, 200 * PAGE_CHUNKS as u64, start);
        assert_eq!(found, if from == 0 { 200 * PAGE_CHUNKS } else { 0 });
    }
    let per_tb = |bytes: u64| bytes as f64 / CHUNKS as f64 * TB_CHUNKS / 1e6;
    println!(
        "on disk: {:.0} MB per TB of unique data for packs, {:.0} MB with places on replicas' disks ({:.1} bytes a chunk)",
        per_tb(packs_bytes),
        per_tb(disk),
        disk as f64 / CHUNKS as f64
    );
    println!("memory: {} MiB, whatever there is", (resident() - before) >> 20);
}
