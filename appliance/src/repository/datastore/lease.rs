//! Leases: readers of restore points against whoever removes or rewrites them.
//!
//! Owns the counts of one replica. A reader holds a shared lease on its point for as long as it reads;
//! retiring takes the point (reflink) or the whole replica (overlay chains) for itself. Writers go
//! first: once one waits, no new reader is let in. Bounds: both sides wait at most as long as they say.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What an exclusive lease covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One point.
    Point(String),
    /// Every point of the replica.
    Replica,
}

impl Scope {
    fn covers(&self, point: &str) -> bool {
        match self {
            Self::Point(own) => own == point,
            Self::Replica => true,
        }
    }
}

#[derive(Default)]
struct State {
    readers: HashMap<String, usize>,
    exclusive: Option<Scope>,
}

/// The leases of one replica.
#[derive(Default)]
pub struct Leases {
    state: Mutex<State>,
    changed: Condvar,
}

/// Nobody gave way in time.
#[derive(Debug, PartialEq, Eq)]
pub struct StillHeld;

impl Leases {
    /// For reading a point.
    pub fn shared(self: &Arc<Self>, point: &str, patience: Duration) -> Result<ReadLease, StillHeld> {
        let mut state =
            self.wait(patience, |state| !state.exclusive.as_ref().is_some_and(|s| s.covers(point)))?;
        *state.readers.entry(point.to_string()).or_default() += 1;
        drop(state);
        Ok(ReadLease { leases: self.clone(), point: point.to_string() })
    }

    /// For removing or rewriting. `evict` is called once new readers are kept out, to let go of readers
    /// that are only held for later use.
    pub fn exclusive(
        self: &Arc<Self>,
        scope: Scope,
        patience: Duration,
        evict: impl FnOnce(),
    ) -> Result<ExclusiveLease, StillHeld> {
        let deadline = Instant::now() + patience;
        self.wait(patience, |state| state.exclusive.is_none())?.exclusive = Some(scope.clone());
        let lease = ExclusiveLease { leases: self.clone() };
        evict();
        let rest = deadline.saturating_duration_since(Instant::now());
        // On failure the lease is dropped, which lets readers in again.
        drop(self.wait(rest, |state| !state.readers.keys().any(|point| scope.covers(point)))?);
        Ok(lease)
    }

    fn wait(
        &self,
        patience: Duration,
        ready: impl Fn(&State) -> bool,
    ) -> Result<MutexGuard<'_, State>, StillHeld> {
        let guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (guard, _) = self
            .changed
            .wait_timeout_while(guard, patience, |state| !ready(state))
            .unwrap_or_else(PoisonError::into_inner);
        if ready(&guard) { Ok(guard) } else { Err(StillHeld) }
    }
}

/// Held while a point is read.
pub struct ReadLease {
    leases: Arc<Leases>,
    point: String,
}

impl Drop for ReadLease {
    fn drop(&mut self) {
        let mut state = self.leases.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = state.readers.get_mut(&self.point) {
            *count -= 1;
            if *count == 0 {
                state.readers.remove(&self.point);
            }
        }
        self.leases.changed.notify_all();
    }
}

/// Held while points are removed or rewritten.
pub struct ExclusiveLease {
    leases: Arc<Leases>,
}

impl Drop for ExclusiveLease {
    fn drop(&mut self) {
        self.leases.state.lock().unwrap_or_else(PoisonError::into_inner).exclusive = None;
        self.leases.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_and_writers() {
        let leases = Arc::new(Leases::default());
        let a = leases.shared("a", Duration::ZERO).unwrap();
        assert!(leases.exclusive(Scope::Replica, Duration::ZERO, || ()).is_err());
        let b = leases.exclusive(Scope::Point("b".into()), Duration::ZERO, || ()).unwrap();
        assert!(leases.shared("b", Duration::ZERO).is_err());
        drop(leases.shared("a", Duration::ZERO).unwrap());
        drop(b);
        let waiting = leases.clone();
        let thread =
            std::thread::spawn(move || waiting.exclusive(Scope::Replica, Duration::from_secs(20), || ()));
        std::thread::sleep(Duration::from_millis(50));
        assert!(leases.shared("a", Duration::ZERO).is_err(), "a writer that waits keeps readers out");
        drop(a);
        drop(thread.join().unwrap().unwrap());
        drop(leases.shared("a", Duration::ZERO).unwrap());
    }
}
