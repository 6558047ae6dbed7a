use super::*;
use crate::block::{ChunkId, PAGE_BYTES, PAGE_CHUNKS};
use crate::repository::manifest::blank_page;
use crate::repository::source_record::HeaderDisk;
use proptest::prelude::*;

fn open(dir: &std::path::Path) -> SourceRepository {
    SourceRepository::new(Database::open(dir, 8 << 20).unwrap())
}

fn page(seed: u16) -> PageIds {
    let mut ids = blank_page();
    ids[seed as usize % PAGE_CHUNKS] = ChunkId([seed as u8 | 1; 32]);
    ids[7].0[..2].copy_from_slice(&seed.to_be_bytes());
    ids
}

fn pages_kept(repository: &SourceRepository, job: &str) -> usize {
    repository.0.scan_prefix(cf::MANIFEST, &Key::new(job).kind(Key::PAGE), None, 100_000).unwrap().len()
}

fn provisional(session: &str, tables: Vec<PageTable>) -> StoredManifest {
    let disk_paths = (0..tables.len()).map(|n| format!("/disk/{n}")).collect();
    StoredManifest { point: String::new(), session: session.into(), tables, disk_paths, skipped: Vec::new() }
}

#[test]
fn a_session_from_progress_to_promotion() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(dir.path());
    assert!(repository.load("web").unwrap().is_none());
    let mut table = PageTable::new(10_000 * PAGE_BYTES);
    for n in 0..5000u64 {
        let hash = repository.put_page("web", 0, &page(n as u16)).unwrap();
        repository.note_built("web", "s1", 0, n, Some(hash)).unwrap();
        table.set(n, hash);
    }
    repository.note_built("web", "s1", 0, 9_999, None).unwrap();
    repository.note_cursors("web", "s1", &[5000]).unwrap();
    let first = provisional("s1", vec![table.clone()]);
    repository.store_provisional("web", &first).unwrap();
    drop(repository);

    let repository = open(dir.path());
    assert_eq!(repository.noted_cursors("web", "s1").unwrap(), Some(vec![5000]));
    assert_eq!(repository.built("web", "s1").unwrap().len(), 5001);
    assert!(repository.built("web", "s").unwrap().is_empty());
    assert_eq!(repository.provisional("web").unwrap().unwrap(), first);
    assert!(repository.promote("web", "s9", "p9").is_err());
    repository.promote("web", "s1", "p1").unwrap();
    repository.promote("web", "s1", "p1").unwrap();
    assert!(repository.provisional("web").unwrap().is_none());
    assert!(repository.built("web", "s1").unwrap().is_empty());
    let loaded = repository.load("web").unwrap().unwrap();
    assert_eq!((loaded.point.as_str(), &loaded.tables), ("p1", &first.tables));

    // A second session changes one page and drops another; the two old bodies go.
    let changed = repository.put_page("web", 0, &page(60_000)).unwrap();
    repository.note_built("web", "s2", 0, 17, Some(changed)).unwrap();
    table.set(17, changed);
    table.remove(18);
    repository.store_provisional("web", &provisional("s2", vec![table.clone()])).unwrap();
    assert_eq!(pages_kept(&repository, "web"), 5001);
    repository.promote("web", "s2", "p2").unwrap();
    assert_eq!(pages_kept(&repository, "web"), 4999);
    assert_eq!(repository.verify("web").unwrap(), (4999, 0));
    assert_eq!(repository.load("web").unwrap().unwrap().tables[0], table);
    repository.forget("web").unwrap();
    assert_eq!(pages_kept(&repository, "web"), 0);
    assert!(repository.load("web").unwrap().is_none());
}

#[test]
fn discarding_keeps_what_the_manifest_names() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(dir.path());
    let mut table = PageTable::new(PAGE_BYTES);
    table.set(0, repository.put_page("a", 0, &page(1)).unwrap());
    repository.store_provisional("a", &provisional("s1", vec![table.clone()])).unwrap();
    repository.promote("a", "s1", "p1").unwrap();
    for seed in [1, 2] {
        let hash = repository.put_page("a", 0, &page(seed)).unwrap();
        repository.note_built("a", "s2", 0, u64::from(seed), Some(hash)).unwrap();
    }
    // A job whose name begins alike is another job.
    repository.put_page("ab", 0, &page(2)).unwrap();
    repository.discard_progress("a", "s2").unwrap();
    assert_eq!((pages_kept(&repository, "a"), pages_kept(&repository, "ab")), (1, 1));
    assert_eq!(repository.verify("a").unwrap(), (1, 0));
}

#[test]
fn damage_is_found_by_hash() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(dir.path());
    let mut table = PageTable::new(PAGE_BYTES * 2);
    let hash = repository.put_page("a", 0, &page(1)).unwrap();
    table.set(0, hash);
    table.set(1, repository.put_page("a", 0, &page(2)).unwrap());
    repository.store_provisional("a", &provisional("s1", vec![table])).unwrap();
    repository.promote("a", "s1", "p1").unwrap();
    let mut batch = Batch::new();
    batch.put(cf::MANIFEST, Key::new("a").page(0, &hash), pack_page(&page(3)));
    repository.0.write(batch, true).unwrap();
    assert!(matches!(repository.page("a", 0, &hash), Err(RepositoryError::Damaged { .. })));
    assert_eq!(repository.verify("a").unwrap(), (2, 1));
    // A lost table segment is noticed by the root.
    let mut batch = Batch::new();
    batch.delete(cf::MANIFEST, Key::new("a").table("s1", 0, 0));
    repository.0.write(batch, true).unwrap();
    assert!(matches!(repository.load("a"), Err(RepositoryError::Damaged { .. })));
}

/// The record formats: a change here is a change of the version.
#[test]
fn golden_records() {
    let mut ids = blank_page();
    ids[9] = ChunkId([0xab; 32]);
    let packed = pack_page(&ids);
    assert_eq!(packed.len(), 1 + 128 + 32);
    assert_eq!((packed[0], packed[2], packed[129]), (1, 2, 0xab));
    let header = Header {
        point: "p".into(),
        session: "s".into(),
        disks: vec![HeaderDisk { path: "/d".into(), len: 300, root: [7; 32] }],
    };
    let bytes = encode(&header).unwrap();
    assert_eq!(bytes[..11], [1, 1, b'p', 1, b's', 1, 2, b'/', b'd', 0xac, 0x02]);
    assert_eq!(bytes.len(), 11 + 32);
}

proptest! {
    #[test]
    fn pages_round_trip_and_noise_does_not(
        at in prop::collection::vec((0usize..PAGE_CHUNKS, any::<[u8; 32]>()), 0..40),
        noise in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut ids = blank_page();
        for (n, id) in at { ids[n] = ChunkId(id); }
        prop_assert_eq!(unpack_page(&pack_page(&ids)), Some(ids));
        let _ = unpack_page(&noise);
        let _ = decode::<Header>(&noise, "job");
    }
}
