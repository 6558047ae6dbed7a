//! The one error that reaches an operator: what failed, why, what to do next.
//!
//! Modules have an enum each (`thiserror`) and turn it into [`Problem`] at the boundary to the
//! management API; the wire carries the same shape in a `Fail`.

use serde::{Deserialize, Serialize};
use vbr_api::ErrorBody;

/// An error as the operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what}: {why}")]
pub struct Problem {
    /// Machine-readable, stable, snake_case: `not_found`, `datastore_full`, …
    pub code: String,
    /// What failed, with the name of the thing.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to do next.
    pub next_step: String,
    /// True where the same order may succeed later without a change.
    pub retry: bool,
}

impl Problem {
    /// A problem that will stay until somebody acts.
    pub fn new(
        code: &str,
        what: impl Into<String>,
        why: impl Into<String>,
        next_step: impl Into<String>,
    ) -> Self {
        Self {
            code: code.into(),
            what: what.into(),
            why: why.into(),
            next_step: next_step.into(),
            retry: false,
        }
    }

    /// The same, but worth another try.
    pub fn retry(mut self) -> Self {
        self.retry = true;
        self
    }

    /// `not_found`: exit status 5 of the console.
    pub fn not_found(what: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self::new("not_found", what, "no such thing is known here", next_step)
    }

    /// `invalid`: the order itself is wrong; exit status 2 of the console.
    pub fn invalid(what: impl Into<String>, why: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self::new("invalid", what, why, next_step)
    }

    /// `not_allowed`: exit status 4 of the console.
    pub fn not_allowed(
        what: impl Into<String>,
        why: impl Into<String>,
        next_step: impl Into<String>,
    ) -> Self {
        Self::new("not_allowed", what, why, next_step)
    }

    /// `conflict`: exists with another definition, or is in a state that forbids the order.
    pub fn conflict(what: impl Into<String>, why: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self::new("conflict", what, why, next_step)
    }

    /// An input or output error with the name of what was touched.
    pub fn io(what: impl Into<String>, error: &std::io::Error) -> Self {
        let next = match error.kind() {
            std::io::ErrorKind::PermissionDenied => "give the user of vbrd access to it, then try again",
            std::io::ErrorKind::NotFound => "check the path, then try again",
            std::io::ErrorKind::StorageFull => "free some space, then try again",
            _ => "look at the kernel log for the device, then try again",
        };
        Self::new("io", what, error.to_string(), next).retry()
    }

    /// The shape of the management API.
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            code: self.code.clone(),
            what: self.what.clone(),
            why: self.why.clone(),
            next_step: self.next_step.clone(),
            retry: self.retry,
        }
    }
}
