//! A throttling rule: how much may be sent, to whom, and when. Sans-IO.
//!
//! A rule bounds all that it applies to together: what a rule without peer and network allows is shared by all peers.
//! Where several apply to a connection each of them holds, so the lowest wins.

use std::net::IpAddr;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use vbr_api::{ThrottleSpec, name_is_valid};

use super::CONFIGURED;
use super::network::Network;
use crate::error::Problem;
use crate::limits::{RATE_BPS_MAX, RATE_BPS_MIN};
use crate::schedule::window::Window;

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// As ordered.
    pub spec: ThrottleSpec,
    network: Option<Network>,
    window: Option<Window>,
}

impl Rule {
    /// Checks a rule's own words; whether its peer exists is asked elsewhere.
    pub fn parse(spec: ThrottleSpec) -> Result<Self, Problem> {
        let what = format!("throttling rule {:?} cannot be set", spec.name);
        if !name_is_valid(&spec.name) {
            return Err(Problem::invalid(
                what,
                "the name does not match ^[a-z0-9][a-z0-9._-]{0,63}$",
                "choose a name of lower-case letters, digits, '.', '_' and '-'",
            ));
        }
        if spec.name == CONFIGURED {
            return Err(Problem::invalid(
                what,
                "that name stands for the bound in the configuration file",
                "choose another name; wire.rate is changed in the configuration, with `systemctl reload vbrd`",
            ));
        }
        check_rate(spec.rate_bps, &what)?;
        if let Some(peer) = spec.peer.as_ref().filter(|peer| !name_is_valid(peer)) {
            let why = format!("{peer:?} is no name of a peer");
            return Err(Problem::invalid(what, why, "`vbrctl peer list` shows the peers"));
        }
        if spec.peer.is_some() && spec.network.is_some() {
            return Err(Problem::invalid(
                what,
                "it names a peer and a network",
                "give one of them, or make two rules: where both apply, the lower one wins",
            ));
        }
        let network = spec.network.as_deref().map(str::parse).transpose();
        let network = network.map_err(|why| {
            Problem::invalid(what.clone(), why, "give the addresses of the links' other ends, with --network")
        })?;
        let window = window(spec.days.as_deref(), spec.hours.as_deref()).map_err(|why| {
            let next = "for example --days Mon..Fri --hours 08:00-18:00";
            Problem::invalid(what.clone(), why, next)
        })?;
        Ok(Self { spec, network, window })
    }

    /// True where it bounds a connection to this peer at this address.
    pub fn applies(&self, peer: Option<&str>, address: Option<IpAddr>) -> bool {
        let named = self.spec.peer.as_deref().is_none_or(|name| peer == Some(name));
        let inside = self.network.is_none_or(|network| address.is_some_and(|ip| network.contains(ip)));
        named && inside
    }

    /// True where its days and hours include this moment.
    pub fn in_force(&self, at: Timestamp, zone: &TimeZone) -> bool {
        self.window.as_ref().is_none_or(|window| window.is_open(at, zone))
    }

    /// When it begins or ceases to be in force; none where it always is.
    pub fn changes_at(&self, at: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let window = self.window.as_ref()?;
        if window.is_open(at, zone) { window.closes_after(at, zone) } else { window.open_from(at, zone) }
    }
}

/// Refuses what would stop a site, or bound nothing.
pub fn check_rate(rate_bps: u64, what: &str) -> Result<(), Problem> {
    if (RATE_BPS_MIN..=RATE_BPS_MAX).contains(&rate_bps) {
        return Ok(());
    }
    // Below this no session gets its heartbeats through in time.
    let why = format!("a rate of {rate_bps} bit/s is out of bounds: at least 64kbit, at most 1000Gbit");
    let next = "give bits a second with a unit, like 800kbit, 20Mbit or 1Gbit";
    Err(Problem::invalid(what.to_owned(), why, next))
}

