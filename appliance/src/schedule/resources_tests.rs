//! The broker on a clock of its own: no slot above its bound, nobody starves, priorities hold, and the same
//! order of events gives the same order of sessions.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vbr_api::Priority;

use super::resources::{AGE, Bounds, Broker, Need, Resource, Ticket};

const BOUNDS: Bounds = Bounds { site: 16, host: 4, link: 4, datastore: 4 };

fn need(host: &str, target: &str, tasks: u32, priority: Priority) -> Need {
    let peer = target.split('/').next().unwrap().to_owned();
    Need { host: host.into(), peer, datastore: target.into(), tasks, priority }
}

fn normal() -> Need {
    need("local", "dr", 1, Priority::Normal)
}

fn tickets(granted: &[(Ticket, u32)]) -> Vec<Ticket> {
    granted.iter().map(|(ticket, _)| *ticket).collect()
}

#[test]
fn equals_go_first_come_first_served() {
    let (mut broker, now) = (Broker::new(BOUNDS), Instant::now());
    let all: Vec<Ticket> = (0..10).map(|_| broker.enter(normal(), now)).collect();
    let (granted, places) = broker.settle(now);
    assert_eq!(tickets(&granted), all[..4]);
    assert_eq!(places.iter().map(|place| (place.ticket, place.place)).collect::<Vec<_>>(), {
        let waiting = all[4..].iter().copied();
        waiting.zip(1..).collect::<Vec<_>>()
    });
    assert_eq!(places[0].lacks, Resource::Host("local".into()));
    broker.leave(all[2]);
    assert_eq!(tickets(&broker.settle(now).0), [all[4]]);
    broker.leave(all[5]); // It was cancelled while it waited.
    broker.leave(all[0]);
    assert_eq!(tickets(&broker.settle(now).0), [all[6]]);
}

#[test]
fn priorities_go_first_and_age() {
    let (mut broker, now) = (Broker::new(Bounds { host: 1, ..BOUNDS }), Instant::now());
    let busy = broker.enter(normal(), now);
    broker.settle(now);
    let low = broker.enter(need("local", "dr", 1, Priority::Low), now);
    let middle = broker.enter(normal(), now);
    let high = broker.enter(need("local", "dr", 1, Priority::High), now);
    let mut order = Vec::new();
    let mut last = busy;
    while order.len() < 3 {
        broker.leave(last);
        let granted = tickets(&broker.settle(now).0);
        assert_eq!(granted.len(), 1);
        last = granted[0];
        order.push(last);
    }
    assert_eq!(order, [high, middle, low]);
    // High ones that come for ever: a low one waits for two steps, and no longer.
    let low = broker.enter(need("local", "dr", 1, Priority::Low), now);
    let mut at = now;
    loop {
        broker.enter(need("local", "dr", 1, Priority::High), at);
        broker.leave(last);
        last = tickets(&broker.settle(at).0)[0];
        if last == low {
            break;
        }
        at += Duration::from_secs(30);
        assert!(at - now <= 2 * AGE, "it starves");
    }
    assert!(at - now >= 2 * AGE - Duration::from_secs(60), "it went before its turn");
}

#[test]
fn another_host_and_peer_pass_by() {
    let (mut broker, now) = (Broker::new(Bounds { host: 1, link: 2, ..BOUNDS }), Instant::now());
    let a = broker.enter(need("a", "dr", 1, Priority::Normal), now);
    let waits = broker.enter(need("a", "dr", 1, Priority::High), now + Duration::from_secs(700));
    let b = broker.enter(need("b", "dr", 1, Priority::Low), now);
    assert_eq!(tickets(&broker.settle(now).0), [a, b]);
    let (_, places) = broker.settle(now);
    assert_eq!((places[0].ticket, places[0].lacks.to_string()), (waits, "host a".to_owned()));
}

#[test]
fn many_disks_take_as_many_slots_as_there_are() {
    let (mut broker, now) = (Broker::new(Bounds { link: 2, ..BOUNDS }), Instant::now());
    let big = broker.enter(need("a", "dr", 8, Priority::Normal), now);
    assert_eq!(broker.settle(now).0, [(big, 2)]);
    // A session of two slots is not passed by those of one for ever.
    let two = broker.enter(need("a", "dr", 2, Priority::Normal), now);
    let one = broker.enter(need("a", "dr", 1, Priority::Normal), now);
    assert!(broker.settle(now).0.is_empty());
    broker.leave(big);
    assert_eq!(broker.settle(now).0, [(two, 2)]);
    broker.leave(two);
    assert_eq!(broker.settle(now).0, [(one, 1)]);
}

