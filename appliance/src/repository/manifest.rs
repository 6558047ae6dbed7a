//! Manifests: the ordered chunk ids of one disk at one restore point, as pages and a table of pages.
//!
//! Pure. A page is 1,024 ids (64 MiB of disk); its hash is BLAKE3 of the 32 KiB of ids. The table
//! names the pages that are not all zero, so that a disk costs in proportion to its data. The root
//! covers the disk's exact length and the table: two sites with one root hold one content.
//!
//! Bounds: a table has at most [`PAGES_MAX`] entries, which follows from the largest disk.

use std::collections::BTreeMap;
use std::collections::btree_map;

use crate::block::{ChunkId, Geometry, PAGE_BYTES, PAGE_CHUNKS, PageHash, Root};
use crate::limits::DISK_BYTES_MAX;

/// The ids of one page; positions past the disk's end are zero.
pub type PageIds = Box<[ChunkId; PAGE_CHUNKS]>;

/// Bytes of a page of ids.
pub const PAGE_BODY_BYTES: usize = PAGE_CHUNKS * 32;
/// Entries that a table may have.
pub const PAGES_MAX: u64 = DISK_BYTES_MAX / PAGE_BYTES;
/// Prefix of what a root is the hash of; a change of the format changes it.
const ROOT_CONTEXT: &[u8] = b"vbr manifest root 1\n";

/// A page without data.
pub fn blank_page() -> PageIds {
    Box::new([ChunkId::ZERO; PAGE_CHUNKS])
}

/// BLAKE3 of a page's ids in order.
pub fn page_hash(ids: &[ChunkId; PAGE_CHUNKS]) -> PageHash {
    let mut hasher = blake3::Hasher::new();
    for group in ids.chunks_exact(64) {
        let mut bytes = [0u8; 64 * 32];
        for (slot, id) in bytes.chunks_exact_mut(32).zip(group) {
            slot.copy_from_slice(&id.0);
        }
        hasher.update(&bytes);
    }
    PageHash(*hasher.finalize().as_bytes())
}

/// True where a page stands for zeroes alone, which tables leave out.
pub fn page_is_blank(ids: &[ChunkId; PAGE_CHUNKS]) -> bool {
    ids.iter().all(ChunkId::is_zero)
}

/// A page's ids as bytes: what files and the wire carry.
pub fn page_to_bytes(ids: &[ChunkId; PAGE_CHUNKS]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.0).collect()
}

/// The reverse of [`page_to_bytes`]; `None` for any other length.
pub fn page_from_bytes(bytes: &[u8]) -> Option<PageIds> {
    if bytes.len() != PAGE_BODY_BYTES {
        return None;
    }
    let mut ids = blank_page();
    for (id, slot) in ids.iter_mut().zip(bytes.chunks_exact(32)) {
        id.0.copy_from_slice(slot);
    }
    Some(ids)
}

/// Clears the positions past the end of a disk; true where that changed the page.
pub fn trim_page(ids: &mut [ChunkId; PAGE_CHUNKS], geometry: Geometry, page: u64) -> bool {
    let tail = &mut ids[geometry.page_chunks(page)..];
    let changed = tail.iter().any(|id| !id.is_zero());
    tail.fill(ChunkId::ZERO);
    changed
}

/// Which pages a disk has, and the hash of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageTable {
    disk_len: u64,
    pages: BTreeMap<u64, PageHash>,
}

impl PageTable {
    /// A disk of zeroes.
    pub fn new(disk_len: u64) -> Self {
        Self { disk_len, pages: BTreeMap::new() }
    }

    /// Exact length of the disk in bytes.
    pub fn disk_len(&self) -> u64 {
        self.disk_len
    }

    /// The disk's grid.
    pub fn geometry(&self) -> Geometry {
        Geometry { disk_len: self.disk_len }
    }

    /// The hash of a page; none where it is all zero.
    pub fn get(&self, page: u64) -> Option<&PageHash> {
        self.pages.get(&page)
    }

    /// Sets a page. Pages past the end of the disk are left out: they cannot exist.
    pub fn set(&mut self, page: u64, hash: PageHash) {
        if page < self.geometry().pages() {
            self.pages.insert(page, hash);
        }
    }

    /// Makes a page all zero.
    pub fn remove(&mut self, page: u64) {
        self.pages.remove(&page);
    }

