//! Who may send next: deficit round robin by bytes among the channels of a stream. Sans-IO.
//!
//! A channel that was silent is served before those that were not, for one quantum (as fq_codel
//! does), so a small message does not wait for a round of bulk; whoever has had a quantum queues up
//! at the end. A channel with a rate of its own (a job's) is passed over until its next frame may go. Owns the queued
//! messages. Not its job: bounding them; the senders hold permits.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::sync::OwnedSemaphorePermit;

use super::accounting::Share;
use super::frame::{FLAG_FIRST, FLAG_MORE, FRAGMENT_BYTES, HEADER_BYTES, Header};
use super::order::PieceQueue;
use crate::throttle::SharedBucket;

/// Bytes a channel may send in one turn.
const QUANTUM: i64 = FRAGMENT_BYTES as i64;
/// How many frames go in a second at a rate, at least, and the shortest one that is made for it.
const FRAMES_A_SECOND: u64 = 50;
const FRAME_BYTES_MIN: usize = 4 * 1024;

/// Body bytes of a frame where no more than `rate_bps` goes: a whole fragment would hold up what comes after it.
pub fn frame_bytes(rate_bps: Option<u64>) -> usize {
    let most = |rate: u64| usize::try_from(rate / 8 / FRAMES_A_SECOND).unwrap_or(FRAGMENT_BYTES);
    rate_bps.map_or(FRAGMENT_BYTES, |rate| most(rate).clamp(FRAME_BYTES_MIN, FRAGMENT_BYTES))
}

/// A message on its way out.
#[derive(Debug)]
pub struct Outgoing {
    /// Frame type.
    pub kind: u8,
    /// Head and tail of the body, so that a batch's payload is not copied.
    pub parts: [Bytes; 2],
    /// Who pays; in a bundle, whoever takes the piece.
    pub share: Option<Arc<Share>>,
    /// Given back when the last fragment is handed out.
    pub permit: Option<OwnedSemaphorePermit>,
    /// The session's own rate.
    pub limit: Option<Arc<SharedBucket>>,
    sent: usize,
}

impl Outgoing {
    /// A message without a bound of its own: control.
    pub fn control(kind: u8, body: Bytes) -> Self {
        Self { kind, parts: [body, Bytes::new()], share: None, permit: None, limit: None, sent: 0 }
    }

    /// A session's message.
    pub fn session(
        kind: u8,
        parts: [Bytes; 2],
        share: Option<Arc<Share>>,
        permit: OwnedSemaphorePermit,
        limit: Option<Arc<SharedBucket>>,
    ) -> Self {
        Self { kind, parts, share, permit: Some(permit), limit, sent: 0 }
    }

    /// Until when its session's rate holds it back; none where it may go.
    pub(super) fn held_until(&self, now: Instant) -> Option<Instant> {
        self.limit.as_ref().and_then(|limit| limit.lock().free_at()).filter(|due| *due > now)
    }

    /// Counts a frame of so many bytes against its session's rate.
    pub(super) fn book(&self, cost: usize, now: Instant) {
        if let Some(limit) = &self.limit {
            limit.lock().book(cost as u64, Duration::ZERO, now);
        }
    }

    /// Body bytes of its next frame: at most `most`, and less at a low rate.
    pub(super) fn frame_bytes(&self, most: usize) -> usize {
        match &self.limit {
            None => most,
            Some(limit) => most.min(frame_bytes(Some(limit.lock().rate_bps()))),
        }
    }

    /// The header of its next fragment, of at most `most` bytes.
    pub(super) fn next_header(&self, channel: u32, sequence: u32, most: usize) -> Header {
        let (start, total) = (self.sent, self.total());
        let end = (start + most).min(total);
        Header {
            kind: self.kind,
            flags: u8::from(start == 0) * FLAG_FIRST + u8::from(end < total) * FLAG_MORE,
            channel,
            sequence,
            length: (end - start) as u32,
            total: if start == 0 { total as u32 } else { 0 },
        }
    }

