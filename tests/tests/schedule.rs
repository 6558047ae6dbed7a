//! Jobs that run by themselves: intervals, calendar, one after another, and windows that cut a session.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vbr_api::{Job, List, Moment, RestorePoint, Session, SessionState};
use vbr_tests::disk::{self, MIB};
use vbr_tests::link::LinkConfig;
use vbr_tests::world::{World, WorldSpec};

/// Asks until it is so.
fn until(what: &str, limit: Duration, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit;
    while !so()? {
        ensure!(Instant::now() < end, "after {limit:?} it is not so that {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn points(world: &World, replica: &str) -> usize {
    let list = world.target.json::<List<RestorePoint>>(&["restore-point", "list", replica]);
    list.map_or(0, |list| list.items.len())
}

/// `HH:MM:SS` in so many seconds; the sites' clocks are in UTC.
fn clock(seconds: i64) -> String {
    let at = Moment::from_second(Moment::now().as_second() + seconds).unwrap_or_default();
    at.strftime("%H:%M:%S").to_string()
}

fn create(world: &World, name: &str, words: &[&str]) -> Result<std::path::PathBuf> {
    let image = world.path(&format!("{name}.img"));
    disk::random(&image, MIB + 17, name.len() as u64)?;
    let path = image.to_string_lossy().into_owned();
    let base = ["job", "create", name, "--disk", &path, "--target", "dr"];
    world.source.ok(&[&base, words].concat())?;
    Ok(image)
}

#[test]
fn jobs_run_by_themselves() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let db = create(&world, "db", &["--every", "10s"])?;
    let web = create(&world, "web", &["--after", "db"])?;
    let log = create(&world, "log", &["--at", "*:*:0/5"])?;
    let night = clock(3600) + "-" + &clock(7200);
    create(&world, "night", &["--continuous", "--window", &night])?;
    for replica in ["db", "web", "log"] {
        until("there are two points", Duration::from_secs(40), || Ok(points(&world, replica) >= 2))?;
    }
    ensure!(points(&world, "night") == 0, "it ran outside its window");
    let job: Job = world.source.json(&["job", "show", "night"])?;
    let opens = job.next_run_at.map_or(0, |at| at.as_second() - Moment::now().as_second());
    ensure!((3500..=3600 + 360).contains(&opens), "it says that it starts in {opens} s");

    // What is disabled stays where it is; an order is an order, also outside the window.
    for job in ["db", "web", "log"] {
        world.source.ok(&["job", "disable", job])?;
    }
    world.run("night")?;
    let before = points(&world, "db");
    std::thread::sleep(Duration::from_secs(12));
    ensure!(points(&world, "db") == before, "a disabled job ran");
    world.prove_latest("db", &[&db])?;
    world.prove_latest("web", &[&web])?;
    world.prove_latest("log", &[&log])
}

#[test]
fn a_session_is_cut_by_its_window_five_times() -> Result<()> {
    let link = LinkConfig::shaped(8.0, 20, 0.0);
    let world =
        World::paired(&WorldSpec { link, loopback_rate: Some("8Mbit".into()), ..WorldSpec::default() })?;
    let image = world.path("cut.img");
    disk::random(&image, 24 * MIB + 17, 3)?;
    // Five short windows, and a long one.
    let mut windows: Vec<String> = (0..5).map(|n| clock(2 + 5 * n) + "-" + &clock(5 + 5 * n)).collect();
    windows.push(clock(27) + "-" + &clock(7200));
    let path = image.to_string_lossy().into_owned();
    world.source.ok(&[
        "job",
        "create",
        "cut",
        "--disk",
        &path,
        "--target",
        "dr",
        "--continuous",
        "--window",
        &windows.join(","),
    ])?;
    let mut cuts = 0;
    let mut before = SessionState::Pending;
    let mut session: Option<Session> = None;
    until("the session is over", Duration::from_secs(120), || {
        let now = world.last_session("cut")?;
        let state = now.as_ref().map_or(SessionState::Pending, |session| session.state);
        cuts += u32::from(state == SessionState::Suspended && before != SessionState::Suspended);
        before = state;
        session = now;
        Ok(points(&world, "cut") > 0)
    })?;
    world.source.ok(&["job", "disable", "cut"])?;
    let session = match session {
        Some(session) if session.state.is_over() => session,
        _ => world.wait_over("cut")?,
    };
    ensure!(cuts == 5, "it was suspended {cuts} times");
    ensure!(session.bytes.resent <= 5 * 4 * MIB, "resent {}", session.bytes.resent);
    world.prove_latest("cut", &[&image])
}

#[test]
fn a_suspended_session_outlives_a_restart_and_can_be_cancelled() -> Result<()> {
    let link = LinkConfig::shaped(8.0, 20, 0.0);
    let world =
        World::paired(&WorldSpec { link, loopback_rate: Some("8Mbit".into()), ..WorldSpec::default() })?;
    let image = world.path("night.img");
    disk::random(&image, 8 * MIB, 5)?;
    let path = image.to_string_lossy().into_owned();
    let window = clock(1) + "-" + &clock(4);
    let state =
        || -> Result<Option<SessionState>> { Ok(world.last_session("night")?.map(|session| session.state)) };
    let base = ["job", "create", "night", "--disk", &path, "--target", "dr"];
    world.source.ok(&[&base[..], &["--every", "1h", "--window", &window]].concat())?;
    let suspended = || Ok(state()? == Some(SessionState::Suspended));
    until("it is suspended", Duration::from_secs(20), suspended)?;
    world.source.restart()?;
    until("it still is", Duration::from_secs(20), suspended)?;
    let refused = world.source.ok(&["job", "remove", "night", "--yes"]);
    ensure!(refused.is_err(), "a job with a suspended session was removed");
    let id = world.last_session("night")?.map(|session| session.session).unwrap_or_default();
    world.source.ok(&["session", "cancel", &id])?;
    ensure!(state()? == Some(SessionState::Cancelled), "{:?}", state()?);
    // An order does not care for the window; what crossed before is in the cache there.
    let session = world.run("night")?;
    ensure!(session.bytes.sent_payload < 7 * MIB, "all of it was sent again: {}", session.bytes.sent_payload);
    world.prove_latest("night", &[&image])
}
