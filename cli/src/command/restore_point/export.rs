//! `vbrctl restore-point export`: one disk of a restore point into a file or onto a block device.
//!
//! vbrd verifies each chunk before it gives it out; this side writes with the caller's own rights. Sizes are
//! checked before the first byte is fetched, the end record after the last.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;
use vbr_api::RestorePoint;

use super::{ExportArgs, ExportFormat, one};
use crate::client::encode;
use crate::context::Context;
use crate::disk_file::{Device, Place, SparseFile, Temporary};
use crate::exit::Exit;
use crate::extents::{Decoder, ExtentsError, Sink};
use crate::failure::Failure;
use crate::human;
use crate::progress::bytes_bar;

/// What was fetched.
struct Fetched {
    disk_len: u64,
    data_bytes: u64,
}

/// What is to be fetched.
struct Wanted {
    /// With the site and the ID, so that `latest` stays one point.
    point: String,
    disk: u16,
    disk_len: u64,
}

pub async fn run(context: &Context, arguments: ExportArgs) -> Result<Exit, Failure> {
    let ExportArgs { point, disk, out, format, force } = arguments;
    let place = Place::find(&out, force)?;
    let qemu_img = (format == ExportFormat::Qcow2).then(|| find_qemu_img(&place)).transpose()?;
    let wanted = look(context, &point, disk).await?;
    let fetched = match &place {
        Place::Device(path) => to_device(context, &wanted, path).await?,
        Place::File(path) => to_file(context, &wanted, path, qemu_img.as_deref(), force).await?,
    };
    let line = format!(
        "{} disk {disk} exported to {}: {}, {} of it data",
        wanted.point,
        out.display(),
        human::size(fetched.disk_len),
        human::size(fetched.data_bytes)
    );
    let result = json!({
        "schema": 1,
        "point": wanted.point,
        "disk": disk,
        "path": out.display().to_string(),
        "format": if format == ExportFormat::Raw { "raw" } else { "qcow2" },
        "virtual_bytes": fetched.disk_len,
        "data_bytes": fetched.data_bytes,
    });
    if context.output.format.is_json() {
        context.output.json_object(&result.to_string())?;
    } else {
        context.output.emit(&line)?;
    }
    Ok(Exit::Done)
}

/// Which point and how long the disk is.
async fn look(context: &Context, point: &str, disk: u16) -> Result<Wanted, Failure> {
    let meta: RestorePoint = context.client.get(&one(point)?).await?.one()?;
    let name = format!("{}/{}@{}", meta.site, meta.replica, meta.id);
    let Some(found) = meta.disks.iter().find(|found| found.index == disk) else {
        return Err(Failure::new(
            Exit::NotFound,
            "not_found",
            format!("{name} has no disk {disk}"),
            format!("it has {}, numbered from 0", human::count(meta.disks.len() as u64, "disk")),
            format!("see them: vbrctl restore-point show {name}"),
        ));
    };
    Ok(Wanted { point: name, disk, disk_len: found.virtual_bytes })
}

async fn to_file(
    context: &Context,
    wanted: &Wanted,
    path: &Path,
    qemu_img: Option<&Path>,
    force: bool,
) -> Result<Fetched, Failure> {
    let fail = |error: io::Error| Failure::io("Cannot write the exported disk", path, &error);
    let (temporary, file) = Temporary::create(path, "raw").map_err(fail)?;
    let mut sink = SparseFile(file.try_clone().map_err(fail)?);
    let fetched = fetch(context, wanted, &mut sink, path).await?;
    let Some(qemu_img) = qemu_img else {
        sync(file).await.map_err(fail)?;
        temporary.put(path, force).map_err(fail)?;
        return Ok(fetched);
    };
    let (converted, file) = Temporary::create(path, "qcow2").map_err(fail)?;
    convert(qemu_img, temporary.path(), converted.path()).await?;
    sync(file).await.map_err(fail)?;
    converted.put(path, force).map_err(fail)?;
    Ok(fetched)
}

