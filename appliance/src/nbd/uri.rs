//! Where an NBD server and its export are: URIs as the protocol defines them (`nbd://`, `nbds://`, `nbd+unix://`,
//! `nbds+unix://`). Pure.
//!
//! Not its job: certificates (a directory that the caller names), or asking whether anything is there. Bounds:
//! [`URI_BYTES_MAX`]; an export's name of [`EXPORT_BYTES_MAX`], as the protocol has it.

use std::fmt::{self, Display, Write as _};
use std::path::PathBuf;
use std::str::FromStr;

/// Bytes of a URI.
const URI_BYTES_MAX: usize = 4096;
/// Bytes in the name of an export.
const EXPORT_BYTES_MAX: usize = 1024;
/// The protocol's own port.
const PORT: u16 = 10809;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NbdAddress {
    /// Name or address, and port.
    Tcp(String, u16),
    /// A socket's path.
    Unix(PathBuf),
}

/// A server, and the name of one of its exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    /// Where it listens.
    pub address: NbdAddress,
    /// Whether nothing may pass unencrypted.
    pub tls: bool,
    /// The name of its shared key, where it has no certificates.
    pub user: Option<String>,
    /// The name in its certificate, where that is not the address.
    pub tls_hostname: Option<String>,
    /// The unnamed export is the empty name.
    pub export: String,
}

impl NbdUri {
    /// Another export of this server.
    pub fn with_export(&self, export: &str) -> Self {
        Self { export: export.into(), ..self.clone() }
    }
}

impl FromStr for NbdUri {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > URI_BYTES_MAX || text.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err("it is too long, or has spaces in it (write %20)".into());
        }
        let (scheme, rest) = text.split_once("://").ok_or("it has no scheme such as nbd://")?;
        let (tls, unix) = match scheme {
            "nbd" => (false, false),
            "nbds" => (true, false),
            "nbd+unix" => (false, true),
            "nbds+unix" => (true, true),
            _ => return Err(format!("{scheme:?} is none of nbd, nbds, nbd+unix, nbds+unix")),
        };
        if rest.contains('#') {
            return Err("it has a fragment (write %23)".into());
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(decode(user)?), host),
            None => (None, authority),
        };
        let (mut socket, mut tls_hostname) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "socket" if unix => socket = Some(decode(value)?),
                "tls-hostname" if tls => tls_hostname = Some(decode(value)?),
                _ => return Err(format!("the parameter {key:?} has no meaning here")),
            }
        }
        if user.as_ref().is_some_and(|user| !tls || user.is_empty() || user.contains(':')) {
            return Err("a user belongs to nbds:// alone, and never with a password".into());
        }
        let address = match (unix, socket) {
            (true, _) if !host.is_empty() => return Err("a socket is at no host: write nbd+unix:///".into()),
            (true, Some(path)) if path.starts_with('/') => NbdAddress::Unix(path.into()),
            (true, _) => return Err("it names no socket: ?socket=/PATH".into()),
            (false, _) => tcp(host)?,
        };
        let export = decode(path)?;
        if export.len() > EXPORT_BYTES_MAX {
            return Err(format!("the name of an export has at most {EXPORT_BYTES_MAX} bytes"));
        }
        Ok(Self { address, tls, user, tls_hostname, export })
    }
}

fn tcp(text: &str) -> Result<NbdAddress, String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("the address has no closing bracket")?;
            (host, after.strip_prefix(':').or_else(|| after.is_empty().then_some("")))
        }
        None => text.split_once(':').map_or((text, Some("")), |(host, port)| (host, Some(port))),
    };
    let port = match port.ok_or("the port follows the address after a colon")? {
        "" => PORT,
        port => port.parse().ok().filter(|port| *port > 0).ok_or("the port is no number from 1 to 65535")?,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:%".contains(c);
    if host.is_empty() || host.starts_with('-') || !host.chars().all(plain) {
        return Err(format!("{host:?} is no host"));
    }
    Ok(NbdAddress::Tcp(host.into(), port))
}

