//! The main job on healthy sites: every kind of disk, source and datastore, each proved byte by byte.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use vbr_api::{List, Replica, Session, SessionState};
use vbr_tests::disk::{self, MIB};
use vbr_tests::link::LinkConfig;
use vbr_tests::mount::{FsKind, LoopDevice, LoopFs};
use vbr_tests::process::{exists, is_root, skip_unless};
use vbr_tests::work::WorkDir;
use vbr_tests::world::{World, WorldSpec};

#[test]
fn cold_unchanged_and_changed_runs() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let image = world.path("web.img");
    disk::mixed(&image, 150 * MIB, 1)?;
    world.job("web", &image)?;
    let first = world.keep(&image, "1")?;
    let cold = world.run("web")?;
    ensure!(cold.bytes.virtual_ == 150 * MIB, "virtual {:?}", cold.bytes);
    ensure!(cold.bytes.sent_payload > 0 && cold.bytes.sent_payload < 60 * MIB, "payload {:?}", cold.bytes);
    world.prove("web@latest", &[&first])?;

    let before =
        world.has_link().then(|| world.link().map(|link| link.counters().port(world.port()))).transpose()?;
    let same = world.run("web")?;
    ensure!(
        same.bytes.changed == 0 && same.chunks.literal == 0,
        "an unchanged disk changed: {:?}",
        same.bytes
    );
    if let Some(before) = before {
        let after = world.link()?.counters().port(world.port());
        let wire = after.up_sent + after.down_sent - before.up_sent - before.down_sent;
        ensure!(wire <= 65_536 + 150 * MIB / 100_000, "{wire} bytes for an unchanged disk");
        ensure!(
            same.bytes.sent_wire + same.bytes.received_wire <= wire * 11 / 10 + 8192,
            "{:?} of {wire}",
            same.bytes
        );
    }

    disk::mutate(&image, 60, 2)?;
    let third = world.keep(&image, "3")?;
    let changed = world.run("web")?;
    ensure!(changed.bytes.changed > 0 && changed.bytes.changed <= 61 * 65_536, "changed {:?}", changed.bytes);
    world.prove_latest("web", &[&third])?;
    let points = world.points("web")?;
    ensure!(points.len() == 3, "{points:?}");
    world.prove(&format!("web@{}", points[0].id), &[&first])?;
    world.prove(&format!("web@{}", points[1].id), &[&first])
}

#[test]
fn what_the_session_says_of_the_wire_is_what_crossed() -> Result<()> {
    if skip_unless(is_root(), "wire accounting", "the link's counters need root") {
        return Ok(());
    }
    let world =
        World::paired(&WorldSpec { link: LinkConfig::shaped(100.0, 20, 0.01), ..WorldSpec::default() })?;
    let image = world.path("noise.img");
    disk::random(&image, 24 * MIB, 1)?;
    world.job("noise", &image)?;
    let before = world.link()?.counters().port(world.port());
    let session = world.run("noise")?;
    std::thread::sleep(Duration::from_millis(500));
    let after = world.link()?.counters().port(world.port());
    let sent = after.up_sent - before.up_sent;
    let told = session.bytes.sent_wire;
    ensure!(told * 100 >= sent * 98 && told * 100 <= sent * 102, "told {told}, crossed {sent}");
    Ok(())
}

#[test]
fn real_file_systems_inside_images() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let files = world.path("files");
    disk::tree(&files, &["/usr/bin", "/usr/lib"], 0, 40 * MIB)?;
    let image = world.path("ext4.img");
    disk::ext4(&image, 96 * MIB, &files, 1)?;
    world.job("ext4", &image)?;
    world.run("ext4")?;
    let more = world.path("more");
    disk::tree(&more, &["/usr/share"], 0, 6 * MIB)?;
    disk::ext4_edit(&image, &more, &[])?;
    world.run("ext4")?;
    world.prove_latest("ext4", &[&image])?;
    if skip_unless(
        is_root() && exists("mkfs.xfs"),
        "XFS inside an image",
        "mounting it needs root and xfsprogs",
    ) {
        return Ok(());
    }
    let xfs = LoopFs::create(world.path("").as_path(), "inside", FsKind::Xfs, 320 * MIB)?;
    disk::tree(xfs.path(), &["/usr/bin"], 0, 30 * MIB)?;
    drop(xfs);
    let image = world.path("inside.fs");
    world.job("xfs", &image)?;
    world.run("xfs")?;
    world.prove_latest("xfs", &[&image])
}

