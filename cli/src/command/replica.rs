//! `vbrctl replica`: copies of VMs at this site.

use clap::Subcommand;
use serde_json::json;
use vbr_api::{Replica, VerifyReport};

use super::Yes;
use super::job::keep::{long, short_of};
use super::restore_point::{because, reports, verdict};
use crate::client::{Patience, encode};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::View;
use crate::show::{self, Watch};
use crate::table::{Facts, Table, section};

/// Copies of VMs that this site keeps for others
#[derive(Subcommand, Debug)]
pub enum Command {
    /// List replicas
    #[command(after_help = "Example:\n  vbrctl replica list -o wide")]
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// Show one replica
    #[command(after_help = "Example:\n  vbrctl replica show branch/web")]
    Show {
        /// REPLICA, or SITE/REPLICA where several sites have one of that name
        replica: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Read every restore point of a replica and compare it with its manifest
    #[command(
        after_help = "Example:\n  vbrctl replica verify branch/web\n\nExit status 1 when a block differs."
    )]
    Verify {
        /// REPLICA or SITE/REPLICA
        replica: String,
    },
    /// Remove a replica with all its restore points
    #[command(after_help = "Example:\n  vbrctl replica remove branch/web --yes")]
    Remove {
        /// REPLICA or SITE/REPLICA
        replica: String,
        #[command(flatten)]
        yes: Yes,
    },
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::List { watch } => {
                let empty = "no replicas here yet; they appear when a paired site runs a job";
                show::list(context, "/v1/replicas", watch.watch, empty, &table).await
            }
            Self::Show { replica, watch } => show::one(context, &one(&replica), watch.watch, &facts).await,
            Self::Verify { replica } => {
                let path = format!("/v1/replicas/verify?replica={}", encode(&replica));
                let document = context.client.post(&path, Patience::Long).await?;
                let empty = format!("replica {replica} has no restore points");
                show::print_list(context, &document, &empty, &reports)?;
                verdict(&document.list::<VerifyReport>()?)
            }
            Self::Remove { replica, yes } => {
                let question = format!("Remove the replica {replica} with all its restore points");
                context.confirm(&question, yes.yes).await?;
                let document = context.client.delete(&one(&replica)).await?;
                let line = format!("replica {replica} removed");
                context.output.done(&document, &line, json!({ "removed": [replica] }))?;
                Ok(Exit::Done)
            }
        }
    }
}

fn one(replica: &str) -> String {
    format!("/v1/replicas/one?replica={}", encode(replica))
}

fn table(replicas: &[Replica], view: &View) -> String {
    let columns = [
        "SITE", "REPLICA", ">POINTS", ">VIRTUAL", ">STORED", "LATEST", "AGE", "BUILDING", ">+KEEP",
        "+BACKEND", "+PATH",
    ];
    let mut table = Table::new(view, &columns);
    for replica in replicas {
        table.row(vec![
            replica.site.as_str().into(),
            replica.name.as_str().into(),
            replica.points.to_string().into(),
            human::size(replica.virtual_bytes).into(),
            human::size(replica.stored_bytes).into(),
            replica.latest.clone().unwrap_or_default().into(),
            replica.latest_at.map(|at| human::age(at, view.now)).unwrap_or_default().into(),
            replica.building.clone().unwrap_or_default().into(),
            short_of(replica.keep, &replica.keep_calendar).into(),
            replica.backend.as_str().into(),
            replica.path.as_str().into(),
        ]);
    }
    table.finish()
}

fn facts(replica: &Replica, view: &View) -> String {
    let latest = replica.latest.as_ref().map(|id| match replica.latest_at {
        Some(at) => format!("{id}, {}", human::age(at, view.now)),
        None => id.clone(),
    });
    let mut facts = Facts::new();
    facts
        .add("Replica", format!("{}/{}", replica.site, replica.name))
        .add("Datastore", format!("{} ({})", replica.datastore, replica.backend))
        .add("Path", replica.path.as_str())
        .add("Virtual", human::size(replica.virtual_bytes))
        .add("Stored", human::size(replica.stored_bytes))
        .add("Restore points", replica.points.to_string())
        .add("Latest", latest.unwrap_or_else(|| "none".into()))
        .add("Keep", format!("{} (asked for by its job)", long(replica.keep, &replica.keep_calendar)))
        .add_some("Building", replica.building.as_ref().map(|id| format!("a new point, session {id}")));
    let mut text = facts.finish();
    if !replica.kept.is_empty() {
        let mut kept = Table::new(view, &["ID", "KEPT BECAUSE", "NEXT SEAL"]);
        for point in &replica.kept {
            kept.row(vec![
                point.id.as_str().into(),
                because(&point.kept_because).into(),
                if replica.retires_next.contains(&point.id) { "retires".into() } else { "stays".into() },
            ]);
        }
        text.push_str(&section("Restore points", &kept.finish()));
    }
    text
}
