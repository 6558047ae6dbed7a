//! Single files out of a restore point: its file systems mounted by the console, read through what verifies each chunk.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vbr_tests::disk::{self, MIB};
use vbr_tests::mount::{FsKind, LoopFs};
use vbr_tests::process::{is_root, run, skip_unless};
use vbr_tests::world::{World, WorldSpec};

/// Where a partition begins on the disks here: at one MiB, as partitioning tools have it.
const FIRST: u64 = MIB;
/// Of a file system with a log as XFS wants it.
const PART: u64 = 320 * MIB;

fn world() -> Result<World> {
    World::paired(&WorldSpec { loopback: true, ..WorldSpec::default() })
}

/// A tree of files with content of their own.
fn fill(place: &Path, files: u64, seed: u64) -> Result<()> {
    std::fs::create_dir_all(place.join("etc/deep"))?;
    for number in 0..files {
        disk::random(&place.join(format!("etc/deep/{number}")), 3000 + 700 * number, seed + number)?;
    }
    std::fs::write(place.join("etc/hostname"), "branch-7\n")?;
    std::fs::File::open(place)?.sync_all()?;
    Ok(())
}

/// The image of a file system as a power cut would leave it, and what was on it.
fn torn(dir: &Path, name: &str, kind: FsKind, seed: u64) -> Result<(PathBuf, PathBuf)> {
    let fs = LoopFs::create(dir, name, kind, PART)?;
    fill(fs.path(), 40, seed)?;
    run("sync", ["-f", &fs.path().display().to_string()])?;
    // In the journal alone.
    std::fs::write(fs.path().join("etc/late"), vec![7; 5000])?;
    std::fs::File::open(fs.path().join("etc/late"))?.sync_all()?;
    let (kept, image) = (dir.join(format!("{name}.files")), dir.join(format!("{name}.img")));
    run("cp", ["-a", &fs.path().join("etc").display().to_string(), &kept.display().to_string()])?;
    disk::copy(&dir.join(format!("{name}.fs")), &image)?;
    Ok((image, kept))
}

/// A disk with two partitions.
fn partitioned(to: &Path, first: &Path, second: &Path) -> Result<()> {
    disk::set_len(to, FIRST + 2 * PART + MIB)?;
    let table = format!(
        "label: gpt\nstart={}, size={}\nstart={}, size={}\n",
        FIRST / 512,
        PART / 512,
        (FIRST + PART) / 512,
        PART / 512
    );
    let script = to.with_extension("sfdisk");
    std::fs::write(&script, table)?;
    run("sh", ["-c", &format!("sfdisk -q {} < {}", to.display(), script.display())])?;
    for (image, at) in [(first, FIRST), (second, FIRST + PART)] {
        let words = [
            format!("if={}", image.display()),
            format!("of={}", to.display()),
            "bs=1M".into(),
            "conv=notrunc,sparse".into(),
            format!("seek={}", at / MIB),
            "status=none".into(),
        ];
        run("dd", words)?;
    }
    Ok(())
}

/// The same trees, file by file.
fn ensure_same(a: &Path, b: &Path) -> Result<()> {
    ensure!(std::fs::read_dir(b)?.count() > 2, "{} is empty", b.display());
    run("diff", ["-r", &a.display().to_string(), &b.display().to_string()]).map(drop)
}

fn nothing_is_left(place: &Path) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let place_text = place.display().to_string();
    ensure!(!mounts.contains(&place_text), "still mounted: {mounts}");
    ensure!(!place.exists(), "{place_text} was made by the command and is still there");
    Ok(())
}

#[test]
fn file_systems_of_a_disk_that_was_in_use() -> Result<()> {
    if skip_unless(is_root(), "mounts", "loop mounts need root") {
        return Ok(());
    }
    let world = world()?;
    let (xfs, xfs_files) = torn(&world.path(""), "x", FsKind::Xfs, 100)?;
    let (ext4, ext4_files) = torn(&world.path(""), "e", FsKind::Ext4, 300)?;
    let image = world.path("web.img");
    partitioned(&image, &xfs, &ext4)?;
    world.job("web", &image)?;
    world.run("web")?;
    let (place, copy) = (world.path("m"), world.path("copy"));
    let place_text = place.display().to_string();
    let script =
        format!("mkdir {c} && cp -a disk0p1/etc {c}/x && cp -a disk0p2/etc {c}/e", c = copy.display());
    let said =
        world.target.ok(&["restore-point", "mount", "web@latest", &place_text, "--", "sh", "-c", &script])?;
    ensure!(said.contains("xfs") && said.contains("ext4"), "{said}");
    ensure_same(&copy.join("x"), &xfs_files)?;
    ensure_same(&copy.join("e"), &ext4_files)?;
    nothing_is_left(&place)?;
    // Nothing of it was written to the restore point.
    world.prove_latest("web", &[&image])?;

    let failed = world.target.fails(
        &["restore-point", "mount", "web@latest", &place_text, "--", "sh", "-c", "echo x > disk0p1/x"],
        1,
    )?;
    ensure!(failed.contains("Read-only file system"), "{failed}");
    nothing_is_left(&place)?;
    world.target.fails(&["restore-point", "mount", "web@latest", &place_text, "--disk", "3"], 5)?;
    Ok(())
}

