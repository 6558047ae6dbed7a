//! Files, listings and the registry: what needs no file system of its own.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use vbr_api::{DiskFormat, DiskSpec, Host};

use super::*;
use crate::error::Problem;
use crate::nbd::{ImageSpec, QsdExport, qemu_img, qemu_utils_missing};

pub(super) fn registry(state: &Path) -> HostRegistry {
    registry_with(state, Vec::new(), 0)
}

pub(super) fn registry_with(state: &Path, snapshot_dirs: Vec<PathBuf>, floor: u64) -> HostRegistry {
    fs::create_dir_all(state).unwrap();
    let config = HostConfig {
        state_dir: state.into(),
        runtime_dir: state.join("run"),
        snapshot_dirs,
        snapshot_floor_bytes: floor,
        local_directories: Vec::new(),
    };
    HostRegistry::open(config).unwrap()
}

pub(super) fn raw(path: &Path) -> DiskSpec {
    DiskSpec { path: path.to_str().unwrap().into(), format: DiskFormat::Raw }
}

pub(super) fn qcow2(path: &Path) -> DiskSpec {
    DiskSpec { format: DiskFormat::Qcow2, ..raw(path) }
}

pub(super) fn request(session: &str, disks: &[DiskSpec]) -> SnapshotRequest {
    SnapshotRequest { job: "web".into(), session: session.into(), vm: None, disks: disks.to_vec() }
}

pub(super) fn noise(len: usize, seed: u8) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut out);
    out
}

pub(super) fn content(disk: &DiskSnapshot) -> Vec<u8> {
    let mut all = vec![0; disk.reader.len() as usize];
    disk.reader.read_at(0, &mut all).unwrap();
    all
}

/// Stores a byte through a shared mapping.
pub(super) struct Mapping {
    at: *mut u8,
    len: usize,
}

