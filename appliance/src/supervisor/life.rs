//! The life of the site: its key pair changes, a peer takes the place of another, its state leaves and comes back.
//!
//! A new key and an imported state act after a restart, which vbrd does by itself once they are on stable storage
//! ([`Restart`]). Not its job: how keys change (`wire`), how a state is sealed and moved (`state_file`, `state_move`).

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use vbr_api::{Peer, Rotation, RotationWait, StateSummary};

use super::appliance::lock;
use super::{state_file, state_move};
use crate::config::Config;
use crate::control::{Answer, LifeOrders};
use crate::error::Problem;
use crate::job::{JobManager, TargetService};
use crate::wire::message::{Request, Response};
use crate::wire::site_requests::{SiteRequest, SiteResponse};
use crate::wire::{Wire, capability, is_rotating};

/// Peers are told again this often.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Each answers within this.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// Peers that are told at once.
const TOLD_AT_ONCE: usize = 32;
/// Between an order and the restart that it brings: its answer leaves first.
const RESTART_AFTER: Duration = Duration::from_millis(1500);

/// Asks vbrd to stop and start again.
#[derive(Clone, Default)]
pub struct Restart(CancellationToken);

impl Restart {
    /// Wanted, from now on.
    fn order(&self) {
        self.0.cancel();
    }

    /// Resolves when it is wanted, a moment later.
    pub async fn wanted(&self) {
        self.0.cancelled().await;
        tokio::time::sleep(RESTART_AFTER).await;
    }
}

/// See the module.
pub struct Life {
    /// Peers, and the key.
    pub wire: Wire,
    /// Replicas.
    pub target: Arc<TargetService>,
    /// Jobs.
    pub jobs: Arc<JobManager>,
    /// For the site's name.
    pub config: Arc<Mutex<Config>>,
    /// The state directory.
    pub state: PathBuf,
    /// What a new key and an imported state need.
    pub restart: Restart,
    /// One telling at a time.
    pub turn: tokio::sync::Mutex<()>,
}

impl Life {
    /// Over these parts.
    pub fn new(
        wire: Wire,
        target: Arc<TargetService>,
        jobs: Arc<JobManager>,
        config: Arc<Mutex<Config>>,
    ) -> Arc<Self> {
        let (state, turn) = (lock(&config).state.clone(), tokio::sync::Mutex::default());
        Arc::new(Self { wire, target, jobs, config, state, restart: Restart::default(), turn })
    }

    /// Tells every peer that does not know of the next key; once all do, vbrd restarts with it. Answers why the others
    /// were not told.
    async fn tell(&self) -> Result<Vec<RotationWait>, Problem> {
        let _turn = self.turn.lock().await;
        let Some((next, notice)) = self.wire.rotation_notice()? else { return Ok(Vec::new()) };
        let told = futures::stream::iter(self.wire.rotation().untold).map(|(peer, id)| {
            let (next, request) = (next.clone(), Request::Site(SiteRequest::Rotate(notice.clone())));
            async move { self.tell_one(&next, &id, request).await.err().map(|why| RotationWait { peer, why }) }
        });
        let waiting: Vec<Option<RotationWait>> = told.buffer_unordered(TOLD_AT_ONCE).collect().await;
        let state = self.wire.rotation();
        if state.next.is_some() && state.untold.is_empty() {
            tracing::info!(
                peers = state.told.len(),
                "every peer knows of the next key: vbrd restarts with it"
            );
            self.restart.order();
        }
        Ok(waiting.into_iter().flatten().collect())
    }

    async fn tell_one(&self, next: &str, peer_id: &str, request: Request) -> Result<(), String> {
        if !self.wire.peers().iter().any(|peer| peer.peer_id == peer_id && peer.connected) {
            return Err("it is not connected".into());
        }
        if !self.wire.peer_can(peer_id, capability::SITES) {
            return Err("its vbr does not know how keys change: update it".into());
        }
        let answer = tokio::time::timeout(TOLD_WITHIN, self.wire.request(peer_id, request)).await;
        match answer
            .map_err(|_| "it did not answer in time".to_owned())?
            .map_err(|error| error.to_string())?
        {
            Response::Site(SiteResponse::Rotated) => {}
            Response::Problem(problem) => return Err(problem.to_string()),
            _ => return Err("its answer was another one than the one to the question".into()),
        }
        let (wire, next, id) = (self.wire.clone(), next.to_owned(), peer_id.to_owned());
        let noted = tokio::task::spawn_blocking(move || wire.rotation_told(&next, &id)).await;
        noted.map_err(|error| error.to_string())?.map_err(|problem| problem.to_string())
    }

