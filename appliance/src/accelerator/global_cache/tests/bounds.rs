//! Size, reserve, second chances, pins, places, threads.

use super::*;

#[test]
fn stays_within_its_size_and_gives_second_chances() {
    let site = Site::new(settings(6));
    site.append_all(0..8);
    let hot = 0..5;
    for n in 8..400 {
        site.append(n);
        hot.clone().for_each(|n| assert!(site.get(n).is_some(), "a hot chunk was evicted"));
        assert!(site.on_disk() <= 6 * PACK, "{}", site.on_disk());
    }
    let stats = site.cache().stats();
    assert!(stats.used_bytes <= stats.size_bytes && stats.evicted_packs > 20, "{stats:?}");
    assert!(site.kept(0..400) < 80);
    // The index forgets with the packs.
    site.settle(site.append(1000));
    let keys = site.db.as_ref().unwrap().scan_prefix(crate::database::cf::CHUNK, b"", None, 10_000).unwrap();
    assert!(
        keys.len() <= site.cache().stats().chunks as usize + 20,
        "{} {:?}",
        keys.len(),
        site.cache().stats()
    );
}

#[test]
fn eviction_spares_a_newer_copy() {
    let site = Site::new(settings(4));
    site.append_all(0..3);
    let first = site.pack_files().remove(0);
    // Chunk 0 is bad in the first pack and stored again in a later one.
    flip(&first, u64::from(PACK_HEADER_BYTES + RECORD_HEADER_BYTES));
    assert_eq!(site.get(0), None);
    site.append_all(50..60);
    site.settle(site.append(0));
    while first.exists() {
        let n = 100 + site.cache().stats().chunks as u32 + site.cache().stats().evicted_packs as u32 * 100;
        site.settle(site.append(n));
        assert_eq!(site.get(0), Some(content(0)));
    }
    site.settle(site.append(9999));
    assert_eq!(site.get(0), Some(content(0)));
}

#[test]
fn pinned_packs_go_last() {
    let site = Site::new(settings(6));
    site.append_all(0..10);
    let pin = site.cache().pin();
    let held = 500..508;
    site.append_all(held.clone());
    // An append that finds its chunk in an old pack holds that pack too.
    site.settle(site.append(3));
    let fill = |from: u32| (from..from + 30).for_each(|n| site.settle(site.append(n)));
    fill(100);
    assert_eq!(site.kept(held.clone()), 8);
    assert!(site.on_disk() <= 6 * PACK);
    fill(200); // More than all is pinned: the bound holds nevertheless.
    assert!(site.on_disk() <= 6 * PACK);
    drop(pin);
    assert!(site.cache().shared.state().pins.is_empty());
    fill(300);
    fill(400);
    assert_eq!(site.kept(held), 0);
}

#[test]
fn keeps_the_reserve_of_the_file_system() {
    static FREE: AtomicU64 = AtomicU64::new(u64::MAX);
    let mut settings = settings(100);
    settings.reserve_bytes = 10 * PACK;
    settings.free = |_| Ok(FREE.load(Relaxed));
    let site = Site::new(settings);
    site.append_all(0..100);
    assert_eq!((site.cache().stats().evicted_packs, site.cache().near_full_warning()), (0, None));
    FREE.store(9 * PACK, Relaxed);
    assert!(site.cache().near_full_warning().unwrap().contains("cannot grow"));
    site.append_all(100..130);
    assert!(site.cache().stats().evicted_packs >= 2);
    FREE.store(0, Relaxed);
    let refused =
        (200..400).find_map(|n| site.cache().append(key().tag(), id_of(n), &content(n)).err()).unwrap();
    assert!(matches!(refused, CacheError::NoSpace { .. }), "{refused}");
    FREE.store(u64::MAX, Relaxed);
    site.append_all(200..240);
    assert_eq!(site.kept(200..240), 40);
}

#[test]
fn neighbours_are_found_without_the_database() {
    let mut site = Site::new(settings(100));
    site.append_all(0..100);
    site.stop();
    site.start();
    assert_eq!(site.kept(0..100), 100);
    let stats = site.cache().stats();
    let closed = stats.packs - 1;
    assert!(
        stats.footer_misses <= closed + 20 && stats.footer_hits >= 100 - stats.footer_misses,
        "{stats:?}"
    );
    assert_eq!((stats.lookups, stats.hits, stats.reads), (100, 100, 100));
}

#[test]
fn places_on_disks() {
    let site = Site::new(settings(10));
    let (tag, mut ids) = (key().tag(), vec![ChunkId::ZERO; 1024]);
    (ids[5], ids[1023]) = (id_of(5), id_of(6));
    site.cache().index_page(tag, [3; 16], 2, 4, &ids).unwrap();
    let place = DiskLocation { replica_key: [3; 16], disk: 2, chunk: 4 * 1024 + 1023 };
    assert_eq!(site.cache().disk_location(tag, id_of(6).short()), Some(place));
    assert_eq!(site.cache().disk_location(tag, ChunkId::ZERO.short()), None);
    let asked = [id_of(5).short(), id_of(7).short(), id_of(6).short()];
    assert_eq!(site.cache().contains_many(tag, &asked), [true, false, true]);
    site.cache().forget_disk_location(tag, id_of(5).short());
    assert_eq!(site.cache().contains_many(tag, &asked), [false, false, true]);
    assert!(!site.cache().point_is_indexed(b"p"));
    site.cache().mark_point_indexed(b"p");
    assert!(site.cache().point_is_indexed(b"p") && !site.cache().point_is_indexed(b"q"));
    site.cache().forget_point_indexed(b"p");
    assert!(!site.cache().point_is_indexed(b"p"));
}

#[test]
fn sizes_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let db = Database::open(&dir.path().join("database"), 16 << 20).unwrap();
    let error = GlobalCache::open(&dir.path().join("packs"), Arc::clone(&db), 1 << 20, 0).err().unwrap();
    assert!(matches!(error, CacheError::TooSmall { .. }));
    let cache = GlobalCache::open(&dir.path().join("packs"), db, limits::CACHE_BYTES_MIN, 0).unwrap();
    assert!(matches!(
        cache.append(key().tag(), id_of(1), &vec![1; CHUNK_BYTES + 1]),
        Err(CacheError::TooLong(_))
    ));
    let whole = vec![1; CHUNK_BYTES];
    let id = key().chunk_id(&whole);
    wait(cache.durable(cache.append(key().tag(), id, &whole).unwrap())).unwrap();
    assert_eq!(cache.get(&key(), id.short()), Some((id, whole)));
}

#[test]
fn many_threads_at_once() {
    let site = Site::new(settings(8));
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let site = &site;
            scope.spawn(move || {
                for step in 0..300 {
                    let n = (thread * 7 + step) % 150;
                    let ticket = site.append(n);
                    assert!(site.get(n).is_none_or(|bytes| bytes == content(n)));
                    if step % 20 == 0 {
                        let _pin = site.cache().pin();
                        site.settle(ticket);
                    }
                }
            });
        }
    });
    assert!(site.on_disk() <= 8 * PACK);
    assert_eq!(site.cache().stats().bad_records, 0);
}
