//! Other tools on the same image sequence, where they are installed (rsync, restic, borgbackup).
//!
//! rsync runs over the shaped link against its own daemon and is counted there. restic and borg write
//! a repository of their own on this machine: what it grows by is the least they could have sent.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Effort, Figure};
use crate::disk;
use crate::link::{End, Link, LinkConfig};
use crate::process::{exists, finish, run};
use crate::report::mib;
use crate::work::WorkDir;
use crate::workload::{disk_of, images};

const RSYNC_PORT: u16 = 8730;

/// Bytes of each step of the sequence, by one tool.
type Steps = fn(&WorkDir) -> Result<Vec<u64>>;

/// What each installed tool sends for steps 2 to 6.
pub fn side_by_side(_effort: Effort) -> Result<Vec<Figure>> {
    let tools: [(&str, &str, Steps); 3] = [
        ("rsync", "rsync -z (zstd), both ways on the line", rsync),
        ("restic", "restic, growth of its repository", restic),
        ("borg", "borg zstd,3, growth of its repository", borg),
    ];
    let mut figures = Vec::new();
    for (program, what, measure) in tools {
        if !exists(program) {
            eprintln!("   {program} is not installed: left out");
            continue;
        }
        let what = format!("image sequence, steps 2 to 6: {what}");
        let steps = match measure(&WorkDir::new()?) {
            Ok(steps) => steps,
            Err(error) => {
                figures.push(Figure::plain(&what, format!("not measured: {error:#}"), Vec::new()));
                continue;
            }
        };
        let sum: u64 = steps.iter().skip(1).sum();
        let each: Vec<String> = steps.iter().map(|bytes| mib(*bytes)).collect();
        let value = format!("{} MiB ({})", mib(sum), each.join(" / "));
        let samples = steps.iter().map(|bytes| *bytes as f64).collect();
        figures.push(Figure::plain(&what, value, samples));
    }
    Ok(figures)
}

fn rsync(dir: &WorkDir) -> Result<Vec<u64>> {
    let link = Link::up(LinkConfig::fast())?;
    let store = dir.join("store");
    std::fs::create_dir_all(&store)?;
    let config = dir.join("rsyncd.conf");
    let text = "use chroot = no\nuid = 0\ngid = 0\n[store]\nread only = no\npath = ";
    std::fs::write(&config, format!("{text}{}\n", store.display()))?;
    let mut daemon = link
        .namespace(End::Target)
        .command("rsync")
        .args(["--daemon", "--no-detach", "--port", &RSYNC_PORT.to_string(), "--config"])
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    std::thread::sleep(Duration::from_millis(500));
    let images = images()?;
    let steps = images.iter().map(|image| {
        let before = link.counters().port(RSYNC_PORT);
        let to = format!("rsync://{}:{RSYNC_PORT}/store/{}.img", End::Target.address(), disk_of(image));
        let mut command = link.namespace(End::Source).command("rsync");
        finish(command.args(["--inplace", "--no-whole-file", "-z", "--zc=zstd"]).arg(image).arg(to))?;
        let after = link.counters().port(RSYNC_PORT);
        Ok(after.up_sent + after.down_sent - before.up_sent - before.down_sent)
    });
    let steps = steps.collect::<Result<Vec<u64>>>();
    daemon.kill()?;
    daemon.wait()?;
    steps
}

fn restic(dir: &WorkDir) -> Result<Vec<u64>> {
    let store = dir.join("restic");
    let with = |args: &[&str], image: Option<&Path>| {
        let mut command = Command::new("restic");
        command.args(["--no-cache", "-r"]).arg(&store).args(args).env("RESTIC_PASSWORD", "bench").args(image);
        finish(&mut command).map(drop)
    };
    with(&["init", "--repository-version", "2"], None)?;
    growth(dir, &store, |image| with(&["backup", "--compression", "auto"], Some(image)))
}

fn borg(dir: &WorkDir) -> Result<Vec<u64>> {
    let store = dir.join("borg");
    let borg = || {
        let mut command = Command::new("borg");
        command.env("BORG_BASE_DIR", dir.path()).env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
        command
    };
    finish(borg().args(["init", "-e", "none"]).arg(&store))?;
    let mut number = 0;
    growth(dir, &store, |image| {
        number += 1;
        let archive = format!("{}::{number}", store.display());
        let mut command = borg();
        command.args(["create", "--sparse", "-C", "zstd,3", "--chunker-params", "buzhash,14,20,16,4095"]);
        finish(command.arg(archive).arg(image)).map(drop)
    })
}

/// Both tools look at paths: each disk keeps one name over all its versions.
fn growth(dir: &WorkDir, store: &Path, mut backup: impl FnMut(&Path) -> Result<()>) -> Result<Vec<u64>> {
    let mut steps = Vec::new();
    for image in images()? {
        let place = dir.join(format!("{}.img", disk_of(&image)));
        disk::copy(&image, &place)?;
        let before = size(store)?;
        backup(&place)?;
        steps.push(size(store)?.saturating_sub(before));
    }
    Ok(steps)
}

fn size(path: &Path) -> Result<u64> {
    let said = run("du", ["-sb", &path.to_string_lossy()])?;
    let Some(bytes) = said.split_whitespace().next() else { bail!("du said nothing") };
    bytes.parse().context("du said something else")
}
