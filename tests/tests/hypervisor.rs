//! VMs that run: their disks are read from qemu while it writes, and what changed is known without reading it again.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vbr_api::{Firmware, RestorePoint, Session};
use vbr_tests::disk::{self, MIB};
use vbr_tests::process::run;
use vbr_tests::vm::{Guest, Vm, VmDisk};
use vbr_tests::world::{World, WorldSpec};

/// A VM with a qcow2 and a raw disk, what its disks hold, and a job over it.
struct Live {
    world: World,
    vm: Vm,
    /// Raw images of what the guest has written.
    held: Vec<PathBuf>,
}

const QCOW2: u64 = 192 * MIB;
const RAW: u64 = 128 * MIB;

impl Live {
    fn new() -> Result<Self> {
        let world = World::paired(&WorldSpec::default())?;
        let (system, data) = (world.path("system.qcow2"), world.path("data.raw"));
        let held = vec![world.path("system.held"), world.path("data.held")];
        disk::mixed(&held[0], QCOW2 / 2, 5)?;
        disk::set_len(&held[0], QCOW2)?;
        disk::mixed(&held[1], RAW / 4, 6)?;
        disk::set_len(&held[1], RAW)?;
        disk::to_qcow2(&held[0], &system)?;
        disk::copy(&held[1], &data)?;
        let disks = [VmDisk { path: system, format: "qcow2" }, VmDisk { path: data, format: "raw" }];
        let directory = world.path("vms");
        let vm = Vm::start(&directory, "web", &disks)?;
        let directory = directory.display().to_string();
        world.source.ok(&["host", "add", "lab", "--driver", "qemu", "--directory", &directory])?;
        world.source.ok(&["job", "create", "web", "--vm", "lab/web", "--target", "dr", "--keep", "14"])?;
        Ok(Self { world, vm, held })
    }

    /// The guest writes.
    fn write(&self, disk: usize, pattern: u8, offset: u64, len: u64) -> Result<()> {
        self.vm.write(disk, pattern, offset, len)?;
        let file = std::fs::File::options().write(true).open(&self.held[disk])?;
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![pattern; len as usize], offset)?;
        Ok(())
    }

    fn run(&self) -> Result<Session> {
        let session = self.world.run("web")?;
        ensure!(self.vm.is_running()?, "the guest was left standing");
        let nodes = self.vm.order("query-named-block-nodes", &serde_json::json!({ "flat": true }))?;
        let ours = |node: &Value| node["node-name"].as_str().is_some_and(|name| name.starts_with("vbr-"));
        ensure!(!nodes.as_array().context("no nodes")?.iter().any(ours), "left in the VM: {nodes}");
        Ok(session)
    }

    fn prove(&self) -> Result<()> {
        let held: Vec<&Path> = self.held.iter().map(PathBuf::as_path).collect();
        self.world.prove_latest("web", &held)
    }
}

