//! `vbrctl doctor`: what commonly goes wrong, and what to do about it.
//!
//! Two parts: this machine as its administrator sees it (`machine`), and what vbrd sees, which is another user in a sandbox
//! (`GET /v1/doctor`). The first one needs no vbrd. `bundle` packs all of it for support, `redact` takes out of that what is
//! nobody's business, `archive` is the form of the file.

mod archive;
mod bundle;
pub mod machine;
mod network;
mod redact;
mod service;

use std::path::PathBuf;

use clap::Args;
use vbr_api::{Check, CheckState, DoctorReport};

use crate::context::Context;
use crate::exit::Exit;
use crate::failure::{Failure, Kind};
use crate::human;
use crate::output::View;
use crate::table::{Cell, Table, Tone};

/// Look for what commonly goes wrong, and say what to do about it
///
/// Looks at this machine (service, configuration, clock, firewall, the right to use the socket) and has vbrd look at what it
/// needs itself: BBR and socket buffers, listeners, room and reflinks, qemu-utils, its right to read each disk, peers. Works
/// where vbrd does not run, too. With --site the other site's vbrd looks.
///
/// Exit status: 0 where nothing is critical, 1 where something is.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  vbrctl doctor\n  vbrctl doctor --all -o json\n  sudo vbrctl doctor --bundle \
                        /tmp/vbr-support.tar.zst"
)]
pub struct Command {
    /// Show what is in order, too
    #[arg(long)]
    all: bool,
    /// Write a bundle for support: report, configuration, history, log; without secrets, names and addresses
    #[arg(long, value_name = "FILE.tar.zst|FILE.tar.gz")]
    bundle: Option<PathBuf>,
    /// Leave names, paths and addresses as they are in the bundle; secrets are left out all the same
    #[arg(long, requires = "bundle")]
    plain_names: bool,
    /// Lines of vbrd's log in the bundle
    #[arg(long, requires = "bundle", value_name = "N", default_value_t = 5_000)]
    lines: u32,
    /// Configuration file of vbrd [default: /etc/vbr/vbrd.toml where it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let report = examine(context, self.config.as_deref()).await;
        if let Some(path) = &self.bundle {
            let wanted = bundle::Wanted {
                path,
                plain_names: self.plain_names,
                lines: self.lines,
                config: self.config.as_deref(),
            };
            bundle::write(context, &report, &wanted).await?;
            return Ok(Exit::Done);
        }
        show(context, &report, self.all)?;
        let critical = report.checks.iter().any(|check| check.state == CheckState::Critical);
        Ok(if critical { Exit::Failed } else { Exit::Done })
    }
}

/// Everything that can be looked at from here.
pub async fn examine(context: &Context, config: Option<&std::path::Path>) -> DoctorReport {
    let mut checks = Vec::new();
    let answer = context.client.get("/v1/doctor").await;
    if context.client.site().is_none() {
        checks.extend(machine::look(context, config, answer.as_ref().err()).await);
    }
    let told = answer.and_then(|document| document.one::<DoctorReport>());
    match told {
        Ok(report) => checks.extend(report.checks),
        Err(failure) => checks.push(silent(&failure)),
    }
    DoctorReport { checks }
}

/// Why vbrd did not look.
fn silent(failure: &Failure) -> Check {
    let body = &failure.body;
    let found = match body.why.is_empty() {
        true => body.what.clone(),
        false => format!("{}: {}", body.what, body.why),
    };
    match failure.kind {
        _ if failure.exit == Exit::NotFound => {
            Check::warning("vbrd", "it is older than this vbrctl and looks at nothing itself", "update vbr")
        }
        // Of what vbrd needs nothing can be said: that is no proof of anything being wrong with it.
        _ if failure.exit == Exit::NotAllowed => Check::warning("vbrd", found, body.next_step.clone()),
        Kind::Gone | Kind::Final | Kind::Silent => Check::critical("vbrd", found, body.next_step.clone()),
    }
}

