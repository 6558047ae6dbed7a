//! `vbrctl notify`: who is told of what, and whether that arrives.

use clap::Subcommand;
use serde_json::json;
use vbr_api::NotifyHook;

use crate::client::{Patience, encode};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::View;
use crate::show;
use crate::table::{Cell, Table, Tone};

const PATH: &str = "/v1/notify";

/// Webhooks and commands that are told of sessions and missed recovery points
#[derive(Subcommand, Debug)]
pub enum Command {
    /// List who is told of what, and whether it arrives
    #[command(
        after_help = "Example:\n  vbrctl notify list -o wide\n\nHooks are sections [notify.NAME] of the configuration file."
    )]
    List,
    /// Send a test to one of them
    #[command(after_help = "Example:\n  vbrctl notify test ops\n  vbrctl notify list")]
    Test { name: String },
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::List => {
                let empty =
                    "nobody is told of anything; next: a section [notify.NAME] in the configuration file";
                show::list(context, PATH, false, empty, &table).await
            }
            Self::Test { name } => {
                let path = format!("{PATH}/{}/test", encode(&name));
                let document = context.client.post(&path, Patience::Quick).await?;
                let line =
                    format!("a test is on its way to {name}; vbrctl notify list says whether it arrived");
                context.output.done(&document, &line, json!({ "name": name }))?;
                Ok(Exit::Done)
            }
        }
    }
}

fn table(hooks: &[NotifyHook], view: &View) -> String {
    let columns =
        ["NAME", "ON", "JOBS", "TO", ">SENT", ">FAILED", ">DROPPED", ">+QUEUED", "+LAST SENT", "LAST ERROR"];
    let mut table = Table::new(view, &columns);
    for hook in hooks {
        let command = Some(hook.command.join(" ")).filter(|words| !words.is_empty());
        let both: Vec<String> = hook.webhook.clone().into_iter().chain(command).collect();
        let counted = |count: u64| match count {
            0 => Cell::from("0"),
            count => Cell::toned(count.to_string(), Tone::Watch),
        };
        table.row(vec![
            hook.name.as_str().into(),
            hook.on.join(",").into(),
            if hook.jobs.is_empty() { "all".into() } else { hook.jobs.join(",").into() },
            both.join(" and ").into(),
            hook.sent.to_string().into(),
            counted(hook.failed),
            counted(hook.dropped),
            hook.queued.to_string().into(),
            hook.last_sent_at.map(|at| human::age(at, view.now)).unwrap_or_default().into(),
            hook.last_error.clone().unwrap_or_default().into(),
        ]);
    }
    table.finish()
}
