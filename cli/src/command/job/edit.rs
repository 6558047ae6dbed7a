//! `vbrctl job edit`: what is named changes, the rest stays. What it comes to for disks and targets is said.

use clap::Args;
use serde_json::{Map, Value, json};
use vbr_api::{DiskSpec, Job, JobEdit};

use super::options::{NONE, Options, absolute};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;

pub const EXAMPLE: &str = "\
Example:
  vbrctl job edit web --every 1h --window any
  vbrctl job edit web --priority high --retry 5/10m
  vbrctl job edit web --manual
  vbrctl job edit shop --exclude swap.img --drop-disks
  vbrctl job edit mail --disk /srv/vm/mail.img --disk /srv/vm/mail-2.img

--disk names all disks of the job: one that is new is copied whole by the next run, and one that is left out \
is taken out of the job with --drop-disks only. A session that runs goes on with what it began with.";

#[derive(Args, Debug)]
pub struct Arguments {
    name: String,
    #[command(flatten)]
    options: Options,
    /// Take disks that are not named out of the job; restore points that have them stay
    #[arg(long)]
    drop_disks: bool,
}

impl Arguments {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let path = super::one(&self.name);
        let change = self.change()?;
        if change.is_empty() {
            return Err(Failure::usage(
                "Nothing is to be changed",
                "no option says what",
                format!("for example vbrctl job edit {} --every 1h; vbrctl job edit --help", self.name),
            ));
        }
        let before: Job = context.client.get(&path).await?.one()?;
        let edit = JobEdit { change, drop_disks: self.drop_disks };
        let document = context.client.patch_json(&path, &edit).await?;
        let after: Job = document.one()?;
        let word = if after.spec == before.spec { "unchanged" } else { "changed" };
        let line = format!("job {} {word}", self.name);
        context.output.done(&document, &line, json!({ "name": self.name }))?;
        for note in notes(&before, &after) {
            context.output.note(&note);
        }
        Ok(Exit::Done)
    }

    /// The fields that the options name; `null` takes a field away.
    fn change(&self) -> Result<Map<String, Value>, Failure> {
        let options = &self.options;
        let mut change = Map::new();
        let mut set = |name: &str, value: Value| change.insert(name.to_string(), value);
        if let Some(vm) = &options.vm {
            set("vm", json!(vm));
            set("disks", Value::Null);
        }
        if !options.disks.is_empty() {
            let disks = options.disks().into_iter();
            let disks = disks.map(|disk| Ok(DiskSpec { path: absolute(&disk.path)?, ..disk }));
            set("disks", json!(disks.collect::<Result<Vec<_>, Failure>>()?));
            set("vm", Value::Null);
            set("exclude", Value::Null);
        }
        match options.exclude.as_slice() {
            [] => {}
            [one] if one == NONE => _ = set("exclude", Value::Null),
            all => _ = set("exclude", json!(all)),
        }
        if let Some(target) = &options.target {
            set("target", json!(target));
        }
        options.keep.change().into_iter().for_each(|(name, value)| _ = set(name, value));
        if let Some(rate) = options.rate {
            set("rate_bps", json!(rate.0));
        }
        if let Some(free_space) = options.free_space {
            set("free_space", json!(free_space));
        }
        if let Some(seed) = &options.seed {
            set("seed", json!(seed.0));
        }
        if let Some(map) = &options.map {
            set("map", json!(map.0));
        }
        if let Some(priority) = options.priority {
            set("priority", json!(priority));
        }
        if let Some(retry) = options.retry {
            set("retry", json!(retry));
        }
        let mut schedule = Map::new();
        if let Some(when) = options.schedule() {
            for (name, value) in [
                ("every_ms", json!(when.every_ms)),
                ("at", json!(when.at)),
                ("after", json!(when.after)),
                ("continuous", json!(when.continuous)),
            ] {
                schedule.insert(name.into(), value);
            }
        }
        if let Some(window) = &options.window {
            schedule.insert("window".into(), json!(window.0));
        }
        if !schedule.is_empty() {
            set("schedule", Value::Object(schedule));
        }
        Ok(change)
    }
}

/// What a change comes to that its words do not say.
fn notes(before: &Job, after: &Job) -> Vec<String> {
    let (old, new) = (&before.spec, &after.spec);
    let mut notes = Vec::new();
    if old.target != new.target {
        notes.push(format!(
            "note: the replica at {} stays as it is; the next run copies everything to {}",
            old.target, new.target
        ));
    } else if old.map != new.map {
        notes.push(format!(
            "note: replica {} at {} stays as it is; the next run goes on with replica {}",
            old.replica(),
            old.target,
            new.replica()
        ));
    } else if !old.disks.is_empty() {
        let is_new = |disk: &&DiskSpec| !old.disks.iter().any(|other| other.path == disk.path);
        for disk in new.disks.iter().filter(is_new) {
            notes.push(format!("note: {} is new in the job; the next run copies it whole", disk.path));
        }
    }
    if old != new
        && let Some(session) = &after.running
    {
        notes.push(format!("note: session {session} goes on with what it began with"));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(words: &[&str]) -> Value {
        use crate::args::{Arguments as All, Noun};
        use clap::Parser;
        let all = [&["vbrctl", "job", "edit", "web"], words].concat();
        match All::try_parse_from(all).unwrap().noun {
            Noun::Job(super::super::Command::Edit(arguments)) => Value::Object(arguments.change().unwrap()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_is_named_is_sent() {
        assert_eq!(change(&[]), json!({}));
        assert_eq!(change(&["--priority", "low", "--keep", "7"]), json!({"priority": "low", "keep": 7}));
        assert_eq!(
            change(&["--rate", "none", "--keep-daily", "9"]),
            json!({"rate_bps": null, "keep_calendar": {"daily": 9}})
        );
        assert_eq!(
            change(&["--at", "02:00"]),
            json!({"schedule": {"at": "02:00", "every_ms": null, "after": null, "continuous": false}})
        );
        assert_eq!(change(&["--seed", "web-old"]), json!({"seed": "web-old"}));
        assert_eq!(change(&["--seed", "none"]), json!({"seed": null}));
        assert_eq!(change(&["--map", "web-old"]), json!({"map": "web-old"}));
        assert_eq!(change(&["--map", "none"]), json!({"map": null}));
        assert_eq!(change(&["--window", "any"]), json!({"schedule": {"window": null}}));
        assert_eq!(change(&["--manual"])["schedule"]["every_ms"], Value::Null);
        assert_eq!(change(&["--retry", "0"]), json!({"retry": {"count": 0, "pause_ms": 300_000}}));
        assert_eq!(
            change(&["--disk", "/b,format=qcow2"]),
            json!({"disks": [{"path": "/b", "format": "qcow2"}], "vm": null, "exclude": null})
        );
        assert_eq!(change(&["--vm", "local/web"]), json!({"vm": "local/web", "disks": null}));
    }
}
