//! Retention at the target: what a job asks, pins, removal by hand, the minimum age, and quotas of a peer.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vbr_api::{
    Job, List, Moment, Peer, Plan, PointState, Removed, Replica, RestorePoint, Session, SessionState, Task,
    TaskState,
};
use vbr_tests::clock::WallClock;
use vbr_tests::disk::{self, MIB};
use vbr_tests::world::{World, WorldSpec};

fn points(world: &World, replica: &str) -> Result<Vec<RestorePoint>> {
    let list: List<RestorePoint> = world.target.json(&["restore-point", "list", replica])?;
    Ok(list.items)
}

/// Runs a job again after its disk changed.
fn again(world: &World, job: &str, image: &std::path::Path, seed: u64) -> Result<Session> {
    disk::mutate(image, 3, seed)?;
    world.run(job)
}

#[test]
fn a_policy_with_pins_and_removal_by_hand() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let image = world.path("web.img");
    disk::mixed(&image, 4 * MIB, 41)?;
    let path = image.to_string_lossy().into_owned();
    let base = ["job", "create", "web", "--disk", &path, "--target", "dr"];
    let keep = ["--keep", "2", "--keep-weekly", "4", "--keep-yearly", "1"];
    world.source.ok(&[&base[..], &keep].concat())?;
    let job: Job = world.source.json(&["job", "show", "web"])?;
    let asked = job.spec.keep_calendar;
    ensure!((job.spec.keep, asked.daily, asked.weekly, asked.yearly) == (Some(2), 0, 4, 1), "{job:?}");
    let file = world.path("web.toml");
    std::fs::write(&file, world.source.ok(&["job", "export", "web"])?)?;
    let from = file.to_string_lossy().into_owned();
    let same = world.source.ok(&["job", "create", "--from", &from])?;
    ensure!(same.contains("unchanged"), "{same}");

    for seed in 0..4 {
        again(&world, "web", &image, seed)?;
    }
    ensure!(world.settled_points("web", 2)? == 2, "{:?}", points(&world, "web")?);
    let listed = points(&world, "web")?;
    ensure!(listed[0].kept_because == ["last 2"] && listed[0].retires_next, "{listed:?}");
    let newest = &listed[1].kept_because;
    ensure!(
        newest.len() == 3 && newest[1].starts_with("weekly 2") && newest[2].starts_with("yearly 2"),
        "{newest:?}"
    );
    let replica: Replica = world.target.json(&["replica", "show", "web"])?;
    ensure!(replica.keep_calendar == asked && replica.kept.len() == 2, "{replica:?}");
    ensure!(replica.retires_next == [listed[0].id.clone()], "{replica:?}");
    let plan: Plan = world.source.json(&["job", "plan", "web"])?;
    ensure!(plan.retires == replica.retires_next, "{plan:?}");

    // A pin holds against retention, removal, removal of the replica, and over a restart.
    let first = format!("web@{}", listed[0].id);
    let pinned: RestorePoint = world.target.json(&["restore-point", "pin", &first, "--for", "90d"])?;
    let days =
        pinned.pinned_until.map_or(0, |until| (until.as_second() - Moment::now().as_second()) / 86_400);
    ensure!(pinned.state == PointState::Pinned && (89..=90).contains(&days), "{pinned:?}");
    let why = world.target.fails(&["restore-point", "remove", &first, "--yes", "--force"], 1)?;
    ensure!(why.contains("pinned") && why.contains("unpin"), "{why}");
    world.target.fails(&["replica", "remove", "web", "--yes"], 1)?;
    world.target.restart()?;
    world.wait_connected(Duration::from_secs(60))?;
    for seed in 4..6 {
        again(&world, "web", &image, seed)?;
    }
    ensure!(world.settled_points("web", 3)? == 3, "{:?}", points(&world, "web")?);
    let kept = &points(&world, "web")?[0];
    ensure!(kept.id == listed[0].id && kept.kept_because[0].starts_with("pinned until"), "{kept:?}");
    world.prove_latest("web", &[&image])?;
    world.target.ok(&["restore-point", "unpin", &first])?;
    again(&world, "web", &image, 6)?;
    ensure!(world.settled_points("web", 2)? == 2, "{:?}", points(&world, "web")?);

    // The newest goes by force only, and the job goes on from what is left.
    let why = world.target.fails(&["restore-point", "remove", "web@latest", "--yes"], 1)?;
    ensure!(why.contains("newest") && why.contains("--force"), "{why}");
    let removed: Removed =
        world.target.json(&["restore-point", "remove", "web@latest", "--yes", "--force"])?;
    ensure!(removed.overridden.len() == 1, "{removed:?}");
    again(&world, "web", &image, 7)?;
    world.prove_latest("web", &[&image])
}

