//! A job that goes on with a replica that is there already, of an earlier job of this site: its newest restore point is
//! what the next run builds upon, and only differences cross.
//!
//! A replica is looked up under the peer that asks, so none of another site can be named. One replica is one job's:
//! definitions that would share one are refused. A session goes on with the definition it began with, so the table of
//! what is being filled, which is owned here, has the last word. Bounds: an entry for each session that runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vbr_api::{JobEdit, JobSpec};

use super::base::replica_state;
use super::definitions::{check, split_target};
use super::driver::Driver;
use super::edit::merged;
use super::manager::{JobManager, unknown_job};
use super::parts::Parts;
use super::replicate::AttemptError;
use super::snapshot::resolve;
use crate::error::Problem;
use crate::wire::message::SealedState;

/// How long an order waits for the target's word.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// A replica: its peer's name, and its own.
type Place = (String, String);

/// Which replicas sessions of this site fill now, and of which job.
#[derive(Default)]
pub(super) struct Filling(Mutex<BTreeMap<Place, String>>);

/// The right to fill a replica; given up when dropped.
pub(super) struct Filled {
    filling: Arc<Filling>,
    place: Place,
}

impl Filling {
    /// For as long as a session runs.
    pub(super) fn take(self: &Arc<Self>, peer: &str, replica: &str, job: &str) -> Result<Filled, Problem> {
        let place = (peer.to_string(), replica.to_string());
        let mut filled = self.lock();
        if let Some(other) = filled.get(&place) {
            return Err(Problem::conflict(
                format!("job {job} was not run"),
                format!("a session of job {other}, which is not over, fills replica {replica} at {peer}"),
                format!("wait for it, or cancel it; vbrctl session list shows it; then vbrctl job run {job}"),
            )
            .retry());
        }
        filled.insert(place.clone(), job.to_string());
        Ok(Filled { filling: self.clone(), place })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Place, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        self.filling.lock().remove(&self.place);
    }
}

impl JobManager {
    /// No other job has the same replica.
    pub(super) fn check_replica_is_free(&self, spec: &JobSpec) -> Result<(), Problem> {
        let state = self.lock();
        free(spec, state.jobs.values().map(|definition| &definition.spec))
    }

    /// The definition that an edit comes to, where it maps the job to another replica.
    pub fn newly_mapped(&self, name: &str, edit: &JobEdit) -> Result<Option<JobSpec>, Problem> {
        let before = self.lock().jobs.get(name).map(|definition| definition.spec.clone());
        let before = before.ok_or_else(|| unknown_job(name))?;
        let after = merged(&before, edit.change.clone())?;
        Ok(Some(after).filter(|after| (&after.map, &after.target) != (&before.map, &before.target)))
    }

    /// Asks the target whether the job can go on with the replica that it names. Where that one cannot be asked
    /// now, the job's first run tells.
    pub async fn look_at_replica(&self, spec: &JobSpec) -> Result<(), Problem> {
        let known = self.lock().jobs.get(&spec.name).is_some_and(|definition| definition.spec == *spec);
        let peer = self.parts.wire.peer(split_target(&spec.target).0);
        let Some(peer) = peer.filter(|_| spec.map.is_some() && !known) else { return Ok(()) };
        check(spec)?;
        self.check_replica_is_free(spec)?; // Which says more than what the target would.
        let asked = replica_state(&self.parts.wire, &peer.peer_id, spec.replica());
        let Ok(Ok(state)) = tokio::time::timeout(LOOK_TIMEOUT, asked).await else { return Ok(()) };
        let (_, disks) = resolve(&self.parts, spec)?;
        check_map(&self.parts, spec, state.latest.as_ref(), disks.len()).await
    }
}

impl Driver {
    /// Before a run of a mapped job: its replica is there, and is one of such a machine.
    pub(super) async fn check_map(
        &self,
        latest: Option<&SealedState>,
        disks: usize,
    ) -> Result<(), AttemptError> {
        Ok(check_map(&self.parts, &self.spec, latest, disks).await?)
    }
}

/// Whether a job can go on with the replica that it names. `latest` is what the target has of it.
pub(super) async fn check_map(
    parts: &Parts,
    spec: &JobSpec,
    latest: Option<&SealedState>,
    disks: usize,
) -> Result<(), Problem> {
    if spec.map.is_none() {
        return Ok(());
    }
    let (records, job) = (parts.records.clone(), spec.name.clone());
    let history = tokio::task::spawn_blocking(move || records.history(&job)).await;
    let history = history.ok().and_then(Result::ok).unwrap_or_default();
    let own = latest.is_some_and(|latest| history.iter().any(|session| session.session == latest.session));
    fits(spec, latest, disks, own)
}

