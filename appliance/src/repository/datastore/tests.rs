//! The datastore against a trivial model: disks are `Vec<u8>`, points are lists of them.

use super::*;
use crate::block::{CHUNK_BYTES, Geometry, PAGE_BYTES, PAGE_CHUNKS, is_zero};
use crate::repository::manifest::blank_page;
use crate::repository::{RepositoryError, export::export, verify::verify};
use proptest::prelude::*;
use std::path::PathBuf;
use std::process::Command;
use vbr_api::{Moment, PointState};

const KEY: DomainKey = DomainKey([9; 32]);
const BASE_TIME: i64 = 1_790_000_000;

/// Where a test's datastore lies.
struct Place {
    dir: tempfile::TempDir,
    mounted: bool,
}

impl Place {
    fn plain() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), mounted: false }
    }

    /// A file system of its own on a loop device; none without root.
    fn mounted(mkfs: &[&str]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: mounting {} needs root", mkfs[0]);
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let (image, mount) = (dir.path().join("image"), dir.path().join("mount"));
        std::fs::create_dir(&mount).unwrap();
        std::fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
        let made = Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image).output();
        let ok = made.is_ok_and(|made| made.status.success())
            && Command::new("mount")
                .args(["-o", "loop"])
                .args([&image, &mount])
                .status()
                .is_ok_and(|s| s.success());
        if !ok {
            println!("skipped: {} or mounting it does not work here", mkfs[0]);
            return None;
        }
        Some(Self { dir, mounted: true })
    }

    fn store_dir(&self) -> PathBuf {
        if self.mounted { self.dir.path().join("mount/store") } else { self.dir.path().join("store") }
    }

    /// Drops everything that was not synced, as a power failure does.
    fn lose_power(&self) {
        let mount = self.dir.path().join("mount");
        let handle = std::fs::File::open(&mount).unwrap();
        let no_log_flush: u32 = 2;
        // SAFETY: the request (XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN) reads one u32 that outlives the call.
        let done =
            unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&handle), 0x8004_587d, &no_log_flush) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        drop(handle);
        // A process that another test starts just now may hold our files until it runs its program.
        let unmounted = (0..100).any(|_| {
            let done = Command::new("umount").arg(&mount).status().unwrap().success();
            if !done {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            done
        });
        assert!(unmounted, "{} stays busy", mount.display());
        let image = self.dir.path().join("image");
        assert!(
            Command::new("mount").args(["-o", "loop"]).args([&image, &mount]).status().unwrap().success()
        );
    }

    fn open(&self) -> Arc<Datastores> {
        let config =
            DatastoreConfig { name: "default".into(), path: self.store_dir(), reserve_bytes: 1 << 20 };
        let stores = Datastores::open(vec![config], &self.dir.path().join("run"));
        assert!(stores.failed.is_empty(), "{:?}", stores.failed);
        stores
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: whatever still holds a file of it for a moment must not leave a mount behind.
            let _ = Command::new("umount").arg("-l").arg(self.dir.path().join("mount")).status();
        }
    }
}

fn backends() -> Vec<(&'static str, Place, Backend)> {
    let mut all = vec![("plain", Place::plain(), Backend::Overlay)];
    if let Some(place) = Place::mounted(&["mkfs.xfs", "-q", "-m", "reflink=1"]) {
        all.push(("xfs", place, Backend::Reflink));
    }
    if let Some(place) = Place::mounted(&["mkfs.btrfs", "-q"]) {
        all.push(("btrfs", place, Backend::Reflink));
    }
    all
}

fn replica(stores: &Datastores) -> Arc<Replica> {
    let spec = ReplicaSpec {
        owner_peer_id: "peer-1".into(),
        site: "branch".into(),
        name: "web".into(),
        domain_tag: KEY.tag(),
        now: Moment::from_second(BASE_TIME).unwrap(),
    };
    stores.for_session(None, &spec).unwrap()
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut out);
    out
}

type Disks = Vec<(String, Vec<u8>)>;

fn spec(session: &str, base: Option<&str>, disks: &Disks) -> BeginSpec {
    BeginSpec {
        session: session.into(),
        base: base.map(Into::into),
        snapshot_identity: format!("snapshot of {session}"),
        snapshot_at: Moment::from_second(BASE_TIME).unwrap(),
        disks: disks
            .iter()
            .map(|(path, data)| BeginDisk { source_path: path.clone(), disk_len: data.len() as u64 })
            .collect(),
        keep: Some(3),
    }
}

