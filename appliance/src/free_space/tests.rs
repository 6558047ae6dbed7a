//! Tests without mounts: the mask, the sets, the tables, and what damage does.

mod images;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::bytes::crc32_reflected;
use super::extents::Sink;
use super::{EXTENTS_MAX, FreeSpace, GRAIN_BYTES, MaskedDisk, changed_since, map};
use crate::block::{BlockRead, Extent};

/// An image file as a disk.
pub(super) struct ImageFile {
    file: File,
    len: u64,
}

impl ImageFile {
    pub(super) fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let len = file.metadata().unwrap().len();
        Self { file, len }
    }
}

impl BlockRead for ImageFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        Ok((from < self.len).then(|| Extent { offset: from, len: self.len - from }))
    }
}

/// A small generator (SplitMix64): the proofs need repeatable seeds, not secrets.
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    /// Below `n`, which is not 0.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// What is promised of every answer.
pub(super) fn check_shape(found: &FreeSpace, disk_len: u64) {
    let mut end = None;
    for extent in &found.free {
        assert!(extent.len > 0 && extent.offset % GRAIN_BYTES == 0 && extent.len % GRAIN_BYTES == 0);
        assert!(end.is_none_or(|end| extent.offset > end), "overlapping or adjacent");
        assert!(extent.end() <= disk_len);
        end = Some(extent.end());
    }
}

