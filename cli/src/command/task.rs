//! `vbrctl task`: what a site does by itself.

use clap::Subcommand;
use serde_json::json;
use vbr_api::{Task, TaskState};

use crate::client::{Patience, encode};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::View;
use crate::show::{self, Watch};
use crate::table::{Cell, Facts, Table, Tone};

const PATH: &str = "/v1/tasks";

/// Background workers: what the site does by itself
#[derive(Subcommand, Debug)]
pub enum Command {
    /// List workers: what each does, its state, its last error, its next run
    #[command(
        after_help = "Example:\n  vbrctl task list -o wide\n\nA worker that is stuck or failed, and what one found, turn vbrctl check red."
    )]
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// Show one worker, with what it counted since vbrd started
    #[command(after_help = "Example:\n  vbrctl task show scrub")]
    Show {
        name: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Let a worker run now; one that runs is left running
    #[command(after_help = "Example:\n  vbrctl task run scrub\n  vbrctl task show scrub --watch")]
    Run { name: String },
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::List { watch } => {
                show::list(context, PATH, watch.watch, "no workers; this vbrd is going down", &table).await
            }
            Self::Show { name, watch } => show::one(context, &one(&name), watch.watch, &facts).await,
            Self::Run { name } => run(context, &name).await,
        }
    }
}

/// Also for the nouns that have a worker of their own.
pub async fn run(context: &Context, name: &str) -> Result<Exit, Failure> {
    let document = context.client.post(&format!("{}/run", one(name)), Patience::Quick).await?;
    let line = format!("worker {name} runs; vbrctl task show {name} says how far it is");
    context.output.done(&document, &line, json!({ "name": name }))?;
    Ok(Exit::Done)
}

fn one(name: &str) -> String {
    format!("{PATH}/{}", encode(name))
}

fn state(task: &Task) -> Cell {
    let tone = match task.state {
        TaskState::Idle | TaskState::Running if task.failures > 0 || task.finding.is_some() => Tone::Watch,
        TaskState::Running => Tone::Good,
        TaskState::Idle | TaskState::Disabled => Tone::Plain,
        TaskState::Failed => Tone::Watch,
        TaskState::Stuck => Tone::Bad,
    };
    Cell::toned(task.state.as_str(), tone)
}

fn next(task: &Task, view: &View) -> String {
    match (task.next_run_at, task.state) {
        (Some(at), _) => format!("in {}", human::span_short(human::between(view.now, at))),
        (None, TaskState::Running | TaskState::Stuck) => progress(task),
        (None, TaskState::Disabled) => "never".into(),
        (None, _) => "when needed".into(),
    }
}

fn progress(task: &Task) -> String {
    match &task.progress {
        Some(progress) => human::percent(progress.done, progress.total),
        None => "now".into(),
    }
}

/// What a reader should see first.
fn trouble(task: &Task) -> String {
    let error = task.last_error.clone().filter(|_| task.failures > 0);
    error.or(task.finding.as_ref().map(|finding| finding.what.clone())).unwrap_or_default()
}

fn table(tasks: &[Task], view: &View) -> String {
    let columns = [
        "NAME",
        "+ROLE",
        "STATE",
        "LAST RUN",
        ">TOOK",
        "NEXT",
        ">+RUNS",
        "WHAT IT DOES",
        "TROUBLE",
        "+LAST ERROR",
    ];
    let mut table = Table::new(view, &columns);
    for task in tasks {
        table.row(vec![
            task.name.as_str().into(),
            task.role.as_str().into(),
            state(task),
            task.last_run_at.map(|at| human::age(at, view.now)).unwrap_or_default().into(),
            task.duration_ms.map(human::span_short).unwrap_or_default().into(),
            next(task, view).into(),
            task.runs.to_string().into(),
            task.what.as_str().into(),
            trouble(task).into(),
            task.last_error.clone().unwrap_or_default().into(),
        ]);
    }
    table.finish()
}

fn facts(task: &Task, view: &View) -> String {
    let mut facts = Facts::new();
    facts
        .add("Worker", format!("{}: {}", task.name, task.what))
        .add("Role", task.role.as_str())
        .add("State", task.state.as_str())
        .add("Next run", next(task, view))
        .add_some(
            "Last run",
            task.last_run_at.map(|at| format!("{}, {}", human::age(at, view.now), human::moment(at))),
        )
        .add_some("Took", task.duration_ms.map(human::span))
        .add("Runs", format!("{} since vbrd started", task.runs))
        .add_some("Failures", Some(task.failures).filter(|n| *n > 0).map(|n| format!("{n} in a row")))
        .add_some("Last error", task.last_error.clone())
        .add_some("Found", task.finding.as_ref().map(|finding| finding.what.clone()))
        .add_some("Next step", task.finding.as_ref().map(|finding| finding.next_step.clone()))
        .add_all("Counted", task.counters.iter().map(|(name, count)| format!("{name} {count}")));
    facts.finish()
}
