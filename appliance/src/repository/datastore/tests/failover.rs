use super::*;
use crate::nbd::qemu_img;
use crate::repository::datastore::{FailoverRecord, Order as Step, Stage, StartedRecord};
use vbr_api::{Firmware, VmConfig};

fn vm() -> VmConfig {
    VmConfig {
        cpus: 1,
        memory_bytes: 64 << 20,
        machine: "q35".into(),
        firmware: Firmware::Bios,
        nics: Vec::new(),
        disks: Vec::new(),
        source: String::new(),
        definition: None,
    }
}

fn started(point: &Point) -> StartedRecord {
    StartedRecord {
        point: point.id().into(),
        at: Moment::from_second(BASE_TIME).unwrap(),
        vm: vm(),
        bridges: Vec::new(),
        disk_lens: point.disks().unwrap().into_iter().map(|(len, _)| len).collect(),
        flattened: false,
        keep: false,
    }
}

/// What a VM would read, and after a write through its image.
fn image_of(replica: &Replica) -> Vec<u8> {
    let chain = replica.failover_chain(0).unwrap();
    let out = chain.path.with_extension("read");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", chain.path.to_str().unwrap(), out.to_str().unwrap()])
        .unwrap();
    let data = std::fs::read(&out).unwrap();
    std::fs::remove_file(out).unwrap();
    data
}

fn three_points(replica: &Arc<Replica>) -> (Vec<Arc<Point>>, Vec<Disks>) {
    let mut disks: Disks = vec![("/vm/a".into(), noise(1, 300_000))];
    let (mut points, mut contents): (Vec<Arc<Point>>, Vec<Disks>) = (Vec::new(), Vec::new());
    for n in 0..3 {
        disks[0].1[n * 70_000..n * 70_000 + 5000].copy_from_slice(&noise(50 + n as u64, 5000));
        let base = points.last().map(|point| point.id().to_owned());
        points.push(make_point(replica, &format!("s{n}"), base.as_deref(), &disks));
        contents.push(disks.clone());
    }
    (points, contents)
}

#[test]
fn what_runs_rests_upon_its_point_and_nobody_replicates_into_it() {
    let place = Place::plain();
    let stores = place.open();
    let replica = super::replica(&stores);
    let (points, contents) = three_points(&replica);
    // A session is under way when the failover is ordered.
    let next = contents[2].clone();
    let building = replica.begin(&spec("s3", Some(points[2].id()), &next)).unwrap();
    assert!(fill(&building, &next, 1, usize::MAX));
    replica.begin_failover(Step::Start, &points[1], started(&points[1])).unwrap();
    assert_eq!(replica.stage(), Stage::Failover);
    let sealed = building.seal(SealSpec { consistent: true, now: Moment::UNIX_EPOCH, volumes: vec![] });
    assert!(matches!(sealed, Err(RepositoryError::Conflict { .. })), "it seals nothing any more");
    drop(building);
    for refused in [replica.begin(&spec("s4", None, &next)).err(), replica.reopen("s3").err()] {
        assert!(refused.unwrap().to_string().contains("generation 1"));
    }
    // The chain stays as it is, what is not below it as well: a merge rewrites images.
    for point in &points[..2] {
        assert!(replica.retire(point.id()).unwrap_err().is_busy(), "{}", point.id());
    }
    assert!(stores.remove(&replica).is_err());
    assert!(image_of(&replica).starts_with(&contents[1][0].1));
    assert!(replica.begin_failover(Step::Start, &points[2], started(&points[2])).is_err());

    drop((points, replica, stores));
    let stores = place.open();
    let replica = super::replica(&stores);
    assert_eq!((replica.stage(), replica.failover().unwrap().generation), (Stage::Failover, 1));
    let first = replica.points()[0].id().to_owned();
    assert!(replica.retire(&first).unwrap_err().is_busy(), "also after a restart");
    replica.end_failover(Step::Undo).unwrap();
    assert!(!replica.failover_dir().exists());
    for (point, disks) in replica.points().iter().zip(&contents) {
        check_point(point, disks);
    }
    replica.discard("s3").unwrap();
    replica.retire(&first).unwrap();
    let base = replica.points()[1].id().to_owned();
    make_point(&replica, "s5", Some(&base), &next);
}