/// What a source and its session do: everything from the cursors on that differs from the base.
fn fill(building: &Building, disks: &Disks, checkpoint_every: usize, mut budget: usize) -> bool {
    let mut cursors = building.cursors();
    for (n, (_, data)) in disks.iter().enumerate() {
        let geometry = Geometry { disk_len: data.len() as u64 };
        for page in cursors[n]..geometry.pages() {
            let base = building.base_page(n, page).unwrap().unwrap_or_else(blank_page);
            let mut ids = blank_page();
            let mut changed = false;
            for position in 0..geometry.page_chunks(page) {
                let range = geometry.chunk_range(page * PAGE_CHUNKS as u64 + position as u64);
                let chunk = &data[range.start as usize..range.end as usize];
                ids[position] = KEY.chunk_id(chunk);
                if ids[position] == base[position] {
                    continue;
                }
                if budget == 0 {
                    return false;
                }
                budget -= 1;
                changed = true;
                let disk = building.disk(n).unwrap();
                if is_zero(chunk) {
                    disk.zero_at(range.start, chunk.len() as u64).unwrap();
                } else {
                    disk.write_at(range.start, chunk).unwrap();
                }
            }
            if changed {
                building.put_page(n, page, Some(&ids)).unwrap();
            }
            cursors[n] = page + 1;
            if checkpoint_every > 0 && (page as usize).is_multiple_of(checkpoint_every) {
                building.checkpoint(&cursors).unwrap();
            }
        }
    }
    true
}

fn expected_roots(disks: &Disks) -> Vec<crate::block::Root> {
    disks
        .iter()
        .map(|(_, data)| {
            let mut table = crate::repository::PageTable::new(data.len() as u64);
            for (page, part) in data.chunks(PAGE_BYTES as usize).enumerate() {
                let mut ids = blank_page();
                for (n, chunk) in part.chunks(CHUNK_BYTES).enumerate() {
                    ids[n] = KEY.chunk_id(chunk);
                }
                if !crate::repository::manifest::page_is_blank(&ids) {
                    table.set(page as u64, crate::repository::page_hash(&ids));
                }
            }
            table.root()
        })
        .collect()
}

fn seal(building: &Building, disks: &Disks, at: i64) -> Arc<Point> {
    assert_eq!(building.roots(), expected_roots(disks));
    building
        .seal(SealSpec {
            consistent: true,
            now: Moment::from_second(BASE_TIME + at).unwrap(),
            volumes: vec![],
        })
        .unwrap()
}

fn make_point(replica: &Arc<Replica>, session: &str, base: Option<&str>, disks: &Disks) -> Arc<Point> {
    let building = replica.begin(&spec(session, base, disks)).unwrap();
    assert!(fill(&building, disks, 1, usize::MAX));
    seal(&building, disks, 0)
}

fn check_point(point: &Arc<Point>, disks: &Disks) {
    let report = verify(point, &KEY).unwrap();
    assert!(report.ok, "{report:?}");
    for (n, (_, data)) in disks.iter().enumerate() {
        let mut copy = vec![0; data.len()];
        let len = export(point, n as u16, &KEY, |offset, part| {
            copy[offset as usize..offset as usize + part.len()].copy_from_slice(part);
            Ok(())
        });
        assert_eq!(len.unwrap(), data.len() as u64);
        assert!(copy == *data, "disk {n} of {} differs", point.id());
    }
    check_content(point, disks);
}

fn check_content(point: &Arc<Point>, disks: &Disks) {
    for (n, (_, data)) in disks.iter().enumerate() {
        let mut read = vec![1; data.len()];
        point.open_disk(n as u16).unwrap().read_at(0, &mut read).unwrap();
        assert!(read == *data, "disk {n} of {} reads differently", point.id());
    }
}

fn page_files(place: &Place) -> usize {
    std::fs::read_dir(place.store_dir().join("branch/web/pages")).unwrap().count()
}

#[derive(Clone, Debug)]
enum Order {
    /// Resize and write, then a session; crashes after so many chunks, if given.
    Point { seed: u64, writes: Vec<(u32, u32, bool)>, len: Option<u32>, base: u8, crash: Option<u8> },
    /// Retire one of the points.
    Retire(u8),
    /// Restart.
    Reopen,
    /// A session that is begun and dropped.
    Abandon,
}

