//! The channels of one data stream.
//!
//! Whoever opened the stream numbers its channels from 1 upwards and opens them; frames flow both
//! ways. The reader task hands bodies straight to the channels' queues: no bulk goes through an
//! actor's inbox. A channel is a session's own, or one of those that carry a bundle. Owns the table of
//! channels and the assemblers.
//! Bounds: [`CHANNELS_MAX`] channels, [`UNFINISHED_BYTES_MAX`] in messages that are not complete.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::io::AsyncRead;

use super::WireError;
use super::accounting::{ConnectionCounters, Share};
use super::bundle::{Bundle, Bundles, Name, Place};
use super::channel::{Channel, SessionChannel};
use super::frame::{Assembler, FrameError, HEADER_BYTES, Header, kind};
use super::scheduler::Outgoing;
use super::stream::{FrameReader, Outbox, StreamError};
use crate::limits::{MESSAGE_BYTES_MAX, TARGET_SESSIONS_MAX};

/// Channels of one data stream at once.
pub const CHANNELS_MAX: usize = 2 * TARGET_SESSIONS_MAX;
/// Bytes of unfinished messages of all channels of one stream together.
const UNFINISHED_BYTES_MAX: usize = 16 * MESSAGE_BYTES_MAX;
/// Longest reason in a close.
pub const REASON_BYTES_MAX: usize = 512;

/// Takes a channel that the peer opened, or gives it back with the reason.
pub type Accept<'a> = dyn Fn(SessionChannel) -> Result<(), (String, SessionChannel)> + Send + Sync + 'a;

/// See the module.
pub struct Mux {
    outbox: Arc<Outbox>,
    counters: Arc<ConnectionCounters>,
    bundles: Arc<Bundles>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    channels: HashMap<u32, Known>,
    /// The highest number ever used.
    last: u32,
    dead: Option<WireError>,
}

#[derive(Clone)]
struct Known {
    channel: Arc<Channel>,
    share: Arc<Share>,
}

impl Table {
    fn enter(&mut self, id: u32, channel: &Arc<Channel>, share: Arc<Share>) {
        self.last = self.last.max(id);
        self.channels.insert(id, Known { channel: channel.clone(), share });
    }
}

impl Mux {
    /// For a stream whose Hello was exchanged.
    pub fn new(counters: Arc<ConnectionCounters>, bundles: Arc<Bundles>) -> Arc<Self> {
        Arc::new(Self { outbox: Arc::new(Outbox::new()), counters, bundles, table: Mutex::default() })
    }

    /// Where this stream's messages wait.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Channels in use.
    pub fn channels(&self) -> usize {
        self.table().channels.len()
    }

    /// Opens a channel on a stream that we opened.
    pub fn open(self: &Arc<Self>) -> Result<SessionChannel, WireError> {
        let mut table = self.table();
        let place = self.next_place(&table)?;
        let (id, share) = (place.id, place.share.clone());
        let channel = Channel::single(place);
        table.enter(id, &channel, share);
        drop(table);
        self.outbox.push(id, Outgoing::control(kind::CHANNEL_OPEN, Bytes::new()));
        Ok(SessionChannel::new(channel))
    }

    /// Opens a bundle with its first channel on a stream that we opened.
    pub fn open_bundle(self: &Arc<Self>, name: Name) -> Result<SessionChannel, WireError> {
        let channel = Channel::bundled(Bundle::new(name, self.bundles.clone()));
        self.attach(&channel, name, kind::BUNDLE_OPEN)?;
        self.bundles.opened(name, &channel);
        Ok(SessionChannel::new(channel))
    }

    /// Has a bundle of ours use this stream as well.
    pub fn join(self: &Arc<Self>, channel: &Arc<Channel>) -> Result<(), WireError> {
        let name = channel.bundle().map(Bundle::name).unwrap_or_default();
        self.attach(channel, name, kind::BUNDLE_JOIN)
    }

    fn attach(self: &Arc<Self>, channel: &Arc<Channel>, name: Name, kind: u8) -> Result<(), WireError> {
        let mut table = self.table();
        let place = self.next_place(&table)?;
        let id = place.id;
        table.enter(id, channel, place.share.clone());
        drop(table);
        // Before the channel may be used: its pieces come after it.
        self.outbox.push(id, Outgoing::control(kind, Bytes::copy_from_slice(&name)));
        if !channel.add(place) {
            self.refuse(id, "the session is over");
        }
        Ok(())
    }

