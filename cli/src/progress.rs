//! Progress on a terminal: one bar a disk and a line for the session; nothing when stderr is not a terminal.
//!
//! Owns the bars. At most [`BARS_MAX`] disks get one; the rest stand in the session's line.

use std::io::{self, IsTerminal};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use vbr_api::{Session, SessionDisk, SessionState};

use crate::human;

const BARS_MAX: usize = 16;

/// The bars of one session.
pub struct Progress {
    multi: MultiProgress,
    bars: Vec<ProgressBar>,
    line: Option<ProgressBar>,
    shown: bool,
}

impl Progress {
    pub fn new() -> Self {
        let shown = io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { multi: MultiProgress::with_draw_target(target), bars: Vec::new(), line: None, shown }
    }

    /// Redraws from the session's figures.
    pub fn update(&mut self, session: &Session) {
        if !self.shown {
            return;
        }
        let line = self.line.get_or_insert_with(|| {
            let line = self.multi.add(ProgressBar::new_spinner());
            line.set_style(style("{msg}"));
            line
        });
        line.set_message(session_words(session));
        for (number, disk) in session.disks.iter().enumerate().take(BARS_MAX) {
            if self.bars.len() <= number {
                let bar = self.multi.insert_before(line, ProgressBar::new(disk.virtual_bytes));
                bar.set_style(style("{prefix} [{bar:20}] {percent:>3} %  {msg}"));
                bar.set_prefix(prefix(number, &disk.path));
                self.bars.push(bar);
            }
            let bar = &self.bars[number];
            bar.set_length(disk.virtual_bytes);
            bar.set_position(disk.processed_bytes.min(disk.virtual_bytes));
            bar.set_message(disk_words(disk, session.eta_ms));
        }
        for bar in &self.bars {
            bar.tick();
        }
    }

    /// A line that stays, above the bars.
    pub fn note(&self, text: &str) {
        use std::io::Write;
        if !self.shown || self.multi.println(text).is_err() {
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// Takes the bars away.
    pub fn finish(&mut self) {
        for bar in self.bars.drain(..).chain(self.line.take()) {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A single bar of bytes, for an export.
pub fn bytes_bar(length: u64, what: &str) -> ProgressBar {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(length), target);
    bar.set_style(style(
        "{prefix} [{bar:30}] {percent:>3} %  {binary_bytes} of {binary_total_bytes}, ETA {eta}",
    ));
    bar.set_prefix(human::clean(what));
    bar
}

/// A template that does not parse shows the default bar.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

fn prefix(number: usize, path: &str) -> String {
    let name: String = path.rsplit('/').next().unwrap_or(path).chars().take(24).collect();
    format!("disk {number} {:<16}", human::clean(&name))
}

fn disk_words(disk: &SessionDisk, eta_ms: Option<u64>) -> String {
    let mut words = format!(
        "read {}, sent {}, saved {}",
        human::size(disk.read_bytes),
        human::size(disk.sent_bytes),
        human::saved(disk.sent_bytes, disk.read_bytes)
    );
    let left = disk.processed_bytes < disk.virtual_bytes;
    if let (Some(eta), true) = (eta_ms, left) {
        words.push_str(&format!(", ETA {}", human::span_short(eta)));
    }
    words
}

fn session_words(session: &Session) -> String {
    let peer = human::clean(&session.peer);
    match session.state {
        SessionState::Pending => "waiting for a free slot".into(),
        SessionState::Waiting => format!("waiting for the link to {peer}; goes on by itself"),
        SessionState::Suspended => "suspended at a durable position; goes on by itself".into(),
        SessionState::Running => {
            let mut words = format!(
                "{} on the wire to {peer} at {}",
                human::size(session.bytes.sent_wire),
                human::rate(session.rate_wire_bps)
            );
            if let Some(bottleneck) = &session.bottleneck {
                words.push_str(&format!(", bottleneck: {}", human::clean(bottleneck)));
            }
            if session.disks.len() > BARS_MAX {
                words.push_str(&format!(", {} more disks", session.disks.len() - BARS_MAX));
            }
            words
        }
        over => over.as_str().into(),
    }
}
