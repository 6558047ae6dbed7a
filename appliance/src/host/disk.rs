//! The driver `disk`: raw files, block devices and qcow2 images on this machine.
//!
//! Raw disks are read directly; qcow2 through `qemu-storage-daemon`. Each is read from a reflink clone
//! where there can be one, else it is watched. Owns nothing that outlives a call but the clones (see
//! `clones`). Not its job: reading, and deciding what a change during the read means.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use vbr_api::{DiskFormat, DiskSpec, Host, Vm};

use super::clones::{CloneName, CloneStore, Prepared};
use super::identity::{identity_of, parse_identity};
use super::mark::{Mark, prepare_device};
use super::{DiskSnapshot, HostError, SnapshotKind, SnapshotRequest, SourceHost, VmSnapshot, listing};
use crate::block::BlockRead;
use crate::block_file::RawFile;
use crate::limits::{DISK_BYTES_MAX, DISKS_MAX};
use crate::nbd::{ImageSpec, QsdExport};

/// How often several disks are cloned anew to find a moment in which none of them changed.
const MOMENT_TRIES: usize = 5;
const MOMENT_PAUSE: std::time::Duration = std::time::Duration::from_millis(70);

/// Disks on this machine.
pub struct DiskHost {
    host: Host,
    clones: Arc<CloneStore>,
    runtime_dir: PathBuf,
}

impl DiskHost {
    /// A host over directories of images; disks outside them can be named too.
    pub fn new(host: Host, clones: Arc<CloneStore>, runtime_dir: PathBuf) -> Self {
        Self { host, clones, runtime_dir }
    }

    fn try_snapshot(&self, request: &SnapshotRequest) -> Result<VmSnapshot, HostError> {
        let mut warnings = Vec::new();
        let mut sources = request.disks.iter().map(open_source).collect::<Result<Vec<_>, _>>()?;
        let prepared = self.prepare(request, &mut sources, &mut warnings)?;
        let Held { one_moment, marks } = hold(&sources, &prepared)?;
        let taken_at = Timestamp::now();
        let mut disks: Vec<DiskSnapshot> = Vec::new();
        for ((source, prepared), mark) in sources.into_iter().zip(prepared).zip(marks) {
            // What was not kept yet is removed when this returns early.
            match self.open_held(source, prepared.as_ref(), mark) {
                Ok(disk) => disks.push(disk),
                Err(error) => {
                    discard(disks);
                    return Err(error);
                }
            }
            if let Some(prepared) = prepared {
                prepared.keep();
            }
        }
        for disk in &disks {
            if let Some(doubt) = disk.watched.as_ref().and_then(|(_, mark)| mark.doubt()) {
                warnings.push(format!("{}: {doubt}", disk.spec.path));
            }
        }
        let identity = identity(&disks, taken_at, one_moment);
        let transport_mode = transport_mode(&disks);
        Ok(VmSnapshot {
            disks,
            identity,
            taken_at,
            one_moment,
            transport_mode,
            warnings,
            hold: None,
            config: None,
        })
    }

    fn open_held(
        &self,
        source: Source,
        prepared: Option<&Prepared>,
        mark: Mark,
    ) -> Result<DiskSnapshot, HostError> {
        let io = |error| HostError::io(&source.spec.path, error);
        let Some(prepared) = prepared else {
            let mark = source.doubt.clone().map_or(mark, |why| Mark::Unprovable { why });
            return self.open_disk(source, None, mark);
        };
        let (path, file) = prepared.finish().map_err(io)?;
        let mark = Mark::now(&file).map_err(io)?;
        self.open_disk(source, Some((path, file)), mark)
    }

    /// A file for the clone of each disk that can have one.
    fn prepare(
        &self,
        request: &SnapshotRequest,
        sources: &mut [Source],
        warnings: &mut Vec<String>,
    ) -> Result<Vec<Option<Prepared>>, HostError> {
        let mut prepared = Vec::new();
        for (index, source) in sources.iter_mut().enumerate() {
            let name = CloneName { job: &request.job, session: &request.session, index };
            let path = Path::new(&source.spec.path);
            prepared.push(if source.is_device {
                let doubt = prepare_device(&source.file, &source.spec.path);
                source.doubt = doubt.map_err(|error| HostError::io(&source.spec.path, error))?;
                None
            } else {
                match self.clones.prepare(&source.file, path, &name) {
                    Ok(prepared) => prepared,
                    Err(why) => {
                        warnings.push(why);
                        None
                    }
                }
            });
        }
        Ok(prepared)
    }

