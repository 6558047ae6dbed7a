//! The process's one log subscriber: plain lines to stderr, with `<N>` priorities where the journal
//! reads them, or JSON.
//!
//! Without the prefix the journal files every line as *info*, and `journalctl -p warning` finds
//! nothing. The level can be changed while running (SIGHUP).

use std::io::{self, Write};

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// Changes the level of the running subscriber.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Why logs could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level does not parse.
    #[error("log level \"{level}\": {why}; use error, warn, info, debug, trace, or directives")]
    Level {
        /// As given.
        level: String,
        /// What the parser says.
        why: String,
    },
    /// A second subscriber in one process, or none any more.
    #[error("the log cannot be set up: {0}")]
    Subscriber(String),
}

/// Sets up the process's log. `level` as in `[log] level`; `VBR_LOG` in the environment wins.
pub fn init(level: &str, json: bool) -> Result<LogHandle, LogError> {
    let level = std::env::var("VBR_LOG").unwrap_or_else(|_| level.to_owned());
    let (filter, handle) = reload::Layer::new(parse(&level)?);
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    tracing_subscriber::registry()
        .with(filter)
        .with(layer(json, journal))
        .try_init()
        .map_err(|e| LogError::Subscriber(e.to_string()))?;
    Ok(LogHandle { filter: handle })
}

impl LogHandle {
    /// Takes effect at once.
    pub fn set_level(&self, level: &str) -> Result<(), LogError> {
        self.filter.reload(parse(level)?).map_err(|e| LogError::Subscriber(e.to_string()))
    }
}

/// Libraries that talk about every connection; a directive of the operator's own wins over these.
const QUIET: &str = "libp2p_swarm=warn,libp2p_tcp=warn,libp2p_quic=warn,yamux=error,netlink_proto=warn";

fn parse(level: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder()
        .parse(format!("{QUIET},{level}"))
        .map_err(|e| LogError::Level { level: level.into(), why: e.to_string() })
}

fn layer<S>(json: bool, journal: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    if json {
        // JSON carries its level in itself; a prefix would break whoever parses it.
        return fmt::layer().json().with_writer(io::stderr).boxed();
    }
    let lines = fmt::layer().with_ansi(false).with_writer(Lines { journal, out: io::stderr });
    // The journal stamps lines itself.
    if journal { lines.without_time().with_level(false).boxed() } else { lines.boxed() }
}

/// Makes a writer that knows its event's level.
struct Lines<F> {
    journal: bool,
    out: F,
}

impl<'a, F, W> MakeWriter<'a> for Lines<F>
where
    F: Fn() -> W,
    W: Write,
{
    type Writer = Line<W>;

    fn make_writer(&'a self) -> Line<W> {
        Line { prefix: self.journal.then_some(priority(Level::INFO)), out: (self.out)() }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line<W> {
        Line { prefix: self.journal.then_some(priority(*meta.level())), out: (self.out)() }
    }
}

/// One event; an event with several lines keeps its priority on each.
struct Line<W> {
    prefix: Option<&'static str>,
    out: W,
}

impl<W: Write> Write for Line<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let Some(prefix) = self.prefix else { return self.out.write(event) };
        let mut text = Vec::with_capacity(event.len() + 2 * prefix.len());
        for line in event.split_inclusive(|b| *b == b'\n') {
            text.extend_from_slice(prefix.as_bytes());
            text.extend_from_slice(line);
        }
        self.out.write_all(&text)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// `sd-daemon(3)`: the kernel's log levels.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("sink").extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(journal: bool) -> String {
        let sink = Sink::default();
        let out = sink.clone();
        let lines = Lines { journal, out: move || out.clone() };
        let subscriber = tracing_subscriber::registry()
            .with(fmt::layer().with_ansi(false).without_time().with_level(false).with_writer(lines));
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!("disk gone");
            tracing::warn!("first\nsecond");
            tracing::debug!(job = "web", "read");
        });
        String::from_utf8(sink.0.lock().expect("sink").clone()).expect("text")
    }

    #[test]
    fn the_journal_gets_priorities_on_every_line() {
        let text = logged(true);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("<3>") && lines[0].ends_with("disk gone"), "{text}");
        assert!(lines[1].starts_with("<4>") && lines[1].ends_with("first"), "{text}");
        assert_eq!(lines[2], "<4>second");
        assert!(lines[3].starts_with("<7>") && lines[3].contains("job=\"web\""), "{text}");
        assert!(!logged(false).contains("<3>"));
    }

    #[test]
    fn levels() {
        assert!(parse("info,vbr_appliance::wire=debug").is_ok());
        assert!(matches!(parse("info,x=loud"), Err(LogError::Level { .. })));
    }
}
