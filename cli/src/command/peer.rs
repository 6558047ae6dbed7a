//! `vbrctl peer`: pairing with other sites.

mod succession;

use std::io::Read;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use vbr_api::{GrantRequest, Invite, InviteRequest, JoinRequest, Peer};

use super::Yes;
use crate::client::{Patience, encode};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::View;
use crate::show::{self, Watch};
use crate::table::{Cell, Facts, Table, Tone};

/// Codes are some hundred characters long; more on stdin is a mistake.
const CODE_BYTES_MAX: u64 = 16 << 10;

/// Sites that this one is paired with
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Print a single-use code for another site (the code alone on stdout)
    #[command(
        after_help = "Example:\n  vbrctl peer invite --for 30m\n  then, on the other site: vbrctl peer join CODE"
    )]
    Invite {
        /// How long the code is good (90s, 10m, 1h) [default: 10m]
        #[arg(long = "for", value_name = "TIME", value_parser = human::parse_span)]
        valid_for: Option<Duration>,
        /// Dedup domain that the new peer joins; members may share chunks [default: default]
        #[arg(long, value_name = "NAME")]
        domain: Option<String>,
    },
    /// Pair with the site that gave the code
    #[command(after_help = "Example:\n  vbrctl peer join CODE\n  vbrctl peer join - < code.txt")]
    Join {
        /// The code of `peer invite`; - reads it from stdin
        code: String,
        /// Name of the new peer here; its own site name unless said
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// List peers and the state of their links
    #[command(after_help = "Example:\n  vbrctl peer list -o wide")]
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// Show one peer
    #[command(after_help = "Example:\n  vbrctl peer show dr")]
    Show {
        name: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Set what a peer may fill at this site, whether it may at all, and whether its consoles may manage the site
    ///
    /// A session that would go beyond is refused, or waits at a durable position until there is room. What is not
    /// named stays as it is.
    #[command(after_help = "Example:\n  vbrctl peer grant branch-7 --quota 500G --max-points 400\n  \
                            vbrctl peer grant hq --manage --replicate\n\nA peer that manages runs and changes jobs here, and reads \
                            what this site shows. It never grants, invites, pairs, exports or removes replicas, and names \
                            no file that `vbrctl vm list` does not list.")]
    Grant {
        name: String,
        #[command(flatten)]
        grants: Grants,
    },
    /// Cut a peer off: it may do nothing here any more; its replicas stay
    ///
    /// Asks on a terminal only: cutting a peer off must not wait for a missing flag.
    #[command(after_help = "Example:\n  vbrctl peer revoke branch-7 --yes")]
    Revoke {
        name: String,
        #[command(flatten)]
        yes: Yes,
    },
    /// Forget a peer
    #[command(after_help = "Example:\n  vbrctl peer remove branch-7 --yes")]
    Remove {
        name: String,
        #[command(flatten)]
        yes: Yes,
    },
    /// Give a rebuilt site the place of the one that was lost: its name, grants, quota and replicas
    ///
    /// The rebuilt site was paired anew, under another name. The key of the lost one is refused from then on, and the next
    /// run of a job of the same name goes on with its replica.
    #[command(
        after_help = "Example:\n  vbrctl peer invite\n  on the rebuilt site: vbrctl peer join CODE\n  \
                            vbrctl peer replace branch-7 --with branch-7-2 --yes"
    )]
    Replace {
        /// The peer that was lost
        name: String,
        /// The peer that takes its place
        #[arg(long, value_name = "PEER")]
        with: String,
        #[command(flatten)]
        yes: Yes,
    },
    /// Give this site another key pair, once every peer knows of it
    ///
    /// Peers are told over their links, and those that are away when they come back. Then vbrd restarts by itself; running
    /// sessions go on from where they were.
    #[command(
        after_help = "Example:\n  vbrctl peer rotate\n  vbrctl peer rotate --cancel\n\nExit status 8: it waits \
                            for peers. `vbrctl peer remove` takes one that will not come back out of the way."
    )]
    Rotate {
        /// Keep the old key pair after all, while peers are still waited for
        #[arg(long, conflicts_with = "show")]
        cancel: bool,
        /// Only say how far it has got
        #[arg(long)]
        show: bool,
    },
}

