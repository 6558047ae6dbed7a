//! The options that define a job: `job create` and `job edit` take the same ones.

use std::fs;
use std::path::Component;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use vbr_api::{DiskFormat, DiskSpec, FreeSpace, Priority, Retry, Schedule};

use super::keep::Keep;
use crate::failure::Failure;
use crate::human;

/// Takes a list back to nothing.
pub const NONE: &str = "none";

#[derive(Args, Debug)]
pub struct Options {
    /// Replicate a VM with all its disks
    #[arg(long, value_name = "HOST/VM", conflicts_with = "disks")]
    pub vm: Option<String>,
    /// Replicate this file or block device; raw unless said, never probed; may be given several times.
    /// A comma in the path is written twice
    #[arg(long = "disk", value_name = "PATH[,format=raw|qcow2]")]
    pub disks: Vec<DiskArgument>,
    /// Leave this disk of the VM out (its path, or the last part of it); may be given several times. `none` of an edit: leave
    /// out none any more
    #[arg(long, value_name = "DISK", conflicts_with = "disks")]
    pub exclude: Vec<String>,
    /// Where to: a peer, or one of its datastores
    #[arg(long, value_name = "PEER[/DATASTORE]")]
    pub target: Option<String>,
    #[command(flatten)]
    pub keep: Keep,
    /// What to do with space that the file systems in the disks have freed: `keep` sends it like everything
    /// else; `auto` lets it read as zeroes in the replica, only where their maps are proven consistent
    /// [default: keep]
    #[arg(long, value_name = "keep|auto", value_parser = free_space)]
    pub free_space: Option<FreeSpace>,
    /// Most that its sessions may send, in bits a second: 800kbit, 8Mbit. Throttling rules hold beside it, the lowest
    /// wins [default: none]
    #[arg(long, value_name = "RATE|none", value_parser = rate)]
    pub rate: Option<Rate>,
    /// Run by itself, from start to start: 15m, 1h, 1d. A job that missed its time runs once when it can
    #[arg(long, value_name = "SPAN", value_parser = human::parse_span, conflicts_with_all = ["at", "after", "continuous", "manual"])]
    pub every: Option<Duration>,
    /// Run by itself at these times, in systemd's calendar syntax: 'Mon..Fri 02:00', '*-*-1 04:30 Europe/Berlin'.
    /// `systemd-analyze calendar` explains one
    #[arg(long, value_name = "CALENDAR", conflicts_with_all = ["after", "continuous", "manual"])]
    pub at: Option<String>,
    /// Run by itself after each success of another job
    #[arg(long, value_name = "JOB", conflicts_with_all = ["continuous", "manual"])]
    pub after: Option<String>,
    /// Run by itself, again and again
    #[arg(long, conflicts_with = "manual")]
    pub continuous: bool,
    /// Run by order only
    #[arg(long)]
    pub manual: bool,
    /// The hours in which it may run by itself: '20:00-06:00', 'Mon..Fri 20:00-06:00, Sat,Sun 00:00-24:00'. What is
    /// not done at the end goes on in the next window [default: any]
    #[arg(long, value_name = "WINDOW|any", value_parser = window)]
    pub window: Option<Window>,
    /// Who goes first where sessions wait for a slot: high before normal before low; ten minutes of waiting are
    /// worth a step [default: normal]
    #[arg(long, value_name = "low|normal|high", value_parser = priority)]
    pub priority: Option<Priority>,
    /// What the first run starts from, at the target: a replica of this site there, or an image beneath one of the
    /// target's seed directories (/PATH[,format=raw|qcow2]); only differences cross [default: none]
    #[arg(long, value_name = "REPLICA|PATH|none", value_parser = seed)]
    pub seed: Option<Seed>,
    /// Go on with this replica of this site at the target instead of one of the job's name: runs build upon its newest
    /// restore point, so that only differences cross [default: none]
    #[arg(long, value_name = "REPLICA|none", value_parser = map)]
    pub map: Option<Map>,
    /// How often a session that failed is tried again where that can help, and the pause before the first time,
    /// which doubles up to an hour; 0 for never [default: 3/5m]
    #[arg(long, value_name = "COUNT[/PAUSE]", value_parser = human::parse_retry)]
    pub retry: Option<Retry>,
}

/// None: no limit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub Option<u64>);

/// None: any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window(pub Option<String>);

/// None: nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed(pub Option<String>);

/// None: the replica of the job's own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map(pub Option<String>);

impl Options {
    /// The disks as named.
    pub fn disks(&self) -> Vec<DiskSpec> {
        self.disks.iter().map(|disk| disk.0.clone()).collect()
    }

    /// When it runs, without a window; none where no option says so.
    pub fn schedule(&self) -> Option<Schedule> {
        let given = self.every.is_some() || self.at.is_some() || self.after.is_some();
        (given || self.continuous || self.manual).then(|| Schedule {
            every_ms: self.every.map(|every| u64::try_from(every.as_millis()).unwrap_or(u64::MAX)),
            at: self.at.clone(),
            after: self.after.clone(),
            continuous: self.continuous,
            window: None,
        })
    }
}

fn free_space(text: &str) -> Result<FreeSpace, String> {
    match text {
        "keep" => Ok(FreeSpace::Keep),
        "auto" => Ok(FreeSpace::Auto),
        _ => Err("it is `keep` or `auto`".into()),
    }
}

fn rate(text: &str) -> Result<Rate, String> {
    if text == "none" { Ok(Rate(None)) } else { human::parse_rate(text).map(|rate| Rate(Some(rate))) }
}

fn window(text: &str) -> Result<Window, String> {
    Ok(Window(Some(text.to_string()).filter(|text| text != "any")))
}

fn seed(text: &str) -> Result<Seed, String> {
    if text == "none" {
        return Ok(Seed(None));
    }
    if !text.starts_with('/') {
        let name = vbr_api::name_is_valid(text);
        let why = "it is a replica's name, or an absolute path at the target: /PATH[,format=raw|qcow2]";
        return name.then(|| Seed(Some(text.into()))).ok_or_else(|| why.into());
    }
    text.parse::<DiskArgument>().map_err(|why| why.replace("a disk", "a seed"))?;
    Ok(Seed(Some(text.into())))
}

fn map(text: &str) -> Result<Map, String> {
    let why = "it is the name of a replica of this site at the target, without the site";
    let name = vbr_api::name_is_valid(text);
    name.then(|| Map(Some(text.to_string()).filter(|text| text != "none"))).ok_or_else(|| why.into())
}

fn priority(text: &str) -> Result<Priority, String> {
    match text {
        "low" => Ok(Priority::Low),
        "normal" => Ok(Priority::Normal),
        "high" => Ok(Priority::High),
        _ => Err("it is `low`, `normal` or `high`".into()),
    }
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
pub struct DiskArgument(pub DiskSpec);

impl FromStr for DiskArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = split(text).into_iter();
        let path = parts.next().unwrap_or_default();
        if path.is_empty() {
            return Err("a disk starts with its path".into());
        }
        if path.contains("://") {
            return Err(
                "a disk behind a server belongs to a host: vbrctl host add NAME --driver nbd --uri URI"
                    .into(),
            );
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
}
