//! The state machine of a replica between replication and the day it is needed. Pure.
//!
//! ```text
//!             test                start                 commit
//! Idle ------------> Test   Idle ------> Failover ----------------> Permanent
//!      <------------             <------
//!             undo                undo
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
            (Self::Idle, Order::Undo | Order::Commit) => {
                refuse("it is not failed over", "vbrctl failover start REPLICA@POINT starts it")
            }
            (Self::Test, Order::Commit) => refuse(
                "only a test runs, away from the network",
                "end the test (vbrctl failover undo), then start a failover",
            ),
            (Self::Test, Order::Test | Order::Start) => {
                refuse("a test of it runs", "end it first: vbrctl failover undo REPLICA")
            }
            (Self::Failover, Order::Test | Order::Start) => refuse(
                "it is failed over",
                "vbrctl failover show REPLICA tells how it runs; undo or commit that first",
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

    /// Whether images lie in `failover/`.
    pub fn has_images(self) -> bool {
        self != Self::Idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ORDERS: [Order; 4] = [Order::Test, Order::Start, Order::Undo, Order::Commit];

    proptest! {
        /// Whatever is ordered: nothing leads out of what was committed, what is refused changes nothing and says what to do, and
        /// only a failover can be committed.
        #[test]
        fn no_order_leads_astray(orders in proptest::collection::vec(0usize..4, 0..40)) {
            let mut stage = Stage::Idle;
            for order in orders.into_iter().map(|n| ORDERS[n]) {
                match stage.after(order) {
                    Ok(next) => {
                        prop_assert_ne!(stage, Stage::Permanent);
                        prop_assert_eq!(next == Stage::Permanent, order == Order::Commit);
                        prop_assert!(next != Stage::Permanent || stage == Stage::Failover);
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
        let all = [Stage::Idle, Stage::Test, Stage::Failover, Stage::Permanent];
        let allowed = all.iter().flat_map(|stage| ORDERS.iter().map(|order| stage.after(*order))).flatten();
        assert_eq!(allowed.count(), 5);
    }
}
