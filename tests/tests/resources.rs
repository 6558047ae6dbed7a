//! Many jobs at once, within their slots; tries after failures; sessions that stand still; definitions that change.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vbr_api::{Job, List, Priority, RestorePoint, Schedule, Session, SessionState};
use vbr_tests::disk::{self, MIB};
use vbr_tests::link::{LinkConfig, Mode};
use vbr_tests::mount::{FsKind, LoopFs};
use vbr_tests::process::{is_root, skip_unless};
use vbr_tests::slow_disk::SlowDisk;
use vbr_tests::work::WorkDir;
use vbr_tests::world::{World, WorldSpec};

/// Slots of a host, where nothing is configured.
const SLOTS: usize = 4;

/// Asks until there is an answer.
fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        ensure!(Instant::now() < end, "after {limit:?} it is not so that {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn show(world: &World, job: &str) -> Result<Job> {
    world.source.json(&["job", "show", job])
}

fn history(world: &World, job: &str) -> Result<Vec<Session>> {
    Ok(world.source.json::<List<Session>>(&["job", "history", job])?.items)
}

fn active(world: &World) -> Result<Vec<Session>> {
    Ok(world.source.json::<List<Session>>(&["session", "list", "--active"])?.items)
}

fn points(world: &World, replica: &str) -> usize {
    let list = world.target.json::<List<RestorePoint>>(&["restore-point", "list", replica]);
    list.map_or(0, |list| list.items.len())
}

fn create(world: &World, name: &str, len: u64, words: &[&str]) -> Result<PathBuf> {
    let image = world.path(&format!("{name}.img"));
    disk::random(&image, len, name.bytes().map(u64::from).sum())?;
    let path = image.to_string_lossy().into_owned();
    let base = ["job", "create", name, "--disk", &path, "--target", "dr"];
    world.source.ok(&[&base, words].concat())?;
    Ok(image)
}

#[test]
fn a_hundred_jobs_at_once_finish_within_their_slots() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let names: Vec<String> = (0..100).map(|n| format!("vm{n:03}")).collect();
    let mut images = Vec::new();
    for (seed, name) in names.iter().enumerate() {
        let image = create(&world, name, 4 * MIB, &[])?;
        disk::random(&image, 4 * MIB, 7000 + seed as u64)?; // No two are alike.
        images.push(image);
    }
    for name in &names {
        world.run_in_background(name)?;
    }
    let mut most = 0;
    let early = until("they are over", Duration::from_secs(300), || {
        let sessions = active(&world)?;
        let working = |session: &&Session| session.state == SessionState::Running;
        let running = sessions.iter().filter(working).count();
        most = most.max(running);
        ensure!(running <= SLOTS, "{running} sessions run at once");
        for session in sessions.iter().filter(|session| session.state == SessionState::Pending) {
            // Between two looks of the broker a new one may not know its place yet.
            if let Some(wait) = &session.waits_for {
                ensure!(wait.place >= 1 && wait.resource == "host local", "{wait:?}");
            }
        }
        Ok(sessions.is_empty().then_some(world.source.peak_rss()?))
    })?;
    ensure!(most == SLOTS, "at most {most} ran at once");
    for (name, image) in names.iter().zip(&images) {
        let sessions = history(&world, name)?;
        ensure!(sessions.len() == 1 && sessions[0].state == SessionState::Succeeded, "{name}: {sessions:?}");
        ensure!(points(&world, name) == 1, "{name} does not have one point");
        world.prove(&format!("{name}@latest"), &[image])?;
    }
    // Flat: what waits costs next to nothing, so that a hundred take what four do.
    let (source, target) = (early, world.target.peak_rss()?);
    eprintln!("peak RSS: source {} MiB, target {} MiB", source / MIB, target / MIB);
    ensure!(source < 256 * MIB && target < 512 * MIB, "source {source}, target {target}");
    Ok(())
}

