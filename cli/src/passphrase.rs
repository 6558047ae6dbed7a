//! A passphrase: the first line of a file, or asked for on a terminal that does not show it.
//!
//! Owns the terminal's settings while it asks: they come back when it is over, or with [`restore_terminal`] where the
//! command ends first. Bound: [`BYTES_MAX`].

use std::io::{self, Read, Write};
use std::sync::{Mutex, PoisonError};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::exit::Exit;
use crate::failure::Failure;

/// More than that is another file.
const BYTES_MAX: u64 = 1024;

/// The first line, without its end.
pub fn first_line(from: &mut impl Read) -> io::Result<String> {
    let mut text = Vec::new();
    from.take(BYTES_MAX).read_to_end(&mut text)?;
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8(line.to_vec()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Asks, and a second time where a slip would lock somebody out.
pub async fn ask(twice: bool) -> Result<String, Failure> {
    // On a thread of its own, so that Ctrl-C is heard meanwhile.
    let asked = tokio::task::spawn_blocking(move || -> io::Result<Option<String>> {
        let first = prompt("Passphrase: ")?;
        if twice && prompt("Again: ")? != first {
            return Ok(None);
        }
        Ok(Some(first))
    });
    match asked.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(Some(passphrase)) => Ok(passphrase),
        Ok(None) => Err(Failure::usage("No passphrase", "the two are not the same", "try again")),
        Err(error) => Err(Failure::new(
            Exit::Failed,
            "io",
            "Cannot ask for the passphrase",
            error.to_string(),
            "give a file with --passphrase-file PATH",
        )),
    }
}

/// How the terminal was before it was asked on.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Shows what is typed again, if it does not.
pub fn restore_terminal() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

fn prompt(question: &str) -> io::Result<String> {
    let before = tcgetattr(io::stdin())?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
    tcsetattr(io::stdin(), OptionalActions::Now, &silent)?;
    let mut stderr = io::stderr();
    stderr.write_all(question.as_bytes())?;
    stderr.flush()?;
    let mut line = String::new();
    let read = io::stdin().read_line(&mut line);
    restore_terminal();
    read?;
    let _ = stderr.write_all(b"\n");
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_counts() {
        let line = |text: &str| first_line(&mut text.as_bytes()).unwrap();
        assert_eq!(line("correct horse\nnot this\n"), "correct horse");
        assert_eq!(line("correct horse\r\n"), "correct horse");
        assert_eq!((line("no end"), line("")), ("no end".into(), String::new()));
        assert!(first_line(&mut &b"\xff\xfe"[..]).is_err());
    }
}
