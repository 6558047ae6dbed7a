//! `vbrctl restore-point`: sealed moments of a replica. (`export` and `mount` have files of their own.)

use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use serde_json::json;
use vbr_api::{Moment, PinRequest, PointState, Removed, Replica, RestorePoint, VerifyReport};

use super::Yes;
use crate::client::{Document, Patience, encode};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::json;
use crate::output::View;
use crate::show::{self, Watch};
use crate::table::{Cell, Facts, Table, Tone, section};

mod export;
mod machine;
mod mount;

/// Moments of a replica that can be started or exported; named REPLICA@ID or REPLICA@latest
#[derive(Subcommand, Debug)]
pub enum Command {
    /// List restore points, of one replica or of all
    #[command(after_help = "Example:\n  vbrctl restore-point list web")]
    List {
        /// REPLICA, or SITE/REPLICA where several sites have one of that name
        replica: Option<String>,
        #[command(flatten)]
        watch: Watch,
    },
    /// Show one restore point
    #[command(after_help = "Example:\n  vbrctl restore-point show web@latest")]
    Show {
        /// [SITE/]REPLICA@ID or @latest
        point: String,
    },
    /// Read a restore point and compare every chunk with its manifest
    #[command(
        after_help = "Example:\n  vbrctl restore-point verify web@latest\n\nExit status 1 when a block differs."
    )]
    Verify {
        /// [SITE/]REPLICA@ID or @latest
        point: String,
    },
    /// Pin a restore point: nobody removes it until the pin lapses or is taken off
    #[command(
        after_help = "Example:\n  vbrctl restore-point pin web@latest --for 90d\n  vbrctl restore-point pin web@latest --until 2027-01-31"
    )]
    Pin {
        /// [SITE/]REPLICA@ID or @latest
        point: String,
        /// How long (12h, 90d); for good unless said
        #[arg(long = "for", value_name = "TIME", value_parser = human::parse_span)]
        span: Option<Duration>,
        /// Until when: a date (its beginning, UTC) or RFC 3339
        #[arg(long, value_name = "DATE", value_parser = human::parse_moment, conflicts_with = "span")]
        until: Option<Moment>,
    },
    /// Take the pin off a restore point
    #[command(after_help = "Example:\n  vbrctl restore-point unpin web@20261122t190501z-3fa2")]
    Unpin {
        /// [SITE/]REPLICA@ID or @latest
        point: String,
    },
    /// Remove a restore point
    ///
    /// Never one that is pinned or in use. One younger than the minimum age and the newest of a replica are
    /// removed with --force only, which says what it overrides.
    #[command(after_help = "Example:\n  vbrctl restore-point remove web@20261122t190501z-3fa2 --yes")]
    Remove {
        /// [SITE/]REPLICA@ID
        point: String,
        /// Although it is younger than the minimum age, or the newest
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        yes: Yes,
    },
    /// Write one disk of a restore point to a file or block device, verified chunk by chunk
    ///
    /// A file appears whole or not at all and is sparse. A block device is written through up to the disk's
    /// length; it must be large enough and not in use.
    #[command(
        after_help = "Example:\n  vbrctl restore-point export web@latest --disk 0 /srv/out.raw\n  vbrctl restore-point export web@latest --disk 1 --format qcow2 /srv/out.qcow2"
    )]
    Export(ExportArgs),
    /// Mount the file systems of a restore point, read only, to take single files out of it
    ///
    /// Each at DIRECTORY/diskNpM (disk N, partition M) or DIRECTORY/diskN, until Ctrl-C, or until COMMAND ends. Journals are replayed as
    /// after a power cut; nothing of the restore point is written to, and it is not removed meanwhile. What is read is verified: a damaged
    /// block is an I/O error. Takes root; --images does not.
    #[command(
        after_help = "Example:\n  sudo vbrctl restore-point mount web@latest /mnt/web\n  sudo vbrctl restore-point mount web@latest /mnt/web -- cp -a disk0p1/etc /srv/etc-of-web\n  vbrctl restore-point mount web@latest ~/web --images"
    )]
    Mount(mount::MountArgs),
}

