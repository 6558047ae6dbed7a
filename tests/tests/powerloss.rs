//! Power loss at random moments: state and datastore lie on a loop file system that is shut down
//! without a flush, then mounted again. Whatever was acknowledged before is whole afterwards.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vbr_api::{Job, List, Peer};
use vbr_tests::disk::{self, MIB};
use vbr_tests::fault::{Torment, torment};
use vbr_tests::link::LinkConfig;
use vbr_tests::mount::{FsKind, LoopFs};
use vbr_tests::process::{is_root, skip_unless};
use vbr_tests::work::WorkDir;
use vbr_tests::world::{World, WorldSpec};

/// Moments for each side and file system.
const MOMENTS: u64 = 20;

fn power_loss(kind: FsKind, at_source: bool, seed: u64) -> Result<()> {
    if skip_unless(is_root(), "power loss", "loop mounts need root") {
        return Ok(());
    }
    let dir = WorkDir::new()?;
    let fs = LoopFs::create(dir.path(), "power", kind, 1024 * MIB)?;
    let mut spec = WorldSpec { link: LinkConfig::shaped(40.0, 20, 0.0), ..WorldSpec::default() };
    spec.cache_size = "256MiB".into();
    let state = Some(fs.path().join("state"));
    if at_source {
        spec.source_state = state;
    } else {
        spec.target_state = state;
    }
    let world = World::paired(&spec)?;
    let site = if at_source { &world.source } else { &world.target };
    let image = world.path("power.img");
    disk::random(&image, 3 * MIB + 513, seed)?;
    world.job_keeping("power", &image, 100)?; // Every point is counted: none retires.
    let pause = Duration::from_millis(1600);
    let plan =
        Torment { world: &world, job: "power", image: &image, strikes: MOMENTS, pause, blocks: 60, seed };
    let sealed = torment(&plan, |_| {
        site.freeze().context("freezing vbrd")?;
        fs.power_loss().context("the power loss")?;
        site.kill()?;
        fs.remount().context("mounting again")?;
        site.start().context("starting again")?;
        // Pairing and jobs were acknowledged long before.
        ensure!(site.json::<List<Peer>>(&["peer", "list"])?.items.len() == 1, "the pairing is lost");
        let jobs: List<Job> = world.source.json(&["job", "list"])?;
        ensure!(jobs.items.len() == 1, "the job is lost");
        Ok(())
    })?;
    println!("{kind:?}, source {at_source}: {MOMENTS} power losses, {sealed} sessions sealed");
    // The site must be gone before its file system is.
    drop(world);
    Ok(())
}

#[test]
fn the_target_on_xfs() -> Result<()> {
    power_loss(FsKind::Xfs, false, 101)
}

#[test]
fn the_target_on_ext4() -> Result<()> {
    power_loss(FsKind::Ext4, false, 102)
}

#[test]
fn the_source_on_xfs() -> Result<()> {
    power_loss(FsKind::Xfs, true, 103)
}

#[test]
fn the_source_on_ext4() -> Result<()> {
    power_loss(FsKind::Ext4, true, 104)
}
