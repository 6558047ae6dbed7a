//! The control stream of a link: heartbeats, and requests with their answers.
//!
//! Runs inside the link's task. Answers are made by tasks of their own, so a slow one holds up
//! neither heartbeats nor other answers.
//! Bounds: [`REQUESTS_MAX`] requests each way at once, 1 MiB each.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, oneshot};

use super::driver::Order;
use super::frame::{Assembler, FrameError, HEADER_BYTES, Header, kind};
use super::heartbeat::{Action, Heartbeat};
use super::link::Context;
use super::message::{Request, Response, pack, unpack};
use super::mux::Mux;
use super::scheduler::Outgoing;
use super::stream::{FrameReader, Outbox, StreamError};
use super::{Incoming, WireError};
use crate::error::Problem;
use crate::limits::CONTROL_BYTES_MAX;

/// Requests of one side that wait for their answer.
pub const REQUESTS_MAX: usize = 64;

/// Our requests under way.
pub struct Requests {
    outbox: Arc<Outbox>,
    pending: Arc<Pending>,
    slots: Semaphore,
}

/// Callers that wait for an answer.
pub struct Pending {
    next: Mutex<u32>,
    waiting: Mutex<HashMap<u32, oneshot::Sender<Response>>>,
}

impl Pending {
    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<u32, oneshot::Sender<Response>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Requests {
    /// For a stream whose first request from here has the number `first`.
    pub fn new(outbox: Arc<Outbox>, first: u32) -> (Self, Arc<Pending>) {
        let pending = Arc::new(Pending { next: Mutex::new(first), waiting: Mutex::default() });
        (Self { outbox, pending: pending.clone(), slots: Semaphore::new(REQUESTS_MAX) }, pending)
    }

    /// Sends a frame of the stream itself.
    pub fn push(&self, message: Outgoing) {
        self.outbox.push(0, message);
    }

    /// Sends a request and waits for its answer; the caller bounds how long. Dropping it gives up.
    pub async fn ask(&self, body: Bytes) -> Result<Response, WireError> {
        let lost = || WireError::Lost { why: "the connection was closed".to_owned() };
        let _slot = self.slots.acquire().await.map_err(|_| lost())?;
        let id = {
            let mut next = self.pending.next.lock().unwrap_or_else(PoisonError::into_inner);
            let id = *next;
            // Odd numbers are the dialler's and even ones the listener's; 0 is the stream itself.
            *next = next.checked_add(2).unwrap_or(2 - id % 2);
            id
        };
        let (answer, answered) = oneshot::channel();
        self.pending.waiting().insert(id, answer);
        let _forget = Forget { pending: &self.pending, id };
        if !self.outbox.push(id, Outgoing::control(kind::REQUEST, body)) {
            return Err(lost());
        }
        answered.await.map_err(|_| lost())
    }
}

/// Takes a request off the table when its caller gives up.
struct Forget<'a> {
    pending: &'a Pending,
    id: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.pending.waiting().remove(&self.id);
    }
}

/// The control stream until it fails. `own`: the data stream that we opened.
pub async fn run(
    context: &Arc<Context>,
    reader: FrameReader<impl AsyncRead + Unpin>,
    writer: impl AsyncWrite + Unpin,
    own: &Mux,
    (outbox, pending): (&Arc<Outbox>, &Arc<Pending>),
) -> StreamError {
    let started = Instant::now();
    tokio::select! {
        ended = read_control(context, reader, outbox, pending, started) => ended,
        ended = outbox.run(writer, &context.counters) => ended.err().unwrap_or(StreamError::Closed),
        () = beat(context, own, outbox, started) => StreamError::Io(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            "the peer did not answer heartbeats",
        )),
    }
}

/// Sends heartbeats; returns when the link is dead.
async fn beat(context: &Context, own: &Mux, outbox: &Outbox, started: Instant) {
    let mut heartbeat = Heartbeat::new(started);
    loop {
        let used = context.accepted.get().is_some_and(|mux| mux.channels() > 0) || own.channels() > 0;
        let wake = match heartbeat.apply(context.counters.last_heard(), used, Instant::now()) {
            Action::Dead => return,
            Action::Wait(at) => at,
            Action::Ping(at) => {
                let nonce = started.elapsed().as_micros() as u64;
                outbox.push(0, Outgoing::control(kind::PING, Bytes::copy_from_slice(&nonce.to_be_bytes())));
                at
            }
        };
        tokio::time::sleep_until(wake.into()).await;
    }
}

