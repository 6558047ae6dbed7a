//! Which rules bound which connection: the part of the swarm task that keeps valves as the rules say.
//!
//! A rule has one bucket, shared by all connections that it bounds. What is in force is looked at once a second, and at
//! once when rules change or a connection comes. Owns the buckets; the rules' own copy is on disk
//! ([`crate::throttle::store`]).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use libp2p::swarm::ConnectionId;

use super::driver::Driver;
use super::transport::ip_addr;
use crate::throttle::{CONFIGURED, Rule, SharedBucket};

/// See the module.
pub(super) struct Throttling {
    rules: Vec<Rule>,
    /// `wire.rate`
    rate_bps: Option<u64>,
    zone: TimeZone,
    buckets: HashMap<String, Arc<SharedBucket>>,
    /// Places in `rules` of those in force.
    in_force: Vec<usize>,
    /// The second for which that holds.
    second: i64,
}

impl Throttling {
    /// With the rules and the rate of the configuration.
    pub(super) fn new(rules: Vec<Rule>, rate_bps: Option<u64>, zone: TimeZone) -> Self {
        let (buckets, in_force) = (HashMap::new(), Vec::new());
        let mut this = Self { rules, rate_bps, zone, buckets, in_force, second: i64::MIN };
        this.fill(Instant::now());
        this
    }

    fn set_rules(&mut self, rules: Vec<Rule>, now: Instant) {
        self.rules = rules;
        self.fill(now);
    }

    fn set_rate(&mut self, rate_bps: Option<u64>, now: Instant) {
        self.rate_bps = rate_bps;
        self.fill(now);
    }

    /// A bucket for each rule, with its rate.
    fn fill(&mut self, now: Instant) {
        let configured = self.rate_bps.map(|rate| (CONFIGURED, rate));
        let rules = self.rules.iter().map(|rule| (rule.spec.name.as_str(), rule.spec.rate_bps));
        let mut buckets = HashMap::new();
        for (name, rate) in rules.chain(configured) {
            let bucket = self.buckets.remove(name).unwrap_or_else(|| SharedBucket::new(name, rate));
            let known = bucket.lock().rate_bps();
            if known != rate {
                bucket.lock().set_rate(rate, now);
            }
            buckets.insert(name.to_owned(), bucket);
        }
        self.buckets = buckets;
        self.second = i64::MIN;
    }

    /// Sees which rules are in force; true where that is to be looked at at all.
    fn look(&mut self, at: Timestamp) -> bool {
        if at.as_second() == self.second {
            return false;
        }
        self.second = at.as_second();
        let open = |(_, rule): &(usize, &Rule)| rule.in_force(at, &self.zone);
        self.in_force = self.rules.iter().enumerate().filter(open).map(|(place, _)| place).collect();
        true
    }

    /// What bounds a connection now.
    fn limits(&self, peer: Option<&str>, address: Option<IpAddr>) -> Vec<Arc<SharedBucket>> {
        let rules = self.in_force.iter().filter_map(|place| self.rules.get(*place));
        let names = rules.filter(|rule| rule.applies(peer, address)).map(|rule| rule.spec.name.as_str());
        let all = names.chain(self.rate_bps.map(|_| CONFIGURED));
        all.filter_map(|name| self.buckets.get(name).cloned()).collect()
    }
}

impl Driver {
    /// Other rules, or another rate in the configuration. They act at once.
    pub(super) fn change_throttling(&mut self, rules: Option<Vec<Rule>>, rate: Option<Option<u64>>) {
        let now = Instant::now();
        if let Some(rules) = rules {
            self.throttling.set_rules(rules, now);
        }
        if let Some(rate) = rate {
            self.throttling.set_rate(rate, now);
        }
        self.throttling.look(Timestamp::now());
        let all: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for id in all {
            // Also those whose rules are the same: a rate may have changed.
            self.limit(id, true);
        }
    }

