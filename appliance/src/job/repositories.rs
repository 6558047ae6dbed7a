//! Orders on the backup repository: show, verify, rebuild from the target.

use vbr_api::{Job, Repository, RepositoryDisk, RepositoryReport};

use super::base::{Names, describes, fetch, replica_state};
use super::definitions::split_target;
use super::manager::JobManager;
use super::replicate::AttemptError;
use crate::error::Problem;
use crate::repository::source::StoredManifest;
use crate::wire::PeerRecord;

impl JobManager {
    /// What the repository knows of each job.
    pub fn repositories(&self) -> Vec<Repository> {
        self.list().iter().filter_map(|job| self.repository(&job.spec.name).ok()).collect()
    }

    /// What the repository knows of one job.
    pub fn repository(&self, job: &str) -> Result<Repository, Problem> {
        let peer = split_target(&self.show(job)?.spec.target).0.to_string();
        let (stored, state) = match self.parts.repository.load(job) {
            Ok(Some(stored)) => (Some(stored), "ok"),
            Ok(None) => (None, "empty"),
            Err(_) => (None, "damaged"),
        };
        let disks = stored.as_ref().map(disks).unwrap_or_default();
        let restore_point = stored.map(|stored| stored.point);
        Ok(Repository { job: job.to_string(), peer, disks, restore_point, state: state.to_string() })
    }

    /// Re-hashes every page and compares the roots with the target's last point.
    pub async fn repository_verify(&self, job: &str) -> Result<RepositoryReport, Problem> {
        let peer = self.peer_of(job)?;
        let (repository, name) = (self.parts.repository.clone(), job.to_string());
        let checked = tokio::task::spawn_blocking(move || (repository.verify(&name), repository.load(&name)));
        let (verified, stored) = checked.await.map_err(|e| {
            Problem::new("internal", "verifying the repository", e.to_string(), "report this")
        })?;
        let stored = stored.ok().flatten();
        let (pages_checked, pages_bad) = verified.unwrap_or((0, 1));
        let spec = self.show(job)?.spec;
        let latest =
            replica_state(&self.parts.wire, &peer.peer_id, spec.replica()).await.map_err(problem)?.latest;
        let state = match (&stored, &latest) {
            _ if pages_bad > 0 => "damaged",
            (None, _) => "empty",
            (Some(stored), Some(latest)) if describes(&stored.tables, latest) => "ok",
            _ => "differs",
        };
        Ok(RepositoryReport {
            job: job.to_string(),
            state: state.to_string(),
            pages_checked,
            pages_bad,
            received_bytes: 0,
            restore_point: stored.map(|stored| stored.point),
        })
    }

    /// Fetches the manifest of the target's last point anew. No disk data crosses the link.
    pub async fn repository_rebuild(&self, job: &str) -> Result<RepositoryReport, Problem> {
        let peer = self.peer_of(job)?;
        let Job { spec, running, .. } = self.show(job)?;
        if let Some(session) = running {
            return Err(Problem::conflict(
                format!("the repository of job {job} was not rebuilt"),
                format!("session {session} uses it"),
                "wait for the session, then try again",
            ));
        }
        let latest =
            replica_state(&self.parts.wire, &peer.peer_id, spec.replica()).await.map_err(problem)?.latest;
        let (repository, name) = (self.parts.repository.clone(), job.to_string());
        let forgotten = tokio::task::spawn_blocking(move || repository.forget(&name)).await;
        if let Ok(Err(error)) = forgotten {
            tracing::warn!(job, %error, "the old manifest could not be removed; it is replaced");
        }
        let mut report = RepositoryReport {
            job: job.to_string(),
            state: "empty".to_string(),
            pages_checked: 0,
            pages_bad: 0,
            received_bytes: 0,
            restore_point: None,
        };
        if let Some(latest) = latest {
            let names = Names::of(&spec);
            let fetched = fetch(&self.parts.wire, &peer.peer_id, names, &self.parts.repository, &latest);
            let (tables, received) = fetched.await.map_err(problem)?;
            report.state = "rebuilt".to_string();
            report.received_bytes = received;
            report.pages_checked = tables.iter().map(|table| table.iter().count() as u64).sum();
            report.restore_point = Some(latest.point);
        }
        Ok(report)
    }

    /// The peer of a job's target.
    pub(super) fn peer_of(&self, job: &str) -> Result<PeerRecord, Problem> {
        let spec = self.show(job)?.spec;
        let name = split_target(&spec.target).0;
        self.parts
            .wire
            .peer(name)
            .ok_or_else(|| Problem::not_found(format!("peer {name}"), "pair with it again"))
    }
}

/// An attempt's error as an order's answer.
pub(super) fn problem(error: AttemptError) -> Problem {
    match error {
        AttemptError::Problem(problem) => problem,
        other => Problem::new(
            "not_connected",
            "the target did not answer",
            other.to_string(),
            "check the link (vbrctl peer list), then try again",
        )
        .retry(),
    }
}

fn disks(stored: &StoredManifest) -> Vec<RepositoryDisk> {
    let path = |n: usize| stored.disk_paths.get(n).cloned().unwrap_or_default();
    let disk = |(n, table): (usize, &crate::repository::manifest::PageTable)| RepositoryDisk {
        path: path(n),
        virtual_bytes: table.disk_len(),
        root: table.root().hex(),
        pages: table.iter().count() as u64,
    };
    stored.tables.iter().enumerate().map(disk).collect()
}
