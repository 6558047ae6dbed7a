//! Several connections to one peer: opening and closing them, and letting bundles use them. The part of the
//! swarm task that looks at links as they are used.
//!
//! [`super::spread`] decides how many are wanted; the side that dialled opens them, on its own account
//! or because the other side asks. Owns nothing: it is a part of [`Driver`]. Bounds: `LINKS_MAX` links
//! of one peer; after a failed dial a pause.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::swarm::ConnectionId;

use super::dialling::{dial_options, preferred};
use super::driver::Driver;
use super::link::Link;
use super::spread::{Observed, Spread};
use crate::limits::LINKS_MAX;

/// A duplicate link without channels is closed after this.
const DUPLICATE_IDLE: Duration = Duration::from_secs(10);
/// The same for a link that was opened to carry more: the next session may want it again.
const EXTRA_IDLE: Duration = Duration::from_secs(60);
/// No extra link is dialled for this long after one failed.
const RETRY: Duration = Duration::from_secs(10);
/// What the other side asks for holds this long; it repeats it every [`ASK_EVERY`].
const ASKED_VALID: Duration = Duration::from_secs(5);
const ASK_EVERY: Duration = Duration::from_secs(1);
/// A round trip above its minimum by this factor, and a little for short lines, waits in a queue. CUBIC
/// keeps 1.4 to 2 times the minimum on a line whose queue holds one round trip.
const QUEUE_FACTOR: f64 = 1.4;
const QUEUE_SLACK: Duration = Duration::from_millis(2);

/// How a peer's links develop.
pub(super) struct Growth {
    spread: Spread,
    dialling: HashSet<ConnectionId>,
    retry_at: Instant,
    /// How many the other side wants, and until when.
    asked: (usize, Instant),
    ask_at: Instant,
}

impl Growth {
    fn new(seen: &Observed, now: Instant) -> Self {
        let spread = Spread::new(seen, now);
        Self { spread, dialling: HashSet::new(), retry_at: now, asked: (0, now), ask_at: now }
    }
}

impl Driver {
    /// Several times a second.
    pub(super) fn tend_links(&mut self, now: Instant) {
        let links = self.parts.links.borrow().clone();
        self.growth.retain(|peer, _| links.contains_key(peer));
        for (peer, list) in &links {
            self.spread_bundles(peer, list);
            self.grow(*peer, list, now);
            for link in list.iter().filter(|link| link.is_held_back()) {
                link.context.counters.probe.iter().for_each(|probe| probe.spare_the_look(now));
            }
        }
        let idle: HashSet<ConnectionId> = links
            .values()
            .flatten()
            .filter(|link| !link.is_used())
            .map(|link| link.context.connection)
            .collect();
        for (id, connection) in &mut self.connections {
            connection.idle_since = idle.contains(id).then(|| connection.idle_since.unwrap_or(now));
        }
        for list in links.values().filter(|list| list.len() > 1) {
            self.close_idle(list, now);
        }
    }

    /// Sessions that may run over several links use all that are up.
    fn spread_bundles(&self, peer: &PeerId, list: &[Arc<Link>]) {
        let Some(bundles) = self.bundles.get(peer).filter(|_| list.len() > 1) else { return };
        for channel in bundles.growing() {
            for link in list.iter().filter(|link| link.is_up()) {
                link.carry(&channel);
            }
        }
    }

