//! What commonly goes wrong, looked at by vbrd itself: what it may do differs from what its callers may, for it is another
//! user, in a sandbox.
//!
//! `network`, `storage` and `disks` look at one field each; peers, and what `status` warns of, are here. Owns nothing and
//! changes nothing: what it writes to try a file system has no name there, or is removed again. Everything blocks.
//! Not its job: what only the machine's administrator sees (the service, groups, firewalls): that is the console's part.

mod disks;
mod network;
mod storage;

use std::sync::Arc;

use vbr_api::{Check, CheckState, DiskFormat, Peer};

use super::appliance::lock;
use super::site::Site;
use crate::config::Config;
use crate::control::DoctorOrders;
use crate::error::Problem;
use crate::host::target;

/// See the module.
pub struct Doctor {
    /// The parts that are looked at, and what `status` warns of.
    pub site: Arc<Site>,
}

impl DoctorOrders for Doctor {
    fn examine(&self) -> Result<Vec<Check>, Problem> {
        let parts = &self.site.parts;
        let config = lock(&parts.config).clone();
        let mut checks = vec![version(), open_files()];
        checks.extend(network::look(&config, &parts.wire.listeners()));
        checks.extend(storage::look(&config, &parts.stores.status()));
        checks.push(self.qemu());
        checks.push(judge_starting(target::obstacle(), !parts.stores.replicas().is_empty()));
        checks.extend(self.job_disks(&config));
        let peers = parts.wire.peers();
        checks.extend(peers.iter().map(peer));
        checks.push(managers(&peers));
        let warnings = self.site.own_warnings().into_iter();
        checks.extend(warnings.map(|warning| {
            let state = if warning.level == "critical" { CheckState::Critical } else { CheckState::Warning };
            Check::new("status", state, warning.what, warning.next_step)
        }));
        Ok(checks)
    }

    fn try_disks(&self, disks: &[String]) -> Result<Vec<Check>, Problem> {
        Ok(disks.iter().map(|disk| disks::readable(&format!("disk {disk}"), disk)).collect())
    }
}

impl Doctor {
    fn qemu(&self) -> Check {
        let overlays = self.site.parts.stores.status().into_iter().filter(|store| store.backend == "overlay");
        let overlays = overlays.map(|store| format!("datastore {}", store.name));
        let images = self
            .site
            .parts
            .jobs
            .list()
            .into_iter()
            .filter(|job| job.spec.disks.iter().any(|disk| disk.format == DiskFormat::Qcow2));
        let needed: Vec<String> =
            overlays.chain(images.map(|job| format!("job {}", job.spec.name))).collect();
        let version = || crate::nbd::qemu_img(&["--version"]).unwrap_or_default();
        judge_qemu(crate::nbd::qemu_utils_missing(), &needed, version)
    }

    fn job_disks(&self, config: &Config) -> Vec<Check> {
        let mut checks = Vec::new();
        for job in self.site.parts.jobs.list() {
            for disk in &job.spec.disks {
                checks.push(disks::readable(
                    &format!("disk {} (job {})", disk.path, job.spec.name),
                    &disk.path,
                ));
                checks.extend(disks::snapshot(&disk.path, config));
            }
        }
        checks
    }
}

fn version() -> Check {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Check::ok(
        "vbrd",
        format!("version {}, kernel {}, {cores} cores", env!("CARGO_PKG_VERSION"), kernel.trim()),
    )
}

/// A session holds some dozens, the database a few hundred, each peer one or more.
fn open_files() -> Check {
    const WANTED: u64 = 4096;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match limit {
        Some(limit) if limit < WANTED => Check::warning(
            "open files",
            format!("vbrd may have {limit} files open"),
            "LimitNOFILE=65536 in a drop-in of vbrd.service, or ulimit -n 65536 before it is started by hand",
        ),
        Some(limit) => Check::ok("open files", format!("{limit} at most")),
        None => Check::ok("open files", "no bound"),
    }
}

fn judge_qemu(missing: Option<String>, needed: &[String], version: impl FnOnce() -> String) -> Check {
    let by = needed.join(", ");
    match missing {
        None => Check::ok("qemu-utils", version().lines().next().unwrap_or("there").to_owned()),
        Some(missing) if needed.is_empty() => {
            let why = format!("{missing}; only qcow2 images and datastores without reflinks need it");
            Check::ok("qemu-utils", why)
        }
        Some(missing) => {
            Check::critical("qemu-utils", format!("{missing}; needed by {by}"), "apt install qemu-utils")
        }
    }
}

