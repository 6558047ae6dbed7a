//! This machine as its administrator sees it: the socket and who may use it, configuration, clock. The service and its unit
//! are looked at by `service`, ports and firewalls by `network`.
//!
//! Reads, and runs programs that only tell; each for at most [`TOLD_WITHIN`]. Owns nothing.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use vbr_api::{Check, Status};

use super::{network, service};
use crate::client::view_socket;
use crate::context::Context;
use crate::failure::Failure;

/// Read where none is named.
pub const CONFIG: &str = "/etc/vbr/vbrd.toml";
/// For one program.
const TOLD_WITHIN: Duration = Duration::from_secs(20);
/// Members may order, and look.
const GROUPS: [&str; 2] = ["vbradm", "vbrview"];

/// All of it; `away`: why vbrd did not answer.
pub async fn look(context: &Context, config: Option<&Path>, away: Option<&Failure>) -> Vec<Check> {
    let socket = context.client.socket();
    let mut checks = vec![look_at_socket(socket), membership()];
    checks.extend(service::look().await);
    checks.push(configuration(config).await);
    checks.push(clock());
    let ports = network::configured_ports(config);
    checks.push(network::firewall(&ports).await);
    if away.is_some() {
        checks.extend(ports.iter().map(|port| network::taken(*port)));
    } else if let Ok(document) = context.client.get("/v1/status").await {
        checks.extend(document.one::<Status>().ok().map(|status| versions(&status.version)));
    }
    checks
}

/// What a program says; none where it is missing or takes too long.
pub async fn told(program: &str, words: &[&str]) -> Option<Output> {
    let mut command = tokio::process::Command::new(program);
    command.args(words).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    tokio::time::timeout(TOLD_WITHIN, command.output()).await.ok()?.ok()
}

/// The same as text, where it succeeded.
pub async fn text_of(program: &str, words: &[&str]) -> Option<String> {
    let output = told(program, words).await.filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn look_at_socket(path: &Path) -> Check {
    let name = "socket";
    let shown = path.display();
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => Check::critical(
            name,
            format!("{shown} is there and is no socket"),
            "move that file away and restart vbrd, or name another socket with --socket or VBR_SOCKET",
        ),
        Ok(meta) => {
            let (mode, group) = (meta.mode() & 0o777, group_name(meta.gid()));
            if mode & 0o007 != 0 {
                return Check::warning(
                    name,
                    format!("{shown} has mode {mode:04o}: anybody can open it"),
                    format!("chmod o= {shown}; vbrd makes it 0660, so see who changed it"),
                );
            }
            let group = group.unwrap_or_else(|| meta.gid().to_string());
            let view = view_socket(path);
            let more =
                if view.exists() { format!("; for questions: {}", view.display()) } else { String::new() };
            Check::ok(name, format!("{shown}, mode {mode:04o}, group {group}{more}"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Check::warning(
            name,
            format!("{shown}: {error}"),
            "run vbrctl as root, or as a member of the group vbradm",
        ),
        Err(_) => Check::critical(
            name,
            format!("there is no {shown}"),
            "start vbrd (systemctl start vbrd), or name its socket with --socket or VBR_SOCKET",
        ),
    }
}

fn membership() -> Check {
    let name = "group";
    if rustix::process::geteuid().is_root() {
        return Check::ok(name, "root may order everything");
    }
    let Ok(own) = rustix::process::getgroups() else { return Check::skipped(name, "groups are not known") };
    let mut own: Vec<u32> = own.into_iter().map(|group| group.as_raw()).collect();
    own.push(rustix::process::getegid().as_raw());
    let user = user_name(rustix::process::getuid().as_raw()).unwrap_or_default();
    let listed = std::fs::read_to_string("/etc/group").unwrap_or_default();
    judge_membership(&user, &own, &listed)
}

fn judge_membership(user: &str, own: &[u32], listed: &str) -> Check {
    let name = "group";
    let find = |group: &str| group_of(listed, group);
    let in_session = |group: &str| find(group).is_some_and(|(gid, _)| own.contains(&gid));
    let in_file = |group: &str| find(group).is_some_and(|(_, members)| members.iter().any(|one| one == user));
    let [order, view] = GROUPS;
    match () {
        () if in_session(order) => {
            Check::ok(name, format!("{user} is a member of {order}: may order everything"))
        }
        () if in_file(order) => Check::warning(
            name,
            format!("{user} is a member of {order}, but not yet in this login"),
            format!("log out and in again, or: newgrp {order}"),
        ),
        () if in_session(view) => {
            Check::ok(name, format!("{user} is a member of {view}: may look, and order nothing"))
        }
        () if in_file(view) => Check::warning(
            name,
            format!("{user} is a member of {view}, but not yet in this login"),
            format!("log out and in again, or: newgrp {view}"),
        ),
        () => Check::warning(
            name,
            format!("{user} is neither root nor a member of {order} or {view}"),
            format!(
                "sudo usermod -aG {order} {user} (orders) or -aG {view} (questions alone), then log in again"
            ),
        ),
    }
}

/// Number and members of a group in the text of `/etc/group`.
pub fn group_of(listed: &str, name: &str) -> Option<(u32, Vec<String>)> {
    listed.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [group, _, gid, members] = fields[..] else { return None };
        let members = members.split(',').filter(|member| !member.is_empty()).map(str::to_owned).collect();
        (group == name).then(|| gid.parse().ok().map(|gid| (gid, members))).flatten()
    })
}

/// From `/etc/group`.
pub fn group_name(gid: u32) -> Option<String> {
    name_in("/etc/group", gid)
}

/// From `/etc/passwd`.
pub fn user_name(uid: u32) -> Option<String> {
    name_in("/etc/passwd", uid)
}

fn name_in(file: &str, id: u32) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    })
}

