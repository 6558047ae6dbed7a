//! borg: content-defined chunks into a repository at the target, over ssh; with its own chunks of about
//! 2 MiB, or told to make smaller ones.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::ssh::{self, Ssh};
use super::{Stage, Tool, version};
use crate::bench::record::Told;
use crate::link::{End, Link};
use crate::process::{exists, finish};

pub struct Borg {
    stage: Stage,
    ssh: Ssh,
    chunker: Option<&'static str>,
    number: u32,
}

impl Borg {
    pub fn new(mut stage: Stage, chunker: Option<&'static str>) -> Result<Self> {
        if !exists("borg") {
            bail!("borg is not installed (package borgbackup)");
        }
        std::fs::create_dir_all(stage.state().join("home"))?;
        std::fs::create_dir_all(stage.state().join("target-home"))?;
        let ssh = Ssh::start(&mut stage)?;
        let borg = Self { stage, ssh, chunker, number: 0 };
        finish(borg.command().args(["init", "-e", "none"]).arg(borg.repository()))?;
        Ok(borg)
    }

    fn command(&self) -> Command {
        let mut command = self.stage.client(End::Source, "borg");
        command
            .env("BORG_BASE_DIR", self.stage.state().join("home"))
            .env("BORG_RSH", self.ssh.command())
            .env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes")
            .env("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes");
        command
    }

    fn repository(&self) -> String {
        let path = self.stage.state().join("repository");
        format!("ssh://{}:{}{}", Ssh::host(), ssh::PORT, path.display())
    }

    fn options(&self) -> Vec<&'static str> {
        let mut options = vec!["--compression", "zstd,3", "--files-cache", "disabled"];
        options.extend(self.chunker.iter().flat_map(|chunker| ["--chunker-params", chunker]));
        options
    }
}

impl Tool for Borg {
    fn version(&self) -> String {
        version("borg", &["--version"])
    }

    fn setting(&self) -> String {
        format!("borg create {} ssh://target/ DISK, no encryption", self.options().join(" "))
    }

    fn link(&self) -> Result<&Link> {
        Ok(&self.stage.link)
    }

    fn port(&self) -> u16 {
        ssh::PORT
    }

    fn prepare(&mut self, image: &Path) -> Result<()> {
        self.stage.prepare(image)
    }

    fn carry(&mut self, image: &Path) -> Result<Option<Told>> {
        self.number += 1;
        let archive = format!("{}::{}", self.repository(), self.number);
        let mut command = self.command();
        finish(command.arg("create").args(self.options()).arg(archive).arg(self.stage.disk(image)))?;
        Ok(None)
    }

    fn check(&mut self, _image: &Path) -> Result<()> {
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        self.stage.save()
    }

    fn restore(&mut self) -> Result<()> {
        self.stage.restore()
    }
}
