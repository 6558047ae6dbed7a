//! What a change of a session means to whoever reads the job's log: pure, from the session before and after.

use vbr_api::{Session, SessionState};

use crate::config::NotifyEvent;

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// `info`, `warning` or `error`.
    pub level: &'static str,
    /// What kind of thing happened.
    pub event: &'static str,
    /// One sentence.
    pub text: String,
    /// Hooks may want to hear of it.
    pub tell: Option<NotifyEvent>,
}

impl Line {
    /// It goes as it should.
    pub fn info(event: &'static str, text: impl Into<String>) -> Self {
        Self { level: "info", event, text: text.into(), tell: None }
    }

    /// Nothing is lost.
    pub fn warning(event: &'static str, text: impl Into<String>) -> Self {
        Self { level: "warning", ..Self::info(event, text) }
    }

    /// Somebody has to look.
    pub fn error(event: &'static str, text: impl Into<String>) -> Self {
        Self { level: "error", ..Self::info(event, text) }
    }

    fn telling(self, event: NotifyEvent) -> Self {
        Self { tell: Some(event), ..self }
    }
}

/// What happened between the two, in the order it is told.
pub fn changes(before: &Session, after: &Session) -> Vec<Line> {
    let mut lines = Vec::new();
    let resource = |session: &Session| session.waits_for.as_ref().map(|wait| wait.resource.clone());
    if let Some(wait) = after.waits_for.as_ref().filter(|_| resource(before) != resource(after)) {
        lines.push(Line::info(
            "waits",
            format!("waits for a slot of {}, place {}", wait.resource, wait.place),
        ));
    }
    if before.disks.is_empty() {
        for disk in &after.disks {
            let how = match disk.snapshot.as_str() {
                "export" => "from a server's export".to_owned(),
                "live" => "as it is: nobody holds it still".to_owned(),
                kind => format!("from a {kind}"),
            };
            let text = format!("{}: {} bytes, read {how}", disk.path, disk.virtual_bytes);
            lines.push(Line::info("snapshot", text));
        }
    }
    if before.vm_changes != after.vm_changes && !after.vm_changes.is_empty() {
        let text =
            format!("the VM is another than at the last restore point: {}", after.vm_changes.join("; "));
        lines.push(Line::info("vm_changed", text));
    }
    for warning in after.warnings.iter().skip(before.warnings.len()) {
        lines.push(Line::warning("warning", warning.as_str()));
    }
    match (&before.stalled, &after.stalled) {
        (None, Some(stall)) => {
            let since = stall.since.strftime("%H:%M:%S UTC");
            let text = format!("job {} stands still at {} since {since}", after.job, stall.stage);
            lines.push(Line::warning("stalled", text).telling(NotifyEvent::Stall));
        }
        (Some(_), None) if !after.state.is_over() => lines.push(Line::info("moves", "it moves again")),
        _ => {}
    }
    if before.error != after.error
        && !after.state.is_over()
        && let Some(error) = &after.error
    {
        let tries = if after.retry_number > before.retry_number {
            format!(" (try {})", after.retry_number)
        } else {
            String::new()
        };
        lines.push(Line::warning(
            "trouble",
            format!("{}: {}; {}{tries}", error.what, error.why, error.next_step),
        ));
    }
    if before.state != after.state {
        lines.extend(state(before, after));
    }
    lines
}

fn state(before: &Session, after: &Session) -> Option<Line> {
    let line = match after.state {
        SessionState::Pending => return None, // What it waits for is told.
        SessionState::Running if before.state == SessionState::Waiting => Line::info("goes_on", "goes on"),
        SessionState::Running => Line::info("started", "has its slots and starts"),
        SessionState::Waiting => {
            Line::info("waiting", "waits for the link or the target, and goes on by itself")
        }
        SessionState::Suspended => Line::info("suspended", "suspended at a durable position, goes on later"),
        SessionState::Succeeded => {
            Line::info("sealed", format!("job {} {}", after.job, sealed(after))).telling(NotifyEvent::Success)
        }
        SessionState::Warning => {
            let why = after.warnings.last().map(|why| format!("; {why}")).unwrap_or_default();
            let text = format!("job {} {}, and needs a look{why}", after.job, sealed(after));
            Line::warning("sealed", text).telling(NotifyEvent::Warning)
        }
        SessionState::Failed => {
            let why = after.error.as_ref().map_or("no reason is known".to_string(), |error| {
                format!("{}: {}; {}", error.what, error.why, error.next_step)
            });
            Line::error("failed", format!("job {} failed: {why}", after.job)).telling(NotifyEvent::Failure)
        }
        SessionState::Cancelled => Line::warning("cancelled", "cancelled by order"),
    };
    Some(line)
}

