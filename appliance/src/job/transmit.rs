//! Transmitting: batches in the order in which they were begun, as credit allows, then the seal.
//!
//! A batch that is worked on beside later ones holds them up until it is there; what is packed and on its
//! way keeps the line busy meanwhile ([`Pipe`] says how much that is). Bound: the payload that is not durable at the
//! target, by [`Credit`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use super::credit::Credit;
use super::replicate::{AttemptError, Replication, join};
use crate::accelerator::effort::Seen;
use crate::block::CHUNK_BYTES;
use crate::limits::BATCHES_PACKED_MAX;
use crate::wire::SessionSender;
use crate::wire::message::{Batch, Entry, Message};

/// What the transmitter sends next.
pub enum Outgoing {
    /// Chunks.
    Batch(Packed),
    /// Nothing is left: ask for the seal.
    Seal,
}

/// Batches, or word of them.
pub enum Packing {
    /// Made.
    Done(Vec<Batch>),
    /// Being made on a thread of its own.
    Beside(JoinHandle<Result<Vec<Batch>, AttemptError>>),
}

/// Batches and their share of [`Pipe::backlog`].
pub struct Packed {
    packing: Packing,
    counted: u64,
    /// Given back when they are next.
    room: OwnedSemaphorePermit,
}

/// Room for packed batches: one of the session's own, so that none waits for another, and what all share.
pub struct Rooms {
    own: Arc<Semaphore>,
    shared: Arc<Semaphore>,
}

impl Rooms {
    /// Of a session.
    pub fn new(shared: Arc<Semaphore>) -> Self {
        Self { own: Arc::new(Semaphore::new(1)), shared }
    }

    /// Waits for room.
    pub async fn take(&self) -> Result<OwnedSemaphorePermit, AttemptError> {
        let (own, shared) = (self.own.clone().acquire_owned(), self.shared.clone().acquire_owned());
        tokio::select! {
            biased;
            room = own => room,
            room = shared => room,
        }
        .map_err(|_| AttemptError::Cancelled)
    }

    /// The part of what all share that is taken; 0 to 1.
    pub fn fill(&self) -> f64 {
        1.0 - self.shared.available_permits() as f64 / BATCHES_PACKED_MAX as f64
    }
}

/// What lies between the batcher and the target's disks, in one attempt.
pub struct Pipe {
    /// Batch payload handed to the wire.
    sent: AtomicU64,
    /// Stored bytes that are packed, or expected of what is being packed, and not handed to the wire.
    packed: AtomicU64,
    /// Microseconds for which the batcher had nothing to pack, since somebody asked.
    idle: AtomicU64,
    durable: watch::Receiver<u64>,
}

impl Pipe {
    /// Empty; `durable` is what the target says.
    pub fn new(durable: watch::Receiver<u64>) -> Self {
        let zero = || AtomicU64::new(0);
        Self { sent: zero(), packed: zero(), idle: zero(), durable }
    }

    /// Bytes that are packed and not durable.
    pub fn backlog(&self) -> u64 {
        self.packed.load(Ordering::Relaxed) + self.outstanding()
    }

    /// Payload that was sent and is not durable: what crosses again when the link is cut, at the most.
    pub fn outstanding(&self) -> u64 {
        self.sent.load(Ordering::Relaxed).saturating_sub(*self.durable.borrow())
    }

