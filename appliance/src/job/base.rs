//! The repository mover: which restore point a session builds on, and its manifest.
//!
//! The target's last sealed point decides. Where the repository describes that very point, it is the
//! base. Where the last acknowledgement was lost, the provisional manifest of the session that sealed
//! it is promoted. Otherwise the manifest is fetched from the target: ids only, no disk data.

use std::collections::HashSet;

use vbr_api::JobSpec;

use super::replicate::{AttemptError, Base};
use crate::block::{PAGE_CHUNKS, PageHash};
use crate::error::Problem;
use crate::repository::manifest::{PageTable, page_from_bytes, page_hash};
use crate::repository::source::{SourceRepository, StoredManifest};
use crate::wire::Wire;
use crate::wire::message::{ReplicaState, Request, Response, SealedState};

/// Pages fetched with one request.
const PAGES_PER_REQUEST: usize = 16;

/// The base of a session and how it was found.
pub struct FoundBase {
    /// None for a first run.
    pub base: Option<Base>,
    /// `full`, `incremental` or `full-compare`.
    pub mode: &'static str,
}

/// Who a manifest is of.
#[derive(Clone, Copy)]
pub struct Names<'a> {
    /// Here.
    pub job: &'a str,
    /// At the target.
    pub replica: &'a str,
}

impl<'a> Names<'a> {
    /// Those of a job.
    pub fn of(spec: &'a JobSpec) -> Self {
        Self { job: &spec.name, replica: spec.replica() }
    }
}

/// Asks the target what it has of a replica.
pub async fn replica_state(wire: &Wire, peer: &str, replica: &str) -> Result<ReplicaState, AttemptError> {
    match wire.request(peer, Request::ReplicaState { replica: replica.to_string() }).await? {
        Response::ReplicaState(state) => Ok(state),
        Response::Problem(problem) => Err(problem.into()),
        _ => Err(unexpected()),
    }
}

/// Finds the base for the target's last sealed point.
pub async fn find_base(
    wire: &Wire,
    peer: &str,
    names: Names<'_>,
    repository: &SourceRepository,
    latest: Option<&SealedState>,
) -> Result<FoundBase, AttemptError> {
    let Some(latest) = latest else {
        return Ok(FoundBase { base: None, mode: "full" });
    };
    let job = names.job;
    let stored = repository.load(job).ok().flatten();
    if let Some(stored) = stored.filter(|stored| describes(&stored.tables, latest)) {
        if pages_complete(repository, job, &stored.tables) {
            let base = base_of(latest, stored.tables, stored.disk_paths);
            return Ok(FoundBase { base: Some(base), mode: "incremental" });
        }
        tracing::warn!(job, "the repository is damaged; it is rebuilt from the target");
    } else if let Some(provisional) = repository.provisional(job).ok().flatten()
        && provisional.session == latest.session
        && describes(&provisional.tables, latest)
    {
        repository.promote(job, &latest.session, &latest.point).map_err(|e| damaged(job, &e.to_string()))?;
        let base = base_of(latest, provisional.tables, provisional.disk_paths);
        return Ok(FoundBase { base: Some(base), mode: "incremental" });
    }
    let (tables, _) = fetch(wire, peer, names, repository, latest).await?;
    let base = base_of(latest, tables, Vec::new());
    Ok(FoundBase { base: Some(base), mode: "full-compare" })
}

fn base_of(latest: &SealedState, tables: Vec<PageTable>, disk_paths: Vec<String>) -> Base {
    Base { point: latest.point.clone(), session: latest.session.clone(), disk_paths, tables }
}

/// True where tables have the lengths and roots of a sealed point.
pub fn describes(tables: &[PageTable], sealed: &SealedState) -> bool {
    tables.len() == sealed.disks.len()
        && tables
            .iter()
            .zip(&sealed.disks)
            .all(|(table, (len, root))| table.disk_len() == *len && table.root() == *root)
}

/// A cheap test that pages can be read at all: the first of each disk. A damaged page that is met later
/// ends the attempt, and the next one comes here with the repository marked.
fn pages_complete(repository: &SourceRepository, job: &str, tables: &[PageTable]) -> bool {
    tables.iter().enumerate().all(|(disk, table)| {
        table.iter().next().is_none_or(|(_, hash)| repository.page(job, disk as u16, hash).is_ok())
    })
}

