//! `restore-point export`: a file that is whole or absent.

use std::os::unix::fs::MetadataExt;

use crate::fake::{Answer, Fake, error, left_in, ok};
use crate::samples;

const LEN: u64 = 8 << 20;

fn record(offset: u64, data: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

fn end(len: u64) -> Vec<u8> {
    record(len, b"")
}

/// A disk with data at the start, across a chunk border, and at its end; gaps between.
fn disk() -> Vec<u8> {
    let mut disk = vec![0u8; LEN as usize];
    disk[..65_536].fill(1);
    disk[1_048_576..1_048_576 + 200_000].fill(2);
    disk[LEN as usize - 1] = 3;
    disk
}

fn pieces() -> Vec<Vec<u8>> {
    let disk = disk();
    let mut bytes = Vec::new();
    for (from, to) in [(0, 65_536), (1_048_576, 1_248_576), (LEN as usize - 1, LEN as usize)] {
        bytes.extend(record(from as u64, &disk[from..to]));
    }
    bytes.extend(end(LEN));
    // Cut where nothing ends.
    bytes.chunks(7_777).map(<[u8]>::to_vec).collect()
}

fn serving(stream: fn() -> Answer) -> Fake {
    Fake::start(move |request| {
        if request.line.contains("/export?point=branch%2Fweb%4020261122t190042z-3fa2&disk=0") {
            return stream();
        }
        if request.line.starts_with("GET /v1/restore-points/one?point=web%40latest") {
            return ok(samples::point(LEN));
        }
        error(404, "not_found")
    })
}

fn export(fake: &Fake, more: &[&str]) -> crate::fake::Run {
    fake.run(&[&["restore-point", "export", "web@latest", "--disk", "0", "out.raw"], more].concat())
}

#[test]
fn a_good_stream_becomes_a_sparse_file() {
    let fake = serving(|| Answer::Stream(pieces()));
    let run = export(&fake, &[]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.out.contains("8.0 MiB"), "{run:?}");
    assert!(std::fs::read(fake.path("out.raw")).unwrap() == disk());
    let stored = std::fs::metadata(fake.path("out.raw")).unwrap().blocks() * 512;
    assert!(stored < 1 << 20, "{stored} bytes stored");
    assert_eq!(left_in(fake.dir.path()), ["out.raw"]);
}

#[test]
fn json_result() {
    let fake = serving(|| Answer::Stream(pieces()));
    let run = export(&fake, &["-o", "json"]);
    assert_eq!(run.json()["virtual_bytes"], LEN);
    assert_eq!(run.json()["data_bytes"], 65_536 + 200_000 + 1);
    assert_eq!(run.json()["point"], "branch/web@20261122t190042z-3fa2");
}

#[test]
fn bad_streams_leave_nothing() {
    let streams: [fn() -> Answer; 6] = [
        // Without its end record, though HTTP ended well.
        || Answer::Stream(vec![record(0, b"abc")]),
        || Answer::Stream(vec![]),
        // Broken off in the middle, and just before the last HTTP chunk.
        || Answer::Broken(vec![record(0, b"abc")]),
        || Answer::Broken(vec![record(0, b"abc"), end(LEN)]),
        // Another length than the restore point says.
        || Answer::Stream(vec![record(0, b"abc"), end(4096)]),
        // Bytes after the end.
        || Answer::Stream(vec![end(LEN), vec![0]]),
    ];
    for (number, stream) in streams.into_iter().enumerate() {
        let fake = serving(stream);
        let run = export(&fake, &[]);
        assert_eq!(run.code, 1, "{number}: {run:?}");
        assert_eq!(run.err.lines().count(), 3, "{number}: {run:?}");
        assert!(left_in(fake.dir.path()).is_empty(), "{number}");
    }
}

#[test]
fn a_failed_export_keeps_what_was_there() {
    let fake = serving(|| Answer::Stream(vec![record(0, b"abc")]));
    std::fs::write(fake.path("out.raw"), b"old").unwrap();
    let run = export(&fake, &[]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("--force"), "{run:?}");
    assert!(fake.seen.lock().unwrap().is_empty());
    assert_eq!(export(&fake, &["--force"]).code, 1);
    assert_eq!(std::fs::read(fake.path("out.raw")).unwrap(), b"old");
    assert_eq!(left_in(fake.dir.path()), ["out.raw"]);
}

#[test]
fn force_replaces() {
    let fake = serving(|| Answer::Stream(pieces()));
    std::fs::write(fake.path("out.raw"), b"old").unwrap();
    assert_eq!(export(&fake, &["--force"]).code, 0);
    assert!(std::fs::read(fake.path("out.raw")).unwrap() == disk());
}

#[test]
fn no_such_disk_or_point() {
    let fake = serving(|| Answer::Stream(pieces()));
    assert_eq!(fake.run(&["restore-point", "export", "web@latest", "--disk", "4", "x"]).code, 5);
    assert_eq!(fake.run(&["restore-point", "export", "no@latest", "--disk", "0", "x"]).code, 5);
    assert!(left_in(fake.dir.path()).is_empty());
}

#[test]
fn qcow2_goes_through_qemu_img() {
    let fake = serving(|| Answer::Stream(pieces()));
    let mut command = fake.command(&[
        "restore-point",
        "export",
        "web@latest",
        "--disk",
        "0",
        "out.qcow2",
        "--format",
        "qcow2",
    ]);
    let run = crate::fake::Run::of(command.env("PATH", fake.dir.path()).output().unwrap());
    assert_eq!(run.code, 1);
    assert!(run.err.contains("qemu-utils"), "{run:?}");
    assert!(left_in(fake.dir.path()).is_empty());

    if std::process::Command::new("qemu-img").arg("--version").output().is_err() {
        return;
    }
    let run =
        fake.run(&["restore-point", "export", "web@latest", "--disk", "0", "out.qcow2", "--format", "qcow2"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(left_in(fake.dir.path()), ["out.qcow2"]);
    let back = std::process::Command::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "raw", "out.qcow2", "back.raw"])
        .current_dir(fake.dir.path())
        .status();
    assert!(back.unwrap().success());
    assert!(std::fs::read(fake.path("back.raw")).unwrap() == disk());
}

#[test]
fn an_interrupted_export_leaves_nothing() {
    let fake = serving(|| {
        std::thread::sleep(std::time::Duration::from_secs(30));
        Answer::HangUp
    });
    let mut command = fake.command(&["restore-point", "export", "web@latest", "--disk", "0", "out.raw"]);
    let child =
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    crate::waiting::until(|| !left_in(fake.dir.path()).is_empty());
    crate::waiting::interrupt(&child);
    let run = crate::fake::Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, 130, "{run:?}");
    assert!(left_in(fake.dir.path()).is_empty());
}
