//! `vbrctl job seed`: a job's disks into a directory that is carried to the target, so that its first run sends differences.
//!
//! vbrd reads them from snapshots; this side writes with the caller's own rights. All images are written under temporary
//! names and fsynced, then put in their places, and the manifest last: what is cut short leaves nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use vbr_api::{DiskFormat, DiskSpec, Job, Vm};

use super::one;
use crate::carried::{Image, MANIFEST, Manifest, Summing};
use crate::client::encode;
use crate::context::Context;
use crate::disk_file::{SparseFile, Temporary};
use crate::exit::Exit;
use crate::extents::{Decoder, ExtentsError};
use crate::failure::Failure;
use crate::human;
use crate::progress::bytes_bar;

pub const EXAMPLE: &str = "\
Example:
  vbrctl job seed web --to /mnt/courier/web
  (at the target) vbrctl cache warm /mnt/courier/web --check --wait
  vbrctl job run web --wait

The directory gets a sparse raw image of each disk, from a snapshot, and seed.json, which is written last. The file
system there must take files of the disks' size. What changes until the first run is what that run sends.";

#[derive(Args, Debug)]
pub struct Arguments {
    /// The job; it need not have run yet
    name: String,
    /// Where to; made where it is missing
    #[arg(long, value_name = "DIRECTORY")]
    to: PathBuf,
    /// Replace what an earlier one wrote there; that goes first, to make room
    #[arg(long)]
    force: bool,
}

/// An image that waits for the others.
struct Written {
    temporary: Temporary,
    image: Image,
}

