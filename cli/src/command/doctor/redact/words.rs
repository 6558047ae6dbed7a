//! Paths, addresses, names of machines and long words, told apart by their form.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Redactor;
use super::vocabulary::{KEPT_ENDINGS, KEPT_PARTS, TOP_LABELS};

/// A word of letters and digits as long as this is taken for key material.
const LONG_WORD: usize = 24;

impl Redactor {
    pub(super) fn paths(&mut self, line: &str) -> String {
        let mut out = String::new();
        let mut rest = line;
        let mut before = ' ';
        while let Some(at) = rest.find('/') {
            let last = rest[..at].chars().next_back().unwrap_or(before);
            out.push_str(&rest[..at]);
            let tail = &rest[at..];
            let end =
                tail.find(|c: char| c.is_whitespace() || "\"'`,;:)]}<>|\\".contains(c)).unwrap_or(tail.len());
            // What is left of a URL was looked at before.
            let begins = !(last.is_alphanumeric() || "/.-_~".contains(last) || tail.starts_with("//"));
            if begins && end > 1 {
                let path = tail[..end].to_owned();
                out.push_str(&self.path(&path));
            } else {
                out.push_str(&tail[..end.max(1)]);
            }
            before = tail[..end.max(1)].chars().next_back().unwrap_or(' ');
            rest = &tail[end.max(1)..];
        }
        out + rest
    }

    /// `/srv/customers/web.img` -> `/srv/path-1/path-2.img`
    pub(super) fn path(&mut self, path: &str) -> String {
        let address =
            ["/ip4/", "/ip6/", "/dns/", "/dns4/", "/dns6/"].iter().any(|head| path.starts_with(head));
        let named = path.starts_with("/dns");
        let parts: Vec<&str> = path.split('/').collect();
        let mut out = Vec::new();
        for (number, part) in parts.into_iter().enumerate() {
            out.push(match part {
                part if part.is_empty() || KEPT_PARTS.contains(&part) => part.to_owned(),
                part if address && part.bytes().all(|b| b.is_ascii_digit()) => part.to_owned(),
                part if address && named && number == 2 => self.token("host", part),
                part if address => self.words(part),
                part => self.part(part),
            });
        }
        out.join("/")
    }

    fn part(&mut self, part: &str) -> String {
        let (stem, ending) = match part.rsplit_once('.') {
            Some((stem, ending)) if KEPT_ENDINGS.contains(&ending) && !stem.is_empty() => {
                (stem, Some(ending))
            }
            _ => (part, None),
        };
        let stem = if KEPT_PARTS.contains(&stem) { stem.to_owned() } else { self.token("path", stem) };
        ending.map_or(stem.clone(), |ending| format!("{stem}.{ending}"))
    }

    /// Addresses, names of machines and long words.
    pub(super) fn words(&mut self, line: &str) -> String {
        let mut out = String::new();
        let is_word = |c: char| c.is_ascii_alphanumeric() || "._:-+=%".contains(c);
        let mut rest = line;
        while !rest.is_empty() {
            let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let word = &rest[..length];
            out.push_str(&self.word(word));
            rest = &rest[length..];
            let gap = rest.find(is_word).unwrap_or(rest.len());
            out.push_str(&rest[..gap]);
            rest = &rest[gap..];
        }
        out
    }

    fn word(&mut self, word: &str) -> String {
        if word.is_empty() {
            return String::new();
        }
        if !self.plain_names {
            if let Some(token) = self.address(word) {
                return token;
            }
            let labels: Vec<&str> = word.trim_end_matches(['.', ':']).split('.').collect();
            let is_host = labels.len() > 1
                && labels.iter().all(|label| {
                    !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                })
                && labels.last().is_some_and(|last| TOP_LABELS.contains(last));
            if is_host {
                let bare = word.trim_end_matches(['.', ':']);
                return self.token("host", bare) + &word[bare.len()..];
            }
        }
        // Punctuation ends key material.
        let mut out = String::new();
        for piece in word.split_inclusive(['.', ':', '%', '=']) {
            let bare = piece.trim_end_matches(['.', ':', '%', '=']);
            let has = |test: fn(&u8) -> bool| bare.as_bytes().iter().any(test);
            let long = bare.len() >= LONG_WORD && has(u8::is_ascii_digit) && has(u8::is_ascii_alphabetic);
            if long {
                out.push('[');
                out.push_str(&self.token("word", bare));
                out.push(']');
                out.push_str(&piece[bare.len()..]);
            } else {
                out.push_str(piece);
            }
        }
        out
    }

    /// IPv4, IPv6 and MAC, with a port or without.
    fn address(&mut self, word: &str) -> Option<String> {
        let bare = word.trim_end_matches(['.', ':']);
        let end = &word[bare.len()..];
        let keeps = |ip: std::net::IpAddr| ip.is_loopback() || ip.is_unspecified();
        let (host, port) = match bare.split_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, &bare[host.len()..]),
            _ => (bare, ""),
        };
        // `key=192.0.2.7`
        let (head, host) =
            host.rsplit_once('=').map_or(("", host), |(head, host)| (&bare[..head.len() + 1], host));
        if let Ok(ip) = host.parse::<Ipv4Addr>() {
            let told = if keeps(ip.into()) { host.to_owned() } else { self.token("ip", host) };
            return Some(format!("{head}{told}{port}{end}"));
        }
        let is_mac = bare.len() == 17 && bare.split(':').filter(|byte| byte.len() == 2).count() == 6;
        if is_mac {
            return Some(self.token("mac", bare) + end);
        }
        if bare.matches(':').count() < 2 {
            return None;
        }
        let (six, more) = bare.split_once('%').map_or((bare, ""), |(six, _)| (six, "%"));
        let six = six.parse::<Ipv6Addr>().ok()?;
        if keeps(six.into()) {
            return Some(word.to_owned());
        }
        Some(format!(
            "{}{}{end}",
            self.token("ip", &six.to_string()),
            if more.is_empty() { "" } else { "%if" }
        ))
    }
}
