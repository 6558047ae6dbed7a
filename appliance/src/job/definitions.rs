//! Job definitions: one readable JSON file each in `<state>/jobs`, so that they outlive the database.
//!
//! Written atomically (temporary file, fsync, rename, fsync of the directory). Checks a definition
//! before it is kept; knows nothing of sessions.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vbr_api::{JobSpec, Moment, name_is_valid};

use super::seeding::parse_seed;
use crate::error::Problem;
use crate::limits::DISKS_MAX;
use crate::schedule::retry::RetryRule;
use crate::schedule::rule::Rule;
use crate::throttle::rule::check_rate;

/// A job on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// As ordered.
    pub spec: JobSpec,
    /// When it was created.
    pub created_at: Moment,
    /// When its schedule last became another one; none where it is as created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rescheduled_at: Option<Moment>,
}

/// The store, the jobs by name, and what could not be read.
pub type Opened = (Definitions, BTreeMap<String, Definition>, Vec<String>);

/// The directory of definitions.
pub struct Definitions {
    directory: PathBuf,
}

impl Definitions {
    /// Opens (creating it) `<state>/jobs` and reads what is there. A file that does not parse is left
    /// alone and reported.
    pub fn open(directory: &Path) -> Result<Opened, Problem> {
        let io = |e: &std::io::Error| Problem::io(format!("the job directory {}", directory.display()), e);
        std::fs::create_dir_all(directory).map_err(|e| io(&e))?;
        let (mut jobs, mut bad) = (BTreeMap::new(), Vec::new());
        for entry in std::fs::read_dir(directory).map_err(|e| io(&e))? {
            let path = entry.map_err(|e| io(&e))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let parsed = std::fs::read(&path)
                .map_err(|e| e.to_string())
                .and_then(|bytes| serde_json::from_slice::<Definition>(&bytes).map_err(|e| e.to_string()));
            match parsed {
                Ok(definition) => {
                    jobs.insert(definition.spec.name.clone(), definition);
                }
                Err(why) => bad.push(format!("{}: {why}", path.display())),
            }
        }
        Ok((Self { directory: directory.to_owned() }, jobs, bad))
    }

    /// Keeps a definition, durably.
    pub fn store(&self, definition: &Definition) -> Result<(), Problem> {
        let path = self.path(&definition.spec.name);
        let io = |e: std::io::Error| Problem::io(format!("the job file {}", path.display()), &e);
        let text = serde_json::to_vec_pretty(definition)
            .map_err(|e| Problem::new("internal", "a job cannot be written", e.to_string(), "report this"))?;
        let temporary = path.with_extension("tmp");
        let mut file = std::fs::File::create(&temporary).map_err(io)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(io)?;
        std::fs::rename(&temporary, &path).map_err(io)?;
        self.sync_directory()
    }

    /// Removes a definition, durably.
    pub fn remove(&self, name: &str) -> Result<(), Problem> {
        let path = self.path(name);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Problem::io(format!("the job file {}", path.display()), &e))
            }
            _ => self.sync_directory(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }

    fn sync_directory(&self) -> Result<(), Problem> {
        std::fs::File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|e| Problem::io(format!("the job directory {}", self.directory.display()), &e))
    }
}

/// Checks a directory of definitions that is to be used later; answers how many there are.
pub fn check_definitions(directory: &Path) -> Result<usize, Problem> {
    let (_, jobs, bad) = Definitions::open(directory)?;
    if let Some(bad) = bad.into_iter().next() {
        return Err(Problem::invalid("a job's definition", bad, "mend it, or leave it out"));
    }
    jobs.values().try_for_each(|definition| check(&definition.spec))?;
    Ok(jobs.len())
}

/// Checks a definition's own words; whether peer, host and disks exist is asked elsewhere.
pub fn check(spec: &JobSpec) -> Result<(), Problem> {
    let what = format!("the definition of job {:?}", spec.name);
    if !name_is_valid(&spec.name) {
        return Err(Problem::invalid(
            what,
            "the name does not match ^[a-z0-9][a-z0-9._-]{0,63}$",
            "choose a name of lower-case letters, digits, '.', '_' and '-'",
        ));
    }
    if spec.vm.is_some() && !spec.disks.is_empty() || spec.vm.is_none() && spec.disks.is_empty() {
        return Err(Problem::invalid(
            what,
            "it needs either a VM or disks",
            "give --vm HOST/VM, or --disk PATH once for each disk",
        ));
    }
    if spec.vm.is_none() && !spec.exclude.is_empty() {
        return Err(Problem::invalid(
            what,
            "it leaves out disks of a VM, and names no VM",
            "name the wanted disks alone, or give --vm HOST/VM",
        ));
    }
    if spec.disks.len().max(spec.exclude.len()) > DISKS_MAX {
        return Err(Problem::invalid(what, format!("more than {DISKS_MAX} disks"), "split it into two jobs"));
    }
    for (n, disk) in spec.disks.iter().enumerate() {
        if !Path::new(&disk.path).is_absolute() {
            return Err(Problem::invalid(
                what,
                format!("{} is not an absolute path", disk.path),
                "give the full path of the disk",
            ));
        }
        if spec.disks[..n].iter().any(|other| other.path == disk.path) {
            return Err(Problem::invalid(
                what,
                format!("{} is named twice", disk.path),
                "name each disk once",
            ));
        }
    }
    if spec.keep == Some(0) {
        return Err(Problem::invalid(
            what,
            "--keep 0 would keep nothing",
            "ask for at least one restore point",
        ));
    }
    if let Some(rate) = spec.rate_bps {
        check_rate(rate, &what)?;
    }
    if let Err(why) = Rule::parse(&spec.name, &spec.schedule, None) {
        return Err(Problem::invalid(
            what,
            why.to_string(),
            "for example --every 15m, or --at 'Mon..Fri 02:00' --window '20:00-06:00'; vbrctl job create --help",
        ));
    }
    if let Err(why) = RetryRule::parse(&spec.retry) {
        return Err(Problem::invalid(what, why.to_string(), "for example --retry 3/5m, or --retry 0"));
    }
    check_start(spec, &what)?;
    let (peer, datastore) = split_target(&spec.target);
    if !name_is_valid(peer) || datastore.is_some_and(|name| !name_is_valid(name)) {
        return Err(Problem::invalid(
            what,
            format!("the target {:?} is not PEER or PEER/DATASTORE", spec.target),
            "vbrctl peer list shows the peers",
        ));
    }
    Ok(())
}

