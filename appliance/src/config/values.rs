//! Single values: what they may be, and a [`Checker`] that collects every fault with its place.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use crate::schedule::Malformed;
use crate::schedule::window::Window;

use super::{Config, ConfigError, ConfigFault, Congestion, LogFormat, Transport};

/// More faults than this help nobody.
const FAULTS_MAX: usize = 50;

/// Collects faults while values are read; [`Checker::finish`] gives the configuration only if there
/// was none.
pub(super) struct Checker {
    name: String,
    line_starts: Vec<usize>,
    text: String,
    faults: Vec<ConfigFault>,
}

impl Checker {
    pub fn new(name: String, text: &str) -> Self {
        let line_starts =
            std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect::<Vec<_>>();
        Self { name, line_starts, text: text.to_owned(), faults: Vec::new() }
    }

    pub fn finish(self, config: Config) -> Result<Config, ConfigError> {
        if self.faults.is_empty() { Ok(config) } else { Err(ConfigError(self.faults)) }
    }

    /// A fault at a range of the file.
    pub fn fault_in(&mut self, span: Range<usize>, key: &str, what: String) {
        let line = self.line_starts.partition_point(|start| *start <= span.start).max(1);
        let start = self.line_starts.get(line - 1).copied().unwrap_or(0);
        // Columns count characters, as editors do.
        let column = self.text.get(start..span.start).map_or(0, |s| s.chars().count()) + 1;
        let place = format!("{}:{line}:{column}", self.name);
        self.fault_at(&place, key, what);
    }

