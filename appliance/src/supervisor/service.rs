//! What systemd hears: ready, reloading, stopping, a status line, and the watchdog.
//!
//! The watchdog is fed from the event loop itself, so a runtime that hangs is restarted. Without
//! systemd every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// How often the watchdog is looked at where systemd wants none; also the beat of the status line.
const BEAT: Duration = Duration::from_secs(5);

/// The line to the service manager.
pub struct Service {
    beat: Interval,
    watchdog: bool,
    status: String,
}

impl Service {
    /// Reads what systemd wants from the environment. Inside the runtime.
    pub fn new() -> Self {
        let wanted = sd_notify::watchdog_enabled();
        // Twice within the time that systemd allows, as sd_watchdog_enabled(3) recommends.
        let period = wanted.map_or(BEAT, |limit| (limit / 2).min(BEAT)).max(Duration::from_millis(100));
        let mut beat = interval(period);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { beat, watchdog: wanted.is_some(), status: String::new() }
    }

    /// The next beat: feeds the watchdog.
    pub async fn beat(&mut self) {
        self.beat.tick().await;
        if self.watchdog {
            tell(&[NotifyState::Watchdog]);
        }
    }

    /// Everything is open and answers.
    pub fn ready(&mut self, status: &str) {
        status.clone_into(&mut self.status);
        tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// One line for `systemctl status`; sent when it changed.
    pub fn status(&mut self, status: &str) {
        if self.status != status {
            status.clone_into(&mut self.status);
            tell(&[NotifyState::Status(status)]);
        }
    }

    /// SIGHUP came; call [`Service::ready`] after it.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(_) => tell(&[NotifyState::Reloading]),
        }
    }

    /// SIGTERM came.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
    }
}

impl Default for Service {
    fn default() -> Self {
        Self::new()
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn beats_without_systemd() {
        let mut service = Service::new();
        let start = tokio::time::Instant::now();
        service.beat().await;
        service.beat().await;
        assert!(start.elapsed() >= BEAT && start.elapsed() < 2 * BEAT);
        service.ready("idle");
        service.status("idle");
        service.reloading();
        service.stopping();
    }
}
