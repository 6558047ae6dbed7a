//! Orders of consoles at peers: taken from the wire, carried out by the management API, answered in parts.
//!
//! Owns the orders under way and the answers that wait to be fetched, each under the name that its caller gave it: asked
//! for again over another link, the same order is not carried out twice. Takes everything that comes in from the wire, and
//! hands on to the target service what is not about the sites themselves. Not its job: what a remote console may do, which
//! `control` knows; the grant is looked up here, for every order.
//! Bounds: [`CALLS_MAX`] orders, [`CALLS_PER_PEER_MAX`] of one peer, [`RUNNING_MAX`] at work, answers of
//! [`PACKED_BYTES_MAX`] together; what nobody asks for goes after [`FORGOTTEN`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::control::{Remote, RemoteAnswer, RemoteConsole, RemoteOrder};
use crate::error::Problem;
use crate::wire::message::{Request, Response};
use crate::wire::site_requests::{Call, ManageOrder, ManagePart, PART_BYTES_MAX, SiteRequest, SiteResponse};
use crate::wire::{Incoming, MANAGE, PeerRecord, Wire};

/// Orders under way, with those whose answer was not fetched.
const CALLS_MAX: usize = 128;
/// Of one peer.
const CALLS_PER_PEER_MAX: usize = 16;
/// Carried out at once.
const RUNNING_MAX: usize = 16;
/// Packed answers that wait, together.
const PACKED_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A caller that did not ask for so long is gone.
const FORGOTTEN: Duration = Duration::from_secs(90);
/// A request is answered after this, whether the order is over or not: below the wire's own patience.
const PATIENCE: Duration = Duration::from_secs(15);

/// See the module.
pub struct RemoteCalls {
    console: RemoteConsole,
    wire: Wire,
    calls: Mutex<HashMap<(String, Call), Waiting>>,
    running: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct Waiting {
    answer: watch::Receiver<Option<Arc<Packed>>>,
    asked: Instant,
    /// Its last part left. Kept while there is room: the link may have been lost under it.
    fetched: bool,
}

/// An answer as it travels.
struct Packed {
    status: u16,
    content_type: String,
    plain_bytes: u32,
    bytes: Vec<u8>,
}

impl RemoteCalls {
    /// Carries out orders by `console`; tasks end with `stop`.
    pub fn new(console: RemoteConsole, wire: Wire, tasks: TaskTracker, stop: CancellationToken) -> Arc<Self> {
        let (calls, running) = (Mutex::default(), Arc::new(Semaphore::new(RUNNING_MAX)));
        Arc::new(Self { console, wire, calls, running, tasks, stop })
    }

