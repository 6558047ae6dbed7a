//! Stage 4, the wire: the only code that knows libp2p. This page is the protocol's specification.
//!
//! # Goals
//!
//! - Fill a long, lossy link: TCP with kernel BBR (QUIC by configuration), Noise, Yamux. Without BBR
//!   one connection does not: then several, and each session over all of them.
//! - One public port at the target is enough: the branch dials, both sides open streams over the
//!   connection.
//! - Many sessions share a link fairly, and control stays quick under bulk.
//! - A dead link is found within 30 s; whatever ran over it learns why.
//! - Nothing a peer sends makes this side panic, allocate without bound, or hurts another connection.
//! - Account for the bytes that really crossed the link, per session.
//!
//! # Non-goals
//!
//! Resuming and repeating (sessions do that, from a durable cursor), flow control between the ends
//! of a session (credits are session level, see [`message`]), names and addresses of strangers
//! (no discovery), hiding that two sites talk.
//!
//! # Identity and admission
//!
//! A site is its ed25519 key; the handshake (Noise XX, or TLS in QUIC) authenticates the `PeerId`.
//! Paired peers reach the protocols below. While an invitation is open, anybody reaches
//! `/vbr/pair/1` and nothing else. Everybody else is disconnected as soon as the handshake has told
//! who it is. A revoked peer is a stranger, and its live connections are cut at once.
//!
//! # Protocols
//!
//! | id | streams per connection | what for |
//! |---|---|---|
//! | `/vbr/control/1` | one, opened by whoever dialled | Hello, heartbeats, requests |
//! | `/vbr/data/1` | one per side, opened right after the control Hello | sessions that this side opens |
//! | `/vbr/pair/1` | one, opened by the joiner, then the connection is closed | pairing |
//!
//! The id carries the major version. Minor version and capability bits go in the Hello; a capability
//! counts where both sides set it. Records are postcard. Whoever gets a control stream of another major
//! answers with its own HELLO instead of HELLO_ACK and closes: either side can say then why there is no
//! link ([`dialect`](Dialect)).
//!
//! | minor | capability | adds |
//! |---|---|---|
//! | 0 | | |
//! | 1 | bit 0: bundles | BUNDLE_OPEN, BUNDLE_JOIN, PIECE, LINKS_WANTED |
//! | 1 | bit 1: shared filter | the request for the filter of shared chunks; chunks sent ahead of their NEED |
//! | 1 | bit 2: retention | what a job asks to keep by the calendar, behind the record of OPEN; the request of what would retire under it |
//! | 1 | bit 3: sites | the requests of [`site_requests`]: grants, orders of a remote console, a new identity |
//! | 1 | bit 4: seed | the request to make an image or a replica known as the seed of a first run |
//! | 1 | bit 5: VM configuration | the VM's configuration (JSON, at most 1 MiB), behind the calendar in OPEN |
//!
//! # Frames
//!
//! All streams carry frames: a header of 20 bytes, big endian, then the body.
//!
//! ```text
//! 0 type u8 | 1 flags u8 | 2 version u8 = 1 | 3 reserved u8 = 0
//! 4 channel u32 | 8 sequence u32 | 12 length u32 | 16 total u32
//! ```
//!
//! `sequence` counts the frames of one direction of one stream from 0 and wraps. `length` is that of
//! the body, at most 256 KiB. A longer message comes in fragments: FIRST (1) marks the first one,
//! whose `total` is the length of the message (0 in the others); MORE (2) all but the last. Fragments
//! of one channel follow each other; those of different channels interleave. Lengths are checked
//! before memory is taken: 2 MiB for a session message, 1 MiB for a request or response.
//! Any violation ends the connection, and that connection only.
//!
//! | type | name | on | body |
//! |---|---|---|---|
//! | 1, 2 | HELLO, HELLO_ACK | channel 0 of control and data, first | [`stream::Hello`] |
//! | 3, 4 | PING, PONG | control, channel 0 | 8 bytes that come back |
//! | 5, 6 | REQUEST, RESPONSE | control, channel = number (odd: by the dialler) | [`message::Request`], [`message::Response`] |
//! | 7 | CHANNEL_OPEN | data, by the stream's opener; numbers only grow | empty |
//! | 8 | CHANNEL_CLOSE | data, either side | why, for people; empty for a normal end |
//! | 9 | PAIR | pairing, channel 0 | one record each way |
//! | 10 | BUNDLE_OPEN | data, by the stream's opener; as CHANNEL_OPEN | 16 random bytes: the bundle's name |
//! | 11 | BUNDLE_JOIN | data of another connection; as CHANNEL_OPEN | the name |
//! | 12 | PIECE | data, channel of a bundle | one whole frame |
//! | 13 | LINKS_WANTED | control, channel 0 | one byte: how many connections |
//! | 32-42 | session messages (41, 42: PROBE, HELD) | data | [`message::Message`] |
//!
//! HELLO is answered within 10 s, and nothing else is sent on a stream before that. A frame for a
//! channel that is over is ignored; one for a channel that never was is a violation.
//!
//! # Bundles
//!
//! A session over several connections of the same two peers (`bundle`). Its opener begins it on one
//! (BUNDLE_OPEN in the place of CHANNEL_OPEN) and, once anything came back on it, joins it with a
//! channel on each further one. On all of its channels session messages travel in PIECE frames: the
//! frame inside has channel 0, and its `sequence` counts the pieces of one direction of the bundle, from 0,
//! wrapping, over all channels. Any channel takes the next piece (ours are 16 KiB once there are several
//! channels, and a connection takes one when it has no more than a window unsent); the receiver puts them
//! in order (`order`), and fragments of a message follow each other in that order. The end of a direction is a
//! piece, too: CHANNEL_CLOSE inside a PIECE, after which nothing follows. CHANNEL_CLOSE outside of one
//! means that pieces are lost or refused: the bundle is over. So is it with the first of its connections
//! that ends; its other channels are then closed. A join of a bundle that is over is answered by
//! CHANNEL_CLOSE; a name in use, a piece outside a bundle, or a message outside a piece in one, is a
//! violation, as is a number that came before. What waits for an earlier piece counts among the
//! 8 MiB that a channel holds on its way in.
//!
//! A session begins as a bundle where both sides can and the opener's kernel does not use BBR. Whoever
//! dialled opens more connections (`spread`): for itself, or because LINKS_WANTED, which holds for
//! 5 s, asks for it. They are closed when they carried nothing for 60 s.
//!
//! # Liveness
//!
//! A PING every 5 s, every second while sessions run; any frame on any stream of the connection is a sign of life. After 20 s without
//! one the link is closed. The kernel gives up unacknowledged data after 15 s.
//!
//! # Sharing and bounds
//!
//! Each stream's sender is a deficit round robin by bytes over channels ([`scheduler`]), fragments of
//! 64 KiB, a silent channel's first quantum before bulk. A channel holds at most 2.5 MiB on its way
//! out (senders wait) and 8 MiB on its way in (more ends that channel: the reader never waits for a
//! slow session). 128 channels a stream, 64 requests each way, 8 connections a peer, 6 of them to carry
//! sessions.
//!
//! Several connections between two peers also come about by themselves (both dialled, or one is dead
//! without knowing): new sessions take the newest link that the peer with the smaller identity
//! dialled, extra ones last; the others are closed by their dialler once idle.
//!
//! Throttling rules and `wire.rate` bound what goes to the sockets ([`crate::throttle`], `valve`): one bucket a rule,
//! shared by the connections that it bounds. Over QUIC they bound frames, with a guess of what is around them.
//! A job's own rate bounds its session's frames in the scheduler.
//!
//! # Pairing
//!
//! The code ([`invite::Code`]) carries the inviter's key, addresses and a 128-bit secret. The joiner
//! dials exactly that key and sends its site name and a proof: BLAKE3 keyed by the secret over both
//! identities. The inviter uses the invitation up, stores the joiner (grant `replicate`), and only
//! then answers with its site name, the domain and the domain's key. Five wrong proofs end every
//! invitation that was open. Invitations do not survive a restart.
//!
//! # A new identity
//!
//! A site that changes its key pair tells every peer over the authenticated link: the new public key, and both identities
//! signed by both keys ([`site_requests::RotationNotice`]). A peer that answered lets in either identity; once every peer
//! has, the site restarts with the new key (`rotation`). A peer refuses the old identity from the first link under the
//! new one on (`peers::succession`).
//!
//! # Who owns what
//!
//! `driver` owns the swarm and what changes with connections; `link` a connection's streams;
//! `mux` the channels of a stream; `bundle` what several streams carry together; [`peers`] the files.
//! Tasks run in the tracker given to [`Wire::start`] and end with its token.