async fn read_control(
    context: &Arc<Context>,
    mut reader: FrameReader<impl AsyncRead + Unpin>,
    outbox: &Arc<Outbox>,
    pending: &Pending,
    started: Instant,
) -> StreamError {
    let mut unfinished: HashMap<u32, Assembler> = HashMap::new();
    let answering = Arc::new(AtomicUsize::new(0));
    loop {
        let (header, body) = match reader.read().await {
            Ok(frame) => frame,
            Err(error) => return error,
        };
        context.counters.add_received((HEADER_BYTES + body.len()) as u64);
        let message = match join(&mut unfinished, &header, body) {
            Ok(Some(message)) => message,
            Ok(None) => continue,
            Err(error) => return error.into(),
        };
        let (id, place) = (header.channel, FrameError::Place { kind: header.kind, channel: header.channel });
        match message {
            (kind::PING, nonce) if id == 0 && nonce.len() == 8 => {
                outbox.push(0, Outgoing::control(kind::PONG, nonce));
            }
            (kind::PONG, nonce) if id == 0 => {
                if let Ok(sent) = <[u8; 8]>::try_from(&nonce[..]) {
                    let sent = Duration::from_micros(u64::from_be_bytes(sent));
                    context.counters.note_rtt(started.elapsed().saturating_sub(sent));
                }
            }
            (kind::LINKS_WANTED, count) if id == 0 && count.len() == 1 => {
                // The peer repeats it for as long as it holds.
                let order = Order::LinksWanted { peer: context.peer, count: count[0] };
                let _ = context.driver.try_send(order);
            }
            (kind::REQUEST, body) if id != 0 => match unpack(kind::REQUEST, &body) {
                Ok(request) => answer(context, outbox, id, request, &answering),
                Err(error) => return error.into(),
            },
            (kind::RESPONSE, body) if id != 0 => {
                let waiting = pending.waiting().remove(&id);
                match (unpack(kind::RESPONSE, &body), waiting) {
                    (Ok(response), Some(waiting)) => {
                        let _ = waiting.send(response);
                    }
                    // Its caller gave up.
                    (Ok(_), None) => {}
                    (Err(error), _) => return error.into(),
                }
            }
            _ => return place.into(),
        }
    }
}

/// Joins fragments of control messages, several of which may be under way.
fn join(
    unfinished: &mut HashMap<u32, Assembler>,
    header: &Header,
    body: Bytes,
) -> Result<Option<(u8, Bytes)>, FrameError> {
    let id = header.channel;
    if unfinished.len() > 2 * REQUESTS_MAX && !unfinished.contains_key(&id) {
        return Err(FrameError::Place { kind: header.kind, channel: id });
    }
    let assembler = unfinished.entry(id).or_insert_with(|| Assembler::new(CONTROL_BYTES_MAX));
    let message = assembler.push(header, body)?;
    if !assembler.is_open() {
        unfinished.remove(&id);
    }
    Ok(message)
}

/// Has the site answer a request, without holding up the control stream.
fn answer(
    context: &Arc<Context>,
    outbox: &Arc<Outbox>,
    id: u32,
    request: Request,
    answering: &Arc<AtomicUsize>,
) {
    let (context, outbox, answering) = (context.clone(), outbox.clone(), answering.clone());
    let busy = answering.fetch_add(1, Ordering::Relaxed) >= REQUESTS_MAX;
    let tracker = context.tracker.clone();
    let work = async move {
        let response = if busy { Err("busy with other requests") } else { ask_site(&context, request).await };
        answering.fetch_sub(1, Ordering::Relaxed);
        let response = response.unwrap_or_else(|why| {
            let what = "answer a request of a peer";
            Response::Problem(Problem::new("busy", what, format!("the site is {why}"), "try again").retry())
        });
        let mut body = pack(&response);
        if body.len() > CONTROL_BYTES_MAX {
            let why = format!("the answer has {} bytes, more than {CONTROL_BYTES_MAX}", body.len());
            let problem =
                Problem::new("too_large", "answer a request of a peer", why, "ask for less at once");
            body = pack(&Response::Problem(problem));
        }
        outbox.push(id, Outgoing::control(kind::RESPONSE, body));
    };
    tracker.spawn(work);
}

async fn ask_site(context: &Context, request: Request) -> Result<Response, &'static str> {
    let peer = context.book.by_id(&context.peer).ok_or("not paired with you any more")?;
    let (reply, answer) = oneshot::channel();
    let incoming = Incoming::Request { peer, request, reply };
    context.incoming.try_send(incoming).map_err(|_| "busy")?;
    tokio::select! {
        answer = answer => answer.map_err(|_| "stopping"),
        () = context.cancel.cancelled() => Err("gone"),
    }
}
