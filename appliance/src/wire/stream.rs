//! Frames on a byte stream: reading with checks, writing what the scheduler hands out, and the
//! acknowledged Hello with which every stream starts.
//!
//! Works on anything that reads and writes bytes; knows neither libp2p nor channels.
//! Bounds: one frame at a time on the way in; [`CONTROL_QUEUED_MAX`] messages without a permit on
//! the way out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use super::accounting::{ConnectionCounters, Share};
use super::dialect::Dialect;
use super::frame::{FLAG_FIRST, FrameError, HEADER_BYTES, Header, kind};
use super::message::{pack, unpack};
use super::order::PieceQueue;
use super::scheduler::{Outgoing, Scheduler, frame_bytes};

/// Messages that may wait on a stream without a permit: heartbeats, answers, closes. A peer that
/// causes more and does not read them loses the link.
pub const CONTROL_QUEUED_MAX: usize = 1024;
/// A Hello is answered within this, or the link is closed.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How often that is looked at: the kernel does not say when it is so.
const UNSENT_POLL: Duration = Duration::from_millis(2);
/// A bound may be lifted while something waits for it.
const BACKLOG_POLL_MAX: Duration = Duration::from_millis(50);
/// What lies ready below beside a frame, as a part of a second: a task that wakes late must not leave the socket idle.
const LEADS_A_SECOND: u64 = 20;
/// Longest Hello.
const HELLO_BYTES_MAX: usize = 1024;

/// Why a stream ended. Any of these ends the connection.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The network or the other side.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A frame is refused.
    #[error("the peer broke the protocol: {0}")]
    Frame(#[from] FrameError),
    /// A body is refused.
    #[error("the peer broke the protocol: {0}")]
    Body(#[from] super::message::DecodeError),
    /// No Hello, or no answer to ours.
    #[error("the peer did not say hello within {} s", HELLO_TIMEOUT.as_secs())]
    Silent,
    /// It said hello in the place of an answer: our protocol is of another major than its own.
    #[error("the peer (vbr {}) speaks another version of the protocol", .0.software)]
    Foreign(Hello),
    /// Our own queue is full of answers that the peer does not read.
    #[error("the peer does not read its answers")]
    Clogged,
    /// We ended it.
    #[error("the stream was closed here")]
    Closed,
}

/// The first frame of every stream, and the answer to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Minor version; grows with additions that an older peer can ignore.
    pub minor: u16,
    /// Bits of [`capability`](super::capability). A bit counts where both sides set it.
    pub capabilities: u64,
    /// The sender's site name.
    pub site: String,
    /// The sender's version of vbr, for people.
    pub software: String,
}

impl Hello {
    /// Ours.
    pub fn new(site: &str, dialect: &Dialect) -> Self {
        let software = env!("CARGO_PKG_VERSION").to_owned();
        let (minor, capabilities) = (dialect.minor(), dialect.capabilities());
        Self { minor, capabilities, site: site.to_owned(), software }
    }

    /// The capabilities of both sides.
    pub fn shared(&self, other: &Self) -> u64 {
        self.capabilities & other.capabilities
    }
}

/// Reads frames and checks their numbers.
pub struct FrameReader<R> {
    io: R,
    sequence: u32,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// At the start of a stream.
    pub fn new(io: R) -> Self {
        Self { io, sequence: 0 }
    }

    /// The next frame. Not cancel-safe: only whoever gives the stream up may drop it half way.
    pub async fn read(&mut self) -> Result<(Header, Bytes), StreamError> {
        let mut head = [0; HEADER_BYTES];
        self.io.read_exact(&mut head).await?;
        let header = Header::decode(&head)?;
        if header.sequence != self.sequence {
            return Err(FrameError::Sequence { got: header.sequence, expected: self.sequence }.into());
        }
        self.sequence = self.sequence.wrapping_add(1);
        let mut body = BytesMut::zeroed(header.length as usize);
        self.io.read_exact(&mut body).await?;
        Ok((header, body.freeze()))
    }

    /// A frame that must be of this type and whole, with a body of at most `max` bytes.
    pub async fn expect(&mut self, kind: u8, max: usize) -> Result<Bytes, StreamError> {
        Ok(self.first(&[kind], max).await?.1)
    }

    /// The same of several types.
    async fn first(&mut self, kinds: &[u8], max: usize) -> Result<(Header, Bytes), StreamError> {
        let (header, body) = self.read().await?;
        let kind = header.kind;
        if !kinds.contains(&kind) || header.channel != 0 || !header.is_first() || header.has_more() {
            return Err(FrameError::Place { kind, channel: header.channel }.into());
        }
        if body.len() > max {
            return Err(FrameError::Length { kind, length: header.length, max }.into());
        }
        Ok((header, body))
    }
}

/// Writes one whole frame on channel 0: Hello and pairing, before a scheduler owns the stream.
pub async fn write_one(
    io: &mut (impl AsyncWrite + Unpin),
    sequence: u32,
    kind: u8,
    body: &[u8],
) -> std::io::Result<()> {
    let length = body.len() as u32;
    let header = Header { kind, flags: FLAG_FIRST, channel: 0, sequence, length, total: length };
    let mut out = BytesMut::with_capacity(HEADER_BYTES + body.len());
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(body);
    io.write_all(&out).await?;
    io.flush().await
}

/// The opener's side of the Hello.
pub async fn say_hello<R, W>(
    reader: &mut FrameReader<R>,
    writer: &mut W,
    own: &Hello,
) -> Result<Hello, StreamError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    within(async {
        write_one(writer, 0, kind::HELLO, &pack(own)).await?;
        let (header, body) = reader.first(&[kind::HELLO_ACK, kind::HELLO], HELLO_BYTES_MAX).await?;
        let hello = unpack(header.kind, &body)?;
        if header.kind == kind::HELLO { Err(StreamError::Foreign(hello)) } else { Ok(hello) }
    })
    .await
}

