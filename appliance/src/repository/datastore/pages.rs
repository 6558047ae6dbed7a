//! Page bodies and manifests on the datastore.
//!
//! A replica's `pages/SESSION.pages` holds the bodies of the pages that this session changed: a header
//! of 4 KiB, then slots of 32 KiB, one a page. Restore points share them: a point's manifest names, for
//! each page that is not all zero, its hash, a pages file and a slot, so that a point costs its changed
//! pages and a table entry for each page. Bodies are verified by hash on every read; zero ids stay
//! holes, so a page costs in proportion to its data.
//!
//! `disk-N.manifest` is read whole and carries its own checksum. Bounds: 1,048,576 entries (64 TiB).

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;

use rustix::fs::OFlags;
use vbr_api::name_is_valid;

use super::files::Root;
use crate::block::{Geometry, PageHash};
use crate::limits::DISK_BYTES_MAX;
use crate::repository::RepositoryError;
use crate::repository::manifest::{
    PAGE_BODY_BYTES, PAGES_MAX, PageIds, PageTable, page_from_bytes, page_hash,
};

/// First bytes of a pages file.
const PAGES_MAGIC: &[u8; 16] = b"vbr pages v1\n\0\0\0";
/// First bytes of a manifest.
const MANIFEST_MAGIC: &[u8; 16] = b"vbr manifest v1\n";
const HEADER_BYTES: u64 = 4096;
const ENTRY_BYTES: usize = 8 + 32 + 4 + 4;
const FIXED_BYTES: usize = 16 + 8 + 4 + 8 + 32;
/// Pages files that one manifest may name.
const FILES_MAX: usize = 1 << 20;
/// A body is written in blocks of this size; blocks of zeroes are left as holes.
const HOLE_BYTES: usize = 4096;

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageEntry {
    /// Hash of the page.
    pub hash: PageHash,
    /// Index into the manifest's files.
    pub file: u32,
    /// Slot in that file.
    pub slot: u32,
}

/// The manifest of one disk as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskManifest {
    /// Exact length of the disk.
    pub disk_len: u64,
    /// Pages files that entries name.
    pub files: Vec<String>,
    /// Pages that are not all zero.
    pub entries: BTreeMap<u64, PageEntry>,
}

impl DiskManifest {
    /// The pure table: what roots are made of.
    pub fn table(&self) -> PageTable {
        let mut table = PageTable::new(self.disk_len);
        for (page, entry) in &self.entries {
            table.set(*page, entry.hash);
        }
        table
    }

    /// Leaves out files that no entry names.
    pub fn compact(&mut self) {
        let mut renumbered: BTreeMap<u32, u32> = self.entries.values().map(|entry| (entry.file, 0)).collect();
        let mut files = Vec::with_capacity(renumbered.len());
        for (old, new) in &mut renumbered {
            *new = files.len() as u32;
            files.extend(self.files.get(*old as usize).cloned());
        }
        for entry in self.entries.values_mut() {
            entry.file = renumbered.get(&entry.file).copied().unwrap_or(entry.file);
        }
        self.files = files;
    }

    /// The index of a pages file, added where it is new.
    pub fn file_index(&mut self, name: &str) -> u32 {
        let found = self.files.iter().rposition(|file| file == name);
        found.unwrap_or_else(|| {
            self.files.push(name.to_string());
            self.files.len() - 1
        }) as u32
    }

    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED_BYTES + self.entries.len() * ENTRY_BYTES);
        bytes.extend_from_slice(MANIFEST_MAGIC);
        bytes.extend_from_slice(&self.disk_len.to_be_bytes());
        bytes.extend_from_slice(&(self.files.len() as u32).to_be_bytes());
        for file in &self.files {
            bytes.push(file.len() as u8);
            bytes.extend_from_slice(file.as_bytes());
        }
        bytes.extend_from_slice(&(self.entries.len() as u64).to_be_bytes());
        for (page, entry) in &self.entries {
            bytes.extend_from_slice(&page.to_be_bytes());
            bytes.extend_from_slice(&entry.hash.0);
            bytes.extend_from_slice(&entry.file.to_be_bytes());
            bytes.extend_from_slice(&entry.slot.to_be_bytes());
        }
        let sum = blake3::hash(&bytes);
        bytes.extend_from_slice(sum.as_bytes());
        bytes
    }

    /// Parses and checks a whole manifest; says what does not fit.
    pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let (body, sum) = bytes.split_last_chunk::<32>().ok_or("it is cut short")?;
        if blake3::hash(body).as_bytes() != sum {
            return Err("its checksum differs");
        }
        let mut rest = body.strip_prefix(MANIFEST_MAGIC).ok_or("it is not a manifest of this version")?;
        let mut take = |len: usize| -> Result<&[u8], &'static str> {
            let (head, tail) = rest.split_at_checked(len).ok_or("it is cut short")?;
            rest = tail;
            Ok(head)
        };
        let disk_len = be64(take(8)?);
        if disk_len > DISK_BYTES_MAX {
            return Err("its disk is larger than vbr takes");
        }
        let mut files = Vec::new();
        let file_count = be32(take(4)?) as usize;
        if file_count > FILES_MAX {
            return Err("it names too many files");
        }
        for _ in 0..file_count {
            let len = take(1)?[0] as usize;
            let name = std::str::from_utf8(take(len)?).ok().filter(|name| name_is_valid(name));
            files.push(name.ok_or("a file's name in it is not valid")?.to_string());
        }
        let count = be64(take(8)?);
        let pages = Geometry { disk_len }.pages();
        let mut entries = BTreeMap::new();
        let mut next = 0;
        for _ in 0..count.min(PAGES_MAX + 1) {
            let page = be64(take(8)?);
            let mut hash = [0; 32];
            hash.copy_from_slice(take(32)?);
            let (file, slot) = (be32(take(4)?), be32(take(4)?));
            if page < next || page >= pages || file as usize >= files.len() {
                return Err("an entry in it is out of bounds");
            }
            next = page + 1;
            entries.insert(page, PageEntry { hash: PageHash(hash), file, slot });
        }
        if entries.len() as u64 != count || !rest.is_empty() {
            return Err("its length does not fit");
        }
        Ok(Self { disk_len, files, entries })
    }
}

