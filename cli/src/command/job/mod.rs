//! `vbrctl job`: what is replicated where. Longer verbs have files of their own.

pub mod create;
mod definition;
pub mod edit;
pub mod keep;
mod log;
pub mod options;
mod render;
mod run;
mod seed;

use clap::Subcommand;
use serde_json::json;

use super::Yes;
use crate::client::{Patience, encode};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::show::{self, Watch};
use crate::summary;

/// Definitions of what is replicated where
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Define a job; the same definition again changes nothing
    #[command(after_help = create::EXAMPLE)]
    Create(Box<create::Arguments>),
    /// Change a job's definition: what is named changes, the rest stays
    #[command(after_help = edit::EXAMPLE)]
    Edit(Box<edit::Arguments>),
    /// Run a job now; a job that runs already is left running
    #[command(after_help = run::RUN_EXAMPLE)]
    Run(run::RunArguments),
    /// Wait for the end of a job's running (or last) session, or of a session
    #[command(after_help = run::WAIT_EXAMPLE)]
    Wait(run::WaitArguments),
    /// Say what a run would read and send, without sending disk data
    #[command(
        after_help = "Example:\n  vbrctl job plan web\n\nWhat would be sent is an estimate from compressing a sample."
    )]
    Plan { name: String },
    /// List jobs and how far they lag
    #[command(
        after_help = "Example:\n  vbrctl job list -o wide\n\nRPO LAG is the age of what the last restore point shows."
    )]
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// Show one job
    #[command(after_help = "Example:\n  vbrctl job show web")]
    Show {
        name: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Let a job run again
    #[command(after_help = "Example:\n  vbrctl job enable web")]
    Enable { name: String },
    /// Keep a job from running; a session that runs goes on
    #[command(after_help = "Example:\n  vbrctl job disable web")]
    Disable { name: String },
    /// Forget a job; its replica at the target stays
    #[command(after_help = "Example:\n  vbrctl job remove web --yes")]
    Remove {
        name: String,
        #[command(flatten)]
        yes: Yes,
    },
    /// List a job's past sessions with their figures, and why some failed
    ///
    /// RATIO is what had changed against what was sent, SLOWEST the stage that held the session up (src: at the
    /// source, tgt: at the target; accel: WAN accelerator), MBIT/S what it sent a second. STARTED is in UTC.
    #[command(after_help = "Example:\n  vbrctl job history web\n  vbrctl job history web -o wide")]
    History { name: String },
    /// Show what happened to a job, in order: when and why it ran, what it waited for, how it ended
    #[command(after_help = log::EXAMPLE)]
    Log(log::Arguments),
    /// Write a job's disks to a directory that is carried to the target, so that the first run sends differences only
    #[command(after_help = seed::EXAMPLE)]
    Seed(seed::Arguments),
    /// Print a job's definition as TOML that `job create --from` takes
    #[command(
        after_help = "Example:\n  vbrctl job export web > web.toml\n  vbrctl --socket OTHER job create --from web.toml"
    )]
    Export { name: String },
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::Create(arguments) => arguments.run(context).await,
            Self::Edit(arguments) => arguments.run(context).await,
            Self::Run(arguments) => arguments.run(context).await,
            Self::Wait(arguments) => arguments.run(context).await,
            Self::Plan { name } => {
                let path = format!("{}/plan", one(&name));
                let document = context.client.get_patiently(&path, Patience::Long).await?;
                context.output.emit(&context.output.one_text(&document, &render::plan)?)?;
                Ok(Exit::Done)
            }
            Self::List { watch } => {
                let empty = "no jobs yet; next: vbrctl job create NAME --disk PATH --target PEER";
                show::list(context, "/v1/jobs", watch.watch, empty, &render::table).await
            }
            Self::Show { name, watch } => show::one(context, &one(&name), watch.watch, &render::facts).await,
            Self::Enable { name } => switch(context, &name, "enable").await,
            Self::Disable { name } => switch(context, &name, "disable").await,
            Self::Remove { name, yes } => {
                let question = format!("Forget the job {name} (its replica at the target stays)");
                context.confirm(&question, yes.yes).await?;
                let document = context.client.delete(&one(&name)).await?;
                context.output.done(
                    &document,
                    &format!("job {name} removed"),
                    json!({ "removed": [name] }),
                )?;
                Ok(Exit::Done)
            }
            Self::History { name } => {
                let empty = format!("job {name} has not run yet; next: vbrctl job run {name}");
                let path = format!("{}/history", one(&name));
                show::list(context, &path, false, &empty, &summary::history).await
            }
            Self::Log(arguments) => arguments.run(context).await,
            Self::Seed(arguments) => arguments.run(context).await,
            Self::Export { name } => definition::export(context, &one(&name)).await,
        }
    }
}

fn one(name: &str) -> String {
    format!("/v1/jobs/{}", encode(name))
}

async fn switch(context: &Context, name: &str, verb: &str) -> Result<Exit, Failure> {
    let document = context.client.post(&format!("{}/{verb}", one(name)), Patience::Quick).await?;
    context.output.done(&document, &format!("job {name} {verb}d"), json!({ "name": name }))?;
    Ok(Exit::Done)
}
