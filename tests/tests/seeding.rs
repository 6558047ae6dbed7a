//! Seeding: what lies at the target already does not cross the link, whatever it is: an image that was carried there,
//! a replica. The restore point is its source byte for byte all the same, and nobody reads what is not theirs.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use vbr_api::{DiskFormat, Session, SessionState, WarmState, Warming};
use vbr_tests::disk::{self, MIB};
use vbr_tests::fault::flip_bits;
use vbr_tests::link::LinkConfig;
use vbr_tests::mount::{FsKind, LoopFs};
use vbr_tests::process::{exists, is_root};
use vbr_tests::world::{World, WorldSpec};

fn slow_line() -> Result<World> {
    let link = LinkConfig::shaped(50.0, 20, 0.0);
    World::paired(&WorldSpec { link, loopback_rate: Some("50Mbit".into()), ..WorldSpec::default() })
}

/// A file system of this machine's programs.
fn machine(world: &World, name: &str) -> Result<PathBuf> {
    let files = world.path(&format!("{name}-files"));
    disk::tree(&files, &["/usr/bin", "/usr/lib"], 0, 40 * MIB)?;
    let image = world.path(&format!("{name}.img"));
    disk::ext4(&image, 64 * MIB, &files, 1)?;
    Ok(image)
}

/// What happens while the disk is on its way: some changes in place.
fn a_week_passes(image: &Path) -> Result<()> {
    disk::write_random(image, 9 * MIB + 4096, 64 * 1024, 7)?;
    disk::write_random(image, 33 * MIB, 100_000, 8)
}

/// Puts a copy into the target's seed directory.
fn carry(world: &World, image: &Path, name: &str) -> Result<String> {
    let directory = world.datastore().join("seed");
    std::fs::create_dir_all(&directory)?;
    let copy = directory.join(name);
    disk::copy(image, &copy)?;
    Ok(copy.to_string_lossy().into_owned())
}

fn seeded_job(world: &World, name: &str, image: &Path, seed: &str) -> Result<()> {
    let path = image.to_string_lossy();
    let words = ["job", "create", name, "--disk", &path, "--target", "dr", "--retry", "0", "--seed", seed];
    world.source.ok(&words).map(drop)
}

/// Runs a job that must fail, and answers its error's code.
fn refused(world: &World, job: &str) -> Result<String> {
    world.source.ctl(&["job", "run", job, "--wait"])?;
    let session = world.wait_over(job)?;
    ensure!(session.state == SessionState::Failed, "{session:?}");
    Ok(session.error.map(|error| error.code).unwrap_or_default())
}

fn crossed(session: &Session) -> u64 {
    session.bytes.sent_wire + session.bytes.received_wire
}

#[test]
fn a_first_run_from_a_carried_image_sends_the_difference() -> Result<()> {
    let plain = {
        let world = slow_line()?;
        let image = machine(&world, "web")?;
        world.job("web", &image)?;
        crossed(&world.run("web")?)
    };
    let world = slow_line()?;
    let image = machine(&world, "web")?;
    let seed = carry(&world, &image, "web.img")?;
    a_week_passes(&image)?;
    seeded_job(&world, "web", &image, &seed)?;
    let session = world.run("web")?;
    ensure!(session.mode == "seeded", "{}", session.mode);
    ensure!(crossed(&session) * 20 < plain, "{} of {plain} bytes crossed", crossed(&session));
    world.prove_latest("web", &[&image])?;
    let listed: vbr_api::List<Warming> = world.target.json(&["cache", "warm"])?;
    ensure!(listed.items.len() == 1 && listed.items[0].asked_by.as_deref() == Some("branch"), "{listed:?}");

    // A replica is a seed as well; the image is not needed any more.
    std::fs::remove_file(&seed)?;
    let copy = world.path("copy.img");
    disk::copy(&image, &copy)?;
    a_week_passes(&copy)?;
    seeded_job(&world, "copy", &copy, "web")?;
    let session = world.run("copy")?;
    ensure!(crossed(&session) * 20 < plain, "{} of {plain} bytes crossed", crossed(&session));
    world.prove_latest("copy", &[&copy])?;
    world.prove_latest("web", &[&image])
}