/// A session to come: after how many seconds, what it needs, how long it runs.
type Plan = (u64, Need, u64);

fn plan() -> impl Strategy<Value = Plan> {
    let priority = prop_oneof![Just(Priority::Low), Just(Priority::Normal), Just(Priority::High)];
    let hosts = prop_oneof![Just("a"), Just("b")];
    let targets = prop_oneof![Just("dr"), Just("dr/fast"), Just("hq")];
    (0u64..4000, hosts, targets, 1u32..4, priority, 1u64..300).prop_map(
        |(at, host, target, tasks, priority, takes)| (at, need(host, target, tasks, priority), takes),
    )
}

/// Runs the plans; answers when each began, in seconds, in the order in which they did.
fn run(plans: &[Plan], bounds: Bounds) -> Vec<(usize, u64)> {
    let (mut broker, zero) = (Broker::new(bounds), Instant::now());
    let (mut entered, mut ends): (BTreeMap<Ticket, usize>, Vec<(u64, Ticket)>) =
        (BTreeMap::new(), Vec::new());
    let (mut began, mut used): (Vec<(usize, u64)>, BTreeMap<Resource, u32>) = (Vec::new(), BTreeMap::new());
    let mut second = 0;
    while began.len() < plans.len() {
        for (_, ticket) in ends.extract_if(.., |(end, _)| *end <= second) {
            broker.leave(ticket);
            take(&mut used, &plans[entered[&ticket]].1, &bounds, -1);
        }
        for (n, (_, need, _)) in plans.iter().enumerate().filter(|(_, plan)| plan.0 == second) {
            entered.insert(broker.enter(need.clone(), zero + Duration::from_secs(second)), n);
        }
        for (ticket, tasks) in broker.settle(zero + Duration::from_secs(second)).0 {
            let (_, need, takes) = &plans[entered[&ticket]];
            assert_eq!(tasks, need.tasks.min(bounds.host).min(bounds.link).min(bounds.datastore));
            take(&mut used, need, &bounds, 1);
            for (resource, used) in &used {
                assert!(*used <= bounds.of(resource), "{resource}: {used} slots");
            }
            ends.push((second + takes, ticket));
            began.push((entered[&ticket], second));
        }
        second += 1;
        assert!(second < 100_000, "somebody never runs");
    }
    began
}

fn take(used: &mut BTreeMap<Resource, u32>, need: &Need, bounds: &Bounds, sign: i64) {
    let tasks = need.tasks.min(bounds.host).min(bounds.link).min(bounds.datastore);
    let all = [
        (Resource::Host(need.host.clone()), tasks),
        (Resource::Link(need.peer.clone()), tasks),
        (Resource::Datastore(need.datastore.clone()), tasks),
        (Resource::Site, 1),
    ];
    for (resource, slots) in all {
        let used = used.entry(resource).or_default();
        *used = (i64::from(*used) + sign * i64::from(slots)) as u32;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes in whatever order: no slot above its bound, every session runs, and none is passed by more
    /// than those that were before it in turn could explain; the same plans give the same order.
    #[test]
    fn every_session_runs_within_its_bounds(
        plans in prop::collection::vec(plan(), 1..60),
        host in 1u32..5, link in 1u32..5, datastore in 1u32..5, site in 1u32..8,
    ) {
        let bounds = Bounds { site, host, link, datastore };
        let began = run(&plans, bounds);
        prop_assert_eq!(&began, &run(&plans, bounds));
        // Equal needs: first come, first served, and high before low of the same second.
        for (at, (n, start)) in began.iter().enumerate() {
            for (m, later) in &began[at + 1..] {
                let ((a, one, _), (b, other, _)) = (&plans[*n], &plans[*m]);
                let same = (&one.host, &one.peer, &one.datastore, one.tasks)
                    == (&other.host, &other.peer, &other.datastore, other.tasks);
                let waited = b.max(a) <= start && start < later;
                let turn = |at: &u64, need: &Need| at + AGE.as_secs() * match need.priority {
                    Priority::High => 0, Priority::Normal => 1, Priority::Low => 2,
                };
                if same && waited {
                    prop_assert!(turn(a, one) <= turn(b, other), "{n} went before {m}");
                }
            }
        }
        // While somebody waits, something runs: nobody waits for longer than all of them take one after the other.
        let work: u64 = plans.iter().map(|plan| plan.2).sum();
        for (n, start) in &began {
            prop_assert!(start - plans[*n].0 <= work, "{n} waited {}", start - plans[*n].0);
        }
    }
}
