//! One session over several connections of the same two peers: a bundle of channels.
//!
//! It begins on one link (BUNDLE_OPEN) and grows while it runs: once the other side has answered, its
//! opener joins it with a channel on each further link (BUNDLE_JOIN). Messages go out as numbered
//! pieces that any of the channels takes, and are put in order at the other end ([`super::order`]).
//! Pieces on a connection that dies are gone, so the bundle ends with the first of its connections:
//! the session goes on from its durable cursor, as it does over one link.
//! Owns the table of a peer's bundles. Bounds: a channel on each link; the names go with the channels.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;

use super::WireError;
use super::accounting::Share;
use super::channel::Channel;
use super::frame::kind;
use super::mux::Mux;
use super::order::{PieceQueue, Refused, Reorder};
use super::scheduler::Outgoing;
use super::stream::Outbox;

/// What its opener calls a bundle: random.
pub type Name = [u8; 16];

/// A channel's place on one stream.
pub struct Place {
    /// Its number there.
    pub id: u32,
    /// Where its frames wait.
    pub outbox: Arc<Outbox>,
    /// What it costs there.
    pub share: Arc<Share>,
    /// The stream.
    pub mux: Weak<Mux>,
}

impl Place {
    /// Nothing is received there any more.
    pub fn forget(&self) {
        if let Some(mux) = self.mux.upgrade() {
            mux.forget(self.id);
        }
    }

    /// Says that the channel is over.
    pub fn close(&self, why: &str) {
        let body = Bytes::copy_from_slice(why.as_bytes());
        self.outbox.push(self.id, Outgoing::control(kind::CHANNEL_CLOSE, body));
    }
}

/// See the module.
pub struct Bundle {
    name: Name,
    home: Arc<Bundles>,
    queue: Arc<PieceQueue>,
    places: Mutex<Places>,
    arriving: Mutex<Reorder>,
    heard: AtomicBool,
}

#[derive(Default)]
struct Places {
    list: Vec<Place>,
    over: bool,
}

impl Bundle {
    /// Without channels yet.
    pub fn new(name: Name, home: Arc<Bundles>) -> Self {
        Self {
            name,
            home,
            queue: Arc::default(),
            places: Mutex::default(),
            arriving: Mutex::default(),
            heard: AtomicBool::new(false),
        }
    }

    /// Its name.
    pub fn name(&self) -> Name {
        self.name
    }

    /// One more channel carries it. False where it is over.
    pub fn add(&self, place: Place) -> bool {
        let mut places = self.places();
        if places.over {
            return false;
        }
        self.queue.add_taker();
        place.outbox.offer(place.id, &self.queue, &place.share);
        places.list.push(place);
        true
    }

    /// True where it has a channel on this stream.
    pub fn is_on(&self, mux: &Arc<Mux>) -> bool {
        self.places().list.iter().any(|place| std::ptr::eq(place.mux.as_ptr(), Arc::as_ptr(mux)))
    }

    /// Queues a message. False where the bundle is over.
    pub fn push(&self, message: Outgoing) -> bool {
        self.queue.push(message);
        let places = self.places();
        for place in &places.list {
            place.outbox.offer(place.id, &self.queue, &place.share);
        }
        !places.over
    }

    /// Takes a PIECE's body and hands on what is complete and due.
    pub fn take(&self, body: Bytes, room: usize, mut message: impl FnMut(u8, Bytes)) -> Result<(), Refused> {
        self.heard.store(true, Ordering::Relaxed);
        // Held while messages are handed on: connections are read by different tasks.
        let mut arriving = self.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        arriving.push(body, room)?;
        while let Some((kind, body)) = arriving.pop()? {
            message(kind, body);
        }
        Ok(())
    }

    /// A normal end: what was queued goes out, and then the end itself.
    pub fn close(&self) {
        self.home.forget(&self.name);
        self.push(Outgoing::control(kind::CHANNEL_CLOSE, Bytes::new()));
        for place in self.end() {
            place.forget();
        }
    }

    /// An end at once, because pieces are lost or nobody takes them: every other channel is closed.
    pub fn break_off(&self, why: &str) {
        self.home.forget(&self.name);
        self.queue.clear();
        for place in self.end() {
            place.forget();
            place.close(why);
        }
    }

    /// No channel is added from now on.
    fn end(&self) -> Vec<Place> {
        let mut places = self.places();
        places.over = true;
        std::mem::take(&mut places.list)
    }

    fn places(&self) -> std::sync::MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bundles between this site and one peer.
#[derive(Default)]
pub struct Bundles {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    opened: HashMap<Name, Weak<Channel>>,
    accepted: HashMap<Name, Weak<Channel>>,
}

impl Bundles {
    /// Enters a bundle that this side opened.
    pub fn opened(&self, name: Name, channel: &Arc<Channel>) {
        self.table().opened.insert(name, Arc::downgrade(channel));
    }

    /// Enters a bundle that the peer opened. False where it has one of that name.
    pub fn accepted(&self, name: Name, channel: &Arc<Channel>) -> bool {
        let mut table = self.table();
        let taken = table.accepted.get(&name).is_some_and(|known| known.strong_count() > 0);
        if !taken {
            table.accepted.insert(name, Arc::downgrade(channel));
        }
        !taken
    }

    /// A bundle that the peer opened.
    pub fn find(&self, name: &Name) -> Option<Arc<Channel>> {
        self.table().accepted.get(name)?.upgrade()
    }

    /// The bundles of this side that the peer has answered: it knows them, so they may grow.
    pub fn growing(&self) -> Vec<Arc<Channel>> {
        let heard = |channel: &Arc<Channel>| {
            channel.bundle().is_some_and(|bundle| bundle.heard.load(Ordering::Relaxed))
        };
        self.table().opened.values().filter_map(Weak::upgrade).filter(heard).collect()
    }

    #[cfg(test)]
    pub(super) fn growing_for_test(&self) -> Arc<Channel> {
        self.table().opened.values().find_map(Weak::upgrade).unwrap()
    }

    fn forget(&self, name: &Name) {
        let mut table = self.table();
        // By name alone: names are random, and a peer that repeats one harms itself.
        table.opened.remove(name);
        table.accepted.remove(name);
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a bundle ended, as its other channels are told.
pub fn end_words(why: &WireError) -> String {
    let mut words = why.to_string();
    let mut end = words.len().min(super::mux::REASON_BYTES_MAX);
    while !words.is_char_boundary(end) {
        end -= 1;
    }
    words.truncate(end);
    words
}
