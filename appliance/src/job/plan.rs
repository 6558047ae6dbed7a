//! `job plan`: a dry run. Reads and compares like a session, asks the target which of the changed
//! chunks it has, compresses a sample of the rest, and says what a session would send.
//!
//! Up to [`ASK_MAX`] chunks are asked about one by one. Of more (2 GiB of changes), so many are, and the rest
//! is estimated: a terabyte of changes would else be 256 MB of questions.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use vbr_api::{Plan, Session};

use super::base::{Names, find_base, replica_state};
use super::estimate::{ASK_MAX, Stratum, Unseen, to_ask, unseen};
use super::free::mask;
use super::manager::JobManager;
use super::mapping::check_map;
use super::replicate::Base;
use super::repositories::problem;
use super::snapshot::{resolve, vm_of};
use crate::accelerator::batch::{BatchBuilder, Prefix, Work};
use crate::accelerator::effort::Controller;
use crate::accelerator::shared_filter::SharedFilter;
use crate::accelerator::{identify, recipe};
use crate::block::{DomainKey, Geometry, PAGE_CHUNKS, ShortId};
use crate::busy::BusyClock;
use crate::error::Problem;
use crate::host::{SnapshotRequest, VmSnapshot};
use crate::mover::source::PageWalk;
use crate::repository::source::SourceRepository;
use crate::wire::message::{Batch, Request, Response, RunKind};
use crate::wire::{PeerRecord, capability};

/// Every n-th unseen chunk is compressed.
const SAMPLE_EVERY: usize = 16;
/// Recipe bytes a changed chunk.
const RECIPE_BYTES: u64 = 18;

#[derive(Default)]
struct Survey {
    plan_virtual: u64,
    disks: Vec<Geometry>,
    read: u64,
    changed: u64,
    zero: u64,
    /// Distinct changed chunks: id, and where one is found.
    chunks: HashMap<ShortId, (usize, u64)>,
    /// Bytes of changed chunks that repeat another one.
    repeated: u64,
    offered: u64,
}

impl JobManager {
    /// The dry run of a job.
    pub async fn plan(&self, job: &str) -> Result<Plan, Problem> {
        let spec = self.show(job)?.spec;
        let peer = self.peer_of(job)?;
        let wire = &self.parts.wire;
        let state = replica_state(wire, &peer.peer_id, spec.replica()).await.map_err(problem)?;
        let (host, disks) = resolve(&self.parts, &spec)?;
        check_map(&self.parts, &spec, state.latest.as_ref(), disks.len()).await?;
        let repository = self.parts.repository.clone();
        let found = find_base(wire, &peer.peer_id, Names::of(&spec), &repository, state.latest.as_ref());
        let found = found.await.map_err(problem)?;
        let (name, vm) = (job.to_string(), vm_of(&spec));
        let request = SnapshotRequest { job: name, session: plan_id(), vm, disks };
        let (name, key) = (job.to_string(), peer.domain_key.clone());
        let (base, free_space) = (found.base, spec.free_space);
        let (snapshot, survey) = blocking(move || {
            let snapshot = mask(host.snapshot(&request).map_err(Problem::from)?, free_space, false)?.0;
            let snapshot = Arc::new(snapshot);
            let survey = survey(&snapshot, &name, &repository, base.as_ref(), &key)?;
            Ok((snapshot, survey))
        })
        .await?;
        let asked = to_ask(survey.chunks.keys().copied().collect());
        let known = self.known(&peer, &asked).await?;
        let (filters, id, tag) = (self.parts.filters.clone(), peer.peer_id.clone(), peer.domain_key.tag());
        let (survey, unseen, send_bytes) = blocking(move || {
            let unseen = survey.unseen(&filters.of(&id, tag), &asked, &known);
            let unseen_ones = asked.iter().filter(|id| !known.contains(*id));
            let places: Vec<(usize, u64)> =
                unseen_ones.filter_map(|id| survey.chunks.get(id).copied()).collect();
            let ratio = sample(&snapshot, &places);
            if let Some(snapshot) = Arc::into_inner(snapshot) {
                snapshot.release(false);
            }
            let send_bytes = (ratio? * unseen.bytes as f64) as u64;
            Ok((survey, unseen, send_bytes))
        })
        .await?;
        let (replica, keep, keep_calendar) = (spec.replica().to_string(), spec.keep, spec.keep_calendar);
        let request = match wire.peer_can(&peer.peer_id, capability::RETENTION) {
            true => Request::WouldRetireUnder { replica, keep, keep_calendar },
            false => Request::WouldRetire { replica, keep },
        };
        let retires = match wire.request(&peer.peer_id, request).await.map_err(|e| problem(e.into()))? {
            Response::WouldRetire(points) => points,
            _ => Vec::new(),
        };
        let send_bytes = send_bytes + survey.offered * RECIPE_BYTES + 2048;
        Ok(Plan {
            job: job.to_string(),
            mode: found.mode.to_string(),
            virtual_bytes: survey.plan_virtual,
            read_bytes: survey.read,
            changed_bytes: survey.changed,
            zero_bytes: survey.zero,
            known_bytes: survey.changed.saturating_sub(survey.zero + unseen.bytes),
            known_error_bytes: unseen.error_bytes,
            known_from: if survey.chunks.len() > ASK_MAX { "estimated" } else { "asked" }.to_string(),
            unseen_bytes: unseen.bytes,
            send_bytes,
            duration_ms: self.rate(job).map(|bps| send_bytes.saturating_mul(8000) / bps),
            retires,
        })
    }

