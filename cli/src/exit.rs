//! Exit statuses: the part of the contract that scripts read.
//!
//! Pure mapping, no IO. A status has one meaning everywhere; nothing outside this file names a number.

use std::process::ExitCode;

use vbr_api::SessionState;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    /// Finished but incomplete: sealed, yet something needs a look.
    Incomplete = 3,
    NotAllowed = 4,
    NotFound = 5,
    /// Still pending, or the wait timed out; the work goes on.
    Pending = 8,
    Interrupted = 130,
}

impl Exit {
    /// The status that a session's state stands for.
    pub fn of_session(state: SessionState) -> Self {
        match state {
            SessionState::Succeeded => Self::Done,
            SessionState::Warning => Self::Incomplete,
            SessionState::Failed | SessionState::Cancelled => Self::Failed,
            SessionState::Pending
            | SessionState::Waiting
            | SessionState::Running
            | SessionState::Suspended => Self::Pending,
        }
    }

    /// The status that an HTTP error of vbrd stands for. 422 is how a body of the wrong shape is refused.
    pub fn of_http(status: u16) -> Self {
        match status {
            400 | 422 => Self::Usage,
            401 | 403 => Self::NotAllowed,
            404 => Self::NotFound,
            _ => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_contract() {
        let all = [
            (Exit::Done, 0u8),
            (Exit::Failed, 1),
            (Exit::Usage, 2),
            (Exit::Incomplete, 3),
            (Exit::NotAllowed, 4),
            (Exit::NotFound, 5),
            (Exit::Pending, 8),
            (Exit::Interrupted, 130),
        ];
        for (exit, number) in all {
            assert_eq!(exit as u8, number);
        }
    }

    #[test]
    fn states_and_answers() {
        assert_eq!(Exit::of_session(SessionState::Succeeded), Exit::Done);
        assert_eq!(Exit::of_session(SessionState::Warning), Exit::Incomplete);
        assert_eq!(Exit::of_session(SessionState::Cancelled), Exit::Failed);
        assert_eq!(Exit::of_session(SessionState::Suspended), Exit::Pending);
        assert_eq!(Exit::of_http(404), Exit::NotFound);
        assert_eq!(Exit::of_http(403), Exit::NotAllowed);
        assert_eq!(Exit::of_http(400), Exit::Usage);
        assert_eq!(Exit::of_http(409), Exit::Failed);
        assert_eq!(Exit::of_http(503), Exit::Failed);
    }
}
