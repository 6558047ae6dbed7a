//! VMs of libvirt: a real libvirtd, a VM with two disks, checkpoints, and vbrds that are killed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vbr_api::{List, Session, SessionState, Vm};
use vbr_tests::disk::{self, MIB};
use vbr_tests::libvirtd::{Libvirtd, is_there};
use vbr_tests::mount::{FsKind, LoopFs};
use vbr_tests::process::skip_unless;
use vbr_tests::vm::VmDisk;
use vbr_tests::work::WorkDir;
use vbr_tests::world::{World, WorldSpec};

const SYSTEM: u64 = 96 * MIB;
const DATA: u64 = 64 * MIB;
/// Takes some eight seconds at 128 kbit/s: a session is cut in the middle of that.
const CUT: u64 = 128 * 1024;

/// A VM with two qcow2 disks, what they hold, and a job over it.
struct Live {
    libvirt: Libvirtd,
    world: World,
    held: [PathBuf; 2],
}

impl Live {
    fn new(spec: &WorldSpec, scratch: Option<&Path>) -> Result<Self> {
        let world = World::paired(spec)?;
        let held = [world.path("system.held"), world.path("data.held")];
        disk::mixed(&held[0], SYSTEM / 2, 41)?;
        disk::set_len(&held[0], SYSTEM)?;
        disk::mixed(&held[1], DATA / 2, 42)?;
        disk::set_len(&held[1], DATA)?;
        let images = [world.path("system.qcow2"), world.path("data.qcow2")];
        for (held, image) in held.iter().zip(&images) {
            disk::to_qcow2(held, image)?;
        }
        let disks = images.map(|path| VmDisk { path, format: "qcow2" });
        let libvirt = Libvirtd::start(&world.path("lv"), "web", &disks)?;
        let scratch = scratch.map_or_else(|| world.path("scratch"), Path::to_path_buf);
        std::fs::create_dir_all(&scratch)?;
        let (uri, scratch) = (libvirt.uri(), scratch.display().to_string());
        let order = ["host", "add", "kvm1", "--driver", "libvirt", "--uri", &uri, "--directory", &scratch];
        world.source.ok(&order)?;
        world.source.ok(&["job", "create", "web", "--vm", "kvm1/web", "--target", "dr", "--keep", "14"])?;
        Ok(Self { libvirt, world, held })
    }

