//! Two and more wires in one process, over loopback, on ports that the system chooses.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vbr_api::{InviteRequest, JoinRequest, Peer};

use super::message::{Batch, BatchHeader, Codec, Durable, Message, Request, Response};
use super::scheduler::Outgoing;
use super::*;
use crate::block::ShortId;
use crate::limits::LINKS_MAX;

const PATIENCE: Duration = Duration::from_secs(20);

struct Site {
    wire: Wire,
    incoming: mpsc::Receiver<Incoming>,
    cancel: CancellationToken,
    tracker: TaskTracker,
    dir: tempfile::TempDir,
    config: WireConfig,
}

fn config(dir: &Path, name: &str, listen: &str) -> WireConfig {
    WireConfig {
        key_file: dir.join("key"),
        peers_file: dir.join("peers.json"),
        domains_file: dir.join("domains.json"),
        site_name: name.to_owned(),
        listen: vec![listen.to_owned()],
        transport: TransportKind::Tcp,
        bbr: true,
        connections: LINKS_MAX,
        rate_bps: None,
        throttle: Vec::new(),
        advertise: Vec::new(),
        dialect: Dialect::default(),
    }
}

impl Site {
    async fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), name, "/ip4/127.0.0.1/tcp/0");
        Self::start(dir, config).await
    }

    async fn start(dir: tempfile::TempDir, config: WireConfig) -> Self {
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let (wire, incoming) = Wire::start(config.clone(), tracker.clone(), cancel.clone()).await.unwrap();
        Self { wire, incoming, cancel, tracker, dir, config }
    }

    /// Stops and starts with the same state, on the same port.
    async fn restart(self) -> Self {
        let mut config = self.config.clone();
        config.listen = self.wire.listeners();
        let dir = self.stop().await;
        Self::start(dir, config).await
    }

    async fn stop(self) -> tempfile::TempDir {
        self.cancel.cancel();
        self.tracker.close();
        timeout(PATIENCE, self.tracker.wait()).await.expect("every task of the wire ends");
        self.dir
    }

    async fn code(&self) -> String {
        self.wire.invite(InviteRequest::default()).await.unwrap().code
    }

    async fn join(&self, code: &str) -> Result<Peer, Problem> {
        self.wire.join(JoinRequest { code: code.to_owned(), name: None }).await
    }

    async fn session(&mut self) -> (PeerRecord, SessionChannel) {
        loop {
            match timeout(PATIENCE, self.incoming.recv()).await.expect("a session comes").unwrap() {
                Incoming::Session { peer, channel } => return (peer, channel),
                Incoming::Request { .. } => {}
            }
        }
    }
}

/// A target and a branch that joined it.
async fn pair() -> (Site, Site) {
    let (target, branch) = (Site::new("dr").await, Site::new("berlin").await);
    let peer = branch.join(&target.code().await).await.unwrap();
    assert!(peer.connected, "{:?}", peer.last_error);
    (target, branch)
}

fn batch(bytes: usize, fill: u8) -> Message {
    let header =
        BatchHeader { entries: Vec::new(), prefix: Vec::new(), codec: Codec::Raw, plain_len: bytes as u32 };
    Message::Batch(Batch { header, payload: Bytes::from(vec![fill; bytes]) })
}

