//! Sessions over several connections, without libp2p: two sites' streams joined in memory.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::accounting::ConnectionCounters;
use super::super::bundle::Bundles;
use super::super::capability::BUNDLES;
use super::super::channel::Channel;
use super::super::frame::{HEADER_BYTES, kind};
use super::super::mux::Mux;
use super::super::scheduler::Outgoing;
use super::super::stream::{FrameReader, Hello, hear_hello, say_hello};
use super::super::{Dialect, SessionChannel, SessionReceiver, SessionSender, WireError};
use super::{batch, small};

const NAME: [u8; 16] = [7; 16];

/// One side's stream of one connection, running.
struct End {
    mux: Arc<Mux>,
    counters: Arc<ConnectionCounters>,
    tasks: JoinSet<()>,
}

impl End {
    /// As if the connection died.
    fn cut(&mut self) {
        self.tasks.abort_all();
        self.mux.kill(&WireError::Lost { why: "cut".into() });
    }
}

async fn run(io: DuplexStream, bundles: Arc<Bundles>, sessions: Option<mpsc::Sender<SessionChannel>>) -> End {
    let (reader, mut writer) = tokio::io::split(io);
    let mut reader = FrameReader::new(reader);
    let own = Hello::new("here", &Dialect::default());
    match &sessions {
        None => say_hello(&mut reader, &mut writer, &own).await.unwrap(),
        Some(_) => hear_hello(&mut reader, &mut writer, &own).await.unwrap(),
    };
    let counters = Arc::new(ConnectionCounters::new(None));
    let mux = Mux::new(counters.clone(), bundles);
    let mut tasks = JoinSet::new();
    let (reading, writing, figures) = (mux.clone(), mux.clone(), counters.clone());
    tasks.spawn(async move {
        let accept = sessions.map(|sessions| {
            move |channel| sessions.try_send(channel).map_err(|error| ("busy".to_owned(), error.into_inner()))
        });
        let accept = accept.as_ref().map(|accept| accept as &super::super::mux::Accept<'_>);
        let ended = reading.read(reader, accept).await;
        reading.kill(&WireError::Lost { why: ended.to_string() });
    });
    tasks.spawn(async move {
        let _ = writing.outbox().run(writer, &figures).await;
    });
    End { mux, counters, tasks }
}

/// Several connections between two sites; the first side opens sessions.
struct Lines {
    near: Vec<End>,
    far: Vec<End>,
    bundles: Arc<Bundles>,
    arrived: mpsc::Receiver<SessionChannel>,
}

impl Lines {
    async fn new(count: usize) -> Self {
        let (bundles, theirs) = (Arc::new(Bundles::default()), Arc::new(Bundles::default()));
        let (sessions, arrived) = mpsc::channel(8);
        let (mut near, mut far) = (Vec::new(), Vec::new());
        for _ in 0..count {
            // Small, so that one connection alone cannot take everything.
            let (ours, other) = tokio::io::duplex(48 * 1024);
            let (one, two) = tokio::join!(
                run(ours, bundles.clone(), None),
                run(other, theirs.clone(), Some(sessions.clone()))
            );
            near.push(one);
            far.push(two);
        }
        Self { near, far, bundles, arrived }
    }

    /// A bundle over all connections, and its far end.
    async fn session(&mut self) -> ((SessionSender, SessionReceiver), (SessionSender, SessionReceiver)) {
        let (sender, mut receiver) = self.near[0].mux.open_bundle(NAME).unwrap().split();
        sender.send(small(1)).await.unwrap();
        let (answer, mut heard) = self.arrived.recv().await.unwrap().split();
        assert!(self.bundles.growing().is_empty(), "not before the other side has answered");
        assert_eq!(heard.recv().await, Ok(small(1)));
        answer.send(small(2)).await.unwrap();
        assert_eq!(receiver.recv().await, Ok(small(2)));
        let growing: Vec<Arc<Channel>> = self.bundles.growing();
        assert_eq!(growing.len(), 1);
        for end in &self.near[1..] {
            end.mux.join(&growing[0]).unwrap();
        }
        ((sender, receiver), (answer, heard))
    }

    async fn settle(&self) {
        for _ in 0..200 {
            if self.near.iter().chain(&self.far).all(|end| end.mux.channels() == 0) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("channels are left");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_uses_all_its_connections_and_stays_in_order() {
    let mut lines = Lines::new(4).await;
    let ((sender, mut receiver), (answer, mut heard)) = lines.session().await;
    let sizes: Vec<usize> = (0..60).map(|at| (at * 37_003) % 1_500_000).collect();
    let expected = sizes.clone();
    let mut far = JoinSet::new();
    far.spawn(async move {
        for (at, size) in expected.into_iter().enumerate() {
            assert!(heard.recv().await.unwrap() == batch(size, at as u8), "message {at}");
            answer.send(small(at as u64)).await.unwrap();
        }
        // What was sent before the end arrives before it, whatever way each takes.
        assert_eq!(heard.recv().await, Err(WireError::Closed { why: String::new() }));
        assert!(answer.send(small(0)).await.is_err());
    });
    // As a session's credit does: three messages on their way.
    for at in 0..sizes.len() + 3 {
        if let Some(size) = sizes.get(at) {
            sender.send(batch(*size, at as u8)).await.unwrap();
        }
        if let Some(at) = at.checked_sub(3) {
            assert_eq!(receiver.recv().await, Ok(small(at as u64)));
        }
    }
    let all: u64 = lines.near.iter().map(|end| end.counters.wire().sent).sum();
    for end in &lines.near {
        let sent = end.counters.wire().sent;
        assert!(sent * 12 > all, "a connection carried {sent} of {all}");
    }
    let payload: usize = sizes.iter().sum();
    let frames = sender.counters().sent_frames_bytes();
    assert!(frames > payload as u64 && frames < (payload + payload / 200) as u64, "{frames} of {payload}");
    drop((sender, receiver));
    far.join_next().await.unwrap().unwrap();
    lines.settle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_the_first_of_its_connections_and_others_live_on() {
    for cut in 0..3 {
        let mut lines = Lines::new(3).await;
        let ((sender, mut receiver), (answer, mut heard)) = lines.session().await;
        let other = (cut + 1) % 3;
        let (plain, _end) = lines.near[other].mux.open().unwrap().split();
        let (_answer, mut plainly) = lines.arrived.recv().await.unwrap().split();
        let mut sending = JoinSet::new();
        sending.spawn(async move {
            while sender.send(batch(300_000, 1)).await.is_ok() {}
            sender
        });
        assert!(heard.recv().await.is_ok());
        // One side notices; the other is told over the connections that are left.
        lines.near[cut].cut();
        let sender = sending.join_next().await.unwrap().unwrap();
        let lost = receiver.recv().await.unwrap_err();
        assert!(lost.is_passing(), "{lost:?}");
        let told = loop {
            if let Err(end) = heard.recv().await {
                break end;
            }
        };
        assert!(told.is_passing(), "{told:?}");
        plain.send(small(9)).await.unwrap();
        assert_eq!(plainly.recv().await, Ok(small(9)));
        drop((sender, receiver, answer, heard, plain, plainly, _end, _answer));
        lines.far[cut].cut();
        lines.settle().await;
        assert!(lines.bundles.growing().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_what_is_over_ends_nothing_else() {
    let mut lines = Lines::new(2).await;
    let ((sender, receiver), (answer, heard)) = lines.session().await;
    // A join that crosses the end of the session at the other side.
    let third = Lines::new(1).await;
    let stranger = lines.bundles.growing()[0].clone();
    third.near[0].mux.join(&stranger).unwrap();
    let mut receiver = receiver;
    let end = receiver.recv().await.unwrap_err();
    assert!(matches!(&end, WireError::Closed { why } if why.contains("over")), "{end:?}");
    drop((sender, receiver, answer, heard, stranger));
    lines.settle().await;
    let (sender, _receiver) = lines.near[1].mux.open().unwrap().split();
    sender.send(small(3)).await.unwrap();
    assert_eq!(lines.arrived.recv().await.unwrap().split().1.recv().await, Ok(small(3)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_takes_nothing_ends_its_bundle_only() {
    let mut lines = Lines::new(3).await;
    let ((sender, mut receiver), (_answer, mut heard)) = lines.session().await;
    while sender.send(batch(1_000_000, 1)).await.is_ok() {}
    let told = receiver.recv().await.unwrap_err();
    assert!(matches!(&told, WireError::Closed { why } if why.contains("full")), "{told:?}");
    let mut held = 0;
    while heard.recv().await.is_ok() {
        held += 1;
    }
    // As many as fit; fewer where the pieces of one line are late and those behind them fill the queue.
    assert!((1..=8).contains(&held), "{held}");
    assert_eq!(heard.recv().await, Err(WireError::Overflow));
    let (plain, _end) = lines.near[2].mux.open().unwrap().split();
    plain.send(small(4)).await.unwrap();
    assert_eq!(lines.arrived.recv().await.unwrap().split().1.recv().await, Ok(small(4)));
}

#[tokio::test]
async fn what_has_no_place_in_a_bundle_ends_the_connection() {
    let open = |name: &[u8]| Outgoing::control(kind::BUNDLE_OPEN, Bytes::copy_from_slice(name));
    let piece = Outgoing::control(kind::PIECE, Bytes::from_static(&[0; HEADER_BYTES]));
    let bare = Outgoing::control(36, Bytes::from_static(b"x"));
    let plain = Outgoing::control(kind::CHANNEL_OPEN, Bytes::new());
    let late = Outgoing::control(kind::PIECE, Bytes::from_static(&[0; HEADER_BYTES]));
    let cases: [(&str, Vec<(u32, Outgoing)>); 5] = [
        ("no place", vec![(1, open(b"short"))]),
        ("no place", vec![(1, open(&NAME)), (2, open(&NAME))]),
        ("version", vec![(1, open(&NAME)), (1, piece)]),
        ("no place", vec![(1, open(&NAME)), (1, bare)]),
        ("no place", vec![(1, plain), (1, late)]),
    ];
    for (why, frames) in cases {
        let mut lines = Lines::new(1).await;
        for (channel, frame) in frames {
            lines.near[0].mux.outbox().push(channel, frame);
        }
        let mut keep = Vec::new();
        while let Ok(Some(channel)) =
            tokio::time::timeout(std::time::Duration::from_millis(100), lines.arrived.recv()).await
        {
            keep.push(channel);
        }
        let dead = lines.far[0].mux.open().err().map(|error| error.to_string()).unwrap_or_default();
        assert!(dead.contains(why), "{dead}, not {why}");
    }
}

/// The bytes of version 1. They never change; a change is a new version.
#[tokio::test]
async fn golden_open_and_join() {
    let bundles = Arc::new(Bundles::default());
    let mux = || Mux::new(Arc::new(ConnectionCounters::new(None)), bundles.clone());
    let (first, second) = (mux(), mux());
    let session = first.open_bundle(NAME).unwrap();
    second.join(&bundles.growing_for_test()).unwrap();
    for (mux, golden) in [
        (first, "0a010100000000010000000100000010000000100707070707070707"),
        (second, "0b010100000000010000000100000010000000100707070707070707"),
    ] {
        let (mut near, far) = tokio::io::duplex(1024);
        let mut bytes = vec![0; golden.len() / 2];
        let counters = ConnectionCounters::new(None);
        tokio::select! {
            _ = mux.outbox().run(far, &counters) => panic!("it ended"),
            read = near.read_exact(&mut bytes) => { read.unwrap(); }
        }
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes), golden);
    }
    drop(session);
}

#[test]
fn an_older_peer_is_never_sent_a_bundle() {
    let (new, mut old) = (Hello::new("here", &Dialect::default()), Hello::new("there", &Dialect::default()));
    assert!(new.shared(&old) & BUNDLES != 0);
    // What version 0.1 says.
    old.capabilities = 0;
    assert!(new.shared(&old) & BUNDLES == 0 && old.shared(&new) & BUNDLES == 0);
}
