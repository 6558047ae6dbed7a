//! The datastore against a trivial model: disks are `Vec<u8>`, points are lists of them.

mod crash;
mod failover;
mod mend;
mod rules;

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
        vm: Some(crate::vm_config::tests::sample()),
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
