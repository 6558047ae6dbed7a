//! What breaks: lines and processes, and points that go while others need them. After each, the last sealed point is
//! its source byte for byte, it verifies, and nothing unsealed looks sealed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vbr_api::{List, Peer};
use vbr_tests::disk::{self, MIB};
use vbr_tests::fault::{Torment, torment};
use vbr_tests::link::{LinkConfig, Mode};
use vbr_tests::mount::{FsKind, LoopFs};
use vbr_tests::process::{is_root, skip_unless};
use vbr_tests::work::WorkDir;
use vbr_tests::world::{World, WorldSpec};

fn slow(mbit: f64, rtt_ms: u64) -> WorldSpec {
    let rate = Some(format!("{mbit}Mbit"));
    WorldSpec { link: LinkConfig::shaped(mbit, rtt_ms, 0.0), loopback_rate: rate, ..WorldSpec::default() }
}

fn no_link(world: &World, case: &str) -> bool {
    skip_unless(world.has_link(), case, "a link with outages needs root")
}

#[test]
fn a_link_cut_ten_times_in_a_session() -> Result<()> {
    let world = World::paired(&slow(60.0, 20))?;
    if no_link(&world, "ten cuts") {
        return Ok(());
    }
    let image = world.path("cut.img");
    disk::random(&image, 33 * MIB + 17, 1)?;
    world.job("cut", &image)?;
    let before = world.link()?.counters().port(world.port()).up_sent;
    world.run_in_background("cut")?;
    for number in 1..=10 {
        world.link()?.wait_sent(world.port(), before, number * 3 * MIB, Duration::from_secs(120))?;
        // A line that is reset is noticed at once; a short black hole must not even be noticed.
        let mode = if number % 3 == 0 { Mode::BlackHole } else { Mode::Reset };
        world.link()?.cut(mode, Duration::from_millis(700));
    }
    let session = world.wait("cut")?;
    ensure!(session.resumed >= 5, "resumed {} times", session.resumed);
    ensure!(session.bytes.resent <= 10 * 4 * MIB, "resent {}", session.bytes.resent);
    world.prove_latest("cut", &[&image])
}

