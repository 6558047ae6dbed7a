//! Why a command did not do what was asked: what failed, why, what to do next, and the exit status.
//!
//! One type for what vbrd answers and for what goes wrong here. It is shown in `main` and nowhere else.

use std::io::{self, ErrorKind};
use std::path::Path;

use vbr_api::{ErrorBody, ErrorResponse, SCHEMA};

use crate::exit::Exit;
use crate::human;

/// A command's failure.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub kind: Kind,
    pub body: ErrorBody,
}

/// What a caller may do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Show it.
    Final,
    /// vbrd is away (restarting, perhaps): whoever waits may ask again.
    Gone,
    /// Nobody reads our output any more: end without a word.
    Silent,
}

impl Failure {
    pub fn new(
        exit: Exit,
        code: &str,
        what: impl Into<String>,
        why: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        let body = ErrorBody {
            code: code.into(),
            what: what.into(),
            why: why.into(),
            next_step: next.into(),
            retry: false,
        };
        Self { exit, kind: Kind::Final, body }
    }

    /// The order itself is wrong.
    pub fn usage(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "usage", what, why, next)
    }

    /// A file or device on this side.
    pub fn io(what: impl Into<String>, path: &Path, error: &io::Error) -> Self {
        let next = match error.kind() {
            ErrorKind::PermissionDenied => "run vbrctl as a user who may write there, or choose another path",
            ErrorKind::NotFound => "check the path, then try again",
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space, then try again",
            ErrorKind::FileTooLarge => {
                "the file system there takes no files of this size (FAT does not); use one that does, ext4 or exFAT"
            }
            ErrorKind::AlreadyExists => "choose another path, or pass --force to replace it",
            ErrorKind::ResourceBusy => "unmount it or stop what uses it, then try again",
            _ => "check the path and the kernel log, then try again",
        };
        Self::new(Exit::Failed, "io", what, format!("{}: {error}", path.display()), next)
    }

    /// vbrd cannot be reached, or the connection broke.
    pub fn gone(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        let mut failure = Self::new(Exit::Failed, "unreachable", what, why, next);
        failure.kind = Kind::Gone;
        failure.body.retry = true;
        failure
    }

    /// Standard output is closed.
    pub fn silent() -> Self {
        let mut failure = Self::new(Exit::Failed, "output_closed", "", "", "");
        failure.kind = Kind::Silent;
        failure
    }

    /// Standard output could not be written.
    pub fn output(error: &io::Error) -> Self {
        if error.kind() == ErrorKind::BrokenPipe {
            return Self::silent();
        }
        Self::io("Cannot write the result", Path::new("standard output"), error)
    }

    /// Three lines for a person.
    pub fn to_text(&self) -> String {
        let line = |text: &str| human::clean(&text.replace('\n', " "));
        let mut text = format!("error: {}\n", line(&self.body.what));
        if !self.body.why.is_empty() {
            text.push_str(&format!("  why:  {}\n", line(&self.body.why)));
        }
        if !self.body.next_step.is_empty() {
            text.push_str(&format!("  next: {}\n", line(&self.body.next_step)));
        }
        text
    }

    /// One line for a program.
    pub fn to_json(&self) -> String {
        let response = ErrorResponse { schema: SCHEMA, error: self.body.clone() };
        serde_json::to_string(&response).unwrap_or_default() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_lines_and_no_control_characters() {
        let failure = Failure::usage("bad \x1b[31m name", "because\nof that", "do this");
        assert_eq!(failure.to_text(), "error: bad ?[31m name\n  why:  because of that\n  next: do this\n");
    }

    #[test]
    fn json_shape() {
        let failure = Failure::new(Exit::NotFound, "not_found", "No job x", "unknown", "list them");
        assert_eq!(
            failure.to_json(),
            "{\"schema\":1,\"error\":{\"code\":\"not_found\",\"what\":\"No job x\",\"why\":\"unknown\",\"next_step\":\"list them\",\"retry\":false}}\n"
        );
    }
}
