//! The day the branch is gone: replicas are started, tried, given back and kept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vbr_api::{BootTest, Failover, List, ReplicaState, RestorePoint, Session};
use vbr_tests::disk::{self, MIB};
use vbr_tests::vm::{Guest, Vm, VmDisk, guest_disk, said_last};
use vbr_tests::world::{World, WorldSpec};

/// Guests are emulated: no machine of ours can be relied on for KVM.
const TARGET: &str = "[failover]\naccelerator = \"tcg\"\n";
/// For an emulated guest to start and look through its files.
const BOOT: Duration = Duration::from_secs(240);

fn world() -> Result<World> {
    World::paired(&WorldSpec {
        source_toml: TARGET.into(),
        target_toml: TARGET.into(),
        ..WorldSpec::default()
    })
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
    let points: List<RestorePoint> = world.target.json(&["restore-point", "list", "web"])?;
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

const BACK: [&str; 5] = ["failback", "start", "web", "--memory", "192MiB"];

/// What runs at the branch of a VM that came back.
fn at_branch(world: &World) -> Result<Failover> {
    world.source.json(&["failover", "show", "dr/web-back"])
}

/// The last file that the guest here made durable before it shut down; what it said belongs to the run before.
fn went_down(here: &Failover) -> Result<u64> {
    let last = said_last(&console(here)?, |line| line.strip_prefix("GUEST DOWN ")?.parse().ok())?;
    std::fs::write(console(here)?, "")?;
    Ok(last)
}

/// The VM runs at the branch, with every file that it wrote here.
fn is_back(world: &World, here: &Failover, back: &Failover) -> Result<u64> {
    ensure!(back.state == ReplicaState::Failback, "{back:?}");
    ensure!(back.vm.as_ref().context("no VM")?.run_state == "off", "{back:?}");
    let last = went_down(here)?;
    let there = at_branch(world)?;
    ensure!(there.state == ReplicaState::Failover && there.vm.is_some(), "{there:?}");
    let files = found(&there)?;
    ensure!(files == last, "{files} files at the branch, {last} here");
    wrote(&there, last)
}

/// Bytes on the wire of the sessions of the job that carries it back.
fn carried(world: &World) -> Result<u64> {
    let all: List<Session> = world.target.json(&["session", "list", "--job", "web-back"])?;
    ensure!(all.items.len() >= 2, "{all:?}");
    Ok(all.items.iter().map(|session| session.bytes.sent_wire).sum())
}

/// A replica that is failed over, its branch burnt, with some files that the branch never saw.
fn failed_over(world: &World) -> Result<(Failover, u64)> {
    let mut vm = branch(world)?;
    vm.wrote()?;
    world.run("web")?;
    vm.kill()?;
    let here: Failover =
        world.target.json_within(&["failover", "start", "web@latest", "--memory", "192MiB"], BOOT)?;
    let files = found(&here)?;
    Ok((here.clone(), wrote(&here, files + 3)?))
}

#[test]
fn the_vm_goes_back_and_the_replica_is_one_again() -> Result<()> {
    let world = world()?;
    let (here, files) = failed_over(&world)?;
    world.target.fails(&["host", "remove", "failover"], 1)?;
    let vms = world.target.ok(&["vm", "list"])?;
    ensure!(vms.contains("branch.web"), "{vms}");
    let refused = world.target.fails(&BACK, 4)?;
    ensure!(refused.contains("manage"), "{refused}");
    ensure!(
        shown(&world)?.state == ReplicaState::Failover,
        "a failback that was refused has changed something"
    );
    world.source.ok(&["peer", "grant", "dr", "--manage"])?;
    let refused = world.target.fails(&BACK, 4)?;
    ensure!(refused.contains("--replicate"), "{refused}");
    world.source.ok(&["peer", "grant", "dr", "--replicate"])?;

    let back: Failover = world.target.json_within(&BACK, BOOT)?;
    let wire = carried(&world)?;
    println!("failback: {wire} bytes on the wire for a disk of {} MiB", 192);
    ensure!(wire < 24 * MIB, "{wire} bytes crossed");
    ensure!(is_back(&world, &here, &back)? > files);
    world.target.fails(&["failover", "undo", "web", "--yes"], 1)?;
    ensure!(!world.source.ctl(&["job", "run", "web", "--wait"])?.status.success());

    // Here again, as it was when it went.
    world.target.ok_within(&["failback", "undo", "web", "--yes"], BOOT)?;
    ensure!(at_branch(&world)?.state == ReplicaState::Ready);
    let again = shown(&world)?;
    ensure!(again.state == ReplicaState::Failover && again.failback.is_none(), "{again:?}");
    let files = found(&again)?;
    wrote(&again, files)?;

    // And back once more, though vbrd is killed on the way.
    std::thread::scope(|scope| -> Result<()> {
        let ordered = scope.spawn(|| world.target.ctl_within(&BACK, BOOT));
        while shown(&world)?.state != ReplicaState::FailingBack {
            ensure!(!ordered.is_finished(), "it does not begin: {:?}", shown(&world)?);
            std::thread::sleep(Duration::from_millis(20));
        }
        world.target.kill()?;
        world.target.start()
    })?;
    let stands = shown(&world)?;
    ensure!(stands.state == ReplicaState::FailingBack && stands.failback.is_some(), "{stands:?}");
    world.wait_connected(Duration::from_secs(30))?;
    let back: Failover = world.target.json_within(&BACK, BOOT)?;
    let there = is_back(&world, &again, &back)?;
    stays_there(&world, there)
}

/// Committed: the replica takes sessions again, from the VM where it runs now.
fn stays_there(world: &World, files: u64) -> Result<()> {
    let points = world.points("web")?.len();
    let committed: Failover =
        world.target.json_within(&["failback", "commit", "web", "--yes"], Duration::from_secs(60))?;
    ensure!(committed.state == ReplicaState::Ready && committed.vm.is_none(), "{committed:?}");
    ensure!(committed.warnings[0].contains("job edit web --vm failover/dr.web-back"), "{committed:?}");
    ensure!(at_branch(world)?.state == ReplicaState::Permanent);
    let end = std::time::Instant::now() + BOOT;
    while at_branch(world)?.vm.context("no VM")?.flatten.is_some() {
        ensure!(std::time::Instant::now() < end, "it does not become independent: {:?}", at_branch(world)?);
        std::thread::sleep(Duration::from_millis(200));
    }
    world.target.fails(&["job", "show", "web-back"], 5)?;
    world.source.ok(&["job", "edit", "web", "--vm", "failover/dr.web-back", "--drop-disks"])?;
    let session = world.run("web")?;
    println!("forward again: {} bytes on the wire", session.bytes.sent_wire);
    ensure!(session.consistent == Some(true) && session.bytes.sent_wire < 24 * MIB, "{session:?}");
    ensure!(world.points("web")?.len() == points + 1);
    world.target.ok(&["restore-point", "verify", "web@latest"])?;
    // As good as any other: what it would find on the day that it is needed.
    let latest = ["failover", "start", "web@latest", "--memory", "192MiB"];
    let here: Failover = world.target.json_within(&latest, BOOT)?;
    ensure!(found(&here)? >= files, "files are missing that were durable before the session");
    world.target.ok(&["failover", "undo", "web", "--yes"])?;
    let quit = at_branch(world)?.vm.context("no VM")?.directory;
    vbr_tests::vm::quit(Path::new(&quit))
}
