//! Congestion control, socket buffers, listeners, and the addresses that invitations carry.
//!
//! Bounds: a connection to a listener of our own is waited for [`REACHED_WITHIN`], a name for [`RESOLVED_WITHIN`].

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc;
use std::time::Duration;

use vbr_api::Check;

use crate::config::{Config, Congestion, Transport};

const SYSCTLS: &str = "/proc/sys/net/ipv4";
/// What the package sets: 1 Gbit/s at 128 ms.
const BUFFER_BYTES: u64 = 16 * 1024 * 1024;
const REACHED_WITHIN: Duration = Duration::from_secs(2);
const RESOLVED_WITHIN: Duration = Duration::from_secs(4);

pub(super) fn look(config: &Config, listeners: &[String]) -> Vec<Check> {
    let mut checks = vec![congestion(config), buffers()];
    checks.extend(config.wire.listen.iter().map(|address| listener(address)));
    checks.extend(config.wire.advertise.iter().map(|address| advertised(address)));
    if config.wire.advertise.is_empty() {
        checks.push(own_addresses(listeners));
    }
    checks
}

fn sysctl(name: &str) -> String {
    fs::read_to_string(format!("{SYSCTLS}/{name}")).unwrap_or_default().trim().to_owned()
}

/// In a container or another network namespace the kernel shows some settings without a right to write them.
fn set_by_host(name: &str) -> bool {
    fs::metadata(format!("{SYSCTLS}/{name}")).is_ok_and(|meta| meta.mode() & 0o222 == 0)
}

fn congestion(config: &Config) -> Check {
    if config.wire.transport == Transport::Quic {
        return Check::skipped("congestion", "QUIC has its own; TCP fills lossy lines better");
    }
    if config.wire.congestion == Congestion::System {
        let name = sysctl("tcp_congestion_control");
        return Check::ok("congestion", format!("the system's ({name}), as wire.congestion says"));
    }
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let tried = socket.and_then(|socket| socket.set_tcp_congestion(b"bbr"));
    judge_congestion(
        tried.err().map(|error| error.to_string()),
        &sysctl("tcp_available_congestion_control"),
        &sysctl("tcp_allowed_congestion_control"),
        set_by_host("tcp_allowed_congestion_control"),
    )
}

fn judge_congestion(refused: Option<String>, available: &str, allowed: &str, by_host: bool) -> Check {
    let Some(why) = refused else { return Check::ok("congestion", "vbrd may use BBR") };
    let has = |list: &str| list.split_whitespace().any(|name| name == "bbr");
    let wanted = if has(allowed) { allowed.to_owned() } else { format!("{allowed} bbr") };
    let commands = format!(
        "modprobe tcp_bbr && sysctl -w net.ipv4.tcp_allowed_congestion_control=\"{}\"",
        wanted.trim()
    );
    let found = match (has(available), has(allowed)) {
        (false, _) => format!("the kernel has no BBR loaded ({available}): {why}"),
        (true, false) => format!("BBR is there and not allowed to vbrd ({allowed}): {why}"),
        (true, true) => format!("BBR is allowed, and yet refused: {why}"),
    };
    let next = if by_host {
        format!(
            "this is a container: only its host can set that. On the host: {commands}; and keep it in /etc/sysctl.d and \
             /etc/modules-load.d there, for containers take the setting over when they start"
        )
    } else {
        format!("{commands}; then systemctl restart vbrd (the package vbr sets both at its installation)")
    };
    Check::warning(
        "congestion",
        format!("{found}. One connection fills a small part of a line that loses packets"),
        next,
    )
}

fn buffers() -> Check {
    judge_buffers(&sysctl("tcp_rmem"), &sysctl("tcp_wmem"), set_by_host("tcp_wmem"))
}

