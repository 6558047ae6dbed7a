use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::TempDir;

use super::format::{PACK_HEADER_BYTES, RECORD_HEADER_BYTES};
use super::*;
use crate::block::DomainKey;

const PACK: u64 = 16 * 1024;

fn settings(packs: u64) -> Settings {
    let mut settings = Settings::new(packs * PACK, 0);
    settings.pack_bytes = PACK;
    settings.group_delay = Duration::from_millis(5);
    settings.backlog_bytes = 2 * PACK;
    settings
}

fn key() -> DomainKey {
    DomainKey([7; 32])
}

/// Content number `n`: 1 to about 3,000 bytes, or a fixed length.
fn content(n: u32) -> Vec<u8> {
    content_of(n, 1 + (n as usize * 37) % 3000)
}

fn content_of(n: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&n.to_be_bytes()).finalize_xof().fill(&mut bytes);
    bytes[0] |= 1;
    bytes
}

fn id_of(n: u32) -> ChunkId {
    key().chunk_id(&content(n))
}

struct Site {
    dir: TempDir,
    settings: Settings,
    db: Option<Arc<Database>>,
    cache: Option<Arc<GlobalCache>>,
}

impl Site {
    fn new(settings: Settings) -> Self {
        let mut site = Self { dir: tempfile::tempdir().unwrap(), settings, db: None, cache: None };
        site.start();
        site
    }

    fn start(&mut self) {
        let db = Database::open(&self.dir.path().join("database"), 16 << 20).unwrap();
        self.cache =
            Some(GlobalCache::open_with(&self.packs_dir(), Arc::clone(&db), self.settings.clone()).unwrap());
        self.db = Some(db);
    }

    fn stop(&mut self) {
        self.cache = None;
        self.db = None;
    }

    /// What a crash of the process at this moment leaves, opened as another site.
    fn crash_copy(&self) -> Site {
        let dir = tempfile::tempdir().unwrap();
        for part in ["database", "packs"] {
            std::fs::create_dir(dir.path().join(part)).unwrap();
            for entry in std::fs::read_dir(self.dir.path().join(part)).unwrap().flatten() {
                // The database may be removing an old file just now.
                if let Err(error) = std::fs::copy(entry.path(), dir.path().join(part).join(entry.file_name()))
                {
                    assert_eq!(error.kind(), io::ErrorKind::NotFound);
                }
            }
        }
        let mut site = Site { dir, settings: self.settings.clone(), db: None, cache: None };
        site.start();
        site
    }

    fn packs_dir(&self) -> PathBuf {
        self.dir.path().join("packs")
    }

