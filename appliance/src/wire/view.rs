//! What operators see: this site's addresses and each peer's figures. Reads only.

use std::sync::Arc;

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use vbr_api::{Peer, ThrottledPeer};

use super::dialling::preferred;
use super::handle::Wire;
use super::link::Link;
use super::peers::Entry;

impl Wire {
    /// What a code carries: see [`Wire::listeners`].
    pub(super) fn addresses(&self) -> Vec<Multiaddr> {
        let mut out = self.inner.advertise.clone();
        let mut listeners = self.inner.shared.listeners().clone();
        listeners.retain(|address| !is_link_local(address));
        listeners.sort_by_key(rank);
        for address in listeners {
            if !out.contains(&address) {
                out.push(address);
            }
        }
        // A code has room for eight; the last place is for loopback, where a second vbrd on this
        // machine finds us.
        if out.len() > 8
            && let Some(at) = out.iter().position(|address| rank(address) >= 2)
        {
            let loopback = out.remove(at);
            out.insert(7, loopback);
        }
        out
    }

    /// What throttling comes to for each connected peer, in order of name.
    pub fn throttled(&self) -> Vec<ThrottledPeer> {
        let links = self.inner.links.borrow().clone();
        let entries = self.inner.gate.book.entries();
        let connected = entries.iter().filter_map(|(peer, entry)| Some((entry, links.get(peer)?)));
        let view = |(entry, links): (&Entry, &Vec<Arc<Link>>)| {
            let (limit_bps, rule) = lowest(links).unzip();
            ThrottledPeer { peer: entry.name.clone(), limit_bps, rule }
        };
        connected.filter(|(entry, _)| !entry.revoked).map(view).collect()
    }

    /// A peer as operators see it.
    pub(super) fn describe(&self, peer: PeerId, entry: &Entry) -> Peer {
        let state = self.inner.shared.peers().get(&peer).cloned().unwrap_or_default();
        let links = self.inner.links.borrow().get(&peer).cloned().unwrap_or_default();
        let link = preferred(&links, &self.inner.own).filter(|_| !entry.revoked);
        let counters = link.as_ref().map(|link| link.context.counters.clone());
        let probe = counters.as_ref().and_then(|counters| counters.probe.clone());
        let mut total = state.closed;
        for (_, living) in &state.living {
            let wire = living.wire();
            total.sent += wire.sent;
            total.received += wire.received;
        }
        let up = links.iter().filter(|_| link.is_some());
        let control: Vec<_> = up.filter_map(|link| link.context.counters.control_rtt()).collect();
        let transport = if probe.is_some() { "tcp" } else { "quic" };
        let now = link.as_ref().map(|_| jiff::Timestamp::now());
        let revoked = entry.revoked.then(|| match &entry.replaced_by {
            Some(successor) => format!("its place was given to {successor}, and its key is refused"),
            None => "revoked at this site".to_owned(),
        });
        Peer {
            name: entry.name.clone(),
            peer_id: entry.peer_id.clone(),
            addresses: entry.addresses.clone(),
            connected: link.is_some(),
            software: link.as_ref().map(|link| link.software.clone()),
            transport: link.as_ref().map(|_| transport.to_owned()),
            congestion_control: probe.and_then(|probe| probe.congestion()),
            rtt_ms: counters.and_then(|counters| counters.rtt()).map(|rtt| rtt.as_millis() as u64),
            control_rtt_ms: control.iter().map(|(last, _)| last.as_millis() as u64).max(),
            control_rtt_max_ms: control.iter().map(|(_, max)| max.as_millis() as u64).max(),
            links: link.as_ref().map_or(0, |_| links.len() as u32),
            limit_bps: lowest(&links).filter(|_| link.is_some()).map(|(rate, _)| rate),
            sent_wire: total.sent,
            received_wire: total.received,
            domain: entry.domain.clone(),
            grants: entry.grants.clone(),
            granted: entry.granted.clone(),
            revoked: entry.revoked,
            quota: entry.quota,
            used: None,
            paired_at: entry.paired_at,
            last_seen_at: now.or(state.last_seen),
            last_error: revoked.or(state.last_error.filter(|_| link.is_none())),
        }
    }
}

/// The lowest bound of a peer's links, and the rule that it comes from.
fn lowest(links: &[Arc<Link>]) -> Option<(u64, String)> {
    links.iter().filter_map(|link| link.context.counters.valve.limit()).min()
}

/// Other machines' view first: IPv4, IPv6, then loopback.
fn rank(address: &Multiaddr) -> u8 {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) if ip.is_loopback() => 2,
        Some(Protocol::Ip6(ip)) if ip.is_loopback() => 3,
        Some(Protocol::Ip6(_)) => 1,
        _ => 0,
    }
}

fn is_link_local(address: &Multiaddr) -> bool {
    matches!(address.iter().next(), Some(Protocol::Ip6(ip)) if ip.is_unicast_link_local())
}
