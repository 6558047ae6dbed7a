//! bita: content-defined chunks of about 64 KiB in an archive at the source, fetched over HTTP by a
//! target that already has every earlier image as a seed. Installed with cargo where it is missing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Stage, Tool, put, version};
use crate::bench::record::Told;
use crate::disk;
use crate::link::{End, Link};
use crate::process::{finish, run};
use crate::workload::cache_directory;

const PORT: u16 = 8080;
const VERSION: &str = "^0.15";

pub struct Bita {
    stage: Stage,
    program: PathBuf,
}

impl Bita {
    pub fn new(mut stage: Stage) -> Result<Self> {
        let program = installed()?;
        for name in ["archives", "seeds"] {
            std::fs::create_dir_all(stage.state().join(name))?;
        }
        let mut server = stage.command(End::Source, std::env::current_exe()?);
        server.arg("--serve").arg(stage.state().join("archives"));
        server.args(["--at", &format!("{}:{PORT}", End::Source.address())]);
        stage.daemon(End::Source, &mut server, PORT)?;
        Ok(Self { stage, program })
    }

    fn archive(&self) -> PathBuf {
        self.stage.state().join("archives/disk.cba")
    }

    fn output(&self) -> PathBuf {
        self.stage.dir.join("output.img")
    }

    /// Every image that the target holds.
    fn seeds(&self) -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(self.stage.state().join("seeds"))?;
        let mut seeds: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        seeds.sort();
        Ok(seeds)
    }
}

impl Tool for Bita {
    fn version(&self) -> String {
        version(&self.program.to_string_lossy(), &["--version"])
    }

    fn setting(&self) -> String {
        "bita compress -i DISK (64 KiB chunks, brotli), bita clone --seed EACH_EARLIER_IMAGE http://source/"
            .into()
    }

    fn link(&self) -> Result<&Link> {
        Ok(&self.stage.link)
    }

    fn port(&self) -> u16 {
        PORT
    }

    fn prepare(&mut self, image: &Path) -> Result<()> {
        if self.output().exists() {
            std::fs::remove_file(self.output())?;
        }
        self.stage.prepare(image)
    }

    fn carry(&mut self, image: &Path) -> Result<Option<Told>> {
        let mut compress = self.stage.client(End::Source, &self.program);
        compress.args(["compress", "--force-create", "-i"]).arg(self.stage.disk(image));
        finish(compress.arg(self.archive()))?;
        let mut clone = self.stage.client(End::Target, &self.program);
        clone.arg("clone");
        for seed in self.seeds()? {
            clone.arg("--seed").arg(seed);
        }
        let address = format!("http://{}:{PORT}/disk.cba", End::Source.address());
        finish(clone.arg(address).arg(self.output()))?;
        Ok(None)
    }

    /// What arrived is equal, so the image itself stands for it from now on: it is sparse, the clone is not.
    fn check(&mut self, image: &Path) -> Result<()> {
        disk::ensure_same(&self.output(), image)?;
        std::fs::remove_file(self.output())?;
        let name = image.file_name().context("an image without a name")?;
        put(image, &self.stage.state().join("seeds").join(name))
    }

    fn save(&mut self) -> Result<()> {
        self.stage.save()
    }

    fn restore(&mut self) -> Result<()> {
        self.stage.restore()
    }
}

/// The program, built once for all runs.
fn installed() -> Result<PathBuf> {
    let root = cache_directory()?.join("bench/bita");
    let program = root.join("bin/bita");
    if !program.is_file() {
        eprintln!("   installing bita");
        let (root, target) = (root.to_string_lossy(), root.join("target"));
        let args =
            ["install", "--quiet", "--locked", "bita", "--version", VERSION, "--root", &root, "--target-dir"];
        run("cargo", args.iter().map(std::ffi::OsStr::new).chain([target.as_os_str()]))
            .context("bita cannot be had")?;
        // Only the program is wanted.
        let _ = std::fs::remove_dir_all(target);
    }
    Ok(program)
}