/// The other side of the Hello.
pub async fn hear_hello<R, W>(
    reader: &mut FrameReader<R>,
    writer: &mut W,
    own: &Hello,
) -> Result<Hello, StreamError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    within(async {
        let body = reader.expect(kind::HELLO, HELLO_BYTES_MAX).await?;
        let hello = unpack(kind::HELLO, &body)?;
        write_one(writer, 0, kind::HELLO_ACK, &pack(own)).await?;
        Ok(hello)
    })
    .await
}

async fn within<T>(work: impl Future<Output = Result<T, StreamError>>) -> Result<T, StreamError> {
    tokio::time::timeout(HELLO_TIMEOUT, work).await.unwrap_or(Err(StreamError::Silent))
}

/// Messages on their way to one stream.
pub struct Outbox {
    core: Mutex<Core>,
    ready: Notify,
}

struct Core {
    scheduler: Scheduler,
    dead: bool,
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Outbox {
    /// For a stream whose Hello was exchanged.
    pub fn new() -> Self {
        let core = Core { scheduler: Scheduler::new(1), dead: false };
        Self { core: Mutex::new(core), ready: Notify::new() }
    }

    /// Queues a message. False where the stream is gone.
    pub fn push(&self, channel: u32, message: Outgoing) -> bool {
        let mut core = self.core();
        if core.dead {
            return false;
        }
        core.scheduler.push(channel, message);
        if core.scheduler.control_queued() > CONTROL_QUEUED_MAX {
            core.dead = true;
        }
        drop(core);
        self.ready.notify_one();
        true
    }

    /// Something waits in a bundle that a channel of this stream belongs to.
    pub fn offer(&self, channel: u32, pieces: &Arc<PieceQueue>, share: &Arc<Share>) {
        let mut core = self.core();
        if !core.dead {
            core.scheduler.offer(channel, pieces, share);
            drop(core);
            self.ready.notify_one();
        }
    }

    /// True where sessions' messages wait.
    pub fn bulk_waits(&self) -> bool {
        self.core().scheduler.bulk_waits()
    }

    /// True where sessions' own rates hold something back.
    pub fn is_held_back(&self) -> bool {
        self.core().scheduler.next_due().is_some()
    }

    /// Nothing goes out any more; what waits is dropped.
    pub fn kill(&self) {
        let mut core = self.core();
        core.dead = true;
        core.scheduler = Scheduler::default();
        drop(core);
        self.ready.notify_one();
    }

    /// Writes until the stream fails or the outbox is killed.
    pub async fn run(
        &self,
        mut io: impl AsyncWrite + Unpin,
        counters: &ConnectionCounters,
    ) -> Result<(), StreamError> {
        let mut out = BytesMut::new();
        let (mut handed, mut limited_handed) = (0, 0u64);
        loop {
            out.clear();
            let limit = counters.valve.limit_bps();
            let most = frame_bytes(limit);
            if let Some(wait) = limit.and_then(|rate| backlog(limited_handed, counters, rate, most as u64)) {
                tokio::time::sleep(wait).await;
                continue;
            }
            // What this connection has not sent yet would hold up the others: a piece goes where it
            // goes at once.
            let shares = self.core().scheduler.shares_pieces();
            if shares && counters.has_enough(handed) {
                tokio::time::sleep(UNSENT_POLL).await;
                continue;
            }
            self.gather(&mut out, if shares { 1 } else { most }, most)?;
            handed = counters.taken() + out.len() as u64;
            if out.is_empty() {
                io.flush().await?;
                self.wait().await;
                continue;
            }
            limited_handed = limited_handed.max(counters.valve.written()) + out.len() as u64;
            counters.add_sent(out.len() as u64);
            io.write_all(&out).await?;
            let pause = counters.pause(out.len() as u64, Instant::now());
            if !pause.is_zero() {
                io.flush().await?;
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Until something is queued, or what a session's own rate holds back may go.
    async fn wait(&self) {
        let due = self.core().scheduler.next_due();
        match due {
            None => self.ready.notified().await,
            Some(due) => tokio::select! {
                () = self.ready.notified() => {}
                () = tokio::time::sleep_until(due.into()) => {}
            },
        }
    }

    fn gather(&self, out: &mut BytesMut, enough: usize, most: usize) -> Result<(), StreamError> {
        let mut core = self.core();
        if core.dead {
            let clogged = core.scheduler.control_queued() > CONTROL_QUEUED_MAX;
            return Err(if clogged { StreamError::Clogged } else { StreamError::Closed });
        }
        let now = Instant::now();
        while out.len() < enough && core.scheduler.next_frame(now, most, out) {}
        Ok(())
    }

    fn core(&self) -> std::sync::MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long to wait before more is handed on, where a rule bounds the connection: what lies between here and the socket
/// goes before any control that comes. None: now.
fn backlog(handed: u64, counters: &ConnectionCounters, rate_bps: u64, most: u64) -> Option<Duration> {
    // Over QUIC nobody sees what went.
    counters.probe.as_ref()?;
    let enough = most + rate_bps / 8 / LEADS_A_SECOND;
    let over =
        handed.saturating_sub(counters.valve.written()).checked_sub(enough).filter(|over| *over > 0)?;
    let wait = Duration::from_secs_f64(over as f64 * 8.0 / rate_bps.max(1) as f64);
    Some(wait.clamp(UNSENT_POLL, BACKLOG_POLL_MAX))
}
