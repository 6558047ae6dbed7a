//! `vbrctl setup`: a new site, step by step.
//!
//! `answers` are flags and questions, `access` finds what vbrd lacks to read the disks, `advice` says how large the cache
//! should be, `plan` makes steps of what differs and does them (`config_file`, `drop_in`), `machine` is what all of it is done
//! to. Then, here: the service is restarted, vbrd itself proves that it reads the disks, sites are paired.
//!
//! Can be run again: what is so already is no step. Nothing is changed before the operator agreed.

mod access;
mod advice;
mod answers;
mod config_file;
mod drop_in;
mod machine;
mod pairing;
mod plan;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use vbr_api::{Check, CheckState, DisksRequest, DoctorReport};

use self::answers::{Answers, Role};
use self::machine::{Machine, USER};
use self::pairing::Joined;
use self::plan::{Present, Step};
use super::Yes;
use crate::command::doctor::machine::text_of;
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;

const CONFIG: &str = "/etc/vbr/vbrd.toml";
const DROP_IN: &str = "/etc/systemd/system/vbrd.service.d/50-vbr-setup.conf";
/// Re-indexing after a crash takes longer; then setup says so.
const STARTED_WITHIN: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Set up this site: name, datastore, cache, listener, access to disks, pairing
///
/// Asks on a terminal for what no flag says, shows what it would change, and changes it once you agree: keys in
/// /etc/vbr/vbrd.toml (comments stay, the old file is kept), a drop-in of vbrd.service, ACLs for disks, the datastore's
/// directory. Then restarts vbrd, has it prove that it reads the disks, and pairs. Running it again changes what is new.
/// Needs root.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  sudo vbrctl setup\n  sudo vbrctl setup --name dr --role target --datastore /srv/replicas \
                        --advertise dr.example.com --invite --yes\n  sudo vbrctl setup --name branch-7 --role source --disks \
                        /srv/vm --join CODE --yes\n\nExit status: 0 done, also where nothing had to change; 1 where a disk \
                        is still not readable; 4 without root."
)]
pub struct Command {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    yes: Yes,
    /// Show what would be changed, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Set up the machine whose files lie below this directory; nothing is started
    #[arg(long, hide = true, value_name = "DIR")]
    root: Option<PathBuf>,
}

