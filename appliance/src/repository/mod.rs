//! Backup repository: manifests, restore points, datastores.
//!
//! [`manifest`] is pure: pages of chunk ids, page tables and their root. [`source`] keeps, beside the
//! source, what the last restore point of each job holds (RocksDB; rebuildable from the target).
//! [`datastore`] keeps the restore points themselves at the target; its files are the only truth
//! there. [`retention`] decides what may go and why the rest stays, [`seeds`] are images that chunks are read from in place, [`verify`], [`verified`] and [`export`] re-hash whatever they read.
//!
//! Not its job: moving data between sites, deciding what changed, jobs and sessions. Everything here
//! blocks; callers run it on blocking threads. Bounds are named where they apply.

mod beneath;
pub mod datastore;
mod error;
pub mod export;
pub mod manifest;
pub mod retention;
pub mod seeds;
pub mod source;
mod source_record;
pub mod verified;
pub mod verify;

pub use error::RepositoryError;
pub use manifest::{PageIds, PageTable, page_hash};
