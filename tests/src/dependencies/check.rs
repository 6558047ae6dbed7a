//! Licences, sources, bans and checksums by ourselves, after the rules in `.deny.toml`, where `cargo deny` is not at hand.
//!
//! What it does not do: advisories, which need their database. It reads only what it understands of `.deny.toml`, and an
//! entry that it does not understand is a fault, not a pass.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::licence::is_allowed;
use super::{Metadata, Package, Reached};

/// Where crates may come from.
pub const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The parts of `.deny.toml` that count here.
#[derive(Debug, Deserialize)]
pub struct Rules {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Debug, Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
}

/// `Cargo.lock`.
#[derive(Debug, Deserialize)]
pub struct Lock {
    package: Vec<Locked>,
}

#[derive(Debug, Deserialize)]
struct Locked {
    name: String,
    version: String,
    source: Option<String>,
    checksum: Option<String>,
}

impl Lock {
    /// From the file's text.
    pub fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).context("Cargo.lock cannot be read")
    }

    /// SHA-256 of a crate's archive.
    pub fn checksum(&self, name: &str, version: &str) -> Option<&str> {
        let locked = self.package.iter().find(|locked| locked.name == name && locked.version == version)?;
        locked.checksum.as_deref()
    }
}

impl Rules {
    /// From the file's text.
    pub fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).context(".deny.toml cannot be read")
    }
}

/// What was looked at, and what is wrong.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Crates of the registry on this platform.
    pub crates: usize,
    /// How many of them fall under each expression.
    pub licences: BTreeMap<String, usize>,
    /// In more than one version: allowed, and worth a look.
    pub duplicates: Vec<String>,
    /// What breaks a rule.
    pub faults: Vec<String>,
}

/// Holds the graph and the lock file against the rules.
pub fn check(metadata: &Metadata, reached: &Reached, lock: &Lock, rules: &Rules) -> Verdict {
    let mut verdict = Verdict::default();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for id in metadata.reached(reached).into_keys() {
        let Some(package) = metadata.package(id) else {
            verdict.faults.push(format!("{id}: cargo metadata does not describe it"));
            continue;
        };
        if package.source.is_none() {
            continue;
        }
        verdict.crates += 1;
        versions.entry(&package.name).or_default().insert(&package.version);
        verdict.faults.extend(licence(package, &rules.licenses.allow));
        *verdict.licences.entry(package.license.clone().unwrap_or_default()).or_default() += 1;
        for ban in &rules.bans.deny {
            match is_banned(&ban.name, package) {
                Ok(true) => verdict.faults.push(format!("{} {} is banned", package.name, package.version)),
                Ok(false) => {}
                Err(why) => verdict.faults.push(why),
            }
        }
    }
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        let versions: Vec<&str> = versions.iter().copied().collect();
        verdict.duplicates.push(format!("{name} {}", versions.join(", ")));
    }
    verdict.faults.extend(sources(lock));
    verdict.faults.extend(metadata.own().flat_map(wildcards));
    verdict.faults.sort();
    verdict.faults.dedup();
    verdict
}

fn licence(package: &Package, allowed: &[String]) -> Option<String> {
    let name = format!("{} {}", package.name, package.version);
    let Some(expression) = package.license.as_deref() else {
        return Some(format!("{name} names no licence"));
    };
    match is_allowed(expression, allowed) {
        Ok(true) => None,
        Ok(false) => Some(format!("{name} is under {expression}, which .deny.toml does not allow")),
        Err(error) => Some(format!("{name}: {error}")),
    }
}

/// `NAME` or `NAME:<VERSION`.
fn is_banned(ban: &str, package: &Package) -> Result<bool, String> {
    let (name, requirement) = ban.split_once(':').unwrap_or((ban, ""));
    if name != package.name {
        return Ok(false);
    }
    if requirement.is_empty() {
        return Ok(true);
    }
    let unknown = || format!(".deny.toml: the ban {ban:?} is not understood here; write NAME or NAME:<X.Y.Z");
    let bound = requirement.strip_prefix('<').and_then(numbers).ok_or_else(unknown)?;
    let version = numbers(&package.version).ok_or_else(unknown)?;
    Ok(version < bound)
}

fn numbers(version: &str) -> Option<[u64; 3]> {
    let core = version.split(['+', '-']).next()?;
    let parts: Vec<u64> = core.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    parts.try_into().ok()
}

/// Every crate comes from the registry and is pinned by its checksum, whatever the platform.
fn sources(lock: &Lock) -> Vec<String> {
    let mut faults = Vec::new();
    for locked in &lock.package {
        let name = format!("{} {}", locked.name, locked.version);
        match &locked.source {
            None => {}
            Some(source) if source != REGISTRY => {
                faults.push(format!("{name} comes from {source}, not from crates.io"));
            }
            Some(_) if locked.checksum.as_ref().is_none_or(|sum| sum.len() != 64) => {
                faults.push(format!("{name} has no checksum in Cargo.lock"));
            }
            Some(_) => {}
        }
    }
    faults
}

