//! `vbrctl job create`: from options, a file, or both (options win).

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use vbr_api::{DiskFormat, DiskSpec, FreeSpace, JobSpec, Schedule, Vm, name_is_valid};

use super::definition::Definition;
use super::keep::Keep;
use crate::client::encode;
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;

pub const EXAMPLE: &str = "\
Example:
  vbrctl job create web --disk /srv/vm/web.img --target dr --keep 14
  vbrctl job create mail --disk system.qcow2,format=qcow2 --disk data.img --target dr/fast
  vbrctl job create shop --vm local/shop --exclude /srv/vm/swap.img --target dr
  vbrctl job create crm --disk /srv/vm/crm.img --target dr --every 15m --window 'Mon..Fri 18:00-07:00'
  vbrctl job create erp --disk /srv/vm/erp.img --target dr --keep 24 --keep-daily 7 --keep-weekly 4 --keep-monthly 12
  vbrctl job create bulk --disk /srv/vm/bulk.img --target dr --rate 8Mbit
  vbrctl job create log --disk /srv/vm/log.img --target dr --at 'Mon..Fri 02:00'
  vbrctl job create --from web.toml";

#[derive(Args, Debug)]
pub struct Arguments {
    /// Name of the job, and of its replica at the target: a-z 0-9 . _ - (at most 64)
    #[arg(required_unless_present = "from")]
    name: Option<String>,
    /// Replicate a VM with all its disks
    #[arg(long, value_name = "HOST/VM", conflicts_with = "disks")]
    vm: Option<String>,
    /// Replicate this file or block device; raw unless said, never probed; may be given several times.
    /// A comma in the path is written twice
    #[arg(long = "disk", value_name = "PATH[,format=raw|qcow2]")]
    disks: Vec<DiskArgument>,
    /// Leave this disk of the VM out (its path or file name); may be given several times
    #[arg(long, value_name = "DISK")]
    exclude: Vec<String>,
    /// Where to: a peer, or one of its datastores
    #[arg(long, value_name = "PEER[/DATASTORE]", required_unless_present = "from")]
    target: Option<String>,
    #[command(flatten)]
    keep: Keep,
    /// What to do with space that the file systems in the disks have freed: `keep` sends it like everything
    /// else; `auto` lets it read as zeroes in the replica, only where their maps are proven consistent
    /// [default: keep]
    #[arg(long, value_name = "keep|auto", value_parser = free_space)]
    free_space: Option<FreeSpace>,
    /// Most that its sessions may send, in bits a second: 800kbit, 8Mbit. Throttling rules hold beside it, the lowest
    /// wins [default: no limit of its own]
    #[arg(long, value_name = "RATE", value_parser = crate::human::parse_rate)]
    rate: Option<u64>,
    /// Run by itself, from start to start: 15m, 1h, 1d. A job that missed its time runs once when it can
    #[arg(long, value_name = "SPAN", value_parser = crate::human::parse_span, conflicts_with_all = ["at", "after", "continuous"])]
    every: Option<Duration>,
    /// Run by itself at these times, in systemd's calendar syntax: 'Mon..Fri 02:00', '*-*-1 04:30 Europe/Berlin'.
    /// `systemd-analyze calendar` explains one
    #[arg(long, value_name = "CALENDAR", conflicts_with_all = ["after", "continuous"])]
    at: Option<String>,
    /// Run by itself after each success of another job
    #[arg(long, value_name = "JOB", conflicts_with = "continuous")]
    after: Option<String>,
    /// Run by itself, again and again
    #[arg(long)]
    continuous: bool,
    /// The hours in which it may run by itself: '20:00-06:00', 'Mon..Fri 20:00-06:00, Sat,Sun 00:00-24:00'. What is
    /// not done at the end goes on in the next window
    #[arg(long, value_name = "WINDOW")]
    window: Option<String>,
    /// Read the definition from a TOML file (see job export); options override it
    #[arg(long, value_name = "FILE.toml")]
    from: Option<PathBuf>,
}

