//! What one session at the source knows: page tables, open offers, what was built, what to send.
//!
//! Shared by the scanners, the batcher and the receiver of one attempt; a mutex held for moments, no IO
//! under it. Survives a cut link: the next attempt of the same session goes on with it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::ahead::{AheadPage, Answer};
use crate::block::{ChunkId, PAGE_CHUNKS, PageHash};
use crate::repository::manifest::PageTable;
use crate::repository::source::Built;

/// A page of ids.
pub type Ids = Box<[ChunkId; PAGE_CHUNKS]>;

/// Disk and page.
pub type PageKey = (u16, u64);

/// Room for a page and its chunks; none for one that is open a second time.
pub type OpenRoom = Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>;

/// A page that was offered and is not on its way entirely.
pub struct OpenOffer {
    /// Ids as read.
    pub ids: Ids,
    /// What was offered, and what of it goes ahead of the NEED.
    pub ahead: AheadPage,
    /// Chunks still to be put into a batch; none before the NEED came.
    pub remaining: Option<usize>,
    /// Room in the bounds of open pages and open chunks, held until the page is settled and answered.
    pub room: OpenRoom,
}

/// Where a NEED leads.
pub struct Needed {
    /// Nothing of the page is still to be sent: settle it with these ids, then close it.
    pub settle: Option<Ids>,
    /// What it comes to for what was sent ahead, and for what is to be sent now.
    pub answer: Answer,
}

/// A chunk to send.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Disk number.
    pub disk: u16,
    /// Page number.
    pub page: u64,
    /// Position in the page.
    pub position: usize,
    /// A reference will not do: the target asked again.
    pub forced: bool,
    /// The target has not asked for it yet.
    pub ahead: bool,
}

struct Inner {
    tables: Vec<PageTable>,
    open: HashMap<PageKey, OpenOffer>,
    /// Pages that are on their way entirely although their NEED has not come. They keep their room until then.
    early: HashMap<PageKey, (AheadPage, OpenRoom)>,
    built: Built,
    scanned: Vec<u64>,
    scans_left: usize,
    sealing: bool,
}

/// See the module.
pub struct SourceState {
    inner: Mutex<Inner>,
    /// Rung when nothing may be left to send.
    pub quiet: Notify,
}

