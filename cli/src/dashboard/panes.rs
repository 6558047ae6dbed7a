//! The panes of the screen as rows: the site, what needs attention, peers, sessions, jobs, room.
//!
//! Pure. What is red comes first. Whatever stands for something bad is a word too, never a colour alone.

use ratatui::style::Style;
use vbr_api::{Job, Peer, Session, SessionState, Status, Warning};

use super::model::{Model, mean};
use super::rows::{Field, Look, REST, Row, width};
use crate::human;
use crate::summary;
use crate::table::Tone;

/// From here on there is room for more columns.
const WIDE: u16 = 110;

/// A pane: what stands beside its name, its column heads (where it has some) and its lines.
pub struct Lines {
    pub about: String,
    pub heads: Option<Row>,
    pub rows: Vec<Row>,
}

/// The site, in one line.
pub fn site(model: &Model, columns: u16) -> Row {
    let (status, look) = (&model.shown.status, model.look);
    let up = human::span(human::between(status.started_at, model.now));
    let about = format!("vbrd {}, up {up}, {}", status.version, role(model));
    let clock = model.now.strftime("%H:%M:%S UTC").to_string();
    let name = width(&status.site).min(columns / 3);
    vec![
        Field::left(&status.site, name, look.strong()),
        Field::left(about, columns.saturating_sub(name + width(&clock) + 2), Style::new()),
        Field::right(&clock, width(&clock), look.faint()),
    ]
}

fn role(model: &Model) -> String {
    let (jobs, replicas) = (model.shown.jobs.len() as u64, model.shown.status.replicas);
    match (jobs, replicas) {
        (0, 0) => "no jobs, no replicas".into(),
        (jobs, 0) => format!("source of {}", human::count(jobs, "job")),
        (0, replicas) => format!("target of {}", human::count(replicas, "replica")),
        (jobs, replicas) => {
            format!(
                "source of {}, target of {}",
                human::count(jobs, "job"),
                human::count(replicas, "replica")
            )
        }
    }
}

/// How it is altogether, with the worst reasons: at least one line, at most `most` and the first one's next step.
pub fn attention(model: &Model, most: usize) -> Vec<Row> {
    let look = model.look;
    if let Some(away) = &model.away {
        let since = human::span_short(human::between(away.since, model.now));
        let text =
            format!("vbrd does not answer, trying again ({since}): {}; what is below is older", away.why);
        return vec![verdict("NO ANSWER", Tone::Bad, &text, look)];
    }
    let mut warnings: Vec<&Warning> = model.shown.status.warnings.iter().collect();
    warnings.sort_by_key(|warning| warning.level != "critical");
    let Some(worst) = warnings.first() else {
        return vec![verdict("OK", Tone::Good, "nothing needs attention", look)];
    };
    let mut rows = Vec::new();
    for (at, warning) in warnings.iter().take(most).enumerate() {
        let hidden = warnings.len() - most.min(warnings.len());
        let last = at + 1 == most && hidden > 0;
        let more = if last { format!("(and {hidden} more) ") } else { String::new() };
        let (word, tone) = level(warning);
        rows.push(verdict(word, tone, &format!("{more}{}", warning.what), look));
    }
    rows.push(vec![
        Field::left("", level_width(), Style::new()),
        Field::left(format!("next: {}", worst.next_step), REST, look.faint()),
    ]);
    rows
}

fn level(warning: &Warning) -> (&'static str, Tone) {
    if warning.level == "critical" { ("CRITICAL", Tone::Bad) } else { ("WARNING", Tone::Watch) }
}

fn level_width() -> u16 {
    9
}

fn verdict(word: &str, tone: Tone, text: &str, look: Look) -> Row {
    vec![
        Field::left(word, level_width(), look.tone(tone)),
        Field::left(text, REST, if tone == Tone::Bad { look.tone(tone) } else { Style::new() }),
    ]
}

