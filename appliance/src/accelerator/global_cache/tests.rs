mod bounds;
mod damage;
mod properties;
mod scrub;

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
