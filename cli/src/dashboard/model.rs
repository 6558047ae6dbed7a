//! What the screen shows: the last answers of vbrd, the rates made of them, and where the user looks.
//!
//! Sans-IO: answers and keys in, an outcome out. Bounds: [`SAMPLES_MAX`] samples of each peer that there is.

use std::collections::HashMap;

use ratatui::crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers};
use vbr_api::{CacheStats, Job, Moment, Peer, Status};

use super::rows::Look;

/// Two minutes, at a look a second; as many columns as a sparkline can have.
const SAMPLES_MAX: usize = 120;
/// The rate shown is the mean of so many looks.
const MEAN_OF: usize = 3;
/// What PageUp and PageDown move by.
const PAGE: usize = 10;

/// Answers of one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub status: Status,
    pub jobs: Vec<Job>,
    pub cache: Option<CacheStats>,
}

/// A part of the screen that has lines to scroll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pane {
    Peers,
    Sessions,
    Jobs,
}

impl Pane {
    pub const ALL: [Self; 3] = [Self::Peers, Self::Sessions, Self::Jobs];

    pub fn index(self) -> usize {
        self as usize
    }
}

/// What an event asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Stay,
    Quit,
    /// Ctrl-C, which a terminal in raw mode hands on as a key.
    Interrupt,
}

/// vbrd does not answer.
#[derive(Clone, Debug)]
pub struct Away {
    pub since: Moment,
    pub why: String,
}

/// Bits a second to and from a peer, the newest last.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    pub sent: Vec<u64>,
    pub received: Vec<u64>,
    counted: (u64, u64),
}

#[derive(Clone, Debug)]
pub struct Model {
    pub now: Moment,
    pub look: Look,
    pub shown: Snapshot,
    pub away: Option<Away>,
    pub pane: Pane,
    /// First line shown of each pane.
    pub scroll: [usize; 3],
    pub help: bool,
    traffic: HashMap<String, Traffic>,
}

impl Model {
    pub fn new(shown: Snapshot, look: Look, now: Moment) -> Self {
        let traffic = shown.status.peers.iter().map(|peer| (peer.name.clone(), first_count(peer))).collect();
        Self { now, look, shown, away: None, pane: Pane::Jobs, scroll: [0; 3], help: false, traffic }
    }

    /// New answers, so many milliseconds after the last ones.
    pub fn answered(&mut self, snapshot: Snapshot, after_ms: u64) {
        self.away = None;
        self.traffic.retain(|name, _| snapshot.status.peers.iter().any(|peer| peer.name == *name));
        for peer in &snapshot.status.peers {
            let known = self.traffic.entry(peer.name.clone()).or_insert_with(|| first_count(peer));
            known.count(peer, after_ms);
        }
        self.shown = snapshot;
    }

    /// No answer; what was shown stays.
    pub fn silent(&mut self, why: String) {
        let since = self.away.as_ref().map_or(self.now, |away| away.since);
        self.away = Some(Away { since, why });
    }

    /// What crosses to and from a peer.
    pub fn traffic(&self, peer: &str) -> Option<&Traffic> {
        self.traffic.get(peer)
    }

    /// A key, or another event of the terminal.
    pub fn event(&mut self, event: &Event) -> Wish {
        let Event::Key(key) = event else { return Wish::Stay };
        if key.kind == KeyEventKind::Release {
            return Wish::Stay;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && matches!(key.code, KeyCode::Char('c')) {
            return Wish::Interrupt;
        }
        if std::mem::take(&mut self.help) {
            return Wish::Stay;
        }
        let line = &mut self.scroll[self.pane.index()];
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Wish::Quit,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.help = true,
            KeyCode::Tab => self.turn(1),
            KeyCode::BackTab => self.turn(2),
            KeyCode::Up | KeyCode::Char('k') => *line = line.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => *line = line.saturating_add(1),
            KeyCode::PageUp => *line = line.saturating_sub(PAGE),
            KeyCode::PageDown => *line = line.saturating_add(PAGE),
            KeyCode::Home | KeyCode::Char('g') => *line = 0,
            KeyCode::End | KeyCode::Char('G') => *line = usize::MAX,
            _ => {}
        }
        Wish::Stay
    }

    /// After drawing: nobody scrolls beyond the end.
    pub fn keep_within(&mut self, last: [usize; 3]) {
        for (line, last) in self.scroll.iter_mut().zip(last) {
            *line = (*line).min(last);
        }
    }

    fn turn(&mut self, by: usize) {
        self.pane = Pane::ALL[(self.pane.index() + by) % Pane::ALL.len()];
    }
}

fn first_count(peer: &Peer) -> Traffic {
    Traffic { counted: (peer.sent_wire, peer.received_wire), ..Traffic::default() }
}

impl Traffic {
    /// A vbrd that restarted counts from 0: what it says then crossed since.
    fn count(&mut self, peer: &Peer, after_ms: u64) {
        let rate = |now: u64, before: u64| {
            let bytes = now.checked_sub(before).unwrap_or(now);
            u64::try_from(u128::from(bytes) * 8_000 / u128::from(after_ms.max(1))).unwrap_or(u64::MAX)
        };
        let (sent, received) = self.counted;
        for (series, value) in [
            (&mut self.sent, rate(peer.sent_wire, sent)),
            (&mut self.received, rate(peer.received_wire, received)),
        ] {
            if series.len() == SAMPLES_MAX {
                series.remove(0);
            }
            series.push(value);
        }
        self.counted = (peer.sent_wire, peer.received_wire);
    }
}

/// The mean of the newest values.
pub fn mean(values: &[u64]) -> u64 {
    let last = &values[values.len().saturating_sub(MEAN_OF)..];
    last.iter().sum::<u64>() / last.len().max(1) as u64
}
