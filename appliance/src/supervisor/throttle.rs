//! Throttling orders: rules are kept on disk first, then they act.

use std::sync::Arc;

use jiff::tz::TimeZone;
use vbr_api::{Moment, Throttle, ThrottleSpec, Throttles};

use super::appliance::lock;
use crate::config::Config;
use crate::control::{Answer, ThrottleOrders};
use crate::error::Problem;
use crate::throttle::{CONFIGURED, Rule, Rules};
use crate::wire::Wire;

/// Answers for the rules of the site.
pub struct Throttling {
    /// What is on disk.
    pub rules: Arc<Rules>,
    /// Where they act.
    pub wire: Wire,
    /// For `wire.rate`.
    pub config: Arc<std::sync::Mutex<Config>>,
    /// One change at a time: what acts last is what is on disk.
    pub turn: tokio::sync::Mutex<()>,
}

impl Throttling {
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Rules) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let _turn = self.turn.lock().await;
        let rules = self.rules.clone();
        let changed = tokio::task::spawn_blocking(move || change(&rules)).await;
        let changed = changed.map_err(|error| {
            Problem::new("internal", "a part of the order stopped", error.to_string(), "report this")
        })??;
        self.wire.set_throttle(self.rules.all()).await;
        Ok(changed)
    }
}

/// A rule as it is at this moment.
fn view(rule: &Rule) -> Throttle {
    let (now, zone) = (Moment::now(), TimeZone::system());
    Throttle {
        spec: rule.spec.clone(),
        in_force: rule.in_force(now, &zone),
        changes_at: rule.changes_at(now, &zone),
        configured: false,
    }
}

/// `wire.rate`, as if it were a rule.
fn configured(rate_bps: u64) -> Throttle {
    let (name, peer, network, days, hours) = (CONFIGURED.to_owned(), None, None, None, None);
    let spec = ThrottleSpec { name, rate_bps, peer, network, days, hours };
    Throttle { spec, in_force: true, changes_at: None, configured: true }
}

impl ThrottleOrders for Throttling {
    fn list(&self) -> Result<Throttles, Problem> {
        let rate = lock(&self.config).wire.rate_bps;
        let items = self.rules.all().iter().map(view).chain(rate.map(configured)).collect();
        Ok(Throttles { items, peers: self.wire.throttled() })
    }

    fn set(&self, spec: ThrottleSpec) -> Answer<'_, (Throttle, bool)> {
        Box::pin(async move {
            let rule = Rule::parse(spec)?;
            if let Some(peer) = rule.spec.peer.as_ref().filter(|peer| self.wire.peer(peer).is_none()) {
                return Err(Problem::not_found(
                    format!("peer {peer} of throttling rule {}", rule.spec.name),
                    "`vbrctl peer list` shows the peers of this site",
                ));
            }
            let throttle = view(&rule);
            let spec = &rule.spec;
            tracing::info!(
                rule = %spec.name, rate_bps = spec.rate_bps, peer = spec.peer, network = spec.network,
                days = spec.days, hours = spec.hours, "throttling rule"
            );
            let new = self.change(|rules| rules.set(rule)).await?;
            Ok((throttle, new))
        })
    }

    fn clear(&self, name: Option<String>) -> Answer<'_, Vec<String>> {
        Box::pin(self.change(|rules| match name {
            Some(name) => rules.clear(&name).map(|()| vec![name]),
            None => rules.clear_all(),
        }))
    }
}
