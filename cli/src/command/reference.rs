//! `vbrctl reference`: all commands as Markdown on standard output; for docs/commands.md, hidden from the help.

use std::io::Write;
use std::path::Path;

use clap::{Args, CommandFactory};

use crate::args::Arguments;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::reference::markdown;

/// Print the reference of all commands
#[derive(Args, Debug)]
pub struct Command {}

impl Command {
    pub fn run(self) -> Result<Exit, Failure> {
        let text = markdown(Arguments::command());
        std::io::stdout().write_all(text.as_bytes()).map_err(|error| {
            Failure::io("Cannot write the reference", Path::new("standard output"), &error)
        })?;
        Ok(Exit::Done)
    }
}
