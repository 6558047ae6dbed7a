//! Jobs and plans for people.

use vbr_api::{FreeSpace, Job, PendingRetry, Plan, Retry};

use super::keep;
use crate::human;
use crate::output::View;
use crate::summary::{self, state_cell};
use crate::table::{Cell, Facts, Table, Tone, section};

/// Jobs as a table.
pub fn table(jobs: &[Job], view: &View) -> String {
    let columns = [
        "NAME",
        "SOURCE",
        "TARGET",
        ">KEEP",
        "STATE",
        ">RPO LAG",
        "NEXT RUN",
        "LAST SUCCESS",
        "+LAST SESSION",
        "+CREATED",
    ];
    let mut table = Table::new(view, &columns);
    for job in jobs {
        table.row(vec![
            job.spec.name.as_str().into(),
            source(job).into(),
            job.spec.target.as_str().into(),
            keep::short(&job.spec).into(),
            state(job),
            job.rpo_lag_ms.map(human::span_short).unwrap_or_default().into(),
            next_run(job, view).into(),
            job.last_success_at.map_or("never".into(), |at| human::age(at, view.now)).into(),
            job.last_session.clone().unwrap_or_default().into(),
            human::age(job.created_at, view.now).into(),
        ]);
    }
    table.finish()
}

/// One job at length.
pub fn facts(job: &Job, view: &View) -> String {
    let mut facts = Facts::new();
    facts
        .add("Job", job.spec.name.as_str())
        .add("Target", job.spec.target.as_str())
        .add("Keep", keep::long(job.spec.keep, &job.spec.keep_calendar))
        .add(
            "Free space",
            match job.spec.free_space {
                FreeSpace::Keep => "travels like everything else (keep)",
                FreeSpace::Auto => "is skipped where that is proven safe (auto)",
            },
        )
        .add_some("Replica", job.spec.map.clone())
        .add_some("Seed", job.spec.seed.clone())
        .add_some("Rate", job.spec.rate_bps.map(|rate| format!("at most {}", human::rate(rate))))
        .add("Schedule", summary::schedule(job))
        .add("Window", job.spec.schedule.window.clone().unwrap_or_else(|| "any time".into()))
        .add("Priority", job.spec.priority.as_str())
        .add("Retries", retries(job.spec.retry))
        .add_some("Next retry", job.pending_retry.map(|retry| retry_words(&retry)))
        .add("Next run", job.next_run_at.map_or("by order".into(), human::moment))
        .add("Enabled", if job.spec.enabled { "yes" } else { "no" })
        .add_some("VM", job.spec.vm.clone())
        .add_some("Without", Some(job.spec.exclude.join(", ")).filter(|left| !left.is_empty()))
        .add("Created", human::moment(job.created_at))
        .add("Running", job.running.clone().unwrap_or_else(|| "no".into()));
    facts.add(
        "Last session",
        match (&job.last_session, job.last_state) {
            (Some(session), Some(state)) => format!("{session}, {}", state.as_str()),
            (Some(session), None) => session.clone(),
            _ => "none yet".into(),
        },
    );
    facts.add("Last success", job.last_success_at.map_or("never".into(), |at| human::age(at, view.now)));
    facts.add("RPO lag", job.rpo_lag_ms.map_or("no restore point yet".into(), human::span));
    let mut text = facts.finish();
    if !job.spec.disks.is_empty() {
        let mut disks = Table::new(view, &["#", "PATH", "FORMAT"]);
        for (number, disk) in job.spec.disks.iter().enumerate() {
            disks.row(vec![
                number.to_string().into(),
                disk.path.as_str().into(),
                disk.format.as_str().into(),
            ]);
        }
        text.push_str(&section("Disks", &disks.finish()));
    }
    text
}

fn retries(retry: Retry) -> String {
    match retry.count {
        0 => "none".into(),
        count => format!("up to {count} after a failure, the first after {}", human::span(retry.pause_ms)),
    }
}

/// `retry 2 of 3 at 14:05:00 UTC`
fn retry_words(retry: &PendingRetry) -> String {
    format!("retry {} of {} at {}", retry.number, retry.of, retry.at.strftime("%H:%M:%S UTC"))
}

fn next_run(job: &Job, view: &View) -> String {
    if let Some(retry) = &job.pending_retry {
        return retry_words(retry);
    }
    match job.next_run_at {
        Some(at) if at <= view.now => "now".into(),
        Some(at) => format!("in {}", human::span_short(human::between(view.now, at))),
        None => String::new(),
    }
}

/// What a run would do.
pub fn plan(plan: &Plan, _: &View) -> String {
    let mut facts = Facts::new();
    facts
        .add("Job", plan.job.as_str())
        .add("Mode", plan.mode.as_str())
        .add("Virtual", human::size(plan.virtual_bytes))
        .add("Would read", human::size(plan.read_bytes))
        .add(
            "Changed",
            format!("{} ({} of it zero)", human::size(plan.changed_bytes), human::size(plan.zero_bytes)),
        )
        .add("Known there", known(plan))
        .add("Unseen", human::size(plan.unseen_bytes))
        .add("Would send", format!("about {}", human::size(plan.send_bytes)))
        .add(
            "Would take",
            plan.duration_ms
                .map_or("not known before the first run".into(), |ms| format!("about {}", human::span(ms))),
        )
        .add_all("Would retire", plan.retires.iter().cloned());
    facts.finish()
}

fn known(plan: &Plan) -> String {
    let known = human::size(plan.known_bytes);
    match plan.known_from.as_str() {
        "estimated" => {
            let error = human::size(plan.known_error_bytes);
            format!("about {known} (estimated from a sample, give or take {error}), need not be sent")
        }
        _ => format!("{known}, need not be sent"),
    }
}

fn source(job: &Job) -> String {
    match (&job.spec.vm, job.spec.disks.as_slice()) {
        (Some(vm), _) => vm.clone(),
        (None, [disk]) => disk.path.clone(),
        (None, [first, rest @ ..]) => format!("{} and {} more", first.path, rest.len()),
        (None, []) => String::new(),
    }
}

fn state(job: &Job) -> Cell {
    match (&job.running, job.spec.enabled, job.last_state) {
        (Some(_), _, _) => Cell::toned("running", Tone::Good),
        (None, false, _) => Cell::toned("disabled", Tone::Watch),
        (None, true, Some(state)) => state_cell(state),
        (None, true, None) => "never ran".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_to_be_tried_again_says_so() {
        let text = r#"{"name":"web","disks":[],"target":"dr","priority":"high","retry":{"count":3,"pause_ms":300000},
            "created_at":"2026-11-20T10:00:00Z","running":null,"last_session":"s1","last_state":"failed",
            "last_success_at":null,"rpo_lag_ms":null,"next_run_at":"2026-11-22T14:05:00Z",
            "pending_retry":{"number":2,"of":3,"at":"2026-11-22T14:05:00Z"}}"#;
        let job: Job = serde_json::from_str(text).unwrap();
        let view = View { wide: false, color: false, now: "2026-11-22T14:00:00Z".parse().unwrap() };
        let listed = table(std::slice::from_ref(&job), &view);
        assert!(listed.contains("retry 2 of 3 at 14:05:00 UTC"), "{listed}");
        let shown = facts(&job, &view);
        for part in
            ["Priority      high", "up to 3 after a failure, the first after 5 min", "retry 2 of 3 at 14:05"]
        {
            assert!(shown.contains(part), "{part:?} in\n{shown}");
        }
    }
}
