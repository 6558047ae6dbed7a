//! The swarm task: owns the libp2p swarm and everything that changes with connections.
//!
//! Events come from the swarm, orders from handles and links; each is applied to completion before
//! the next. Bulk never passes here. Publishes the links that are up in a `watch`, and what
//! operators want to know of each peer in [`Shared`].
//! Bounds: connections in total, per peer and pending; one dial per peer at a time; pairings.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::StreamExt;
use jiff::tz::TimeZone;
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::ConnectedPoint;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{ConnectionId, NetworkBehaviour, StreamProtocol, Swarm, SwarmEvent};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::accounting::ConnectionCounters;
use super::behaviour::{Behaviour, Inbound, OpenReply};
use super::bundle::Bundles;
use super::dialling::{Dial, dial_options};
use super::extras::Growth;
use super::gate::Gate;
use super::link::{self, Context, Link};
use super::state::{Links, Shared};
use super::stream::Hello;
use super::throttling::Throttling;
use super::transport::Sockets;
use super::{DATA_PROTOCOL, Incoming, PAIR_PROTOCOL, pair};
use crate::limits::PEERS_MAX;
use crate::throttle::{Rule, SharedBucket};

/// Connections that have not finished their handshake.
const PENDING_MAX: u32 = 64;
/// Connections of one peer: its links, a duplicate, a pairing, and dead ones not found yet.
const PER_PEER_MAX: u32 = 8;
/// Pairings under way.
const PAIRINGS_MAX: usize = 8;
/// How often dials and duplicates are looked at.
const TICK: Duration = Duration::from_millis(250);

/// Orders to the swarm task.
pub enum Order {
    /// A stream on exactly this connection.
    OpenStream { peer: PeerId, connection: ConnectionId, protocol: StreamProtocol, reply: OpenReply },
    /// A link finished its hellos.
    LinkUp(Arc<Link>),
    /// A link ended; its context says why.
    LinkDown { connection: ConnectionId },
    /// A dial of a paired peer whose names were resolved.
    Dial { peer: PeerId, addresses: Vec<Multiaddr> },
    /// A connection for pairing; answers its number and where it leads.
    Join { peer: PeerId, addresses: Vec<Multiaddr>, reply: JoinReply },
    /// The peer did not dial and wants more links.
    LinksWanted { peer: PeerId, count: u8 },
    /// Done with a connection.
    Close { connection: ConnectionId },
    /// No longer paired: every connection is cut now.
    Cut { peer: PeerId },
    /// The peer book changed.
    PeersChanged,
    /// Bits a second for all connections together.
    SetRate(Option<u64>),
    /// Other throttling rules; answers when they act.
    SetRules { rules: Vec<Rule>, done: oneshot::Sender<()> },
}

/// The answer to [`Order::Join`].
pub type JoinReply = oneshot::Sender<Result<(ConnectionId, Multiaddr), String>>;

/// The gate first: who may not come in costs nothing more.
#[derive(NetworkBehaviour)]
pub struct Behaviours {
    streams: Behaviour,
    limits: connection_limits::Behaviour,
}

impl Behaviours {
    /// Gate and limits.
    pub fn new(gate: Arc<Gate>) -> Self {
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(PENDING_MAX))
            .with_max_pending_outgoing(Some(2 * PEERS_MAX as u32))
            .with_max_established_per_peer(Some(PER_PEER_MAX))
            .with_max_established(Some(4 * PEERS_MAX as u32));
        Self { streams: Behaviour::new(gate), limits: connection_limits::Behaviour::new(limits) }
    }
}

/// What the driver is made of.
pub struct Parts {
    /// The swarm, listening.
    pub swarm: Swarm<Behaviours>,
    /// Who may come in.
    pub gate: Arc<Gate>,
    /// Sockets whose connections are to be announced.
    pub sockets: Arc<Sockets>,
    /// For the handles.
    pub shared: Arc<Shared>,
    /// For the handles.
    pub links: watch::Sender<Links>,
    /// Sessions and requests of peers.
    pub incoming: mpsc::Sender<Incoming>,
    /// Our own way in, for links and dials.
    pub orders: mpsc::Sender<Order>,
    /// This site's name.
    pub site: String,
    /// Bits a second for all connections together.
    pub rate_bps: Option<u64>,
    /// Throttling rules.
    pub throttle: Vec<Rule>,
    /// Most connections to one peer that carry sessions.
    pub connections: usize,
    /// Every task of the wire.
    pub tracker: TaskTracker,
    /// Ends everything.
    pub cancel: CancellationToken,
}

