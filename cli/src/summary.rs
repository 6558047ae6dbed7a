//! A session for people: one row of a list, and the whole story of one run.
//!
//! Pure rendering. `saved` is always said against something: what was read, or what had changed.

use vbr_api::{Job, Schedule, Session, SessionState, StageLoad};

use crate::human;
use crate::output::View;
use crate::table::{Cell, Facts, Table, Tone, section};

/// A state with its colour.
pub fn state_cell(state: SessionState) -> Cell {
    let tone = match state {
        SessionState::Succeeded => Tone::Good,
        SessionState::Running | SessionState::Pending => Tone::Plain,
        SessionState::Waiting | SessionState::Suspended | SessionState::Warning => Tone::Watch,
        SessionState::Failed | SessionState::Cancelled => Tone::Bad,
    };
    Cell::toned(state.as_str(), tone)
}

/// When a job runs.
pub fn schedule(job: &Job) -> String {
    match &job.spec.schedule {
        Schedule { every_ms: Some(ms), .. } => format!("every {}", human::exact_span(*ms)),
        Schedule { at: Some(at), .. } => format!("at {at}"),
        Schedule { after: Some(after), .. } => format!("after job {after}"),
        Schedule { continuous: true, .. } => "continuous".into(),
        _ => "by order".into(),
    }
}

/// Sessions of any job as a table, and what went wrong in some.
pub fn sessions(sessions: &[Session], view: &View) -> String {
    let columns = [
        "STARTED",
        "JOB",
        "+PEER",
        "STATE",
        ">TIME",
        ">READ",
        ">CHANGED",
        ">SENT",
        ">RATIO",
        ">+RATE",
        "+SLOWEST",
        ">+RESUMED",
        "+MODE",
        "+SESSION",
        "+RESTORE POINT",
    ];
    let mut table = Table::new(view, &columns);
    for session in sessions {
        let mut state = state_cell(session.state);
        if session.state == SessionState::Running {
            state = format!("running {}", done(session)).into();
        }
        let mut row =
            vec![started(session), session.job.as_str().into(), session.peer.as_str().into(), state];
        row.extend(figures(session, view));
        row.extend([
            human::rate(session.rate_wire_bps).into(),
            slowest(session).into(),
            session.resumed.to_string().into(),
            session.mode.as_str().into(),
            session.session.as_str().into(),
            session.restore_point.clone().unwrap_or_default().into(),
        ]);
        table.row(row);
    }
    table.finish() + &reasons(sessions, view)
}

/// The runs of one job as a table of 80 columns, and what went wrong in some.
pub fn history(sessions: &[Session], view: &View) -> String {
    let columns = [
        "STARTED",
        "RESULT",
        ">TIME",
        ">READ",
        ">CHANGED",
        ">SENT",
        ">RATIO",
        ">MBIT/S",
        "SLOWEST",
        "+SESSION",
        "+MODE",
        ">+RESUMED",
        "+RESTORE POINT",
    ];
    let mut table = Table::new(view, &columns);
    for session in sessions {
        let mut row = vec![started(session), state_cell(session.state)];
        row.extend(figures(session, view));
        row.extend([
            format!("{:.1}", session.rate_wire_bps as f64 / 1e6).into(),
            slowest(session).into(),
            session.session.as_str().into(),
            session.mode.as_str().into(),
            session.resumed.to_string().into(),
            session.restore_point.clone().unwrap_or_default().into(),
        ]);
        table.row(row);
    }
    table.finish() + &reasons(sessions, view)
}

/// To the minute: the day and the time are what a run is known by.
fn started(session: &Session) -> Cell {
    session.started_at.strftime("%m-%d %H:%M").to_string().into()
}

/// Time, read, changed, sent, and how much of what had changed one sent byte stands for.
fn figures(session: &Session, view: &View) -> [Cell; 5] {
    let bytes = &session.bytes;
    [
        human::span_tiny(elapsed_ms(session, view)).into(),
        human::size_short(bytes.read).into(),
        human::size_short(bytes.changed).into(),
        human::size_short(bytes.sent_wire).into(),
        human::ratio(bytes.changed, bytes.sent_wire).into(),
    ]
}

/// The bottleneck in nine characters at most.
pub fn slowest(session: &Session) -> String {
    let stage = session.bottleneck.as_deref().unwrap_or_default();
    stage.replace("source_", "src ").replace("target_", "tgt ").replace("accelerator", "accel")
}

