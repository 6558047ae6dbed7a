//! Metrics: the site's status in Prometheus' text format.
//!
//! Pure: what `status`, `job list` and `cache stats` say, as numbers for a monitoring system. Names, units and
//! meaning are in `docs/monitoring.md`; a name is never given another meaning. Not its job: serving
//! (`control::metrics`), deciding what is wrong (the parts that give warnings).

use std::fmt::{Display, Write};

use vbr_api::{CacheStats, Job, Moment, SessionState, Status, Task, TaskState};

/// The text; `jobs` are all jobs of the site.
pub fn render(status: &Status, jobs: &[Job], cache: &CacheStats) -> String {
    let mut page = Page::default();
    site(&mut page, status);
    job(&mut page, status, jobs);
    session(&mut page, status);
    peer(&mut page, status);
    datastore(&mut page, status);
    global_cache(&mut page, cache);
    page.0
}

fn site(page: &mut Page, status: &Status) {
    let labels: &[_] = &[("site", &*status.site), ("version", &*status.version)];
    page.family("vbr_info", "gauge", "The site and its version; always 1", [(labels, 1)]);
    let started = seconds(status.started_at);
    page.family("vbr_start_time_seconds", "gauge", "When this vbrd started", [(NONE, started)]);
    let level = |level: &str| status.warnings.iter().filter(|warning| warning.level == level).count();
    page.family(
        "vbr_warnings",
        "gauge",
        "What needs attention, as `vbrctl status` lists it",
        [(&[("level", "warning")][..], level("warning")), (&[("level", "critical")], level("critical"))],
    );
}

fn job(page: &mut Page, status: &Status, jobs: &[Job]) {
    let of = |value: fn(&Job) -> Option<f64>| {
        jobs.iter().filter_map(move |job| Some(([("job", job.spec.name.as_str())], value(job)?)))
    };
    let mut family = |name: &str, help: &str, value: fn(&Job) -> Option<f64>| {
        let samples: Vec<_> = of(value).collect();
        page.family(name, "gauge", help, samples.iter().map(|(labels, value)| (&labels[..], *value)));
    };
    family("vbr_job_enabled", "1 where the job runs by itself or by order", |job| {
        Some(f64::from(u8::from(job.spec.enabled)))
    });
    family("vbr_job_last_success_timestamp_seconds", "When its last session sealed a restore point", |job| {
        job.last_success_at.map(seconds)
    });
    family("vbr_job_rpo_lag_seconds", "Age of what its last restore point shows", |job| {
        job.rpo_lag_ms.map(|ms| ms as f64 / 1000.0)
    });
    family("vbr_job_failed", "1 where its last session failed", |job| {
        Some(f64::from(u8::from(job.last_state == Some(SessionState::Failed))))
    });
    family("vbr_job_next_run_timestamp_seconds", "When it starts or goes on by itself", |job| {
        job.next_run_at.map(seconds)
    });
    let overdue: Vec<_> =
        status.jobs.iter().map(|lag| ([("job", lag.job.as_str())], u8::from(lag.overdue))).collect();
    page.family(
        "vbr_job_overdue",
        "gauge",
        "1 where two runs were due since its last restore point (RPO missed)",
        overdue.iter().map(|(labels, value)| (&labels[..], *value)),
    );
}

fn session(page: &mut Page, status: &Status) {
    let sessions = || status.sessions.iter();
    let mut family = |name: &str, help: &str, value: fn(&vbr_api::Session) -> Option<f64>| {
        let of = |session: &vbr_api::Session| Some((session.job.clone(), value(session)?));
        let samples: Vec<(String, f64)> = sessions().filter_map(of).collect();
        let labels: Vec<[(&str, &str); 1]> = samples.iter().map(|(job, _)| [("job", job.as_str())]).collect();
        let rows = labels.iter().zip(&samples).map(|(labels, (_, value))| (&labels[..], *value));
        page.family(name, "gauge", help, rows);
    };
    family("vbr_session_running", "1 while a session of the job is under way", |session| {
        Some(f64::from(u8::from(session.state == SessionState::Running)))
    });
    family("vbr_session_bytes_left", "Disk bytes that the session has not looked at yet", |session| {
        let done: u64 = session.disks.iter().map(|disk| disk.processed_bytes).sum();
        Some(session.bytes.virtual_.saturating_sub(done) as f64)
    });
    family("vbr_session_sent_wire_bytes", "What the session has sent on the link", |session| {
        Some(session.bytes.sent_wire as f64)
    });
    family("vbr_session_rate_bits_per_second", "What it sends now", |session| {
        Some(session.rate_wire_bps as f64)
    });
    family("vbr_session_eta_seconds", "When it is expected to end, from now", |session| {
        session.eta_ms.map(|ms| ms as f64 / 1000.0)
    });
}

