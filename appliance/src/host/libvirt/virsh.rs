//! Orders to libvirt through its console, `virsh`: a child for each, bounded in time and output.
//!
//! VMs are named by UUID, which is never taken for a number or an option. Documents are handed over in a private
//! directory. Not its job: what is ordered, and when. The library's bindings lack the calls for backups.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::domain::{Backup, session_of};
use super::xml::Element;
use crate::nbd::{NbdError, PrivateDir, VIRSH, run_tool};

/// For one order.
const PATIENCE: Duration = Duration::from_secs(60);
/// For a backup that was told to end.
const SETTLE: Duration = Duration::from_secs(30);

/// A VM as libvirt lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Domain {
    pub uuid: String,
    pub name: String,
    /// It has a process, running or paused.
    pub active: bool,
}

/// One libvirt.
#[derive(Clone, Debug)]
pub(super) struct Virsh {
    uri: String,
}

impl Virsh {
    pub fn new(uri: &str) -> Self {
        Self { uri: uri.to_owned() }
    }

    pub fn uri(&self) -> &str {
        &self.uri
    }

    fn order(&self, words: &[&str]) -> Result<String, NbdError> {
        let mut args = vec!["--quiet", "--connect", self.uri.as_str()];
        args.extend_from_slice(words);
        run_tool(VIRSH, &args, PATIENCE)
    }

    fn document(&self, words: &[&str]) -> Result<Element, NbdError> {
        let text = self.order(words)?;
        Element::parse(&text).map_err(|why| NbdError::Protocol(format!("virsh {}: {why}", words.join(" "))))
    }

    /// All VMs.
    pub fn domains(&self) -> Result<Vec<Domain>, NbdError> {
        let active = parse_domains(&self.order(&["list", "--uuid", "--name"])?, true);
        let off = parse_domains(&self.order(&["list", "--inactive", "--uuid", "--name"])?, false);
        Ok(active.into_iter().chain(off).collect())
    }

    /// Its definition as it is now.
    pub fn definition(&self, uuid: &str) -> Result<Element, NbdError> {
        self.document(&["dumpxml", "--domain", uuid])
    }

    /// Virtual size of each disk, by its target.
    pub fn sizes(&self, uuid: &str) -> Result<Vec<(String, u64)>, NbdError> {
        let table = self.order(&["domblkinfo", "--domain", uuid, "--all"])?;
        let row = |line: &str| {
            let mut words = line.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        };
        Ok(table.lines().filter_map(row).collect())
    }

    /// The backup that runs, whoever began it.
    pub fn backup(&self, uuid: &str) -> Result<Option<Backup>, NbdError> {
        match self.document(&["backup-dumpxml", "--domain", uuid]) {
            Ok(backup) => Ok(Some(Backup::read(&backup))),
            Err(error) if said(&error).contains("no domain backup job") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Begins one, and with it a checkpoint where one is given.
    pub fn begin_backup(
        &self,
        uuid: &str,
        dir: &PrivateDir,
        backup: &str,
        checkpoint: Option<&str>,
    ) -> Result<(), NbdError> {
        let mut words = vec!["backup-begin".to_owned(), "--domain".into(), uuid.into()];
        for (option, name, text) in
            [("--backupxml", "backup.xml", Some(backup)), ("--checkpointxml", "checkpoint.xml", checkpoint)]
        {
            if let Some(text) = text {
                let path = dir.path().join(name);
                fs::write(&path, text).map_err(|source| NbdError::File { path: path.clone(), source })?;
                words.extend([option.to_owned(), path.display().to_string()]);
            }
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.order(&words).map(drop)
    }

    /// Ends the backup and waits until it is gone.
    pub fn end_backup(&self, uuid: &str) -> Result<(), NbdError> {
        let ordered = self.order(&["domjobabort", "--domain", uuid]);
        let deadline = Instant::now() + SETTLE;
        loop {
            if self.backup(uuid)?.is_none() {
                return Ok(());
            }
            if let Err(error) = ordered {
                return Err(error);
            }
            if Instant::now() > deadline {
                let seconds = SETTLE.as_secs();
                return Err(NbdError::Timeout { tool: VIRSH, image: format!("domjobabort {uuid}"), seconds });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Checkpoints of a job, the oldest first: name and session.
    pub fn checkpoints(&self, uuid: &str, job: &str) -> Result<Vec<(String, String)>, NbdError> {
        let names = self.order(&["checkpoint-list", "--domain", uuid, "--topological", "--name"])?;
        let ours = names.lines().map(str::trim);
        Ok(ours.filter_map(|name| Some((name.to_owned(), session_of(name, job)?.to_owned()))).collect())
    }

    /// What it records.
    pub fn checkpoint(&self, uuid: &str, name: &str) -> Result<Element, NbdError> {
        self.document(&["checkpoint-dumpxml", "--domain", uuid, "--checkpointname", name, "--no-domain"])
    }

    /// Forgets a checkpoint; one whose records are gone as well.
    pub fn delete_checkpoint(&self, uuid: &str, name: &str) -> Result<(), NbdError> {
        let order = ["checkpoint-delete", "--domain", uuid, "--checkpointname", name];
        match self.order(&order) {
            Err(NbdError::Tool { .. }) => {
                let metadata = [&order[..], &["--metadata"]].concat();
                self.order(&metadata).map(drop)
            }
            done => done.map(drop),
        }
    }
}

/// What libvirt said, without what was ordered.
pub(super) fn said(error: &NbdError) -> String {
    match error {
        NbdError::Tool { why, .. } => why.clone(),
        other => other.to_string(),
    }
}

fn parse_domains(list: &str, active: bool) -> Vec<Domain> {
    let line = |line: &str| {
        let (uuid, name) = line.trim().split_once(char::is_whitespace)?;
        let (uuid, name) = (uuid.to_owned(), name.trim().to_owned());
        let known = uuid.len() == 36 && uuid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        known.then_some(Domain { uuid, name, active })
    };
    list.lines().filter_map(line).collect()
}

/// Removes what may be there.
pub(super) fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::info!(path = %path.display(), %error, "a file of a backup stays");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        let uuid = "0a1b2c3d-0000-4000-8000-00000000000f";
        let list = format!("{uuid} web 2\n {uuid}   101\n\nnonsense here\n");
        let domain = |name: &str| Domain { uuid: uuid.into(), name: name.into(), active: true };
        assert_eq!(parse_domains(&list, true), [domain("web 2"), domain("101")]);
    }
}
