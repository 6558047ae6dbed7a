//! `vbrctl session`: runs of jobs.

use clap::Subcommand;
use serde_json::json;
use vbr_api::Session;

use crate::client::{Patience, encode};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::show::{self, Watch};
use crate::summary;
use crate::wait::{self, Timeout};

/// Runs of jobs
#[derive(Subcommand, Debug)]
pub enum Command {
    /// List sessions, the newest of all jobs unless narrowed
    ///
    /// STARTED is in UTC, RATIO what had changed against what was sent. -o wide shows the sessions' names, rates and
    /// which stage was the slowest.
    #[command(after_help = "Example:\n  vbrctl session list --active --watch")]
    List {
        /// Only of this job
        #[arg(long, value_name = "JOB")]
        job: Option<String>,
        /// Only those that are not over
        #[arg(long)]
        active: bool,
        #[command(flatten)]
        watch: Watch,
    },
    /// Show one session: bytes read, changed and sent on the wire, and what held it up
    #[command(after_help = "Example:\n  vbrctl session show web\n  vbrctl session show web -o wide")]
    Show {
        /// A session, or a job whose running or last session is meant
        session: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Follow a session until it is over; the exit status is by its end
    #[command(after_help = "Example:\n  vbrctl session watch web\n  vbrctl session watch web -o jsonl")]
    Watch {
        /// A session, or a job whose running or last session is meant
        session: String,
        #[command(flatten)]
        timeout: Timeout,
    },
    /// Cancel a session; the last restore point stays as it is
    #[command(after_help = "Example:\n  vbrctl session cancel web")]
    Cancel {
        /// A session, or a job whose running session is meant
        session: String,
    },
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::List { job, active, watch } => {
                let mut query = Vec::new();
                query.extend(job.map(|job| format!("job={}", encode(&job))));
                query.extend(active.then(|| "active=true".to_string()));
                let mark = if query.is_empty() { "" } else { "?" };
                let path = format!("/v1/sessions{mark}{}", query.join("&"));
                let empty =
                    if active { "no session runs" } else { "no sessions yet; next: vbrctl job run NAME" };
                show::list(context, &path, watch.watch, empty, &summary::sessions).await
            }
            Self::Show { session, watch } => {
                let id = wait::resolve(context, &session).await?;
                if watch.watch {
                    return wait::wait(context, &id, None, true).await;
                }
                show::one(context, &format!("/v1/sessions/{}", encode(&id)), false, &summary::session).await
            }
            Self::Watch { session, timeout } => {
                let id = wait::resolve(context, &session).await?;
                wait::wait(context, &id, timeout.timeout, true).await
            }
            Self::Cancel { session } => {
                let session = wait::resolve(context, &session).await?;
                let path = format!("/v1/sessions/{}/cancel", encode(&session));
                let document = context.client.post(&path, Patience::Quick).await?;
                let state =
                    document.one::<Session>().map(|session| session.state.as_str()).unwrap_or("cancelled");
                let line = match state {
                    "succeeded" | "warning" | "failed" => {
                        format!("session {session} was over before: {state}")
                    }
                    "cancelled" => format!("session {session} cancelled"),
                    state => format!("session {session} is being cancelled (now {state})"),
                };
                context.output.done(&document, &line, json!({ "session": session }))?;
                Ok(Exit::Done)
            }
        }
    }
}