fn judge_buffers(rmem: &str, wmem: &str, by_host: bool) -> Check {
    let most = |triple: &str| triple.split_whitespace().nth(2).and_then(|bytes| bytes.parse::<u64>().ok());
    let (Some(receive), Some(send)) = (most(rmem), most(wmem)) else {
        return Check::skipped("socket buffers", "the kernel does not say how large they may be");
    };
    let mib = |bytes: u64| bytes / (1024 * 1024);
    let found = format!("{} MiB to receive, {} MiB to send", mib(receive), mib(send));
    if receive >= BUFFER_BYTES && send >= BUFFER_BYTES {
        return Check::ok("socket buffers", found);
    }
    let place = if by_host { "on the host of this container: " } else { "" };
    // What is larger already stays so.
    let (receive, send) = (receive.max(BUFFER_BYTES), send.max(BUFFER_BYTES));
    Check::warning(
        "socket buffers",
        format!("{found}: one connection holds no more in flight (16 MiB: 1 Gbit/s at 128 ms)"),
        format!(
            "{place}sysctl -w net.ipv4.tcp_rmem=\"4096 131072 {receive}\" net.ipv4.tcp_wmem=\"4096 16384 {send}\" \
             (the package has it in /usr/lib/sysctl.d/60-vbr.conf: sysctl --system)"
        ),
    )
}

/// `/ip4/0.0.0.0/tcp/7300` in its parts.
struct Address<'a> {
    kind: &'a str,
    host: &'a str,
    is_tcp: bool,
    port: Option<u16>,
}

fn parts(address: &str) -> Address<'_> {
    let mut words = address.split('/').skip(1);
    let (kind, host) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (transport, port) = (words.next().unwrap_or_default(), words.next());
    Address { kind, host, is_tcp: transport == "tcp", port: port.and_then(|port| port.parse().ok()) }
}

/// Dialled from here: whether a firewall lets others in cannot be seen from inside.
fn listener(address: &str) -> Check {
    let name = format!("listener {address}");
    let Address { host, is_tcp, port, .. } = parts(address);
    let (true, Some(port), Ok(ip)) = (is_tcp, port, host.parse::<IpAddr>()) else {
        return Check::skipped(name, "only TCP addresses can be tried");
    };
    let ip = match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    match TcpStream::connect_timeout(&SocketAddr::new(ip, port), REACHED_WITHIN) {
        Ok(_) => {
            let from = if ip.is_loopback() { "from this machine" } else { "at its address" };
            Check::ok(
                name,
                format!("answers {from}; firewalls have to let others through to TCP port {port}"),
            )
        }
        Err(error) => Check::critical(
            name,
            format!("does not answer: {error}"),
            "see if that address is one of this machine (ip address), then systemctl restart vbrd",
        ),
    }
}

fn advertised(address: &str) -> Check {
    let name = format!("advertised {address}");
    let Address { kind, host, .. } = parts(address);
    let next = "name an address in wire.advertise that other sites reach";
    match kind {
        "ip4" | "ip6" => match host.parse::<IpAddr>() {
            Ok(ip) if ip.is_loopback() || ip.is_unspecified() => {
                Check::critical(name, "no other machine reaches that", next)
            }
            Ok(_) => Check::ok(name, "carried by invitations"),
            Err(error) => Check::critical(name, error.to_string(), next),
        },
        "dns" | "dns4" | "dns6" => match resolve(host) {
            Ok(found) => Check::ok(name, format!("resolves to {found}")),
            Err(why) => Check::warning(
                name,
                format!("the name {host} does not resolve here: {why}"),
                "check the name; what counts is that it resolves at the other sites",
            ),
        },
        _ => Check::skipped(name, "no kind of address that can be judged here"),
    }
}

