use std::path::Path;

use vbr_api::{FailoverRequest, ReplicaState, TestRequest};

use super::*;
use crate::block::DomainTag;
use crate::config::Accelerator;
use crate::repository::datastore::{BeginDisk, BeginSpec, DatastoreConfig, ReplicaSpec, SealSpec};

/// A site with one replica that has one restore point: a disk of zeroes, which starts nothing.
fn site(dir: &Path) -> (Arc<Failovers>, Arc<Replica>) {
    let config = DatastoreConfig { name: "default".into(), path: dir.join("store"), reserve_bytes: 0 };
    let stores = Datastores::open(vec![config], &dir.join("run"));
    let spec = ReplicaSpec {
        owner_peer_id: "peer".into(),
        site: "branch".into(),
        name: "web".into(),
        domain_tag: DomainTag([7; 8]),
        now: Moment::UNIX_EPOCH,
    };
    let replica = stores.for_session(None, &spec).unwrap();
    if replica.points().is_empty() {
        let disk = BeginDisk { source_path: "/vm/a".into(), disk_len: 8 << 20 };
        let begin = BeginSpec {
            session: "s1".into(),
            base: None,
            snapshot_identity: "moment".into(),
            snapshot_at: Moment::UNIX_EPOCH,
            disks: vec![disk],
            vm: None,
        };
        let building = replica.begin(&begin).unwrap();
        building.seal(SealSpec { consistent: true, now: Moment::now(), volumes: vec![] }).unwrap();
    }
    let config = FailoverSection { accelerator: Accelerator::Tcg, ..FailoverSection::default() };
    (Failovers::new(stores, config), replica)
}

fn small() -> FailoverRequest {
    FailoverRequest { memory_bytes: Some(64 << 20), ..FailoverRequest::default() }
}

#[test]
fn a_vm_outlives_vbrd_and_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let (failovers, replica) = site(dir.path());
    assert_eq!(failovers.show(&replica).unwrap().state, ReplicaState::Ready);
    let started = failovers.start(&replica, "latest", &small()).unwrap();
    assert_eq!((started.state, started.generation), (ReplicaState::Failover, 1));
    assert_eq!(started.vm.unwrap().run_state, "running");
    assert!(started.warnings[0].contains("no configuration"), "{:?}", started.warnings);
    drop((failovers, replica));
    let (failovers, replica) = site(dir.path());
    assert_eq!(failovers.show(&replica).unwrap().vm.unwrap().run_state, "running");
    // Killed as a crash would, it is off, and is started again with what an order changes.
    let pid = std::fs::read_to_string(replica.failover_dir().join("pid")).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let off = std::iter::repeat_with(|| failovers.show(&replica).unwrap().vm.unwrap().run_state);
    assert!(off.take(100).any(|state| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        state == "off"
    }));
    let again = FailoverRequest { cpus: Some(1), ..small() };
    let vm = failovers.start(&replica, "latest", &again).unwrap().vm.unwrap();
    assert_eq!((vm.run_state.as_str(), vm.cpus), ("running", 1));
    let undone = failovers.undo(&replica).unwrap();
    assert!(undone.state == ReplicaState::Ready && undone.vm.is_none() && !replica.failover_dir().exists());
}

#[test]
fn a_vm_that_cannot_be_started_says_why_and_leaves_the_replica_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (failovers, replica) = site(dir.path());
    let too_much = FailoverRequest { memory_bytes: Some(32 << 40), ..FailoverRequest::default() };
    let refused = failovers.start(&replica, "latest", &too_much).unwrap_err();
    assert!(refused.why.contains("memory"), "{refused:?}");
    let shown = failovers.show(&replica).unwrap();
    assert!(shown.state == ReplicaState::Ready && shown.vm.is_none() && !replica.failover_dir().exists());
    // What makes no sense changes nothing.
    let wrong = FailoverRequest { cpus: Some(0), ..FailoverRequest::default() };
    assert!(failovers.start(&replica, "latest", &wrong).is_err());
    assert_eq!(failovers.show(&replica).unwrap().state, ReplicaState::Ready);
}

#[test]
fn a_test_that_nobody_waits_for_any_more_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (failovers, replica) = site(dir.path());
    let point = replica.latest().unwrap();
    let settings = failovers.settings(&point, &small()).unwrap();
    // As vbrd leaves it when it is killed in a test.
    replica.begin_failover(Order::Test, &point, settings.started(&point, false).unwrap()).unwrap();
    failovers.run(&replica).unwrap();
    assert_eq!(failovers.show(&replica).unwrap().state, ReplicaState::TestFailover);
    failovers.tend().unwrap();
    assert_eq!(failovers.show(&replica).unwrap().state, ReplicaState::Ready);
    // One that is to stay stays.
    let keep = TestRequest { start: small(), within_ms: Some(300), keep: true, ..TestRequest::default() };
    assert!(failovers.test(&replica, "latest", &keep, &|| false).unwrap().ok);
    failovers.tend().unwrap();
    assert_eq!(failovers.show(&replica).unwrap().vm.unwrap().run_state, "running");
    failovers.undo(&replica).unwrap();
}

#[test]
fn a_commit_copies_what_lies_below_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (failovers, replica) = site(dir.path());
    failovers.start(&replica, "latest", &small()).unwrap();
    failovers.commit(&replica).unwrap();
    let done = std::iter::repeat_with(|| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        failovers.tend().unwrap();
        failovers.show(&replica).unwrap()
    });
    let done = done.take(500).find(|shown| shown.vm.as_ref().unwrap().flatten.is_none()).unwrap();
    assert_eq!((done.state, done.vm.unwrap().run_state.as_str()), (ReplicaState::Permanent, "running"));
    replica.retire(replica.latest().unwrap().id()).unwrap();
    TargetVm::at(&replica.failover_dir()).stop().unwrap();
    assert!(failovers.start(&replica, "latest", &small()).unwrap().vm.unwrap().run_state == "running");
    TargetVm::at(&replica.failover_dir()).stop().unwrap();
}