impl SourceState {
    /// Begins with the base's tables at the disks' new lengths, and what an earlier run had built.
    pub fn new(tables: Vec<PageTable>, built: Built) -> Self {
        let disks = tables.len();
        Self {
            inner: Mutex::new(Inner {
                tables,
                open: HashMap::new(),
                early: HashMap::new(),
                built,
                scanned: vec![0; disks],
                scans_left: 0,
                sealing: false,
            }),
            quiet: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new attempt begins: offers that were open are forgotten (they are offered again).
    pub fn begin_attempt(&self, disks: usize) {
        let mut inner = self.lock();
        inner.open.clear();
        inner.early.clear();
        inner.scans_left = disks;
        inner.sealing = false;
    }

    /// What an earlier attempt settled for a page, if it did: its hash, or none for all zero.
    pub fn built(&self, key: PageKey) -> Option<Option<PageHash>> {
        self.lock().built.get(&key).copied()
    }

    /// Everything settled so far, for the next attempt.
    pub fn all_built(&self) -> Built {
        self.lock().built.clone()
    }

    /// A page is as this says; true where it was not settled before.
    pub fn settle(&self, key: PageKey, hash: Option<PageHash>) -> bool {
        let mut inner = self.lock();
        if let Some(table) = inner.tables.get_mut(key.0 as usize) {
            match hash {
                Some(hash) => table.set(key.1, hash),
                None => table.remove(key.1),
            }
        }
        inner.built.insert(key, hash).is_none()
    }

    /// The page's hash in the table being built.
    pub fn hash(&self, key: PageKey) -> Option<PageHash> {
        self.lock().tables.get(key.0 as usize).and_then(|table| table.get(key.1).copied())
    }

    /// Opens an offer before it is sent.
    pub fn open(&self, key: PageKey, offer: OpenOffer) {
        self.lock().open.insert(key, offer);
    }

    /// The first NEED of a page came. A page of which nothing is left to be sent has to be settled and then
    /// [closed](Self::close). `None`: the target asks again.
    pub fn need(&self, key: PageKey, needed: &[usize]) -> Option<Needed> {
        let mut inner = self.lock();
        if let Some((mut page, _room)) = inner.early.remove(&key) {
            // Everything that was offered has been sent, so that only what was not offered could be missing.
            return page.covers(needed).then(|| Needed { settle: None, answer: page.answer(needed) });
        }
        let offer = inner.open.get_mut(&key).filter(|offer| offer.remaining.is_none())?;
        let answer = offer.ahead.answer(needed);
        offer.remaining = Some(answer.remaining);
        offer.ahead.take_torn(&answer, &mut offer.ids);
        let settle = (answer.remaining == 0).then(|| offer.ids.clone());
        if settle.is_none() && answer.missing.is_empty() {
            self.quiet.notify_one(); // What is queued may be all there will be.
        }
        Some(Needed { settle, answer })
    }

    /// A page is settled and its room free again.
    pub fn close(&self, key: PageKey) {
        self.lock().open.remove(&key);
        self.quiet.notify_one();
    }

    /// True where a page is open and its NEED was answered already in part.
    pub fn add_need(&self, key: PageKey, count: usize) -> bool {
        match self.lock().open.get_mut(&key).map(|offer| &mut offer.remaining) {
            Some(Some(remaining)) => {
                *remaining += count;
                true
            }
            _ => false,
        }
    }

    /// The id at a position of an open page.
    pub fn open_id(&self, key: PageKey, position: usize) -> Option<ChunkId> {
        self.lock().open.get(&key)?.ids.get(position).copied()
    }

    /// False where a chunk that was to go ahead turned out to be at the target: it is not sent.
    pub fn wants(&self, wanted: &Wanted) -> bool {
        let key = (wanted.disk, wanted.page);
        !wanted.ahead || self.lock().open.get(&key).is_some_and(|offer| offer.ahead.waits(wanted.position))
    }

    /// A chunk went into a batch, with this content; gives the page back when it was its last.
    pub fn sent(&self, wanted: &Wanted, id: ChunkId) -> Option<OpenOffer> {
        let mut inner = self.lock();
        let key = (wanted.disk, wanted.page);
        let offer = inner.open.get_mut(&key)?;
        let answered = offer.remaining.is_some();
        if wanted.ahead && !offer.ahead.sent(wanted.position, id, answered, &offer.ids) {
            return None; // It was not needed, and is with the page's known chunks.
        }
        let done = match &mut offer.remaining {
            Some(remaining) => {
                offer.ids[wanted.position] = id;
                *remaining = remaining.saturating_sub(1);
                *remaining == 0
            }
            None => offer.ahead.is_complete(),
        };
        if !done {
            return None;
        }
        let mut offer = inner.open.remove(&key)?;
        if !answered {
            inner.early.insert(key, (offer.ahead.clone(), offer.room.take()));
        }
        Some(offer)
    }

    /// A disk was scanned up to this page.
    pub fn scanned(&self, disk: u16, page: u64) {
        if let Some(scanned) = self.lock().scanned.get_mut(disk as usize) {
            *scanned = page;
        }
    }

    /// A disk was scanned to its end.
    pub fn scan_done(&self, disk: u16, pages: u64) {
        self.scanned(disk, pages);
        let mut inner = self.lock();
        inner.scans_left = inner.scans_left.saturating_sub(1);
        drop(inner);
        self.quiet.notify_one();
    }

    /// First page of each disk that is neither scanned nor on its way.
    pub fn progress(&self) -> Vec<u64> {
        let inner = self.lock();
        let mut progress = inner.scanned.clone();
        for (disk, page) in inner.open.keys() {
            if let Some(first) = progress.get_mut(*disk as usize) {
                *first = (*first).min(*page);
            }
        }
        progress
    }

    /// True where no scan goes on and every offer was answered, or is on its way without an answer.
    pub fn nothing_outstanding(&self) -> bool {
        let inner = self.lock();
        let known = |offer: &OpenOffer| offer.remaining.is_some() || offer.ahead.is_all();
        inner.scans_left == 0 && inner.open.values().all(known)
    }

    /// True where everything was scanned, every needed chunk is in a batch and no seal was asked for.
    pub fn may_seal(&self) -> bool {
        let inner = self.lock();
        !inner.sealing && inner.scans_left == 0 && inner.open.is_empty()
    }

    /// The seal is asked for now.
    pub fn begin_seal(&self) {
        self.lock().sealing = true;
    }

    /// The tables as built.
    pub fn tables(&self) -> Vec<PageTable> {
        self.lock().tables.clone()
    }
}

/// Ids of literals sent in this attempt, oldest forgotten first.
#[derive(Default)]
pub struct SentIds {
    known: HashSet<crate::block::ShortId>,
    order: VecDeque<crate::block::ShortId>,
}

impl SentIds {
    /// True where the id was sent before; remembers it otherwise.
    pub fn seen(&mut self, id: crate::block::ShortId) -> bool {
        if !self.known.insert(id) {
            return true;
        }
        self.order.push_back(id);
        if self.order.len() > crate::limits::SENT_IDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        false
    }
}

#[cfg(test)]
#[path = "source_state_tests.rs"]
mod tests;
