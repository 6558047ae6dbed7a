//! `vbrctl job log`: what happened to a job, in order.

use std::time::Duration;

use clap::Args;
use vbr_api::JobLogEntry;

use crate::client::{Document, encode};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::{Format, View};
use crate::reconnect::Reconnect;
use crate::show;
use crate::table::{Cell, Table, Tone};

pub const EXAMPLE: &str = "\
Example:
  vbrctl job log web
  vbrctl job log web --session 9f0c… --lines 1000
  vbrctl job log web --follow -o jsonl";

/// Between two looks for more.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// In one answer.
const LINES_MAX: u64 = 2000;

#[derive(Args, Debug)]
pub struct Arguments {
    name: String,
    /// Of this session alone
    #[arg(long, value_name = "SESSION")]
    session: Option<String>,
    /// The newest so many entries
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=LINES_MAX))]
    lines: u64,
    /// Go on with what happens from now on, until interrupted
    #[arg(short, long)]
    follow: bool,
}

impl Arguments {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        if self.follow && context.output.format == Format::Json {
            return Err(Failure::usage(
                "A log that goes on is no single JSON document",
                "--follow was given with -o json",
                "ask for -o jsonl: one entry a line",
            ));
        }
        let document = context.client.get(&self.path(self.lines, 0)).await?;
        if !self.follow {
            let empty = format!("nothing happened to job {} yet; next: vbrctl job run {0}", self.name);
            return show::print_list(context, &document, &empty, &table);
        }
        let mut last = self.print(context, &document, 0)?;
        let mut reconnect = Reconnect::new(context.patience);
        let mut note = |text: &str| context.output.note(text);
        loop {
            tokio::time::sleep(FOLLOW_EVERY).await;
            match context.client.get(&self.path(LINES_MAX, last)).await {
                Ok(document) => {
                    reconnect.answered(&mut note);
                    last = self.print(context, &document, last)?;
                }
                Err(failure) => reconnect.again(failure, &mut note).await?,
            }
        }
    }

    fn path(&self, lines: u64, after: u64) -> String {
        let session = self.session.as_ref().map(|id| format!("&session={}", encode(id))).unwrap_or_default();
        format!("/v1/jobs/{}/log?lines={lines}&after={after}{session}", encode(&self.name))
    }

    /// What is new; the number of the last one.
    fn print(&self, context: &Context, document: &Document, last: u64) -> Result<u64, Failure> {
        let entries: Vec<JobLogEntry> = document.list()?;
        let Some(newest) = entries.last().map(|entry| entry.seq) else { return Ok(last) };
        if context.output.format == Format::Jsonl {
            context.output.emit(&context.output.json_lines(document).join("\n"))?;
        } else {
            let lines: Vec<String> = entries.iter().map(line).collect();
            context.output.emit(&lines.join("\n"))?;
        }
        Ok(newest)
    }
}

/// An entry where columns cannot be known beforehand.
fn line(entry: &JobLogEntry) -> String {
    human::clean(&format!(
        "{}  {:7}  {:9}  {}",
        human::moment(entry.at),
        entry.level,
        entry.event,
        entry.text
    ))
}

fn table(entries: &[JobLogEntry], view: &View) -> String {
    let mut table = Table::new(view, &["TIME", "LEVEL", "EVENT", "+SESSION", "WHAT"]);
    for entry in entries {
        let tone = match entry.level.as_str() {
            "error" => Tone::Bad,
            "warning" => Tone::Watch,
            _ => Tone::Plain,
        };
        table.row(vec![
            human::moment(entry.at).into(),
            Cell::toned(entry.level.as_str(), tone),
            entry.event.as_str().into(),
            entry.session.clone().unwrap_or_default().into(),
            entry.text.as_str().into(),
        ]);
    }
    table.finish()
}
