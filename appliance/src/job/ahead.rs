//! Sending ahead: a chunk that the target surely lacks goes without waiting for its NEED.
//!
//! It saves the round trip of OFFER and NEED where there is nothing else to send: a small changed run, the
//! start of a session, a trickle. While the pipe is full the NEED comes before a chunk's turn anyway, so
//! nothing goes ahead then ([`AHEAD_CHUNKS_MAX`]).
//!
//! - *Surely?* The filter of shared chunks names what came from two branches or more. What it lacks may still
//!   be there from one other branch, or from this one's own disks, and nobody but the target knows. So
//!   every NEED is compared with what the filter made of the page, and chunks go ahead only while [`Gate::SHARE_PERCENT`] of
//!   the last predictions held ([`Gate`], remembered for each job over its sessions). A first run of a
//!   second branch is seen for what it is before a byte goes ahead. What a wrong gate costs is bounded by the chunks
//!   that wait and by the share it tolerates: some MiB once.
//! - An offer keeps account of its chunks that go ahead ([`AheadPage`]): when the NEED comes they are not sent a second time,
//!   and those that turn out to be known are dropped where they still wait. A page whose chunks are all on their way is done
//!   before its NEED, and so is the session: the seal may be asked for one round trip earlier.
//!
//! Pure but for the gate's mutex. Not its job: fetching the filter ([`super::refresh`]).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vbr_api::Session;

use super::source_state::Ids;
use crate::accelerator::recipe;
use crate::accelerator::shared_filter::SharedFilter;
use crate::block::{ChunkId, PAGE_CHUNKS};
use crate::limits::AHEAD_CHUNKS_MAX;
use crate::wire::message::Offer;

/// A bit for each position of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Positions([u64; PAGE_CHUNKS / 64]);

impl Positions {
    fn of(positions: impl IntoIterator<Item = usize>) -> Self {
        let mut bits = Self::default();
        positions.into_iter().for_each(|position| bits.set(position));
        bits
    }

    fn set(&mut self, position: usize) {
        if let Some(word) = self.0.get_mut(position / 64) {
            *word |= 1 << (position % 64);
        }
    }

    fn has(&self, position: usize) -> bool {
        self.0.get(position / 64).is_some_and(|word| word & 1 << (position % 64) != 0)
    }

    fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|n| self.0[n] & other.0[n]))
    }

    fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|n| self.0[n] | other.0[n]))
    }

    fn without(self, other: Self) -> Self {
        Self(std::array::from_fn(|n| self.0[n] & !other.0[n]))
    }

    fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..PAGE_CHUNKS).filter(|position| self.has(*position))
    }
}

/// What of an offered page goes ahead of its NEED.
#[derive(Clone, Debug, Default)]
pub struct AheadPage {
    offered: Positions,
    /// Not in the filter.
    unseen: Positions,
    /// Go ahead and are in no batch yet; once the NEED came, only those that are needed.
    waiting: Positions,
    /// Were in a batch when the NEED came.
    sent: Positions,
    /// Of these, what was not any more what was offered.
    torn: Vec<(usize, ChunkId)>,
}

/// What a NEED comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// To be sent now.
    pub missing: Vec<usize>,
    /// Offered and not needed: the target has them.
    pub known: Vec<usize>,
    /// Chunks that were taken for unseen, and how many of them were needed.
    pub predicted: u64,
    /// See `predicted`.
    pub right: u64,
    /// Needed chunks that are in no batch yet.
    pub remaining: usize,
    needed: Positions,
}

impl AheadPage {
    /// A page of which these positions were offered, without anything that goes ahead.
    #[cfg(test)]
    pub fn offered(positions: impl IntoIterator<Item = usize>) -> Self {
        Self { offered: Positions::of(positions), ..Self::default() }
    }

    /// The same with some that go ahead.
    #[cfg(test)]
    pub fn with_ahead(mut self, positions: impl IntoIterator<Item = usize>) -> Self {
        self.waiting = Positions::of(positions).and(self.offered);
        self.unseen = self.waiting;
        self
    }

    /// Positions that go ahead, in order.
    pub fn going(&self) -> Vec<usize> {
        self.waiting.iter().collect()
    }

    /// True where this goes ahead, is in no batch yet, and was not found to be known.
    pub fn waits(&self, position: usize) -> bool {
        self.waiting.has(position)
    }