/// What a peer may do here.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
pub struct Grants {
    /// Bytes of all its replicas together (500G, 2TiB); `default`: what the site's configuration says
    #[arg(long, value_name = "SIZE", value_parser = quota)]
    quota: Option<u64>,
    /// Restore points of all its replicas together, or `default`
    #[arg(long, value_name = "N", value_parser = max_points)]
    max_points: Option<u32>,
    /// Let consoles there give orders here (`vbrctl --site`)
    #[arg(long, conflicts_with = "no_manage")]
    manage: bool,
    /// Not any more
    #[arg(long)]
    no_manage: bool,
    /// Let its jobs fill replicas here; a site that joined this one may from the first
    #[arg(long, conflicts_with = "no_replicate")]
    replicate: bool,
    /// Not any more; its replicas stay
    #[arg(long)]
    no_replicate: bool,
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::Invite { valid_for, domain } => invite(context, valid_for, domain).await,
            Self::Join { code, name } => join(context, code, name).await,
            Self::List { watch } => {
                let empty =
                    "no peers yet; next: vbrctl peer invite here, vbrctl peer join CODE on the other site";
                show::list(context, "/v1/peers", watch.watch, empty, &table).await
            }
            Self::Show { name, watch } => {
                show::one(context, &format!("/v1/peers/{}", encode(&name)), watch.watch, &facts).await
            }
            Self::Grant { name, grants } => grant(context, &name, &grants).await,
            Self::Replace { name, with, yes } => succession::replace(context, &name, &with, yes.yes).await,
            Self::Rotate { cancel, show } => succession::rotate(context, cancel, show).await,
            Self::Revoke { name, yes } => {
                if context.may_ask() {
                    context.confirm(&format!("Cut the peer {name} off"), yes.yes).await?;
                }
                let path = format!("/v1/peers/{}/revoke", encode(&name));
                let document = context.client.post(&path, Patience::Quick).await?;
                context.output.done(
                    &document,
                    &format!("peer {name} revoked"),
                    json!({ "revoked": name }),
                )?;
                Ok(Exit::Done)
            }
            Self::Remove { name, yes } => {
                context.confirm(&format!("Forget the peer {name}"), yes.yes).await?;
                let document = context.client.delete(&format!("/v1/peers/{}", encode(&name))).await?;
                context.output.done(
                    &document,
                    &format!("peer {name} removed"),
                    json!({ "removed": [name] }),
                )?;
                Ok(Exit::Done)
            }
        }
    }
}

async fn grant(context: &Context, name: &str, grants: &Grants) -> Result<Exit, Failure> {
    let manage = grants.manage.then_some(true).or(grants.no_manage.then_some(false));
    let replicate = grants.replicate.then_some(true).or(grants.no_replicate.then_some(false));
    let request =
        GrantRequest { quota_bytes: grants.quota, max_points: grants.max_points, manage, replicate };
    let path = format!("/v1/peers/{}/grant", encode(name));
    let document = context.client.post_json(&path, &request).await?;
    let peer: Peer = document.one()?;
    let has = |word: &str| peer.grants.iter().any(|grant| grant == word);
    let fills = if has("replicate") { format!("fill {}", bounds(&peer)) } else { "fill nothing".into() };
    let may =
        if has("manage") { format!("may manage this site and {fills}") } else { format!("may {fills}") };
    context.output.done(&document, &format!("peer {name} {may}"), json!({}))?;
    Ok(Exit::Done)
}

async fn invite(context: &Context, valid: Option<Duration>, domain: Option<String>) -> Result<Exit, Failure> {
    let valid_ms = valid.map(|valid| u64::try_from(valid.as_millis()).unwrap_or(u64::MAX));
    let document = context.client.post_json("/v1/peers/invite", &InviteRequest { valid_ms, domain }).await?;
    let output = context.output;
    let invite: Invite = document.one()?;
    output.done(&document, &invite.code, json!({}))?;
    if !output.format.is_json() {
        let left = human::span(human::between(output.view().now, invite.expires_at));
        output.note(&format!("good for {left}, once; next, on the other site: vbrctl peer join CODE"));
    }
    Ok(Exit::Done)
}

async fn join(context: &Context, code: String, name: Option<String>) -> Result<Exit, Failure> {
    let code = if code == "-" { read_code()? } else { code };
    let document = context.client.post_json("/v1/peers/join", &JoinRequest { code, name }).await?;
    let peer: Peer = document.one()?;
    context.output.done(&document, &format!("peer {} joined", peer.name), json!({}))?;
    if !context.output.format.is_json() {
        context.output.note(&format!("next: vbrctl job create NAME --disk PATH --target {}", peer.name));
    }
    Ok(Exit::Done)
}

/// From stdin.
pub fn read_code() -> Result<String, Failure> {
    let mut code = String::new();
    std::io::stdin().lock().take(CODE_BYTES_MAX).read_to_string(&mut code).map_err(|error| {
        Failure::usage("Cannot read the code from stdin", error.to_string(), "give it as an argument")
    })?;
    Ok(code.trim().to_string())
}