    /// Appends the body that goes with `header`; true where it was the last.
    pub(super) fn take(&mut self, header: &Header, out: &mut BytesMut) -> bool {
        let (start, end) = (self.sent, self.sent + header.length as usize);
        let split = self.parts[0].len();
        out.extend_from_slice(&self.parts[0][start.min(split)..end.min(split)]);
        out.extend_from_slice(&self.parts[1][start.max(split) - split..end.max(split) - split]);
        self.sent = end;
        end == self.total()
    }

    fn total(&self) -> usize {
        self.parts[0].len() + self.parts[1].len()
    }
}

/// Queues and turns.
#[derive(Debug, Default)]
pub struct Scheduler {
    queues: HashMap<u32, Queue>,
    fresh: VecDeque<u32>,
    round: VecDeque<u32>,
    /// Those that a rate of their own holds back, and until when.
    held: Vec<(Instant, u32)>,
    sequence: u32,
    control: usize,
}

#[derive(Debug)]
struct Queue {
    messages: VecDeque<Outgoing>,
    /// Of a bundle: what any of its connections may take, after this channel's own messages.
    pieces: Option<(Arc<PieceQueue>, Arc<Share>)>,
    deficit: i64,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.pieces.as_ref().is_none_or(|(pieces, _)| pieces.is_empty())
    }

    fn held_until(&self, now: Instant) -> Option<Instant> {
        match (self.messages.front(), &self.pieces) {
            (Some(message), _) => message.held_until(now),
            (None, Some((pieces, _))) => pieces.held_until(now),
            (None, None) => None,
        }
    }

    /// Appends the next frame; answers its bytes. None where nothing waits, or another connection
    /// was faster.
    fn take(
        &mut self,
        channel: u32,
        sequence: u32,
        now: Instant,
        most: usize,
        out: &mut BytesMut,
    ) -> Option<usize> {
        if !self.messages.is_empty() {
            return Some(take_fragment(&mut self.messages, (channel, sequence), now, most, out));
        }
        let (pieces, share) = self.pieces.as_ref()?;
        let cost = pieces.take(channel, sequence, now, most, out)?;
        share.add_sent(cost as u64);
        Some(cost)
    }
}

impl Scheduler {
    /// For a stream on which `sequence` frames were sent already.
    pub fn new(sequence: u32) -> Self {
        Self { sequence, ..Self::default() }
    }

    /// Messages waiting that hold no permit.
    pub fn control_queued(&self) -> usize {
        self.control
    }

    /// Queues a message behind the others of its channel.
    pub fn push(&mut self, channel: u32, message: Outgoing) {
        self.control += usize::from(message.permit.is_none());
        self.queue(channel).messages.push_back(message);
    }

    /// Something waits in a bundle that this channel belongs to.
    pub fn offer(&mut self, channel: u32, pieces: &Arc<PieceQueue>, share: &Arc<Share>) {
        let queue = self.queue(channel);
        if queue.pieces.is_none() {
            queue.pieces = Some((pieces.clone(), share.clone()));
        }
    }

    /// True where pieces wait that another connection may take.
    pub fn shares_pieces(&self) -> bool {
        let shares = |(pieces, _): &(Arc<PieceQueue>, _)| pieces.is_shared() && !pieces.is_empty();
        self.queues.values().any(|queue| queue.pieces.as_ref().is_some_and(shares))
    }

    /// True where sessions' messages wait for the line: not those that a rate of their own holds back.
    pub fn bulk_waits(&self) -> bool {
        let waits = |queue: &Queue| {
            queue.messages.iter().any(|message| message.permit.is_some())
                || queue.pieces.as_ref().is_some_and(|(pieces, _)| !pieces.is_empty())
        };
        let held = |channel: &u32| self.held.iter().any(|(_, known)| known == channel);
        self.queues.iter().any(|(channel, queue)| waits(queue) && !held(channel))
    }

    fn queue(&mut self, channel: u32) -> &mut Queue {
        self.queues.entry(channel).or_insert_with(|| {
            self.fresh.push_back(channel);
            Queue { messages: VecDeque::new(), pieces: None, deficit: QUANTUM }
        })
    }

