//! Going back to the site that a replica came from: what is noted and done here. Who asks that site, and in which order, is the
//! supervisor's matter; whoever calls holds the replica's turn.

use std::sync::Arc;

use super::{Failovers, title};
use crate::error::Problem;
use crate::host::target::{RunState, TargetVm};
use crate::repository::datastore::{Order, Replica};

impl Failovers {
    /// What the VM of a replica does.
    pub fn run_state(&self, replica: &Replica) -> Result<RunState, Problem> {
        Ok(TargetVm::at(&replica.failover_dir()).run_state()?)
    }

    /// Starts the VM as it was, with what it wrote. One that has a process is success, whatever that does.
    pub fn start_again(&self, replica: &Arc<Replica>) -> Result<(), Problem> {
        self.run(replica)
    }

    /// The VM runs at its site: noted first, then its process here ends. That the process stays is told, and changes nothing: its
    /// guest is shut down.
    pub fn handed_over(&self, replica: &Arc<Replica>) -> Result<Option<String>, Problem> {
        replica.hand_over()?;
        tracing::warn!("the VM of {} runs at the site that it came from", title(replica));
        let stopped = TargetVm::at(&replica.failover_dir()).stop();
        Ok(stopped.err().map(|error| format!("its process here does not end: {error}")))
    }

    /// It stays there: what was written here is thrown away, and the replica takes sessions again.
    pub fn returned(&self, replica: &Arc<Replica>) -> Result<(), Problem> {
        replica.allows(Order::Return)?;
        TargetVm::at(&replica.failover_dir()).stop()?;
        replica.end_failover(Order::Return)?;
        tracing::warn!("the failback of {} was committed; it takes sessions again", title(replica));
        Ok(())
    }
}
