//! One moment of all disks of a running VM, and what qemu needs for it.
//!
//! Over each disk a filter (`copy-before-write`) is put between device and image while the VM stands still for an instant;
//! from then on what the guest overwrites is copied aside first, into a scratch image. `snapshot-access` shows the moment, and
//! an NBD export gives it to us. Where a copy fails (scratch space is full, or too slow for [`CBW_TIMEOUT_S`]) the
//! snapshot breaks, never the guest: qemu's `on-cbw-error: break-snapshot`.
//!
//! Bitmaps: one of this session is made before the moment; those of earlier sessions stop recording after it. So each says at
//! least what changed between its session's moment and this one. Where the session fails, they go on, with what the
//! session's own has recorded meanwhile.
//!
//! qemu opens the scratch image and the export's socket through descriptors that it is given: it needs no right to any
//! file of ours. The image's name is gone before qemu writes to it, so nothing is left behind, whatever ends first.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::inventory::{Bitmap, LiveDisk, OURS, bitmaps, disks, name_files, our_name};
use super::qmp::{Qmp, QmpError};
use super::standstill::Standstill;
use crate::host::target::FLATTEN;

/// What a copy may take before the snapshot is given up for the guest.
const CBW_TIMEOUT_S: u64 = 30;
/// Of a bitmap: what a chunk is.
const GRANULARITY: u64 = crate::block::CHUNK_BYTES as u64;
/// For what ends in qemu by itself.
const SETTLE: Duration = Duration::from_secs(10);
/// The name under which qemu knows our listener.
const LISTENER: &str = "vbr-nbd";

/// What was set up.
pub(super) struct Taken {
    /// How long the guest stood still; none where it was not running.
    pub pause: Option<Duration>,
}

/// A disk, and its scratch image.
pub(super) struct Prepared {
    pub disk: LiveDisk,
    pub scratch: File,
}

/// The id of a disk's export, which names the session as well.
pub(super) fn export_id(session: &str, index: usize) -> String {
    format!("{OURS}{session}-{index}")
}

/// All disks of the VM as they are now.
pub(super) fn look(monitor: &mut Qmp) -> Result<Vec<LiveDisk>, QmpError> {
    let mut found = disks(&monitor.execute("query-block", &json!({}))?);
    name_files(&mut found, &nodes(monitor)?);
    Ok(found)
}

/// No moment is taken over a disk that is being made independent ([`FLATTEN`]): the filter that qemu puts there for that would
/// go from between ours and the image.
pub(super) fn check_rest(monitor: &mut Qmp) -> Result<(), QmpError> {
    let jobs = monitor.execute("query-block-jobs", &json!({}))?;
    let flattens = |job: &Value| job["device"].as_str().is_some_and(|name| name.starts_with(FLATTEN));
    if jobs.as_array().into_iter().flatten().any(flattens) { Err(QmpError::Committing) } else { Ok(()) }
}

/// Takes the moment. Where it fails, [`tear_down`] and [`go_on_recording`] are the caller's.
pub(super) fn take(
    monitor: &mut Qmp,
    job: &str,
    session: &str,
    prepared: &[Prepared],
    standstill: impl FnOnce() -> std::io::Result<Standstill>,
) -> Result<Taken, QmpError> {
    for Prepared { disk, scratch } in prepared {
        add_filter(monitor, disk, scratch)?;
        add_bitmap(monitor, disk, &Bitmap::name_of(job, session))?;
    }
    let running = monitor.execute("query-status", &json!({}))?["running"] == true;
    let note = if running { Some(standstill()?) } else { None };
    let began = Instant::now();
    if running {
        monitor.execute("stop", &json!({}))?;
    }
    let switched = prepared.iter().try_for_each(|Prepared { disk, .. }| {
        monitor
            .execute("qom-set", &json!({ "path": disk.qdev, "property": "drive", "value": disk.ours("cbw") }))
            .map(drop)
    });
    // In the same standstill: what they record is between two moments.
    let stopped = switched.and_then(|()| stop_recording(monitor, job, prepared));
    if let Some(note) = note {
        monitor.execute("cont", &json!({}))?;
        note.end();
    }
    stopped?;
    Ok(Taken { pause: running.then(|| began.elapsed()) })
}