fn peer(page: &mut Page, status: &Status) {
    let mut family = |name: &str, kind: &str, help: &str, value: fn(&vbr_api::Peer) -> Option<f64>| {
        let rows: Vec<_> = (status.peers.iter())
            .filter_map(|peer| Some(([("peer", peer.name.as_str())], value(peer)?)))
            .collect();
        page.family(name, kind, help, rows.iter().map(|(labels, value)| (&labels[..], *value)));
    };
    family("vbr_peer_connected", "gauge", "1 while the link is up", |peer| {
        Some(f64::from(u8::from(peer.connected)))
    });
    family("vbr_peer_rtt_seconds", "gauge", "Round trip of the link", |peer| {
        peer.rtt_ms.map(|ms| ms as f64 / 1000.0)
    });
    family("vbr_peer_sent_wire_bytes_total", "counter", "TCP payload sent since vbrd started", |peer| {
        Some(peer.sent_wire as f64)
    });
    family(
        "vbr_peer_received_wire_bytes_total",
        "counter",
        "TCP payload received since vbrd started",
        |peer| Some(peer.received_wire as f64),
    );
}

fn datastore(page: &mut Page, status: &Status) {
    let mut family = |name: &str, help: &str, value: fn(&vbr_api::DatastoreStatus) -> u64| {
        let rows: Vec<_> = (status.datastores.iter())
            .map(|store| ([("datastore", store.name.as_str())], value(store)))
            .collect();
        page.family(name, "gauge", help, rows.iter().map(|(labels, value)| (&labels[..], *value)));
    };
    family("vbr_datastore_size_bytes", "Size of its file system", |store| store.size_bytes);
    family("vbr_datastore_free_bytes", "Free there", |store| store.free_bytes);
    family("vbr_datastore_reserve_bytes", "Kept free: below it sessions wait", |store| store.reserve_bytes);
}

fn global_cache(page: &mut Page, cache: &CacheStats) {
    for (name, kind, help, value) in [
        ("vbr_cache_size_bytes", "gauge", "Most bytes the global cache may take", cache.size_bytes),
        ("vbr_cache_used_bytes", "gauge", "Bytes it takes", cache.used_bytes),
        ("vbr_cache_lookups_total", "counter", "Chunks asked for since vbrd started", cache.lookups),
        ("vbr_cache_hits_total", "counter", "Of these, found", cache.hits),
        (
            "vbr_cache_bad_records_total",
            "counter",
            "Records that failed their check and were dropped",
            cache.bad_records,
        ),
        (
            "vbr_cache_evicted_packs_total",
            "counter",
            "Packs that made room for newer ones",
            cache.evicted_packs,
        ),
    ] {
        page.family(name, kind, help, [(NONE, value)]);
    }
}

/// Background workers, which follow the rest.
pub fn tasks(tasks: &[Task]) -> String {
    let mut page = Page::default();
    let mut family = |name: &str, kind: &str, help: &str, value: fn(&Task) -> Option<f64>| {
        let rows: Vec<_> =
            (tasks.iter()).filter_map(|task| Some(([("task", task.name.as_str())], value(task)?))).collect();
        page.family(name, kind, help, rows.iter().map(|(labels, value)| (&labels[..], *value)));
    };
    family("vbr_task_up", "gauge", "1 unless the worker is stuck or its last run failed", |task| {
        let state = task.state;
        let up = task.failures == 0 && !matches!(state, TaskState::Stuck | TaskState::Failed);
        Some(f64::from(u8::from(up)))
    });
    family("vbr_task_finding", "gauge", "1 where its last run found what needs attention", |task| {
        Some(f64::from(u8::from(task.finding.is_some())))
    });
    family("vbr_task_runs_total", "counter", "Runs since vbrd started", |task| Some(task.runs as f64));
    family("vbr_task_last_run_timestamp_seconds", "gauge", "When its last run began", |task| {
        task.last_run_at.map(seconds)
    });
    family("vbr_task_duration_seconds", "gauge", "How long its last run took, or takes", |task| {
        task.duration_ms.map(|ms| ms as f64 / 1000.0)
    });
    let counts: Vec<_> = (tasks.iter())
        .flat_map(|task| task.counters.iter().map(move |(count, value)| (task, count, value)))
        .map(|(task, count, value)| ([("task", task.name.as_str()), ("count", count.as_str())], *value))
        .collect();
    page.family(
        "vbr_task_work_total",
        "counter",
        "What the worker did since vbrd started",
        counts.iter().map(|(labels, value)| (&labels[..], *value)),
    );
    page.0
}

