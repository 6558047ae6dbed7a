//! `vbrctl status`: the site at a glance, or all sites that it manages.

mod all_sites;

use std::io::{self, IsTerminal};

use clap::Args;
use vbr_api::{DatastoreStatus, JobLag, Peer, Status, Warning};

use super::peer;
use crate::context::Context;
use crate::dashboard;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::View;
use crate::show;
use crate::summary;
use crate::table::{Cell, Facts, Table, Tone, section};

/// The site, its peers and links, running sessions, how far jobs lag, and anything red
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  vbrctl status\n  vbrctl status --watch\n  vbrctl status --all-sites\n\nRPO LAG is the age of what the last restore point shows."
)]
pub struct Command {
    /// Keep showing it: a screen of its own (q leaves, ? explains); without a terminal or with -o json or jsonl
    /// one JSON document a line whenever something changed
    #[arg(long)]
    watch: bool,
    /// A line for this site and for each peer that lets it manage; exit status 3 where one does not answer
    #[arg(long, conflicts_with = "watch")]
    all_sites: bool,
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        if self.all_sites {
            return all_sites::run(context).await;
        }
        let output = context.output;
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        match self.watch {
            false => show::one(context, "/v1/status", false, &render).await,
            true if output.format.is_json() || dumb || !io::stdout().is_terminal() => {
                show::documents(context, "/v1/status").await
            }
            true => dashboard::run(context).await,
        }
    }
}

fn render(status: &Status, view: &View) -> String {
    let mut facts = Facts::new();
    let up = human::span(human::between(status.started_at, view.now));
    facts.add("Site", format!("{}, vbrd {}, up {up}", status.site, status.version));
    facts.add("Peer ID", status.peer_id.as_str());
    facts.add_all("Listens on", status.listeners.iter().cloned());
    facts.add("Peers", links(&status.peers));
    facts.add("Worst RPO lag", worst_lag(&status.jobs));
    let mut parts = vec![facts.finish(), warnings(&status.warnings, view)];
    if !status.peers.is_empty() {
        parts.push(section("Peers", &peer::table(&status.peers, view)));
    }
    if !status.sessions.is_empty() {
        parts.push(section("Sessions", &summary::sessions(&status.sessions, view)));
    }
    if !status.jobs.is_empty() {
        parts.push(section("Jobs", &jobs(&status.jobs, view)));
    }
    if !status.datastores.is_empty() {
        parts.push(section("Datastores", &datastores(&status.datastores, view)));
    }
    parts.join("\n")
}

fn links(peers: &[Peer]) -> String {
    let connected = peers.iter().filter(|peer| peer.connected).count();
    if peers.is_empty() {
        "none; vbrctl peer invite".into()
    } else {
        format!("{connected} of {} connected", peers.len())
    }
}

fn worst_lag(jobs: &[JobLag]) -> String {
    let worst = jobs.iter().filter(|job| job.enabled).max_by_key(|job| job.rpo_lag_ms.unwrap_or(u64::MAX));
    match worst {
        None => "no jobs".into(),
        Some(JobLag { job, rpo_lag_ms: Some(ms), .. }) => format!("{} ({job})", human::span(*ms)),
        Some(JobLag { job, .. }) => format!("{job} has no restore point yet"),
    }
}

fn warnings(warnings: &[Warning], view: &View) -> String {
    if warnings.is_empty() {
        return "Nothing needs attention.\n".into();
    }
    let mut table = Table::new(view, &["LEVEL", "WHAT", "NEXT STEP"]);
    for warning in warnings {
        let tone = if warning.level == "critical" { Tone::Bad } else { Tone::Watch };
        table.row(vec![
            Cell::toned(warning.level.as_str(), tone),
            warning.what.as_str().into(),
            warning.next_step.as_str().into(),
        ]);
    }
    section("Needs attention", &table.finish())
}

fn jobs(jobs: &[JobLag], view: &View) -> String {
    let mut table = Table::new(view, &["JOB", "ENABLED", "LAST RUN", ">RPO LAG"]);
    for job in jobs {
        table.row(vec![
            job.job.as_str().into(),
            if job.enabled { "yes".into() } else { Cell::toned("no", Tone::Watch) },
            job.last_state.map_or("never".into(), summary::state_cell),
            job.rpo_lag_ms.map(human::span_short).unwrap_or_default().into(),
        ]);
    }
    table.finish()
}

fn datastores(stores: &[DatastoreStatus], view: &View) -> String {
    let mut table = Table::new(view, &["NAME", "BACKEND", ">FREE", ">SIZE", ">+RESERVE", "PATH"]);
    for store in stores {
        let tone = if store.free_bytes <= store.reserve_bytes { Tone::Bad } else { Tone::Plain };
        table.row(vec![
            store.name.as_str().into(),
            store.backend.as_str().into(),
            Cell::toned(human::size(store.free_bytes), tone),
            human::size(store.size_bytes).into(),
            human::size(store.reserve_bytes).into(),
            store.path.as_str().into(),
        ]);
    }
    table.finish()
}
