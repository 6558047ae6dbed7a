//! Clones on XFS and btrfs, loop devices: what needs file systems of its own, and root to mount them.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vbr_api::DiskFormat;

use super::tests::{changes_are_detected, content, noise, qcow2, raw, registry, registry_with, request};
use super::*;
use crate::nbd::{ImageSpec, QsdExport, qemu_img, qemu_utils_missing};

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// A file system in a file, mounted while this lives.
struct Mounted {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Mounted {
    fn new(kind: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (image, path) = (dir.path().join("fs.img"), dir.path().join("mnt"));
        File::create(&image).unwrap().set_len(600 << 20).unwrap();
        fs::create_dir(&path).unwrap();
        let name = |path: &Path| path.to_str().unwrap().to_owned();
        let made = run(&format!("mkfs.{kind}"), &["-q", &name(&image)])
            .and_then(|_| run("mount", &["-o", "loop", &name(&image), &name(&path)]));
        match made {
            Ok(_) => Some(Self { path, _dir: dir }),
            Err(why) => {
                eprintln!("skipped: {why}");
                None
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if run("umount", &[self.path.to_str().unwrap()]).is_err() {
            let _ = run("umount", &["-l", self.path.to_str().unwrap()]);
        }
    }
}

/// A loop device over a file, while this lives.
struct Loop {
    device: String,
    dir: tempfile::TempDir,
}

impl Loop {
    fn new(len: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("device.img");
        File::create(&image).unwrap().set_len(len).unwrap();
        match run("losetup", &["--find", "--show", image.to_str().unwrap()]) {
            Ok(device) => Some(Self { device, dir }),
            Err(why) => {
                eprintln!("skipped: {why}");
                None
            }
        }
    }
}

impl Loop {
    /// Takes the device away and attaches the same file to the same number. In between another test may
    /// be given that number (`losetup --find` takes the lowest that is free), so this waits until it ends.
    fn attach_again(&self) {
        run("losetup", &["-d", &self.device]).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let image = self.dir.path().join("device.img");
        let deadline = Instant::now() + Duration::from_secs(120);
        while let Err(why) = run("losetup", &[&self.device, image.to_str().unwrap()]) {
            assert!(Instant::now() < deadline, "{why}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = run("losetup", &["-d", &self.device]);
    }
}

fn clones_beside(dir: &Path) -> usize {
    fs::read_dir(dir.join(".vbr-snapshots")).map_or(0, Iterator::count)
}

fn clones_are_still(fs_kind: &str) {
    let Some(mounted) = Mounted::new(fs_kind) else { return };
    let state = tempfile::tempdir().unwrap();
    let path = mounted.path.join("disk.raw");
    let data = noise((2 << 20) + 77, 1);
    fs::write(&path, &data).unwrap();
    let disks = [raw(&path)];
    let host = registry(state.path()).get(LOCAL).unwrap();
    let snapshot = host.snapshot(&request("a1", &disks)).unwrap();
    assert_eq!((snapshot.disks[0].kind, snapshot.transport_mode), (SnapshotKind::Clone, "direct"));
    assert!(snapshot.one_moment && snapshot.warnings.is_empty(), "{:?}", snapshot.warnings);

    // Whatever happens to the disk, the clone shows the moment, also to a later vbrd.
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[9; 4096], 0).unwrap();
    assert!(content(&snapshot.disks[0]) == data);
    assert!(snapshot.changed_during_read().unwrap().is_empty());
    let identity = snapshot.identity.clone();
    drop(snapshot);
    fs::remove_file(&path).unwrap();
    let later = registry(state.path());
    let host = later.get(LOCAL).unwrap();
    let again = host.reopen(&request("a1", &disks), &identity).unwrap().unwrap();
    assert!(content(&again.disks[0]) == data);
    assert_eq!(again.identity, identity);
    assert!(host.reopen(&request("a2", &disks), &identity).unwrap().is_none());

    // Another daemon's sweep and a living session leave it; the end of the session does not.
    let other = tempfile::tempdir().unwrap();
    registry_with(other.path(), vec![mounted.path.join(".vbr-snapshots")], 0).sweep(&[]);
    later.sweep(&["a1".into()]);
    assert_eq!(clones_beside(&mounted.path), 1);
    again.release(true);
    assert!(!mounted.path.join(".vbr-snapshots").exists());

    fs::write(&path, &data).unwrap();
    drop(host.snapshot(&request("a3", &disks)).unwrap());
    assert_eq!(clones_beside(&mounted.path), 1);
    assert_eq!(registry(state.path()).sweep(&["a1".into()]), 1);
    assert!(!mounted.path.join(".vbr-snapshots").exists());
}

#[test]
fn clones_are_still_on_xfs() {
    clones_are_still("xfs");
}

#[test]
fn clones_are_still_on_btrfs() {
    clones_are_still("btrfs");
}

#[test]
fn a_clone_that_was_touched_is_another_moment() {
    let Some(mounted) = Mounted::new("xfs") else { return };
    let state = tempfile::tempdir().unwrap();
    let path = mounted.path.join("disk.raw");
    fs::write(&path, noise(1 << 20, 1)).unwrap();
    let host = registry(state.path()).get(LOCAL).unwrap();
    let snapshot = host.snapshot(&request("a1", &[raw(&path)])).unwrap();
    let clone = snapshot.disks[0].clone.clone().unwrap().0;
    OpenOptions::new().write(true).open(&clone).unwrap().write_all_at(b"x", 0).unwrap();
    assert_eq!(snapshot.changed_during_read().unwrap().len(), 1);
    let identity = snapshot.identity.clone();
    assert!(host.reopen(&request("a1", &[raw(&path)]), &identity).unwrap().is_none());
    snapshot.release(true);
}

#[test]
fn the_floor_of_free_space_is_kept() {
    let Some(mounted) = Mounted::new("xfs") else { return };
    let state = tempfile::tempdir().unwrap();
    let path = mounted.path.join("disk.raw");
    fs::write(&path, noise(1 << 20, 1)).unwrap();
    let snapshots = mounted.path.join("snapshots");
    let host = registry_with(state.path(), vec![snapshots.clone()], 100 << 30).get(LOCAL).unwrap();
    let snapshot = host.snapshot(&request("a1", &[raw(&path)])).unwrap();
    assert_eq!(snapshot.disks[0].kind, SnapshotKind::Watch);
    assert!(snapshot.warnings[0].contains("floor"), "{:?}", snapshot.warnings);
    assert_eq!(fs::read_dir(&snapshots).unwrap().count(), 0);

    let host = registry_with(state.path(), vec![snapshots.clone()], 200 << 20).get(LOCAL).unwrap();
    let snapshot = host.snapshot(&request("a1", &[raw(&path)])).unwrap();
    assert_eq!(snapshot.disks[0].kind, SnapshotKind::Clone);
    assert_eq!(snapshot.space_low(), None);
    fs::write(mounted.path.join("filler"), noise(400 << 20, 2)).unwrap();
    assert!(snapshot.space_low().unwrap().contains("floor"));
    snapshot.release(true);
    assert!(snapshots.exists() && fs::read_dir(&snapshots).unwrap().count() == 0);
}

#[test]
fn without_a_directory_on_its_file_system_a_disk_is_watched() {
    let (Some(mounted), Some(other)) = (Mounted::new("xfs"), Mounted::new("xfs")) else { return };
    let state = tempfile::tempdir().unwrap();
    let path = mounted.path.join("disk.raw");
    fs::write(&path, noise(1 << 20, 1)).unwrap();
    let host = registry_with(state.path(), vec![other.path.join("snapshots")], 0).get(LOCAL).unwrap();
    let snapshot = host.snapshot(&request("a1", &[raw(&path)])).unwrap();
    assert_eq!(snapshot.disks[0].kind, SnapshotKind::Watch);
    assert!(snapshot.warnings[0].contains("configure one"), "{:?}", snapshot.warnings);
}

#[test]
fn btrfs_clones_uncounted_files_and_other_subvolumes() {
    let Some(mounted) = Mounted::new("btrfs") else { return };
    let state = tempfile::tempdir().unwrap();
    let name = |path: &Path| path.to_str().unwrap().to_owned();
    let (images, snapshots) = (mounted.path.join("images"), mounted.path.join("snapshots"));
    for subvolume in [&images, &snapshots] {
        run("btrfs", &["subvolume", "create", &name(subvolume)]).unwrap();
    }
    let path = images.join("nocow.raw");
    File::create(&path).unwrap();
    run("chattr", &["+C", &name(&path)]).unwrap();
    let data = noise(1 << 20, 3);
    fs::write(&path, &data).unwrap();
    let host = registry_with(state.path(), vec![snapshots], 0).get(LOCAL).unwrap();
    let snapshot = host.snapshot(&request("a1", &[raw(&path)])).unwrap();
    assert_eq!(snapshot.disks[0].kind, SnapshotKind::Clone, "{:?}", snapshot.warnings);
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[9; 4096], 0).unwrap();
    assert!(content(&snapshot.disks[0]) == data);
    snapshot.release(true);
}

#[test]
fn several_clones_are_one_moment_only_if_nothing_moved() {
    let Some(mounted) = Mounted::new("xfs") else { return };
    let state = tempfile::tempdir().unwrap();
    let disks: Vec<_> = (0..3).map(|index| raw(&mounted.path.join(format!("disk{index}.raw")))).collect();
    for disk in &disks {
        fs::write(&disk.path, noise(1 << 20, 1)).unwrap();
    }
    let host = registry(state.path()).get(LOCAL).unwrap();
    let still = host.snapshot(&request("a1", &disks)).unwrap();
    assert!(still.one_moment);
    let identity = still.identity.clone();
    drop(still);
    let again = host.reopen(&request("a1", &disks), &identity).unwrap().unwrap();
    assert!(again.one_moment && again.disks.len() == 3);
    again.release(true);

    let stop = AtomicBool::new(false);
    let moving = std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = OpenOptions::new().write(true).open(&disks[1].path).unwrap();
            while !stop.load(Ordering::Relaxed) {
                file.write_all_at(b"x", 0).unwrap();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        std::thread::sleep(Duration::from_millis(20));
        let moving = host.snapshot(&request("a2", &disks));
        stop.store(true, Ordering::Relaxed);
        moving.unwrap()
    });
    assert!(!moving.one_moment);
    assert!(moving.changed_during_read().unwrap().is_empty());
    moving.release(true);
    assert!(!mounted.path.join(".vbr-snapshots").exists());
}

#[test]
fn a_running_qcow2_is_read_from_its_clone() {
    if let Some(why) = qemu_utils_missing() {
        eprintln!("skipped: {why}");
        return;
    }
    let Some(mounted) = Mounted::new("xfs") else { return };
    let state = tempfile::tempdir().unwrap();
    let path = mounted.path.join("disk.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "64M"]).unwrap();
    let spec = ImageSpec { writable: true, ..ImageSpec::read_only(&path, DiskFormat::Qcow2) };
    let running = QsdExport::open(spec, state.path()).unwrap();
    let data = noise(1 << 20, 5);
    crate::block::BlockWrite::write_at(&running, 3 << 20, &data).unwrap();
    crate::block::BlockWrite::flush(&running).unwrap();
    let host = registry(state.path()).get(LOCAL).unwrap();
    let snapshot = host.snapshot(&request("a1", &[qcow2(&path)])).unwrap();
    assert_eq!(snapshot.disks[0].kind, SnapshotKind::Clone);
    crate::block::BlockWrite::zero_at(&running, 0, 64 << 20).unwrap();
    crate::block::BlockWrite::flush(&running).unwrap();
    let mut back = vec![0; 1 << 20];
    snapshot.disks[0].reader.read_at(3 << 20, &mut back).unwrap();
    assert!(back == data);
    assert_eq!(snapshot.disks[0].reader.next_data(0).unwrap().unwrap().offset, 3 << 20);
    snapshot.release(true);
}

#[test]
fn changes_show_without_clones_on_xfs_and_btrfs() {
    for kind in ["xfs", "btrfs"] {
        let Some(mounted) = Mounted::new(kind) else { continue };
        let state = tempfile::tempdir().unwrap();
        // A file where the directory beside the disk would be: no clones here.
        fs::write(mounted.path.join(".vbr-snapshots"), "").unwrap();
        changes_are_detected(&mounted.path, state.path());
    }
}

#[test]
fn block_devices_are_watched_by_their_counters() {
    let Some(device) = Loop::new(64 << 20) else { return };
    let state = tempfile::tempdir().unwrap();
    let path = Path::new(&device.device);
    let data = noise(64 << 20, 7);
    fs::write(path, &data).unwrap();
    let host = registry(state.path()).get(LOCAL).unwrap();
    let disks = [raw(path)];
    let direct = |offset: u64| {
        let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
        let buffer = vec![5u8; 8192];
        let skip = buffer.as_ptr().align_offset(4096);
        file.write_all_at(&buffer[skip..skip + 4096], offset).unwrap();
    };
    let buffered = |offset: u64| {
        OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"hello", offset).unwrap();
    };
    let discard = |offset: u64| {
        run("blkdiscard", &["-o", &offset.to_string(), "-l", "4096", &device.device]).unwrap();
    };
    let changes: [(&str, &dyn Fn(u64)); 3] =
        [("direct", &direct), ("buffered", &buffered), ("discard", &discard)];
    for (index, (name, change)) in changes.into_iter().enumerate() {
        let snapshot = host.snapshot(&request("a1", &disks)).unwrap();
        assert_eq!((snapshot.disks[0].kind, snapshot.disks[0].reader.len()), (SnapshotKind::Watch, 64 << 20));
        assert!(snapshot.warnings.is_empty(), "{:?}", snapshot.warnings);
        let read = content(&snapshot.disks[0]);
        assert!(index > 0 || read == data);
        assert!(snapshot.changed_during_read().unwrap().is_empty(), "{name}");
        let again =
            registry(state.path()).get(LOCAL).unwrap().reopen(&request("a1", &disks), &snapshot.identity);
        assert!(again.unwrap().is_some(), "{name}");
        change(1 << 20);
        assert_eq!(snapshot.changed_during_read().unwrap(), [disks[0].path.clone()], "{name}");
        assert!(host.reopen(&request("a1", &disks), &snapshot.identity).unwrap().is_none(), "{name}");
    }
    // A device that was taken away and attached again is another one, whatever its counters say.
    let snapshot = host.snapshot(&request("a1", &disks)).unwrap();
    let identity = snapshot.identity.clone();
    drop(snapshot);
    device.attach_again();
    assert!(host.reopen(&request("a1", &disks), &identity).unwrap().is_none());
}

#[test]
fn a_qcow2_on_a_block_device_is_read() {
    if let Some(why) = qemu_utils_missing() {
        eprintln!("skipped: {why}");
        return;
    }
    let Some(device) = Loop::new(64 << 20) else { return };
    let state = tempfile::tempdir().unwrap();
    let path = Path::new(&device.device);
    qemu_img(&["create", "-q", "-f", "qcow2", &device.device, "32M"]).unwrap();
    let spec = ImageSpec { writable: true, ..ImageSpec::read_only(path, DiskFormat::Qcow2) };
    let export = QsdExport::open(spec, state.path()).unwrap();
    crate::block::BlockWrite::write_at(&export, 5 << 20, b"block device").unwrap();
    export.close().unwrap();
    let host = registry(state.path()).get(LOCAL).unwrap();
    let snapshot = host.snapshot(&request("a1", &[qcow2(path)])).unwrap();
    assert_eq!((snapshot.disks[0].kind, snapshot.disks[0].reader.len()), (SnapshotKind::Watch, 32 << 20));
    assert_eq!(&content(&snapshot.disks[0])[5 << 20..][..12], b"block device");
    assert!(snapshot.changed_during_read().unwrap().is_empty());
}
