//! When to dial whom, and which of several links counts: the part of the swarm task that runs by the
//! clock.
//!
//! Owns nothing: it is the second half of [`Driver`]. Bounds: one dial per peer at a time, pauses of
//! 0.5 to 30 s after a failure.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId};

use super::driver::{Driver, Order, flat};
use super::heartbeat::Backoff;
use super::link::Link;
use super::transport::resolve;

/// Dialling one peer.
#[derive(Default)]
pub struct Dial {
    backoff: Backoff,
    /// None: a pause is to be chosen.
    pub due: Option<Instant>,
    /// An attempt, or the connection it gave, is alive.
    pub busy: bool,
}

/// All addresses at once. A port of its own: reusing the listener's would let two sites that dial
/// each other meet in one socket.
pub fn dial_options(peer: PeerId, addresses: Vec<Multiaddr>) -> DialOpts {
    DialOpts::peer_id(peer).addresses(addresses).condition(PeerCondition::Always).allocate_new_port().build()
}

impl Driver {
    pub(super) fn on_tick(&mut self, now: Instant) {
        self.tend_links(now);
        self.tend_throttling(now);
        let connected: HashSet<PeerId> = self
            .connections
            .values()
            .filter(|connection| connection.paired && !connection.context.cancel.is_cancelled())
            .map(|connection| connection.context.peer)
            .collect();
        let book = self.parts.gate.book.clone();
        for (peer, entry) in book.dialled() {
            if entry.revoked || entry.addresses.is_empty() || connected.contains(&peer) {
                continue;
            }
            // The first attempt at once; later ones after a pause.
            let dial = self.dials.entry(peer).or_insert_with(|| Dial { due: Some(now), ..Dial::default() });
            if dial.busy {
                continue;
            }
            match dial.due {
                None => dial.due = Some(now + dial.backoff.next_delay(jitter())),
                Some(due) if due > now => {}
                Some(_) => {
                    dial.busy = true;
                    let addresses = entry.addresses.iter().filter_map(|a| a.parse().ok()).collect();
                    let orders = self.parts.orders.clone();
                    self.parts.tracker.spawn(async move {
                        let addresses = resolve(addresses).await;
                        let _ = orders.send(Order::Dial { peer, addresses }).await;
                    });
                }
            }
        }
    }

    pub(super) fn dial(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        if !self.parts.gate.book.is_paired(&peer) {
            self.dials.remove(&peer);
            return;
        }
        if addresses.is_empty() {
            self.dial_failed(peer, "none of the peer's addresses resolves".to_owned());
            return;
        }
        if let Err(error) = self.parts.swarm.dial(dial_options(peer, addresses)) {
            self.dial_failed(peer, flat(&error));
        }
    }

    pub(super) fn dial_failed(&mut self, peer: PeerId, why: String) {
        tracing::debug!(%peer, %why, "a dial failed");
        self.parts.shared.peers().entry(peer).or_default().last_error = Some(why);
        if let Some(dial) = self.dials.get_mut(&peer) {
            dial.busy = false;
            dial.due = None;
        }
    }
}

/// The link that new sessions take, and that survives its duplicates.
pub fn preferred(links: &[Arc<Link>], own: &PeerId) -> Option<Arc<Link>> {
    let up = links.iter().filter(|link| link.is_up());
    // Newest first among those of the smaller identity: an older one is more likely dead. An extra
    // one only where nothing else is left.
    up.max_by_key(|link| {
        let by_smaller = link.context.dialled == (*own < link.context.peer);
        (by_smaller, !link.context.extra, link.since)
    })
    .cloned()
}

fn jitter() -> u8 {
    let mut byte = [128];
    let _ = getrandom::fill(&mut byte);
    byte[0]
}