    /// The reader of one disk, over its clone or over itself.
    fn open_disk(
        &self,
        source: Source,
        clone: Option<(PathBuf, File)>,
        mark: Mark,
    ) -> Result<DiskSnapshot, HostError> {
        let Source { spec, file, .. } = source;
        let (path, kind) = match &clone {
            Some((path, _)) => (path.clone(), SnapshotKind::Clone),
            None => (PathBuf::from(&spec.path), SnapshotKind::Watch),
        };
        let (clone_path, file) = match clone {
            Some((path, file)) => (Some(path), file),
            None => (None, file),
        };
        let io = |error| HostError::io(&spec.path, error);
        let reader: Arc<dyn BlockRead> = match spec.format {
            DiskFormat::Raw => Arc::new(RawFile::from_file(file.try_clone().map_err(io)?).map_err(io)?),
            DiskFormat::Qcow2 => {
                let image = ImageSpec::read_only(&path, DiskFormat::Qcow2);
                let export = QsdExport::open(image, &self.runtime_dir);
                let export = export.map_err(|error| HostError::image(&spec.path, error))?;
                // qemu opened the path by itself: it must have met the file that is watched.
                let (theirs, ours) = (std::fs::metadata(&path).map_err(io)?, file.metadata().map_err(io)?);
                if (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()) {
                    return Err(HostError::Io {
                        path: spec.path.clone(),
                        source: std::io::Error::other(
                            "the image was replaced while it was opened: try again",
                        ),
                    });
                }
                Arc::new(export)
            }
        };
        if reader.len() == 0 {
            return Err(HostError::Empty { path: spec.path });
        }
        if reader.len() > DISK_BYTES_MAX {
            return Err(HostError::Invalid {
                what: format!("disk {}", spec.path),
                why: "it is larger than 64 TiB".into(),
                next_step: "split it into smaller disks",
            });
        }
        let clone = clone_path.map(|path| (path, self.clones.floor_bytes()));
        Ok(DiskSnapshot { spec, reader, kind, changes: Vec::new(), watched: Some((file, mark)), clone })
    }

    /// What an earlier snapshot looks like now: the clone where there was one, else the disk itself.
    fn held_again(&self, request: &SnapshotRequest, kinds: &str) -> Result<Option<Vec<HeldDisk>>, HostError> {
        let mut all = Vec::new();
        for (index, (spec, kind)) in request.disks.iter().zip(kinds.chars()).enumerate() {
            let name = CloneName { job: &request.job, session: &request.session, index };
            if kind == 'c' {
                let Some((path, file)) = self.clones.find(Path::new(&spec.path), &name) else {
                    return Ok(None);
                };
                let mark = Mark::now(&file).map_err(|error| HostError::io(&spec.path, error))?;
                // The disk itself need not be there any more.
                let again = file.try_clone().map_err(|error| HostError::io(&spec.path, error))?;
                let source = Source { spec: spec.clone(), file: again, is_device: false, doubt: None };
                all.push((source, Some((path, file)), mark));
            } else {
                // Gone or unreadable is not the same moment; a new snapshot will say what is wrong.
                let Ok(source) = open_source(spec) else { return Ok(None) };
                let mut marks =
                    Mark::settled(&[&source.file]).map_err(|error| HostError::io(&spec.path, error))?;
                let Some(mark) = marks.pop() else { return Ok(None) };
                all.push((source, None, mark));
            }
        }
        Ok(Some(all))
    }
}

/// A disk, its clone where it has one, and what it looks like.
type HeldDisk = (Source, Option<(PathBuf, File)>, Mark);

impl SourceHost for DiskHost {
    fn name(&self) -> &str {
        &self.host.name
    }

    fn driver(&self) -> &'static str {
        "disk"
    }

    fn list(&self) -> Result<Vec<Vm>, HostError> {
        Ok(listing::list(&self.host))
    }

    fn resolve(&self, vm: &str) -> Result<Vec<DiskSpec>, HostError> {
        listing::resolve(&self.host, vm)
    }

    fn snapshot(&self, request: &SnapshotRequest) -> Result<VmSnapshot, HostError> {
        check_request(request)?;
        self.try_snapshot(request)
    }

    fn reopen(&self, request: &SnapshotRequest, identity: &str) -> Result<Option<VmSnapshot>, HostError> {
        check_request(request)?;
        let Some((taken_at, one_moment, kinds)) = parse_identity(identity) else { return Ok(None) };
        if kinds.len() != request.disks.len() {
            return Ok(None);
        }
        let Some(held) = self.held_again(request, kinds)? else { return Ok(None) };
        let marks: Vec<_> =
            held.iter().zip(kinds.chars()).map(|((.., mark), kind)| (kind, mark.clone())).collect();
        if identity_of(&marks, taken_at, one_moment) != identity {
            return Ok(None);
        }
        let mut disks = Vec::new();
        for (source, clone, mark) in held {
            disks.push(self.open_disk(source, clone, mark)?);
        }
        let (identity, transport_mode) = (identity.to_owned(), transport_mode(&disks));
        let warnings = Vec::new();
        Ok(Some(VmSnapshot {
            disks,
            identity,
            taken_at,
            one_moment,
            transport_mode,
            warnings,
            hold: None,
            config: None,
        }))
    }
}

/// A disk that was opened to be held still.
struct Source {
    spec: DiskSpec,
    file: File,
    is_device: bool,
    /// Why changes of it cannot be detected.
    doubt: Option<String>,
}

