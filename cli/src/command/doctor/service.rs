//! The service as systemd sees it: loaded, enabled, active; and its drop-ins.

use std::collections::BTreeMap;
use std::path::Path;

use vbr_api::Check;

use super::machine::text_of;

const PROPERTIES: &str = "LoadState,ActiveState,SubState,UnitFileState,Result,NRestarts,DropInPaths,NeedDaemonReload,\
                          ExecMainStatus";

/// Service and drop-ins.
pub async fn look() -> Vec<Check> {
    if !is_systemd() {
        return vec![Check::skipped("service", "systemd does not run here")];
    }
    match text_of("systemctl", &["show", "vbrd.service", "--property", PROPERTIES]).await {
        Some(text) => judge(&properties(&text)),
        None => vec![Check::skipped("service", "systemctl does not answer")],
    }
}

/// True where systemd is the machine's init.
pub fn is_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

fn properties(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once('=')).collect()
}

fn judge(properties: &BTreeMap<&str, &str>) -> Vec<Check> {
    let of = |name: &str| properties.get(name).copied().unwrap_or_default();
    if of("LoadState") == "not-found" {
        return vec![Check::warning(
            "service",
            "there is no unit vbrd.service",
            "install the package vbr, or start vbrd by hand",
        )];
    }
    let mut checks = vec![state(&of)];
    let (active, start) = (of("ActiveState"), of("UnitFileState"));
    if of("LoadState") == "loaded" && start != "enabled" && !start.is_empty() {
        let next = "sudo systemctl enable vbrd";
        checks.push(Check::warning(
            "service at boot",
            format!("it is {start}: it does not start by itself"),
            next,
        ));
    } else if start == "enabled" {
        checks.push(Check::ok("service at boot", "enabled"));
    }
    let drop_ins: Vec<&str> = of("DropInPaths").split_whitespace().collect();
    if of("NeedDaemonReload") == "yes" {
        let next = "sudo systemctl daemon-reload && sudo systemctl restart vbrd";
        checks.push(Check::warning("drop-ins", "the unit was changed and not read again", next));
    } else if active == "active" || !drop_ins.is_empty() {
        let found = if drop_ins.is_empty() {
            "none: vbrd sees its own directories, and files that anybody may read"
        } else {
            ""
        };
        checks.push(Check::ok("drop-ins", format!("{found}{}", drop_ins.join(", "))));
    }
    checks
}

fn state<'a>(of: &impl Fn(&str) -> &'a str) -> Check {
    let (active, sub) = (of("ActiveState"), of("SubState"));
    let restarts: u32 = of("NRestarts").parse().unwrap_or(0);
    match (of("LoadState"), active) {
        ("masked", _) => {
            Check::critical("service", "vbrd.service is masked", "sudo systemctl unmask --now vbrd")
        }
        (_, "active") if restarts > 0 => Check::warning(
            "service",
            format!("active, after systemd had to start it again {restarts} times"),
            "see why it ended: journalctl -u vbrd -p warning",
        ),
        (_, "active") => Check::ok("service", format!("active ({sub})")),
        (_, "activating") if sub.starts_with("auto-restart") => Check::critical(
            "service",
            format!("it ends again and again ({}, status {})", of("Result"), of("ExecMainStatus")),
            "see why: journalctl -u vbrd -n 50",
        ),
        (_, "activating") => Check::warning(
            "service",
            format!("it starts ({sub})"),
            "wait; a large cache is indexed after a crash: journalctl -u vbrd -f",
        ),
        _ => Check::critical(
            "service",
            format!("{active} ({sub}, {}, status {})", of("Result"), of("ExecMainStatus")),
            "sudo systemctl start vbrd; if it does not stay: journalctl -u vbrd -n 50",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbr_api::CheckState;

    fn states(text: &str) -> Vec<(String, CheckState)> {
        judge(&properties(text)).into_iter().map(|check| (check.name, check.state)).collect()
    }

    #[test]
    fn what_systemd_says() {
        let running = "LoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=enabled\nResult=success\n\
                       NRestarts=0\nDropInPaths=/etc/systemd/system/vbrd.service.d/a.conf\nNeedDaemonReload=no\n";
        assert!(states(running).iter().all(|(_, state)| *state == CheckState::Ok), "{:?}", states(running));
        let of = |from: &str, to: &str| states(&running.replace(from, to))[0].1;
        assert_eq!(of("ActiveState=active", "ActiveState=failed"), CheckState::Critical);
        assert_eq!(of("NRestarts=0", "NRestarts=3"), CheckState::Warning);
        assert_eq!(
            of("=active\nSubState=running", "=activating\nSubState=auto-restart"),
            CheckState::Critical
        );
        assert_eq!(of("LoadState=loaded", "LoadState=masked"), CheckState::Critical);
        let disabled = states(&running.replace("=enabled", "=disabled"));
        assert_eq!(disabled[1], ("service at boot".into(), CheckState::Warning));
        let stale = states(&running.replace("Reload=no", "Reload=yes"));
        assert_eq!(stale[2], ("drop-ins".into(), CheckState::Warning));
        assert_eq!(states("LoadState=not-found\n"), [("service".into(), CheckState::Warning)]);
    }
}
