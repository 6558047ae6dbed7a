//! Sockets: TCP + Noise + Yamux with kernel BBR, and QUIC.
//!
//! libp2p has no knob for congestion control, so each TCP socket passes through [`tune`] between
//! connect (or accept) and the handshake. Measured at 100 Mbit/s, 80 ms, 1 % loss: BBR fills 87 %,
//! CUBIC 1 %. Not its job: whom to dial or to admit.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, OrTransport};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId, Transport, noise, quic, tcp, yamux};
use socket2::SockRef;

use super::probe::{NOTSENT_LOWAT_MAX, Probe};
use super::valve::Turn;
use crate::limits::TCP_USER_TIMEOUT;

/// Streams of one connection: one control, two data, one pairing, and room for those closing.
const STREAMS_MAX: usize = 16;

/// Sockets whose connection the swarm has not announced yet.
#[derive(Debug, Default)]
pub struct Sockets {
    system: bool,
    fresh: Mutex<Vec<Weak<Probe>>>,
    warned: AtomicBool,
}

impl Sockets {
    /// With BBR where the kernel has it, or with the system's congestion control.
    pub fn new(bbr: bool) -> Self {
        Self { system: !bbr, ..Self::default() }
    }

    /// The probe of the connection that the swarm just announced.
    pub fn claim(&self, remote: &Multiaddr, dialled: bool) -> Option<Arc<Probe>> {
        let remote = socket_addr(remote)?;
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        fresh.retain(|probe| probe.upgrade().is_some_and(|probe| probe.is_open()));
        // The newest first: an older one to the same address is an attempt that failed.
        let at = fresh.iter().rposition(|probe| {
            probe.upgrade().is_some_and(|probe| probe.remote == remote && probe.dialled == dialled)
        })?;
        fresh.remove(at).upgrade()
    }

    fn adopt(&self, stream: tcp::tokio::TcpStream, dialled: bool) -> Metered {
        let probe = self.tune(&stream, dialled);
        if let Some(probe) = &probe {
            let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
            fresh.retain(|probe| probe.strong_count() > 0);
            fresh.push(Arc::downgrade(probe));
        }
        let turn = probe.as_ref().map(|probe| Turn::new(probe.valve.clone()));
        Metered { stream, probe, turn }
    }

    fn tune(&self, stream: &tcp::tokio::TcpStream, dialled: bool) -> Option<Arc<Probe>> {
        let socket = SockRef::from(&stream.0);
        if !self.system
            && let Err(error) = socket.set_tcp_congestion(b"bbr")
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                %error,
                "congestion control bbr is not available: lossy links will be slow; load the module \
                 tcp_bbr and add bbr to net.ipv4.tcp_allowed_congestion_control"
            );
        }
        let tuned = socket
            .set_tcp_notsent_lowat(NOTSENT_LOWAT_MAX)
            .and_then(|()| socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT)))
            .and_then(|()| socket.set_tcp_nodelay(true));
        if let Err(error) = tuned {
            tracing::debug!(%error, "a socket option was refused");
        }
        let remote = stream.0.peer_addr().ok()?;
        let copy = stream.0.as_fd().try_clone_to_owned().ok()?;
        Some(Arc::new(Probe::new(copy, remote, dialled)))
    }
}

/// Builds the whole transport: TCP, and QUIC beside it for addresses that say so.
pub fn build(key: &Keypair, sockets: Arc<Sockets>) -> io::Result<Boxed<(PeerId, StreamMuxerBox)>> {
    let noise = noise::Config::new(key).map_err(io::Error::other)?;
    let mut mux = yamux::Config::default();
    mux.set_max_num_streams(STREAMS_MAX);
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .map(move |stream, point| sockets.adopt(stream, point.is_dialer()))
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(mux)
        .timeout(std::time::Duration::from_secs(20))
        .map(|(peer, mux), _| (peer, StreamMuxerBox::new(mux)));
    let quic = quic::tokio::Transport::new(quic::Config::new(key))
        .map(|(peer, mux), _| (peer, StreamMuxerBox::new(mux)));
    Ok(OrTransport::new(tcp, quic).map(|either, _| either.into_inner()).boxed())
}