fn wildcards(own: &Package) -> Vec<String> {
    let bad = own.dependencies.iter().filter(|wanted| wanted.req.contains('*') && wanted.path.is_none());
    bad.map(|wanted| format!("{} asks for {} in any version", own.name, wanted.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Reach;
    use super::super::tests::{parsed, reached, sample};
    use super::*;

    fn rules() -> Rules {
        Rules::parse(
            r#"
            [licenses]
            allow = ["MIT", "Apache-2.0", "Zlib"]
            [bans]
            deny = [{ crate = "gossip" }, { crate = "cc:<1.0.0" }]
            "#,
        )
        .unwrap()
    }

    fn lock(extra: &str) -> Lock {
        let sum = "a".repeat(64);
        let sound = format!(
            "[[package]]\nname = \"cc\"\nversion = \"1.0.0\"\nsource = \"{REGISTRY}\"\nchecksum = \"{sum}\"\n\
             [[package]]\nname = \"app\"\nversion = \"0.1.0\"\n{extra}"
        );
        Lock::parse(&sound).unwrap()
    }

    /// Everything that is named but `elsewhere`.
    fn all(metadata: &serde_json::Value) -> Reached {
        let mut reached = Reached::default();
        for package in
            metadata["packages"].as_array().unwrap().iter().filter(|package| package["name"] != "elsewhere")
        {
            let text = |key: &str| package[key].as_str().unwrap().to_owned();
            reached.enter(&format!("{} v{}", text("name"), text("version")), Reach::Product).unwrap();
        }
        reached
    }

    fn faults(metadata: &serde_json::Value, lock: &Lock) -> String {
        check(&parsed(metadata), &all(metadata), lock, &rules()).faults.join("\n")
    }

    #[test]
    fn a_sound_graph_passes() {
        let verdict = check(&parsed(&sample()), &reached(), &lock(""), &rules());
        assert_eq!(verdict.faults, Vec::<String>::new(), "what nothing reaches does not count");
        assert_eq!((verdict.crates, verdict.licences["MIT"]), (3, 1));
        assert_eq!(lock("").checksum("cc", "1.0.0"), Some(&*"a".repeat(64)));
    }

    #[test]
    fn each_rule_finds_what_breaks_it() {
        let mut licence = sample();
        licence["packages"][4]["license"] = "GPL-3.0-only".into();
        assert!(faults(&licence, &lock("")).contains("prop 2.0.0 is under GPL-3.0-only"));
        let mut unnamed = sample();
        unnamed["packages"][3]["license"] = serde_json::Value::Null;
        assert!(faults(&unnamed, &lock("")).contains("cc 1.0.0 names no licence"));
        let mut banned = sample();
        banned["packages"][3]["version"] = "0.9.9".into();
        assert!(faults(&banned, &lock("")).contains("cc 0.9.9 is banned"));
        banned["packages"][3]["name"] = "gossip".into();
        assert!(faults(&banned, &lock("")).contains("gossip 0.9.9 is banned"));
        let mut wild = sample();
        wild["packages"][0]["dependencies"] =
            serde_json::json!([{"name": "cc", "req": "*", "path": null, "kind": null}]);
        assert!(faults(&wild, &lock("")).contains("app asks for cc in any version"));
        wild["packages"][0]["dependencies"][0]["path"] = "/x".into();
        assert_eq!(faults(&wild, &lock("")), "");
        let git = "[[package]]\nname = \"g\"\nversion = \"1.0.0\"\nsource = \"git+https://h/g\"\n";
        assert!(faults(&sample(), &lock(git)).contains("g 1.0.0 comes from git+https://h/g"));
        let bare = format!("[[package]]\nname = \"b\"\nversion = \"1.0.0\"\nsource = \"{REGISTRY}\"\n");
        assert!(faults(&sample(), &lock(&bare)).contains("b 1.0.0 has no checksum"));
        let mut twice = sample();
        twice["packages"][2]["name"] = "cc".into();
        assert_eq!(
            check(&parsed(&twice), &all(&twice), &lock(""), &rules()).duplicates,
            ["cc 1.0.0, 1.2.0+3.1.4"]
        );
    }

    #[test]
    fn a_ban_that_is_not_understood_is_a_fault() {
        let mut rules = rules();
        rules.bans.deny[1].name = "cc:>=1, <2".into();
        let verdict = check(&parsed(&sample()), &reached(), &lock(""), &rules);
        assert!(verdict.faults[0].contains("is not understood"), "{:?}", verdict.faults);
    }
}