/// Links, and what crosses them.
pub fn peers(model: &Model, columns: u16) -> Lines {
    let (look, peers) = (model.look, &model.shown.status.peers);
    let connected = peers.iter().filter(|peer| peer.connected).count();
    let wide = columns >= WIDE;
    let name = if wide { 24 } else { 14 };
    // Two sparklines share what names and figures leave.
    let fixed = name + 11 + 8 + 2 * 12 + 6 + if wide { 13 } else { 0 };
    let spark = (columns.saturating_sub(fixed) / 2).clamp(6, 40);
    let mut heads = vec![
        Field::left("PEER", name, look.faint()),
        Field::left("LINK", 11, look.faint()),
        Field::right("RTT", 8, look.faint()),
        Field::right("SENDS", spark + 13, look.faint()),
        Field::right("RECEIVES", spark + 13, look.faint()),
    ];
    if wide {
        heads.push(Field::right("LIMIT", 12, look.faint()));
    }
    let rows = peers.iter().map(|peer| {
        let mut row = vec![Field::left(&peer.name, name, Style::new())];
        if !peer.connected {
            row.push(Field::left("DOWN", 4, look.tone(Tone::Bad)));
            row.push(Field::left(absence(model, peer), REST, look.tone(Tone::Watch)));
            return row;
        }
        row.push(Field::left(link(peer), 11, look.tone(Tone::Good)));
        row.push(Field::right(peer.rtt_ms.map_or("-".into(), |ms| format!("{ms} ms")), 8, Style::new()));
        row.extend(traffic(model, peer, spark));
        if wide {
            let limit = peer.limit_bps.map_or("none".into(), human::rate);
            row.push(Field::right(limit, 12, Style::new()));
        }
        row
    });
    let rows = rows.collect();
    Lines { about: format!("{connected} of {} connected", peers.len()), heads: Some(heads), rows }
}

fn traffic(model: &Model, peer: &Peer, spark: u16) -> Vec<Field> {
    let look = model.look;
    let (mut sent, mut received) = (&[][..], &[][..]);
    if let Some(traffic) = model.traffic(&peer.name) {
        (sent, received) = (&traffic.sent, &traffic.received);
    }
    // One scale for both ways, and an idle link is flat: 100 kbit/s are the least that fills it.
    let most = sent.iter().chain(received).copied().max().unwrap_or(0).max(100_000);
    let way = |values: &[u64]| {
        [
            Field::left(look.spark(values, most, usize::from(spark)), spark, look.tone(Tone::Good)),
            Field::right(human::rate(mean(values)), 12, Style::new()),
        ]
    };
    way(sent).into_iter().chain(way(received)).collect()
}

fn link(peer: &Peer) -> String {
    let transport = peer.transport.as_deref().unwrap_or("up");
    peer.congestion_control.as_ref().map_or(transport.into(), |control| format!("{transport}, {control}"))
}

fn absence(model: &Model, peer: &Peer) -> String {
    let seen =
        peer.last_seen_at.map_or("never seen".into(), |at| format!("seen {}", human::age(at, model.now)));
    peer.last_error.as_ref().map_or(seen.clone(), |why| format!("{seen}: {why}"))
}

/// What runs and waits here, and what other sites fill here.
pub fn sessions(model: &Model, columns: u16) -> Lines {
    let (status, look) = (&model.shown.status, model.look);
    let mut sessions: Vec<&Session> = status.sessions.iter().collect();
    sessions.sort_by_key(|session| {
        let place = session.waits_for.as_ref().map_or(0, |wait| wait.place);
        (session.stalled.is_none(), order(session.state), place, session.job.clone())
    });
    let mut rows: Vec<Row> = Vec::new();
    for session in sessions {
        if session.state != SessionState::Running {
            rows.push(waiting(session, look, columns));
            continue;
        }
        rows.push(running(session, look, columns));
        rows.push(match &session.stalled {
            Some(stall) => {
                let since = stall.since.strftime("%H:%M:%S UTC");
                let text = format!("STANDS STILL at {} since {since}", stall.stage.replace('_', " "));
                vec![Field::left("", 1, Style::new()), Field::left(text, REST, look.tone(Tone::Bad))]
            }
            None => stages(session, look, columns),
        });
    }
    rows.extend(status.receiving.iter().map(|incoming| {
        vec![
            Field::left(
                format!("{}/{}", incoming.site, incoming.replica),
                name_columns(columns),
                Style::new(),
            ),
            Field::left("receiving", 9, look.tone(Tone::Good)),
            Field::left(
                format!("for {}", human::span(human::between(incoming.since, model.now))),
                REST,
                look.faint(),
            ),
        ]
    }));
    Lines { about: counts(status), heads: None, rows }
}

fn order(state: SessionState) -> u8 {
    match state {
        SessionState::Running => 0,
        SessionState::Waiting => 1,
        SessionState::Pending => 2,
        _ => 3,
    }
}

fn counts(status: &Status) -> String {
    let mut parts = Vec::new();
    for state in
        [SessionState::Running, SessionState::Waiting, SessionState::Pending, SessionState::Suspended]
    {
        let count = status.sessions.iter().filter(|session| session.state == state).count();
        if count > 0 {
            parts.push(format!("{count} {}", state.as_str()));
        }
    }
    if !status.receiving.is_empty() {
        parts.push(format!("{} receiving", status.receiving.len()));
    }
    if parts.is_empty() { "none".into() } else { parts.join(", ") }
}

