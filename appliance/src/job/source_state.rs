//! What one session at the source knows: page tables, open offers, what was built, what to send.
//!
//! Shared by the scanners, the batcher and the receiver of one attempt; a mutex held for moments, no IO
//! under it. Survives a cut link: the next attempt of the same session goes on with it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit};

use crate::block::{ChunkId, PAGE_CHUNKS, PageHash};
use crate::repository::manifest::PageTable;
use crate::repository::source::Built;

/// A page of ids.
pub type Ids = Box<[ChunkId; PAGE_CHUNKS]>;

/// Disk and page.
pub type PageKey = (u16, u64);

/// A page that was offered and is not on its way entirely.
pub struct OpenOffer {
    /// Ids as read.
    pub ids: Ids,
    /// Bit for each position that was offered.
    pub offered: [u64; PAGE_CHUNKS / 64],
    /// Chunks still to be put into a batch; none before the NEED came.
    pub remaining: Option<usize>,
    /// Room in the bounds of open pages and open chunks, held until the page is settled.
    #[allow(dead_code)]
    pub room: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

/// Where a NEED leads.
pub enum Needed {
    /// Nothing is to be sent: settle the page, then close it.
    Nothing(Ids),
    /// Something is.
    Some,
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
}

struct Inner {
    tables: Vec<PageTable>,
    open: HashMap<PageKey, OpenOffer>,
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

    /// The NEED of an open page came; a page with nothing to send has to be settled and then
    /// [closed](Self::close). With it the positions that were offered and are not needed: the target has
    /// them. `None`: the page is not open (the target asks again).
    pub fn need(&self, key: PageKey, needed: &[usize]) -> Option<(Needed, Vec<usize>)> {
        let mut inner = self.lock();
        let offer = inner.open.get_mut(&key).filter(|offer| offer.remaining.is_none())?;
        offer.remaining = Some(needed.len());
        let mut known = offer.offered;
        for position in needed.iter().filter(|position| **position < PAGE_CHUNKS) {
            known[position / 64] &= !(1 << (position % 64));
        }
        let known = (0..PAGE_CHUNKS).filter(|n| known[n / 64] & (1 << (n % 64)) != 0).collect();
        Some((if needed.is_empty() { Needed::Nothing(offer.ids.clone()) } else { Needed::Some }, known))
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

    /// A chunk went into a batch, with this content; gives the page back when it was its last.
    pub fn sent(&self, wanted: &Wanted, id: ChunkId) -> Option<OpenOffer> {
        let mut inner = self.lock();
        let key = (wanted.disk, wanted.page);
        let offer = inner.open.get_mut(&key)?;
        offer.ids[wanted.position] = id;
        let remaining = offer.remaining.as_mut()?;
        *remaining = remaining.saturating_sub(1);
        if *remaining == 0 { inner.open.remove(&key) } else { None }
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

    /// True where no scan goes on and every offer was answered.
    pub fn nothing_outstanding(&self) -> bool {
        let inner = self.lock();
        inner.scans_left == 0 && inner.open.values().all(|offer| offer.remaining.is_some())
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state() -> SourceState {
        let state = SourceState::new(vec![PageTable::new(100 << 26)], Built::new());
        state.begin_attempt(1);
        state
    }

    fn offer(state: &SourceState, page: u64) {
        let ids = Box::new([ChunkId([page as u8 + 1; 32]); PAGE_CHUNKS]);
        state.open((0, page), OpenOffer { ids, offered: [u64::MAX; 16], remaining: None, room: None });
    }

    #[test]
    fn nothing_is_sealed_before_everything_is_on_its_way() {
        let state = state();
        offer(&state, 0);
        offer(&state, 1);
        state.scan_done(0, 2);
        assert!(!state.nothing_outstanding() && !state.may_seal());
        // Nothing is needed of page 0, but it is not settled yet.
        let (needed, known) = state.need((0, 0), &[]).unwrap();
        assert!(matches!(needed, Needed::Nothing(_)) && known.len() == PAGE_CHUNKS);
        let (needed, known) = state.need((0, 1), &[0, 1]).unwrap();
        assert!(matches!(needed, Needed::Some) && known == (2..PAGE_CHUNKS).collect::<Vec<_>>());
        assert!(state.nothing_outstanding() && !state.may_seal());
        state.close((0, 0));
        let wanted = |position| Wanted { disk: 0, page: 1, position, forced: false };
        assert!(state.sent(&wanted(0), ChunkId([2; 32])).is_none());
        assert!(!state.may_seal());
        assert!(state.sent(&wanted(1), ChunkId([2; 32])).is_some());
        assert!(state.may_seal());
        state.begin_seal();
        assert!(!state.may_seal());
        assert!(state.need((0, 1), &[0]).is_none(), "a page that is closed is asked for again");
    }

    proptest! {
        #[test]
        fn progress_is_the_first_page_that_is_not_on_its_way(
            pages in prop::collection::btree_set(0u64..60, 1..30),
            closed in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
        ) {
            let state = state();
            let mut open: Vec<u64> = pages.iter().copied().collect();
            for page in &open {
                offer(&state, *page);
            }
            state.scanned(0, 60);
            for pick in closed {
                if open.is_empty() {
                    break;
                }
                state.close((0, open.remove(pick.index(open.len()))));
                prop_assert_eq!(state.progress(), vec![open.first().copied().unwrap_or(60)]);
            }
        }

        #[test]
        fn sent_ids_forget_the_oldest_only(ids in prop::collection::vec(any::<u16>(), 1..400)) {
            let short = |id: u16| crate::block::ShortId([(id >> 8) as u8; 16]);
            let (mut sent, mut seen) = (SentIds::default(), HashSet::new());
            for id in ids {
                prop_assert_eq!(sent.seen(short(id)), !seen.insert(id >> 8));
            }
        }
    }
}