    /// When the first of those that are held back may go on.
    pub fn next_due(&self) -> Option<Instant> {
        self.held.iter().map(|(due, _)| *due).min()
    }

    /// Appends the next frame to `out`, of at most `most` bytes of body. False where nothing may go now.
    pub fn next_frame(&mut self, now: Instant, most: usize, out: &mut BytesMut) -> bool {
        if !self.held.is_empty() {
            let round = &mut self.round;
            self.held.retain(|(due, channel)| {
                let held = *due > now;
                if !held {
                    round.push_back(*channel);
                }
                held
            });
        }
        loop {
            let fresh = !self.fresh.is_empty();
            let list = if fresh { &mut self.fresh } else { &mut self.round };
            let Some(&channel) = list.front() else { return false };
            let Some(queue) = self.queues.get_mut(&channel) else {
                list.pop_front();
                continue;
            };
            if let Some(due) = queue.held_until(now) {
                list.pop_front();
                self.held.push((due, channel));
                continue;
            }
            let control = queue.messages.front().is_some_and(|message| message.permit.is_none());
            let waiting = queue.messages.len();
            let taken = match queue.deficit > 0 {
                true => queue.take(channel, self.sequence, now, most, out),
                false => None,
            };
            let Some(cost) = taken else {
                list.pop_front();
                // A fresh channel that ran dry goes through the round once, or it would be fresh
                // again with its next message and starve the others.
                if fresh || !queue.is_empty() {
                    if queue.deficit <= 0 {
                        queue.deficit += QUANTUM;
                    }
                    self.round.push_back(channel);
                } else {
                    self.queues.remove(&channel);
                }
                continue;
            };
            self.control -= usize::from(control && queue.messages.len() < waiting);
            self.sequence = self.sequence.wrapping_add(1);
            queue.deficit -= cost as i64;
            return true;
        }
    }

    /// True where nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queues.values().all(Queue::is_empty)
    }
}