/// Capability bits of the Hello.
pub mod capability {
    /// A session may run over several links, and either side may ask for more of them.
    pub const BUNDLES: u64 = 1;
    /// Answers [`Request::SharedFilter`](super::message::Request::SharedFilter), and takes chunks that it did not ask for.
    pub const SHARED_FILTER: u64 = 2;
    /// Keeps restore points by days, weeks, months and years, and answers
    /// [`Request::WouldRetireUnder`](super::message::Request::WouldRetireUnder).
    pub const RETENTION: u64 = 4;
    /// Answers [`Request::Site`](super::message::Request::Site).
    pub const SITES: u64 = 8;
    /// Answers [`Request::Seed`](super::message::Request::Seed).
    pub const SEED: u64 = 16;
    /// Keeps the configuration of the VM that a restore point is of.
    pub const VM_CONFIG: u64 = 32;
    /// All of ours.
    pub const ALL: u64 = BUNDLES | SHARED_FILTER | RETENTION | SITES | SEED | VM_CONFIG;
}

pub mod accounting;
mod behaviour;
mod bundle;
pub mod channel;
mod control;
mod dialect;
mod dialling;
mod driver;
mod encoding;
mod extras;
pub mod frame;
mod gate;
mod handle;
mod heartbeat;
pub mod invite;
mod link;
mod links;
pub mod message;
mod mux;
mod order;
mod pair;
pub mod peers;
mod probe;
mod requests;
mod rotation;
pub mod scheduler;
mod settings;
pub mod site_requests;
mod spread;
mod start;
mod state;
pub mod stream;
mod throttling;
mod transport;
mod valve;
mod view;

