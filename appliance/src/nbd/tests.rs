//! The client against qemu-storage-daemon, and against a server that says whatever it likes.

mod replies;
mod serving;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vbr_api::DiskFormat;

use super::*;
use crate::block::{BlockRead, BlockWrite, Extent};

fn tools() -> bool {
    let missing = qemu_utils_missing();
    if let Some(why) = &missing {
        eprintln!("skipped: {why}");
    }
    missing.is_none()
}

fn noise(len: usize, seed: u8) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut out);
    out
}

fn writable(path: &Path, format: DiskFormat, disk_len: Option<u64>) -> ImageSpec {
    ImageSpec { writable: true, disk_len, ..ImageSpec::read_only(path, format) }
}

fn extents(disk: &dyn BlockRead) -> Vec<Extent> {
    let (mut all, mut at) = (Vec::new(), 0);
    while let Some(extent) = disk.next_data(at).unwrap() {
        at = extent.end();
        all.push(extent);
    }
    all
}

#[test]
fn raw_of_odd_length_has_exactly_its_bytes() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.raw");
    let data = noise(3 * 1024 * 1024 + 77, 1);
    fs::write(&path, &data).unwrap();
    let export = QsdExport::open(ImageSpec::read_only(&path, DiskFormat::Raw), dir.path()).unwrap();
    assert_eq!(export.len(), data.len() as u64);
    let mut back = vec![0; data.len()];
    export.read_at(0, &mut back).unwrap();
    assert!(back == data);
    let past = export.read_at(data.len() as u64 - 1, &mut [0; 2]).unwrap_err();
    assert_eq!(past.kind(), std::io::ErrorKind::UnexpectedEof);
    let whole: u64 = extents(&export).iter().map(|extent| extent.len).sum();
    assert_eq!(whole, data.len() as u64);
}

#[test]
fn qcow2_is_written_read_and_left_clean() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    let name = path.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", name, "64M"]).unwrap();
    let export = QsdExport::open(writable(&path, DiskFormat::Qcow2, None), dir.path()).unwrap();
    let data = noise(5 << 20, 2);
    export.write_at(1 << 20, &data).unwrap();
    // Overlapping writes keep their order, and a read sees what was written before it.
    export.write_at((1 << 20) + 10, &[7; 100]).unwrap();
    export.write_at((1 << 20) + 20, &[8; 10]).unwrap();
    export.zero_at(3 << 20, 1 << 20).unwrap();
    let mut back = vec![1; 4 << 20];
    export.read_at(1 << 20, &mut back).unwrap();
    let mut expected = data[..4 << 20].to_vec();
    expected[10..110].fill(7);
    expected[20..30].fill(8);
    expected[2 << 20..3 << 20].fill(0);
    assert!(back == expected);
    let found = extents(&export);
    assert_eq!(found.first().map(|e| (e.offset, e.end())), Some((1 << 20, 3 << 20)));
    assert_eq!(found.last().map(|e| (e.offset, e.end())), Some((4 << 20, 6 << 20)));
    export.close().unwrap();
    qemu_img(&["check", "-q", "-f", "qcow2", name]).unwrap();

    let raw = dir.path().join("disk.raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", name, raw.to_str().unwrap()]).unwrap();
    let converted = fs::read(&raw).unwrap();
    let again = QsdExport::open(ImageSpec::read_only(&path, DiskFormat::Qcow2), dir.path()).unwrap();
    let mut whole = vec![0; 64 << 20];
    again.read_at(0, &mut whole).unwrap();
    assert!(whole == converted);
}

#[test]
fn an_overlay_reads_through_its_declared_base() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (dir.path().join("base.raw"), dir.path().join("top.qcow2"));
    let data = noise((1 << 20) + 5, 3);
    fs::write(&base, &data).unwrap();
    let size = data.len().next_multiple_of(512).to_string();
    qemu_img(&["create", "-q", "-f", "qcow2", top.to_str().unwrap(), &size]).unwrap();
    let spec = |writable| ImageSpec {
        path: top.clone(),
        format: DiskFormat::Qcow2,
        backing: vec![BackingImage { path: base.clone(), format: DiskFormat::Raw }],
        writable,
        disk_len: Some(data.len() as u64),
    };
    let export = QsdExport::open(spec(true), dir.path()).unwrap();
    export.write_at(data.len() as u64 - 3, b"end").unwrap();
    export.close().unwrap();
    let export = QsdExport::open(spec(false), dir.path()).unwrap();
    let mut back = vec![0; data.len()];
    export.read_at(0, &mut back).unwrap();
    assert!(back[..data.len() - 3] == data[..data.len() - 3] && back.ends_with(b"end"));
    assert!(fs::read(&base).unwrap() == data);
}

