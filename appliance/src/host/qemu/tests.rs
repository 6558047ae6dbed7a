//! The driver against a real qemu. No guest: what a guest would write, qemu's own console writes through the device.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::host::{CloneConfig, SnapshotRequest};

const MIB: u64 = 1 << 20;
/// What qemu says.
const SAID: &str = "qemu.said";

/// A VM with a qcow2 disk of 64 MiB and a raw one of 48 MiB; killed when dropped.
struct Running {
    dir: TempDir,
    qemu: Child,
    host: QemuHost,
    /// A file system of its own for scratch images.
    small: Option<PathBuf>,
}

impl Running {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.qcow2"), dir.path().join("b.raw"));
        crate::nbd::qemu_img(&["create", "-q", "-f", "qcow2", a.to_str().unwrap(), "64M"]).unwrap();
        fs::File::create(&b).unwrap().set_len(48 * MIB).unwrap();
        let qemu = boot(dir.path());
        let clones = CloneStore::new(CloneConfig {
            directories: Vec::new(),
            state_dir: dir.path().join("snapshots"),
            floor_bytes: 0,
        });
        let directories = vec![dir.path().display().to_string()];
        let host = Host { name: "lab".into(), driver: "qemu".into(), directories, ..Host::default() };
        let host = QemuHost::new(host, Arc::new(clones), dir.path().join("run"));
        Self { dir, qemu, host, small: None }
    }

    fn request(&self, session: &str) -> SnapshotRequest {
        let disks = self.host.resolve("web").unwrap();
        SnapshotRequest { job: "web".into(), session: session.into(), vm: Some("web".into()), disks }
    }

    fn monitor(&self) -> Qmp {
        Qmp::connect(&self.dir.path().join("web.qmp")).unwrap()
    }

    /// As the guest does it; an error is what the guest would see.
    fn write(&self, device: &str, pattern: u8, at: &str, len: &str) {
        let said = || fs::read_to_string(self.dir.path().join(SAID)).unwrap();
        let before = said().len();
        let line = format!("qemu-io -d {device}/virtio-backend \"write -P {pattern} {at} {len}\"");
        let order = serde_json::json!({ "command-line": line });
        assert_eq!(self.monitor().execute("human-monitor-command", &order).unwrap(), "", "{line}");
        // qemu says it on its standard output.
        assert!(said()[before..].starts_with("wrote "), "{line}: {}", &said()[before..]);
    }

    fn nodes(&self) -> Vec<String> {
        let nodes =
            self.monitor().execute("query-named-block-nodes", &serde_json::json!({ "flat": true })).unwrap();
        let names =
            nodes.as_array().unwrap().iter().map(|node| node["node-name"].as_str().unwrap().to_owned());
        names.collect()
    }

    fn bitmaps(&self) -> Vec<Vec<Bitmap>> {
        snapshot::look(&mut self.monitor()).unwrap().into_iter().map(|disk| disk.bitmaps).collect()
    }
}

fn boot(dir: &Path) -> Child {
    let said = fs::File::options().create(true).append(true).open(dir.join(SAID)).unwrap();
    let qemu = Command::new("stdbuf")
        .current_dir(dir)
        .args(["-oL", "qemu-system-x86_64"])
        .args(["-machine", "q35,accel=tcg", "-m", "64", "-nodefaults", "-display", "none"])
        .args(["-qmp", "unix:web.qmp,server=on,wait=off"])
        .args(["-drive", "if=none,id=d0,file=a.qcow2,format=qcow2,discard=unmap"])
        .args(["-device", "virtio-blk-pci,drive=d0,id=disk0"])
        .args(["-blockdev", "driver=file,filename=b.raw,node-name=bf"])
        .args(["-blockdev", "driver=raw,file=bf,node-name=braw"])
        .args(["-device", "virtio-blk-pci,drive=braw,id=disk1,bootindex=2"])
        .args(["-smp", "3", "-netdev", "user,id=n0", "-nic", "none"])
        .args(["-device", "virtio-net-pci,netdev=n0,mac=52:54:00:AB:00:01", "-device", "e1000,id=second"])
        .stdin(Stdio::null())
        .stdout(said)
        .spawn()
        .expect("qemu-system-x86 is installed (make deps)");
    let deadline = Instant::now() + Duration::from_secs(20);
    while Qmp::connect(&dir.join("web.qmp")).is_err() {
        assert!(Instant::now() < deadline, "qemu does not come up");
        std::thread::sleep(Duration::from_millis(20));
    }
    qemu
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if let Some(small) = &self.small {
            let _ = Command::new("umount").arg("-l").arg(small).status();
        }
    }
}

