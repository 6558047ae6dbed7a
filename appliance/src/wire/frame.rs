//! Frames: the header, its checks, and how fragments become messages. Sans-IO.
//!
//! Not its job: which channel a frame belongs to and what a body means.
//! Bounds: a body is at most [`FRAME_BYTES_MAX`], a message at most the cap given to the
//! [`Assembler`]; both are checked before anything is allocated. A message's buffer grows with what
//! arrives, never with what a header claims.

use bytes::{Bytes, BytesMut};

use crate::limits::{FRAME_BYTES_MAX, MESSAGE_BYTES_MAX};

/// Bytes of a header on the wire.
pub const HEADER_BYTES: usize = 20;
/// Version of the framing, third byte of each header.
pub const FRAME_VERSION: u8 = 1;
/// Body bytes we put into one frame of a longer message: a quarter of what we accept, so that a
/// channel with little to say waits for 64 KiB of another at most.
pub const FRAGMENT_BYTES: usize = 64 * 1024;

/// First fragment of a message; `total` counts.
pub const FLAG_FIRST: u8 = 1;
/// More fragments of this message follow.
pub const FLAG_MORE: u8 = 2;

/// Frame types below those of session messages (`message::kind`, 32 and up).
pub mod kind {
    /// First frame of every stream, by its opener.
    pub const HELLO: u8 = 1;
    /// The answer to `HELLO`.
    pub const HELLO_ACK: u8 = 2;
    /// Heartbeat, eight bytes that come back.
    pub const PING: u8 = 3;
    /// The answer to `PING`.
    pub const PONG: u8 = 4;
    /// A control request; the channel is its number.
    pub const REQUEST: u8 = 5;
    /// The answer to `REQUEST`, same channel.
    pub const RESPONSE: u8 = 6;
    /// A new channel on a data stream.
    pub const CHANNEL_OPEN: u8 = 7;
    /// The channel is over; the body is a reason for people, empty for a normal end.
    pub const CHANNEL_CLOSE: u8 = 8;
    /// A pairing message.
    pub const PAIR: u8 = 9;
    /// A new channel that begins a bundle; the body is the bundle's name.
    pub const BUNDLE_OPEN: u8 = 10;
    /// A new channel that joins a bundle; the body is the bundle's name.
    pub const BUNDLE_JOIN: u8 = 11;
    /// A frame of a bundle, numbered over all its channels.
    pub const PIECE: u8 = 12;
    /// Data waits here: the peer, which dials, may open links up to this many (one byte).
    pub const LINKS_WANTED: u8 = 13;
    /// The first type of a session message.
    pub const SESSION_FIRST: u8 = 32;
}

/// Why a frame is refused. Any of these ends the connection that it came on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another framing.
    #[error("frame version {0} is not {FRAME_VERSION}")]
    Version(u8),
    /// Unknown flag or a reserved byte in use.
    #[error("frame of type {0} has unknown flags")]
    Flags(u8),
    /// The body is longer than a frame may be.
    #[error("frame of type {kind} says {length} bytes; at most {max} are allowed")]
    Length {
        /// Frame type.
        kind: u8,
        /// What the header says.
        length: u32,
        /// The cap.
        max: usize,
    },
    /// Length, total and flags contradict each other.
    #[error("frame of type {0}: length, total and flags contradict each other")]
    Shape(u8),
    /// A frame went missing or came twice.
    #[error("frame number {got} came where {expected} was due")]
    Sequence {
        /// What came.
        got: u32,
        /// What was due.
        expected: u32,
    },
    /// A fragment does not continue the message before it.
    #[error("fragment of type {0} does not belong to the message before it")]
    Fragment(u8),
    /// A frame on a channel that nobody opened, or of a type that has no place there.
    #[error("frame of type {kind} has no place on channel {channel}")]
    Place {
        /// Frame type.
        kind: u8,
        /// Its channel.
        channel: u32,
    },
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// See [`kind`] and `message::kind`.
    pub kind: u8,
    /// [`FLAG_FIRST`] and [`FLAG_MORE`].
    pub flags: u8,
    /// Channel, or request number; 0 is the stream itself.
    pub channel: u32,
    /// Counts the frames of a stream in one direction, from 0, wrapping.
    pub sequence: u32,
    /// Bytes of body that follow.
    pub length: u32,
    /// Bytes of the whole message in its first fragment, 0 in the others.
    pub total: u32,
}

impl Header {
    /// The twenty bytes, big endian.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0] = self.kind;
        out[1] = self.flags;
        out[2] = FRAME_VERSION;
        out[4..8].copy_from_slice(&self.channel.to_be_bytes());
        out[8..12].copy_from_slice(&self.sequence.to_be_bytes());
        out[12..16].copy_from_slice(&self.length.to_be_bytes());
        out[16..20].copy_from_slice(&self.total.to_be_bytes());
        out
    }

    /// Parses and checks everything that can be checked without knowing the stream.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let header = Self {
            kind: bytes[0],
            flags: bytes[1],
            channel: word(4),
            sequence: word(8),
            length: word(12),
            total: word(16),
        };
        let kind = header.kind;
        if bytes[2] != FRAME_VERSION {
            return Err(FrameError::Version(bytes[2]));
        }
        if header.flags & !(FLAG_FIRST | FLAG_MORE) != 0 || bytes[3] != 0 {
            return Err(FrameError::Flags(kind));
        }
        if header.length as usize > FRAME_BYTES_MAX {
            return Err(FrameError::Length { kind, length: header.length, max: FRAME_BYTES_MAX });
        }
        if header.total as usize > MESSAGE_BYTES_MAX {
            return Err(FrameError::Length { kind, length: header.total, max: MESSAGE_BYTES_MAX });
        }
        let fits = if header.is_first() {
            header.total >= header.length && header.has_more() == (header.length < header.total)
        } else {
            header.total == 0 && header.length > 0
        };
        // An empty fragment that promises more would let a peer keep us busy for nothing.
        if !fits || (header.has_more() && header.length == 0) {
            return Err(FrameError::Shape(kind));
        }
        Ok(header)
    }

    /// First fragment of a message.
    pub fn is_first(&self) -> bool {
        self.flags & FLAG_FIRST != 0
    }

    /// Another fragment follows.
    pub fn has_more(&self) -> bool {
        self.flags & FLAG_MORE != 0
    }
}

