use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const MEMORY: usize = 16 << 20;

fn put(db: &Database, cf: &'static str, key: &[u8], value: &[u8]) {
    let mut batch = Batch::new();
    batch.put(cf, key, value);
    db.write(batch, true).unwrap();
}

fn aside(parent: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains(".damaged-"))
        .collect()
}

fn files(dir: &Path, end: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.to_string_lossy().ends_with(end)).collect()
}

#[test]
fn keeps_what_was_synced_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database");
    {
        let db = Database::open(&path, MEMORY).unwrap();
        assert!(db.is_new() && !db.was_recreated());
        for name in cf::ALL {
            put(&db, name, b"key", name.as_bytes());
        }
    }
    let db = Database::open(&path, MEMORY).unwrap();
    assert!(!db.is_new() && !db.was_recreated() && db.warning().is_none());
    for name in cf::ALL {
        assert_eq!(db.get(name, b"key").unwrap().as_deref(), Some(name.as_bytes()));
    }
    assert!(matches!(db.get("nothing", b"key"), Err(DatabaseError::UnknownColumn(_))));
}

#[test]
fn second_open_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database");
    let db = Database::open(&path, MEMORY).unwrap();
    put(&db, cf::META, b"a", b"1");
    let error = Database::open(&path, MEMORY).err().unwrap();
    assert!(error.to_string().contains("another vbrd"), "{error}");
    assert!(aside(dir.path()).is_empty());
    assert_eq!(db.get(cf::META, b"a").unwrap().as_deref(), Some(&b"1"[..]));
}

#[test]
fn scans_and_ranges() {
    let dir = tempfile::tempdir().unwrap();
    let db = Database::open(&dir.path().join("database"), MEMORY).unwrap();
    let mut batch = Batch::new();
    for key in [&b"a/1"[..], b"a/2", b"a/3", b"b/1", b"\xff\xff", b"\xff\xff\x01"] {
        batch.put(cf::META, key, key);
    }
    db.write(batch, false).unwrap();
    let keys = |prefix: &[u8], from: Option<&[u8]>, limit| -> Vec<Vec<u8>> {
        db.scan_prefix(cf::META, prefix, from, limit).unwrap().into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(keys(b"a/", None, 9), [b"a/1", b"a/2", b"a/3"]);
    assert_eq!(keys(b"a/", Some(b"a/2"), 1), [b"a/2"]);
    assert_eq!(keys(b"a/", Some(b"0"), 1), [b"a/1"]);
    assert_eq!(keys(b"\xff\xff", None, 9).len(), 2);
    assert_eq!(keys(b"", None, 99).len(), 6);
    assert!(keys(b"a/", None, 0).is_empty());
    let mut batch = Batch::new();
    batch.delete_range(cf::META, &b"a/2"[..], &b"b"[..]);
    batch.delete_range(cf::META, &b"z"[..], &b"b"[..]); // Empty, not everything.
    db.write(batch, true).unwrap();
    assert_eq!(keys(b"", None, 99).len(), 4);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn multi_get_answers_in_order(keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..4), 0..200)) {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::open(&dir.path().join("database"), MEMORY).unwrap();
        let mut model = BTreeMap::new();
        let mut batch = Batch::new();
        for (at, key) in keys.iter().enumerate().filter(|(at, _)| at % 2 == 0) {
            batch.put(cf::CHUNK, key.clone(), at.to_be_bytes());
            model.insert(key.clone(), at.to_be_bytes().to_vec());
        }
        db.write(batch, false).unwrap();
        let expected: Vec<_> = keys.iter().map(|key| model.get(key).cloned()).collect();
        prop_assert_eq!(db.multi_get(cf::CHUNK, &keys).unwrap(), expected.clone());
        db.flush().unwrap();
        prop_assert_eq!(db.multi_get(cf::CHUNK, &keys).unwrap(), expected);
    }
}

fn filled(path: &Path) {
    let db = Database::open(path, MEMORY).unwrap();
    for step in 0..4u32 {
        let mut batch = Batch::new();
        for key in 0..500u32 {
            batch.put(cf::CHUNK, (key * 4 + step).to_be_bytes(), [7; 40]);
        }
        db.write(batch, true).unwrap();
        db.flush().unwrap();
    }
}