fn orders() -> impl Strategy<Value = Vec<Order>> {
    let write = (0u32..700_000, 1u32..150_000, prop::bool::weighted(0.3));
    let point = (
        any::<u64>(),
        prop::collection::vec(write, 0..4),
        prop::option::weighted(0.4, 1u32..700_000),
        0u8..8,
        prop::option::weighted(0.3, 0u8..6),
    )
        .prop_map(|(seed, writes, len, base, crash)| Order::Point { seed, writes, len, base, crash });
    let order = prop_oneof![
        5 => point,
        3 => any::<u8>().prop_map(Order::Retire),
        1 => Just(Order::Reopen),
        1 => Just(Order::Abandon),
    ];
    prop::collection::vec(order, 1..9)
}

fn change(disks: &mut Disks, seed: u64, writes: &[(u32, u32, bool)], len: Option<u32>) {
    if let Some(len) = len {
        disks[0].1.resize(len as usize, 0);
    }
    // A second disk comes and goes.
    match seed % 4 {
        0 if disks.len() == 1 => {
            let other = if disks[0].0 == "/vm/a" { "/vm/b" } else { "/vm/a" };
            disks.push((other.into(), noise(seed, 70_001)));
        }
        1 => disks.truncate(1),
        2 => disks.reverse(),
        _ => {}
    }
    for (n, (at, count, zero)) in writes.iter().enumerate() {
        let data = &mut disks[0].1;
        let from = (*at as usize).min(data.len());
        let to = (from + *count as usize).min(data.len());
        let bytes = if *zero { vec![0; to - from] } else { noise(seed ^ n as u64, to - from) };
        data[from..to].copy_from_slice(&bytes);
    }
}

fn run(place: &Place, wanted: Backend, orders: &[Order]) {
    let _ = std::fs::remove_dir_all(place.store_dir());
    let mut stores = place.open();
    assert_eq!(stores.list()[0].backend(), wanted);
    let mut disks: Disks = vec![("/vm/a".into(), noise(1, 300_001))];
    let mut model: Vec<(String, Disks)> = Vec::new();
    for (n, order) in orders.iter().enumerate() {
        let session = format!("s{n}");
        let mut subject = replica(&stores);
        match order {
            Order::Point { seed, writes, len, base, crash } => {
                change(&mut disks, *seed, writes, *len);
                // Mostly the latest, now and then an older one or none.
                let base = match base {
                    0 => None,
                    1 => model.first(),
                    _ => model.last(),
                };
                let base = base.map(|(id, _)| id.clone());
                let mut building = subject.begin(&spec(&session, base.as_deref(), &disks)).unwrap();
                if let Some(budget) = crash {
                    fill(&building, &disks, 1, *budget as usize);
                    drop((building, subject, stores));
                    stores = place.open();
                    subject = replica(&stores);
                    assert_eq!(subject.building().unwrap().session, session);
                    building = subject.reopen(&session).unwrap().unwrap();
                }
                assert!(fill(&building, &disks, 1, usize::MAX));
                let point = seal(&building, &disks, n as i64);
                assert!(building.disk(0).unwrap().write_at(0, &[1]).is_err());
                assert_eq!(subject.sealed_by(&session).unwrap().id(), point.id());
                model.push((point.id().to_string(), disks.clone()));
            }
            Order::Retire(which) if !model.is_empty() => {
                let (id, _) = model.remove(*which as usize % model.len());
                subject.retire(&id).unwrap();
            }
            Order::Retire(_) => {}
            Order::Reopen => {
                drop((subject, stores));
                stores = place.open();
            }
            Order::Abandon => {
                let base = model.last().map(|(id, _)| id.clone());
                let building = subject.begin(&spec(&session, base.as_deref(), &disks)).unwrap();
                fill(&building, &disks, 0, 3);
                subject.discard(&session).unwrap();
                assert!(building.checkpoint(&vec![0; disks.len()]).is_err());
            }
        }
        let subject = replica(&stores);
        let ids: Vec<_> = subject.points().iter().map(|point| point.id().to_string()).collect();
        assert_eq!(ids, model.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>());
        assert!(stores.warnings().is_empty(), "{:?}", stores.warnings());
    }
    for (point, (_, disks)) in replica(&stores).points().iter().zip(&model) {
        check_point(point, disks);
    }
    if model.is_empty() {
        assert_eq!(page_files(place), 0);
    }
}

