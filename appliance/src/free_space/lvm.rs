//! LVM2: the linear volumes of a volume group that lies on this physical volume alone.
//!
//! Checked: the label's and the metadata's checksums, one committed text, no text in preparation. A
//! volume is looked into only where all its segments are linear on this physical volume, it carries no
//! unusual flag, and no other volume's segments name it: the origin of a snapshot must keep what it has
//! freed, since the snapshot may still show it.
//!
//! Bounds: metadata up to 4 MiB, 256 volumes, 65,536 segments.

use super::bytes::{add, crc32_reflected, le32, le64, mul, part, size};
use super::lvm_text::{self, Section};
use super::view::View;
use super::{Keep, keep, require};

const CRC_SEED: u32 = 0xF597_A6CF;
const SECTOR: u64 = 512;
const TEXT_BYTES_MAX: u64 = 4 << 20;
const AREAS_MAX: usize = 8;
const VOLUMES_MAX: usize = 256;
const SEGMENTS_MAX: u64 = 1 << 16;

/// A volume group and its volumes.
pub(super) struct Group<'a> {
    pub(super) name: String,
    pub(super) volumes: Vec<Logical<'a>>,
}

/// A logical volume: its content, or why it is not looked into.
pub(super) struct Logical<'a> {
    pub(super) name: String,
    pub(super) view: Result<View<'a>, Keep>,
}

/// What the label says of the physical volume.
struct Label {
    uuid: String,
    len: u64,
    metadata: Vec<(u64, u64)>,
}

/// The logical volumes on a physical volume.
pub(super) fn volumes<'a>(view: &View<'a>) -> Result<Group<'a>, Keep> {
    let label = label(view)?;
    let mut text = None;
    for &(offset, len) in &label.metadata {
        let found = metadata(view, offset, len)?;
        require(text.as_ref().is_none_or(|text| *text == found), "two versions of the LVM metadata")?;
        text = Some(found);
    }
    let Some(text) = text else { return keep("the physical volume carries no metadata") };
    let root = lvm_text::parse(&text)?;
    // The text names the group and says a few things of itself.
    let groups: Vec<_> = root.sections().collect();
    let [(name, group)] = groups.as_slice() else { return keep("the LVM metadata names several groups") };
    require(group.is_only("status", &["RESIZEABLE", "READ", "WRITE"]), "the volume group has unusual flags")?;
    require(group.is_only("flags", &[]), "the volume group has unusual flags")?;
    let lock = group.text("lock_type");
    require(lock.is_none_or(|lock| lock == "none"), "the volume group is shared")?;
    let physical = Physical::read(group, &label)?;
    let mut volumes = Vec::new();
    let all: Vec<_> = group.section("logical_volumes").into_iter().flat_map(Section::sections).collect();
    require(all.len() <= VOLUMES_MAX, "the volume group has too many volumes")?;
    for (volume, section) in &all {
        // A volume named anywhere in another's segments is a part of something else.
        let is_part = all.iter().any(|(other, section)| other != volume && section.mentions(volume));
        let view = if is_part {
            keep("another volume is built on it")
        } else {
            physical.volume(section).and_then(|parts| view.assemble(&parts))
        };
        volumes.push(Logical { name: (*volume).to_owned(), view });
    }
    check_apart(&physical, &all)?;
    Ok(Group { name: (*name).to_owned(), volumes })
}

/// Two volumes must never share an extent.
fn check_apart(physical: &Physical, all: &[(&str, &Section)]) -> Result<(), Keep> {
    let mut parts: Vec<(u64, u64)> = Vec::new();
    for (_, section) in all {
        parts.extend(physical.volume(section).unwrap_or_default());
    }
    parts.sort_unstable();
    let apart = parts.windows(2).all(|pair| matches!(pair, [a, b] if a.0.saturating_add(a.1) <= b.0));
    require(apart, "logical volumes overlap")
}

fn label(view: &View<'_>) -> Result<Label, Keep> {
    let bad = "the LVM label is damaged";
    let mut found = None;
    for sector in 0..4 {
        let data = view.read(sector * SECTOR, SECTOR)?;
        if part(&data, 0, 8)? == b"LABELONE" {
            require(found.is_none(), "two LVM labels")?;
            require(le64(&data, 8)? == sector && part(&data, 24, 8)? == b"LVM2 001", bad)?;
            let sum = crc32_reflected(CRC_SEED, part(&data, 20, SECTOR as usize - 20)?);
            require(sum == le32(&data, 16)?, "the LVM label's checksum is wrong")?;
            found = Some(data);
        }
    }
    let Some(data) = found else { return keep("no LVM label") };
    let mut at = size(le32(&data, 20)?.into())?;
    let uuid = part(&data, at, 32)?.iter().map(|byte| char::from(*byte)).collect();
    let len = le64(&data, at + 32)?;
    at += 40;
    // Two lists of places, each with a zero at its end: data, then metadata.
    let mut lists = [Vec::new(), Vec::new()];
    for list in &mut lists {
        loop {
            let (offset, len) = (le64(&data, at)?, le64(&data, at + 8)?);
            at += 16;
            if offset == 0 {
                break;
            }
            list.push((offset, len));
            require(list.len() <= AREAS_MAX, bad)?;
        }
    }
    let [data_areas, metadata] = lists;
    require(data_areas.len() == 1, bad)?;
    require(len <= view.len() || len == 0, "the physical volume is larger than its place")?;
    Ok(Label { uuid, len: view.len(), metadata })
}

