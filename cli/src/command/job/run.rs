//! `vbrctl job run` and `vbrctl job wait`.

use clap::Args;
use vbr_api::{RunRequest, Session};

use crate::client::encode;
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::json;
use crate::output::Format;
use crate::wait::{self, Timeout};

pub const RUN_EXAMPLE: &str = "\
Example:
  vbrctl job run web
  vbrctl job run web --wait --timeout 2h
  vbrctl job run web --watch -o jsonl

Exit status with --wait: 0 succeeded, 1 failed or cancelled, 3 sealed with a warning, 8 timed out.
Ctrl-C ends the waiting only; the session goes on in vbrd.";

pub const WAIT_EXAMPLE: &str = "\
Example:
  vbrctl job wait web --timeout 30m

Exit status: 0 succeeded, 1 failed or cancelled, 3 sealed with a warning, 8 timed out.";

#[derive(Args, Debug)]
pub struct RunArguments {
    name: String,
    /// Wait for the end; progress goes to a terminal's stderr, the finished session to stdout
    #[arg(long)]
    wait: bool,
    /// Wait, and with -o json or jsonl print the session each time it changes
    #[arg(long)]
    watch: bool,
    /// Seal even if a disk changed while it was read; the restore point is marked inconsistent
    #[arg(long)]
    allow_live: bool,
    #[command(flatten)]
    timeout: Timeout,
}

#[derive(Args, Debug)]
pub struct WaitArguments {
    /// A job or a session
    name: String,
    /// With -o json or jsonl print the session each time it changes
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    timeout: Timeout,
}

impl RunArguments {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let waits = self.wait || self.watch;
        if self.timeout.timeout.is_some() && !waits {
            return Err(Failure::usage(
                "--timeout needs --wait",
                "without --wait nothing is waited for",
                format!("vbrctl job run {} --wait --timeout TIME", self.name),
            ));
        }
        let request = RunRequest { allow_live: self.allow_live };
        let path = format!("/v1/jobs/{}/run", encode(&self.name));
        let document = context.client.post_json(&path, &request).await?;
        let session: Session = document.one()?;
        if waits {
            return wait::wait(context, &session.session, self.timeout.timeout, self.watch).await;
        }
        let output = context.output;
        match output.format {
            Format::Json | Format::Jsonl => output.json_object(&json::compact(&document.text))?,
            Format::Table | Format::Wide => {
                output.emit(&format!("session {} {}", session.session, session.state.as_str()))?;
                output.note(&format!("next: vbrctl session watch {}", session.session));
            }
        }
        Ok(Exit::Done)
    }
}

impl WaitArguments {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let id = wait::resolve(context, &self.name).await?;
        wait::wait(context, &id, self.timeout.timeout, self.watch).await
    }
}