/// A connection that is established.
pub(super) struct Connection {
    pub(super) context: Arc<Context>,
    /// Its peer was paired when it came.
    pub(super) paired: bool,
    /// Its link's task runs.
    pub(super) started: bool,
    /// Where it leads.
    pub(super) remote: Multiaddr,
    /// Since when its link carries no channel; none while it does.
    pub(super) idle_since: Option<Instant>,
    /// What bounds it.
    pub(super) limits: Vec<Arc<SharedBucket>>,
    /// Bytes that its kernel sent again, as far as the rules know of them.
    pub(super) retransmitted: u64,
}

/// See the module.
pub struct Driver {
    pub(super) parts: Parts,
    pub(super) connections: HashMap<ConnectionId, Connection>,
    pub(super) dials: HashMap<PeerId, Dial>,
    pub(super) bundles: HashMap<PeerId, Arc<Bundles>>,
    pub(super) growth: HashMap<PeerId, Growth>,
    pub(super) throttling: Throttling,
    joins: HashMap<ConnectionId, JoinReply>,
    pairings: Arc<AtomicUsize>,
}

impl Driver {
    /// Nothing runs yet.
    pub fn new(mut parts: Parts) -> Self {
        let rules = std::mem::take(&mut parts.throttle);
        Self {
            throttling: Throttling::new(rules, parts.rate_bps, TimeZone::system()),
            parts,
            connections: HashMap::new(),
            dials: HashMap::new(),
            bundles: HashMap::new(),
            growth: HashMap::new(),
            joins: HashMap::new(),
            pairings: Arc::default(),
        }
    }

    /// Runs until cancelled; `early` is what happened before there was a driver.
    pub async fn run(mut self, early: Vec<SwarmEvent<BehavioursEvent>>, mut orders: mpsc::Receiver<Order>) {
        for event in early {
            self.on_event(event);
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let cancel = self.parts.cancel.clone();
        loop {
            tokio::select! {
                event = self.parts.swarm.select_next_some() => self.on_event(event),
                Some(order) = orders.recv() => self.on_order(order),
                _ = tick.tick() => self.on_tick(Instant::now()),
                () = cancel.cancelled() => break,
            }
        }
        for connection in self.connections.values() {
            connection.context.fail("vbrd is stopping");
        }
        self.parts.links.send_replace(Links::new());
    }

    fn on_event(&mut self, event: SwarmEvent<BehavioursEvent>) {
        match event {
            SwarmEvent::Behaviour(BehavioursEvent::Streams(inbound)) => self.on_stream(inbound),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_established(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                self.on_closed(peer_id, connection_id, cause.map(|cause| cause.to_string()));
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error, .. } => {
                let why = flat(&error);
                if let Some(reply) = self.joins.remove(&connection_id) {
                    let _ = reply.send(Err(why));
                } else if let Some(peer) = peer_id
                    && !self.extra_failed(&peer, connection_id, Instant::now())
                {
                    self.dial_failed(peer, why);
                }
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                let mut listeners = self.parts.shared.listeners();
                if !listeners.contains(&address) {
                    listeners.push(address);
                }
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.parts.shared.listeners().retain(|known| *known != address);
            }
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                self.parts.shared.listeners().retain(|known| !addresses.contains(known));
                if let Err(error) = reason {
                    tracing::error!(?addresses, %error, "a listener failed: no peer can connect there");
                }
            }
            SwarmEvent::ListenerError { error, .. } => {
                tracing::warn!(%error, "accepting a connection failed")
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(from = %send_back_addr, %error, "a connection was refused");
            }
            _ => {}
        }
    }

    fn on_order(&mut self, order: Order) {
        match order {
            Order::OpenStream { peer, connection, protocol, reply } => {
                if self.connections.contains_key(&connection) {
                    self.parts.swarm.behaviour_mut().streams.open(peer, connection, protocol, reply);
                }
            }
            Order::LinkUp(link) => self.on_link_up(link),
            Order::LinkDown { connection } => self.on_link_down(connection),
            Order::Dial { peer, addresses } => self.dial(peer, addresses),
            Order::Join { peer, addresses, reply } => {
                let options = dial_options(peer, addresses);
                let connection = options.connection_id();
                match self.parts.swarm.dial(options) {
                    Ok(()) => {
                        self.joins.insert(connection, reply);
                    }
                    Err(error) => {
                        let _ = reply.send(Err(flat(&error)));
                    }
                }
            }
            Order::LinksWanted { peer, count } => self.links_wanted(peer, count, Instant::now()),
            Order::Close { connection } => {
                self.parts.swarm.close_connection(connection);
            }
            Order::Cut { peer } => self.cut(peer),
            Order::PeersChanged => self.on_tick(Instant::now()),
            Order::SetRate(rate) => self.change_throttling(None, Some(rate)),
            Order::SetRules { rules, done } => {
                self.change_throttling(Some(rules), None);
                let _ = done.send(());
            }
        }
    }