#[test]
fn what_was_committed_rests_upon_nothing() {
    let place = Place::plain();
    let stores = place.open();
    let replica = super::replica(&stores);
    let (points, contents) = three_points(&replica);
    replica.begin_failover(Step::Start, &points[1], started(&points[1])).unwrap();
    replica.commit_failover().unwrap();
    assert!(replica.retire(points[1].id()).unwrap_err().is_busy(), "not before it was copied");
    replica.flatten_images().unwrap();
    replica.note_flattened().unwrap();
    assert!(replica.failover_chain(0).unwrap().below.is_empty());
    for point in &points {
        replica.retire(point.id()).unwrap();
    }
    assert!(image_of(&replica).starts_with(&contents[1][0].1));
    assert!(
        replica.end_failover(Step::Undo).is_err() && replica.begin(&spec("s9", None, &contents[0])).is_err()
    );
}

#[test]
fn a_test_lets_sessions_in_and_a_crash_before_the_record_leaves_nothing() {
    let place = Place::plain();
    let stores = place.open();
    let replica = super::replica(&stores);
    let (points, contents) = three_points(&replica);
    replica.begin_failover(Step::Test, &points[2], started(&points[2])).unwrap();
    let more = make_point(&replica, "s7", Some(points[2].id()), &contents[2]);
    check_point(&more, &contents[2]);
    assert!(image_of(&replica).starts_with(&contents[2][0].1));
    replica.end_failover(Step::Undo).unwrap();
    // Images were made, and vbrd was killed before it noted them.
    std::fs::create_dir(replica.failover_dir()).unwrap();
    std::fs::write(replica.failover_dir().join("disk-0.qcow2"), "x").unwrap();
    std::fs::remove_file(place.store_dir().join("branch/web/failover.json")).unwrap();
    drop((points, more, replica, stores));
    let stores = place.open();
    let replica = super::replica(&stores);
    assert!(replica.stage() == Stage::Idle && !replica.failover_dir().exists());
}

#[test]
fn a_record_that_cannot_be_read_lets_nothing_happen() {
    let place = Place::plain();
    let stores = place.open();
    let replica = super::replica(&stores);
    let (points, contents) = three_points(&replica);
    replica.begin_failover(Step::Start, &points[2], started(&points[2])).unwrap();
    let path = place.store_dir().join("branch/web/failover.json");
    let mut text = std::fs::read(&path).unwrap();
    text[30] ^= 1;
    std::fs::write(&path, text).unwrap();
    drop((points, replica, stores));
    let stores = place.open();
    let replica = super::replica(&stores);
    assert!(replica.begin(&spec("s9", None, &contents[0])).is_err());
    assert!(
        replica.end_failover(Step::Undo).is_err() && replica.failover_dir().join("disk-0.qcow2").exists()
    );
    let first = replica.points()[0].id().to_owned();
    assert!(replica.retire(&first).is_err());
    assert!(replica.warnings().iter().any(|warning| warning.what.contains("failover.json")));
}

/// As vbrd wrote it before there was a way back; and what it says of one it must say whole.
#[test]
fn records_of_before_are_read_and_half_ones_are_not() {
    let started = r#"{"point":"p1","at":"2026-11-27T10:00:00Z","vm":VM,"bridges":[],"disk_lens":[4096]}"#;
    let started = started.replace("VM", &serde_json::to_string(&vm()).unwrap());
    let read = |stage: &str, more: &str| {
        let text = format!(
            r#"{{"format":"vbr failover","version":1,"generation":2,"stage":"{stage}","started":{started}{more}}}"#
        );
        serde_json::from_str::<FailoverRecord>(&text)
            .map_err(|error| error.to_string())
            .and_then(|record| record.check().map(|()| record))
    };
    let old = read("failover", "").unwrap();
    assert!(old.stage == Stage::Failover && old.failback.is_none());
    assert!(!serde_json::to_string(&old).unwrap().contains("failback"), "an older vbrd reads it as well");
    assert!(read("failing_back", "").is_err() && read("failback", "").is_err());
    let way =
        r#","failback":{"at":"2026-11-27T11:00:00Z","job":"web-back","replica":"web-back","here":"dr"}"#;
    assert_eq!(read("failing_back", way).unwrap().failback.unwrap().point, None);
    assert!(read("failing_back", &way.replace("\"dr\"", "\"../dr\"")).is_err());
}
