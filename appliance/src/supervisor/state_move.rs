//! A site's state leaves its directory and comes back: keys, peers, domains, jobs, hosts and throttling rules.
//!
//! What comes back is laid out in `import.new`, opened there by the parts that will use it, renamed to `import.ready`, and
//! moved into place by the next start, before anything is opened ([`apply`]). Each step of that may be done again, so a
//! crash leaves a start that goes on with it. What was there before stays in `before-import`. Not among it: caches,
//! databases, datastores, history, the audit log. Blocking. Bounds: [`FILES_MAX`] files, as long as `state_file` lets them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use vbr_api::{Host, Moment, StateSummary, name_is_valid};

use super::state_dir::private_dir;
use super::state_file::Contents;
use crate::error::Problem;
use crate::job::check_definitions;
use crate::throttle::Rules;
use crate::wire::{identity_of, peers::PeerBook, write_private};

/// All that is moved; `jobs` is a directory.
const NAMES: &[&str] = &["domains.json", "peers.json", "throttle.json", "hosts.json", "jobs", "key"];
/// Files of one state.
const FILES_MAX: usize = 20_000;

const NEW: &str = "import.new";
const READY: &str = "import.ready";
const BEFORE: &str = "before-import";
const LIST: &str = "LIST.json";

/// Names what `import.ready` brings; what of [`NAMES`] it does not, goes.
#[derive(Serialize, Deserialize)]
struct Brought {
    version: u32,
    names: Vec<String>,
}

#[derive(Deserialize)]
struct HostsFile {
    hosts: Vec<Host>,
}

