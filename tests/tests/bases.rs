//! Bases: content that moved, was overwritten or lies at another branch costs little, and whatever happens
//! to anchors, caches and packs in between, every restore point is its source byte for byte.

use std::path::Path;

use anyhow::{Result, ensure};
use vbr_api::{RestorePoint, Session};
use vbr_tests::disk::{self, MIB, Seeded};
use vbr_tests::fault::flip_bits;
use vbr_tests::link::LinkConfig;
use vbr_tests::process::{exists, is_root, skip_unless};
use vbr_tests::world::{World, WorldSpec};

/// Rewrites chunks all over a disk with pieces of 8 KiB that come from other places of it, on other
/// alignments, as a database's log and pages do.
fn move_content(image: &Path, pieces: u64, seed: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(image)?;
    let len = file.metadata()?.len();
    let mut random = Seeded::new(seed);
    let mut piece = vec![0; 8192];
    for _ in 0..pieces {
        let (from, to) = (random.below(len - 8192), random.below(len / 512 - 16) * 512);
        file.read_exact_at(&mut piece, from)?;
        piece[4000] = piece[4000].wrapping_add(1);
        file.write_all_at(&piece, to)?;
    }
    file.sync_all()?;
    Ok(())
}

/// A line on which bases pay; where the line is faster than any work is worth they are not looked for.
fn slow_line() -> Result<World> {
    let link = LinkConfig::shaped(50.0, 20, 0.0);
    World::paired(&WorldSpec { link, loopback_rate: Some("50Mbit".into()), ..WorldSpec::default() })
}

fn cheap(session: &Session, at_most_percent: u64) -> Result<()> {
    let (sent, changed) = (session.bytes.sent_payload, session.bytes.changed);
    ensure!(
        sent * 100 <= changed * at_most_percent && session.chunks.delta > 0 && session.bytes.delta_base > 0,
        "{sent} bytes for {changed} changed ones: {:?} {:?} {:?}",
        session.bytes,
        session.chunks,
        session.compression
    );
    Ok(())
}

#[test]
fn content_that_moved_costs_little_whatever_is_lost_in_between() -> Result<()> {
    let world = slow_line()?;
    let image = world.path("db.img");
    disk::random(&image, 32 * MIB, 1)?; // Nothing shrinks by itself: what is saved is saved by bases.
    world.job("db", &image)?;
    world.run("db")?;

    // Half of what moved lies where it lay, half was overwritten and is in the source's cache.
    move_content(&image, 200, 2)?;
    let session = world.run("db")?;
    cheap(&session, 25)?;
    world.prove_latest("db", &[&image])?;

    // The anchors survive a clean restart.
    world.source.restart()?;
    world.wait_connected(std::time::Duration::from_secs(30))?;
    move_content(&image, 100, 3)?;
    cheap(&world.run("db")?, 25)?;
    world.prove_latest("db", &[&image])?;

    // Anchors and the source's cache are lost: it costs bytes, and the anchors are learned again.
    world.source.stop()?;
    std::fs::remove_file(world.source.state().join("anchors"))?;
    std::fs::remove_dir_all(world.source.state().join("packs"))?;
    world.source.start()?;
    world.wait_connected(std::time::Duration::from_secs(30))?;
    move_content(&image, 100, 4)?;
    world.run("db")?;
    world.prove_latest("db", &[&image])?;

    // The target's packs rot: bases are found bad when they are read, and their chunks asked for again.
    world.target.stop()?;
    ensure!(flip_bits(&world.target.state().join("packs"), 400, 5, |_| true)? > 0, "there are no packs");
    world.target.start()?;
    world.wait_connected(std::time::Duration::from_secs(30))?;
    move_content(&image, 100, 6)?;
    world.run("db")?;
    world.prove_latest("db", &[&image])
}

/// A second disk with the first one's content on another alignment: whole chunks do not match, anchors do,
/// and what they lead to is confirmed by the target before it is used.
#[test]
fn another_disk_of_the_branch_serves_as_base() -> Result<()> {
    let world = slow_line()?;
    let (first, second) = (world.path("a.img"), world.path("b.img"));
    disk::random(&first, 16 * MIB, 1)?;
    world.job("a", &first)?;
    world.run("a")?;
    let content = std::fs::read(&first)?;
    let mut shifted = vec![7; 12_345];
    shifted.extend_from_slice(&content);
    shifted.resize(17 * MIB as usize, 9);
    std::fs::write(&second, &shifted)?;
    world.job("b", &second)?;
    let session = world.run("b")?;
    cheap(&session, 10)?;
    world.prove_latest("b", &[&second])
}

/// Space that a file system has freed does not travel, no file is lost, and the restore point says so.
#[test]
fn free_space_need_not_travel() -> Result<()> {
    if skip_unless(is_root() && exists("e2fsck"), "free space", "mounting ext4 needs root and e2fsprogs") {
        return Ok(());
    }
    let world = World::paired(&WorldSpec::default())?;
    let files = world.path("files");
    disk::tree(&files, &["/usr/bin", "/usr/lib"], 0, 40 * MIB)?;
    std::fs::create_dir_all(files.join("old"))?;
    disk::random(&files.join("old/junk"), 24 * MIB, 3)?;
    let image = world.path("web.img");
    disk::ext4(&image, 128 * MIB, &files, 1)?;
    disk::ext4_edit(&image, Path::new("/etc/apt"), &["old/junk".to_string()])?;
    let path = image.to_string_lossy();
    world.source.ok(&["job", "create", "web", "--disk", &path, "--target", "dr", "--free-space", "auto"])?;
    let session = world.run("web")?;
    ensure!(session.bytes.freed >= 20 * MIB, "freed {:?} {:?}", session.bytes, session.disks);
    let volume = &session.disks[0].volumes[0];
    ensure!(
        volume.kind == "ext4" && volume.skipped_bytes > 20 * MIB && volume.reason.starts_with("skipped"),
        "{volume:?}"
    );
    let points: Vec<RestorePoint> = world.points("web")?;
    ensure!(points[0].disks[0].volumes == session.disks[0].volumes, "{points:?}");

    let out = world.path("out.img");
    world.target.ok(&["restore-point", "export", "web@latest", "--disk", "0", &out.to_string_lossy()])?;
    ensure!(disk::difference(&image, &out)?.is_some(), "nothing was masked");
    let check = std::process::Command::new("e2fsck").arg("-fn").arg(&out).output()?;
    ensure!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    disk::ensure_same_files(&image, &out)?;
    world.target.ok(&["restore-point", "verify", "web@latest"])?;

    // Unchanged, then changed: the mask moves with the file system.
    let same = world.run("web")?;
    ensure!(same.bytes.changed == 0, "{:?}", same.bytes);
    let more = world.path("more");
    disk::tree(&more, &["/usr/share"], 0, 6 * MIB)?;
    disk::ext4_edit(&image, &more, &[])?;
    world.run("web")?;
    let out = world.path("out2.img");
    world.target.ok(&["restore-point", "export", "web@latest", "--disk", "0", &out.to_string_lossy()])?;
    disk::ensure_same_files(&image, &out)
}