    fn on_established(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let dialled = endpoint.is_dialer();
        let remote = endpoint.get_remote_address();
        let probe = self.parts.sockets.claim(remote, dialled);
        let counters = Arc::new(ConnectionCounters::new(probe));
        let paired = self.parts.gate.book.is_paired(&peer);
        // A stranger's are not kept: it cannot open any.
        let bundles = if paired { self.bundles.entry(peer).or_default().clone() } else { Arc::default() };
        let context = Arc::new(Context {
            connection: id,
            peer,
            dialled,
            extra: self.is_extra(&peer, id),
            counters: counters.clone(),
            bundles,
            hello: Hello::new(&self.parts.site, &self.parts.gate.dialect),
            dialect: self.parts.gate.dialect,
            book: self.parts.gate.book.clone(),
            incoming: self.parts.incoming.clone(),
            driver: self.parts.orders.clone(),
            cancel: self.parts.cancel.child_token(),
            tracker: self.parts.tracker.clone(),
            why: OnceLock::new(),
            accepted: OnceLock::new(),
        });
        let join = self.joins.remove(&id);
        let start = join.is_none() && paired && dialled;
        if paired || join.is_some() {
            self.parts.shared.peers().entry(peer).or_default().living.push((id, counters));
        }
        let known = Connection {
            context: context.clone(),
            paired,
            started: start,
            remote: without_peer(remote),
            idle_since: None,
            limits: Vec::new(),
            retransmitted: 0,
        };
        self.connections.insert(id, known);
        self.limit(id, true);
        // Nobody knew whose handshake it was.
        context.counters.valve.charge(context.counters.valve.written(), Instant::now());
        if let Some(reply) = join {
            let _ = reply.send(Ok((id, without_peer(remote))));
        } else if start {
            self.parts.tracker.spawn(link::run(context, None));
        }
    }

    fn on_stream(&mut self, inbound: Inbound) {
        let Inbound { peer, connection, protocol, stream } = inbound;
        let Some(known) = self.connections.get_mut(&connection) else { return };
        let tracker = &self.parts.tracker;
        let waits = known.paired && !known.context.dialled && !known.started;
        if waits && protocol == self.parts.gate.dialect.control() {
            known.started = true;
            tracker.spawn(link::run(known.context.clone(), Some(stream)));
        } else if waits && let Some(why) = self.parts.gate.dialect.refusal(&protocol) {
            known.started = true;
            tracker.spawn(link::refuse(known.context.clone(), stream, why));
        } else if protocol == DATA_PROTOCOL && known.paired {
            tracker.spawn(link::accept_data(known.context.clone(), stream));
        } else if protocol == PAIR_PROTOCOL && self.pairings.load(Ordering::Relaxed) < PAIRINGS_MAX {
            let own = *self.parts.swarm.local_peer_id();
            let (pairings, orders) = (self.pairings.clone(), self.parts.orders.clone());
            let serve = pair::serve(stream, peer, own, self.parts.site.clone(), self.parts.gate.clone());
            pairings.fetch_add(1, Ordering::Relaxed);
            tracker.spawn(async move {
                serve.await;
                pairings.fetch_sub(1, Ordering::Relaxed);
                let _ = orders.send(Order::Close { connection }).await;
            });
        } else {
            tracing::debug!(%peer, %protocol, "a stream has no place on its connection");
        }
    }

    fn on_closed(&mut self, peer: PeerId, id: ConnectionId, cause: Option<String>) {
        let Some(connection) = self.connections.remove(&id) else { return };
        let was_up = self.unlink(peer, id);
        self.extra_settled(&peer, id);
        let context = &connection.context;
        let fallback = match (was_up, cause) {
            (_, Some(cause)) => cause,
            (true, None) => "the peer closed the connection".to_owned(),
            (false, None) => "the peer closed the connection before it said hello: it may have revoked \
                              this site"
                .to_owned(),
        };
        context.fail(fallback);
        let wire = context.counters.wire();
        {
            let mut peers = self.parts.shared.peers();
            // Over this one it may have been paired: that counts, too.
            if self.parts.gate.book.is_paired(&peer) {
                peers.entry(peer).or_default();
            }
            if let Some(state) = peers.get_mut(&peer) {
                state.living.retain(|(known, _)| *known != id);
                state.closed.sent += wire.sent;
                state.closed.received += wire.received;
                if connection.started {
                    state.last_error = Some(context.reason());
                }
            }
        }
        if connection.started {
            tracing::debug!(%peer, why = %context.reason(), was_up, "connection closed");
            if context.dialled
                && let Some(dial) = self.dials.get_mut(&peer)
            {
                dial.busy = false;
                dial.due = None;
            }
        }
    }
}

fn without_peer(address: &Multiaddr) -> Multiaddr {
    address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect()
}

/// An error and its causes on one line.
pub(super) fn flat(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string().replace('\n', " ");
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
