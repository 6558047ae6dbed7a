//! The allow-list: who may connect, and how far in.
//!
//! Paired peers reach control and data. While an invitation is open, anybody reaches the pairing
//! protocol and nothing else. Everybody else is disconnected before a protocol is negotiated.
//! Owns nothing: it looks into the peer book and the open invitations.

use std::sync::Arc;
use std::time::Instant;

use libp2p::PeerId;

use super::dialect::Dialect;
use super::invite::Invitations;
use super::peers::PeerBook;

/// How far in a connection may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Control and data.
    Paired,
    /// Pairing only.
    Stranger,
}

/// See the module.
pub struct Gate {
    /// Who is paired.
    pub book: Arc<PeerBook>,
    /// Which invitations are open.
    pub invitations: Invitations,
    /// What this site speaks.
    pub dialect: Dialect,
}

impl Gate {
    /// Decides about a connection; none refuses it. We dial strangers only to join them.
    pub fn admit(&self, peer: &PeerId, inbound: bool) -> Option<Admission> {
        if self.book.is_paired(peer) {
            Some(Admission::Paired)
        } else if !inbound || self.is_inviting() {
            Some(Admission::Stranger)
        } else {
            None
        }
    }

    /// True while the pairing protocol is offered.
    pub fn is_inviting(&self) -> bool {
        self.invitations.is_open(Instant::now())
    }
}
