//! Orders for other sites: sent to the peer, their answers fetched. And what each peer lets this site do.
//!
//! An order is sent once. Where its link is lost, its answer is asked for over the next one; where that is gone, too, the
//! operator is told that the order may have been carried out, and only questions are asked again.
//! Owns nothing. Bounds: a link is waited for [`AWAY_MAX`] once an order is sent; answers as in `control`.

use std::time::{Duration, Instant};

use futures::StreamExt;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::control::{Answer, ConsoleOrders, RemoteAnswer, RemoteOrder};
use crate::error::Problem;
use crate::wire::message::{Request, Response};
use crate::wire::site_requests::{Call, ManageOrder, ManagePart, SiteRequest, SiteResponse};
use crate::wire::{Wire, WireError, capability};

/// A site that is away for longer does not answer any more.
const AWAY_MAX: Duration = Duration::from_secs(60);
/// Between two looks for a link.
const PAUSE: Duration = Duration::from_secs(1);
/// Largest answer, as `control` bounds it.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How often peers are asked what they grant.
const GRANTS_EVERY: Duration = Duration::from_secs(15);
/// Peers that are asked at once.
const ASKED_MAX: usize = 32;
/// Each of them answers within this.
const GRANTED_WITHIN: Duration = Duration::from_secs(3);

/// See the module.
pub struct Consoles {
    /// The links.
    pub wire: Wire,
}

impl ConsoleOrders for Consoles {
    fn forward<'a>(&'a self, site: &'a str, order: RemoteOrder) -> Answer<'a, RemoteAnswer> {
        Box::pin(async move {
            let peer = self.wire.peer(site).ok_or_else(|| {
                Problem::not_found(format!("site {site}"), "`vbrctl peer list` shows the peers of this site")
            })?;
            let can = self.wire.can(&peer.peer_id, capability::SITES).await;
            if !can.map_err(|error| unreachable(site, &error))? {
                let next = "update vbr at that site";
                return Err(Problem::new(
                    "not_supported",
                    format!("site {site}"),
                    "its vbr takes no orders of other sites",
                    next,
                ));
            }
            self.carry(site, &peer.peer_id, order).await
        })
    }
}

impl Consoles {
    async fn carry(&self, site: &str, peer_id: &str, order: RemoteOrder) -> Result<RemoteAnswer, Problem> {
        let call = new_call()?;
        let is_question = order.method == "GET";
        let RemoteOrder { method, path, body, user } = order;
        let first = SiteRequest::Manage { call, order: ManageOrder { method, path, body, user } };
        let (mut request, mut packed) = (first.clone(), Vec::new());
        let mut away: Option<Instant> = None;
        loop {
            let is_first = matches!(request, SiteRequest::Manage { .. });
            match self.wire.request(peer_id, Request::Site(request.clone())).await {
                Ok(Response::Site(SiteResponse::Pending)) => {}
                Ok(Response::Site(SiteResponse::Part(part))) => {
                    if let Some(answer) = take(site, part, &mut packed)? {
                        return Ok(answer);
                    }
                }
                Ok(Response::Site(SiteResponse::Unknown)) if is_question && !is_first => {
                    packed.clear();
                    request = first.clone();
                    continue;
                }
                Ok(Response::Site(SiteResponse::Unknown)) => return Err(lost(site)),
                Ok(Response::Problem(problem)) => return Err(problem),
                Ok(_) => return Err(protocol(site, "another answer than the one to the question")),
                Err(error) => {
                    let since = *away.get_or_insert_with(Instant::now);
                    let never_left = is_first && matches!(error, WireError::NotConnected { .. });
                    if never_left || !error.is_passing() || since.elapsed() > AWAY_MAX {
                        return Err(unreachable(site, &error));
                    }
                    tokio::time::sleep(PAUSE).await;
                    request = SiteRequest::ManageResult { call, offset: packed.len() as u32 };
                    continue;
                }
            }
            away = None;
            request = SiteRequest::ManageResult { call, offset: packed.len() as u32 };
        }
    }

