//! The header of an image that was declared to be qcow2: read before qemu opens it, to refuse whatever
//! would make qemu open another file or that we do not understand.
//!
//! Pure but for one bounded read. Not its job: reading clusters (qemu does), or finding out formats.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::NbdError;
use crate::limits::DISK_BYTES_MAX;

const MAGIC: u32 = 0x5146_49fb; // "QFI\xfb"
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Longest backing file name the format allows.
const BACKING_NAME_BYTES_MAX: u32 = 1023;
/// Bytes read at most: one cluster of the largest size.
const HEADER_BYTES_MAX: u64 = 2 << 20;

const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
/// Dirty, corrupt, data file, compression type, extended L2.
const INCOMPATIBLE_KNOWN: u64 = 0b1_1111;

const EXTENSION_END: u32 = 0;
const EXTENSION_CRYPTO: u32 = 0x0537_be77;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// Why a header is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Qcow2Error {
    /// Another format, or damage.
    #[error("this is not a qcow2 image: declare it as raw if it is a raw disk")]
    NotQcow2,
    /// The header is damaged.
    #[error("the qcow2 header is damaged: {0}")]
    Damaged(&'static str),
    /// A version or feature we do not know.
    #[error("the qcow2 image uses {0}, which is not supported")]
    Unsupported(String),
    /// It names another image that nobody declared.
    #[error(
        "the qcow2 image has the backing file {0:?}, which was not declared: flatten it (qemu-img convert) first"
    )]
    Backing(String),
    /// Its data lies in another file.
    #[error("the qcow2 image keeps its data in an external file: convert it (qemu-img convert) first")]
    DataFile,
    /// Encrypted by qemu.
    #[error(
        "the qcow2 image is encrypted by qemu: decrypt it (qemu-img convert), or encrypt inside the guest"
    )]
    Encrypted,
}

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Header {
    /// 2 or 3.
    pub version: u32,
    /// Length of the disk in bytes.
    pub virtual_size: u64,
    /// Bytes in a cluster.
    pub cluster_bytes: u32,
    /// The backing file as it stands in the header.
    pub backing_file: Option<String>,
}

/// Reads and checks the header of a declared qcow2 image. A backing file in it is refused unless the
/// caller has declared one.
pub fn qcow2_check_header(path: impl AsRef<Path>, backing_declared: bool) -> Result<Qcow2Header, NbdError> {
    let path = path.as_ref();
    let fail = |source| NbdError::File { path: path.into(), source };
    let file = File::open(path).map_err(fail)?;
    let bytes = read_head(&file).map_err(fail)?;
    let header = parse_qcow2_header(&bytes).and_then(|header| match &header.backing_file {
        Some(name) if !backing_declared => Err(Qcow2Error::Backing(name.clone())),
        _ => Ok(header),
    });
    header.map_err(|source| NbdError::Header { path: path.into(), source })
}

