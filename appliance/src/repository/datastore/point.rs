//! A sealed restore point: what it is, its manifests, reading its disks.
//!
//! Owns its mutable state (`state.json`: pinned, verified). What cannot be read is listed as damaged and
//! stays where it is. Reading holds a lease, so nothing is removed or rewritten beneath a reader.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vbr_api::{BootTest, Moment, PointDisk, PointState, RestorePoint, VmConfig};

use super::lease::ReadLease;
use super::record::{PointRecord, StateRecord, VERSION};
use super::shared::Shared;
use crate::block::{
    BlockRead, CHUNK_BYTES, ChunkId, DomainKey, DomainTag, Extent, Geometry, PAGE_CHUNKS, PageHash, Root,
    ShortId, is_zero,
};
use crate::repository::manifest::{PageTable, blank_page};
use crate::repository::retention::Pin;
use crate::repository::{PageIds, RepositoryError};

/// How long a reader waits for whoever rewrites the chain.
const LEASE_PATIENCE: Duration = Duration::from_secs(30);

/// A restore point of a replica.
pub struct Point {
    shared: Arc<Shared>,
    id: String,
    unreadable: Option<String>,
    state: Mutex<StateRecord>,
    /// Held by whoever writes it down, instead of the state: a disk that hangs must not hang whoever looks.
    changing: Mutex<()>,
    retiring: AtomicBool,
}