    /// A fault in a flag.
    pub fn fault_at(&mut self, place: &str, key: &str, what: String) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(ConfigFault { place: place.into(), key: key.into(), what });
        }
    }

    /// A fault in the file where the value stands there, else in the flag.
    pub fn fault_of(&mut self, value: Option<&Spanned<String>>, flag: &str, key: &str, what: String) {
        match value {
            Some(value) => self.fault_in(value.span(), key, what),
            None => self.fault_at(flag, key, what),
        }
    }

    pub fn name(&mut self, key: &str, value: &Spanned<String>) -> String {
        if !vbr_api::name_is_valid(value.get_ref()) {
            self.fault_in(value.span(), key, name_fault(value.get_ref()));
        }
        value.get_ref().clone()
    }

    /// `total`: what percentages are of; 0 where they make no sense.
    pub fn size(&mut self, key: &str, value: &Spanned<String>, min: u64, total: u64) -> Option<u64> {
        match parse_size(value.get_ref(), total) {
            Ok(bytes) if bytes < min => {
                self.fault_in(
                    value.span(),
                    key,
                    format!("\"{}\" is too small; at least {min} bytes", value.get_ref()),
                );
                None
            }
            Ok(bytes) => Some(bytes),
            Err(what) => {
                self.fault_in(value.span(), key, what);
                None
            }
        }
    }

    pub fn rate(&mut self, key: &str, value: &Spanned<String>) -> Option<u64> {
        let parsed = parse_rate(value.get_ref());
        self.taken(key, value, parsed)
    }

    pub fn duration(&mut self, key: &str, value: &Spanned<String>) -> Option<Duration> {
        let parsed = parse_duration(value.get_ref());
        self.taken(key, value, parsed)
    }

    pub fn window(&mut self, key: &str, value: &Spanned<String>) -> Option<Window> {
        let parsed = value.get_ref().parse().map_err(|why: Malformed| why.to_string());
        self.taken(key, value, parsed)
    }

    pub fn loopback(&mut self, key: &str, value: &Spanned<String>) -> Option<SocketAddr> {
        let text = value.get_ref();
        let parsed = match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() && address.port() > 0 => Ok(address),
            Ok(_) => Err(format!("\"{text}\" is not on this machine alone; write \"127.0.0.1:9469\"")),
            Err(_) => Err(format!("\"{text}\" is no address with a port; write \"127.0.0.1:9469\"")),
        };
        self.taken(key, value, parsed)
    }

    pub fn path(&mut self, key: &str, value: &Spanned<String>) -> Option<PathBuf> {
        let path = Path::new(value.get_ref());
        let parsed = if !path.is_absolute() {
            Err(format!("\"{}\" is not an absolute path; it has to begin with /", value.get_ref()))
        } else if path.components().any(|c| c == Component::ParentDir) {
            Err(format!("\"{}\" goes through `..`; write the path without it", value.get_ref()))
        } else {
            Ok(path.components().collect::<PathBuf>())
        };
        self.taken(key, value, parsed)
    }

    pub fn paths(&mut self, key: &str, values: Option<&Vec<Spanned<String>>>) -> Vec<PathBuf> {
        values.into_iter().flatten().filter_map(|value| self.path(key, value)).collect()
    }

    pub fn multiaddrs(&mut self, key: &str, values: Option<&Vec<Spanned<String>>>) -> Option<Vec<String>> {
        let values = values?;
        for value in values {
            if let Some(what) = multiaddr_fault(value.get_ref()) {
                self.fault_in(value.span(), key, what);
            }
        }
        Some(values.iter().map(|v| v.get_ref().clone()).collect())
    }

    pub fn transport(&mut self, key: &str, value: Option<&Spanned<String>>) -> Transport {
        let Some(value) = value else { return Transport::Tcp };
        let parsed = match value.get_ref().as_str() {
            "tcp" => Ok(Transport::Tcp),
            "quic" => Ok(Transport::Quic),
            other => Err(format!("\"{other}\" is no transport; allowed: \"tcp\", \"quic\"")),
        };
        self.taken(key, value, parsed).unwrap_or(Transport::Tcp)
    }

    pub fn congestion(&mut self, key: &str, value: Option<&Spanned<String>>) -> Congestion {
        let Some(value) = value else { return Congestion::Bbr };
        let parsed = match value.get_ref().as_str() {
            "bbr" => Ok(Congestion::Bbr),
            "system" => Ok(Congestion::System),
            other => Err(format!("\"{other}\" is no congestion control; allowed: \"bbr\", \"system\"")),
        };
        self.taken(key, value, parsed).unwrap_or(Congestion::Bbr)
    }

    /// A number from 1 to `max`, which is also the default.
    pub fn count(&mut self, key: &str, value: Option<&Spanned<i64>>, max: usize) -> usize {
        let Some(value) = value else { return max };
        match usize::try_from(*value.get_ref()) {
            Ok(count) if (1..=max).contains(&count) => count,
            _ => {
                let what = format!("{} is out of bounds; allowed: 1 to {max}", value.get_ref());
                self.fault_in(value.span(), key, what);
                max
            }
        }
    }

    pub fn log_format(&mut self, key: &str, value: Option<&Spanned<String>>) -> LogFormat {
        let Some(value) = value else { return LogFormat::Plain };
        let parsed = match value.get_ref().as_str() {
            "plain" => Ok(LogFormat::Plain),
            "json" => Ok(LogFormat::Json),
            other => Err(format!("\"{other}\" is no log format; allowed: \"plain\", \"json\"")),
        };
        self.taken(key, value, parsed).unwrap_or(LogFormat::Plain)
    }

    pub fn log_level(&mut self, key: &str, value: Option<&Spanned<String>>) -> String {
        let Some(value) = value else { return "info".into() };
        let parsed = tracing_subscriber::EnvFilter::builder().parse(value.get_ref()).map(drop).map_err(|e| {
            format!(
                "\"{}\" is no log level ({e}); allowed: \"error\", \"warn\", \"info\", \"debug\", \"trace\", \
                 or directives like \"info,vbr_appliance::wire=debug\"",
                value.get_ref()
            )
        });
        let parsed = match log_word_fault(value.get_ref()) {
            Some(fault) => Err(fault),
            None => parsed,
        };
        self.taken(key, value, parsed);
        value.get_ref().clone()
    }

    pub fn taken<T>(&mut self, key: &str, value: &Spanned<String>, parsed: Result<T, String>) -> Option<T> {
        parsed.map_err(|what| self.fault_in(value.span(), key, what)).ok()
    }
}

/// A filter takes any lone word as the name of a module: `level = "inof"` would silence everything.
fn log_word_fault(level: &str) -> Option<String> {
    let lone = |word: &&str| !word.contains(['=', ':', '_', '[']);
    let known = |word: &str| {
        matches!(word.to_ascii_lowercase().as_str(), "error" | "warn" | "info" | "debug" | "trace" | "off")
    };
    let bad = level.split(',').map(str::trim).filter(lone).find(|word| !known(word))?;
    Some(format!(
        "\"{bad}\" is no log level; allowed: \"error\", \"warn\", \"info\", \"debug\", \"trace\", \"off\""
    ))
}