fn name_columns(columns: u16) -> u16 {
    if columns >= WIDE { 32 } else { 18 }
}

fn running(session: &Session, look: Look, columns: u16) -> Row {
    let name = name_columns(columns);
    let whole: u64 = session.disks.iter().map(|disk| disk.virtual_bytes).sum();
    let part: u64 = session.disks.iter().map(|disk| disk.processed_bytes).sum();
    let eta = session.eta_ms.map_or(String::new(), |ms| format!("ETA {}", human::span_short(ms)));
    let wide = columns >= WIDE;
    let fixed = name + 9 + 7 + 12 + 10 + 5 + if wide { 18 + 16 + 14 + 3 } else { 0 };
    let bar = columns.saturating_sub(fixed).clamp(8, 60);
    let mut row = vec![
        Field::left(&session.job, name, look.strong()),
        Field::left(session.state.as_str(), 9, look.tone(Tone::Good)),
        Field::left(look.bar(part, whole, usize::from(bar)), bar, look.tone(Tone::Good)),
        Field::right(summary::done(session), 7, Style::new()),
        Field::right(human::rate(session.rate_wire_bps), 12, Style::new()),
        Field::right(eta, 10, Style::new()),
    ];
    if wide {
        let bytes = &session.bytes;
        row.push(Field::right(format!("sent {}", human::size(bytes.sent_wire)), 16, Style::new()));
        row.push(Field::right(
            format!("saved {}", human::saved(bytes.sent_wire, bytes.read)),
            14,
            Style::new(),
        ));
        row.push(Field::left(format!("to {}", session.peer), 18, Style::new()));
    }
    row
}

/// `host▁10 mover▁12 accel▃31 net█97 accel▁9 mover▁4 host▁3 ▶ network`
fn stages(session: &Session, look: Look, columns: u16) -> Row {
    let load = &session.stage_load_percent;
    let stages = [
        ("host", load.source_host),
        ("mover", load.source_mover),
        ("accel", load.source_accelerator),
        ("net", load.network),
        ("accel", load.target_accelerator),
        ("mover", load.target_mover),
        ("host", load.target_host),
    ];
    let full = |percent: u8| if percent >= 90 { look.tone(Tone::Watch) } else { Style::new() };
    let mut row = vec![Field::left("", 1, Style::new())];
    for (name, percent) in stages {
        let text = format!("{name}{}{percent}", look.level(u64::from(percent), 100));
        // As wide as it is at 100 %, so that nothing moves while figures change.
        row.push(Field::left(text, width(name) + 4, full(percent)));
    }
    let label = if columns >= WIDE { "bottleneck: " } else { look.mark() };
    if session.bottleneck.is_some() {
        row.push(Field::left(format!("{label}{}", summary::slowest(session)), REST, look.strong()));
    }
    row
}

/// What does not run says why, in one line.
fn waiting(session: &Session, look: Look, columns: u16) -> Row {
    let why = match (session.state, &session.waits_for) {
        (_, Some(wait)) => format!("for a slot of {}, place {}", wait.resource, wait.place),
        (SessionState::Waiting, _) => {
            format!("for the link to {} or room there; goes on by itself", session.peer)
        }
        (SessionState::Suspended, _) => "at a durable position; goes on by itself in its next window".into(),
        _ => "starts".into(),
    };
    let tone = if session.state == SessionState::Pending { Tone::Plain } else { Tone::Watch };
    vec![
        Field::left(&session.job, name_columns(columns), look.strong()),
        Field::left(session.state.as_str(), 9, look.tone(tone)),
        Field::left(why, REST, Style::new()),
    ]
}