#[test]
fn any_history_equals_the_model() {
    for (name, place, backend) in backends() {
        println!("on {name}");
        let cases = if backend == Backend::Overlay { 12 } else { 24 };
        let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        runner
            .run(&orders(), |orders| {
                run(&place, backend, &orders);
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn a_removal_is_finished_after_a_crash_at_any_step() {
    let place = Place::plain();
    // Which of three points goes: the raw base, an overlay in the middle, the newest.
    for victim in 0..3 {
        for crash_at in 0..20 {
            let _ = std::fs::remove_dir_all(place.store_dir());
            let stores = place.open();
            let subject = replica(&stores);
            let mut disks: Disks =
                vec![("/vm/a".into(), noise(1, 400_001)), ("/vm/b".into(), noise(2, 100_000))];
            let mut model = Vec::new();
            for n in 0..4u64 {
                let base = model.last().map(|(id, _): &(String, Disks)| id.clone());
                change(
                    &mut disks,
                    3,
                    &[(n as u32 * 70_000, 90_000, n == 2)],
                    Some(400_001 - n as u32 * 50_000 + 9),
                );
                disks[1].1[5] = n as u8;
                let point = make_point(&subject, &format!("s{n}"), base.as_deref(), &disks);
                model.push((point.id().to_string(), disks.clone()));
            }
            let (id, _) = model.remove(if victim == 2 { 3 } else { victim });
            let mut steps = 0;
            let result = subject.retire_with(&id, &mut |_| {
                steps += 1;
                if steps > crash_at { Err(RepositoryError::invalid("test", "crash")) } else { Ok(()) }
            });
            let finished = result.is_ok();
            if crash_at % 2 == 0 && !finished && subject.point(&id).is_ok() {
                // Without a restart: it goes on.
                subject.retire(&id).unwrap();
            }
            drop((subject, stores));
            let stores = place.open();
            let subject = replica(&stores);
            assert!(stores.warnings().is_empty(), "{victim} {crash_at}: {:?}", stores.warnings());
            let first = subject.points().iter().any(|point| point.id() == id);
            // Before the journal (or the rename, where there is none) nothing has happened.
            assert!(!first || crash_at < 2, "{victim} {crash_at}");
            for (kept, disks) in &model {
                check_content(&subject.point(kept).unwrap(), disks);
            }
            assert!(!place.store_dir().join("branch/web/retire.json").exists());
            assert_eq!(std::fs::read_dir(place.store_dir().join("branch/web/retiring")).unwrap().count(), 0);
            for (kept, _) in &model {
                for entry in
                    std::fs::read_dir(place.store_dir().join("branch/web/points").join(kept)).unwrap()
                {
                    // Names inside the images are right for people too.
                    let path = entry.unwrap().path();
                    if path.extension().is_some_and(|e| e == "qcow2") {
                        let args = ["check", "-q", "-f", "qcow2", path.to_str().unwrap()];
                        crate::nbd::qemu_img(&args).unwrap();
                    }
                }
            }
            if finished {
                break;
            }
        }
    }
}

#[test]
fn what_was_acknowledged_survives_a_power_failure() {
    for mkfs in [&["mkfs.xfs", "-q", "-m", "reflink=1"][..], &["mkfs.ext4", "-q"][..]] {
        let Some(place) = Place::mounted(mkfs) else { continue };
        let stores = place.open();
        let subject = replica(&stores);
        let mut disks: Disks = vec![("/vm/a".into(), vec![0; 2 * PAGE_BYTES as usize + 400_001])];
        for page in 0..3 {
            let at = page * PAGE_BYTES as usize;
            disks[0].1[at..at + 900].copy_from_slice(&noise(page as u64, 900));
        }
        let first = make_point(&subject, "s1", None, &disks).id().to_string();
        let first_disks = disks.clone();
        drop((subject, stores));
        place.lose_power();
        // A session is cut after its first page is durable and its second is not.
        let stores = place.open();
        let subject = replica(&stores);
        check_point(&subject.point(&first).unwrap(), &first_disks);
        for page in 0..3 {
            disks[0].1[page * PAGE_BYTES as usize + 300_000] = 7;
        }
        let building = subject.begin(&spec("s2", Some(&first), &disks)).unwrap();
        assert!(!fill(&building, &disks, 1, 2));
        assert_eq!(building.cursors(), [2]);
        // In a chunk that the snapshot changes; others are never written.
        building.disk(0).unwrap().write_at(2 * PAGE_BYTES + 300_000, &[9; 900]).unwrap();
        drop((building, subject, stores));
        place.lose_power();
        let stores = place.open();
        let subject = replica(&stores);
        let building = subject.reopen("s2").unwrap().unwrap();
        assert_eq!(building.cursors(), [2]);
        assert!(fill(&building, &disks, 0, usize::MAX));
        let second = seal(&building, &disks, 1).id().to_string();
        drop((building, subject, stores));
        place.lose_power();
        let stores = place.open();
        let subject = replica(&stores);
        check_point(&subject.point(&second).unwrap(), &disks);
        subject.retire(&first).unwrap();
        drop((subject, stores));
        place.lose_power();
        let stores = place.open();
        let subject = replica(&stores);
        assert_eq!(subject.points().len(), 1);
        check_point(&subject.latest().unwrap(), &disks);
        assert!(stores.warnings().is_empty());
    }
}

#[test]
fn readers_hold_points_and_removal_waits() {
    for (_, place, backend) in backends() {
        let stores = place.open();
        let subject = replica(&stores);
        let mut disks: Disks = vec![("/vm/a".into(), noise(1, 200_000))];
        let first = make_point(&subject, "s1", None, &disks);
        let first_disks = disks.clone();
        disks[0].1[0] ^= 1;
        let second = make_point(&subject, "s2", Some(first.id()), &disks);
        // A cached reader does not stand in the way, one in use does.
        let id = KEY.chunk_id(&first_disks[0].1[..CHUNK_BYTES]).short();
        assert_eq!(subject.read_chunk(0, 0, id, &KEY).unwrap().1, &first_disks[0].1[..CHUNK_BYTES]);
        let shared = KEY.chunk_id(&disks[0].1[CHUNK_BYTES..2 * CHUNK_BYTES]).short();
        assert!(stores.read_chunk(subject.key(), 0, 1, shared, &KEY).is_some());
        assert!(stores.read_chunk(subject.key(), 0, 2, shared, &KEY).is_none());
        assert!(stores.read_chunk(subject.key(), 0, 1, shared, &DomainKey([8; 32])).is_none());
        let reader = if backend == Backend::Overlay { &second } else { &first }.open_disk(0).unwrap();
        let waiting = subject.clone();
        let waiting_id = first.id().to_string();
        let thread = std::thread::spawn(move || waiting.retire(&waiting_id));
        std::thread::sleep(std::time::Duration::from_millis(100));
        let mut buffer = vec![0; 1000];
        reader.read_at(5, &mut buffer).unwrap();
        assert!(subject.point(first.id()).is_ok(), "removed beneath a reader");
        drop(reader);
        thread.join().unwrap().unwrap();
        assert!(first.open_disk(0).is_err());
        check_point(&second, &disks);
        // A pinned point and the base of a building stay.
        second.set_pinned(true).unwrap();
        assert_eq!(second.meta().state, PointState::Pinned);
        assert!(matches!(subject.retire(second.id()), Err(RepositoryError::Conflict { .. })));
        second.set_pinned(false).unwrap();
        let building = subject.begin(&spec("s3", Some(second.id()), &disks)).unwrap();
        assert!(subject.retire(second.id()).unwrap_err().is_busy());
        assert!(matches!(subject.begin(&spec("s4", None, &disks)), Err(RepositoryError::Busy { .. })));
        drop(building);
        // A suspended session is replaced by another one.
        drop(subject.begin(&spec("s4", None, &disks)).unwrap());
        assert_eq!(subject.building().unwrap().session, "s4");
        subject.discard("s4").unwrap();
        let ids = stores.remove(&subject).unwrap();
        assert_eq!(ids, [second.id()]);
        assert!(stores.find(None, "web").is_err());
    }
}

#[test]
fn damage_is_listed_and_nothing_is_deleted() {
    let place = Place::plain();
    let stores = place.open();
    let subject = replica(&stores);
    let mut disks: Disks = vec![("/vm/a".into(), noise(1, 200_000))];
    let first = make_point(&subject, "s1", None, &disks).id().to_string();
    disks[0].1[70_000] ^= 1;
    let second = make_point(&subject, "s2", Some(&first), &disks).id().to_string();
    drop((subject, stores));
    let points = place.store_dir().join("branch/web/points");
    // A flipped bit in the second point's record.
    let path = points.join(&second).join("point.json");
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[40] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    let stores = place.open();
    let subject = replica(&stores);
    assert_eq!(subject.points().len(), 2);
    assert_eq!(subject.latest().unwrap().id(), first);
    let damaged = subject.point(&second).unwrap();
    assert_eq!(damaged.meta().state, PointState::Damaged);
    assert!(!verify(&damaged, &KEY).unwrap().ok);
    assert_eq!(stores.warnings().len(), 1);
    assert_eq!(page_files(&place), 2);
    // It is repaired by hand and is back; a bad block of the base is then found.
    drop((subject, stores, damaged));
    std::fs::write(&path, &good).unwrap();
    {
        use std::os::unix::fs::FileExt;
        let raw =
            std::fs::OpenOptions::new().write(true).open(points.join(&first).join("disk-0.raw")).unwrap();
        raw.write_all_at(&[0xee; 4], 190_000).unwrap();
    }
    let stores = place.open();
    let subject = replica(&stores);
    for id in [&first, &second] {
        let point = subject.point(id).unwrap();
        let report = verify(&point, &KEY).unwrap();
        assert_eq!((report.bad_chunks, report.bad[0].offset), (1, 131_072));
        assert!(export(&point, 0, &KEY, |_, _| Ok(())).is_err());
        assert!(matches!(
            subject.begin(&spec("s3", Some(id), &disks)),
            Err(RepositoryError::Conflict { .. })
        ));
    }
    assert!(subject.latest().is_none());
    assert!(verify(&subject.point(&first).unwrap(), &DomainKey([1; 32])).is_err());
    // A new first point heals; the damaged ones can go.
    let third = make_point(&subject, "s3", None, &disks);
    check_point(&third, &disks);
    subject.retire(&first).unwrap();
    subject.retire(&second).unwrap();
    check_point(&third, &disks);
    // A missing image is damage as well.
    drop((subject, stores, third));
    let left: Vec<_> = files::names_in(&points).unwrap();
    std::fs::remove_file(points.join(&left[0]).join("disk-0.raw")).unwrap();
    let stores = place.open();
    assert_eq!(replica(&stores).points()[0].meta().state, PointState::Damaged);
}

#[test]
fn many_pages_and_only_what_changed() {
    for (name, place, _) in backends() {
        let stores = place.open();
        let subject = replica(&stores);
        let mut disks: Disks = vec![("/vm/a".into(), vec![0; 3 * PAGE_BYTES as usize + 777])];
        for page in 0..4 {
            let at = page * PAGE_BYTES as usize;
            disks[0].1[at..at + 700].copy_from_slice(&noise(page as u64, 700));
        }
        let first = make_point(&subject, "s1", None, &disks);
        let stored = files::stored_bytes(&place.store_dir());
        assert!(stored < 4 << 20, "{name}: {stored} bytes for 2,800 bytes of data");
        disks[0].1[PAGE_BYTES as usize + 100_000] = 1;
        let building = subject.begin(&spec("s2", Some(first.id()), &disks)).unwrap();
        assert_eq!(building.base_table(0).unwrap(), &first.table(0).unwrap());
        // Written and put, but after the cursor: it is done again.
        assert!(fill(&building, &disks, 3, usize::MAX));
        drop(building);
        let building = subject.reopen("s2").unwrap().unwrap();
        assert!(subject.reopen("s2").err().unwrap().is_busy());
        assert_eq!(building.cursors(), [4]);
        let second = seal(&building, &disks, 0);
        assert_eq!(second.table(0).unwrap().count(), 4);
        assert_eq!(second.page(0, 2).unwrap(), first.page(0, 2).unwrap());
        let reports: Vec<_> = [&first, &second].iter().map(|point| verify(point, &KEY).unwrap()).collect();
        assert!(reports.iter().all(|report| report.ok));
        // A shrink that ends on the chunk grid, inside a page; then a growth that must not show old bytes.
        disks[0].1.truncate(PAGE_BYTES as usize + CHUNK_BYTES);
        let third = make_point(&subject, "s3", Some(second.id()), &disks);
        disks[0].1.resize(2 * PAGE_BYTES as usize + 5, 0);
        let fourth = make_point(&subject, "s4", Some(third.id()), &disks);
        subject.retire(second.id()).unwrap();
        subject.retire(first.id()).unwrap();
        check_point(&fourth, &disks);
        subject.retire(third.id()).unwrap();
        check_point(&fourth, &disks);
        // The disk as a person finds it, without vbr.
        assert!(subject.shared.dir.join("README.txt").exists());
        assert_eq!(subject.meta().points, 1);
    }
}

#[test]
fn orders_that_make_no_sense_are_refused() {
    let place = Place::plain();
    let stores = place.open();
    let subject = replica(&stores);
    let disks: Disks = vec![("/vm/a".into(), noise(1, 70_000))];
    let refuse = |change: &dyn Fn(&mut BeginSpec)| {
        let mut bad = spec("s1", None, &disks);
        change(&mut bad);
        assert!(subject.begin(&bad).is_err(), "{bad:?}");
    };
    refuse(&|spec| spec.session = "../x".into());
    refuse(&|spec| spec.disks.clear());
    refuse(&|spec| spec.disks = vec![spec.disks[0].clone(); 2]);
    refuse(&|spec| spec.disks[0].disk_len = u64::MAX);
    refuse(&|spec| spec.base = Some("nothing".into()));
    let building = subject.begin(&spec("s1", None, &disks)).unwrap();
    assert!(building.disk(1).is_none());
    assert!(building.disk(0).unwrap().write_at(69_999, &[1, 2]).is_err());
    let mut ids = blank_page();
    ids[2] = ChunkId([1; 32]);
    assert!(building.put_page(0, 0, Some(&ids)).is_err());
    assert!(building.put_page(0, 1, None).is_err());
    assert!(building.put_page(1, 0, None).is_err());
    assert!(building.checkpoint(&[0, 0]).is_err());
    // Another peer, and another daemon.
    let mut other = ReplicaSpec {
        owner_peer_id: "peer-2".into(),
        site: "branch".into(),
        name: "web".into(),
        domain_tag: KEY.tag(),
        now: Moment::UNIX_EPOCH,
    };
    assert_eq!(stores.for_session(None, &other).err().unwrap().code, "conflict");
    other.site = "other".into();
    stores.for_session(None, &other).unwrap();
    assert_eq!(stores.find(None, "web").err().unwrap().code, "ambiguous");
    assert!(stores.find(Some("other"), "web").is_ok());
    assert!(stores.for_peer("peer-1", "web").is_some());
    other.name = "../up".into();
    assert!(stores.for_session(None, &other).is_err());
    let config = DatastoreConfig { name: "second".into(), path: place.store_dir(), reserve_bytes: 0 };
    assert!(Datastore::open(&config, place.dir.path()).is_err());
}

#[test]
fn the_reserve_is_kept() {
    let place = Place::plain();
    let config =
        DatastoreConfig { name: "full".into(), path: place.store_dir(), reserve_bytes: u64::MAX / 2 };
    let stores = Datastores::open(vec![config], place.dir.path());
    let subject = replica(&stores);
    let disks: Disks = vec![("/vm/a".into(), noise(1, 70_000))];
    let problem: Problem = subject.begin(&spec("s1", None, &disks)).err().unwrap().into();
    assert_eq!((problem.code.as_str(), problem.retry), ("datastore_full", true));
    assert_eq!(stores.warnings()[0].level, "critical");
}

#[test]
fn retention_over_restarts_rests_on_observed_time() {
    let place = Place::plain();
    let stores = place.open();
    let subject = replica(&stores);
    let disks: Disks = vec![("/vm/a".into(), noise(1, 70_000))];
    let ids: Vec<_> =
        (0..3).map(|n| make_point(&subject, &format!("s{n}"), None, &disks).id().to_string()).collect();
    let at = |seconds: i64| Moment::from_second(BASE_TIME + seconds).unwrap();
    let week = std::time::Duration::from_secs(7 * 86_400);
    let year = at(365 * 86_400);
    assert!(subject.plan_retention(Some(1), year, week).is_empty(), "a jump of the clock expired points");
    assert_eq!(subject.plan_retention(Some(1), at(1), std::time::Duration::ZERO), ids[..2]);
    subject.shared.core.clock.at_least(30 * 86_400_000);
    assert_eq!(subject.plan_retention(Some(2), year, week), ids[..1]);
    assert!(subject.plan_retention(Some(1), at(5), week).is_empty());
    drop((subject, stores));
    let stores = place.open();
    assert_eq!(replica(&stores).plan_retention(Some(2), year, week), ids[..1]);
}
