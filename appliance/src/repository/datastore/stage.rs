//! The state machine of a replica between replication and the day it is needed. Pure.
//!
//! ```text
//!             test                start                 commit
//! Idle ------------> Test   Idle ------> Failover ----------------> Permanent
//!      <------------             <------
//!             undo                undo       |    ^
//!                                failback start |    | failback undo
//!                                              v    |
//! Idle <-------------- Failback <--------- FailingBack
//!      failback commit     |     it runs there
//!                          `---> Failover (failback undo)
//! ```
//!
//! What it is while idle (empty, seeding, ready, syncing) follows from its restore points and is not kept.

use serde::{Deserialize, Serialize};

/// What is kept of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Nothing was started from it.
    #[default]
    Idle,
    /// A restore point runs for a test.
    Test,
    /// The replica is the VM.
    Failover,
    /// The same for good.
    Permanent,
    /// It still is the VM, and goes back to the site that it came from.
    FailingBack,
    /// The VM runs at that site again. What is here is off, and kept until that is committed.
    Failback,
}

/// What an operator orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Try a restore point.
    Test,
    /// Start the VM here.
    Start,
    /// Throw away what ran here.
    Undo,
    /// The VM stays here.
    Commit,
    /// The VM goes back.
    FailBack,
    /// It runs there now.
    HandOver,
    /// It is here again.
    TakeBack,
    /// It stays there.
    Return,
}

/// Why an order is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What stands in the way.
    pub why: &'static str,
    /// What to do.
    pub next: &'static str,
}

impl Stage {
    /// The stage after an order.
    pub fn after(self, order: Order) -> Result<Self, Refused> {
        let refuse = |why, next| Err(Refused { why, next });
        match (self, order) {
            (Self::Idle, Order::Test) => Ok(Self::Test),
            (Self::Idle, Order::Start) => Ok(Self::Failover),
            (Self::Test | Self::Failover, Order::Undo) => Ok(Self::Idle),
            (Self::Failover, Order::Commit) => Ok(Self::Permanent),
            (Self::Failover | Self::FailingBack, Order::FailBack) => Ok(Self::FailingBack),
            (Self::FailingBack, Order::HandOver) => Ok(Self::Failback),
            (Self::FailingBack | Self::Failback, Order::TakeBack) => Ok(Self::Failover),
            (Self::Failback, Order::Return) => Ok(Self::Idle),
            (Self::Idle, _) => {
                refuse("it is not failed over", "vbrctl failover start REPLICA@POINT starts it")
            }
            (Self::Test, Order::Test | Order::Start) => {
                refuse("a test of it runs", "end it first: vbrctl failover undo REPLICA")
            }
            (Self::Test, _) => refuse(
                "only a test runs, away from the network",
                "end the test (vbrctl failover undo), then start a failover",
            ),
            (Self::Failover, Order::Test | Order::Start) => refuse(
                "it is failed over",
                "vbrctl failover show REPLICA tells how it runs; undo or commit that first",
            ),
            (Self::Failover, _) => {
                refuse("no failback of it is under way", "vbrctl failback start REPLICA begins one")
            }
            (Self::FailingBack, _) => refuse(
                "it is on its way back to the site that it came from",
                "vbrctl failback start REPLICA goes on with that, vbrctl failback undo REPLICA gives it up",
            ),
            (Self::Failback, _) => refuse(
                "it runs at the site that it came from again",
                "vbrctl failback commit REPLICA leaves it there, vbrctl failback undo REPLICA takes it back here",
            ),
            (Self::Permanent, _) => refuse(
                "its failover was committed: it is this site's VM now",
                "nothing is left to do; vbrctl failover show REPLICA tells how it runs",
            ),
        }
    }

    /// Whether a session may replicate into it: never into what runs as the VM, because two of the VM would go their own ways.
    pub fn takes_sessions(self) -> bool {
        matches!(self, Self::Idle | Self::Test)
    }

    /// Whether what lies here is the VM, running or not.
    pub fn is_vm(self) -> bool {
        matches!(self, Self::Failover | Self::FailingBack | Self::Permanent)
    }

    /// Whether images lie in `failover/`.
    pub fn has_images(self) -> bool {
        self != Self::Idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ORDERS: [Order; 8] = [
        Order::Test,
        Order::Start,
        Order::Undo,
        Order::Commit,
        Order::FailBack,
        Order::HandOver,
        Order::TakeBack,
        Order::Return,
    ];

    proptest! {
        /// Whatever is ordered: nothing leads out of what was committed, what is refused changes nothing and says what to do, and
        /// only a failover can be committed. What was written here is given up in no other way than by an order that says so, and
        /// only where the VM runs there is it not the VM here.
        #[test]
        fn no_order_leads_astray(orders in proptest::collection::vec(0usize..8, 0..60)) {
            let mut stage = Stage::Idle;
            for order in orders.into_iter().map(|n| ORDERS[n]) {
                match stage.after(order) {
                    Ok(next) => {
                        prop_assert_ne!(stage, Stage::Permanent);
                        prop_assert_eq!(next == Stage::Permanent, order == Order::Commit);
                        prop_assert!(next != Stage::Permanent || stage == Stage::Failover);
                        let gives_up = matches!(order, Order::Undo | Order::Return);
                        prop_assert!(next != Stage::Idle || gives_up);
                        prop_assert_eq!(next == Stage::Failback, order == Order::HandOver);
                        prop_assert!(next != Stage::Failback || stage == Stage::FailingBack);
                        stage = next;
                    }
                    Err(refused) => prop_assert!(!refused.why.is_empty() && !refused.next.is_empty()),
                }
                prop_assert_eq!(stage.takes_sessions(), matches!(stage, Stage::Idle | Stage::Test));
            }
        }
    }

    #[test]
    fn every_stage_is_reached_and_left_as_drawn() {
        let all = [
            Stage::Idle,
            Stage::Test,
            Stage::Failover,
            Stage::Permanent,
            Stage::FailingBack,
            Stage::Failback,
        ];
        let allowed = all.iter().flat_map(|stage| ORDERS.iter().map(|order| stage.after(*order))).flatten();
        assert_eq!(allowed.count(), 11);
    }
}