#[test]
fn increments_read_what_was_written_and_nothing_else() -> Result<()> {
    let mut live = Live::new()?;
    let vms: vbr_api::List<vbr_api::Vm> = live.world.source.json(&["vm", "list", "--host", "lab"])?;
    ensure!(vms.items.len() == 1 && vms.items[0].virtual_bytes == Some(QCOW2 + RAW), "{vms:?}");
    let full = live.run()?;
    ensure!(full.mode == "full" && !full.tracked && full.transport_mode == "network", "{full:?}");
    ensure!(
        full.disks.iter().all(|disk| disk.snapshot == "fleece") && full.consistent == Some(true),
        "{full:?}"
    );
    live.prove()?;
    for round in 1..=3u8 {
        live.write(0, 100 + round, u64::from(round) * 9 * MIB, MIB)?;
        live.write(1, 200 + round, 70 * MIB + u64::from(round) * 65_536, 4096)?;
        let session = live.run()?;
        ensure!(session.tracked && session.full_read_reason.is_none(), "round {round}: {session:?}");
        // 16 chunks and one.
        ensure!(session.bytes.read == 17 * 65_536, "round {round} read {} bytes", session.bytes.read);
        live.prove()?;
    }
    let idle = live.run()?;
    ensure!(idle.tracked && idle.bytes.read == 0, "{idle:?}");

    // The VM is switched off in order: qcow2 keeps its record, raw has none, and so the raw disk alone is read.
    live.vm.quit()?;
    let off = live.world.source.ctl(&["job", "run", "web", "--wait"])?;
    let said = String::from_utf8_lossy(&off.stderr).into_owned();
    ensure!(off.status.code() == Some(1) && said.contains("start the VM"), "{off:?}");
    live.vm.boot()?;
    live.write(0, 7, 30 * MIB, MIB)?;
    live.write(1, 8, 100 * MIB, MIB)?;
    let session = live.run()?;
    let why = session.full_read_reason.clone().context("nothing says why")?;
    ensure!(!session.tracked && why.contains("data.raw") && why.contains("no record"), "{why}");
    ensure!(session.disks[0].read_bytes == MIB, "{:?}", session.disks);
    ensure!(session.disks[1].read_bytes > 16 * MIB, "{:?}", session.disks);
    live.prove()?;

    // It is killed: no record is left, and that is said.
    live.write(0, 9, 50 * MIB, MIB)?;
    live.vm.kill()?;
    live.vm.boot()?;
    let session = live.run()?;
    ensure!(!session.tracked && session.disks[0].read_bytes > 64 * MIB, "{session:?}");
    ensure!(session.bytes.changed == MIB, "it was compared, not sent: {:?}", session.bytes);
    live.prove()?;

    // Without one of its disks it is the same VM, read the same way.
    let create = ["job", "create", "system", "--vm", "lab/web", "--target", "dr", "--exclude"];
    let unknown = live.world.source.fails(&[&create[..], &["swap.raw"]].concat(), 2)?;
    ensure!(unknown.contains("swap.raw"), "{unknown}");
    live.world.source.ok(&[&create[..], &["data.raw"]].concat())?;
    let session = live.world.run("system")?;
    ensure!(session.disks.len() == 1 && session.disks[0].snapshot == "fleece", "{:?}", session.disks);
    live.world.prove_latest("system", &[&live.held[0]])
}

/// The disks of a VM change places: each has a record of its own changes, and the other's restore point.
#[test]
fn disks_that_change_places_are_compared_whole() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let (vms, images) = (world.path("vms"), [world.path("a.qcow2"), world.path("b.qcow2")]);
    for (seed, image) in images.iter().enumerate() {
        let raw = world.path("fresh.raw");
        disk::random(&raw, 24 * MIB, seed as u64)?;
        disk::to_qcow2(&raw, image)?;
    }
    let disks = images.map(|path| VmDisk { path, format: "qcow2" });
    let mut vm = Vm::start(&vms, "web", &disks)?;
    let directory = vms.display().to_string();
    world.source.ok(&["host", "add", "lab", "--driver", "qemu", "--directory", &directory])?;
    world.source.ok(&["job", "create", "web", "--vm", "lab/web", "--target", "dr", "--keep", "14"])?;
    world.run("web")?;
    ensure!(world.run("web")?.tracked, "qcow2 has records");
    vm.quit()?;
    let [a, b] = disks;
    let vm = Vm::start(&vms, "web", &[b.clone(), a.clone()])?;
    let session = world.run("web")?;
    let why = session.full_read_reason.clone().unwrap_or_default();
    ensure!(!session.tracked && why.contains("the same disk"), "{session:?}");
    drop(vm);
    let expected = [&b, &a].map(|disk| -> Result<PathBuf> {
        let raw = disk.path.with_extension("raw");
        run(
            "qemu-img",
            ["convert", "-O", "raw", &disk.path.display().to_string(), &raw.display().to_string()],
        )?;
        Ok(raw)
    });
    let [first, second] = expected;
    world.prove_latest("web", &[&first?, &second?])
}