/// The committed text of a metadata area.
fn metadata(view: &View<'_>, offset: u64, len: u64) -> Result<Vec<u8>, Keep> {
    let bad = "the LVM metadata is damaged";
    let head = view.read(offset, SECTOR)?;
    require(part(&head, 4, 16)? == b" LVM2 x[5A%r0N*>", bad)?;
    let sum = crc32_reflected(CRC_SEED, part(&head, 4, SECTOR as usize - 4)?);
    require(sum == le32(&head, 0)?, "the LVM metadata's checksum is wrong")?;
    require(le32(&head, 20)? == 1, "an unknown version of LVM metadata")?;
    require(le64(&head, 24)? == offset && le64(&head, 32)? == len && len > SECTOR, bad)?;
    let (text_at, text_len, flags) = (le64(&head, 40)?, le64(&head, 48)?, le32(&head, 60)?);
    require(flags == 0, "an LVM metadata area is not in use")?;
    require(le64(&head, 64)? == 0, "the LVM metadata is being changed")?;
    require(text_len > 0 && text_len <= TEXT_BYTES_MAX && text_len <= len - SECTOR, bad)?;
    require(text_at >= SECTOR && text_at < len, bad)?;
    // The area is a ring behind its first sector.
    let first = text_len.min(len - text_at);
    let mut text = view.read(add(offset, text_at)?, first)?;
    text.extend(view.read(add(offset, SECTOR)?, text_len - first)?);
    let sum = crc32_reflected(CRC_SEED, &text);
    require(sum == le32(&head, 56)?, "the LVM metadata's checksum is wrong")?;
    Ok(text)
}

/// The one physical volume of a group.
struct Physical {
    name: String,
    start: u64,
    extent_bytes: u64,
    extents: u64,
}

impl Physical {
    fn read(group: &Section, label: &Label) -> Result<Self, Keep> {
        let all: Vec<_> = group.section("physical_volumes").into_iter().flat_map(Section::sections).collect();
        let [(name, section)] = all.as_slice() else {
            return keep("the volume group lies on several physical volumes");
        };
        let uuid: String = section.text("id").unwrap_or_default().chars().filter(|c| *c != '-').collect();
        require(uuid == label.uuid, "the LVM metadata is another physical volume's")?;
        require(section.is_only("status", &["ALLOCATABLE"]), "the physical volume has unusual flags")?;
        require(section.is_only("flags", &[]), "the physical volume has unusual flags")?;
        let number = |section: &Section, key: &str| {
            section.number(key).map_or_else(|| keep("the LVM metadata is incomplete"), Ok)
        };
        let extent_bytes = mul(number(group, "extent_size")?, SECTOR)?;
        let start = mul(number(section, "pe_start")?, SECTOR)?;
        let extents = number(section, "pe_count")?;
        let end = add(start, mul(extents, extent_bytes)?)?;
        require(extent_bytes > 0 && start > 0 && end <= label.len, "the LVM extents lie outside the volume")?;
        Ok(Self { name: (*name).to_owned(), start, extent_bytes, extents })
    }

    /// The pieces of a linear volume.
    fn volume(&self, volume: &Section) -> Result<Vec<(u64, u64)>, Keep> {
        let plain = volume.is_only("status", &["READ", "WRITE", "VISIBLE"])
            && volume.is_only("flags", &[])
            && volume.has("status", "VISIBLE");
        require(plain, "the logical volume has unusual flags")?;
        let count = volume.number("segment_count").unwrap_or(0);
        require(count > 0 && count <= SEGMENTS_MAX, "the logical volume has an impossible shape")?;
        require(volume.sections().count() as u64 == count, "the logical volume has an impossible shape")?;
        let (mut parts, mut next) = (Vec::new(), 0);
        for n in 1..=count {
            let Some(segment) = volume.section(&format!("segment{n}")) else {
                return keep("the logical volume has an impossible shape");
            };
            let linear = segment.text("type") == Some("striped") && segment.number("stripe_count") == Some(1);
            require(linear, "the logical volume is not linear")?;
            let (start, len) = (segment.number("start_extent"), segment.number("extent_count"));
            let stripe = segment.stripe();
            let (Some(start), Some(len), Some((name, from))) = (start, len, stripe) else {
                return keep("the logical volume has an impossible shape");
            };
            let inside = name == self.name && len > 0 && add(from, len)? <= self.extents;
            require(start == next && inside, "the logical volume has an impossible shape")?;
            next = add(start, len)?;
            let offset = add(self.start, mul(from, self.extent_bytes)?)?;
            parts.push((offset, mul(len, self.extent_bytes)?));
        }
        Ok(parts)
    }
}