/// `own`: the job itself made that restore point, so its disks may have come and gone since.
fn fits(spec: &JobSpec, latest: Option<&SealedState>, disks: usize, own: bool) -> Result<(), Problem> {
    let peer = split_target(&spec.target).0;
    let what = format!("replica {} at {peer}, with which job {} is to go on", spec.replica(), spec.name);
    let Some(latest) = latest else {
        let why = "this site has no replica of that name there, or none with a good restore point";
        let next = format!(
            "see vbrctl replica list at {peer}; without --map (vbrctl job edit {} --map none) a replica is made anew",
            spec.name
        );
        return Err(Problem::new("not_found", what, why, next));
    };
    if !own && latest.disks.len() != disks {
        let why = format!("its newest restore point has {} disks, the job has {disks}", latest.disks.len());
        let next = "name the same disks in the same order; disks are added or dropped after the first run";
        return Err(Problem::conflict(what, why, next));
    }
    Ok(())
}

/// No other one of these definitions has the same replica.
fn free<'a>(spec: &JobSpec, mut others: impl Iterator<Item = &'a JobSpec>) -> Result<(), Problem> {
    let (peer, replica) = (split_target(&spec.target).0, spec.replica());
    let same = |other: &&JobSpec| {
        other.name != spec.name && (split_target(&other.target).0, other.replica()) == (peer, replica)
    };
    let Some(other) = others.find(same) else { return Ok(()) };
    Err(Problem::conflict(
        format!("job {} cannot have replica {replica} at {peer}", spec.name),
        format!("job {} fills it", other.name),
        format!(
            "remove that job first (vbrctl job remove {}; its restore points stay), or name another replica",
            other.name
        ),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::block::Root;

    fn spec(name: &str, target: &str, map: Option<&str>) -> JobSpec {
        let disks = json!([{"path": "/a", "format": "raw"}]);
        serde_json::from_value(json!({"name": name, "target": target, "disks": disks, "map": map})).unwrap()
    }

    #[test]
    fn a_replica_is_of_one_job() {
        let jobs = [spec("web", "dr", None), spec("mail", "dr/fast", Some("post"))];
        let check = |spec: &JobSpec| free(spec, jobs.iter()).map_err(|problem| problem.code);
        for good in [
            spec("web", "dr", None),
            spec("web", "dr", Some("web-old")),
            spec("shop", "dr", Some("mail")),
            spec("shop", "hq", Some("web")),
            spec("mail", "dr", None),
        ] {
            assert_eq!(check(&good), Ok(()), "{good:?}");
        }
        for bad in
            [spec("shop", "dr", Some("web")), spec("shop", "dr/slow", Some("post")), spec("post", "dr", None)]
        {
            assert_eq!(check(&bad), Err("conflict".into()), "{bad:?}");
        }
    }

    #[test]
    fn a_replica_is_filled_by_one_session() {
        let filling = Arc::new(Filling::default());
        let first = filling.take("dr", "web", "web").unwrap();
        let _other = filling.take("hq", "web", "web").unwrap();
        let refused = filling.take("dr", "web", "shop").map(|_| ()).unwrap_err();
        assert!(refused.retry && refused.why.contains("job web"), "{refused:?}");
        drop(first);
        filling.take("dr", "web", "shop").unwrap();
    }

    #[test]
    fn a_mapped_replica_must_be_there_with_as_many_disks() {
        let latest = |disks| SealedState {
            point: "p".into(),
            session: "s".into(),
            disks: vec![(1 << 20, Root([1; 32])); disks],
        };
        let code = |latest: Option<SealedState>, own| {
            let mapped = spec("shop", "dr", Some("web"));
            fits(&mapped, latest.as_ref(), 1, own).map_err(|problem| problem.code)
        };
        assert_eq!(code(Some(latest(1)), false), Ok(()));
        assert_eq!(code(Some(latest(2)), false), Err("conflict".into()));
        assert_eq!(code(Some(latest(2)), true), Ok(()));
        assert_eq!(code(None, false), Err("not_found".into()));
    }
}