fn decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let hex = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (hex(rest.next()), hex(rest.next()));
                let both = high.zip(low).ok_or("a % is followed by two hexadecimal digits")?;
                (both.0 * 16 + both.1) as u8
            }
            byte => byte,
        });
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    if text.contains(char::is_control) { Err("it has control characters".into()) } else { Ok(text) }
}

fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"/.-_~:,".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

impl Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, user) = (if self.tls { "nbds" } else { "nbd" }, self.user.as_deref().map(encode));
        let user = user.map(|user| user + "@").unwrap_or_default();
        let export = encode(&self.export);
        let mut separator = '?';
        match &self.address {
            NbdAddress::Tcp(host, port) => {
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(f, "{scheme}://{user}{open}{host}{close}:{port}/{export}")?;
            }
            NbdAddress::Unix(path) => {
                let socket = encode(&path.to_string_lossy());
                write!(f, "{scheme}+unix://{user}/{export}?socket={socket}")?;
                separator = '&';
            }
        }
        match &self.tls_hostname {
            Some(name) => write!(f, "{separator}tls-hostname={}", encode(name)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> NbdUri {
        text.parse().unwrap()
    }

    #[test]
    fn uris_of_the_protocol() {
        let plain = parsed("nbd://esx-gate");
        assert_eq!(plain.address, NbdAddress::Tcp("esx-gate".into(), 10809));
        assert_eq!((plain.tls, plain.export.as_str()), (false, ""));
        let six = parsed("nbds://alice@[fd00::7]:4000/web/a%20b");
        assert_eq!(six.address, NbdAddress::Tcp("fd00::7".into(), 4000));
        assert_eq!((six.tls, six.user.as_deref(), six.export.as_str()), (true, Some("alice"), "web/a b"));
        let unix = parsed("nbds+unix:///web?socket=/run/x%3Fy.sock&tls-hostname=gate.example");
        assert_eq!(unix.address, NbdAddress::Unix("/run/x?y.sock".into()));
        assert_eq!((unix.export.as_str(), unix.tls_hostname.as_deref()), ("web", Some("gate.example")));
        for uri in [&plain, &six, &unix, &plain.with_export("ü?#%")] {
            assert_eq!(&parsed(&uri.to_string()), uri, "{uri}");
        }
        assert_eq!(plain.with_export("web").to_string(), "nbd://esx-gate:10809/web");
    }

    #[test]
    fn what_is_none_is_refused_with_a_reason() {
        for (text, why) in [
            ("/srv/web.img", "scheme"),
            ("http://x/y", "none of nbd"),
            ("nbd://", "no host"),
            ("nbd://-oProxy/x", "no host"),
            ("nbd://a:0/x", "port"),
            ("nbd://a:70000/x", "port"),
            ("nbd://[::1/x", "bracket"),
            ("nbd://a/x%2", "hexadecimal"),
            ("nbd://a/x%00", "control"),
            ("nbd://a/%ff", "UTF-8"),
            ("nbd://a/x y", "spaces"),
            ("nbd://a/x#y", "fragment"),
            ("nbd://u@a/x", "user"),
            ("nbds://u:secret@a/x", "password"),
            ("nbd://a/x?socket=/y", "no meaning"),
            ("nbd+unix:///x", "socket"),
            ("nbd+unix:///x?socket=y", "socket"),
            ("nbd+unix://a/x?socket=/y", "no host"),
            ("nbd+unix:///x?socket=/y&tls-hostname=z", "no meaning"),
        ] {
            let said = text.parse::<NbdUri>().unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused_and_what_is_taken_comes_back(text in "(nbds?(\\+unix)?://)?[ -~ü]{0,60}") {
            if let Ok(uri) = text.parse::<NbdUri>() {
                prop_assert_eq!(uri.to_string().parse::<NbdUri>(), Ok(uri));
            }
        }
    }
}