    fn grow(&mut self, peer: PeerId, list: &[Arc<Link>], now: Instant) {
        if !list.iter().all(|link| link.can_bundle()) {
            return;
        }
        let seen = observe(list);
        let growth = self.growth.entry(peer).or_insert_with(|| Growth::new(&seen, now));
        let wanted = growth.spread.apply(&seen, now);
        let wanted = if seen.waits { wanted } else { 0 };
        let Some(base) = list.iter().find(|link| link.context.dialled) else {
            if wanted > list.len() && growth.ask_at <= now {
                growth.ask_at = now + ASK_EVERY;
                list[0].ask_for_links(wanted as u8);
            }
            return;
        };
        let asked = if growth.asked.1 > now { growth.asked.0 } else { 0 };
        let wanted = wanted.max(asked).min(self.parts.connections);
        let missing = wanted.saturating_sub(list.len() + growth.dialling.len());
        let remote = self.connections.get(&base.context.connection).map(|known| known.remote.clone());
        let Some(remote) = remote.filter(|_| growth.retry_at <= now) else { return };
        for _ in 0..missing {
            // The same way that works already.
            let options = dial_options(peer, vec![remote.clone()]);
            growth.dialling.insert(options.connection_id());
            let id = options.connection_id();
            if let Err(error) = self.parts.swarm.dial(options) {
                tracing::debug!(%peer, %error, "a further link cannot be dialled");
                growth.dialling.remove(&id);
                growth.retry_at = now + RETRY;
                return;
            }
        }
        if missing > 0 {
            tracing::info!(%peer, links = list.len() + missing, "one connection does not fill the line: opening more");
        }
    }

    /// The other side, which cannot dial, wants this many links.
    pub(super) fn links_wanted(&mut self, peer: PeerId, count: u8, now: Instant) {
        if let Some(growth) = self.growth.get_mut(&peer) {
            growth.asked = (usize::from(count).min(LINKS_MAX), now + ASKED_VALID);
        }
    }

    /// True where this connection was dialled beside another one and is not up yet.
    pub(super) fn is_extra(&self, peer: &PeerId, id: ConnectionId) -> bool {
        self.growth.get(peer).is_some_and(|growth| growth.dialling.contains(&id))
    }

    /// It is up, or over.
    pub(super) fn extra_settled(&mut self, peer: &PeerId, id: ConnectionId) -> bool {
        self.growth.get_mut(peer).is_some_and(|growth| growth.dialling.remove(&id))
    }

    /// True where what failed was a dial beside another connection.
    pub(super) fn extra_failed(&mut self, peer: &PeerId, id: ConnectionId, now: Instant) -> bool {
        let failed = self.extra_settled(peer, id);
        if failed && let Some(growth) = self.growth.get_mut(peer) {
            growth.retry_at = now + RETRY;
        }
        failed
    }

    /// Where both sides dialled, the link dialled by the smaller identity stays; both come to the same
    /// choice. Others are closed by their dialler once they carried nothing for a while.
    fn close_idle(&self, list: &[Arc<Link>], now: Instant) {
        let Some(keep) = preferred(list, self.parts.swarm.local_peer_id()) else { return };
        for link in list.iter().filter(|link| link.context.dialled && !Arc::ptr_eq(link, &keep)) {
            let limit = if link.context.extra { EXTRA_IDLE } else { DUPLICATE_IDLE };
            let connection = self.connections.get(&link.context.connection);
            let idle = connection.and_then(|connection| connection.idle_since);
            if idle.is_some_and(|since| now.saturating_duration_since(since) > limit) {
                link.context.fail("a further connection to the same peer was not needed any more");
            }
        }
    }
}

fn observe(list: &[Arc<Link>]) -> Observed {
    let rate_bps = list.iter().filter_map(|link| link.context.counters.valve.limit_bps()).min();
    let mut seen = Observed { links: list.len(), loss_based: true, rate_bps, ..Observed::default() };
    let mut queueing = 0;
    for link in list {
        seen.loss_based &= link.is_loss_based();
        seen.waits |= link.bulk_waits();
        let Some(probe) = &link.context.counters.probe else { continue };
        let figures = probe.figures();
        seen.sent += figures.sent.saturating_sub(figures.retransmitted);
        seen.retransmitted += figures.retransmitted;
        queueing += usize::from(figures.rtt > figures.rtt_min.mul_f64(QUEUE_FACTOR) + QUEUE_SLACK);
    }
    seen.queueing = 2 * queueing > list.len();
    seen
}