/// No labels.
const NONE: &[(&str, &str)] = &[];

#[derive(Default)]
struct Page(String);

impl Page {
    /// One metric with all its samples; none where there are none.
    fn family<'a, V: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = (&'a [(&'a str, &'a str)], V)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let labels: Vec<String> =
                labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
            let _ = match labels.is_empty() {
                true => writeln!(self.0, "{name} {value}"),
                false => writeln!(self.0, "{name}{{{}}} {value}", labels.join(",")),
            };
        }
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn seconds(moment: Moment) -> f64 {
    moment.as_millisecond() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbr_api::{JobLag, Warning};

    fn status() -> Status {
        let warning = |level: &str| Warning { level: level.into(), what: "w".into(), next_step: "n".into() };
        let lag = |job: &str, overdue| JobLag {
            job: job.into(),
            enabled: true,
            rpo_lag_ms: Some(1500),
            last_state: None,
            overdue,
        };
        Status {
            site: "dr \"1\"".into(),
            peer_id: "x".into(),
            version: "0.1.0".into(),
            started_at: Moment::UNIX_EPOCH,
            listeners: Vec::new(),
            peers: Vec::new(),
            sessions: Vec::new(),
            jobs: vec![lag("web", true), lag("db", false)],
            datastores: vec![vbr_api::DatastoreStatus {
                name: "default".into(),
                path: "/x".into(),
                backend: "reflink".into(),
                size_bytes: 100,
                free_bytes: 50,
                reserve_bytes: 5,
            }],
            replicas: 0,
            receiving: Vec::new(),
            warnings: vec![warning("critical"), warning("warning"), warning("critical")],
        }
    }

    #[test]
    fn every_line_is_a_sample_or_describes_one() {
        let text = render(&status(), &[], &CacheStats { hits: 7, ..CacheStats::default() });
        for line in [
            "vbr_info{site=\"dr \\\"1\\\"\",version=\"0.1.0\"} 1",
            "vbr_warnings{level=\"critical\"} 2",
            "vbr_warnings{level=\"warning\"} 1",
            "vbr_job_overdue{job=\"web\"} 1",
            "vbr_job_overdue{job=\"db\"} 0",
            "vbr_datastore_free_bytes{datastore=\"default\"} 50",
            "vbr_cache_hits_total 7",
            "# TYPE vbr_cache_hits_total counter",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("vbr_peer_"), "nothing is said of what there is none of");
        let mut described = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                described = rest.split(' ').next().unwrap();
            } else if !line.starts_with('#') {
                assert!(line.starts_with(described), "{line} under {described}");
                assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
            }
        }
    }

    /// What the administrator reads is what there is.
    #[test]
    fn the_documentation_names_each_of_them() {
        let docs = include_str!("../../../docs/monitoring.md");
        let source = include_str!("metrics.rs").split("#[cfg(test)]").next().unwrap();
        let names: Vec<&str> =
            source.split('"').filter(|word| word.starts_with("vbr_") && !word.contains(' ')).collect();
        assert!(names.len() > 20);
        // Nor does an alert ask for what does not exist.
        for word in docs.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            assert!(!word.starts_with("vbr_") || names.contains(&word), "{word} is no metric");
        }
        for name in names {
            assert!(docs.contains(&format!("`{name}`")), "{name} is not in docs/monitoring.md");
        }
    }
}
