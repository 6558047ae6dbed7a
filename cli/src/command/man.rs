//! `vbrctl man`: man pages into a directory; for the package's build, hidden from the help.

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use crate::args::Arguments;
use crate::exit::Exit;
use crate::failure::Failure;

/// Write the man pages of vbrctl and its commands into a directory
#[derive(Args, Debug)]
pub struct Command {
    directory: PathBuf,
}

impl Command {
    pub fn run(self) -> Result<Exit, Failure> {
        let io = |error| Failure::io("Cannot write the man pages", &self.directory, &error);
        std::fs::create_dir_all(&self.directory).map_err(io)?;
        clap_mangen::generate_to(Arguments::command(), &self.directory).map_err(io)?;
        Ok(Exit::Done)
    }
}
