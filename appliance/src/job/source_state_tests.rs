use super::*;
use proptest::prelude::*;

fn state() -> SourceState {
    let state = SourceState::new(vec![PageTable::new(100 << 26)], Built::new());
    state.begin_attempt(1);
    state
}

fn offer(state: &SourceState, page: u64) {
    let ids = Box::new([ChunkId([page as u8 + 1; 32]); PAGE_CHUNKS]);
    let ahead = AheadPage::offered(0..PAGE_CHUNKS);
    state.open((0, page), OpenOffer { ids, ahead, remaining: None, room: None });
}

#[test]
fn nothing_is_sealed_before_everything_is_on_its_way() {
    let state = state();
    offer(&state, 0);
    offer(&state, 1);
    state.scan_done(0, 2);
    assert!(!state.nothing_outstanding() && !state.may_seal());
    // Nothing is needed of page 0, but it is not settled yet.
    let Needed { settle, answer } = state.need((0, 0), &[]).unwrap();
    assert!(settle.is_some() && answer.known.len() == PAGE_CHUNKS);
    let Needed { settle, answer } = state.need((0, 1), &[0, 1]).unwrap();
    assert!(settle.is_none() && answer.known == (2..PAGE_CHUNKS).collect::<Vec<_>>());
    assert_eq!(answer.missing, [0, 1]);
    assert!(state.nothing_outstanding() && !state.may_seal());
    state.close((0, 0));
    let wanted = |position| Wanted { disk: 0, page: 1, position, forced: false, ahead: false };
    assert!(state.sent(&wanted(0), ChunkId([2; 32])).is_none());
    assert!(!state.may_seal());
    assert!(state.sent(&wanted(1), ChunkId([2; 32])).is_some());
    assert!(state.may_seal());
    state.begin_seal();
    assert!(!state.may_seal());
    assert!(state.need((0, 1), &[0]).is_none(), "a page that is closed is asked for again");
}

#[test]
fn a_page_that_went_ahead_is_sealed_before_its_need() {
    let state = state();
    let ids = Box::new([ChunkId([1; 32]); PAGE_CHUNKS]);
    let ahead = AheadPage::offered([3, 4]).with_ahead([3, 4]);
    state.open((0, 7), OpenOffer { ids, ahead, remaining: None, room: None });
    state.scan_done(0, 8);
    assert!(state.nothing_outstanding() && !state.may_seal(), "there is nothing to wait for with a batch");
    let wanted = |position| Wanted { disk: 0, page: 7, position, forced: false, ahead: true };
    assert!(state.sent(&wanted(3), ChunkId([1; 32])).is_none() && !state.may_seal());
    assert!(state.sent(&wanted(4), ChunkId([1; 32])).is_some() && state.may_seal());
    // One of the two was there after all.
    let Needed { settle, answer } = state.need((0, 7), &[3]).unwrap();
    assert!(settle.is_none() && answer.missing.is_empty() && answer.known == [4]);
    assert_eq!((answer.predicted, answer.right), (2, 1));
    assert!(state.need((0, 7), &[3]).is_none(), "asked for again");
    state.begin_attempt(1);
    assert!(!state.wants(&wanted(3)), "what an attempt before left is not sent");
}

/// What a page's chunks are: offered at all, going ahead, at the target already, changed when they are read.
type Fates = Vec<(bool, bool, bool, bool)>;

/// A page on its way: what the batcher and the target know of it.
struct Journey {
    state: SourceState,
    fates: Fates,
    queue: Vec<Wanted>,
    /// What the target has, by position.
    there: HashMap<usize, ChunkId>,
    settled: Option<Ids>,
    sends: HashMap<usize, usize>,
}

impl Journey {
    fn begin(fates: Fates) -> Self {
        let state = state();
        let mut ids = Box::new([ChunkId::ZERO; PAGE_CHUNKS]);
        (0..fates.len()).for_each(|position| ids[position] = ChunkId([1; 32]));
        let which = |wanted: fn(&(bool, bool, bool, bool)) -> bool| {
            fates.iter().enumerate().filter(move |(_, fate)| wanted(fate)).map(|(position, _)| position)
        };
        let ahead = AheadPage::offered(which(|fate| fate.0)).with_ahead(which(|fate| fate.1));
        let wanted = |position| Wanted { disk: 0, page: 0, position, forced: false, ahead: true };
        let queue = ahead.going().into_iter().map(wanted).collect();
        let there = which(|fate| fate.0 && fate.2).map(|position| (position, ChunkId([1; 32]))).collect();
        state.open((0, 0), OpenOffer { ids, ahead, remaining: None, room: None });
        state.scan_done(0, 1);
        Self { state, fates, queue, there, settled: None, sends: HashMap::new() }
    }

    fn need(&mut self) {
        let fates = self.fates.iter().enumerate();
        let needed: Vec<usize> = fates.filter(|(_, fate)| fate.0 && !fate.2).map(|(n, _)| n).collect();
        let Needed { settle, answer } = self.state.need((0, 0), &needed).expect("the first");
        assert_eq!(
            answer.known.len(),
            self.there.len() - self.sends.keys().filter(|n| !self.fates[**n].2).count()
        );
        if let Some(ids) = settle {
            self.settled = Some(ids);
            self.state.close((0, 0));
        }
        let wanted = |position| Wanted { disk: 0, page: 0, position, forced: false, ahead: false };
        self.queue.extend(answer.missing.into_iter().map(wanted));
    }

    fn pack(&mut self, pick: usize) {
        let wanted = self.queue.swap_remove(pick % self.queue.len());
        if !self.state.wants(&wanted) {
            return;
        }
        *self.sends.entry(wanted.position).or_default() += 1;
        let torn = self.fates[wanted.position].3;
        let id = ChunkId([if torn { 2 } else { 1 }; 32]);
        self.there.entry(wanted.position).or_insert(id);
        if let Some(whole) = self.state.sent(&wanted, id) {
            assert!(self.settled.replace(whole.ids).is_none(), "settled twice");
        }
    }
}

proptest! {
    /// In whatever order batches are packed and the NEED comes: nothing is sent twice, what is needed is sent,
    /// the seal waits for it, and the page is at the source what it is at the target.
    #[test]
    fn whatever_comes_first_a_page_is_sent_once(
        fates in prop::collection::vec(any::<(bool, bool, bool, bool)>(), 1..40),
        need_at in 0usize..50,
        picks in prop::collection::vec(any::<usize>(), 100),
    ) {
        let mut page = Journey::begin(fates);
        let mut picks = picks.into_iter();
        for step in 0.. {
            if step == need_at {
                page.need();
            }
            if step > need_at && page.queue.is_empty() {
                break;
            }
            prop_assert!(page.settled.is_some() || !page.state.may_seal());
            if !page.queue.is_empty() {
                page.pack(picks.next().unwrap());
            }
        }
        prop_assert!(page.state.may_seal() && page.state.nothing_outstanding());
        prop_assert!(page.sends.values().all(|times| *times == 1));
        let settled = page.settled.unwrap();
        for (position, fate) in page.fates.iter().enumerate().filter(|(_, fate)| fate.0) {
            prop_assert_eq!(page.there.get(&position), Some(&settled[position]), "{} {:?}", position, fate);
        }
    }

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
