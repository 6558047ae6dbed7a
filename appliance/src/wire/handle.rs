//! The handle that the rest of vbr holds: starting the wire, pairing, peers, sessions, requests.
//!
//! Owns nothing that changes: it reads the peer book and what the swarm task publishes, and sends
//! the swarm task orders.

use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::swarm::{self, Swarm};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vbr_api::{GrantRequest, Invite, InviteRequest, JoinRequest, Peer};

use super::dialling::preferred;
use super::driver::{Behaviours, Driver, Order, Parts};
use super::gate::Gate;
use super::invite::{Code, Invitations, Secret};
use super::link::Link;
use super::message::{Request, Response};
use super::peers::{PeerBook, PeerRecord};
use super::rotation::RotationFiles;
use super::settings::WireConfig;
use super::start::{listen, load_key, parse};
use super::state::{Links, Shared};
use super::transport::{self, Sockets, resolve};
use super::{Incoming, PAIR_PROTOCOL, SessionChannel, WireError, blocking, pair};
use crate::block::{DomainKey, DomainTag};
use crate::error::Problem;
use crate::limits::{INVITATION_DEFAULT, INVITATION_MAX};
use crate::throttle::Rule;

/// `open_session` and `request` wait this long for a link.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// `join` waits this long for the first link after the pairing.
const JOIN_WAIT: Duration = Duration::from_secs(5);
/// A dial for a pairing is given up after this.
const JOIN_DIAL: Duration = Duration::from_secs(20);
/// Orders that wait for the swarm task.
const ORDERS_MAX: usize = 256;
/// Sessions and requests that wait for the site.
const INCOMING_MAX: usize = 64;

/// See the module. Clones are the same wire.
#[derive(Clone)]
pub struct Wire {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) key: Keypair,
    pub(super) own: PeerId,
    pub(super) site: String,
    pub(super) advertise: Vec<Multiaddr>,
    pub(super) gate: Arc<Gate>,
    pub(super) shared: Arc<Shared>,
    pub(super) links: watch::Receiver<Links>,
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) rotation: RotationFiles,
}

impl Wire {
    /// Loads or makes the identity, reads the peer book, listens, and starts dialling. Ends with `cancel`.
    pub async fn start(
        config: WireConfig,
        tracker: TaskTracker,
        cancel: CancellationToken,
    ) -> Result<(Wire, mpsc::Receiver<Incoming>), WireError> {
        let (key_file, peers, domains) =
            (config.key_file.clone(), config.peers_file.clone(), config.domains_file.clone());
        let (key, book, rotation) = blocking(move || {
            let book = PeerBook::open(&peers, &domains)?;
            let rotation = RotationFiles::open(&key_file, &book)?;
            Ok((load_key(&key_file)?, book, rotation))
        })
        .await?;
        let own = key.public().to_peer_id();
        let advertise = config.advertise.iter().map(|a| parse(a)).collect::<Result<_, _>>()?;
        let gate = Arc::new(Gate {
            book: Arc::new(book),
            invitations: Invitations::default(),
            dialect: config.dialect,
        });
        let sockets = Arc::new(Sockets::new(config.bbr));
        let transport = transport::build(&key, sockets.clone())
            .map_err(|error| Problem::new("internal", "start the wire", error.to_string(), "report this"))?;
        let settings = swarm::Config::with_tokio_executor()
            .with_substream_upgrade_protocol_override(Version::V1Lazy)
            .with_idle_connection_timeout(Duration::from_secs(10))
            .with_max_negotiating_inbound_streams(16);
        let mut swarm = Swarm::new(transport, Behaviours::new(gate.clone()), own, settings);
        let shared = Arc::new(Shared::default());
        let early = listen(&mut swarm, &config, &shared).await?;

        let (orders, orders_in) = mpsc::channel(ORDERS_MAX);
        let (incoming, incoming_out) = mpsc::channel(INCOMING_MAX);
        let (links, links_out) = watch::channel(Links::new());
        let site = config.site_name.clone();
        let driver = Driver::new(Parts {
            swarm,
            gate: gate.clone(),
            sockets,
            shared: shared.clone(),
            links,
            incoming,
            orders: orders.clone(),
            site: site.clone(),
            rate_bps: config.rate_bps,
            throttle: config.throttle,
            connections: config.connections,
            tracker: tracker.clone(),
            cancel,
        });
        tracker.spawn(driver.run(early, orders_in));
        let inner = Inner { key, own, site, advertise, gate, shared, links: links_out, orders, rotation };
        Ok((Wire { inner: Arc::new(inner) }, incoming_out))
    }

