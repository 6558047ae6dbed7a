//! The version of what a state directory holds, so that an older vbrd leaves a newer one's alone.
//!
//! `format.json` says it. It is read before anything else in the directory is opened or written, and written
//! before anything of a higher version is. The number grows when something changes that a vbrd of the number
//! before cannot read: a column family, a record, a file. Additions that it ignores (a field with a default)
//! leave it. A directory without the file is of version 1: the first vbrd that wrote it had no other.
//! Versions: 1, the first. A state directory of each is kept among the tests and read by them.
//!
//! Records on a datastore have versions of their own (`repository::datastore::record`): it may move to another site.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Problem;
use crate::wire::write_private;

/// The version of what this vbrd writes.
pub const FORMAT: u32 = 1;
/// In the state directory.
const FILE: &str = "format.json";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// See [`FORMAT`].
    format: u32,
    /// The version of vbr that last started here, for people.
    #[serde(default)]
    written_by: String,
}

/// Refuses what a newer vbrd wrote; touches nothing.
pub fn check(state: &Path) -> Result<(), Problem> {
    match read(state)? {
        Some(record) if record.format > FORMAT => Err(newer(state, &record)),
        Some(record) if record.format == 0 => Err(damaged(state, "it has the version 0")),
        _ => Ok(()),
    }
}

/// Enters this vbrd's version, durably; for whoever has the directory to himself.
pub fn enter(state: &Path) -> Result<(), Problem> {
    check(state)?;
    let ours = Record { format: FORMAT, written_by: env!("CARGO_PKG_VERSION").to_owned() };
    if read(state)?.as_ref() == Some(&ours) {
        return Ok(());
    }
    let fail = |error: io::Error| Problem::io(format!("write {}", state.join(FILE).display()), &error);
    let bytes = serde_json::to_vec_pretty(&ours).map_err(|error| fail(error.into()))?;
    write_private(&state.join(FILE), &bytes).map_err(fail)
}

fn read(state: &Path) -> Result<Option<Record>, Problem> {
    let path = state.join(FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Problem::io(format!("read {}", path.display()), &error)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| damaged(state, &error.to_string()))
}

fn newer(state: &Path, record: &Record) -> Problem {
    let by = if record.written_by.is_empty() { "a newer vbr" } else { &format!("vbr {}", record.written_by) };
    Problem::new(
        "newer_state",
        format!("the state directory {} is of a newer vbr", state.display()),
        format!(
            "{by} wrote it in format {}, and this vbrd ({}) knows formats up to {FORMAT}; nothing was changed",
            record.format,
            env!("CARGO_PKG_VERSION")
        ),
        format!(
            "install {by} or newer again; to go back for good, put back the copy of the state directory that was \
             made before the upgrade, or begin with an empty one and `vbrctl state import`"
        ),
    )
}

fn damaged(state: &Path, why: &str) -> Problem {
    let path = state.join(FILE);
    Problem::new(
        "damaged",
        format!("{} cannot be read", path.display()),
        why,
        format!(
            "put it back from a copy; where no newer vbr than {} ever ran here, remove the file",
            env!("CARGO_PKG_VERSION")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(state: &Path, text: &str) {
        std::fs::write(state.join(FILE), text).unwrap();
    }

    #[test]
    fn new_and_former_directories_are_entered() {
        let dir = tempfile::tempdir().unwrap();
        check(dir.path()).unwrap();
        assert!(!dir.path().join(FILE).exists(), "a look writes nothing");
        enter(dir.path()).unwrap();
        let ours = Record { format: FORMAT, written_by: env!("CARGO_PKG_VERSION").into() };
        assert_eq!(read(dir.path()).unwrap().unwrap(), ours);
        let written = std::fs::metadata(dir.path().join(FILE)).unwrap().modified().unwrap();
        enter(dir.path()).unwrap();
        assert_eq!(std::fs::metadata(dir.path().join(FILE)).unwrap().modified().unwrap(), written);
        for former in 1..=FORMAT {
            write(dir.path(), &format!(r#"{{"format":{former},"written_by":"0.0.1","more":[1]}}"#));
            enter(dir.path()).unwrap();
            assert_eq!(read(dir.path()).unwrap().unwrap(), ours);
        }
    }

    #[test]
    fn newer_and_damaged_ones_are_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let next = FORMAT + 1;
        for (text, code, words) in [
            (
                format!(r#"{{"format":{next},"written_by":"9.1.0","what":{{"is":"new"}}}}"#),
                "newer_state",
                "vbr 9.1.0",
            ),
            (format!(r#"{{"format":{next}}}"#), "newer_state", "a newer vbr"),
            (r#"{"format":0}"#.to_owned(), "damaged", "version 0"),
            (String::new(), "damaged", "EOF"),
            ("{}".to_owned(), "damaged", "format"),
        ] {
            write(dir.path(), &text);
            for refused in [check(dir.path()).unwrap_err(), enter(dir.path()).unwrap_err()] {
                assert_eq!(refused.code, code, "{refused}");
                assert!(refused.why.contains(words), "{refused}");
            }
            assert_eq!(std::fs::read_to_string(dir.path().join(FILE)).unwrap(), text);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }
}