/// What is wanted.
#[derive(Args, Debug)]
pub struct Flags {
    /// Name of this site at its peers
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// What the site is for: questions that do not matter for it are left out
    #[arg(long, value_enum)]
    role: Option<Role>,
    /// Directory where replicas are kept; made where it is missing
    #[arg(long, value_name = "DIR")]
    datastore: Option<PathBuf>,
    /// Size of the cache (20GiB); auto: 5 % of --disks, at most a fifth of its file system
    #[arg(long, value_name = "SIZE|auto")]
    cache_size: Option<String>,
    /// Where peers may connect: a port or a multiaddr; none: nowhere, this site connects to others
    #[arg(long, value_name = "ADDRESS", num_args = 1..)]
    listen: Vec<String>,
    /// Name or address that invitations carry, where peers reach this site under another one than its own
    #[arg(long, value_name = "ADDRESS", num_args = 1..)]
    advertise: Vec<String>,
    /// Disks, or directories with images, that vbrd is to read
    #[arg(long, value_name = "PATH", num_args = 1..)]
    disks: Vec<PathBuf>,
    /// User who may order everything (group vbradm)
    #[arg(long, value_name = "USER", num_args = 1..)]
    admin: Vec<String>,
    /// Pair with the site that gave this code; - reads it from stdin
    #[arg(long, value_name = "CODE", conflicts_with = "root")]
    join: Option<String>,
    /// Print a code for another site (alone on stdout)
    #[arg(long, conflicts_with = "root")]
    invite: bool,
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let machine = Machine::new(self.root.clone());
        self.check_caller(context)?;
        let who = machine.vbrd().ok_or_else(|| {
            let next = "install the package vbr, then run setup again";
            Failure::new(
                Exit::Failed,
                "not_installed",
                "Cannot set up this site",
                format!("there is no user {USER}"),
                next,
            )
        })?;
        let present = Present::read(&machine)?;
        let mut answers = Answers::of_flags(&self.flags, &present)?;
        if answers.join.as_deref() == Some("-") {
            answers.join = Some(super::peer::read_code()?);
        }
        if context.may_ask() && !self.yes.yes && !self.dry_run && !context.output.format.is_json() {
            answers.ask(context, &self.flags, &machine, &present).await?;
        }
        let clones: Vec<PathBuf> = present
            .list(&["source", "snapshot_dirs"])
            .unwrap_or_default()
            .into_iter()
            .map(PathBuf::from)
            .collect();
        let access = access::look(&machine, who, &answers.disks, &present.drop_in, &clones)?;
        let steps = plan::steps(&machine, who, &present, &answers, &access)?;
        self.check_tools(&access)?;
        show(context, &steps, self.dry_run);
        if self.dry_run {
            return report(context, &Outcome { steps: &steps, ..Outcome::default() });
        }
        if !steps.is_empty() {
            context.confirm("Change this", self.yes.yes).await?;
        }
        for step in &steps {
            plan::carry_out(&machine, step)?;
            context.output.note(&format!("done: {}", step.what));
        }
        let mut outcome = Outcome { steps: &steps, changed: !steps.is_empty(), ..Outcome::default() };
        if machine.is_live() {
            finish(context, &answers, &access.disks, &mut outcome).await?;
        }
        let exit = report(context, &outcome)?;
        context.output.note(&next(&answers, access.disks.first(), &outcome));
        Ok(exit)
    }

    fn check_caller(&self, context: &Context) -> Result<(), Failure> {
        if context.client.site().is_some() {
            let next = "run vbrctl setup at that site";
            return Err(Failure::new(
                Exit::NotAllowed,
                "not_allowed",
                "Cannot set up another site",
                "setup changes files of this machine",
                next,
            ));
        }
        if self.dry_run || rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let words: Vec<String> = std::env::args().skip(1).map(quoted).collect();
        Err(Failure::new(
            Exit::NotAllowed,
            "not_allowed",
            "Cannot set up this site",
            format!("setup writes {CONFIG} and drop-ins of vbrd.service, and you are not root"),
            format!("sudo vbrctl {}   (--dry-run shows what it would change)", words.join(" ")),
        ))
    }

    fn check_tools(&self, access: &access::Access) -> Result<(), Failure> {
        let missing = !access.acls.is_empty()
            && !std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .any(|dir| dir.join("setfacl").exists());
        if missing && !self.dry_run {
            let why = "the disks need ACLs, and the program setfacl is missing";
            return Err(Failure::new(
                Exit::Failed,
                "missing",
                "Cannot give vbrd access to the disks",
                why,
                "apt install acl; nothing was changed",
            ));
        }
        Ok(())
    }
}

/// What came of it.
#[derive(Default)]
struct Outcome<'a> {
    steps: &'a [Step],
    changed: bool,
    /// Whether vbrd reads the disks, and what else it finds.
    checks: Vec<Check>,
    peer: Option<String>,
    invitation: Option<String>,
}

fn show(context: &Context, steps: &[Step], dry_run: bool) {
    if steps.is_empty() {
        context.output.note("Nothing to change: this site is as you want it.");
        return;
    }
    context.output.note(if dry_run { "Would:" } else { "To do:" });
    steps.iter().for_each(|step| context.output.note(&format!("  - {}", step.what)));
}

/// Service, proof, pairing.
async fn finish(
    context: &Context,
    answers: &Answers,
    disks: &[PathBuf],
    outcome: &mut Outcome<'_>,
) -> Result<(), Failure> {
    if outcome.steps.iter().any(|step| step.action.restarts()) {
        restart(context).await?;
    }
    let wants_vbrd = !disks.is_empty() || answers.join.is_some() || answers.invite || outcome.changed;
    if !wants_vbrd {
        return Ok(());
    }
    answering(context).await?;
    if !disks.is_empty() {
        let disks = disks.iter().map(|disk| disk.display().to_string()).collect();
        let report: DoctorReport =
            context.client.post_json("/v1/doctor/disks", &DisksRequest { disks }).await?.one()?;
        outcome.checks.extend(report.checks);
    }
    if let Some(code) = &answers.join {
        outcome.peer = Some(match pairing::join(context, code).await? {
            Joined::Now(peer) => {
                outcome.changed = true;
                context.output.note(&format!("done: paired with {peer}"));
                peer
            }
            Joined::Before(peer) => {
                context.output.note(&format!("This site is paired with {peer} already."));
                peer
            }
        });
    }
    if answers.invite {
        let invite = pairing::invite(context).await?;
        context.output.note(&format!(
            "For the other site, good once, until {}: sudo vbrctl setup --join CODE, or vbrctl peer join CODE",
            invite.expires_at
        ));
        outcome.invitation = Some(invite.code);
    }
    // Of the rest, what needs somebody.
    let rest = context.client.get("/v1/doctor").await.and_then(|document| document.one::<DoctorReport>());
    let seen: Vec<Check> = rest.map(|report| report.checks).unwrap_or_default();
    outcome.checks.extend(
        seen.into_iter().filter(|check| check.state >= CheckState::Warning && check.name != "pairing"),
    );
    Ok(())
}

