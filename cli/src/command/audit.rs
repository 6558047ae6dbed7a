//! `vbrctl audit`: who ordered what, and what came of it.

use clap::{Args, Subcommand};
use vbr_api::{AuditEntry, Moment};

use crate::client::encode;
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::View;
use crate::show;
use crate::table::{Cell, Table, Tone};

/// Every order that changed something at this site, or tried to
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show the newest orders, oldest first: when, by whom, what, and what came of it
    #[command(
        after_help = "Example:\n  vbrctl audit log --since 24h\n  vbrctl audit log --lines 1000 -o jsonl\n\n\
                            Orders of consoles at other sites (vbrctl --site) are in the logs of both sites."
    )]
    Log(LogArguments),
}

#[derive(Args, Debug)]
pub struct LogArguments {
    /// Orders of the last time (2h, 7d), or since a moment (2027-01-31, 2027-01-31T08:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Moment>,
    /// The newest so many, 10000 at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    lines: u32,
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let Self::Log(LogArguments { since, lines }) = self;
        let since = since.map(|since| format!("&since={}", encode(&since.to_string()))).unwrap_or_default();
        let path = format!("/v1/audit?lines={lines}{since}");
        show::list(context, &path, false, "nothing was ordered in that time", &table).await
    }
}

fn since(text: &str) -> Result<Moment, String> {
    match human::parse_span(text) {
        Ok(span) => Moment::now().checked_sub(span).map_err(|error| error.to_string()),
        Err(_) => human::parse_moment(text),
    }
}

fn table(entries: &[AuditEntry], view: &View) -> String {
    let mut table =
        Table::new(view, &["TIME", "CALLER", "SITE", "OUTCOME", "+PID", ">+TOOK", "ORDER", "DETAILS"]);
    for entry in entries {
        let tone = if entry.outcome == "done" { Tone::Plain } else { Tone::Watch };
        table.row(vec![
            human::moment(entry.at).into(),
            caller(entry).into(),
            entry.site.as_deref().unwrap_or("here").into(),
            Cell::toned(entry.outcome.as_str(), tone),
            entry.caller.pid.map(|pid| pid.to_string()).unwrap_or_default().into(),
            format!("{} ms", entry.took_ms).into(),
            format!("{} {}", entry.method, entry.path).into(),
            details(entry).into(),
        ]);
    }
    table.finish()
}

fn caller(entry: &AuditEntry) -> String {
    let caller = &entry.caller;
    let user = match (&caller.user, caller.uid) {
        (Some(user), _) => user.clone(),
        (None, Some(uid)) => format!("uid {uid}"),
        (None, None) => "unknown".into(),
    };
    match &caller.peer {
        Some(peer) => format!("{user} at {peer}"),
        None => user,
    }
}

fn details(entry: &AuditEntry) -> String {
    let words = entry.details.iter().map(|(key, value)| match value.as_str() {
        Some(text) => format!("{key}={text}"),
        None => format!("{key}={value}"),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_moments() {
        assert!(since("2h").unwrap() < Moment::now());
        assert!(since("2020-01-31T08:00:00Z").is_ok());
        assert!(since("yesterday-ish").is_err());
    }

    #[test]
    fn callers_by_name_number_and_site() {
        let text = r#"{"sequence":1,"at":"2027-01-31T08:00:00Z","caller":{"uid":7},"method":"POST","route":null,
            "path":"/v1/jobs","details":{"name":"web","keep":3},"outcome":"done","status":200,"took_ms":4}"#;
        let mut entry: AuditEntry = serde_json::from_str(text).unwrap();
        assert_eq!((caller(&entry), details(&entry)), ("uid 7".into(), "keep=3 name=web".into()));
        entry.caller.user = Some("ann".into());
        entry.caller.peer = Some("hq".into());
        assert_eq!(caller(&entry), "ann at hq");
    }
}
