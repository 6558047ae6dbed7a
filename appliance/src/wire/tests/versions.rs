//! Sites of different versions: an older minor works with what it has, another major is refused and both sides say why.

use vbr_api::Peer;

use super::super::{Dialect, capability};
use super::{Site, pair, small, until};

impl Site {
    /// Stops and starts speaking another dialect, on the same port.
    async fn restart_as(mut self, dialect: &str) -> Self {
        self.config.dialect = Dialect::parse(dialect).unwrap();
        self.restart().await
    }

    fn peer(&self, name: &str) -> Peer {
        self.wire.peers().into_iter().find(|peer| peer.name == name).unwrap()
    }

    fn last_error(&self, name: &str) -> String {
        self.peer(name).last_error.unwrap_or_default()
    }
}

/// What each release of the protocol could do: its capabilities grew from the lowest bit on.
fn former() -> impl Iterator<Item = u64> {
    (0..=capability::ALL.count_ones()).map(|bits| (1 << bits) - 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_former_minor_talks_to_todays() {
    assert_eq!(
        former().last(),
        Some(capability::ALL),
        "capabilities are numbered from bit 0 on without gaps"
    );
    for older_is_source in [true, false] {
        let (mut target, mut branch) = pair().await;
        for capabilities in former() {
            let older = format!("1:{capabilities}");
            match older_is_source {
                true => branch = branch.restart_as(&older).await,
                false => target = target.restart_as(&older).await,
            }
            let (dr, berlin) = (target.wire.peer_id(), branch.wire.peer_id());
            let (sender, mut heard) = branch.wire.open_session(&dr).await.unwrap().split();
            sender.send(small(capabilities)).await.unwrap();
            let (echo, mut received) = target.session().await.1.split();
            assert_eq!(received.recv().await, Ok(small(capabilities)));
            echo.send(small(7)).await.unwrap();
            assert_eq!(heard.recv().await, Ok(small(7)));
            for bit in (0..64).map(|bit| 1 << bit) {
                let both = capabilities & bit != 0;
                assert_eq!(branch.wire.peer_can(&dr, bit), both, "{capabilities} {bit}");
                assert_eq!(target.wire.peer_can(&berlin, bit), both, "{capabilities} {bit}");
            }
            let software = branch.peer("dr").software;
            assert_eq!(software.as_deref(), Some(env!("CARGO_PKG_VERSION")));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_major_is_refused_and_both_sides_say_why() {
    let (mut target, mut branch) = pair().await;
    let next = "install the same release of vbr at both sites";
    // The branch dials. Once it is the newer one, once the target is.
    for (branch_speaks, target_speaks) in [("2", "1"), ("1", "2")] {
        target = target.restart_as(target_speaks).await;
        branch = branch.restart_as(branch_speaks).await;
        let dialler = format!("does not speak version {branch_speaks} of the protocol");
        let listener =
            format!("speaks version {branch_speaks} of the protocol, this vbr version {target_speaks}");
        until("the dialler says why", || {
            let why = branch.last_error("dr");
            why.contains(&dialler) && why.contains("(vbr ") && why.ends_with(next)
        })
        .await;
        until("the listener says why", || {
            let why = target.last_error("berlin");
            why.contains(&listener) && why.ends_with(next)
        })
        .await;
        assert!(!branch.peer("dr").connected);
        assert!(!target.peer("berlin").connected);
    }
    // The same release at both sites mends it, whichever that is.
    branch = branch.restart_as("2").await;
    until("the link is up", || branch.peer("dr").connected).await;
}