/// Peers as a table; also part of `status`.
pub fn table(peers: &[Peer], view: &View) -> String {
    let columns = [
        "NAME",
        "LINK",
        "TRANSPORT",
        ">RTT",
        ">SENT",
        ">RECEIVED",
        "LAST SEEN",
        "+DOMAIN",
        "+MAY",
        "+WE MAY",
        "+PEER ID",
    ];
    let mut table = Table::new(view, &columns);
    for peer in peers {
        table.row(vec![
            peer.name.as_str().into(),
            link(peer),
            transport(peer).into(),
            peer.rtt_ms.map(|ms| format!("{ms} ms")).unwrap_or_default().into(),
            human::size(peer.sent_wire).into(),
            human::size(peer.received_wire).into(),
            last_seen(peer, view).into(),
            peer.domain.as_str().into(),
            peer.grants.join(" ").into(),
            peer.granted.join(" ").into(),
            peer.peer_id.as_str().into(),
        ]);
    }
    table.finish()
}

fn facts(peer: &Peer, view: &View) -> String {
    let mut facts = Facts::new();
    facts
        .add("Peer", peer.name.as_str())
        .add("Peer ID", peer.peer_id.as_str())
        .add("Link", if peer.connected { "up" } else { "down" })
        .add_some("Version", peer.software.as_ref().map(|version| format!("vbr {version}")))
        .add("Transport", transport(peer))
        .add_some("Round trip", peer.rtt_ms.map(|ms| format!("{ms} ms")))
        .add_some(
            "Control",
            peer.control_rtt_ms.map(|ms| format!("{ms} ms there and back, beside what the link carries")),
        )
        .add_some("Limit", peer.limit_bps.map(|rate| format!("{} (vbrctl throttle list)", human::rate(rate))))
        .add_some("Connections", (peer.links > 1).then(|| peer.links.to_string()))
        .add("Sent", format!("{} on the wire since vbrd started", human::size(peer.sent_wire)))
        .add("Received", human::size(peer.received_wire))
        .add_all("Addresses", peer.addresses.iter().cloned())
        .add("Domain", peer.domain.as_str())
        .add("May", peer.grants.join(", "))
        .add("We may", peer.granted.join(", "))
        .add("May fill", bounds(peer))
        .add_some("Fills", peer.used.map(|used| filled(used.bytes, used.points)))
        .add("Paired", human::moment(peer.paired_at))
        .add("Last seen", last_seen(peer, view))
        .add_some("Last error", peer.last_error.clone());
    facts.finish()
}

/// `default` is 0 in the request.
fn quota(text: &str) -> Result<u64, String> {
    match text {
        "default" => Ok(0),
        text => human::parse_size(text).and_then(|bytes| match bytes {
            0 => Err("a quota is more than nothing; `default` takes it away".into()),
            bytes => Ok(bytes),
        }),
    }
}

fn max_points(text: &str) -> Result<u32, String> {
    let count =
        if text == "default" { Ok(0) } else { text.parse::<u32>().map_err(|error| error.to_string()) };
    count.and_then(|count| match count {
        0 if text != "default" => Err("it is at least 1; `default` takes the bound away".into()),
        count => Ok(count),
    })
}

fn bounds(peer: &Peer) -> String {
    let bytes = peer.quota.bytes.map_or("any size".into(), human::size);
    let points = peer
        .quota
        .points
        .map_or("any number of restore points".into(), |points| human::count(points.into(), "restore point"));
    format!("{bytes}, {points}")
}

fn filled(bytes: u64, points: u64) -> String {
    format!("{}, {}", human::size(bytes), human::count(points, "restore point"))
}

fn link(peer: &Peer) -> Cell {
    match (peer.revoked, peer.connected) {
        (true, _) => Cell::toned("refused", Tone::Watch),
        (_, true) => Cell::toned("up", Tone::Good),
        (_, false) => Cell::toned("down", Tone::Bad),
    }
}

fn transport(peer: &Peer) -> String {
    match (&peer.transport, &peer.congestion_control) {
        (Some(transport), Some(control)) => format!("{transport}, {control}"),
        (Some(transport), None) => transport.clone(),
        (None, _) => "-".into(),
    }
}

fn last_seen(peer: &Peer, view: &View) -> String {
    if peer.connected {
        return "now".into();
    }
    peer.last_seen_at.map_or("never".into(), |seen| human::age(seen, view.now))
}