    /// Several times a second: what came into force or ceased to be, what the kernel sent again, and pauses of BBR.
    pub(super) fn tend_throttling(&mut self, now: Instant) {
        if self.throttling.look(Timestamp::now()) {
            let all: Vec<ConnectionId> = self.connections.keys().copied().collect();
            for id in all {
                self.limit(id, false);
            }
        }
        for connection in self.connections.values_mut().filter(|connection| !connection.limits.is_empty()) {
            let counters = &connection.context.counters;
            let Some(probe) = &counters.probe else { continue };
            probe.spare_the_look(now);
            let retransmitted = probe.figures().retransmitted;
            let again = retransmitted.saturating_sub(connection.retransmitted);
            connection.retransmitted = retransmitted;
            if again > 0 {
                counters.valve.charge(again, now);
            }
        }
    }

    /// Sets what bounds a connection, where that is not so already.
    pub(super) fn limit(&mut self, id: ConnectionId, again: bool) {
        let book = &self.parts.gate.book;
        let Some(connection) = self.connections.get_mut(&id).filter(|connection| connection.paired) else {
            return;
        };
        let peer = book.by_id(&connection.context.peer);
        let limits =
            self.throttling.limits(peer.as_ref().map(|peer| peer.name.as_str()), ip_addr(&connection.remote));
        let same = limits.len() == connection.limits.len()
            && limits.iter().zip(&connection.limits).all(|(one, other)| Arc::ptr_eq(one, other));
        if same && (!again || limits.is_empty()) {
            return;
        }
        let counters = &connection.context.counters;
        if connection.limits.is_empty()
            && let Some(probe) = &counters.probe
        {
            connection.retransmitted = probe.figures().retransmitted;
        }
        counters.set_limits(limits.clone());
        connection.limits = limits;
    }
}

#[cfg(test)]
mod tests {
    use vbr_api::ThrottleSpec;

    use super::*;

    fn rule(name: &str, rate_bps: u64, peer: Option<&str>, hours: Option<&str>) -> Rule {
        let (peer, hours) = (peer.map(Into::into), hours.map(Into::into));
        let spec = ThrottleSpec { name: name.into(), rate_bps, peer, network: None, days: None, hours };
        Rule::parse(spec).unwrap()
    }

    fn names(throttling: &Throttling, peer: &str) -> Vec<String> {
        throttling.limits(Some(peer), None).iter().map(|bucket| bucket.rule.clone()).collect()
    }

    #[test]
    fn what_applies_follows_peer_hour_and_configuration() {
        let rules = vec![
            rule("all", 9_000_000, None, None),
            rule("day", 2_000_000, None, Some("08:00-18:00")),
            rule("dr", 5_000_000, Some("dr"), None),
        ];
        let mut throttling = Throttling::new(rules.clone(), Some(7_000_000), TimeZone::UTC);
        assert!(throttling.look("2026-11-27T12:00:00Z".parse().unwrap()));
        assert!(!throttling.look("2026-11-27T12:00:00.9Z".parse().unwrap()));
        assert_eq!(names(&throttling, "dr"), ["all", "day", "dr", CONFIGURED]);
        assert_eq!(names(&throttling, "hq"), ["all", "day", CONFIGURED]);
        assert!(throttling.look("2026-11-27T18:00:00Z".parse().unwrap()));
        assert_eq!(names(&throttling, "hq"), ["all", CONFIGURED]);
        throttling.set_rate(None, Instant::now());
        assert_eq!(names(&throttling, "hq"), ["all"]);
    }

    #[test]
    fn a_rule_that_changes_keeps_its_bucket() {
        let mut throttling = Throttling::new(vec![rule("a", 9_000_000, None, None)], None, TimeZone::UTC);
        throttling.look(Timestamp::UNIX_EPOCH);
        let before = throttling.limits(None, None);
        throttling.set_rules(
            vec![rule("a", 1_000_000, None, None), rule("b", 5_000_000, None, None)],
            Instant::now(),
        );
        throttling.look(Timestamp::UNIX_EPOCH);
        let after = throttling.limits(None, None);
        assert!(after.len() == 2 && Arc::ptr_eq(&before[0], &after[0]));
        assert_eq!(before[0].lock().rate_bps(), 1_000_000);
        throttling.set_rules(Vec::new(), Instant::now());
        throttling.look(Timestamp::UNIX_EPOCH);
        assert!(throttling.limits(Some("dr"), None).is_empty());
    }
}
