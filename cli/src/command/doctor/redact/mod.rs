//! Takes out of a text what is nobody's business: secrets always; names, paths and addresses unless they are to stay.
//!
//! Secrets are gone: what stands under a name that says so (`password = …`), what a URL holds besides its host, keys in PEM
//! form. Long words with letters and digits (invitation codes, key material, identities, hashes) become `[word-1]`. Names that were
//! learned, names of machines, paths and addresses become tokens, the same for the same thing in the whole bundle: `job-2`,
//! `host-1`, `/srv/path-3/job-2.img`, `ip-4`. Which token is what stays here.
//!
//! `words` tells paths, addresses and machines by their form, `vocabulary` has the lists of words.
//!
//! Pure: text in, text out. Everything has to be learned before the first text is asked for, or a name that is learned later
//! stays in what came before. Bound: [`NAMES_MAX`] names are told apart.

mod vocabulary;
mod words;

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use self::vocabulary::{COMMON, NAME_FIELDS, NAMED_LISTS, SECRET_FIELDS, SECRET_NAMES};

/// More names than these stay one token.
const NAMES_MAX: usize = 20_000;

/// What was told apart so far.
pub struct Redactor {
    plain_names: bool,
    tokens: HashMap<String, String>,
    /// Tokens that were given: they are not replaced again.
    given: HashSet<String>,
    counts: BTreeMap<String, usize>,
    /// Learned names, longest first, as they are looked for in texts.
    learned: Vec<String>,
}

impl Redactor {
    pub fn new(plain_names: bool) -> Self {
        Self {
            plain_names,
            tokens: HashMap::new(),
            given: HashSet::new(),
            counts: BTreeMap::new(),
            learned: Vec::new(),
        }
    }

    /// From now on this name is a token wherever it stands as a word.
    pub fn learn(&mut self, kind: &str, name: &str) {
        let known = COMMON.contains(&name) || name.chars().count() < 2 || self.learned.len() >= NAMES_MAX;
        if known || name.chars().all(|c| c.is_ascii_digit()) || self.learned.iter().any(|one| one == name) {
            return;
        }
        self.token(kind, name);
        let at = self.learned.partition_point(|one| one.len() >= name.len());
        self.learned.insert(at, name.to_owned());
    }

