//! Session messages as bytes, and back: every count and length is checked before anything is believed.
//!
//! Pure. The bodies are postcard records; a batch is the length of its recipe, the recipe, the payload.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::message::{Batch, BatchHeader, Message, Need, Offer, Open, Probe, RunKind, Seal, VolumeNote};
use crate::block::PAGE_CHUNKS;
use crate::limits::{
    BATCH_ENTRIES_MAX, BATCH_PLAIN_BYTES_MAX, PREFIX_BYTES_MAX, PROBE_BASES_MAX, PROBE_CHUNKS_MAX,
    VOLUME_NOTE_BYTES_MAX, VOLUME_NOTES_MAX,
};
use crate::vm_config;

/// What a message or request is refused for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The frame type is not one of a session message.
    #[error("unknown message type {0}")]
    UnknownType(u8),
    /// The body does not parse.
    #[error("message type {kind} does not parse: {why}")]
    Malformed {
        /// Frame type.
        kind: u8,
        /// What the parser says.
        why: String,
    },
    /// A count or length is out of bounds.
    #[error("message type {kind}: {what} is out of bounds")]
    Bounds {
        /// Frame type.
        kind: u8,
        /// Which field.
        what: &'static str,
    },
}

/// Frame types of session messages (32 and up; control frames lie below).
pub mod kind {
    #![allow(missing_docs)]
    pub const OPEN: u8 = 32;
    pub const OPENED: u8 = 33;
    pub const OFFER: u8 = 34;
    pub const NEED: u8 = 35;
    pub const BATCH: u8 = 36;
    pub const DURABLE: u8 = 37;
    pub const SEAL: u8 = 38;
    pub const SEALED: u8 = 39;
    pub const FAIL: u8 = 40;
    pub const PROBE: u8 = 41;
    pub const HELD: u8 = 42;
}

impl Message {
    /// The frame type and body, as two parts so that a batch's payload is not copied.
    pub fn encode(&self) -> (u8, Bytes, Bytes) {
        let none = Bytes::new();
        match self {
            Self::Open(body) => (kind::OPEN, encode_open(body), none),
            Self::Opened(body) => (kind::OPENED, pack(body), none),
            Self::Offer(body) => (kind::OFFER, pack(body), none),
            Self::Need(body) => (kind::NEED, pack(body), none),
            Self::Batch(batch) => {
                let header = pack(&batch.header);
                let mut head = BytesMut::with_capacity(4 + header.len());
                head.put_u32(header.len() as u32);
                head.put_slice(&header);
                (kind::BATCH, head.freeze(), batch.payload.clone())
            }
            Self::Durable(body) => (kind::DURABLE, pack(body), none),
            Self::Seal(body) => (kind::SEAL, pack(body), none),
            Self::Sealed(body) => (kind::SEALED, pack(body), none),
            Self::Fail(body) => (kind::FAIL, pack(body), none),
            Self::Probe(body) => (kind::PROBE, pack(body), none),
            Self::Held(body) => (kind::HELD, pack(body), none),
        }
    }

    /// Parses and checks a whole message.
    pub fn decode(kind: u8, body: Bytes) -> Result<Self, DecodeError> {
        Ok(match kind {
            kind::OPEN => Self::Open(decode_open(&body)?),
            kind::OPENED => Self::Opened(unpack(kind, &body)?),
            kind::OFFER => Self::Offer(check_offer(unpack(kind, &body)?)?),
            kind::NEED => Self::Need(check_need(unpack(kind, &body)?)?),
            kind::BATCH => Self::Batch(decode_batch(body)?),
            kind::DURABLE => Self::Durable(unpack(kind, &body)?),
            kind::SEAL => Self::Seal(check_seal(unpack(kind, &body)?)?),
            kind::SEALED => Self::Sealed(unpack(kind, &body)?),
            kind::FAIL => Self::Fail(unpack(kind, &body)?),
            kind::PROBE => Self::Probe(check_probe(unpack(kind, &body)?)?),
            kind::HELD => Self::Held(unpack(kind, &body)?),
            other => return Err(DecodeError::UnknownType(other)),
        })
    }
}

