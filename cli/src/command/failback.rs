//! `vbrctl failback`: VMs that were failed over go back to the site that they came from.

use std::time::Duration;

use clap::Subcommand;
use vbr_api::{FailbackRequest, Failover};

use super::Yes;
use super::failover::{VmOptions, done};
use crate::client::{Patience, encode};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;

const PATH: &str = "/v1/failbacks";

/// Bring VMs that were failed over back to the site that they came from; `failover show` tells where one stands
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Bring the VM back: only what that site does not know crosses
    ///
    /// A job of this site replicates the VM there while it runs; then its guest is shut down, the job run once more, and the VM
    /// started there. What is here is kept until `failback commit` or `failback undo`. That site must have granted `manage` to
    /// this one. Whatever fails before the start there lets the VM go on here; ordered again, it goes on where it stands.
    #[command(after_help = "Example:\n  vbrctl failback start branch/web --network br0")]
    Start {
        /// REPLICA or SITE/REPLICA
        replica: String,
        #[command(flatten)]
        vm: VmOptions,
        /// How long the guest may take to shut down
        #[arg(long, value_name = "TIME", default_value = "5m", value_parser = human::parse_span)]
        shutdown_within: Duration,
    },
    /// Take the VM back here: what was written at the other site since is thrown away
    #[command(after_help = "Example:\n  vbrctl failback undo branch/web --yes")]
    Undo {
        /// REPLICA or SITE/REPLICA
        replica: String,
        /// Also where that site cannot be asked; make sure that the VM does not run there
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        yes: Yes,
    },
    /// The VM stays there: what was written here is thrown away, and the replica takes sessions again
    #[command(after_help = "Example:\n  vbrctl failback commit branch/web --yes")]
    Commit {
        /// REPLICA or SITE/REPLICA
        replica: String,
        #[command(flatten)]
        yes: Yes,
    },
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::Start { replica, vm, shutdown_within } => {
                let shutdown_ms = u64::try_from(shutdown_within.as_millis()).ok();
                let request = FailbackRequest { start: vm.request(replica), shutdown_ms };
                let document = context.client.post_json_patiently(&format!("{PATH}/start"), &request).await?;
                done(context, &document, runs)?;
                Ok(Exit::Done)
            }
            Self::Undo { replica, force, yes } => {
                let question =
                    format!("Take the VM of {replica} back here, and throw away what it wrote there");
                context.confirm(&question, yes.yes).await?;
                let force = if force { "&force=true" } else { "" };
                let path = format!("{PATH}/undo?replica={}{force}", encode(&replica));
                order(context, &path, &format!("failback of {replica} undone; the VM runs here")).await
            }
            Self::Commit { replica, yes } => {
                let question =
                    format!("Leave the VM of {replica} where it runs now, and throw away what it wrote here");
                context.confirm(&question, yes.yes).await?;
                let path = format!("{PATH}/commit?replica={}", encode(&replica));
                let line = format!("failback of {replica} committed; the replica takes sessions again");
                order(context, &path, &line).await
            }
        }
    }
}

async fn order(context: &Context, path: &str, line: &str) -> Result<Exit, Failure> {
    let document = context.client.post(path, Patience::Long).await?;
    done(context, &document, |_| line.to_owned())?;
    Ok(Exit::Done)
}

fn runs(failover: &Failover) -> String {
    let back = failover.failback.as_ref();
    let vm = back.map(|back| back.vm.as_str()).unwrap_or_default();
    let point = back.and_then(|back| back.point.as_deref()).unwrap_or_default();
    format!("{}/{} runs at {} again, as {vm}, from {point}", failover.site, failover.replica, failover.site)
}
