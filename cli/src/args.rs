//! The command line: nouns, and the options that stand before or after any of them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::command;
use crate::human;
use crate::output::Format;

/// Console of vbr: replication of VM disks between sites.
///
/// Sizes are shown in binary units (1 MiB = 1,048,576 bytes), link rates in decimal bits a second; in JSON sizes
/// are bytes, times milliseconds and moments RFC 3339 in UTC.
///
/// Exit status: 0 done, 1 failed, 2 usage, 3 finished but incomplete, 4 not allowed, 5 not found,
/// 8 still pending or timed out, 130 interrupted.
#[derive(Parser, Debug)]
#[command(name = "vbrctl", version, arg_required_else_help = true, after_help = EXAMPLE)]
pub struct Arguments {
    /// Socket of the vbrd to talk to
    #[arg(
        long,
        global = true,
        env = "VBR_SOCKET",
        value_name = "PATH",
        default_value = "/run/vbr/vbrd.sock",
        help_heading = "Everywhere"
    )]
    pub socket: PathBuf,

    /// Have this peer carry out the command, over the link of the local vbrd; the peer must have granted `manage`
    #[arg(long, global = true, value_name = "PEER", help_heading = "Everywhere")]
    pub site: Option<String>,

    /// Form of the result; jsonl is one object a line. Errors and progress always go to stderr
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORM",
        value_enum,
        default_value_t,
        help_heading = "Everywhere"
    )]
    pub output: Format,

    /// Never ask; what would need an answer fails with status 2
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub no_input: bool,

    /// How long a waiting command outlives a vbrd that does not answer
    #[arg(long, global = true, hide = true, value_name = "TIME", default_value = "60s", value_parser = human::parse_span)]
    pub patience: Duration,

    #[command(subcommand)]
    pub noun: Noun,
}

const EXAMPLE: &str = "\
Example: the first replication from a site (socket S) to another (socket T)
  vbrctl --socket T peer invite
  vbrctl --socket S peer join CODE
  vbrctl --socket S job create web --disk /srv/vm/web.img --target dr --keep 14
  vbrctl --socket S job run web --wait
  vbrctl --socket T restore-point list web";

#[derive(Subcommand, Debug)]
pub enum Noun {
    Setup(command::setup::Command),
    Doctor(command::doctor::Command),
    Status(command::status::Command),
    #[command(subcommand)]
    Peer(command::peer::Command),
    #[command(subcommand)]
    Host(command::host::Command),
    #[command(subcommand)]
    Vm(command::vm::Command),
    #[command(subcommand)]
    Job(command::job::Command),
    #[command(subcommand)]
    Session(command::session::Command),
    #[command(subcommand)]
    Repository(command::repository::Command),
    #[command(subcommand)]
    Replica(command::replica::Command),
    #[command(subcommand)]
    RestorePoint(command::restore_point::Command),
    #[command(subcommand)]
    Failover(command::failover::Command),
    #[command(subcommand)]
    Failback(command::failback::Command),
    #[command(subcommand)]
    Throttle(command::throttle::Command),
    #[command(subcommand)]
    Task(command::task::Command),
    #[command(subcommand)]
    Notify(command::notify::Command),
    #[command(subcommand)]
    Cache(command::cache::Command),
    #[command(subcommand)]
    State(command::state::Command),
    #[command(subcommand)]
    Audit(command::audit::Command),
    Check(command::check::Command),
    #[command(subcommand)]
    Config(command::config::Command),
    Completion(command::completion::Command),
    #[command(hide = true)]
    Man(command::man::Command),
    #[command(hide = true)]
    Reference(command::reference::Command),
}

/// True where the words ask for JSON; used only when they could not be parsed.
pub fn asks_for_json(words: impl IntoIterator<Item = OsString>) -> bool {
    let words: Vec<String> = words.into_iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let is_json = |form: &str| matches!(form, "json" | "jsonl");
    let pair =
        words.windows(2).any(|pair| matches!(pair[0].as_str(), "-o" | "--output") && is_json(&pair[1]));
    pair || words.iter().any(|word| {
        let form = word.strip_prefix("--output=").or_else(|| word.strip_prefix("-o"));
        form.is_some_and(|form| is_json(form.trim_start_matches('=')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        fn look(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            if !command.has_subcommands() && !command.is_hide_set() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example"), "{path} has no example");
                assert!(command.get_about().is_some(), "{path} says nothing of itself");
            }
            command.get_subcommands().for_each(|sub| look(sub, &path));
        }
        look(&Arguments::command(), "");
    }

    #[test]
    fn options_before_and_after_the_noun() {
        for words in [
            &["vbrctl", "--socket", "/s", "-o", "json", "job", "list"][..],
            &["vbrctl", "job", "list", "--socket", "/s", "-ojson"],
            &["vbrctl", "job", "--output=json", "list", "--socket=/s"],
            &["vbrctl", "job", "list", "--socket=/s", "--site", "branch-7", "-o", "json"],
        ] {
            let arguments = Arguments::try_parse_from(words).unwrap();
            assert_eq!(arguments.socket, PathBuf::from("/s"));
            assert_eq!(arguments.output, Format::Json);
            assert!(asks_for_json(words.iter().map(OsString::from)));
        }
        assert!(!asks_for_json(["vbrctl", "-o", "table", "x"].map(OsString::from)));
    }

    #[test]
    fn what_is_not_offered_yet_is_refused() {
        for more in [&["--priority", "urgent"][..], &["--quiesce"], &["--site"]] {
            let mut words = vec!["vbrctl", "job", "create", "web", "--disk", "/a", "--target", "dr"];
            assert!(Arguments::try_parse_from(&words).is_ok());
            words.extend(more);
            assert_eq!(Arguments::try_parse_from(&words).unwrap_err().exit_code(), 2, "{more:?}");
        }
    }
}
