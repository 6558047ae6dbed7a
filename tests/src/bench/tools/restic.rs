//! restic: content-defined chunks of about 1 MiB into a repository at the target, over sftp.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::ssh::{self, Ssh};
use super::{Stage, Tool, version};
use crate::bench::record::Told;
use crate::link::{End, Link};
use crate::process::{exists, finish};

pub struct Restic {
    stage: Stage,
    ssh: Ssh,
}

impl Restic {
    pub fn new(mut stage: Stage) -> Result<Self> {
        if !exists("restic") {
            bail!("restic is not installed (package restic)");
        }
        let ssh = Ssh::start(&mut stage)?;
        let restic = Self { stage, ssh };
        finish(restic.command().args(["init", "--repository-version", "2"]))?;
        Ok(restic)
    }

    fn command(&self) -> Command {
        let state = self.stage.state();
        let repository = format!("sftp:{}:{}", Ssh::host(), state.join("repository").display());
        let transport = format!("sftp.command={} {} -s sftp", self.ssh.command(), Ssh::host());
        let mut command = self.stage.client(End::Source, "restic");
        command.env("RESTIC_PASSWORD", "bench").env("HOME", self.stage.dir.path()).arg("--quiet");
        command.arg("--cache-dir").arg(state.join("cache"));
        command.arg("-r").arg(repository).arg("-o").arg(transport);
        command
    }
}

impl Tool for Restic {
    fn version(&self) -> String {
        version("restic", &["version"]).split(" compiled").next().unwrap_or_default().to_owned()
    }

    fn setting(&self) -> String {
        "restic backup --compression auto DISK, repository version 2 over sftp".into()
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
        let mut command = self.command();
        finish(command.args(["backup", "--compression", "auto"]).arg(self.stage.disk(image)))?;
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
