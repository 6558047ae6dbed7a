//! `vbrctl completion`: completions for shells.

use clap::{Args, CommandFactory, ValueEnum};

use crate::args::Arguments;
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;

/// Print completions for a shell
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vbrctl completion bash > /usr/share/bash-completion/completions/vbrctl")]
pub struct Command {
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Command {
    pub fn run(self, context: &Context) -> Result<Exit, Failure> {
        let shell = match self.shell {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Zsh => clap_complete::Shell::Zsh,
            Shell::Fish => clap_complete::Shell::Fish,
        };
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Arguments::command(), "vbrctl", &mut text);
        context.output.emit(&String::from_utf8_lossy(&text))?;
        Ok(Exit::Done)
    }
}
