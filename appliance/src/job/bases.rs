//! Bases at the source: from a place that an anchor names to verified bytes that the target has too.
//!
//! One object an attempt. Three kinds of base: a chunk of the base restore point (both sites named it when
//! the session opened), a chunk of the point being built that is at the target by now, and a chunk of
//! another disk, which is offered in a probe first. The bytes come from the snapshot where the place still
//! holds them, from another job's disk as it lies there, else from the source's global cache; whatever it
//! is, its id is computed before it is used.
//! Bounds: [`BASE_PAGES_IN_MEMORY_MAX`] pages in memory, the numbers of [`HELD_BASES_MAX`] bases,
//! [`FOREIGN_JOBS_MAX`] manifests of other jobs, and a bit for each chunk sent; [`BASE_CHUNKS_MAX`] chunks
//! for all sessions together.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use super::replicate::Replication;
use super::source_state::PageKey;
use crate::accelerator::anchors::{AnchorStore, DiskKey, ImageState, SessionImages};
use crate::accelerator::global_cache::GlobalCache;
use crate::block::{BlockRead, ChunkId, Geometry, PAGE_CHUNKS, PageHash, ShortId};
use crate::block_file::RawFile;
use crate::limits::{BASE_CHUNKS_MAX, BASE_PAGES_IN_MEMORY_MAX, BASES_SOUGHT_MAX, HELD_BASES_MAX};
use crate::repository::manifest::PageIds;
use crate::repository::source::StoredManifest;
use crate::wire::message::PrefixFrom;

/// Manifests of other jobs that are kept at hand.
const FOREIGN_JOBS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);

/// A base that was found: whose it is, and its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// As the batch's recipe names it; none for a chunk that has to be confirmed first.
    pub from: Option<PrefixFrom>,
    /// Of the chunk.
    pub id: ChunkId,
}

enum Whose {
    Base(u16),
    Built(u16),
    Foreign(DiskKey),
}

/// What the target said of an offered base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Confirmed {
    Asked,
    Yes,
    No,
}

#[derive(Default)]
struct HeldBases {
    numbers: HashMap<ShortId, (u32, Confirmed)>,
    order: VecDeque<ShortId>,
    next: u32,
}

/// Verified chunks that the next batch may use too, of all sessions: a batch takes what it needs of them
/// while it is gathered, and few are gathered at once.
pub struct BaseChunks(Mutex<LruCache<ShortId, Arc<[u8]>>>);

impl Default for BaseChunks {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(at_most(BASE_CHUNKS_MAX))))
    }
}

struct Memory {
    pages: LruCache<(String, u16, PageHash), Arc<PageIds>>,
    manifests: LruCache<String, Option<Arc<StoredManifest>>>,
    disks: LruCache<(String, u16), Option<Arc<RawFile>>>,
}

/// See the module.
pub struct Bases {
    /// Where content was seen.
    pub anchors: Arc<AnchorStore>,
    cache: Arc<GlobalCache>,
    chunks: Arc<BaseChunks>,
    images: Vec<Option<SessionImages>>,
    held: Mutex<HeldBases>,
    memory: Mutex<Memory>,
    /// Chunks whose bytes can be had here, or not.
    sought: Mutex<LruCache<ShortId, bool>>,
    built: Mutex<Built>,
    /// Something was sent whose anchors nobody looked for: the line was too fast for that.
    unlearned: AtomicBool,
}

/// Chunks of the point being built that the target has.
struct Built {
    /// By page; those before the cursors are not listed.
    pages: HashMap<PageKey, PageBits>,
    /// First page of each disk that is not durable at the target.
    cursors: Vec<u64>,
}

/// A bit for each chunk of a page.
type PageBits = [u64; PAGE_CHUNKS / 64];

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn at_most(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN)
}