    /// Takes what comes in until the wire ends; what is not about sites goes to `others`.
    pub async fn serve(
        self: Arc<Self>,
        mut incoming: mpsc::Receiver<Incoming>,
        others: mpsc::Sender<Incoming>,
    ) {
        loop {
            let next = tokio::select! {
                next = incoming.recv() => next,
                () = self.stop.cancelled() => None,
            };
            match next {
                None => return,
                Some(Incoming::Request { peer, request: Request::Site(request), reply }) => {
                    let calls = self.clone();
                    self.tasks.spawn(async move { calls.answer(peer, request, reply).await });
                }
                Some(other) => {
                    if others.send(other).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn answer(
        self: Arc<Self>,
        peer: PeerRecord,
        request: SiteRequest,
        reply: oneshot::Sender<Response>,
    ) {
        let answer = match request {
            SiteRequest::Granted => Ok(SiteResponse::Granted(peer.grants)),
            SiteRequest::Manage { call, order } => self.manage(peer, call, order).await,
            SiteRequest::ManageResult { call, offset } => self.result(peer, call, offset).await,
            SiteRequest::Rotate(notice) => {
                let wire = self.wire.clone();
                let noted = tokio::task::spawn_blocking(move || wire.announced(&peer.peer_id, &notice)).await;
                let stopped = |e: tokio::task::JoinError| {
                    Err(Problem::new(
                        "internal",
                        "take note of a peer's new identity",
                        e.to_string(),
                        "report this",
                    ))
                };
                noted.unwrap_or_else(stopped).map(|()| SiteResponse::Rotated)
            }
        };
        let _ = reply.send(answer.map_or_else(Response::Problem, Response::Site));
    }

    fn calls(&self) -> MutexGuard<'_, HashMap<(String, Call), Waiting>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an order, unless it was begun before.
    async fn manage(
        &self,
        peer: PeerRecord,
        call: Call,
        order: ManageOrder,
    ) -> Result<SiteResponse, Problem> {
        self.may_manage(&peer)?;
        let name = (peer.peer_id.clone(), call);
        let begun = {
            let mut calls = self.calls();
            let is_wanted = |waiting: &Waiting| waiting.asked.elapsed() < FORGOTTEN;
            calls.retain(|_, waiting| is_wanted(waiting) || waiting.answer.borrow().is_none());
            if calls.contains_key(&name) {
                None
            } else {
                if !make_room(&mut calls, &peer.peer_id) {
                    return Err(busy("too many orders of remote consoles are under way"));
                }
                let (done, answer) = watch::channel(None);
                calls.insert(name, Waiting { answer, asked: Instant::now(), fetched: false });
                Some(done)
            }
        };
        if let Some(done) = begun {
            self.begin(&peer, order, done);
        }
        self.result(peer, call, 0).await
    }

    /// The grant is asked for with every request: what was revoked meanwhile is not answered.
    fn may_manage(&self, peer: &PeerRecord) -> Result<(), Problem> {
        if peer.grants.iter().any(|grant| grant == MANAGE) {
            return Ok(());
        }
        tracing::warn!(peer = %peer.name, "a remote console of a peer that may not manage this site was refused");
        Err(Problem::not_allowed(
            "the order of a remote console",
            "that site did not grant this one to manage it",
            "at that site: vbrctl peer grant PEER --manage, PEER being this site's name there",
        ))
    }

    fn begin(&self, peer: &PeerRecord, order: ManageOrder, done: watch::Sender<Option<Arc<Packed>>>) {
        let word = |text: String| -> String {
            let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            text.chars().filter(plain).take(64).collect()
        };
        let remote =
            Remote { peer: peer.name.clone(), peer_id: peer.peer_id.clone(), user: order.user.map(word) };
        let order = RemoteOrder { method: order.method, path: order.path, body: order.body, user: None };
        let (console, running) = (self.console.clone(), self.running.clone());
        let held: usize =
            self.calls().values().filter_map(|w| w.answer.borrow().as_ref().map(|a| a.bytes.len())).sum();
        let room = PACKED_BYTES_MAX.saturating_sub(held);
        self.tasks.spawn(async move {
            // The semaphore is never closed.
            let _turn = running.acquire_owned().await.ok();
            let answer = console.answer(remote, order).await;
            let packed = tokio::task::spawn_blocking(move || pack(answer, room)).await;
            done.send_replace(packed.ok().map(Arc::new));
        });
    }

    /// A part of the answer, once there is one.
    async fn result(&self, peer: PeerRecord, call: Call, offset: u32) -> Result<SiteResponse, Problem> {
        self.may_manage(&peer)?;
        let name = (peer.peer_id, call);
        let mut answer = {
            let mut calls = self.calls();
            let Some(waiting) = calls.get_mut(&name) else { return Ok(SiteResponse::Unknown) };
            waiting.asked = Instant::now();
            waiting.answer.clone()
        };
        let over = tokio::time::timeout(PATIENCE, answer.wait_for(Option::is_some)).await;
        let packed = match over {
            Err(_) => return Ok(SiteResponse::Pending),
            Ok(Ok(packed)) => packed.clone(),
            Ok(Err(_)) => None,
        };
        let Some(packed) = packed else {
            self.calls().remove(&name);
            return Ok(SiteResponse::Unknown);
        };
        let from = (offset as usize).min(packed.bytes.len());
        let to = packed.bytes.len().min(from + PART_BYTES_MAX);
        if to == packed.bytes.len()
            && let Some(waiting) = self.calls().get_mut(&name)
        {
            waiting.fetched = true;
        }
        Ok(SiteResponse::Part(ManagePart {
            status: packed.status,
            content_type: packed.content_type.clone(),
            plain_bytes: packed.plain_bytes,
            packed_bytes: packed.bytes.len() as u32,
            offset: from as u32,
            bytes: packed.bytes[from..to].to_vec(),
        }))
    }
}

/// Room for one more order of a peer; answers that were fetched go for it, the one asked for longest ago first.
fn make_room(calls: &mut HashMap<(String, Call), Waiting>, peer_id: &str) -> bool {
    loop {
        let of_peer = calls.keys().filter(|(id, _)| id == peer_id).count();
        if calls.len() < CALLS_MAX && of_peer < CALLS_PER_PEER_MAX {
            return true;
        }
        let own_only = of_peer >= CALLS_PER_PEER_MAX;
        let fetched =
            calls.iter().filter(|((id, _), waiting)| waiting.fetched && (!own_only || id == peer_id));
        let Some(oldest) = fetched.min_by_key(|(_, waiting)| waiting.asked).map(|(name, _)| name.clone())
        else {
            return false;
        };
        calls.remove(&oldest);
    }
}

fn pack(answer: RemoteAnswer, room: usize) -> Packed {
    let RemoteAnswer { status, content_type, body } = answer;
    match zstd::bulk::compress(&body, 3) {
        Ok(bytes) if bytes.len() <= room => {
            Packed { status, content_type, plain_bytes: body.len() as u32, bytes }
        }
        _ => {
            let problem = busy("the answers that wait for remote consoles fill their room");
            let body = vbr_api::ErrorResponse { schema: vbr_api::SCHEMA, error: problem.body() };
            let body = serde_json::to_vec(&body).unwrap_or_default();
            let bytes = zstd::bulk::compress(&body, 3).unwrap_or_default();
            let content_type = "application/json".to_owned();
            Packed { status: 503, content_type, plain_bytes: body.len() as u32, bytes }
        }
    }
}

fn busy(why: &str) -> Problem {
    Problem::new("busy", "the order of a remote console", why, "try again a little later").retry()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(fetched: bool) -> Waiting {
        Waiting { answer: watch::channel(None).1, asked: Instant::now(), fetched }
    }

    #[test]
    fn orders_of_a_peer_are_bounded_and_fetched_answers_make_room() {
        let mut calls = HashMap::new();
        let name = |peer: &str, number: usize| (peer.to_owned(), [number as u8; 16]);
        for number in 0..CALLS_PER_PEER_MAX {
            assert!(make_room(&mut calls, "hq"));
            calls.insert(name("hq", number), waiting(number == 3 || number == 5));
        }
        calls.insert(name("other", 0), waiting(true));
        for gone in [3, 5] {
            assert!(make_room(&mut calls, "hq") && !calls.contains_key(&name("hq", gone)));
            calls.insert(name("hq", 100 + gone), waiting(false));
        }
        assert!(!make_room(&mut calls, "hq"), "what is under way stays");
        assert!(make_room(&mut calls, "third") && calls.contains_key(&name("other", 0)));
        for number in 0.. {
            if calls.len() == CALLS_MAX {
                break;
            }
            calls.insert(name(&format!("peer-{number}"), 0), waiting(false));
        }
        assert!(make_room(&mut calls, "new") && !calls.contains_key(&name("other", 0)));
        calls.insert(name("new", 0), waiting(false));
        assert!(!make_room(&mut calls, "newer"));
    }

    #[test]
    fn an_answer_without_room_is_a_problem() {
        let answer = || RemoteAnswer { status: 200, content_type: "a".into(), body: vec![7; 1000] };
        let packed = pack(answer(), 1000);
        assert_eq!((packed.status, packed.plain_bytes), (200, 1000));
        let packed = pack(answer(), 1);
        assert_eq!(packed.status, 503);
        let body = zstd::bulk::decompress(&packed.bytes, packed.plain_bytes as usize).unwrap();
        assert!(String::from_utf8(body).unwrap().contains("\"busy\""));
    }
}