#[test]
fn a_second_vm_costs_what_is_its_own() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let (first, second) = (world.path("a.img"), world.path("b.img"));
    disk::mixed(&first, 64 * MIB, 4)?;
    disk::copy(&first, &second)?;
    disk::write_random(&second, 30 * MIB, MIB, 5)?;
    world.job("a", &first)?;
    world.job("b", &second)?;
    let cold = world.run("a")?;
    let warm = world.run("b")?;
    ensure!(
        warm.bytes.sent_payload < 2 * MIB,
        "sent {} after {}",
        warm.bytes.sent_payload,
        cold.bytes.sent_payload
    );
    ensure!(warm.bytes.deduplicated > 20 * MIB, "{:?}", warm.bytes);
    world.prove_latest("a", &[&first])?;
    world.prove_latest("b", &[&second])
}

#[test]
fn growing_and_shrinking_disks_keep_their_points() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let image = world.path("grow.img");
    disk::mixed(&image, 20 * MIB + 4096, 6)?;
    world.job("grow", &image)?;
    let mut kept = Vec::new();
    // Across the end of a chunk and of a page, then back to less than it was, then to odd lengths.
    for (step, len) in [20 * MIB + 4096, 90 * MIB + 512, 90 * MIB + 513, 64 * MIB, 10 * MIB + 123, 70 * MIB]
        .iter()
        .enumerate()
    {
        disk::set_len(&image, *len)?;
        disk::write_random(&image, len - 5000, 5000, step as u64)?;
        kept.push(world.keep(&image, &step.to_string())?);
        world.run("grow")?;
    }
    let points = world.points("grow")?;
    ensure!(points.len() == kept.len(), "{points:?}");
    for (point, version) in points.iter().zip(&kept) {
        world.prove(&format!("grow@{}", point.id), &[version])?;
    }
    world.prove_latest("grow", &[&image])
}

#[test]
fn zero_random_odd_and_tiny_disks() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let zero = world.path("zero.img");
    disk::set_len(&zero, 64 * MIB)?;
    std::fs::write(world.path("written-zero.img"), vec![0u8; 3 * MIB as usize])?;
    let noise = world.path("noise.img");
    disk::random(&noise, 16 * MIB, 7)?;
    disk::mixed(&world.path("odd.img"), 7 * MIB + 4321, 8)?;
    std::fs::write(world.path("tiny.img"), b"x")?;
    std::fs::write(world.path("sector.img"), [7u8; 512])?;
    for name in ["zero", "written-zero", "noise", "odd", "tiny", "sector"] {
        let image = world.path(&format!("{name}.img"));
        world.job(name, &image)?;
        let session = world.run(name)?;
        let payload = session.bytes.sent_payload;
        match name {
            "zero" | "written-zero" | "tiny" | "sector" => ensure!(payload < 16_384, "{name} sent {payload}"),
            "noise" => ensure!(payload < 16 * MIB * 101 / 100, "{name} sent {payload}"),
            _ => {}
        }
        world.prove_latest(name, &[&image])?;
        // Changed to its contrary: zeroes become data and data become zeroes.
        let len = image.metadata()?.len();
        match name {
            "zero" => disk::write_random(&image, 33 * MIB, 100_000, 9)?,
            "noise" => disk::punch(&image, 0, 8 * MIB)?,
            "odd" => disk::punch(&image, len / 2, len - len / 2)?,
            _ => continue,
        }
        world.run(name)?;
        world.prove_latest(name, &[&image])?;
    }
    Ok(())
}

#[test]
fn twenty_jobs_at_once() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let jobs: Vec<String> = (0..20).map(|number| format!("job{number}")).collect();
    for (number, job) in jobs.iter().enumerate() {
        let image = world.path(&format!("{job}.img"));
        disk::mixed(&image, 8 * MIB + 777 * number as u64, number as u64)?;
        world.job(job, &image)?;
    }
    for job in &jobs {
        world.run_in_background(job)?;
        // Running what runs is no error and starts nothing anew.
        world.run_in_background(job)?;
    }
    for job in &jobs {
        world.wait(job)?;
        let sessions: List<Session> = world.source.json(&["session", "list", "--job", job])?;
        ensure!(sessions.items.len() <= 2, "{job}: {} sessions", sessions.items.len());
    }
    for job in &jobs {
        world.prove_latest(job, &[&world.path(&format!("{job}.img"))])?;
    }
    let replicas: List<Replica> = world.target.json(&["replica", "list"])?;
    ensure!(replicas.items.len() == 20, "{} replicas", replicas.items.len());
    Ok(())
}

