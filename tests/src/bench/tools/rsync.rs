//! rsync against its own daemon: delta by offset and rolling checksum against the disk's last version.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Stage, Tool, version};
use crate::bench::record::Told;
use crate::disk;
use crate::link::{End, Link};
use crate::process::finish;
use crate::workload::disk_of;

const PORT: u16 = 8730;
const OPTIONS: [&str; 5] = ["--inplace", "--sparse", "--no-whole-file", "-z", "--zc=zstd"];

pub struct Rsync {
    stage: Stage,
}

impl Rsync {
    pub fn new(mut stage: Stage) -> Result<Self> {
        let store = stage.state();
        let config = stage.dir.join("rsyncd.conf");
        let text = "use chroot = no\nuid = 0\ngid = 0\n[store]\nread only = no\npath = ";
        std::fs::write(&config, format!("{text}{}\n", store.display()))?;
        let mut command = stage.command(End::Target, "rsync");
        command.args(["--daemon", "--no-detach", "--port", &PORT.to_string(), "--config"]).arg(&config);
        stage.daemon(End::Target, &mut command, PORT)?;
        Ok(Self { stage })
    }

    fn held(&self, image: &Path) -> PathBuf {
        self.stage.state().join(format!("{}.img", disk_of(image)))
    }
}

impl Tool for Rsync {
    fn version(&self) -> String {
        version("rsync", &["--version"]).split("  protocol").next().unwrap_or_default().to_owned()
    }

    fn setting(&self) -> String {
        format!("rsync {} DISK rsync://target/", OPTIONS.join(" "))
    }

    fn link(&self) -> Result<&Link> {
        Ok(&self.stage.link)
    }

    fn port(&self) -> u16 {
        PORT
    }

    fn prepare(&mut self, image: &Path) -> Result<()> {
        self.stage.prepare(image)
    }

    fn carry(&mut self, image: &Path) -> Result<Option<Told>> {
        let to = format!("rsync://{}:{PORT}/store/{}.img", End::Target.address(), disk_of(image));
        let mut command = self.stage.client(End::Source, "rsync");
        finish(command.args(OPTIONS).arg(self.stage.disk(image)).arg(to))?;
        Ok(None)
    }

    fn check(&mut self, image: &Path) -> Result<()> {
        disk::ensure_same(&self.held(image), image)
    }

    fn save(&mut self) -> Result<()> {
        self.stage.save()
    }

    fn restore(&mut self) -> Result<()> {
        self.stage.restore()
    }
}
