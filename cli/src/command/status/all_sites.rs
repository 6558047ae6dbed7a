//! `vbrctl status --all-sites`: a line for this site and for each peer that it may manage.
//!
//! All are asked at once, each within [`WITHIN`]; who does not answer is a line that says so. Bound: as many as the site
//! may have peers.

use std::time::Duration;

use serde::Serialize;
use tokio::task::JoinSet;
use vbr_api::{ErrorBody, List, Peer, Status};

use super::worst_lag;
use crate::client::{Client, Patience};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Format, View};
use crate::table::{Cell, Table, Tone};

/// A site that does not answer by then is shown as unreachable.
const WITHIN: Duration = Duration::from_secs(15);

/// A site, and what it said.
#[derive(Serialize)]
struct SiteStatus {
    /// By its name here.
    site: String,
    /// The site that was asked.
    local: bool,
    reachable: bool,
    status: Option<Status>,
    error: Option<ErrorBody>,
}

pub async fn run(context: &Context) -> Result<Exit, Failure> {
    if let Some(site) = context.client.site() {
        return Err(Failure::usage(
            format!("--all-sites of site {site}"),
            "the sites are those of the vbrd at the socket",
            "leave --site out, or leave --all-sites out",
        ));
    }
    // The local site must answer: without it nothing is known of the others.
    let local = context.client.get("/v1/status").await?.one::<Status>()?;
    let peers = context.client.get("/v1/peers").await?.list::<Peer>()?;
    let managed = peers.into_iter().filter(may_manage).map(|peer| peer.name);
    let mut asked = JoinSet::new();
    for site in managed {
        let client = context.client.at(Some(site.clone()));
        asked.spawn(async move { ask(&client, site).await });
    }
    let name = local.site.clone();
    let mut sites =
        vec![SiteStatus { site: name, local: true, reachable: true, status: Some(local), error: None }];
    let mut others = Vec::new();
    while let Some(answer) = asked.join_next().await {
        others.extend(answer.ok());
    }
    others.sort_by(|a, b| a.site.cmp(&b.site));
    sites.extend(others);
    show(context, &sites)?;
    let all = sites.iter().all(|site| site.reachable);
    if sites.len() == 1 && !context.output.format.is_json() {
        context
            .output
            .note("no peer lets this site manage it; at a peer: vbrctl peer grant THIS-SITE --manage");
    }
    Ok(if all { Exit::Done } else { Exit::Incomplete })
}

fn may_manage(peer: &Peer) -> bool {
    peer.granted.iter().any(|grant| grant == "manage")
}

async fn ask(client: &Client, site: String) -> SiteStatus {
    let answer = client.get_patiently("/v1/status", Patience::AtMost(WITHIN)).await;
    match answer.and_then(|document| document.one::<Status>()) {
        Ok(status) => SiteStatus { site, local: false, reachable: true, status: Some(status), error: None },
        Err(failure) => {
            SiteStatus { site, local: false, reachable: false, status: None, error: Some(failure.body) }
        }
    }
}

fn show(context: &Context, sites: &[SiteStatus]) -> Result<(), Failure> {
    let output = context.output;
    let odd = |error: serde_json::Error| {
        Failure::new(Exit::Failed, "internal", "Cannot show the sites", error.to_string(), "report this")
    };
    match output.format {
        Format::Json => {
            output.json_object(&serde_json::to_string(&List::new(sites.iter().collect())).map_err(odd)?)
        }
        Format::Jsonl => {
            sites.iter().try_for_each(|site| output.json_object(&serde_json::to_string(site).map_err(odd)?))
        }
        Format::Table | Format::Wide => output.emit(&table(sites, &output.view())),
    }
}

fn table(sites: &[SiteStatus], view: &View) -> String {
    let columns = [
        "SITE",
        "STATE",
        ">PEERS UP",
        ">SESSIONS",
        ">JOBS",
        "WORST RPO LAG",
        ">WARNINGS",
        "+VERSION",
        "+WHY",
    ];
    let mut table = Table::new(view, &columns);
    for site in sites {
        let name = if site.local { format!("{} (here)", site.site) } else { site.site.clone() };
        let Some(status) = &site.status else {
            let why = site.error.as_ref().map(|error| error.why.clone()).unwrap_or_default();
            let mut row = vec![Cell::from(name), Cell::toned("unreachable", Tone::Bad)];
            row.extend((0..6).map(|_| Cell::from("-")));
            row.push(why.into());
            table.row(row);
            continue;
        };
        let up = status.peers.iter().filter(|peer| peer.connected).count();
        let critical = status.warnings.iter().any(|warning| warning.level == "critical");
        let (state, tone) = match (critical, status.warnings.is_empty()) {
            (true, _) => ("critical", Tone::Bad),
            (_, false) => ("warning", Tone::Watch),
            (_, true) => ("good", Tone::Good),
        };
        table.row(vec![
            name.into(),
            Cell::toned(state, tone),
            format!("{up}/{}", status.peers.len()).into(),
            status.sessions.len().to_string().into(),
            status.jobs.len().to_string().into(),
            worst_lag(&status.jobs).into(),
            status.warnings.len().to_string().into(),
            status.version.as_str().into(),
            "".into(),
        ]);
    }
    table.finish()
}
