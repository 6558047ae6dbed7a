//! The day the branch is gone: replicas are started, tried, given back and kept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vbr_api::{BootTest, Failover, ReplicaState, RestorePoint};
use vbr_tests::disk::{self, MIB};
use vbr_tests::vm::{Guest, Vm, VmDisk, guest_disk, said_last};
use vbr_tests::world::{World, WorldSpec};

/// Guests are emulated: no machine of ours can be relied on for KVM.
const TARGET: &str = "[failover]\naccelerator = \"tcg\"\n";
/// For an emulated guest to start and look through its files.
const BOOT: Duration = Duration::from_secs(240);

fn world() -> Result<World> {
    World::paired(&WorldSpec { target_toml: TARGET.into(), ..WorldSpec::default() })
}

/// A guest that writes at the branch, and the job that replicates it.
fn branch(world: &World) -> Result<Vm> {
    let (raw, image, vms) = (world.path("guest.raw"), world.path("guest.qcow2"), world.path("vms"));
    guest_disk(&raw, 192 * MIB)?;
    disk::to_qcow2(&raw, &image)?;
    let vm = Vm::with_guest(&vms, "web", &[VmDisk { path: image, format: "qcow2" }], Guest::Lives)?;
    let directory = vms.display().to_string();
    world.source.ok(&["host", "add", "lab", "--driver", "qemu", "--directory", &directory])?;
    world.source.ok(&["job", "create", "web", "--vm", "lab/web", "--target", "dr", "--keep", "14"])?;
    Ok(vm)
}

fn shown(world: &World) -> Result<Failover> {
    world.target.json(&["failover", "show", "web"])
}

fn console(failover: &Failover) -> Result<PathBuf> {
    Ok(Path::new(&failover.vm.as_ref().context("no VM")?.directory).join("console.log"))
}

/// How many files the guest of a failover found, all of them good and none missing.
fn found(failover: &Failover) -> Result<u64> {
    said_last(&console(failover)?, |line| line.strip_prefix("GUEST GOOD ")?.parse().ok())
}

/// The newest file that it has made durable since.
fn wrote(failover: &Failover, more_than: u64) -> Result<u64> {
    said_last(&console(failover)?, |line| {
        line.strip_prefix("GUEST WROTE ")?.parse().ok().filter(|n: &u64| *n > more_than)
    })
}

#[test]
fn the_branch_burns_and_the_vm_goes_on_here() -> Result<()> {
    let world = world()?;
    let mut vm = branch(&world)?;
    let mut points: Vec<(String, u64)> = Vec::new();
    for round in 0..4 {
        let durable = vm.wait_for("more", |line| {
            line.strip_prefix("GUEST WROTE ")?
                .parse()
                .ok()
                .filter(|n: &u64| *n > points.last().map_or(0, |p| p.1) + 5)
        })?;
        let session = world.run("web")?;
        ensure!(session.tracked == (round > 0) && session.consistent == Some(true), "{session:?}");
        points.push((session.restore_point.context("no restore point")?, durable));
    }
    vm.kill()?;
    let ready = shown(&world)?;
    ensure!(ready.state == ReplicaState::Ready && ready.vm.is_none(), "{ready:?}");

    // The newest.
    let newest: Failover =
        world.target.json_within(&["failover", "start", "web@latest", "--memory", "192MiB"], BOOT)?;
    let started = newest.vm.clone().context("no VM")?;
    ensure!(newest.state == ReplicaState::Failover && started.run_state == "running", "{newest:?}");
    ensure!(newest.point.as_ref() == Some(&points[3].0) && newest.generation == 1, "{newest:?}");
    println!("failover: qemu ran after {} ms", started.start_ms);
    ensure!(found(&newest)? >= points[3].1, "files are missing that were durable before the session");
    let beyond = wrote(&newest, points[3].1)?;
    // What is the VM now is not replicated into, and not taken away.
    let refused = world.source.ctl(&["job", "run", "web", "--wait"])?;
    ensure!(!refused.status.success(), "{refused:?}");
    world.target.fails(&["replica", "remove", "web", "--yes"], 1)?;
    world.target.fails(&["failover", "start", &format!("web@{}", points[1].0)], 1)?;

    // vbrd is killed, and finds it again. The guest did not notice.
    world.target.kill()?;
    world.target.start()?;
    let again = shown(&world)?;
    ensure!(again.state == ReplicaState::Failover && again.vm.context("no VM")?.run_state == "running");
    wrote(&newest, beyond)?;
    // Ordered again, it is what it is.
    let same: Failover = world.target.json_within(&["failover", "start", "web@latest"], BOOT)?;
    ensure!(same.generation == 1 && same.vm.context("no VM")?.run_state == "running");

    world.target.ok(&["failover", "undo", "web", "--yes"])?;
    ensure!(shown(&world)?.state == ReplicaState::Ready);
    for (point, _) in &points {
        world.target.ok(&["restore-point", "verify", &format!("web@{point}")])?;
    }

    // In order, when the branch is there again: nothing is lost.
    vm.boot()?;
    let before = vm.wrote()?;
    let refused = world.target.fails(&["failover", "planned", "web"], 4)?;
    ensure!(refused.contains("manage"), "{refused}");
    ensure!(vm.is_running()?, "a planned failover that was refused has stopped the VM");
    world.source.ok(&["peer", "grant", "dr", "--manage"])?;
    let order = ["failover", "planned", "web", "--memory", "192MiB"];
    let planned: Failover = world.target.json_within(&order, BOOT)?;
    ensure!(planned.warnings.is_empty() || planned.warnings[0].contains("no configuration"), "{planned:?}");
    let last: u64 = vm.wait_for("that it is down", |line| line.strip_prefix("GUEST DOWN ")?.parse().ok())?;
    ensure!(last > before && found(&planned)? == last, "not all of {last} files are there");
    ensure!(vm.is_running().is_err(), "the VM at the source was not switched off");
    world.target.ok(&["failover", "undo", "web", "--yes"])?;

    // An older one; it stays.
    let older = format!("web@{}", points[1].0);
    let older: Failover =
        world.target.json_within(&["failover", "start", &older, "--memory", "192MiB"], BOOT)?;
    let files = found(&older)?;
    ensure!(files >= points[1].1 && older.generation == 3, "{files} files, {older:?}");
    world.target.ok(&["failover", "commit", "web", "--yes"])?;
    let end = std::time::Instant::now() + BOOT;
    while shown(&world)?.vm.context("no VM")?.flatten.is_some() {
        ensure!(std::time::Instant::now() < end, "it does not become independent: {:?}", shown(&world)?);
        std::thread::sleep(Duration::from_millis(200));
    }
    let kept = shown(&world)?;
    ensure!(kept.state == ReplicaState::Permanent, "{kept:?}");
    let last = wrote(&older, files)?;
    world.target.fails(&["failover", "undo", "web", "--yes"], 1)?;
    // Restore points may go now, and the VM does not care: also when it is switched off and on.
    for point in world.points("web")? {
        world.target.ok(&["restore-point", "remove", &format!("web@{}", point.id), "--force", "--yes"])?;
    }
    wrote(&older, last)?;
    power_off(&world, &kept)?;
    let on: Failover = world.target.json_within(&["failover", "start", "web@latest"], BOOT)?;
    ensure!(on.state == ReplicaState::Permanent, "{on:?}");
    ensure!(found(&on)? >= last, "files are missing after it was switched off and on");
    power_off(&world, &kept)
}