/// Joins the fragments of one channel.
#[derive(Debug)]
pub struct Assembler {
    max: usize,
    open: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    kind: u8,
    total: usize,
    body: BytesMut,
}

impl Assembler {
    /// For messages of at most `max` bytes.
    pub fn new(max: usize) -> Self {
        Self { max, open: None }
    }

    /// Takes a fragment; answers the message it completes.
    pub fn push(&mut self, header: &Header, body: Bytes) -> Result<Option<(u8, Bytes)>, FrameError> {
        let kind = header.kind;
        let Some(mut partial) = self.open.take() else {
            if !header.is_first() {
                return Err(FrameError::Fragment(kind));
            }
            if header.total as usize > self.max {
                return Err(FrameError::Length { kind, length: header.total, max: self.max });
            }
            if !header.has_more() {
                return Ok(Some((kind, body)));
            }
            let total = header.total as usize;
            self.open = Some(Partial { kind, total, body: BytesMut::from(&body[..]) });
            return Ok(None);
        };
        let length = partial.body.len() + body.len();
        let ends = length == partial.total;
        if header.is_first() || kind != partial.kind || length > partial.total || ends == header.has_more() {
            return Err(FrameError::Fragment(kind));
        }
        partial.body.extend_from_slice(&body);
        if ends {
            return Ok(Some((kind, partial.body.freeze())));
        }
        self.open = Some(partial);
        Ok(None)
    }

    /// True between the fragments of a message.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Bytes held.
    pub fn buffered(&self) -> usize {
        self.open.as_ref().map_or(0, |partial| partial.body.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::message::{Durable, Message};

    /// The bytes of version 1. They never change; a change is a new version.
    #[test]
    fn golden_header() {
        let header = Header {
            kind: 36,
            flags: FLAG_FIRST | FLAG_MORE,
            channel: 0x0102_0304,
            sequence: 0x0506_0708,
            length: 0x0001_0000,
            total: 0x0010_0000,
        };
        let golden = [36, 3, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 0, 0, 0, 0x10, 0, 0];
        assert_eq!(header.encode(), golden);
        assert_eq!(Header::decode(&golden), Ok(header));
    }

    #[test]
    fn golden_message() {
        let message =
            Message::Durable(Durable { payload_bytes: 300, cursors: vec![1, 128], busy_ms: [1, 2, 3] });
        let (kind, head, tail) = message.encode();
        assert_eq!((kind, &head[..], tail.len()), (37, &[0xac, 2, 2, 1, 0x80, 1, 1, 2, 3][..], 0));
        assert_eq!(Message::decode(kind, head), Ok(message));
    }

    #[test]
    fn lengths_are_checked_before_anything_is_allocated() {
        let good = Header { kind: 40, flags: FLAG_FIRST, channel: 1, sequence: 0, length: 4, total: 4 };
        let refused = |change: fn(&mut Header)| {
            let mut header = good;
            change(&mut header);
            Header::decode(&header.encode()).is_err()
        };
        assert!(!refused(|_| ()));
        assert!(refused(|h| h.length = u32::MAX));
        assert!(refused(|h| h.total = u32::MAX));
        assert!(refused(|h| h.total = 3));
        assert!(refused(|h| h.total = 5));
        assert!(refused(|h| h.flags = 0));
        assert!(refused(|h| h.flags = 7));
        assert!(refused(|h| (h.flags, h.length) = (FLAG_FIRST | FLAG_MORE, 0)));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), HEADER_BYTES..400)) {
            let mut head = [0; HEADER_BYTES];
            head.copy_from_slice(&bytes[..HEADER_BYTES]);
            if let Ok(header) = Header::decode(&head) {
                prop_assert!(header.length as usize <= FRAME_BYTES_MAX);
                let mut assembler = Assembler::new(MESSAGE_BYTES_MAX);
                let _ = assembler.push(&header, Bytes::copy_from_slice(&bytes[HEADER_BYTES..]));
                prop_assert!(assembler.buffered() <= bytes.len());
            }
            let _ = Message::decode(bytes[0] % 48, Bytes::copy_from_slice(&bytes[1..]));
        }

        #[test]
        fn fragments_join(body in prop::collection::vec(any::<u8>(), 0..5000), cut in 1usize..700) {
            let mut assembler = Assembler::new(MESSAGE_BYTES_MAX);
            let mut whole = None;
            let parts: Vec<&[u8]> = if body.is_empty() { vec![&[]] } else { body.chunks(cut).collect() };
            for (at, part) in parts.iter().enumerate() {
                prop_assert!(whole.is_none());
                let header = Header {
                    kind: 36,
                    flags: u8::from(at == 0) * FLAG_FIRST + u8::from(at + 1 < parts.len()) * FLAG_MORE,
                    channel: 1,
                    sequence: at as u32,
                    length: part.len() as u32,
                    total: if at == 0 { body.len() as u32 } else { 0 },
                };
                let header = Header::decode(&header.encode()).unwrap();
                whole = assembler.push(&header, Bytes::copy_from_slice(part)).unwrap();
            }
            prop_assert_eq!(whole, Some((36, Bytes::from(body))));
        }
    }
}
