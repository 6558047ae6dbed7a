//! What the cache knows in memory: live packs, the open one, records on their way into the index,
//! pins, and the choice of what to evict. Also the pack files' life: made, closed, removed.
//!
//! One mutex (in `GlobalCache`) owns all of it, so that a pack is chosen, found alive or removed in one
//! step. Not its job: index changes of evicted packs (queued as graves for the committer) and reading.
//! Bounds: a row per pack, and at most `backlog_bytes` of records that are not committed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::CacheError;
use super::format::{self, ChunkKey, Entry, PACK_HEADER_BYTES, RECORD_HEADER_BYTES};
use super::index::{Location, PackRow};
use super::packs::{Files, Settings};
use crate::block::{ChunkId, DomainTag};

pub(super) struct Pack {
    /// Length of the file; of the open one what is written so far.
    pub bytes: u64,
    pub records: u32,
    /// Hit since the last sweep: gets one more round.
    pub hit: bool,
    /// Records of content that replaced other content: what has a record of being overwritten. (Known
    /// until the next restart.)
    pub hot: u32,
    /// The open pack when an append found its chunk here: pins from then on hold this pack too.
    pub touched: u64,
    /// Records that are not in the index yet.
    pub uncommitted: u32,
}

pub(super) struct OpenPack {
    pub number: u64,
    pub file: Arc<File>,
    pub offset: u32,
    pub entries: Vec<Entry>,
}

impl Pack {
    /// True where most of its content replaced other content.
    fn is_hot(&self) -> bool {
        self.hot * 2 > self.records
    }
}

/// A file whose data the committer has to sync, and what it then says of the pack.
pub(super) struct Dirty {
    pub number: u64,
    pub file: Arc<File>,
    pub row: PackRow,
}

/// An evicted pack whose index entries are still there.
pub(super) struct Grave {
    pub pack: u64,
    pub keys: Vec<ChunkKey>,
}

#[derive(Default)]
pub(super) struct State {
    pub packs: BTreeMap<u64, Pack>,
    pub open: Option<OpenPack>,
    pub next_pack: u64,
    /// Bytes of the closed packs.
    pub closed_bytes: u64,
    pub chunks: u64,
    /// Records that lookups must find although the index does not have them yet; with their ticket.
    pub pending: HashMap<ChunkKey, (Location, u64)>,
    /// Records found bad while they were on their way into the index, which they still reach.
    pub bad: HashSet<(u64, u32)>,
    pub queue: Vec<(ChunkKey, Location)>,
    pub queue_bytes: u64,
    pub queue_since: Option<Instant>,
    /// Handed to the committer and not done.
    pub committing_bytes: u64,
    pub dirty: Vec<Dirty>,
    pub directory_dirty: bool,
    pub graves: Vec<Grave>,
    /// Number of the last record appended.
    pub sequence: u64,
    pub pins: BTreeMap<u64, usize>,
    pub failed: Option<String>,
    pub stopping: bool,
    pub evicted: u64,
    /// Where the next sweep begins.
    pub hand: u64,
}

/// Making room may have to wait until records that fill it are committed.
pub(super) enum Room {
    Made,
    AfterCommit,
}

impl State {
    /// Marks the pack of a record that is already there; false where that pack is gone or the record bad.
    pub fn touch(&mut self, at: &Location) -> bool {
        let now = self.open.as_ref().map_or(self.next_pack, |open| open.number);
        if self.bad.contains(&(at.pack, at.offset)) {
            return false;
        }
        let Some(found) = self.packs.get_mut(&at.pack) else { return false };
        (found.hit, found.touched) = (true, now);
        true
    }

    /// True where the open pack takes one more record of that length and its footer.
    pub fn fits(&self, record_len: usize, settings: &Settings) -> bool {
        self.open.as_ref().is_some_and(|open| {
            let end =
                u64::from(open.offset) + record_len as u64 + format::footer_bytes(open.entries.len() + 1);
            end <= settings.pack_bytes && open.entries.len() < settings.records_max
        })
    }