struct Held {
    one_moment: bool,
    /// Of the disks themselves, from before the first clone.
    marks: Vec<Mark>,
}

/// Holds all disks still: clones as close together as can be, marks for the others.
fn hold(sources: &[Source], prepared: &[Option<Prepared>]) -> Result<Held, HostError> {
    let files: Vec<&File> = sources.iter().map(|source| &source.file).collect();
    let paths: Vec<&str> = sources.iter().map(|source| source.spec.path.as_str()).collect();
    let (one_moment, marks) =
        hold_files(&files, prepared).map_err(|error| HostError::io(paths.join(", "), error))?;
    Ok(Held { one_moment, marks })
}

/// Whether the clones show one moment, and the marks of what was read before they were made.
fn hold_files(files: &[&File], prepared: &[Option<Prepared>]) -> std::io::Result<(bool, Vec<Mark>)> {
    // One clone alone is one moment: no mark is needed for it.
    if let [Some(only)] = prepared {
        only.clone_from(files[0])?;
        return Ok((true, vec![Mark::Unprovable { why: String::new() }]));
    }
    let clones = prepared.iter().flatten().count();
    let (mut one_moment, mut marks) = (false, Vec::new());
    for round in 0..MOMENT_TRIES {
        if round > 0 {
            std::thread::sleep(MOMENT_PAUSE);
        }
        marks = Mark::settled(files)?;
        for (file, prepared) in files.iter().zip(prepared.iter()) {
            if let Some(prepared) = prepared {
                prepared.clone_from(file)?;
            }
        }
        // What is watched is looked at after the read; here it is about the clones alone.
        one_moment = true;
        for ((file, mark), prepared) in files.iter().zip(&marks).zip(prepared.iter()) {
            one_moment &= prepared.is_none() || Mark::now(file)? == *mark;
        }
        if one_moment || clones == 0 {
            break;
        }
    }
    Ok((one_moment, marks))
}

fn open_source(spec: &DiskSpec) -> Result<Source, HostError> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = &spec.path;
    if !path.starts_with('/') {
        return Err(HostError::Relative { path: path.clone() });
    }
    let io = |error| HostError::io(path, error);
    // Looked at before it is opened: opening a pipe or a terminal can do things.
    let what = not_a_disk(&std::fs::metadata(path).map_err(io)?);
    if let Some(what) = what {
        return Err(HostError::NotADisk { path: path.clone(), what });
    }
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    if let Some(what) = not_a_disk(&meta) {
        return Err(HostError::NotADisk { path: path.clone(), what });
    }
    let is_device = meta.file_type().is_block_device();
    let len = if is_device {
        rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|errno| io(errno.into()))?
    } else {
        meta.len()
    };
    if len == 0 {
        return Err(HostError::Empty { path: path.clone() });
    }
    Ok(Source { spec: spec.clone(), file, is_device, doubt: None })
}

fn not_a_disk(meta: &std::fs::Metadata) -> Option<&'static str> {
    let kind = meta.file_type();
    match () {
        () if kind.is_file() || kind.is_block_device() => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_char_device() => Some("a character device"),
        () => Some("a pipe or a socket"),
    }
}

/// Names go into file names, so they are held to what a file name can carry.
pub(super) fn check_request(request: &SnapshotRequest) -> Result<(), HostError> {
    let wrong = |why: &str, next_step| {
        Err(HostError::Invalid {
            what: format!("snapshot for job {:?}", request.job),
            why: why.into(),
            next_step,
        })
    };
    let session = request.session.as_bytes();
    if session.is_empty() || session.len() > 64 || !session.iter().all(u8::is_ascii_alphanumeric) {
        return wrong(
            "the session's id is not made of letters and digits",
            "this is a fault of vbrd: report it",
        );
    }
    if !vbr_api::name_is_valid(&request.job) {
        return wrong("the job's name is not valid", "use lower-case letters, digits, and . _ - inside");
    }
    if request.disks.is_empty() || request.disks.len() > DISKS_MAX {
        return wrong("it has no disks, or more than 64", "name between 1 and 64 disks");
    }
    Ok(())
}

fn discard(disks: Vec<DiskSnapshot>) {
    for (path, _) in disks.into_iter().filter_map(|disk| disk.clone) {
        super::clones::remove_clone(&path);
    }
}

fn transport_mode(disks: &[DiskSnapshot]) -> &'static str {
    if disks.iter().any(|disk| disk.spec.format == DiskFormat::Qcow2) { "network" } else { "direct" }
}

fn identity(disks: &[DiskSnapshot], taken_at: Timestamp, one_moment: bool) -> String {
    let letter = |kind| if kind == SnapshotKind::Clone { 'c' } else { 'w' };
    let never = Mark::Unprovable { why: String::new() };
    let mark = |disk: &DiskSnapshot| disk.watched.as_ref().map_or(never.clone(), |(_, mark)| mark.clone());
    let marks: Vec<_> = disks.iter().map(|disk| (letter(disk.kind), mark(disk))).collect();
    identity_of(&marks, taken_at, one_moment)
}
