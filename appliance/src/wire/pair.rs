//! `/vbr/pair/1`: the joiner proves that it was given the code, the inviter answers with its name
//! and the domain's key, and both store each other.
//!
//! The handshake has authenticated both identities before a byte is said here; the joiner dialled
//! the identity that the code names. The secret itself never crosses the link.
//! Bounds: one frame each way, 15 s.

use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::swarm::Stream;
use serde::{Deserialize, Serialize};
use tokio_util::compat::FuturesAsyncReadCompatExt;

use super::frame::kind;
use super::gate::Gate;
use super::invite::Secret;
use super::message::{pack, unpack};
use super::stream::{FrameReader, StreamError, write_one};
use crate::block::DomainKey;
use crate::error::Problem;

/// A pairing is over within this.
pub const PAIR_TIMEOUT: Duration = Duration::from_secs(15);
const PAIR_BYTES_MAX: usize = 4096;

/// What the joiner says.
#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    site: String,
    proof: [u8; 32],
}

/// What the inviter answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Welcome(Welcome),
    Refused(Problem),
}

/// What the joiner learns.
#[derive(Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The inviter's site name.
    pub site: String,
    /// The joiner's name at the inviter.
    pub your_name: String,
    /// The dedup domain's name at the inviter.
    pub domain: String,
    /// And its key.
    pub domain_key: DomainKey,
}

/// The joiner's side.
pub async fn ask(
    stream: Stream,
    site: &str,
    secret: &Secret,
    own: &PeerId,
    inviter: &PeerId,
) -> Result<Welcome, Problem> {
    let (reader, mut writer) = tokio::io::split(stream.compat());
    let mut reader = FrameReader::new(reader);
    let talk = async {
        let ask = Ask { site: site.to_owned(), proof: secret.proof(own, inviter) };
        write_one(&mut writer, 0, kind::PAIR, &pack(&ask)).await?;
        let body = reader.expect(kind::PAIR, PAIR_BYTES_MAX).await?;
        Ok::<_, StreamError>(unpack::<Answer>(kind::PAIR, &body)?)
    };
    match tokio::time::timeout(PAIR_TIMEOUT, talk).await {
        Ok(Ok(Answer::Welcome(welcome))) => Ok(welcome),
        Ok(Ok(Answer::Refused(problem))) => Err(problem),
        Ok(Err(error)) => Err(not_waiting(&error.to_string())),
        Err(_) => Err(not_waiting("the other site did not answer in time")),
    }
}

/// The other side does not pair now: the code is used, expired or was tried too often.
pub fn not_waiting(why: &str) -> Problem {
    Problem::not_allowed(
        "join with this code",
        format!("the other site does not take it: it may be used up or expired ({why})"),
        "get a new code with `vbrctl peer invite` at the other site",
    )
}

/// The inviter's side. Answers true where a new peer is stored.
pub async fn serve(stream: Stream, joiner: PeerId, own: PeerId, site: String, gate: Arc<Gate>) -> bool {
    let (reader, mut writer) = tokio::io::split(stream.compat());
    let mut reader = FrameReader::new(reader);
    let talk = async {
        let body = reader.expect(kind::PAIR, PAIR_BYTES_MAX).await?;
        let ask = unpack::<Ask>(kind::PAIR, &body)?;
        let answer = match redeem(ask, joiner, own, site, gate).await {
            Ok(welcome) => Answer::Welcome(welcome),
            Err(problem) => Answer::Refused(problem),
        };
        let paired = matches!(answer, Answer::Welcome(_));
        if let Err(error) = write_one(&mut writer, 0, kind::PAIR, &pack(&answer)).await {
            tracing::warn!(peer = %joiner, %error, "the answer to a pairing was lost; the joiner needs a new code");
        }
        // The joiner hangs up once it has stored us; closing first could cut the answer short.
        if paired {
            let _ = reader.read().await;
        }
        Ok::<_, StreamError>(paired)
    };
    match tokio::time::timeout(PAIR_TIMEOUT, talk).await {
        Ok(Ok(paired)) => paired,
        Ok(Err(error)) => {
            tracing::debug!(peer = %joiner, %error, "a pairing was broken off");
            false
        }
        // Also where the answer went out and the joiner lingered: what is stored is stored.
        Err(_) => true,
    }
}

async fn redeem(
    ask: Ask,
    joiner: PeerId,
    own: PeerId,
    site: String,
    gate: Arc<Gate>,
) -> Result<Welcome, Problem> {
    if !vbr_api::name_is_valid(&ask.site) {
        return Err(Problem::invalid(
            "join with this code",
            "the joining site's name is not valid",
            "give the site a name of lower case letters, digits, dots and dashes",
        ));
    }
    let Some(domain) = gate.invitations.redeem(&ask.proof, &joiner, &own, Instant::now()) else {
        tracing::warn!(peer = %joiner, site = %ask.site, "a pairing was tried with a wrong code");
        return Err(Problem::not_allowed(
            "join with this code",
            "the code is wrong, used up or expired",
            "copy the code again, or get a new one with `vbrctl peer invite` at the other site",
        ));
    };
    let store = move || {
        let domain_key = gate.book.domain_or_new(&domain)?;
        let entry = gate.book.admit(joiner, &ask.site, &domain)?;
        tracing::info!(peer = %entry.name, peer_id = %joiner, %domain, "paired");
        Ok(Welcome { site, your_name: entry.name, domain, domain_key })
    };
    super::blocking(store).await
}