impl Bases {
    /// The bases of one attempt of a session over `disks` disks.
    pub fn new(
        anchors: Arc<AnchorStore>,
        cache: Arc<GlobalCache>,
        chunks: Arc<BaseChunks>,
        (job, session): (&str, &str),
        disks: usize,
    ) -> Self {
        let image = |disk: usize| anchors.begin(&DiskKey { job: job.into(), disk: disk as u16 }, session);
        let images = (0..disks).map(image).collect();
        let memory = Memory {
            pages: LruCache::new(at_most(BASE_PAGES_IN_MEMORY_MAX)),
            manifests: LruCache::new(FOREIGN_JOBS_MAX),
            disks: LruCache::new(FOREIGN_JOBS_MAX),
        };
        Self {
            anchors,
            cache,
            chunks,
            images,
            held: Mutex::default(),
            memory: Mutex::new(memory),
            sought: Mutex::new(LruCache::new(at_most(BASES_SOUGHT_MAX))),
            unlearned: AtomicBool::new(false),
            built: Mutex::new(Built { pages: HashMap::new(), cursors: vec![0; disks] }),
        }
    }

    /// The image that a disk of this session builds.
    pub fn building(&self, disk: u16) -> Option<u16> {
        Some(self.images.get(usize::from(disk))?.as_ref()?.building)
    }

    /// The target has these chunks of the point being built.
    pub fn note_built(&self, key: PageKey, positions: impl IntoIterator<Item = usize>) {
        let mut built = lock(&self.built);
        let bits = built.pages.entry(key).or_insert([0; PAGE_CHUNKS / 64]);
        for position in positions.into_iter().filter(|position| *position < PAGE_CHUNKS) {
            bits[position / 64] |= 1 << (position % 64);
        }
    }

    /// A chunk was sent, with or without a look for its anchors.
    pub fn note_anchors(&self, looked: bool) {
        if !looked {
            self.unlearned.store(true, Ordering::Relaxed);
        }
    }

    /// Everything before these pages is durable at the target.
    pub fn note_cursors(&self, cursors: &[u64]) {
        let mut built = lock(&self.built);
        if built.cursors.as_slice() == cursors || built.cursors.len() != cursors.len() {
            return;
        }
        built.cursors.copy_from_slice(cursors);
        built
            .pages
            .retain(|(disk, page), _| cursors.get(usize::from(*disk)).is_none_or(|cursor| page >= cursor));
    }

    fn is_built(&self, disk: u16, chunk: u64) -> bool {
        let (page, position) = (chunk / PAGE_CHUNKS as u64, (chunk % PAGE_CHUNKS as u64) as usize);
        let built = lock(&self.built);
        built.cursors.get(usize::from(disk)).is_some_and(|cursor| page < *cursor)
            || built
                .pages
                .get(&(disk, page))
                .is_some_and(|bits| bits[position / 64] & (1 << (position % 64)) != 0)
    }

    fn whose(&self, image: u16) -> Option<Whose> {
        for (disk, images) in self.images.iter().enumerate() {
            let Some(images) = images else { continue };
            if images.base == Some(image) {
                return Some(Whose::Base(disk as u16));
            }
            if images.building == image {
                return Some(Whose::Built(disk as u16));
            }
        }
        match self.anchors.image(image)? {
            (disk, ImageState::Sealed) => Some(Whose::Foreign(disk)),
            (_, ImageState::Building(_)) => None, // Another session's, which may never be sealed.
        }
    }

    /// The base at a chunk of an image, if it is one that may serve.
    pub fn find(&self, ctx: &Replication, image: u16, chunk: u64) -> Option<Found> {
        let (page, position) = (chunk / PAGE_CHUNKS as u64, (chunk % PAGE_CHUNKS as u64) as usize);
        let (from, id) = match self.whose(image)? {
            Whose::Base(disk) => {
                let hash = ctx.base_table(disk)?.get(page)?;
                let id = self.page(ctx, &ctx.job, disk, hash)?[position];
                (Some(PrefixFrom::Base { disk, chunk }), id)
            }
            Whose::Built(disk) if self.is_built(disk, chunk) => {
                let id = match ctx.state.open_id((disk, page), position) {
                    Some(id) => id,
                    None => self.page(ctx, &ctx.job, disk, &ctx.state.hash((disk, page))?)?[position],
                };
                (Some(PrefixFrom::Built { disk, chunk }), id)
            }
            Whose::Built(_) => return None,
            Whose::Foreign(key) => {
                let manifest = self.manifest(ctx, &key.job)?;
                let hash = manifest.tables.get(usize::from(key.disk))?.get(page)?;
                let id = self.page(ctx, &key.job, key.disk, hash)?[position];
                let held = lock(&self.held).numbers.get(&id.short()).copied();
                match held {
                    Some((number, Confirmed::Yes)) => (Some(PrefixFrom::Held { number }), id),
                    Some((_, Confirmed::No)) => return None,
                    _ => (None, id),
                }
            }
        };
        (!id.is_zero()).then_some(Found { from, id })
    }