/// The record, and behind it what came later: older appliances do not read so far, and write less.
fn encode_open(open: &Open) -> Bytes {
    let record = pack(open);
    let vm = open.vm.as_ref().map(|vm| pack(&vm_config::encode(vm)));
    if open.keep_calendar.is_empty() && vm.is_none() {
        return record;
    }
    [record, pack(&open.keep_calendar), vm.unwrap_or_default()].concat().into()
}

fn decode_open(body: &[u8]) -> Result<Open, DecodeError> {
    let malformed = |e: postcard::Error| DecodeError::Malformed { kind: kind::OPEN, why: e.to_string() };
    let (mut open, rest) = postcard::take_from_bytes::<Open>(body).map_err(malformed)?;
    if !rest.is_empty() {
        let (calendar, rest) = postcard::take_from_bytes(rest).map_err(malformed)?;
        open.keep_calendar = calendar;
        if !rest.is_empty() {
            let (vm, _) = postcard::take_from_bytes::<&[u8]>(rest).map_err(malformed)?;
            let unfit = |why| DecodeError::Malformed { kind: kind::OPEN, why };
            open.vm = Some(Box::new(vm_config::decode(vm).map_err(unfit)?));
        }
    }
    Ok(open)
}

fn decode_batch(mut body: Bytes) -> Result<Batch, DecodeError> {
    let short = DecodeError::Bounds { kind: kind::BATCH, what: "header length" };
    if body.len() < 4 {
        return Err(short);
    }
    let prefix = body.split_to(4);
    let len = u32::from_be_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]) as usize;
    if len > body.len() {
        return Err(short);
    }
    let head = body.split_to(len);
    let header: BatchHeader = unpack(kind::BATCH, &head)?;
    if header.plain_len as usize > BATCH_PLAIN_BYTES_MAX {
        return Err(DecodeError::Bounds { kind: kind::BATCH, what: "plain length" });
    }
    if header.entries.len() > BATCH_ENTRIES_MAX {
        return Err(DecodeError::Bounds { kind: kind::BATCH, what: "entries" });
    }
    if header.prefix.len() > PREFIX_BYTES_MAX / 4096 {
        return Err(DecodeError::Bounds { kind: kind::BATCH, what: "prefix" });
    }
    let prefix: u32 = header.prefix.iter().map(|run| run.blocks.count_ones() * 4096).sum();
    if prefix as usize > PREFIX_BYTES_MAX {
        return Err(DecodeError::Bounds { kind: kind::BATCH, what: "prefix" });
    }
    Ok(Batch { header, payload: body })
}

fn check_probe(probe: Probe) -> Result<Probe, DecodeError> {
    let chunks = probe.blocks.len() <= PROBE_CHUNKS_MAX
        && probe.blocks.iter().all(|offer| offer.ids.len() <= crate::block::CHUNK_BYTES / 4096);
    if probe.bases.len() > PROBE_BASES_MAX || !chunks {
        return Err(DecodeError::Bounds { kind: kind::PROBE, what: "counts" });
    }
    Ok(probe)
}

fn check_seal(seal: Seal) -> Result<Seal, DecodeError> {
    let notes = || seal.volumes.iter().flatten();
    let long =
        |note: &VolumeNote| note.name.len() + note.kind.len() + note.reason.len() > VOLUME_NOTE_BYTES_MAX;
    if notes().count() > VOLUME_NOTES_MAX || notes().any(long) {
        return Err(DecodeError::Bounds { kind: kind::SEAL, what: "volumes" });
    }
    Ok(seal)
}