fn sealed(session: &Session) -> String {
    let took = session.ended_at.map_or(String::new(), |ended| {
        format!(" in {:.1} s", ended.duration_since(session.started_at).as_secs_f64())
    });
    format!(
        "sealed restore point {}{took}: {} bytes read, {} changed, {} sent on the wire",
        session.restore_point.as_deref().unwrap_or_default(),
        session.bytes.read,
        session.bytes.changed,
        session.bytes.sent_wire,
    )
}

#[cfg(test)]
mod tests {
    use vbr_api::{ErrorBody, JobSpec, Moment, Stall, WaitsFor};

    use super::*;

    fn session(state: SessionState) -> Session {
        let spec: JobSpec = serde_json::from_str(r#"{"name":"web","target":"dr","disks":[]}"#).unwrap();
        Session { state, ..super::super::running::blank(&spec) }
    }

    fn error() -> ErrorBody {
        let text = |text: &str| text.to_string();
        ErrorBody {
            code: text("x"),
            what: text("disk"),
            why: text("gone"),
            next_step: text("look"),
            retry: true,
        }
    }

    fn events(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| line.event).collect()
    }

    #[test]
    fn a_run_tells_its_story() {
        let pending = session(SessionState::Pending);
        let wait = |place| Some(WaitsFor { resource: "link dr".into(), place });
        let second = Session { waits_for: wait(2), ..pending.clone() };
        assert_eq!(changes(&pending, &second)[0].text, "waits for a slot of link dr, place 2");
        let first = Session { waits_for: wait(1), ..pending.clone() };
        assert!(changes(&second, &first).is_empty(), "its place alone is no news");
        let running = session(SessionState::Running);
        assert_eq!(events(&changes(&first, &running)), ["started"]);
        let trouble = Session { error: Some(error()), retry_number: 1, ..running.clone() };
        let lines = changes(&running, &trouble);
        assert_eq!((lines[0].level, lines[0].text.as_str()), ("warning", "disk: gone; look (try 1)"));
        assert!(changes(&trouble, &trouble).is_empty());
        let sealed = Session { restore_point: Some("p1".into()), ..session(SessionState::Succeeded) };
        let lines = changes(&running, &sealed);
        assert_eq!((events(&lines), lines[0].tell), (vec!["sealed"], Some(NotifyEvent::Success)));
        assert!(lines[0].text.starts_with("job web sealed restore point p1"), "{}", lines[0].text);
    }

    #[test]
    fn a_failure_is_told_with_its_reason_once() {
        let running = session(SessionState::Running);
        let failed = Session { error: Some(error()), ..session(SessionState::Failed) };
        let lines = changes(&running, &failed);
        assert_eq!((events(&lines), lines[0].level), (vec!["failed"], "error"));
        assert_eq!(lines[0].text, "job web failed: disk: gone; look");
        assert_eq!(lines[0].tell, Some(NotifyEvent::Failure));
    }

    #[test]
    fn what_changed_in_the_vm_is_told_once() {
        let running = session(SessionState::Running);
        let vm_changes = vec!["memory: 2 GiB -> 4 GiB".to_string(), "disk 1 added (virtio)".to_string()];
        let changed = Session { vm_changes, ..running.clone() };
        let lines = changes(&running, &changed);
        let text =
            "the VM is another than at the last restore point: memory: 2 GiB -> 4 GiB; disk 1 added (virtio)";
        assert_eq!((lines[0].level, lines[0].event, lines[0].text.as_str()), ("info", "vm_changed", text));
        assert!(changes(&changed, &changed).is_empty());
    }

    #[test]
    fn a_stall_is_told_when_it_begins() {
        let running = session(SessionState::Running);
        let stalled = Some(Stall { stage: "network".into(), since: Moment::UNIX_EPOCH });
        let still = Session { stalled, warnings: vec!["it stood still".into()], ..running.clone() };
        let lines = changes(&running, &still);
        assert_eq!(events(&lines), ["warning", "stalled"]);
        assert_eq!(lines[1].tell, Some(NotifyEvent::Stall));
        assert_eq!(events(&changes(&still, &Session { stalled: None, ..still.clone() })), ["moves"]);
    }
}
