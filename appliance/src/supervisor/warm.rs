//! The orders to warm, carried out by the warmings: finds what is meant, and for which dedup domain.

use std::sync::Arc;
use std::time::Duration;

use vbr_api::{DiskFormat, WarmRequest, Warming};

use crate::block::DomainKey;
use crate::control::{Answer, PointRef, ReplicaRef, WarmOrders};
use crate::error::Problem;
use crate::job::{Subject, Warmings};
use crate::wire::Wire;

/// See the module.
pub struct WarmingOrders {
    /// The queue.
    pub warmings: Arc<Warmings>,
    /// For peers and the keys of domains.
    pub wire: Wire,
}

impl WarmingOrders {
    fn point(&self, name: &str) -> Result<(Subject, DomainKey), Problem> {
        let (replica, point) = match name.contains('@') {
            true => PointRef::parse(name).map(|point| (point.replica, point.point))?,
            false => (ReplicaRef::parse(name)?, "latest".to_string()),
        };
        let replica = self.warmings.datastores().find(replica.site.as_deref(), &replica.name)?;
        let point = replica.point(&point)?;
        let key = self.wire.domain_key(replica.domain_tag()).ok_or_else(|| {
            Problem::new(
                "no_domain_key",
                format!("warming {name}"),
                "this site does not have the key of the domain that its replica belongs to",
                "restore domains.json of the state directory, or pair with the source again",
            )
        })?;
        Ok((Subject::Point(replica, point), key))
    }

    /// The domain that an image is read for.
    fn domain(&self, what: &str, peer: Option<&str>) -> Result<DomainKey, Problem> {
        if let Some(name) = peer {
            let found = self.wire.peer(name).map(|peer| peer.domain_key);
            return found.ok_or_else(|| {
                Problem::not_found(format!("peer {name}"), "vbrctl peer list shows the peers")
            });
        }
        let peers = self.wire.peers();
        let mut keys: Vec<DomainKey> = Vec::new();
        for key in peers.iter().filter_map(|peer| self.wire.peer(&peer.name)).map(|peer| peer.domain_key) {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let names: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
        match keys.len() {
            1 => Ok(keys.remove(0)),
            0 => Err(Problem::conflict(
                what,
                "this site has no peer yet, and chunks are named by the key of its dedup domain",
                "pair the sites first: vbrctl peer invite, and vbrctl peer join CODE at the other one",
            )),
            _ => Err(Problem::invalid(
                what,
                format!("the peers {} are of several dedup domains, which share nothing", names.join(", ")),
                "say for which peer: --peer NAME",
            )),
        }
    }
}

impl WarmOrders for WarmingOrders {
    fn order(&self, request: WarmRequest) -> Result<Warming, Problem> {
        let (subject, key) = match (&request.path, &request.replica) {
            (Some(path), None) => {
                let key = self.domain(&format!("warming {path}"), request.peer.as_deref())?;
                let format = request.format.unwrap_or(DiskFormat::Raw);
                (Subject::Image(self.warmings.seeds().image(path, format)?), key)
            }
            (None, Some(replica)) if request.format.is_none() && request.peer.is_none() => {
                self.point(replica)?
            }
            (None, Some(_)) => {
                let why = "a replica has its format, and its peer's dedup domain";
                return Err(Problem::invalid("the order to warm", why, "leave format and peer away"));
            }
            _ => {
                let why = "it names not exactly one thing";
                return Err(Problem::invalid(
                    "the order to warm",
                    why,
                    "name an image by path, or a replica",
                ));
            }
        };
        self.warmings.order(subject, key, None)
    }
    fn list(&self) -> Result<Vec<Warming>, Problem> {
        Ok(self.warmings.list())
    }
    fn wait<'a>(&'a self, id: &'a str, at_most: Duration) -> Answer<'a, Warming> {
        Box::pin(self.warmings.wait(id, at_most))
    }
    fn cancel(&self, id: &str) -> Result<Warming, Problem> {
        self.warmings.cancel(id)
    }
}