/// What its first run starts from.
fn check_start(spec: &JobSpec, what: &str) -> Result<(), Problem> {
    if let Some(seed) = &spec.seed {
        parse_seed(seed, what)?;
    }
    if let Some(map) = spec.map.as_ref().filter(|map| !name_is_valid(map)) {
        return Err(Problem::invalid(
            what,
            format!("{map:?} is no name of a replica of this site at the target"),
            "name it without its site: --map REPLICA; vbrctl replica list at the target shows them",
        ));
    }
    if spec.map.is_some() && spec.seed.is_some() {
        return Err(Problem::invalid(
            what,
            "it has a seed and goes on with a replica, which is what its first run starts from",
            "give --seed or --map; vbrctl job edit takes one away with --seed none or --map none",
        ));
    }
    Ok(())
}

/// `PEER/DATASTORE` apart.
pub fn split_target(target: &str) -> (&str, Option<&str>) {
    match target.split_once('/') {
        Some((peer, datastore)) => (peer, Some(datastore)),
        None => (target, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbr_api::{DiskFormat, DiskSpec};

    fn spec() -> JobSpec {
        let disk = DiskSpec { path: "/images/web.img".into(), format: DiskFormat::Raw };
        JobSpec {
            name: "web".into(),
            vm: None,
            disks: vec![disk],
            exclude: Vec::new(),
            target: "dr".into(),
            keep: Some(14),
            keep_calendar: vbr_api::KeepCalendar { daily: 7, ..Default::default() },
            free_space: vbr_api::FreeSpace::Auto,
            rate_bps: Some(8_000_000),
            schedule: vbr_api::Schedule { every_ms: Some(900_000), ..Default::default() },
            priority: vbr_api::Priority::High,
            retry: vbr_api::Retry { count: 2, pause_ms: 60_000 },
            seed: Some("/seed/web.img,format=qcow2".into()),
            map: None,
            enabled: true,
        }
    }

    #[test]
    fn definitions_survive_and_bad_files_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _, _) = Definitions::open(directory.path()).unwrap();
        let definition = Definition { spec: spec(), created_at: Moment::UNIX_EPOCH, rescheduled_at: None };
        store.store(&definition).unwrap();
        std::fs::write(directory.path().join("broken.json"), "{").unwrap();
        let (store, jobs, bad) = Definitions::open(directory.path()).unwrap();
        assert_eq!(jobs.get("web"), Some(&definition));
        assert_eq!(bad.len(), 1);
        store.remove("web").unwrap();
        store.remove("web").unwrap();
        let (_, jobs, _) = Definitions::open(directory.path()).unwrap();
        assert!(jobs.is_empty());
    }

    #[test]
    fn a_definition_of_an_earlier_release_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let old = r#"{"spec":{"name":"web","disks":[{"path":"/a","format":"raw"}],"target":"dr"},"created_at":"2026-11-20T10:00:00Z"}"#;
        std::fs::write(directory.path().join("web.json"), old).unwrap();
        let (_, jobs, bad) = Definitions::open(directory.path()).unwrap();
        assert!(bad.is_empty(), "{bad:?}");
        let spec = &jobs["web"].spec;
        assert_eq!((spec.priority, spec.retry), (vbr_api::Priority::Normal, vbr_api::Retry::default()));
    }

    #[test]
    fn bad_definitions_are_refused() {
        assert!(check(&spec()).is_ok());
        assert!(check(&JobSpec { seed: None, map: Some("web-old".into()), ..spec() }).is_ok());
        let bad: [fn(&mut JobSpec); 20] = [
            |s| s.name = "../x".into(),
            |s| s.disks.clear(),
            |s| s.exclude = vec!["swap.img".into()],
            |s| s.vm = Some("local/web".into()),
            |s| s.disks[0].path = "web.img".into(),
            |s| s.disks.push(s.disks[0].clone()),
            |s| s.keep = Some(0),
            |s| s.target = "dr/../x".into(),
            |s| s.schedule.every_ms = Some(10),
            |s| s.rate_bps = Some(63_999),
            |s| s.schedule.continuous = true,
            |s| s.map = Some("web-old".into()),
            |s| (s.seed, s.map) = (None, Some("branch/web".into())),
            |s| s.seed = Some("Web".into()),
            |s| s.seed = Some("/seed/../web.img".into()),
            |s| s.seed = Some("/seed/web.img,format=vmdk".into()),
            |s| s.retry.count = 101,
            |s| s.retry.pause_ms = 10,
            |s| s.schedule.window = Some("20:00".into()),
            |s| s.schedule = vbr_api::Schedule { at: Some("25:00".into()), ..Default::default() },
        ];
        for change in bad {
            let mut spec = spec();
            change(&mut spec);
            assert!(check(&spec).is_err(), "{spec:?}");
        }
    }
}