/// Whether a range of a disk is all this byte.
fn holds(disk: &DiskSnapshot, at: u64, len: u64, byte: u8) -> bool {
    let mut buf = vec![!byte; len as usize];
    disk.reader.read_at(at, &mut buf).unwrap();
    buf.iter().all(|b| *b == byte)
}

fn runs(disk: &DiskSnapshot, session: &str) -> Option<Vec<(u64, u64)>> {
    let changes = disk.changes_since(session)?;
    Some(changes.iter().map(|extent| (extent.offset / MIB, extent.len / MIB)).collect())
}

#[test]
fn a_moment_stays_while_the_guest_writes_and_bitmaps_tell_what_changed() {
    let vm = Running::start();
    vm.write("disk0", 1, "0", "4M");
    vm.write("disk1", 2, "8M", "1M");
    assert_eq!(vm.host.list().unwrap()[0].virtual_bytes, Some(112 * MIB));
    let clean = vm.nodes();
    let first = vm.host.snapshot(&vm.request("s1")).unwrap();
    assert!(first.one_moment && first.transport_mode == "network");
    assert_eq!(runs(&first.disks[0], "s0"), None, "nobody recorded anything yet");
    vm.write("disk0", 9, "1M", "2M");
    vm.write("disk1", 9, "20M", "1M");
    assert!(holds(&first.disks[0], 0, 4 * MIB, 1) && holds(&first.disks[1], 8 * MIB, MIB, 2));
    assert!(holds(&first.disks[1], 20 * MIB, MIB, 0));
    let error = vm.host.snapshot(&vm.request("s9")).map(drop).unwrap_err();
    assert!(error.to_string().contains("another session has a snapshot"), "{error}");
    first.release(true);
    assert_eq!(vm.nodes().len(), clean.len(), "nothing of ours is left");

    // What was written while the first was read counts for the second.
    let second = vm.host.snapshot(&vm.request("s2")).unwrap();
    assert_eq!(runs(&second.disks[0], "s1"), Some(vec![(1, 2)]));
    assert_eq!(runs(&second.disks[1], "s1"), Some(vec![(20, 1)]));
    assert!(holds(&second.disks[0], MIB, 2 * MIB, 9) && holds(&second.disks[0], 3 * MIB, MIB, 1));
    vm.write("disk0", 7, "40M", "1M");
    // It comes to nothing: the record of before goes on, with what was written meanwhile.
    second.release(false);
    assert!(vm.bitmaps().iter().all(|all| all.len() == 1 && all[0].recording), "{:?}", vm.bitmaps());
    let third = vm.host.snapshot(&vm.request("s3")).unwrap();
    assert_eq!(runs(&third.disks[0], "s1"), Some(vec![(1, 2), (40, 1)]));
    third.release(true);
    let fourth = vm.host.snapshot(&vm.request("s4")).unwrap();
    assert_eq!(runs(&fourth.disks[0], "s1"), None, "a sealed session ends the records before it");
    assert_eq!(runs(&fourth.disks[0], "s3"), Some(Vec::new()));
    fourth.release(true);
}

#[test]
fn what_a_killed_vbrd_leaves_is_taken_up_again_or_removed() {
    let vm = Running::start();
    vm.write("disk0", 1, "0", "1M");
    vm.host.snapshot(&vm.request("s1")).unwrap().release(true);
    vm.write("disk0", 2, "0", "1M");
    let request = vm.request("s2");
    let snapshot = vm.host.snapshot(&request).unwrap();
    vm.write("disk0", 3, "0", "1M");
    vm.write("disk0", 3, "8M", "1M");
    let identity = snapshot.identity.clone();
    drop(snapshot); // As a restart does: the VM still holds the moment.
    let again = vm.host.reopen(&request, &identity).unwrap().expect("the same moment");
    assert_eq!(
        (again.identity.as_str(), runs(&again.disks[0], "s1")),
        (identity.as_str(), Some(vec![(0, 1)]))
    );
    assert!(holds(&again.disks[0], 0, MIB, 2));
    drop(again);
    assert!(vm.host.reopen(&vm.request("s3"), &identity).unwrap().is_none(), "it is of another session");
    // Another session finds it and clears up; the record goes on.
    let other = vm.host.snapshot(&vm.request("s3")).unwrap();
    assert!(holds(&other.disks[0], 0, MIB, 3));
    assert_eq!(runs(&other.disks[0], "s1"), Some(vec![(0, 1), (8, 1)]));
    other.release(true);
    assert!(vm.host.reopen(&request, &identity).unwrap().is_none(), "it is gone");
}