#[test]
fn a_source_reads_nothing_but_seeds() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let image = world.path("a.img");
    disk::random(&image, 8 * MIB, 1)?;
    let seed = carry(&world, &image, "a.img")?;
    let outside = world.path("outside.img");
    disk::copy(&image, &outside)?;
    let link = world.datastore().join("seed/link.img");
    std::os::unix::fs::symlink(&outside, &link)?;
    let missing = world.datastore().join("seed/none.img");
    for (name, path, code) in [
        ("outside", outside.to_string_lossy(), "not_allowed"),
        ("system", "/etc/passwd".into(), "not_allowed"),
        ("link", link.to_string_lossy(), "not_allowed"),
        ("missing", missing.to_string_lossy(), "not_found"),
        ("replica", "nowhere".into(), "not_found"),
    ] {
        seeded_job(&world, name, &image, &path)?;
        let found = refused(&world, name)?;
        ensure!(found == code, "{name}: {found}");
    }
    let path = image.to_string_lossy();
    let dots = format!("{}/../../x", world.datastore().display());
    let words = ["job", "create", "dots", "--disk", &path, "--target", "dr", "--seed", &dots];
    world.source.fails(&words, 2)?;

    // What was refused is corrected by an edit, and another size is no matter.
    disk::set_len(&image, 9 * MIB)?;
    world.source.ok(&["job", "edit", "outside", "--seed", &seed])?;
    let session = world.run("outside")?;
    ensure!(session.bytes.sent_payload < 8192, "{:?}", session.bytes);
    world.prove_latest("outside", &[&image])?;
    world.source.ok(&["job", "edit", "link", "--seed", "none"])?;
    world.run("link")?;
    world.prove_latest("link", &[&image])
}

#[test]
fn what_is_warmed_while_a_job_runs_does_not_cross_and_never_spoils_a_point() -> Result<()> {
    let world = slow_line()?;
    let (busy, warm) = (world.path("busy.img"), world.path("warm.img"));
    disk::random(&busy, 24 * MIB, 1)?;
    disk::random(&warm, 24 * MIB, 2)?;
    world.job("busy", &busy)?;
    world.run_in_background("busy")?;
    let carried = world.path("carried.img");
    disk::copy(&warm, &carried)?;
    let path = carried.to_string_lossy().into_owned();
    let end: Warming = world.target.json(&["cache", "warm", &path, "--wait"])?;
    ensure!(end.state == WarmState::Succeeded && end.chunks == 24 * 16, "{end:?}");
    world.wait("busy")?;
    world.prove_latest("busy", &[&busy])?;
    world.target.fails(&["cache", "warm", "/none.img"], 5)?;
    world.target.fails(&["cache", "warm", "branch/none"], 5)?;

    // It is remembered, and read where it lies; some of it has rotted in between.
    world.target.restart()?;
    world.wait_connected(std::time::Duration::from_secs(30))?;
    ensure!(flip_bits(&world.path(""), 3, 5, |file| file == "carried.img")? == 1, "nothing was damaged");
    world.job("warm", &warm)?;
    let session = world.run("warm")?;
    let sent = session.bytes.sent_payload;
    ensure!(sent > 0 && sent <= 4 * 65_536, "{:?}", session.bytes);
    world.prove_latest("warm", &[&warm])?;

    let end: Warming = world.target.json(&["cache", "warm", "branch/warm@latest", "--wait"])?;
    ensure!(end.state == WarmState::Succeeded && end.bad_chunks == 0, "{end:?}");
    std::fs::remove_file(&carried)?;
    world.prove_latest("warm", &[&warm])
}

#[test]
fn a_first_run_by_car_sends_the_difference() -> Result<()> {
    let world = slow_line()?;
    let (system, data) = (machine(&world, "web")?, world.path("data.img"));
    disk::random(&data, 24 * MIB + 777, 3)?;
    disk::set_len(&data, 200 * MIB + 777)?;
    let (first, second) = (system.to_string_lossy(), data.to_string_lossy());
    world.source.ok(&["job", "create", "web", "--disk", &first, "--disk", &second, "--target", "dr"])?;

    // A disk that is too small says so, and nothing is left on it.
    if is_root() {
        let small = LoopFs::create(&world.path(""), "small", FsKind::Ext4, 32 * MIB)?;
        let to = small.path().join("web");
        let why = world.source.fails(&["job", "seed", "web", "--to", &to.to_string_lossy()], 1)?;
        ensure!(why.contains("No space left") && !to.exists(), "{why}");
    }

    let to = world.path("courier");
    let courier = to.to_string_lossy();
    world.source.ok(&["job", "seed", "web", "--to", &courier])?;
    for (n, image) in [&system, &data].into_iter().enumerate() {
        let copy = to.join(format!("disk-{n}.raw"));
        ensure!(std::fs::read(&copy)? == std::fs::read(image)?, "{} differs", copy.display());
    }
    let stored = std::fs::metadata(to.join("disk-1.raw"))?.blocks() * 512;
    ensure!(stored < 40 * MIB, "{stored} bytes are stored of 24 MiB");
    ensure!(std::fs::read_dir(&to)?.count() == 3, "more than the disks and what they are lies there");
    world.source.fails(&["job", "seed", "web", "--to", &courier], 2)?;
    world.source.ok(&["job", "seed", "web", "--to", &courier, "--force"])?;

    // Half a directory is none, and a bad block is found before the disk goes home.
    let (manifest, aside) = (to.join("seed.json"), to.join("aside"));
    std::fs::rename(&manifest, &aside)?;
    world.target.fails(&["cache", "warm", &courier], 2)?;
    std::fs::rename(&aside, &manifest)?;
    ensure!(flip_bits(&to, 1, 5, |file| file == "disk-1.raw")? == 1, "nothing was damaged");
    let why = world.target.fails(&["cache", "warm", &courier, "--check", "--wait"], 1)?;
    ensure!(why.contains("disk-1.raw is damaged"), "{why}");
    world.source.ok(&["job", "seed", "web", "--to", &courier, "--force"])?;

    world.target.ok(&["cache", "warm", &courier, "--check", "--wait"])?;
    let listed: vbr_api::List<Warming> = world.target.json(&["cache", "warm"])?;
    ensure!(listed.items.len() == 2, "{listed:?}");
    ensure!(listed.items.iter().all(|one| one.state == WarmState::Succeeded), "{listed:?}");
    a_week_passes(&system)?;
    disk::write_random(&data, MIB, 70_000, 9)?;
    let session = world.run("web")?;
    ensure!(crossed(&session) < MIB, "{} bytes crossed", crossed(&session));
    std::fs::remove_dir_all(&to)?;
    world.prove_latest("web", &[&system, &data])
}

