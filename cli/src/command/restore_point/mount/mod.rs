//! `vbrctl restore-point mount`: the file systems of a restore point, read only, for as long as the command runs.
//!
//! ```text
//! vbrd --NBD, each chunk verified--> bridge --unix socket--> qemu-storage-daemon --FUSE--> disk0.raw --loop--> mount
//!                                                             (writes: an overlay that is thrown away)
//! ```
//!
//! The point is held by the connection to vbrd, and a vbrd that restarts is connected to again. A file system that was not
//! unmounted at the source gets its journal replayed, into the overlay. Everything is undone when the command ends, however it
//! is ended, by kill -9 alone not. Owns: the directory of the work, the storage daemon, loop devices and mounts.

mod bridge;
mod images;
mod volumes;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use vbr_api::RestorePoint;

use self::bridge::Bridge;
use self::images::Images;
use self::volumes::{Found, Volumes};
use super::one;
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::View;
use crate::table::{Cell, Table, Tone};

#[derive(clap::Args, Debug)]
pub struct MountArgs {
    /// [SITE/]REPLICA@ID or @latest
    point: String,
    /// Where; it is made if it is not there, and must be empty
    directory: PathBuf,
    /// This disk alone (from 0, as `restore-point show` lists them); may be given several times
    #[arg(long = "disk", value_name = "N")]
    disks: Vec<u16>,
    /// Show the disks as raw files instead of mounting what is on them; needs no root
    #[arg(long)]
    images: bool,
    /// Run this, then unmount; without it the mount lasts until Ctrl-C
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// A restore point as it is opened here.
struct Opened {
    /// With the site and the ID.
    name: String,
    disks: Vec<Disk>,
}

struct Disk {
    number: u16,
    bytes: u64,
}

pub async fn run(context: &Context, arguments: MountArgs) -> Result<Exit, Failure> {
    let MountArgs { point, directory, disks, images, command } = arguments;
    if !images && !rustix::process::geteuid().is_root() {
        return Err(Failure::new(
            Exit::NotAllowed,
            "not_allowed",
            "Cannot mount file systems",
            "that takes root",
            "run it with sudo, or show the disks as files with --images",
        ));
    }
    let opened = open(context, &point, &disks).await?;
    let place = Place::take(&directory)?;
    // Undone from the last to the first.
    let bridge = Bridge::start(context.client.clone(), &opened)?;
    let shown = if images { Some(place.path()) } else { None };
    let images = Images::show(&bridge, &opened, shown).await?;
    let name = opened.name.clone();
    if shown.is_some() {
        tell_images(context, &opened, &images)?;
        return last(context, &name, place.path(), &command).await;
    }
    let mut volumes = Volumes::default();
    for (disk, image) in opened.disks.iter().zip(images.files()) {
        volumes.mount(disk.number, image, place.path()).await?;
    }
    tell(context, &name, place.path(), volumes.found())?;
    if volumes.is_empty() {
        return Err(Failure::new(
            Exit::Failed,
            "nothing_to_mount",
            format!("Nothing of {name} can be mounted"),
            "no file system on its disks is one that this machine knows",
            "look at the disks themselves: the same command with --images",
        ));
    }
    last(context, &name, place.path(), &command).await
}

async fn open(context: &Context, point: &str, disks: &[u16]) -> Result<Opened, Failure> {
    let meta: RestorePoint = context.client.get(&one(point)?).await?.one()?;
    let name = format!("{}/{}@{}", meta.site, meta.replica, meta.id);
    if let Some(none) = disks.iter().find(|number| !meta.disks.iter().any(|disk| disk.index == **number)) {
        return Err(Failure::new(
            Exit::NotFound,
            "not_found",
            format!("{name} has no disk {none}"),
            format!("it has {}, numbered from 0", human::count(meta.disks.len() as u64, "disk")),
            format!("see them: vbrctl restore-point show {name}"),
        ));
    }
    let wanted = meta.disks.iter().filter(|disk| disks.is_empty() || disks.contains(&disk.index));
    let disks = wanted.map(|disk| Disk { number: disk.index, bytes: disk.virtual_bytes }).collect();
    Ok(Opened { name, disks })
}

/// The command, or whatever ends us.
async fn last(context: &Context, name: &str, place: &Path, command: &[String]) -> Result<Exit, Failure> {
    context.on_interrupt(format!("{name} is unmounted"));
    let Some((program, rest)) = command.split_first() else {
        context.output.note("Ctrl-C unmounts it");
        std::future::pending::<()>().await;
        return Ok(Exit::Done);
    };
    let mut child = tokio::process::Command::new(program);
    child.args(rest).current_dir(place).kill_on_drop(true);
    let failed = |why: String| {
        let next = "see what it said; the restore point is unmounted";
        Failure::new(Exit::Failed, "command_failed", format!("{program} failed"), why, next)
    };
    let status = child.status().await.map_err(|error| failed(error.to_string()))?;
    match (status.success(), status.signal()) {
        (true, _) => Ok(Exit::Done),
        (_, Some(signal)) => Err(failed(format!("it was ended by signal {signal}"))),
        (_, None) => Err(failed(format!("its exit status is {}", status.code().unwrap_or(-1)))),
    }
}

fn tell_images(context: &Context, opened: &Opened, images: &Images) -> Result<(), Failure> {
    let disks = opened.disks.iter().zip(images.files());
    if context.output.format.is_json() {
        let items: Vec<_> = disks
            .map(|(disk, path)| json!({ "disk": disk.number, "bytes": disk.bytes, "path": path.display().to_string() }))
            .collect();
        let text = json!({ "schema": 1, "point": opened.name, "images": items }).to_string();
        return context.output.json_object(&text);
    }
    let mut table = Table::new(&context.output.view(), &["DISK", ">VIRTUAL", "FILE"]);
    for (disk, path) in disks {
        let cells = [disk.number.to_string(), human::size(disk.bytes), path.display().to_string()];
        table.row(cells.into_iter().map(Cell::from).collect());
    }
    context.output.emit(&table.finish())
}

fn tell(context: &Context, name: &str, place: &Path, found: &[Found]) -> Result<(), Failure> {
    if context.output.format.is_json() {
        let items: Vec<_> = found
            .iter()
            .map(|found| {
                json!({
                    "disk": found.disk, "partition": found.partition, "bytes": found.bytes, "type": found.kind,
                    "path": found.mounted.as_ref().ok().map(|path| path.display().to_string()),
                    "why_not": found.mounted.as_ref().err(),
                })
            })
            .collect();
        let place = place.display().to_string();
        let text =
            json!({ "schema": 1, "point": name, "directory": place, "file_systems": items }).to_string();
        return context.output.json_object(&text);
    }
    context.output.emit(&table(found, &context.output.view()))
}

fn table(found: &[Found], view: &View) -> String {
    let mut table = Table::new(view, &["DISK", "PARTITION", "TYPE", ">SIZE", "MOUNTED AT"]);
    for found in found {
        table.row(vec![
            found.disk.to_string().into(),
            found.partition.map_or_else(|| "whole".to_owned(), |number| number.to_string()).into(),
            found.kind.clone().unwrap_or_else(|| "unknown".into()).into(),
            human::size(found.bytes).into(),
            match &found.mounted {
                Ok(path) => path.display().to_string().into(),
                Err(why) => Cell::toned(format!("not: {why}"), Tone::Watch),
            },
        ]);
    }
    table.finish()
}

/// The directory that everything appears in; removed again if it was made here.
struct Place {
    path: PathBuf,
    made: bool,
}

impl Place {
    fn take(path: &Path) -> Result<Self, Failure> {
        let fail = |error: std::io::Error| Failure::io("Cannot mount there", path, &error);
        let made = match std::fs::create_dir(path) {
            Ok(()) => true,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(fail(error)),
        };
        let place = Self { path: std::fs::canonicalize(path).map_err(fail)?, made };
        if std::fs::read_dir(&place.path).map_err(fail)?.next().is_some() {
            return Err(Failure::usage(
                format!("Cannot mount at {}", path.display()),
                "the directory is not empty",
                "name another one; it is made if it is not there",
            ));
        }
        Ok(place)
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.made {
            // What is still mounted in it keeps it.
            drop(std::fs::remove_dir(&self.path));
        }
    }
}