#[test]
fn a_vm_that_was_killed_has_no_record_and_one_that_ended_well_has() {
    let mut vm = Running::start();
    vm.host.snapshot(&vm.request("s1")).unwrap().release(true);
    vm.monitor().execute("quit", &serde_json::json!({})).unwrap();
    vm.qemu.wait().unwrap();
    let problem = crate::error::Problem::from(vm.host.resolve("web").unwrap_err());
    assert!(problem.code == "not_found" && problem.next_step.contains("start the VM"), "{problem}");
    vm.qemu = boot(vm.dir.path());
    vm.write("disk0", 4, "5M", "1M");
    let second = vm.host.snapshot(&vm.request("s2")).unwrap();
    assert_eq!(runs(&second.disks[0], "s1"), Some(vec![(5, 1)]), "qcow2 keeps the record");
    assert_eq!(runs(&second.disks[1], "s1"), None, "raw cannot");
    second.release(true);
    vm.write("disk0", 5, "6M", "1M");
    vm.qemu.kill().unwrap();
    vm.qemu.wait().unwrap();
    fs::remove_file(vm.dir.path().join("web.qmp")).unwrap();
    vm.qemu = boot(vm.dir.path());
    let third = vm.host.snapshot(&vm.request("s3")).unwrap();
    assert_eq!(runs(&third.disks[0], "s2"), None, "it was not written back");
    assert!(holds(&third.disks[0], 6 * MIB, MIB, 5));
    third.release(true);
}

/// The guest is not to suffer: where there is no room to copy aside, the snapshot ends.
#[test]
fn a_full_scratch_space_breaks_the_snapshot_and_not_the_guest() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a small file system needs root");
        return;
    }
    let mut vm = Running::start();
    let small = vm.dir.path().join("small");
    fs::create_dir(&small).unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(&small).status();
    assert!(mount.unwrap().success());
    vm.small = Some(small.clone());
    let clones = CloneStore::new(CloneConfig {
        directories: vec![small],
        state_dir: vm.dir.path().into(),
        floor_bytes: 0,
    });
    vm.host.clones = Arc::new(clones);
    vm.write("disk0", 1, "0", "32M");
    let request = vm.request("s1");
    let snapshot = vm.host.snapshot(&request).unwrap();
    assert!(holds(&snapshot.disks[0], 16 * MIB, MIB, 1));
    for at in ["0", "8M", "16M", "24M"] {
        vm.write("disk0", 2, at, "8M"); // Asserts that the guest sees no error.
    }
    let mut buf = vec![0; MIB as usize];
    let read = snapshot.disks[0].reader.read_at(28 * MIB, &mut buf);
    assert!(read.is_err(), "the moment is gone, and must not be read as if it were not");
    snapshot.release(false);
    let status = vm.monitor().execute("query-status", &serde_json::json!({})).unwrap();
    assert_eq!(status["running"], true);
}

#[test]
fn a_guest_that_stands_still_for_a_killed_vbrd_goes_on() {
    let vm = Running::start();
    let (notes, socket) = (vm.dir.path().join("notes"), vm.dir.path().join("web.qmp"));
    fs::create_dir(&notes).unwrap();
    drop(Standstill::begin(&notes, &socket).unwrap());
    vm.monitor().execute("stop", &serde_json::json!({})).unwrap();
    let running = || vm.monitor().execute("query-status", &serde_json::json!({})).unwrap()["running"] == true;
    assert!(!running());
    standstill::wake_guests(&notes);
    assert!(running());
    // Who was stopped by somebody else stays so.
    vm.monitor().execute("stop", &serde_json::json!({})).unwrap();
    standstill::wake_guests(&notes);
    assert!(!running() && fs::read_dir(&notes).unwrap().next().is_none());
    let snapshot = vm.host.snapshot(&vm.request("s1")).unwrap();
    assert!(!running(), "a snapshot does not start it either");
    snapshot.release(true);
}