fn add_filter(monitor: &mut Qmp, disk: &LiveDisk, scratch: &File) -> Result<(), QmpError> {
    let added = monitor.execute_with("add-fd", &json!({ "opaque": OURS }), scratch.as_fd())?;
    let set = added["fdset-id"].as_u64().ok_or_else(|| QmpError::Protocol("add-fd names no set".into()))?;
    let file = json!({ "driver": "file", "filename": format!("/dev/fdset/{set}"), "discard": "unmap",
        "locking": "off" });
    let image = json!({ "driver": "qcow2", "node-name": disk.ours("fl"), "discard": "unmap", "file": file });
    monitor.execute("blockdev-add", &image)?;
    let filter = json!({ "driver": "copy-before-write", "node-name": disk.ours("cbw"), "file": disk.node,
        "target": disk.ours("fl"), "on-cbw-error": "break-snapshot", "cbw-timeout": CBW_TIMEOUT_S });
    monitor.execute("blockdev-add", &filter).map(drop)
}

/// Kept by the image where that can keep it.
fn add_bitmap(monitor: &mut Qmp, disk: &LiveDisk, name: &str) -> Result<(), QmpError> {
    let bitmap = |persistent: bool| json!({ "node": disk.node, "name": name, "granularity": GRANULARITY, "persistent": persistent });
    match monitor.execute("block-dirty-bitmap-add", &bitmap(true)) {
        Err(QmpError::Refused { .. }) => monitor.execute("block-dirty-bitmap-add", &bitmap(false)).map(drop),
        added => added.map(drop),
    }
}

fn stop_recording(monitor: &mut Qmp, job: &str, prepared: &[Prepared]) -> Result<(), QmpError> {
    let mut actions = Vec::new();
    for Prepared { disk, .. } in prepared {
        for bitmap in disk.bitmaps.iter().filter(|bitmap| of_job(bitmap, job) && bitmap.recording) {
            let data = json!({ "node": disk.node, "name": bitmap.name });
            actions.push(json!({ "type": "block-dirty-bitmap-disable", "data": data }));
        }
    }
    transaction(monitor, actions)
}

/// Exports the disks of the moment, with these bitmaps of each, to whoever connects to the listener.
pub(super) fn export(
    monitor: &mut Qmp,
    session: &str,
    listener: &UnixListener,
    disks: &[(LiveDisk, Vec<String>)],
) -> Result<(), QmpError> {
    monitor.execute_with("getfd", &json!({ "fdname": LISTENER }), listener.as_fd())?;
    let address = json!({ "addr": { "type": "fd", "data": { "str": LISTENER } } });
    if let Err(error) = monitor.execute("nbd-server-start", &address) {
        monitor.execute("closefd", &json!({ "fdname": LISTENER }))?;
        return Err(error);
    }
    for (index, (disk, bitmaps)) in disks.iter().enumerate() {
        let (view, id) = (disk.ours("snap"), export_id(session, index));
        if !has_node(monitor, &view)? {
            let access = json!({ "driver": "snapshot-access", "node-name": view, "file": disk.ours("cbw") });
            monitor.execute("blockdev-add", &access)?;
        }
        let bitmaps: Vec<Value> =
            bitmaps.iter().map(|name| json!({ "node": disk.node, "name": name })).collect();
        let export = json!({ "type": "nbd", "id": id, "name": id, "node-name": view, "bitmaps": bitmaps });
        monitor.execute("block-export-add", &export)?;
    }
    Ok(())
}

