//! One connection to a paired peer: Hello, heartbeats, requests, and its two data streams.
//!
//! A link is up when the control Hello was exchanged and our own data stream was acknowledged. It
//! ends as a whole: whatever task fails first says why, the others follow, every channel learns it.
//! Further links to the same peer are extras: they carry bundles beside the first one.
//! The task [`run`] owns the control stream; the swarm task owns the connection itself.
//! Bounds: two data streams; what flows on them is bounded in `mux` and `control`.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use libp2p::PeerId;
use libp2p::core::upgrade::NegotiationError;
use libp2p::swarm::{ConnectionId, Stream, StreamProtocol};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::accounting::ConnectionCounters;
use super::bundle::Bundles;
use super::capability;
use super::channel::Channel;
use super::control::{self, Requests};
use super::driver::Order;
use super::frame::kind;
use super::message::{Request, Response, pack};
use super::mux::Mux;
use super::peers::PeerBook;
use super::scheduler::Outgoing;
use super::stream::{FrameReader, Hello, Outbox, StreamError, hear_hello, say_hello, write_one};
use super::{DATA_PROTOCOL, Dialect, Incoming, WireError};
use crate::limits::CONTROL_BYTES_MAX;

/// An answer comes within this.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A peer of another major is disconnected after this at the latest.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);

type Io = Compat<Stream>;

/// What every task of a connection needs.
pub struct Context {
    /// Which connection.
    pub connection: ConnectionId,
    /// Whose.
    pub peer: PeerId,
    /// True where we dialled.
    pub dialled: bool,
    /// True where we dialled it beside another link.
    pub extra: bool,
    /// What crosses it.
    pub counters: Arc<ConnectionCounters>,
    /// The bundles between the two sites.
    pub bundles: Arc<Bundles>,
    /// Our Hello.
    pub hello: Hello,
    /// What this site speaks.
    pub dialect: Dialect,
    /// Who is paired.
    pub book: Arc<PeerBook>,
    /// Where sessions and requests of the peer go.
    pub incoming: mpsc::Sender<Incoming>,
    /// The swarm task.
    pub driver: mpsc::Sender<Order>,
    /// Ends with the connection.
    pub cancel: CancellationToken,
    /// All tasks of the wire.
    pub tracker: TaskTracker,
    /// Set by whoever ends the link first.
    pub why: OnceLock<String>,
    /// The data stream that the peer opened.
    pub accepted: OnceLock<Arc<Mux>>,
}

impl Context {
    /// Ends the link. The first reason stays.
    pub fn fail(&self, why: impl Into<String>) {
        let _ = self.why.set(why.into());
        self.cancel.cancel();
    }

    /// Why the link ended.
    pub fn reason(&self) -> String {
        self.why.get().cloned().unwrap_or_else(|| "the connection was closed".to_owned())
    }

    fn lost(&self) -> WireError {
        WireError::Lost { why: self.reason() }
    }