#[test]
fn high_goes_before_normal_before_low_and_equals_in_order() -> Result<()> {
    let source_toml = "[resources]\nhost_slots = 1\n".to_owned();
    let link = LinkConfig::shaped(20.0, 10, 0.0);
    let loopback_rate = Some("20Mbit".into());
    let world = World::paired(&WorldSpec { source_toml, link, loopback_rate, ..WorldSpec::default() })?;
    create(&world, "first", 24 * MIB, &[])?;
    let order = ["low-1", "normal-1", "high-1", "low-2", "normal-2", "high-2"];
    for name in order {
        let priority = name.split('-').next().unwrap_or_default();
        create(&world, name, MIB, &["--priority", priority])?;
    }
    ensure!(show(&world, "high-1")?.spec.priority == Priority::High);
    world.run_in_background("first")?;
    for name in order {
        world.run_in_background(name)?;
    }
    let waiting = active(&world)?;
    let wait =
        waiting.iter().find(|session| session.job == "low-2").and_then(|session| session.waits_for.clone());
    let wait = wait.context("it does not say what it waits for")?;
    ensure!((wait.resource.as_str(), wait.place) == ("host local", 6), "{wait:?}");
    // One that is cancelled while it waits leaves the queue, and holds up nobody.
    let id = waiting.iter().find(|session| session.job == "normal-1").context("not there")?.session.clone();
    world.source.ok(&["session", "cancel", &id])?;
    let mut ends = Vec::new();
    for name in order {
        let session = world.wait_over(name)?;
        let cancelled = name == "normal-1";
        let state = if cancelled { SessionState::Cancelled } else { SessionState::Succeeded };
        ensure!(session.state == state, "{name}: {:?}", session.error);
        if !cancelled {
            ends.push((session.ended_at, name));
        }
    }
    ends.sort();
    let ends: Vec<&str> = ends.into_iter().map(|(_, name)| name).collect();
    ensure!(ends == ["high-1", "high-2", "normal-2", "low-1", "low-2"], "{ends:?}");
    // What waits when vbrd stops waits again, or runs, after its start.
    world.run_in_background("first")?;
    world.run_in_background("low-1")?;
    world.source.restart()?;
    world.wait_connected(Duration::from_secs(30))?;
    world.wait("first")?;
    world.wait("low-1").map(drop)
}

#[test]
fn what_failed_is_tried_again_and_what_no_try_mends_is_not() -> Result<()> {
    let source_toml = "[schedule]\nlink_wait = \"5s\"\n".to_owned();
    let world = World::paired(&WorldSpec { source_toml, ..WorldSpec::default() })?;
    let image = create(&world, "web", MIB, &["--retry", "2/8s"])?;
    world.target.kill()?;
    world.run_in_background("web")?;
    let session = world.wait_over("web")?;
    ensure!(session.state == SessionState::Failed && session.retry_number == 0, "{session:?}");
    // The agenda hears of the end a moment after the session says it.
    let to_come = || Ok(show(&world, "web")?.pending_retry);
    let retry = until("a retry is to come", Duration::from_secs(5), to_come)?;
    ensure!((retry.number, retry.of) == (1, 2), "{retry:?}");
    ensure!(world.source.ok(&["job", "list"])?.contains("retry 1 of 2 at "), "job list does not say so");
    // A restart forgets none.
    world.source.restart()?;
    let again = until("the retry is to come", Duration::from_secs(5), to_come)?;
    let apart = again.at.duration_since(retry.at).as_millis().abs();
    ensure!(again.number == 1 && apart < 1000, "{again:?} instead of {retry:?}");
    world.target.start()?;
    until("it was tried again", Duration::from_secs(90), || Ok((points(&world, "web") == 1).then_some(())))?;
    let session = world.wait("web")?;
    ensure!(session.retry_number >= 1, "{session:?}");
    world.prove_latest("web", &[&image])?;

    // It stays away: the first session and two tries, no more.
    world.target.kill()?;
    let before = history(&world, "web")?.len();
    world.run_in_background("web")?;
    let all = || {
        let sessions = history(&world, "web")?;
        let over = sessions.iter().all(|session| session.state.is_over());
        Ok((over && sessions.len() == before + 3).then_some(()))
    };
    until("all tries are used up", Duration::from_secs(180), all)?;
    std::thread::sleep(Duration::from_secs(2));
    let job = show(&world, "web")?;
    ensure!(
        job.pending_retry.is_none() && job.running.is_none(),
        "it is tried more often than said: {job:?}"
    );

    // A disk that is not there: no try mends that.
    std::fs::remove_file(&image)?;
    world.run_in_background("web")?;
    let session = world.wait_over("web")?;
    ensure!(session.state == SessionState::Failed, "{session:?}");
    std::thread::sleep(Duration::from_secs(1));
    ensure!(show(&world, "web")?.pending_retry.is_none(), "it is to be tried again: {:?}", session.error);
    Ok(())
}

