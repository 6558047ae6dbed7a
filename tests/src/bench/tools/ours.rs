//! vbr as one of the compared tools: two real sites, driven by `vbrctl`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use super::{Tool, put, replace};
use crate::bench::record::Told;
use crate::link::{Link, LinkConfig};
use crate::process::finish;
use crate::site::binary;
use crate::workload::disk_of;
use crate::world::{World, WorldSpec};

/// A session over the slowest line may take this long.
const PATIENCE: Duration = Duration::from_secs(3 * 3600);

/// What sets one measurement of vbr apart from another.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// `--free-space`; none leaves the job as it is created by default.
    pub free_space: Option<String>,
    /// `cache.size` of the source; `0` keeps nothing of what is sent.
    pub source_cache: Option<String>,
    /// `accelerator.anchor_memory` of the source.
    pub anchor_memory: Option<String>,
    /// `accelerator.bases = false` at the source.
    pub no_bases: bool,
}

/// Two paired sites.
pub struct Ours {
    world: World,
    setup: Setup,
    jobs: BTreeSet<String>,
}

impl Ours {
    /// Starts and pairs them. Err where this vbr does not know what is asked of it.
    pub fn new(link: LinkConfig, setup: Setup) -> Result<Self> {
        if setup.free_space.is_some() && !knows_free_space()? {
            bail!("this vbrctl has no `job create --free-space`");
        }
        let keeps = setup.source_cache.as_deref() != Some("0");
        let anchors = setup.anchor_memory.as_ref().map(|size| format!("anchor_memory = \"{size}\"\n"));
        let world = World::paired(&WorldSpec {
            link,
            cache_size: "12GiB".into(),
            source_cache_size: setup.source_cache.clone().filter(|_| keeps),
            source_toml: format!(
                "[accelerator]\nkeep_sent = {keeps}\nbases = {}\n{}",
                !setup.no_bases,
                anchors.unwrap_or_default()
            ),
            ..WorldSpec::default()
        })?;
        Ok(Self { world, setup, jobs: BTreeSet::new() })
    }

    fn place(&self, image: &Path) -> PathBuf {
        self.world.path(&format!("{}.img", disk_of(image)))
    }

    /// State of both sites and where their copies go.
    fn states(&self) -> [(PathBuf, PathBuf); 2] {
        [
            (self.world.source.state(), self.world.path("saved-source")),
            (self.world.target.state(), self.world.path("saved-target")),
        ]
    }

    fn stop(&self) -> Result<()> {
        self.world.source.stop()?;
        self.world.target.stop().map(drop)
    }

    fn start(&self) -> Result<()> {
        self.world.target.start()?;
        self.world.source.start()?;
        self.world.wait_connected(Duration::from_secs(60))
    }
}

impl Tool for Ours {
    fn version(&self) -> String {
        version()
    }

    fn setting(&self) -> String {
        let free = self.setup.free_space.as_deref().map(|mode| format!(" --free-space {mode}"));
        let cache =
            self.setup.source_cache.as_deref().map(|size| format!(", cache.size {size} at the source"));
        let anchors = self.setup.anchor_memory.as_deref().map(|size| format!(", anchor_memory {size}"));
        let bases = self.setup.no_bases.then(|| ", bases false".to_owned());
        let parts = [free, Some(", job run".to_owned()), cache, anchors, bases];
        format!("job create{}", parts.into_iter().flatten().collect::<String>())
    }

    fn link(&self) -> Result<&Link> {
        self.world.link()
    }

    fn port(&self) -> u16 {
        self.world.port()
    }

    fn prepare(&mut self, image: &Path) -> Result<()> {
        let (disk, place) = (disk_of(image), self.place(image));
        put(image, &place)?;
        if self.jobs.insert(disk.clone()) {
            let place = place.to_string_lossy();
            let mut words = vec!["job", "create", &disk, "--disk", &place, "--target", "dr"];
            words.extend(self.setup.free_space.iter().flat_map(|mode| ["--free-space", mode]));
            self.world.source.ok(&words)?;
        }
        Ok(())
    }

    fn carry(&mut self, image: &Path) -> Result<Option<Told>> {
        let session = self.world.run_within(&disk_of(image), PATIENCE)?;
        Ok(Some(Told {
            bytes: session.bytes,
            chunks: session.chunks,
            load: session.stage_load_percent,
            bottleneck: session.bottleneck,
        }))
    }

    fn check(&mut self, image: &Path) -> Result<()> {
        let point = format!("{}@latest", disk_of(image));
        // Skipped free space reads as zeroes: files are compared by the suites, verification is here.
        let same = self.setup.free_space.as_deref() != Some("auto");
        self.world.prove(&point, if same { std::slice::from_ref(&image) } else { &[] })
    }

    fn save(&mut self) -> Result<()> {
        self.stop()?;
        for (state, saved) in self.states() {
            replace(&state, &saved)?;
        }
        self.start()
    }

    fn restore(&mut self) -> Result<()> {
        self.stop()?;
        for (state, saved) in self.states() {
            replace(&saved, &state)?;
        }
        self.start()
    }
}

/// As `vbrctl` says.
pub fn version() -> String {
    let said = binary("vbrctl", "VBRCTL").map(|path| super::version(&path.to_string_lossy(), &["--version"]));
    said.unwrap_or_default().replace("vbrctl", "vbr")
}

/// True where jobs can skip what file systems call free.
pub fn knows_free_space() -> Result<bool> {
    let mut command = std::process::Command::new(binary("vbrctl", "VBRCTL")?);
    let help = finish(command.args(["job", "create", "--help"]))?;
    Ok(String::from_utf8_lossy(&help.stdout).contains("--free-space"))
}