impl Mapping {
    pub fn new(file: &File, len: usize) -> Self {
        use std::os::fd::AsRawFd;
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh shared mapping of a file that is at least `len` long; checked below.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), len, rights, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Self { at: at.cast(), len }
    }

    pub fn store(&self, at: usize, byte: u8) {
        assert!(at < self.len);
        // SAFETY: inside the mapping, which lives as long as self.
        unsafe { self.at.add(at).write_volatile(byte) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: what `new` mapped, once.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// Every way to change a file shows, after the read and at a restart.
pub(super) fn changes_are_detected(dir: &Path, state: &Path) {
    let path = dir.join("disk.raw");
    fs::write(&path, noise(1 << 20, 1)).unwrap();
    let disks = [raw(&path)];
    let mapped = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mapping = Mapping::new(&mapped, 1 << 20);
    mapping.store(0, 1);
    type Change<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let open = || OpenOptions::new().write(true).open(&path).unwrap();
    let changes: [Change<'_>; 5] = [
        ("write", Box::new(|| open().write_all_at(b"x", 5000).unwrap())),
        ("the same bytes", Box::new(|| open().write_all_at(b"x", 5000).unwrap())),
        ("mmap", Box::new(|| mapping.store(70_000, 9))),
        ("grow", Box::new(|| open().set_len((1 << 20) + 1).unwrap())),
        ("truncate", Box::new(|| open().set_len(1 << 20).unwrap())),
    ];
    for (name, change) in changes {
        let before = registry(state).get(LOCAL).unwrap().snapshot(&request("a1", &disks)).unwrap();
        assert_eq!(before.disks[0].kind, SnapshotKind::Watch);
        assert!(before.changed_during_read().unwrap().is_empty(), "{name}");
        let again =
            registry(state).get(LOCAL).unwrap().reopen(&request("a1", &disks), &before.identity).unwrap();
        let again = again.unwrap_or_else(|| panic!("{name}: not the same moment"));
        assert_eq!((&again.identity, again.taken_at), (&before.identity, before.taken_at));
        change();
        assert_eq!(before.changed_during_read().unwrap(), [disks[0].path.clone()], "{name}");
        assert_eq!(again.changed_during_read().unwrap(), [disks[0].path.clone()], "{name}");
        let reopened =
            registry(state).get(LOCAL).unwrap().reopen(&request("a1", &disks), &before.identity).unwrap();
        assert!(reopened.is_none(), "{name}");
    }
}

#[test]
fn a_change_of_a_watched_file_shows() {
    let dir = tempfile::tempdir().unwrap();
    let kind = rustix::fs::statfs(dir.path()).unwrap().f_type;
    if kind != 0xEF53 {
        eprintln!("skipped: the temporary directory is not on ext4");
        return;
    }
    changes_are_detected(dir.path(), &dir.path().join("state"));
    assert!(!dir.path().join(".vbr-snapshots").exists());
}

#[test]
fn a_file_that_is_written_all_the_time_is_never_called_still() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("busy.raw");
    fs::write(&path, [1; 4096]).unwrap();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let writer = {
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        std::thread::spawn(move || {
            while stopped.recv_timeout(Duration::from_millis(5)).is_err() {
                file.write_all_at(b"y", 0).unwrap();
            }
        })
    };
    let host = registry(&dir.path().join("state")).get(LOCAL).unwrap();
    let snapshot = host.snapshot(&request("a1", &[raw(&path)])).unwrap();
    stop.send(()).unwrap();
    writer.join().unwrap();
    if snapshot.disks[0].kind == SnapshotKind::Watch {
        assert_eq!(snapshot.changed_during_read().unwrap().len(), 1);
        assert!(snapshot.warnings[0].contains("being written"), "{:?}", snapshot.warnings);
        assert!(host.reopen(&request("a1", &[raw(&path)]), &snapshot.identity).unwrap().is_none());
    }
    snapshot.release(true);
}

#[test]
fn holes_are_not_data() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse.raw");
    let file = File::create(&path).unwrap();
    file.set_len(8 << 30).unwrap();
    file.write_all_at(&[7; 4096], 5 << 30).unwrap();
    let host = registry(&dir.path().join("state")).get(LOCAL).unwrap();
    let snapshot = host.snapshot(&request("a1", &[raw(&path)])).unwrap();
    let reader = &snapshot.disks[0].reader;
    let data = reader.next_data(0).unwrap().unwrap();
    assert!(data.offset <= 5 << 30 && data.end() > 5 << 30 && data.len < 1 << 20);
    assert_eq!(reader.next_data(data.end()).unwrap(), None);
    snapshot.release(true);
}

#[test]
fn what_is_not_a_disk_is_refused_with_a_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let host = registry(&dir.path().join("state")).get(LOCAL).unwrap();
    let empty = dir.path().join("empty.raw");
    fs::write(&empty, []).unwrap();
    let text = dir.path().join("text.qcow2");
    fs::write(&text, "no qcow2").unwrap();
    let refused =
        |spec: DiskSpec| -> Problem { host.snapshot(&request("a1", &[spec])).err().unwrap().into() };
    for (spec, code, words) in [
        (raw(&dir.path().join("none.raw")), "disk_missing", "does not exist"),
        (raw(dir.path()), "invalid", "is a directory"),
        (raw(Path::new("/dev/null")), "invalid", "character device"),
        (raw(&empty), "invalid", "is empty"),
        (raw(Path::new("disk.raw")), "invalid", "not an absolute path"),
        (qcow2(&text), if qemu_utils_missing().is_some() { "tool_missing" } else { "invalid" }, "raw"),
    ] {
        let problem = refused(spec);
        assert_eq!(problem.code, code, "{problem:?}");
        assert!(problem.why.contains(words) && !problem.next_step.is_empty(), "{problem:?}");
    }
    let job = SnapshotRequest { job: "../x".into(), ..request("a1", &[raw(&empty)]) };
    assert!(host.snapshot(&job).is_err());
    assert!(host.snapshot(&request("../x", &[raw(&empty)])).is_err());
    assert!(host.snapshot(&request("a1", &[])).is_err());
}