    /// Pages with data, ascending.
    pub fn iter(&self) -> btree_map::Iter<'_, u64, PageHash> {
        self.pages.iter()
    }

    /// Pages with data from one on, ascending.
    pub fn range(&self, from: u64) -> btree_map::Range<'_, u64, PageHash> {
        self.pages.range(from..)
    }

    /// Number of pages with data.
    pub fn count(&self) -> usize {
        self.pages.len()
    }

    /// The identity of the disk's content.
    pub fn root(&self) -> Root {
        let mut hasher = blake3::Hasher::new();
        hasher.update(ROOT_CONTEXT);
        hasher.update(&self.disk_len.to_be_bytes());
        for (page, hash) in &self.pages {
            hasher.update(&page.to_be_bytes());
            hasher.update(&hash.0);
        }
        Root(*hasher.finalize().as_bytes())
    }

    /// The same table for another length. Pages past the new end are dropped. The page that holds the
    /// old or the new end keeps its hash although its content may be another now (a short last chunk
    /// grew or shrank, chunks were cut off): callers treat [`PageTable::boundary_pages`] as changed.
    pub fn resized(&self, disk_len: u64) -> Self {
        let pages = Geometry { disk_len }.pages();
        Self { disk_len, pages: self.pages.range(..pages).map(|(page, hash)| (*page, *hash)).collect() }
    }

    /// Pages that a change of length to `disk_len` may change: those that hold the old and the new end.
    pub fn boundary_pages(&self, disk_len: u64) -> Vec<u64> {
        if disk_len == self.disk_len {
            return Vec::new();
        }
        let shorter = disk_len.min(self.disk_len);
        if shorter.is_multiple_of(PAGE_BYTES) { Vec::new() } else { vec![shorter / PAGE_BYTES] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(seed: u8) -> PageIds {
        let mut ids = blank_page();
        ids[3] = ChunkId([seed; 32]);
        ids[1023] = ChunkId([seed ^ 0xff; 32]);
        ids
    }

    /// Golden values: a change of them is a change of the format that both sites must share.
    #[test]
    fn golden_hashes() {
        let hash = page_hash(&page(1));
        assert_eq!(hash.0, *blake3::hash(&page_to_bytes(&page(1))).as_bytes());
        assert_eq!(format!("{hash:?}"), GOLDEN_PAGE);
        let mut table = PageTable::new(10 << 40);
        assert_eq!(table.root().hex(), GOLDEN_EMPTY_ROOT);
        table.set(5, hash);
        assert_eq!(table.root().hex(), GOLDEN_ROOT);
    }
    const GOLDEN_PAGE: &str = "b58ca750daaa7d35e54027a42551ec3641f650800cce5482a277032384a64054";
    const GOLDEN_EMPTY_ROOT: &str = "5cf81b0fd9cc14481104c1e4e4c5307ce0767c0870d11d2fb773ba42f51bfb70";
    const GOLDEN_ROOT: &str = "1144a2707f44b7d44952cc6b06ea3c8815b369d2622a988e7a5870e0d40f1a76";

    #[test]
    fn tables_end_where_the_disk_ends() {
        let mut table = PageTable::new(PAGE_BYTES + 1);
        table.set(1, page_hash(&page(1)));
        table.set(2, page_hash(&page(2)));
        assert_eq!(table.count(), 1);
        assert_eq!(table.resized(PAGE_BYTES).count(), 0);
        assert_eq!(table.boundary_pages(PAGE_BYTES), Vec::<u64>::new());
        assert_eq!(table.boundary_pages(3 * PAGE_BYTES), vec![1]);
        assert_eq!(table.boundary_pages(7), vec![0]);
        assert_ne!(table.resized(PAGE_BYTES + 2).root(), table.root());
    }

    proptest! {
        #[test]
        fn bytes_round_trip(at in prop::collection::vec((0usize..PAGE_CHUNKS, any::<[u8; 32]>()), 0..20)) {
            let mut ids = blank_page();
            for (position, id) in at { ids[position] = ChunkId(id); }
            let bytes = page_to_bytes(&ids);
            prop_assert_eq!(page_from_bytes(&bytes).unwrap(), ids);
            prop_assert!(page_from_bytes(&bytes[1..]).is_none());
        }

        #[test]
        fn roots_differ_where_tables_differ(
            a in prop::collection::btree_map(0u64..50, any::<u8>(), 0..20),
            b in prop::collection::btree_map(0u64..50, any::<u8>(), 0..20),
        ) {
            let make = |pages: &BTreeMap<u64, u8>| {
                let mut table = PageTable::new(100 * PAGE_BYTES);
                for (page, seed) in pages { table.set(*page, PageHash([*seed; 32])); }
                table
            };
            prop_assert_eq!(make(&a).root() == make(&b).root(), a == b);
        }
    }
}
