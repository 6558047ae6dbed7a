//! Figures, not checks: `cargo test --lib shared_filter::tests_measure -- --ignored --nocapture`.

use super::tests::{catch_up, id, share};
use super::*;
use crate::accelerator::block_index::tests_measure::cpu;

#[test]
#[ignore = "prints sizes and speeds; takes a minute"]
fn figures() {
    let set = SharedSet::new(256 << 20, [5; 32]);
    let mut shared = 0u64;
    for until in [10_000, 65_000, 260_000, 1_040_000, 4_150_000] {
        let start = cpu();
        let from = std::mem::replace(&mut shared, until);
        (from..until).for_each(|n| share(&set, n));
        println!(
            "{:.0} ns a note (with the hash of its id)",
            (cpu() - start).as_nanos() as f64 / (until - from) as f64 / 2.0
        );
        let stats = set.stats();
        let mut filter = SharedFilter::default();
        let parts = catch_up(&set, &mut filter).len();
        let wrong = (0..200_000).filter(|n| filter.may_contain(id(1 << 40 | n))).count();
        println!(
            "{} keys of {until}: {} bytes in {parts} parts, {:.2} a key; false positives {:.3} % by its bits, {:.3} % found",
            stats.keys,
            stats.filter_bytes,
            stats.filter_bytes as f64 / stats.keys as f64,
            filter.false_positive_rate().unwrap() * 100.0,
            wrong as f64 / 2000.0
        );
    }
    println!("{:?}", set.stats());
    for count in [10, 100, 1000, 10_000, 100_000, 250_000] {
        let keys: Vec<u64> = (0..count).map(|n| Key::of(id(n)).0).collect();
        let long: Vec<u64> =
            (0..count).map(|n| u64::from_be_bytes(*id(n).0.first_chunk().unwrap()) >> 1).collect();
        let start = cpu();
        let coded = rice::encode(keys, Key::BITS).len();
        println!(
            "{count} additions: {coded} bytes, {:.2} a key ({:.2} with 63 bits); {:.0} ns a key",
            coded as f64 / count as f64,
            rice::encode(long, 63).len() as f64 / count as f64,
            (cpu() - start).as_nanos() as f64 / count as f64
        );
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("shared");
    let start = cpu();
    set.save(&path).unwrap();
    println!("save: {:.1} s, {} bytes", (cpu() - start).as_secs_f64(), path.metadata().unwrap().len());
    let start = cpu();
    let (loaded, error) = SharedSet::load(&path, 256 << 20, [5; 32]);
    println!("load: {:.1} s, {error:?}, {:?}", (cpu() - start).as_secs_f64(), loaded.stats());
}
