//! `vbrctl repository`: what the source knows of its jobs' replicas.

use clap::Subcommand;
use vbr_api::{Repository, RepositoryReport};

use crate::client::{Patience, encode};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::View;
use crate::show;
use crate::table::{Cell, Facts, Table, Tone, section};

/// The backup repository beside the source: manifests of what the target holds
#[derive(Subcommand, Debug)]
pub enum Command {
    /// List the repository of each job
    #[command(after_help = "Example:\n  vbrctl repository list")]
    List,
    /// Show a job's repository
    #[command(after_help = "Example:\n  vbrctl repository show web")]
    Show { job: String },
    /// Check a job's manifests, and compare them with the target's last restore point
    #[command(
        after_help = "Example:\n  vbrctl repository verify web\n\nExit status 1 when it is damaged or differs."
    )]
    Verify { job: String },
    /// Fetch a job's manifests from the target again; no disk data crosses the link
    #[command(after_help = "Example:\n  vbrctl repository rebuild web")]
    Rebuild { job: String },
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::List => {
                let empty = "no job has a repository yet; next: vbrctl job run NAME";
                show::list(context, "/v1/repositories", false, empty, &table).await
            }
            Self::Show { job } => {
                show::one(context, &format!("/v1/repositories/{}", encode(&job)), false, &facts).await
            }
            Self::Verify { job } => report(context, &job, "verify").await,
            Self::Rebuild { job } => report(context, &job, "rebuild").await,
        }
    }
}

async fn report(context: &Context, job: &str, verb: &str) -> Result<Exit, Failure> {
    let path = format!("/v1/repositories/{}/{verb}", encode(job));
    let document = context.client.post(&path, Patience::Long).await?;
    let report: RepositoryReport = document.one()?;
    context.output.emit(&context.output.one_text(&document, &report_facts)?)?;
    if matches!(report.state.as_str(), "ok" | "rebuilt" | "empty") {
        return Ok(Exit::Done);
    }
    Err(Failure::new(
        Exit::Failed,
        "repository_not_ok",
        format!("The repository of job {job} is not in order"),
        match report.state.as_str() {
            "differs" => "it differs from the target's last restore point".to_string(),
            state => format!("{state}: {} of {} pages bad", report.pages_bad, report.pages_checked),
        },
        format!("rebuild it from the target: vbrctl repository rebuild {job}"),
    ))
}

fn report_facts(report: &RepositoryReport, _: &View) -> String {
    let mut facts = Facts::new();
    facts
        .add("Job", report.job.as_str())
        .add("State", report.state.as_str())
        .add("Pages", format!("{} checked, {} bad", report.pages_checked, report.pages_bad))
        .add("Received", format!("{} of manifest", human::size(report.received_bytes)))
        .add("Restore point", report.restore_point.clone().unwrap_or_else(|| "none".into()));
    facts.finish()
}

fn table(repositories: &[Repository], view: &View) -> String {
    let mut table = Table::new(view, &["JOB", "PEER", "STATE", ">DISKS", ">VIRTUAL", "RESTORE POINT"]);
    for repository in repositories {
        let virtual_bytes = repository.disks.iter().map(|disk| disk.virtual_bytes).sum();
        table.row(vec![
            repository.job.as_str().into(),
            repository.peer.as_str().into(),
            state(&repository.state),
            repository.disks.len().to_string().into(),
            human::size(virtual_bytes).into(),
            repository.restore_point.clone().unwrap_or_default().into(),
        ]);
    }
    table.finish()
}

fn facts(repository: &Repository, view: &View) -> String {
    let mut facts = Facts::new();
    facts
        .add("Job", repository.job.as_str())
        .add("Peer", repository.peer.as_str())
        .add("State", repository.state.as_str())
        .add("Restore point", repository.restore_point.clone().unwrap_or_else(|| "none".into()));
    let mut text = facts.finish();
    if !repository.disks.is_empty() {
        let mut table = Table::new(view, &["#", "PATH", ">VIRTUAL", ">PAGES", "ROOT"]);
        for (number, disk) in repository.disks.iter().enumerate() {
            let root = if view.wide { disk.root.as_str() } else { disk.root.get(..16).unwrap_or(&disk.root) };
            table.row(vec![
                number.to_string().into(),
                disk.path.as_str().into(),
                human::size(disk.virtual_bytes).into(),
                disk.pages.to_string().into(),
                root.into(),
            ]);
        }
        text.push_str(&section("Disks", &table.finish()));
    }
    text
}

fn state(state: &str) -> Cell {
    let tone = match state {
        "ok" => Tone::Good,
        "empty" => Tone::Plain,
        _ => Tone::Bad,
    };
    Cell::toned(state, tone)
}