impl Arguments {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let exclude = self.exclude.clone();
        let mut spec = self.spec()?;
        if !exclude.is_empty() {
            leave_out(context, &mut spec, &exclude).await?;
        }
        let document = context.client.post_json("/v1/jobs", &spec).await?;
        let word = if document.status == 200 { "unchanged" } else { "created" };
        let line = format!("job {} {word}", spec.name);
        context.output.done(&document, &line, json!({ "name": spec.name }))?;
        if context.output.format.is_json() {
            context.output.note(&line);
        }
        Ok(Exit::Done)
    }

    /// The definition as options and file give it.
    fn spec(self) -> Result<JobSpec, Failure> {
        let file = self.from.as_deref().map(Definition::read).transpose()?.unwrap_or_default();
        let (keep, keep_calendar) = self.keep.with(&file);
        let given = self.vm.is_some() || !self.disks.is_empty();
        let (vm, disks) = if given {
            (self.vm, self.disks.into_iter().map(|disk| disk.0).collect())
        } else {
            let disks = file.disks.into_iter().map(|disk| DiskSpec { path: disk.path, format: disk.format });
            (file.vm, disks.collect::<Vec<_>>())
        };
        let missing = |what: &str, option: &str| {
            Failure::usage(
                format!("The job has no {what}"),
                "neither the options nor the file name it",
                format!("add {option}"),
            )
        };
        let name = self.name.or(file.name).ok_or_else(|| missing("name", "NAME"))?;
        let target = self.target.or(file.target).ok_or_else(|| missing("target", "--target PEER"))?;
        if vm.is_none() && disks.is_empty() {
            return Err(missing("source", "--disk PATH or --vm HOST/VM"));
        }
        let schedule = match (self.every, self.at, self.after, self.continuous) {
            (None, None, None, false) => Schedule {
                every_ms: file.every.as_deref().map(every).transpose()?,
                at: file.at,
                after: file.after,
                continuous: file.continuous.unwrap_or_default(),
                window: None,
            },
            (every, at, after, continuous) => {
                let every_ms = every.map(|every| u64::try_from(every.as_millis()).unwrap_or(u64::MAX));
                Schedule { every_ms, at, after, continuous, window: None }
            }
        };
        let rate_bps = match (self.rate, file.rate.as_deref()) {
            (None, Some(text)) => Some(rate(text)?),
            (given, _) => given,
        };
        let schedule = Schedule { window: self.window.or(file.window), ..schedule };
        let disks = disks.into_iter().map(|disk| Ok(DiskSpec { path: absolute(&disk.path)?, ..disk }));
        let spec = JobSpec {
            name,
            vm,
            disks: disks.collect::<Result<_, Failure>>()?,
            target,
            keep,
            keep_calendar,
            free_space: self.free_space.or(file.free_space).unwrap_or_default(),
            rate_bps,
            schedule,
            enabled: file.enabled.unwrap_or(true),
        };
        check(&spec)?;
        Ok(spec)
    }
}

