//! Ports that vbrd wants: who has them where vbrd does not run, and what the firewall makes of them.

use std::path::Path;

use vbr_api::Check;

use super::machine::{CONFIG, told};

/// Unless the configuration names others.
const PORT: u16 = 7300;
/// State `LISTEN` in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// TCP ports of `wire.listen`.
pub fn configured_ports(config: Option<&Path>) -> Vec<u16> {
    let text = std::fs::read_to_string(config.unwrap_or(Path::new(CONFIG))).unwrap_or_default();
    ports_of(&text)
}

fn ports_of(text: &str) -> Vec<u16> {
    let table: toml::Table = toml::from_str(text).unwrap_or_default();
    let listed = table.get("wire").and_then(|wire| wire.get("listen")).and_then(|listen| listen.as_array());
    let Some(listed) = listed else { return vec![PORT] };
    let port = |address: &str| {
        let (_, rest) = address.split_once("/tcp/")?;
        rest.split('/').next()?.parse().ok()
    };
    listed.iter().filter_map(|address| address.as_str().and_then(port)).collect()
}

/// Who listens on a port that vbrd wants and, since it does not run, does not have.
pub fn taken(port: u16) -> Check {
    let name = format!("port {port}");
    let read = |file| std::fs::read_to_string(file).unwrap_or_default();
    let inodes: Vec<String> =
        ["/proc/net/tcp", "/proc/net/tcp6"].iter().flat_map(|file| listeners(&read(file), port)).collect();
    if inodes.is_empty() {
        return Check::ok(name, "free for vbrd");
    }
    match inodes.iter().find_map(|inode| holder(inode)) {
        Some((pid, program)) if program == "vbrd" => Check::warning(
            name,
            format!("a vbrd has it (process {pid}), with another socket than --socket names"),
            "name its socket: vbrctl --socket PATH",
        ),
        Some((pid, program)) => Check::critical(
            name,
            format!("{program} (process {pid}) listens on it"),
            "stop that program, or give vbrd another port in wire.listen, and tell its peers",
        ),
        None => Check::critical(
            name,
            "another program listens on it",
            format!("sudo ss -ltnp 'sport = :{port}' names it; or give vbrd another port in wire.listen"),
        ),
    }
}

/// Inodes of the sockets that listen on a port.
fn listeners(table: &str, port: u16) -> Vec<String> {
    let suffix = format!(":{port:04X}");
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.len() > 9 && row[1].ends_with(&suffix) && row[3] == LISTENING)
        .map(|row| row[9].to_owned())
        .collect()
}

/// The process that has a socket; what is another user's is seen by root alone.
fn holder(inode: &str) -> Option<(String, String)> {
    let wanted = format!("socket:[{inode}]");
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        // Not `self`, which is this vbrctl.
        if !process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let has = |file: std::fs::DirEntry| {
            std::fs::read_link(file.path()).is_ok_and(|link| link.to_string_lossy() == wanted.as_str())
        };
        if files.flatten().any(has) {
            let program = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some((process.file_name().to_string_lossy().into_owned(), program.trim().to_owned()));
        }
    }
    None
}

/// What a firewall of this machine makes of the ports, as far as it can be seen.
pub async fn firewall(ports: &[u16]) -> Check {
    let name = "firewall";
    if ports.is_empty() {
        return Check::skipped(name, "this site listens on no TCP port");
    }
    if !rustix::process::geteuid().is_root() {
        return Check::skipped(name, format!("root sees its rules; peers need TCP port {}", list(ports)));
    }
    match told("nft", &["list", "ruleset"]).await {
        Some(output) if output.status.success() => {
            judge_rules(&String::from_utf8_lossy(&output.stdout), ports)
        }
        _ => Check::skipped(
            name,
            format!("no nft here to tell its rules; peers need TCP port {}", list(ports)),
        ),
    }
}

fn list(ports: &[u16]) -> String {
    ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A ruleset that drops what comes in by default, and names the port nowhere, keeps peers out. Anything finer is the
/// administrator's to know.
fn judge_rules(rules: &str, ports: &[u16]) -> Check {
    let name = "firewall";
    let drops = rules.lines().map(str::trim).any(|line| {
        line.contains("hook input") && (line.contains("policy drop") || line.contains("policy reject"))
    });
    let named = |port: &u16| {
        let port = port.to_string();
        rules.split(|c: char| !c.is_ascii_digit()).any(|word| word == port)
    };
    let missing: Vec<u16> = ports.iter().filter(|port| !named(port)).copied().collect();
    if !drops {
        return Check::ok(
            name,
            "this machine drops nothing by default; firewalls in between are not seen from here",
        );
    }
    if missing.is_empty() {
        return Check::ok(name, format!("its rules name TCP port {}", list(ports)));
    }
    Check::warning(
        name,
        format!("it drops what comes in by default, and no rule names TCP port {}", list(&missing)),
        format!(
            "where peers are to connect to this site: ufw allow {0}/tcp, or firewall-cmd --permanent --add-port={0}/tcp, or a \
             rule of your own; a site that only joins others needs none",
            missing[0]
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbr_api::CheckState;

    #[test]
    fn ports_of_the_configuration() {
        assert_eq!(ports_of(""), [7300]);
        assert_eq!(
            ports_of("[wire]\nlisten = [\"/ip4/0.0.0.0/tcp/7301\", \"/ip4/0.0.0.0/udp/7300/quic-v1\"]\n"),
            [7301]
        );
        assert_eq!(ports_of("[wire]\nlisten = []\n"), [0u16; 0]);
    }

    #[test]
    fn who_has_a_port() {
        let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = held.local_addr().unwrap().port();
        let check = taken(port);
        assert_eq!(check.state, CheckState::Critical);
        assert!(check.found.contains(&std::process::id().to_string()), "{}", check.found);
        drop(held);
        assert_eq!(taken(port).state, CheckState::Ok);
    }

    #[test]
    fn rules_that_keep_peers_out() {
        let closed = "table inet filter {\n chain input {\n  type filter hook input priority 0; policy drop;\n  tcp dport 22 accept\n }\n}\n";
        assert_eq!(judge_rules(closed, &[7300]).state, CheckState::Warning);
        assert_eq!(judge_rules(&closed.replace("22", "{ 22, 7300 }"), &[7300]).state, CheckState::Ok);
        assert_eq!(
            judge_rules(&closed.replace("dport 22", "dport 17300"), &[7300]).state,
            CheckState::Warning
        );
        assert_eq!(judge_rules(&closed.replace("drop", "accept"), &[7300]).state, CheckState::Ok);
        assert_eq!(judge_rules("", &[7300]).state, CheckState::Ok);
    }
}
