//! What breaks: syncs that fail, torn tails, lost and spoiled files.

use super::*;

#[test]
fn a_failed_sync_is_final() {
    let mut site = Site::new(settings(100));
    site.append_all(0..5);
    site.stop();
    site.settings.sync = |_| Err(io::Error::from_raw_os_error(libc::EIO));
    site.db = Some(Database::open(&site.dir.path().join("database"), 16 << 20).unwrap());
    // Recovery has to sync as well, so the failure begins after it.
    let db = Arc::clone(site.db.as_ref().unwrap());
    assert!(GlobalCache::open_with(&site.packs_dir(), db, site.settings.clone()).is_err());
    let fresh = site.dir.path().join("fresh");
    let db = Database::open(&fresh.join("database"), 16 << 20).unwrap();
    let cache = GlobalCache::open_with(&fresh.join("packs"), db, site.settings.clone()).unwrap();
    let ticket = cache.append(key().tag(), id_of(1), &content(1)).unwrap();
    let error = wait(cache.durable(ticket)).unwrap_err();
    assert!(error.to_string().contains("start vbrd again"), "{error}");
    assert!(cache.append(key().tag(), id_of(2), &content(2)).is_err());
    assert!(wait(cache.durable(Ticket(0))).is_err());
    assert!(cache.near_full_warning().unwrap().contains("stopped"));
    drop(cache);
    site.stop();
    site.settings.sync = File::sync_data;
    site.start();
    assert_eq!(site.kept(0..5), 5);
}

#[test]
fn torn_tail_is_cut() {
    let mut site = Site::new(settings(100));
    site.append_all(0..30);
    site.stop();
    let open = site.pack_files().pop().unwrap();
    let sound = std::fs::metadata(&open).unwrap().len();
    let torn = format::encode_record(&id_of(77), key().tag(), &content(77));
    for junk in [&torn[..torn.len() - 1], &torn[..40], &[0; 5000][..], b"VBRC"] {
        File::options().write(true).open(&open).unwrap().write_all_at(junk, sound).unwrap();
        site.start();
        assert_eq!(std::fs::metadata(&open).unwrap().len(), sound);
        assert_eq!((site.kept(0..30), site.get(77)), (30, None));
        site.stop();
    }
    // A record that reached the disk without its index entry comes back.
    File::options().write(true).open(&open).unwrap().write_all_at(&torn, sound).unwrap();
    site.start();
    assert_eq!((site.kept(0..30), site.get(77)), (30, Some(content(77))));
}

#[test]
fn vanished_packs_are_noticed() {
    let mut site = Site::new(settings(100));
    site.append_all(0..60);
    site.stop();
    let files = site.pack_files();
    std::fs::remove_file(&files[1]).unwrap();
    site.start();
    let left = site.kept(0..60);
    assert!((40..60).contains(&left), "{left}");
    // And at run time, the open one included.
    for file in site.pack_files() {
        std::fs::remove_file(file).unwrap();
    }
    std::fs::remove_dir(site.packs_dir()).unwrap();
    site.notice_removed_files();
    for n in 0..60 {
        if site.get(n).is_none() {
            site.settle(site.append(n));
        }
        assert_eq!(site.get(n), Some(content(n)));
    }
    site.stop();
    site.start();
    for n in 0..60 {
        if site.get(n).is_none() {
            site.append(n);
        }
        assert_eq!(site.get(n), Some(content(n)));
    }
}

#[test]
fn flipped_bits_cost_their_chunk_only() {
    let mut site = Site::new(settings(100));
    site.append_all(0..60);
    site.stop();
    let first = site.pack_files().remove(0);
    let in_first = packs::read_footer(&File::open(&first).unwrap(), 1).unwrap();
    flip(&first, u64::from(in_first[1].offset) + 20); // Header.
    flip(&first, u64::from(in_first[3].offset + RECORD_HEADER_BYTES)); // Payload.
    site.start();
    assert_eq!(site.kept(0..60), 58);
    assert_eq!(site.cache().stats().bad_records, 2);
    assert_eq!(site.kept(0..60), 58);
    assert_eq!(site.cache().stats().bad_records, 2, "dropped, not found again");
    site.append_all(0..60);
    assert_eq!(site.kept(0..60), 60);
    // A bad footer costs nothing, not even without the database.
    site.stop();
    let second = site.pack_files().remove(1);
    flip(&second, std::fs::metadata(&second).unwrap().len() - 100);
    std::fs::remove_dir_all(site.dir.path().join("database")).unwrap();
    site.start();
    assert_eq!(site.kept(0..60), 60);
}

#[test]
fn a_pack_that_is_none_is_removed() {
    let mut site = Site::new(settings(100));
    site.append_all(0..30);
    site.stop();
    let files = site.pack_files();
    std::fs::write(&files[0], b"something else").unwrap();
    std::fs::rename(&files[1], site.packs_dir().join("00000000000000ff.pack")).unwrap();
    std::fs::write(site.packs_dir().join("note.txt"), b"not ours").unwrap();
    site.start();
    assert!(site.get(0).is_none());
    site.append_all(0..30);
    assert_eq!(site.kept(0..30), 30);
    assert!(site.packs_dir().join("note.txt").exists());
}

#[test]
fn damaged_tables_of_the_database_cost_no_wrong_answer() {
    let mut site = Site::new(settings(100));
    site.append_all(0..60);
    site.db.as_ref().unwrap().flush().unwrap();
    site.stop();
    let database = site.dir.path().join("database");
    for entry in std::fs::read_dir(&database).unwrap().flatten() {
        if entry.path().extension().is_some_and(|end| end == "sst") {
            let len = entry.metadata().unwrap().len();
            (0..len).step_by(200).for_each(|at| flip(&entry.path(), at));
        }
    }
    site.start();
    let lost = 60 - site.kept(0..60);
    for n in 0..60 {
        assert!(site.get(n).is_none_or(|bytes| bytes == content(n)));
    }
    // Whatever the damage did, the next start is whole again: the packs are all there.
    site.stop();
    site.start();
    assert_eq!(site.kept(0..60), 60, "{lost} were unknown before");
}