#[derive(clap::Args, Debug)]
pub struct ExportArgs {
    /// [SITE/]REPLICA@ID or @latest
    point: String,
    /// Number of the disk, from 0, as `restore-point show` lists them
    #[arg(long, value_name = "N")]
    disk: u16,
    /// File or block device to write
    out: PathBuf,
    /// Form of the file (qcow2 needs qemu-img here)
    #[arg(long, value_enum, default_value_t)]
    format: ExportFormat,
    /// Replace the file, or overwrite the block device
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    #[default]
    Raw,
    Qcow2,
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::List { replica: Some(replica), watch } => {
                let path = format!("/v1/restore-points?replica={}", encode(&replica));
                let empty = format!("replica {replica} has no restore points yet");
                show::list(context, &path, watch.watch, &empty, &table).await
            }
            Self::List { replica: None, watch } if watch.watch => Err(Failure::usage(
                "Cannot watch the restore points of all replicas",
                "a watch follows one replica",
                "name it: vbrctl restore-point list REPLICA --watch",
            )),
            Self::List { replica: None, .. } => {
                show::print_list(context, &all(context).await?, "no restore points here yet", &table)
            }
            Self::Show { point } => show::one(context, &one(&point)?, false, &facts).await,
            Self::Verify { point } => {
                check(&point)?;
                let path = format!("/v1/restore-points/verify?point={}", encode(&point));
                let document = context.client.post(&path, Patience::Long).await?;
                let text = context.output.one_text(&document, &|report: &VerifyReport, view| {
                    reports(std::slice::from_ref(report), view)
                })?;
                context.output.emit(&text)?;
                verdict(&[document.one()?])
            }
            Self::Pin { point, span, until } => {
                check(&point)?;
                let for_ms = span.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
                let path = format!("/v1/restore-points/pin?point={}", encode(&point));
                let document = context.client.post_json(&path, &PinRequest { for_ms, until }).await?;
                let pinned: RestorePoint = document.one()?;
                let until = pinned.pinned_until.map(|until| format!(" until {}", human::moment(until)));
                let line = format!("restore point {point} pinned{}", until.unwrap_or_default());
                context.output.done(&document, &line, json!({}))?;
                Ok(Exit::Done)
            }
            Self::Unpin { point } => {
                check(&point)?;
                let path = format!("/v1/restore-points/unpin?point={}", encode(&point));
                let document = context.client.post(&path, Patience::Quick).await?;
                context.output.done(&document, &format!("restore point {point} unpinned"), json!({}))?;
                Ok(Exit::Done)
            }
            Self::Remove { point, force, yes } => remove(context, &point, force, yes).await,
            Self::Export(arguments) => export::run(context, arguments).await,
            Self::Mount(arguments) => mount::run(context, arguments).await,
        }
    }
}

async fn remove(context: &Context, point: &str, force: bool, yes: Yes) -> Result<Exit, Failure> {
    let path = one(point)? + if force { "&force=true" } else { "" };
    context.confirm(&format!("Remove the restore point {point}"), yes.yes).await?;
    let document = context.client.delete(&path).await?;
    context.output.done(
        &document,
        &format!("restore point {point} removed"),
        json!({ "removed": [point] }),
    )?;
    if !context.output.format.is_json() && document.is_json() {
        for overridden in document.one::<Removed>()?.overridden {
            context.output.note(&format!("overridden: {overridden}"));
        }
    }
    Ok(Exit::Done)
}

/// The restore points of every replica, as one list.
async fn all(context: &Context) -> Result<Document, Failure> {
    let replicas: Vec<Replica> = context.client.get("/v1/replicas").await?.list()?;
    let mut items = Vec::new();
    for replica in replicas {
        let name = encode(&format!("{}/{}", replica.site, replica.name));
        let document = context.client.get(&format!("/v1/restore-points?replica={name}")).await?;
        items.extend(json::items(&document.text));
    }
    Ok(Document { status: 200, text: format!("{{\"schema\":1,\"items\":[{}]}}", items.join(",")) })
}

fn one(point: &str) -> Result<String, Failure> {
    check(point)?;
    Ok(format!("/v1/restore-points/one?point={}", encode(point)))
}

fn check(point: &str) -> Result<(), Failure> {
    match point.split_once('@') {
        Some((replica, id)) if !replica.is_empty() && !id.is_empty() => Ok(()),
        _ => Err(Failure::usage(
            format!("{point:?} names no restore point"),
            "a restore point is REPLICA@ID, SITE/REPLICA@ID, or …@latest",
            "list them: vbrctl restore-point list",
        )),
    }
}

/// Exit status of verifications: 1 when any was not ok.
pub fn verdict(reports: &[VerifyReport]) -> Result<Exit, Failure> {
    let bad: Vec<&VerifyReport> = reports.iter().filter(|report| !report.ok).collect();
    let Some(first) = bad.first() else { return Ok(Exit::Done) };
    let chunks: u64 = bad.iter().map(|report| report.bad_chunks).sum();
    Err(Failure::new(
        Exit::Failed,
        "damaged",
        match bad.len() {
            1 => format!("Restore point {} is damaged", first.point),
            many => format!("{many} restore points are damaged, {} the first", first.point),
        },
        format!("{} unlike the manifest", human::count(chunks, "chunk")),
        "use another restore point, check the datastore's disk, and run the job again",
    ))
}

/// Verifications as a table, bad places below.
pub fn reports(reports: &[VerifyReport], view: &View) -> String {
    let mut table = Table::new(view, &["RESTORE POINT", "RESULT", ">CHUNKS", ">BAD", ">READ", ">TIME"]);
    let mut places = Table::new(view, &["RESTORE POINT", ">DISK", ">OFFSET", "WHY"]);
    let mut any = false;
    for report in reports {
        let (word, tone) = if report.ok { ("ok", Tone::Good) } else { ("damaged", Tone::Bad) };
        table.row(vec![
            report.point.as_str().into(),
            Cell::toned(word, tone),
            report.chunks.to_string().into(),
            report.bad_chunks.to_string().into(),
            human::size(report.read_bytes).into(),
            human::span(report.duration_ms).into(),
        ]);
        for bad in &report.bad {
            any = true;
            places.row(vec![
                report.point.as_str().into(),
                bad.disk.to_string().into(),
                bad.offset.to_string().into(),
                bad.why.as_str().into(),
            ]);
        }
    }
    let mut text = table.finish();
    if any {
        text.push_str(&section(
            "Bad places (offsets in bytes, at most 100 a restore point)",
            &places.finish(),
        ));
    }
    text
}

