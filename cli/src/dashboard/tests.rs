//! The screen as text, against golden files: what it looks like is reviewed there. `VBR_GOLDEN=write` writes them anew.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};
use serde_json::{Value, json};
use vbr_api::Moment;

use super::draw::draw;
use super::model::{Model, Pane, Snapshot, Wish};
use super::rows::Look;

const LOOK: Look = Look { color: false, unicode: true };

/// The lines of a buffer, without the blanks at their ends.
pub fn text(buffer: &Buffer) -> String {
    let mut text = String::new();
    for y in 0..buffer.area.height {
        let mut line = String::new();
        let mut skip = 0;
        for x in 0..buffer.area.width {
            let symbol = buffer[(x, y)].symbol();
            // Behind a character of two cells comes a cell that is not its own.
            if skip == 0 {
                line.push_str(symbol);
                skip = super::rows::width(symbol).max(1);
            }
            skip -= 1;
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn render(model: &mut Model, columns: u16, lines: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
    let mut last = [0; 3];
    terminal.draw(|frame| last = draw(frame.buffer_mut(), model)).unwrap();
    model.keep_within(last);
    text(terminal.backend().buffer())
}

fn golden(name: &str, shown: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/dashboard/golden").join(name);
    if std::env::var_os("VBR_GOLDEN").is_some_and(|value| value == "write") {
        std::fs::write(&path, shown).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap();
    assert_eq!(shown, wanted, "the screen differs from {}", path.display());
}

fn now() -> Moment {
    "2026-11-22T19:05:01Z".parse().unwrap()
}

fn peer(name: &str, connected: bool, sent: u64) -> Value {
    let some = |value: Value| if connected { value } else { Value::Null };
    let error =
        if connected { Value::Null } else { "dialing /ip4/192.0.2.7/tcp/7300: connection refused".into() };
    json!({
        "name": name, "peer_id": "12D3KooW", "addresses": [], "connected": connected, "transport": some("tcp".into()),
        "congestion_control": some("bbr".into()), "rtt_ms": some(80.into()), "sent_wire": sent,
        "received_wire": sent / 40, "domain": "default", "grants": [], "paired_at": "2026-11-20T10:00:00Z",
        "last_seen_at": "2026-11-22T18:00:00Z", "last_error": error, "limit_bps": some(20_000_000.into()),
    })
}

fn session(job: &str, state: &str, percent: u64) -> Value {
    let whole: u64 = 10 << 30;
    let part = whole / 100 * percent;
    json!({
        "session": "20261122t190000z-77aa", "job": job, "peer": "dr", "state": state,
        "started_at": "2026-11-22T19:00:00Z", "ended_at": null,
        "disks": [{"path": "/a", "format": "raw", "virtual_bytes": whole, "processed_bytes": part, "read_bytes": part,
            "changed_bytes": 0, "sent_bytes": 0, "snapshot": "clone"}],
        "bytes": {"virtual": whole, "read": part, "changed": 0, "zero": 0, "freed": 0, "deduplicated": 0,
            "delta_base": 0, "sent_payload": 0, "sent_wire": part / 50, "received_wire": 0, "resent": 0},
        "chunks": {"total": 1, "unchanged": 0, "known": 0, "delta": 0, "literal": 1},
        "rate_wire_bps": 18_400_000, "eta_ms": 1_260_000,
        "stage_load_percent": {"source_host": 10, "source_mover": 12, "source_accelerator": 31, "network": 97,
            "target_accelerator": 9, "target_mover": 4, "target_host": 100},
        "bottleneck": "network", "mode": "incremental", "transport_mode": "direct", "resumed": 0,
        "restore_point": null, "consistent": null, "warnings": [], "error": null,
    })
}

fn job(name: &str, last: &str) -> Value {
    json!({
        "name": name, "disks": [], "target": "dr", "schedule": {"every_ms": 900_000}, "enabled": true,
        "created_at": "2026-11-20T10:00:00Z", "running": if last == "running" { json!("s") } else { Value::Null },
        "last_session": "s", "last_state": last, "last_success_at": "2026-11-22T18:50:00Z", "rpo_lag_ms": 905_000,
        "next_run_at": "2026-11-22T19:10:00Z",
    })
}

fn lag(name: &str, overdue: bool) -> Value {
    json!({"job": name, "enabled": true, "rpo_lag_ms": 905_000, "last_state": "failed", "overdue": overdue})
}

fn snapshot(peers: Vec<Value>, sessions: Vec<Value>, jobs: Vec<Value>, overdue: &[&str]) -> Snapshot {
    let warnings: Vec<Value> = overdue
        .iter()
        .map(|job| {
            json!({"level": "critical", "what": format!("job {job} is overdue: two runs were due and none brought a \
                restore point; the last one shows how the disks were 15 minutes ago"),
                "next_step": format!("vbrctl job show {job}")})
        })
        .chain(peers.iter().filter(|peer| peer["connected"] == false).map(|peer| {
            json!({"level": "warning", "what": format!("peer {} is not connected", peer["name"].as_str().unwrap_or_default()),
                "next_step": "check the link and the other site"})
        }))
        .collect();
    let lags: Vec<Value> = overdue.iter().map(|job| lag(job, true)).collect();
    let status = json!({
        "site": "branch", "peer_id": "x", "version": "0.1.0", "started_at": "2026-11-20T16:00:00Z", "listeners": [],
        "peers": peers, "sessions": sessions, "jobs": lags, "warnings": warnings, "replicas": 0,
        "datastores": [{"name": "default", "path": "/d", "backend": "reflink", "size_bytes": 1u64 << 40,
            "free_bytes": 1u64 << 39, "reserve_bytes": 10u64 << 30}],
    });
    let cache = json!({"size_bytes": 4u64 << 30, "used_bytes": 1u64 << 30, "packs": 1, "chunks": 1, "lookups": 200,
        "hits": 184, "reads": 0, "bad_records": 0, "evicted_packs": 0, "footer_hits": 0, "footer_misses": 0,
        "disk_locations": 0});
    Snapshot {
        status: serde_json::from_value(status).unwrap(),
        jobs: serde_json::from_value(Value::Array(jobs)).unwrap(),
        cache: Some(serde_json::from_value(cache).unwrap()),
    }
}

/// A site in trouble: one link down, one job overdue, two sessions under way and one that waits.
fn branch() -> Snapshot {
    let mut pending = session("mail", "pending", 0);
    pending["waits_for"] = json!({"resource": "link dr", "place": 3});
    let jobs =
        vec![job("db", "succeeded"), job("mail", "pending"), job("web", "running"), job("desk", "failed")];
    let sessions = vec![pending, session("web", "running", 57), session("数据库-备份", "running", 3)];
    let mut all = snapshot(vec![peer("dr", true, 0), peer("hq", false, 0)], sessions, jobs, &["desk"]);
    all.status.receiving = vec![vbr_api::Receiving {
        site: "hq".into(),
        replica: "files".into(),
        since: "2026-11-22T19:00:00Z".parse().unwrap(),
    }];
    all.status.replicas = 2;
    all
}

fn busy(look: Look) -> Model {
    let mut model = Model::new(branch(), look, now());
    let mut sent = 0;
    for second in 1..=20u64 {
        let mut next = branch();
        sent += second * 110_000;
        next.status.peers[0].sent_wire = sent;
        next.status.peers[0].received_wire = sent / 40;
        model.answered(next, 1_000);
    }
    model
}

fn many() -> Model {
    let name = |n: usize| format!("a-rather-long-name-of-a-virtual-machine-{n:03}");
    let jobs = (0..100).map(|n| job(&name(n), if n % 25 == 7 { "failed" } else { "succeeded" })).collect();
    let sessions = (0..100).map(|n| {
        let mut session = session(&name(n), if n < 4 { "running" } else { "pending" }, n as u64);
        session["waits_for"] =
            if n < 4 { Value::Null } else { json!({"resource": "host local", "place": n - 3}) };
        session
    });
    let peers = (0..12).map(|n| peer(&format!("site-{n:02}"), n != 5, 0)).collect();
    Model::new(snapshot(peers, sessions.collect(), jobs, &[&name(7), &name(32)]), LOOK, now())
}

#[test]
fn a_site_without_anything() {
    let mut model = Model::new(snapshot(vec![], vec![], vec![], &[]), LOOK, now());
    golden("empty-80x24.txt", &render(&mut model, 80, 24));
}

#[test]
fn a_site_in_trouble() {
    golden("trouble-80x24.txt", &render(&mut busy(LOOK), 80, 24));
    golden("trouble-160x50.txt", &render(&mut busy(LOOK), 160, 50));
    golden("trouble-ascii-80x24.txt", &render(&mut busy(Look { unicode: false, ..LOOK }), 80, 24));
}

#[test]
fn a_hundred_jobs() {
    let mut model = many();
    golden("hundred-80x24.txt", &render(&mut model, 80, 24));
    golden("hundred-160x50.txt", &render(&mut model, 160, 50));
    for _ in 0..3 {
        assert_eq!(press(&mut model, KeyCode::PageDown), Wish::Stay);
    }
    let shown = render(&mut model, 80, 24);
    assert!(shown.contains("lines 31-"), "{shown}");
    press(&mut model, KeyCode::End);
    let shown = render(&mut model, 80, 24);
    assert!(shown.contains("of 100") && shown.contains("-100 of"), "{shown}");
    // Nobody has to scroll back from beyond the end.
    let last = model.scroll[Pane::Jobs.index()];
    press(&mut model, KeyCode::Up);
    assert_eq!(model.scroll[Pane::Jobs.index()], last - 1);
}

#[test]
fn vbrd_is_away_and_comes_back() {
    let mut model = busy(LOOK);
    model.silent("nobody listens on this socket".into());
    model.now = "2026-11-22T19:05:13Z".parse().unwrap();
    model.silent("nobody listens on this socket".into());
    let shown = render(&mut model, 80, 24);
    assert!(shown.contains("vbrd does not answer, trying again (12 s): nobody listens"), "{shown}");
    assert!(shown.contains("web"), "what was known stays: {shown}");
    model.answered(branch(), 1_000);
    assert!(!render(&mut model, 80, 24).contains("does not answer"));
}

#[test]
fn help_and_the_smallest_terminals() {
    let mut model = busy(LOOK);
    press(&mut model, KeyCode::Char('?'));
    golden("help-80x24.txt", &render(&mut model, 80, 24));
    assert_eq!(press(&mut model, KeyCode::Esc), Wish::Stay, "it closes the help");
    for (columns, lines) in [(1, 1), (40, 12), (41, 13), (300, 3), (39, 100), (500, 200)] {
        let shown = render(&mut model, columns, lines);
        assert_eq!(shown.lines().count(), usize::from(lines));
        assert_eq!(shown.contains("needed"), lines == 3 || columns == 39, "{columns}x{lines}\n{shown}");
    }
}

#[test]
fn keys() {
    let mut model = busy(LOOK);
    assert_eq!(press(&mut model, KeyCode::Char('q')), Wish::Quit);
    assert_eq!(press(&mut model, KeyCode::Esc), Wish::Quit);
    let interrupt = Event::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
    assert_eq!(model.event(&interrupt), Wish::Interrupt);
    assert_eq!(model.pane, Pane::Jobs);
    for pane in [Pane::Peers, Pane::Sessions, Pane::Jobs] {
        press(&mut model, KeyCode::Tab);
        assert_eq!(model.pane, pane);
    }
    press(&mut model, KeyCode::BackTab);
    assert_eq!(model.pane, Pane::Sessions);
    model.help = true;
    assert_eq!(model.event(&interrupt), Wish::Interrupt, "also while help is shown");
}

#[test]
fn rates_are_of_what_crossed_and_no_more_samples_are_kept_than_said() {
    let mut model = Model::new(snapshot(vec![peer("dr", true, 5_000_000)], vec![], vec![], &[]), LOOK, now());
    model.answered(snapshot(vec![peer("dr", true, 6_000_000)], vec![], vec![], &[]), 2_000);
    let traffic = model.traffic("dr").unwrap();
    assert_eq!((traffic.sent.as_slice(), traffic.received.as_slice()), (&[4_000_000][..], &[100_000][..]));
    // It restarted and counts anew.
    model.answered(snapshot(vec![peer("dr", true, 250_000)], vec![], vec![], &[]), 1_000);
    assert_eq!(model.traffic("dr").unwrap().sent[1], 2_000_000);
    for _ in 0..1_000 {
        model.answered(snapshot(vec![peer("dr", true, 250_000)], vec![], vec![], &[]), 1_000);
    }
    assert_eq!(model.traffic("dr").unwrap().sent.len(), 120);
    model.answered(snapshot(vec![], vec![], vec![], &[]), 1_000);
    assert!(model.traffic("dr").is_none(), "a peer that was removed is forgotten");
}

fn press(model: &mut Model, code: KeyCode) -> Wish {
    model.event(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}