    /// True where everything that was offered goes ahead.
    pub fn is_all(&self) -> bool {
        self.offered.without(self.waiting.or(self.sent)) == Positions::default()
    }

    /// True where everything that was offered is in a batch, as it was offered.
    pub fn is_complete(&self) -> bool {
        self.offered.without(self.sent) == Positions::default() && self.torn.is_empty()
    }

    /// True where a NEED names nothing that was not offered.
    pub fn covers(&self, needed: &[usize]) -> bool {
        needed.iter().all(|position| self.offered.has(*position))
    }

    /// A chunk that goes ahead went into a batch; false where it was not needed any more.
    pub fn sent(&mut self, position: usize, id: ChunkId, answered: bool, ids: &Ids) -> bool {
        if !self.waiting.has(position) {
            return false;
        }
        self.waiting = self.waiting.without(Positions::of([position]));
        if !answered {
            self.sent.set(position);
            if ids.get(position) != Some(&id) {
                self.torn.push((position, id));
            }
        }
        true
    }

    /// The page's NEED. Chunks that wait and are not needed do not wait any more.
    pub fn answer(&mut self, needed: &[usize]) -> Answer {
        let needed = Positions::of(needed.iter().copied());
        let missing = needed.without(self.waiting.or(self.sent));
        self.waiting = self.waiting.and(needed);
        Answer {
            missing: missing.iter().collect(),
            known: self.offered.without(needed).iter().collect(),
            predicted: self.unseen.count() as u64,
            right: self.unseen.and(needed).count() as u64,
            remaining: needed.without(self.sent).count(),
            needed,
        }
    }

    /// Content that changed after it was offered: the target took it where it needed the chunk.
    pub fn take_torn(&mut self, answer: &Answer, ids: &mut Ids) {
        for (position, id) in self.torn.drain(..).filter(|(position, _)| answer.needed.has(*position)) {
            ids[position] = id;
        }
    }
}

/// A chunk that goes ahead leaves the known ones, where its offer had put it, for what its batch makes of it.
pub fn note_ahead(session: &mut Session, bytes: usize) {
    session.bytes.deduplicated = session.bytes.deduplicated.saturating_sub(bytes as u64);
    session.chunks.known = session.chunks.known.saturating_sub(1);
    session.chunks.ahead += 1;
}

/// Whether predictions hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    predicted: u64,
    right: u64,
}

impl Gate {
    /// Predictions before they count.
    const TRIAL: u64 = 256;
    /// So many of a hundred have to hold.
    const SHARE_PERCENT: u64 = 98;
    /// Above this what was long ago counts less.
    const MEMORY: u64 = 1024;

    /// True where what the filter lacks may go ahead.
    pub fn is_open(&self) -> bool {
        self.predicted >= Self::TRIAL && self.right * 100 >= self.predicted * Self::SHARE_PERCENT
    }

    /// So many were taken for unseen, so many of them were needed.
    pub fn note(&mut self, predicted: u64, right: u64) {
        (self.predicted, self.right) = (self.predicted + predicted, self.right + right);
        while self.predicted > Self::MEMORY {
            (self.predicted, self.right) = (self.predicted / 2, self.right / 2);
        }
    }
}

/// The gates of all jobs, over their sessions; forgotten with a restart.
#[derive(Default)]
pub struct Gates(Mutex<BTreeMap<String, Gate>>);

impl Gates {
    /// The gate of a job; shut where nothing is remembered.
    pub fn of(&self, job: &str) -> Gate {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(job).copied().unwrap_or_default()
    }

    /// Remembers it.
    pub fn keep(&self, job: &str, gate: Gate) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(job.to_string(), gate);
    }

    /// The job is no more.
    pub fn forget(&self, job: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(job);
    }
}

/// What may go ahead in one attempt.
pub struct Ahead {
    /// None where the target does not take what it did not ask for.
    filter: Option<Arc<SharedFilter>>,
    gate: Mutex<Gate>,
}

impl Ahead {
    /// With a target's filter and what is remembered of the job.
    pub fn new(filter: Option<Arc<SharedFilter>>, gate: Gate) -> Self {
        Self { filter: filter.filter(|filter| filter.is_loaded()), gate: Mutex::new(gate) }
    }