/// The pages file of a session that is being built. One writer.
pub struct PagesWriter {
    file: File,
    path: PathBuf,
    slots: Mutex<u32>,
}

/// Name of a session's pages file.
pub fn pages_name(session: &str) -> String {
    let short: String = session.chars().take(48).collect();
    format!("{short}.pages")
}

impl PagesWriter {
    /// A new file, durable but for its content.
    pub fn create(root: &Root, path: &Path) -> Result<Self, RepositoryError> {
        let file = root.open_beneath(path, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC)?;
        let what = || path.display().to_string();
        file.write_all_at(PAGES_MAGIC, 0).map_err(|e| RepositoryError::io(what(), e))?;
        file.set_len(HEADER_BYTES).map_err(|e| RepositoryError::io(what(), e))?;
        file.sync_all().map_err(|e| RepositoryError::io(what(), e))?;
        super::files::sync_parent(path)?;
        Ok(Self { file, path: path.into(), slots: Mutex::new(0) })
    }

    /// Goes on after `slots` bodies; what lies behind them is dropped.
    pub fn reopen(root: &Root, path: &Path, slots: u32) -> Result<Self, RepositoryError> {
        let what = || path.display().to_string();
        let file = root.open_beneath(path, OFlags::RDWR)?;
        let mut magic = [0; 16];
        file.read_exact_at(&mut magic, 0).map_err(|e| RepositoryError::io(what(), e))?;
        let len = file.metadata().map_err(|e| RepositoryError::io(what(), e))?.len();
        if magic != *PAGES_MAGIC || len < slot_offset(slots) {
            return Err(RepositoryError::damaged(what(), "it is shorter than its cursor says"));
        }
        file.set_len(slot_offset(slots)).map_err(|e| RepositoryError::io(what(), e))?;
        Ok(Self { file, path: path.into(), slots: Mutex::new(slots) })
    }

    /// Appends a body and gives back its slot. Not durable before [`PagesWriter::sync`].
    pub fn append(&self, ids: &PageIds) -> Result<u32, RepositoryError> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = *slots;
        let body = crate::repository::manifest::page_to_bytes(ids);
        let at = slot_offset(slot);
        let write = || {
            self.file.set_len(at + PAGE_BODY_BYTES as u64)?;
            for (n, block) in body.chunks(HOLE_BYTES).enumerate() {
                if !crate::block::is_zero(block) {
                    self.file.write_all_at(block, at + (n * HOLE_BYTES) as u64)?;
                }
            }
            Ok(())
        };
        write().map_err(|e| RepositoryError::io(self.path.display().to_string(), e))?;
        *slots = slot.checked_add(1).ok_or_else(|| self.full())?;
        Ok(slot)
    }

    /// Everything appended so far is durable when this returns; gives back how many slots that are.
    pub fn sync(&self) -> Result<u32, RepositoryError> {
        let slots = *self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        self.file.sync_all().map_err(|e| RepositoryError::io(self.path.display().to_string(), e))?;
        Ok(slots)
    }

    fn full(&self) -> RepositoryError {
        RepositoryError::invalid(self.path.display().to_string(), "it has no slots left")
    }
}

