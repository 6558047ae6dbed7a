//! The order of a bundle's messages: numbered pieces on the way out, which any connection may take, and
//! the way back from pieces to messages. Sans-IO.
//!
//! Whoever is free takes the next piece, so connections share a session by what they carry and nobody
//! has to guess their rates. A piece is a whole frame inside a PIECE frame; its `sequence` is its
//! number. Not its job: which connections there are, and what becomes of a session that loses one.
//! Bounds: what waits on the way out holds permits; what waits for its turn on the way in is bounded by
//! the room its caller has, and by [`PIECES_AHEAD_MAX`].

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::frame::{Assembler, FLAG_FIRST, FRAGMENT_BYTES, FrameError, HEADER_BYTES, Header, kind};
use super::scheduler::Outgoing;
use crate::limits::MESSAGE_BYTES_MAX;

/// Pieces that may wait for an earlier one. Each costs some 300 bytes of room as well.
pub const PIECES_AHEAD_MAX: u32 = 64 * 1024;
/// Body bytes of a piece where several connections take them. What a slow one has taken holds up what
/// the others bring, and credit bounds how much that is: at 100 Mbit/s and 0.1 % loss, six connections
/// with 64 KiB pieces gave half of what they give with these.
pub const PIECE_BYTES: usize = 16 * 1024;
/// What a waiting piece costs beyond its bytes.
const PIECE_OVERHEAD_BYTES: usize = 256;

/// The way out of a bundle, shared by its connections' schedulers.
#[derive(Debug, Default)]
pub struct PieceQueue {
    inner: Mutex<Waiting>,
    takers: AtomicUsize,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<Outgoing>,
    next: u32,
    closed: bool,
}

impl PieceQueue {
    /// Queues a message behind the others.
    pub fn push(&self, message: Outgoing) {
        let mut waiting = self.waiting();
        if !waiting.closed {
            waiting.messages.push_back(message);
        }
    }

    /// One more connection takes pieces.
    pub fn add_taker(&self) {
        self.takers.fetch_add(1, Ordering::Relaxed);
    }

    /// True where several connections take pieces.
    pub fn is_shared(&self) -> bool {
        self.takers.load(Ordering::Relaxed) > 1
    }

    /// Nothing goes out any more.
    pub fn clear(&self) {
        let mut waiting = self.waiting();
        waiting.closed = true;
        waiting.messages.clear();
    }

    /// True where nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting().messages.is_empty()
    }

    /// Until when the session's own rate holds back what waits; none where it may go.
    pub fn held_until(&self, now: Instant) -> Option<Instant> {
        self.waiting().messages.front()?.held_until(now)
    }

    /// Appends the next piece as a frame of `channel`, with at most `most` bytes of the message; answers its bytes.
    /// None where nothing may go.
    pub fn take(
        &self,
        channel: u32,
        sequence: u32,
        now: Instant,
        most: usize,
        out: &mut BytesMut,
    ) -> Option<usize> {
        let mut waiting = self.waiting();
        let number = waiting.next;
        let most = if self.is_shared() { PIECE_BYTES } else { FRAGMENT_BYTES }.min(most);
        let message = waiting.messages.front_mut()?;
        if message.held_until(now).is_some() {
            return None;
        }
        let inner = message.next_header(0, number, message.frame_bytes(most));
        message.book(2 * HEADER_BYTES + inner.length as usize, now);
        let length = HEADER_BYTES as u32 + inner.length;
        let outer = Header { kind: kind::PIECE, flags: FLAG_FIRST, channel, sequence, length, total: length };
        out.reserve(HEADER_BYTES + length as usize);
        out.extend_from_slice(&outer.encode());
        out.extend_from_slice(&inner.encode());
        if message.take(&inner, out) {
            waiting.messages.pop_front();
        }
        waiting.next = number.wrapping_add(1);
        Some(HEADER_BYTES + length as usize)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a piece is refused for.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// It breaks the protocol: its connection ends.
    Frame(FrameError),
    /// Too much waits for an earlier piece: the session ends.
    Full,
}

