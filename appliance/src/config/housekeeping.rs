//! `[scrub]`, `[verify]`, `[history]` and `[notify.NAME]`: read, checked and printed.

use std::collections::BTreeMap;
use std::time::Duration;

use toml::Spanned;

use super::render::{list, quoted};
use super::values::Checker;
use super::{Config, file};
use crate::limits::{
    HISTORY_KEEP, HISTORY_SESSIONS_MAX, HOUSEKEEPING_INTERVAL, HOUSEKEEPING_RATE, NOTIFY_HOOKS_MAX,
    NOTIFY_TIMEOUT,
};

/// Intervals below this are slips of the pen.
const EVERY_MIN: Duration = Duration::from_secs(5);
/// Lowest rate, bytes a second.
const RATE_MIN: u64 = 64 * 1024;
/// Longest time for one try of a notification.
const TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// A job's history is kept for as long at least.
const KEEP_MIN: Duration = Duration::from_secs(24 * 3600);

/// Something that reads much, now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacedSection {
    /// How often; none: never.
    pub every: Option<Duration>,
    /// How fast.
    pub bytes_per_second: u64,
}

/// `[history]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistorySection {
    /// Sessions that ended earlier go, and entries of job logs.
    pub keep: Duration,
    /// Sessions of one job.
    pub sessions: usize,
}

/// What somebody wants to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotifyEvent {
    /// A session sealed its restore point.
    Success,
    /// The same, and something needs a look.
    Warning,
    /// A session failed.
    Failure,
    /// A session stands still.
    Stall,
    /// A job missed its recovery point objective, or has it again.
    RpoMissed,
}

impl NotifyEvent {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Success, Self::Warning, Self::Failure, Self::Stall, Self::RpoMissed];

    /// As written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Warning => "warning",
            Self::Failure => "failure",
            Self::Stall => "stall",
            Self::RpoMissed => "rpo-missed",
        }
    }
}

/// Where a webhook lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// As it was written.
    pub url: String,
    /// `host:port`, to connect to.
    pub authority: String,
    /// `Host` of the request.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// `https`
    pub tls: bool,
}

impl Webhook {
    /// The host without its port, and an IPv6 address without its brackets: what a certificate is for.
    pub fn name(&self) -> &str {
        let host = self.authority.rsplit_once(':').map_or(self.authority.as_str(), |(host, _)| host);
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }
}

/// `[notify.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotifySection {
    /// Its name.
    pub name: String,
    /// What it hears of; never empty.
    pub on: Vec<NotifyEvent>,
    /// Of these jobs; of all where it is empty.
    pub jobs: Vec<String>,
    /// Gets a POST.
    pub webhook: Option<Webhook>,
    /// Is run, without a shell; empty for none.
    pub command: Vec<String>,
    /// For one try.
    pub timeout: Duration,
}

pub(super) fn paced(section: &str, raw: &file::Paced, checker: &mut Checker) -> PacedSection {
    let key = format!("{section}.every");
    let every = match &raw.every {
        None => HOUSEKEEPING_INTERVAL,
        Some(value) => {
            let every = checker.duration(&key, value).unwrap_or(HOUSEKEEPING_INTERVAL);
            if !every.is_zero() && every < EVERY_MIN {
                checker.fault_in(
                    value.span(),
                    &key,
                    "is too short; give at least \"5s\", or \"0\" for never".into(),
                );
            }
            every
        }
    };
    let rate =
        raw.rate.as_ref().and_then(|value| checker.size(&format!("{section}.rate"), value, RATE_MIN, 0));
    let every = Some(every).filter(|every| !every.is_zero());
    PacedSection { every, bytes_per_second: rate.unwrap_or(HOUSEKEEPING_RATE) }
}

pub(super) fn history(raw: &file::History, checker: &mut Checker) -> HistorySection {
    let keep = raw.keep.as_ref().map_or(HISTORY_KEEP, |value| {
        let keep = checker.duration("history.keep", value).unwrap_or(HISTORY_KEEP);
        if keep < KEEP_MIN {
            checker.fault_in(value.span(), "history.keep", "is too short; give at least \"1d\"".into());
        }
        keep
    });
    HistorySection {
        keep,
        sessions: checker.count("history.sessions", raw.sessions.as_ref(), HISTORY_SESSIONS_MAX),
    }
}

pub(super) fn notify(
    raw: &BTreeMap<Spanned<String>, file::Notify>,
    checker: &mut Checker,
) -> Vec<NotifySection> {
    if let Some((name, _)) = raw.iter().nth(NOTIFY_HOOKS_MAX) {
        let what = format!("is one too many; at most {NOTIFY_HOOKS_MAX} sections");
        checker.fault_in(name.span(), &format!("notify.{}", name.get_ref()), what);
    }
    raw.iter().map(|(name, section)| hook(name, section, checker)).collect()
}