    async fn open_stream(&self, protocol: StreamProtocol) -> Result<Stream, String> {
        let (reply, answer) = oneshot::channel();
        let order = Order::OpenStream { peer: self.peer, connection: self.connection, protocol, reply };
        let gone = || "the peer closed the connection before it said hello".to_owned();
        self.driver.send(order).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// A link that is up.
pub struct Link {
    /// Its connection.
    pub context: Arc<Context>,
    /// Since when.
    pub since: Instant,
    /// Capabilities of both sides.
    pub capabilities: u64,
    /// The peer's version of vbr.
    pub software: String,
    mux: Arc<Mux>,
    requests: Requests,
}

impl Link {
    /// True while channels are open on it, in either direction.
    pub fn is_used(&self) -> bool {
        self.mux.channels() + self.context.accepted.get().map_or(0, |mux| mux.channels()) > 0
    }

    /// True until it ends.
    pub fn is_up(&self) -> bool {
        !self.context.cancel.is_cancelled()
    }

    /// True where sessions' messages wait for their turn.
    pub fn bulk_waits(&self) -> bool {
        let accepted = self.context.accepted.get();
        self.mux.outbox().bulk_waits() || accepted.is_some_and(|mux| mux.outbox().bulk_waits())
    }

    /// True where something is held back by its session's own rate.
    pub fn is_held_back(&self) -> bool {
        let accepted = self.context.accepted.get();
        self.mux.outbox().is_held_back() || accepted.is_some_and(|mux| mux.outbox().is_held_back())
    }

    /// Both sides can run a session over several links.
    pub fn can_bundle(&self) -> bool {
        self.capabilities & capability::BUNDLES != 0
    }

    /// True where the kernel says that its congestion control is not BBR. QUIC does not say.
    pub fn is_loss_based(&self) -> bool {
        let congestion = self.context.counters.probe.as_ref().and_then(|probe| probe.congestion());
        congestion.is_some_and(|name| !name.starts_with("bbr"))
    }

    /// A channel on our data stream: one that can grow over further links where they may be needed.
    pub fn open_session(&self) -> Result<super::SessionChannel, WireError> {
        if !self.can_bundle() || !self.is_loss_based() {
            return self.mux.open();
        }
        let mut name = [0; 16];
        super::random(&mut name)?;
        self.mux.open_bundle(name)
    }

    /// Has a bundle of ours use this link as well.
    pub fn carry(&self, channel: &Arc<Channel>) {
        let is_on = channel.bundle().is_some_and(|bundle| bundle.is_on(&self.mux));
        if self.can_bundle()
            && !is_on
            && let Err(error) = self.mux.join(channel)
        {
            tracing::debug!(peer = %self.context.peer, %error, "a session does not use a further link");
        }
    }

    /// Tells the dialler that more links are of use.
    pub fn ask_for_links(&self, count: u8) {
        self.requests.push(Outgoing::control(kind::LINKS_WANTED, Bytes::copy_from_slice(&[count])));
    }

    /// Where the messages of our data stream wait.
    #[cfg(test)]
    pub(super) fn outbox(&self) -> &Outbox {
        self.mux.outbox()
    }

    /// Asks the peer and waits for its answer.
    pub async fn request(&self, request: &Request) -> Result<Response, WireError> {
        let body = pack(request);
        if body.len() > CONTROL_BYTES_MAX {
            return Err(WireError::TooLarge { bytes: body.len() });
        }
        let asked = self.requests.ask(body);
        tokio::select! {
            answer = tokio::time::timeout(REQUEST_TIMEOUT, asked) => {
                answer.map_err(|_| WireError::Timeout { what: "answer a request" })?
            }
            () = self.context.cancel.cancelled() => Err(self.context.lost()),
        }
    }
}

/// Runs a link from the connection to its end. `inbound` is the control stream that the peer
/// opened; none where we dialled and open it ourselves.
pub async fn run(context: Arc<Context>, inbound: Option<Stream>) {
    let ended = tokio::select! {
        ended = drive(&context, inbound) => ended,
        () = context.cancel.cancelled() => Err(context.reason()),
    };
    if let Err(why) = ended {
        context.fail(why);
    }
    let lost = context.lost();
    if let Some(mux) = context.accepted.get() {
        mux.kill(&lost);
    }
    let _ = context.driver.send(Order::LinkDown { connection: context.connection }).await;
}

async fn drive(context: &Arc<Context>, inbound: Option<Stream>) -> Result<(), String> {
    let opened = inbound.is_none();
    let stream = match inbound {
        Some(stream) => stream,
        None => context.open_stream(context.dialect.control()).await?,
    };
    let (mut reader, mut writer) = split(stream);
    let hello = match opened {
        true => say_hello(&mut reader, &mut writer, &context.hello).await,
        false => hear_hello(&mut reader, &mut writer, &context.hello).await,
    };
    let hello = hello.map_err(|error| match error {
        StreamError::Foreign(theirs) => context.dialect.refused(Some(&theirs.software)),
        StreamError::Io(error) if is_not_offered(&error) => context.dialect.refused(None),
        error => format!("no hello: {error}"),
    })?;
    tracing::debug!(peer = %context.peer, site = %hello.site, software = %hello.software, "hello");

    let mux = open_data(context).await?;
    let outbox = Arc::new(Outbox::new());
    let first = if context.dialled { 1 } else { 2 };
    let (requests, pending) = Requests::new(outbox.clone(), first);
    let capabilities = context.hello.shared(&hello);
    let since = Instant::now();
    let software = hello.software;
    let link = Link { context: context.clone(), since, capabilities, software, mux: mux.clone(), requests };
    let up = context.driver.send(Order::LinkUp(Arc::new(link))).await;
    up.map_err(|_| "vbrd is stopping".to_owned())?;

    let ended = control::run(context, reader, writer, &mux, (&outbox, &pending)).await;
    context.fail(ended.to_string());
    mux.kill(&context.lost());
    outbox.kill();
    Ok(())
}

/// True where the other side does not take the protocol of a stream: with lazy negotiation the first read says so.
fn is_not_offered(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<NegotiationError>());
    matches!(inner, Some(NegotiationError::Failed))
}

/// Answers a control stream of another major, so that its opener can say why there is no link.
pub async fn refuse(context: Arc<Context>, stream: Stream, why: String) {
    // Whoever hangs up first: that is the reason.
    let _ = context.why.set(why);
    let (mut reader, mut writer) = split(stream);
    let answer = async {
        let _ = reader.read().await;
        let _ = write_one(&mut writer, 0, kind::HELLO, &pack(&context.hello)).await;
        // The opener hangs up when it has read that; closing first could cut it short.
        let _ = reader.read().await;
    };
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, answer).await;
    context.fail(context.reason());
    let _ = context.driver.send(Order::LinkDown { connection: context.connection }).await;
}