#[test]
fn a_restart_of_vbrd_goes_on_with_the_moment_that_the_vm_holds() -> Result<()> {
    let live = Live::new()?;
    live.run()?;
    for at in 0..48 {
        live.write(0, at as u8 | 1, at * 2 * MIB, MIB)?;
    }
    let moment = live.world.keep(&live.held[0], "moment")?;
    let data = live.world.keep(&live.held[1], "moment")?;
    // Slow enough to be cut in the middle.
    live.world.source.ok(&["job", "edit", "web", "--rate", "64kbit"])?;
    let begun = live.world.run_in_background("web")?;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let session: Session = live.world.source.json(&["session", "show", &begun.session])?;
        if session.bytes.changed > 0 {
            break;
        }
        ensure!(std::time::Instant::now() < end, "it does not begin: {session:?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    live.world.source.kill()?;
    // The guest writes on meanwhile, and gets another card; the moment stays.
    live.write(0, 250, 0, 8 * MIB)?;
    live.vm.order("device_add", &serde_json::json!({ "driver": "e1000", "id": "late", "bus": "hp" }))?;
    live.world.source.start()?;
    live.world.source.ok(&["job", "edit", "web", "--rate", "none"])?;
    let session = live.world.wait("web")?;
    ensure!(session.session == begun.session && session.resumed > 0, "{session:?}");
    live.world.prove_latest("web", &[&moment, &data])?;
    let cards = || -> Result<usize> {
        let point: RestorePoint = live.world.target.json(&["restore-point", "show", "web@latest"])?;
        Ok(point.vm.context("no configuration")?.nics.len())
    };
    ensure!(cards()? == 0, "the card came after the moment");
    // And the next one knows what was written since.
    let next = live.run()?;
    ensure!(next.tracked && next.bytes.read == 8 * MIB, "{next:?}");
    ensure!(next.vm_changes.len() == 1 && cards()? == 1, "{next:?}");
    live.prove()
}

/// What the VM is besides its disks is part of its restore points, and what changed in it is told at both sites.
#[test]
fn the_configuration_of_a_vm_travels_with_its_moment() -> Result<()> {
    let mut live = Live::new()?;
    let point = |live: &Live| -> Result<RestorePoint> {
        live.world.target.json(&["restore-point", "show", "web@latest"])
    };
    let first = live.run()?;
    ensure!(first.vm_changes.is_empty(), "{first:?}");
    let shown = point(&live)?;
    let vm = shown.vm.clone().context("no configuration")?;
    ensure!((vm.cpus, vm.memory_bytes, vm.machine.as_str()) == (1, 192 * MIB, "q35"), "{vm:?}");
    ensure!((vm.firmware, vm.source.as_str(), vm.nics.len()) == (Firmware::Bios, "qemu", 0), "{vm:?}");
    ensure!(vm.disks.iter().map(|disk| disk.bus.as_str()).eq(["virtio", "virtio"]), "{vm:?}");
    ensure!(shown.vm_changes.is_empty(), "{shown:?}");

    live.vm.quit()?;
    let card = "virtio-net-pci,netdev=n0,mac=52:54:00:ab:cd:ef";
    live.vm.give(&["-m", "256", "-smp", "2", "-netdev", "user,id=n0", "-device", card]);
    live.vm.boot()?;
    live.write(0, 9, 0, MIB)?;
    let second = live.run()?;
    let expected = [
        "processors: 1 -> 2",
        "memory: 192 MiB -> 256 MiB",
        "network card 52:54:00:ab:cd:ef added (virtio-net-pci, network user)",
    ];
    ensure!(second.vm_changes == expected && second.warnings.is_empty(), "{second:?}");
    let shown = point(&live)?;
    ensure!(shown.vm_changes == expected, "{shown:?}");
    let text = live.world.target.ok(&["restore-point", "show", "web@latest"])?;
    for words in ["2 processors, 256.0 MiB of memory, q35, bios", "192 MiB -> 256 MiB", "52:54:00:ab:cd:ef"] {
        ensure!(text.contains(words), "{words:?} is not in\n{text}");
    }
    let log = live.world.source.ok(&["job", "log", "web"])?;
    ensure!(log.contains("processors: 1 -> 2"), "{log}");
    ensure!(
        live.run()?.vm_changes.is_empty() && point(&live)?.vm_changes.is_empty(),
        "nothing changed since"
    );

    // A target that does not know of it goes on without.
    live.world.target.stop()?;
    live.world.target.set_environment(&[("VBR_PROTOCOL", Path::new("1:31"))]);
    live.world.target.start()?;
    live.world.wait_connected(std::time::Duration::from_secs(40))?;
    live.write(1, 9, 0, MIB)?;
    live.run()?;
    ensure!(point(&live)?.vm.is_none());
    live.prove()
}

#[test]
fn a_host_that_cannot_be_asked_says_what_to_do() -> Result<()> {
    let world = World::start(&WorldSpec::default())?;
    let bare = world.source.ctl(&["host", "add", "lab", "--driver", "qemu"])?;
    let said = String::from_utf8_lossy(&bare.stderr).into_owned();
    ensure!(bare.status.code() == Some(2) && said.contains("NAME.qmp"), "{bare:?}");
    let directory = world.path("vms");
    std::fs::create_dir_all(&directory)?;
    let words = directory.display().to_string();
    world.source.ok(&["host", "add", "lab", "--driver", "qemu", "--directory", &words])?;
    // A socket of something else.
    let _listener = std::os::unix::net::UnixListener::bind(directory.join("odd.qmp"))?;
    run("chmod", ["0666", &directory.join("odd.qmp").display().to_string()])?;
    let vms: vbr_api::List<vbr_api::Vm> = world.source.json(&["vm", "list", "--host", "lab"])?;
    ensure!(vms.items.len() == 1 && vms.items[0].virtual_bytes.is_none(), "{vms:?}");
    Ok(())
}

/// A guest writes files and makes each durable before the next; it is never told that it is being copied. Whatever was durable
/// before a session began is in its restore point, and nothing there is torn.
#[test]
fn restore_points_of_a_guest_that_never_stops_writing() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let (raw, image, vms) = (world.path("fresh.raw"), world.path("guest.qcow2"), world.path("vms"));
    disk::set_len(&raw, 512 * MIB)?;
    run("mkfs.ext4", ["-q", "-F", &raw.display().to_string()])?;
    disk::to_qcow2(&raw, &image)?;
    let disks = [VmDisk { path: image, format: "qcow2" }];
    let mut vm = Vm::with_guest(&vms, "web", &disks, Guest::Writes)?;
    let directory = vms.display().to_string();
    world.source.ok(&["host", "add", "lab", "--driver", "qemu", "--directory", &directory])?;
    world.source.ok(&["job", "create", "web", "--vm", "lab/web", "--target", "dr", "--keep", "14"])?;
    let mut points = Vec::new();
    let mut durable = 0;
    for round in 0..4 {
        // It has written since the last session.
        while vm.wrote()? < durable + 10 {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        durable = vm.wrote()?;
        let session = world.run("web")?;
        ensure!(session.tracked == (round > 0) && session.consistent == Some(true), "{session:?}");
        if round > 0 {
            ensure!(session.bytes.read < 64 * MIB, "read {} bytes for some files", session.bytes.read);
        }
        points.push((session.restore_point.context("no restore point")?, durable));
    }
    let after = vm.wrote()?;
    ensure!(
        vm.wait_for("more", |line| line
            .strip_prefix("GUEST WROTE ")?
            .parse()
            .ok()
            .filter(|n: &u64| *n > after))?
            > after
    );
    vm.kill()?;
    let log = world.source.log();
    let pauses: Vec<&str> =
        log.split("pause_ms=").skip(1).filter_map(|rest| rest.split_whitespace().next()).collect();
    ensure!(pauses.len() == 4, "each snapshot tells how long the guest stood still: {pauses:?}");
    println!("the guest stood still for {} ms", pauses.join(", "));
    for (point, durable) in [&points[0], &points[3]] {
        let out = world.path(&format!("{point}.raw"));
        let name = format!("web@{point}");
        world.target.ok(&["restore-point", "verify", &name])?;
        world.target.ok(&["restore-point", "export", &name, "--disk", "0", &out.display().to_string()])?;
        let disks = [VmDisk { path: out, format: "raw" }];
        let found = Vm::with_guest(&world.path("there"), point, &disks, Guest::Checks)?.checked()?;
        ensure!(found >= *durable, "{name} has {found} files, {durable} were durable when its session began");
    }
    Ok(())
}
