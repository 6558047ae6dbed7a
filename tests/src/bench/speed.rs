//! Speed: a run over an unchanged disk, and a cold run on loopback.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use super::memory::peak;
use super::{Effort, Figure, crossed, seconds, spread};
use crate::disk::{self, MIB};
use crate::process::{exists, run};
use crate::report::median;
use crate::world::{World, WorldSpec};

/// Bytes both ways and speed over an unchanged disk that is in the page cache.
pub fn unchanged(effort: &Effort) -> Result<Vec<Figure>> {
    let len = 4096 * MIB / effort.divide;
    let world = World::paired(&WorldSpec { cache_size: "8GiB".into(), ..WorldSpec::default() })?;
    let image = world.path("disk.img");
    disk::dense(&image, len)?;
    world.job("big", &image)?;
    world.run("big")?;
    let (mut wire, mut wall, mut cpu, mut hash) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.runs.max(3) {
        hash.push(len as f64 / 1e9 / hash_seconds(&image)?);
        let before = world.link()?.counters().port(world.port());
        let used = world.source.cpu_time()?;
        let session = world.run("big")?;
        let used = world.source.cpu_time()?.saturating_sub(used).as_secs_f64();
        wall.push(len as f64 / 1e9 / seconds(&session).max(1e-3));
        cpu.push(len as f64 / 1e9 / used.max(1e-2));
        // The seal's last packets and acknowledgements are still under way when the session ends.
        std::thread::sleep(std::time::Duration::from_millis(300));
        wire.push(crossed(&world, before)? as f64);
    }
    let limit = 65_536.0 + len as f64 * 1e-5;
    let bytes = Figure::promised(
        &format!("unchanged {} GiB disk: bytes on the wire, both ways", len >> 30),
        &format!("<= {limit:.0}"),
        format!("{:.0} ({wire:.0?})", median(&wire)),
        wire.clone(),
        median(&wire) <= limit,
    );
    let half = median(&hash) / 2.0;
    let speed = Figure::promised(
        "unchanged disk: GB/s of disk for each core the source used",
        ">= 1.0 GB/s",
        spread(&cpu, "GB/s"),
        cpu.clone(),
        median(&cpu) >= 1.0,
    );
    let against = Figure::promised(
        "unchanged disk: GB/s by the clock, against `b3sum --num-threads 1`",
        &format!(">= {half:.2} GB/s (half of {:.2})", median(&hash)),
        spread(&wall, "GB/s"),
        wall.clone(),
        median(&wall) >= half,
    );
    Ok(vec![bytes, speed, against, peak(&world, "unchanged disk")?])
}

/// A cold run with both sites on loopback.
pub fn cold(effort: &Effort) -> Result<Vec<Figure>> {
    let len = 1024 * MIB / effort.divide;
    let mut rates = Vec::new();
    let mut memory = Vec::new();
    for _ in 0..effort.runs {
        let world =
            World::paired(&WorldSpec { loopback: true, cache_size: "4GiB".into(), ..WorldSpec::default() })?;
        let image = world.path("disk.img");
        disk::dense(&image, len)?;
        let data = disk::non_zero_bytes(&image)? as f64;
        world.job("cold", &image)?;
        rates.push(data / 1e6 / seconds(&world.run("cold")?));
        memory.push(peak(&world, "cold run on loopback")?);
    }
    let kept = median(&rates) >= 120.0;
    let what = "cold run on loopback, both sites on the same cores: non-zero data";
    let speed = Figure::promised(what, ">= 120 MB/s", spread(&rates, "MB/s"), rates.clone(), kept);
    Ok(std::iter::once(speed).chain(memory.pop()).collect())
}

/// Seconds that `b3sum --num-threads 1` takes; without it, reading and hashing on this thread.
fn hash_seconds(path: &Path) -> Result<f64> {
    let started = Instant::now();
    if exists("b3sum") {
        run("b3sum", ["--num-threads", "1", &path.to_string_lossy()])?;
        return Ok(started.elapsed().as_secs_f64());
    }
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0u8; MIB as usize];
    loop {
        let got = file.read(&mut buffer)?;
        if got == 0 {
            break;
        }
        hasher.update(&buffer[..got]);
    }
    std::hint::black_box(hasher.finalize());
    Ok(started.elapsed().as_secs_f64())
}