#[test]
fn qcow2_is_declared_and_never_probed() -> Result<()> {
    if skip_unless(exists("qemu-img"), "qcow2 source", "needs qemu-utils") {
        return Ok(());
    }
    let world = World::paired(&WorldSpec::default())?;
    let (raw, qcow2) = (world.path("disk.raw"), world.path("disk.qcow2"));
    disk::mixed(&raw, 32 * MIB, 10)?;
    disk::to_qcow2(&raw, &qcow2)?;
    world.job("declared", format!("{},format=qcow2", qcow2.display()))?;
    world.run("declared")?;
    world.prove_latest("declared", &[&raw])?;
    disk::mutate(&raw, 50, 11)?;
    disk::to_qcow2(&raw, &qcow2)?;
    world.run("declared")?;
    world.prove_latest("declared", &[&raw])?;
    // The same file as raw is its own bytes, header and all.
    world.job("undeclared", &qcow2)?;
    world.run("undeclared")?;
    world.prove_latest("undeclared", &[&qcow2])?;
    // A backing file that nobody declared is refused: a guest must not read the host's files.
    let overlay = world.path("overlay.qcow2");
    let (base, over) = (raw.to_string_lossy(), overlay.to_string_lossy());
    vbr_tests::process::run(
        "qemu-img",
        ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base.as_ref(), over.as_ref()],
    )?;
    let refused = world
        .job("overlay", format!("{},format=qcow2", overlay.display()))
        .and_then(|()| world.run("overlay").map(drop));
    ensure!(refused.is_err(), "an undeclared backing file was read");
    ensure!(world.points("overlay").map(|points| points.is_empty()).unwrap_or(true), "and sealed");
    Ok(())
}

#[test]
fn a_block_device_as_source() -> Result<()> {
    if skip_unless(is_root(), "block device source", "loop devices need root") {
        return Ok(());
    }
    let world = World::paired(&WorldSpec::default())?;
    let image = world.path("device.img");
    disk::mixed(&image, 24 * MIB, 12)?;
    let device = LoopDevice::attach(&image)?;
    world.job("device", device.path())?;
    world.run("device")?;
    world.prove_latest("device", &[&image])?;
    let file = std::fs::File::options().write(true).open(device.path())?;
    std::os::unix::fs::FileExt::write_all_at(&file, &[9; 8192], 5 * MIB)?;
    file.sync_all()?;
    drop(file);
    world.run("device")?;
    world.prove_latest("device", &[&image])
}

#[test]
fn two_disks_make_one_point() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let (root, data) = (world.path("root.img"), world.path("data.img"));
    disk::mixed(&root, 20 * MIB, 13)?;
    disk::mixed(&data, 70 * MIB, 14)?;
    let (a, b) = (root.to_string_lossy().into_owned(), data.to_string_lossy().into_owned());
    world.source.ok(&["job", "create", "vm", "--disk", &a, "--disk", &b, "--target", "dr"])?;
    for seed in 0..2 {
        // Disks that lie on one file system and do not change are of one moment.
        world.run("vm")?;
        let points = world.points("vm")?;
        ensure!(
            points.len() == seed as usize + 1 && points.iter().all(|point| point.disks.len() == 2),
            "{points:?}"
        );
        world.prove_latest("vm", &[&root, &data])?;
        disk::mutate(&data, 20, 15 + seed)?;
    }
    Ok(())
}

#[test]
fn a_disk_that_changes_while_it_is_read_is_not_sealed() -> Result<()> {
    if skip_unless(is_root(), "live disk", "an ext4 of its own for the disk needs root") {
        return Ok(());
    }
    let dir = WorkDir::new()?;
    let fs = LoopFs::create(dir.path(), "live", FsKind::Ext4, 256 * MIB)?;
    let image = fs.path().join("live.img");
    disk::random(&image, 24 * MIB, 16)?;
    let world =
        World::paired(&WorldSpec { link: LinkConfig::shaped(60.0, 10, 0.0), ..WorldSpec::default() })?;
    world.job("live", &image)?;
    let (code, points) = while_written(&image, || {
        let code = world
            .source
            .ctl_within(&["job", "run", "live", "--wait"], Duration::from_secs(120))?
            .status
            .code();
        Ok((code, world.points("live").unwrap_or_default()))
    })?;
    ensure!(code == Some(1), "exit status {code:?} for a disk that changed");
    ensure!(points.is_empty(), "a torn point was sealed: {points:?}");
    let code = while_written(&image, || {
        let args = ["job", "run", "live", "--wait", "--allow-live"];
        Ok(world.source.ctl_within(&args, Duration::from_secs(120))?.status.code())
    })?;
    ensure!(code == Some(3), "exit status {code:?} for an allowed live disk");
    let points = world.points("live")?;
    ensure!(points.len() == 1 && !points[0].consistent, "{points:?}");
    // At rest it seals as usual.
    let session = world.run("live")?;
    ensure!(session.consistent == Some(true), "{session:?}");
    world.prove("live@latest", &[&image])
}

