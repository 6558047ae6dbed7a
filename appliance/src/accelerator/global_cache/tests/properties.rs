//! The cache against a plain map, with and without harm; its speed.

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Append(u32),
    Get(u32),
    Settle(u32),
    Restart,
    Crash,
    LoseDatabase,
    TornTail(Vec<u8>),
    Flip(u16, u32),
    Truncate(u16, u32),
    Remove(u16),
}

fn harmless() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0..60u32).prop_map(Step::Append),
        20 => (0..60u32).prop_map(Step::Get),
        3 => (0..60u32).prop_map(Step::Settle),
        1 => Just(Step::Restart),
        1 => Just(Step::LoseDatabase),
        1 => prop::collection::vec(any::<u8>(), 1..200).prop_map(Step::TornTail),
    ]
}

fn harmful() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => harmless(),
        1 => Just(Step::Crash),
        2 => (any::<u16>(), any::<u32>()).prop_map(|(pack, at)| Step::Flip(pack, at)),
        1 => (any::<u16>(), any::<u32>()).prop_map(|(pack, len)| Step::Truncate(pack, len)),
        1 => any::<u16>().prop_map(Step::Remove),
    ]
}

/// Applies a step that is not about chunks.
fn disturb(site: &mut Site, step: &Step) {
    let pick = |site: &Site, pack: u16| {
        let files = site.pack_files();
        (!files.is_empty()).then(|| files[pack as usize % files.len()].clone())
    };
    match step {
        Step::Crash => *site = site.crash_copy(),
        Step::Restart => {
            site.stop();
            site.start();
        }
        Step::LoseDatabase => {
            site.stop();
            std::fs::remove_dir_all(site.dir.path().join("database")).unwrap();
            site.start();
        }
        Step::TornTail(junk) => {
            site.stop();
            if let Some(open) = site.pack_files().pop() {
                let len = std::fs::metadata(&open).unwrap().len();
                File::options().write(true).open(&open).unwrap().write_all_at(junk, len).unwrap();
            }
            site.start();
        }
        Step::Flip(pack, at) => {
            if let Some(path) = pick(site, *pack) {
                let len = std::fs::metadata(&path).unwrap().len();
                flip(&path, u64::from(*at) % len.max(1));
            }
        }
        Step::Truncate(pack, len) => {
            if let Some(path) = pick(site, *pack) {
                let now = std::fs::metadata(&path).unwrap().len();
                File::options()
                    .write(true)
                    .open(&path)
                    .unwrap()
                    .set_len(u64::from(*len) % now.max(1))
                    .unwrap();
            }
        }
        Step::Remove(pack) => {
            drop(pick(site, *pack).map(std::fs::remove_file));
            site.notice_removed_files();
        }
        Step::Append(_) | Step::Get(_) | Step::Settle(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing is lost while nothing is damaged: the cache is the map.
    #[test]
    fn is_a_map(steps in prop::collection::vec(harmless(), 1..150)) {
        let mut site = Site::new(settings(1000));
        let mut model: HashMap<u32, Vec<u8>> = HashMap::new();
        for step in &steps {
            match step {
                Step::Append(n) => {
                    site.append(*n);
                    model.insert(*n, content(*n));
                }
                Step::Settle(n) => {
                    site.settle(site.append(*n));
                    model.insert(*n, content(*n));
                }
                Step::Get(n) => prop_assert!(site.get(*n) == model.get(n).cloned(), "chunk {n}"),
                other => disturb(&mut site, other),
            }
        }
        let ids: Vec<ShortId> = (0..60).map(|n| id_of(n).short()).collect();
        let known = site.cache().contains_many(key().tag(), &ids);
        for n in 0..60 {
            prop_assert!(site.get(n) == model.get(&n).cloned(), "chunk {n}");
            prop_assert_eq!(known[n as usize], model.contains_key(&n));
        }
        prop_assert_eq!(site.cache().stats().bad_records, 0);
    }

    /// Whatever is damaged or evicted: never a wrong chunk, what is missing can be stored again at
    /// once, and the bound holds.
    #[test]
    fn is_never_wrong(steps in prop::collection::vec(harmful(), 1..150)) {
        let mut site = Site::new(settings(5));
        for step in &steps {
            match step {
                Step::Append(n) | Step::Settle(n) => {
                    let was = site.get(*n);
                    prop_assert!(was.is_none() || was == Some(content(*n)));
                    let ticket = site.append(*n);
                    prop_assert!(site.get(*n) == Some(content(*n)), "stored and not found");
                    if matches!(step, Step::Settle(_)) {
                        site.settle(ticket);
                    }
                }
                Step::Get(n) => {
                    let found = site.get(*n);
                    prop_assert!(found.is_none() || found == Some(content(*n)));
                }
                other => disturb(&mut site, other),
            }
            prop_assert!(site.on_disk() <= 5 * PACK);
        }
    }
}

#[test]
#[ignore = "measures: cargo test -p vbr-appliance --lib global_cache::tests::speed -- --ignored --nocapture"]
fn speed() {
    const CHUNKS: usize = 16 * 1024;
    let dir = tempfile::tempdir_in(std::env::var("VBR_SPEED_DIR").unwrap_or_else(|_| ".".into())).unwrap();
    let db = Database::open(&dir.path().join("database"), limits::DATABASE_MEMORY_BYTES).unwrap();
    let cache = GlobalCache::open(&dir.path().join("packs"), Arc::clone(&db), 4 << 30, 0).unwrap();
    let mut data = vec![0; CHUNKS * CHUNK_BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut data);
    let (key, tag) = (key(), key().tag());
    let ids: Vec<ChunkId> = data.chunks_exact(CHUNK_BYTES).map(|chunk| key.chunk_id(chunk)).collect();
    let per_second = |count: usize, since: Instant| count as f64 / since.elapsed().as_secs_f64();

    // As a session does: at most 3.5 MiB that are not durable yet.
    let started = Instant::now();
    wait(async {
        let mut window = std::collections::VecDeque::new();
        for (id, chunk) in ids.iter().zip(data.chunks_exact(CHUNK_BYTES)).take(CHUNKS / 4) {
            window.push_back(cache.append(tag, *id, chunk).unwrap());
            if window.len() >= 56 {
                cache.durable(window.pop_front().unwrap()).await.unwrap();
            }
        }
        cache.durable(window.pop_back().unwrap()).await.unwrap();
    });
    println!(
        "append, durable within 3.5 MiB: {:.0} MB/s",
        per_second(CHUNKS / 4 * CHUNK_BYTES, started) / 1e6
    );
    let started = Instant::now();
    let mut last = Ticket(0);
    for (id, chunk) in ids.iter().zip(data.chunks_exact(CHUNK_BYTES)).skip(CHUNKS / 4) {
        last = cache.append(tag, *id, chunk).unwrap();
    }
    wait(cache.durable(last)).unwrap();
    println!(
        "append, durable at the end: {:.0} MB/s",
        per_second(CHUNKS / 4 * 3 * CHUNK_BYTES, started) / 1e6
    );
    for (name, skip) in [("present", 0u8), ("absent", 1)] {
        let started = Instant::now();
        for page in ids.chunks(1024) {
            let asked: Vec<ShortId> =
                page.iter().map(|id| ShortId(id.short().0.map(|byte| byte ^ skip))).collect();
            let known = cache.contains_many(tag, &asked);
            assert!(known.iter().all(|known| *known == (skip == 0)));
        }
        println!("contains_many by 1024, {name}: {:.0} a second", per_second(CHUNKS, started));
    }
    drop(cache);
    db.flush().unwrap();
    let started = Instant::now();
    let cache = GlobalCache::open(&dir.path().join("packs"), Arc::clone(&db), 4 << 30, 0).unwrap();
    println!("open: {:.0} ms", started.elapsed().as_secs_f64() * 1e3);
    let started = Instant::now();
    ids.chunks(1024).for_each(|page| {
        let asked: Vec<ShortId> = page.iter().map(ChunkId::short).collect();
        assert!(cache.contains_many(tag, &asked).iter().all(|known| *known));
    });
    println!("contains_many by 1024 after a restart, present: {:.0} a second", per_second(CHUNKS, started));
    let started = Instant::now();
    for id in &ids {
        assert!(cache.get(&key, id.short()).is_some());
    }
    println!(
        "get in stream order (page cache warm): {:.0} a second, {:.0} MB/s",
        per_second(CHUNKS, started),
        per_second(CHUNKS * CHUNK_BYTES, started) / 1e6
    );
    println!("{:?}", cache.stats());
}
