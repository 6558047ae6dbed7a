//! Packing: batches are compressed beside the batcher, which gathers the next one meanwhile.
//!
//! Owned by the batcher. Frames leave in the order in which they were begun: a batch may refer to what
//! an earlier one carries. Bounds: [`PACKING_MAX`] batches begun and not yet handed on; a permit of the
//! appliance's compressors for each, held from its gathering to its frame.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;

use super::replicate::{AttemptError, Replication};
use super::send::Outgoing;
use crate::accelerator::batch::{BatchBuilder, BatchError, Prefix};
use crate::accelerator::effort::{Effort, Made};
use crate::error::Problem;
use crate::limits::COMPRESSORS_MAX;
use crate::wire::message::Batch;

/// Batches of one session that are begun: as many as may be compressed at once.
const PACKING_MAX: usize = COMPRESSORS_MAX;

/// A batch whose chunks and bases are gathered.
pub struct Gathered {
    /// The chunks.
    pub builder: BatchBuilder,
    /// What both ends hold.
    pub prefix: Prefix,
    /// How hard to work on it.
    pub effort: Effort,
    /// Time it took to gather.
    pub took: Duration,
}

struct Begun {
    frame: JoinHandle<(Result<Vec<Batch>, BatchError>, Duration)>,
    made: Made,
    /// Batches that were compressed when this one began, itself included.
    beside: u32,
}

/// The batches under way, oldest first.
pub struct Packer {
    ctx: Arc<Replication>,
    out: mpsc::Sender<Outgoing>,
    begun: VecDeque<Begun>,
    handed: Instant,
}

impl Packer {
    /// Hands frames to `out`.
    pub fn new(ctx: Arc<Replication>, out: mpsc::Sender<Outgoing>) -> Self {
        Self { ctx, out, begun: VecDeque::new(), handed: Instant::now() }
    }

    /// True where no batch is under way.
    pub fn is_empty(&self) -> bool {
        self.begun.is_empty()
    }

    /// Room for one more batch: hands on the oldest where there is none. False: the attempt is over.
    pub fn make_room(&mut self) -> Result<bool, AttemptError> {
        if self.begun.len() < PACKING_MAX { Ok(true) } else { self.hand_on() }
    }

    /// Begins to compress a batch.
    pub fn begin(&mut self, gathered: Gathered, permit: Option<OwnedSemaphorePermit>) {
        let Gathered { builder, prefix, effort, took } = gathered;
        let (plain, sampled) = (builder.plain_bytes(), builder.expected_bytes());
        let made = Made { tier: effort.tier(), plain, sampled, work: took, ..Made::default() };
        let ctx = self.ctx.clone();
        let frame = Handle::current().spawn_blocking(move || {
            let start = Instant::now();
            let frame = ctx.handle.clocks.source_accelerator.time(|| builder.finish(prefix, &effort));
            drop(permit);
            (frame, start.elapsed())
        });
        let beside = self.begun.iter().filter(|begun| !begun.frame.is_finished()).count() as u32 + 1;
        self.begun.push_back(Begun { frame, made, beside });
    }

    /// Hands the oldest batch on, when it is compressed and the line takes it. False: the attempt is over.
    pub fn hand_on(&mut self) -> Result<bool, AttemptError> {
        let Some(Begun { frame, mut made, beside }) = self.begun.pop_front() else { return Ok(true) };
        let runtime = Handle::current();
        let internal = |why: String| Problem::new("internal", "packing a batch", why, "report this");
        let (frame, took) = runtime.block_on(frame).map_err(|e| internal(e.to_string()))?;
        let batches = frame.map_err(|e| internal(e.to_string()))?;
        // Two at once do twice as much in the same time, where there are processors for both.
        made.work = (made.work + took) / beside;
        made.stored = batches.iter().map(|batch| batch.payload.len()).sum();
        let start = Instant::now();
        for batch in batches {
            if runtime.block_on(self.out.send(Outgoing::Batch(batch))).is_err() {
                return Ok(false);
            }
        }
        made.waited = start.elapsed();
        made.cycle = self.handed.elapsed();
        self.handed = Instant::now();
        tracing::debug!(?made, "a batch was made");
        self.ctx.batch_made(made);
        Ok(true)
    }

    /// Asks for the seal, behind everything else. False: the attempt is over.
    pub fn seal(&mut self) -> Result<bool, AttemptError> {
        while !self.is_empty() {
            if !self.hand_on()? {
                return Ok(false);
            }
        }
        Ok(Handle::current().block_on(self.out.send(Outgoing::Seal)).is_ok())
    }
}
