//! Warming: an image or a restore point is read so that its chunks count as held at this site.
//!
//! Nothing is copied into the cache, so nothing is pushed out of it: the index of places learns where each chunk
//! lies (`accelerator::global_cache`, the same that knows the replicas' places), and the index of 4 KiB blocks
//! learns its blocks as far as there is room. So OFFER, PROBE and `job plan` find them, and whoever reads one
//! re-hashes it. A chunk that this site holds elsewhere keeps that place.
//!
//! Owns the queue and its figures: one warming runs at a time, at a bounded rate, slower while sessions run.
//! What runs is cut by an order or by the end of vbrd, and one of an image begins again at the next start.
//! Bounds: [`WARMINGS_WAITING_MAX`], [`WARMINGS_PAST_MAX`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vbr_api::{Moment, WarmState, Warming};

use super::warm_disk::Run;
use crate::accelerator::block_index::BlockIndex;
use crate::accelerator::global_cache::GlobalCache;
use crate::block::{ChunkId, DomainKey, DomainTag, PAGE_CHUNKS};
use crate::error::Problem;
use crate::limits::{WARMINGS_PAST_MAX, WARMINGS_WAITING_MAX};
use crate::repository::datastore::{Datastores, Point, Replica};
use crate::repository::seeds::{InPlace, Seed, Seeds};

/// Idle qcow2 images are looked for this often.
const TEND_EVERY: Duration = Duration::from_secs(10);

/// What is read.
#[derive(Clone)]
pub enum Subject {
    /// An image in place.
    Image(Seed),
    /// A restore point of a replica.
    Point(Arc<Replica>, Arc<Point>),
}

impl Subject {
    pub(super) fn title(&self) -> String {
        match self {
            Self::Image(seed) => seed.title(),
            Self::Point(_, point) => point.title(),
        }
    }
}

struct Task {
    view: Warming,
    subject: Subject,
    key: DomainKey,
    cancel: CancellationToken,
    /// Whoever asked for it as a seed was told how it ended.
    told: bool,
}

#[derive(Default)]
struct Queue {
    /// In order of their orders.
    tasks: VecDeque<Task>,
    working: bool,
    next: u64,
}

