//! Truth at a glance: each fault turns `check`, metrics and status red within a minute, for what it is and nothing
//! else, at the site that has it and at no other, and green again within a minute of being mended.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use vbr_api::{CacheStats, JobLogEntry, List, Status, Task, TaskState, Warning};
use vbr_tests::disk::{self, MIB};
use vbr_tests::fault::flip_bits;
use vbr_tests::hook::{Hook, write_script};
use vbr_tests::link::Mode;
use vbr_tests::mount::{FsKind, LoopFs};
use vbr_tests::process::{is_root, skip_unless};
use vbr_tests::site::Site;
use vbr_tests::work::WorkDir;
use vbr_tests::world::{World, WorldSpec};

const WITHIN: Duration = Duration::from_secs(60);
/// An operator's glance that takes longer than this is none.
const GLANCE: Duration = Duration::from_secs(20);

/// Exit statuses of `vbrctl check`.
const OK: i32 = 0;
const WARNING: i32 = 1;
const CRITICAL: i32 = 2;
const UNKNOWN: i32 = 3;

/// The same site through the three windows that it has.
#[derive(Debug)]
struct Sight {
    check: i32,
    line: String,
    status: Vec<Warning>,
    metrics: String,
}

fn look(site: &Site) -> Result<Sight> {
    let check = site.ctl_within(&["check"], GLANCE)?;
    Ok(Sight {
        check: check.status.code().context("check was killed")?,
        line: String::from_utf8(check.stdout)?,
        status: site.json_within::<Status>(&["status"], GLANCE)?.warnings,
        metrics: metrics(site)?,
    })
}

/// `GET /v1/metrics`, as a scraper does it.
fn metrics(site: &Site) -> Result<String> {
    let mut stream = UnixStream::connect(site.socket())?;
    stream.set_read_timeout(Some(GLANCE))?;
    stream.write_all(b"GET /v1/metrics HTTP/1.1\r\nhost: vbrd\r\nconnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page).context("the metrics do not come")?;
    ensure!(page.starts_with("HTTP/1.1 200"), "no metrics: {page}");
    Ok(page)
}

impl Sight {
    /// The value of one sample.
    fn metric(&self, name: &str) -> Option<f64> {
        let line = self.metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok())
    }

    fn counted(&self, level: &str) -> Option<f64> {
        self.metric(&format!("vbr_warnings{{level=\"{level}\"}}"))
    }

    /// All three say that there is nothing.
    fn is_green(&self) -> bool {
        self.check == OK
            && self.line.starts_with("VBR OK - ")
            && self.status.is_empty()
            && self.counted("warning") == Some(0.0)
            && self.counted("critical") == Some(0.0)
    }

    /// All three say this, at this level.
    fn is_red(&self, words: &[&str], level: i32) -> bool {
        let (word, name) = match level {
            CRITICAL => ("VBR CRITICAL - ", "critical"),
            _ => ("VBR WARNING - ", "warning"),
        };
        self.check == level
            && self.line.starts_with(word)
            && words.iter().any(|word| self.line.contains(word))
            && self.status.iter().any(|warning| warning.level == name && says(warning, words))
            && self.counted(name).is_some_and(|count| count >= 1.0)
    }
}

fn says(warning: &Warning, words: &[&str]) -> bool {
    words.iter().any(|word| warning.what.contains(word))
}

