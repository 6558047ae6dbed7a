//! What a site does by itself: it finds what spoils on its disks, says so, and is well again when that is mended;
//! it tells whoever wants to hear of what happens to jobs, and nobody who does not listen holds a job up.

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vbr_api::{JobLogEntry, List, NotifyHook, PointState, SessionState, Status, Task, TaskState};
use vbr_tests::disk::{self, MIB};
use vbr_tests::hook::{Hook, write_script};
use vbr_tests::site::Site;
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

fn task(site: &Site, name: &str) -> Result<Task> {
    site.json(&["task", "show", name])
}

/// Lets a worker run by order, to the end of that run.
fn run_task(site: &Site, words: &[&str], name: &str) -> Result<Task> {
    let before = task(site, name)?.runs;
    site.ok(words)?;
    until("the worker has run", Duration::from_secs(60), || {
        let task = task(site, name)?;
        Ok(task.runs > before && matches!(task.state, TaskState::Idle | TaskState::Failed))
    })?;
    task(site, name)
}

fn check(site: &Site) -> Result<(Option<i32>, String)> {
    let output = site.ctl(&["check"])?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// What `/v1/metrics` says of one worker.
fn metric(site: &Site, line: &str) -> Result<bool> {
    let mut socket = std::os::unix::net::UnixStream::connect(site.socket())?;
    socket.write_all(b"GET /v1/metrics HTTP/1.1\r\nHost: vbrd\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    socket.read_to_string(&mut text)?;
    ensure!(text.contains("vbr_task_up"), "{text}");
    Ok(text.lines().any(|other| other == line))
}

/// Changes one byte of the file at a place, in a file that others have open.
fn spoil(file: &Path, at: u64) -> Result<()> {
    let file = std::fs::File::options().read(true).write(true).open(file)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x40], at)?;
    Ok(file.sync_all()?)
}

fn only_file(dir: &Path, ending: &str) -> Result<PathBuf> {
    let files: Vec<PathBuf> = dir.read_dir()?.flatten().map(|entry| entry.path()).collect();
    let found = files.into_iter().find(|file| file.to_string_lossy().ends_with(ending));
    found.with_context(|| format!("there is no {ending} in {}", dir.display()))
}

#[test]
fn a_damaged_record_of_the_cache_is_found_told_and_healed() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let (image, twin) = (world.path("web.img"), world.path("twin.img"));
    disk::random(&image, 12 * MIB, 1)?;
    disk::copy(&image, &twin)?;
    world.job("web", &image)?;
    world.run("web")?;
    let target = &world.target;
    let clean = run_task(target, &["task", "run", "scrub"], "scrub")?;
    ensure!(clean.finding.is_none() && clean.counters["cache_records"] >= 12 * 16, "{clean:?}");
    ensure!(clean.counters["manifest_pages"] > 0, "{clean:?}");
    let well = check(target)?;
    ensure!(well.0 == Some(0), "{well:?}");

    // In the middle of a chunk's content: a pack begins with its header, records of 64 KiB and 64 bytes follow.
    let pack = only_file(&target.state().join("packs"), ".pack")?;
    spoil(&pack, 16 + 5 * (65_536 + 64) + 30_000)?;
    let found = run_task(target, &["cache", "scrub"], "scrub")?;
    let finding = found.finding.context("the scrub found nothing")?;
    ensure!(finding.what.contains("1 damaged records"), "{finding:?}");
    let status: Status = target.json(&["status"])?;
    ensure!(status.warnings.contains(&finding), "{:?}", status.warnings);
    let (code, line) = check(target)?;
    ensure!(code == Some(1) && line.contains("WARNING") && line.contains("scrub"), "{code:?} {line}");
    ensure!(metric(target, "vbr_task_finding{task=\"scrub\"} 1")?, "the metrics do not say so");
    // It is remembered over a restart, until a pass finds nothing.
    target.stop()?;
    target.start()?;
    ensure!(task(target, "scrub")?.finding.is_some(), "a restart made it forget");
    let healed = run_task(target, &["cache", "scrub"], "scrub")?;
    ensure!(healed.finding.is_none(), "{healed:?}");
    ensure!(metric(target, "vbr_task_finding{task=\"scrub\"} 0")?, "the metrics do not say so");
    world.wait_connected(Duration::from_secs(30))?;
    until("check is green again", Duration::from_secs(30), || Ok(check(target)?.0 == Some(0)))?;
    // And whoever needs the chunk has it, from somewhere.
    world.job("twin", &twin)?;
    world.run("twin")?;
    world.prove_latest("twin", &[&twin])
}

