//! The channels of one data stream.
//!
//! Whoever opened the stream numbers its channels from 1 upwards and opens them; frames flow both
//! ways. The reader task hands bodies straight to the channels' queues: no bulk goes through an
//! actor's inbox. Owns the table of channels and the assemblers.
//! Bounds: [`CHANNELS_MAX`] channels, [`UNFINISHED_BYTES_MAX`] in messages that are not complete.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::io::AsyncRead;

use super::WireError;
use super::accounting::{ChannelCounters, ConnectionCounters};
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
const REASON_BYTES_MAX: usize = 512;

/// Takes a channel that the peer opened, or gives it back with the reason.
pub type Accept<'a> = dyn Fn(SessionChannel) -> Result<(), (String, SessionChannel)> + Send + Sync + 'a;

/// See the module.
pub struct Mux {
    outbox: Arc<Outbox>,
    counters: Arc<ConnectionCounters>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    channels: HashMap<u32, Arc<Channel>>,
    /// The highest number ever used.
    last: u32,
    dead: Option<WireError>,
}

impl Mux {
    /// For a stream whose Hello was exchanged.
    pub fn new(counters: Arc<ConnectionCounters>) -> Arc<Self> {
        Arc::new(Self { outbox: Arc::new(Outbox::new()), counters, table: Mutex::default() })
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
        if let Some(why) = &table.dead {
            return Err(why.clone());
        }
        if table.channels.len() >= CHANNELS_MAX || table.last == u32::MAX {
            return Err(WireError::Busy { why: format!("{CHANNELS_MAX} sessions are open on this link") });
        }
        let id = table.last + 1;
        let channel = self.insert(&mut table, id);
        drop(table);
        self.outbox.push(id, Outgoing::control(kind::CHANNEL_OPEN, Bytes::new()));
        Ok(SessionChannel::new(channel))
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
        for channel in channels.values() {
            channel.end(why.clone());
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
            (kind::CHANNEL_OPEN, Some(accept)) if whole && body.is_empty() => self.accept(id, accept),
            (kind::CHANNEL_CLOSE, _) if whole && body.len() <= REASON_BYTES_MAX => {
                self.known(id, &place)?;
                unfinished.remove(&id);
                if let Some(channel) = self.remove(id) {
                    channel.counters.add_received(HEADER_BYTES as u64);
                    channel.end(WireError::Closed { why: String::from_utf8_lossy(&body).into_owned() });
                }
                Ok(())
            }
            (kind::SESSION_FIRST.., _) => {
                self.known(id, &place)?;
                let Some(channel) = self.get(id) else {
                    // Closed here while the frame was under way.
                    unfinished.remove(&id);
                    return Ok(());
                };
                channel.counters.add_received((HEADER_BYTES + body.len()) as u64);
                let assembler = unfinished.entry(id).or_insert_with(|| Assembler::new(MESSAGE_BYTES_MAX));
                let message = assembler.push(&header, body)?;
                if !assembler.is_open() {
                    unfinished.remove(&id);
                }
                if let Some((kind, body)) = message
                    && !channel.deliver(kind, body)
                {
                    self.refuse(id, "the receiver's queue is full: credits were not kept");
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

    fn accept(self: &Arc<Self>, id: u32, accept: &Accept<'_>) -> Result<(), FrameError> {
        let channel = {
            let mut table = self.table();
            if id <= table.last || table.dead.is_some() {
                return Err(FrameError::Place { kind: kind::CHANNEL_OPEN, channel: id });
            }
            if table.channels.len() >= CHANNELS_MAX {
                table.last = id;
                drop(table);
                self.refuse(id, "too many sessions are open on this link");
                return Ok(());
            }
            self.insert(&mut table, id)
        };
        channel.counters.add_received(HEADER_BYTES as u64);
        // Where nobody takes it, the dropped handles close it; the reason goes before that.
        if let Err((why, _session)) = accept(SessionChannel::new(channel)) {
            self.refuse(id, &why);
        }
        Ok(())
    }

    fn insert(self: &Arc<Self>, table: &mut Table, id: u32) -> Arc<Channel> {
        let counters = Arc::new(ChannelCounters::new(self.counters.clone()));
        let channel = Channel::new(id, self.outbox.clone(), counters, Arc::downgrade(self));
        table.last = id;
        table.channels.insert(id, channel.clone());
        channel
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

    fn get(&self, id: u32) -> Option<Arc<Channel>> {
        self.table().channels.get(&id).cloned()
    }

    fn remove(&self, id: u32) -> Option<Arc<Channel>> {
        self.table().channels.remove(&id)
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