fn while_written<T>(image: &Path, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let stop = Arc::new(AtomicBool::new(false));
    let (flag, path) = (stop.clone(), image.to_path_buf());
    let writer = std::thread::spawn(move || {
        let mut seed = 0;
        while !flag.load(Ordering::Relaxed) {
            // The writer only has to keep writing; the test is about the reader.
            let _ = disk::mutate(&path, 1, seed);
            seed += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let result = body();
    stop.store(true, Ordering::Relaxed);
    let _ = writer.join();
    result
}

#[test]
fn every_datastore_file_system() -> Result<()> {
    if skip_unless(is_root(), "datastores on ext4, XFS and btrfs", "loop mounts need root") {
        return Ok(());
    }
    for kind in [FsKind::Ext4, FsKind::Xfs, FsKind::Btrfs] {
        let dir = WorkDir::new()?;
        let fs = LoopFs::create(dir.path(), "store", kind, 512 * MIB)?;
        let datastore = fs.path().join("vbr");
        let world = World::paired(&WorldSpec { datastore: Some(datastore), ..WorldSpec::default() })?;
        let status: vbr_api::Status = world.target.json(&["status"])?;
        let backend = if kind.has_reflink() { "reflink" } else { "overlay" };
        ensure!(
            status.datastores.iter().all(|store| store.backend == backend),
            "{kind:?}: {:?}",
            status.datastores
        );
        let image = world.path("disk.img");
        disk::mixed(&image, 40 * MIB + 100, 17)?;
        world.job("disk", &image)?;
        let mut kept = Vec::new();
        for step in 0..4 {
            disk::mutate(&image, 40, step)?;
            kept.push(world.keep(&image, &step.to_string())?);
            world.run("disk")?;
        }
        // The oldest and one in the middle go; the others stay what they were.
        let points = world.points("disk")?;
        for gone in [0, 2] {
            world.target.ok(&["restore-point", "remove", &format!("disk@{}", points[gone].id), "--yes"])?;
        }
        ensure!(world.points("disk")?.len() == 2, "{kind:?}");
        world.prove(&format!("disk@{}", points[1].id), &[&kept[1]])?;
        world.prove_latest("disk", &[&kept[3]])?;
        world.target.restart()?;
        world.prove_latest("disk", &[&kept[3]])?;
        drop(world);
        drop(fs);
    }
    Ok(())
}

#[test]
fn retention_is_a_request_that_the_minimum_age_overrides() -> Result<()> {
    for (min_age, left) in [("0", 2), ("7d", 5)] {
        let world = World::paired(&WorldSpec { min_age: min_age.into(), ..WorldSpec::default() })?;
        let image = world.path("disk.img");
        disk::mixed(&image, 4 * MIB, 18)?;
        let path = image.to_string_lossy().into_owned();
        world.source.ok(&["job", "create", "keep", "--disk", &path, "--target", "dr", "--keep", "2"])?;
        for seed in 0..5 {
            disk::mutate(&image, 3, seed)?;
            world.run("keep")?;
        }
        // Points are retired after the seal was acknowledged: the last one may still be on its way out.
        let points = world.settled_points("keep", left)?;
        ensure!(points == left, "minimum age {min_age}: {points} points");
        world.prove_latest("keep", &[&image])?;
        world.target.restart()?;
        ensure!(world.points("keep")?.len() == left, "minimum age {min_age}: after a restart");
    }
    Ok(())
}

#[test]
fn sigterm_drains_and_the_session_goes_on_after() -> Result<()> {
    let world =
        World::paired(&WorldSpec { link: LinkConfig::shaped(40.0, 20, 0.0), ..WorldSpec::default() })?;
    let image = world.path("disk.img");
    disk::random(&image, 24 * MIB, 19)?;
    world.job("drain", &image)?;
    let session = world.run_in_background("drain")?;
    for site in [&world.source, &world.target] {
        std::thread::sleep(Duration::from_millis(800));
        let took = site.stop()?;
        ensure!(took < Duration::from_millis(5500), "SIGTERM took {took:?}");
        site.start()?;
    }
    let ended = world.wait("drain")?;
    ensure!(ended.state == SessionState::Succeeded, "{:?} after {:?}", ended.session, session.session);
    world.prove_latest("drain", &[&image])
}