fn read_head(file: &File) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; 64 * 1024];
    let mut filled = 0;
    while filled < bytes.len() {
        let read = file.read_at(&mut bytes[filled..], filled as u64)?;
        if read == 0 {
            break;
        }
        filled += read;
        // Clusters may be larger than what was read first; extensions lie in the first cluster.
        if filled == bytes.len()
            && let Some(bits) = be32(&bytes, 20)
            && CLUSTER_BITS.contains(&bits)
            && (1u64 << bits).min(HEADER_BYTES_MAX) > filled as u64
        {
            bytes.resize(1 << bits, 0);
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Parses the first cluster of an image (or as much of it as the file has).
pub fn parse_qcow2_header(bytes: &[u8]) -> Result<Qcow2Header, Qcow2Error> {
    if be32(bytes, 0) != Some(MAGIC) {
        return Err(Qcow2Error::NotQcow2);
    }
    let short = Qcow2Error::Damaged("it is cut short");
    let (Some(version), Some(bits), Some(size), Some(crypt)) =
        (be32(bytes, 4), be32(bytes, 20), be64(bytes, 24), be32(bytes, 32))
    else {
        return Err(short);
    };
    let (Some(backing_at), Some(backing_len)) = (be64(bytes, 8), be32(bytes, 16)) else {
        return Err(short);
    };
    if version != 2 && version != 3 {
        return Err(Qcow2Error::Unsupported(format!("version {version}")));
    }
    if !CLUSTER_BITS.contains(&bits) {
        return Err(Qcow2Error::Damaged("its cluster size is out of bounds"));
    }
    if size == 0 || size > DISK_BYTES_MAX {
        return Err(Qcow2Error::Damaged("its size is zero or more than 64 TiB"));
    }
    match crypt {
        0 => {}
        1 | 2 => return Err(Qcow2Error::Encrypted),
        _ => return Err(Qcow2Error::Damaged("its encryption method is unknown")),
    }
    let header_len = match version {
        2 => 72,
        _ => check_features(bytes)?,
    };
    let cluster = bytes.get(..1 << bits).unwrap_or(bytes);
    let backing_file = backing_name(cluster, backing_at, backing_len)?;
    check_extensions(cluster, header_len, backing_at)?;
    Ok(Qcow2Header { version, virtual_size: size, cluster_bytes: 1 << bits, backing_file })
}

/// The feature bits of version 3; gives the header's length.
fn check_features(bytes: &[u8]) -> Result<u64, Qcow2Error> {
    let (Some(features), Some(len)) = (be64(bytes, 72), be32(bytes, 100)) else {
        return Err(Qcow2Error::Damaged("it is cut short"));
    };
    if features & INCOMPATIBLE_DATA_FILE != 0 {
        return Err(Qcow2Error::DataFile);
    }
    if features & INCOMPATIBLE_CORRUPT != 0 {
        return Err(Qcow2Error::Damaged("qemu has marked it as corrupt: run qemu-img check -r all"));
    }
    if features & !INCOMPATIBLE_KNOWN != 0 {
        return Err(Qcow2Error::Unsupported(format!("the unknown features {features:#x}")));
    }
    if len < 104 || len % 8 != 0 {
        return Err(Qcow2Error::Damaged("its header length is out of bounds"));
    }
    Ok(u64::from(len))
}

fn backing_name(cluster: &[u8], at: u64, len: u32) -> Result<Option<String>, Qcow2Error> {
    if at == 0 {
        return Ok(None);
    }
    if len == 0 || len > BACKING_NAME_BYTES_MAX {
        return Err(Qcow2Error::Damaged("its backing file name is out of bounds"));
    }
    let name = usize::try_from(at).ok().and_then(|at| cluster.get(at..)?.get(..len as usize));
    let name = name.ok_or(Qcow2Error::Damaged("its backing file name lies outside the first cluster"))?;
    Ok(Some(String::from_utf8_lossy(name).into_owned()))
}

fn check_extensions(cluster: &[u8], header_len: u64, backing_at: u64) -> Result<(), Qcow2Error> {
    let end = if backing_at == 0 { cluster.len() as u64 } else { backing_at.min(cluster.len() as u64) };
    let mut at = header_len;
    // Each extension takes at least eight bytes, so this ends.
    while at + 8 <= end {
        let (Some(kind), Some(len)) = (be32(cluster, at as usize), be32(cluster, at as usize + 4)) else {
            break;
        };
        match kind {
            EXTENSION_END => return Ok(()),
            EXTENSION_CRYPTO => return Err(Qcow2Error::Encrypted),
            EXTENSION_DATA_FILE => return Err(Qcow2Error::DataFile),
            _ => at += 8 + u64::from(len).next_multiple_of(8),
        }
        if at > end {
            return Err(Qcow2Error::Damaged("a header extension is longer than the header"));
        }
    }
    Ok(())
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Vec<u8> {
        let mut h = vec![0; 65_536];
        h[..4].copy_from_slice(&MAGIC.to_be_bytes());
        h[7] = 3;
        h[20..24].copy_from_slice(&16u32.to_be_bytes());
        h[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
        h[96..100].copy_from_slice(&4u32.to_be_bytes());
        h[100..104].copy_from_slice(&104u32.to_be_bytes());
        h
    }

    #[test]
    fn a_plain_header_is_taken() {
        let parsed = parse_qcow2_header(&header()).unwrap();
        assert_eq!((parsed.version, parsed.virtual_size, parsed.cluster_bytes), (3, 1 << 30, 65_536));
        assert_eq!(parsed.backing_file, None);
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        let mut backing = header();
        backing[8..16].copy_from_slice(&200u64.to_be_bytes());
        backing[16..20].copy_from_slice(&11u32.to_be_bytes());
        backing[200..211].copy_from_slice(b"/etc/passwd");
        assert_eq!(parse_qcow2_header(&backing).unwrap().backing_file.as_deref(), Some("/etc/passwd"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.qcow2");
        std::fs::write(&path, &backing).unwrap();
        assert!(qcow2_check_header(&path, false).unwrap_err().to_string().contains("/etc/passwd"));
        assert!(qcow2_check_header(&path, true).is_ok());

        let mut data_file = header();
        data_file[79] = 4;
        assert_eq!(parse_qcow2_header(&data_file), Err(Qcow2Error::DataFile));
        let mut extension = header();
        extension[104..108].copy_from_slice(&EXTENSION_DATA_FILE.to_be_bytes());
        assert_eq!(parse_qcow2_header(&extension), Err(Qcow2Error::DataFile));
        let mut encrypted = header();
        encrypted[35] = 2;
        assert_eq!(parse_qcow2_header(&encrypted), Err(Qcow2Error::Encrypted));
        let mut unknown = header();
        unknown[72] = 0x80;
        assert!(matches!(parse_qcow2_header(&unknown), Err(Qcow2Error::Unsupported(_))));
        assert_eq!(parse_qcow2_header(&[0; 512]), Err(Qcow2Error::NotQcow2));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = parse_qcow2_header(&bytes);
        }

        #[test]
        fn damage_never_panics(
            cut in 0usize..1024,
            edits in proptest::collection::vec((0usize..1024, any::<u8>()), 0..12),
        ) {
            let mut bytes = header();
            for (at, byte) in edits {
                bytes[at] = byte;
            }
            let _ = parse_qcow2_header(&bytes);
            let _ = parse_qcow2_header(&bytes[..cut]);
        }
    }
}
