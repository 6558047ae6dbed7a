//! Peak memory: ten sessions at once, and a sparse disk of 10 TB with 1 GiB of data.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::{Effort, Figure, seconds};
use crate::disk::{self, MIB};
use crate::report::mib;
use crate::world::{World, WorldSpec};

const SOURCE_MAX: u64 = 512 * MIB;
const TARGET_MAX: u64 = 768 * MIB;
/// The same without the work of a slow line, which needs a compressor's tables.
const SESSIONS_SOURCE_MAX: u64 = 256 * MIB;
const SESSIONS_TARGET_MAX: u64 = 512 * MIB;

/// Peak resident sets, and the unchanged run of the large sparse disk.
pub fn peaks(effort: &Effort) -> Result<Vec<Figure>> {
    let mut figures = ten_at_once(effort)?;
    figures.extend(sparse_giant(effort)?);
    Ok(figures)
}

/// All ten run at once.
const SLOTS: &str = "[resources]\nhost_slots = 16\nlink_slots = 16\ndatastore_slots = 16\n";

fn ten_at_once(effort: &Effort) -> Result<Vec<Figure>> {
    let source_toml = SLOTS.to_owned();
    let spec = WorldSpec { cache_size: "4GiB".into(), source_toml, ..WorldSpec::default() };
    let world = World::paired(&spec)?;
    let disks: Vec<(String, PathBuf)> =
        (0..10).map(|n| (format!("vm{n}"), world.path(&format!("vm{n}.img")))).collect();
    for (number, (job, image)) in disks.iter().enumerate() {
        disk::mixed(image, 256 * MIB / effort.divide, number as u64)?;
        world.job(job, image)?;
    }
    for (job, _) in &disks {
        world.run_in_background(job)?;
    }
    for (job, _) in &disks {
        world.wait(job)?;
    }
    rss_figures(&world, "ten sessions at once")
}

fn sparse_giant(effort: &Effort) -> Result<Vec<Figure>> {
    let world = World::paired(&WorldSpec { cache_size: "4GiB".into(), ..WorldSpec::default() })?;
    let image = world.path("giant.img");
    let (len, data) = (10_000_000_000_000u64, 1024 * MIB / effort.divide);
    disk::set_len(&image, len)?;
    // In 64 places, as data lies on a large disk.
    let part = data / 64;
    for place in 0..64 {
        disk::write_random(&image, len / 64 * place / 65_536 * 65_536, part, place)?;
    }
    world.job("giant", &image)?;
    world.run("giant")?;
    let mut figures = rss_figures(&world, "10 TB sparse disk with 1 GiB of data")?;
    let session = world.run("giant")?;
    let taken = seconds(&session);
    // 1 GB/s of data and two seconds for everything else: in proportion to the data, not to 10 TB.
    let limit = data as f64 / 1e9 + 2.0;
    figures.push(Figure::promised(
        "10 TB sparse disk: unchanged run",
        &format!("in proportion to its data (<= {limit:.1} s)"),
        format!("{:.1?}, read {} MiB", Duration::from_secs_f64(taken), mib(session.bytes.read)),
        vec![taken],
        taken <= limit,
    ));
    Ok(figures)
}

/// The peaks of both sites so far, in one line.
pub fn peak(world: &World, what: &str) -> Result<Figure> {
    let (source, target) = (world.source.peak_rss()?, world.target.peak_rss()?);
    Ok(Figure::promised(
        &format!("peak memory, source and target: {what}"),
        &format!("<= {} MiB, <= {} MiB", SOURCE_MAX / MIB, TARGET_MAX / MIB),
        format!("{} MiB, {} MiB", mib(source), mib(target)),
        vec![source as f64, target as f64],
        source <= SOURCE_MAX && target <= TARGET_MAX,
    ))
}

/// The peaks of both sites against their limits.
fn rss_figures(world: &World, what: &str) -> Result<Vec<Figure>> {
    let sides =
        [("source", &world.source, SESSIONS_SOURCE_MAX), ("target", &world.target, SESSIONS_TARGET_MAX)];
    sides
        .into_iter()
        .map(|(side, site, limit)| {
            let peak = site.peak_rss()?;
            Ok(Figure::promised(
                &format!("peak memory of the {side}: {what}"),
                &format!("<= {} MiB", limit / MIB),
                format!("{} MiB", mib(peak)),
                vec![peak as f64],
                peak <= limit,
            ))
        })
        .collect()
}