fn take_fragment(
    queue: &mut VecDeque<Outgoing>,
    (channel, sequence): (u32, u32),
    now: Instant,
    most: usize,
    out: &mut BytesMut,
) -> usize {
    let Some(message) = queue.front_mut() else { return 0 };
    let header = message.next_header(channel, sequence, message.frame_bytes(most));
    let cost = HEADER_BYTES + header.length as usize;
    message.book(cost, now);
    out.reserve(cost);
    out.extend_from_slice(&header.encode());
    let ended = message.take(&header, out);
    if let Some(share) = &message.share {
        share.add_sent(cost as u64);
    }
    if ended {
        queue.pop_front();
    }
    cost
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(scheduler: &mut Scheduler) -> Vec<Header> {
        let mut out = BytesMut::new();
        let mut headers = Vec::new();
        while scheduler.next_frame(Instant::now(), FRAGMENT_BYTES, &mut out) {
            let head: [u8; HEADER_BYTES] = out[..HEADER_BYTES].try_into().unwrap();
            let header = Header::decode(&head).unwrap();
            assert_eq!(out.len(), HEADER_BYTES + header.length as usize);
            headers.push(header);
            out.clear();
        }
        headers
    }

    fn message(len: usize) -> Outgoing {
        Outgoing::control(36, Bytes::from(vec![7; len]))
    }

    #[test]
    fn bulk_channels_share_by_bytes() {
        let mut scheduler = Scheduler::default();
        for _ in 0..8 {
            scheduler.push(1, message(1024 * 1024));
        }
        // The other one sends small messages, but as many bytes.
        for _ in 0..256 {
            scheduler.push(2, message(32 * 1024));
        }
        let headers = drain(&mut scheduler);
        for (number, header) in headers.iter().enumerate() {
            assert_eq!(header.sequence as usize, number);
        }
        let half = headers.len() / 2;
        let bytes = |channel| -> i64 {
            headers[..half].iter().filter(|h| h.channel == channel).map(|h| i64::from(h.length)).sum()
        };
        assert!((bytes(1) - bytes(2)).abs() <= 3 * QUANTUM, "{} and {}", bytes(1), bytes(2));
    }

    #[test]
    fn a_small_message_does_not_wait_for_bulk() {
        let mut scheduler = Scheduler::default();
        for channel in 1..=20 {
            scheduler.push(channel, message(1024 * 1024));
        }
        let mut out = BytesMut::new();
        for _ in 0..60 {
            assert!(scheduler.next_frame(Instant::now(), FRAGMENT_BYTES, &mut out));
        }
        scheduler.push(99, message(100));
        let headers = {
            out.clear();
            drain(&mut scheduler)
        };
        let place = headers.iter().position(|h| h.channel == 99).unwrap();
        assert!(place <= 1, "waited for {place} frames");
    }

    #[test]
    fn a_chatty_channel_does_not_starve_bulk() {
        let mut scheduler = Scheduler::default();
        scheduler.push(1, message(1024 * 1024));
        let (mut out, mut bulk, mut chat) = (BytesMut::new(), 0u64, 0u64);
        for _ in 0..64 {
            scheduler.push(2, message(16 * 1024));
            out.clear();
            assert!(scheduler.next_frame(Instant::now(), FRAGMENT_BYTES, &mut out));
            let header = Header::decode(&out[..HEADER_BYTES].try_into().unwrap()).unwrap();
            *(if header.channel == 1 { &mut bulk } else { &mut chat }) += u64::from(header.length);
        }
        assert!(bulk * 3 >= chat, "bulk {bulk}, chat {chat}");
    }

    #[test]
    fn a_session_keeps_its_own_rate_and_holds_up_nobody() {
        let (limit, start) = (SharedBucket::new("job", 8_000_000), Instant::now());
        let mut scheduler = Scheduler::default();
        for _ in 0..8 {
            scheduler.push(1, Outgoing { limit: Some(limit.clone()), ..message(1024 * 1024) });
        }
        let (mut out, mut now, mut slow, mut fast) = (BytesMut::new(), start, 0, 0);
        while now < start + Duration::from_secs(4) {
            if now.duration_since(start).as_millis() % 500 == 0 {
                scheduler.push(2, message(200_000));
            }
            out.clear();
            while scheduler.next_frame(now, FRAGMENT_BYTES, &mut out) {
                let header = Header::decode(&out[..HEADER_BYTES].try_into().unwrap()).unwrap();
                assert!(header.channel == 2 || header.length <= 20_000, "{header:?}");
                *(if header.channel == 1 { &mut slow } else { &mut fast }) += out.len();
                out.clear();
            }
            let due = scheduler.next_due().unwrap();
            assert!(due > now && !scheduler.bulk_waits());
            now += Duration::from_millis(1);
        }
        assert!((3_960_000..=4_040_000).contains(&slow), "{slow}");
        assert!(fast > 8 * 200_000, "{fast}");
    }

    #[test]
    fn frames_are_short_where_little_goes() {
        assert_eq!(frame_bytes(None), FRAGMENT_BYTES);
        assert_eq!(frame_bytes(Some(u64::MAX)), FRAGMENT_BYTES);
        assert_eq!(frame_bytes(Some(4_000_000)), 10_000);
        assert_eq!(frame_bytes(Some(64_000)), FRAME_BYTES_MIN);
    }

    #[test]
    fn parts_join_across_the_cut() {
        let mut scheduler = Scheduler::default();
        let mut message = message(10);
        message.parts[1] = Bytes::from(vec![9; FRAGMENT_BYTES]);
        scheduler.push(1, message);
        let mut out = BytesMut::new();
        while scheduler.next_frame(Instant::now(), FRAGMENT_BYTES, &mut out) {}
        let body: Vec<u8> =
            [&out[HEADER_BYTES..HEADER_BYTES + FRAGMENT_BYTES], &out[2 * HEADER_BYTES + FRAGMENT_BYTES..]]
                .concat();
        assert_eq!(body.len(), FRAGMENT_BYTES + 10);
        assert!(body[..10].iter().all(|b| *b == 7) && body[10..].iter().all(|b| *b == 9));
        assert!(scheduler.is_empty());
    }
}