#[test]
fn a_job_goes_on_with_a_replica_that_is_there() -> Result<()> {
    let world = slow_line()?;
    let old = machine(&world, "shop")?;
    world.job("shop-old", &old)?;
    let plain = crossed(&world.run("shop-old")?);
    let before = world.keep(&old, "before")?;
    let first = world.points("shop-old")?;

    // The machine moves and grows. While that job is there its replica is nobody else's.
    let new = world.path("moved.img");
    disk::copy(&old, &new)?;
    a_week_passes(&new)?;
    disk::set_len(&new, 65 * MIB)?;
    let path = new.to_string_lossy();
    let words =
        ["job", "create", "shop", "--disk", &path, "--target", "dr", "--retry", "0", "--map", "shop-old"];
    let why = world.source.fails(&words, 1)?;
    ensure!(why.contains("job shop-old fills it"), "{why}");
    world.source.ok(&["job", "remove", "shop-old", "--yes"])?;

    let second = before.to_string_lossy();
    let two = [&words[..], &["--disk", &second]].concat();
    let why = world.source.fails(&two, 1)?;
    ensure!(why.contains("has 1 disks, the job has 2"), "{why}");
    let mut none = words;
    none[10] = "none-such";
    world.source.fails(&none, 5)?;

    world.source.ok(&words)?;
    world.source.ok(&words)?;
    let session = world.run("shop")?;
    ensure!(session.mode == "full-compare" && session.resumed == 0, "{session:?}");
    ensure!(crossed(&session) * 20 < plain, "{} of {plain} bytes crossed", crossed(&session));
    let points = world.points("shop-old")?;
    ensure!(points.len() == 2 && points[0].id == first[0].id, "{points:?}");
    ensure!(points[1].base.as_ref() == Some(&points[0].id), "{points:?}");
    world.prove(&format!("shop-old@{}", points[0].id), &[&before])?;
    world.prove_latest("shop-old", &[&new])?;

    disk::write_random(&new, MIB, 70_000, 9)?;
    let session = world.run("shop")?;
    ensure!(session.mode == "incremental", "{}", session.mode);
    world.prove_latest("shop-old", &[&new])?;

    // Its name is taken as any job's is, and a replica that is gone is not made anew without a word.
    let words = ["job", "create", "shop-old", "--disk", &path, "--target", "dr"];
    world.source.fails(&words, 1)?;
    world.target.ok(&["replica", "remove", "shop-old", "--yes"])?;
    let code = refused(&world, "shop")?;
    ensure!(code == "not_found", "{code}");
    world.source.ok(&["job", "edit", "shop", "--map", "none"])?;
    world.run("shop")?;
    world.prove_latest("shop", &[&new])
}

#[test]
fn a_qcow2_image_is_a_seed() -> Result<()> {
    if !exists("qemu-img") || !exists("qemu-storage-daemon") {
        println!("skipped: it needs qemu-utils");
        return Ok(());
    }
    let world = World::paired(&WorldSpec::default())?;
    let image = world.path("a.img");
    disk::random(&image, 16 * MIB, 1)?;
    let directory = world.datastore().join("seed");
    std::fs::create_dir_all(&directory)?;
    let seed = directory.join("a.qcow2");
    disk::to_qcow2(&image, &seed)?;
    disk::write_random(&image, MIB, 70_000, 9)?;
    let name = format!("{},format={}", seed.display(), DiskFormat::Qcow2.as_str());
    seeded_job(&world, "a", &image, &name)?;
    let session = world.run("a")?;
    ensure!(session.bytes.sent_payload < 300_000, "{:?}", session.bytes);
    world.prove_latest("a", &[&image])
}
