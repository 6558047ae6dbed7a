//! Figures, not checks: `cargo test --lib anchors::tests_measure -- --ignored --nocapture`.

use std::time::Instant;

use super::*;

/// 655 GB of data.
const CHUNKS: u64 = 10_000_000;
/// Sampled 1 in 512.
const CHUNK_ANCHORS: u64 = 128;
const TB_CHUNKS: f64 = 1e12 / 65536.0;
const ASKED: u64 = 200_000;

/// The n-th anchor of a chunk; any 64 bits will do.
fn anchor(chunk: u64, n: u64) -> Anchor {
    let mut x = (chunk * CHUNK_ANCHORS + n).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    Anchor(x ^ (x >> 31))
}

/// One line: so much a second, and what line that keeps up with.
fn speed(what: &str, chunks: u64, start: Instant) {
    let rate = chunks as f64 / start.elapsed().as_secs_f64();
    println!(
        "  {what}: {:.2} M anchors/s, {:.1} Gbit/s of chunks",
        rate * 128.0 / 1e6,
        rate * 65536.0 * 8.0 / 1e9
    );
}

#[test]
#[ignore = "takes 1 GB of memory and some minutes"]
fn ten_million_chunks() {
    for memory in [64 << 20, 320 << 20, 1 << 30] {
        println!("{} MiB:", memory >> 20);
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (store, _) = AnchorStore::open(&dir.path().join("anchors"), memory);
        let disk = DiskKey { job: "all".into(), disk: 0 };
        let image = store.begin(&disk, "s").unwrap().building;
        let start = Instant::now();
        for chunk in 0..CHUNKS {
            let block = |n: u64| ((chunk * 16 + n / 8) & u64::from(u32::MAX)) as u32;
            store.put(image, (0..CHUNK_ANCHORS).map(|n| (anchor(chunk, n), block(n))));
        }
        speed("entered", CHUNKS, start);
        for (what, from) in [("looked up, known", 0), ("looked up, unknown", CHUNKS)] {
            let (start, mut hits, mut chunks) = (Instant::now(), 0, 0);
            for nth in 0..ASKED {
                let chunk = from + nth * 7919 % CHUNKS;
                let found = store.find((0..CHUNK_ANCHORS).map(|n| anchor(chunk, n)));
                let found = found.iter().flatten().count();
                (hits, chunks) = (hits + found, chunks + u64::from(found > 0));
            }
            speed(what, ASKED, start);
            let share = |part: u64, of: u64| 100.0 * part as f64 / of as f64;
            println!(
                "    {:.2} % of the anchors, {:.1} % of the chunks by one at least",
                share(hits as u64, ASKED * CHUNK_ANCHORS),
                share(chunks, ASKED)
            );
        }
        let stats = store.stats();
        store.sealed("all", "s", true, |_, _| true);
        store.save().unwrap();
        let file = store.path.metadata().unwrap().len();
        let per_tb = |bytes: u64| bytes as f64 / CHUNKS as f64 * TB_CHUNKS / 1e6;
        println!(
            "  {} entries of {:.1} bytes: {:.0} MB of memory and {:.0} MB of disk for each TB of data ({:.3} %)",
            stats.entries,
            stats.memory_bytes as f64 / stats.entries as f64,
            per_tb(stats.memory_bytes),
            per_tb(file),
            stats.memory_bytes as f64 / (CHUNKS * 65536) as f64 * 100.0
        );
    }
}