    fn write(&self, disk: usize, pattern: u8, offset: u64, len: u64) -> Result<()> {
        self.libvirt.write(disk, pattern, offset, len)?;
        let file = std::fs::File::options().write(true).open(&self.held[disk])?;
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![pattern; len as usize], offset)?;
        Ok(())
    }

    /// The guest writes what takes long to send.
    fn write_random(&self, disk: usize, seed: u64, offset: u64, len: u64) -> Result<()> {
        let content = self.world.path("content");
        disk::random(&content, len, seed)?;
        self.libvirt.write_file(disk, &content, offset, len)?;
        disk::write_random(&self.held[disk], offset, len, seed)
    }

    fn run(&self) -> Result<Session> {
        let session = self.world.run("web")?;
        self.nothing_left(&session.session)?;
        Ok(session)
    }

    /// One checkpoint, that of the session, and no backup.
    fn nothing_left(&self, session: &str) -> Result<()> {
        ensure!(!self.libvirt.has_backup(), "a backup was left");
        let checkpoints = self.libvirt.checkpoints()?;
        ensure!(checkpoints == [format!("vbr-web-{session}")], "{checkpoints:?}");
        let left = self.world.path("scratch");
        let left: Vec<_> = std::fs::read_dir(left)?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(left.is_empty(), "left in the directory: {left:?}");
        Ok(())
    }

    fn prove(&self) -> Result<()> {
        self.world.prove_latest("web", &[&self.held[0], &self.held[1]])
    }

    /// Starts a session that takes long, and waits until it has sent something.
    fn begin_at(&self, rate: &str) -> Result<Session> {
        self.world.source.ok(&["job", "edit", "web", "--rate", rate])?;
        let begun = self.world.run_in_background("web")?;
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let seen: Session = self.world.source.json(&["session", "show", &begun.session])?;
            if seen.bytes.changed > 0 {
                return Ok(seen);
            }
            ensure!(Instant::now() < end && !seen.state.is_over(), "it does not begin: {seen:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn cannot_run() -> bool {
    skip_unless(is_there(), "libvirt", "it needs root and libvirtd")
}

#[test]
fn checkpoints_say_what_to_read() -> Result<()> {
    if cannot_run() {
        return Ok(());
    }
    let live = Live::new(&WorldSpec::default(), None)?;
    let vms: List<Vm> = live.world.source.json(&["vm", "list", "--host", "kvm1"])?;
    ensure!(vms.items.len() == 1 && vms.items[0].virtual_bytes == Some(SYSTEM + DATA), "{vms:?}");
    let full = live.run()?;
    ensure!(!full.tracked && full.transport_mode == "network" && full.consistent == Some(true), "{full:?}");
    ensure!(full.disks.iter().all(|disk| disk.snapshot == "fleece"), "{full:?}");
    live.prove()?;
    for round in 1..=2u8 {
        live.write(0, 100 + round, u64::from(round) * 9 * MIB, MIB)?;
        live.write(1, 200 + round, 40 * MIB + u64::from(round) * 65_536, 4096)?;
        let session = live.run()?;
        ensure!(session.tracked && session.full_read_reason.is_none(), "round {round}: {session:?}");
        // 16 chunks and one.
        ensure!(session.bytes.read == 17 * 65_536, "round {round} read {} bytes", session.bytes.read);
        live.prove()?;
    }
    // Switched off, it is read from its files; on again, it has no record of that session.
    live.libvirt.quit()?;
    let off = live.world.run("web")?;
    ensure!(off.disks.iter().all(|disk| disk.snapshot != "fleece") && !off.tracked, "{off:?}");
    live.prove()?;
    live.libvirt.boot()?;
    live.write(0, 7, 30 * MIB, MIB)?;
    let on = live.run()?;
    let why = on.full_read_reason.clone().unwrap_or_default();
    ensure!(!on.tracked && why.contains("no record") && on.bytes.changed == MIB, "{on:?}");
    live.prove()?;
    // Killed, it has lost its records: they are not believed, and new ones are begun.
    live.write(1, 9, 50 * MIB, MIB)?;
    live.libvirt.crash()?;
    live.libvirt.boot()?;
    let crashed = live.run()?;
    ensure!(!crashed.tracked && crashed.bytes.changed == MIB, "{crashed:?}");
    live.prove()?;
    let again = live.run()?;
    ensure!(again.tracked && again.bytes.read == 0, "{again:?}");
    Ok(())
}

#[test]
fn a_killed_vbrd_takes_the_moment_up_or_ends_it() -> Result<()> {
    if cannot_run() {
        return Ok(());
    }
    let live = Live::new(&WorldSpec::default(), None)?;
    live.run()?;
    live.write_random(0, 51, 4 * MIB, CUT)?;
    let moment = [live.world.keep(&live.held[0], "moment")?, live.world.keep(&live.held[1], "moment")?];
    let begun = live.begin_at("128kbit")?;
    live.world.source.kill()?;
    ensure!(live.libvirt.has_backup(), "it goes on without a vbrd");
    // The guest writes on; the moment stays.
    live.write(0, 250, 0, 8 * MIB)?;
    live.world.source.start()?;
    live.world.source.ok(&["job", "edit", "web", "--rate", "none"])?;
    let session = live.world.wait("web")?;
    ensure!(session.session == begun.session && session.resumed > 0, "{session:?}");
    live.world.prove_latest("web", &[&moment[0], &moment[1]])?;
    let next = live.run()?;
    ensure!(next.tracked && next.bytes.read == 8 * MIB, "{next:?}");
    live.prove()?;

    // Killed again, and the moment is gone when it is back: the same session takes another one.
    live.write_random(0, 52, 20 * MIB, CUT)?;
    let begun = live.begin_at("128kbit")?;
    live.world.source.kill()?;
    live.libvirt.virsh(&["domjobabort", "web"])?;
    live.write(1, 77, 3 * MIB, MIB)?;
    live.world.source.start()?;
    live.world.source.ok(&["job", "edit", "web", "--rate", "none"])?;
    let session = live.world.wait("web")?;
    ensure!(session.session == begun.session && session.tracked, "{session:?}");
    live.nothing_left(&session.session)?;
    live.prove()?;

    // A session that is cancelled leaves the record of the one before.
    live.write_random(0, 53, 60 * MIB, CUT)?;
    let begun = live.begin_at("128kbit")?;
    live.world.source.ok(&["session", "cancel", &begun.session])?;
    let over = live.world.wait_over("web")?;
    ensure!(over.state == SessionState::Cancelled, "{over:?}");
    live.nothing_left(&session.session)?;
    live.world.source.ok(&["job", "edit", "web", "--rate", "none"])?;
    let session = live.run()?;
    ensure!(session.tracked && session.bytes.read == CUT, "{session:?}");
    live.prove()
}

/// What the guest overwrites fills the file system: the backup ends, and the guest goes on writing.
#[test]
fn a_guest_never_waits_for_room() -> Result<()> {
    if cannot_run() {
        return Ok(());
    }
    let dir = WorkDir::new()?;
    let room = LoopFs::create(dir.path(), "room", FsKind::Ext4, 100 * MIB)?;
    let live = Live::new(&WorldSpec::default(), Some(room.path()))?;
    live.world.run("web")?;
    live.write_random(1, 61, 0, 32 * MIB)?;
    let begun = live.begin_at("4Mbit")?;
    // More than there is room for.
    for at in 0..SYSTEM / MIB {
        live.write(0, at as u8 | 1, at * MIB, MIB)?;
    }
    let failed = live.world.wait_over_within("web", Duration::from_secs(90))?;
    let error = failed.error.clone().with_context(|| format!("no error: {failed:?}"))?;
    ensure!(failed.session == begun.session && error.code == "source_lost", "{error:?}");
    ensure!(live.libvirt.is_running()? && !live.libvirt.has_backup());
    Ok(())
}