    /// True where a base is another disk's and was not offered yet; offered from now on.
    pub fn offer(&self, id: ShortId) -> bool {
        let mut held = lock(&self.held);
        if held.numbers.contains_key(&id) {
            return false;
        }
        let number = held.next;
        held.next = held.next.wrapping_add(1);
        held.numbers.insert(id, (number, Confirmed::Asked));
        held.order.push_back(id);
        if held.order.len() > HELD_BASES_MAX
            && let Some(oldest) = held.order.pop_front()
        {
            held.numbers.remove(&oldest);
        }
        true
    }

    /// What the target said of offered bases.
    pub fn confirm(&self, answers: impl IntoIterator<Item = (ShortId, bool)>) {
        let mut held = lock(&self.held);
        for (id, yes) in answers {
            if let Some((_, confirmed)) = held.numbers.get_mut(&id) {
                *confirmed = if yes { Confirmed::Yes } else { Confirmed::No };
            }
        }
    }

    fn page(&self, ctx: &Replication, job: &str, disk: u16, hash: &PageHash) -> Option<Arc<PageIds>> {
        let key = (job.to_string(), disk, *hash);
        if let Some(ids) = lock(&self.memory).pages.get(&key) {
            return Some(ids.clone());
        }
        let ids = Arc::new(ctx.repository.page(job, disk, hash).ok()?);
        lock(&self.memory).pages.put(key, ids.clone());
        Some(ids)
    }

    fn manifest(&self, ctx: &Replication, job: &str) -> Option<Arc<StoredManifest>> {
        if let Some(manifest) = lock(&self.memory).manifests.get(job) {
            return manifest.clone();
        }
        let manifest = ctx.repository.load(job).ok().flatten().map(Arc::new);
        lock(&self.memory).manifests.put(job.to_string(), manifest.clone());
        manifest
    }

    /// The bytes of a base, verified; none where this site does not have them any more.
    pub fn bytes(&self, ctx: &Replication, image: u16, chunk: u64, id: &ChunkId) -> Option<Arc<[u8]>> {
        if let Some(data) = lock(&self.chunks.0).get(&id.short()) {
            return Some(data.clone());
        }
        let data = self.read_in_place(ctx, image, chunk, id).or_else(|| {
            let (full, data) = self.cache.get(&ctx.key, id.short())?;
            (full == *id).then_some(data)
        })?;
        let data: Arc<[u8]> = data.into();
        lock(&self.chunks.0).put(id.short(), data.clone());
        Some(data)
    }

    /// Whether those bytes can be had here. Asked once for each: a place that was overwritten does not come back.
    pub fn has(&self, ctx: &Replication, image: u16, chunk: u64, id: &ChunkId) -> bool {
        if let Some(has) = lock(&self.sought).get(&id.short()) {
            return *has;
        }
        let has = lock(&self.chunks.0).contains(&id.short())
            || self.read_in_place(ctx, image, chunk, id).is_some()
            || self.cache.contains_many(ctx.key.tag(), &[id.short()]) == [true];
        lock(&self.sought).put(id.short(), has);
        has
    }

