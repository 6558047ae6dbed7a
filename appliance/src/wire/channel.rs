//! One session's channel: two bounded queues and two handles. It lies on one stream, or, as a bundle,
//! on several (`bundle`).
//!
//! The sender waits for permits, so that at most [`CHANNEL_SEND_BYTES_MAX`] of a channel wait for the
//! scheduler. The stream's reader never waits for a slow receiver: what does not fit into
//! [`CHANNEL_RECEIVE_BYTES_MAX`] ends this channel with an error, and no other. Session credits keep
//! an honest peer far below that. Messages are parsed by whoever receives them, not by the reader.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};

use super::WireError;
use super::accounting::ChannelCounters;
use super::bundle::{Bundle, Place, end_words};
use super::frame::{FrameError, kind};
use super::message::Message;
use super::order::Refused;
use super::scheduler::Outgoing;
use crate::limits::MESSAGE_BYTES_MAX;
use crate::throttle::SharedBucket;

/// Bytes of one channel that wait for the scheduler; the largest message always fits.
pub const CHANNEL_SEND_BYTES_MAX: usize = MESSAGE_BYTES_MAX + MESSAGE_BYTES_MAX / 4;
/// Bytes of one channel that wait for its receiver.
pub const CHANNEL_RECEIVE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a message costs beyond its bytes, so that empty ones are bounded as well.
const MESSAGE_OVERHEAD_BYTES: usize = 256;

/// What both handles and the stream's tables share.
pub struct Channel {
    pub(super) counters: Arc<ChannelCounters>,
    way: Way,
    permits: Arc<Semaphore>,
    /// The session's own rate.
    limit: OnceLock<Arc<SharedBucket>>,
    inbox: Mutex<Inbox>,
    arrived: Notify,
}

/// How its frames travel.
enum Way {
    One(Place),
    Bundle(Bundle),
}

#[derive(Default)]
struct Inbox {
    queue: VecDeque<(u8, Bytes)>,
    bytes: usize,
    end: Option<WireError>,
}

impl Channel {
    /// On one stream.
    pub(super) fn single(place: Place) -> Arc<Self> {
        let counters = ChannelCounters::default();
        counters.add(place.share.clone());
        Self::new(counters, Way::One(place))
    }

    /// On several; none of them yet.
    pub(super) fn bundled(bundle: Bundle) -> Arc<Self> {
        Self::new(ChannelCounters::default(), Way::Bundle(bundle))
    }

    fn new(counters: ChannelCounters, way: Way) -> Arc<Self> {
        Arc::new(Self {
            counters: Arc::new(counters),
            way,
            permits: Arc::new(Semaphore::new(CHANNEL_SEND_BYTES_MAX)),
            limit: OnceLock::new(),
            inbox: Mutex::default(),
            arrived: Notify::new(),
        })
    }

    /// The bundle, where it is one.
    pub(super) fn bundle(&self) -> Option<&Bundle> {
        match &self.way {
            Way::One(_) => None,
            Way::Bundle(bundle) => Some(bundle),
        }
    }

    /// One more stream carries the bundle. False where it is over, or where this is none.
    pub(super) fn add(&self, place: Place) -> bool {
        let share = place.share.clone();
        let added = self.bundle().is_some_and(|bundle| bundle.add(place));
        if added {
            self.counters.add(share);
        }
        added
    }

    /// Takes a piece. False where it is one too many: the channel has ended.
    pub(super) fn take_piece(&self, body: Bytes) -> Result<bool, FrameError> {
        let Some(bundle) = self.bundle() else {
            return Err(FrameError::Place { kind: kind::PIECE, channel: 0 });
        };
        let room = CHANNEL_RECEIVE_BYTES_MAX.saturating_sub(self.inbox().bytes);
        let mut fits = true;
        let taken = bundle.take(body, room, |kind, body| match kind {
            kind::CHANNEL_CLOSE => {
                self.end(WireError::Closed { why: String::from_utf8_lossy(&body).into_owned() });
            }
            kind => fits &= self.deliver(kind, body),
        });
        match taken {
            Ok(()) => Ok(fits),
            Err(Refused::Frame(error)) => Err(error),
            Err(Refused::Full) => {
                self.end(WireError::Overflow);
                Ok(false)
            }
        }
    }

    /// A stream that carries it is gone, or refused it.
    pub(super) fn lose(&self, why: WireError) {
        if let Some(bundle) = self.bundle() {
            bundle.break_off(&end_words(&why));
        }
        self.end(why);
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
        let limit = self.limit.get().cloned();
        let message = |share| Outgoing::session(kind, [head, tail], share, permit, limit);
        let queued = match &self.way {
            Way::One(place) => place.outbox.push(place.id, message(Some(place.share.clone()))),
            Way::Bundle(bundle) => bundle.push(message(None)),
        };
        if queued { Ok(()) } else { Err(self.reason()) }
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
        self.channel.counters.freeze();
        match &self.channel.way {
            Way::One(place) => {
                place.forget();
                place.close("");
            }
            Way::Bundle(bundle) => bundle.close(),
        }
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

    /// Bounds what this side sends on it, in bits a second of frames; once.
    pub fn limit_rate(&self, job: &str, rate_bps: u64) {
        let _ = self.open.channel.limit.set(SharedBucket::new(job, rate_bps));
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

    /// Bytes a second that the line takes at least: what was delivered of late, and no more than the session's own rate.
    pub fn delivery_rate(&self) -> Option<u64> {
        let own = self.open.channel.limit.get().map(|limit| limit.lock().rate_bps() / 8);
        let rate = self.open.channel.counters.delivery_rate()?;
        Some(own.map_or(rate, |own| rate.min(own)))
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