/// Found out now rather than on the day that a replica is needed.
fn judge_starting(obstacle: Option<(String, &'static str)>, has_replicas: bool) -> Check {
    let name = "starting replicas";
    match obstacle {
        None => Check::ok(name, "qemu is there, and VMs run apart from vbrd"),
        Some((why, next)) if has_replicas => Check::warning(name, why, next),
        Some((why, _)) => Check::skipped(name, format!("{why}; there are no replicas here")),
    }
}

fn peer(peer: &Peer) -> Check {
    let name = format!("peer {}", peer.name);
    if peer.revoked {
        return Check::skipped(name, "cut off at this site");
    }
    if !peer.connected {
        let why = peer.last_error.as_ref().map_or(String::new(), |why| format!(": {why}"));
        let next = format!(
            "see that vbrd runs there and that one of the two sites reaches the other ({}): \
             a firewall in between has to let its port through",
            peer.addresses.first().map_or("no address is known", String::as_str)
        );
        return Check::warning(name, format!("not connected{why}"), next);
    }
    let ms = |ms: Option<u64>| ms.map_or("unknown".to_owned(), |ms| format!("{ms} ms"));
    let congestion = peer.congestion_control.as_ref().map_or(String::new(), |name| format!(" with {name}"));
    let transport = peer.transport.as_deref().unwrap_or("unknown");
    let found = format!(
        "connected over {transport}{congestion}, {} connection{}, round trip {}, control {}",
        peer.links,
        if peer.links == 1 { "" } else { "s" },
        ms(peer.rtt_ms),
        ms(peer.control_rtt_ms),
    );
    if peer.control_rtt_ms.is_some_and(|ms| ms > CONTROL_SLOW_MS) {
        let next = format!(
            "see what else fills the line, and bound what vbr takes of it: vbrctl throttle set office --peer {} --rate RATE",
            peer.name
        );
        return Check::warning(name, found, next);
    }
    Check::ok(name, found)
}

/// Control that takes longer than this holds up sessions.
const CONTROL_SLOW_MS: u64 = 5_000;

fn managers(peers: &[Peer]) -> Check {
    let managing: Vec<&str> = peers
        .iter()
        .filter(|peer| !peer.revoked && peer.grants.iter().any(|grant| grant == "manage"))
        .map(|peer| peer.name.as_str())
        .collect();
    match (peers.is_empty(), managing.is_empty()) {
        (true, _) => Check::warning(
            "pairing",
            "this site has no peers",
            "vbrctl peer invite at one site, vbrctl peer join CODE at the other",
        ),
        (_, true) => Check::ok("pairing", "no peer may manage this site"),
        _ => Check::ok("pairing", format!("consoles at {} may manage this site", managing.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_matters_where_it_is_used() {
        let missing = || Some("qemu-img not found".to_owned());
        let version = || "qemu-img version 7.2\nmore".to_owned();
        assert_eq!(judge_qemu(None, &["job web".into()], version).found, "qemu-img version 7.2");
        assert_eq!(judge_qemu(missing(), &[], version).state, CheckState::Ok);
        let check = judge_qemu(missing(), &["job web".into(), "datastore default".into()], version);
        assert_eq!(check.state, CheckState::Critical);
        assert!(check.found.ends_with("needed by job web, datastore default"), "{}", check.found);
    }

    #[test]
    fn starting_matters_where_there_are_replicas() {
        let missing = || Some(("no qemu".to_owned(), "apt install it"));
        assert_eq!(judge_starting(None, true).state, CheckState::Ok);
        assert_eq!(judge_starting(missing(), false).state, CheckState::Skipped);
        let check = judge_starting(missing(), true);
        assert_eq!((check.state, check.next_step.as_str()), (CheckState::Warning, "apt install it"));
    }

    #[test]
    fn peers_by_their_links() {
        let text = r#"{"name":"dr","peer_id":"x","addresses":["/ip4/192.0.2.7/tcp/7300"],"connected":true,"transport":"tcp",
            "congestion_control":"bbr","rtt_ms":80,"control_rtt_ms":90,"links":1,"sent_wire":0,"received_wire":0,"domain":"default",
            "grants":["replicate"],"paired_at":"2026-11-20T10:00:00Z","last_seen_at":null,"last_error":null}"#;
        let up: Peer = serde_json::from_str(text).expect("peer");
        let check = peer(&up);
        assert_eq!(check.found, "connected over tcp with bbr, 1 connection, round trip 80 ms, control 90 ms");
        assert_eq!(peer(&Peer { control_rtt_ms: Some(9000), ..up.clone() }).state, CheckState::Warning);
        let down = Peer { connected: false, last_error: Some("no route".into()), ..up.clone() };
        let check = peer(&down);
        assert_eq!((check.state, check.found.as_str()), (CheckState::Warning, "not connected: no route"));
        assert!(check.next_step.contains("192.0.2.7"), "{}", check.next_step);
        assert_eq!(peer(&Peer { revoked: true, ..down }).state, CheckState::Skipped);

        assert_eq!(managers(&[]).state, CheckState::Warning);
        assert_eq!(managers(std::slice::from_ref(&up)).found, "no peer may manage this site");
        let manager = Peer { grants: vec!["manage".into()], name: "hq".into(), ..up };
        assert!(managers(&[manager]).found.contains("hq"));
    }
}
