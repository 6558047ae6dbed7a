//! What counts on the day the branch is gone: how long a start takes, whatever lies below; and on all days before: what a
//! session reads of a running VM.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vbr_api::{Failover, Session};

use super::{Effort, Figure};
use crate::disk::{self, MIB};
use crate::link::LinkConfig;
use crate::report::median;
use crate::vm::{Vm, VmDisk};
use crate::world::{World, WorldSpec};

const DISK: u64 = 8 << 30;
/// Restore points at which a start is timed.
const POINTS: [u64; 3] = [1, 10, 50];
const START_MAX: f64 = 2000.0;
/// Guests are emulated.
const TARGET: &str = "[failover]\naccelerator = \"tcg\"\n";
const PATIENCE: Duration = Duration::from_secs(120);

/// From the order until qemu runs, over 1, 10 and 50 restore points of a disk of 8 GiB.
pub fn failover(effort: &Effort) -> Result<Vec<Figure>> {
    let spec = WorldSpec { link: LinkConfig::fast(), target_toml: TARGET.into(), ..WorldSpec::default() };
    let world = World::paired(&spec)?;
    let image = world.path("web.img");
    disk::set_len(&image, DISK / effort.divide)?;
    disk::write_random(&image, 0, 64 * MIB, 1)?;
    world.job_keeping("web", &image, 60)?;
    let mut figures = Vec::new();
    for point in 1..=POINTS[2] {
        disk::write_random(&image, 64 * MIB + point * 3 * MIB, MIB, point)?;
        world.run("web")?;
        if POINTS.contains(&point) {
            figures.push(starts(&world, point, effort.runs)?);
        }
    }
    Ok(figures)
}

fn starts(world: &World, points: u64, runs: usize) -> Result<Figure> {
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for _ in 0..runs.max(1) {
        let begun = Instant::now();
        let order = ["failover", "start", "web@latest", "--memory", "256MiB"];
        let failover: Failover = world.target.json_within(&order, PATIENCE)?;
        outside.push(begun.elapsed().as_secs_f64() * 1000.0);
        let vm = failover.vm.context("no VM")?;
        ensure!(vm.run_state == "running", "it is {}", vm.run_state);
        inside.push(vm.start_ms as f64);
        world.target.ok(&["failover", "undo", "web", "--yes"])?;
    }
    let worst = outside.iter().copied().fold(0.0, f64::max);
    Ok(Figure::promised(
        &format!("failover of a disk of 8 GiB over {points} restore points: until qemu runs"),
        "2 s",
        format!("{:.0} ms ({:.0} ms in vbrd)", median(&outside), median(&inside)),
        outside,
        worst <= START_MAX,
    ))
}

/// A running VM of 8 GiB: what a session reads, and how long it takes, where 1, 10 and 100 MiB were written.
pub fn bitmaps(effort: &Effort) -> Result<Vec<Figure>> {
    let world = World::paired(&WorldSpec { link: LinkConfig::fast(), ..WorldSpec::default() })?;
    let (raw, image, vms) = (world.path("web.raw"), world.path("web.qcow2"), world.path("vms"));
    let bytes = DISK / effort.divide;
    disk::set_len(&raw, bytes)?;
    disk::write_random(&raw, 0, bytes / 8, 1)?;
    disk::to_qcow2(&raw, &image)?;
    std::fs::remove_file(&raw)?;
    let vm = Vm::start(&vms, "web", &[VmDisk { path: image, format: "qcow2" }])?;
    let directory = vms.display().to_string();
    world.source.ok(&["host", "add", "lab", "--driver", "qemu", "--directory", &directory])?;
    world.source.ok(&["job", "create", "web", "--vm", "lab/web", "--target", "dr", "--keep", "14"])?;
    let full = world.run("web")?;
    let mut figures = vec![figure("everything (1 GiB of data)", &[full])];
    for (n, written) in [0, 1, 10, 100].into_iter().enumerate() {
        let mut sessions = Vec::new();
        for run in 0..effort.runs.max(1) as u64 {
            for mib in 0..written {
                // Apart from each other, as a guest's writes are.
                let at = (mib * 71 + run * 13) * MIB % (bytes - MIB);
                vm.write(0, (n as u64 * 40 + run + 1) as u8, at, MIB)?;
            }
            let session = world.run("web")?;
            ensure!(session.tracked, "it was compared whole: {:?}", session.full_read_reason);
            sessions.push(session);
        }
        figures.push(figure(&format!("{written} MiB written since"), &sessions));
    }
    world.target.ok_within(&["restore-point", "verify", "web@latest"], PATIENCE * 5)?;
    Ok(figures)
}

fn figure(what: &str, sessions: &[Session]) -> Figure {
    let seconds = |session: &Session| {
        let ended = session.ended_at.unwrap_or(session.started_at);
        ended.duration_since(session.started_at).as_secs_f64()
    };
    let times: Vec<f64> = sessions.iter().map(seconds).collect();
    let read: Vec<f64> = sessions.iter().map(|session| session.bytes.read as f64 / MIB as f64).collect();
    let value = format!("{:.1} MiB read, {:.2} s", median(&read), median(&times));
    Figure::plain(&format!("a running VM of 8 GiB, {what}"), value, times)
}
