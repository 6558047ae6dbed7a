//! Links as they come up, go down and are cut: the part of the swarm task that keeps the published list.
//!
//! Owns nothing: it is a part of [`Driver`].

use std::sync::Arc;

use libp2p::PeerId;
use libp2p::swarm::ConnectionId;

use super::dialling::Dial;
use super::driver::Driver;
use super::link::Link;

impl Driver {
    pub(super) fn on_link_up(&mut self, link: Arc<Link>) {
        let (peer, id) = (link.context.peer, link.context.connection);
        if !self.connections.contains_key(&id) || !link.is_up() {
            return;
        }
        self.extra_settled(&peer, id);
        if let Some(dial) = self.dials.get_mut(&peer) {
            *dial = Dial::default();
        }
        {
            let mut peers = self.parts.shared.peers();
            let state = peers.entry(peer).or_default();
            state.last_seen = Some(jiff::Timestamp::now());
            state.last_error = None;
        }
        tracing::info!(%peer, "link is up");
        self.settle_identity(peer);
        self.parts.links.send_modify(|links| links.entry(peer).or_default().push(link));
    }

    pub(super) fn on_link_down(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else { return };
        let context = connection.context.clone();
        if self.unlink(context.peer, id) {
            tracing::info!(peer = %context.peer, why = %context.reason(), "link is down");
        }
        self.parts.swarm.close_connection(id);
        // A graceful close would wait for a black hole.
        if let Some(probe) = &context.counters.probe {
            probe.shutdown();
        }
    }

    /// Takes a link off the list. True where it was on it.
    pub(super) fn unlink(&mut self, peer: PeerId, id: ConnectionId) -> bool {
        let found = self.parts.links.send_if_modified(|links| {
            let Some(list) = links.get_mut(&peer) else { return false };
            let before = list.len();
            list.retain(|link| link.context.connection != id);
            let found = list.len() < before;
            if list.is_empty() {
                links.remove(&peer);
            }
            found
        });
        if found {
            self.parts.shared.peers().entry(peer).or_default().last_seen = Some(jiff::Timestamp::now());
        }
        found
    }

    pub(super) fn cut(&mut self, peer: PeerId) {
        let cut: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.context.peer == peer)
            .map(|(id, connection)| (*id, connection.context.clone()))
            .collect();
        for (id, context) in cut {
            context.fail("the pairing was revoked at this site");
            self.unlink(peer, id);
            self.parts.swarm.close_connection(id);
            if let Some(probe) = &context.counters.probe {
                probe.shutdown();
            }
        }
        self.dials.remove(&peer);
        self.bundles.remove(&peer);
    }
}
