//! A job's definition changes: what is named does, the rest stays. And what a definition wants of the other
//! jobs and of the peers.
//!
//! The part of the job manager that looks at more than one job's words. A session that is not over goes on with
//! the definition it began with.

use std::sync::PoisonError;

use serde_json::{Map, Value};
use vbr_api::{Job, JobEdit, JobSpec, Moment};

use super::definitions::{check, split_target};
use super::manager::{JobManager, check_disks, unknown_job};
use super::snapshot::{check_exclusions, resolve};
use super::story::Line;
use crate::error::Problem;

impl JobManager {
    /// Changes a job's definition; the same definition again is success.
    pub fn edit(&self, name: &str, edit: JobEdit) -> Result<Job, Problem> {
        let defining = self.defining.lock().unwrap_or_else(PoisonError::into_inner);
        let mut definition = self.lock().jobs.get(name).cloned().ok_or_else(|| unknown_job(name))?;
        let spec = merged(&definition.spec, edit.change)?;
        let before = std::mem::replace(&mut definition.spec, spec.clone());
        if spec == before {
            drop(defining);
            return self.show(name);
        }
        if spec.name != before.name {
            return Err(Problem::invalid(
                format!("job {name} cannot be renamed"),
                "its replica at the target has its name",
                format!(
                    "remove it, and create the other one with --map {}: it goes on with that replica",
                    before.replica()
                ),
            ));
        }
        check(&spec)?;
        self.check_surroundings(&spec)?;
        if (&spec.vm, &spec.disks, &spec.exclude) != (&before.vm, &before.disks, &before.exclude) {
            self.check_change_of_disks(&before, &spec, edit.drop_disks)?;
        }
        let rescheduled = when(&spec) != when(&before);
        let now = Moment::now();
        if rescheduled {
            definition.rescheduled_at = Some(now);
        }
        self.definitions.store(&definition)?;
        self.lock().jobs.insert(name.to_string(), definition);
        self.put_on_agenda(name);
        if rescheduled {
            self.lock().agenda.reschedule(name, now);
            self.changed.notify_one();
        }
        drop(defining);
        tracing::info!(job = name, "job changed");
        self.parts.log.note(name, None, Line::info("changed", "its definition was changed by order"));
        self.show(name)
    }

    /// Whether what the definition names is there and free: its peer, its replica, and the job it runs after.
    pub(super) fn check_surroundings(&self, spec: &JobSpec) -> Result<(), Problem> {
        let peer = split_target(&spec.target).0;
        if self.parts.wire.peer(peer).is_none() {
            return Err(Problem::not_found(
                format!("target {peer} of job {}", spec.name),
                "pair with it first: vbrctl peer invite there, vbrctl peer join CODE here",
            ));
        }
        self.check_replica_is_free(spec)?;
        let Some(first) = &spec.schedule.after else { return Ok(()) };
        let state = self.lock();
        let after = |job: &str| state.jobs.get(job).map(|other| other.spec.schedule.after.clone());
        match cycle(&spec.name, first, after) {
            Ok(()) => Ok(()),
            Err(Chain::Missing) => Err(Problem::not_found(
                format!("job {first}, after which job {} is to run", spec.name),
                "create it first; vbrctl job list shows the jobs",
            )),
            Err(Chain::Circle(names)) => Err(Problem::conflict(
                format!("job {} cannot run after job {first}", spec.name),
                format!("each would wait for the other: {}", names.join(" after ")),
                "give one of them a time of its own: --every, --at or --continuous",
            )),
        }
    }

    /// No other job runs after this one.
    pub(super) fn nothing_follows(&self, name: &str) -> Result<(), Problem> {
        let state = self.lock();
        let follows = |spec: &&JobSpec| spec.schedule.after.as_deref() == Some(name);
        let follower = state.jobs.values().map(|definition| &definition.spec).find(follows);
        match follower {
            None => Ok(()),
            Some(other) => Err(Problem::conflict(
                format!("job {name} cannot be removed"),
                format!("job {0} runs after it and would never run again", other.name),
                format!(
                    "give job {0} another time first: vbrctl job edit {0} --every 1d, or remove it",
                    other.name
                ),
            )),
        }
    }

    fn check_change_of_disks(
        &self,
        before: &JobSpec,
        spec: &JobSpec,
        drop_disks: bool,
    ) -> Result<(), Problem> {
        let (host, disks) = resolve(&self.parts, spec)?;
        check_exclusions(&*host, spec)?;
        check_disks(&spec.name, &*host, &disks)?;
        // What cannot be listed any more is not missed.
        let old = resolve(&self.parts, before).map(|(_, disks)| disks).unwrap_or_default();
        let gone = |path: &str| !disks.iter().any(|disk| disk.path == path);
        let dropped: Vec<&str> =
            old.iter().map(|disk| disk.path.as_str()).filter(|path| gone(path)).collect();
        if dropped.is_empty() || drop_disks {
            return Ok(());
        }
        Err(Problem::conflict(
            format!("job {} was not changed", spec.name),
            format!("it would lose {}: later restore points would not have it", dropped.join(" and ")),
            "name all disks of the job, or pass --drop-disks to take it out; restore points that have it stay",
        ))
    }
}

