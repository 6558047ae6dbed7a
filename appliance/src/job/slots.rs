//! Slots for sessions: the broker of `schedule::resources`, and who waits for its word.
//!
//! Owns the broker. A session that waits is told in its figures what for, and its place; whoever stops waiting
//! (cancelled, suspended by its window, the appliance stops) leaves the queue by being dropped. Decides nothing.
//! Bound: an entry a session.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;
use vbr_api::WaitsFor;

use super::session::SessionHandle;
use crate::schedule::resources::{Bounds, Broker, Need, Ticket};

struct Waiter {
    handle: Arc<SessionHandle>,
    word: oneshot::Sender<u32>,
}

struct State {
    broker: Broker,
    waiting: BTreeMap<Ticket, Waiter>,
}

/// See the module.
pub struct Slots(Mutex<State>);

/// The slots of a session, or its place in the queue; given back when dropped.
pub struct Slot {
    slots: Arc<Slots>,
    ticket: Ticket,
    /// Disks it may work on at once.
    pub tasks: usize,
}

impl Slots {
    /// All free.
    pub fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { broker: Broker::new(bounds), waiting: BTreeMap::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for slots, since `asked` in the queue. Dropped before it has them, it leaves the queue.
    pub async fn acquire(self: &Arc<Self>, need: Need, asked: Instant, handle: Arc<SessionHandle>) -> Slot {
        let (word, granted) = oneshot::channel();
        let ticket = {
            let mut state = self.lock();
            let ticket = state.broker.enter(need, asked);
            state.waiting.insert(ticket, Waiter { handle, word });
            ticket
        };
        let mut slot = Slot { slots: self.clone(), ticket, tasks: 1 };
        self.settle();
        // The word is sent before a waiter is forgotten, so that it is never missed.
        slot.tasks = granted.await.map_or(1, |tasks| tasks as usize);
        slot
    }

    fn settle(&self) {
        let mut state = self.lock();
        let (granted, places) = state.broker.settle(Instant::now());
        for (ticket, tasks) in granted {
            if let Some(waiter) = state.waiting.remove(&ticket) {
                waiter.handle.note_wait(None);
                let _ = waiter.word.send(tasks); // Nobody there: its slot is being dropped.
            }
        }
        for place in places {
            if let Some(waiter) = state.waiting.get(&place.ticket) {
                let wait = WaitsFor { resource: place.lacks.to_string(), place: place.place };
                waiter.handle.note_wait(Some(wait));
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let left = {
            let mut state = self.slots.lock();
            state.broker.leave(self.ticket);
            state.waiting.remove(&self.ticket)
        };
        if let Some(waiter) = left {
            waiter.handle.note_wait(None);
        }
        self.slots.settle();
    }
}