fn check_offer(offer: Offer) -> Result<Offer, DecodeError> {
    let (mut total, mut offered) = (0usize, 0usize);
    for run in &offer.runs {
        total += run.count as usize;
        if run.kind == RunKind::Offered {
            offered += run.count as usize;
        }
        if run.count == 0 || total > PAGE_CHUNKS {
            return Err(DecodeError::Bounds { kind: kind::OFFER, what: "runs" });
        }
    }
    if offered != offer.ids.len() {
        return Err(DecodeError::Bounds { kind: kind::OFFER, what: "ids" });
    }
    Ok(offer)
}

fn check_need(need: Need) -> Result<Need, DecodeError> {
    let mut next = 0usize;
    for (first, count) in &need.chunks {
        let end = *first as usize + *count as usize;
        if (*first as usize) < next || *count == 0 || end > PAGE_CHUNKS {
            return Err(DecodeError::Bounds { kind: kind::NEED, what: "chunks" });
        }
        next = end;
    }
    Ok(need)
}

/// Encodes a record; these types cannot fail to encode.
pub fn pack<T: Serialize>(value: &T) -> Bytes {
    postcard::to_stdvec(value).map(Bytes::from).unwrap_or_default()
}

/// Decodes a record.
pub fn unpack<'a, T: Deserialize<'a>>(kind: u8, body: &'a [u8]) -> Result<T, DecodeError> {
    postcard::from_bytes(body).map_err(|e| DecodeError::Malformed { kind, why: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::ShortId;
    use vbr_api::{KeepCalendar, VmConfig};

    use crate::wire::message::{BlockOffer, Codec, Entry, Held, OpenDisk, PrefixFrom, PrefixRun};

    fn bytes(message: &Message) -> Vec<u8> {
        let (kind, head, tail) = message.encode();
        [&[kind][..], &head, &tail].concat()
    }

    fn back(message: &Message) {
        let (kind, head, tail) = message.encode();
        let body = Bytes::from([&head[..], &tail].concat());
        assert_eq!(Message::decode(kind, body).as_ref(), Ok(message));
    }

    /// The bytes of version 1. They never change; a change is a new version.
    #[test]
    fn golden_batch() {
        let header = BatchHeader {
            entries: vec![
                Entry::Literal { disk: 1, chunk: 300 },
                Entry::Copy { disk: 0, chunk: 2, id: ShortId([7; 16]) },
                Entry::Code { disk: 1, chunk: 301 },
            ],
            prefix: vec![
                PrefixRun { from: PrefixFrom::Base { disk: 1, chunk: 299 }, blocks: 0b11 },
                PrefixRun { from: PrefixFrom::Built { disk: 0, chunk: 5 }, blocks: 1 << 15 },
                PrefixRun { from: PrefixFrom::Held { number: 9 }, blocks: 4 },
                PrefixRun { from: PrefixFrom::Known { disk: 1, chunk: 300 }, blocks: 2 },
            ],
            codec: Codec::Zstd,
            plain_len: 65_536,
        };
        let message = Message::Batch(Batch { header, payload: Bytes::from_static(b"frame") });
        let golden = concat!(
            "2400000034030001ac0201000207070707070707070707070707070707",
            "0201ad02040001ab020301000580800202090403",
            "01ac0202018080046672616d65"
        );
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes(&message)), golden);
        back(&message);
    }

    /// What is asked to be kept by the calendar is behind the record: both ways between old and new.
    #[test]
    fn golden_open() {
        let mut open = Open {
            session: "s".into(),
            replica: "web".into(),
            datastore: None,
            base: Some("p".into()),
            snapshot_identity: "i".into(),
            snapshot_at_ms: 5,
            disks: vec![OpenDisk { source_path: "/a".into(), disk_len: 300, base_root: None }],
            keep: Some(14),
            keep_calendar: KeepCalendar::default(),
            vm: None,
        };
        let old = "200173037765620001017001690a01022f61ac0200010e";
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes(&Message::Open(open.clone()))), old);
        back(&Message::Open(open.clone()));
        let without = open.clone();
        open.keep_calendar = KeepCalendar { daily: 7, weekly: 4, monthly: 12, yearly: 300 };
        let new = bytes(&Message::Open(open.clone()));
        assert_eq!(data_encoding::HEXLOWER.encode(&new), format!("{old}07040cac02"));
        back(&Message::Open(open.clone()));
        assert_eq!(
            unpack::<Open>(kind::OPEN, &new[1..]),
            Ok(without.clone()),
            "as an older appliance reads it"
        );
        assert!(Message::decode(kind::OPEN, Bytes::from(new[1..new.len() - 1].to_vec())).is_err());
        // And what the VM is, behind that.
        open.keep_calendar = KeepCalendar::default();
        let vm = VmConfig { nics: vec![], disks: vec![], ..crate::vm_config::tests::sample() };
        open.vm = Some(Box::new(vm));
        let newer = bytes(&Message::Open(open.clone()));
        let json = concat!(
            r#"{"cpus":2,"memory_bytes":2147483648,"machine":"q35","firmware":"bios","nics":[],"disks":[],"#,
            r#""source":"qemu","definition":null}"#
        );
        assert_eq!(
            data_encoding::HEXLOWER.encode(&newer[..newer.len() - json.len()]),
            format!("{old}000000007d")
        );
        assert_eq!(&newer[newer.len() - json.len()..], json.as_bytes());
        back(&Message::Open(open));
        assert_eq!(unpack::<Open>(kind::OPEN, &newer[1..]), Ok(without));
        let mut unfit = newer.clone();
        unfit[newer.len() - json.len() + 8] = b'0'; // No processors.
        assert!(Message::decode(kind::OPEN, Bytes::from(unfit[1..].to_vec())).is_err());
    }

    #[test]
    fn golden_probe_and_held() {
        let offer = BlockOffer { disk: 0, chunk: 130, ids: vec![[1, 2, 3, 4, 5, 6, 7, 8]; 2] };
        let probe = Message::Probe(Probe { bases: vec![ShortId([9; 16])], blocks: vec![offer] });
        let golden = "290109090909090909090909090909090909010082010201020304050607080102030405060708";
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes(&probe)), golden);
        back(&probe);
        let held = Message::Held(Held { bases: vec![true, false], blocks: vec![0x8001] });
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes(&held)), "2a02010001818002");
        back(&held);
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let refused = |message: Message| {
            let (kind, head, tail) = message.encode();
            let body = Bytes::from([&head[..], &tail].concat());
            assert!(matches!(Message::decode(kind, body), Err(DecodeError::Bounds { .. })), "{kind}");
        };
        let batch = |header: BatchHeader| Message::Batch(Batch { header, payload: Bytes::new() });
        let run = PrefixRun { from: PrefixFrom::Held { number: 1 }, blocks: u16::MAX };
        let empty = BatchHeader { entries: vec![], prefix: vec![], codec: Codec::Raw, plain_len: 0 };
        refused(batch(BatchHeader { prefix: vec![run; PREFIX_BYTES_MAX / 65_536 + 1], ..empty.clone() }));
        refused(batch(BatchHeader { plain_len: u32::MAX, ..empty.clone() }));
        let entries = vec![Entry::Literal { disk: 0, chunk: 0 }; BATCH_ENTRIES_MAX + 1];
        refused(batch(BatchHeader { entries, ..empty }));
        refused(Message::Probe(Probe { bases: vec![ShortId([0; 16]); PROBE_BASES_MAX + 1], blocks: vec![] }));
        let offer = BlockOffer { disk: 0, chunk: 0, ids: vec![[0; 8]; 17] };
        refused(Message::Probe(Probe { bases: vec![], blocks: vec![offer] }));
        let note = VolumeNote {
            name: "x".repeat(VOLUME_NOTE_BYTES_MAX + 1),
            kind: String::new(),
            skipped_bytes: 0,
            reason: String::new(),
        };
        refused(Message::Seal(Seal { roots: vec![], consistent: true, volumes: vec![vec![note]] }));
    }
}