/// A page of 4 KiB as NTFS begins its log with.
pub(super) fn restart_page(page: &mut [u8], lsn: u64, flags: u16) {
    page.fill(0);
    page[..4].copy_from_slice(b"RSTR");
    for (at, value) in [(4, 30u16), (6, 9), (24, 64), (30, 1), (64 + 12, 0), (64 + 14, flags)] {
        page[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    page[16..20].copy_from_slice(&4096u32.to_le_bytes());
    page[64..72].copy_from_slice(&lsn.to_le_bytes());
    for sector in 1..=8 {
        page[sector * 512 - 2..sector * 512].copy_from_slice(&1u16.to_le_bytes());
    }
}

/// A disk in memory; blocks that were never written are zeroes.
#[derive(Clone)]
pub(super) struct MemoryDisk(pub(super) Vec<u8>);

impl BlockRead for MemoryDisk {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let data = self.0.get(from..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(data.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    /// Runs of a byte at most: the mask must cope with any answer.
    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        let rest = self.0.get(from as usize..).unwrap_or_default();
        let Some(start) = rest.iter().position(|byte| *byte != 0) else { return Ok(None) };
        let len = rest[start..].iter().take_while(|byte| **byte != 0).count() as u64;
        Ok(Some(Extent { offset: from + start as u64, len }))
    }
}

fn extents(bits: &[bool]) -> Vec<Extent> {
    let mut found: Vec<Extent> = Vec::new();
    for (at, _) in bits.iter().enumerate().filter(|(_, bit)| **bit) {
        match found.last_mut() {
            Some(last) if last.end() == at as u64 => last.len += 1,
            _ => found.push(Extent { offset: at as u64, len: 1 }),
        }
    }
    found
}

proptest! {
    #[test]
    fn the_mask_reads_as_zeroes(
        data in vec(0u8..3, 1..200),
        bits in vec(any::<bool>(), 200),
        from in 0usize..200,
        len in 0usize..200,
    ) {
        let bits = &bits[..data.len()];
        let want: Vec<u8> = data.iter().zip(bits).map(|(byte, free)| if *free { 0 } else { *byte }).collect();
        let disk = MaskedDisk::new(Arc::new(MemoryDisk(data)), extents(bits).into());
        let (from, to) = (from.min(want.len()), from.saturating_add(len).min(want.len()));
        let from = from.min(to);
        let mut buf = vec![9; to - from];
        disk.read_at(from as u64, &mut buf).unwrap();
        prop_assert_eq!(&buf, &want[from..to]);
        prop_assert!(disk.read_at(want.len() as u64, &mut [0]).is_err());
        let mut seen = vec![0; want.len()];
        let mut at = 0;
        while let Some(run) = disk.next_data(at).unwrap() {
            prop_assert!(run.offset >= at && run.len > 0 && !bits[run.offset as usize]);
            let range = run.offset as usize..run.end() as usize;
            disk.read_at(run.offset, &mut seen[range]).unwrap();
            at = run.end();
        }
        prop_assert_eq!(seen, want);
    }

    #[test]
    fn changes_bring_a_masked_base_to_the_masked_present(
        old in vec(0u8..4, 100),
        new in vec(0u8..4, 100),
        base_bits in vec(any::<bool>(), 100),
        new_bits in vec(any::<bool>(), 100),
    ) {
        let dirty: Vec<bool> = old.iter().zip(&new).map(|(old, new)| old != new).collect();
        let (base_free, new_free) = (extents(&base_bits), extents(&new_bits));
        let mask = |data: &[u8], bits: &[bool]| -> Vec<u8> {
            data.iter().zip(bits).map(|(byte, free)| if *free { 0 } else { *byte }).collect()
        };
        let (mut replica, want) = (mask(&old, &base_bits), mask(&new, &new_bits));
        let changed = changed_since(&extents(&dirty), &base_free, &new_free);
        prop_assert!(changed.windows(2).all(|pair| pair[0].end() < pair[1].offset));
        for extent in changed {
            let range = extent.offset as usize..extent.end() as usize;
            replica[range.clone()].copy_from_slice(&want[range]);
        }
        prop_assert_eq!(replica, want);
    }

    #[test]
    fn noise_keeps_everything(seed in any::<u64>(), magic in 0usize..7, len in 1usize..400_000) {
        let mut disk = vec![0; len];
        Rng::new(seed).fill(&mut disk);
        let marks: [(usize, &[u8]); 7] = [
            (1080, &[0x53, 0xEF]), (0, b"XFSB"), (3, b"NTFS    "), (512, b"LABELONE"),
            (512, b"EFI PART"), (510, &[0x55, 0xAA]), (4086, b"SWAPSPACE2"),
        ];
        let (at, bytes) = marks[magic];
        if let Some(place) = disk.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
        prop_assert!(map(&MemoryDisk(disk)).free.is_empty());
    }

    #[test]
    fn any_text_of_metadata_is_survived(text in "[a-z0-9{}=\\[\\],\" #\\\\\n]{0,200}") {
        let _ = super::lvm_text::parse(text.as_bytes());
    }
}

#[test]
fn a_sink_gives_up_the_shortest_first() {
    let mut sink = Sink::default();
    for n in 0..(EXTENTS_MAX as u64 + 10) {
        let len = if n % 4 == 0 { 8192 } else { 4096 };
        sink.push(n * 16384, len).unwrap();
    }
    assert!(sink.push(0, 1).is_err(), "out of order");
    let kept = sink.into_extents(u64::MAX);
    assert!(kept.len() <= EXTENTS_MAX && kept.len() >= EXTENTS_MAX / 4);
    let long = kept.iter().filter(|extent| extent.len == 8192).count();
    assert!(long >= EXTENTS_MAX / 4, "{long} of {}", kept.len());
}

/// A swap area of `len` bytes at a place of a disk.
fn swap(disk: &mut [u8], at: usize, len: usize, magic: &[u8; 10]) {
    disk[at + 1024..at + 1028].copy_from_slice(&1u32.to_le_bytes());
    disk[at + 1028..at + 1032].copy_from_slice(&((len / 4096 - 1) as u32).to_le_bytes());
    disk[at + 4086..at + 4096].copy_from_slice(magic);
}

fn mbr_entry(disk: &mut [u8], record: usize, n: usize, kind: u8, start: usize, sectors: usize) {
    let at = record * 512 + 446 + n * 16;
    disk[at + 4] = kind;
    disk[at + 8..at + 12].copy_from_slice(&(start as u32).to_le_bytes());
    disk[at + 12..at + 16].copy_from_slice(&(sectors as u32).to_le_bytes());
    disk[record * 512 + 510..record * 512 + 512].copy_from_slice(&[0x55, 0xAA]);
}

#[test]
fn swap_in_logical_partitions_is_skipped_but_for_its_header() {
    let mut disk = vec![7; 8 << 20];
    disk[..1 << 20].fill(0);
    mbr_entry(&mut disk, 0, 0, 0x82, 2048, 2048);
    mbr_entry(&mut disk, 0, 1, 0x05, 4096, 12288);
    disk[4096 * 512..4097 * 512].fill(0);
    mbr_entry(&mut disk, 4096, 0, 0x82, 8, 1000);
    mbr_entry(&mut disk, 4096, 1, 0x05, 2048, 4096);
    disk[6144 * 512..6145 * 512].fill(0);
    mbr_entry(&mut disk, 6144, 0, 0x82, 2048, 2048);
    swap(&mut disk, 1 << 20, 1 << 20, b"SWAPSPACE2");
    swap(&mut disk, 8192 * 512, 1 << 20, b"SWAPSPACE2");
    let found = map(&MemoryDisk(disk.clone()));
    check_shape(&found, disk.len() as u64);
    let names: Vec<_> = found.volumes.iter().map(|v| (v.name.as_str(), v.kind.as_str())).collect();
    assert_eq!(names, [("partition 1", "swap"), ("partition 5", "unknown"), ("partition 6", "swap")]);
    let free = |offset| Extent { offset, len: (1 << 20) - 4096 };
    assert_eq!(found.free, [free((1 << 20) + 4096), free(8192 * 512 + 4096)]);

    // A sleeping system in one of them keeps the whole disk.
    let mut sleeping = disk.clone();
    swap(&mut sleeping, 1 << 20, 1 << 20, b"S1SUSPEND\0");
    let found = map(&MemoryDisk(sleeping));
    assert!(found.free.is_empty());
    assert!(found.volumes[2].reason.contains("partition 1"), "{found:?}");

    // Two signatures, overlapping partitions and a broken chain keep.
    let mut both = disk.clone();
    both[1 << 20..(1 << 20) + 4].copy_from_slice(b"XFSB");
    assert_eq!(map(&MemoryDisk(both)).free.len(), 1);
    let mut overlapping = disk.clone();
    mbr_entry(&mut overlapping, 0, 2, 0x83, 3000, 100);
    assert!(map(&MemoryDisk(overlapping)).free.is_empty());
    disk[6144 * 512 + 510] = 0;
    assert!(map(&MemoryDisk(disk)).free.is_empty());
}

#[test]
fn a_table_of_guids_must_be_whole() {
    let mut disk = vec![0; 4 << 20];
    mbr_entry(&mut disk, 0, 0, 0xEE, 1, 8191);
    swap(&mut disk, 1 << 20, 1 << 20, b"SWAPSPACE2");
    let entry = 2 * 512;
    disk[entry] = 1;
    disk[entry + 32..entry + 40].copy_from_slice(&2048u64.to_le_bytes());
    disk[entry + 40..entry + 48].copy_from_slice(&4095u64.to_le_bytes());
    let table = !crc32_reflected(!0, &disk[entry..entry + 128 * 128]);
    let mut header = [0u8; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[12..16].copy_from_slice(&92u32.to_le_bytes());
    for (at, value) in [(24, 1u64), (32, 8191), (40, 34), (48, 8158), (72, 2)] {
        header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    for (at, value) in [(80, 128u32), (84, 128), (88, table)] {
        header[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let sum = !crc32_reflected(!0, &header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    disk[512..512 + 92].copy_from_slice(&header);
    let found = map(&MemoryDisk(disk.clone()));
    assert_eq!(found.free, [Extent { offset: (1 << 20) + 4096, len: (1 << 20) - 4096 }], "{found:?}");
    for damage in [512 + 20, 512 + 50, entry + 3, entry + 200] {
        let mut disk = disk.clone();
        disk[damage] ^= 1;
        assert!(map(&MemoryDisk(disk)).free.is_empty(), "byte {damage}");
    }
    // Another partition beside the protective one.
    mbr_entry(&mut disk, 0, 1, 0x83, 2048, 2048);
    assert!(map(&MemoryDisk(disk)).free.is_empty());
}

/// A physical volume as LVM2 writes it, with this text inside its group.
fn physical_volume(volumes: &str) -> Vec<u8> {
    const SEED: u32 = 0xF597_A6CF;
    let mut disk = vec![0; 16 << 20];
    let text = format!(
        "vg0 {{\nid = \"x\"\nseqno = 2\nstatus = [\"RESIZEABLE\", \"READ\", \"WRITE\"]\nflags = []\n\
         extent_size = 2048\nphysical_volumes {{\npv0 {{\nid = \"{0}-{0}\"\nstatus = [\"ALLOCATABLE\"]\n\
         flags = []\npe_start = 2048\npe_count = 15 # 15 MiB\n}}\n}}\n{volumes}}}\ncontents = \"x\"\n\0",
        "u".repeat(16)
    );
    let area = 4096;
    let mut head = vec![0; 512];
    head[4..20].copy_from_slice(b" LVM2 x[5A%r0N*>");
    head[20..24].copy_from_slice(&1u32.to_le_bytes());
    for (at, value) in [(24, area as u64), (32, 1 << 19), (40, 512), (48, text.len() as u64)] {
        head[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    head[56..60].copy_from_slice(&crc32_reflected(SEED, text.as_bytes()).to_le_bytes());
    let sum = crc32_reflected(SEED, &head[4..]);
    head[..4].copy_from_slice(&sum.to_le_bytes());
    disk[area..area + 512].copy_from_slice(&head);
    disk[area + 512..area + 512 + text.len()].copy_from_slice(text.as_bytes());
    let mut label = vec![0; 512];
    label[..8].copy_from_slice(b"LABELONE");
    label[8] = 1;
    label[20] = 32;
    label[24..32].copy_from_slice(b"LVM2 001");
    label[32..64].fill(b'u');
    let places = [16u64 << 20, 1 << 20, 0, 0, 0, area as u64, 1 << 19, 0, 0];
    for (n, value) in places.iter().enumerate() {
        label[64 + n * 8..72 + n * 8].copy_from_slice(&value.to_le_bytes());
    }
    let sum = crc32_reflected(SEED, &label[20..]);
    label[16..20].copy_from_slice(&sum.to_le_bytes());
    disk[512..1024].copy_from_slice(&label);
    disk
}

fn logical(name: &str, status: &str, kind: &str, rest: &str, pieces: &[(u64, u64)]) -> String {
    let (mut text, mut start) = (String::new(), 0);
    for (n, (from, len)) in pieces.iter().enumerate() {
        text += &format!(
            "segment{} {{\nstart_extent = {start}\nextent_count = {len}\ntype = \"{kind}\"\n\
             stripe_count = 1\nstripes = [\n\"pv0\", {from}\n]\n{rest}}}\n",
            n + 1
        );
        start += len;
    }
    format!("{name} {{\nstatus = [{status}]\nflags = []\nsegment_count = {}\n{text}}}\n", pieces.len())
}

#[test]
fn linear_volumes_are_looked_into() {
    const PLAIN: &str = "\"READ\", \"WRITE\", \"VISIBLE\"";
    let swap_at = |volumes: &str| {
        let mut disk = physical_volume(&format!("logical_volumes {{\n{volumes}}}\n"));
        // Its first piece is extent 4, its second extent 2.
        swap(&mut disk, 5 << 20, 2 << 20, b"SWAPSPACE2");
        disk
    };
    let sound = logical("swap", PLAIN, "striped", "", &[(4, 1), (2, 1)]);
    let found = map(&MemoryDisk(swap_at(&sound)));
    let want = [
        Extent { offset: 3 << 20, len: 1 << 20 },
        Extent { offset: (5 << 20) + 4096, len: (1 << 20) - 4096 },
    ];
    assert_eq!(found.free, want, "{found:?}");
    assert_eq!(found.volumes[1].name, "vg0/swap");
    for other in [
        logical("swap", "\"READ\", \"WRITE\"", "striped", "", &[(4, 1), (2, 1)]),
        logical("swap", PLAIN, "mirror", "", &[(4, 1), (2, 1)]),
        logical("swap", PLAIN, "striped", "", &[(4, 1), (15, 1)]),
        // The origin of a snapshot.
        sound.clone() + &logical("snap", PLAIN, "snapshot", "origin = \"swap\"\n", &[(6, 1)]),
        // Two volumes in one place.
        sound.clone() + &logical("twin", PLAIN, "striped", "", &[(4, 1)]),
    ] {
        let found = map(&MemoryDisk(swap_at(&other)));
        assert!(found.free.is_empty(), "{other} {found:?}");
    }
    // Any bit of the label and of the metadata.
    let disk = swap_at(&sound);
    for at in (512..580).chain(4096..4096 + 600).step_by(3) {
        let mut disk = disk.clone();
        disk[at] ^= 4;
        assert!(map(&MemoryDisk(disk)).free.is_empty(), "byte {at}");
    }
}

#[test]
fn absurd_disks_are_kept() {
    struct Huge;
    impl BlockRead for Huge {
        fn len(&self) -> u64 {
            u64::MAX
        }
        fn read_at(&self, _: u64, buf: &mut [u8]) -> io::Result<()> {
            buf.fill(0xA5);
            Ok(())
        }
        fn next_data(&self, _: u64) -> io::Result<Option<Extent>> {
            Err(io::ErrorKind::Other.into())
        }
    }
    assert!(map(&Huge).free.is_empty());
    for len in [0, 1, 512, 4095, 4096, 5000] {
        assert!(map(&MemoryDisk(vec![0; len])).free.is_empty());
    }
}