    /// Which of these chunks the target has.
    async fn known(&self, peer: &PeerRecord, ids: &[ShortId]) -> Result<HashSet<ShortId>, Problem> {
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        let answer = self.parts.wire.request(&peer.peer_id, Request::Known { ids: ids.to_vec() }).await;
        let bits = match answer.map_err(|e| problem(e.into()))? {
            Response::Known(bits) => bits,
            Response::Problem(other) => return Err(other),
            _ => Vec::new(),
        };
        let known = |n: usize| bits.get(n / 8).is_some_and(|byte| byte & (0x80 >> (n % 8)) != 0);
        Ok(ids.iter().enumerate().filter(|(n, _)| known(*n)).map(|(_, id)| *id).collect())
    }

    /// Wire rate of the job's last session that moved something.
    fn rate(&self, job: &str) -> Option<u64> {
        let last: Vec<Session> = self.sessions(Some(job), false);
        last.iter().find(|s| s.rate_wire_bps > 0 && s.bytes.sent_wire > 64 * 1024).map(|s| s.rate_wire_bps)
    }
}

impl Survey {
    /// What the target lacks, from what it said of the chunks it was asked about.
    fn unseen(&self, filter: &SharedFilter, asked: &[ShortId], known: &HashSet<ShortId>) -> Unseen {
        let len = |(disk, chunk): &(usize, u64)| {
            self.disks.get(*disk).map_or(0, |geometry| geometry.chunk_len(*chunk) as u64)
        };
        if asked.len() == self.chunks.len() {
            let lacks = self.chunks.iter().filter(|(id, _)| !known.contains(*id));
            return Unseen { bytes: lacks.map(|(_, place)| len(place)).sum(), error_bytes: 0 };
        }
        let mut strata = [Stratum::default(); 2];
        for (id, place) in &self.chunks {
            let stratum = &mut strata[usize::from(filter.may_contain(*id))];
            stratum.chunks += 1;
            stratum.bytes += len(place);
        }
        for id in asked {
            let stratum = &mut strata[usize::from(filter.may_contain(*id))];
            stratum.asked += 1;
            stratum.known += u64::from(known.contains(id));
        }
        unseen(strata)
    }
}