/// The vbrd that belongs to this vbrctl: beside it, or wherever programs are.
pub fn vbrd() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|path| path.with_file_name("vbrd"));
    beside.filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from("vbrd"))
}

async fn configuration(config: Option<&Path>) -> Check {
    let name = "configuration";
    let file = config.unwrap_or(Path::new(CONFIG));
    if config.is_none() && !file.exists() {
        return Check::ok(name, format!("there is no {CONFIG}: defaults hold"));
    }
    let program = vbrd();
    let file = file.display().to_string();
    let Some(output) = told(&program.to_string_lossy(), &["check-config", "--config", &file]).await else {
        return Check::skipped(name, "the program vbrd was not found");
    };
    if output.status.success() {
        return Check::ok(name, format!("{file} is good"));
    }
    let faults = String::from_utf8_lossy(&output.stderr);
    let faults = faults.lines().take(8).collect::<Vec<_>>().join("; ");
    Check::critical(
        name,
        faults,
        format!("correct {file}, see with vbrd check-config, then systemctl restart vbrd"),
    )
}

/// What the kernel thinks of its clock. Schedules, retention and certificates go by it.
fn clock() -> Check {
    // SAFETY: all fields of `timex` are integers, and all zeroes ask for nothing to be changed.
    let mut asked: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the structure lives until the call returns.
    let state = unsafe { libc::adjtimex(&mut asked) };
    judge_clock(state, asked.status & libc::STA_UNSYNC != 0, asked.maxerror)
}

fn judge_clock(state: i32, unsynchronised: bool, error_us: i64) -> Check {
    let name = "clock";
    if state < 0 {
        return Check::skipped(name, "the kernel does not tell the state of its clock here");
    }
    if state == libc::TIME_ERROR || unsynchronised {
        return Check::warning(
            name,
            "no time service keeps the clock right",
            "timedatectl set-ntp true, or chrony; in a container: on its host",
        );
    }
    Check::ok(name, format!("kept by a time service, within {} ms", error_us.max(0) / 1000))
}

fn versions(daemon: &str) -> Check {
    let own = env!("CARGO_PKG_VERSION");
    if own == daemon {
        return Check::ok("versions", format!("vbrctl and vbrd are both {own}"));
    }
    Check::warning(
        "versions",
        format!("vbrctl is {own}, the vbrd that runs is {daemon}"),
        "systemctl restart vbrd, if it was updated; else update vbr",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbr_api::CheckState;

    const LISTED: &str = "root:x:0:\nvbradm:x:70:ann,bob\nvbrview:x:71:eve\n";

    #[test]
    fn members_in_the_file_and_in_this_login() {
        let state = |user, own: &[u32]| judge_membership(user, own, LISTED);
        assert_eq!(state("ann", &[1000, 70]).state, CheckState::Ok);
        assert!(state("ann", &[1000]).next_step.contains("newgrp vbradm"));
        assert!(state("eve", &[71]).found.contains("order nothing"));
        assert!(state("eve", &[]).next_step.contains("newgrp vbrview"));
        assert!(state("joe", &[5]).next_step.contains("usermod -aG vbradm joe"));
        // Where the groups do not exist nobody is in them.
        assert_eq!(judge_membership("ann", &[70], "").state, CheckState::Warning);
    }

    #[test]
    fn sockets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vbrd.sock");
        assert_eq!(look_at_socket(&path).state, CheckState::Critical);
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mode = |mode| std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode));
        mode(0o660).unwrap();
        assert_eq!(look_at_socket(&path).state, CheckState::Ok);
        mode(0o666).unwrap();
        assert_eq!(look_at_socket(&path).state, CheckState::Warning);
        std::fs::write(dir.path().join("file"), "x").unwrap();
        assert_eq!(look_at_socket(&dir.path().join("file")).state, CheckState::Critical);
    }

    #[test]
    fn clocks_and_versions() {
        assert_eq!(judge_clock(0, false, 4000).found, "kept by a time service, within 4 ms");
        assert_eq!(judge_clock(libc::TIME_ERROR, true, 0).state, CheckState::Warning);
        assert_eq!(judge_clock(-1, false, 0).state, CheckState::Skipped);
        assert_eq!(versions(env!("CARGO_PKG_VERSION")).state, CheckState::Ok);
        assert_eq!(versions("0.0.1").state, CheckState::Warning);
    }
}
