//! The database's directory: made private, recognised, moved aside when it is damaged.
//!
//! Owns nothing. Bound: one damaged database is kept, so that a failing disk does not fill with them.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::DatabaseError;

pub(super) fn create_private(dir: &Path) -> Result<(), DatabaseError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| DatabaseError::Io {
        what: "create",
        path: dir.to_owned(),
        source,
    })
}

/// Table files without a `CURRENT`: what is left of a database whose head was lost.
pub(super) fn holds_tables(dir: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    entries.flatten().any(|entry| entry.path().extension().is_some_and(|end| end == "sst" || end == "log"))
}

/// Renames the directory out of the way and removes the one that an earlier damage left there.
pub(super) fn set_aside(dir: &Path, why: &str) -> Result<(), DatabaseError> {
    let name = dir.file_name().map_or_else(|| "database".into(), |name| name.to_string_lossy().into_owned());
    let prefix = format!("{name}.damaged-");
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix)
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "cannot remove an old damaged database");
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let aside = (now..now + 1000)
        .map(|time| parent.join(format!("{prefix}{time}")))
        .find(|path| !path.exists())
        .unwrap_or_else(|| parent.join(format!("{prefix}{now}")));
    std::fs::rename(dir, &aside).map_err(|source| DatabaseError::Io {
        what: "move aside the damaged database",
        path: dir.to_owned(),
        source,
    })?;
    tracing::warn!(
        database = %dir.display(), aside = %aside.display(), why,
        "the database is damaged and was moved aside; a new one is made and rebuilt, no replica is lost"
    );
    Ok(())
}