impl Arguments {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let job: Job = context.client.get(&one(&self.name)).await?.one()?;
        let disks = disks(context, &job).await?;
        let made = self.make_room(disks.len())?;
        let result = self.write_all(context, &disks).await;
        if result.is_err() && made {
            let _ = fs::remove_dir(&self.to); // Nothing is in it.
        }
        let manifest = result?;
        let sum = |size: fn(&Image) -> u64| manifest.disks.iter().map(size).sum::<u64>();
        let (virtual_bytes, data_bytes) = (sum(|image| image.virtual_bytes), sum(|image| image.data_bytes));
        let directory = self.to.display().to_string();
        let document = json!({
            "schema": 1,
            "job": self.name,
            "directory": directory,
            "virtual_bytes": virtual_bytes,
            "data_bytes": data_bytes,
            "disks": manifest.disks,
        });
        if context.output.format.is_json() {
            context.output.json_object(&document.to_string())?;
        } else {
            let disks = human::count(manifest.disks.len() as u64, "disk");
            let (virtual_bytes, data_bytes) = (human::size(virtual_bytes), human::size(data_bytes));
            context.output.emit(&format!(
                "job {}: {disks} written to {directory}: {virtual_bytes}, {data_bytes} of it data",
                self.name
            ))?;
            context
                .output
                .note("next: at the target, vbrctl cache warm DIRECTORY --check --wait; then run the job");
        }
        Ok(Exit::Done)
    }

    /// The directory is there and free; true where it was made.
    fn make_room(&self, disks: usize) -> Result<bool, Failure> {
        let to = &self.to;
        let fail = |error: &io::Error| Failure::io("Cannot write the job's disks", to, error);
        match fs::create_dir(to) {
            Ok(()) => {
                let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
                let synced =
                    fs::File::open(parent.unwrap_or(Path::new("."))).and_then(|parent| parent.sync_all());
                return synced.map(|()| true).map_err(|error| fail(&error));
            }
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fail(&error)),
            Err(_) if !to.is_dir() => {
                let why = "it is not a directory";
                return Err(Failure::usage(
                    format!("Cannot write to {}", to.display()),
                    why,
                    "name a directory",
                ));
            }
            Err(_) => {}
        }
        let manifest = to.join(MANIFEST);
        let files: Vec<PathBuf> = (0..disks).map(|n| to.join(file_name(n))).collect();
        let there = [&manifest].into_iter().chain(&files).find(|path| path.symlink_metadata().is_ok());
        let Some(there) = there else { return Ok(false) };
        if !self.force {
            return Err(Failure::usage(
                format!("Cannot write to {}", to.display()),
                format!("{} is there already", there.display()),
                "choose another directory, or pass --force to replace it",
            ));
        }
        // Without its manifest the rest is nothing, so that one goes first.
        let earlier = Manifest::find(to).ok().flatten().map(|manifest| manifest.disks).unwrap_or_default();
        let earlier = earlier.into_iter().map(|image| to.join(image.file));
        for path in [manifest].into_iter().chain(files).chain(earlier) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Failure::io("Cannot replace what is there", &path, &error));
                }
                _ => {}
            }
        }
        Ok(false)
    }

    async fn write_all(&self, context: &Context, disks: &[DiskSpec]) -> Result<Manifest, Failure> {
        let mut all = Vec::new();
        for (n, disk) in disks.iter().enumerate() {
            all.push(self.write(context, n, disk).await?);
        }
        let mut images: Vec<Image> = Vec::new();
        let put = |written: Written, images: &mut Vec<Image>| {
            written.temporary.put(&self.to.join(&written.image.file), false)?;
            images.push(written.image);
            io::Result::Ok(())
        };
        let mut placed = all.into_iter().try_for_each(|written| put(written, &mut images));
        let manifest = Manifest::new(&self.name, images);
        if placed.is_ok() {
            placed = self.seal(&manifest);
        }
        if let Err(error) = placed {
            for image in &manifest.disks {
                let _ = fs::remove_file(self.to.join(&image.file));
            }
            return Err(Failure::io("Cannot write the job's disks", &self.to, &error));
        }
        Ok(manifest)
    }

    /// Writes one disk, durably, beside its place.
    async fn write(&self, context: &Context, n: usize, disk: &DiskSpec) -> Result<Written, Failure> {
        let (file_name, title) = (file_name(n), format!("{} disk {n}", self.name));
        let place = self.to.join(&file_name);
        let fail = |error: io::Error| Failure::io(format!("Cannot write {title}"), &place, &error);
        let (temporary, file) = Temporary::create(&place, "raw").map_err(fail)?;
        let mut sink = Summing::new(SparseFile(file.try_clone().map_err(fail)?));
        let mut stream = context.client.stream(&format!("{}/seed?disk={n}", one(&self.name))).await?;
        let (mut decoder, bar) = (Decoder::new(None), bytes_bar(likely_len(disk), &title));
        let broken = |error| match error {
            ExtentsError::Sink(error) => fail(error),
            ExtentsError::Stream(why) => Failure::new(
                Exit::Failed,
                "bad_stream",
                format!("Reading {title} failed"),
                format!("the stream from vbrd is not good: {why}"),
                "look at the log of vbrd, then try again",
            ),
        };
        while let Some(piece) = stream.piece().await? {
            decoder.feed(&piece, &mut sink).map_err(broken)?;
            bar.set_position(decoder.position());
        }
        let virtual_bytes = decoder.finish().map_err(broken)?;
        let synced = tokio::task::spawn_blocking(move || file.sync_all()).await;
        synced.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(fail)?;
        bar.finish_and_clear();
        let (source, data_bytes, blake3) = (disk.path.clone(), decoder.data_bytes(), sink.sum());
        Ok(Written { temporary, image: Image { file: file_name, source, virtual_bytes, data_bytes, blake3 } })
    }

    /// Writes the manifest, durably: from now on it is whole.
    fn seal(&self, manifest: &Manifest) -> io::Result<()> {
        let place = self.to.join(MANIFEST);
        let (temporary, mut file) = Temporary::create(&place, "json")?;
        let text = serde_json::to_vec_pretty(manifest).map_err(io::Error::other)?;
        io::Write::write_all(&mut file, &text)?;
        file.sync_all()?;
        temporary.put(&place, false)
    }
}

fn file_name(n: usize) -> String {
    format!("disk-{n}.raw")
}

/// What a bar goes to: right for raw images, and nothing but a picture for others.
fn likely_len(disk: &DiskSpec) -> u64 {
    let known = fs::metadata(Path::new(&disk.path)).ok().filter(|_| disk.format == DiskFormat::Raw);
    known.map_or(0, |meta| meta.len())
}

/// Those of its VM now, where it is a VM's.
async fn disks(context: &Context, job: &Job) -> Result<Vec<DiskSpec>, Failure> {
    let Some((host, name)) = job.spec.vm.as_deref().and_then(|vm| vm.split_once('/')) else {
        return Ok(job.spec.disks.clone());
    };
    let vms: Vec<Vm> = context.client.get(&format!("/v1/vms?host={}", encode(host))).await?.list()?;
    let found = vms.into_iter().find(|vm| vm.name == name).map(|vm| vm.disks);
    found.ok_or_else(|| {
        Failure::new(
            Exit::NotFound,
            "not_found",
            format!("Host {host} has no VM {name}"),
            "it is not among those the host lists",
            format!("list them: vbrctl vm list --host {host}"),
        )
    })
}
