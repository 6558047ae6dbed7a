//! What spoils: full datastores, lost and damaged caches and databases. It may cost bytes, never data:
//! after each, the last sealed point is its source byte for byte, and nothing unsealed looks sealed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vbr_api::RepositoryReport;
use vbr_tests::disk::{self, MIB};
use vbr_tests::fault::flip_bits;
use vbr_tests::mount::{FsKind, LoopFs};
use vbr_tests::process::{is_root, skip_unless};
use vbr_tests::site::Site;
use vbr_tests::work::WorkDir;
use vbr_tests::world::{World, WorldSpec};

#[test]
fn a_full_datastore_is_freed_and_the_job_goes_on() -> Result<()> {
    if skip_unless(is_root(), "full datastore", "loop mounts need root") {
        return Ok(());
    }
    for kind in [FsKind::Ext4, FsKind::Xfs] {
        let dir = WorkDir::new()?;
        let store = LoopFs::create(dir.path(), "store", kind, 400 * MIB)?;
        let spec = WorldSpec {
            datastore: Some(store.path().join("vbr")),
            reserve: "4MiB".into(),
            ..WorldSpec::default()
        };
        let world = World::paired(&spec)?;
        let image = world.path("full.img");
        disk::random(&image, 8 * MIB, 8)?;
        world.job("full", &image)?;
        world.run("full")?;
        let first = world.keep(&image, "first")?;
        let ballast = store.path().join("ballast");
        let free = rustix::fs::statvfs(store.path())?;
        disk::random(&ballast, free.f_bavail * free.f_frsize - 30 * MIB, 9)?;
        disk::random(&image, 64 * MIB, 10)?;
        world.run_in_background("full")?;
        wait_until_said(&world, &["datastore", "space", "full"])?;
        world.prove("full@latest", &[&first])?;
        ensure!(world.points("full")?.len() == 1, "{kind:?}: something was sealed on a full datastore");
        std::fs::remove_file(&ballast)?;
        // It may wait for space by itself or have failed; either way the next run ends well.
        world.run("full")?;
        world.prove_latest("full", &[&image])?;
    }
    Ok(())
}

/// A clone costs what its VM overwrites meanwhile. Before that fills the file system the session gives up, not the VM.
#[test]
fn a_snapshot_gives_way_to_its_vm() -> Result<()> {
    if skip_unless(is_root(), "a snapshot's space", "loop mounts need root") {
        return Ok(());
    }
    let dir = WorkDir::new()?;
    let fs = LoopFs::create(dir.path(), "vms", FsKind::Xfs, 800 * MIB)?;
    let spec = WorldSpec {
        source_state: Some(fs.path().join("state")),
        loopback: true,
        cache_size: "256MiB".into(),
        ..WorldSpec::default()
    };
    let world = World::paired(&spec)?;
    let toml = world.source.toml().replace("snapshot_floor = \"0\"", "snapshot_floor = \"300MiB\"");
    world.source.set_toml(&toml);
    world.source.stop()?;
    world.source.start()?;
    world.wait_connected(Duration::from_secs(40))?;
    let image = fs.path().join("vm.img");
    disk::random(&image, 160 * MIB, 8)?;
    let words = ["job", "create", "vm", "--target", "dr", "--rate", "4Mbit", "--retry", "0", "--disk"];
    world.source.ok(&[&words[..], &[&image.display().to_string()]].concat())?;
    world.run_in_background("vm")?;
    let wait = |what: &str, done: &dyn Fn() -> Result<bool>| -> Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        while !done()? {
            ensure!(Instant::now() < end, "{what}: {:?}", world.last_session("vm")?);
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    };
    let is_cloned = || {
        let session = world.last_session("vm")?;
        Ok(session.is_some_and(|session| session.disks.iter().any(|disk| disk.snapshot == "clone")))
    };
    wait("no clone was made", &is_cloned)?;
    let free = || -> Result<u64> {
        let stat = rustix::fs::statvfs(fs.path())?;
        Ok(stat.f_bavail * stat.f_frsize)
    };
    // The VM goes on writing, and somebody else does.
    disk::write_random(&image, 0, 160 * MIB, 9)?;
    let ballast = free()?.saturating_sub(250 * MIB);
    disk::random(&fs.path().join("ballast"), ballast, 10)?;
    wait("the session goes on", &|| {
        Ok(world.last_session("vm")?.is_some_and(|session| session.error.is_some()))
    })?;
    let error = world.last_session("vm")?.and_then(|session| session.error).context("no error")?;
    ensure!(error.code == "snapshot" && error.why.contains("floor"), "{error:?}");
    wait("the clone is still there", &|| Ok(free()? > 300 * MIB))?;
    ensure!(world.points("vm").unwrap_or_default().is_empty());
    Ok(())
}

