//! Restore points that are tried by starting them, with a real guest: by its console, by its agent, and by themselves.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vbr_api::{BootTest, Failover, ReplicaState, RestorePoint, Task, TaskState};
use vbr_tests::disk::{self, MIB};
use vbr_tests::vm::{Guest, Vm, VmDisk, guest_disk};
use vbr_tests::world::{World, WorldSpec};

/// Guests are emulated: no machine of ours can be relied on for KVM.
const TARGET: &str = "[failover]\naccelerator = \"tcg\"\ntest_every = \"1h\"\ntest_within = \"120s\"\n";
/// For an emulated guest to start.
const BOOT: Duration = Duration::from_secs(180);

fn tested(world: &World) -> Result<(RestorePoint, Task)> {
    let end = Instant::now() + BOOT;
    let show = || world.target.json::<Task>(&["task", "show", "boot-test"]);
    let before = show()?.runs;
    world.target.ok(&["task", "run", "boot-test"])?;
    loop {
        let task = show()?;
        let failover: Failover = world.target.json(&["failover", "show", "web"])?;
        if task.runs > before && task.state != TaskState::Running && failover.state == ReplicaState::Ready {
            return Ok((world.target.json(&["restore-point", "show", "web@latest"])?, task));
        }
        ensure!(Instant::now() < end, "the test does not end: {task:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn restore_points_are_tried_by_starting_them() -> Result<()> {
    let world = World::paired(&WorldSpec { target_toml: TARGET.into(), ..WorldSpec::default() })?;
    let (raw, image, vms) = (world.path("guest.raw"), world.path("guest.qcow2"), world.path("vms"));
    guest_disk(&raw, 192 * MIB)?;
    disk::to_qcow2(&raw, &image)?;
    let disks = [VmDisk { path: image, format: "qcow2" }];
    let vm = Vm::with_guest(&vms, "web", &disks, Guest::Lives)?;
    let directory = vms.display().to_string();
    world.source.ok(&["host", "add", "lab", "--driver", "qemu", "--directory", &directory])?;
    world.source.ok(&["job", "create", "web", "--vm", "lab/web", "--target", "dr"])?;
    vm.wrote()?;
    world.run("web")?;

    let test = |words: &[&str]| -> Result<BootTest> {
        let output = world
            .target
            .ctl_within(&[&["failover", "test", "web@latest", "-o", "json"], words].concat(), BOOT)?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
    };
    let both = test(&["--agent", "--expect", "GUEST GOOD", "--memory", "192MiB"])?;
    ensure!(both.ok && both.why.contains("agent answered") && both.why.contains("was said"), "{both:?}");
    println!("guest agent and text: {}", both.why);
    let missing =
        test(&["--agent", "--expect", "no guest says this", "--within", "30s", "--memory", "192MiB"])?;
    ensure!(
        !missing.ok && missing.why.contains("was not said") && !missing.why.contains("agent"),
        "{missing:?}"
    );

    // By itself, as the worker's pass does it: the agent's answer suffices.
    let (point, task) = tested(&world)?;
    ensure!(point.booted_ok == Some(true) && task.last_error.is_none(), "{point:?} {task:?}");
    ensure!(task.counters.get("started") == Some(&1), "{task:?}");
    world.target.ok(&["check"])?;

    // The next restore point has no boot sector any more, and everybody is told.
    vm.write(0, 0, 0, 512)?;
    world.run("web")?;
    let toml = world
        .target
        .toml()
        .replace("test_within = \"120s\"", "test_expect = \"GUEST GOOD\"\ntest_within = \"15s\"");
    world.target.set_toml(&toml);
    world.target.stop()?;
    world.target.start()?;
    let (point, task) = tested(&world)?;
    ensure!(point.booted_ok == Some(false), "{point:?} {task:?}");
    let check = world.target.ctl(&["check"])?;
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    ensure!(check.status.code() == Some(2), "{check:?}");
    ensure!(said.contains("branch/web did not start in the last test"), "{said}");
    Ok(())
}
