//! Replicas follow their peer to another identity: after a change of its keys, and to the site that replaced it.
//!
//! The peer book says who was whom; what a replica's record says of its owner is brought in line before a peer reaches
//! anything here. Each record is one durable write, and whatever a crash left out is done at the next contact. Blocking.

use std::sync::Arc;

use super::target::TargetService;
use crate::error::Problem;
use crate::repository::datastore::Replica;
use crate::wire::PeerRecord;

impl TargetService {
    /// What the peer owned under former identities becomes its own under the one it has.
    pub fn inherit(&self, peer: &PeerRecord) -> Result<(), Problem> {
        if peer.former.is_empty() {
            return Ok(());
        }
        for replica in self
            .owned_by(|id| peer.is_or_was(id))
            .into_iter()
            .filter(|replica| replica.owner_peer_id() != peer.peer_id)
        {
            replica.set_owner(&peer.peer_id)?;
            tracing::info!(site = replica.site(), replica = replica.name(), peer = %peer.name, "a replica followed its peer");
        }
        Ok(())
    }

    /// Refuses where both peers, each a name and all its identities, have a replica of one name: together they would be
    /// one peer's.
    pub fn check_successor(&self, old: (&str, &[String]), new: (&str, &[String])) -> Result<(), Problem> {
        let lost = self.owned_by(|id| old.1.iter().any(|old| old == id));
        let own = self.owned_by(|id| new.1.iter().any(|new| new == id));
        let clash = own.into_iter().find(|own| lost.iter().any(|lost| lost.name() == own.name()));
        let Some(clash) = clash else { return Ok(()) };
        let (site, name) = (clash.site(), clash.name());
        Err(Problem::conflict(
            format!("put peer {} in the place of peer {}", new.0, old.0),
            format!("each of them has a replica {name}"),
            format!(
                "remove the one that is not wanted, here the new one: vbrctl replica remove {site}/{name}"
            ),
        ))
    }

    fn owned_by(&self, is_owner: impl Fn(&str) -> bool) -> Vec<Arc<Replica>> {
        let mut replicas = self.datastores.replicas();
        replicas.retain(|replica| is_owner(&replica.owner_peer_id()));
        replicas
    }
}