    /// Reads the stream until it fails. `accept` takes channels that the peer opens; none where
    /// this side opened the stream.
    pub async fn read(
        self: &Arc<Self>,
        mut reader: FrameReader<impl AsyncRead + Unpin>,
        accept: Option<&Accept<'_>>,
    ) -> StreamError {
        let mut unfinished: HashMap<u32, Assembler> = HashMap::new();
        loop {
            let frame = match reader.read().await {
                Ok(frame) => frame,
                Err(error) => return error,
            };
            self.counters.add_received((HEADER_BYTES + frame.1.len()) as u64);
            if let Err(error) = self.take(&mut unfinished, frame.0, frame.1, accept) {
                return error.into();
            }
        }
    }

    /// The link is gone: every channel learns why.
    pub fn kill(&self, why: &WireError) {
        let channels = {
            let mut table = self.table();
            table.dead.get_or_insert_with(|| why.clone());
            std::mem::take(&mut table.channels)
        };
        for known in channels.values() {
            known.channel.lose(why.clone());
        }
        self.outbox.kill();
    }

    /// Both handles of a channel are gone.
    pub(super) fn forget(&self, id: u32) {
        self.table().channels.remove(&id);
    }

    fn take(
        self: &Arc<Self>,
        unfinished: &mut HashMap<u32, Assembler>,
        header: Header,
        body: Bytes,
        accept: Option<&Accept<'_>>,
    ) -> Result<(), FrameError> {
        let (id, place) = (header.channel, FrameError::Place { kind: header.kind, channel: header.channel });
        let whole = header.is_first() && !header.has_more();
        match (header.kind, accept) {
            (kind::CHANNEL_OPEN, Some(accept)) if whole && body.is_empty() => self.accept(id, None, accept),
            (kind::BUNDLE_OPEN, Some(accept)) if whole => {
                self.accept(id, Some(name_of(&body).ok_or(place)?), accept)
            }
            (kind::BUNDLE_JOIN, Some(_)) if whole => self.accept_join(id, name_of(&body).ok_or(place)?),
            (kind::PIECE, _) if whole => {
                self.known(id, &place)?;
                // None: closed here while the frame was under way.
                let Some(Known { channel, share }) = self.get(id) else { return Ok(()) };
                share.add_received((HEADER_BYTES + body.len()) as u64);
                if !channel.take_piece(body)? {
                    self.overflow(id, &channel);
                }
                Ok(())
            }
            (kind::CHANNEL_CLOSE, _) if whole && body.len() <= REASON_BYTES_MAX => {
                self.known(id, &place)?;
                unfinished.remove(&id);
                if let Some(Known { channel, share }) = self.remove(id) {
                    share.add_received(HEADER_BYTES as u64);
                    channel.lose(WireError::Closed { why: String::from_utf8_lossy(&body).into_owned() });
                }
                Ok(())
            }
            (kind::SESSION_FIRST.., _) => {
                self.known(id, &place)?;
                let Some(Known { channel, share }) = self.get(id) else {
                    // Closed here while the frame was under way.
                    unfinished.remove(&id);
                    return Ok(());
                };
                if channel.bundle().is_some() {
                    return Err(place);
                }
                share.add_received((HEADER_BYTES + body.len()) as u64);
                let assembler = unfinished.entry(id).or_insert_with(|| Assembler::new(MESSAGE_BYTES_MAX));
                let message = assembler.push(&header, body)?;
                if !assembler.is_open() {
                    unfinished.remove(&id);
                }
                if let Some((kind, body)) = message
                    && !channel.deliver(kind, body)
                {
                    self.overflow(id, &channel);
                }
                let held: usize = unfinished.values().map(Assembler::buffered).sum();
                if held > UNFINISHED_BYTES_MAX {
                    return Err(FrameError::Length {
                        kind: header.kind,
                        length: header.length,
                        max: UNFINISHED_BYTES_MAX,
                    });
                }
                Ok(())
            }
            _ => Err(place),
        }
    }

