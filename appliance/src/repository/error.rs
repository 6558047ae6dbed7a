//! What goes wrong in the repository, and what an operator is told about it.

use std::io;

use crate::database::DatabaseError;
use crate::error::Problem;
use crate::nbd::NbdError;

/// Any failure of the repository.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// A file or directory could not be used.
    #[error("{what}: {source}")]
    Io {
        /// Which one, and what was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// Something stored is not what was written.
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// Which record, page or file.
        what: String,
        /// What does not fit.
        why: String,
    },
    /// Somebody uses it now; the same order may succeed later.
    #[error("{what} is in use: {why}")]
    Busy {
        /// What is held.
        what: String,
        /// By whom.
        why: String,
    },
    /// No such replica, point, disk or datastore.
    #[error("{0} is not known here")]
    NotFound(String),
    /// It exists in a state or with an owner that forbids the order.
    #[error("{what}: {why}")]
    Conflict {
        /// What was ordered.
        what: String,
        /// Why it cannot be.
        why: String,
        /// What to do next.
        next: String,
    },
    /// The order itself is wrong.
    #[error("{what}: {why}")]
    Invalid {
        /// What was ordered.
        what: String,
        /// Why it is refused.
        why: String,
    },
    /// A write would eat the reserve.
    #[error("datastore {datastore} has {free} bytes free and keeps {reserve} in reserve")]
    Full {
        /// Its name.
        datastore: String,
        /// Bytes free.
        free: u64,
        /// Bytes that stay free.
        reserve: u64,
    },
    /// qemu's tools failed or are missing.
    #[error("{what}: {source}")]
    Tool {
        /// What was tried.
        what: String,
        /// What the tool said.
        source: NbdError,
    },
    /// The source's database failed.
    #[error("the repository database failed: {0}")]
    Database(#[from] DatabaseError),
}

impl RepositoryError {
    /// True where it says nothing of what is stored: somebody uses or removes it, or a tool is missing.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::NotFound(_) | Self::Tool { .. })
    }

    /// An input or output error with the name of what was touched.
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }

    /// A record that does not hold what it should.
    pub(crate) fn damaged(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Damaged { what: what.into(), why: why.into() }
    }

    /// An order that makes no sense.
    pub(crate) fn invalid(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), why: why.into() }
    }

    /// True where the same order may succeed later without a change.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }
}

impl From<RepositoryError> for Problem {
    fn from(error: RepositoryError) -> Self {
        let why = error.to_string();
        match error {
            RepositoryError::Io { what, source } if source.kind() == io::ErrorKind::StorageFull => {
                Problem::new("datastore_full", what, source.to_string(), "free space on the datastore")
                    .retry()
            }
            RepositoryError::Io { what, source } => Problem::io(what, &source),
            RepositoryError::Damaged { what, why } => Problem::new(
                "damaged",
                what,
                why,
                "run `vbrctl restore-point verify` on the target; nothing was deleted",
            ),
            RepositoryError::Busy { what, why } => {
                Problem::new("busy", what, why, "wait until it is released, then try again").retry()
            }
            RepositoryError::NotFound(what) => Problem::not_found(
                what,
                "`vbrctl replica list` and `vbrctl restore-point list` show what is there",
            ),
            RepositoryError::Conflict { what, why, next } => Problem::conflict(what, why, next),
            RepositoryError::Invalid { what, why } => {
                Problem::invalid(what, why, "correct the order and try again")
            }
            RepositoryError::Full { datastore, .. } => Problem::new(
                "datastore_full",
                format!("datastore {datastore}"),
                why,
                "free space, remove restore points, or lower the reserve",
            )
            .retry(),
            RepositoryError::Tool { what, source: NbdError::ToolMissing(why) } => Problem::new(
                "tool_missing",
                what,
                why,
                "install the packages qemu-utils and qemu-system-common, then try again",
            ),
            RepositoryError::Tool { what, source } => {
                Problem::new("io", what, source.to_string(), "look at the file it names, then try again")
                    .retry()
            }
            RepositoryError::Database(_) => Problem::new(
                "database",
                "the backup repository",
                why,
                "run `vbrctl repository rebuild`; it is filled again from the target",
            ),
        }
    }
}

impl From<RepositoryError> for io::Error {
    fn from(error: RepositoryError) -> Self {
        let kind = match &error {
            RepositoryError::Io { source, .. } => source.kind(),
            RepositoryError::Full { .. } => io::ErrorKind::StorageFull,
            RepositoryError::Busy { .. } => io::ErrorKind::ResourceBusy,
            RepositoryError::NotFound(_) => io::ErrorKind::NotFound,
            RepositoryError::Damaged { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
