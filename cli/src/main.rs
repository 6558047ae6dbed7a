//! vbrctl: the backup server's console. It defines, orders, watches and reports, and keeps no state:
//! definitions, clock and history live in vbrd, which it asks over a unix socket.
//!
//! This file parses the command line, hears Ctrl-C and turns the end of a command into an exit status.
//! A command is a file under `command/`; what is shared between them lies beside this one.

mod args;
mod carried;
mod client;
mod command;
mod context;
mod dashboard;
mod disk_file;
mod exit;
mod extents;
mod failure;
mod human;
mod json;
mod output;
mod passphrase;
mod progress;
mod reconnect;
mod reference;
mod show;
mod summary;
mod table;
mod wait;

use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Arguments;
use crate::client::Client;
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Format, Output};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    let output = Output::new(arguments.output);
    let client = Client::new(arguments.socket).at(arguments.site);
    let context = Context::new(client, output, arguments.no_input, arguments.patience);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let why = error.to_string();
            output.failure(&Failure::new(
                Exit::Failed,
                "io",
                "Cannot start",
                why,
                "look at the system's limits",
            ));
            return Exit::Failed.into();
        }
    };
    let end = runtime.block_on(run(&context, arguments.noun));
    passphrase::restore_terminal();
    // A thread that still waits for an answer on the terminal must not hold us.
    runtime.shutdown_background();
    match end {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output.failure(&failure);
            failure.exit.into()
        }
    }
}

/// The command, or the signal that ends it first. Dropping the command removes what it had unfinished.
async fn run(context: &Context, noun: args::Noun) -> Result<Exit, Failure> {
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
        return command::run(context, noun).await;
    };
    tokio::select! {
        end = command::run(context, noun) => return end,
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    context.output.note(&context.interrupt_note().unwrap_or_else(|| "interrupted".into()));
    Ok(Exit::Interrupted)
}

/// Help goes to stdout with 0; a wrong command line to stderr with 2, as JSON where JSON was asked for.
fn usage(error: &clap::Error) -> ExitCode {
    let wants_json = args::asks_for_json(std::env::args_os());
    if error.use_stderr() && wants_json {
        let text = error.render().to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_string();
        let failure =
            Failure::usage("The command line is wrong", first, "see vbrctl --help, or --help of the command");
        Output::new(Format::Json).failure(&failure);
    } else {
        let _ = error.print();
    }
    if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() }
}