    /// True where one more record fits without evicting content that has a record of being overwritten.
    pub fn has_cold_room(&self, record_len: usize, settings: &Settings, files: &Files) -> bool {
        let opened = if self.open.is_some() { settings.pack_bytes } else { 0 };
        let open = self.open.as_ref().map(|open| open.number);
        let cold = |(number, pack): (&u64, &Pack)| Some(*number) != open && !pack.is_hot();
        self.fits(record_len, settings)
            || (self.closed_bytes + opened + settings.pack_bytes <= settings.size_bytes
                && files.free().is_none_or(|free| free >= settings.reserve_bytes + settings.pack_bytes))
            || self.packs.iter().any(cold)
    }

    /// The open pack's newest record is of content that replaced other content.
    pub fn mark_hot(&mut self) {
        let open = self.open.as_ref().map(|open| open.number);
        if let Some(pack) = open.and_then(|number| self.packs.get_mut(&number)) {
            pack.hot += 1;
        }
    }

    /// Writes a record behind the others of the open pack; its ticket. The caller has checked `fits`.
    pub fn write(&mut self, id: ChunkId, tag: DomainTag, record: &[u8]) -> io::Result<u64> {
        let Some(open) = self.open.as_mut() else { return Err(io::Error::other("no pack is open")) };
        open.file.write_all_at(record, u64::from(open.offset))?;
        let plain_len = record.len() as u32 - RECORD_HEADER_BYTES;
        let entry = Entry { id, tag, offset: open.offset, stored_len: plain_len, plain_len };
        open.offset += record.len() as u32;
        open.entries.push(entry);
        self.sequence += 1;
        self.chunks += 1;
        let location = Location::of(open.number, &entry);
        if let Some(pack) = self.packs.get_mut(&open.number) {
            pack.bytes = u64::from(open.offset);
            pack.records += 1;
            pack.uncommitted += 1;
        }
        self.pending.insert(entry.key(), (location, self.sequence));
        self.queue.push((entry.key(), location));
        self.queue_bytes += record.len() as u64;
        self.queue_since.get_or_insert_with(Instant::now);
        Ok(self.sequence)
    }

    /// Closes the open pack and opens the next one, evicting where that needs room.
    pub fn roll(&mut self, settings: &Settings, files: &Files) -> Result<Room, CacheError> {
        self.close(files);
        if let Room::AfterCommit = self.make_room(settings.pack_bytes, settings, files)? {
            return Ok(Room::AfterCommit);
        }
        let number = self.next_pack;
        let path = files.path(number);
        let file = create(&path, number, settings.pack_bytes).map_err(|source| CacheError::Io {
            what: "create the pack",
            path,
            source,
        })?;
        self.next_pack += 1;
        self.adopt(number, Arc::new(file), PACK_HEADER_BYTES, Vec::new());
        self.directory_dirty = true;
        Ok(Room::Made)
    }

    /// Makes a pack the open one.
    pub fn adopt(&mut self, number: u64, file: Arc<File>, offset: u32, entries: Vec<Entry>) {
        let (bytes, records) = (u64::from(offset), entries.len() as u32);
        self.chunks += u64::from(records);
        self.packs.insert(number, Pack { bytes, records, hit: false, hot: 0, touched: 0, uncommitted: 0 });
        self.open = Some(OpenPack { number, file, offset, entries });
    }

    /// Enters a closed pack that was found on disk.
    pub fn add_closed(&mut self, number: u64, bytes: u64, records: u32) {
        self.closed_bytes += bytes;
        self.chunks += u64::from(records);
        self.packs.insert(number, Pack { bytes, records, hit: false, hot: 0, touched: 0, uncommitted: 0 });
    }

    fn close(&mut self, files: &Files) {
        let Some(open) = self.open.take() else { return };
        let (end, records) = (open.offset, open.entries.len() as u32);
        let footer = format::encode_footer(open.number, end, &open.entries);
        let file_len = u64::from(end) + footer.len() as u64;
        let written =
            open.file.write_all_at(&footer, u64::from(end)).and_then(|()| open.file.set_len(file_len));
        if let Err(error) = &written {
            // Costs the shortcut only: a pack without a footer is read record by record.
            tracing::warn!(pack = open.number, %error, "cannot write the footer of a cache pack");
        }
        let file_len = if written.is_ok() { file_len } else { u64::from(end) };
        if let Some(pack) = self.packs.get_mut(&open.number) {
            pack.bytes = file_len;
            self.closed_bytes += file_len;
        }
        files.footers().insert(open.number, &open.entries);
        let row = PackRow { closed: written.is_ok(), indexed_len: end, file_len: file_len as u32, records };
        self.dirty.push(Dirty { number: open.number, file: open.file, row });
    }