/// `every` of a file.
fn every(text: &str) -> Result<u64, Failure> {
    let wrong = |why| Failure::usage("The job's interval cannot be read", why, "say every = \"15m\"");
    let span = crate::human::parse_span(text).map_err(wrong)?;
    Ok(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}

/// `rate` of a file.
fn rate(text: &str) -> Result<u64, Failure> {
    let wrong = |why| Failure::usage("The job's rate cannot be read", why, "say rate = \"8Mbit\"");
    crate::human::parse_rate(text).map_err(wrong)
}

fn free_space(text: &str) -> Result<FreeSpace, String> {
    match text {
        "keep" => Ok(FreeSpace::Keep),
        "auto" => Ok(FreeSpace::Auto),
        _ => Err("it is `keep` or `auto`".into()),
    }
}

fn check(spec: &JobSpec) -> Result<(), Failure> {
    let pattern = "names start with a-z or 0-9 and hold a-z 0-9 . _ - (at most 64)";
    let wrong = |what: String, why: &str, next: &str| Err(Failure::usage(what, why, next));
    if !name_is_valid(&spec.name) {
        return wrong(format!("{:?} is no name for a job", spec.name), pattern, "choose another name");
    }
    if !spec.target.split('/').all(name_is_valid) || spec.target.matches('/').count() > 1 {
        let what = format!("{:?} is no target", spec.target);
        return wrong(what, "a target is PEER or PEER/DATASTORE", "list peers: vbrctl peer list");
    }
    let whole =
        |vm: &String| vm.split_once('/').is_some_and(|(host, name)| !host.is_empty() && !name.is_empty());
    if let Some(vm) = spec.vm.as_ref().filter(|vm| !whole(vm)) {
        return wrong(format!("{vm:?} is no VM"), "a VM is HOST/VM", "list them: vbrctl vm list");
    }
    if spec.vm.is_some() && !spec.disks.is_empty() {
        return wrong(
            "The job names a VM and disks".into(),
            "it takes one or the other",
            "remove one of them",
        );
    }
    Ok(())
}

/// A VM without some disks is a job that names the others: vbrd's definition knows no exclusion.
async fn leave_out(context: &Context, spec: &mut JobSpec, exclude: &[String]) -> Result<(), Failure> {
    let Some((host, name)) = spec.vm.as_ref().and_then(|vm| vm.split_once('/')) else {
        return Err(Failure::usage(
            "--exclude needs --vm",
            "it leaves out a disk of a VM",
            "name only the wanted disks with --disk",
        ));
    };
    let vms: Vec<Vm> = context.client.get(&format!("/v1/vms?host={}", encode(host))).await?.list()?;
    let Some(vm) = vms.into_iter().find(|vm| vm.name == name) else {
        return Err(Failure::new(
            Exit::NotFound,
            "not_found",
            format!("Host {host} has no VM {name}"),
            "it is not among those the host lists",
            format!("list them: vbrctl vm list --host {host}"),
        ));
    };
    let is = |disk: &DiskSpec, word: &String| {
        disk.path == *word || Path::new(&disk.path).file_name().is_some_and(|file| file == word.as_str())
    };
    if let Some(word) = exclude.iter().find(|word| !vm.disks.iter().any(|disk| is(disk, word))) {
        return Err(Failure::usage(
            format!("{host}/{name} has no disk {word}"),
            "--exclude takes the path or the file name of a disk of the VM",
            "see them: vbrctl vm list -o wide",
        ));
    }
    spec.disks = vm.disks.into_iter().filter(|disk| !exclude.iter().any(|word| is(disk, word))).collect();
    if spec.disks.is_empty() {
        return Err(Failure::usage("No disk is left", "every disk is excluded", "exclude fewer disks"));
    }
    spec.vm = None;
    let count = spec.disks.len();
    context.output.note(&format!("note: the job names the other disks by path ({count}); disks added to the VM later need a new definition"));
    Ok(())
}

/// Against the caller's directory: vbrd has another one. `..` is resolved here, where links mean what the caller sees.
pub fn absolute(path: &str) -> Result<String, Failure> {
    let wrong =
        |why: String| Failure::usage(format!("{path:?} is no path"), why, "name a file or block device");
    let mut full = std::path::absolute(path).map_err(|error| wrong(error.to_string()))?;
    if full.components().any(|part| part == Component::ParentDir) {
        full = match (full.parent(), full.file_name()) {
            (Some(parent), Some(name)) => fs::canonicalize(parent).map(|parent| parent.join(name)),
            _ => fs::canonicalize(&full),
        }
        .map_err(|error| wrong(error.to_string()))?;
    }
    full.into_os_string().into_string().map_err(|_| wrong("it is not UTF-8".into()))
}

/// `PATH[,format=raw|qcow2]`; `,,` stands for a comma in the path, as in QEMU's own options.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DiskArgument(DiskSpec);

impl FromStr for DiskArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = split(text).into_iter();
        let path = parts.next().unwrap_or_default();
        if path.is_empty() {
            return Err("a disk starts with its path".into());
        }
        let mut format = None;
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((&part, ""));
            if key != "format" {
                return Err(format!(
                    "unknown key {key:?}: only format=raw or format=qcow2 (a comma in a path is written twice)"
                ));
            }
            let value = match value {
                "raw" => DiskFormat::Raw,
                "qcow2" => DiskFormat::Qcow2,
                other => return Err(format!("unknown format {other:?}: raw or qcow2")),
            };
            if format.replace(value).is_some() {
                return Err("format is given twice".into());
            }
        }
        Ok(Self(DiskSpec { path, format: format.unwrap_or(DiskFormat::Raw) }))
    }
}

fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ',' && letters.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(letter);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(text: &str) -> Result<DiskSpec, String> {
        text.parse::<DiskArgument>().map(|disk| disk.0)
    }

    #[test]
    fn disks() {
        let spec = |path: &str, format| DiskSpec { path: path.into(), format };
        assert_eq!(disk("/a").unwrap(), spec("/a", DiskFormat::Raw));
        assert_eq!(disk("/a,format=qcow2").unwrap(), spec("/a", DiskFormat::Qcow2));
        assert_eq!(disk("/a,,b=c,format=raw").unwrap(), spec("/a,b=c", DiskFormat::Raw));
        for bad in
            ["", ",format=raw", "/a,size=3", "/a,", "/a,format", "/a,format=vmdk", "/a,format=raw,format=raw"]
        {
            assert!(disk(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute("x.img").unwrap(), here.join("x.img").to_str().unwrap());
        assert_eq!(absolute("/a/./b").unwrap(), "/a/b");
        assert_eq!(absolute("/usr/../etc/x").unwrap(), "/etc/x");
        assert!(absolute("").is_err());
    }

    fn arguments(words: &[&str]) -> Result<JobSpec, Failure> {
        use crate::args::{Arguments as All, Noun};
        use clap::Parser;
        let all = [&["vbrctl", "job", "create"], words].concat();
        match All::try_parse_from(all).unwrap().noun {
            Noun::Job(super::super::Command::Create(arguments)) => arguments.spec(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_override_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("job.toml");
        fs::write(&file, "name = \"web\"\ntarget = \"dr\"\nkeep = 7\nvm = \"local/web\"\n").unwrap();
        let from = file.to_str().unwrap();
        let spec = arguments(&["--from", from]).unwrap();
        assert_eq!((spec.name.as_str(), spec.vm.as_deref(), spec.keep), ("web", Some("local/web"), Some(7)));
        let spec = arguments(&["mail", "--from", from, "--disk", "/a", "--keep", "3"]).unwrap();
        assert_eq!((spec.name.as_str(), spec.vm.as_deref(), spec.keep), ("mail", None, Some(3)));
        assert_eq!(spec.disks.len(), 1);
        let spec = arguments(&["--from", from, "--keep-daily", "7", "--keep-yearly", "2"]).unwrap();
        let (keep, calendar) = (spec.keep, spec.keep_calendar);
        assert_eq!((keep, calendar.daily, calendar.weekly, calendar.yearly), (Some(7), 7, 0, 2));
    }

    #[test]
    fn schedules() {
        let base = ["web", "--disk", "/a", "--target", "dr"];
        let with = |words: &[&str]| arguments(&[&base, words].concat()).unwrap().schedule;
        assert_eq!(with(&[]), Schedule::default());
        assert_eq!(with(&["--every", "15m"]).every_ms, Some(900_000));
        assert_eq!(with(&["--at", "Mon..Fri 02:00"]).at.as_deref(), Some("Mon..Fri 02:00"));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("job.toml");
        fs::write(&file, "every = \"1h\"\nwindow = \"20:00-06:00\"\n").unwrap();
        let from = ["--from", file.to_str().unwrap()];
        assert_eq!(with(&from).every_ms, Some(3_600_000));
        let after = with(&[&from[..], &["--after", "db"]].concat());
        assert_eq!((after.every_ms, after.after.as_deref()), (None, Some("db")));
        assert_eq!(after.window.as_deref(), Some("20:00-06:00"));
    }

    #[test]
    fn rates() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("job.toml");
        fs::write(&file, "name = \"web\"\ntarget = \"dr\"\nvm = \"local/web\"\nrate = \"8Mbit\"\n").unwrap();
        let from = file.to_str().unwrap();
        assert_eq!(arguments(&["--from", from]).unwrap().rate_bps, Some(8_000_000));
        assert_eq!(arguments(&["--from", from, "--rate", "2Mbit"]).unwrap().rate_bps, Some(2_000_000));
        fs::write(&file, "name = \"web\"\ntarget = \"dr\"\nvm = \"local/web\"\nrate = \"fast\"\n").unwrap();
        assert_eq!(arguments(&["--from", from]).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn wrong_definitions() {
        for words in [
            &["Web", "--disk", "/a", "--target", "dr"][..],
            &["web", "--target", "dr"],
            &["web", "--disk", "/a", "--target", "dr/x/y"],
            &["web", "--vm", "local", "--target", "dr"],
        ] {
            assert_eq!(arguments(words).unwrap_err().exit, Exit::Usage, "{words:?}");
        }
    }
}