#[test]
fn a_damaged_manifest_is_mended_from_the_disk_it_describes() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let image = world.path("web.img");
    disk::random(&image, 70 * MIB, 7)?;
    world.job("web", &image)?;
    world.run("web")?;
    let target = &world.target;
    let replica: vbr_api::Replica = target.json(&["replica", "show", "web"])?;
    let pages = only_file(&Path::new(&replica.path).join("pages"), ".pages")?;
    // The first of two bodies of 32 KiB, behind a header of 4 KiB.
    spoil(&pages, 4096 + 1000)?;
    let found = run_task(target, &["task", "run", "scrub"], "scrub")?;
    ensure!(found.counters["manifest_mended"] == 1 && found.counters["manifest_bad"] == 0, "{found:?}");
    ensure!(found.finding.is_some_and(|finding| finding.what.contains("mended from the disks")));
    ensure!(check(target)?.0 == Some(1));
    // Where disk and manifest are both damaged nobody knows what was there.
    spoil(&pages, 4096 + 1000)?;
    let point = world.points("web")?.remove(0);
    let file = Path::new(&replica.path).join("points").join(&point.id).join(&point.disks[0].file);
    spoil(&file, file.metadata()?.len() / 3)?;
    let found = run_task(target, &["task", "run", "scrub"], "scrub")?;
    let finding = found.finding.context("the scrub found nothing")?;
    ensure!(finding.level == "critical" && finding.what.contains(&point.id), "{finding:?}");
    let (code, line) = check(target)?;
    ensure!(code == Some(2) && line.contains("manifests"), "{code:?} {line}");
    Ok(())
}

#[test]
fn scheduled_verification_finds_a_damaged_restore_point() -> Result<()> {
    let spec = WorldSpec { target_toml: "[verify]\nevery = \"5s\"\n".into(), ..WorldSpec::default() };
    let world = World::paired(&spec)?;
    let image = world.path("web.img");
    disk::random(&image, 6 * MIB, 2)?;
    world.job("web", &image)?;
    world.run("web")?;
    let point = || -> Result<vbr_api::RestorePoint> {
        let points = world.points("web")?;
        points.into_iter().next().context("there is no restore point")
    };
    until("the point was verified by itself", Duration::from_secs(60), || {
        Ok(point()?.verified_ok == Some(true))
    })?;
    let verified = point()?.verified_at;
    until("it was verified again", Duration::from_secs(60), || Ok(point()?.verified_at != verified))?;
    let replica: vbr_api::Replica = world.target.json(&["replica", "show", "web"])?;
    let file = PathBuf::from(replica.path).join("points").join(point()?.id).join(&point()?.disks[0].file);
    // Near the end of the file there is data, whatever its format.
    spoil(&file, file.metadata()?.len() - MIB)?;
    until("the damage was found", Duration::from_secs(60), || Ok(point()?.state == PointState::Damaged))?;
    let (code, line) = check(&world.target)?;
    ensure!(code == Some(2) && line.contains("failed its verification"), "{code:?} {line}");
    ensure!(task(&world.target, "verification")?.counters["damaged"] == 1);
    // The job mends it by what it does anyway: a new point, which does not build on what is bad.
    disk::mutate(&image, 5, 3)?;
    world.run("web")?;
    world.target.ok(&["restore-point", "remove", &format!("web@{}", point()?.id), "--yes", "--force"])?;
    until("check is green again", Duration::from_secs(30), || Ok(check(&world.target)?.0 == Some(0)))?;
    world.prove_latest("web", &[&image])
}

fn log(site: &Site, job: &str) -> Result<Vec<JobLogEntry>> {
    Ok(site.json::<List<JobLogEntry>>(&["job", "log", job, "--lines", "1000"])?.items)
}

