//! THE composition at the target: wire -> accelerator -> mover -> host, for one channel of one session.
//!
//! One task owns the state and applies messages in order; blocking work is done on a blocking thread
//! that borrows the state by value. Acknowledgements follow durability: a second task waits for the group
//! commit of each batch and only then grants credit. Bounds: [`ACKS_QUEUED_MAX`] batches that wait for
//! their commit (credit keeps them far below), pages as in `mover::target`.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use vbr_api::DiskVolume;

use super::point::{Applied, PointWriter};
use super::quota::QUOTA_EXCEEDED;
use crate::accelerator::global_cache::{GlobalCache, PackPin, Ticket};
use crate::error::Problem;
use crate::limits::{CHECKPOINT_BYTES, CHECKPOINT_INTERVAL};
use crate::repository::datastore::{Building, Point, SealSpec};
use crate::wire::message::{Durable, Message, Opened, Seal, VolumeNote};
use crate::wire::{SessionReceiver, SessionSender, WireError};

/// Batches that wait for their commit.
const ACKS_QUEUED_MAX: usize = 256;

/// Why receiving ended without a point.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The channel is gone; the point being built stays for a resume.
    #[error("the link was lost: {0}")]
    Lost(String),
    /// Said to the source before the channel closes.
    #[error(transparent)]
    Problem(#[from] Problem),
}

impl From<WireError> for ReceiveError {
    fn from(error: WireError) -> Self {
        Self::Lost(error.to_string())
    }
}

struct Ack {
    ticket: Option<Ticket>,
    payload_bytes: u64,
}

/// A running session at the target.
pub struct Receiving {
    writer: Option<PointWriter>,
    building: Arc<Building>,
    cache: Arc<GlobalCache>,
    sender: SessionSender,
    payload_bytes: u64,
    written_since: u64,
    checkpoint_at: Instant,
    checkpointing: Option<JoinHandle<Result<(), Problem>>>,
    pin: PackPin,
    seal: Option<Seal>,
    /// Another channel takes over, or the appliance stops. Never while blocking work is under way, so
    /// that nothing writes to the point after the session has given it up.
    abort: CancellationToken,
}

impl Receiving {
    /// Begins (or goes on with) a point.
    pub fn new(
        writer: PointWriter,
        building: Arc<Building>,
        cache: Arc<GlobalCache>,
        sender: SessionSender,
        abort: CancellationToken,
    ) -> Self {
        let pin = cache.pin();
        Self {
            writer: Some(writer),
            building,
            cache,
            sender,
            payload_bytes: 0,
            written_since: 0,
            checkpoint_at: Instant::now(),
            checkpointing: None,
            pin,
            seal: None,
            abort,
        }
    }

    /// Runs until the point is sealed or the session cannot go on.
    pub async fn run(mut self, receiver: &mut SessionReceiver) -> Result<Arc<Point>, ReceiveError> {
        let cursors = self.building.cursors();
        self.sender.send(Message::Opened(Opened { cursors })).await?;
        let (ack_tx, ack_rx) = mpsc::channel(ACKS_QUEUED_MAX);
        let clocks = self.writer()?.clocks.clone();
        let mut acks = JoinSet::new();
        acks.spawn(acknowledge(
            self.cache.clone(),
            self.building.clone(),
            self.sender.clone(),
            ack_rx,
            clocks,
        ));
        let result = self.apply_all(receiver, &ack_tx).await;
        if let Some(checkpointing) = self.checkpointing.take() {
            let _ = checkpointing.await; // Nobody may open the point anew while it is flushed here.
        }
        if let Err(ReceiveError::Problem(problem)) = &result
            && problem.code == QUOTA_EXCEEDED
        {
            self.settle().await; // It goes on from here once there is room.
        }
        drop(ack_tx);
        acks.shutdown().await;
        self.finish(result?).await
    }

    fn writer(&mut self) -> Result<&mut PointWriter, Problem> {
        self.writer.as_mut().ok_or_else(|| {
            Problem::new("internal", "the session's state", "was lost by a failed task", "report this")
        })
    }

    async fn apply_all(
        &mut self,
        receiver: &mut SessionReceiver,
        acks: &mpsc::Sender<Ack>,
    ) -> Result<Seal, ReceiveError> {
        let mut tick = tokio::time::interval(CHECKPOINT_INTERVAL / 3);
        loop {
            tokio::select! {
                message = receiver.recv() => self.apply(message?, acks).await?,
                _ = tick.tick() => {}
                () = self.abort.cancelled() => return Err(ReceiveError::Lost("told to stop".into())),
            }
            if self.writer()?.is_idle()
                && let Some(seal) = self.seal.take()
            {
                return Ok(seal);
            }
            self.maybe_checkpoint().await?;
        }
    }

    async fn apply(&mut self, message: Message, acks: &mpsc::Sender<Ack>) -> Result<(), ReceiveError> {
        match message {
            Message::Offer(offer) => {
                let applied = self.blocking(move |writer| writer.offer(&offer)).await?;
                self.reply(applied).await
            }
            Message::Batch(batch) => {
                self.payload_bytes += batch.payload.len() as u64;
                let applied = self.blocking(move |writer| writer.batch(&batch)).await?;
                let ack = Ack { ticket: applied.ticket, payload_bytes: self.payload_bytes };
                let gone = |_| ReceiveError::Lost("the commit of received data stopped".into());
                acks.send(ack).await.map_err(gone)?;
                self.reply(applied).await
            }
            Message::Probe(probe) => {
                let applied = self.blocking(move |writer| Ok(writer.probe(&probe))).await?;
                self.reply(applied).await
            }
            Message::Seal(seal) => {
                self.seal = Some(seal);
                Ok(())
            }
            Message::Fail(problem) => Err(ReceiveError::Lost(format!("the source gave up: {problem}"))),
            _ => Err(protocol("a message out of turn").into()),
        }
    }