    /// An order of this site's own, and its answer.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        site: &str,
        method: &str,
        path: String,
        body: Vec<u8>,
    ) -> Result<T, Problem> {
        let order = RemoteOrder { method: method.into(), path: path.clone(), body, user: None };
        let answer = self.forward(site, order).await?;
        if (200..300).contains(&answer.status) {
            return serde_json::from_slice(&answer.body).map_err(|error| {
                let next = "update vbr at both sites";
                Problem::new(
                    "protocol",
                    format!("site {site}"),
                    format!("its answer to {path}: {error}"),
                    next,
                )
            });
        }
        let refused = serde_json::from_slice::<vbr_api::ErrorResponse>(&answer.body);
        Err(match refused {
            Ok(refused) => {
                let error = refused.error;
                let code = if error.code == "not_allowed" { "not_allowed" } else { "source" };
                Problem::new(code, format!("{} (at {site})", error.what), error.why, error.next_step)
            }
            Err(_) => {
                let why = format!("it answers {} to {path}", answer.status);
                Problem::new("protocol", format!("site {site}"), why, "update vbr at both sites")
            }
        })
    }

    /// Asks every peer that is connected what it grants this site, and remembers it.
    pub async fn ask_grants(&self) {
        let peers: Vec<String> =
            self.wire.peers().into_iter().filter(|peer| peer.connected).map(|peer| peer.peer_id).collect();
        let asked = futures::stream::iter(peers).map(|peer_id| async move {
            if !self.wire.peer_can(&peer_id, capability::SITES) {
                return;
            }
            let asked = self.wire.request(&peer_id, Request::Site(SiteRequest::Granted));
            let answer = tokio::time::timeout(GRANTED_WITHIN, asked).await;
            let Ok(Ok(Response::Site(SiteResponse::Granted(granted)))) = answer else { return };
            let granted: Vec<String> =
                granted.into_iter().take(8).map(|grant| grant.chars().take(32).collect()).collect();
            let wire = self.wire.clone();
            let noted = tokio::task::spawn_blocking(move || wire.note_granted(&peer_id, &granted)).await;
            if let Ok(Err(problem)) = noted {
                tracing::warn!(%problem, "what a peer grants this site could not be written down");
            }
        });
        asked.buffer_unordered(ASKED_MAX).collect::<()>().await;
    }

    /// Does so now and then.
    pub async fn tend_grants(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(GRANTS_EVERY) => {}
                () = stop.cancelled() => return,
            }
            self.ask_grants().await;
        }
    }
}

/// Takes a part; answers the whole once it is complete.
fn take(site: &str, part: ManagePart, packed: &mut Vec<u8>) -> Result<Option<RemoteAnswer>, Problem> {
    let (plain, whole) = (part.plain_bytes as usize, part.packed_bytes as usize);
    let fits = part.offset as usize == packed.len()
        && packed.len() + part.bytes.len() <= whole
        && (!part.bytes.is_empty() || whole == packed.len());
    // What does not shrink may grow a little.
    if !fits || plain > ANSWER_BYTES_MAX || whole > ANSWER_BYTES_MAX + ANSWER_BYTES_MAX / 64 {
        return Err(protocol(site, "a part of an answer that does not fit"));
    }
    packed.extend_from_slice(&part.bytes);
    if packed.len() < whole {
        return Ok(None);
    }
    let body = zstd::bulk::decompress(packed, plain).map_err(|error| protocol(site, &error.to_string()))?;
    Ok(Some(RemoteAnswer { status: part.status, content_type: part.content_type, body }))
}

fn new_call() -> Result<Call, Problem> {
    let mut call = [0; 16];
    getrandom::fill(&mut call)
        .map_err(|error| Problem::new("internal", "name an order", error.to_string(), "report this"))?;
    Ok(call)
}

fn unreachable(site: &str, error: &WireError) -> Problem {
    if matches!(error, WireError::NotPaired { .. }) {
        return error.problem(format!("site {site}"));
    }
    Problem::new(
        "site_unreachable",
        format!("site {site} does not answer"),
        error.to_string(),
        format!("look at the link with `vbrctl peer show {site}`, or run vbrctl at that site"),
    )
    .retry()
}

fn lost(site: &str) -> Problem {
    Problem::new(
        "answer_lost",
        format!("the answer of site {site}"),
        "the link was lost under the order, and the site does not know it any more: it may have been carried out",
        format!("see what was done before you repeat it: vbrctl --site {site} audit log"),
    )
}

fn protocol(site: &str, why: &str) -> Problem {
    let next = "update vbr at both sites to the same version";
    Problem::new("protocol", format!("the answer of site {site}"), why, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(body: &[u8], packed: &[u8], offset: usize, to: usize) -> ManagePart {
        ManagePart {
            status: 200,
            content_type: "a".into(),
            plain_bytes: body.len() as u32,
            packed_bytes: packed.len() as u32,
            offset: offset as u32,
            bytes: packed[offset..to].to_vec(),
        }
    }

    #[test]
    fn answers_come_in_parts_and_misfits_are_refused() {
        let body = b"some words, some words, some other words".repeat(9);
        let packed = zstd::bulk::compress(&body, 3).unwrap();
        let mut got = Vec::new();
        assert!(take("dr", part(&body, &packed, 0, 7), &mut got).unwrap().is_none());
        let answer = take("dr", part(&body, &packed, 7, packed.len()), &mut got).unwrap().unwrap();
        assert_eq!(answer.body, body);

        // A hole, nothing at all, too much, too long, and what does not unpack.
        let refused = |part: ManagePart| take("dr", part, &mut Vec::new()).unwrap_err().code == "protocol";
        assert!(refused(part(&body, &packed, 3, 9)));
        assert!(refused(part(&body, &packed, 0, 0)));
        let good = part(&body, &packed, 0, packed.len());
        assert!(refused(ManagePart { packed_bytes: 2, ..good.clone() }));
        assert!(refused(ManagePart { plain_bytes: u32::MAX, ..good.clone() }));
        assert!(refused(ManagePart { plain_bytes: 5, ..good.clone() }));
        assert!(refused(ManagePart { bytes: vec![1; packed.len()], ..good }));
        let empty = zstd::bulk::compress(b"", 3).unwrap();
        let answer = take("dr", part(b"", &empty, 0, empty.len()), &mut Vec::new()).unwrap().unwrap();
        assert!(answer.body.is_empty());
    }
}