/// Ends what an earlier vbrd exports to nobody; the moment stays.
pub(super) fn stop_exports(monitor: &mut Qmp) -> Result<bool, QmpError> {
    let exports = monitor.execute("query-block-exports", &json!({}))?;
    let ids: Vec<&str> = exports.as_array().into_iter().flatten().filter_map(|e| e["id"].as_str()).collect();
    let (ours, others): (Vec<&str>, Vec<&str>) = ids.iter().partition(|id| id.starts_with(OURS));
    for id in &ours {
        monitor.execute("block-export-del", &json!({ "id": id, "mode": "hard" }))?;
    }
    let deadline = Instant::now() + SETTLE;
    while !ours.is_empty() {
        let left = monitor.execute("query-block-exports", &json!({}))?;
        let gone = |id: &&str| left.as_array().into_iter().flatten().all(|e| e["id"] != **id);
        if ours.iter().all(gone) {
            break;
        }
        if Instant::now() > deadline {
            return Err(QmpError::Protocol("an export does not end".into()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    if !ours.is_empty() && others.is_empty() {
        monitor.execute("nbd-server-stop", &json!({}))?;
    }
    Ok(!ours.is_empty())
}

/// Removes whatever of ours is in the VM, of this vbrd or an earlier one: the guest writes to its image again.
pub(super) fn tear_down(monitor: &mut Qmp) -> Result<(), QmpError> {
    stop_exports(monitor)?;
    let nodes = nodes(monitor)?;
    let names: Vec<&str> = nodes.iter().filter_map(|node| node["node-name"].as_str()).collect();
    let ours = |kind: &str| -> Vec<&str> {
        let begins = format!("{OURS}{kind}-");
        names.iter().copied().filter(|name| name.starts_with(&begins)).collect()
    };
    for name in ours("snap") {
        delete_node(monitor, name)?;
    }
    let filters = ours("cbw");
    for disk in look(monitor)?.iter().filter(|disk| filters.contains(&disk.node.as_str())) {
        let below = names.iter().find(|name| our_name("cbw", name) == disk.node);
        let below = below.ok_or_else(|| QmpError::Protocol("what lies below a filter is gone".into()))?;
        let back = json!({ "path": disk.qdev, "property": "drive", "value": below });
        monitor.execute("qom-set", &back)?;
    }
    for name in filters.into_iter().chain(ours("fl")) {
        delete_node(monitor, name)?;
    }
    let sets = monitor.execute("query-fdsets", &json!({}))?;
    for set in sets.as_array().into_iter().flatten() {
        if set["fds"].as_array().into_iter().flatten().any(|fd| fd["opaque"] == OURS) {
            monitor.execute("remove-fd", &json!({ "fdset-id": set["fdset-id"] }))?;
        }
    }
    Ok(())
}

/// Bitmaps that stopped for a session that came to nothing record again, with what was recorded meanwhile.
pub(super) fn go_on_recording(monitor: &mut Qmp) -> Result<(), QmpError> {
    for (node, all) in tracked(monitor)? {
        for stopped in all.iter().filter(|bitmap| !bitmap.recording && !bitmap.inconsistent) {
            let job = stopped.owner().map(|owner| owner.0);
            let since = all.iter().filter(|bitmap| {
                bitmap.recording && !bitmap.inconsistent && bitmap.owner().map(|owner| owner.0) == job
            });
            let since: Vec<&str> = since.map(|bitmap| bitmap.name.as_str()).collect();
            let name = json!({ "node": node, "name": stopped.name });
            if since.is_empty() {
                // Nobody knows what was written since it stopped.
                monitor.execute("block-dirty-bitmap-remove", &name)?;
                continue;
            }
            // Recording again first: what comes in between stands in both.
            monitor.execute("block-dirty-bitmap-enable", &name)?;
            let merge = json!({ "node": node, "target": stopped.name, "bitmaps": since });
            monitor.execute("block-dirty-bitmap-merge", &merge)?;
        }
    }
    Ok(())
}

/// Forgets bitmaps of a job for which this holds.
pub(super) fn forget(
    monitor: &mut Qmp,
    job: &str,
    which: impl Fn(&Bitmap, &str) -> bool,
) -> Result<(), QmpError> {
    for (node, all) in tracked(monitor)? {
        for bitmap in all {
            let Some((_, session)) = bitmap.owner().filter(|owner| owner.0 == job) else { continue };
            if which(&bitmap, session) {
                let name = json!({ "node": node, "name": bitmap.name });
                monitor.execute("block-dirty-bitmap-remove", &name)?;
            }
        }
    }
    Ok(())
}

/// Nodes with bitmaps of ours.
fn tracked(monitor: &mut Qmp) -> Result<Vec<(String, Vec<Bitmap>)>, QmpError> {
    let nodes = nodes(monitor)?;
    let named = nodes.iter().filter_map(|node| Some((node["node-name"].as_str()?.to_owned(), bitmaps(node))));
    Ok(named.filter(|(_, bitmaps)| !bitmaps.is_empty()).collect())
}

pub(super) fn of_job(bitmap: &Bitmap, job: &str) -> bool {
    bitmap.owner().is_some_and(|owner| owner.0 == job)
}

fn nodes(monitor: &mut Qmp) -> Result<Vec<Value>, QmpError> {
    match monitor.execute("query-named-block-nodes", &json!({ "flat": true }))? {
        Value::Array(nodes) => Ok(nodes),
        _ => Err(QmpError::Protocol("the nodes are no list".into())),
    }
}

pub(super) fn has_node(monitor: &mut Qmp, name: &str) -> Result<bool, QmpError> {
    Ok(nodes(monitor)?.iter().any(|node| node["node-name"] == name))
}

/// A node that is still let go of by qemu's own threads is asked for again.
fn delete_node(monitor: &mut Qmp, name: &str) -> Result<(), QmpError> {
    let deadline = Instant::now() + SETTLE;
    loop {
        match monitor.execute("blockdev-del", &json!({ "node-name": name })) {
            Err(QmpError::Refused { why, .. }) if why.contains("in use") && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return done.map(drop),
        }
    }
}

fn transaction(monitor: &mut Qmp, actions: Vec<Value>) -> Result<(), QmpError> {
    if actions.is_empty() {
        return Ok(());
    }
    monitor.execute("transaction", &json!({ "actions": actions })).map(drop)
}

/// An empty scratch image for a disk of this size, without a name.
pub(super) fn scratch(directory: &Path, bytes: u64) -> std::io::Result<File> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| std::io::Error::other(error.to_string()))?;
    let name: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = directory.join(format!(".vbr-scratch-{name}"));
    let (text, size) = (path.display().to_string(), bytes.to_string());
    let made = crate::nbd::qemu_img(&["create", "-q", "-f", "qcow2", text.as_str(), size.as_str()]);
    let opened =
        made.map_err(std::io::Error::from).and_then(|_| File::options().read(true).write(true).open(&path));
    // Whatever happened.
    let _ = std::fs::remove_file(&path);
    opened
}

/// Whether the moment of this session is still there, whole.
pub(super) fn holds(monitor: &mut Qmp, session: &str, disks: usize) -> Result<bool, QmpError> {
    let exports = monitor.execute("query-block-exports", &json!({}))?;
    let ids: Vec<&str> = exports.as_array().into_iter().flatten().filter_map(|e| e["id"].as_str()).collect();
    Ok((0..disks).all(|index| ids.contains(&export_id(session, index).as_str())))
}

/// The disks that lie below filters of ours.
pub(super) fn below_filters(monitor: &mut Qmp) -> Result<Vec<LiveDisk>, QmpError> {
    let nodes = nodes(monitor)?;
    let devices = monitor.execute("query-block", &json!({}))?;
    let below = devices.as_array().into_iter().flatten().filter_map(|device| {
        let filter = device["inserted"]["node-name"].as_str()?;
        let node = nodes
            .iter()
            .find(|node| node["node-name"].as_str().is_some_and(|name| our_name("cbw", name) == filter))?;
        Some(json!({ "qdev": device["qdev"], "removable": device["removable"], "inserted": node }))
    });
    let mut found = disks(&Value::Array(below.collect()));
    name_files(&mut found, &nodes);
    Ok(found)
}