/// Opens our data stream; its tasks end the link when they fail.
async fn open_data(context: &Arc<Context>) -> Result<Arc<Mux>, String> {
    let (mut reader, mut writer) = split(context.open_stream(DATA_PROTOCOL).await?);
    let said = say_hello(&mut reader, &mut writer, &context.hello).await;
    said.map_err(|error| format!("no hello on the data stream: {error}"))?;
    let mux = Mux::new(context.counters.clone(), context.bundles.clone());
    context.tracker.spawn(run_data(context.clone(), mux.clone(), reader, writer, true));
    Ok(mux)
}

/// Takes the data stream that the peer opened.
pub async fn accept_data(context: Arc<Context>, stream: Stream) {
    let (mut reader, mut writer) = split(stream);
    let heard = tokio::select! {
        heard = hear_hello(&mut reader, &mut writer, &context.hello) => heard,
        () = context.cancel.cancelled() => return,
    };
    if let Err(error) = heard {
        context.fail(format!("no hello on the data stream: {error}"));
        return;
    }
    let mux = Mux::new(context.counters.clone(), context.bundles.clone());
    if context.accepted.set(mux.clone()).is_err() {
        context.fail("the peer opened a second data stream");
        return;
    }
    run_data(context, mux, reader, writer, false).await;
}

async fn run_data(
    context: Arc<Context>,
    mux: Arc<Mux>,
    reader: FrameReader<ReadHalf<Io>>,
    writer: WriteHalf<Io>,
    opened: bool,
) {
    let accept = |channel| deliver_session(&context, channel);
    let accept: Option<&super::mux::Accept<'_>> = if opened { None } else { Some(&accept) };
    let ended = tokio::select! {
        ended = mux.read(reader, accept) => Some(ended),
        ended = mux.outbox().run(writer, &context.counters) => ended.err(),
        () = context.cancel.cancelled() => None,
    };
    if let Some(error) = ended {
        context.fail(error.to_string());
    }
    mux.kill(&context.lost());
}

fn deliver_session(
    context: &Context,
    channel: super::SessionChannel,
) -> Result<(), (String, super::SessionChannel)> {
    let Some(peer) = context.book.by_id(&context.peer) else {
        return Err(("this site is not paired any more".to_owned(), channel));
    };
    match context.incoming.try_reserve() {
        Ok(place) => {
            place.send(Incoming::Session { peer, channel });
            Ok(())
        }
        Err(_) => Err(("the site is busy; try again".to_owned(), channel)),
    }
}

fn split(stream: Stream) -> (FrameReader<ReadHalf<Io>>, WriteHalf<Io>) {
    let (reader, writer) = tokio::io::split(stream.compat());
    (FrameReader::new(reader), writer)
}
