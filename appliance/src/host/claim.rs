//! One session at a time: whoever has the claim to a VM may set up, or take down, a snapshot of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::HostError;

/// The claims of one host.
#[derive(Clone, Default)]
pub(super) struct Claims(Arc<Mutex<BTreeSet<String>>>);

/// Given back when dropped.
pub(super) struct Claim {
    claims: Claims,
    vm: String,
}

impl Claims {
    /// The claim to a VM; an error where another session has it.
    pub fn take(&self, host: &str, vm: &str) -> Result<Claim, HostError> {
        if !self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(vm.to_owned()) {
            return Err(HostError::Hypervisor {
                what: format!("VM {host}/{vm}"),
                why: "another session has a snapshot of it".into(),
                next_step: "it starts by itself when that session is over",
            });
        }
        Ok(Claim { claims: self.clone(), vm: vm.to_owned() })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.vm);
    }
}
