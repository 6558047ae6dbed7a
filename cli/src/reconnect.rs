//! Patience with a vbrd that is away: whoever waits or watches outlives its restart.
//!
//! Only for orders that may be repeated (reads). Bound: 60 s without one answer (a restart drains
//! for 5 s and opens its database), then the failure stands; tests shorten it with the hidden `--patience`.

use std::time::{Duration, Instant};

use crate::failure::{Failure, Kind};

const PAUSE: Duration = Duration::from_millis(500);

/// Counts how long vbrd has been away.
pub struct Reconnect {
    patience: Duration,
    away_since: Option<Instant>,
}

impl Reconnect {
    pub fn new(patience: Duration) -> Self {
        Self { patience, away_since: None }
    }

    /// After a failure: pauses and returns when it is worth asking again, else gives the failure back.
    pub async fn again(&mut self, mut failure: Failure, note: &mut dyn FnMut(&str)) -> Result<(), Failure> {
        if failure.kind != Kind::Gone {
            return Err(failure);
        }
        let now = Instant::now();
        let since = match self.away_since {
            Some(since) => since,
            None => {
                let seconds = self.patience.as_secs();
                note(&format!("vbrd does not answer ({}); asking again for {seconds} s", failure.body.why));
                *self.away_since.insert(now)
            }
        };
        if now.duration_since(since) >= self.patience {
            failure.body.why = format!("{}, for {} s", failure.body.why, self.patience.as_secs());
            return Err(failure);
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    /// After an answer.
    pub fn answered(&mut self, note: &mut dyn FnMut(&str)) {
        if self.away_since.take().is_some() {
            note("vbrd is back");
        }
    }
}