    fn read_in_place(&self, ctx: &Replication, image: u16, chunk: u64, id: &ChunkId) -> Option<Vec<u8>> {
        let disk: Arc<dyn BlockRead> = match self.whose(image)? {
            Whose::Base(disk) | Whose::Built(disk) => ctx.reader(disk).ok()?,
            Whose::Foreign(key) => self.foreign_disk(ctx, &key)?,
        };
        let geometry = Geometry { disk_len: disk.len() };
        let mut data = vec![0; geometry.chunk_len(chunk)];
        disk.read_at(geometry.chunk_range(chunk).start, &mut data).ok()?;
        (ctx.key.chunk_id(&data) == *id).then_some(data)
    }

    /// Another job's disk as it lies there: a VM may be writing to it, so its bytes count only where they
    /// have the id they should have. (A qcow2 file read like this never has.)
    fn foreign_disk(&self, ctx: &Replication, key: &DiskKey) -> Option<Arc<dyn BlockRead>> {
        let at = (key.job.clone(), key.disk);
        if let Some(disk) = lock(&self.memory).disks.get(&at) {
            return disk.clone().map(|disk| disk as Arc<dyn BlockRead>);
        }
        let manifest = self.manifest(ctx, &key.job)?;
        let path = manifest.disk_paths.get(usize::from(key.disk))?;
        let disk = RawFile::open(Path::new(path)).ok().map(Arc::new);
        lock(&self.memory).disks.put(at, disk.clone());
        disk.map(|disk| disk as Arc<dyn BlockRead>)
    }

    /// True where the base had other content at this place.
    pub fn replaces(&self, ctx: &Replication, key: PageKey, position: usize) -> bool {
        let page = || self.page(ctx, &ctx.job, key.0, ctx.base_table(key.0)?.get(key.1)?);
        page().is_some_and(|ids| !ids[position].is_zero())
    }

    /// True where the base had other content at this place, of which nothing is left here.
    pub fn has_lost(&self, ctx: &Replication, key: PageKey, position: usize) -> bool {
        let page = || self.page(ctx, &ctx.job, key.0, ctx.base_table(key.0)?.get(key.1)?);
        let Some(id) = page().map(|ids| ids[position]).filter(|id| !id.is_zero()) else { return false };
        let here = lock(&self.chunks.0).contains(&id.short());
        !here && self.cache.contains_many(ctx.key.tag(), &[id.short()]) != [true]
    }

    /// Keeps a chunk that was sent, for the day it is overwritten. Content that replaced other content has
    /// a record of being overwritten and may push out what has none; the rest fills what room is left.
    pub fn keep_sent(&self, ctx: &Replication, id: ChunkId, data: &[u8], replaced: bool) {
        if let Err(error) = self.cache.keep(ctx.key.tag(), id, data, replaced) {
            tracing::debug!(%error, "a chunk that was sent is not kept for later deltas");
        }
    }

    /// The point is sealed: what it holds is the newest image of its disks. Blocking; reads the pages that
    /// differ from the base.
    pub fn sealed(&self, ctx: &Replication) {
        let mut changed: HashMap<PageKey, PageBits> = HashMap::new();
        for (disk, table) in ctx.state.tables().iter().enumerate() {
            let disk = disk as u16;
            let Some(base) = ctx.base_table(disk) else { continue };
            for (page, old) in base.iter().filter(|(page, old)| table.get(**page) != Some(*old)) {
                let ids = |hash: &PageHash| self.page(ctx, &ctx.job, disk, hash);
                let (old, new) = (ids(old), table.get(*page).and_then(ids));
                let differs = |n: usize| match (&old, &new) {
                    (Some(old), Some(new)) => old[n] != new[n],
                    _ => true,
                };
                let mut bits = [0; PAGE_CHUNKS / 64];
                (0..PAGE_CHUNKS).filter(|n| differs(*n)).for_each(|n| bits[n / 64] |= 1 << (n % 64));
                changed.insert((disk, *page), bits);
            }
        }
        let whole = !self.unlearned.load(Ordering::Relaxed);
        self.anchors.sealed(&ctx.job, &ctx.session, whole, |disk, chunk| {
            let (page, position) = (chunk / PAGE_CHUNKS as u64, (chunk % PAGE_CHUNKS as u64) as usize);
            changed.get(&(disk, page)).is_none_or(|bits| bits[position / 64] & (1 << (position % 64)) == 0)
        });
    }
}