/// How far each job is behind; what is red first.
pub fn jobs(model: &Model, columns: u16) -> Lines {
    let (look, now) = (model.look, model.now);
    let wide = columns >= WIDE;
    let fixed = 9 + 18 + 13 + 20 + 4 + if wide { 2 * 21 + 2 } else { 0 };
    let name = columns.saturating_sub(fixed).clamp(12, 64);
    let mut heads = vec![
        Field::left("JOB", name, look.faint()),
        Field::right("RPO LAG", 9, look.faint()),
        Field::left("STATE", 18, look.faint()),
        Field::right("LAST SUCCESS", 13, look.faint()),
        Field::left("NEXT RUN", 20, look.faint()),
    ];
    if wide {
        heads.extend([Field::left("TARGET", 20, look.faint()), Field::left("RUNS", REST, look.faint())]);
    }
    let overdue =
        |job: &Job| model.shown.status.jobs.iter().any(|lag| lag.job == job.spec.name && lag.overdue);
    let mut sorted: Vec<(&Job, String, Tone)> = (model.shown.jobs.iter())
        .map(|job| {
            let (words, tone) = state(job, overdue(job));
            (job, words, tone)
        })
        .collect();
    sorted.sort_by(|(left, _, left_tone), (right, _, right_tone)| {
        let bad = |tone: &Tone| *tone != Tone::Bad;
        (bad(left_tone), &left.spec.name).cmp(&(bad(right_tone), &right.spec.name))
    });
    let red = sorted.iter().filter(|(_, _, tone)| *tone == Tone::Bad).count();
    let rows = sorted.iter().map(|(job, words, tone)| {
        let lag_style = if overdue(job) { look.tone(Tone::Bad) } else { Style::new() };
        let mut row = vec![
            Field::left(
                &job.spec.name,
                name,
                if *tone == Tone::Bad { look.tone(Tone::Bad) } else { Style::new() },
            ),
            Field::right(job.rpo_lag_ms.map_or("-".into(), human::span_short), 9, lag_style),
            Field::left(words, 18, look.tone(*tone)),
            Field::right(
                job.last_success_at.map_or("never".into(), |at| human::age(at, now)),
                13,
                Style::new(),
            ),
            Field::left(next_run(job, model), 20, Style::new()),
        ];
        if wide {
            row.push(Field::left(&job.spec.target, 20, Style::new()));
            row.push(Field::left(summary::schedule(job), REST, Style::new()));
        }
        row
    });
    let rows = rows.collect();
    let about = match red {
        0 if model.shown.jobs.is_empty() => "none".into(),
        0 => format!("{}, none red", model.shown.jobs.len()),
        red => format!("{}, {red} red", model.shown.jobs.len()),
    };
    Lines { about, heads: Some(heads), rows }
}

fn state(job: &Job, overdue: bool) -> (String, Tone) {
    let failed = job.last_state == Some(SessionState::Failed);
    match (overdue, failed, job.running.is_some(), job.spec.enabled) {
        (true, true, false, _) => ("OVERDUE, failed".into(), Tone::Bad),
        (true, _, true, _) => ("OVERDUE, running".into(), Tone::Bad),
        (true, ..) => ("OVERDUE".into(), Tone::Bad),
        (_, true, false, _) => ("FAILED".into(), Tone::Bad),
        (_, _, true, _) => {
            let state = job.last_state.map_or("running", SessionState::as_str);
            (state.into(), Tone::Good)
        }
        (.., false) => ("disabled".into(), Tone::Watch),
        _ => match job.last_state {
            None => ("never ran".into(), Tone::Plain),
            Some(state @ (SessionState::Warning | SessionState::Suspended | SessionState::Cancelled)) => {
                (state.as_str().into(), Tone::Watch)
            }
            Some(state) => (state.as_str().into(), Tone::Good),
        },
    }
}

fn next_run(job: &Job, model: &Model) -> String {
    if let Some(retry) = &job.pending_retry {
        return format!("retry {}/{} at {}", retry.number, retry.of, retry.at.strftime("%H:%M:%S"));
    }
    match job.next_run_at {
        _ if job.running.is_some() => "runs now".into(),
        Some(at) if at <= model.now => "now".into(),
        Some(at) => format!("in {}", human::span_short(human::between(model.now, at))),
        None => "by order".into(),
    }
}

/// Cache and datastores, in one line.
pub fn room(model: &Model) -> Row {
    let look = model.look;
    let mut row = vec![Field::left("Room", 4, look.strong())];
    if let Some(cache) = &model.shown.cache {
        let text = format!(
            "cache {} of {}, hits {}",
            human::size_short(cache.used_bytes),
            human::size_short(cache.size_bytes),
            human::percent(cache.hits, cache.lookups)
        );
        row.push(Field::left(&text, width(&text), Style::new()));
    }
    for store in &model.shown.status.datastores {
        let full = store.free_bytes <= store.reserve_bytes;
        let word = if full { "FULL, " } else { "" };
        let text = format!(
            "| datastore {}: {word}{} of {} free",
            store.name,
            human::size_short(store.free_bytes),
            human::size_short(store.size_bytes)
        );
        let tone = if full { Tone::Bad } else { Tone::Plain };
        row.push(Field::left(&text, width(&human::clean(&text)), look.tone(tone)));
    }
    row
}
