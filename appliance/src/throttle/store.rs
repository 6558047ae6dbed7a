//! The rules on disk: `<state>/throttle.json`, written whole and durably. A file, so that losing the database does not
//! make a site flood its line.
//!
//! A file that cannot be read stops the start: without its rules the site would send as fast as it can.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vbr_api::ThrottleSpec;

use super::rule::Rule;
use crate::error::Problem;
use crate::limits::THROTTLE_RULES_MAX;

/// How the file is written: by whoever knows how files become durable.
pub type Write = fn(&Path, &[u8]) -> std::io::Result<()>;

#[derive(Default, Serialize, Deserialize)]
struct Stored {
    rules: Vec<ThrottleSpec>,
}

/// All rules of a site, by name.
pub struct Rules {
    path: PathBuf,
    write: Write,
    rules: Mutex<BTreeMap<String, Rule>>,
}

impl Rules {
    /// Reads the file; none is no rule.
    pub fn open(path: &Path, write: Write) -> Result<Self, Problem> {
        let damaged = |why: String| {
            Problem::new(
                "damaged",
                format!("the throttling rules in {}", path.display()),
                why,
                "mend the file, or move it away and set the rules again with `vbrctl throttle set`",
            )
        };
        let stored = match std::fs::read(path) {
            Ok(bytes) => {
                serde_json::from_slice::<Stored>(&bytes).map_err(|error| damaged(error.to_string()))?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Stored::default(),
            Err(error) => return Err(Problem::io(format!("read {}", path.display()), &error)),
        };
        let mut rules = BTreeMap::new();
        for spec in stored.rules {
            let rule = Rule::parse(spec).map_err(|problem| damaged(problem.to_string()))?;
            rules.insert(rule.spec.name.clone(), rule);
        }
        Ok(Self { path: path.to_owned(), write, rules: Mutex::new(rules) })
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Rule> {
        self.lock().values().cloned().collect()
    }

    /// Keeps a rule in the place of one of that name. True where there was none.
    pub fn set(&self, rule: Rule) -> Result<bool, Problem> {
        let mut rules = self.lock();
        let name = rule.spec.name.clone();
        if !rules.contains_key(&name) && rules.len() >= THROTTLE_RULES_MAX {
            return Err(Problem::conflict(
                format!("throttling rule {name} cannot be set"),
                format!("there are {THROTTLE_RULES_MAX} rules"),
                "clear one that is not needed: vbrctl throttle list, vbrctl throttle clear NAME",
            ));
        }
        let mut changed = rules.clone();
        let new = changed.insert(name, rule).is_none();
        self.store(&changed)?;
        *rules = changed;
        Ok(new)
    }

    /// Forgets one rule.
    pub fn clear(&self, name: &str) -> Result<(), Problem> {
        let mut rules = self.lock();
        let mut changed = rules.clone();
        if changed.remove(name).is_none() {
            return Err(Problem::not_found(
                format!("throttling rule {name}"),
                "`vbrctl throttle list` shows the rules; wire.rate is set in the configuration file",
            ));
        }
        self.store(&changed)?;
        *rules = changed;
        Ok(())
    }

    /// Forgets all; answers their names.
    pub fn clear_all(&self) -> Result<Vec<String>, Problem> {
        let mut rules = self.lock();
        self.store(&BTreeMap::new())?;
        Ok(std::mem::take(&mut *rules).into_keys().collect())
    }

    fn store(&self, rules: &BTreeMap<String, Rule>) -> Result<(), Problem> {
        let stored = Stored { rules: rules.values().map(|rule| rule.spec.clone()).collect() };
        let text = serde_json::to_vec_pretty(&stored).map_err(|error| {
            Problem::new(
                "internal",
                "the throttling rules cannot be written",
                error.to_string(),
                "report this",
            )
        })?;
        (self.write)(&self.path, &text)
            .map_err(|error| Problem::io(format!("write {}", self.path.display()), &error))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Rule>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        std::fs::write(path, bytes)
    }

    fn rule(name: &str) -> Rule {
        let (peer, network) = (None, Some("10.1.0.0/16".into()));
        let (days, hours) = (Some("Mon..Fri".into()), None);
        Rule::parse(ThrottleSpec { name: name.into(), rate_bps: 5_000_000, peer, network, days, hours })
            .unwrap()
    }

    #[test]
    fn rules_survive_and_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("throttle.json");
        let rules = Rules::open(&path, write).unwrap();
        assert!(
            rules.set(rule("a")).unwrap() && rules.set(rule("b")).unwrap() && !rules.set(rule("a")).unwrap()
        );
        let again = Rules::open(&path, write).unwrap();
        assert_eq!(again.all(), [rule("a"), rule("b")]);
        again.clear("a").unwrap();
        assert_eq!(again.clear("a").unwrap_err().code, "not_found");
        assert_eq!(again.clear_all().unwrap(), ["b"]);
        assert!(Rules::open(&path, write).unwrap().all().is_empty());
    }

    #[test]
    fn there_is_a_bound_and_a_failed_write_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("throttle.json");
        let rules = Rules::open(&path, write).unwrap();
        for number in 0..THROTTLE_RULES_MAX {
            rules.set(rule(&format!("r{number}"))).unwrap();
        }
        assert_eq!(rules.set(rule("more")).unwrap_err().code, "conflict");
        assert!(!rules.set(rule("r0")).unwrap());
        let broken = Rules::open(&path, |_, _| Err(ErrorKind::StorageFull.into())).unwrap();
        assert_eq!(broken.clear_all().unwrap_err().code, "io");
        assert_eq!(broken.all().len(), THROTTLE_RULES_MAX);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("throttle.json");
        for text in ["{", r#"{"rules":[{"name":"a","rate_bps":1}]}"#] {
            std::fs::write(&path, text).unwrap();
            let problem = Rules::open(&path, write).map(drop).unwrap_err();
            assert!(problem.code == "damaged" && problem.what.contains("throttle.json"), "{problem:?}");
        }
    }
}