#[test]
fn what_the_minimum_age_keeps_is_removed_by_force_only() -> Result<()> {
    let world = World::paired(&WorldSpec { min_age: "7d".into(), ..WorldSpec::default() })?;
    let image = world.path("web.img");
    disk::mixed(&image, 2 * MIB, 42)?;
    world.job_keeping("web", &image, 1)?;
    for seed in 0..3 {
        again(&world, "web", &image, seed)?;
    }
    let listed = points(&world, "web")?;
    ensure!(listed.len() == 3 && listed[0].kept_because[0].starts_with("younger than 7 d"), "{listed:?}");
    ensure!(!listed[0].retires_next, "{listed:?}");
    let oldest = format!("web@{}", listed[0].id);
    let why = world.target.fails(&["restore-point", "remove", &oldest, "--yes"], 1)?;
    ensure!(why.contains("minimum age here is 7 d"), "{why}");
    let removed: Removed = world.target.json(&["restore-point", "remove", &oldest, "--yes", "--force"])?;
    ensure!(removed.overridden.len() == 1 && removed.overridden[0].contains("minimum age"), "{removed:?}");
    // A reload of the configuration lets the other go, at the next seal.
    let toml = world.target.toml().replace("min_age = \"7d\"", "min_age = \"0\"");
    world.target.set_toml(&toml);
    world.target.restart()?;
    // What became due meanwhile retires at the first look after the start.
    ensure!(world.settled_points("web", 1)? == 1, "{:?}", points(&world, "web")?);
    world.prove_latest("web", &[&image])
}

