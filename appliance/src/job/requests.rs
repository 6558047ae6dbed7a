//! Answers to the control requests of paired sources, and the index of what restore points hold.
//!
//! Blocking; every answer is bounded by the limits in `wire::message`.

use std::sync::Arc;

use super::target::TargetService;
use crate::block::DomainTag;
use crate::error::Problem;
use crate::repository::datastore::{Point, Replica};
use crate::repository::manifest::page_to_bytes;
use crate::repository::retention::Policy;
use crate::wire::PeerRecord;
use crate::wire::message::{BuildingState, ReplicaState, Request, Response, SealedState};

/// Entries of a page table in one answer: 16,384 x 37 bytes stay below the control message's cap.
const TABLE_ENTRIES_MAX: usize = 16_384;
/// Pages in one answer.
const PAGES_MAX: usize = 16;
/// Ids in one question.
const KNOWN_IDS_MAX: usize = 32_768;

impl TargetService {
    /// Answers one request of a peer.
    pub(super) fn answer(&self, peer: &PeerRecord, request: Request) -> Response {
        self.try_answer(peer, request).unwrap_or_else(Response::Problem)
    }

    fn try_answer(&self, peer: &PeerRecord, request: Request) -> Result<Response, Problem> {
        self.inherit(peer)?;
        let find = |name: &str| self.datastores.for_peer(&peer.peer_id, name);
        let found = |name: &str| {
            find(name).ok_or_else(|| Problem::not_found(format!("replica {name}"), "run the job once"))
        };
        match request {
            Request::ReplicaState { replica } => {
                Ok(Response::ReplicaState(find(&replica).map(|r| state(&r)).transpose()?.unwrap_or_default()))
            }
            Request::PageTable { replica, point, disk, from_page } => {
                page_table(&*found(&replica)?.point(&point)?, disk, from_page)
            }
            Request::Pages { replica, point, disk, pages } => {
                if pages.len() > PAGES_MAX {
                    return Err(super::receive::protocol("too many pages in one request"));
                }
                let point = found(&replica)?.point(&point)?;
                let bodies = pages.iter().map(|page| -> Result<_, Problem> {
                    Ok(point.page(disk, *page)?.map(|ids| page_to_bytes(&ids)))
                });
                Ok(Response::Pages(bodies.collect::<Result<_, _>>()?))
            }
            Request::Known { ids } => {
                if ids.len() > KNOWN_IDS_MAX {
                    return Err(super::receive::protocol("too many ids in one request"));
                }
                let known = self.cache.contains_many(peer.domain_key.tag(), &ids);
                let mut bits = vec![0u8; ids.len().div_ceil(8)];
                for (n, _) in known.iter().enumerate().filter(|(_, known)| **known) {
                    bits[n / 8] |= 0x80 >> (n % 8);
                }
                Ok(Response::Known(bits))
            }
            Request::WouldRetire { replica, keep } => {
                let policy = Policy { last: keep, ..Policy::default() };
                Ok(self.would_retire(find(&replica), &policy))
            }
            Request::WouldRetireUnder { replica, keep, keep_calendar } => {
                let policy = Policy { last: keep, calendar: keep_calendar };
                Ok(self.would_retire(find(&replica), &policy))
            }
            Request::Discard { replica, session } => {
                if let Some(replica) = find(&replica) {
                    replica.discard(&session).map_err(Problem::from)?;
                }
                Ok(Response::Done)
            }
            Request::Seed { from } => Ok(Response::Seed(self.seed(peer, from)?)),
            Request::SharedFilter { cursor, bytes_max } => {
                let delta = self.shared.of(peer.domain_key.tag()).map(|set| set.delta(cursor));
                let packed = delta.map(|delta| (delta.pack(), delta));
                let packed = packed.filter(|(packed, delta)| delta.cost(packed.len()) <= bytes_max);
                Ok(Response::SharedFilter(packed.map(|(packed, _)| packed)))
            }
            // The supervisor answers them before they get here.
            Request::Site(_) => Err(super::receive::protocol("a request about sites has no place here")),
        }
    }

    fn would_retire(&self, replica: Option<Arc<Replica>>, policy: &Policy) -> Response {
        let retires = replica.map(|replica| replica.plan_after_next(policy, &self.rules(), replica.clocks()));
        Response::WouldRetire(retires.unwrap_or_default())
    }

    /// Enters every chunk of a sealed point into the index of disk locations.
    pub(super) fn index_point(&self, tag: DomainTag, replica: &Replica, point: &Arc<Point>) {
        if let Err(problem) = self.try_index(tag, replica, point) {
            tracing::warn!(point = point.id(), %problem, "a restore point is not indexed; chunks in it may be sent again");
            return;
        }
        self.cache.mark_point_indexed(&point.key());
    }

    fn try_index(&self, tag: DomainTag, replica: &Replica, point: &Arc<Point>) -> Result<(), Problem> {
        let base_point = point.meta().base.and_then(|id| replica.point(&id).ok());
        let base_point = base_point.filter(|base| self.cache.point_is_indexed(&base.key()));
        for disk in 0..point.disks()?.len() as u16 {
            let table = point.table(disk)?;
            let base = base_point.as_ref().and_then(|base| base.table(disk).ok());
            for (page, hash) in table.iter() {
                // Pages as at the base were indexed with the base, while that one is indexed.
                if base.as_ref().is_some_and(|base| base.get(*page) == Some(hash)) {
                    continue;
                }
                if let Some(ids) = point.page(disk, *page)? {
                    self.cache
                        .index_page(tag, replica.key(), disk, *page, &ids[..])
                        .map_err(Problem::from)?;
                }
            }
        }
        Ok(())
    }

    /// Enters every point anew: a chunk has one place in the index, and the replica that is gone may have
    /// been the place of chunks that others hold too. Until it is done such chunks may be sent again.
    pub fn reindex(self: &Arc<Self>) {
        for point in self.datastores.replicas().iter().flat_map(|replica| replica.points()) {
            self.cache.forget_point_indexed(&point.key());
        }
        self.index_soon.notify_one();
    }

    /// Indexes every sealed point that the index does not know: after a crash between seal and index, or
    /// after the index was lost. Runs in the background at start.
    pub(super) fn index_missing(&self, stop: &dyn Fn() -> bool) {
        for replica in self.datastores.replicas() {
            for point in replica.points() {
                if stop() {
                    return;
                }
                if point.is_good() && !self.cache.point_is_indexed(&point.key()) {
                    self.index_point(replica.domain_tag(), &replica, &point);
                }
            }
        }
    }
}

fn state(replica: &Replica) -> Result<ReplicaState, Problem> {
    let latest = match replica.latest() {
        None => None,
        Some(point) => {
            let disks = point.disks()?;
            Some(SealedState { point: point.id().to_string(), session: point.session(), disks })
        }
    };
    let building = replica.building().map(|building| BuildingState {
        session: building.session,
        snapshot_identity: building.snapshot_identity,
        cursors: building.cursors,
    });
    Ok(ReplicaState { latest, building })
}

fn page_table(point: &Point, disk: u16, from_page: u64) -> Result<Response, Problem> {
    let table = point.table(disk)?;
    let mut entries: Vec<_> =
        table.range(from_page).map(|(page, hash)| (*page, *hash)).take(TABLE_ENTRIES_MAX + 1).collect();
    let more = entries.len() > TABLE_ENTRIES_MAX;
    entries.truncate(TABLE_ENTRIES_MAX);
    Ok(Response::PageTable { disk_len: table.disk_len(), entries, more })
}