/// Bytes: `1048576`, `64MiB`, `10 GB`, or `5%` where `total` says of what.
pub fn parse_size(text: &str, total: u64) -> Result<u64, String> {
    let fault = || {
        let percent = if total > 0 { ", or percent of the file system like \"5%\"" } else { "" };
        format!(
            "\"{text}\" is no size; allowed: bytes with a unit, like \"512MiB\", \"10GiB\", \"2TB\"{percent}"
        )
    };
    if let Some(number) = text.trim().strip_suffix('%') {
        let percent: f64 = number.trim().parse().map_err(|_| fault())?;
        if total == 0 || !(0.0..=100.0).contains(&percent) {
            return Err(fault());
        }
        return Ok((total as f64 * percent / 100.0) as u64);
    }
    let text = text.trim();
    if text.is_empty() || !text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(fault());
    }
    text.parse::<bytesize::ByteSize>().map(|b| b.as_u64()).map_err(|_| fault())
}

/// Bits a second: `20Mbit`, `1.5 Gbit/s`, `800kbit`.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let fault =
        || format!("\"{text}\" is no rate; allowed: bits a second like \"800kbit\", \"20Mbit\", \"1Gbit\"");
    let (number, unit) = number_and_unit(text).ok_or_else(fault)?;
    let factor = match unit.trim_end_matches("/s").to_ascii_lowercase().as_str() {
        "bit" => 1e0,
        "kbit" => 1e3,
        "mbit" => 1e6,
        "gbit" => 1e9,
        _ => return Err(fault()),
    };
    let bps = number * factor;
    // Below this no session gets its heartbeats through in time.
    if !(64e3..=1e12).contains(&bps) {
        return Err(format!("\"{text}\" is out of bounds; at least 64kbit, at most 1000Gbit"));
    }
    Ok(bps as u64)
}

/// `30s`, `15m`, `12h`, `7d`, `2w`; `0` is none.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let fault = || {
        format!(
            "\"{text}\" is no duration; allowed: a number and a unit, like \"30s\", \"15m\", \"12h\", \"7d\", \"2w\""
        )
    };
    let (number, unit) = number_and_unit(text).ok_or_else(fault)?;
    let factor = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        "w" => 604_800.0,
        "" if number == 0.0 => 1.0,
        _ => return Err(fault()),
    };
    let seconds = number * factor;
    if seconds > 100.0 * 366.0 * 86_400.0 {
        return Err(format!("\"{text}\" is longer than a hundred years"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}

/// What is wrong with an address, roughly: the wire parses it for good. Good enough to catch
/// `0.0.0.0:7300` with a line number.
pub(super) fn multiaddr_fault(address: &str) -> Option<String> {
    let fault = || {
        Some(format!(
            "\"{address}\" is no address; allowed: \"/ip4/0.0.0.0/tcp/7300\", \"/ip6/::/tcp/7300\", \
             \"/dns/dr.example.com/tcp/7300\", \"/ip4/0.0.0.0/udp/7300/quic-v1\""
        ))
    };
    let parts: Vec<&str> = address.split('/').collect();
    let (host, port) = match parts.as_slice() {
        ["", kind, host, "tcp", port] => ((*kind, *host), *port),
        ["", kind, host, "udp", port, "quic-v1"] => ((*kind, *host), *port),
        _ => return fault(),
    };
    let host_fits = match host {
        ("ip4", ip) => ip.parse::<std::net::Ipv4Addr>().is_ok(),
        ("ip6", ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
        ("dns" | "dns4" | "dns6", name) => !name.is_empty(),
        _ => false,
    };
    if host_fits && port.parse::<u16>().is_ok() { None } else { fault() }
}

pub(super) fn name_fault(name: &str) -> String {
    format!(
        "\"{name}\" is no name; allowed: 1 to 64 of a-z, 0-9, `.`, `_`, `-`, beginning with a letter or digit"
    )
}

/// A machine's name as a site name: lower case, without its domain, what does not fit becomes `-`.
pub(super) fn clean_name(hostname: &str) -> String {
    let short = hostname.trim().split('.').next().unwrap_or_default().to_lowercase();
    let mapped: String =
        short.chars().map(|c| if c.is_ascii_alphanumeric() || "_-".contains(c) { c } else { '-' }).collect();
    let name: String = mapped.trim_start_matches(['-', '_']).chars().take(64).collect();
    if vbr_api::name_is_valid(&name) { name } else { "site".into() }
}

/// Flags may be relative to the working directory; everything inside is absolute.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
