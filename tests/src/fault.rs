//! Faults: flipped bits, and sides that die at random moments while sessions run.
//!
//! [`torment`] is the loop behind the `kill -9` and the power-loss suites: it keeps a job running over
//! a disk that gets a new version after every sealed point, strikes at random moments, and proves
//! after each sealed session that the point is the version that was there when it began.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vbr_api::SessionState;

use crate::disk::{self, Seeded};
use crate::world::World;

/// Flips `count` bits at random places in files beneath `dir` whose names `wanted` accepts. Returns
/// how many files there were.
pub fn flip_bits(dir: &Path, count: u64, seed: u64, wanted: impl Fn(&str) -> bool) -> Result<usize> {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut stack = vec![dir.to_path_buf()];
    while let Some(directory) = stack.pop() {
        for entry in
            directory.read_dir().with_context(|| format!("listing {}", directory.display()))?.flatten()
        {
            if entry.file_type()?.is_dir() {
                stack.push(entry.path());
            } else if entry.metadata()?.len() > 0 && wanted(&entry.file_name().to_string_lossy()) {
                files.push(entry.path());
            }
        }
    }
    files.sort_unstable();
    let mut random = Seeded::new(seed);
    for _ in 0..count {
        let Some(path) = files.get(random.below(files.len() as u64) as usize) else { break };
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let at = random.below(file.metadata()?.len());
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ (1 << random.below(8))], at)?;
    }
    Ok(files.len())
}

/// How [`torment`] goes about it.
pub struct Torment<'a> {
    /// The two sites, paired.
    pub world: &'a World,
    /// A job over this one disk, created already.
    pub job: &'a str,
    pub image: &'a Path,
    /// Strikes in all.
    pub strikes: u64,
    /// Longest pause before a strike.
    pub pause: Duration,
    /// Blocks of 4 KiB that each new version changes.
    pub blocks: u64,
    pub seed: u64,
}

/// Strikes at random moments; `strike` has to leave both sites running. Every session must succeed in
/// the end and every point must be the version that its session began with.
pub fn torment(plan: &Torment<'_>, strike: impl Fn(u64) -> Result<()>) -> Result<u64> {
    let Torment { world, job, image, .. } = *plan;
    let mut random = Seeded::new(plan.seed);
    let mut sealed = 0;
    let mut kept = world.keep(image, "torment")?;
    world.run_in_background(job)?;
    for number in 0..plan.strikes {
        std::thread::sleep(Duration::from_millis(random.below(plan.pause.as_millis() as u64)));
        strike(number).with_context(|| format!("strike {number}"))?;
        let session = world.last_session(job)?.context("the session is forgotten after a strike")?;
        match session.state {
            SessionState::Succeeded => {
                sealed += 1;
                kept = next_version(plan, sealed, &kept)?;
                world.run_in_background(job)?;
            }
            state if state.is_over() => bail!(
                "session {} ended as {state:?} after strike {number}: {:?}\n{}\n{}",
                session.session,
                session.error,
                world.source.log_tail(30),
                world.target.log_tail(30)
            ),
            _ => {}
        }
    }
    world.wait(job)?;
    sealed += 1;
    world.prove_latest(job, &[&kept])?;
    let points = world.points(job)?.len() as u64;
    ensure!(points == sealed, "{sealed} sessions succeeded and {points} points are sealed");
    Ok(sealed)
}

/// Proves the point that was just sealed, then changes the disk.
fn next_version(plan: &Torment<'_>, sealed: u64, kept: &Path) -> Result<PathBuf> {
    plan.world.prove(&format!("{}@latest", plan.job), &[kept])?;
    let points = plan.world.points(plan.job)?.len() as u64;
    ensure!(points == sealed, "{sealed} sessions succeeded and {points} points are sealed");
    disk::mutate(plan.image, plan.blocks, plan.seed.wrapping_mul(1000) + sealed)?;
    plan.world.keep(plan.image, "torment")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_flip_in_wanted_files_alone() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.pack", "b.sst"] {
            std::fs::write(dir.path().join(name), [0u8; 1000]).unwrap();
        }
        assert_eq!(flip_bits(dir.path(), 3, 1, |name| name.ends_with(".sst")).unwrap(), 1);
        assert_eq!(std::fs::read(dir.path().join("a.pack")).unwrap(), [0u8; 1000]);
        assert_ne!(std::fs::read(dir.path().join("b.sst")).unwrap(), [0u8; 1000]);
    }
}
