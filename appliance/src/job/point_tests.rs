//! What comes ahead of the target's answer: taken where it is missing, ignored where it is not.

use vbr_api::Moment;

use super::*;
use crate::accelerator::batch::{BatchBuilder, Prefix, Work};
use crate::accelerator::effort::Controller;
use crate::accelerator::shared_filter::SharedSet;
use crate::database::Database;
use crate::limits::CACHE_BYTES_MIN;
use crate::repository::datastore::{BeginDisk, BeginSpec, DatastoreConfig, Datastores, ReplicaSpec};
use crate::repository::manifest::{PageTable, page_hash};
use crate::wire::message::Run;

const KEY: DomainKey = DomainKey([9; 32]);
const DISK_LEN: u64 = 65 << 20;

struct Target {
    writer: PointWriter,
    building: Arc<Building>,
    shared: Arc<SharedSet>,
    _dir: tempfile::TempDir,
}

fn target() -> Target {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let database = Database::open(&at("database"), 16 << 20).unwrap();
    let cache = GlobalCache::open(&at("packs"), database, CACHE_BYTES_MIN, 0).unwrap();
    let config = DatastoreConfig { name: "default".into(), path: at("store"), reserve_bytes: 0 };
    let stores = Datastores::open(vec![config], &at("run"));
    let spec = ReplicaSpec {
        owner_peer_id: "peer-1".into(),
        site: "branch".into(),
        name: "web".into(),
        domain_tag: KEY.tag(),
        now: Moment::now(),
    };
    let begin = BeginSpec {
        session: "5".repeat(32),
        base: None,
        snapshot_identity: "one".into(),
        snapshot_at: Moment::now(),
        disks: vec![BeginDisk { source_path: "/a.img".into(), disk_len: DISK_LEN }],
        vm: None,
    };
    let building = stores.for_session(None, &spec).unwrap().begin(&begin).unwrap();
    let resolver = Resolver::new(cache.clone(), stores, KEY);
    let shared = Arc::new(SharedSet::new(1 << 16, [1; 32]));
    let learns = Learns::new(Some(shared.clone()), "peer-1");
    let index = Arc::new(BlockIndex::new(1 << 20));
    let writer = PointWriter::new(building.clone(), cache, resolver, KEY, index, learns);
    Target { writer, building, shared, _dir: dir }
}

/// From 100 on: what looks like code.
fn content(n: u8) -> Vec<u8> {
    let mut data = vec![0; CHUNK_BYTES];
    blake3::Hasher::new().update(&[n]).finalize_xof().fill(&mut data);
    if n >= 100 {
        data.chunks_exact_mut(64).for_each(|part| (part[7], part[11]) = (0xe8, 0));
    }
    data
}

fn short(n: u8) -> ShortId {
    KEY.chunk_id(&content(n)).short()
}

/// Offers the first chunks of a page as these contents; the rest is zero.
fn offer(page: u64, contents: &[u8]) -> Offer {
    let count = contents.len() as u16;
    let chunks = Geometry { disk_len: DISK_LEN }.page_chunks(page) as u16;
    let runs =
        vec![Run { kind: RunKind::Offered, count }, Run { kind: RunKind::Zero, count: chunks - count }];
    Offer { disk: 0, page, runs, ids: contents.iter().map(|n| short(*n)).collect() }
}

fn batch(literals: &[(u64, u8)], copies: &[(u64, u8)]) -> Batch {
    let mut builder = BatchBuilder::default();
    literals.iter().for_each(|(chunk, n)| builder.literal(0, *chunk, &content(*n)));
    (0..literals.len()).for_each(|nth| builder.as_code(nth));
    copies.iter().for_each(|(chunk, n)| builder.copy(0, *chunk, short(*n)));
    builder.finish(Prefix::default(), &mut Work::of(&Controller::default().effort())).unwrap().remove(0)
}

fn needed(applied: &Applied) -> Vec<usize> {
    applied.needs.iter().flat_map(recipe::needed).collect()
}

#[test]
fn code_arrives_as_it_was() {
    let Target { mut writer, building, _dir, .. } = target();
    let contents = [100, 1, 101];
    writer.offer(&offer(1, &contents)).unwrap();
    let batch = batch(&[(1024, 100), (1025, 1), (1026, 101)], &[]);
    let code = |entry: &Entry| matches!(entry, Entry::Code { .. });
    assert_eq!(batch.header.entries.iter().map(code).collect::<Vec<_>>(), [true, false, true]);
    let plain = batch::decode(&batch, &[]).unwrap();
    assert!(plain[..CHUNK_BYTES] != content(100) && plain[CHUNK_BYTES..2 * CHUNK_BYTES] == content(1));
    assert!(writer.batch(&batch).unwrap().needs.is_empty() && writer.is_idle());
    let mut ids = [ChunkId::ZERO; PAGE_CHUNKS];
    (ids.iter_mut().zip(contents)).for_each(|(id, n)| *id = KEY.chunk_id(&content(n)));
    let mut table = PageTable::new(DISK_LEN);
    table.set(1, page_hash(&ids));
    assert_eq!(building.roots(), [table.root()]);
}

#[test]
fn what_was_not_missing_is_ignored_and_still_acknowledged() {
    let Target { mut writer, building, shared, _dir } = target();
    assert_eq!(needed(&writer.offer(&offer(0, &[1, 2])).unwrap()), [0, 1]);
    let applied = writer.batch(&batch(&[(0, 1), (1, 2)], &[])).unwrap();
    assert!(applied.ticket.is_some() && applied.written_bytes == 2 * CHUNK_BYTES as u64);

    // Of the second page one chunk is here. All come, with references to content that never did.
    assert_eq!(needed(&writer.offer(&offer(1, &[1, 3, 2])).unwrap()), [1]);
    assert!(!writer.is_idle());
    let ahead = batch(&[(1024, 1), (1025, 3)], &[(1026, 77)]);
    let applied = writer.batch(&ahead).unwrap();
    assert!(applied.needs.is_empty(), "what is not missing is not asked for");
    assert!(applied.ticket.is_some() && applied.written_bytes == CHUNK_BYTES as u64);
    assert!(writer.is_idle());

    // The page is whole, and comes again; so does a chunk that nobody offered.
    for again in [ahead, batch(&[(1027, 5)], &[])] {
        let applied = writer.batch(&again).unwrap();
        assert!(applied.needs.is_empty() && applied.ticket.is_none() && applied.written_bytes == 0);
    }
    let mut table = PageTable::new(DISK_LEN);
    for (page, contents) in [(0, &[1, 2][..]), (1, &[1, 3, 2])] {
        let mut ids = [ChunkId::ZERO; PAGE_CHUNKS];
        (ids.iter_mut().zip(contents)).for_each(|(id, n)| *id = KEY.chunk_id(&content(*n)));
        table.set(page, page_hash(&ids));
    }
    assert_eq!(building.roots(), [table.root()]);
    assert_eq!(shared.stats().first_branches, 3, "each content once, nothing that was ignored");
}