fn hook(name: &Spanned<String>, raw: &file::Notify, checker: &mut Checker) -> NotifySection {
    let key = format!("notify.{}", name.get_ref());
    checker.name(&key, name);
    let on = events(&format!("{key}.on"), raw.on.as_ref(), checker);
    if on.is_empty() && raw.on.as_ref().is_none_or(Vec::is_empty) {
        let what = "`on` is missing; say what it hears of, like on = [\"failure\", \"rpo-missed\"]";
        checker.fault_in(name.span(), &key, what.into());
    }
    let mut jobs = Vec::new();
    for job in raw.jobs.iter().flatten() {
        jobs.push(checker.name(&format!("{key}.jobs"), job));
    }
    let webhook = raw.webhook.as_ref().and_then(|value| webhook(&format!("{key}.webhook"), value, checker));
    let command: Vec<String> = raw.command.iter().flatten().map(|word| word.get_ref().clone()).collect();
    if let Some(program) = raw.command.as_ref().and_then(|words| words.first())
        && !program.get_ref().starts_with('/')
    {
        let what = format!("\"{}\" is not an absolute path; name the program in full", program.get_ref());
        checker.fault_in(program.span(), &format!("{key}.command"), what);
    }
    if raw.webhook.is_none() && command.is_empty() {
        let what = "has neither `webhook` nor `command`; give at least one of them";
        checker.fault_in(name.span(), &key, what.into());
    }
    let timeout = raw.timeout.as_ref().map_or(NOTIFY_TIMEOUT, |value| {
        let timeout = checker.duration(&format!("{key}.timeout"), value).unwrap_or(NOTIFY_TIMEOUT);
        if !(Duration::from_secs(1)..=TIMEOUT_MAX).contains(&timeout) {
            let what = "is out of bounds; allowed: \"1s\" to \"10m\"";
            checker.fault_in(value.span(), &format!("{key}.timeout"), what.into());
        }
        timeout
    });
    NotifySection { name: name.get_ref().clone(), on, jobs, webhook, command, timeout }
}

fn events(key: &str, words: Option<&Vec<Spanned<String>>>, checker: &mut Checker) -> Vec<NotifyEvent> {
    let mut events = Vec::new();
    for word in words.into_iter().flatten() {
        match NotifyEvent::ALL.into_iter().find(|event| event.as_str() == word.get_ref()) {
            Some(event) => events.push(event),
            None => {
                let all = NotifyEvent::ALL.map(|event| format!("\"{}\"", event.as_str())).join(", ");
                let what = format!("\"{}\" is nothing to hear of; allowed: {all}", word.get_ref());
                checker.fault_in(word.span(), key, what);
            }
        }
    }
    events.sort_unstable();
    events.dedup();
    events
}

fn webhook(key: &str, value: &Spanned<String>, checker: &mut Checker) -> Option<Webhook> {
    match parse_webhook(value.get_ref()) {
        Ok(webhook) => Some(webhook),
        Err(what) => {
            checker.fault_in(value.span(), key, what);
            None
        }
    }
}

/// `http[s]://HOST[:PORT][/PATH]`
pub fn parse_webhook(url: &str) -> Result<Webhook, String> {
    let fault = || format!("\"{url}\" is no address of a webhook; allowed: \"http[s]://HOST[:PORT]/PATH\"");
    let (rest, tls) = match url.strip_prefix("https://") {
        Some(rest) => (rest, true),
        None => (url.strip_prefix("http://").ok_or_else(fault)?, false),
    };
    let (host, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let printable = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if !printable(host) || !printable(path) || host.contains(['@', '?', '#']) || path.contains('#') {
        return Err(fault());
    }
    // An IPv6 address is in brackets; what follows them, or the last colon, is the port.
    let bare = host.rsplit_once(']').map_or(host, |(_, behind)| behind);
    let authority = match bare.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok_and(|port| port > 0) => host.to_string(),
        Some(_) => return Err(fault()),
        None if tls => format!("{host}:443"),
        None => format!("{host}:80"),
    };
    if authority.starts_with(':') {
        return Err(fault());
    }
    Ok(Webhook { url: url.into(), authority, host: host.into(), path: path.into(), tls })
}