    /// This site's identity.
    pub fn peer_id(&self) -> String {
        self.inner.own.to_string()
    }

    /// Where others can dial this site: what is advertised, then the listeners with wildcards
    /// expanded, loopback last.
    pub fn listeners(&self) -> Vec<String> {
        self.addresses().iter().map(Multiaddr::to_string).collect()
    }

    /// Makes a code. The domain's key is durable before the code exists.
    pub async fn invite(&self, request: InviteRequest) -> Result<Invite, Problem> {
        let domain = request.domain.unwrap_or_else(|| "default".to_owned());
        if !vbr_api::name_is_valid(&domain) {
            return Err(Problem::invalid(
                format!("invite into domain {domain}"),
                "the name is not valid",
                "use lower case letters, digits, dots, underscores and dashes",
            ));
        }
        let valid = request.valid_ms.map_or(INVITATION_DEFAULT, Duration::from_millis);
        if valid.is_zero() || valid > INVITATION_MAX {
            return Err(Problem::invalid(
                "invite a peer",
                format!("an invitation lives for more than 0 s and at most {} s", INVITATION_MAX.as_secs()),
                "choose another time with --for",
            ));
        }
        let (gate, name) = (self.inner.gate.clone(), domain.clone());
        blocking(move || gate.book.domain_or_new(&name)).await?;
        let mut secret = [0; 16];
        super::random(&mut secret)?;
        let secret = Secret(secret);
        let code =
            Code { inviter: self.inner.key.public(), addresses: self.addresses(), secret: secret.clone() };
        let code = code.encode().ok_or_else(|| {
            Problem::new(
                "internal",
                "invite a peer",
                "the identity is not an ed25519 key",
                "replace the key file",
            )
        })?;
        let now = Instant::now();
        if !self.inner.gate.invitations.open(secret, domain, now + valid, now) {
            return Err(Problem::conflict(
                "invite a peer",
                "too many invitations are open",
                "wait until some are used or expired",
            ));
        }
        let expires_at = jiff::Timestamp::now()
            .checked_add(jiff::SignedDuration::try_from(valid).unwrap_or_default())
            .unwrap_or(jiff::Timestamp::MAX);
        Ok(Invite { code, expires_at })
    }

    /// Joins the site that made the code. Durable at both sites when it returns.
    pub async fn join(&self, request: JoinRequest) -> Result<Peer, Problem> {
        let what = "join with this code";
        let code = Code::decode(&request.code).map_err(|error| {
            Problem::invalid(
                what,
                error.to_string(),
                "copy the whole code from `vbrctl peer invite`, then try again",
            )
        })?;
        let inviter = code.inviter.to_peer_id();
        if inviter == self.inner.own {
            return Err(Problem::invalid(
                what,
                "it was made at this very site",
                "join with it at the other site",
            ));
        }
        if let Some(name) = &request.name {
            self.check_name(name, &inviter)?;
        }
        let (connection, used) = self.dial_for_join(inviter, code.addresses.clone()).await?;
        let welcome = self.pair_over(connection, inviter, &code.secret).await;
        let welcome = match welcome {
            Ok(welcome) => welcome,
            Err(problem) => {
                self.order(Order::Close { connection }).await;
                return Err(problem);
            }
        };
        let name = request.name.unwrap_or(welcome.site);
        if !vbr_api::name_is_valid(&name) {
            self.order(Order::Close { connection }).await;
            return Err(Problem::invalid(
                what,
                "the other site's name is not valid",
                "give it a name with --name",
            ));
        }
        // The address that worked goes first; the code's others may work from elsewhere.
        let others = code.addresses.iter().filter(|address| **address != used);
        let addresses = std::iter::once(&used).chain(others).map(Multiaddr::to_string).collect();
        let gate = self.inner.gate.clone();
        let adopt = move || gate.book.adopt(inviter, &name, addresses, &welcome.domain, welcome.domain_key);
        let stored = blocking(adopt).await;
        self.order(Order::Close { connection }).await;
        let entry = stored?;
        tracing::info!(peer = %entry.name, peer_id = %inviter, here = %welcome.your_name, "joined");
        self.order(Order::PeersChanged).await;
        let _ = self.link(inviter, JOIN_WAIT).await;
        Ok(self.describe(inviter, &entry))
    }

