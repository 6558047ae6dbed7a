//! A first run that starts from what lies at the target: the source asks until the target knows it, then the
//! session is like any other, and finds that most of what it offers is held.
//!
//! Owns nothing: at the target the warmings do (`warm`). A seed is a hint; what comes of it is verified as always. What a
//! source may name is its own replica, or an image beneath a directory that the target allows; the target
//! tells it nothing of anything else. Bounds: [`ASKED_MAX`] warmings of one peer that are not over.

use std::time::Duration;

use vbr_api::{DiskFormat, SessionState, WarmState, name_is_valid};

use super::driver::Driver;
use super::replicate::AttemptError;
use super::target::TargetService;
use super::warm::Subject;
use crate::error::Problem;
use crate::wire::message::{Request, Response, SeedFrom, SeedState};
use crate::wire::{PeerRecord, capability};

/// Warmings that one peer may have under way.
const ASKED_MAX: usize = 4;
/// Between two questions.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Reads `REPLICA` or `PATH[,format=raw|qcow2]`; a comma in the path is written twice.
pub fn parse_seed(text: &str, what: &str) -> Result<SeedFrom, Problem> {
    if name_is_valid(text) {
        return Ok(SeedFrom::Replica { name: text.to_string() });
    }
    let wrong = |why: &str| {
        let next = "name a replica of this site at the target, or an image there: /PATH[,format=raw|qcow2]";
        Problem::invalid(what, format!("the seed {text:?} {why}"), next)
    };
    let mark = "\u{0}";
    let escaped = text.replace(",,", mark);
    let (path, format) = match escaped.split_once(',') {
        None => (escaped.as_str(), DiskFormat::Raw),
        Some((path, "format=raw")) => (path, DiskFormat::Raw),
        Some((path, "format=qcow2")) => (path, DiskFormat::Qcow2),
        Some(_) => return Err(wrong("has an unknown option; there is format=raw and format=qcow2")),
    };
    let plain = text.len() <= 4096 && !text.contains('\0') && !path.split('/').any(|part| part == "..");
    if !path.starts_with('/') || !plain {
        return Err(wrong("is neither the name of a replica nor an absolute path without `..`"));
    }
    Ok(SeedFrom::Image { path: path.replace(mark, ","), format })
}

impl TargetService {
    /// Makes a seed known to the domain of the peer that asks, or says how far that is.
    pub(super) fn seed(&self, peer: &PeerRecord, from: SeedFrom) -> Result<SeedState, Problem> {
        if !peer.grants.iter().any(|grant| grant == "replicate") {
            return Err(Problem::not_allowed(
                "the seed was not read",
                "this site did not grant you to replicate into it",
                "pair the sites with an invitation of the target",
            ));
        }
        let (subject, key) = (self.seed_of(peer, from)?, peer.domain_key.clone());
        let ready = SeedState { ready: true, read_bytes: 0, total_bytes: 0 };
        if let Some(end) = self.warmings.told(&subject, &key) {
            match end.error {
                Some(error) => {
                    return Err(Problem::new(&error.code, error.what, error.why, error.next_step));
                }
                None if end.state == WarmState::Cancelled => {
                    let why = "reading it was cancelled at the target";
                    let next = "run the job again, or without a seed: vbrctl job edit NAME --seed none";
                    return Err(Problem::conflict(format!("the seed {}", end.subject), why, next));
                }
                // Even where it has changed since: it is a hint.
                None => return Ok(ready),
            }
        }
        if self.warmings.is_warm(&subject, key.tag()) {
            return Ok(ready);
        }
        let mine = |view: &vbr_api::Warming| {
            view.asked_by.as_ref() == Some(&peer.name)
                && !view.state.is_over()
                && view.subject != subject.title()
        };
        if self.warmings.list().iter().filter(|view| mine(view)).count() >= ASKED_MAX {
            let why = format!("{ASKED_MAX} seeds are being read for this site");
            return Err(Problem::new("busy", "the seed was not read", why, "it goes on by itself").retry());
        }
        let view = self.warmings.order(subject, key, Some(&peer.name))?;
        Ok(SeedState { ready: false, read_bytes: view.read_bytes, total_bytes: view.total_bytes })
    }

    fn seed_of(&self, peer: &PeerRecord, from: SeedFrom) -> Result<Subject, Problem> {
        let name = match from {
            SeedFrom::Image { path, format } => {
                return Ok(Subject::Image(self.warmings.seeds().image_for_peer(&path, format)?));
            }
            SeedFrom::Replica { name } => name,
        };
        let missing = |why: &str| {
            let next = "vbrctl replica list at the target shows what is there; only replicas of this site can be named";
            Problem::new("not_found", format!("the seed {name}"), why, next)
        };
        if !name_is_valid(&name) {
            return Err(super::receive::protocol("the seed's name is not valid"));
        }
        let replica = self.datastores.for_peer(&peer.peer_id, &name);
        let replica = replica.ok_or_else(|| missing("this site has no such replica at the target"))?;
        if replica.domain_tag() != peer.domain_key.tag() {
            return Err(Problem::conflict(
                format!("the seed {name}"),
                "it was made in another dedup domain",
                "name another seed, or none",
            ));
        }
        let point = replica.latest().ok_or_else(|| missing("it has no good restore point"))?;
        Ok(Subject::Point(replica, point))
    }
}

impl Driver {
    /// Before a first run: waits until the target knows the job's seed.
    pub(super) async fn seeded(&self, peer: &PeerRecord) -> Result<(), AttemptError> {
        let Some(seed) = &self.spec.seed else { return Ok(()) };
        let from = parse_seed(seed, &format!("job {}", self.spec.name))?;
        if !self.parts.wire.peer_can(&peer.peer_id, capability::SEED) {
            return Err(AttemptError::Problem(Problem::new(
                "not_supported",
                format!("the seed {seed}"),
                format!("the vbrd of {} does not know seeds yet", peer.name),
                format!("upgrade it, or run without: vbrctl job edit {} --seed none", self.spec.name),
            )));
        }
        self.handle.update(|session| {
            session.state = SessionState::Running;
            session.mode = "seeding".to_string();
            session.error = None;
        });
        let mut told = false;
        loop {
            let asked = self.parts.wire.request(&peer.peer_id, Request::Seed { from: from.clone() }).await?;
            match asked {
                Response::Seed(state) if state.ready => return Ok(()),
                Response::Seed(state) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::info!(seed, total = state.total_bytes, "the target reads the seed");
                    }
                }
                Response::Problem(problem) => return Err(problem.into()),
                _ => {
                    let why = "the target gave an answer that does not fit the question";
                    return Err(AttemptError::Lost(why.into()));
                }
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_as_they_are_written() {
        let image = |path: &str, format| Ok(SeedFrom::Image { path: path.into(), format });
        let parse = |text| parse_seed(text, "job web");
        assert_eq!(parse("web-1"), Ok(SeedFrom::Replica { name: "web-1".into() }));
        assert_eq!(parse("/a/b.img"), image("/a/b.img", DiskFormat::Raw));
        assert_eq!(parse("/a,,b,format=qcow2"), image("/a,b", DiskFormat::Qcow2));
        for bad in ["", "Web", "a/b", "/a/../b", "/a,size=3", "/a,", "/a,format=raw,format=raw", "/a\0"] {
            assert_eq!(parse(bad).map_err(|problem| problem.code), Err("invalid".into()), "{bad:?}");
        }
    }
}