#[test]
fn a_lost_link_is_waited_for_up_to_its_bound() -> Result<()> {
    let source_toml = "[schedule]\nlink_wait = \"8s\"\n".to_owned();
    let world = World::paired(&WorldSpec { source_toml, ..WorldSpec::default() })?;
    if skip_unless(world.has_link(), "a bound on lost links", "a link with outages needs root") {
        return Ok(());
    }
    create(&world, "web", 4 * MIB, &["--retry", "0"])?;
    world.target.kill()?;
    world.run_in_background("web")?;
    let waits = |state: SessionState| {
        Ok((world.last_session("web")?.is_some_and(|session| session.state == state)).then_some(()))
    };
    until("it waits", Duration::from_secs(30), || waits(SessionState::Waiting))?;
    let session = world.wait_over("web")?;
    let error = session.error.context("no error")?;
    ensure!(session.state == SessionState::Failed && error.code == "link_lost", "{error:?}");
    ensure!(error.why.contains("schedule.link_wait"), "{error:?}");
    world.target.start()?;
    world.wait_connected(Duration::from_secs(60))?;
    // A short outage is waited for, and counts as nothing.
    world.run_in_background("web")?;
    world.link()?.cut(Mode::Reset, Duration::from_millis(500));
    let session = world.wait("web")?;
    ensure!(session.retry_number == 0, "{session:?}");
    Ok(())
}

#[test]
fn a_target_whose_disk_hangs_is_found_said_and_cut() -> Result<()> {
    if skip_unless(is_root(), "a disk that hangs", "freezing a file system needs root") {
        return Ok(());
    }
    let dir = WorkDir::new()?;
    let fs = LoopFs::create(dir.path(), "store", FsKind::Xfs, 512 * MIB)?;
    let datastore = Some(fs.path().join("replicas"));
    let source_toml = "[schedule]\nstall_warning = \"5s\"\nstall_cut = \"12s\"\n".to_owned();
    let world = World::paired(&WorldSpec { source_toml, datastore, ..WorldSpec::default() })?;
    let image = create(&world, "web", 96 * MIB, &["--retry", "3/1s"])?;
    let frozen = fs.freeze()?;
    world.run_in_background("web")?;
    let session = until("it is said where it stands still", Duration::from_secs(60), || {
        Ok(world.last_session("web")?.filter(|session| session.stalled.is_some()))
    })?;
    ensure!(session.stalled.as_ref().is_some_and(|stall| stall.stage == "target"), "{:?}", session.stalled);
    ensure!(session.warnings.iter().any(|warning| warning.contains("stood still at target")), "{session:?}");
    let cut = until("its attempt is cut", Duration::from_secs(60), || {
        Ok(world.last_session("web")?.filter(|session| session.retry_number == 1))
    })?;
    ensure!(!cut.state.is_over(), "{cut:?}");
    drop(frozen);
    let session = world.wait("web")?;
    ensure!(session.retry_number >= 1 && session.stalled.is_none(), "{session:?}");
    world.prove_latest("web", &[&image])?;
    drop(world); // Before its file system.
    Ok(())
}

#[test]
fn a_source_host_that_is_slow_is_spared() -> Result<()> {
    if skip_unless(is_root(), "a source host that is slow", "a disk that is slow needs root") {
        return Ok(());
    }
    let source_toml = "[resources]\nlatency_ceiling = \"50ms\"\n".to_owned();
    let world = World::paired(&WorldSpec { source_toml, ..WorldSpec::default() })?;
    let (image, path) = (world.path("web.img"), world.path("slow.img"));
    disk::random(&image, 192 * MIB, 11)?;
    let slow = SlowDisk::mount(&image, &path)?;
    world.job("web", &path)?;
    // Below the ceiling, also where a read is two requests, reading takes what the disk gives.
    let (quick, late) = (Duration::from_millis(20), Duration::from_millis(100));
    slow.set_delay(quick);
    world.run_in_background("web")?;
    until("it reads", Duration::from_secs(30), || Ok((slow.reads() > 10).then_some(())))?;
    let full = slow.reads_per_second(Duration::from_secs(2));
    // Above it, reading leaves most of the time to the users of the host, within seconds.
    slow.set_delay(late);
    let given = full * quick.as_secs_f64() / late.as_secs_f64();
    let least = until("reading makes room", Duration::from_secs(60), || {
        let rate = slow.reads_per_second(Duration::from_secs(3));
        Ok((rate < given / 4.0).then_some(rate))
    })?;
    let session = world.last_session("web")?.context("no session")?;
    ensure!(session.state == SessionState::Running && session.stalled.is_none(), "{session:?}");
    eprintln!("reads a second: {full:.1}, and of the {given:.1} of a slower disk {least:.1}");
    // It comes back by itself.
    slow.set_delay(Duration::from_millis(1));
    let session = world.wait_over_within("web", Duration::from_secs(40))?;
    ensure!(session.state == SessionState::Succeeded, "{session:?}");
    world.prove_latest("web", &[&image])
}

