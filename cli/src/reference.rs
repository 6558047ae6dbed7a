//! The reference of all commands as Markdown, from the same definitions as `--help`. Pure.
//!
//! `docs/commands.md` is this text; a test compares them.

use std::fmt::Write;

use clap::{Arg, Command};

const HEAD: &str = "\
# Commands

Written by `make docs` from the definitions behind `vbrctl --help`; nothing here is edited by hand. `vbrctl COMMAND --help` says the
same, and so do the man pages (`man vbrctl-job-create`).
";

/// The whole document.
pub fn markdown(mut command: Command) -> String {
    command.build();
    let mut out = HEAD.to_owned();
    if let Some(about) = command.get_long_about().or_else(|| command.get_about()) {
        let _ = write!(out, "\n{}\n", about.to_string().trim());
    }
    out.push_str("\n## Everywhere\n\nThese options stand before or after any command.\n");
    options(&mut out, command.get_arguments().filter(|arg| arg.is_global_set()));
    example(&mut out, &command);
    for noun in visible(&command) {
        let _ = write!(out, "\n## {}\n", name(noun));
        describe(&mut out, noun);
        verbs(&mut out, noun);
    }
    out
}

fn verbs(out: &mut String, noun: &Command) {
    for verb in visible(noun) {
        let _ = write!(out, "\n### {}\n", name(verb));
        describe(out, verb);
        verbs(out, verb);
    }
}

fn describe(out: &mut String, command: &Command) {
    if let Some(about) = command.get_long_about().or_else(|| command.get_about()) {
        let about = about.to_string();
        let about = about.trim();
        let end = if about.ends_with(['.', ')', ':']) { "" } else { "." };
        let _ = write!(out, "\n{about}{end}\n");
    }
    if command.has_subcommands() {
        return;
    }
    let usage = command.clone().render_usage().to_string();
    let _ = write!(out, "\n```\n{}\n```\n", usage.trim_start_matches("Usage: ").trim());
    options(out, command.get_arguments().filter(|arg| !arg.is_global_set()));
    example(out, command);
}

fn options<'a>(out: &mut String, args: impl Iterator<Item = &'a Arg>) {
    let rows: Vec<String> =
        args.filter(|arg| !arg.is_hide_set() && arg.get_id() != "help").map(row).collect();
    if !rows.is_empty() {
        let _ = write!(out, "\n| | |\n|---|---|\n{}\n", rows.join("\n"));
    }
}

fn row(arg: &Arg) -> String {
    let mut forms = arg.to_string();
    if let (Some(short), false) = (arg.get_short(), arg.is_positional()) {
        forms = format!("-{short}, {forms}");
    }
    let help = arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut text = help.split_whitespace().collect::<Vec<_>>().join(" ");
    if arg.get_action().takes_values() {
        let values: Vec<String> = arg
            .get_possible_values()
            .iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        if !values.is_empty() {
            let _ = write!(text, "; one of {}", values.join(", "));
        }
        let defaults: Vec<String> =
            arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
        if !defaults.is_empty() {
            let _ = write!(text, " (default {})", defaults.join(" "));
        }
        if let Some(variable) = arg.get_env() {
            let _ = write!(text, " (environment: `{}`)", variable.to_string_lossy());
        }
    }
    format!("| `{}` | {} |", cell(&forms), cell(&text))
}

/// A bar would end the cell, also within code.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn example(out: &mut String, command: &Command) {
    if let Some(help) = command.get_after_help() {
        let help = help.to_string();
        let lines: Vec<&str> = help.trim().lines().collect();
        let mut code = false;
        out.push('\n');
        for line in lines {
            let is_code = line.starts_with("  ");
            if is_code != code {
                out.push_str("```\n");
                code = is_code;
            }
            let _ = writeln!(out, "{}", line.strip_prefix("  ").unwrap_or(line));
        }
        if code {
            out.push_str("```\n");
        }
    }
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
}

fn name(command: &Command) -> &str {
    command.get_bin_name().unwrap_or_else(|| command.get_name())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Arguments;

    #[test]
    fn the_document_is_up_to_date() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/commands.md");
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == markdown(Arguments::command()),
            "docs/commands.md is out of date: run `make docs`"
        );
    }

    #[test]
    fn every_command_and_option_is_in_it() {
        fn look(command: &Command, text: &str) {
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set() && arg.get_id() != "help") {
                if let Some(long) = arg.get_long().filter(|long| *long != "version") {
                    assert!(
                        text.contains(&format!("`--{long}")) || text.contains(&format!(", --{long}")),
                        "{long}"
                    );
                }
            }
            for sub in visible(command) {
                assert!(text.contains(&format!("# {}\n", name(sub))), "{}", name(sub));
                look(sub, text);
            }
        }
        let mut command = Arguments::command();
        command.build();
        let text = markdown(Arguments::command());
        look(&command, &text);
        assert!(!text.contains("# vbrctl man\n") && !text.contains("--patience"), "hidden ones stay hidden");
        assert_eq!(text.lines().filter(|line| line.starts_with("```")).count() % 2, 0);
    }
}