    fn pack_files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            std::fs::read_dir(self.packs_dir()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn on_disk(&self) -> u64 {
        self.pack_files().iter().map(|file| std::fs::metadata(file).unwrap().len()).sum()
    }

    fn cache(&self) -> &GlobalCache {
        self.cache.as_ref().unwrap()
    }

    fn append(&self, n: u32) -> Ticket {
        self.cache().append(key().tag(), id_of(n), &content(n)).unwrap()
    }

    fn get(&self, n: u32) -> Option<Vec<u8>> {
        let (id, bytes) = self.cache().get(&key(), id_of(n).short())?;
        assert_eq!(id, id_of(n));
        Some(bytes)
    }

    /// After files were taken away: the next commit notices that the open pack is gone.
    fn notice_removed_files(&self) {
        static NEXT: AtomicU64 = AtomicU64::new(1 << 20);
        self.settle(self.append(NEXT.fetch_add(1, Relaxed) as u32));
    }

    fn settle(&self, ticket: Ticket) {
        wait(self.cache().durable(ticket)).unwrap();
    }

    fn append_all(&self, numbers: std::ops::Range<u32>) {
        let last = numbers.map(|n| self.append(n)).max();
        self.settle(last.unwrap());
    }

    fn kept(&self, numbers: std::ops::Range<u32>) -> usize {
        numbers.filter(|n| self.get(*n).is_some_and(|bytes| bytes == content(*n))).count()
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
}

fn golden_pack() -> Vec<u8> {
    let (number, tag) = (7, DomainTag(*b"golden!!"));
    let mut bytes = format::encode_pack_header(number);
    let mut entries = Vec::new();
    for (fill, plain) in [(0xa1, &b"the first chunk"[..]), (0xb2, &b"VBRC inside of a payload"[..])] {
        let (id, len) = (ChunkId([fill; 32]), plain.len() as u32);
        let offset = bytes.len() as u32;
        entries.push(format::Entry { id, tag, offset, stored_len: len, plain_len: len });
        bytes.extend(format::encode_record(&id, tag, plain));
    }
    let end = bytes.len() as u32;
    bytes.extend(format::encode_footer(number, end, &entries));
    bytes
}

#[test]
#[ignore = "writes the golden file; only for a new version of the format"]
fn write_golden_pack() {
    std::fs::write("src/accelerator/global_cache/golden/pack-v1.bin", golden_pack()).unwrap();
}

#[test]
fn pack_format_is_the_golden_one() {
    let golden = include_bytes!("golden/pack-v1.bin");
    assert_eq!(golden_pack(), golden, "the pack format changed: raise its version and add a golden file");
    assert_eq!(format::decode_pack_header(golden), Some(7));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("pack"), golden).unwrap();
    let listed = packs::read_footer(&File::open(dir.path().join("pack")).unwrap(), 7).unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!((listed[1].offset, listed[1].stored_len), (95, 24));
    assert_eq!(format::scan(golden).entries, listed);
}

#[test]
fn scan_survives_any_flipped_bit() {
    let golden = golden_pack();
    let whole = format::scan(&golden).entries;
    for bit in 0..golden.len() * 8 {
        let mut bytes = golden.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let found = format::scan(&bytes).entries;
        assert!(found.iter().all(|entry| whole.contains(entry)), "bit {bit}");
        assert!(found.len() + 1 >= whole.len(), "bit {bit} costs more than its record");
    }
    for len in 0..golden.len() {
        let found = format::scan(&golden[..len]);
        assert!(found.end as usize <= len.max(PACK_HEADER_BYTES as usize));
        assert!(whole.starts_with(&found.entries));
    }
}

#[test]
fn damaged_footers_are_refused() {
    let golden = golden_pack();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pack");
    let read = |bytes: &[u8], number| {
        std::fs::write(&path, bytes).unwrap();
        packs::read_footer(&File::open(&path).unwrap(), number)
    };
    assert!(read(&golden, 7).is_some());
    assert!(read(&golden, 8).is_none(), "the footer of another pack");
    for at in golden.len() - 32 - 104..golden.len() {
        let mut bytes = golden.clone();
        bytes[at] ^= 0xff;
        assert!(read(&bytes, 7).is_none(), "byte {at}");
    }
    assert!(read(&golden[1..], 7).is_none() && read(&golden[..31], 7).is_none() && read(&[], 7).is_none());
}

#[test]
fn keeps_chunks_over_restarts_and_a_lost_database() {
    let mut site = Site::new(settings(100));
    site.append_all(0..100);
    assert!(site.pack_files().len() > 5);
    assert_eq!(site.kept(0..100), 100);
    assert_eq!(site.cache().stats().chunks, 100);
    site.stop();
    site.start();
    assert_eq!(site.kept(0..100), 100);
    site.stop();
    std::fs::remove_dir_all(site.dir.path().join("database")).unwrap();
    site.start();
    assert_eq!((site.kept(0..100), site.cache().stats().chunks), (100, 100));
    site.append_all(100..120);
    assert_eq!(site.kept(0..120), 120);
    assert_eq!(site.cache().stats().bad_records, 0);
}

#[test]
fn appending_twice_stores_once() {
    let site = Site::new(settings(100));
    let first = site.append(1);
    assert_eq!(site.append(1), first);
    site.settle(first);
    site.settle(site.append(1));
    assert_eq!(site.cache().stats().chunks, 1);
    let other = DomainKey([9; 32]);
    let id = other.chunk_id(&content(1));
    assert!(site.cache().get(&other, id.short()).is_none());
    assert_eq!(site.cache().contains_many(other.tag(), &[id_of(1).short()]), [false]);
    site.settle(site.cache().append(other.tag(), id, &content(1)).unwrap());
    assert_eq!(site.cache().stats().chunks, 2);
}

#[test]
fn what_is_durable_survives_a_crash() {
    let site = Site::new(settings(100));
    for round in 0..6 {
        site.append_all(round * 20..round * 20 + 20);
        site.append(1000 + round); // Not waited for: may or may not be there.
        let copy = site.crash_copy();
        assert_eq!(copy.kept(0..round * 20 + 20), round as usize * 20 + 20);
        assert_eq!(copy.cache().stats().bad_records, 0);
    }
}

static SYNC_HELD: AtomicBool = AtomicBool::new(true);

fn held_sync(file: &File) -> io::Result<()> {
    while SYNC_HELD.load(Relaxed) {
        std::thread::sleep(Duration::from_millis(1));
    }
    file.sync_data()
}

#[test]
fn found_at_once_but_durable_only_after_the_sync() {
    let site = Site::new(Settings { sync: held_sync, ..settings(100) });
    let ticket = site.append(1);
    assert_eq!(site.get(1), Some(content(1)));
    assert_eq!(site.cache().contains_many(key().tag(), &[id_of(1).short(), id_of(2).short()]), [true, false]);
    let early =
        wait(async { tokio::time::timeout(Duration::from_millis(200), site.cache().durable(ticket)).await });
    assert!(early.is_err(), "durable before the pack was synced");
    assert!(
        site.cache().shared.index.lookup(&(key().tag(), id_of(1).short())).is_none(),
        "indexed before it was synced"
    );
    SYNC_HELD.store(false, Relaxed);
    site.settle(ticket);
    assert!(site.cache().shared.index.lookup(&(key().tag(), id_of(1).short())).is_some());
    assert!(site.cache().shared.state().pending.is_empty());
}

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