#[cfg(test)]
mod tests;

use libp2p::StreamProtocol;
use tokio::sync::oneshot;

pub use accounting::ChannelCounters;
pub use channel::{SessionChannel, SessionReceiver, SessionSender};
pub use dialect::Dialect;
pub use handle::Wire;
pub use peers::{MANAGE, PeerRecord, write_private};
pub use rotation::{RotationState, identity_of, is_rotating};
pub use settings::{TransportKind, WireConfig};

use crate::error::Problem;
use message::{Request, Response};

const DATA_PROTOCOL: StreamProtocol = StreamProtocol::new("/vbr/data/1");
const PAIR_PROTOCOL: StreamProtocol = StreamProtocol::new("/vbr/pair/1");

/// What a peer wants of this site.
pub enum Incoming {
    /// It opened a channel.
    Session {
        /// Who.
        peer: PeerRecord,
        /// Its channel; dropping it closes it.
        channel: SessionChannel,
    },
    /// It asks something.
    Request {
        /// Who.
        peer: PeerRecord,
        /// What.
        request: Request,
        /// Where the answer goes; dropping it answers "stopping".
        reply: oneshot::Sender<Response>,
    },
}

/// Bytes both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// From here.
    pub sent: u64,
    /// To here.
    pub received: u64,
}

/// What a session or a request meets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// No link within the time that was waited.
    #[error("no link to the peer: {why}")]
    NotConnected {
        /// Why the last attempt failed.
        why: String,
    },
    /// The link died under the channel or request.
    #[error("the link was lost: {why}")]
    Lost {
        /// What ended it.
        why: String,
    },
    /// The peer closed the channel.
    #[error("the peer closed the session{}{why}", if why.is_empty() { "" } else { ": " })]
    Closed {
        /// Its reason; empty for a normal end.
        why: String,
    },
    /// The peer sent more than its credits allow.
    #[error("the peer sent faster than this session received")]
    Overflow,
    /// A message that does not parse.
    #[error("the peer broke the protocol: {why}")]
    Malformed {
        /// What the parser says.
        why: String,
    },
    /// Our own message is over the cap.
    #[error("a message of {bytes} bytes is larger than a message may be")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Too many at once.
    #[error("{why}")]
    Busy {
        /// Of what.
        why: String,
    },
    /// No answer.
    #[error("the peer did not {what} in time")]
    Timeout {
        /// What was waited for.
        what: &'static str,
    },
    /// Not in the peer book, or revoked.
    #[error("peer {peer} is not paired with this site")]
    NotPaired {
        /// Its identity.
        peer: String,
    },
    /// The wire did not start.
    #[error(transparent)]
    Start(#[from] Problem),
}

impl WireError {
    /// True where the same order may succeed later without a change.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::NotConnected { .. }
                | Self::Lost { .. }
                | Self::Closed { .. }
                | Self::Busy { .. }
                | Self::Timeout { .. }
        )
    }

    /// As the operator sees it.
    pub fn problem(&self, what: impl Into<String>) -> Problem {
        let (code, next) = match self {
            Self::Start(problem) => return problem.clone(),
            Self::NotPaired { .. } => {
                ("not_allowed", "pair the sites with `vbrctl peer invite` and `vbrctl peer join`")
            }
            Self::NotConnected { .. } | Self::Lost { .. } | Self::Timeout { .. } => {
                ("not_connected", "look at `vbrctl peer list`; vbrd goes on dialling by itself")
            }
            Self::Closed { .. } => ("closed", "look at the log of the other site"),
            Self::Busy { .. } => ("busy", "try again when other sessions are over"),
            Self::Overflow | Self::Malformed { .. } | Self::TooLarge { .. } => {
                ("protocol", "update vbr at both sites to the same version")
            }
        };
        let problem = Problem::new(code, what, self.to_string(), next);
        if self.is_passing() { problem.retry() } else { problem }
    }
}

/// Fills a buffer from the kernel's random numbers.
fn random(bytes: &mut [u8]) -> Result<(), Problem> {
    getrandom::fill(bytes).map_err(|error| {
        Problem::new(
            "internal",
            "make a key",
            error.to_string(),
            "check that getrandom works on this machine",
        )
    })
}

/// Runs something that waits for the disk on a blocking thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Problem::new("internal", "run a task of the wire", error.to_string(), "report this with the log"))
    })
}
