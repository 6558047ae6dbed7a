//! The management API's orders on replicas and restore points, carried out by datastores and target service.
//!
//! Thin, but for one matter: what an operator may remove by hand. Never what is pinned or in use; what the minimum
//! age keeps and the newest point only by force, and the answer says what was overridden.

use std::collections::HashMap;
use std::sync::Arc;

use vbr_api::{Moment, PinRequest, Removed, Replica, RestorePoint, VerifyReport, VmConfig};

use crate::block::BlockRead;
use crate::control::{Export, PointRef, ReplicaOrders, ReplicaRef};
use crate::error::Problem;
use crate::job::TargetService;
use crate::repository::datastore::{self, Datastores, Point};
use crate::repository::verified::VerifiedDisk;
use crate::repository::{export, retention, verify};
use crate::vm_config::differences;
use crate::wire::Wire;

/// Replicas and restore points kept here.
pub struct Replicas {
    /// The datastores.
    pub stores: Arc<Datastores>,
    /// Keeps the index of what restore points hold.
    pub target: Arc<TargetService>,
    /// For the keys of the domains that replicas belong to.
    pub wire: Wire,
}

impl Replicas {
    fn find(&self, name: &ReplicaRef) -> Result<Arc<datastore::Replica>, Problem> {
        self.stores.find(name.site.as_deref(), &name.name)
    }

    fn locate(&self, point: &PointRef) -> Result<Arc<Point>, Problem> {
        Ok(self.find(&point.replica)?.point(&point.point)?)
    }

    /// A point that has such a disk.
    fn with_disk(&self, point: &PointRef, disk: u16) -> Result<Arc<Point>, Problem> {
        let point = self.locate(point)?;
        if usize::from(disk) >= point.disks()?.len() {
            return Err(Problem::not_found(
                format!("disk {disk} of restore point {}", point.id()),
                "vbrctl restore-point show tells how many disks it has; they count from 0",
            ));
        }
        Ok(point)
    }

    /// Restore points of a replica, each with why it is kept.
    fn explained(&self, replica: &datastore::Replica) -> Vec<RestorePoint> {
        let (rules, clocks) = (self.target.rules(), replica.clocks());
        let kept = replica.kept(&rules, clocks).into_iter().map(|kept| (kept.id, kept.kept_because));
        let mut kept: HashMap<String, Vec<String>> = kept.collect();
        let next = replica.plan_after_next(&replica.policy(), &rules, clocks);
        let points = replica.points();
        let explained = points.iter().map(|point| {
            let meta = point.meta();
            RestorePoint {
                kept_because: kept.remove(&meta.id).unwrap_or_default(),
                retires_next: next.contains(&meta.id),
                ..meta
            }
        });
        explained.collect()
    }

    fn explain(&self, point: &PointRef) -> Result<RestorePoint, Problem> {
        let replica = self.find(&point.replica)?;
        let found = replica.point(&point.point)?;
        let explained = self.explained(&replica).into_iter().find(|point| point.id == found.id());
        let (vm, vm_changes) = configuration(&replica, &found);
        Ok(RestorePoint { vm, vm_changes, ..explained.unwrap_or_else(|| found.meta()) })
    }

    /// What stands against removing a point by hand, and what force overrides.
    fn objections(&self, replica: &datastore::Replica, point: &Point) -> Vec<String> {
        let (min_age, meta) = (self.target.min_age(), point.meta());
        let mut objections = Vec::new();
        if let Some(age) = replica.age(point.id()).filter(|age| *age < min_age) {
            objections.push(format!(
                "it is {} old, and the minimum age here is {}",
                retention::span(age),
                retention::span(min_age)
            ));
        }
        if replica.latest().is_some_and(|latest| latest.id() == meta.id) {
            objections.push("it is the newest good restore point of its replica".into());
        }
        objections
    }

    fn key(&self, point: &Point) -> Result<crate::block::DomainKey, Problem> {
        self.wire.domain_key(point.domain_tag()).ok_or_else(|| {
            Problem::new(
                "no_domain_key",
                format!("restore point {}", point.id()),
                "this site does not have the key of the domain that its replica belongs to",
                "restore domains.json of the state directory, or pair with the source again",
            )
        })
    }

    fn check(&self, point: &Arc<Point>) -> Result<VerifyReport, Problem> {
        let report = verify::verify(point, &self.key(point)?)?;
        point.mark_verified(report.ok, Moment::now())?;
        Ok(report)
    }
}