    /// Ends the pairing: live connections are cut, the peer is refused from now on. Its line stays.
    pub async fn revoke(&self, name: &str) -> Result<Peer, Problem> {
        let (gate, owned) = (self.inner.gate.clone(), name.to_owned());
        let peer = blocking(move || gate.book.revoke(&owned)).await?;
        self.order(Order::Cut { peer }).await;
        let entry = self.inner.gate.book.entry(name);
        entry.map(|(peer, entry)| self.describe(peer, &entry)).ok_or_else(|| no_peer(name))
    }

    /// Sets what a peer may fill here.
    pub async fn grant(&self, name: &str, request: GrantRequest) -> Result<Peer, Problem> {
        let (gate, owned) = (self.inner.gate.clone(), name.to_owned());
        blocking(move || gate.book.grant(&owned, &request)).await?;
        let entry = self.inner.gate.book.entry(name);
        entry.map(|(peer, entry)| self.describe(peer, &entry)).ok_or_else(|| no_peer(name))
    }

    /// Forgets a peer, cutting its connections.
    pub async fn remove(&self, name: &str) -> Result<(), Problem> {
        let (gate, owned) = (self.inner.gate.clone(), name.to_owned());
        let peer = blocking(move || gate.book.remove(&owned)).await?;
        self.order(Order::Cut { peer }).await;
        self.inner.shared.peers().remove(&peer);
        Ok(())
    }

    /// Every peer, revoked ones too, in order of name.
    pub fn peers(&self) -> Vec<Peer> {
        let entries = self.inner.gate.book.entries();
        entries.iter().map(|(peer, entry)| self.describe(*peer, entry)).collect()
    }

    /// A paired peer by its name here.
    pub fn peer(&self, name: &str) -> Option<PeerRecord> {
        self.inner.gate.book.by_name(name)
    }

    /// A paired peer by its identity.
    pub fn peer_by_id(&self, peer_id: &str) -> Option<PeerRecord> {
        self.inner.gate.book.by_id(&peer_id.parse().ok()?)
    }

    /// The key of a dedup domain that this site belongs to.
    pub fn domain_key(&self, tag: DomainTag) -> Option<DomainKey> {
        self.inner.gate.book.domain_key(tag)
    }

    /// Bounds the rate of all connections together, at once; none lifts the bound.
    pub async fn set_rate(&self, rate_bps: Option<u64>) {
        self.order(Order::SetRate(rate_bps)).await;
    }

    /// Other throttling rules; they act when this returns.
    pub async fn set_throttle(&self, rules: Vec<Rule>) {
        let (done, acts) = oneshot::channel();
        self.order(Order::SetRules { rules, done }).await;
        // It fails only while vbrd stops.
        let _ = acts.await;
    }

    /// Opens a session's channel; waits up to 10 s for a link.
    pub async fn open_session(&self, peer_id: &str) -> Result<SessionChannel, WireError> {
        self.link(self.paired(peer_id)?, CONNECT_WAIT).await?.open_session()
    }

    /// Asks a peer; waits up to 10 s for a link and 30 s for the answer.
    pub async fn request(&self, peer_id: &str, request: Request) -> Result<Response, WireError> {
        self.link(self.paired(peer_id)?, CONNECT_WAIT).await?.request(&request).await
    }

    /// Waits up to 10 s for a link, and answers whether both sides have this [`capability`](super::capability).
    pub async fn can(&self, peer_id: &str, capability: u64) -> Result<bool, WireError> {
        Ok(self.link(self.paired(peer_id)?, CONNECT_WAIT).await?.capabilities & capability != 0)
    }

    /// True where a link to this peer is up and both sides have this [`capability`](super::capability).
    pub fn peer_can(&self, peer_id: &str, capability: u64) -> bool {
        let Ok(peer) = self.paired(peer_id) else { return false };
        let links = self.inner.links.borrow();
        let link = links.get(&peer).and_then(|list| preferred(list, &self.inner.own));
        link.is_some_and(|link| link.capabilities & capability != 0)
    }