fn small(number: u64) -> Message {
    Message::Durable(Durable { payload_bytes: number, ..Durable::default() })
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sites_pair_and_echo_large_messages() {
    let (mut target, branch) = pair().await;
    let (dr, berlin) = (branch.wire.peer("dr").unwrap(), target.wire.peer("berlin").unwrap());
    assert_eq!(dr.peer_id, target.wire.peer_id());
    assert_eq!(dr.domain_key, berlin.domain_key);
    assert_eq!((dr.grants.len(), berlin.grants), (0, vec!["replicate".to_owned()]));

    let (sender, mut receiver) = branch.wire.open_session(&dr.peer_id).await.unwrap().split();
    let (peer, channel) = target.session().await;
    assert_eq!(peer.name, "berlin");
    let (echo, mut heard) = channel.split();
    target.tracker.spawn(async move {
        while let Ok(message) = heard.recv().await {
            echo.send(message).await.unwrap();
        }
    });
    let sizes = [0usize, 1, 65_536, 1_000_000, 2_000_000];
    for (at, size) in sizes.into_iter().enumerate() {
        sender.send(batch(size, at as u8)).await.unwrap();
    }
    for (at, size) in sizes.into_iter().enumerate() {
        let message = timeout(PATIENCE, receiver.recv()).await.unwrap().unwrap();
        assert!(message == batch(size, at as u8), "message {at}");
    }
    let payload: u64 = sizes.iter().map(|size| *size as u64).sum();
    let counters = sender.counters();
    for (frames, wire) in [
        (counters.sent_frames_bytes(), counters.sent_wire()),
        (counters.received_frames_bytes(), counters.received_wire()),
    ] {
        assert!(frames > payload && frames < payload + payload / 100, "{frames} frame bytes for {payload}");
        assert!(wire > payload && wire < payload + payload / 20, "{wire} wire bytes for {payload}");
    }
    assert_eq!(sender.queued_bytes(), 0);
    let peer = &branch.wire.peers()[0];
    assert!(peer.sent_wire > payload && peer.received_wire > payload && peer.last_seen_at.is_some());
    assert_eq!(peer.transport.as_deref(), Some("tcp"));
    assert!(peer.congestion_control.is_some() && peer.rtt_ms.is_some());

    // The other side may open sessions over the same connection, and sees the end of ours.
    drop((sender, receiver));
    let (back, _) = target.wire.open_session(&berlin.peer_id).await.unwrap().split();
    back.send(small(7)).await.unwrap();
    let mut branch = branch;
    let (_, mut heard) = branch.session().await.1.split();
    assert_eq!(heard.recv().await, Ok(small(7)));
    target.stop().await;
    assert!(matches!(heard.recv().await, Err(WireError::Lost { .. })));
    branch.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_channel_is_closed_after_what_was_sent() {
    let (mut target, branch) = pair().await;
    let (sender, receiver) = branch.wire.open_session(&target.wire.peer_id()).await.unwrap().split();
    sender.send(batch(1_500_000, 1)).await.unwrap();
    sender.send(small(2)).await.unwrap();
    drop((sender, receiver));
    let (answer, mut heard) = target.session().await.1.split();
    assert!(heard.recv().await.unwrap() == batch(1_500_000, 1));
    assert_eq!(heard.recv().await, Ok(small(2)));
    assert_eq!(heard.recv().await, Err(WireError::Closed { why: String::new() }));
    assert!(answer.send(small(3)).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered() {
    let (mut target, branch) = pair().await;
    let id = target.wire.peer_id();
    let tracker = target.tracker.clone();
    tracker.spawn(async move {
        while let Some(incoming) = target.incoming.recv().await {
            let Incoming::Request { request, reply, .. } = incoming else { continue };
            if let Request::Known { ids } = request {
                let _ = reply.send(Response::Known(vec![ids.len() as u8; ids.len() * 16]));
            }
        }
    });
    let mut asking = tokio::task::JoinSet::new();
    for count in 1..=100usize {
        let (wire, id) = (branch.wire.clone(), id.clone());
        asking.spawn(async move {
            let ids = vec![ShortId([1; 16]); count * 100];
            let answer = wire.request(&id, Request::Known { ids }).await.unwrap();
            assert_eq!(answer, Response::Known(vec![(count * 100) as u8; count * 1600]));
        });
    }
    while let Some(done) = asking.join_next().await {
        done.unwrap();
    }
    // Nobody takes this one: its reply is dropped.
    let request = Request::ReplicaState { replica: "web".into() };
    let answer = branch.wire.request(&id, request).await.unwrap();
    assert!(matches!(answer, Response::Problem(problem) if problem.code == "busy" && problem.retry));
    let large = Request::Known { ids: vec![ShortId([1; 16]); 100_000] };
    assert!(matches!(branch.wire.request(&id, large).await, Err(WireError::TooLarge { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codes_are_single_use_and_die_of_wrong_tries() {
    let (target, branch) = (Site::new("dr").await, Site::new("berlin").await);
    assert_eq!(branch.join("hello world").await.unwrap_err().code, "invalid");
    assert_eq!(target.join(&target.code().await).await.unwrap_err().code, "invalid");
    let stranger = Site::new("dr").await;

    let used = stranger.code().await;
    branch.join(&used).await.unwrap();
    let again = branch.join(&used).await.unwrap_err();
    assert_eq!(again.code, "not_allowed", "{again}");
    // Two sites called `dr`: the second gets a name of its own.
    let peer = branch.join(&target.code().await).await.unwrap();
    assert_eq!(peer.name, "dr-2");

    let second = Site::new("berlin").await;
    let good = target.code().await;
    // The code that was made first is still open at the target; end it with the others.
    let letter = if good.ends_with('a') { 'b' } else { 'a' };
    let wrong = format!("{}{letter}", &good[..good.len() - 1]);
    for _ in 0..5 {
        let refused = second.join(&wrong).await.unwrap_err();
        assert_eq!(refused.code, "not_allowed", "{refused}");
    }
    let dead = second.join(&good).await.unwrap_err();
    assert_eq!(dead.code, "not_allowed", "{dead}");
    assert!(second.wire.peers().is_empty());

    // A name that the target knows already is made unique there.
    let peer = second.join(&target.code().await).await.unwrap();
    assert_eq!(peer.name, "dr");
    assert!(target.wire.peer("berlin-2").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codes_expire() {
    let (target, branch) = (Site::new("dr").await, Site::new("berlin").await);
    let request = InviteRequest { valid_ms: Some(300), domain: None };
    let code = target.wire.invite(request).await.unwrap().code;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let late = branch.join(&code).await.unwrap_err();
    assert_eq!(late.code, "not_allowed", "{late}");
    let never = InviteRequest { valid_ms: Some(u64::MAX), domain: None };
    assert_eq!(target.wire.invite(never).await.unwrap_err().code, "invalid");
    drop(target);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_reaches_nothing() {
    let (target, stranger) = (Site::new("dr").await, Site::new("eve").await);
    // The stranger believes to be paired; the target does not know it. An open invitation lets it
    // reach the pairing protocol, and nothing else.
    let _code = target.code().await;
    let dir = stranger.stop().await;
    let config = config(dir.path(), "eve", "/ip4/127.0.0.1/tcp/0");
    let book = peers::PeerBook::open(&config.peers_file, &config.domains_file).unwrap();
    let id = target.wire.peer_id();
    book.adopt(
        id.parse().unwrap(),
        "dr",
        target.wire.listeners(),
        "default",
        crate::block::DomainKey([1; 32]),
    )
    .unwrap();
    let stranger = Site::start(dir, config).await;
    until("a refusal", || stranger.wire.peers()[0].last_error.is_some()).await;
    assert!(!stranger.wire.peers()[0].connected && target.wire.peers().is_empty());
    assert_eq!(
        target.wire.open_session(&stranger.wire.peer_id()).await.err(),
        Some(WireError::NotPaired { peer: stranger.wire.peer_id() })
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoking_cuts_at_once_and_for_good() {
    let (mut target, branch) = pair().await;
    let (sender, mut receiver) = branch.wire.open_session(&target.wire.peer_id()).await.unwrap().split();
    let (_, mut heard) = target.session().await.1.split();
    sender.send(small(1)).await.unwrap();
    assert_eq!(heard.recv().await, Ok(small(1)));

    let peer = target.wire.revoke("berlin").await.unwrap();
    assert!(!peer.connected && peer.grants.is_empty());
    let soon = Duration::from_secs(2);
    assert!(matches!(timeout(soon, heard.recv()).await.unwrap(), Err(WireError::Lost { .. })));
    assert!(matches!(timeout(soon, receiver.recv()).await.unwrap(), Err(WireError::Lost { .. })));
    assert!(target.wire.peer("berlin").is_none());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!branch.wire.peers()[0].connected, "it is refused from then on");
    assert!(branch.wire.peers()[0].last_error.is_some());

    // A new code pairs the same two again, under the same name.
    branch.join(&target.code().await).await.unwrap();
    assert!(target.wire.peer("berlin").is_some());
    target.wire.remove("berlin").await.unwrap();
    assert!(target.wire.peers().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_come_back_after_a_restart() {
    let (target, branch) = pair().await;
    let (_sender, mut receiver) = branch.wire.open_session(&target.wire.peer_id()).await.unwrap().split();
    let mut target = target.restart().await;
    assert!(matches!(timeout(PATIENCE, receiver.recv()).await.unwrap(), Err(WireError::Lost { .. })));
    let (sender, _receiver) = branch.wire.open_session(&target.wire.peer_id()).await.unwrap().split();
    sender.send(small(5)).await.unwrap();
    assert_eq!(target.session().await.1.split().1.recv().await, Ok(small(5)));

    let branch = branch.restart().await;
    let (sender, _receiver) = branch.wire.open_session(&target.wire.peer_id()).await.unwrap().split();
    sender.send(small(6)).await.unwrap();
    assert_eq!(target.session().await.1.split().1.recv().await, Ok(small(6)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_channels_share_a_link_and_a_rate_holds() {
    let (mut target, branch) = pair().await;
    branch.wire.set_rate(Some(80_000_000)).await;
    let mut received = Vec::new();
    for size in [1_000_000, 30_000] {
        let (sender, receiver) = branch.wire.open_session(&target.wire.peer_id()).await.unwrap().split();
        let (_sender, mut heard) = target.session().await.1.split();
        received.push(heard.counters());
        branch.tracker.spawn(async move {
            while sender.send(batch(size, 1)).await.is_ok() {}
            drop(receiver);
        });
        target.tracker.spawn(async move {
            let _sender = _sender;
            while heard.recv().await.is_ok() {}
        });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before: Vec<u64> = received.iter().map(|counters| counters.received_frames_bytes()).collect();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let moved: Vec<u64> = received
        .iter()
        .zip(before)
        .map(|(counters, before)| counters.received_frames_bytes() - before)
        .collect();
    let rate = (moved[0] + moved[1]) * 8 / 3;
    assert!(rate < 100_000_000 && rate > 30_000_000, "{rate} bit/s");
    assert!(moved[0] < 2 * moved[1] && moved[1] < 2 * moved[0], "{moved:?}");
    // Control answers under bulk.
    let (asked, id) = (Instant::now(), target.wire.peer_id());
    let answer = async {
        let Some(Incoming::Request { reply, .. }) = target.incoming.recv().await else { panic!("a request") };
        reply.send(Response::Done).unwrap();
    };
    let (answer, ()) = tokio::join!(branch.wire.request(&id, Request::Known { ids: vec![] }), answer);
    assert_eq!(answer, Ok(Response::Done));
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_ends_the_connection_it_came_on_and_no_other() {
    let (mut target, branch) = pair().await;
    let other = Site::new("hamburg").await;
    other.join(&target.code().await).await.unwrap();
    let id = target.wire.peer_id();
    let (good, _keep) = other.wire.open_session(&id).await.unwrap().split();
    let (answer, mut heard_good) = target.session().await.1.split();
    let (_bad, mut bad_end) = branch.wire.open_session(&id).await.unwrap().split();
    let (_answer, mut heard_bad) = target.session().await.1.split();

    // A frame for a channel that was never opened.
    branch.wire.test_outbox(&id, |outbox| {
        assert!(outbox.push(4_000_000, Outgoing::control(kind_of_batch(), Bytes::from_static(b"garbage"))));
    });
    let end = timeout(PATIENCE, heard_bad.recv()).await.unwrap();
    assert!(matches!(&end, Err(WireError::Lost { why }) if why.contains("protocol")), "{end:?}");
    assert!(timeout(PATIENCE, bad_end.recv()).await.unwrap().is_err());
    good.send(small(9)).await.unwrap();
    assert_eq!(heard_good.recv().await, Ok(small(9)));
    answer.send(small(10)).await.unwrap();
    // And the offender may come back.
    let (sender, _receiver) = branch.wire.open_session(&id).await.unwrap().split();
    sender.send(small(11)).await.unwrap();
    assert_eq!(target.session().await.1.split().1.recv().await, Ok(small(11)));
}

fn kind_of_batch() -> u8 {
    message::kind::BATCH
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_receiver_loses_its_own_channel_only() {
    let (mut target, branch) = pair().await;
    let id = target.wire.peer_id();
    let (greedy, mut greedy_end) = branch.wire.open_session(&id).await.unwrap().split();
    let (_answer, mut slow) = target.session().await.1.split();
    let (good, _keep) = branch.wire.open_session(&id).await.unwrap().split();
    let (_other, mut heard) = target.session().await.1.split();
    let sending = async { while greedy.send(batch(1_000_000, 1)).await.is_ok() {} };
    timeout(PATIENCE, sending).await.expect("the sender is told");
    let told = greedy_end.recv().await;
    assert!(matches!(&told, Err(WireError::Closed { why }) if why.contains("full")), "{told:?}");
    good.send(small(1)).await.unwrap();
    assert_eq!(timeout(PATIENCE, heard.recv()).await.unwrap(), Ok(small(1)));
    let mut held = 0;
    let end = loop {
        match slow.recv().await {
            Ok(_) => held += 1,
            Err(end) => break end,
        }
    };
    assert_eq!((held, end), (8, WireError::Overflow));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_works_by_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(dir.path(), "dr", "/ip4/127.0.0.1/tcp/0");
    settings.transport = TransportKind::Quic;
    let mut target = Site::start(dir, settings).await;
    assert!(target.wire.listeners()[0].contains("quic-v1"));
    let branch = Site::new("berlin").await;
    let peer = branch.join(&target.code().await).await.unwrap();
    assert_eq!(peer.transport.as_deref(), Some("quic"));
    let (sender, _receiver) = branch.wire.open_session(&peer.peer_id).await.unwrap().split();
    sender.send(batch(1_000_000, 3)).await.unwrap();
    assert!(target.session().await.1.split().1.recv().await.unwrap() == batch(1_000_000, 3));
    assert!(sender.counters().sent_wire() > 1_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wildcards_are_expanded_loopback_last() {
    let dir = tempfile::tempdir().unwrap();
    let settings = config(dir.path(), "dr", "/ip4/0.0.0.0/tcp/0");
    let target = Site::start(dir, settings).await;
    let listeners = target.wire.listeners();
    assert!(listeners.iter().all(|address| !address.contains("0.0.0.0")), "{listeners:?}");
    assert!(listeners.last().unwrap().starts_with("/ip4/127.0.0.1/"), "{listeners:?}");
    let branch = Site::new("berlin").await;
    assert!(branch.join(&target.code().await).await.unwrap().connected);
}

/// Forwards one port to another until told to hold everything back without a word.
async fn black_hole(to: std::net::SocketAddr, hold: CancellationToken, tracker: &TaskTracker) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let inner = tracker.clone();
    tracker.spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let hold = hold.clone();
            inner.spawn(async move {
                let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                    () = hold.cancelled() => (),
                }
                tokio::time::sleep(Duration::from_secs(120)).await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes 25 s"]
async fn a_black_hole_is_found_within_thirty_seconds() {
    let (mut target, helper) = (Site::new("dr").await, TaskTracker::new());
    let listener: libp2p::Multiaddr = target.wire.listeners()[0].parse().unwrap();
    let hold = CancellationToken::new();
    let port = black_hole(transport::socket_addr(&listener).unwrap(), hold.clone(), &helper).await;
    let dir = target.stop().await;
    let mut settings = config(dir.path(), "dr", &listener.to_string());
    settings.advertise = vec![format!("/ip4/127.0.0.1/tcp/{port}")];
    target = Site::start(dir, settings).await;
    let branch = Site::new("berlin").await;
    // Only through the hole.
    let mut code = invite::Code::decode(&target.code().await).unwrap();
    code.addresses.truncate(1);
    branch.join(&code.encode().unwrap()).await.unwrap();
    let (sender, mut receiver) = branch.wire.open_session(&target.wire.peer_id()).await.unwrap().split();
    let (_answer, mut heard) = target.session().await.1.split();
    sender.send(small(1)).await.unwrap();
    assert_eq!(heard.recv().await, Ok(small(1)));
    hold.cancel();
    let start = Instant::now();
    let limit = Duration::from_secs(30);
    assert!(timeout(limit, receiver.recv()).await.expect("found").is_err());
    assert!(timeout(limit, heard.recv()).await.expect("found").is_err());
    assert!(start.elapsed() < limit);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn one_session_fills_loopback() {
    const MIB: usize = 512;
    let (mut target, branch) = pair().await;
    let (sender, _receiver) = branch.wire.open_session(&target.wire.peer_id()).await.unwrap().split();
    let (_answer, mut heard) = target.session().await.1.split();
    let start = Instant::now();
    branch.tracker.spawn(async move {
        for _ in 0..MIB {
            sender.send(batch(1 << 20, 1)).await.unwrap();
        }
        // Held until everything is counted.
        tokio::time::sleep(PATIENCE).await;
    });
    for _ in 0..MIB {
        heard.recv().await.unwrap();
    }
    let rate = MIB as f64 / start.elapsed().as_secs_f64();
    let (frames, wire) = (heard.counters().received_frames_bytes(), heard.counters().received_wire());
    println!("{rate:.0} MiB/s, {frames} frame bytes, {wire} wire bytes");
    assert!(rate > 20.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes 15 s"]
async fn of_two_links_one_stays() {
    let (target, branch) = pair().await;
    let (dr, berlin) = (target.wire.peer_id(), branch.wire.peer_id());
    // The target learns where the branch listens, and both start at once.
    let addresses = branch.wire.listeners();
    let (target_config, mut branch_config) = (target.config.clone(), branch.config.clone());
    let mut target_config = WireConfig { listen: target.wire.listeners(), ..target_config };
    target_config.rate_bps = None;
    branch_config.listen = addresses.clone();
    let (target_dir, branch_dir) = (target.stop().await, branch.stop().await);
    let book = peers::PeerBook::open(&target_config.peers_file, &target_config.domains_file).unwrap();
    let key = book.domain_or_new("default").unwrap();
    book.adopt(berlin.parse().unwrap(), "berlin", addresses, "default", key).unwrap();
    assert_eq!(book.by_name("berlin").unwrap().grants, ["replicate"]);
    let (mut target, mut branch) =
        tokio::join!(Site::start(target_dir, target_config), Site::start(branch_dir, branch_config));
    for _ in 0..14 {
        let (sender, _end) = branch.wire.open_session(&dr).await.unwrap().split();
        sender.send(small(1)).await.unwrap();
        assert_eq!(target.session().await.1.split().1.recv().await, Ok(small(1)));
        let (sender, _end) = target.wire.open_session(&berlin).await.unwrap().split();
        sender.send(small(2)).await.unwrap();
        assert_eq!(branch.session().await.1.split().1.recv().await, Ok(small(2)));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!((target.wire.test_links(&berlin), branch.wire.test_links(&dr)), (1, 1));
}

mod bundles;
mod versions;

mod in_memory {
    use std::sync::Arc;

    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::super::Dialect;
    use super::super::accounting::ConnectionCounters;
    use super::super::frame::{FLAG_FIRST, Header};
    use super::super::mux::Mux;
    use super::super::stream::{FrameReader, Hello, hear_hello, say_hello};

    fn feed(bytes: Vec<u8>) -> (String, usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async move {
            let (mut theirs, ours) = tokio::io::duplex(1 << 20);
            let (mut reader, mut writer) = {
                let (reader, writer) = tokio::io::split(ours);
                (FrameReader::new(reader), writer)
            };
            let greet = async {
                let (reader, mut writer) = tokio::io::split(&mut theirs);
                say_hello(
                    &mut FrameReader::new(reader),
                    &mut writer,
                    &Hello::new("them", &Dialect::default()),
                )
                .await
                .unwrap();
            };
            let own = Hello::new("us", &Dialect::default());
            let (_, heard) = tokio::join!(greet, hear_hello(&mut reader, &mut writer, &own));
            assert_eq!(heard.unwrap().site, "them");
            theirs.write_all(&bytes).await.unwrap();
            drop(theirs);
            let mux = Mux::new(Arc::new(ConnectionCounters::new(None)), Arc::default());
            let opened = std::sync::Mutex::new(Vec::new());
            let accept = |channel| {
                opened.lock().unwrap().push(channel);
                Ok(())
            };
            let end = mux.read(reader, Some(&accept)).await;
            let count = opened.lock().unwrap().len();
            (end.to_string(), count)
        })
    }

    fn frame(kind: u8, channel: u32, sequence: u32, body: &[u8]) -> Vec<u8> {
        let length = body.len() as u32;
        let header = Header { kind, flags: FLAG_FIRST, channel, sequence, length, total: length };
        [&header.encode(), body].concat()
    }

    #[test]
    fn violations_end_the_stream() {
        let open = frame(7, 1, 1, &[]);
        assert_eq!(feed(open.clone()).1, 1);
        for (bad, why) in [
            (frame(36, 2, 2, b"x"), "no place"),
            (frame(36, 1, 3, b"x"), "was due"),
            (frame(7, 1, 2, &[]), "no place"),
            (frame(7, 2, 2, b"x"), "no place"),
            (frame(31, 1, 2, &[]), "no place"),
            (frame(1, 0, 2, &[]), "no place"),
            (vec![36; 20], "version"),
        ] {
            let (end, _) = feed([open.clone(), bad].concat());
            assert!(end.contains(why), "{end}, not {why}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn garbage_never_panics(
            frames in prop::collection::vec((0u8..48, 0u8..4, 0u32..4, prop::collection::vec(any::<u8>(), 0..300)), 0..20),
            tail in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut bytes = Vec::new();
            for (at, (kind, flags, channel, body)) in frames.into_iter().enumerate() {
                let length = body.len() as u32;
                let total = if flags & 1 == 1 { length * (1 + u32::from(flags & 2)) } else { 0 };
                let header = Header { kind, flags, channel, sequence: at as u32 + 1, length, total };
                bytes.extend(header.encode());
                bytes.extend(body);
            }
            bytes.extend(tail);
            feed(bytes);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_nothing_is_given_up() {
        let (_theirs, ours) = tokio::io::duplex(1024);
        let (reader, mut writer) = tokio::io::split(ours);
        let own = Hello::new("us", &Dialect::default());
        let end = say_hello(&mut FrameReader::new(reader), &mut writer, &own).await;
        assert!(end.unwrap_err().to_string().contains("hello"));
    }
}
