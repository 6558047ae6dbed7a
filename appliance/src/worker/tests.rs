use std::sync::atomic::{AtomicU32, Ordering};

use tokio_util::task::TaskTracker;

use super::drive::back_off;
use super::*;

fn spec(name: &str) -> Spec {
    Spec::new(name, Role::Site, "it works")
}

/// Waits, in real time, until it is so.
async fn until(so: impl Fn() -> bool) {
    for _ in 0..2000 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not come to that within 10 s");
}

#[test]
fn pauses_grow_and_end_at_an_hour() {
    assert_eq!([1, 2, 3, 40].map(|n| back_off(n).as_secs()), [10, 20, 40, 3600]);
}

#[tokio::test]
async fn a_panic_is_caught_told_and_followed_by_another_run() {
    let (workers, tasks) = (Workers::new(None), TaskTracker::new());
    let stop = tokio_util::sync::CancellationToken::new();
    let worker = workers.register(spec("shaky"));
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let work = move |_: &Pass| match counted.fetch_add(1, Ordering::SeqCst) {
        0 => panic!("the first run"),
        1 => Err("the second run".to_string()),
        _ => Ok(Outcome::again_in(Duration::from_secs(3600))),
    };
    tasks.spawn(worker.drive(stop.clone(), Plan::default(), work));
    let task = || workers.show("shaky").unwrap();
    until(|| task().state == TaskState::Failed).await;
    let failed = task();
    assert!(failed.last_error.as_ref().unwrap().contains("it panicked: the first run"), "{failed:?}");
    assert!(failed.next_run_at.is_some_and(|at| at > Moment::now()), "{failed:?}");
    let warnings = workers.warnings();
    assert!(warnings[0].level == "warning" && warnings[0].what.contains("shaky failed"), "{warnings:?}");
    workers.run("shaky").unwrap();
    until(|| task().failures == 2).await;
    assert!(workers.warnings()[0].what.contains("2 times in a row: the second run"));
    workers.run("shaky").unwrap();
    until(|| task().state == TaskState::Idle && task().failures == 0).await;
    assert!(workers.warnings().is_empty());
    assert_eq!(task().last_error.as_deref(), Some("the second run"), "it is shown until the next one");
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    assert_eq!(runs.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_run_without_progress_is_stuck_and_progress_frees_it() {
    let workers = Workers::new(None);
    let worker = workers.register(spec("slow").stuck_after(Duration::from_millis(50)));
    worker.begin();
    worker.progress(1, 9);
    assert_eq!(worker.view().state, TaskState::Running);
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(worker.view().state, TaskState::Stuck);
    assert_eq!(workers.warnings()[0].level, "critical");
    worker.beat();
    assert_eq!(worker.view().state, TaskState::Running);
    assert!(workers.warnings().is_empty());
    worker.end(Ok(None));
    assert_eq!(worker.view().state, TaskState::Idle);
}

/// A worker whose first run is this, watched closely, and the next an hour later.
fn driven(
    workers: &Workers,
    tasks: &TaskTracker,
    stop: &tokio_util::sync::CancellationToken,
    work: impl Fn() + Send + Sync + 'static,
) {
    let spec = spec("still").still_after(Duration::from_millis(450)).stuck_after(Duration::from_secs(3));
    let work = move |_: &Pass| {
        work();
        Ok(Outcome::again_in(Duration::from_secs(3600)))
    };
    tasks.spawn(workers.register(spec).drive(stop.clone(), Plan::default(), work));
}

#[tokio::test]
async fn who_hangs_is_stuck_soon_and_who_works_silently_much_later() {
    let stop = tokio_util::sync::CancellationToken::new();
    let (workers, tasks) = (Workers::new(None), TaskTracker::new());
    let state = |workers: &Workers| workers.show("still").unwrap().state;
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let hangs = move || {
        let _ = gate.lock().unwrap().recv();
    };
    driven(&workers, &tasks, &stop, hangs);
    let began = Instant::now();
    until(|| state(&workers) == TaskState::Stuck).await;
    let after = began.elapsed();
    assert!((450..2500).contains(&after.as_millis()), "{after:?}");
    assert!(workers.warnings()[0].what.contains("still is stuck: no progress for"));
    drop(release);
    until(|| state(&workers) == TaskState::Idle).await;

    let (workers, go) = (Workers::new(None), Arc::new(AtomicU32::new(0)));
    let seen = go.clone();
    let work = move || {
        while seen.load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    driven(&workers, &tasks, &stop, work);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(state(&workers), TaskState::Running, "it works");
    until(|| state(&workers) == TaskState::Stuck).await; // And leads nowhere.
    go.store(1, Ordering::SeqCst);
    until(|| state(&workers) == TaskState::Idle).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}

#[tokio::test]
async fn a_stop_brings_the_last_run_where_there_is_one() {
    let (workers, tasks) = (Workers::new(None), TaskTracker::new());
    let stop = tokio_util::sync::CancellationToken::new();
    let last = Arc::new(AtomicU32::new(0));
    let seen = last.clone();
    let plan = Plan { at_stop: true, ..Plan::after(Duration::from_secs(3600)) };
    let work = move |pass: &Pass| {
        seen.fetch_add(if pass.is_last() { 1 } else { 100 }, Ordering::SeqCst);
        Ok(Outcome::again_in(Duration::from_secs(3600)))
    };
    tasks.spawn(workers.register(spec("saver")).drive(stop.clone(), plan, work));
    tokio::time::sleep(Duration::from_millis(20)).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    assert_eq!(last.load(Ordering::SeqCst), 1);
}

/// What a run that was ended early found, or did not find, says nothing.
#[tokio::test]
async fn a_run_that_the_stop_ends_counts_as_none() {
    let dir = tempfile::tempdir().unwrap();
    let (database, tasks) = (Database::open(dir.path(), 16 << 20).unwrap(), TaskTracker::new());
    let stop = tokio_util::sync::CancellationToken::new();
    let workers = Workers::new(Some(database.clone()));
    let worker = workers.register(spec("scrub").remembered());
    let work = |pass: &Pass| {
        pass.sleep(Duration::from_secs(600));
        Ok(Outcome::again_in(Duration::from_secs(3600)))
    };
    tasks.spawn(worker.drive(stop.clone(), Plan::default(), work));
    until(|| workers.show("scrub").unwrap().state == TaskState::Running).await;
    let running = workers.run("scrub").unwrap();
    assert_eq!(running.runs, 1, "one that runs is left running");
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    let again = Workers::new(Some(database)).register(spec("scrub").remembered());
    assert!(again.view().last_run_at.is_none());
}

#[test]
fn who_is_not_driven_or_switched_off_is_not_run_by_order() {
    let workers = Workers::new(None);
    workers.register(spec("passive"));
    workers.register(spec("off")).disable();
    for name in ["passive", "off"] {
        assert_eq!(workers.run(name).unwrap_err().code, "conflict", "{name}");
    }
    assert_eq!(workers.run("none").unwrap_err().code, "not_found");
}

#[test]
fn what_a_remembered_run_found_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::open(dir.path(), 16 << 20).unwrap();
    let finding = Warning { level: "critical".into(), what: "a hole".into(), next_step: "mend it".into() };
    {
        let worker = Workers::new(Some(database.clone())).register(spec("scrub").remembered());
        assert!(worker.view().last_run_at.is_none() && worker.waits_since().is_some());
        let again = Workers::new(Some(database.clone())).register(spec("scrub").remembered());
        assert_eq!(again.waits_since(), worker.waits_since(), "a restart does not begin the wait anew");
        worker.begin();
        worker.end(Ok(Some(finding.clone())));
    }
    let workers = Workers::new(Some(database));
    let worker = workers.register(spec("scrub").remembered());
    assert!(worker.view().last_run_at.is_some());
    assert_eq!(workers.warnings(), [finding]);
    let plan = Plan::every(&worker, Duration::from_secs(1000));
    assert!(plan.first > Duration::from_secs(900) && plan.first <= Duration::from_secs(1000));
    worker.begin();
    worker.end(Ok(None));
    assert!(workers.warnings().is_empty());
}