/// A record that was stopped by nobody of ours, so that nobody knows what was written since, is none.
#[test]
fn a_record_with_a_gap_is_dropped() {
    let vm = Running::start();
    vm.host.snapshot(&vm.request("s1")).unwrap().release(true);
    let node = snapshot::look(&mut vm.monitor()).unwrap()[0].node.clone();
    let name = serde_json::json!({ "node": node, "name": Bitmap::name_of("web", "s1") });
    vm.monitor().execute("block-dirty-bitmap-disable", &name).unwrap();
    vm.write("disk0", 1, "0", "1M");
    let second = vm.host.snapshot(&vm.request("s2")).unwrap();
    assert_eq!(runs(&second.disks[0], "s1"), None);
    assert_eq!(runs(&second.disks[1], "s1"), Some(Vec::new()));
    second.release(true);
}

#[test]
fn what_the_vm_is_comes_with_its_moment() {
    let vm = Running::start();
    let request = vm.request("s1");
    let first = vm.host.snapshot(&request).unwrap();
    let config = first.config.clone().unwrap();
    assert_eq!((config.cpus, config.memory_bytes, config.machine.as_str()), (3, 64 << 20, "q35"));
    assert_eq!((config.firmware, config.source.as_str()), (vbr_api::Firmware::Bios, "qemu"));
    let disks: Vec<_> = config.disks.iter().map(|d| (d.disk, d.bus.as_str(), d.boot_index)).collect();
    assert_eq!(disks, [(0, "virtio", None), (1, "virtio", Some(2))]);
    let nics: Vec<_> = config.nics.iter().map(|nic| (nic.model.as_str(), nic.network.as_str())).collect();
    assert_eq!(nics.len(), 2, "{nics:?}");
    assert!(nics.contains(&("virtio-net-pci", "user")) && nics.contains(&("e1000", "")), "{nics:?}");
    assert!(config.nics.iter().any(|nic| nic.mac == "52:54:00:ab:00:01"), "{:?}", config.nics);
    assert_eq!(crate::vm_config::check(&config), Ok(()));
    // What it was then is known to whoever took it.
    let identity = first.identity.clone();
    drop(first);
    let again = vm.host.reopen(&request, &identity).unwrap().unwrap();
    assert_eq!(again.config, None);
    again.release(false);
}

/// A firmware in flash, and what it remembers, are no disks.
#[test]
fn a_uefi_machine_is_one_and_its_flash_is_no_disk() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in [("fw", 2 * MIB), ("vars", MIB), ("a", 4 * MIB), ("b", 4 * MIB), ("c", 4 * MIB)] {
        fs::File::create(dir.path().join(format!("{name}.raw"))).unwrap().set_len(bytes).unwrap();
    }
    let qemu = Command::new("qemu-system-x86_64")
        .current_dir(dir.path())
        .args(["-machine", "q35,accel=tcg", "-m", "64", "-nodefaults", "-display", "none", "-S"])
        .args(["-qmp", "unix:web.qmp,server=on,wait=off"])
        .args(["-drive", "if=pflash,unit=0,format=raw,file=fw.raw,readonly=on"])
        .args(["-drive", "if=pflash,unit=1,format=raw,file=vars.raw"])
        .args(["-device", "virtio-scsi-pci,id=sc0", "-drive", "if=none,id=a,format=raw,file=a.raw"])
        .args(["-device", "scsi-hd,drive=a,bus=sc0.0", "-drive", "if=none,id=b,format=raw,file=b.raw"])
        .args(["-device", "ide-hd,drive=b,bus=ide.0", "-device", "piix3-ide,id=old"])
        .args(["-drive", "if=none,id=c,format=raw,file=c.raw", "-device", "ide-hd,drive=c,bus=old.0"])
        .stdin(Stdio::null())
        .spawn()
        .expect("qemu-system-x86 is installed (make deps)");
    let _ended = Ended(qemu);
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut monitor = loop {
        match Qmp::connect(&dir.path().join("web.qmp")) {
            Ok(monitor) => break monitor,
            Err(error) => assert!(Instant::now() < deadline, "qemu does not come up: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let disks = snapshot::look(&mut monitor).unwrap();
    let config = config::read(&mut monitor, &disks).unwrap();
    assert_eq!(config.firmware, vbr_api::Firmware::Uefi);
    let buses: Vec<_> = config.disks.iter().map(|disk| disk.bus.as_str()).collect();
    assert_eq!(buses, ["scsi", "sata", "ide"]);
}

/// Killed when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
