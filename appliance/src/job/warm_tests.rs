//! Warming: what it makes known, what it leaves alone, and that it ends when it is told.

use std::path::Path;

use super::*;
use crate::accelerator::resolve::Resolver;
use crate::block::CHUNK_BYTES;
use crate::database::Database;
use crate::limits::CACHE_BYTES_MIN;
use crate::repository::datastore::DatastoreConfig;
use vbr_api::DiskFormat;

const KEY: DomainKey = DomainKey([9; 32]);

struct Target {
    warmings: Arc<Warmings>,
    dir: tempfile::TempDir,
}

fn target() -> Target {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let database = Database::open(&at("database"), 16 << 20).unwrap();
    let cache = GlobalCache::open(&at("packs"), database, CACHE_BYTES_MIN, 0).unwrap();
    let config = DatastoreConfig { name: "default".into(), path: at("store"), reserve_bytes: 0 };
    let points = Datastores::open(vec![config], &at("run"));
    let (seeds, _) =
        Seeds::open(at("seeds.json"), Vec::new(), &at("run"), |path, bytes| std::fs::write(path, bytes));
    let places = Arc::new(InPlace { points, seeds: Arc::new(seeds) });
    let blocks = Arc::new(BlockIndex::new(1 << 20));
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    Target { warmings: Warmings::new(cache, blocks, places, tasks, stop), dir }
}

fn content(n: u8) -> Vec<u8> {
    let mut data = vec![0; CHUNK_BYTES];
    blake3::Hasher::new().update(&[n]).finalize_xof().fill(&mut data);
    data
}

impl Target {
    fn image(&self, name: &str, contents: &[u8]) -> Subject {
        let path = self.dir.path().join(name);
        let bytes: Vec<u8> =
            contents.iter().flat_map(|n| if *n == 0 { vec![0; CHUNK_BYTES] } else { content(*n) }).collect();
        std::fs::write(&path, bytes).unwrap();
        self.subject(&path)
    }

    fn subject(&self, path: &Path) -> Subject {
        Subject::Image(self.warmings.seeds().image(path.to_str().unwrap(), DiskFormat::Raw).unwrap())
    }

    async fn over(&self, id: &str) -> Warming {
        for _ in 0..600 {
            let view = self.warmings.wait(id, Duration::from_millis(100)).await.unwrap();
            if view.state.is_over() {
                return view;
            }
        }
        panic!("it is not over");
    }

    fn holds(&self, n: u8) -> bool {
        let mut resolver = Resolver::new(self.warmings.cache.clone(), self.warmings.places.clone(), KEY);
        let id = KEY.chunk_id(&content(n));
        resolver.resolve(id.short(), |_, _| None).is_some_and(|found| found == (id, content(n)))
    }
}

#[tokio::test]
async fn an_image_is_held_where_it_lies_and_costs_no_cache() {
    let target = target();
    let subject = target.image("a.img", &[1, 0, 2, 2]);
    assert!(!target.holds(1) && !target.warmings.is_warm(&subject, KEY.tag()));
    let ordered = target.warmings.order(subject.clone(), KEY, None).unwrap();
    let view = target.over(&ordered.id).await;
    assert_eq!(
        (view.state, view.chunks, view.known_chunks, view.bad_chunks),
        (WarmState::Succeeded, 3, 0, 0)
    );
    assert_eq!((view.read_bytes, view.total_bytes), (4 * 65_536, 4 * 65_536));
    assert!(target.holds(1) && target.holds(2) && !target.holds(3));
    assert_eq!(target.warmings.cache.stats().chunks, 0);
    assert!(target.warmings.is_warm(&subject, KEY.tag()));
    assert!(!target.warmings.is_warm(&subject, DomainKey([8; 32]).tag()));

    // Another image with the same content: what is held elsewhere keeps its place, the rest is new.
    let second = target.image("b.img", &[3, 1]);
    let view = target.over(&target.warmings.order(second, KEY, None).unwrap().id).await;
    assert_eq!((view.chunks, view.known_chunks), (2, 1));
    std::fs::remove_file(target.dir.path().join("b.img")).unwrap();
    assert!(target.holds(1) && !target.holds(3));

    // The first one changes: it is not warm any more, what changed is not held, and a third one takes over its places.
    let subject = target.image("a.img", &[4, 2]);
    assert!(!target.warmings.is_warm(&subject, KEY.tag()));
    assert!(!target.holds(1) && !target.holds(4));
    let third = target.image("c.img", &[1]);
    target.over(&target.warmings.order(third, KEY, None).unwrap().id).await;
    assert!(target.holds(1));
}

#[tokio::test]
async fn warmings_are_ended_told_once_and_bounded() {
    let target = target();
    let subject = target.image("a.img", &[1]);
    target.warmings.lock().working = true; // Nobody takes them.
    let first = target.warmings.order(subject.clone(), KEY, Some("branch")).unwrap();
    let again = target.warmings.order(subject.clone(), KEY, Some("branch")).unwrap();
    assert_eq!(first.id, again.id);
    assert!(target.warmings.told(&subject, &KEY).is_none());
    assert_eq!(target.warmings.cancel(&first.id).unwrap().state, WarmState::Cancelled);
    assert_eq!(target.warmings.cancel(&first.id).unwrap().state, WarmState::Cancelled);
    assert_eq!(target.warmings.told(&subject, &KEY).unwrap().state, WarmState::Cancelled);
    assert!(target.warmings.told(&subject, &KEY).is_none());
    assert_eq!(target.warmings.cancel("none").unwrap_err().code, "not_found");

    let mut refused = None;
    for n in 0..=WARMINGS_WAITING_MAX + 1 {
        let subject = target.image(&format!("{n}.img"), &[1]);
        refused = target.warmings.order(subject, KEY, None).err();
    }
    assert_eq!(refused.map(|problem| (problem.code, problem.retry)), Some(("busy".into(), true)));
}

#[tokio::test]
async fn what_was_not_finished_begins_again() {
    let target = target();
    let subject = target.image("a.img", &[1]);
    target.warmings.lock().working = true;
    let ordered = target.warmings.order(subject, KEY, None).unwrap();
    target.warmings.cancel(&ordered.id).unwrap();
    target.warmings.lock().working = false;
    assert!(!target.holds(1));
    target.warmings.resume(|tag| (tag == KEY.tag()).then_some(KEY));
    let last = target.warmings.list().pop().unwrap();
    assert_eq!(target.over(&last.id).await.state, WarmState::Succeeded);
    assert!(target.holds(1));
    let count = target.warmings.list().len();
    target.warmings.resume(|_| Some(KEY));
    assert_eq!(target.warmings.list().len(), count);
}
