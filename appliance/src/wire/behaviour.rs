//! The gate and the streams: who may connect, and streams that belong to one connection.
//!
//! Written instead of using `libp2p-stream`, which picks one of several connections to a peer at
//! random, does not say on which connection a stream arrived, and drops inbound streams without a
//! word. Here every stream carries its `ConnectionId`, and what an unpaired peer may reach is
//! decided per connection, before it can negotiate anything.
//!
//! Bounds: at most [`INBOUND_MAX`] inbound streams wait for the swarm task per connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use libp2p::core::transport::PortUse;
use libp2p::core::{Endpoint, UpgradeInfo, upgrade};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    NotifyHandler, Stream, StreamProtocol, SubstreamProtocol, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::oneshot;

use super::gate::{Admission, Gate};
use super::{DATA_PROTOCOL, Dialect, PAIR_PROTOCOL};

/// Inbound streams of one connection that the swarm task has not taken yet.
const INBOUND_MAX: usize = 8;

/// The answer to an order to open a stream.
pub type OpenReply = oneshot::Sender<Result<Stream, String>>;

/// An inbound stream.
#[derive(Debug)]
pub struct Inbound {
    /// Who opened it: authenticated by the handshake.
    pub peer: PeerId,
    /// On which connection.
    pub connection: ConnectionId,
    /// For what.
    pub protocol: StreamProtocol,
    /// The stream.
    pub stream: Stream,
}

/// Gate and streams.
pub struct Behaviour {
    gate: Arc<Gate>,
    events: VecDeque<ToSwarm<Inbound, Open>>,
}

impl Behaviour {
    /// Asks `gate` about everybody.
    pub fn new(gate: Arc<Gate>) -> Self {
        Self { gate, events: VecDeque::new() }
    }

    /// Opens a stream on exactly this connection. The caller bounds how often.
    pub fn open(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        protocol: StreamProtocol,
        reply: OpenReply,
    ) {
        self.events.push_back(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(connection),
            event: Open { protocol, reply },
        });
    }

    fn admit(&self, peer: PeerId, inbound: bool) -> Result<Handler, ConnectionDenied> {
        match self.gate.admit(&peer, inbound) {
            Some(admission) => Ok(Handler::new(admission, self.gate.clone())),
            None => Err(ConnectionDenied::new(NotPaired)),
        }
    }
}

/// Why a stranger is turned away.
#[derive(Debug, thiserror::Error)]
#[error("the peer is not paired with this site")]
pub struct NotPaired;

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Inbound;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        self.admit(peer, true)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        self.admit(peer, false)
    }

    fn on_swarm_event(&mut self, _: FromSwarm) {}

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        let (protocol, stream) = event;
        self.events.push_back(ToSwarm::GenerateEvent(Inbound { peer, connection, protocol, stream }));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Inbound, THandlerInEvent<Self>>> {
        // No waker: the swarm polls again after each call that could have queued an event.
        self.events.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// An order to a connection.
#[derive(Debug)]
pub struct Open {
    protocol: StreamProtocol,
    reply: OpenReply,
}

/// Streams of one connection.
pub struct Handler {
    admission: Admission,
    gate: Arc<Gate>,
    orders: VecDeque<Open>,
    inbound: VecDeque<(StreamProtocol, Stream)>,
    waker: Option<std::task::Waker>,
}

impl Handler {
    fn new(admission: Admission, gate: Arc<Gate>) -> Self {
        Self { admission, gate, orders: VecDeque::new(), inbound: VecDeque::new(), waker: None }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = (StreamProtocol, Stream);
    type InboundProtocol = Protocols;
    type OutboundProtocol = Protocols;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = OpenReply;

    fn listen_protocol(&self) -> SubstreamProtocol<Protocols> {
        let mut offered = Vec::new();
        if self.admission == Admission::Paired {
            offered.extend(Dialect::accepted());
            offered.push(DATA_PROTOCOL);
        }
        if self.gate.is_inviting() {
            offered.push(PAIR_PROTOCOL);
        }
        SubstreamProtocol::new(Protocols(offered), ())
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Protocols, OpenReply, Self::ToBehaviour>> {
        if let Some(inbound) = self.inbound.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(inbound));
        }
        if let Some(Open { protocol, reply }) = self.orders.pop_front() {
            let protocol = SubstreamProtocol::new(Protocols(vec![protocol]), reply);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, order: Open) {
        self.orders.push_back(order);
        self.wake();
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Protocols, Protocols, (), OpenReply>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. })
                if self.inbound.len() < INBOUND_MAX =>
            {
                self.inbound.push_back(protocol);
                self.wake();
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                let _ = info.send(Ok(protocol.1));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, info }) => {
                let _ = info.send(Err(error.to_string()));
            }
            _ => {}
        }
    }
}

/// Negotiates one of several protocols and hands out the bare stream.
#[derive(Debug)]
pub struct Protocols(Vec<StreamProtocol>);

impl UpgradeInfo for Protocols {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl upgrade::InboundUpgrade<Stream> for Protocols {
    type Output = (StreamProtocol, Stream);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((protocol, stream)))
    }
}

impl upgrade::OutboundUpgrade<Stream> for Protocols {
    type Output = (StreamProtocol, Stream);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((protocol, stream)))
    }
}