fn table(points: &[RestorePoint], view: &View) -> String {
    let columns = [
        "SITE",
        "REPLICA",
        "ID",
        "STATE",
        "SHOWS",
        "AGE",
        "CONSISTENT",
        ">CHANGED",
        "VERIFIED",
        "KEPT BECAUSE",
        ">+DISKS",
        "+BASE",
        "+SESSION",
    ];
    let mut table = Table::new(view, &columns);
    for point in points {
        table.row(vec![
            point.site.as_str().into(),
            point.replica.as_str().into(),
            point.id.as_str().into(),
            state(point.state),
            human::moment(point.snapshot_at).into(),
            human::age(point.snapshot_at, view.now).into(),
            if point.consistent { "yes".into() } else { Cell::toned("no", Tone::Watch) },
            human::size(point.changed_bytes).into(),
            verified(point, view),
            kept(point),
            point.disks.len().to_string().into(),
            point.base.clone().unwrap_or_default().into(),
            point.session.as_str().into(),
        ]);
    }
    table.finish()
}

fn facts(point: &RestorePoint, view: &View) -> String {
    let mut facts = Facts::new();
    facts
        .add("Restore point", format!("{}/{}@{}", point.site, point.replica, point.id))
        .add("State", point.state.as_str())
        .add(
            "Shows",
            format!("{} ({})", human::moment(point.snapshot_at), human::age(point.snapshot_at, view.now)),
        )
        .add("Sealed", human::moment(point.sealed_at))
        .add("Consistent", if point.consistent { "yes" } else { "no: its disks do not show one moment" })
        .add("Changed", human::size(point.changed_bytes))
        .add("Base", point.base.clone().unwrap_or_else(|| "none".into()))
        .add("Session", point.session.as_str())
        .add("Kept because", because(&point.kept_because))
        .add("Next seal", if point.retires_next { "it retires" } else { "it stays" });
    facts.add(
        "Verified",
        match (point.verified_at, point.verified_ok) {
            (Some(at), Some(true)) => format!("ok, {}", human::age(at, view.now)),
            (Some(at), _) => format!("DAMAGED, {}", human::age(at, view.now)),
            (None, _) => "never".into(),
        },
    );
    let booted = point.booted_at.map(|at| {
        let result = if point.booted_ok == Some(true) { "good" } else { "FAILED" };
        format!("{result}, {}", human::age(at, view.now))
    });
    facts.add_some("Test by starting", booted);
    if let Some(vm) = &point.vm {
        machine::add(&mut facts, vm, &point.vm_changes);
    }
    let mut disks = Table::new(view, &["#", "BUS", ">VIRTUAL", "FORMAT", "FILE", "SOURCE", "+ROOT"]);
    for disk in &point.disks {
        disks.row(vec![
            disk.index.to_string().into(),
            machine::bus(point.vm.as_ref(), disk.index).into(),
            human::size(disk.virtual_bytes).into(),
            disk.format.as_str().into(),
            disk.file.as_str().into(),
            disk.source_path.as_str().into(),
            disk.root.as_str().into(),
        ]);
    }
    let cards = point.vm.as_ref().map(|vm| machine::cards(vm, view)).unwrap_or_default();
    format!("{}{}{cards}", facts.finish(), section("Disks", &disks.finish()))
}

/// Reasons for people.
pub fn because(reasons: &[String]) -> String {
    if reasons.is_empty() { "nothing: it retires".into() } else { reasons.join("; ") }
}

/// The same in a column: rules alone, without what they say of the time.
fn kept(point: &RestorePoint) -> Cell {
    let words = |reason: &String| reason.split([',', ':']).next().unwrap_or_default().to_string();
    match point.kept_because.is_empty() {
        true => Cell::toned("retires", Tone::Watch),
        false => point.kept_because.iter().map(words).collect::<Vec<_>>().join("; ").into(),
    }
}

fn state(state: PointState) -> Cell {
    let tone = match state {
        PointState::Sealed | PointState::Pinned => Tone::Good,
        PointState::Retiring => Tone::Watch,
        PointState::Damaged => Tone::Bad,
    };
    Cell::toned(state.as_str(), tone)
}

fn verified(point: &RestorePoint, view: &View) -> Cell {
    match (point.verified_at, point.verified_ok) {
        (Some(at), Some(true)) => Cell::toned(human::age(at, view.now), Tone::Good),
        (Some(at), _) => Cell::toned(format!("damaged, {}", human::age(at, view.now)), Tone::Bad),
        (None, _) => "never".into(),
    }
}
