//! `job run --wait` and its kin: a session that changes, a vbrd that goes away, a user who loses patience.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::fake::{Answer, Fake, Run, error, ok};
use crate::samples;

const WHOLE: u64 = 10_737_418_240;

/// A job `web` whose session goes through `answers`, the last one for ever.
fn running(answers: Vec<fn() -> Answer>) -> Fake {
    let looks = Arc::new(AtomicUsize::new(0));
    Fake::start(move |request| match request.line.split('?').next().unwrap_or_default() {
        "POST /v1/jobs/web/run" => ok(samples::session("pending", 0)),
        "GET /v1/jobs/web" => ok(samples::job("web")),
        "GET /v1/sessions/20261122t190000z-77aa" => {
            let look = looks.fetch_add(1, Ordering::SeqCst);
            answers[look.min(answers.len() - 1)]()
        }
        _ => error(404, "not_found"),
    })
}

fn state(state: &'static str) -> fn() -> Answer {
    match state {
        "pending" => || ok(samples::session("pending", 0)),
        "waiting" => || ok(samples::session("waiting", WHOLE / 4)),
        "running" => || ok(samples::session("running", WHOLE / 2)),
        "succeeded" => || ok(samples::session("succeeded", WHOLE)),
        "warning" => || ok(samples::session("warning", WHOLE)),
        "cancelled" => || ok(samples::session("cancelled", WHOLE / 2)),
        _ => || ok(samples::session("failed", WHOLE / 2)),
    }
}

pub fn until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited too long");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn the_end_of_the_session_is_the_exit_status() {
    for (end, code) in [("succeeded", 0), ("warning", 3), ("failed", 1), ("cancelled", 1)] {
        let fake = running(vec![state("pending"), state("waiting"), state("running"), state(end)]);
        let run = fake.run(&["job", "run", "web", "--wait", "-o", "json"]);
        assert_eq!(run.code, code, "{end}: {run:?}");
        // The final object and nothing else, whole.
        assert_eq!(run.json()["state"], end);
        assert_eq!(run.json()["schema"], 1);
        assert_eq!(run.json()["a_later_field"]["x"], 1);
        assert_eq!(run.err.is_empty(), code != 1, "{end}: {run:?}");
    }
}

#[test]
fn a_summary_for_people() {
    let fake = running(vec![state("running"), state("warning")]);
    let run = fake.run(&["job", "run", "web", "--wait"]);
    for part in [
        "10.0 GiB",
        "256.0 MiB",
        "40.0 MiB",
        "99.6 %",
        "42 s",
        "20261122t190042z-3fa2",
        "changed while it was read",
    ] {
        assert!(run.out.contains(part), "{part}: {run:?}");
    }
    // No terminal: no bars.
    assert!(run.err.is_empty(), "{run:?}");
    let fake = running(vec![state("failed")]);
    let run = fake.run(&["job", "run", "web", "--wait"]);
    assert_eq!(
        run.err,
        "error: Cannot write at dr\n  why:  the datastore is full\n  next: free space at dr\n"
    );
}

#[test]
fn without_wait_the_order_is_enough() {
    let fake = running(vec![state("pending")]);
    let run = fake.run(&["job", "run", "web", "--allow-live"]);
    assert_eq!((run.code, run.out.as_str()), (0, "session 20261122t190000z-77aa pending\n"));
    let seen = fake.seen.lock().unwrap();
    assert_eq!((seen.len(), seen[0].body.as_str()), (1, r#"{"allow_live":true}"#));
}

#[test]
fn events_as_lines() {
    let fake = running(vec![state("pending"), state("running"), state("running"), state("succeeded")]);
    let run = fake.run(&["job", "run", "web", "--watch", "-o", "jsonl"]);
    let states: Vec<String> = run
        .out
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["state"].as_str().unwrap().to_string()
        })
        .collect();
    assert_eq!(states, ["pending", "running", "succeeded"]);
    assert_eq!(run.code, 0);
}

#[test]
fn a_wait_that_is_too_long() {
    let fake = running(vec![state("running")]);
    let start = Instant::now();
    let run = fake.run(&["job", "run", "web", "--wait", "--timeout", "700ms", "-o", "json"]);
    assert_eq!(run.code, 8, "{run:?}");
    assert_eq!(run.json()["state"], "running");
    assert!(run.err.contains("timed_out"), "{run:?}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn waiting_by_job_or_by_session() {
    let fake = running(vec![state("running"), state("succeeded")]);
    assert_eq!(fake.run(&["job", "wait", "web"]).code, 0);
    assert_eq!(fake.run(&["job", "wait", "20261122t190000z-77aa"]).code, 0);
    assert_eq!(fake.run(&["job", "wait", "other"]).code, 5);
    assert_eq!(fake.run(&["session", "watch", "web", "-o", "jsonl"]).code, 0);
}

#[test]
fn a_restart_of_vbrd_is_outlived() {
    let fake = running(vec![
        state("running"),
        || Answer::HangUp,
        || error(503, "draining"),
        || Answer::Die,
        state("succeeded"),
    ]);
    let mut command = fake.command(&["job", "run", "web", "--wait", "-o", "json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The run, a look, a hang-up, a 503 and the last breath; then nobody listens for a while.
    until(|| fake.seen.lock().unwrap().len() == 5);
    std::thread::sleep(Duration::from_millis(1_200));
    fake.listen();
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(run.json()["state"], "succeeded");
    assert!(run.err.contains("asking again for 60 s") && run.err.contains("vbrd is back"), "{run:?}");
}

#[test]
fn a_vbrd_that_stays_away_ends_the_wait() {
    let fake = running(vec![state("running"), || Answer::Die]);
    let run = fake.run(&["job", "run", "web", "--wait", "--patience", "1s"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.err.contains("the session goes on when vbrd is back"), "{run:?}");
}

#[test]
fn an_interruption_leaves_the_session_running() {
    let fake = running(vec![state("running")]);
    let mut command = fake.command(&["job", "run", "web", "--wait"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until(|| fake.seen.lock().unwrap().len() >= 2);
    interrupt(&child);
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, 130, "{run:?}");
    assert!(run.err.contains("goes on in vbrd") && run.err.contains("job wait"), "{run:?}");
    assert!(fake.seen.lock().unwrap().iter().all(|request| !request.line.contains("cancel")));
}