#[test]
fn unreadable_disks_are_not_allowed() {
    let error = HostError::io("/d", std::io::Error::from_raw_os_error(libc::EACCES));
    let problem = Problem::from(error);
    assert_eq!(problem.code, "not_allowed");
    assert!(problem.next_step.contains("read access"));
}

#[test]
fn a_watched_qcow2_reads_as_qemu_reads_it() {
    if let Some(why) = qemu_utils_missing() {
        eprintln!("skipped: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, image, back) =
        (dir.path().join("s.raw"), dir.path().join("d.qcow2"), dir.path().join("b.raw"));
    let mut data = noise(3 << 20, 4);
    data.resize(16 << 20, 0);
    fs::write(&source, &data).unwrap();
    let name = |path: &Path| path.to_str().unwrap().to_owned();
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "-c", &name(&source), &name(&image)]).unwrap();
    let host = registry(&dir.path().join("state")).get(LOCAL).unwrap();
    let snapshot = host.snapshot(&request("a1", &[qcow2(&image)])).unwrap();
    assert_eq!(snapshot.transport_mode, "network");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &name(&image), &name(&back)]).unwrap();
    assert!(content(&snapshot.disks[0]) == fs::read(&back).unwrap());
    let data = snapshot.disks[0].reader.next_data(0).unwrap().unwrap();
    assert_eq!((data.offset, data.len), (0, 3 << 20));
    assert_eq!(snapshot.disks[0].reader.next_data(3 << 20).unwrap(), None);
    assert!(snapshot.changed_during_read().unwrap().is_empty());
    snapshot.release(true);

    let spec = ImageSpec { writable: true, ..ImageSpec::read_only(&image, DiskFormat::Qcow2) };
    let running = QsdExport::open(spec, dir.path()).unwrap();
    match host.snapshot(&request("a2", &[qcow2(&image)])) {
        Err(error @ HostError::InUse { .. }) => {
            assert!(Problem::from(error).next_step.contains("shut the VM down"))
        }
        Err(error) => panic!("{error}"),
        Ok(snapshot) => assert_eq!(snapshot.disks[0].kind, SnapshotKind::Clone),
    }
    drop(running);
}

#[test]
fn directories_of_images_are_vms() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, len: usize| fs::write(dir.path().join(name), vec![0; len]).unwrap();
    for name in ["mail", ".hidden", "empty"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    put("web.img", 1000);
    put("db.raw", 2000);
    put("db.img", 3000);
    put("notes.txt", 1);
    put("broken.qcow2", 5);
    put("mail/root.img", 10);
    put("mail/data.raw", 20);
    put(".hidden/x.img", 1);
    let gone = dir.path().join("gone");
    fs::create_dir(&gone).unwrap();
    let host = Host {
        name: "vms".into(),
        driver: "disk".into(),
        directories: [dir.path(), &gone].map(|path| path.to_str().unwrap().to_owned()).into(),
        ..Host::default()
    };
    let registry = registry(&dir.path().join(".state"));
    registry.add(host).unwrap();
    fs::remove_dir(gone).unwrap();
    let source = registry.get("vms").unwrap();
    let list = source.list().unwrap();
    let names: Vec<_> = list.iter().map(|vm| (vm.name.as_str(), vm.virtual_bytes)).collect();
    let expected = [
        ("broken", None),
        ("db.img", Some(3000)),
        ("db.raw", Some(2000)),
        ("mail", Some(30)),
        ("web", Some(1000)),
    ];
    assert_eq!(names, expected);
    let mail = source.resolve("mail").unwrap();
    let files: Vec<_> = mail.iter().map(|disk| disk.path.rsplit('/').next().unwrap()).collect();
    assert_eq!(files, ["data.raw", "root.img"]);
    assert!(matches!(source.resolve("none"), Err(HostError::NoSuchVm { .. })));
}

