//! Keys and records of the source's repository in column family `manifest`.
//!
//! Pure. A key is `JOB 0 KIND …`; every record begins with its version. What does not parse is damage,
//! never a panic. Not its job: which records there are.

use std::collections::HashMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::RepositoryError;
use super::manifest::{PageIds, PageTable, blank_page};
use super::source::StoredManifest;
use crate::block::{ChunkId, PAGE_CHUNKS, PageHash};
use crate::database::{Batch, cf};

/// The version of every record in this column family.
const VERSION: u8 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub point: String,
    pub session: String,
    pub disks: Vec<HeaderDisk>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct HeaderDisk {
    pub path: String,
    pub len: u64,
    pub root: [u8; 32],
}

impl Header {
    pub fn of(manifest: &StoredManifest) -> Self {
        let paths: HashMap<usize, &String> = manifest.disk_paths.iter().enumerate().collect();
        let disk = |(n, table): (usize, &PageTable)| HeaderDisk {
            path: paths.get(&n).map(|path| path.to_string()).unwrap_or_default(),
            len: table.disk_len(),
            root: table.root().0,
        };
        Self {
            point: manifest.point.clone(),
            session: manifest.session.clone(),
            disks: manifest.tables.iter().enumerate().map(disk).collect(),
        }
    }
}

/// Keys of one job. Names hold no zero byte, so jobs and sessions cannot run into one another.
pub(super) struct Key(Vec<u8>);

impl Key {
    pub const PROMOTED: u8 = b'm';
    pub const PROVISIONAL: u8 = b'p';
    pub const TABLE: u8 = b't';
    pub const PAGE: u8 = b'g';
    pub const BUILT: u8 = b'b';
    pub const CURSORS: u8 = b'c';
    /// What was skipped as free; its own record, so that manifests of before it had it are read as ever.
    pub const SKIPPED: u8 = b's';

    pub fn new(job: &str) -> Self {
        let mut key: Vec<u8> = job.bytes().filter(|byte| *byte != 0).collect();
        key.push(0);
        Self(key)
    }

    /// Everything of the job.
    pub fn all(&self) -> Vec<u8> {
        self.0.clone()
    }

    pub fn kind(&self, kind: u8) -> Vec<u8> {
        [&self.0[..], &[kind]].concat()
    }

    pub fn single(&self, kind: u8) -> Vec<u8> {
        self.kind(kind)
    }

    pub fn scoped(&self, kind: u8, session: &str) -> Vec<u8> {
        [&self.kind(kind), session.as_bytes(), &[0]].concat()
    }

    pub fn page(&self, disk: u16, hash: &PageHash) -> Vec<u8> {
        [&self.kind(Self::PAGE)[..], &disk.to_be_bytes(), &hash.0].concat()
    }

    pub fn tables_prefix(&self, session: &str) -> Vec<u8> {
        self.scoped(Self::TABLE, session)
    }

    pub fn table(&self, session: &str, disk: u16, segment: u32) -> Vec<u8> {
        [&self.tables_prefix(session)[..], &disk.to_be_bytes(), &segment.to_be_bytes()].concat()
    }

    pub fn built_prefix(&self, session: &str) -> Vec<u8> {
        self.scoped(Self::BUILT, session)
    }

    pub fn built(&self, session: &str, disk: u16, page: u64) -> Vec<u8> {
        [&self.built_prefix(session)[..], &disk.to_be_bytes(), &page.to_be_bytes()].concat()
    }

    pub fn skipped(&self, session: &str) -> Vec<u8> {
        self.scoped(Self::SKIPPED, session)
    }

    pub fn cursors(&self, session: &str) -> Vec<u8> {
        self.scoped(Self::CURSORS, session)
    }
}

/// Removes all keys with a prefix, which always ends in a byte below 255.
pub(super) fn drop_prefix(batch: &mut Batch, prefix: &[u8]) {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    batch.delete_range(cf::MANIFEST, prefix, end);
}

/// One bit for each position that is not zero, then the ids of those.
pub(super) fn pack_page(ids: &PageIds) -> Vec<u8> {
    let mut bytes = vec![0u8; 1 + PAGE_CHUNKS / 8];
    bytes[0] = VERSION;
    for (n, id) in ids.iter().enumerate().filter(|(_, id)| !id.is_zero()) {
        bytes[1 + n / 8] |= 1 << (n % 8);
        bytes.extend_from_slice(&id.0);
    }
    bytes
}

pub(super) fn unpack_page(bytes: &[u8]) -> Option<PageIds> {
    let (version, bytes) = bytes.split_first()?;
    let (bits, mut body) = bytes.split_at_checked(PAGE_CHUNKS / 8)?;
    let mut ids = blank_page();
    for (n, id) in ids.iter_mut().enumerate() {
        if bits[n / 8] & (1 << (n % 8)) != 0 {
            let (one, rest) = body.split_first_chunk::<32>()?;
            *id = ChunkId(*one);
            body = rest;
        }
    }
    (*version == VERSION && body.is_empty()).then_some(ids)
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, RepositoryError> {
    let mut bytes = vec![VERSION];
    let body = postcard::to_stdvec(value);
    bytes.extend(body.map_err(|error| RepositoryError::invalid("a repository record", error.to_string()))?);
    Ok(bytes)
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8], job: &str) -> Result<T, RepositoryError> {
    match bytes.split_first() {
        Some((&VERSION, body)) => {
            postcard::from_bytes(body).map_err(|error| damaged(job, &error.to_string()))
        }
        Some((version, _)) => Err(damaged(job, &format!("a record has the unknown version {version}"))),
        None => Err(damaged(job, "a record is empty")),
    }
}

pub(super) fn damaged(job: &str, why: &str) -> RepositoryError {
    RepositoryError::damaged(format!("the repository of job {job}"), why)
}

pub(super) fn no_provisional(job: &str, session: &str) -> RepositoryError {
    RepositoryError::NotFound(format!("the provisional manifest of session {session} of job {job}"))
}

pub(super) fn be16(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

pub(super) fn be64(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}