    /// The gate as it stands.
    pub fn gate(&self) -> Gate {
        *self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A NEED came.
    pub fn note(&self, answer: &Answer) {
        if answer.predicted > 0 {
            let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
            gate.note(answer.predicted, answer.right);
        }
    }

    /// What of an offer goes ahead. `preparing` counts what waits for its batch, and is raised by what does.
    pub fn page(&self, offer: &Offer, preparing: &AtomicUsize) -> AheadPage {
        let offered = |(position, _, id): (usize, _, Option<_>)| id.map(|id| (position, id));
        let offered: Vec<_> = recipe::positions(offer).filter_map(offered).collect();
        let mut page =
            AheadPage { offered: Positions::of(offered.iter().map(|(at, _)| *at)), ..AheadPage::default() };
        let Some(filter) = &self.filter else { return page };
        let unseen = offered.iter().filter(|(_, id)| !filter.may_contain(*id)).map(|(at, _)| *at);
        page.unseen = Positions::of(unseen);
        if self.gate().is_open() {
            let room = AHEAD_CHUNKS_MAX.saturating_sub(preparing.load(Ordering::Relaxed));
            page.waiting = Positions::of(page.unseen.iter().take(room));
            preparing.fetch_add(page.waiting.count(), Ordering::Relaxed);
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accelerator::shared_filter::SharedSet;
    use crate::block::ShortId;
    use crate::wire::message::{Run, RunKind};
    use proptest::prelude::*;

    fn offer(ids: &[u8]) -> Offer {
        let kinds = [(RunKind::Unchanged, 2), (RunKind::Offered, ids.len() as u16)];
        let runs = kinds.into_iter().map(|(kind, count)| Run { kind, count }).collect();
        let ids = ids.iter().map(|n| ShortId([*n; 16])).collect();
        Offer { disk: 0, page: 0, runs, ids }
    }

    fn filter(shared: &[u8]) -> Arc<SharedFilter> {
        let set = SharedSet::new(1 << 16, [1; 32]);
        for n in shared {
            set.note(ShortId([*n; 16]), 1);
            set.note(ShortId([*n; 16]), 2);
        }
        let mut filter = SharedFilter::default();
        filter.apply(&set.delta(None)).unwrap();
        Arc::new(filter)
    }

    fn open() -> Gate {
        Gate { predicted: 500, right: 500 }
    }

    #[test]
    fn what_the_filter_lacks_goes_ahead_where_there_is_room() {
        let preparing = AtomicUsize::new(AHEAD_CHUNKS_MAX - 2);
        let ahead = Ahead::new(Some(filter(&[7])), open());
        let page = ahead.page(&offer(&[5, 7, 9, 11]), &preparing);
        assert_eq!((page.going(), preparing.load(Ordering::Relaxed)), (vec![2, 4], AHEAD_CHUNKS_MAX));
        assert_eq!(page.unseen.count(), 3, "predicted all the same");
        assert!(ahead.page(&offer(&[13]), &preparing).going().is_empty(), "the pipe is full");
    }

    #[test]
    fn nothing_goes_ahead_without_a_filter_or_an_open_gate() {
        let preparing = AtomicUsize::new(0);
        for ahead in [
            Ahead::new(None, open()),
            Ahead::new(Some(Arc::default()), open()),
            Ahead::new(Some(filter(&[])), Gate::default()),
        ] {
            let page = ahead.page(&offer(&[1, 2, 3]), &preparing);
            assert!(page.going().is_empty() && page.offered.count() == 3);
        }
        assert_eq!(preparing.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_second_branch_keeps_the_gate_shut_and_shuts_it_soon() {
        let mut gate = Gate::default();
        gate.note(1000, 20);
        assert!(!gate.is_open());
        let mut gate = open();
        for _ in 0..3 {
            gate.note(8, 0);
        }
        assert!(!gate.is_open(), "after two dozen misses");
        gate.note(20_000, 20_000);
        assert!(gate.is_open(), "and learns again");
    }

    proptest! {
        #[test]
        fn the_gate_follows_the_last_predictions(
            before in prop::collection::vec((1u64..1024, 0u64..1024), 0..20),
            share in 0u64..=100,
        ) {
            let mut gate = Gate::default();
            for (predicted, right) in before {
                gate.note(predicted, right.min(predicted));
            }
            for _ in 0..200 {
                gate.note(100, share);
            }
            prop_assert!(gate.predicted <= Gate::MEMORY && gate.right <= gate.predicted);
            // Halving rounds down.
            prop_assert!(share == Gate::SHARE_PERCENT || gate.is_open() == (share > Gate::SHARE_PERCENT));
        }
    }
}