    /// Goes on with a change of the key pair, over restarts.
    pub async fn tend_rotation(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(TELL_EVERY) => {}
                () = stop.cancelled() => return,
            }
            if let Err(problem) = self.tell().await {
                tracing::warn!(%problem, "peers could not be told of the next key; they are told again");
            }
        }
    }

    fn view(&self, waiting: Vec<RotationWait>) -> Rotation {
        let state = self.wire.rotation();
        let reason = |peer: &str| waiting.iter().find(|wait| wait.peer == peer).map(|wait| wait.why.clone());
        let waits = state.untold.into_iter().map(|(peer, _)| {
            let why = reason(&peer).unwrap_or_else(|| "it was not told yet".into());
            RotationWait { peer, why }
        });
        let waiting = waits.collect();
        Rotation { peer_id: self.wire.peer_id(), next_peer_id: state.next, told: state.told, waiting }
    }
}

impl LifeOrders for Life {
    fn rotation(&self) -> Result<Rotation, Problem> {
        Ok(self.view(Vec::new()))
    }

    fn rotate(&self) -> Answer<'_, Rotation> {
        Box::pin(async move {
            self.wire.begin_rotation().await?;
            let waiting = self.tell().await?;
            Ok(self.view(waiting))
        })
    }

    fn cancel_rotation(&self) -> Result<Rotation, Problem> {
        let state = self.wire.rotation();
        if state.next.is_some() && state.untold.is_empty() {
            return Err(Problem::conflict(
                "keep the old key",
                "every peer knows of the new one, and vbrd is about to restart with it",
                "change it again afterwards: vbrctl peer rotate",
            ));
        }
        self.wire.cancel_rotation()?;
        Ok(self.view(Vec::new()))
    }

    fn replace<'a>(&'a self, old: &'a str, new: &'a str) -> Answer<'a, Peer> {
        Box::pin(async move {
            let identities = |name: &str| self.wire.identities(name);
            if let (Some(lost), Some(came)) = (identities(old), identities(new)) {
                let (target, lost, came) =
                    (self.target.clone(), (old.to_owned(), lost), (new.to_owned(), came));
                let checked = tokio::task::spawn_blocking(move || {
                    target.check_successor((&lost.0, &lost.1), (&came.0, &came.1))
                });
                checked.await.unwrap_or_else(|error| Err(stopped(&error)))?;
            }
            let peer = self.wire.replace(old, new).await?;
            if let Some(record) = self.wire.peer(old) {
                let target = self.target.clone();
                // Durable in the book already: what fails here is done at the peer's next contact.
                let moved = tokio::task::spawn_blocking(move || target.inherit(&record)).await;
                moved.unwrap_or_else(|error| Err(stopped(&error)))?;
            }
            Ok(peer)
        })
    }

    fn export_state(&self, passphrase: &str) -> Result<Vec<u8>, Problem> {
        if is_rotating(&self.state.join("key")) {
            return Err(Problem::conflict(
                "export the state of the site",
                "its key pair changes, and the export would hold the old one",
                "wait until `vbrctl peer rotate` is done, or give it up: vbrctl peer rotate --cancel",
            ));
        }
        let site = lock(&self.config).site.clone();
        state_file::seal(&state_move::gather(&self.state, &site)?, passphrase)
    }

    fn import_state(&self, passphrase: &str, state: &[u8], replace: bool) -> Result<StateSummary, Problem> {
        let (peers, jobs) = (self.wire.peers().len(), self.jobs.list().len());
        if !replace && (peers > 0 || jobs > 0) {
            return Err(Problem::conflict(
                "import a state into this site",
                format!("it has peers ({peers}) or jobs ({jobs}) of its own"),
                "import into a new site; or say --replace: what is here stays in before-import in the state directory",
            ));
        }
        let contents = state_file::open(state, passphrase)?;
        let summary = state_move::stage(&self.state, &contents)?;
        tracing::warn!(peer_id = %summary.peer_id, from = %summary.site, "a state was imported: vbrd restarts with it");
        self.restart.order();
        Ok(summary)
    }
}

fn stopped(error: &tokio::task::JoinError) -> Problem {
    Problem::new("internal", "a part of the order stopped", error.to_string(), "report this")
}