/// While it is mounted vbrd is killed and comes again, and the restore point cannot be removed.
#[test]
fn a_mount_outlives_vbrd_and_holds_its_point() -> Result<()> {
    if skip_unless(is_root(), "mounts", "loop mounts need root") {
        return Ok(());
    }
    let world = world()?;
    let (image, files) = torn(&world.path(""), "x", FsKind::Ext4, 100)?;
    world.job("web", &image)?;
    world.run("web")?;
    disk::write_random(&image, PART - MIB, MIB, 5)?;
    world.run("web")?;
    let first = world.points("web")?.first().context("no point")?.id.clone();
    let point = format!("web@{first}");
    let (place, copy, go) = (world.path("m"), world.path("copy"), world.path("go"));
    let script = format!(
        "touch {go}.on; while ! [ -e {go} ]; do sleep 0.1; done; cp -a disk0/etc {copy}",
        go = go.display(),
        copy = copy.display()
    );
    let place_text = place.display().to_string();
    std::thread::scope(|scope| -> Result<()> {
        let mount = scope.spawn(|| {
            world.target.ok(&["restore-point", "mount", &point, &place_text, "--", "sh", "-c", &script])
        });
        let looked = || -> Result<()> {
            let on = PathBuf::from(format!("{}.on", go.display()));
            for _ in 0..300 {
                if on.exists() || mount.is_finished() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            ensure!(on.exists(), "it was not mounted");
            let refused = world.target.ctl(&["restore-point", "remove", &point, "--yes"])?;
            ensure!(!refused.status.success(), "a restore point that is mounted was removed");
            world.target.restart()
        };
        let looked = looked();
        std::fs::write(&go, "")?;
        let mounted = mount.join().map_err(|_| anyhow::anyhow!("the mount panicked"))?;
        looked?;
        mounted.map(drop)
    })?;
    ensure_same(&copy, &files)?;
    nothing_is_left(&place)?;
    world.target.ok(&["restore-point", "remove", &point, "--yes"])?;
    Ok(())
}

/// Damage in the datastore is an error of the file that has it, and of no other.
#[test]
fn damage_is_an_error_and_never_content() -> Result<()> {
    if skip_unless(is_root(), "mounts", "loop mounts need root") {
        return Ok(());
    }
    let world = world()?;
    let fs = LoopFs::create(&world.path(""), "d", FsKind::Ext4, 64 * MIB)?;
    disk::random(&fs.path().join("good"), MIB, 3)?;
    disk::random(&fs.path().join("bad"), MIB, 4)?;
    run("sync", ["-f", &fs.path().display().to_string()])?;
    let image = world.path("d.img");
    disk::copy(&world.path("d.fs"), &image)?;
    world.job("web", &image)?;
    world.run("web")?;
    let bad = std::fs::read(fs.path().join("bad"))?;
    let at =
        find(&std::fs::read(&image)?, &bad[512 * 1024..512 * 1024 + 4096]).context("content not found")?;
    let kept = world.points("web")?.pop().context("no point")?.disks.pop().context("no disk")?.file;
    let replica = world.datastore().join("branch/web");
    let found = run("find", [replica.display().to_string().as_str(), "-name", &kept])?;
    let path = found.lines().next().with_context(|| format!("{kept} is not in {}", replica.display()))?;
    let file = std::fs::OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&[9; 100], at as u64 + 50)?;
    drop(file);
    let place = world.path("m");
    let script = "cat disk0/good > /dev/null && ! cat disk0/bad > /dev/null";
    let place_text = place.display().to_string();
    world.target.ok(&["restore-point", "mount", "web@latest", &place_text, "--", "sh", "-c", script])?;
    nothing_is_left(&place)?;
    // As files of disks, too: all but what is damaged.
    let script = "test $(stat -c %s disk0.raw) = 67108864 && ! cat disk0.raw > /dev/null && head -c 4096 disk0.raw > /dev/null";
    let words = ["restore-point", "mount", "web@latest", &place_text, "--images", "--", "sh", "-c", script];
    world.target.ok(&words)?;
    nothing_is_left(&place)
}

fn find(all: &[u8], what: &[u8]) -> Option<usize> {
    let first = *what.first()?;
    let mut from = 0;
    while let Some(next) = all[from..].iter().position(|byte| *byte == first) {
        let at = from + next;
        if all[at..].starts_with(what) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}