/// What makes it run, without its windows.
fn when(spec: &JobSpec) -> impl PartialEq + use<> {
    let schedule = spec.schedule.clone();
    (schedule.every_ms, schedule.at, schedule.after, schedule.continuous)
}

/// The definition with a merge patch applied (RFC 7396).
pub(super) fn merged(spec: &JobSpec, change: Map<String, Value>) -> Result<JobSpec, Problem> {
    let wrong = |why: serde_json::Error| {
        Problem::invalid(
            format!("the change of job {}", spec.name),
            why.to_string(),
            "see GET /v1/openapi.json for the fields of a job",
        )
    };
    let mut value = serde_json::to_value(spec).map_err(wrong)?;
    merge(&mut value, Value::Object(change));
    serde_json::from_value(value).map_err(wrong)
}

/// As deep as the request's parser allowed.
fn merge(into: &mut Value, change: Value) {
    let Value::Object(change) = change else {
        *into = change;
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    let Some(fields) = into.as_object_mut() else { return };
    for (name, value) in change {
        match value {
            Value::Null => drop(fields.remove(&name)),
            value => merge(fields.entry(name).or_insert(Value::Null), value),
        }
    }
}

/// Why a job cannot run after another one.
#[derive(Debug, PartialEq, Eq)]
enum Chain {
    Missing,
    /// The jobs on the way round, first and last the same.
    Circle(Vec<String>),
}

/// Follows the jobs that `job` would run after. `after` answers none for a job that is not there.
fn cycle(job: &str, first: &str, after: impl Fn(&str) -> Option<Option<String>>) -> Result<(), Chain> {
    let mut names = vec![job.to_string()];
    let mut next = Some(first.to_string());
    while let Some(name) = next {
        let again = names.contains(&name);
        names.push(name.clone());
        if again {
            // A circle without the job itself was there before; it is told all the same.
            return Err(Chain::Circle(names));
        }
        next = match after(&name) {
            Some(next) => next,
            None if name == first => return Err(Chain::Missing),
            None => None, // Of an earlier release, which did not ask.
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use vbr_api::{Priority, Retry};

    use super::*;

    fn spec() -> JobSpec {
        serde_json::from_value(json!({
            "name": "web", "target": "dr", "keep": 14, "disks": [{"path": "/a", "format": "raw"}],
            "schedule": {"every_ms": 900_000, "window": "20:00-06:00"}, "retry": {"count": 1, "pause_ms": 1000},
        }))
        .unwrap()
    }

    fn edited(change: Value) -> Result<JobSpec, Problem> {
        merged(&spec(), change.as_object().unwrap().clone())
    }

    #[test]
    fn what_is_named_changes_and_the_rest_stays() {
        let other = edited(json!({"priority": "high"})).unwrap();
        assert_eq!(other, JobSpec { priority: Priority::High, ..spec() });
        let other = edited(json!({"schedule": {"at": "02:00", "every_ms": null}, "keep": null})).unwrap();
        assert_eq!(
            (other.schedule.at.as_deref(), other.schedule.every_ms, other.keep),
            (Some("02:00"), None, None)
        );
        assert_eq!(other.schedule.window.as_deref(), Some("20:00-06:00"));
        assert_eq!(edited(json!({"retry": null})).unwrap().retry, Retry::default());
        assert_eq!(edited(json!({})).unwrap(), spec());
    }

    #[test]
    fn nonsense_is_refused() {
        for change in [
            json!({"sprice": 1}),
            json!({"target": null}),
            json!({"disks": {"path": "/b"}}),
            json!({"schedule": {"evry_ms": 1}}),
            json!({"priority": "urgent"}),
        ] {
            assert_eq!(edited(change.clone()).unwrap_err().code, "invalid", "{change}");
        }
    }

    #[test]
    fn circles_and_missing_jobs() {
        let jobs = |name: &str| match name {
            "a" => Some(None),
            "b" => Some(Some("a".to_string())),
            "c" => Some(Some("b".to_string())),
            "lost" => Some(Some("gone".to_string())),
            "web" => Some(Some("c".to_string())),
            _ => None,
        };
        for good in ["a", "b", "c", "lost"] {
            assert_eq!(cycle("new", good, jobs), Ok(()), "{good}");
        }
        assert_eq!(cycle("new", "none", jobs), Err(Chain::Missing));
        let circle = |names: [&str; 4]| Err(Chain::Circle(names.map(String::from).to_vec()));
        assert_eq!(cycle("a", "c", jobs), circle(["a", "c", "b", "a"]));
        assert!(matches!(cycle("b", "web", jobs), Err(Chain::Circle(_))));
    }
}