/// Asks until there is an answer; how long that takes is not what these tests are about.
fn until<T>(what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        ensure!(Instant::now() < end, "after 30 s it is not so that {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The ports of the connections that carry a session, once there are that many.
fn carrying(world: &World, count: usize) -> Result<Vec<u16>> {
    until(&format!("{count} connections carry the session"), || {
        let senders = world.link()?.counters().senders(10_000);
        let ports: Vec<u16> =
            senders.iter().filter(|(_, sent)| *sent > MIB / 4).map(|(port, _)| *port).collect();
        Ok((ports.len() >= count).then_some(ports))
    })
}

#[test]
fn one_of_several_connections_is_cut_in_a_session() -> Result<()> {
    // CUBIC on a line that loses packets: several connections carry the session.
    let toml = "[wire]\ncongestion = \"system\"\n".to_owned();
    let world = World::paired(&WorldSpec {
        link: LinkConfig::shaped(60.0, 40, 0.005),
        congestion: Some("cubic"),
        source_toml: toml.clone(),
        target_toml: toml,
        ..WorldSpec::default()
    })?;
    if no_link(&world, "several connections") {
        return Ok(());
    }
    let image = world.path("many.img");
    disk::random(&image, 96 * MIB + 33, 9)?;
    world.job("many", &image)?;
    world.run_in_background("many")?;
    let carried = carrying(&world, 3)?;
    // The newest of those that carry, then one of the others once the session runs again.
    for (number, port) in [carried[carried.len() - 1], carried[0]].into_iter().enumerate() {
        world.link()?.reset_connection(port);
        until("the loss of a connection is noticed", || {
            let session = world.last_session("many")?;
            Ok(session.is_some_and(|session| session.resumed as usize > number).then_some(()))
        })?;
        until("there are three connections again", || {
            let peer: Peer = world.source.json(&["peer", "show", "dr"])?;
            Ok((peer.links >= 3).then_some(()))
        })?;
    }
    let session = world.wait("many")?;
    ensure!(session.resumed >= 2, "resumed {} times", session.resumed);
    ensure!(session.bytes.resent <= 2 * 4 * MIB, "resent {}", session.bytes.resent);
    world.prove_latest("many", &[&image])
}

#[test]
fn a_black_hole_is_found_within_thirty_seconds() -> Result<()> {
    let world = World::paired(&slow(20.0, 20))?;
    if no_link(&world, "black hole") {
        return Ok(());
    }
    let image = world.path("hole.img");
    disk::random(&image, 8 * MIB, 2)?;
    world.job("hole", &image)?;
    let before = world.link()?.counters().port(world.port()).up_sent;
    world.run_in_background("hole")?;
    world.link()?.wait_sent(world.port(), before, MIB, Duration::from_secs(60))?;
    world.link()?.set_mode(Mode::BlackHole);
    let started = Instant::now();
    for site in [&world.source, &world.target] {
        while site.json::<List<Peer>>(&["peer", "list"])?.items.iter().any(|peer| peer.connected) {
            ensure!(started.elapsed() < Duration::from_secs(31), "{} believes in a dead link", site.name());
            std::thread::sleep(Duration::from_millis(250));
        }
    }
    world.link()?.set_mode(Mode::Up);
    world.wait("hole")?;
    world.prove_latest("hole", &[&image])
}

/// A job over a fresh disk on a link where it takes some seconds, and its later versions about one.
fn tormented(
    world: &World,
    image: &Path,
    strikes: u64,
    pause_ms: u64,
    seed: u64,
    strike: impl Fn(u64) -> Result<()>,
) -> Result<()> {
    disk::random(image, 6 * MIB + 99, seed)?;
    world.job_keeping("kill", image, 100)?; // Every point is counted: none retires.
    let pause = Duration::from_millis(pause_ms);
    let plan = Torment { world, job: "kill", image, strikes, pause, blocks: 50, seed };
    let sealed = torment(&plan, strike)?;
    println!("{strikes} strikes, {sealed} sessions sealed");
    Ok(())
}

#[test]
fn the_source_is_killed_at_twenty_random_moments() -> Result<()> {
    let world = World::paired(&slow(40.0, 20))?;
    tormented(&world, &world.path("kill.img"), 20, 1400, 3, |_| world.source.restart())
}

#[test]
fn the_target_is_killed_at_twenty_random_moments() -> Result<()> {
    let world = World::paired(&slow(40.0, 20))?;
    tormented(&world, &world.path("kill.img"), 20, 2500, 4, |_| world.target.restart())
}

#[test]
fn both_are_killed_with_the_datastore_and_the_disk_on_reflink() -> Result<()> {
    if skip_unless(is_root(), "kills on XFS", "loop mounts need root") {
        return Ok(());
    }
    let dir = WorkDir::new()?;
    let (store, disks) = (
        LoopFs::create(dir.path(), "store", FsKind::Xfs, 512 * MIB)?,
        LoopFs::create(dir.path(), "disks", FsKind::Xfs, 512 * MIB)?,
    );
    let spec = WorldSpec { datastore: Some(store.path().join("vbr")), ..slow(40.0, 20) };
    let world = World::paired(&spec)?;
    tormented(&world, &disks.path().join("kill.img"), 12, 1400, 5, |number| match number % 2 {
        0 => world.source.restart(),
        _ => world.target.restart(),
    })
}

#[test]
fn two_moments_never_mix() -> Result<()> {
    if skip_unless(is_root(), "two moments", "loop mounts need root") {
        return Ok(());
    }
    // Without reflink the disk itself is read: changed between kill and restart, a new session must begin.
    // With reflink a clone is read: the disk may change at any time and the point shows the old moment.
    for kind in [FsKind::Ext4, FsKind::Xfs] {
        let dir = WorkDir::new()?;
        let disks = LoopFs::create(dir.path(), "disks", kind, 400 * MIB)?;
        let world = World::paired(&slow(40.0, 20))?;
        let image = disks.path().join("moment.img");
        disk::random(&image, 16 * MIB, 6)?;
        world.job("moment", &image)?;
        let first = world.keep(&image, "first")?;
        world.run_in_background("moment")?;
        std::thread::sleep(Duration::from_millis(1500));
        world.source.kill()?;
        disk::mutate(&image, 300, 7)?;
        let second = world.keep(&image, "second")?;
        world.source.start()?;
        world.wait_over("moment")?;
        let points = world.points("moment")?;
        let ends_as = |version: &PathBuf| world.prove("moment@latest", &[version.as_path()]).is_ok();
        if !points.is_empty() {
            let whole =
                if kind.has_reflink() { ends_as(&first) } else { ends_as(&first) || ends_as(&second) };
            ensure!(whole, "{kind:?}: a point of two moments");
        }
        world.run("moment")?;
        world.prove_latest("moment", &[&second])?;
    }
    Ok(())
}

#[test]
fn a_lost_acknowledgement_of_the_seal() -> Result<()> {
    for kill_source in [false, true] {
        let world = World::paired(&slow(100.0, 600))?;
        if no_link(&world, "lost acknowledgement") {
            return Ok(());
        }
        let image = world.path("ack.img");
        disk::random(&image, 2 * MIB, 19)?;
        world.job("ack", &image)?;
        for round in 1..=3u64 {
            world.run_in_background("ack")?;
            // The seal stands on the datastore; its acknowledgement is 300 ms away from the source.
            wait_for_points(&world, round)?;
            world.link()?.set_mode(Mode::Reset);
            if kill_source {
                world.source.restart()?;
            }
            std::thread::sleep(Duration::from_millis(1500));
            world.link()?.set_mode(Mode::Up);
            world.wait("ack")?;
            ensure!(world.points("ack")?.len() as u64 == round, "sealed twice: {:?}", world.points("ack")?);
            world.prove_latest("ack", &[&image])?;
            disk::mutate(&image, 20, round)?;
        }
        // The source knows the base again: only what changed crosses.
        let session = world.run("ack")?;
        ensure!(session.bytes.changed <= 21 * 65_536, "{:?}", session.bytes);
        world.prove_latest("ack", &[&image])?;
    }
    Ok(())
}

fn wait_for_points(world: &World, wanted: u64) -> Result<()> {
    let points = world.datastore().join("branch/ack/points");
    let end = Instant::now() + Duration::from_secs(60);
    while points.read_dir().map(|entries| entries.flatten().count() as u64).unwrap_or(0) < wanted {
        ensure!(Instant::now() < end, "nothing was sealed in {}", points.display());
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

#[test]
fn retired_points_leave_what_others_refer_to() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let (first, second, third) = (world.path("a.img"), world.path("b.img"), world.path("c.img"));
    disk::mixed(&first, 40 * MIB, 20)?;
    disk::copy(&first, &second)?;
    disk::copy(&first, &third)?;
    for (job, image) in [("a", &first), ("b", &second), ("c", &third)] {
        world.job(job, image)?;
    }
    world.run("a")?;
    let b = world.run("b")?;
    ensure!(b.bytes.sent_payload < MIB, "{:?}", b.bytes);
    // The points that b's chunks came from go, then the cache, then everything that was first.
    disk::mutate(&first, 200, 21)?;
    world.run("a")?;
    let oldest = world.points("a")?[0].id.clone();
    world.target.ok(&["restore-point", "remove", &format!("a@{oldest}"), "--yes"])?;
    world.prove_latest("a", &[&first])?;
    world.prove_latest("b", &[&second])?;
    world.target.stop()?;
    std::fs::remove_dir_all(world.target.state().join("packs"))?;
    world.target.start()?;
    world.target.ok(&["replica", "remove", "a", "--yes"])?;
    world.prove_latest("b", &[&second])?;
    // The index may still point to what is gone: that costs bytes, never data.
    let c = world.run("c")?;
    println!("with b's chunks alone, c sent {} bytes", c.bytes.sent_payload);
    world.prove_latest("c", &[&third])?;
    // The job whose replica is gone begins anew.
    world.run("a")?;
    world.prove_latest("a", &[&first])
}

#[test]
fn points_are_retired_while_they_are_read() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let image = world.path("read.img");
    disk::random(&image, 120 * MIB, 22)?;
    world.job("read", &image)?;
    world.run("read")?;
    let old = world.keep(&image, "old")?;
    disk::mutate(&image, 100, 23)?;
    world.run("read")?;
    let oldest = format!("read@{}", world.points("read")?[0].id);
    let out = world.path("out.raw").to_string_lossy().into_owned();
    let (exported, removed) = std::thread::scope(|scope| {
        let export =
            scope.spawn(|| world.target.ctl(&["restore-point", "export", &oldest, "--disk", "0", &out]));
        std::thread::sleep(Duration::from_millis(120));
        let removed = world.target.ctl(&["restore-point", "remove", &oldest, "--yes"]);
        (export.join(), removed)
    });
    let exported = exported.map_err(|_| anyhow::anyhow!("the export panicked"))??;
    // The removal may wait, be refused, or win; what was exported is right or is not there.
    let removed = removed?;
    if exported.status.success() {
        disk::ensure_same(Path::new(&out), &old)?;
    } else {
        ensure!(!Path::new(&out).exists(), "a failed export left a file");
    }
    if !removed.status.success() {
        world.target.ok(&["restore-point", "remove", &oldest, "--yes"])?;
    }
    ensure!(world.points("read")?.len() == 1, "{:?}", world.points("read")?);
    world.prove_latest("read", &[&image])
}

#[test]
fn points_are_retired_after_the_disk_grew_and_shrank() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let image = world.path("size.img");
    let mut kept = Vec::new();
    for (step, len) in [5 * MIB, 70 * MIB + 512, 6 * MIB + 1, 66 * MIB].into_iter().enumerate() {
        disk::set_len(&image, len)?;
        disk::write_random(&image, len - 100_000, 100_000, 24 + step as u64)?;
        if step == 0 {
            world.job("size", &image)?;
        }
        kept.push(world.keep(&image, &step.to_string())?);
        world.run("size")?;
    }
    let points = world.points("size")?;
    for gone in 0..3 {
        world.target.ok(&["restore-point", "remove", &format!("size@{}", points[gone].id), "--yes"])?;
        for (point, version) in points.iter().zip(&kept).skip(gone + 1) {
            world.prove(&format!("size@{}", point.id), &[version])?;
        }
    }
    world.prove_latest("size", &[&image])
}