/// Days and hours as one window; none where neither is given.
fn window(days: Option<&str>, hours: Option<&str>) -> Result<Option<Window>, String> {
    let text = match (days, hours) {
        (None, None) => return Ok(None),
        (None, Some(hours)) => hours.to_owned(),
        (Some(days), hours) => {
            let spans = hours.unwrap_or("00:00-24:00").split(',');
            spans.map(|span| format!("{} {}", days.trim(), span.trim())).collect::<Vec<_>>().join(",")
        }
    };
    if days.is_some_and(|days| days.trim().is_empty() || days.contains(':')) {
        return Err(format!("'{}' are no days", days.unwrap_or_default()));
    }
    if hours.is_some_and(|hours| hours.trim().starts_with(|c: char| c.is_alphabetic())) {
        return Err("days are given with --days, beside the hours".to_owned());
    }
    text.parse::<Window>().map(Some).map_err(|why| why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(rate_bps: u64) -> ThrottleSpec {
        ThrottleSpec { name: "office".into(), rate_bps, peer: None, network: None, days: None, hours: None }
    }

    fn rule(change: impl FnOnce(&mut ThrottleSpec)) -> Result<Rule, Problem> {
        let mut spec = spec(5_000_000);
        change(&mut spec);
        Rule::parse(spec)
    }

    #[test]
    fn to_whom_it_applies() {
        let ip = |text: &str| Some(text.parse().unwrap());
        let all = rule(|_| ()).unwrap();
        assert!(all.applies(Some("dr"), ip("10.1.2.3")) && all.applies(None, None));
        let dr = rule(|s| s.peer = Some("dr".into())).unwrap();
        assert!(
            dr.applies(Some("dr"), None)
                && !dr.applies(Some("hq"), ip("10.1.2.3"))
                && !dr.applies(None, None)
        );
        let net = rule(|s| s.network = Some("10.1.0.0/16".into())).unwrap();
        assert!(
            net.applies(None, ip("10.1.2.3"))
                && !net.applies(None, ip("10.2.0.1"))
                && !net.applies(None, None)
        );
    }

    #[test]
    fn when_it_is_in_force() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let at = |text: &str| {
            text.parse::<jiff::civil::DateTime>().unwrap().to_zoned(zone.clone()).unwrap().timestamp()
        };
        let hours = |days: Option<&str>, hours: Option<&str>| {
            rule(|s| (s.days, s.hours) = (days.map(Into::into), hours.map(Into::into))).unwrap()
        };
        let office = hours(Some("Mon..Fri"), Some("08:00-12:00, 13:00-18:00"));
        // 2026-11-27 is a Friday.
        for (text, open) in [
            ("2026-11-27T07:59:59", false),
            ("2026-11-27T08:00:00", true),
            ("2026-11-27T12:30:00", false),
            ("2026-11-27T17:59:59", true),
            ("2026-11-28T10:00:00", false),
        ] {
            assert_eq!(office.in_force(at(text), &zone), open, "{text}");
        }
        let next = office.changes_at(at("2026-11-27T18:00:00"), &zone);
        assert_eq!(next, Some(at("2026-11-30T08:00:00")));
        assert_eq!(office.changes_at(at("2026-11-27T08:00:00"), &zone), Some(at("2026-11-27T12:00:00")));
        let weekend = hours(Some("Sat,Sun"), None);
        assert!(weekend.in_force(at("2026-11-28T23:59:59"), &zone));
        assert!(!weekend.in_force(at("2026-11-30T00:00:00"), &zone));
        // Clocks are put back on 2026-10-25 at 3: that night has an hour more.
        let night = hours(None, Some("22:00-06:00"));
        assert!(
            night.in_force(at("2026-10-25T05:59:59"), &zone)
                && !night.in_force(at("2026-10-25T06:00:00"), &zone)
        );
        assert_eq!(rule(|_| ()).unwrap().changes_at(at("2026-11-27T08:00:00"), &zone), None);
    }

    #[test]
    fn wrong_rules() {
        let bad: [fn(&mut ThrottleSpec); 11] = [
            |s| s.name = "Office".into(),
            |s| s.name = CONFIGURED.into(),
            |s| s.rate_bps = 0,
            |s| s.rate_bps = 63_999,
            |s| s.rate_bps = u64::MAX,
            |s| s.peer = Some("a b".into()),
            |s| s.network = Some("10.1.2.3/16".into()),
            |s| (s.peer, s.network) = (Some("dr".into()), Some("10.0.0.0/8".into())),
            |s| s.days = Some("Mon..Someday".into()),
            |s| s.hours = Some("8-18".into()),
            |s| s.hours = Some("Mon 08:00-18:00".into()),
        ];
        for (at, change) in bad.into_iter().enumerate() {
            let problem = rule(change).expect_err(&at.to_string());
            assert!(problem.code == "invalid" && !problem.next_step.is_empty(), "{problem:?}");
        }
    }
}
