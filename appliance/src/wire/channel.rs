//! One session's channel: two bounded queues and two handles.
//!
//! The sender waits for permits, so that at most [`CHANNEL_SEND_BYTES_MAX`] of a channel wait for the
//! scheduler. The stream's reader never waits for a slow receiver: what does not fit into
//! [`CHANNEL_RECEIVE_BYTES_MAX`] ends this channel with an error, and no other. Session credits keep
//! an honest peer far below that. Messages are parsed by whoever receives them, not by the reader.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};

use super::WireError;
use super::accounting::ChannelCounters;
use super::frame::kind;
use super::message::Message;
use super::mux::Mux;
use super::scheduler::Outgoing;
use super::stream::Outbox;
use crate::limits::MESSAGE_BYTES_MAX;

/// Bytes of one channel that wait for the scheduler; the largest message always fits.
pub const CHANNEL_SEND_BYTES_MAX: usize = MESSAGE_BYTES_MAX + MESSAGE_BYTES_MAX / 4;
/// Bytes of one channel that wait for its receiver.
pub const CHANNEL_RECEIVE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a message costs beyond its bytes, so that empty ones are bounded as well.
const MESSAGE_OVERHEAD_BYTES: usize = 256;

/// What both handles and the stream's tables share.
pub struct Channel {
    pub(super) id: u32,
    pub(super) counters: Arc<ChannelCounters>,
    outbox: Arc<Outbox>,
    permits: Arc<Semaphore>,
    inbox: Mutex<Inbox>,
    arrived: Notify,
    mux: Weak<Mux>,
}

#[derive(Default)]
struct Inbox {
    queue: VecDeque<(u8, Bytes)>,
    bytes: usize,
    end: Option<WireError>,
}

impl Channel {
    pub(super) fn new(
        id: u32,
        outbox: Arc<Outbox>,
        counters: Arc<ChannelCounters>,
        mux: Weak<Mux>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            counters,
            outbox,
            permits: Arc::new(Semaphore::new(CHANNEL_SEND_BYTES_MAX)),
            inbox: Mutex::default(),
            arrived: Notify::new(),
            mux,
        })
    }

    /// Takes a message for the receiver. False where its queue is full: the channel has ended.
    pub(super) fn deliver(&self, kind: u8, body: Bytes) -> bool {
        let cost = body.len() + MESSAGE_OVERHEAD_BYTES;
        let mut inbox = self.inbox();
        if inbox.end.is_some() {
            return true;
        }
        if inbox.bytes + cost > CHANNEL_RECEIVE_BYTES_MAX {
            drop(inbox);
            self.end(WireError::Overflow);
            return false;
        }
        inbox.bytes += cost;
        inbox.queue.push_back((kind, body));
        drop(inbox);
        self.arrived.notify_one();
        true
    }

    /// Ends both directions; what arrived before can still be received. The first reason stays.
    pub(super) fn end(&self, why: WireError) {
        self.inbox().end.get_or_insert(why);
        self.permits.close();
        self.arrived.notify_one();
    }

    async fn send(&self, message: Message) -> Result<(), WireError> {
        let (kind, head, tail) = message.encode();
        let bytes = head.len() + tail.len();
        if bytes > MESSAGE_BYTES_MAX {
            return Err(WireError::TooLarge { bytes });
        }
        let cost = (bytes + MESSAGE_OVERHEAD_BYTES).min(CHANNEL_SEND_BYTES_MAX) as u32;
        let Ok(permit) = self.permits.clone().acquire_many_owned(cost).await else {
            return Err(self.reason());
        };
        let message = Outgoing::session(kind, [head, tail], self.counters.clone(), permit);
        if self.outbox.push(self.id, message) { Ok(()) } else { Err(self.reason()) }
    }

    async fn recv(&self) -> Result<Message, WireError> {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut inbox = self.inbox();
                if let Some((kind, body)) = inbox.queue.pop_front() {
                    inbox.bytes -= body.len() + MESSAGE_OVERHEAD_BYTES;
                    drop(inbox);
                    return Message::decode(kind, body)
                        .map_err(|error| WireError::Malformed { why: error.to_string() });
                }
                if let Some(why) = &inbox.end {
                    return Err(why.clone());
                }
            }
            arrived.await;
        }
    }

    fn reason(&self) -> WireError {
        let lost = || WireError::Lost { why: "the connection was cut".to_owned() };
        self.inbox().end.clone().unwrap_or_else(lost)
    }

    fn inbox(&self) -> std::sync::MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes the channel when the last handle goes; messages that were sent before go out first.
struct Open {
    channel: Arc<Channel>,
}

impl Drop for Open {
    fn drop(&mut self) {
        let channel = &self.channel;
        channel.counters.freeze();
        if let Some(mux) = channel.mux.upgrade() {
            mux.forget(channel.id);
        }
        channel.outbox.push(channel.id, Outgoing::control(kind::CHANNEL_CLOSE, Bytes::new()));
    }
}

/// A session's channel, as it comes from `open_session` or `Incoming::Session`.
pub struct SessionChannel {
    open: Arc<Open>,
}

impl SessionChannel {
    pub(super) fn new(channel: Arc<Channel>) -> Self {
        Self { open: Arc::new(Open { channel }) }
    }

    /// The two directions. The channel closes when all handles are gone.
    pub fn split(self) -> (SessionSender, SessionReceiver) {
        (SessionSender { open: self.open.clone() }, SessionReceiver { open: self.open })
    }

    /// What the channel costs.
    pub fn counters(&self) -> Arc<ChannelCounters> {
        self.open.channel.counters.clone()
    }
}

/// The way out.
#[derive(Clone)]
pub struct SessionSender {
    open: Arc<Open>,
}

impl SessionSender {
    /// Queues a message; waits while the channel's queue is full. Cancel-safe: a message is queued
    /// whole or not at all.
    pub async fn send(&self, message: Message) -> Result<(), WireError> {
        self.open.channel.send(message).await
    }

    /// Ends the channel from this side: whoever waits to send or to receive is woken.
    pub fn close(&self) {
        self.open.channel.end(WireError::Closed { why: String::new() });
    }

    /// True after the channel ended, from either side.
    pub fn is_closed(&self) -> bool {
        self.open.channel.inbox().end.is_some()
    }

    /// Bytes that wait for their share of the link.
    pub fn queued_bytes(&self) -> usize {
        CHANNEL_SEND_BYTES_MAX - self.open.channel.permits.available_permits().min(CHANNEL_SEND_BYTES_MAX)
    }

    /// What the channel costs.
    pub fn counters(&self) -> Arc<ChannelCounters> {
        self.open.channel.counters.clone()
    }
}

/// The way in.
pub struct SessionReceiver {
    open: Arc<Open>,
}

impl SessionReceiver {
    /// The next message; after the last one, why the channel ended. Cancel-safe.
    pub async fn recv(&mut self) -> Result<Message, WireError> {
        self.open.channel.recv().await
    }

    /// What the channel costs.
    pub fn counters(&self) -> Arc<ChannelCounters> {
        self.open.channel.counters.clone()
    }
}