#[test]
fn success_and_failure_are_told_and_logged_with_their_reason() -> Result<()> {
    let hook = Hook::start()?;
    let world = World::paired(&WorldSpec { loopback: true, ..WorldSpec::default() })?;
    let (told, script) = (world.path("told"), world.path("tell"));
    write_script(&script, &told)?;
    let toml = format!(
        "{}\n[notify.web]\non = [\"success\", \"failure\", \"rpo-missed\"]\nwebhook = \"http://{}/vbr\"\n\
         [notify.cmd]\non = [\"success\", \"failure\"]\njobs = [\"web\"]\ncommand = [\"{}\"]\n",
        world.source.toml(),
        hook.address(),
        script.display()
    );
    world.source.stop()?;
    world.source.set_toml(&toml);
    world.source.start()?;
    world.wait_connected(Duration::from_secs(30))?;
    world.source.ok(&["notify", "test", "web"])?;
    until("the test arrived", Duration::from_secs(20), || Ok(hook.got("test").is_some()))?;

    let image = world.path("web.img");
    disk::random(&image, 3 * MIB, 4)?;
    let path = image.to_string_lossy().into_owned();
    world.source.ok(&["job", "create", "web", "--disk", &path, "--target", "dr", "--retry", "0"])?;
    let session = world.run("web")?;
    until("success arrived", Duration::from_secs(20), || Ok(hook.got("success").is_some()))?;
    let note = hook.got("success").context("gone")?;
    ensure!((note.site.as_str(), note.job.as_deref(), note.schema) == ("branch", Some("web"), 1), "{note:?}");
    let told_session = note.session.context("it holds no session")?;
    ensure!(told_session.session == session.session && told_session.restore_point == session.restore_point);
    let said = || std::fs::read_to_string(&told).unwrap_or_default();
    until("the command ran", Duration::from_secs(20), || Ok(said().contains("success web succeeded\n{")))?;

    // A disk that is gone: the job fails, and says why.
    std::fs::rename(&image, world.path("away.img"))?;
    let output = world.source.ctl(&["job", "run", "web", "--wait"])?;
    ensure!(!output.status.success(), "it runs without its disk");
    until("failure arrived", Duration::from_secs(90), || Ok(hook.got("failure").is_some()))?;
    let note = hook.got("failure").context("gone")?;
    ensure!(note.text.contains("web.img") && note.text.contains("job web failed"), "{note:?}");
    until("the command ran", Duration::from_secs(20), || Ok(said().contains("failure web failed\n{")))?;
    let hooks: List<NotifyHook> = world.source.json(&["notify", "list"])?;
    ensure!(
        hooks.items.iter().all(|hook| hook.failed == 0 && hook.dropped == 0 && hook.sent >= 2),
        "{hooks:?}"
    );

    let entries = log(&world.source, "web")?;
    let events: Vec<&str> = entries.iter().map(|entry| entry.event.as_str()).collect();
    let mut wanted =
        ["created", "ordered", "started", "snapshot", "attempt", "sealed", "ordered", "failed"].iter();
    let mut next = wanted.next();
    for event in &events {
        if next == Some(event) {
            next = wanted.next();
        }
    }
    ensure!(next.is_none(), "{next:?} does not follow in {events:?}");
    let failed = entries.last().context("the log is empty")?;
    ensure!(failed.level == "error" && failed.text.contains("web.img"), "{failed:?}");
    ensure!(entries.windows(2).all(|pair| pair[0].at <= pair[1].at), "not in order: {entries:?}");
    // Durable, and by session.
    world.source.restart()?;
    let again = log(&world.source, "web")?;
    ensure!(again.len() >= entries.len() && again[..entries.len()] == entries[..], "a crash lost entries");
    let one: List<JobLogEntry> = world.source.json(&["job", "log", "web", "--session", &session.session])?;
    ensure!(one.items.iter().all(|entry| entry.session.as_deref() == Some(&session.session)), "{one:?}");
    ensure!(one.items.last().is_some_and(|entry| entry.event == "sealed"), "{one:?}");
    Ok(())
}