    async fn reply(&mut self, applied: Applied) -> Result<(), ReceiveError> {
        self.written_since += applied.written_bytes;
        let answers = applied.needs.into_iter().map(Message::Need).chain(applied.held.map(Message::Held));
        for answer in answers {
            tokio::select! {
                sent = self.sender.send(answer) => sent?,
                () = self.abort.cancelled() => return Err(ReceiveError::Lost("told to stop".into())),
            }
        }
        Ok(())
    }

    /// Runs work on the state on a blocking thread.
    async fn blocking<R: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut PointWriter) -> Result<R, Problem> + Send + 'static,
    ) -> Result<R, ReceiveError> {
        self.writer()?;
        let Some(mut writer) = self.writer.take() else {
            return Err(ReceiveError::Lost("the session's state was lost".into()));
        };
        let done = tokio::task::spawn_blocking(move || {
            let result = work(&mut writer);
            (writer, result)
        });
        let (writer, result) = done.await.map_err(|e| ReceiveError::Lost(e.to_string()))?;
        self.writer = Some(writer);
        Ok(result?)
    }

    async fn maybe_checkpoint(&mut self) -> Result<(), ReceiveError> {
        if let Some(running) = self.checkpointing.take() {
            if !running.is_finished() {
                self.checkpointing = Some(running);
                return Ok(());
            }
            running.await.map_err(|e| ReceiveError::Lost(e.to_string()))??;
        }
        let due =
            self.written_since >= CHECKPOINT_BYTES || self.checkpoint_at.elapsed() >= CHECKPOINT_INTERVAL;
        let cursors = self.writer()?.cursors();
        if !due || cursors == self.building.cursors() {
            return Ok(());
        }
        // Packs opened from here on hold what lies above the new cursor: the old pin may go after it.
        let pin = self.cache.pin();
        let old = std::mem::replace(&mut self.pin, pin);
        let building = self.building.clone();
        self.written_since = 0;
        self.checkpoint_at = Instant::now();
        self.checkpointing = Some(tokio::task::spawn_blocking(move || {
            let done = building.checkpoint(&cursors);
            drop(old);
            done.map_err(Problem::from)
        }));
        Ok(())
    }

    /// Makes what was written so far durable. What fails costs bytes that are sent again.
    async fn settle(&mut self) {
        let Ok(cursors) = self.writer().map(|writer| writer.cursors()) else { return };
        let building = self.building.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || building.checkpoint(&cursors)).await {
            tracing::warn!(%error, "what was received last is not durable and comes again");
        }
    }

    async fn finish(mut self, seal: Seal) -> Result<Arc<Point>, ReceiveError> {
        let building = self.building.clone();
        let cursors = self.writer()?.final_cursors();
        let sealed = tokio::task::spawn_blocking(move || -> Result<Arc<Point>, Problem> {
            building.checkpoint(&cursors).map_err(Problem::from)?;
            if building.roots() != seal.roots {
                return Err(Problem::new(
                    "root_mismatch",
                    "the restore point was not sealed",
                    "its content does not have the root that the source computed",
                    "the source starts again with a full compare by itself; verify the replica if it recurs",
                )
                .retry());
            }
            building
                .seal(SealSpec {
                    consistent: seal.consistent,
                    now: vbr_api::Moment::now(),
                    volumes: seal.volumes.into_iter().map(volumes).collect(),
                })
                .map_err(Problem::from)
        });
        Ok(sealed.await.map_err(|e| ReceiveError::Lost(e.to_string()))??)
    }
}

/// Grants credit for what is on stable storage.
async fn acknowledge(
    cache: Arc<GlobalCache>,
    building: Arc<Building>,
    sender: SessionSender,
    mut acks: mpsc::Receiver<Ack>,
    clocks: Arc<super::point::TargetClocks>,
) {
    let start = clocks.micros();
    while let Some(ack) = acks.recv().await {
        if let Some(ticket) = ack.ticket
            && let Err(error) = cache.durable(ticket).await
        {
            tracing::error!(%error, "the global cache cannot make received data durable");
            let problem = Problem::new(
                "cache",
                "received data cannot be made durable",
                error.to_string(),
                "check the disk of the target's cache and restart its vbrd",
            );
            let _ = sender.send(Message::Fail(problem.retry())).await;
            return;
        }
        let now = clocks.micros();
        let busy_ms = std::array::from_fn(|n| now[n].saturating_sub(start[n]) / 1000);
        let durable = Durable { payload_bytes: ack.payload_bytes, cursors: building.cursors(), busy_ms };
        if sender.send(Message::Durable(durable)).await.is_err() {
            return;
        }
    }
}

fn volumes(notes: Vec<VolumeNote>) -> Vec<DiskVolume> {
    let volume = |note: VolumeNote| DiskVolume {
        name: note.name,
        kind: note.kind,
        skipped_bytes: note.skipped_bytes,
        reason: note.reason,
    };
    notes.into_iter().map(volume).collect()
}

/// The source broke the rules.
pub fn protocol(what: impl Into<String>) -> Problem {
    Problem::new(
        "protocol",
        "the session was ended",
        what.into(),
        "both sites should run the same release of vbr; report this if they do",
    )
}
