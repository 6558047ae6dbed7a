//! Random sequences: disks that change in every way, caches and indexes that are lost, spoiled or shrunk
//! at any moment at either side, processes that die. Whatever the order: each session ends, and the last
//! sealed point is its source byte for byte.
//!
//! A sequence is a seed; what failed is said with it and with the steps before. `VBR_SEQUENCES=N` runs
//! more of them, `VBR_SEQUENCE=SEED` one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use vbr_api::SessionState;
use vbr_tests::disk::{self, MIB, Seeded};
use vbr_tests::fault::flip_bits;
use vbr_tests::link::{LinkConfig, Mode};
use vbr_tests::site::Site;
use vbr_tests::world::{World, WorldSpec};

/// Longest a session may take, faults included: some ten times what the slowest does.
const NEVER_A_HANG: Duration = Duration::from_secs(180);
const STEPS: u64 = 9;
const SEQUENCES: u64 = 4;
/// What a VM's disk is made of here: lengths on and off the grain of chunks.
const LENGTHS: [u64; 4] = [3 * MIB, 5 * MIB + 512, 8 * MIB, 8 * MIB + 65_536 + 7];

/// What happens to a disk before its job runs.
#[derive(Clone, Copy, Debug)]
enum Change {
    Nothing,
    Blocks,
    Moved,
    FromOtherDisk,
    Length,
    Zeroes,
    Everything,
}

const CHANGES: [Change; 7] = [
    Change::Nothing,
    Change::Blocks,
    Change::Moved,
    Change::FromOtherDisk,
    Change::Length,
    Change::Zeroes,
    Change::Everything,
];

/// What happens to a site.
#[derive(Clone, Copy, Debug)]
enum Harm {
    None,
    PacksLost,
    PacksSpoiled,
    CacheShrunk,
    IndexesLost,
    IndexesSpoiled,
    DatabaseLost,
    LineCut,
}

const HARMS: [Harm; 8] = [
    Harm::None,
    Harm::PacksLost,
    Harm::PacksSpoiled,
    Harm::CacheShrunk,
    Harm::IndexesLost,
    Harm::IndexesSpoiled,
    Harm::DatabaseLost,
    Harm::LineCut,
];

struct Sequence {
    world: World,
    random: Seeded,
    seed: u64,
    disks: [(&'static str, PathBuf); 2],
    told: Vec<String>,
}

#[test]
fn any_sequence_ends_byte_for_byte() -> Result<()> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seeds = match number("VBR_SEQUENCE") {
        Some(seed) => seed..=seed,
        None => 1..=number("VBR_SEQUENCES").unwrap_or(SEQUENCES),
    };
    for seed in seeds {
        let mut sequence = Sequence::new(seed)?;
        let done = sequence.run();
        done.with_context(|| format!("sequence {seed}:\n{}", sequence.told.join("\n")))?;
    }
    Ok(())
}

impl Sequence {
    fn new(seed: u64) -> Result<Self> {
        // A line on which bases are looked for, and sessions that take long enough to be struck.
        let link = LinkConfig::shaped(30.0, 10, 0.0);
        let rate = Some("30Mbit".into());
        let world = World::paired(&WorldSpec {
            link,
            loopback_rate: rate,
            cache_size: "256MiB".into(),
            ..WorldSpec::default()
        })?;
        let disks = ["a", "b"].map(|job| (job, world.path(&format!("{job}.img"))));
        for (n, (job, image)) in disks.iter().enumerate() {
            disk::mixed(image, LENGTHS[(seed as usize + n) % LENGTHS.len()], seed * 10 + n as u64)?;
            world.job(job, image)?;
        }
        Ok(Self { world, random: Seeded::new(seed), seed, disks, told: Vec::new() })
    }

    fn run(&mut self) -> Result<()> {
        for step in 0..STEPS {
            let at = self.random.below(2) as usize;
            let change = CHANGES[self.random.below(CHANGES.len() as u64) as usize];
            let harm = HARMS[self.random.below(HARMS.len() as u64) as usize];
            let (target, amid) = (self.random.below(2) == 0, self.random.below(2) == 0);
            self.told.push(format!(
                "{step}: job {}, {change:?}, {harm:?} at the {}, {}",
                self.disks[at].0,
                if target { "target" } else { "source" },
                if amid { "amid the session" } else { "before it" }
            ));
            let (job, image) = self.disks[at].clone();
            self.change(change, at, step)?;
            if !amid {
                self.harm(harm, target, step)?;
                self.world.wait_connected(Duration::from_secs(60))?;
            }
            self.world.run_in_background(job)?;
            if amid {
                std::thread::sleep(Duration::from_millis(self.random.below(600)));
                self.harm(harm, target, step)?;
            }
            self.wait(job)?;
            self.world.prove_latest(job, &[&image])?;
        }
        Ok(())
    }