#[test]
fn a_source_whose_disk_hangs_is_found_and_said() -> Result<()> {
    if skip_unless(is_root(), "a source disk that hangs", "a disk that hangs needs root") {
        return Ok(());
    }
    let source_toml = "[schedule]\nstall_warning = \"5s\"\nstall_cut = \"10m\"\n".to_owned();
    let world = World::paired(&WorldSpec { source_toml, ..WorldSpec::default() })?;
    let (image, path) = (world.path("web.img"), world.path("hangs.img"));
    disk::random(&image, 16 * MIB, 12)?;
    let hangs = SlowDisk::mount(&image, &path)?;
    world.job("web", &path)?;
    hangs.set_delay(Duration::from_secs(3600));
    world.run_in_background("web")?;
    let session = until("it is said where it stands still", Duration::from_secs(60), || {
        Ok(world.last_session("web")?.filter(|session| session.stalled.is_some()))
    })?;
    ensure!(session.stalled.as_ref().is_some_and(|stall| stall.stage == "source_host"), "{session:?}");
    hangs.set_delay(Duration::ZERO);
    let session = world.wait("web")?;
    ensure!(session.retry_number == 0 && session.stalled.is_none(), "{session:?}");
    world.prove_latest("web", &[&image])
}

#[test]
fn a_definition_changes_and_the_others_hold_it() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let first = create(&world, "web", 2 * MIB, &["--keep", "3", "--priority", "low"])?;
    // After what is not there, and in a circle.
    let path = first.to_string_lossy().into_owned();
    world.source.fails(&["job", "create", "x", "--disk", &path, "--target", "dr", "--after", "none"], 5)?;
    create(&world, "db", MIB, &["--after", "web"])?;
    let why = world.source.fails(&["job", "edit", "web", "--after", "db"], 1)?;
    ensure!(why.contains("web after db after web"), "{why}");
    let why = world.source.fails(&["job", "remove", "web", "--yes"], 1)?;
    ensure!(why.contains("job db runs after it"), "{why}");
    world.source.ok(&["job", "edit", "db", "--manual"])?;

    // What is named changes, the rest stays; the agenda knows at once.
    world.source.ok(&["job", "edit", "web", "--every", "10s", "--window", "00:00-24:00"])?;
    until("it runs by itself", Duration::from_secs(60), || Ok((points(&world, "web") > 0).then_some(())))?;
    let job = show(&world, "web")?.spec;
    ensure!(
        (job.keep, job.priority, job.schedule.every_ms) == (Some(3), Priority::Low, Some(10_000)),
        "{job:?}"
    );
    world.source.ok(&["job", "edit", "web", "--manual", "--window", "any", "--retry", "7/1m"])?;
    let job = show(&world, "web")?;
    ensure!(job.spec.schedule == Schedule::default() && job.next_run_at.is_none(), "{job:?}");
    ensure!(job.spec.retry.count == 7 && job.spec.keep == Some(3), "{job:?}");
    world.source.fails(&["job", "edit", "web", "--target", "nowhere"], 5)?;
    world.source.fails(&["job", "edit", "web", "--every", "1s"], 2)?;

    // A disk more: the next point has both. It is not taken away without a word.
    if job.running.is_some() {
        world.wait("web")?;
    }
    let second = world.path("second.img");
    disk::random(&second, MIB + 4096, 99)?;
    let more = second.to_string_lossy().into_owned();
    world.source.ok(&["job", "edit", "web", "--disk", &path, "--disk", &more])?;
    world.run("web")?;
    world.prove("web@latest", &[&first, &second])?;
    let why = world.source.fails(&["job", "edit", "web", "--disk", &path], 1)?;
    ensure!(why.contains("second.img") && why.contains("--drop-disks"), "{why}");
    world.source.ok(&["job", "edit", "web", "--disk", &path, "--drop-disks"])?;
    world.run("web")?;
    world.prove_latest("web", &[&first])
}
