//! `vbrctl cache warm`: orders, lists, follows and ends warmings.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use vbr_api::{DiskSpec, WarmRequest, WarmState, Warming, name_is_valid};

use crate::client::{Document, Patience, encode};
use crate::command::job::options::{DiskArgument, absolute};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::View;
use crate::show;
use crate::table::{Facts, Table};

/// One long poll; the figures are told after each.
pub(super) const POLL: Duration = Duration::from_secs(2);
/// Beyond the poll itself vbrd may take this long.
const GRACE: Duration = Duration::from_secs(20);

const EXAMPLE: &str = "\
Example:
  vbrctl cache warm /mnt/courier/web.img --wait
  vbrctl cache warm /mnt/courier/mail.qcow2,format=qcow2 --peer branch
  vbrctl cache warm /mnt/courier/web --check --wait
  vbrctl cache warm branch/web@latest
  vbrctl cache warm
  vbrctl cache warm --cancel 6928a1b0-1

A directory is one that `vbrctl job seed` wrote, with all its images. An image is not copied: its chunks are read \
where it lies, and verified, whenever a session needs them. It must stay \
there until the first run is over.";

/// Read an image, or a restore point kept here, so that its chunks need not cross the link; without a name, list
/// what was ordered
#[derive(Args, Debug)]
#[command(after_help = EXAMPLE)]
pub struct Arguments {
    /// An image on the machine of vbrd (a path with a slash or a dot at its beginning; raw unless said, never probed), a
    /// directory that `job seed` wrote, or a replica kept here
    #[arg(value_name = "PATH[,format=raw|qcow2]|[SITE/]REPLICA[@POINT]", value_parser = subject)]
    what: Option<Subject>,
    /// The peer for whose dedup domain an image is read; needed where peers are of several
    #[arg(long, value_name = "PEER", requires = "what")]
    peer: Option<String>,
    /// Wait until it is over
    #[arg(long, requires = "what")]
    wait: bool,
    /// Read a directory's images first and compare them with the sums in it
    #[arg(long, requires = "what")]
    check: bool,
    /// End this one; what was read stays known
    #[arg(long, value_name = "ID", conflicts_with_all = ["what", "wait"])]
    cancel: Option<String>,
}

#[derive(Clone, Debug)]
enum Subject {
    Image(DiskSpec),
    Replica(String),
}

fn subject(text: &str) -> Result<Subject, String> {
    if text.starts_with(['/', '.']) {
        return text.parse::<DiskArgument>().map(|disk| Subject::Image(disk.0));
    }
    let (replica, point) = text.split_once('@').unwrap_or((text, "latest"));
    let names = replica.split('/').chain([point]);
    if replica.matches('/').count() <= 1 && names.into_iter().all(name_is_valid) {
        return Ok(Subject::Replica(text.to_string()));
    }
    Err("it is [SITE/]REPLICA[@POINT], or a path that begins with / or .".into())
}

impl Arguments {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        if let Some(id) = &self.cancel {
            let path = format!("/v1/cache/warm/{}/cancel", encode(id));
            let document = context.client.post(&path, Patience::Quick).await?;
            let state = document.one::<Warming>().map_or("cancelled", |view| view.state.as_str());
            let line = format!("warming {id} is {state}");
            context.output.done(&document, &line, serde_json::json!({ "id": id }))?;
            return Ok(Exit::Done);
        }
        let Some(what) = self.what else {
            let empty = "nothing was warmed since vbrd started; next: vbrctl cache warm PATH";
            return show::list(context, "/v1/cache/warm", false, empty, &table).await;
        };
        if let Subject::Image(disk) = &what
            && Path::new(&disk.path).is_dir()
        {
            let directory = PathBuf::from(absolute(&disk.path)?);
            return super::directory::run(context, &directory, self.peer, self.check, self.wait).await;
        }
        if self.check {
            return Err(Failure::usage(
                "--check goes with a directory",
                "it compares with the sums that vbrctl job seed wrote into one",
                "leave --check away; what is read is verified whenever it is used",
            ));
        }
        let request = match what {
            Subject::Image(disk) => WarmRequest {
                path: Some(absolute(&disk.path)?),
                format: Some(disk.format),
                peer: self.peer,
                replica: None,
            },
            Subject::Replica(_) if self.peer.is_some() => {
                return Err(Failure::usage(
                    "--peer goes with an image",
                    "a replica has its peer",
                    "leave --peer away",
                ));
            }
            Subject::Replica(replica) => WarmRequest { replica: Some(replica), ..WarmRequest::default() },
        };
        let document = context.client.post_json("/v1/cache/warm", &request).await?;
        let view: Warming = document.one()?;
        if !self.wait {
            context.output.emit(&context.output.one_text(&document, &facts)?)?;
            return Ok(Exit::Done);
        }
        context.on_interrupt(format!(
            "interrupted: warming {0} goes on in vbrd\n  next: vbrctl cache warm, or vbrctl cache warm --cancel {0}",
            view.id
        ));
        let (view, document) = follow(context, view, document).await?;
        context.output.emit(&context.output.one_text(&document, &facts)?)?;
        Ok(end(&view))
    }
}

/// How the command ends.
pub(super) fn end(view: &Warming) -> Exit {
    match view.state {
        WarmState::Failed => Exit::Failed,
        WarmState::Cancelled => Exit::Incomplete,
        _ => Exit::Done,
    }
}

/// Until it is over.
pub(super) async fn follow(
    context: &Context,
    mut view: Warming,
    mut document: Document,
) -> Result<(Warming, Document), Failure> {
    while !view.state.is_over() {
        let path = format!("/v1/cache/warm/{}?wait_ms={}", encode(&view.id), POLL.as_millis());
        document = context.client.get_patiently(&path, Patience::AtMost(POLL + GRACE)).await?;
        view = document.one()?;
        if !view.state.is_over() {
            context.output.note(&format!("{}: {}", view.state.as_str(), progress(&view)));
        }
    }
    Ok((view, document))
}

fn progress(view: &Warming) -> String {
    let share = human::percent(view.read_bytes, view.total_bytes);
    format!("{} of {} ({share})", human::size(view.read_bytes), human::size(view.total_bytes))
}

pub(super) fn table(all: &[Warming], view: &View) -> String {
    let mut table = Table::new(view, &["ID", "WHAT", "STATE", "READ", ">CHUNKS", ">BAD", "ORDERED"]);
    for one in all {
        table.row(vec![
            one.id.as_str().into(),
            one.subject.as_str().into(),
            one.state.as_str().into(),
            progress(one).into(),
            one.chunks.to_string().into(),
            one.bad_chunks.to_string().into(),
            human::age(one.ordered_at, view.now).into(),
        ]);
    }
    table.finish()
}

fn facts(one: &Warming, _: &View) -> String {
    let mut facts = Facts::new();
    facts
        .add("Warming", one.id.as_str())
        .add("What", one.subject.as_str())
        .add_some("Asked by", one.asked_by.clone())
        .add("State", one.state.as_str())
        .add("Read", progress(one))
        .add("Chunks", format!("{}, {} of them held elsewhere as well", one.chunks, one.known_chunks))
        .add("By blocks", format!("{} chunks are found by their blocks of 4 KiB too", one.chunks_by_block))
        .add("Bad", format!("{} chunks", one.bad_chunks))
        .add_some(
            "Error",
            one.error.as_ref().map(|error| format!("{}: {}; {}", error.what, error.why, error.next_step)),
        );
    facts.finish()
}