    fn accept(self: &Arc<Self>, id: u32, name: Option<Name>, accept: &Accept<'_>) -> Result<(), FrameError> {
        let Some(place) = self.place_for(id)? else { return Ok(()) };
        let share = place.share.clone();
        let channel = match name {
            None => Channel::single(place),
            Some(name) => {
                let channel = Channel::bundled(Bundle::new(name, self.bundles.clone()));
                if !self.bundles.accepted(name, &channel) {
                    return Err(FrameError::Place { kind: kind::BUNDLE_OPEN, channel: id });
                }
                channel.add(place);
                channel
            }
        };
        self.enter(id, &channel, share);
        // Where nobody takes it, the dropped handles close it; the reason goes before that.
        if let Err((why, _session)) = accept(SessionChannel::new(channel)) {
            self.refuse(id, &why);
        }
        Ok(())
    }

    fn accept_join(self: &Arc<Self>, id: u32, name: Name) -> Result<(), FrameError> {
        let Some(place) = self.place_for(id)? else { return Ok(()) };
        let share = place.share.clone();
        let Some(channel) = self.bundles.find(&name) else {
            self.refuse(id, "the session is over");
            return Ok(());
        };
        self.enter(id, &channel, share);
        if !channel.add(place) {
            self.refuse(id, "the session is over");
        }
        Ok(())
    }

    /// As [`Table::enter`], where the stream may have ended in the meantime.
    fn enter(&self, id: u32, channel: &Arc<Channel>, share: Arc<Share>) {
        let mut table = self.table();
        match table.dead.clone() {
            None => table.enter(id, channel, share),
            Some(why) => {
                drop(table);
                channel.lose(why);
            }
        }
    }

    /// A place for a channel that the peer opens, its first frame counted; none where it is one too many.
    fn place_for(self: &Arc<Self>, id: u32) -> Result<Option<Place>, FrameError> {
        let mut table = self.table();
        if id <= table.last || table.dead.is_some() {
            return Err(FrameError::Place { kind: kind::CHANNEL_OPEN, channel: id });
        }
        table.last = id;
        if table.channels.len() >= CHANNELS_MAX {
            drop(table);
            self.refuse(id, "too many sessions are open on this link");
            return Ok(None);
        }
        let place = self.place(id);
        place.share.add_received(HEADER_BYTES as u64);
        Ok(Some(place))
    }

    /// A place for a channel that we open.
    fn next_place(self: &Arc<Self>, table: &Table) -> Result<Place, WireError> {
        if let Some(why) = &table.dead {
            return Err(why.clone());
        }
        if table.channels.len() >= CHANNELS_MAX || table.last == u32::MAX {
            return Err(WireError::Busy { why: format!("{CHANNELS_MAX} sessions are open on this link") });
        }
        Ok(self.place(table.last + 1))
    }

    fn place(self: &Arc<Self>, id: u32) -> Place {
        let share = Share::new(self.counters.clone());
        Place { id, outbox: self.outbox.clone(), share, mux: Arc::downgrade(self) }
    }

    /// More came than a receiver's queue holds.
    fn overflow(&self, id: u32, channel: &Channel) {
        let why = "the receiver's queue is full: credits were not kept";
        self.refuse(id, why);
        if let Some(bundle) = channel.bundle() {
            bundle.break_off(why);
        }
    }

    fn refuse(&self, id: u32, why: &str) {
        self.remove(id);
        let body = Bytes::copy_from_slice(why.as_bytes());
        self.outbox.push(id, Outgoing::control(kind::CHANNEL_CLOSE, body));
    }

    /// A number that was never used is a fault; one whose channel is over is a late frame.
    fn known(&self, id: u32, fault: &FrameError) -> Result<(), FrameError> {
        if id == 0 || id > self.table().last { Err(fault.clone()) } else { Ok(()) }
    }

    fn get(&self, id: u32) -> Option<Known> {
        self.table().channels.get(&id).cloned()
    }

    fn remove(&self, id: u32) -> Option<Known> {
        self.table().channels.remove(&id)
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name_of(body: &Bytes) -> Option<Name> {
    Name::try_from(&body[..]).ok()
}