#[test]
fn damage_at_open_makes_a_new_database() {
    for (end, whole) in [("CURRENT", true), ("CURRENT", false), ("MANIFEST", false), (".sst", true)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("database");
        filled(&path);
        let mut entries = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
        let name = entries.find(|file| file.file_name().unwrap().to_string_lossy().contains(end)).unwrap();
        if whole {
            std::fs::remove_file(&name).unwrap();
        } else {
            let len = std::fs::metadata(&name).unwrap().len() as usize;
            std::fs::write(&name, vec![0x5a; len]).unwrap();
        }
        let db = Database::open(&path, MEMORY).unwrap();
        assert!(db.was_recreated() && db.is_new(), "{end} {whole}");
        assert_eq!(db.get(cf::CHUNK, &0u32.to_be_bytes()).unwrap(), None);
        assert_eq!(aside(dir.path()).len(), 1);
        put(&db, cf::META, b"a", b"1");
    }
}

#[test]
fn damage_on_read_is_told_and_cured_by_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database");
    filled(&path);
    for file in files(&path, ".sst") {
        let mut bytes = std::fs::read(&file).unwrap();
        for byte in bytes.iter_mut().take(8000).skip(100).step_by(500) {
            *byte ^= 0x10;
        }
        std::fs::write(&file, bytes).unwrap();
    }
    {
        let db = Database::open(&path, MEMORY).unwrap();
        let keys: Vec<Vec<u8>> = (0..2000u32).map(|key| key.to_be_bytes().to_vec()).collect();
        if !db.was_recreated() {
            let error = db.multi_get(cf::CHUNK, &keys).unwrap_err();
            assert!(error.is_corruption(), "{error}");
            assert!(db.warning().unwrap().contains("damaged"));
            drop(db);
            assert!(Database::open(&path, MEMORY).unwrap().was_recreated());
        }
    }
    assert_eq!(aside(dir.path()).len(), 1);
    let db = Database::open(&path, MEMORY).unwrap();
    assert!(!db.was_recreated());
}

#[test]
fn only_one_damaged_database_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database");
    for _ in 0..3 {
        drop(Database::open(&path, MEMORY).unwrap());
        std::fs::write(path.join(DAMAGE_MARKER), "test").unwrap();
        assert!(Database::open(&path, MEMORY).unwrap().was_recreated());
    }
    assert_eq!(aside(dir.path()).len(), 1);
}

#[test]
fn torn_log_gives_back_a_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database");
    {
        let db = Database::open(&path, MEMORY).unwrap();
        for key in 0..200u32 {
            put(&db, cf::META, &key.to_be_bytes(), &[1; 100]);
        }
    }
    let log = files(&path, ".log").pop().unwrap();
    let len = std::fs::metadata(&log).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(len / 2).unwrap();
    let db = Database::open(&path, MEMORY).unwrap();
    let kept = db.scan_prefix(cf::META, b"", None, 1000).unwrap();
    assert!(kept.iter().enumerate().all(|(at, (key, _))| key == &(at as u32).to_be_bytes()));
    assert!(db.was_recreated() || (50..200).contains(&kept.len()), "{}", kept.len());
}

#[test]
fn failed_write_is_final() {
    let dir = tempfile::tempdir().unwrap();
    let db = Database::open(&dir.path().join("database"), MEMORY).unwrap();
    db.stopped.set("IO error: fsync".into()).unwrap();
    let mut batch = Batch::new();
    batch.put(cf::META, &b"a"[..], &b"1"[..]);
    let error = db.write(batch, false).unwrap_err();
    assert!(matches!(error, DatabaseError::Stopped { .. }) && !error.is_corruption());
    assert!(db.warning().unwrap().contains("stopped writing"));
    assert_eq!(db.get(cf::META, b"a").unwrap(), None);
}

#[test]
fn what_a_newer_vbr_wrote_is_refused_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database");
    drop(Database::open(&path, MEMORY).unwrap());
    {
        let mut db = DB::open_cf(&rocksdb::Options::default(), &path, cf::ALL).unwrap();
        db.create_cf("invented_later", &rocksdb::Options::default()).unwrap();
        db.put_cf(db.cf_handle("invented_later").unwrap(), b"a", b"1").unwrap();
    }
    let error = Database::open(&path, MEMORY).err().unwrap();
    assert!(error.to_string().contains("another version of vbr"), "{error}");
    assert!(aside(dir.path()).is_empty());
    let columns = DB::list_cf(&rocksdb::Options::default(), &path).unwrap();
    assert!(columns.contains(&"invented_later".to_owned()), "{columns:?}");
}

#[test]
fn prefix_ends() {
    assert_eq!(prefix_end(b"ab"), Some(b"ac".to_vec()));
    assert_eq!(prefix_end(b"a\xff"), Some(b"b".to_vec()));
    assert_eq!(prefix_end(b"\xff"), None);
    assert_eq!(prefix_end(b""), None);
}
