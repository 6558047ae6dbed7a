//! `vbrctl throttle`: how much this site may send, to whom, and when.

use clap::{Args, Subcommand};
use serde_json::json;
use vbr_api::{Throttle, ThrottleSpec, ThrottledPeer, Throttles, name_is_valid};

use crate::client::{Document, encode};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::View;
use crate::show;
use crate::table::{Cell, Table, Tone, section};

const PATH: &str = "/v1/throttle";

const SET_EXAMPLE: &str = "\
Example:
  vbrctl throttle set office --rate 5Mbit --days Mon..Fri --hours 08:00-18:00
  vbrctl throttle set night --rate 50Mbit --hours 18:00-08:00
  vbrctl throttle set dr --rate 20Mbit --peer dr
  vbrctl throttle set mpls --rate 2Mbit --network 10.1.0.0/16

A rule bounds everything this site sends to those it is for, all of them together, as TCP payload. Where several rules \
are in force, the lowest wins. The other site's rules bound what comes back.";

/// Rules for how much this site may send, to whom, and when
#[derive(Subcommand, Debug)]
pub enum Command {
    /// List rules, which of them are in force, and the limit that results for each connected peer
    #[command(after_help = "Example:\n  vbrctl throttle list")]
    List,
    /// Set a rule, or replace the one of that name. It acts at once, on sessions that run too
    #[command(after_help = SET_EXAMPLE)]
    Set(SetArguments),
    /// Forget a rule, or all of them; it ceases to act at once
    #[command(after_help = "Example:\n  vbrctl throttle clear office\n  vbrctl throttle clear --all")]
    Clear {
        /// Name of the rule
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        name: Option<String>,
        /// Every rule; what the configuration file says (wire.rate) stays
        #[arg(long)]
        all: bool,
    },
}

#[derive(Args, Debug)]
pub struct SetArguments {
    /// Name of the rule: a-z 0-9 . _ - (at most 64)
    name: String,
    /// Bits a second: 800kbit, 5Mbit, 1Gbit; at least 64kbit
    #[arg(long, value_name = "RATE", value_parser = human::parse_rate)]
    rate: u64,
    /// For this peer [default: for all peers together]
    #[arg(long, value_name = "PEER", conflicts_with = "network")]
    peer: Option<String>,
    /// For links whose other end has an address in this network
    #[arg(long, value_name = "ADDRESS/BITS")]
    network: Option<String>,
    /// On these days: Mon..Fri, or Sat,Sun [default: every day]
    #[arg(long, value_name = "DAYS")]
    days: Option<String>,
    /// At these hours, in the site's time zone: 08:00-18:00, or several with commas; over midnight the day is that of
    /// the beginning [default: the whole day]
    #[arg(long, value_name = "HOURS")]
    hours: Option<String>,
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::List => list(context).await,
            Self::Set(arguments) => arguments.run(context).await,
            Self::Clear { name, all } => {
                let (path, fallback) = match &name {
                    Some(name) if !all => (format!("{PATH}/{}", encode(name)), json!({ "removed": [name] })),
                    _ => (PATH.to_string(), json!({ "removed": [] })),
                };
                let line = name.map_or("all rules cleared".into(), |name| format!("rule {name} cleared"));
                context.output.done(&context.client.delete(&path).await?, &line, fallback)?;
                Ok(Exit::Done)
            }
        }
    }
}

impl SetArguments {
    async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let Self { name, rate, peer, network, days, hours } = self;
        if !name_is_valid(&name) {
            let pattern = "names start with a-z or 0-9 and hold a-z 0-9 . _ - (at most 64)";
            return Err(Failure::usage(
                format!("{name:?} is no name for a rule"),
                pattern,
                "choose another name",
            ));
        }
        let spec = ThrottleSpec { name, rate_bps: rate, peer, network, days, hours };
        let document = context.client.post_json(PATH, &spec).await?;
        let rule: Option<Throttle> = document.one().ok();
        let waits = rule.as_ref().is_some_and(|rule| !rule.in_force);
        let word = if document.status == 201 { "set" } else { "replaced" };
        let note = if waits { ", not in force now" } else { "" };
        let line = format!("rule {} {word}: {}{note}", spec.name, human::rate(rate));
        context.output.done(&document, &line, json!({ "name": spec.name }))?;
        Ok(Exit::Done)
    }
}

async fn list(context: &Context) -> Result<Exit, Failure> {
    let document = context.client.get(PATH).await?;
    if context.output.format.is_json() {
        return show::print_list::<Throttle>(context, &document, "", &rules);
    }
    let (all, view): (Throttles, View) = (parsed(&document)?, context.output.view());
    if all.items.is_empty() {
        context
            .output
            .note("no rules: this site sends as fast as it can; next: vbrctl throttle set NAME --rate RATE");
    } else {
        context.output.emit(&rules(&all.items, &view))?;
    }
    if !all.peers.is_empty() {
        context.output.emit(&section("Connected peers", &peers(&all.peers, &view)))?;
    }
    Ok(Exit::Done)
}

fn parsed(document: &Document) -> Result<Throttles, Failure> {
    document.checked()?;
    document.one()
}

fn rules(rules: &[Throttle], view: &View) -> String {
    let mut table = Table::new(view, &["NAME", ">RATE", "FOR", "DAYS", "HOURS", "STATE", "CHANGES"]);
    for rule in rules {
        let spec = &rule.spec;
        let whom = match (&spec.peer, &spec.network) {
            (Some(peer), _) => format!("peer {peer}"),
            (None, Some(network)) => format!("network {network}"),
            (None, None) => "all peers".into(),
        };
        let state = match rule.in_force {
            true => Cell::toned("in force", Tone::Good),
            false => Cell::toned("waits", Tone::Watch),
        };
        let changes = match rule.changes_at {
            Some(at) => format!("in {}", human::span_short(human::between(view.now, at))),
            None if rule.configured => "in the configuration file".into(),
            None => "never".into(),
        };
        table.row(vec![
            spec.name.as_str().into(),
            human::rate(spec.rate_bps).into(),
            whom.into(),
            spec.days.as_deref().unwrap_or("every day").into(),
            spec.hours.as_deref().unwrap_or("all day").into(),
            state,
            changes.into(),
        ]);
    }
    table.finish()
}

fn peers(peers: &[ThrottledPeer], view: &View) -> String {
    let mut table = Table::new(view, &["PEER", ">LIMIT", "RULE"]);
    for peer in peers {
        table.row(vec![
            peer.peer.as_str().into(),
            peer.limit_bps.map_or("none".into(), human::rate).into(),
            peer.rule.clone().unwrap_or_default().into(),
        ]);
    }
    table.finish()
}
