//! Types of the management API: everything that `vbrctl` and `vbrd` say to each other.
//!
//! No IO, no logic. Fields are added, never renamed: `"schema": 1` is a promise. Sizes are integers
//! in bytes, durations in milliseconds, moments RFC 3339 in UTC.
#![allow(missing_docs)]

mod audit;
mod doctor;
mod housekeeping;
mod job;
mod life;
mod session;
mod site;
mod storage;
mod throttle;
mod vm;
mod warm;

pub use audit::*;
pub use doctor::*;
pub use housekeeping::*;
pub use job::*;
pub use life::*;
pub use session::*;
pub use site::*;
pub use storage::*;
pub use throttle::*;
pub use vm::*;
pub use warm::*;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The version of the JSON shapes.
pub const SCHEMA: u32 = 1;

/// A moment: RFC 3339, UTC.
pub type Moment = jiff::Timestamp;

/// What failed, why, what to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    pub code: String,
    pub what: String,
    pub why: String,
    pub next_step: String,
    pub retry: bool,
}

/// An error response: `{"schema":1,"error":{…}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorResponse {
    pub schema: u32,
    pub error: ErrorBody,
}

/// A list response: `{"schema":1,"items":[…]}`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct List<T> {
    pub schema: u32,
    pub items: Vec<T>,
}

impl<T> List<T> {
    pub fn new(items: Vec<T>) -> Self {
        Self { schema: SCHEMA, items }
    }
}

/// A single object: its fields with `"schema":1` beside them.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct One<T> {
    pub schema: u32,
    #[serde(flatten)]
    pub item: T,
}

impl<T> One<T> {
    pub fn new(item: T) -> Self {
        Self { schema: SCHEMA, item }
    }
}

/// True where `name` matches `^[a-z0-9][a-z0-9._-]{0,63}$`.
pub fn name_is_valid(name: &str) -> bool {
    let bytes = name.as_bytes();
    let word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    !bytes.is_empty()
        && bytes.len() <= 64
        && word(&bytes[0])
        && bytes.iter().all(|b| word(b) || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::name_is_valid;

    #[test]
    fn names() {
        for good in ["a", "0", "web-1", "a.b_c", &"x".repeat(64)] {
            assert!(name_is_valid(good), "{good}");
        }
        for bad in ["", "-a", ".a", "A", "a/b", "a b", "ä", "..", &"x".repeat(65)] {
            assert!(!name_is_valid(bad), "{bad}");
        }
    }
}
