//! What every command gets: the client, the output, and whether it may ask.
//!
//! Owns the note that is shown when the command is interrupted (what goes on without us).

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use crate::client::Client;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;

pub struct Context {
    pub client: Client,
    pub output: Output,
    pub no_input: bool,
    /// How long a waiting command outlives a vbrd that is away.
    pub patience: Duration,
    interrupt_note: RefCell<Option<String>>,
}

impl Context {
    pub fn new(client: Client, output: Output, no_input: bool, patience: Duration) -> Self {
        Self { client, output, no_input, patience, interrupt_note: RefCell::new(None) }
    }

    /// What to say when the user interrupts from here on.
    pub fn on_interrupt(&self, note: String) {
        *self.interrupt_note.borrow_mut() = Some(note);
    }

    pub fn interrupt_note(&self) -> Option<String> {
        self.interrupt_note.borrow().clone()
    }

    /// Asks on a terminal. A script has none and means what it says, as with `rm`; `--no-input` forbids to
    /// ask and therefore wants `--yes`.
    pub async fn confirm(&self, what: &str, yes: bool) -> Result<(), Failure> {
        if yes {
            return Ok(());
        }
        if self.no_input {
            return Err(Failure::usage(
                format!("Not done: {what}"),
                "--no-input forbids to ask",
                "pass --yes to do it without being asked",
            ));
        }
        if !self.may_ask() {
            return Ok(());
        }
        if ask(format!("{what}? [y/N] ")).await {
            return Ok(());
        }
        Err(Failure::new(Exit::Failed, "declined", format!("Not done: {what}"), "you did not say yes", ""))
    }

    /// True where a person can be asked.
    pub fn may_ask(&self) -> bool {
        !self.no_input && io::stdin().is_terminal() && io::stderr().is_terminal()
    }
}

/// Reads on a thread of its own, so that Ctrl-C is heard meanwhile.
async fn ask(question: String) -> bool {
    let answer = tokio::task::spawn_blocking(move || {
        let mut stderr = io::stderr();
        let _ = stderr.write_all(question.as_bytes());
        let _ = stderr.flush();
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line).unwrap_or_default()
    });
    matches!(answer.await.unwrap_or_default().trim(), "y" | "Y" | "yes" | "Yes" | "YES")
}