fn show(context: &Context, report: &DoctorReport, all: bool) -> Result<(), Failure> {
    if context.output.format.is_json() {
        let text = serde_json::to_string(report).unwrap_or_default();
        return context.output.json_object(&text);
    }
    context.output.emit(&render(report, &context.output.view(), all))
}

/// A table of what needs a look, with what to do below it.
pub fn render(report: &DoctorReport, view: &View, all: bool) -> String {
    let count = |state| report.checks.iter().filter(|check| check.state == state).count() as u64;
    let (ok, skipped) = (count(CheckState::Ok), count(CheckState::Skipped));
    let shown: Vec<&Check> = report
        .checks
        .iter()
        .filter(|check| all || view.wide || !matches!(check.state, CheckState::Ok | CheckState::Skipped))
        .collect();
    let mut text = String::new();
    if !shown.is_empty() {
        let mut table = Table::new(view, &["STATE", "WHAT", "FOUND"]);
        for check in &shown {
            let tone = match check.state {
                CheckState::Ok => Tone::Good,
                CheckState::Skipped => Tone::Plain,
                CheckState::Warning => Tone::Watch,
                CheckState::Critical => Tone::Bad,
            };
            table.row(vec![
                Cell::toned(check.state.as_str(), tone),
                check.name.as_str().into(),
                check.found.as_str().into(),
            ]);
        }
        text += &table.finish();
        text.push('\n');
    }
    let steps = shown.iter().filter(|check| !check.next_step.is_empty());
    for check in steps {
        text += &format!("{}: {}\n", human::clean(&check.name), human::clean(&check.next_step));
    }
    let found =
        [(CheckState::Critical, "critical"), (CheckState::Warning, "warning")].map(|(state, word)| {
            let number = count(state);
            (number > 0).then(|| human::count(number, word).replace("criticals", "critical"))
        });
    let found: Vec<String> = found.into_iter().flatten().collect();
    let head = if found.is_empty() { "nothing needs attention".to_owned() } else { found.join(", ") };
    let hint = if all || view.wide { "" } else { " (--all shows them)" };
    text + &format!("{head}; {ok} in order, {skipped} not looked at{hint}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbr_api::Moment;

    #[test]
    fn what_is_shown_and_what_to_do() {
        let view = View { wide: false, color: false, now: Moment::UNIX_EPOCH };
        let checks = vec![
            Check::ok("cache", "fine"),
            Check::warning("clock", "nobody sets it", "timedatectl set-ntp true"),
            Check::critical("disk /a", "it is not there", "check the path"),
            Check::skipped("firewall", "needs root"),
        ];
        let text = render(&DoctorReport { checks: checks.clone() }, &view, false);
        assert_eq!(
            text,
            "STATE     WHAT     FOUND\nwarning   clock    nobody sets it\ncritical  disk /a  it is not there\n\n\
             clock: timedatectl set-ntp true\ndisk /a: check the path\n\
             1 critical, 1 warning; 1 in order, 1 not looked at (--all shows them)\n"
        );
        let text = render(&DoctorReport { checks: checks[..1].to_vec() }, &view, false);
        assert_eq!(text, "nothing needs attention; 1 in order, 0 not looked at (--all shows them)\n");
        assert!(render(&DoctorReport { checks }, &view, true).contains("skipped   firewall"));
    }

    #[test]
    fn why_vbrd_says_nothing() {
        let of = |exit, kind| {
            let mut failure = Failure::new(exit, "x", "Cannot reach vbrd", "refused", "start it");
            failure.kind = kind;
            silent(&failure).state
        };
        assert_eq!(of(Exit::Failed, Kind::Gone), CheckState::Critical);
        assert_eq!(of(Exit::NotAllowed, Kind::Final), CheckState::Warning);
        assert_eq!(of(Exit::NotFound, Kind::Final), CheckState::Warning);
    }
}
