//! Checked readers of little- and big-endian fields, and the checksums of the formats.
//!
//! Every read is bounds-checked: a field past the end of what was read is a reason to keep, never a panic.

use super::Keep;

fn field<const N: usize>(data: &[u8], at: usize) -> Result<[u8; N], Keep> {
    let end = at.checked_add(N);
    let bytes = end.and_then(|end| data.get(at..end)).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| Keep::Volume("a structure is shorter than its format".into()))
}

/// One byte.
pub(super) fn u8_at(data: &[u8], at: usize) -> Result<u8, Keep> {
    field::<1>(data, at).map(|[byte]| byte)
}

/// Little-endian, 16 bits.
pub(super) fn le16(data: &[u8], at: usize) -> Result<u16, Keep> {
    field(data, at).map(u16::from_le_bytes)
}

/// Little-endian, 32 bits.
pub(super) fn le32(data: &[u8], at: usize) -> Result<u32, Keep> {
    field(data, at).map(u32::from_le_bytes)
}

/// Little-endian, 64 bits.
pub(super) fn le64(data: &[u8], at: usize) -> Result<u64, Keep> {
    field(data, at).map(u64::from_le_bytes)
}

/// Big-endian, 16 bits.
pub(super) fn be16(data: &[u8], at: usize) -> Result<u16, Keep> {
    field(data, at).map(u16::from_be_bytes)
}

/// Big-endian, 32 bits.
pub(super) fn be32(data: &[u8], at: usize) -> Result<u32, Keep> {
    field(data, at).map(u32::from_be_bytes)
}

/// Big-endian, 64 bits.
pub(super) fn be64(data: &[u8], at: usize) -> Result<u64, Keep> {
    field(data, at).map(u64::from_be_bytes)
}

/// A part of a structure.
pub(super) fn part(data: &[u8], at: usize, len: usize) -> Result<&[u8], Keep> {
    let end = at.checked_add(len);
    end.and_then(|end| data.get(at..end))
        .ok_or_else(|| Keep::Volume("a structure is shorter than its format".into()))
}

/// A sum that may come from a damaged structure.
pub(super) fn add(a: u64, b: u64) -> Result<u64, Keep> {
    a.checked_add(b).ok_or_else(too_large)
}

/// A product that may come from a damaged structure.
pub(super) fn mul(a: u64, b: u64) -> Result<u64, Keep> {
    a.checked_mul(b).ok_or_else(too_large)
}

/// A length that must fit into memory's arithmetic.
pub(super) fn size(n: u64) -> Result<usize, Keep> {
    usize::try_from(n).map_err(|_| too_large())
}

fn too_large() -> Keep {
    Keep::Volume("a number in a structure is too large".into())
}

/// CRC-32C as ext4, JBD2 and XFS use it: with a seed and without the final inversion.
pub(super) fn crc32c_raw(seed: u32, data: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, data)
}

/// CRC-32C with a field counted as zeroes.
pub(super) fn crc32c_without(seed: u32, data: &[u8], at: usize, len: usize) -> Result<u32, Keep> {
    part(data, at, len)?;
    let (head, rest) = data.split_at(at);
    let (_, tail) = rest.split_at(len);
    let zeroes = vec![0; len];
    Ok(crc32c_raw(crc32c_raw(crc32c_raw(seed, head), &zeroes), tail))
}

/// CRC-16 (ANSI, reflected): the group descriptors of ext4 without `metadata_csum`.
pub(super) fn crc16(seed: u16, data: &[u8]) -> u16 {
    data.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xA001 } else { crc >> 1 })
    })
}

/// CRC-32 (reflected) without inversions: LVM2 and GPT.
pub(super) fn crc32_reflected(seed: u32, data: &[u8]) -> u32 {
    static TABLE: [u32; 256] = reflected_table();
    data.iter().fold(seed, |crc, byte| {
        let index = (crc ^ u32::from(*byte)) & 0xFF;
        crc >> 8 ^ TABLE.get(index as usize).copied().unwrap_or(0)
    })
}

/// CRC-32 (most significant bit first) without inversions: JBD2's first checksums.
pub(super) fn crc32_be(seed: u32, data: &[u8]) -> u32 {
    static TABLE: [u32; 256] = forward_table();
    data.iter().fold(seed, |crc, byte| {
        let index = (crc >> 24 ^ u32::from(*byte)) & 0xFF;
        crc << 8 ^ TABLE.get(index as usize).copied().unwrap_or(0)
    })
}

const fn reflected_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
}

const fn forward_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = (n as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc >> 31 == 1 { crc << 1 ^ 0x04C1_1DB7 } else { crc << 1 };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
}