    /// The names in an answer of the API; `kind`: what the items of a list are.
    pub fn learn_from(&mut self, kind: Option<&str>, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.learn_from(kind, item)),
            Value::Object(fields) => {
                for (field, value) in fields {
                    match value {
                        Value::String(name) if field == "name" => {
                            kind.into_iter().for_each(|kind| self.learn(kind, name));
                        }
                        Value::String(name) => self.learn_field(field, name),
                        _ => {
                            let listed =
                                NAMED_LISTS.iter().find(|(list, _)| list == field).map(|(_, kind)| *kind);
                            let kind = if field == "items" { kind } else { listed };
                            self.learn_from(kind, value);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn learn_field(&mut self, field: &str, text: &str) {
        if let Some((_, kind)) = NAME_FIELDS.iter().find(|(name, _)| *name == field) {
            // `dr/fast`, `lab/web`: each part is a name.
            text.split('/').for_each(|name| self.learn(kind, name));
        }
        // A path with blanks in it can be told in a log only if it is known.
        if text.starts_with('/') && text.contains(' ') && !text.contains('\n') {
            self.learned.push(text.to_owned());
            self.learned.sort_by_key(|name| std::cmp::Reverse(name.len()));
            let token = self.path(text);
            self.tokens.insert(text.to_owned(), token);
        }
    }

    fn token(&mut self, kind: &str, name: &str) -> String {
        if self.given.contains(name) {
            return name.to_owned();
        }
        if let Some(token) = self.tokens.get(name) {
            return token.clone();
        }
        let count = self.counts.entry(kind.to_owned()).or_default();
        *count += 1;
        let token = format!("{kind}-{count}");
        self.tokens.insert(name.to_owned(), token.clone());
        self.given.insert(token.clone());
        token
    }

    /// An answer of the API.
    pub fn json(&mut self, value: Value) -> Value {
        match value {
            Value::String(text) => {
                let whole_path = text.starts_with('/') && !text.contains(['\n', ':', '"']);
                Value::from(if whole_path && !self.plain_names { self.path(&text) } else { self.text(&text) })
            }
            Value::Array(items) => items.into_iter().map(|item| self.json(item)).collect(),
            Value::Object(fields) => fields
                .into_iter()
                .map(|(field, value)| {
                    let hidden = !value.is_null()
                        && !value.is_boolean()
                        && !value.is_number()
                        && is_secret_field(&field);
                    let value = if hidden { Value::from("[redacted]") } else { self.json(value) };
                    (field, value)
                })
                .collect(),
            other => other,
        }
    }

    /// Any text, line by line.
    pub fn text(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut in_key = false;
        for line in text.split_inclusive('\n') {
            if line.contains("-----BEGIN") {
                in_key = true;
                out.push_str("[redacted key or certificate]\n");
            }
            if !in_key {
                let (body, end) = line.strip_suffix('\n').map_or((line, ""), |body| (body, "\n"));
                out.push_str(&self.line(body));
                out.push_str(end);
            }
            in_key = in_key && !line.contains("-----END");
        }
        out
    }

    fn line(&mut self, line: &str) -> String {
        let line = without_secrets(line);
        let line = self.urls(&line);
        let line = if self.plain_names { line } else { self.names(&line) };
        self.words(&line)
    }

    /// `https://ann:pw@ops.example.com/hook?token=x` -> `https://host-1/[redacted]`
    fn urls(&mut self, line: &str) -> String {
        let mut out = String::new();
        let mut rest = line;
        while let Some(at) = rest.find("://") {
            let end = rest[at + 3..]
                .find([' ', '"', '\'', '<', '>', ')', ']', '\t'])
                .map_or(rest.len(), |end| at + 3 + end);
            // `[::1]` is part of the address.
            let end = if rest[at + 3..].starts_with('[') {
                rest[end..].find([' ', '"', '\'']).map_or(rest.len(), |more| end + more)
            } else {
                end
            };
            let url = &rest[at + 3..end];
            let authority = url.split(['/', '?', '#']).next().unwrap_or_default();
            let host = authority.rsplit('@').next().unwrap_or_default();
            out.push_str(&rest[..at + 3]);
            if self.plain_names {
                out.push_str(host);
            } else {
                let (name, port) = match host.rsplit_once(':') {
                    Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => {
                        (name, format!(":{port}"))
                    }
                    _ => (host, String::new()),
                };
                if !name.is_empty() {
                    out.push_str(&format!("{}{port}", self.token("host", name)));
                }
            }
            if url.len() > authority.len() + 1 {
                out.push_str("/[redacted]");
            }
            rest = &rest[end..];
        }
        out + rest
    }

    /// Learned names, wherever they stand as words; then paths.
    fn names(&mut self, line: &str) -> String {
        let mut line = line.to_owned();
        // Whole paths with blanks first: they are the longest.
        for name in self.learned.clone().into_iter().filter(|name| name.starts_with('/')) {
            if line.contains(&name) {
                let token = self.tokens.get(&name).cloned().unwrap_or_default();
                line = line.replace(&name, &token);
            }
        }
        let line = self.paths(&line);
        let mut line = line;
        for at in 0..self.learned.len() {
            let name = &self.learned[at];
            if !name.starts_with('/') && line.contains(name.as_str()) {
                let token = self.tokens.get(name).map_or("", String::as_str);
                line = replace_word(&line, name, token);
            }
        }
        line
    }
}

fn is_secret_field(field: &str) -> bool {
    SECRET_FIELDS.contains(&field) || is_secret_name(field)
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.iter().any(|secret| name.contains(secret))
}

/// `password = x`, `"token": "x"`, `Authorization: Bearer x`: the rest of the line goes, for a secret may have blanks.
fn without_secrets(line: &str) -> String {
    let mut from = 0;
    while let Some(at) = line[from..].find([':', '=']).map(|at| at + from) {
        let before = line[..at].trim_end().trim_end_matches(['"', '\'']);
        let name = before
            .rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'))
            .next()
            .unwrap_or_default();
        // In the configuration a command may carry anything.
        let is_command = name == "command" && line[at..].starts_with('=');
        if is_secret_name(name) || is_command {
            return format!("{} [redacted]", &line[..=at]);
        }
        from = at + 1;
    }
    line.to_owned()
}

fn replace_word(line: &str, name: &str, token: &str) -> String {
    let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let mut out = String::new();
    let mut rest = line;
    let mut last = None;
    while let Some(at) = rest.find(name) {
        let before = rest[..at].chars().next_back().or(last);
        let after = rest[at + name.len()..].chars().next();
        out.push_str(&rest[..at]);
        out.push_str(if inside(before) || inside(after) { name } else { token });
        last = name.chars().next_back();
        rest = &rest[at + name.len()..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_go_whatever_is_asked_for() {
        for plain_names in [false, true] {
            let mut redactor = Redactor::new(plain_names);
            let text = redactor.text(
                "password = hunter2 and more\nAuthorization: Bearer abc.def\nwebhook = \"https://ann:s3cret@ops.example.com:8443/hook/T0K3N?key=zzz\"\n\
                 command = [\"/usr/bin/tell\", \"--pin\", \"4711\"]\n-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG\n-----END PRIVATE KEY-----\n\
                 joined with aebagbaeaqcabaeaya7qaaaaaaaa7gqdtw2v5kqp3zq\nnext_step=\"try again\" code=not_found\n",
            );
            for secret in
                ["hunter2", "more", "abc.def", "s3cret", "ann", "T0K3N", "zzz", "4711", "MIGH", "aebagbae"]
            {
                assert!(!text.contains(secret), "{secret}: {text}");
            }
            assert!(text.contains("next_step=\"try again\" code=not_found"), "{text}");
            assert_eq!(text.contains("ops.example.com"), plain_names, "{text}");
            assert!(text.contains("/[redacted]\"\n"), "{text}");
            let value = json!({"code": "not_found", "command": ["x"], "text": "t", "retry": false, "passphrase": "p", "token": 3});
            let wanted = json!({"code": "not_found", "command": "[redacted]", "text": "t", "retry": false, "passphrase": "[redacted]", "token": 3});
            assert_eq!(redactor.json(value), wanted);
        }
    }

    #[test]
    fn names_become_the_same_tokens_everywhere() {
        let mut redactor = Redactor::new(false);
        let jobs = json!({"items": [{"name": "acme-web", "target": "dr-site/fast", "disks": [{"path": "/srv/vm/acme web.img"}]}, {"name": "web"}]});
        redactor.learn_from(Some("job"), &jobs);
        redactor.learn("host", "kvm01");
        let text = redactor.text("kvm01 vbrd[7]: job acme-web to dr-site: /srv/vm/acme web.img; web, webhook, /var/lib/vbr/key, /srv/acme/db.qcow2 x web");
        assert_eq!(
            text,
            "host-1 vbrd[7]: job job-1 to site-1: /srv/path-1/path-2.img; job-2, webhook, /var/lib/vbr/key, /srv/path-3/path-4.qcow2 x job-2"
        );
        let value =
            redactor.json(json!({"job": "acme-web", "path": "/srv/vm/acme web.img", "state": "running"}));
        assert_eq!(value, json!({"job": "job-1", "path": "/srv/path-1/path-2.img", "state": "running"}));
    }

    #[test]
    fn addresses() {
        let mut redactor = Redactor::new(false);
        let text = redactor.text(
            "192.0.2.7:7300 192.0.2.7 127.0.0.1:80 0.0.0.0 fe80::1%eth0 2001:db8::5 ::1 52:54:00:12:34:56 peer=198.51.100.2 \
             /ip4/192.0.2.7/tcp/7300 /dns/dr.acme.example/tcp/7300 host dr.acme.example. 12:00:01 1.2.3 net.ipv4.tcp_rmem",
        );
        assert_eq!(
            text,
            "ip-1:7300 ip-1 127.0.0.1:80 0.0.0.0 ip-2%if ip-3 ::1 mac-1 peer=ip-4 \
             /ip4/ip-1/tcp/7300 /dns/host-1/tcp/7300 host host-1. 12:00:01 1.2.3 net.ipv4.tcp_rmem"
        );
    }

    #[test]
    fn what_says_nothing_about_anybody_stays() {
        let mut redactor = Redactor::new(false);
        for text in [
            "vbr_cache_evicted_packs_total 17",
            "2026-11-22T19:00:42Z INFO vbr_appliance::wire::link: connected rtt_ms=80 session=20261122t190000z-77aa",
            "sealed in 3.5 s, 41.2 MiB of 1/3; and/or",
            "/usr/bin/vbrd /etc/vbr/vbrd.toml /proc/sys/net",
        ] {
            assert_eq!(redactor.text(text), text);
        }
    }
}