/// Looks until it is so; what was seen then.
fn until(site: &Site, what: &str, mut so: impl FnMut(&Sight) -> Result<bool>) -> Result<Sight> {
    let started = Instant::now();
    loop {
        let sight = look(site)?;
        let passed = started.elapsed();
        if so(&sight)? {
            eprintln!("{} is {what} after {:.1} s", site.name(), passed.as_secs_f64());
            return Ok(sight);
        }
        ensure!(
            passed < WITHIN,
            "{} is not {what} after {WITHIN:?}: {} {} {:#?}\n{}",
            site.name(),
            sight.check,
            sight.line,
            sight.status,
            site.log_tail(30)
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn green(site: &Site) -> Result<Sight> {
    until(site, "green", |sight| Ok(sight.is_green()))
}

fn both_green(world: &World) -> Result<()> {
    green(&world.source)?;
    green(&world.target).map(drop)
}

/// Red at this level for one of these words, and for nothing that says none of them.
fn red(site: &Site, words: &[&str], level: i32) -> Result<Sight> {
    until(site, &format!("red ({})", words.join(", ")), |sight| {
        let other = sight.status.iter().find(|warning| !says(warning, words));
        ensure!(other.is_none(), "{} is red for something else too: {other:#?}", site.name());
        Ok(sight.is_red(words, level))
    })
}

/// `vbrctl check --job`
fn check_job(site: &Site, job: &str) -> Result<Option<i32>> {
    Ok(site.ctl_within(&["check", "--job", job], GLANCE)?.status.code())
}

#[test]
fn a_link_that_is_down() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    if skip_unless(world.has_link(), "a link that is down", "a link with outages needs root") {
        return Ok(());
    }
    both_green(&world)?;
    // Nothing gets through and nobody says so, as behind a router that lost its line.
    world.link()?.set_mode(Mode::BlackHole);
    let sight = red(&world.source, &["peer dr is not connected"], WARNING)?;
    ensure!(sight.metric("vbr_peer_connected{peer=\"dr\"}") == Some(0.0), "{}", sight.metrics);
    red(&world.target, &["peer branch is not connected"], WARNING)?;
    world.link()?.set_mode(Mode::Up);
    let sight = green(&world.source)?;
    ensure!(sight.metric("vbr_peer_connected{peer=\"dr\"}") == Some(1.0), "{}", sight.metrics);
    green(&world.target)?;
    // The vbrd over there does not run.
    world.target.stop()?;
    red(&world.source, &["peer dr is not connected"], WARNING)?;
    let unknown = world.target.ctl(&["check"])?;
    let line = String::from_utf8_lossy(&unknown.stdout).into_owned();
    ensure!(unknown.status.code() == Some(UNKNOWN) && line.starts_with("VBR UNKNOWN - "), "{unknown:?}");
    world.target.start()?;
    both_green(&world)
}

#[test]
fn a_target_that_is_full() -> Result<()> {
    if skip_unless(is_root(), "a target that is full", "loop mounts need root") {
        return Ok(());
    }
    let dir = WorkDir::new()?;
    let store = LoopFs::create(dir.path(), "store", FsKind::Xfs, 400 * MIB)?;
    let datastore = Some(store.path().join("vbr"));
    let world = World::paired(&WorldSpec { datastore, ..WorldSpec::default() })?;
    let image = world.path("web.img");
    disk::random(&image, 4 * MIB, 1)?;
    world.job("web", &image)?;
    world.run("web")?;
    both_green(&world)?;
    // Somebody else fills the file system: half of the reserve is left.
    let (free, ballast) = (statvfs(store.path())?, store.path().join("ballast"));
    let len = free.f_bavail * free.f_frsize - 8 * MIB;
    fallocate(File::create(&ballast)?, FallocateFlags::empty(), 0, len)?;
    let sight = red(&world.target, &["datastore default is full"], CRITICAL)?;
    let left = sight.metric("vbr_datastore_free_bytes{datastore=\"default\"}");
    ensure!(left.is_some_and(|left| left < 16.0 * MIB as f64), "{left:?} bytes free");
    ensure!(look(&world.source)?.is_green(), "nothing has come of it at the source yet");
    // The source learns of it by the session that finds no room, and waits for some.
    disk::random(&image, 4 * MIB, 2)?;
    world.run_in_background("web")?;
    red(&world.source, &["the session of job web waits"], WARNING)?;
    std::fs::remove_file(&ballast)?;
    green(&world.target)?;
    world.wait("web")?;
    both_green(&world)?;
    world.prove_latest("web", &[&image])?;
    drop(world); // Before its file system.
    Ok(())
}

#[test]
fn a_job_that_fails() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let (image, away) = (world.path("web.img"), world.path("web.img.away"));
    disk::random(&image, MIB, 3)?;
    world.job("web", &image)?;
    world.run("web")?;
    both_green(&world)?;
    std::fs::rename(&image, &away)?;
    world.run_in_background("web")?;
    let sight = red(&world.source, &["the last session of job web failed"], CRITICAL)?;
    ensure!(sight.metric("vbr_job_failed{job=\"web\"}") == Some(1.0), "{}", sight.metrics);
    ensure!(sight.line.contains("web.img"), "it does not say which disk: {}", sight.line);
    ensure!(check_job(&world.source, "web")? == Some(CRITICAL));
    ensure!(look(&world.target)?.is_green(), "the target has nothing to do with it");
    std::fs::rename(&away, &image)?;
    world.run("web")?;
    let sight = green(&world.source)?;
    ensure!(sight.metric("vbr_job_failed{job=\"web\"}") == Some(0.0), "{}", sight.metrics);
    ensure!(check_job(&world.source, "web")? == Some(OK));
    green(&world.target).map(drop)
}

#[test]
fn a_recovery_point_objective_that_is_missed() -> Result<()> {
    let source_toml = "[resources]\nhost_slots = 1\n".to_owned();
    let world = World::paired(&WorldSpec { source_toml, ..WorldSpec::default() })?;
    let (web, slow) = (world.path("web.img"), world.path("slow.img"));
    disk::random(&web, MIB, 4)?;
    disk::random(&slow, 8 * MIB, 5)?;
    let (web, slow) = (web.to_string_lossy().into_owned(), slow.to_string_lossy().into_owned());
    // It has the only slot for a quarter of an hour.
    world.source.ok(&["job", "create", "slow", "--disk", &slow, "--target", "dr", "--rate", "64kbit"])?;
    world.source.ok(&["job", "create", "web", "--disk", &web, "--target", "dr", "--every", "10s"])?;
    let sealed = "vbr_job_last_success_timestamp_seconds{job=\"web\"}";
    until(&world.source, "sealed", |sight| Ok(sight.metric(sealed).is_some()))?;
    both_green(&world)?;
    let slow = world.run_in_background("slow")?;
    // Two runs of 10 s each, and a tenth of that in which they may start late.
    let sight = red(&world.source, &["job web is overdue"], CRITICAL)?;
    ensure!(sight.metric("vbr_job_overdue{job=\"web\"}") == Some(1.0), "{}", sight.metrics);
    ensure!(sight.metric("vbr_job_failed{job=\"web\"}") == Some(0.0), "{}", sight.metrics);
    let lag = sight.metric("vbr_job_rpo_lag_seconds{job=\"web\"}").unwrap_or(0.0);
    ensure!(lag >= 20.0, "red after {lag} s");
    ensure!(check_job(&world.source, "web")? == Some(CRITICAL));
    ensure!(look(&world.target)?.is_green(), "the target has nothing to do with it");
    world.source.ok(&["session", "cancel", &slow.session])?;
    both_green(&world)?;
    ensure!(check_job(&world.source, "web")? == Some(OK));
    Ok(())
}

#[test]
fn a_cache_record_that_is_corrupt() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let (first, second) = (world.path("first.img"), world.path("second.img"));
    disk::random(&first, 8 * MIB, 6)?;
    disk::copy(&first, &second)?;
    world.job("first", &first)?;
    world.job("second", &second)?;
    world.run("first")?;
    both_green(&world)?;
    ensure!(flip_bits(&world.target.state().join("packs"), 60, 7, |_| true)? > 0, "there are no packs");
    // Who reads the records finds them: a session that wants the same content.
    world.run("second")?;
    let sight = red(&world.target, &["the cache found"], WARNING)?;
    ensure!(sight.metric("vbr_cache_bad_records_total") >= Some(1.0), "{}", sight.metrics);
    ensure!(look(&world.source)?.is_green(), "the source has nothing to do with it");
    // It cost bytes, nothing else: what was damaged is dropped, and sent or found elsewhere.
    world.prove_latest("second", &[&second])?;
    world.prove_latest("first", &[&first])?;
    // The disk is well again, and an operator proves it: the whole cache is read until that finds nothing.
    let scrubbed = || -> Result<Task> {
        let before = world.target.json::<Task>(&["task", "show", "scrub"])?.runs;
        world.target.ok(&["cache", "scrub"])?;
        let end = Instant::now() + WITHIN;
        loop {
            let task: Task = world.target.json(&["task", "show", "scrub"])?;
            if task.runs > before && task.state == TaskState::Idle {
                return Ok(task);
            }
            ensure!(Instant::now() < end, "the scrub does not end: {task:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    if scrubbed()?.finding.is_some() {
        // The session did not need them all.
        red(&world.target, &["the cache found", "the scrub found"], WARNING)?;
        ensure!(scrubbed()?.finding.is_none(), "what was dropped is found again");
    }
    green(&world.target)?;
    let cache: CacheStats = world.target.json(&["cache", "stats"])?;
    ensure!(cache.bad_records >= 1, "the count stays: {cache:?}");
    world.run("second").map(drop)
}

#[test]
fn workers_that_are_stuck() -> Result<()> {
    if skip_unless(is_root(), "workers that are stuck", "freezing a file system needs root") {
        return Ok(());
    }
    let dir = WorkDir::new()?;
    let store = LoopFs::create(dir.path(), "store", FsKind::Xfs, 400 * MIB)?;
    let datastore = Some(store.path().join("vbr"));
    let world = World::paired(&WorldSpec { datastore, ..WorldSpec::default() })?;
    let image = world.path("web.img");
    disk::random(&image, 4 * MIB, 8)?;
    world.job_keeping("web", &image, 1)?;
    let old = format!("web@{}", world.run("web")?.restore_point.context("it has no restore point")?);
    world.target.ok(&["restore-point", "pin", &old])?;
    disk::random(&image, MIB, 9)?;
    world.run("web")?;
    world.target.ok(&["restore-point", "unpin", &old])?;
    both_green(&world)?;
    ensure!(world.points("web")?.len() == 2, "what the pin held is due now");
    // A disk that does not answer: whoever writes down what it found stands still, and so does who removes a file, one
    // step that may honestly take hours.
    let frozen = store.freeze()?;
    let workers = ["verification", "retention"];
    workers.iter().try_for_each(|worker| world.target.ok(&["task", "run", worker]).map(drop))?;
    let words = workers.map(|worker| format!("the worker {worker} is stuck: no progress for"));
    let words = [words[0].as_str(), words[1].as_str()];
    red(&world.target, &words, CRITICAL)?;
    let sight = until(&world.target, "red for both", |sight| {
        Ok(words.iter().all(|word| sight.status.iter().any(|warning| warning.what.contains(word))))
    })?;
    for worker in workers {
        let up = sight.metric(&format!("vbr_task_up{{task=\"{worker}\"}}"));
        ensure!(up == Some(0.0), "{worker}: {}", sight.metrics);
        let task: Task = world.target.json(&["task", "show", worker])?;
        ensure!(task.state == TaskState::Stuck, "{task:?}");
    }
    ensure!(look(&world.source)?.is_green(), "the source has nothing to do with it");
    drop(frozen);
    let sight = green(&world.target)?;
    ensure!(sight.metric("vbr_task_up{task=\"verification\"}") == Some(1.0), "{}", sight.metrics);
    let points = world.points("web")?;
    ensure!(points.len() == 1, "retention did not go on where it stood: {points:?}");
    ensure!(points[0].verified_ok == Some(true), "verification did not go on where it stood: {points:?}");
    world.prove_latest("web", &[&image])?;
    drop(world); // Before its file system.
    Ok(())
}

#[test]
fn a_session_that_stands_still() -> Result<()> {
    if skip_unless(is_root(), "a session that stands still", "freezing a file system needs root") {
        return Ok(());
    }
    let dir = WorkDir::new()?;
    let (told, script) = (dir.join("told"), dir.join("tell"));
    write_script(&script, &told)?;
    let hook = Hook::start()?;
    let store = LoopFs::create(dir.path(), "store", FsKind::Xfs, 512 * MIB)?;
    let datastore = Some(store.path().join("vbr"));
    let source_toml = format!(
        "[schedule]\nstall_warning = \"5s\"\nstall_cut = \"10m\"\n\
         [notify.web]\non = [\"stall\"]\nwebhook = \"http://{}/vbr\"\n\
         [notify.cmd]\non = [\"stall\"]\ncommand = [\"{}\"]\n",
        hook.address(),
        script.display()
    );
    // On loopback, where the hook is.
    let world = World::paired(&WorldSpec { source_toml, datastore, loopback: true, ..WorldSpec::default() })?;
    let image = world.path("web.img");
    disk::random(&image, 96 * MIB, 9)?;
    world.job("web", &image)?;
    both_green(&world)?;
    let frozen = store.freeze()?;
    world.run_in_background("web")?;
    red(&world.source, &["the session of job web stands still at target since"], WARNING)?;
    look(&world.target).context("the disk that hangs hangs the target's status")?;
    until(&world.source, "telling of it", |_| {
        let said = std::fs::read_to_string(&told).unwrap_or_default();
        Ok(hook.got("stall").is_some() && said.contains("stall web "))
    })?;
    let note = hook.got("stall").context("it is gone")?;
    ensure!(note.job.as_deref() == Some("web") && note.text.contains("target"), "{note:?}");
    let stalled = note.session.as_ref().and_then(|session| session.stalled.as_ref());
    ensure!(stalled.is_some_and(|stall| stall.stage == "target"), "{note:?}");
    drop(frozen);
    both_green(&world)?;
    let session = world.wait("web")?;
    ensure!(session.retry_number == 0 && session.stalled.is_none(), "it was cut: {session:?}");
    ensure!(session.warnings.iter().any(|warning| warning.contains("stood still at target")), "{session:?}");
    ensure!(hook.all().len() == 1, "told more than once: {:?}", hook.all());
    let log: List<JobLogEntry> = world.source.json(&["job", "log", "web"])?;
    ensure!(log.items.iter().filter(|entry| entry.event == "stalled").count() == 1, "{log:?}");
    world.prove_latest("web", &[&image])?;
    drop(world); // Before its file system.
    Ok(())
}
