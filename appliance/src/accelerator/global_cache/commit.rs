//! The group commit: pack data to stable storage, then the index, then those who wait are told.
//!
//! One thread, so that commits are in order: a ticket is durable when every earlier one is. It also
//! removes the index entries of evicted packs and keeps the file system's reserve while nothing is
//! appended. Stops when the cache is dropped, after a last commit. The first error is final.

use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::format::ChunkKey;
use super::index::{Location, PackRow};
use super::state::{Dirty, Grave, State};
use super::{CacheError, Shared};

/// Idle, the reserve of the file system is looked after this often.
const TRIM_INTERVAL: Duration = Duration::from_secs(30);
/// Shortest wait for company.
const DELAY_MIN: Duration = Duration::from_millis(2);

/// Everything that one commit makes durable.
struct Work {
    records: Vec<(ChunkKey, Location)>,
    dirty: Vec<Dirty>,
    directory: bool,
    graves: Vec<Grave>,
    up_to: u64,
    next_pack: u64,
}

pub(super) fn run(shared: &Shared) {
    let mut ended = Ended { shared, clean: false };
    let mut delay = shared.settings.group_delay;
    let mut state = shared.state();
    loop {
        let idle = state.queue.is_empty() && state.graves.is_empty() && state.dirty.is_empty();
        if idle && state.stopping {
            ended.clean = true;
            return;
        }
        if idle {
            let (woken, waited) =
                shared.work.wait_timeout(state, TRIM_INTERVAL).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if waited.timed_out()
                && let Err(error) = state.make_room(0, &shared.settings, &shared.files)
            {
                tracing::debug!(%error, "the cache cannot give space back");
            }
            continue;
        }
        let age = state.queue_since.map_or(delay, |since| since.elapsed());
        let blocked = state.queue_bytes >= shared.settings.group_bytes
            || state.queue.is_empty()
            || !state.dirty.is_empty();
        if !state.stopping && !blocked && age < delay {
            let waited = shared.work.wait_timeout(state, delay - age);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        let work = take(&mut state);
        drop(state);
        let started = Instant::now();
        let result = commit(shared, &work);
        // A quick disk does not make anybody wait for the full delay: company is waited for about
        // three times as long as a commit takes.
        delay = ((delay + started.elapsed() * 3) / 2)
            .clamp(DELAY_MIN, shared.settings.group_delay.max(DELAY_MIN));
        state = shared.state();
        match result {
            Ok(()) => done(shared, &mut state, &work),
            Err(error) => {
                fail(shared, &mut state, &error.to_string());
                ended.clean = true;
                return;
            }
        }
    }
}

/// Whatever ends the thread, nobody may wait for it for ever.
struct Ended<'a> {
    shared: &'a Shared,
    clean: bool,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if !self.clean {
            let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            fail(self.shared, &mut state, "the commit thread ended by a fault in vbr");
        }
    }
}

fn take(state: &mut State) -> Work {
    let mut dirty = std::mem::take(&mut state.dirty);
    if let Some(open) = &state.open
        && state.packs.get(&open.number).is_some_and(|pack| pack.uncommitted > 0)
    {
        let row = PackRow {
            closed: false,
            indexed_len: open.offset,
            file_len: 0,
            records: open.entries.len() as u32,
        };
        dirty.push(Dirty { number: open.number, file: Arc::clone(&open.file), row });
    }
    state.committing_bytes = std::mem::take(&mut state.queue_bytes);
    state.queue_since = None;
    Work {
        records: std::mem::take(&mut state.queue),
        dirty,
        directory: std::mem::take(&mut state.directory_dirty),
        graves: std::mem::take(&mut state.graves),
        up_to: state.sequence,
        next_pack: state.next_pack,
    }
}

fn commit(shared: &Shared, work: &Work) -> Result<(), CacheError> {
    for dirty in &work.dirty {
        (shared.settings.sync)(&dirty.file).map_err(|source| CacheError::Io {
            what: "make durable",
            path: shared.files.path(dirty.number),
            source,
        })?;
        if dirty.file.metadata().is_ok_and(|meta| meta.nlink() == 0) {
            lose(shared, dirty.number);
        }
    }
    if work.directory {
        sync_directory(shared)?;
    }
    let rows: Vec<(u64, PackRow)> = work.dirty.iter().map(|dirty| (dirty.number, dirty.row)).collect();
    if !work.records.is_empty() || !rows.is_empty() {
        shared.index.commit(&work.records, &rows, work.next_pack, true)?;
    }
    for grave in &work.graves {
        shared.index.forget_pack(grave.pack, &grave.keys)?;
    }
    Ok(())
}

fn sync_directory(shared: &Shared) -> Result<(), CacheError> {
    let dir = match std::fs::File::open(&shared.files.dir) {
        // Removed while we run: the packs are lost, and found to be lost when they are read.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened.and_then(|dir| dir.sync_all()),
    };
    dir.map_err(|source| CacheError::Io { what: "make durable", path: shared.files.dir.clone(), source })
}

fn done(shared: &Shared, state: &mut State, work: &Work) {
    for (key, location) in &work.records {
        if state.pending.get(key).is_some_and(|(pending, _)| pending == location) {
            state.pending.remove(key);
        }
        if let Some(pack) = state.packs.get_mut(&location.pack) {
            pack.uncommitted = pack.uncommitted.saturating_sub(1);
        }
    }
    state.committing_bytes = 0;
    shared.progress.notify_all();
    shared.commits.send_modify(|commits| commits.durable = work.up_to);
}

fn fail(shared: &Shared, state: &mut State, why: &str) {
    tracing::error!(why, "the cache stopped; nothing is acknowledged until vbrd is started again");
    state.failed = Some(why.to_owned());
    shared.progress.notify_all();
    shared.commits.send_modify(|commits| commits.failed = Some(why.into()));
}

/// Takes a pack whose file has vanished out of the living ones.
pub(super) fn lose(shared: &Shared, pack: u64) {
    let keys = shared.files.footers().remove(pack).unwrap_or_default();
    shared.files.forget(pack);
    let mut state = shared.state();
    if state.packs.contains_key(&pack) && !shared.files.path(pack).exists() {
        tracing::warn!(path = %shared.files.path(pack).display(), "a cache pack has vanished; its chunks come again when they are needed");
        state.bury(pack, keys);
        drop(state);
        shared.work.notify_all();
    }
}