/// Why sessions failed or need a look.
fn reasons(sessions: &[Session], view: &View) -> String {
    let mut table = Table::new(view, &["SESSION", "REASON"]);
    let mut any = false;
    for session in sessions {
        let error = session.error.as_ref().map(|error| format!("{}: {}", error.what, error.why));
        let warning = (session.state == SessionState::Warning).then(|| session.warnings.join("; "));
        if let Some(reason) = error.or(warning) {
            any = true;
            table.row(vec![session.session.as_str().into(), reason.into()]);
        }
    }
    if any { format!("\n{}", section("What went wrong", &table.finish())) } else { String::new() }
}

/// How much was read, and why not less.
fn read_words(session: &Session) -> String {
    let size = human::size(session.bytes.read);
    match &session.full_read_reason {
        _ if session.tracked => format!("{size}: what was written since the last restore point"),
        Some(why) if session.transport_mode == "network" => format!("{size}: {why}"),
        _ => size,
    }
}

/// One session at length: `session show`, and the end of `job run --wait`.
pub fn session(session: &Session, view: &View) -> String {
    let bytes = &session.bytes;
    let mut facts = Facts::new();
    facts
        .add("Session", session.session.as_str())
        .add("Job", format!("{} to {}", session.job, session.peer))
        .add("State", state_words(session))
        .add("Mode", format!("{}, disks read {}", session.mode, transport_words(&session.transport_mode)))
        .add("Virtual", human::size(bytes.virtual_))
        .add("Read", read_words(session))
        .add("Changed", changed_words(session))
        .add("Sent on the wire", sent_words(session))
        .add("Saved", saved_words(session))
        .add("Time", time_words(session, view));
    if !session.state.is_over() {
        facts.add("Rate", human::rate(session.rate_wire_bps));
        facts.add_some("Left", session.eta_ms.map(|ms| format!("about {}", human::span(ms))));
    }
    facts.add_some("Bottleneck", session.bottleneck.clone());
    facts.add_some("Compression", session.compression.as_ref().map(compression_words));
    if view.wide {
        facts.add("Stage load", load_words(&session.stage_load_percent));
        let chunks = &session.chunks;
        facts.add(
            "Chunks",
            format!(
                "{}: {} unchanged, {} known, {} delta, {} literal",
                chunks.total, chunks.unchanged, chunks.known, chunks.delta, chunks.literal
            ),
        );
    }
    for disk in session.disks.iter().filter(|disk| !disk.volumes.is_empty()) {
        facts.add_all("Free space", disk.volumes.iter().map(volume_words));
    }
    facts.add("Restore point", point_words(session));
    facts.add_all("Warnings", session.warnings.iter().cloned());
    if let Some(error) = &session.error {
        facts.add_all("Error", [format!("{}: {}", error.what, error.why), error.next_step.clone()]);
    }
    let mut text = facts.finish();
    if !session.disks.is_empty() {
        text.push_str(&section("Disks", &disks(session, view)));
    }
    text
}

fn compression_words(compression: &vbr_api::Compression) -> String {
    let bases = if compression.bases { "with bases" } else { "without bases" };
    format!(
        "{} (zstd {}, batches of {}, {bases}): {}",
        compression.effort,
        compression.level,
        human::size(compression.batch_bytes),
        compression.reason
    )
}

/// What became of a volume's free space.
pub fn volume_words(volume: &vbr_api::DiskVolume) -> String {
    let skipped = human::size(volume.skipped_bytes);
    format!("{} ({}): {skipped}, {}", volume.name, volume.kind, volume.reason)
}

/// Milliseconds a session took, or takes so far.
pub fn elapsed_ms(session: &Session, view: &View) -> u64 {
    human::between(session.started_at, session.ended_at.unwrap_or(view.now))
}

/// How much of the disks is settled.
pub fn done(session: &Session) -> String {
    let whole: u64 = session.disks.iter().map(|disk| disk.virtual_bytes).sum();
    let part: u64 = session.disks.iter().map(|disk| disk.processed_bytes).sum();
    human::percent(part, whole)
}

fn disks(session: &Session, view: &View) -> String {
    let columns = ["#", "PATH", "FORMAT", ">VIRTUAL", ">DONE", ">READ", ">CHANGED", ">SENT", "+SNAPSHOT"];
    let mut table = Table::new(view, &columns);
    for (number, disk) in session.disks.iter().enumerate() {
        table.row(vec![
            number.to_string().into(),
            disk.path.as_str().into(),
            disk.format.as_str().into(),
            human::size(disk.virtual_bytes).into(),
            human::percent(disk.processed_bytes, disk.virtual_bytes).into(),
            human::size(disk.read_bytes).into(),
            human::size(disk.changed_bytes).into(),
            human::size(disk.sent_bytes).into(),
            disk.snapshot.as_str().into(),
        ]);
    }
    table.finish()
}