/// The resolver has no bound of its own: it works on a thread that is left behind where it takes too long.
fn resolve(host: &str) -> Result<String, String> {
    let (told, answer) = mpsc::sync_channel(1);
    let host = host.to_owned();
    std::thread::spawn(move || {
        let found = (host.as_str(), 0u16).to_socket_addrs();
        drop(told.send(found.map(|found| found.map(|address| address.ip().to_string()).collect::<Vec<_>>())));
    });
    match answer.recv_timeout(RESOLVED_WITHIN) {
        Ok(Ok(mut found)) => {
            found.dedup();
            Ok(found.join(", "))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", RESOLVED_WITHIN.as_secs())),
    }
}

fn own_addresses(listeners: &[String]) -> Check {
    let of_others = |address: &&String| {
        let host = parts(address).host.parse::<IpAddr>();
        host.is_ok_and(|ip| !ip.is_loopback() && !ip.is_unspecified())
    };
    let found: Vec<&str> = listeners.iter().filter(of_others).map(String::as_str).collect();
    if found.is_empty() {
        return Check::warning(
            "addresses",
            "this machine has no address that another one could dial: invitations carry loopback alone",
            "bring its network up; behind NAT name the outer address in wire.advertise. A site that only joins needs neither",
        );
    }
    Check::ok(
        "addresses",
        format!("invitations carry {}; behind NAT name the outer one in wire.advertise", found.join(", ")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbr_api::CheckState;

    #[test]
    fn bbr_and_what_to_do_for_it() {
        assert_eq!(judge_congestion(None, "", "", true).state, CheckState::Ok);
        let refused = || Some("Operation not permitted".to_owned());
        let here = judge_congestion(refused(), "reno cubic bbr", "reno cubic", false);
        assert_eq!(here.state, CheckState::Warning);
        assert!(here.next_step.starts_with("modprobe tcp_bbr && sysctl -w"), "{}", here.next_step);
        assert!(here.next_step.contains("=\"reno cubic bbr\""), "{}", here.next_step);
        let inside = judge_congestion(refused(), "reno cubic", "reno cubic", true);
        assert!(inside.next_step.contains("On the host: modprobe"), "{}", inside.next_step);
        assert!(inside.found.contains("no BBR loaded"), "{}", inside.found);
    }

    #[test]
    fn buffers_as_the_package_sets_them() {
        let good = "4096 16384 16777216";
        assert_eq!(judge_buffers(good, good, false).state, CheckState::Ok);
        let small = judge_buffers(good, "4096 16384 4194304", true);
        assert_eq!(small.state, CheckState::Warning);
        assert!(small.next_step.starts_with("on the host") && small.found.contains("4 MiB to send"));
        let large = judge_buffers("4096 131072 33554432", "4096 16384 4194304", false);
        assert!(large.next_step.contains("131072 33554432") && large.next_step.contains("16384 16777216"));
        assert_eq!(judge_buffers("", good, false).state, CheckState::Skipped);
    }

    #[test]
    fn listeners_are_dialled() {
        let open = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
        let port = open.local_addr().expect("address").port();
        assert_eq!(listener(&format!("/ip4/0.0.0.0/tcp/{port}")).state, CheckState::Ok);
        drop(open);
        assert_eq!(listener(&format!("/ip4/127.0.0.1/tcp/{port}")).state, CheckState::Critical);
        assert_eq!(listener("/ip4/0.0.0.0/udp/7300/quic-v1").state, CheckState::Skipped);
    }

    #[test]
    fn addresses_that_nobody_reaches() {
        assert_eq!(advertised("/ip4/127.0.0.1/tcp/7300").state, CheckState::Critical);
        assert_eq!(advertised("/ip4/192.0.2.7/tcp/7300").state, CheckState::Ok);
        assert_eq!(advertised("/dns/localhost/tcp/7300").state, CheckState::Ok);
        assert_eq!(advertised("/dns/no-such-name.invalid/tcp/7300").state, CheckState::Warning);
        let loopback = ["/ip4/127.0.0.1/tcp/7300".to_owned()];
        assert_eq!(own_addresses(&loopback).state, CheckState::Warning);
        assert_eq!(own_addresses(&["/ip4/192.0.2.7/tcp/7300".to_owned()]).state, CheckState::Ok);
    }
}