/// The same place under the other transport, where QUIC is asked for and the address says TCP.
pub fn as_quic(address: &Multiaddr) -> Multiaddr {
    let mut out = Multiaddr::empty();
    for part in address {
        match part {
            Protocol::Tcp(port) => {
                out.push(Protocol::Udp(port));
                out.push(Protocol::QuicV1);
            }
            other => out.push(other),
        }
    }
    out
}

/// Address and port of a multiaddr that names an IP address and TCP.
pub fn socket_addr(address: &Multiaddr) -> Option<std::net::SocketAddr> {
    let mut ip: Option<std::net::IpAddr> = None;
    for part in address {
        match part {
            Protocol::Ip4(v4) => ip = Some(v4.into()),
            Protocol::Ip6(v6) => ip = Some(v6.into()),
            Protocol::Tcp(port) => return ip.map(|ip| (ip, port).into()),
            _ => {}
        }
    }
    None
}

/// The IP address that a multiaddr names.
pub fn ip_addr(address: &Multiaddr) -> Option<std::net::IpAddr> {
    address.iter().find_map(|part| match part {
        Protocol::Ip4(v4) => Some(v4.into()),
        Protocol::Ip6(v6) => Some(v6.into()),
        _ => None,
    })
}

/// Replaces DNS names by what the system's resolver says; at most eight addresses a name.
pub async fn resolve(addresses: Vec<Multiaddr>) -> Vec<Multiaddr> {
    let mut out = Vec::new();
    for address in addresses {
        let name = address.iter().find_map(|part| match part {
            Protocol::Dns(name) => Some((name.into_owned(), None)),
            Protocol::Dns4(name) => Some((name.into_owned(), Some(true))),
            Protocol::Dns6(name) => Some((name.into_owned(), Some(false))),
            _ => None,
        });
        let Some((name, v4)) = name else {
            out.push(address);
            continue;
        };
        match tokio::net::lookup_host((name.as_str(), 0)).await {
            Ok(found) => {
                let fits = |ip: &std::net::IpAddr| v4.is_none_or(|v4| ip.is_ipv4() == v4);
                for ip in found.map(|found| found.ip()).filter(fits).take(8) {
                    out.push(address.iter().map(|part| with_ip(part, ip)).collect());
                }
            }
            Err(error) => tracing::debug!(%name, %error, "a peer's name does not resolve"),
        }
    }
    out
}

fn with_ip(part: Protocol<'_>, ip: std::net::IpAddr) -> Protocol<'_> {
    match part {
        Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) => ip.into(),
        other => other,
    }
}

/// A TCP stream whose probe is let go when it closes, and whose bytes wait for their turn where rules bound them.
struct Metered {
    stream: tcp::tokio::TcpStream,
    probe: Option<Arc<Probe>>,
    /// None without a probe.
    turn: Option<Turn>,
}

impl Drop for Metered {
    fn drop(&mut self) {
        if let Some(probe) = &self.probe {
            probe.close();
        }
    }
}

impl AsyncRead for Metered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let stream = &mut this.stream;
        match &mut this.turn {
            Some(turn) => turn.poll_write(cx, buf, |cx, part| Pin::new(stream).poll_write(cx, part)),
            None => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let tcp: Multiaddr = "/ip4/127.0.0.1/tcp/7300".parse().unwrap();
        assert_eq!(as_quic(&tcp).to_string(), "/ip4/127.0.0.1/udp/7300/quic-v1");
        assert_eq!(socket_addr(&tcp), Some("127.0.0.1:7300".parse().unwrap()));
        assert_eq!(socket_addr(&as_quic(&tcp)), None);
        assert_eq!(ip_addr(&as_quic(&tcp)), Some("127.0.0.1".parse().unwrap()));
    }

    #[tokio::test]
    async fn names_become_addresses() {
        let found = resolve(vec!["/dns4/localhost/tcp/7300".parse().unwrap()]).await;
        assert_eq!(found, vec!["/ip4/127.0.0.1/tcp/7300".parse::<Multiaddr>().unwrap()]);
    }
}