/// Waits until the job's session says that it waits for room.
fn wait_for_refusal(world: &World, job: &str) -> Result<Session> {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let last = world.last_session(job)?.context("no session")?;
        if last.state == SessionState::Waiting
            && last.error.as_ref().is_some_and(|error| error.code == "quota_exceeded")
        {
            return Ok(last);
        }
        ensure!(!last.state.is_over() && Instant::now() < end, "it does not wait for room: {last:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_quota_stops_sessions_until_there_is_room() -> Result<()> {
    let spec = WorldSpec { target_toml: "[quota]\npoints = 2".into(), ..WorldSpec::default() };
    let world = World::paired(&spec)?;
    let (small, large) = (world.path("small.img"), world.path("large.img"));
    disk::random(&small, MIB, 43)?;
    disk::random(&large, 48 * MIB, 44)?;
    world.job("small", &small)?;
    world.job("large", &large)?;

    // The number of points: the site's bound, before anything is sent.
    again(&world, "small", &small, 0)?;
    again(&world, "small", &small, 1)?;
    disk::mutate(&small, 3, 2)?;
    world.run_in_background("small")?;
    let refused = wait_for_refusal(&world, "small")?;
    let why = refused.error.map(|error| error.why).unwrap_or_default();
    ensure!(why.contains("2 restore points here and would have 3"), "{why}");
    ensure!(points(&world, "small")?.len() == 2, "it was sealed all the same");
    world.target.ok(&["peer", "grant", "branch", "--max-points", "4"])?;
    world.wait("small")?;

    // Bytes: the large disk does not fit, its session stops in the middle.
    let peer: Peer = world.target.json(&["peer", "show", "branch"])?;
    let used = peer.used.context("no figures")?;
    ensure!((MIB..12 * MIB).contains(&used.bytes) && used.points == 3, "{used:?}");
    world.target.ok(&["peer", "grant", "branch", "--quota", "30M"])?;
    world.run_in_background("large")?;
    let stopped = wait_for_refusal(&world, "large")?;
    let error = stopped.error.context("no error")?;
    ensure!(error.why.contains("30.0 MiB") && error.next_step.contains("peer grant branch"), "{error:?}");
    ensure!(stopped.bytes.sent_payload > 10 * MIB, "{:?}", stopped.bytes);
    // What is there is as it was, also after a restart, and the quota still holds.
    world.target.restart()?;
    world.prove_latest("small", &[&small])?;
    let peer: Peer = world.target.json(&["peer", "show", "branch"])?;
    ensure!(peer.quota.bytes == Some(30 * MIB) && peer.quota.points == Some(4), "{peer:?}");
    let used = peer.used.context("no figures")?.bytes;
    ensure!((25 * MIB..80 * MIB).contains(&used), "{used} bytes");
    world.wait_connected(Duration::from_secs(60))?;
    wait_for_refusal(&world, "large")?;
    world.target.ok(&["peer", "grant", "branch", "--quota", "1G"])?;
    let ended = world.wait("large")?;
    ensure!(ended.resumed > 0 && ended.bytes.sent_payload < 60 * MIB, "{:?}", ended.bytes);
    world.prove_latest("large", &[&large])?;
    world.prove_latest("small", &[&small])
}

/// Lets the target look for what has to retire, to the end of that look.
fn look(world: &World) -> Result<()> {
    let task = || world.target.json::<Task>(&["task", "show", "retention"]);
    let idle_after = |runs: u64| {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let task = task()?;
            if task.runs >= runs && task.state == TaskState::Idle {
                return anyhow::Ok(task.runs);
            }
            ensure!(Instant::now() < end, "it does not look: {task:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    // One that is under way, as at the start, began before now.
    let before = idle_after(0)?;
    world.target.ok(&["task", "run", "retention"])?;
    idle_after(before + 1).map(drop)
}

#[test]
fn a_wall_clock_that_jumps_expires_nothing() -> Result<()> {
    let world = World::paired(&WorldSpec { min_age: "1h".into(), ..WorldSpec::default() })?;
    let clock = WallClock::new(&world.path("."))?;
    clock.give(&world.target);
    world.target.stop()?;
    world.target.start()?;
    world.wait_connected(Duration::from_secs(60))?;
    let image = world.path("web.img");
    disk::mixed(&image, 2 * MIB, 45)?;
    let path = image.to_string_lossy().into_owned();
    let keep = ["--keep", "1", "--keep-daily", "2"];
    world.source.ok(&[&["job", "create", "web", "--disk", &path, "--target", "dr"][..], &keep].concat())?;
    for seed in 0..3 {
        again(&world, "web", &image, seed)?;
    }
    let pinned = format!("web@{}", points(&world, "web")?[0].id);
    world.target.ok(&["restore-point", "pin", &pinned, "--for", "30d"])?;

    let mut there = 3;
    for days in [400_i32, -400, 0] {
        // While vbrd runs; then it starts with that clock; each with a look of its own, and a seal.
        clock.set(days.into())?;
        for restart in [false, true] {
            if restart {
                world.target.restart()?;
                world.wait_connected(Duration::from_secs(60))?;
            }
            look(&world)?;
            let session = again(&world, "web", &image, 100 + there as u64)?.session;
            there += 1;
            look(&world)?;
            let listed = points(&world, "web")?;
            ensure!(listed.len() == there, "{days} days off, {there} points were there: {listed:#?}");
            let sealed = listed.iter().find(|point| point.session == session).context("it is not listed")?;
            let off = sealed.sealed_at.duration_since(Moment::now()).as_secs() as f64 / 86_400.0;
            ensure!((off - f64::from(days)).abs() < 0.1, "the clock was {off} days off, not {days}");
            let first = listed.iter().find(|point| pinned.ends_with(&point.id)).context("it is gone")?;
            ensure!(first.state == PointState::Pinned, "{days} days off: {first:?}");
        }
    }
    // It was their age that held them: without a minimum age those that the job does not ask for go.
    let toml = world.target.toml().replace("min_age = \"1h\"", "min_age = \"0\"");
    world.target.set_toml(&toml);
    world.target.restart()?;
    look(&world)?;
    let left = points(&world, "web")?;
    ensure!((2..there).contains(&left.len()), "{left:#?}");
    ensure!(left.iter().any(|point| point.state == PointState::Pinned), "{left:#?}");
    world.prove_latest("web", &[&image])
}