async fn to_device(context: &Context, wanted: &Wanted, path: &Path) -> Result<Fetched, Failure> {
    let fail = |error: io::Error| Failure::io("Cannot write the block device", path, &error);
    let mut device = Device::open(path).map_err(fail)?;
    if device.size() < wanted.disk_len {
        return Err(Failure::usage(
            format!("Cannot export to {}", path.display()),
            format!(
                "it holds {}, the disk needs {}",
                human::size(device.size()),
                human::size(wanted.disk_len)
            ),
            "choose a larger device; nothing was written",
        ));
    }
    let file = device.file().map_err(fail)?;
    let fetched = fetch(context, wanted, &mut device, path).await.map_err(|mut failure| {
        failure.body.why.push_str("; the device holds a part of the disk now");
        failure
    })?;
    sync(file).await.map_err(fail)?;
    if device.size() > fetched.disk_len {
        let rest = human::size(device.size() - fetched.disk_len);
        context.output.note(&format!("note: the device is larger; its last {rest} were left as they were"));
    }
    Ok(fetched)
}

async fn fetch(
    context: &Context,
    wanted: &Wanted,
    sink: &mut dyn Sink,
    place: &Path,
) -> Result<Fetched, Failure> {
    let path = format!("/v1/restore-points/export?point={}&disk={}", encode(&wanted.point), wanted.disk);
    let mut stream = context.client.stream(&path).await?;
    let mut decoder = Decoder::new(Some(wanted.disk_len));
    let bar = bytes_bar(wanted.disk_len, &format!("{} disk {}", wanted.point, wanted.disk));
    let fail = |error| match error {
        ExtentsError::Sink(error) => Failure::io("Cannot write the exported disk", place, &error),
        ExtentsError::Stream(why) => Failure::new(
            Exit::Failed,
            "bad_stream",
            format!("The export of {} disk {} failed", wanted.point, wanted.disk),
            format!("the stream from vbrd is not good: {why}"),
            format!("check the point: vbrctl restore-point verify {}", wanted.point),
        ),
    };
    while let Some(piece) = stream.piece().await? {
        decoder.feed(&piece, sink).map_err(fail)?;
        bar.set_position(decoder.position());
    }
    let disk_len = decoder.finish().map_err(fail)?;
    bar.finish_and_clear();
    Ok(Fetched { disk_len, data_bytes: decoder.data_bytes() })
}

/// On a thread of its own: it may take long, and Ctrl-C is to be heard.
async fn sync(file: File) -> io::Result<()> {
    tokio::task::spawn_blocking(move || file.sync_all()).await.map_err(io::Error::other)?
}

fn find_qemu_img(place: &Place) -> Result<PathBuf, Failure> {
    if let Place::Device(path) = place {
        return Err(Failure::usage(
            format!("Cannot export to {}", path.display()),
            "a block device takes the raw form only",
            "leave out --format qcow2, or name a file",
        ));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("qemu-img")).find(|file| file.is_file());
    found.ok_or_else(|| {
        Failure::new(
            Exit::Failed,
            "qemu_img_missing",
            "Cannot make a qcow2 file",
            "qemu-img was not found in PATH",
            "install the package qemu-utils, or export as raw",
        )
    })
}

async fn convert(qemu_img: &Path, from: &Path, to: &Path) -> Result<(), Failure> {
    let fail = |why: String| {
        Failure::new(
            Exit::Failed,
            "qemu_img_failed",
            format!("Cannot convert the disk to {}", to.display()),
            why,
            "check the space that is left there, or export as raw",
        )
    };
    let mut command = tokio::process::Command::new(qemu_img);
    command.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(from).arg(to).kill_on_drop(true);
    let output = command.output().await.map_err(|error| fail(format!("{}: {error}", qemu_img.display())))?;
    if output.status.success() {
        return Ok(());
    }
    let words: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
    Err(fail(format!("qemu-img: {words} ({})", output.status)))
}