fn survey(
    snapshot: &VmSnapshot,
    job: &str,
    repository: &SourceRepository,
    base: Option<&Base>,
    key: &DomainKey,
) -> Result<Survey, Problem> {
    let clock = BusyClock::default();
    let mut survey = Survey::default();
    for (n, disk) in snapshot.disks.iter().enumerate() {
        let io = |e: std::io::Error| Problem::io(format!("reading {}", disk.spec.path), &e);
        let geometry = Geometry { disk_len: disk.reader.len() };
        survey.plan_virtual += geometry.disk_len;
        survey.disks.push(geometry);
        let table = base.and_then(|base| base.tables.get(n));
        let pages: Vec<u64> = table.map(|t| t.iter().map(|(page, _)| *page).collect()).unwrap_or_default();
        let mut walk = PageWalk::new(geometry.pages(), 0, pages);
        while let Some(position) = walk.position() {
            let data = disk.reader.next_data(position).map_err(io)?;
            let Some(page) = walk.next_page(data.map(|extent| extent.offset)) else { break };
            let named = identify::identify_page(&*disk.reader, page, key, &clock, &clock).map_err(io)?;
            survey.read += named.read_bytes;
            let base_ids = match table.and_then(|table| table.get(page)) {
                Some(hash) => Some(repository.page(job, n as u16, hash).map_err(|e| {
                    let next = format!("vbrctl repository rebuild {job}");
                    Problem::new("repository", format!("the repository of job {job}"), e.to_string(), next)
                })?),
                None => None,
            };
            let base_ids = base_ids.as_deref().unwrap_or(&recipe::ZERO_PAGE);
            let Some(offer) = recipe::offer(n as u16, page, geometry, base_ids, &named.ids) else { continue };
            for (position, kind, id) in recipe::positions(&offer) {
                let chunk = page * PAGE_CHUNKS as u64 + position as u64;
                let len = geometry.chunk_len(chunk) as u64;
                match (kind, id) {
                    (RunKind::Unchanged, _) => continue,
                    (RunKind::Offered, Some(id)) => {
                        survey.offered += 1;
                        if survey.chunks.insert(id, (n, chunk)).is_some() {
                            survey.repeated += len;
                        }
                    }
                    _ => survey.zero += len,
                }
                survey.changed += len;
            }
        }
    }
    Ok(survey)
}

/// To which part of their size unseen chunks are compressed. Without bases, so an upper bound: what a session
/// saves by bases depends on what is confirmed on the way.
fn sample(snapshot: &VmSnapshot, places: &[(usize, u64)]) -> Result<f64, Problem> {
    let internal = |e: &dyn std::fmt::Display| {
        Problem::new("internal", "compressing a sample", e.to_string(), "report this")
    };
    let (mut sampled, mut stored) = (0u64, 0u64);
    let (effort, none) = (Controller::default().effort(), Prefix::default);
    let mut builder = BatchBuilder::default();
    for (disk, chunk) in places.iter().step_by(SAMPLE_EVERY) {
        let Some(disk) = snapshot.disks.get(*disk) else { continue };
        let range = Geometry { disk_len: disk.reader.len() }.chunk_range(*chunk);
        let mut data = vec![0; (range.end - range.start) as usize];
        disk.reader
            .read_at(range.start, &mut data)
            .map_err(|e| Problem::io(format!("reading {}", disk.spec.path), &e))?;
        sampled += data.len() as u64;
        builder.literal(0, *chunk, &data);
        if builder.is_full(effort.batch_bytes) {
            let full = std::mem::take(&mut builder);
            stored += payload_bytes(&full.finish(none(), &mut Work::of(&effort)).map_err(|e| internal(&e))?);
        }
    }
    stored += payload_bytes(&builder.finish(none(), &mut Work::of(&effort)).map_err(|e| internal(&e))?);
    Ok(if sampled == 0 { 0.0 } else { stored as f64 / sampled as f64 })
}

fn payload_bytes(batches: &[Batch]) -> u64 {
    batches.iter().map(|batch| batch.payload.len() as u64).sum()
}

fn plan_id() -> String {
    format!("plan{:x}", vbr_api::Moment::now().as_nanosecond())
}

async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, Problem> + Send + 'static,
) -> Result<R, Problem> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(Problem::new("internal", "a part of the dry run stopped", e.to_string(), "report this"))
    })
}
