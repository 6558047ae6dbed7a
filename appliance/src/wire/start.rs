//! What happens once, at the start: the identity, and listening.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use libp2p::swarm::{Swarm, SwarmEvent};

use super::driver::{Behaviours, BehavioursEvent};
use super::peers::write_private;
use super::settings::{TransportKind, WireConfig};
use super::state::Shared;
use super::transport::as_quic;
use crate::error::Problem;

/// Listeners report their addresses within this.
const LISTEN_WAIT: Duration = Duration::from_secs(3);
/// A wildcard's addresses follow each other within this.
const LISTEN_SETTLE: Duration = Duration::from_millis(50);

/// A multiaddr, or why it is none.
pub fn parse(address: &str) -> Result<Multiaddr, Problem> {
    address.parse().map_err(|error: libp2p::multiaddr::Error| {
        let next = "write it like /ip4/0.0.0.0/tcp/7300 or /dns4/dr.example.org/tcp/7300";
        Problem::invalid(format!("use the address {address}"), error.to_string(), next)
    })
}

/// Listens and waits until each listener has told its addresses. Answers what else happened: a peer
/// may well connect in the meantime.
pub async fn listen(
    swarm: &mut Swarm<Behaviours>,
    config: &WireConfig,
    shared: &Shared,
) -> Result<Vec<SwarmEvent<BehavioursEvent>>, Problem> {
    let (mut waiting, mut early) = (Vec::new(), Vec::new());
    for text in &config.listen {
        let mut address = parse(text)?;
        if config.transport == TransportKind::Quic {
            address = as_quic(&address);
        }
        let id = swarm.listen_on(address).map_err(|error| {
            let next = "another program may use the port: choose another address with --listen";
            Problem::new("listen", format!("listen on {text}"), error.to_string(), next)
        })?;
        waiting.push(id);
    }
    let deadline = tokio::time::Instant::now() + LISTEN_WAIT;
    loop {
        // Once each has an address, the others of a wildcard follow without a pause.
        let settled = tokio::time::Instant::now() + LISTEN_SETTLE;
        let until = if waiting.is_empty() { settled.min(deadline) } else { deadline };
        match tokio::time::timeout_at(until, swarm.select_next_some()).await {
            Ok(SwarmEvent::NewListenAddr { listener_id, address }) => {
                waiting.retain(|id| *id != listener_id);
                shared.listeners().push(address);
            }
            Ok(SwarmEvent::ListenerClosed { reason: Err(error), .. }) => {
                return Err(Problem::io("listen for peers", &error));
            }
            Ok(event) => early.push(event),
            Err(_) => break,
        }
    }
    if !waiting.is_empty() {
        tracing::warn!("a listener has no address yet: no peer can connect there");
    }
    Ok(early)
}

/// The identity. Made once, never replaced: losing it means pairing every peer again.
pub fn load_key(path: &Path) -> Result<Keypair, Problem> {
    match fs::read(path) {
        Ok(bytes) => Keypair::from_protobuf_encoding(&bytes).map_err(|error| {
            let next =
                "restore the file from a copy; a new key would have to be paired with every peer again";
            Problem::new("damaged", format!("read the key {}", path.display()), error.to_string(), next)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = Keypair::generate_ed25519();
            let bytes = key
                .to_protobuf_encoding()
                .map_err(|error| Problem::new("internal", "make a key", error.to_string(), "report this"))?;
            write_private(path, &bytes)
                .map_err(|error| Problem::io(format!("write the key {}", path.display()), &error))?;
            Ok(key)
        }
        Err(error) => Err(Problem::io(format!("read the key {}", path.display()), &error)),
    }
}