/// Reads a body and verifies it.
pub fn read_page(root: &Root, path: &Path, entry: &PageEntry) -> Result<PageIds, RepositoryError> {
    let what = || format!("page body {} of {}", entry.slot, path.display());
    let file = root.open_beneath(path, OFlags::RDONLY)?;
    let mut body = vec![0; PAGE_BODY_BYTES];
    file.read_exact_at(&mut body, slot_offset(entry.slot)).map_err(|e| RepositoryError::io(what(), e))?;
    let ids = page_from_bytes(&body).ok_or_else(|| RepositoryError::damaged(what(), "its length differs"))?;
    if page_hash(&ids) != entry.hash {
        return Err(RepositoryError::damaged(what(), "its hash differs"));
    }
    Ok(ids)
}

/// Writes a body into its slot again, where it fits its entry. Durable when this returns.
pub fn mend_page(root: &Root, path: &Path, entry: &PageEntry, ids: &PageIds) -> Result<(), RepositoryError> {
    let what = || format!("page body {} of {}", entry.slot, path.display());
    if page_hash(ids) != entry.hash {
        return Err(RepositoryError::damaged(what(), "the disk does not hold what it named either"));
    }
    let body = crate::repository::manifest::page_to_bytes(ids);
    let file = root.open_beneath(path, OFlags::RDWR)?;
    let written = file.write_all_at(&body, slot_offset(entry.slot)).and_then(|()| file.sync_all());
    written.map_err(|e| RepositoryError::io(what(), e))
}

/// Gives the space of a slot back.
pub fn punch_slot(file: &File, slot: u32) -> std::io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, flags, slot_offset(slot), PAGE_BODY_BYTES as u64)?)
}

fn slot_offset(slot: u32) -> u64 {
    HEADER_BYTES + u64::from(slot) * PAGE_BODY_BYTES as u64
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn be64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{ChunkId, PAGE_BYTES};
    use crate::repository::manifest::blank_page;
    use proptest::prelude::*;

    fn sample() -> DiskManifest {
        let entry = |seed: u8, file, slot| PageEntry { hash: PageHash([seed; 32]), file, slot };
        DiskManifest {
            disk_len: 3 * PAGE_BYTES + 5,
            files: vec!["a.pages".into(), "gone.pages".into(), "b.pages".into()],
            entries: [(0, entry(1, 2, 7)), (3, entry(2, 0, 9))].into(),
        }
    }

    /// The format on disk: a change here needs a new version.
    #[test]
    fn golden_manifest() {
        let bytes = sample().encode();
        assert_eq!(&bytes[..16], b"vbr manifest v1\n");
        assert_eq!(bytes.len(), FIXED_BYTES + 8 + 11 + 8 + 2 * ENTRY_BYTES);
        assert_eq!(blake3::hash(&bytes).to_hex().as_str(), GOLDEN);
        assert_eq!(DiskManifest::decode(&bytes).unwrap(), sample());
    }
    const GOLDEN: &str = "75b5ce2a7af395431be72fcaceaf2e87eba430d0eba2457ac42eedd9c29ab9ff";

    #[test]
    fn compacting_keeps_places() {
        let mut manifest = sample();
        manifest.compact();
        assert_eq!(manifest.files, ["a.pages", "b.pages"]);
        assert_eq!(manifest.files[manifest.entries[&0].file as usize], "b.pages");
        assert_eq!(manifest.files[manifest.entries[&3].file as usize], "a.pages");
    }

    #[test]
    fn bodies_are_sparse_and_cut_back() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let path = root.path().join("s.pages");
        let writer = PagesWriter::create(&root, &path).unwrap();
        let mut ids = blank_page();
        ids[1000] = ChunkId([5; 32]);
        assert_eq!((writer.append(&ids).unwrap(), writer.append(&ids).unwrap()), (0, 1));
        assert_eq!(writer.sync().unwrap(), 2);
        let entry = PageEntry { hash: page_hash(&ids), file: 0, slot: 1 };
        assert_eq!(read_page(&root, &path, &entry).unwrap(), ids);
        let writer = PagesWriter::reopen(&root, &path, 1).unwrap();
        assert!(read_page(&root, &path, &entry).is_err());
        let mut other = blank_page();
        other[0] = ChunkId([6; 32]);
        assert_eq!(writer.append(&other).unwrap(), 1);
        assert!(matches!(read_page(&root, &path, &entry), Err(RepositoryError::Damaged { .. })));
        let entry = PageEntry { hash: page_hash(&other), ..entry };
        assert_eq!(read_page(&root, &path, &entry).unwrap(), other);
        assert!(PagesWriter::reopen(&root, &path, 9).is_err());
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_noticed(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = sample().encode();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(DiskManifest::decode(&bytes).is_err());
            prop_assert!(DiskManifest::decode(&bytes[..at]).is_err());
        }

        #[test]
        fn noise_with_a_good_checksum_is_refused_or_fits(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut all = MANIFEST_MAGIC.to_vec();
            all.append(&mut bytes);
            let sum = blake3::hash(&all);
            all.extend_from_slice(sum.as_bytes());
            let _ = DiskManifest::decode(&all);
        }
    }
}