    fn paired(&self, peer_id: &str) -> Result<PeerId, WireError> {
        let peer = peer_id.parse().ok().filter(|peer| self.inner.gate.book.is_paired(peer));
        peer.ok_or_else(|| WireError::NotPaired { peer: peer_id.to_owned() })
    }

    async fn link(&self, peer: PeerId, wait: Duration) -> Result<Arc<Link>, WireError> {
        let mut links = self.inner.links.clone();
        let own = self.inner.own;
        let find = |links: &Links| links.get(&peer).and_then(|list| preferred(list, &own));
        let up = tokio::time::timeout(wait, links.wait_for(|links| find(links).is_some())).await;
        let found = match up {
            Ok(Ok(links)) => find(&links),
            Ok(Err(_)) => return Err(WireError::Lost { why: "vbrd is stopping".to_owned() }),
            Err(_) => None,
        };
        found.ok_or_else(|| {
            let last = self.inner.shared.peers().get(&peer).and_then(|state| state.last_error.clone());
            WireError::NotConnected { why: last.unwrap_or_else(|| "it has not connected yet".to_owned()) }
        })
    }

    pub(super) async fn order(&self, order: Order) {
        // It fails only while vbrd stops, and then there is nothing left to order.
        let _ = self.inner.orders.send(order).await;
    }

    fn check_name(&self, name: &str, inviter: &PeerId) -> Result<(), Problem> {
        let what = || format!("name the new peer {name}");
        if !vbr_api::name_is_valid(name) {
            let next = "use lower case letters, digits, dots, underscores and dashes";
            return Err(Problem::invalid(what(), "the name is not valid", next));
        }
        match self.inner.gate.book.entry(name) {
            Some((known, _)) if known != *inviter => Err(Problem::conflict(
                what(),
                "another peer has that name",
                "choose another name with --name",
            )),
            _ => Ok(()),
        }
    }

    async fn dial_for_join(
        &self,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
    ) -> Result<(libp2p::swarm::ConnectionId, Multiaddr), Problem> {
        let unreachable = |why: String| {
            let next = "check that the other site's vbrd runs and that its port is reachable from here; a code \
                        carries the addresses it had when it was made";
            Problem::new("not_connected", "reach the site that made the code", why, next).retry()
        };
        let addresses = resolve(addresses).await;
        if addresses.is_empty() {
            return Err(unreachable("the code carries no address that resolves".to_owned()));
        }
        let (reply, answer) = oneshot::channel();
        self.order(Order::Join { peer, addresses, reply }).await;
        match tokio::time::timeout(JOIN_DIAL, answer).await {
            Ok(Ok(Ok(connected))) => Ok(connected),
            Ok(Ok(Err(why))) => Err(unreachable(why)),
            Ok(Err(_)) => Err(unreachable("vbrd is stopping".to_owned())),
            Err(_) => Err(unreachable("no answer in time".to_owned())),
        }
    }

    async fn pair_over(
        &self,
        connection: libp2p::swarm::ConnectionId,
        inviter: PeerId,
        secret: &Secret,
    ) -> Result<pair::Welcome, Problem> {
        let (reply, answer) = oneshot::channel();
        self.order(Order::OpenStream { peer: inviter, connection, protocol: PAIR_PROTOCOL, reply }).await;
        let stream = match answer.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(why)) => return Err(pair::not_waiting(&why)),
            Err(_) => return Err(pair::not_waiting("it closed the connection")),
        };
        pair::ask(stream, &self.inner.site, secret, &self.inner.own, &inviter).await
    }
}

fn no_peer(name: &str) -> Problem {
    Problem::not_found(format!("peer {name}"), "list the peers with `vbrctl peer list`")
}

#[cfg(test)]
impl Wire {
    /// Lets a test send what no honest side would.
    pub(super) fn test_outbox(&self, peer_id: &str, act: impl FnOnce(&super::stream::Outbox)) {
        let links = self.inner.links.borrow();
        let list = links.get(&peer_id.parse().unwrap()).unwrap();
        act(preferred(list, &self.inner.own).unwrap().outbox());
    }

    /// How many links are up.
    pub(super) fn test_links(&self, peer_id: &str) -> usize {
        self.inner.links.borrow().get(&peer_id.parse().unwrap()).map_or(0, Vec::len)
    }
}