#[test]
fn hosts_are_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let host = Host {
        name: "vms".into(),
        driver: "disk".into(),
        directories: vec![dir.path().to_str().unwrap().into()],
        ..Host::default()
    };
    let first = registry(&state);
    assert_eq!(first.list().iter().map(|host| host.name.as_str()).collect::<Vec<_>>(), [LOCAL]);
    assert!(first.add(host.clone()).unwrap().1);
    assert!(!first.add(host.clone()).unwrap().1);
    let other = Host { directories: vec![], ..host.clone() };
    assert!(matches!(first.add(other), Err(HostError::Conflict { .. })));
    for wrong in [
        Host { name: "A b".into(), ..host.clone() },
        Host { name: "x".into(), driver: "esx".into(), ..host.clone() },
        Host { name: "x".into(), directories: vec!["vms".into()], ..host.clone() },
        Host { name: "x".into(), directories: vec!["/nonexistent".into()], ..host.clone() },
        Host { name: "x".into(), uris: vec!["nbd://a/b".into()], ..host.clone() },
    ] {
        assert!(first.add(wrong).is_err());
    }
    let file = state.join("hosts.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let second = registry(&state);
    assert_eq!(second.show("vms").unwrap(), host);
    assert!(matches!(second.remove(LOCAL), Err(HostError::Conflict { .. })));
    assert!(matches!(second.remove("none"), Err(HostError::NoSuchHost { .. })));
    assert_eq!(second.remove("vms").unwrap(), host);
    assert_eq!(registry(&state).list().len(), 1);
    File::create(&file).unwrap().write_all(b"{ no json").unwrap();
    let config = HostConfig {
        state_dir: state.clone(),
        runtime_dir: state.clone(),
        snapshot_dirs: vec![],
        snapshot_floor_bytes: 0,
        local_directories: vec![],
    };
    let error = HostRegistry::open(config).err().unwrap();
    assert!(error.to_string().contains("hosts.json"), "{error}");
}

/// Its VMs are whoever is told of; it is in no file, and cannot be taken away or replaced.
#[test]
fn vms_that_this_site_started_are_a_host() {
    let dir = tempfile::tempdir().unwrap();
    // Longer than the kernel takes a socket's path.
    let deep = dir.path().join("x".repeat(120));
    fs::create_dir(&deep).unwrap();
    let monitor = deep.join("qmp");
    let known: Monitors = Arc::new(move || vec![("branch.web".to_owned(), monitor.clone())]);
    let hosts = registry(dir.path()).knowing_failovers(known.clone());
    let host = hosts.get(FAILOVER).unwrap();
    assert_eq!(
        (hosts.list().len(), host.driver(), host.list().unwrap()[0].name.as_str()),
        (2, "qemu", "branch.web")
    );
    let off = Problem::from(host.resolve("branch.web").err().unwrap());
    assert!(off.why.contains("off") && off.next_step.contains("failover start"), "{off:?}");
    assert_eq!(Problem::from(host.resolve("branch.mail").err().unwrap()).code, "invalid");
    assert_eq!(Problem::from(hosts.remove(FAILOVER).err().unwrap()).code, "conflict");
    let other = Host { name: FAILOVER.into(), driver: "disk".into(), ..Host::default() };
    assert_eq!(Problem::from(hosts.add(other).err().unwrap()).code, "conflict");
    let lab = Host { name: "lab".into(), driver: "disk".into(), ..Host::default() };
    hosts.add(lab).unwrap();
    let again = registry(dir.path()).knowing_failovers(known);
    assert_eq!(
        again.list().iter().map(|host| host.name.as_str()).collect::<Vec<_>>(),
        ["failover", "lab", "local"]
    );
}