    /// The session ends; one that failed over a loss in its midst is run once more, and succeeds.
    fn wait(&mut self, job: &str) -> Result<()> {
        if self.world.last_session(job)?.is_none() {
            // It was forgotten with the source's database: the job is run anew.
            self.told.push("   forgotten".into());
            self.world.wait_connected(Duration::from_secs(60))?;
            return self.world.run_within(job, NEVER_A_HANG).map(drop);
        }
        let session = self.world.wait_over_within(job, NEVER_A_HANG)?;
        if session.state == SessionState::Succeeded {
            return Ok(());
        }
        let failed = session.error.ok_or_else(|| anyhow!("{:?} without an error", session.state))?;
        ensure!(!failed.next_step.is_empty(), "{failed:?} does not say what to do");
        self.told.push(format!("   {:?}: {}: {}", session.state, failed.what, failed.why));
        self.world.wait_connected(Duration::from_secs(60))?;
        self.world.run_within(job, NEVER_A_HANG).map(drop)
    }

    fn change(&mut self, change: Change, at: usize, step: u64) -> Result<()> {
        let (image, other) = (self.disks[at].1.clone(), self.disks[1 - at].1.clone());
        let seed = self.seed * 1000 + step;
        let len = image.metadata()?.len();
        match change {
            Change::Nothing => Ok(()),
            Change::Blocks => disk::mutate(&image, 1 + self.random.below(60), seed),
            Change::Moved => self.pieces(&image, &image),
            Change::FromOtherDisk => self.pieces(&other, &image),
            Change::Length => {
                disk::set_len(&image, LENGTHS[self.random.below(LENGTHS.len() as u64) as usize])
            }
            Change::Zeroes => disk::punch(&image, self.random.below(len / 2) / 4096 * 4096, len / 4),
            Change::Everything => disk::random(&image, len, seed),
        }
    }

    /// Pieces of one disk at odd places of another, a byte changed in each.
    fn pieces(&mut self, from: &Path, to: &Path) -> Result<()> {
        let (source, target) = (File::open(from)?, File::options().write(true).open(to)?);
        let mut piece = vec![0; 12_000];
        for _ in 0..40 {
            let at = self.random.below(source.metadata()?.len() - piece.len() as u64);
            source.read_exact_at(&mut piece, at)?;
            piece[5000] = piece[5000].wrapping_add(1);
            let at = self.random.below(target.metadata()?.len() - piece.len() as u64) / 512 * 512;
            target.write_all_at(&piece, at)?;
        }
        Ok(target.sync_all()?)
    }

    fn harm(&mut self, harm: Harm, target: bool, step: u64) -> Result<()> {
        let site = if target { &self.world.target } else { &self.world.source };
        let seed = self.seed * 77 + step;
        match harm {
            Harm::None => Ok(()),
            Harm::LineCut if !self.world.has_link() => Ok(()),
            Harm::LineCut => {
                self.world.link()?.cut(Mode::Reset, Duration::from_millis(300));
                Ok(())
            }
            Harm::PacksLost => dead(site, |state| gone(&state.join("packs"))),
            Harm::PacksSpoiled => dead(site, |state| spoil(&state.join("packs"), 200, seed)),
            Harm::CacheShrunk => {
                let toml = site.toml().replace("size = \"256MiB\"", "size = \"64MiB\"");
                site.set_toml(&toml);
                dead(site, |_| Ok(()))
            }
            Harm::IndexesLost => dead(site, |state| {
                gone(&state.join("anchors"))?;
                gone(&state.join("blocks"))
            }),
            Harm::IndexesSpoiled => dead(site, |state| {
                flip_bits(state, 20, seed, |name| name == "anchors" || name == "blocks").map(drop)
            }),
            Harm::DatabaseLost => dead(site, |state| gone(&state.join("database"))),
        }
    }
}

/// The site dies without a goodbye, is harmed, and comes back.
fn dead(site: &Site, harm: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    site.kill()?;
    harm(&site.state())?;
    site.start()
}

fn gone(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn spoil(directory: &Path, bits: u64, seed: u64) -> Result<()> {
    if directory.is_dir() { flip_bits(directory, bits, seed, |_| true).map(drop) } else { Ok(()) }
}