    /// Evicts until `extra` more bytes respect both the size and the reserve of the file system.
    pub fn make_room(&mut self, extra: u64, settings: &Settings, files: &Files) -> Result<Room, CacheError> {
        let open_bytes = if self.open.is_some() { settings.pack_bytes } else { 0 };
        let reserved = extra + open_bytes;
        let mut short = (self.closed_bytes + reserved).saturating_sub(settings.size_bytes);
        let free = files.free();
        if let Some(free) = free {
            short = short.max((settings.reserve_bytes + extra).saturating_sub(free));
        }
        while short > 0 {
            let Some(victim) = self.choose() else {
                if self.packs.values().any(|pack| pack.uncommitted > 0) {
                    return Ok(Room::AfterCommit);
                }
                return Err(CacheError::NoSpace {
                    dir: files.dir.clone(),
                    free: free.unwrap_or(0),
                    reserve: settings.reserve_bytes,
                });
            };
            short = short.saturating_sub(self.evict(victim, files)?);
        }
        Ok(Room::Made)
    }

    /// Second chance: packs hit since the last sweep are passed over once. Packs of content that tends to
    /// be overwritten go after all others: their content serves as a base soon. Pinned packs only
    /// where nothing else is left: the bound on the disk is a promise, what a pin saves is bandwidth.
    fn choose(&mut self) -> Option<u64> {
        let open = self.open.as_ref().map(|open| open.number);
        let floor = self.pins.keys().next().copied().unwrap_or(u64::MAX);
        for round in 0..4 {
            let halves = [
                (Bound::Included(self.hand), Bound::Unbounded),
                (Bound::Unbounded, Bound::Excluded(self.hand)),
            ];
            for half in halves {
                for (number, pack) in self.packs.range_mut(half) {
                    let pinned = *number >= floor || pack.touched >= floor;
                    let passed = (pinned && round < 3) || (pack.is_hot() && round < 2);
                    if Some(*number) == open || pack.uncommitted > 0 || passed {
                        continue;
                    }
                    if round == 0 && std::mem::take(&mut pack.hit) {
                        continue;
                    }
                    if pinned {
                        tracing::warn!(
                            pack = number,
                            "the cache is full of packs that sessions hold: evicting one; raise cache.size"
                        );
                    }
                    self.hand = number + 1;
                    return Some(*number);
                }
            }
        }
        None
    }

    /// Removes a closed pack's file; the bytes that gave back.
    fn evict(&mut self, number: u64, files: &Files) -> Result<u64, CacheError> {
        let keys = files.keys_of(number);
        files.forget(number);
        let path = files.path(number);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(CacheError::Io { what: "remove the pack", path, source });
            }
            _ => {}
        }
        self.evicted += 1;
        Ok(self.bury(number, keys))
    }

    /// Takes a pack out of the living; its index entries go later. Bytes it had.
    pub fn bury(&mut self, number: u64, keys: Vec<ChunkKey>) -> u64 {
        let Some(pack) = self.packs.remove(&number) else { return 0 };
        self.chunks = self.chunks.saturating_sub(u64::from(pack.records));
        if self.open.as_ref().is_some_and(|open| open.number == number) {
            self.open = None;
        } else {
            self.closed_bytes = self.closed_bytes.saturating_sub(pack.bytes);
        }
        if pack.uncommitted > 0 {
            self.pending.retain(|_, (location, _)| location.pack != number);
        }
        self.bad.retain(|(pack, _)| *pack != number);
        self.graves.push(Grave { pack: number, keys });
        pack.bytes
    }

    pub fn used_bytes(&self) -> u64 {
        self.closed_bytes + self.open.as_ref().map_or(0, |open| u64::from(open.offset))
    }
}

fn create(path: &Path, number: u64, pack_bytes: u64) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?; // The directory may have vanished at run time.
    }
    let file = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let made = preallocate(&file, pack_bytes)
        .and_then(|()| file.write_all_at(&format::encode_pack_header(number), 0));
    if made.is_err() {
        let _ = std::fs::remove_file(path);
    }
    made.map(|()| file)
}

/// Takes a pack's space now, so that a full file system shows here and not in a failing fsync.
pub(super) fn preallocate(file: &File, pack_bytes: u64) -> io::Result<()> {
    use rustix::io::Errno;
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, pack_bytes) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
