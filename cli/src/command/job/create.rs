//! `vbrctl job create`: from options, a file, or both (options win).

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use vbr_api::{DiskSpec, JobSpec, Retry, Schedule, name_is_valid};

use super::definition::Definition;
use super::options::{Options, absolute};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;

pub const EXAMPLE: &str = "\
Example:
  vbrctl job create web --disk /srv/vm/web.img --target dr --keep 14
  vbrctl job create mail --disk system.qcow2,format=qcow2 --disk data.img \\
      --target dr/fast
  vbrctl job create shop --vm local/shop --exclude /srv/vm/swap.img --target dr
  vbrctl job create crm --disk /srv/vm/crm.img --target dr --every 15m \\
      --window 'Mon..Fri 18:00-07:00'
  vbrctl job create erp --disk /srv/vm/erp.img --target dr --keep 24 \\
      --keep-daily 7 --keep-weekly 4 --keep-monthly 12
  vbrctl job create bulk --disk /srv/vm/bulk.img --target dr --rate 8Mbit
  vbrctl job create shop --disk /srv/vm/shop.img --target dr \\
      --seed /var/lib/vbr/datastore/seed/shop.img
  vbrctl job create shop --disk /srv/new/shop.img --target dr --map shop-old
  vbrctl job create log --disk /srv/vm/log.img --target dr \\
      --at 'Mon..Fri 02:00' --priority low --retry 5/10m
  vbrctl job create --from web.toml";

#[derive(Args, Debug)]
pub struct Arguments {
    /// Name of the job, and of its replica at the target: a-z 0-9 . _ - (at most 64)
    #[arg(required_unless_present = "from")]
    name: Option<String>,
    #[command(flatten)]
    options: Options,
    /// Read the definition from a TOML file (see job export); options override it
    #[arg(long, value_name = "FILE.toml")]
    from: Option<PathBuf>,
}

impl Arguments {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let spec = self.spec()?;
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
        let options = self.options;
        let (keep, keep_calendar) = options.keep.with(&file);
        let schedule = options.schedule();
        let (vm, disks) = if options.vm.is_some() || !options.disks.is_empty() {
            (options.vm.clone(), options.disks())
        } else {
            let disks =
                file.disks.iter().map(|disk| DiskSpec { path: disk.path.clone(), format: disk.format });
            (file.vm.clone(), disks.collect::<Vec<_>>())
        };
        let missing = |what: &str, option: &str| {
            Failure::usage(
                format!("The job has no {what}"),
                "neither the options nor the file name it",
                format!("add {option}"),
            )
        };
        let name = self.name.or(file.name).ok_or_else(|| missing("name", "NAME"))?;
        let target = options.target.or(file.target).ok_or_else(|| missing("target", "--target PEER"))?;
        if vm.is_none() && disks.is_empty() {
            return Err(missing("source", "--disk PATH or --vm HOST/VM"));
        }
        let window = options.window.map_or(file.window, |window| window.0);
        let schedule = match schedule {
            Some(schedule) => schedule,
            None => Schedule {
                every_ms: file.every.as_deref().map(every).transpose()?,
                at: file.at,
                after: file.after,
                continuous: file.continuous.unwrap_or_default(),
                window: None,
            },
        };
        let rate_bps = match (options.rate, file.rate.as_deref()) {
            (None, Some(text)) => Some(rate(text)?),
            (given, _) => given.and_then(|rate| rate.0),
        };
        let disks = disks.into_iter().map(|disk| Ok(DiskSpec { path: absolute(&disk.path)?, ..disk }));
        let spec = JobSpec {
            name,
            vm,
            disks: disks.collect::<Result<_, Failure>>()?,
            exclude: if options.exclude.is_empty() { file.exclude } else { options.exclude },
            target,
            keep,
            keep_calendar,
            free_space: options.free_space.or(file.free_space).unwrap_or_default(),
            rate_bps,
            schedule: Schedule { window, ..schedule },
            priority: options.priority.or(file.priority).unwrap_or_default(),
            retry: match (options.retry, file.retry.as_deref()) {
                (Some(retry), _) => retry,
                (None, Some(text)) => tries(text)?,
                (None, None) => Retry::default(),
            },
            map: options.map.map_or(file.map, |map| map.0),
            seed: options.seed.map_or(file.seed, |seed| seed.0),
            enabled: file.enabled.unwrap_or(true),
        };
        check(&spec)?;
        Ok(spec)
    }
}

/// `retry` of a file.
fn tries(text: &str) -> Result<Retry, Failure> {
    human::parse_retry(text)
        .map_err(|why| Failure::usage("The job's retries cannot be read", why, "say retry = \"3/5m\""))
}

/// `every` of a file.
fn every(text: &str) -> Result<u64, Failure> {
    let wrong = |why| Failure::usage("The job's interval cannot be read", why, "say every = \"15m\"");
    let span = human::parse_span(text).map_err(wrong)?;
    Ok(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}

/// `rate` of a file.
fn rate(text: &str) -> Result<u64, Failure> {
    let wrong = |why| Failure::usage("The job's rate cannot be read", why, "say rate = \"8Mbit\"");
    crate::human::parse_rate(text).map_err(wrong)
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

#[cfg(test)]
mod tests {
    use std::fs;

    use vbr_api::Priority;

    use super::*;

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
    fn priorities_retries_and_what_takes_things_away() {
        let base = ["web", "--disk", "/a", "--target", "dr"];
        let with = |words: &[&str]| arguments(&[&base, words].concat()).unwrap();
        let plain = with(&[]);
        assert_eq!((plain.priority, plain.retry), (Priority::Normal, Retry { count: 3, pause_ms: 300_000 }));
        let other = with(&["--priority", "high", "--retry", "5/10m"]);
        assert_eq!((other.priority, other.retry), (Priority::High, Retry { count: 5, pause_ms: 600_000 }));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("job.toml");
        let text =
            "every = \"1h\"\nwindow = \"20:00-06:00\"\nkeep = 7\npriority = \"low\"\nretry = \"1/1m\"\n";
        fs::write(&file, text).unwrap();
        let from = ["--from", file.to_str().unwrap()];
        let read = with(&from);
        assert_eq!((read.priority, read.retry), (Priority::Low, Retry { count: 1, pause_ms: 60_000 }));
        let over =
            with(&[&from[..], &["--manual", "--window", "any", "--keep", "all", "--retry", "0"]].concat());
        assert_eq!((over.schedule, over.keep, over.retry.count), (Schedule::default(), None, 0));
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