#[test]
fn who_does_not_listen_holds_up_no_job() -> Result<()> {
    let hook = Hook::silent()?;
    let world = World::paired(&WorldSpec { loopback: true, ..WorldSpec::default() })?;
    let toml = format!(
        "{}\n[notify.silent]\non = [\"success\"]\nwebhook = \"http://{}/\"\ntimeout = \"10m\"\n\
         [notify.hangs]\non = [\"success\"]\ncommand = [\"/bin/sleep\", \"1000\"]\ntimeout = \"30s\"\n",
        world.source.toml(),
        hook.address()
    );
    world.source.stop()?;
    world.source.set_toml(&toml);
    world.source.start()?;
    world.wait_connected(Duration::from_secs(30))?;
    let image = world.path("web.img");
    disk::random(&image, MIB, 5)?;
    world.job("web", &image)?;
    let started = Instant::now();
    for n in 0..4 {
        disk::mutate(&image, 3, 50 + n)?;
        world.run("web")?;
    }
    ensure!(started.elapsed() < Duration::from_secs(60), "four runs took {:?}", started.elapsed());
    until("the command was killed", Duration::from_secs(120), || {
        let hooks: List<NotifyHook> = world.source.json(&["notify", "list"])?;
        let hangs = hooks.items.iter().find(|hook| hook.name == "hangs").context("it is not listed")?;
        Ok(hangs.last_error.as_ref().is_some_and(|why| why.contains("was killed")))
    })?;
    let hooks: List<NotifyHook> = world.source.json(&["notify", "list"])?;
    let silent = hooks.items.iter().find(|hook| hook.name == "silent").context("it is not listed")?;
    ensure!(silent.sent == 0 && silent.queued >= 2, "{silent:?}");
    let (code, line) = check(&world.source)?;
    ensure!(code.is_some_and(|code| code > 0) && line.contains("notify-hangs"), "{code:?} {line}");
    ensure!(metric(&world.source, "vbr_task_up{task=\"notify-hangs\"} 0")?, "the metrics do not say so");
    let stopped = world.source.stop()?;
    ensure!(stopped < Duration::from_secs(5), "vbrd waited {stopped:?} for who does not listen");
    world.source.start()?;
    let session = world.last_session("web")?.context("no session")?;
    ensure!(session.state == SessionState::Succeeded, "{session:?}");
    Ok(())
}

#[test]
fn a_missed_objective_is_told_once_and_so_is_its_end() -> Result<()> {
    let hook = Hook::start()?;
    let world = World::paired(&WorldSpec { loopback: true, ..WorldSpec::default() })?;
    let toml = format!(
        "{}\n[notify.rpo]\non = [\"rpo-missed\"]\nwebhook = \"http://{}/\"\n",
        world.source.toml(),
        hook.address()
    );
    world.source.stop()?;
    world.source.set_toml(&toml);
    world.source.start()?;
    world.wait_connected(Duration::from_secs(30))?;
    let image = world.path("web.img");
    disk::random(&image, MIB, 6)?;
    let path = image.to_string_lossy().into_owned();
    world
        .source
        .ok(&["job", "create", "web", "--disk", &path, "--target", "dr", "--every", "10s", "--retry", "0"])?;
    until("it has a point", Duration::from_secs(60), || {
        Ok(world.points("web").is_ok_and(|points| !points.is_empty()))
    })?;
    world.target.stop()?;
    until("the miss was told", Duration::from_secs(120), || Ok(hook.got("rpo-missed").is_some()))?;
    std::thread::sleep(Duration::from_secs(12));
    world.target.start()?;
    until("its end was told", Duration::from_secs(120), || Ok(hook.got("rpo-recovered").is_some()))?;
    let got = hook.all();
    let misses = got.iter().filter(|note| note.event == "rpo-missed").count();
    ensure!(misses == 1, "told {misses} times: {got:?}");
    let events: Vec<String> = log(&world.source, "web")?.into_iter().map(|entry| entry.event).collect();
    ensure!(events.iter().any(|event| event == "rpo-missed"), "{events:?}");
    Ok(())
}