/// As its administrator would, at its monitor.
fn power_off(world: &World, failover: &Failover) -> Result<()> {
    vbr_tests::vm::quit(Path::new(&failover.vm.as_ref().context("no VM")?.directory))?;
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while shown(world)?.vm.context("no VM")?.run_state != "off" {
        ensure!(std::time::Instant::now() < end, "it does not end");
        std::thread::sleep(Duration::from_millis(50));
    }
    // What it said belongs to the run before.
    std::fs::write(console(failover)?, "")?;
    Ok(())
}

#[test]
fn a_test_disturbs_nobody_and_the_point_carries_its_result() -> Result<()> {
    let world = world()?;
    let vm = branch(&world)?;
    vm.wrote()?;
    world.run("web")?;
    let test: BootTest = world.target.json_within(
        &["failover", "test", "web@latest", "--memory", "192MiB", "--expect", "GUEST WRITES"],
        BOOT,
    )?;
    ensure!(test.ok && test.console.contains("GUEST GOOD"), "{test:?}");
    let picture = std::fs::read(test.screenshot.context("no picture")?)?;
    ensure!(picture.starts_with(b"\x89PNG"), "the picture is no PNG");
    let points: vbr_api::List<RestorePoint> = world.target.json(&["restore-point", "list", "web"])?;
    ensure!(points.items[0].booted_ok == Some(true), "{points:?}");
    let none = shown(&world)?;
    ensure!(none.state == ReplicaState::Ready && none.vm.is_none(), "{none:?}");
    // One that fails, says why, and is thrown away as well.
    let failed = world.target.ctl_within(
        &[
            "failover",
            "test",
            "web@latest",
            "--memory",
            "192MiB",
            "--expect",
            "login:",
            "--within",
            "1s",
            "-o",
            "json",
        ],
        BOOT,
    )?;
    let said = String::from_utf8_lossy(&failed.stdout).into_owned();
    ensure!(failed.status.code() == Some(1) && said.contains("was not said within 1 s"), "{failed:?}");
    // One that stays: replication goes on meanwhile.
    world.target.ok_within(
        &["failover", "test", "web@latest", "--memory", "192MiB", "--keep", "--within", "1s"],
        BOOT,
    )?;
    ensure!(shown(&world)?.state == ReplicaState::TestFailover);
    world.run("web")?;
    ensure!(world.points("web")?.len() == 2);
    world.target.fails(&["failover", "start", "web@latest"], 1)?;
    world.target.fails(&["failover", "commit", "web", "--yes"], 1)?;
    // A vbrd that is killed in a test leaves nothing behind.
    world.target.ok(&["failover", "undo", "web", "--yes"])?;
    ensure!(shown(&world)?.state == ReplicaState::Ready);
    world.target.ok(&["restore-point", "verify", "web@latest"])?;
    Ok(())
}