impl Point {
    /// Reads a point's state; its record was read before, or why it could not be.
    pub(super) fn new(shared: Arc<Shared>, id: String, unreadable: Option<String>) -> Self {
        let path = shared.point_dir(&id).join("state.json");
        let state: Option<StateRecord> = shared.core.root.read_record(&path).ok();
        let state = state.unwrap_or(StateRecord { version: VERSION, ..StateRecord::default() });
        let (state, changing, retiring) = (Mutex::new(state), Mutex::new(()), AtomicBool::new(false));
        Self { shared, id, unreadable, state, changing, retiring }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Unique over all replicas and points: what indexes mark it by.
    pub fn key(&self) -> Vec<u8> {
        [&self.shared.key[..], self.id.as_bytes()].concat()
    }

    /// Why it cannot be read, if so.
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    /// True where it can serve as a base, be read and be started from.
    pub fn is_good(&self) -> bool {
        self.unreadable.is_none() && !self.is_retiring() && self.state().verified_ok != Some(false)
    }

    /// The session that sealed it; empty where that cannot be read.
    pub fn session(&self) -> String {
        self.record().map(|record| record.session.clone()).unwrap_or_default()
    }

    /// Exact length and root of each disk.
    pub fn disks(&self) -> Result<Vec<(u64, Root)>, RepositoryError> {
        self.record()?.disks.iter().map(|disk| Ok((disk.disk_len, parse_root(&disk.root)?))).collect()
    }

    /// Path of each disk at the source.
    pub fn source_paths(&self) -> Result<Vec<String>, RepositoryError> {
        Ok(self.record()?.disks.iter().map(|disk| disk.source_path.clone()).collect())
    }

    /// As the management API shows it.
    pub fn meta(&self) -> RestorePoint {
        let state = self.state().clone();
        let record = self.record().ok();
        let pinned = self.is_pinned();
        let shown = match (self.is_retiring(), &self.unreadable, state.verified_ok, pinned) {
            (true, ..) => PointState::Retiring,
            (_, Some(_), ..) | (_, _, Some(false), _) => PointState::Damaged,
            (_, _, _, true) => PointState::Pinned,
            _ => PointState::Sealed,
        };
        let by_id = moment_of(&self.id).unwrap_or(Moment::UNIX_EPOCH);
        RestorePoint {
            id: self.id.clone(),
            replica: self.shared.name.clone(),
            site: self.shared.site.clone(),
            session: self.session(),
            state: shown,
            snapshot_at: record.as_ref().map_or(by_id, |record| record.snapshot_at),
            sealed_at: record.as_ref().map_or(by_id, |record| record.sealed_at),
            base: record.as_ref().and_then(|record| record.base.clone()),
            consistent: record.as_ref().is_some_and(|record| record.consistent),
            disks: record.as_ref().map(|record| disks_shown(record)).unwrap_or_default(),
            changed_bytes: record.as_ref().map_or(0, |record| record.changed_bytes),
            verified_at: state.verified_at,
            verified_ok: state.verified_ok,
            booted_at: state.booted_at,
            booted_ok: state.booted_ok,
            pinned_until: state.pinned_until.filter(|_| pinned),
            kept_because: Vec::new(),
            retires_next: false,
            vm: None,
            vm_changes: Vec::new(),
        }
    }

    /// The VM as it was then, where its host said.
    pub fn vm(&self) -> Option<VmConfig> {
        self.record().ok()?.vm.clone()
    }

    /// The page table of a disk.
    pub fn table(&self, disk: u16) -> Result<PageTable, RepositoryError> {
        Ok(self.shared.manifest(&self.id, disk)?.table())
    }

    /// A disk's exact length, as its manifest says.
    pub(super) fn table_len(&self, disk: u16) -> Result<u64, RepositoryError> {
        Ok(self.shared.manifest(&self.id, disk)?.disk_len)
    }

    /// The ids of a page, verified; none where it is all zero.
    pub fn page(&self, disk: u16, page: u64) -> Result<Option<PageIds>, RepositoryError> {
        let manifest = self.shared.manifest(&self.id, disk)?;
        Ok(self.shared.page(&manifest, page)?.map(|ids| PageIds::clone(&ids)))
    }

    /// Reads a page of the manifest from the disk, not from memory, and holds it against its hash.
    pub fn check_page(&self, disk: u16, page: u64) -> Result<(), RepositoryError> {
        let manifest = self.shared.manifest(&self.id, disk)?;
        let Some(entry) = manifest.entries.get(&page) else { return Ok(()) };
        self.shared.load_page(&manifest, entry).map(drop)
    }

    /// Makes a page of the manifest anew from what the disk holds, and writes it where it fits its hash.
    pub fn mend_page(&self, disk: u16, page: u64, key: &DomainKey) -> Result<(), RepositoryError> {
        let manifest = self.shared.manifest(&self.id, disk)?;
        let Some(entry) = manifest.entries.get(&page) else { return Ok(()) };
        let (reader, geometry) = (self.open_disk(disk)?, Geometry { disk_len: manifest.disk_len });
        let (mut ids, first) = (blank_page(), page * PAGE_CHUNKS as u64);
        let mut data = vec![0; CHUNK_BYTES];
        for (n, id) in ids.iter_mut().enumerate().take(geometry.page_chunks(page)) {
            let data = &mut data[..geometry.chunk_len(first + n as u64)];
            let read = reader.read_at(geometry.chunk_range(first + n as u64).start, data);
            read.map_err(|e| RepositoryError::io(format!("disk {disk} of {}", self.title()), e))?;
            if !is_zero(data) {
                *id = key.chunk_id(data);
            }
        }
        self.shared.mend_page(&manifest, entry, &ids)
    }

    /// Opens a disk for reading; the point is held until the reader is dropped.
    pub fn open_disk(&self, disk: u16) -> Result<Arc<dyn BlockRead>, RepositoryError> {
        self.open_within(disk, LEASE_PATIENCE)
    }

    /// Keeps the point from being removed or rewritten.
    pub fn lease(&self) -> Result<ReadLease, RepositoryError> {
        self.lease_within(LEASE_PATIENCE)
    }

    /// Notes the result of a verification. Durable when this returns.
    pub fn mark_verified(&self, ok: bool, at: Moment) -> Result<(), RepositoryError> {
        self.mark_mended(ok, 0, at)
    }

    /// The same of one that mended chunks.
    pub fn mark_mended(&self, ok: bool, mended_chunks: u64, at: Moment) -> Result<(), RepositoryError> {
        self.change_state(|state| {
            (state.verified_at, state.verified_ok) = (Some(at), Some(ok));
            state.mended_chunks = mended_chunks;
        })
    }

    /// Notes the result of a test by starting it. Durable when this returns.
    pub fn note_boot_test(&self, test: &BootTest) -> Result<(), RepositoryError> {
        self.change_state(|state| (state.booted_at, state.booted_ok) = (Some(test.at), Some(test.ok)))
    }

    /// Where the picture of such a test lies.
    pub fn boot_picture(&self) -> PathBuf {
        self.shared.point_dir(&self.id).join("boot.png")
    }

    /// Chunks that its last verification found damaged, and mended.
    pub fn mended_chunks(&self) -> u64 {
        self.state().mended_chunks
    }

    /// What was mended once needs no attention any more. Durable when this returns.
    pub fn forget_mended(&self) -> Result<(), RepositoryError> {
        self.change_state(|state| state.mended_chunks = 0)
    }

    /// Pins it: nobody removes it until the pin lapses or is taken off. Durable when this returns.
    pub fn set_pin(&self, until: Option<Moment>) -> Result<(), RepositoryError> {
        let pin = Pin::new(until, self.shared.core.clocks());
        self.change_state(|state| {
            (state.pinned, state.pinned_until) = (true, pin.until);
            state.pinned_until_observed_ms = pin.observed_until_ms;
        })
    }

    /// Takes the pin off. Durable when this returns.
    pub fn unpin(&self) -> Result<(), RepositoryError> {
        self.change_state(|state| (state.pinned, state.pinned_until) = (false, None))
    }

    /// True while an operator's pin holds it.
    pub fn is_pinned(&self) -> bool {
        self.pin().is_some_and(|pin| pin.holds(self.shared.core.clocks()))
    }

    /// An operator's pin, which may have lapsed.
    pub(super) fn pin(&self) -> Option<Pin> {
        let state = self.state();
        let pin = Pin { until: state.pinned_until, observed_until_ms: state.pinned_until_observed_ms };
        state.pinned.then_some(pin)
    }

    /// Bytes written to it and to retired points that it still holds some of.
    pub(super) fn written_bytes(&self) -> u64 {
        let own = self.record().map_or(0, |record| record.changed_bytes);
        own.saturating_add(self.state().inherited_bytes)
    }

    pub(super) fn inherit(&self, bytes: u64) -> Result<(), RepositoryError> {
        self.change_state(|state| state.inherited_bytes = state.inherited_bytes.saturating_add(bytes))
    }

    pub(super) fn is_retiring(&self) -> bool {
        self.retiring.load(Ordering::Acquire)
    }

    pub(super) fn set_retiring(&self) {
        self.retiring.store(true, Ordering::Release);
    }

    pub(super) fn record(&self) -> Result<Arc<PointRecord>, RepositoryError> {
        match &self.unreadable {
            None => self.shared.record(&self.id),
            Some(why) => Err(RepositoryError::damaged(self.title(), why.clone())),
        }
    }

    pub(crate) fn title(&self) -> String {
        format!("restore point {}@{}", self.shared.title(), self.id)
    }

    pub(crate) fn domain_tag(&self) -> DomainTag {
        self.shared.domain_tag
    }

    pub(super) fn bad(&self) -> bool {
        self.state().verified_ok == Some(false)
    }

    /// The chunk at a place, read through a cached reader; none where it is not what `id` says.
    pub(super) fn read_chunk(&self, disk: u16, chunk: u64, id: ChunkId, key: &DomainKey) -> Option<Vec<u8>> {
        let disk_len = self.shared.manifest(&self.id, disk).ok()?.disk_len;
        let geometry = Geometry { disk_len };
        let place = (self.shared.key, self.id.clone(), disk);
        let caches = &self.shared.core.caches;
        let reader = caches.reader(place.clone(), || self.open_within(disk, Duration::ZERO)).ok()?;
        let mut data = vec![0; geometry.chunk_len(chunk)];
        if reader.read_at(geometry.chunk_range(chunk).start, &mut data).is_err() {
            caches.drop_reader(&place);
            return None;
        }
        (key.chunk_id(&data) == id).then_some(data)
    }

    /// The full id at a place, if it is this one.
    pub(super) fn id_at(&self, disk: u16, chunk: u64, id: ShortId) -> Option<ChunkId> {
        let manifest = self.shared.manifest(&self.id, disk).ok()?;
        let ids = self.shared.page(&manifest, chunk / PAGE_CHUNKS as u64).ok()??;
        let full = ids.get((chunk % PAGE_CHUNKS as u64) as usize)?;
        (full.short() == id && !full.is_zero()).then_some(*full)
    }

    /// The hash of a page where it has data.
    pub(super) fn page_hash(&self, disk: u16, page: u64) -> Option<PageHash> {
        self.shared.manifest(&self.id, disk).ok()?.entries.get(&page).map(|entry| entry.hash)
    }

    fn open_within(&self, disk: u16, patience: Duration) -> Result<Arc<dyn BlockRead>, RepositoryError> {
        self.record()?;
        let lease = self.lease_within(patience)?;
        let image = self.shared.open_image(&self.id, disk)?;
        Ok(Arc::new(LeasedDisk { image, _lease: lease }))
    }

    fn lease_within(&self, patience: Duration) -> Result<ReadLease, RepositoryError> {
        let gone = || RepositoryError::Busy { what: self.title(), why: "it is being removed".into() };
        if self.is_retiring() {
            return Err(gone());
        }
        let lease = self.shared.leases.shared(&self.id, patience).map_err(|_| RepositoryError::Busy {
            what: self.title(),
            why: "a restore point below it is being removed".into(),
        })?;
        if self.is_retiring() { Err(gone()) } else { Ok(lease) }
    }

    fn change_state(&self, change: impl FnOnce(&mut StateRecord)) -> Result<(), RepositoryError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = self.state().clone();
        change(&mut new);
        let path = self.shared.point_dir(&self.id).join("state.json");
        self.shared.core.root.write_record(&path, &new)?;
        *self.state() = new;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, StateRecord> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn disks_shown(record: &PointRecord) -> Vec<PointDisk> {
    let shown = record.disks.iter().enumerate().map(|(n, disk)| PointDisk {
        index: n as u16,
        source_path: disk.source_path.clone(),
        virtual_bytes: disk.disk_len,
        root: disk.root.clone(),
        file: disk.file.clone(),
        format: disk.image.as_str().to_string(),
        volumes: disk.volumes.clone(),
    });
    shown.collect()
}

/// A root from its 64 hexadecimal digits.
pub(super) fn parse_root(hex: &str) -> Result<Root, RepositoryError> {
    let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.map(Root).ok_or_else(|| RepositoryError::damaged("a root", "it is not 64 hexadecimal digits"))
}

/// An id for a point: the moment of its seal and four digits that tell apart what shares it.
pub(super) fn point_id(at: Moment, salt: u16) -> String {
    let utc = at.to_zoned(jiff::tz::TimeZone::UTC);
    format!("{}-{salt:04x}", utc.strftime("%Y%m%dt%H%M%Sz"))
}

/// The moment in a point's id.
fn moment_of(id: &str) -> Option<Moment> {
    let stamp = id.split_once('-')?.0;
    let time = jiff::civil::DateTime::strptime("%Y%m%dt%H%M%Sz", stamp).ok()?;
    Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

struct LeasedDisk {
    // Closed before the lease is given back.
    image: Box<dyn BlockRead>,
    _lease: ReadLease,
}

impl BlockRead for LeasedDisk {
    fn len(&self) -> u64 {
        self.image.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.image.read_at(offset, buf)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        self.image.next_data(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names_and_carry_their_moment() {
        let at: Moment = "2026-11-22T19:05:01Z".parse().unwrap();
        let id = point_id(at, 0x3fa2);
        assert_eq!(id, "20261122t190501z-3fa2");
        assert!(vbr_api::name_is_valid(&id));
        assert_eq!(moment_of(&id), Some(at));
        assert_eq!(moment_of("latest"), None);
    }
}