    /// The batcher had nothing to pack for so long.
    pub fn idle(&self, time: Duration) {
        self.idle.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    /// Counts batches in.
    pub fn packed(&self, packing: Packing, expected: u64, room: OwnedSemaphorePermit) -> Packed {
        let counted = match &packing {
            Packing::Done(batches) => payload_bytes(batches),
            Packing::Beside(_) => expected,
        };
        self.packed.fetch_add(counted, Ordering::Relaxed);
        Packed { packing, counted, room }
    }

    /// That much goes to the wire.
    fn handed_on(&self, payload: u64) {
        self.sent.fetch_add(payload, Ordering::Relaxed);
        self.packed.fetch_sub(payload, Ordering::Relaxed);
    }

    /// What batches came to takes the place of what was expected of them.
    fn made(&self, counted: u64, batches: &[Batch]) {
        self.packed.fetch_add(payload_bytes(batches), Ordering::Relaxed);
        self.packed.fetch_sub(counted, Ordering::Relaxed);
    }
}

fn payload_bytes(batches: &[Batch]) -> u64 {
    batches.iter().map(|batch| batch.payload.len() as u64).sum()
}

/// Sends batches as credit allows, and the seal when everything is sent.
pub async fn transmit(
    ctx: Arc<Replication>,
    pipe: Arc<Pipe>,
    sender: SessionSender,
    mut queue: mpsc::Receiver<Outgoing>,
) -> Result<(), AttemptError> {
    let (mut durable, mut credit) = (pipe.durable.clone(), Credit::default());
    let mut last: Option<(Instant, u64)> = None;
    loop {
        let waited = !queue.is_empty();
        let Some(next) = queue.recv().await else { break };
        let packed = match next {
            Outgoing::Batch(packed) => packed,
            Outgoing::Seal => {
                let worker = ctx.clone();
                let seal = tokio::task::spawn_blocking(move || worker.prepare_seal())
                    .await
                    .map_err(|e| AttemptError::Lost(e.to_string()))??;
                sender.send(seal).await?;
                continue;
            }
        };
        let (batches, waited) = match packed.packing {
            Packing::Done(batches) => (batches, waited),
            Packing::Beside(packing) => {
                let waited = waited && packing.is_finished();
                (join(packing.await)?, waited)
            }
        };
        pipe.made(packed.counted, &batches);
        drop(packed.room);
        let (now, crossed) = (Instant::now(), *durable.borrow());
        let idle = Duration::from_micros(pipe.idle.swap(0, Ordering::Relaxed));
        if let Some((then, before)) = last.replace((now, crossed)) {
            let (took, outstanding) = (now - then, pipe.outstanding());
            let crossed = crossed.saturating_sub(before);
            let queued = sender.queued_bytes() > 0;
            let delivered = sender.delivery_rate().map(|rate| rate as f64);
            ctx.line_seen(Seen { took, idle, crossed, outstanding, waited, queued, delivered });
        }
        for batch in batches {
            let start = Instant::now();
            let payload = batch.payload.len() as u64;
            let sent = pipe.sent.load(Ordering::Relaxed);
            let enough = |durable: &u64| {
                let window = credit.window(*durable, Instant::now());
                *durable >= sent || sent + payload <= *durable + window
            };
            durable.wait_for(enough).await.map_err(|_| AttemptError::Cancelled)?;
            pipe.handed_on(payload);
            credit.sent(sent + payload, Instant::now());
            note_batch(&ctx, &batch);
            sender.send(Message::Batch(batch)).await?;
            ctx.handle.clocks.network.add(start);
        }
    }
    // The queue ends with the attempt; stay until then, so that the end is not taken for a failure.
    std::future::pending().await
}

fn note_batch(ctx: &Replication, batch: &Batch) {
    let copies = batch.header.entries.iter().filter(|entry| matches!(entry, Entry::Copy { .. })).count();
    let literals = batch.header.entries.len() - copies;
    let base: u64 = batch.header.prefix.iter().map(|run| u64::from(run.blocks.count_ones()) * 4096).sum();
    let recipe = Message::Batch(batch.clone()).encode().1.len() as u64;
    let payload = batch.payload.len() as u64;
    ctx.handle.note(|session| {
        session.bytes.sent_payload += payload + recipe;
        session.bytes.delta_base += base;
        if base > 0 {
            session.chunks.delta += literals as u64;
        } else {
            session.chunks.literal += literals as u64;
        }
        session.chunks.known += copies as u64;
        session.bytes.deduplicated += (copies * CHUNK_BYTES) as u64;
        if let Some((disk, _)) = batch.header.entries.first().map(Entry::place)
            && let Some(disk) = session.disks.get_mut(disk as usize)
        {
            disk.sent_bytes += payload + recipe;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::{BatchHeader, Codec};

    fn batch(bytes: usize) -> Batch {
        let header = BatchHeader { entries: Vec::new(), prefix: Vec::new(), codec: Codec::Raw, plain_len: 0 };
        Batch { header, payload: vec![0; bytes].into() }
    }

    /// Every byte counts once, from the guess of a batch until it is durable.
    #[tokio::test]
    async fn the_backlog_counts_every_byte_once() {
        let (told, durable) = watch::channel(0);
        let pipe = Pipe::new(durable);
        let rooms = Rooms::new(Arc::new(Semaphore::new(BATCHES_PACKED_MAX)));
        let room = async || rooms.take().await.ok().unwrap();
        let done = pipe.packed(Packing::Done(vec![batch(700), batch(300)]), 5, room().await);
        let beside = tokio::task::spawn_blocking(|| Ok(vec![batch(450)]));
        let beside = pipe.packed(Packing::Beside(beside), 600, room().await);
        assert_eq!(pipe.backlog(), 1600);
        pipe.made(done.counted, &[batch(700), batch(300)]);
        pipe.made(beside.counted, &[batch(450)]);
        assert_eq!(pipe.backlog(), 1450);
        [700, 300, 450].into_iter().for_each(|payload| pipe.handed_on(payload));
        assert_eq!((pipe.backlog(), pipe.outstanding()), (1450, 1450));
        told.send_replace(1000);
        assert_eq!((pipe.backlog(), pipe.outstanding()), (450, 450));
    }

    /// However much others hold, each session has room for one.
    #[tokio::test]
    async fn no_session_waits_for_room_that_others_hold() {
        let shared = Arc::new(Semaphore::new(BATCHES_PACKED_MAX));
        let (greedy, modest) = (Rooms::new(shared.clone()), Rooms::new(shared));
        let mut held = Vec::new();
        for _ in 0..=BATCHES_PACKED_MAX {
            held.push(greedy.take().await.ok().unwrap());
        }
        assert_eq!(greedy.fill(), 1.0);
        let soon = |rooms| async move {
            tokio::time::timeout(Duration::from_millis(20), Rooms::take(rooms)).await.ok()?.ok()
        };
        assert!(soon(&greedy).await.is_none());
        let own = soon(&modest).await;
        assert!(own.is_some() && soon(&modest).await.is_none());
        held.clear();
        assert!(soon(&modest).await.is_some() && soon(&greedy).await.is_some());
    }
}