async fn restart(context: &Context) -> Result<(), Failure> {
    if !std::path::Path::new("/run/systemd/system").is_dir() {
        context.output.note("systemd does not run here: restart vbrd yourself, so that it takes this over.");
        return Ok(());
    }
    for words in [&["daemon-reload"][..], &["restart", "vbrd.service"]] {
        let failed = |why: String| {
            Failure::new(
                Exit::Failed,
                "service",
                "vbrd does not start with this",
                why,
                format!(
                    "see why: journalctl -u vbrd -n 50; the old configuration lies beside {CONFIG}, and {DROP_IN} can be removed"
                ),
            )
        };
        let output = tokio::process::Command::new("systemctl").args(words).output().await;
        let output = output.map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")));
        }
    }
    context.output.note("done: vbrd restarted");
    Ok(())
}

/// Waits until vbrd answers.
async fn answering(context: &Context) -> Result<(), Failure> {
    let end = Instant::now() + STARTED_WITHIN;
    loop {
        let failure = match context.client.get("/v1/status").await {
            Ok(_) => return Ok(()),
            Err(failure) => failure,
        };
        let state = text_of("systemctl", &["show", "vbrd.service", "--property=ActiveState"])
            .await
            .unwrap_or_default();
        let is_starting =
            state.contains("activating") || state.contains("=active") || state.contains("reloading");
        if Instant::now() > end || !is_starting {
            return Err(failure);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn report(context: &Context, outcome: &Outcome<'_>) -> Result<Exit, Failure> {
    let failed = outcome.checks.iter().any(|check| check.state == CheckState::Critical);
    let exit = if failed { Exit::Failed } else { Exit::Done };
    if context.output.format.is_json() {
        let steps: Vec<&str> = outcome.steps.iter().map(|step| step.what.as_str()).collect();
        let text = json!({
            "changed": outcome.changed, "steps": steps, "checks": outcome.checks,
            "peer": outcome.peer, "invitation": outcome.invitation,
        });
        context.output.json_object(&text.to_string())?;
        return Ok(exit);
    }
    for check in &outcome.checks {
        let next = if check.next_step.is_empty() {
            String::new()
        } else {
            format!("\n    next: {}", check.next_step)
        };
        context.output.note(&format!("{}: {}: {}{next}", check.state.as_str(), check.name, check.found));
    }
    if let Some(code) = &outcome.invitation {
        context.output.emit(code)?;
    }
    Ok(exit)
}

/// What to type now.
fn next(answers: &Answers, disk: Option<&PathBuf>, outcome: &Outcome<'_>) -> String {
    let disk = disk.map_or("/srv/vm/web.img".into(), |disk| quoted(disk.display().to_string()));
    match (&outcome.peer, answers.role) {
        (Some(peer), role) if role.is_source() => {
            format!(
                "Next: vbrctl job create web --disk {disk} --target {peer} --every 1h --keep 14, then vbrctl job run web --wait"
            )
        }
        (Some(_), _) => "Next: vbrctl status".into(),
        (None, role) if outcome.invitation.is_none() && role.is_target() => {
            "Next: vbrctl peer invite here, and at the other site: sudo vbrctl setup --join CODE".into()
        }
        (None, Role::Source) => {
            "Next: vbrctl peer invite at the target, and here: vbrctl peer join CODE".into()
        }
        _ => "Next: vbrctl doctor".into(),
    }
}

/// A word as a shell takes it.
fn quoted(word: String) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_for_a_shell() {
        let quoted = |word: &str| super::quoted(word.to_owned());
        assert_eq!(
            [quoted("--disks"), quoted("/a b"), quoted("it's"), quoted("")],
            ["--disks", "'/a b'", "'it'\\''s'", "''"]
        );
    }
}