fn state_words(session: &Session) -> String {
    let mut words = session.state.as_str().to_string();
    match session.state {
        SessionState::Pending => {
            if let Some(wait) = &session.waits_for {
                words.push_str(&format!(", waits for a slot of {}: place {}", wait.resource, wait.place));
            }
        }
        SessionState::Waiting => words.push_str(" for the link or the target; it goes on by itself"),
        SessionState::Suspended => words
            .push_str(" at a durable position; it goes on by itself: in its next window, or when vbrd does"),
        _ => {}
    }
    if let Some(stall) = &session.stalled {
        let since = stall.since.strftime("%H:%M:%S UTC");
        words.push_str(&format!(", STANDS STILL since {since} at {}", stall.stage));
    }
    if session.retry_number > 0 {
        words.push_str(&format!(", retry {}", session.retry_number));
    }
    match session.resumed {
        0 => {}
        1 => words.push_str(", resumed once"),
        times => words.push_str(&format!(", resumed {times} times")),
    }
    words
}

fn transport_words(mode: &str) -> &str {
    match mode {
        "direct" => "directly",
        "network" => "over the network (NBD)",
        other => other,
    }
}

fn changed_words(session: &Session) -> String {
    let bytes = &session.bytes;
    let mut parts = Vec::new();
    for (figure, words) in [
        (bytes.deduplicated, "known to the target"),
        (bytes.zero, "zero"),
        (bytes.freed, "freed"),
        (bytes.delta_base, "sent as deltas"),
    ] {
        if figure > 0 {
            parts.push(format!("{} {words}", human::size(figure)));
        }
    }
    let changed = human::size(bytes.changed);
    if parts.is_empty() { changed } else { format!("{changed} ({})", parts.join(", ")) }
}

fn sent_words(session: &Session) -> String {
    let bytes = &session.bytes;
    let mut words =
        format!("{}, received {}", human::size(bytes.sent_wire), human::size(bytes.received_wire));
    if bytes.resent > 0 {
        words.push_str(&format!(", {} of it resent", human::size(bytes.resent)));
    }
    words
}

fn saved_words(session: &Session) -> String {
    let bytes = &session.bytes;
    format!(
        "{} of what was read, {} of what had changed",
        human::saved(bytes.sent_wire, bytes.read),
        human::saved(bytes.sent_wire, bytes.changed)
    )
}

fn time_words(session: &Session, view: &View) -> String {
    let elapsed = human::span(elapsed_ms(session, view));
    format!("{elapsed}, started {}", human::moment(session.started_at))
}

fn point_words(session: &Session) -> String {
    let consistency = match session.consistent {
        Some(true) => ", consistent",
        Some(false) => ", NOT consistent: its disks do not show one moment",
        None => "",
    };
    match (&session.restore_point, session.state.is_over()) {
        (Some(point), _) => format!("{point}{consistency}"),
        (None, true) => "none".into(),
        (None, false) => "not yet".into(),
    }
}