#[test]
fn errors_say_what_to_do_and_leave_nothing_behind() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "1M"]).unwrap();
    let runtime = dir.path().join("run");
    let held = QsdExport::open(writable(&path, DiskFormat::Qcow2, None), &runtime).unwrap();
    let second = QsdExport::open(ImageSpec::read_only(&path, DiskFormat::Qcow2), &runtime).err().unwrap();
    assert!(matches!(second, NbdError::Locked { .. }), "{second}");
    drop(held);
    assert_eq!(fs::read_dir(&runtime).unwrap().count(), 0);
    let raw = dir.path().join("x.raw");
    fs::write(&raw, [1; 4096]).unwrap();
    let wrong = QsdExport::open(ImageSpec::read_only(&raw, DiskFormat::Qcow2), &runtime).err().unwrap();
    assert!(wrong.to_string().contains("declare it as raw"), "{wrong}");
    let longer = ImageSpec { disk_len: Some(8192), ..ImageSpec::read_only(&raw, DiskFormat::Raw) };
    assert!(matches!(QsdExport::open(longer, &runtime), Err(NbdError::Length { .. })));
    let missing = qemu_img(&["info", "/nonexistent/image"]).unwrap_err();
    assert!(missing.to_string().contains("No such file"), "{missing}");
    let slow = qemu_img_within(
        &["bench", "-c", "100000000", "-f", "raw", raw.to_str().unwrap()],
        Duration::from_millis(50),
    );
    assert!(matches!(slow, Err(NbdError::Timeout { .. })), "{slow:?}");
}

#[test]
fn a_reader_refuses_writes() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("x.raw");
    fs::write(&raw, [1; 4096]).unwrap();
    let export = QsdExport::open(ImageSpec::read_only(&raw, DiskFormat::Raw), dir.path()).unwrap();
    assert_eq!(export.write_at(0, &[2; 512]).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    assert!(export.zero_at(0, 512).is_err());
    assert_eq!(fs::read(&raw).unwrap(), [1; 4096]);
}

#[test]
fn an_export_outlives_the_thread_that_opened_it() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("x.raw");
    fs::write(&raw, [1; 4096]).unwrap();
    let spec = ImageSpec::read_only(&raw, DiskFormat::Raw);
    let export = std::thread::scope(|scope| scope.spawn(|| QsdExport::open(spec, dir.path())).join());
    let export = export.unwrap().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let mut buf = [0; 4096];
    export.read_at(0, &mut buf).unwrap();
    assert_eq!(buf, [1; 4096]);
}

fn daemon_pid(runtime: &Path) -> Option<String> {
    let dir = fs::read_dir(runtime)
        .ok()?
        .flatten()
        .find(|e| e.file_name().to_string_lossy().starts_with("qsd-"))?;
    let pid = fs::read_to_string(dir.path().join("pid")).ok()?;
    Some(pid.trim().to_owned()).filter(|pid| !pid.is_empty())
}

fn kill(pid: &str) {
    let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_daemon_that_dies_is_an_error_and_no_zombie() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (image, runtime) = (dir.path().join("x.qcow2"), dir.path().join("run"));
    qemu_img(&["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "64M"]).unwrap();
    let export = QsdExport::open(writable(&image, DiskFormat::Qcow2, None), &runtime).unwrap();
    export.write_at(0, &[1; 4096]).unwrap();
    let pid = daemon_pid(&runtime).unwrap();
    kill(&pid);
    std::thread::sleep(Duration::from_millis(100));
    let failed = (0..100).any(|at| export.write_at(at * 4096, &[1; 4096]).is_err());
    assert!(failed && export.flush().is_err() && export.read_at(0, &mut [0; 512]).is_err());
    drop(export);
    assert!(!Path::new("/proc").join(pid).exists());
}

/// Runs this test program again as the daemon that is killed.
#[test]
fn a_daemon_does_not_outlive_a_killed_parent() {
    let holder = std::env::var_os("VBR_TEST_HOLDER").map(std::path::PathBuf::from);
    if let Some(dir) = holder {
        let spec = ImageSpec::read_only(dir.join("x.raw"), DiskFormat::Raw);
        let _export = QsdExport::open(spec, &dir.join("run")).unwrap();
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("x.raw"), [1; 4096]).unwrap();
    let mut parent = std::process::Command::new(std::env::current_exe().unwrap());
    parent.args(["--exact", "nbd::tests::a_daemon_does_not_outlive_a_killed_parent"]);
    let parent = parent.env("VBR_TEST_HOLDER", dir.path()).stdout(std::process::Stdio::null());
    let mut parent = parent.spawn().unwrap();
    let within = |what: &dyn Fn() -> bool| {
        (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            what()
        })
    };
    assert!(within(&|| daemon_pid(&dir.path().join("run")).is_some()));
    let pid = daemon_pid(&dir.path().join("run")).unwrap();
    kill(&parent.id().to_string());
    parent.wait().unwrap();
    // Whoever adopted it may leave it a zombie: it runs no more, that is what counts.
    let command_line = Path::new("/proc").join(pid).join("cmdline");
    assert!(within(&|| fs::read(&command_line).unwrap_or_default().is_empty()));
}

#[test]
#[ignore = "a measurement"]
fn throughput() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big.raw");
    let file = fs::File::create(&path).unwrap();
    let data = noise(1 << 20, 4);
    for at in 0..1024u64 {
        file.write_all_at(&data, at << 20).unwrap();
    }
    let export = QsdExport::open(ImageSpec::read_only(&path, DiskFormat::Raw), dir.path()).unwrap();
    for (threads, step) in [(1u64, 64usize << 10), (1, 1 << 20), (1, 4 << 20), (2, 1 << 20), (4, 1 << 20)] {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let export = &export;
                scope.spawn(move || {
                    let mut buf = vec![0; step];
                    let part = (1u64 << 30) / threads;
                    for at in (thread * part..(thread + 1) * part).step_by(step) {
                        export.read_at(at, &mut buf).unwrap();
                    }
                });
            }
        });
        println!(
            "{threads} threads, {} KiB a call: {:.0} MB/s",
            step >> 10,
            1073.7 / begun.elapsed().as_secs_f64()
        );
    }
}