/// The VM as it was at a point, and what is another than at the point before.
fn configuration(replica: &datastore::Replica, point: &Point) -> (Option<VmConfig>, Vec<String>) {
    let Some(vm) = point.vm() else { return (None, Vec::new()) };
    let points = replica.points();
    let mut earlier = points.iter().rev().skip_while(|other| other.id() != point.id()).skip(1);
    let before = earlier.find_map(|other| other.vm());
    let changes = before.map(|before| differences(&before, &vm)).unwrap_or_default();
    (Some(vm), changes)
}

impl ReplicaOrders for Replicas {
    fn replicas(&self) -> Result<Vec<Replica>, Problem> {
        Ok(self.stores.replicas().iter().map(|replica| replica.meta()).collect())
    }
    fn replica(&self, replica: &ReplicaRef) -> Result<Replica, Problem> {
        let replica = self.find(replica)?;
        let (rules, clocks) = (self.target.rules(), replica.clocks());
        Ok(Replica {
            kept: replica.kept(&rules, clocks),
            retires_next: replica.plan_after_next(&replica.policy(), &rules, clocks),
            ..replica.meta()
        })
    }
    fn remove_replica(&self, replica: &ReplicaRef) -> Result<Removed, Problem> {
        let replica = self.find(replica)?;
        let removed = self.stores.remove(&replica)?;
        self.target.reindex();
        Ok(Removed { removed, ..Removed::default() })
    }
    fn verify_replica(&self, replica: &ReplicaRef) -> Result<Vec<VerifyReport>, Problem> {
        self.find(replica)?.points().iter().map(|point| self.check(point)).collect()
    }
    fn points(&self, replica: Option<&ReplicaRef>) -> Result<Vec<RestorePoint>, Problem> {
        let replicas = match replica {
            Some(name) => vec![self.find(name)?],
            None => self.stores.replicas(),
        };
        Ok(replicas.iter().flat_map(|replica| self.explained(replica)).collect())
    }
    fn point(&self, point: &PointRef) -> Result<RestorePoint, Problem> {
        self.explain(point)
    }
    fn remove_point(&self, point: &PointRef, force: bool) -> Result<Removed, Problem> {
        let replica = self.find(&point.replica)?;
        let found = replica.point(&point.point)?;
        let objections = self.objections(&replica, &found);
        if !force && !objections.is_empty() && !found.is_pinned() {
            return Err(Problem::conflict(
                found.title(),
                objections.join(", and "),
                "leave it to retention, or remove it all the same with --force",
            ));
        }
        replica.retire(found.id())?;
        for overridden in &objections {
            tracing::warn!(point = found.id(), overridden, "a restore point was removed by force");
        }
        Ok(Removed { removed: vec![found.id().to_string()], overridden: objections })
    }
    fn pin_point(&self, point: &PointRef, request: PinRequest) -> Result<RestorePoint, Problem> {
        let refuse = |why: &str| {
            let next = "say --for 90d or --until 2027-01-31, or nothing to pin it for good";
            Err(Problem::invalid(format!("pin {point}"), why, next))
        };
        let found = self.locate(point)?;
        let until = match (request.for_ms, request.until) {
            (Some(_), Some(_)) => return refuse("it names a span and a date"),
            (Some(ms), None) => {
                let span = jiff::SignedDuration::from_millis(i64::try_from(ms).unwrap_or(i64::MAX));
                let Ok(until) = Moment::now().checked_add(span) else {
                    return refuse("the span is too long");
                };
                Some(until)
            }
            (None, until) => until,
        };
        if until.is_some_and(|until| until <= Moment::now()) {
            return refuse("it would lapse at once");
        }
        found.set_pin(until)?;
        self.explain(point)
    }
    fn unpin_point(&self, point: &PointRef) -> Result<RestorePoint, Problem> {
        self.locate(point)?.unpin()?;
        self.explain(point)
    }
    fn verify_point(&self, point: &PointRef) -> Result<VerifyReport, Problem> {
        self.check(&self.locate(point)?)
    }
    fn export(&self, point: &PointRef, disk: u16) -> Result<Export, Problem> {
        let point = self.with_disk(point, disk)?;
        let key = self.key(&point)?;
        let lease = point.lease()?;
        Ok(Box::new(move |sink| {
            let _lease = lease;
            export::export(&point, disk, &key, sink).map_err(Problem::from)
        }))
    }
    fn read_disk(&self, point: &PointRef, disk: u16) -> Result<Box<dyn BlockRead>, Problem> {
        let point = self.with_disk(point, disk)?;
        let key = self.key(&point)?;
        Ok(Box::new(VerifiedDisk::open(point, disk, key)?))
    }
}