/// Waits until the job's session waits or failed, and wants one of the words in what it says.
fn wait_until_said(world: &World, words: &[&str]) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let session = world.last_session("full")?.context("no session")?;
        let said = format!("{:?} {:?}", session.error, session.warnings);
        if words.iter().any(|word| said.contains(word)) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "a full datastore is not reported: {:?} {said}", session.state);
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Two jobs over disks that share most chunks; `harm` strikes between the first and the second.
fn shared_chunks(harm: impl Fn(&World) -> Result<()>) -> Result<u64> {
    let world = World::paired(&WorldSpec::default())?;
    let (first, second) = (world.path("first.img"), world.path("second.img"));
    disk::mixed(&first, 40 * MIB, 11)?;
    disk::copy(&first, &second)?;
    disk::mutate(&second, 30, 12)?;
    world.job("first", &first)?;
    world.job("second", &second)?;
    world.run("first")?;
    harm(&world)?;
    let session = world.run("second")?;
    world.prove_latest("second", &[&second])?;
    world.prove_latest("first", &[&first])?;
    disk::mutate(&first, 30, 13)?;
    world.run("first")?;
    world.prove_latest("first", &[&first])?;
    Ok(session.bytes.sent_payload)
}

fn while_stopped(site: &Site, harm: impl FnOnce(PathBuf) -> Result<()>) -> Result<()> {
    site.stop()?;
    harm(site.state())?;
    site.start()
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_dir_all(path).with_context(|| format!("removing {}", path.display()))
}

#[test]
fn a_deleted_cache_costs_bytes_only() -> Result<()> {
    shared_chunks(|world| while_stopped(&world.target, |state| remove(&state.join("packs"))))?;
    // And under the feet of a running vbrd.
    shared_chunks(|world| remove(&world.target.state().join("packs")))?;
    Ok(())
}

#[test]
fn flipped_bits_in_packs_are_found_and_fetched_again() -> Result<()> {
    shared_chunks(|world| {
        while_stopped(&world.target, |state| {
            ensure!(flip_bits(&state.join("packs"), 300, 14, |_| true)? > 0, "there are no packs");
            Ok(())
        })
    })?;
    shared_chunks(|world| {
        ensure!(flip_bits(&world.target.state().join("packs"), 300, 15, |_| true)? > 0, "there are no packs");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn flipped_bits_in_databases_cost_bytes_only() -> Result<()> {
    for (seed, table) in [(16, true), (17, false)] {
        // Tables and logs first, then everything, which includes the manifest and CURRENT.
        let wanted = |name: &str| !table || name.ends_with(".sst") || name.ends_with(".log");
        for target in [true, false] {
            shared_chunks(|world| {
                let site = if target { &world.target } else { &world.source };
                while_stopped(site, |state| {
                    ensure!(
                        flip_bits(&state.join("database"), 40, seed, wanted)? > 0,
                        "there is no database"
                    );
                    Ok(())
                })
            })
            .with_context(|| format!("target {target}, tables only {table}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_deleted_target_database_is_rebuilt_from_the_datastore() -> Result<()> {
    let sent = shared_chunks(|world| while_stopped(&world.target, |state| remove(&state.join("database"))))?;
    ensure!(sent < 4 * MIB, "{sent} bytes were sent although the datastore holds the chunks");
    // Cache and database both gone: the datastore alone knows what it has.
    let sent = shared_chunks(|world| {
        while_stopped(&world.target, |state| {
            remove(&state.join("packs"))?;
            remove(&state.join("database"))
        })
    })?;
    ensure!(sent < 4 * MIB, "{sent} bytes were sent although the datastore holds the chunks");
    Ok(())
}

#[test]
fn a_deleted_source_repository_is_rebuilt_from_the_target() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let image = world.path("disk.img");
    disk::mixed(&image, 80 * MIB, 18)?;
    world.job("disk", &image)?;
    world.run("disk")?;
    for by_hand in [true, false] {
        while_stopped(&world.source, |state| remove(&state.join("database")))?;
        world.wait_connected(Duration::from_secs(30))?;
        if by_hand {
            let report: RepositoryReport = world.source.json(&["repository", "rebuild", "disk"])?;
            ensure!(report.state == "rebuilt", "{report:?}");
            let report: RepositoryReport = world.source.json(&["repository", "verify", "disk"])?;
            ensure!(report.state == "ok", "{report:?}");
        }
        disk::mutate(&image, 10, u64::from(by_hand))?;
        let session = world.run("disk")?;
        ensure!(session.bytes.sent_payload < 2 * MIB, "disk data crossed: {:?}", session.bytes);
        ensure!(session.bytes.changed <= 11 * 65_536, "{:?}", session.bytes);
        world.prove_latest("disk", &[&image])?;
    }
    Ok(())
}