impl From<FrameError> for Refused {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

/// The way in of a bundle.
#[derive(Debug)]
pub struct Reorder {
    next: u32,
    held: HashMap<u32, (Header, Bytes)>,
    bytes: usize,
    assembler: Assembler,
}

impl Default for Reorder {
    fn default() -> Self {
        Self { next: 0, held: HashMap::new(), bytes: 0, assembler: Assembler::new(MESSAGE_BYTES_MAX) }
    }
}

impl Reorder {
    /// Takes the body of a PIECE frame. `room`: bytes that may wait for an earlier piece.
    pub fn push(&mut self, body: Bytes, room: usize) -> Result<(), Refused> {
        let (header, body) = open(body)?;
        let ahead = header.sequence.wrapping_sub(self.next);
        if ahead > u32::MAX / 2 || self.held.contains_key(&header.sequence) {
            return Err(FrameError::Sequence { got: header.sequence, expected: self.next }.into());
        }
        let bytes = self.bytes + cost(&body);
        // The one that is due does not wait.
        if ahead > 0 && (bytes > room || ahead > PIECES_AHEAD_MAX) {
            return Err(Refused::Full);
        }
        self.bytes = bytes;
        self.held.insert(header.sequence, (header, body));
        Ok(())
    }

    /// The next message that is complete and due, in order. CHANNEL_CLOSE is the last.
    pub fn pop(&mut self) -> Result<Option<(u8, Bytes)>, FrameError> {
        while let Some((header, body)) = self.held.remove(&self.next) {
            self.bytes -= cost(&body);
            self.next = self.next.wrapping_add(1);
            if let Some(message) = self.assembler.push(&header, body)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }
}

fn cost(body: &Bytes) -> usize {
    body.len() + PIECE_OVERHEAD_BYTES
}

/// The frame inside a piece.
fn open(mut body: Bytes) -> Result<(Header, Bytes), FrameError> {
    let shape = FrameError::Shape(kind::PIECE);
    if body.len() < HEADER_BYTES {
        return Err(shape);
    }
    let mut head = [0; HEADER_BYTES];
    head.copy_from_slice(&body.split_to(HEADER_BYTES));
    let header = Header::decode(&head)?;
    if header.length as usize != body.len() {
        return Err(shape);
    }
    let is_message = header.kind >= kind::SESSION_FIRST || header.kind == kind::CHANNEL_CLOSE;
    if header.channel != 0 || !is_message {
        return Err(FrameError::Place { kind: header.kind, channel: header.channel });
    }
    Ok((header, body))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bodies of the pieces of these messages, and the channel that took each.
    fn pieces(messages: &[Vec<u8>], takers: &[u32]) -> Vec<Bytes> {
        let queue = PieceQueue::default();
        for _ in 0..takers.iter().max().copied().unwrap_or(1) {
            queue.add_taker();
        }
        for message in messages {
            queue.push(Outgoing::control(36, Bytes::from(message.clone())));
        }
        let mut out = Vec::new();
        let mut takers = takers.iter().cycle();
        loop {
            let mut frame = BytesMut::new();
            let channel = takers.next().copied().unwrap_or(1);
            let Some(cost) = queue.take(channel, 77, Instant::now(), FRAGMENT_BYTES, &mut frame) else {
                return out;
            };
            assert_eq!(cost, frame.len());
            let header = Header::decode(&frame[..HEADER_BYTES].try_into().unwrap()).unwrap();
            assert_eq!((header.kind, header.channel, header.sequence), (kind::PIECE, channel, 77));
            out.push(frame.freeze().slice(HEADER_BYTES..));
        }
    }

    fn drain(reorder: &mut Reorder) -> Vec<Bytes> {
        std::iter::from_fn(|| reorder.pop().unwrap()).map(|(_, body)| body).collect()
    }

    /// The bytes of version 1. They never change; a change is a new version.
    #[test]
    fn golden_piece() {
        let queue = PieceQueue::default();
        queue.push(Outgoing::control(38, Bytes::from_static(b"seal")));
        queue.push(Outgoing::control(kind::CHANNEL_CLOSE, Bytes::new()));
        let mut out = BytesMut::new();
        queue.take(3, 5, Instant::now(), FRAGMENT_BYTES, &mut out);
        queue.take(4, 6, Instant::now(), FRAGMENT_BYTES, &mut out);
        let golden = concat!(
            "0c010100000000030000000500000018000000182601010000000000000000000000000400000004",
            "7365616c",
            "0c010100000000040000000600000014000000140801010000000000000000010000000000000000",
        );
        assert_eq!(data_encoding::HEXLOWER.encode(&out), golden);
    }

    #[test]
    fn what_breaks_the_order_is_refused() {
        let all = pieces(&[vec![1; 10], vec![2; 10], vec![3; 10]], &[1]);
        let mut reorder = Reorder::default();
        assert_eq!(reorder.push(all[1].clone(), 300), Ok(()));
        assert_eq!(reorder.push(all[2].clone(), 300), Err(Refused::Full));
        assert!(matches!(
            reorder.push(all[1].clone(), 900),
            Err(Refused::Frame(FrameError::Sequence { .. }))
        ));
        // The one that is due is taken whatever the room is.
        assert_eq!(reorder.push(all[0].clone(), 0), Ok(()));
        assert_eq!(drain(&mut reorder).len(), 2);
        assert!(matches!(
            reorder.push(all[0].clone(), 900),
            Err(Refused::Frame(FrameError::Sequence { .. }))
        ));
        let mut far = all[2].to_vec();
        far[8..12].copy_from_slice(&(PIECES_AHEAD_MAX + 3).to_be_bytes());
        assert_eq!(reorder.push(far.into(), usize::MAX), Err(Refused::Full));
        for (at, value) in [(0, 12u8), (0, 31), (2, 2), (7, 1), (15, 9)] {
            let mut bad = all[2].to_vec();
            bad[at] = value;
            assert!(matches!(reorder.push(bad.into(), 900), Err(Refused::Frame(_))), "{at}");
        }
        assert!(reorder.push(Bytes::from_static(b"short"), 900).is_err());
    }

    proptest! {
        #[test]
        fn any_interleaving_gives_the_messages_in_order(
            sizes in prop::collection::vec(0usize..3 * FRAGMENT_BYTES, 1..12),
            order in prop::collection::vec(any::<u32>(), 40),
            takers in prop::collection::vec(1u32..5, 1..8),
            start in prop::sample::select(vec![0u32, u32::MAX - 3]),
        ) {
            let messages: Vec<Vec<u8>> =
                sizes.iter().enumerate().map(|(at, size)| vec![at as u8; *size]).collect();
            let mut all = pieces(&messages, &takers);
            // Numbers wrap.
            for (at, piece) in all.iter_mut().enumerate() {
                let mut bytes = piece.to_vec();
                bytes[8..12].copy_from_slice(&start.wrapping_add(at as u32).to_be_bytes());
                *piece = bytes.into();
            }
            let mut keyed: Vec<(u32, Bytes)> =
                all.into_iter().enumerate().map(|(at, piece)| (order[at % order.len()], piece)).collect();
            keyed.sort_by_key(|(key, _)| *key);
            let mut reorder = Reorder { next: start, ..Reorder::default() };
            let mut got = Vec::new();
            for (_, piece) in keyed {
                prop_assert_eq!(reorder.push(piece, usize::MAX), Ok(()));
                got.extend(drain(&mut reorder));
            }
            prop_assert_eq!(got, messages.into_iter().map(Bytes::from).collect::<Vec<_>>());
            prop_assert_eq!((reorder.bytes, reorder.held.len()), (0, 0));
        }

        #[test]
        fn garbage_never_panics_and_never_grows_beyond_the_room(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..30),
            heads in prop::collection::vec((0u8..48, 0u8..4, 0u32..6, 0u32..40), 30),
        ) {
            let mut reorder = Reorder::default();
            for (body, (kind, flags, sequence, extra)) in bodies.into_iter().zip(heads) {
                let length = body.len() as u32;
                let total = if flags & 1 == 1 { length + extra } else { 0 };
                let header = Header { kind, flags, channel: 0, sequence, length, total };
                let piece = [&header.encode()[..], &body].concat();
                let _ = reorder.push(piece.into(), 2000);
                prop_assert!(reorder.bytes <= 2000 + 456);
                while let Ok(Some(_)) = reorder.pop() {}
            }
        }
    }
}
