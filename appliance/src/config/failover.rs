//! `[failover]`: read, checked and printed.

use std::time::Duration;

use toml::Spanned;
use vbr_api::NetworkMap;

use super::render::{list, quoted};
use super::values::Checker;
use super::{Config, file};

/// Between two tests of a replica.
const TEST_EVERY_MIN: Duration = Duration::from_secs(5);
const TEST_EVERY_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// For one test.
const TEST_WITHIN: Duration = Duration::from_secs(300);
const TEST_WITHIN_MIN: Duration = Duration::from_secs(1);
const TEST_WITHIN_MAX: Duration = Duration::from_secs(3600);
/// Of the text that is expected.
const EXPECT_MAX: usize = 1024;
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailoverSection {
    /// How they run.
    pub accelerator: Accelerator,
    /// Networks for those of sources.
    pub networks: Vec<NetworkMap>,
    /// How often the newest restore point of each VM is tried by starting it; none: never by itself.
    pub test_every: Option<Duration>,
    /// Text that its guest must say on its serial console.
    pub test_expect: Option<String>,
    /// For that, or for the guest agent to answer; without either it has to run for so long.
    pub test_within: Duration,
}

impl Default for FailoverSection {
    fn default() -> Self {
        Self {
            accelerator: Accelerator::default(),
            networks: Vec::new(),
            test_every: None,
            test_expect: None,
            test_within: TEST_WITHIN,
        }
    }
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
    let networks = networks.collect();
    FailoverSection { networks, accelerator: accelerator.unwrap_or_default(), ..tests(raw, checker) }
}

/// Restore points that are tried by themselves.
fn tests(raw: &file::Failover, checker: &mut Checker) -> FailoverSection {
    let mut bounded = |key: &str, value: &Option<Spanned<String>>, least: Duration, most: Duration| {
        let value = value.as_ref()?;
        let given = checker.duration(key, value)?;
        if !((least..=most).contains(&given) || given.is_zero() && key.ends_with("every")) {
            let what =
                format!("is out of bounds; allowed: \"{}s\" to \"{}s\"", least.as_secs(), most.as_secs());
            checker.fault_in(value.span(), key, what);
        }
        Some(given)
    };
    let every = bounded("failover.test_every", &raw.test_every, TEST_EVERY_MIN, TEST_EVERY_MAX);
    let within = bounded("failover.test_within", &raw.test_within, TEST_WITHIN_MIN, TEST_WITHIN_MAX);
    let expect = raw.test_expect.as_ref().map(|value| value.get_ref().clone());
    if let Some(value) =
        raw.test_expect.as_ref().filter(|value| !(1..=EXPECT_MAX).contains(&value.get_ref().len()))
    {
        let what = format!("must have 1 to {EXPECT_MAX} bytes");
        checker.fault_in(value.span(), "failover.test_expect", what);
    }
    FailoverSection {
        test_every: every.filter(|every| !every.is_zero()),
        test_expect: expect,
        test_within: within.unwrap_or(TEST_WITHIN),
        ..FailoverSection::default()
    }
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
    line(format!(
        "test_every = {}",
        quoted(&format!("{}s", config.failover.test_every.unwrap_or_default().as_secs()))
    ));
    if let Some(text) = &config.failover.test_expect {
        line(format!("test_expect = {}", quoted(text)));
    }
    line(format!("test_within = {}", quoted(&format!("{}s", config.failover.test_within.as_secs()))));
}
