//! Readers, damage, what changed, orders that make no sense, reserve, retention.

use super::*;
use crate::repository::retention::{Clocks, Policy, Rules};

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
        second.set_pin(None).unwrap();
        assert_eq!(second.meta().state, PointState::Pinned);
        assert!(matches!(subject.retire(second.id()), Err(RepositoryError::Conflict { .. })));
        second.unpin().unwrap();
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
fn a_machine_that_moved_goes_on_from_its_disks() {
    for (_, place, _) in backends() {
        let stores = place.open();
        let subject = replica(&stores);
        let old: Disks = vec![("/vm/a".into(), noise(1, 300_000)), ("/vm/b".into(), noise(2, 100_000))];
        let first = make_point(&subject, "s1", None, &old);
        let mut disks: Disks = vec![("/new/a".into(), old[0].1.clone()), ("/new/b".into(), old[1].1.clone())];
        disks[0].1.resize(400_000, 0);
        disks[0].1[70_000] ^= 1;
        let building = subject.begin(&spec("s2", Some(first.id()), &disks)).unwrap();
        assert_eq!(building.base_table(1).unwrap(), &first.table(1).unwrap());
        let enough = fill(&building, &disks, 1, 2);
        assert!(enough, "more was missing than the chunk that changed and the short last one that grew");
        let second = seal(&building, &disks, 0);
        check_point(&second, &disks);
        check_point(&first, &old);
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

fn clocks(subject: &Replica, seconds: i64) -> Clocks {
    let now = Moment::from_second(BASE_TIME + seconds).unwrap();
    Clocks { now, ..subject.clocks() }
}

fn rules(days: u64) -> Rules {
    Rules { min_age: std::time::Duration::from_secs(days * 86_400), zone: jiff::tz::TimeZone::UTC }
}

fn last(count: u32) -> Policy {
    Policy { last: Some(count), ..Policy::default() }
}

#[test]
fn retention_over_restarts_rests_on_observed_time() {
    let place = Place::plain();
    let stores = place.open();
    let subject = replica(&stores);
    let disks: Disks = vec![("/vm/a".into(), noise(1, 70_000))];
    let ids: Vec<_> =
        (0..3).map(|n| make_point(&subject, &format!("s{n}"), None, &disks).id().to_string()).collect();
    let year = 365 * 86_400;
    assert!(subject.plan_retention(&rules(0), clocks(&subject, 1)).is_empty(), "nothing was asked");
    subject.note_policy(&last(1)).unwrap();
    assert!(subject.plan_retention(&rules(7), clocks(&subject, year)).is_empty(), "a jump expired points");
    assert_eq!(subject.plan_retention(&rules(0), clocks(&subject, 1)), ids[..2]);
    assert_eq!(subject.plan_after_next(&last(1), &rules(0), clocks(&subject, 1)), ids);
    subject.shared.core.clock.at_least(30 * 86_400_000);
    subject.note_policy(&last(2)).unwrap();
    assert_eq!(subject.plan_retention(&rules(7), clocks(&subject, year)), ids[..1]);
    assert!(subject.plan_retention(&rules(7), clocks(&subject, 5)).is_empty());
    let kept = subject.kept(&rules(7), clocks(&subject, year));
    assert_eq!(kept[0].kept_because, [""; 0]);
    assert_eq!(kept[1].kept_because, ["last 2"]);
    drop((subject, stores));
    let stores = place.open();
    let subject = replica(&stores);
    assert_eq!(subject.policy(), last(2));
    assert_eq!(subject.plan_retention(&rules(7), clocks(&subject, year)), ids[..1]);
}

#[test]
fn pins_hold_over_restarts_and_against_everyone() {
    let place = Place::plain();
    let stores = place.open();
    let subject = replica(&stores);
    let disks: Disks = vec![("/vm/a".into(), noise(1, 70_000))];
    let ids: Vec<_> =
        (0..3).map(|n| make_point(&subject, &format!("s{n}"), None, &disks).id().to_string()).collect();
    subject.note_policy(&last(1)).unwrap();
    let until = Moment::now() + jiff::SignedDuration::from_hours(24 * 90);
    subject.point(&ids[0]).unwrap().set_pin(Some(until)).unwrap();
    drop((subject, stores));
    let stores = place.open();
    let subject = replica(&stores);
    let pinned = subject.point(&ids[0]).unwrap();
    assert_eq!((pinned.meta().state, pinned.meta().pinned_until), (PointState::Pinned, Some(until)));
    assert!(matches!(subject.retire(&ids[0]), Err(RepositoryError::Conflict { .. })));
    assert_eq!(stores.remove(&subject).unwrap_err().code, "conflict");
    // The wall clock alone does not end it.
    let later = Clocks { now: until + jiff::SignedDuration::from_hours(1), ..subject.clocks() };
    assert_eq!(subject.plan_retention(&rules(0), later), ids[1..2]);
    subject.shared.core.clock.at_least(91 * 86_400_000);
    let later = Clocks { now: later.now, ..subject.clocks() };
    assert_eq!(subject.plan_retention(&rules(0), later), ids[..2]);
    assert!(pinned.is_pinned(), "the wall clock has not come so far");
    pinned.unpin().unwrap();
    assert_eq!((pinned.meta().state, pinned.meta().pinned_until), (PointState::Sealed, None));
    subject.retire(&ids[0]).unwrap();
}

#[test]
fn records_of_before_are_read() {
    let state: crate::repository::datastore::record::StateRecord =
        serde_json::from_str(r#"{"version":1,"pinned":true,"verified_at":null,"verified_ok":null}"#).unwrap();
    assert!(state.pinned && state.pinned_until.is_none() && state.inherited_bytes == 0);
    let text = r#"{"format":"vbr replica","version":1,"id":"00","site":"b","name":"w","owner_peer_id":"p",
        "domain_tag":"00","created_at":"2026-01-01T00:00:00Z","keep":3}"#;
    let record: crate::repository::datastore::record::ReplicaRecord = serde_json::from_str(text).unwrap();
    assert!(record.keep == Some(3) && record.keep_calendar.is_empty());
}

#[test]
fn what_points_share_is_charged_once() {
    for (name, place, backend) in backends() {
        let stores = place.open();
        let subject = replica(&stores);
        let mut disks: Disks = vec![("/vm/a".into(), noise(1, 8 << 20))];
        let mut ids = vec![make_point(&subject, "s0", None, &disks).id().to_string()];
        let whole = subject.charged_bytes();
        assert!((8 << 20..10 << 20).contains(&whole), "{name}: {whole}");
        for n in 1..5usize {
            disks[0].1[n << 20..(n << 20) + 300_000].fill(n as u8);
            ids.push(make_point(&subject, &format!("s{n}"), Some(&ids[n - 1]), &disks).id().to_string());
        }
        let all = subject.charged_bytes();
        assert!(all < whole + (8 << 20), "{name}: {all} after {whole}");
        // What goes from between leaves its content in the next one; the oldest has everything.
        for gone in [2, 1] {
            subject.retire(&ids[gone]).unwrap();
            if backend == Backend::Reflink {
                let charged = subject.charged_bytes();
                assert!(
                    charged >= whole + 4 * 300_000 && charged <= all + 65_536,
                    "{name}: {charged} of {all}"
                );
            }
        }
        subject.retire(&ids[0]).unwrap();
        assert!(subject.charged_bytes() <= all, "{name}");
        // A building counts, before it is sealed and after it was abandoned.
        let before = subject.charged_bytes();
        let building = subject.begin(&spec("s9", Some(&ids[4]), &disks)).unwrap();
        building.disk(0).unwrap().write_at(0, &noise(9, 2 << 20)).unwrap();
        building.checkpoint(&[0]).unwrap();
        let during = subject.charged_bytes();
        assert!(
            during >= before + (2 << 20) && during < before + (4 << 20),
            "{name}: {during} after {before}"
        );
        drop(building);
        let left = subject.charged_bytes();
        assert!(left.abs_diff(during) < 1 << 20, "{name}: {left} after {during}");
    }
}
