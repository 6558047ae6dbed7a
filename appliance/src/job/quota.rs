//! Quotas: how much of this target a peer may fill, in bytes and in restore points.
//!
//! A source cannot flood a target: the minimum age keeps every restore point for days, so their number is
//! bounded, and so is what they fill. A session is refused before it starts where there is no room, and ends at
//! a durable cursor where there is none any more; it goes on by itself once there is. Others are not touched.
//!
//! Owns a count of bytes for each peer: measured when a session opens, added to as sessions write, shared by all
//! sessions of the peer. Not its job: the bounds themselves (peer book, configuration), measuring a replica.
//! Bound: one count for each peer that opened a session; what goes beyond is at most one message of each session.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vbr_api::{PeerQuota, PeerUse};

use super::target::TargetService;
use crate::error::Problem;
use crate::repository::datastore::Replica;
use crate::repository::retention::{Policy, span};
use crate::wire::PeerRecord;

/// The code of a problem that a quota makes.
pub const QUOTA_EXCEEDED: &str = "quota_exceeded";

/// Bytes that each peer fills.
#[derive(Default)]
pub struct Quotas {
    site: Mutex<PeerQuota>,
    used: Mutex<HashMap<String, Arc<AtomicU64>>>,
}

impl Quotas {
    /// Sets the bounds of peers that have none of their own.
    pub fn set_site(&self, quota: PeerQuota) {
        *self.site.lock().unwrap_or_else(PoisonError::into_inner) = quota;
    }

    /// A peer's own bounds, else the site's.
    pub fn effective(&self, own: PeerQuota) -> PeerQuota {
        let site = *self.site.lock().unwrap_or_else(PoisonError::into_inner);
        PeerQuota { bytes: own.bytes.or(site.bytes), points: own.points.or(site.points) }
    }

    fn room(&self, peer: &PeerRecord, used: u64) -> Room {
        let mut all = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(peer.peer_id.clone()).or_default().clone();
        count.store(used, Ordering::Relaxed);
        Room { peer: peer.name.clone(), used: count, bytes_max: self.effective(peer.quota).bytes }
    }
}

/// What a session may still write.
#[derive(Clone, Debug, Default)]
pub struct Room {
    peer: String,
    used: Arc<AtomicU64>,
    bytes_max: Option<u64>,
}

impl Room {
    /// Refuses where the peer's bytes are used up.
    pub fn check(&self) -> Result<(), Problem> {
        let used = self.used.load(Ordering::Relaxed);
        match self.bytes_max {
            Some(max) if used >= max => Err(exceeded(
                &self.peer,
                format!("its replicas fill {}, its quota is {}", size(used), size(max)),
            )),
            _ => Ok(()),
        }
    }

    /// Counts what was written.
    pub fn charge(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl TargetService {
    /// What a peer fills now. Looks at every file of its replicas.
    pub fn used_by(&self, peer_id: &str) -> PeerUse {
        let replicas = self.replicas_of(peer_id);
        PeerUse {
            bytes: replicas.iter().map(|replica| replica.charged_bytes()).sum(),
            points: replicas.iter().map(|replica| replica.points().len() as u64).sum(),
        }
    }

    /// The room of a session that is to begin or to go on; refused where there is none.
    pub(super) fn room(&self, peer: &PeerRecord, name: &str, policy: &Policy) -> Result<Room, Problem> {
        let quota = self.quotas.effective(peer.quota);
        if let Some(max) = quota.points {
            let replicas = self.replicas_of(&peer.peer_id);
            let points: usize = replicas.iter().map(|replica| replica.points().len()).sum();
            let own = replicas.iter().find(|replica| replica.name() == name);
            // Points that other sessions of this peer build will be there, too.
            let others = replicas.iter().filter(|other| other.name() != name && other.building().is_some());
            let goes = own.map_or(0, |own| own.plan_after_next(policy, &self.rules(), own.clocks()).len());
            let after = (points + others.count() + 1).saturating_sub(goes);
            if after > max as usize {
                let mut why =
                    format!("it has {points} restore points here and would have {after}, its quota is {max}");
                if !self.min_age().is_zero() {
                    why += &format!("; none retires before it is {} old", span(self.min_age()));
                }
                return Err(exceeded(&peer.name, why));
            }
        }
        let used = if quota.bytes.is_some() { self.used_by(&peer.peer_id).bytes } else { 0 };
        let room = self.quotas.room(peer, used);
        room.check()?;
        Ok(room)
    }

    fn replicas_of(&self, peer_id: &str) -> Vec<Arc<Replica>> {
        let mut replicas = self.datastores.replicas();
        replicas.retain(|replica| replica.owner_peer_id() == peer_id);
        replicas
    }
}

fn exceeded(peer: &str, why: String) -> Problem {
    Problem::new(
        QUOTA_EXCEEDED,
        format!("the target's quota for peer {peer}"),
        why,
        format!(
            "at the target, raise it (vbrctl peer grant {peer} --quota SIZE --max-points N) or remove restore points or \
             replicas; the session goes on by itself"
        ),
    )
    .retry()
}

fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::DomainKey;

    #[test]
    fn sessions_of_a_peer_share_its_room() {
        let quotas = Quotas::default();
        let mut peer = PeerRecord {
            name: "b1".into(),
            peer_id: "one".into(),
            former: Vec::new(),
            domain: "default".into(),
            domain_key: DomainKey([1; 32]),
            grants: Vec::new(),
            quota: PeerQuota::default(),
        };
        quotas.room(&peer, u64::MAX).check().unwrap();
        quotas.set_site(PeerQuota { bytes: Some(100), points: Some(7) });
        let (one, two) = (quotas.room(&peer, 50), quotas.room(&peer, 60));
        one.charge(39);
        two.check().unwrap();
        one.charge(1);
        let problem = two.check().unwrap_err();
        assert_eq!((problem.code.as_str(), problem.retry), (QUOTA_EXCEEDED, true));
        assert!(problem.why.contains("100 B"), "{problem:?}");
        // Its own bound wins over the site's; another peer has a count of its own.
        peer.quota.bytes = Some(200);
        assert_eq!(quotas.effective(peer.quota), PeerQuota { bytes: Some(200), points: Some(7) });
        quotas.room(&peer, 150).check().unwrap();
        let other = PeerRecord { peer_id: "two".into(), quota: PeerQuota::default(), ..peer };
        quotas.room(&other, 0).check().unwrap();
    }
}
