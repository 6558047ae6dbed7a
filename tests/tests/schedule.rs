//! Jobs that run by themselves: intervals, calendar, one after another, and windows that cut a session.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};
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

/// What an uncut session of this disk puts on the line, as the link counts it.
fn uncut(spec: &WorldSpec, image: &Path) -> Result<u64> {
    let world = World::paired(spec)?;
    world.job("whole", image)?;
    let before = world.link()?.counters().port(world.port()).up_sent;
    world.run("whole")?;
    Ok(world.link()?.counters().port(world.port()).up_sent - before)
}

#[test]
fn a_session_is_cut_by_its_window_five_times() -> Result<()> {
    const RESENT_MAX: u64 = 4 * MIB;
    // Some 7 MB go in each window: more than may be lost at its end.
    let spec = WorldSpec {
        link: LinkConfig::shaped(20.0, 20, 0.0),
        loopback_rate: Some("20Mbit".into()),
        ..WorldSpec::default()
    };
    let world = World::paired(&spec)?;
    let image = world.path("cut.img");
    disk::random(&image, 56 * MIB + 17, 3)?;
    let counted = || Ok::<_, Error>(world.link()?.counters().port(world.port()).up_sent);
    let before = if world.has_link() { counted()? } else { 0 };
    // Five short windows, and a long one.
    let mut windows: Vec<String> = (0..5).map(|n| clock(2 + 5 * n) + "-" + &clock(5 + 5 * n)).collect();
    windows.push(clock(27) + "-" + &clock(7200));
    let (path, windows) = (image.to_string_lossy().into_owned(), windows.join(","));
    let words =
        ["job", "create", "cut", "--disk", &path, "--target", "dr", "--continuous", "--window", &windows];
    world.source.ok(&words)?;
    until("the session is there", Duration::from_secs(20), || Ok(world.last_session("cut")?.is_some()))?;
    let id = world.last_session("cut")?.map(|session| session.session).unwrap_or_default();
    let show = || -> Result<Session> { world.source.json(&["session", "show", &id]) };
    // What was lost at each cut, as the session says.
    let (mut lost, mut told, mut before_that): (Vec<u64>, u64, _) = (Vec::new(), 0, SessionState::Pending);
    until("the session is over", Duration::from_secs(120), || {
        let now = show()?;
        if now.state == SessionState::Suspended && before_that != SessionState::Suspended {
            lost.push(now.bytes.resent - told);
            told = now.bytes.resent;
        }
        before_that = now.state;
        Ok(now.state.is_over())
    })?;
    world.source.ok(&["job", "disable", "cut"])?;
    let session = show()?;
    ensure!(session.state == SessionState::Succeeded, "{session:?}");
    ensure!(lost.len() == 5, "it was suspended {} times", lost.len());
    ensure!(lost.iter().all(|lost| *lost <= RESENT_MAX), "lost at its cuts: {lost:?}");
    ensure!(told > 0, "a full line was cut five times, and nothing was on its way");
    ensure!(session.bytes.resent == told, "{} were resent, {told} at its cuts", session.bytes.resent);
    if world.has_link() {
        // The same from outside: what crossed, against what an uncut session of this disk takes.
        let (all, whole) = (counted()? - before, uncut(&spec, &image)?);
        let each = all.saturating_sub(whole) / 5;
        eprintln!("{all} bytes with five cuts, {whole} without: {each} a cut; the session says {lost:?}");
        ensure!(each <= RESENT_MAX, "{all} bytes crossed, {whole} without cuts: {each} resent a cut");
        ensure!(whole > 56 * MIB, "an uncut session of 56 MiB took {whole}");
    }
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