/// See the module.
pub struct Warmings {
    pub(super) cache: Arc<GlobalCache>,
    pub(super) blocks: Arc<BlockIndex>,
    /// All that is read in place.
    pub(super) places: Arc<InPlace>,
    queue: Mutex<Queue>,
    changed: watch::Sender<u64>,
    pub(super) busy: OnceLock<Box<dyn Fn() -> bool + Send + Sync>>,
    started: u64,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Warmings {
    /// Over these stores.
    pub fn new(
        cache: Arc<GlobalCache>,
        blocks: Arc<BlockIndex>,
        places: Arc<InPlace>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let started = Moment::now().as_second().unsigned_abs();
        let (queue, changed, busy) = (Mutex::default(), watch::Sender::new(0), OnceLock::new());
        Arc::new(Self { cache, blocks, places, queue, changed, busy, started, tasks, stop })
    }

    /// What tells that sessions run, which come first.
    pub fn give_way(&self, busy: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.busy.set(Box::new(busy)); // Once, when everything is joined.
    }

    /// The images.
    pub fn seeds(&self) -> &Arc<Seeds> {
        &self.places.seeds
    }

    /// The datastores.
    pub fn datastores(&self) -> &Arc<Datastores> {
        &self.places.points
    }

    /// Begins again what the index does not know in full: after a stop half-way, or where the index was lost.
    pub fn resume(self: &Arc<Self>, key: impl Fn(DomainTag) -> Option<DomainKey>) {
        for seed in self.seeds().all() {
            for tag in seed.domains.clone() {
                let due = !self.cache.point_is_indexed(&seed.mark(tag)) && seed.is_unchanged();
                let Some(key) = key(tag).filter(|_| due) else { continue };
                if let Err(problem) = self.order(Subject::Image(seed.clone()), key, None) {
                    tracing::warn!(%problem, "a seed is not indexed again");
                }
            }
        }
    }

    /// Closes images that nobody reads, until the appliance stops.
    pub async fn tend(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(TEND_EVERY) => {}
                () = self.stop.cancelled() => return,
            }
            let seeds = self.seeds().clone();
            let _ = tokio::task::spawn_blocking(move || seeds.close_idle()).await;
        }
    }

    /// True where all of it is known to the domain, and it is as it was then.
    pub fn is_warm(&self, subject: &Subject, tag: DomainTag) -> bool {
        match subject {
            Subject::Image(seed) => {
                let as_it_was =
                    self.seeds().entered(seed.key()).is_some_and(|entry| entry.stamp == seed.stamp);
                as_it_was && self.cache.point_is_indexed(&seed.mark(tag))
            }
            Subject::Point(_, point) => self.cache.point_is_indexed(&point.key()),
        }
    }

    /// Queues a warming; the one that is under way for the same subject and domain is given back.
    pub fn order(
        self: &Arc<Self>,
        subject: Subject,
        key: DomainKey,
        asked_by: Option<&str>,
    ) -> Result<Warming, Problem> {
        let (title, total_bytes) = (subject.title(), total(&subject, self.seeds())?);
        let mut queue = self.lock();
        let same = |task: &&Task| task.view.subject == title && task.key == key && !task.view.state.is_over();
        if let Some(task) = queue.tasks.iter().find(same) {
            return Ok(task.view.clone());
        }
        if queue.tasks.iter().filter(|task| !task.view.state.is_over()).count() > WARMINGS_WAITING_MAX {
            let why = format!("{WARMINGS_WAITING_MAX} others wait already");
            return Err(Problem::new("busy", format!("warming {title}"), why, "order it again later").retry());
        }
        if let Subject::Image(seed) = &subject {
            // Its mark goes first: half of it is not all of it.
            self.cache.forget_point_indexed(&seed.mark(key.tag()));
            self.seeds().enter(seed, key.tag())?;
        }
        while queue.tasks.iter().filter(|task| task.view.state.is_over()).count() >= WARMINGS_PAST_MAX {
            let oldest = queue.tasks.iter().position(|task| task.view.state.is_over());
            oldest.map(|at| queue.tasks.remove(at));
        }
        queue.next += 1;
        let view = Warming {
            id: format!("{:x}-{}", self.started, queue.next),
            subject: title,
            asked_by: asked_by.map(str::to_string),
            state: WarmState::Waiting,
            total_bytes,
            read_bytes: 0,
            chunks: 0,
            known_chunks: 0,
            bad_chunks: 0,
            chunks_by_block: 0,
            ordered_at: Moment::now(),
            ended_at: None,
            error: None,
        };
        let cancel = self.stop.child_token();
        queue.tasks.push_back(Task { view: view.clone(), subject, key, cancel, told: false });
        if !std::mem::replace(&mut queue.working, true) {
            let worker = self.clone();
            self.tasks.spawn_blocking(move || worker.work());
        }
        Ok(view)
    }

    /// All that is known of, in order of the orders.
    pub fn list(&self) -> Vec<Warming> {
        self.lock().tasks.iter().map(|task| task.view.clone()).collect()
    }

    /// One of them.
    pub fn show(&self, id: &str) -> Result<Warming, Problem> {
        let found = self.lock().tasks.iter().find(|task| task.view.id == id).map(|task| task.view.clone());
        found.ok_or_else(|| Problem::not_found(format!("warming {id}"), "vbrctl cache warm lists them"))
    }

    /// Answers when it is over, has got further, or the time is up.
    pub async fn wait(&self, id: &str, at_most: Duration) -> Result<Warming, Problem> {
        let mut changed = self.changed.subscribe();
        let before = self.show(id)?;
        let moved = changed
            .wait_for(|_| self.show(id).map_or(true, |now| now.state.is_over() || now.state != before.state));
        if !before.state.is_over() {
            let _ = tokio::time::timeout(at_most, moved).await;
        }
        self.show(id)
    }

    /// Ends one; what was indexed stays indexed. One that is over is success.
    pub fn cancel(&self, id: &str) -> Result<Warming, Problem> {
        if let Some(task) = self.lock().tasks.iter_mut().find(|task| task.view.id == id) {
            task.cancel.cancel();
            if task.view.state == WarmState::Waiting {
                task.view.state = WarmState::Cancelled;
                task.view.ended_at = Some(Moment::now());
            }
        }
        self.changed.send_modify(|count| *count += 1);
        self.show(id)
    }

    /// The end of the last warming for whoever asked for it as a seed, told once.
    pub(super) fn told(&self, subject: &Subject, key: &DomainKey) -> Option<Warming> {
        let title = subject.title();
        let mut queue = self.lock();
        let same =
            |task: &&mut Task| task.view.subject == title && task.key == *key && task.view.asked_by.is_some();
        let task = queue.tasks.iter_mut().rev().find(same)?;
        let over = task.view.state.is_over() && !std::mem::replace(&mut task.told, true);
        over.then(|| task.view.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn update(&self, id: &str, change: impl FnOnce(&mut Warming)) {
        if let Some(task) = self.lock().tasks.iter_mut().find(|task| task.view.id == id) {
            change(&mut task.view);
        }
        self.changed.send_modify(|count| *count += 1);
    }

    /// Takes one after the other until none waits.
    fn work(self: Arc<Self>) {
        loop {
            let next = {
                let mut queue = self.lock();
                let waiting = queue.tasks.iter_mut().find(|task| task.view.state == WarmState::Waiting);
                let Some(task) = waiting.filter(|_| !self.stop.is_cancelled()) else {
                    queue.working = false;
                    return;
                };
                task.view.state = WarmState::Running;
                (task.view.id.clone(), task.subject.clone(), task.key.clone(), task.cancel.clone())
            };
            let (id, subject, key, cancel) = next;
            tracing::info!(subject = subject.title(), "warming begins");
            let result = self.read(&id, &subject, &key, &cancel);
            let (state, error) = match result {
                Err(problem) => (WarmState::Failed, Some(problem.body())),
                Ok(()) if cancel.is_cancelled() => (WarmState::Cancelled, None),
                Ok(()) => (WarmState::Succeeded, None),
            };
            self.update(&id, |view| {
                (view.state, view.error, view.ended_at) = (state, error, Some(Moment::now()));
            });
            if let Ok(view) = self.show(&id) {
                let (chunks, known, bad) = (view.chunks, view.known_chunks, view.bad_chunks);
                tracing::info!(
                    subject = view.subject,
                    state = state.as_str(),
                    chunks,
                    known,
                    bad,
                    "warming ended"
                );
            }
        }
    }

    fn read(
        &self,
        id: &str,
        subject: &Subject,
        key: &DomainKey,
        cancel: &CancellationToken,
    ) -> Result<(), Problem> {
        match subject {
            Subject::Image(seed) => {
                let reader = self.seeds().reader(seed)?;
                let own = seed.key();
                let mut run = Run::new(self, id, key, cancel, own, 0);
                run.disk(&*reader, |_, _| None)?;
                if !cancel.is_cancelled() {
                    self.cache.mark_point_indexed(&seed.mark(key.tag()));
                }
            }
            Subject::Point(replica, point) => {
                let _lease = point.lease()?;
                for disk in 0..point.disks()?.len() as u16 {
                    let reader = point.open_disk(disk)?;
                    let mut run = Run::new(self, id, key, cancel, replica.key(), disk);
                    let mut page: Option<(u64, Option<Box<[ChunkId; PAGE_CHUNKS]>>)> = None;
                    run.disk(&*reader, |number, position| {
                        if page.as_ref().is_none_or(|(at, _)| *at != number) {
                            page = Some((number, point.page(disk, number).ok().flatten()));
                        }
                        let ids = page.as_ref().and_then(|(_, ids)| ids.as_ref());
                        Some(ids.map_or(ChunkId::ZERO, |ids| ids[position]))
                    })?;
                }
            }
        }
        Ok(())
    }
}

/// Bytes that there are to read.
fn total(subject: &Subject, seeds: &Seeds) -> Result<u64, Problem> {
    match subject {
        Subject::Image(seed) => Ok(seeds.reader(seed)?.len()),
        Subject::Point(_, point) => Ok(point.disks()?.iter().map(|(len, _)| len).sum()),
    }
}

#[cfg(test)]
#[path = "warm_tests.rs"]
mod tests;