fn load_words(load: &StageLoad) -> String {
    let source = format!(
        "source host {} %, mover {} %, accelerator {} %",
        load.source_host, load.source_mover, load.source_accelerator
    );
    let target = format!(
        "target accelerator {} %, mover {} %, host {} %",
        load.target_accelerator, load.target_mover, load.target_host
    );
    format!("{source}; network {} %; {target}", load.network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_a_session_up_is_said() {
        let text = r#"{"session":"s1","job":"web","peer":"dr","state":"STATE","started_at":"2026-11-22T19:00:00Z",
            "ended_at":null,"disks":[],"bytes":{"virtual":0,"read":0,"changed":0,"zero":0,"freed":0,"deduplicated":0,
            "delta_base":0,"sent_payload":0,"sent_wire":0,"received_wire":0,"resent":0},
            "chunks":{"total":0,"unchanged":0,"known":0,"delta":0,"literal":0},"rate_wire_bps":0,"eta_ms":null,
            "stage_load_percent":{"source_host":0,"source_mover":0,"source_accelerator":0,"network":0,
            "target_accelerator":0,"target_mover":0,"target_host":0},
            "bottleneck":null,"mode":"full","transport_mode":"direct","resumed":0,"restore_point":null,"consistent":null,
            "warnings":[],"retry_number":2,MORE,"error":null}"#;
        let words = |state: &str, more: &str| {
            let parsed: Session =
                serde_json::from_str(&text.replace("STATE", state).replace("MORE", more)).unwrap();
            state_words(&parsed)
        };
        let waits = words("pending", r#""waits_for":{"resource":"link dr","place":3}"#);
        assert_eq!(waits, "pending, waits for a slot of link dr: place 3, retry 2");
        let stalled = words("running", r#""stalled":{"stage":"target","since":"2026-11-22T19:05:00Z"}"#);
        assert_eq!(stalled, "running, STANDS STILL since 19:05:00 UTC at target, retry 2");
    }

    /// A run of the lengths that occur.
    fn run(state: &str, more: &str) -> Session {
        let text = r#"{"session":"20261122t190501z-3fa2","job":"web","peer":"dr","state":"STATE",
            "started_at":"2026-11-22T19:05:01Z","ended_at":"2026-11-22T20:04:00Z","disks":[],
            "bytes":{"virtual":0,"read":1099511627776,"changed":1072693248,"zero":0,"freed":0,"deduplicated":0,
            "delta_base":0,"sent_payload":0,"sent_wire":167772160,"received_wire":0,"resent":0},
            "chunks":{"total":0,"unchanged":0,"known":0,"delta":0,"literal":0},"rate_wire_bps":999900000,"eta_ms":null,
            "stage_load_percent":{"source_host":0,"source_mover":0,"source_accelerator":0,"network":0,
            "target_accelerator":0,"target_mover":0,"target_host":0},
            "bottleneck":"source_accelerator","mode":"full","transport_mode":"direct","resumed":0,"restore_point":null,
            "consistent":null,"warnings":["web.img changed"],MORE}"#;
        serde_json::from_str(&text.replace("STATE", state).replace("MORE", more)).unwrap()
    }

    #[test]
    fn history_has_every_figure_within_80_columns() {
        let error = r#""error":{"code":"x","what":"Cannot write at dr","why":"it is full","next_step":"n","retry":true}"#;
        let all =
            [run("succeeded", r#""error":null"#), run("failed", error), run("warning", r#""error":null"#)];
        let view = View { wide: false, color: false, now: "2026-11-22T21:00:00Z".parse().unwrap() };
        let shown = history(&all, &view);
        let wanted = "\
STARTED      RESULT     TIME  READ  CHANGED  SENT  RATIO  MBIT/S  SLOWEST
11-22 19:05  succeeded   58m  1.0T    1023M  160M   6.4x   999.9  src accel
11-22 19:05  failed      58m  1.0T    1023M  160M   6.4x   999.9  src accel
11-22 19:05  warning     58m  1.0T    1023M  160M   6.4x   999.9  src accel

What went wrong
  SESSION                REASON
  20261122t190501z-3fa2  Cannot write at dr: it is full
  20261122t190501z-3fa2  web.img changed
";
        assert_eq!(shown, wanted);
        assert!(shown.lines().chain(sessions(&all, &view).lines()).all(|line| line.len() <= 80), "{shown}");
        assert!(!history(&all[..1], &view).contains("went wrong"));
    }

    #[test]
    fn a_finished_session_reads_well() {
        let text = r#"{"session":"s1","job":"web","peer":"dr","state":"warning","started_at":"2026-11-22T19:00:00Z",
            "ended_at":"2026-11-22T19:00:12Z","disks":[],"bytes":{"virtual":1073741824,"read":1073741824,"changed":33554432,
            "zero":0,"freed":0,"deduplicated":1048576,"delta_base":0,"sent_payload":1,"sent_wire":8388608,"received_wire":4096,"resent":0},
            "chunks":{"total":1,"unchanged":0,"known":0,"delta":0,"literal":1},"rate_wire_bps":0,"eta_ms":null,
            "stage_load_percent":{"source_host":1,"source_mover":2,"source_accelerator":3,"network":99,"target_accelerator":4,"target_mover":5,"target_host":6},
            "bottleneck":"network","mode":"incremental","transport_mode":"direct","resumed":1,"restore_point":"p1","consistent":false,
            "warnings":["look"],"error":null}"#;
        let parsed: Session = serde_json::from_str(text).unwrap();
        let view = View { wide: true, color: false, now: "2026-11-22T20:00:00Z".parse().unwrap() };
        let shown = session(&parsed, &view);
        for part in [
            "State             warning, resumed once",
            "Changed           32.0 MiB (1.0 MiB known to the target)",
            "Sent on the wire  8.0 MiB, received 4.0 KiB",
            "Saved             99.2 % of what was read, 75.0 % of what had changed",
            "Time              12 s, started 2026-11-22 19:00:00 UTC",
            "Restore point     p1, NOT consistent",
            "Warnings          look",
            "network 99 %",
        ] {
            assert!(shown.contains(part), "{part:?} in\n{shown}");
        }
    }
}