pub(super) fn render(config: &Config, line: &mut dyn FnMut(String)) {
    for (name, section) in [("scrub", &config.scrub), ("verify", &config.verify)] {
        line(format!("\n[{name}]"));
        line(format!("every = \"{}s\"", section.every.map_or(0, |every| every.as_secs())));
        line(format!("rate = \"{}B\"", section.bytes_per_second));
    }
    line("\n[history]".into());
    line(format!("keep = \"{}s\"", config.history.keep.as_secs()));
    line(format!("sessions = {}", config.history.sessions));
    for hook in &config.notify {
        line(format!("\n[notify.{}]", quoted(&hook.name)));
        line(format!("on = {}", list(hook.on.iter().map(|event| event.as_str()))));
        line(format!("jobs = {}", list(hook.jobs.iter().map(String::as_str))));
        if let Some(webhook) = &hook.webhook {
            line(format!("webhook = {}", quoted(&webhook.url)));
        }
        if !hook.command.is_empty() {
            line(format!("command = {}", list(hook.command.iter().map(String::as_str))));
        }
        line(format!("timeout = \"{}ms\"", hook.timeout.as_millis()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<Config, super::super::ConfigError> {
        Config::resolve(Some("/etc/vbr/vbrd.toml".into()), text, &super::super::Overrides::default())
    }

    #[test]
    fn sections_read_and_print_the_same() {
        let config = resolve(
            "[scrub]\nevery = \"2d\"\nrate = \"8MiB\"\n[verify]\nevery = \"0\"\n[history]\nkeep = \"30d\"\nsessions = 50\n\
             [notify.ops]\non = [\"rpo-missed\", \"failure\", \"failure\"]\njobs = [\"web\"]\nwebhook = \"http://[::1]:8080/x?y=1\"\n\
             [notify.mail]\non = [\"success\"]\ncommand = [\"/usr/bin/mail\", \"a b\"]\ntimeout = \"3s\"\n",
        )
        .expect("good");
        assert_eq!(config.scrub.every, Some(Duration::from_secs(172_800)));
        assert_eq!((config.scrub.bytes_per_second, config.verify.every), (8 << 20, None));
        assert_eq!((config.history.sessions, config.history.keep.as_secs()), (50, 30 * 86_400));
        let [mail, ops] = &config.notify[..] else { panic!("{:?}", config.notify) };
        assert_eq!(ops.on, [NotifyEvent::Failure, NotifyEvent::RpoMissed]);
        let webhook = ops.webhook.as_ref().expect("one");
        assert_eq!((webhook.authority.as_str(), webhook.path.as_str()), ("[::1]:8080", "/x?y=1"));
        assert_eq!((mail.command.len(), mail.timeout.as_secs()), (2, 3));
        assert_eq!(resolve(&config.to_toml()).expect("its own print").notify, config.notify);
    }

    #[test]
    fn faults_say_what_to_write() {
        let faults = |text: &str| resolve(text).expect_err("is wrong").to_string();
        for (text, word) in [
            ("[notify.a]\nwebhook = \"http://x/\"\n", "`on` is missing"),
            ("[notify.a]\non = [\"failure\"]\n", "neither `webhook` nor `command`"),
            ("[notify.a]\non = [\"fire\"]\nwebhook = \"http://x/\"\n", "\"rpo-missed\""),
            ("[notify.a]\non = [\"failure\"]\nwebhook = \"https://x:0/y\"\n", "http[s]://HOST"),
            ("[notify.a]\non = [\"failure\"]\nwebhook = \"http:///y\"\n", "http[s]://HOST"),
            ("[notify.a]\non = [\"failure\"]\ncommand = [\"curl\"]\n", "absolute path"),
            ("[notify.a]\non = [\"failure\"]\ncommand = [\"/x\"]\ntimeout = \"1h\"\n", "10m"),
            ("[scrub]\nevery = \"1s\"\n", "5s"),
            ("[verify]\nrate = \"1kB\"\n", "verify.rate"),
            ("[history]\nkeep = \"1h\"\n", "1d"),
            ("[history]\nsessions = 0\n", "1 to 1000"),
        ] {
            let said = faults(text);
            assert!(said.contains(word), "{text}: {said}");
        }
        let many: String = (0..17)
            .map(|n| format!("[notify.h{n}]\non = [\"failure\"]\nwebhook = \"http://x/\"\n"))
            .collect();
        assert!(faults(&many).contains("at most 16"));
    }

    #[test]
    fn addresses_of_webhooks() {
        let parsed = |url: &str| parse_webhook(url).map(|hook| (hook.authority, hook.path));
        assert_eq!(parsed("http://ops.lan"), Ok(("ops.lan:80".into(), "/".into())));
        assert_eq!(parsed("http://[::1]/x"), Ok(("[::1]:80".into(), "/x".into())));
        assert_eq!(parsed("https://ops.lan/x?y"), Ok(("ops.lan:443".into(), "/x?y".into())));
        let name = |url: &str| parse_webhook(url).expect("is right").name().to_owned();
        assert_eq!([name("https://[::1]:8443/"), name("https://ops.lan/")], ["::1", "ops.lan"]);
        for bad in
            ["ftp://x", "http://", "http://a b/", "http://x:y/", "http://u@x/", "http://:80/", "http://x/#y"]
        {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