/// Fetches the manifest of a sealed point, skipping pages the repository still has, and keeps it.
pub async fn fetch(
    wire: &Wire,
    peer: &str,
    names: Names<'_>,
    repository: &SourceRepository,
    latest: &SealedState,
) -> Result<(Vec<PageTable>, u64), AttemptError> {
    let job = names.job;
    let (mut tables, mut received) = (Vec::new(), 0);
    for disk in 0..latest.disks.len() as u16 {
        let (table, bytes) = fetch_table(wire, peer, names.replica, latest, disk).await?;
        received += bytes;
        received += fetch_pages(wire, peer, names, repository, latest, disk, &table).await?;
        tables.push(table);
    }
    if !describes(&tables, latest) {
        return Err(damaged(job, "the manifest that the target sent does not match its root").into());
    }
    let manifest = StoredManifest {
        skipped: Vec::new(),
        point: String::new(),
        session: latest.session.clone(),
        tables: tables.clone(),
        disk_paths: Vec::new(),
    };
    repository
        .store_provisional(job, &manifest)
        .and_then(|()| repository.promote(job, &latest.session, &latest.point))
        .map_err(|e| damaged(job, &e.to_string()))?;
    tracing::info!(job, received, "the repository was rebuilt from the target");
    Ok((tables, received))
}

async fn fetch_table(
    wire: &Wire,
    peer: &str,
    replica: &str,
    latest: &SealedState,
    disk: u16,
) -> Result<(PageTable, u64), AttemptError> {
    let len = latest.disks.get(disk as usize).map_or(0, |disk| disk.0);
    let (mut table, mut from_page, mut received) = (PageTable::new(len), 0, 0);
    loop {
        let request =
            Request::PageTable { replica: replica.to_string(), point: latest.point.clone(), disk, from_page };
        match wire.request(peer, request).await? {
            Response::PageTable { disk_len, entries, more } => {
                if disk_len != len {
                    return Err(unexpected());
                }
                received += entries.len() as u64 * 36;
                for (page, hash) in &entries {
                    table.set(*page, *hash);
                }
                match entries.last() {
                    Some((last, _)) if more && *last >= from_page => from_page = last + 1,
                    _ => return Ok((table, received)),
                }
            }
            Response::Problem(problem) => return Err(problem.into()),
            _ => return Err(unexpected()),
        }
    }
}

async fn fetch_pages(
    wire: &Wire,
    peer: &str,
    Names { job, replica }: Names<'_>,
    repository: &SourceRepository,
    latest: &SealedState,
    disk: u16,
    table: &PageTable,
) -> Result<u64, AttemptError> {
    let mut had: HashSet<PageHash> = HashSet::new();
    let mut missing: Vec<(u64, PageHash)> = Vec::new();
    for (page, hash) in table.iter() {
        if had.insert(*hash) && repository.page(job, disk, hash).is_err() {
            missing.push((*page, *hash));
        }
    }
    let mut received = 0;
    for wanted in missing.chunks(PAGES_PER_REQUEST) {
        let request = Request::Pages {
            replica: replica.to_string(),
            point: latest.point.clone(),
            disk,
            pages: wanted.iter().map(|(page, _)| *page).collect(),
        };
        let pages = match wire.request(peer, request).await? {
            Response::Pages(pages) if pages.len() == wanted.len() => pages,
            Response::Problem(problem) => return Err(problem.into()),
            _ => return Err(unexpected()),
        };
        for (body, (_, hash)) in pages.iter().zip(wanted) {
            let ids = body.as_deref().and_then(page_from_bytes).ok_or_else(unexpected)?;
            if page_hash(&ids) != *hash {
                return Err(damaged(job, "a page that the target sent does not match its hash").into());
            }
            repository.put_page(job, disk, &ids).map_err(|e| damaged(job, &e.to_string()))?;
            received += (PAGE_CHUNKS * 32) as u64;
        }
    }
    Ok(received)
}

fn unexpected() -> AttemptError {
    AttemptError::Lost("the target gave an answer that does not fit the question".into())
}

fn damaged(job: &str, why: &str) -> Problem {
    Problem::new(
        "repository",
        format!("the repository of job {job} cannot be rebuilt"),
        why,
        format!("run vbrctl repository rebuild {job}; if it persists, verify the replica at the target"),
    )
}
