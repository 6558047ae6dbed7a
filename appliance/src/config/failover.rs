//! `[failover]`: read, checked and printed.

use toml::Spanned;
use vbr_api::NetworkMap;

use super::render::{list, quoted};
use super::values::Checker;
use super::{Config, file};

/// Networks that may be named.
const NETWORKS_MAX: usize = 64;

/// How instructions of VMs are carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accelerator {
    /// By the processor where it can, else emulated.
    #[default]
    Auto,
    /// By the processor, or not at all.
    Kvm,
    /// Emulated.
    Tcg,
}

impl Accelerator {
    /// As written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// What this site has for VMs that are started from replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailoverSection {
    /// How they run.
    pub accelerator: Accelerator,
    /// Networks for those of sources.
    pub networks: Vec<NetworkMap>,
}

/// `FROM=TO`, or `TO` for all.
pub(super) fn parse_network(text: &str) -> Result<NetworkMap, String> {
    let (from, to) = match text.rsplit_once('=') {
        Some((from, to)) => (Some(from.to_owned()), to),
        None => (None, text),
    };
    if to.is_empty() || from.as_ref().is_some_and(String::is_empty) {
        return Err(format!("\"{text}\" is no network; write \"BRIDGE\", \"isolated\", or \"FROM=BRIDGE\""));
    }
    Ok(NetworkMap { from, to: to.to_owned() })
}

pub(super) fn section(raw: &file::Failover, checker: &mut Checker) -> FailoverSection {
    let accelerator = raw.accelerator.as_ref().and_then(|value| {
        let parsed = match value.get_ref().as_str() {
            "auto" => Ok(Accelerator::Auto),
            "kvm" => Ok(Accelerator::Kvm),
            "tcg" => Ok(Accelerator::Tcg),
            other => Err(format!("\"{other}\" is no accelerator; allowed: \"auto\", \"kvm\", \"tcg\"")),
        };
        checker.taken("failover.accelerator", value, parsed)
    });
    let given: &[Spanned<String>] = raw.networks.as_deref().unwrap_or_default();
    if let Some(beyond) = given.get(NETWORKS_MAX) {
        checker.fault_in(beyond.span(), "failover.networks", format!("names more than {NETWORKS_MAX}"));
    }
    let networks = given
        .iter()
        .take(NETWORKS_MAX)
        .filter_map(|value| checker.taken("failover.networks", value, parse_network(value.get_ref())));
    FailoverSection { networks: networks.collect(), accelerator: accelerator.unwrap_or_default() }
}

pub(super) fn render(config: &Config, line: &mut impl FnMut(String)) {
    line("\n[failover]".into());
    line(format!("accelerator = {}", quoted(config.failover.accelerator.as_str())));
    let networks: Vec<String> = config
        .failover
        .networks
        .iter()
        .map(|map| match &map.from {
            Some(from) => format!("{from}={}", map.to),
            None => map.to.clone(),
        })
        .collect();
    line(format!("networks = {}", list(networks.iter().map(String::as_str))));
}