/// Reads the state of a site.
pub fn gather(state: &Path, site: &str) -> Result<Contents, Problem> {
    let mut files = BTreeMap::new();
    let mut take = |name: String, path: &Path| -> Result<(), Problem> {
        match fs::read(path) {
            Ok(bytes) => drop(files.insert(name, BASE64.encode(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Problem::io(format!("read {}", path.display()), &error)),
        }
        Ok(())
    };
    // Peers before domains: the book writes domains first, so every peer's domain is there.
    for name in ["key", "peers.json", "domains.json", "throttle.json", "hosts.json"] {
        take(name.to_owned(), &state.join(name))?;
    }
    let jobs = state.join("jobs");
    let fail = |error: io::Error| Problem::io(format!("read {}", jobs.display()), &error);
    for job in fs::read_dir(&jobs).map_err(fail)? {
        let path = job.map_err(fail)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.extension().is_some_and(|extension| extension == "json") {
            take(format!("jobs/{name}"), &path)?;
        }
    }
    Ok(Contents { site: site.to_owned(), exported_at: Moment::now().to_string(), files })
}

/// Lays out a state beside the one in use and checks all of it. It acts with the next start.
pub fn stage(state: &Path, contents: &Contents) -> Result<StateSummary, Problem> {
    let new = state.join(NEW);
    let fail = |error: io::Error| Problem::io(format!("write {}", new.display()), &error);
    if state.join(READY).exists() {
        let next = "restart vbrd (systemctl restart vbrd), then look at `vbrctl status`";
        return Err(Problem::conflict("the state to import", "another one waits for the next start", next));
    }
    remove_all(&new).map_err(fail)?;
    private_dir(&new.join("jobs"), "the state to import")?;
    if contents.files.len() > FILES_MAX || !contents.files.contains_key("key") {
        return Err(unsound("it has no key, or too many files".to_owned()));
    }
    for (name, text) in &contents.files {
        let job = name.strip_prefix("jobs/").and_then(|job| job.strip_suffix(".json"));
        let is_known = NAMES.contains(&name.as_str()) && name != "jobs";
        if !is_known && !job.is_some_and(name_is_valid) {
            return Err(unsound(format!("a file {name:?} has no place in it")));
        }
        let bytes = BASE64.decode(text.as_bytes()).map_err(|error| unsound(error.to_string()))?;
        write_private(&new.join(name), &bytes).map_err(fail)?;
    }
    let summary = check(&new, contents)?;
    let names = NAMES.iter().filter(|name| new.join(name).exists()).map(|name| (*name).to_owned()).collect();
    let list = serde_json::to_vec_pretty(&Brought { version: 1, names })
        .map_err(|error| Problem::new("internal", "the state to import", error.to_string(), "report this"))?;
    write_private(&new.join(LIST), &list).map_err(fail)?;
    sync(&new.join("jobs")).map_err(fail)?;
    fs::rename(&new, state.join(READY)).and_then(|()| sync(state)).map_err(fail)?;
    Ok(summary)
}

/// Every part reads what will be its own.
fn check(new: &Path, contents: &Contents) -> Result<StateSummary, Problem> {
    let within = |problem: Problem| unsound(problem.to_string());
    let peer_id = identity_of(&new.join("key")).map_err(within)?;
    let book = PeerBook::open(&new.join("peers.json"), &new.join("domains.json")).map_err(within)?;
    let peers = book.entries();
    let lost = peers.iter().find(|(id, entry)| !entry.revoked && book.by_id(id).is_none());
    if let Some((_, entry)) = lost {
        return Err(unsound(format!("the key of the domain of peer {} is missing", entry.name)));
    }
    let jobs = check_definitions(&new.join("jobs")).map_err(within)?;
    let rules = Rules::open(&new.join("throttle.json"), write_private).map_err(within)?.all().len();
    let hosts = match fs::read(new.join("hosts.json")) {
        Ok(text) => {
            serde_json::from_slice::<HostsFile>(&text).map_err(|e| unsound(e.to_string()))?.hosts.len()
        }
        Err(_) => 0,
    };
    Ok(StateSummary {
        site: contents.site.clone(),
        peer_id,
        exported_at: contents.exported_at.clone(),
        peers: peers.len() as u32,
        jobs: jobs as u32,
        hosts: hosts as u32,
        rules: rules as u32,
    })
}

fn unsound(why: String) -> Problem {
    Problem::new("damaged", "the state to import", why, "make another export at the site that it is from")
}

/// At the start, before anything is opened: moves a state that waits into place. Doing it again after a crash goes on
/// where it was.
pub fn apply(state: &Path) -> Result<(), Problem> {
    let (ready, before) = (state.join(READY), state.join(BEFORE));
    let fail = |error: io::Error| {
        let what = format!("move the imported state into place from {}", ready.display());
        Problem::io(what, &error)
    };
    if !ready.exists() {
        return Ok(());
    }
    // Without a list everything was moved, and the rest is being cleared away.
    if let Ok(list) = fs::read(ready.join(LIST)) {
        let brought: Brought = serde_json::from_slice(&list).map_err(|error| unsound(error.to_string()))?;
        private_dir(&before, "what was there before the import")?;
        for name in NAMES {
            let (from, to, aside) = (ready.join(name), state.join(name), before.join(name));
            let comes = from.exists();
            let goes = comes || !brought.names.iter().any(|brought| brought == name);
            if goes && to.exists() {
                remove_all(&aside).map_err(fail)?;
                fs::rename(&to, &aside).map_err(fail)?;
            }
            if comes {
                fs::rename(&from, &to).map_err(fail)?;
            }
            for directory in [&before, state, &ready] {
                sync(directory).map_err(fail)?;
            }
        }
        // A change of the other key must not go on with this one.
        for name in ["rotation.json", "key.next"] {
            remove_all(&state.join(name)).map_err(fail)?;
        }
        sync(state).map_err(fail)?;
        fs::remove_file(ready.join(LIST)).and_then(|()| sync(&ready)).map_err(fail)?;
    }
    remove_all(&ready).and_then(|()| sync(state)).map_err(fail)?;
    tracing::info!(before = %before.display(), "the imported state is in use");
    Ok(())
}

fn remove_all(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = r#"{"rules":[{"name":"office","rate_bps":5000000}]}"#;

    /// A site with a key and, as `name` says, a throttling rule.
    fn site(dir: &Path, with_rule: bool) {
        fs::create_dir_all(dir.join("jobs")).unwrap();
        let key = libp2p_key();
        fs::write(dir.join("key"), key).unwrap();
        if with_rule {
            fs::write(dir.join("throttle.json"), RULES).unwrap();
        }
    }

    fn libp2p_key() -> Vec<u8> {
        // Protobuf of an ed25519 key pair whose secret is all ones.
        let secret = [1u8; 32];
        let public = data_encoding::HEXLOWER
            .decode(b"8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c")
            .unwrap();
        [&[8, 1, 18, 64][..], &secret, &public].concat()
    }

    #[test]
    fn a_state_moves_to_another_site() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        site(&old, true);
        fs::create_dir_all(new.join("jobs")).unwrap();
        fs::write(new.join("key"), b"another").unwrap();
        fs::write(new.join("hosts.json"), b"goes").unwrap();
        let contents = gather(&old, "branch").unwrap();
        let summary = stage(&new, &contents).unwrap();
        assert_eq!((summary.rules, summary.jobs, summary.site.as_str()), (1, 0, "branch"));
        assert_eq!(fs::read(new.join("key")).unwrap(), b"another", "nothing changes before the start");
        assert_eq!(stage(&new, &contents).unwrap_err().code, "conflict");
        apply(&new).unwrap();
        apply(&new).unwrap();
        assert_eq!(fs::read(new.join("key")).unwrap(), libp2p_key());
        assert_eq!(fs::read_to_string(new.join("throttle.json")).unwrap(), RULES);
        assert!(!new.join("hosts.json").exists() && !new.join(READY).exists());
        assert_eq!(fs::read(new.join(BEFORE).join("hosts.json")).unwrap(), b"goes");
    }

    /// Cut off after any number of moves, the next start goes on.
    #[test]
    fn a_crash_at_each_step() {
        for cut in 0..NAMES.len() {
            let dir = tempfile::tempdir().unwrap();
            let (old, new) = (dir.path().join("old"), dir.path().join("new"));
            site(&old, true);
            site(&new, false);
            fs::write(new.join("jobs/x.json"), b"goes").unwrap();
            stage(&new, &gather(&old, "branch").unwrap()).unwrap();
            fs::create_dir_all(new.join(BEFORE)).unwrap();
            for name in &NAMES[..cut] {
                let (from, to) = (new.join(READY).join(name), new.join(name));
                if from.exists() {
                    if to.exists() {
                        fs::rename(&to, new.join(BEFORE).join(name)).unwrap();
                    }
                    fs::rename(from, to).unwrap();
                }
            }
            // The old one is aside, the new one not in its place yet.
            let (next, aside) = (new.join(NAMES[cut]), new.join(BEFORE).join(NAMES[cut]));
            if next.exists() {
                fs::rename(next, aside).unwrap();
            }
            apply(&new).unwrap();
            assert_eq!(fs::read_to_string(new.join("throttle.json")).unwrap(), RULES, "{cut}");
            assert_eq!(fs::read(new.join("key")).unwrap(), libp2p_key());
            assert!(!new.join("jobs/x.json").exists() && new.join("jobs").is_dir());
            assert_eq!(fs::read(new.join(BEFORE).join("jobs/x.json")).unwrap(), b"goes");
        }
    }

    #[test]
    fn unsound_states_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        site(&old, true);
        site(&new, false);
        let good = gather(&old, "branch").unwrap();
        for (name, text) in [
            ("throttle.json", "{"),
            ("peers.json", "[]"),
            ("jobs/web.json", "{}"),
            ("jobs/../key.json", "{}"),
            ("../x", "{}"),
            ("database", "{}"),
            ("key", "x"),
        ] {
            let mut bad = good.clone();
            bad.files.insert(name.to_owned(), BASE64.encode(text.as_bytes()));
            assert_eq!(stage(&new, &bad).unwrap_err().code, "damaged", "{name}");
            assert!(!new.join(READY).exists());
        }
        let mut keyless = good;
        keyless.files.remove("key");
        assert_eq!(stage(&new, &keyless).unwrap_err().code, "damaged");
    }
}
