//! The anchor table on disk: one file, whole or not at all.
//!
//! ```text
//! 0   8   magic "vbranchr"
//! 8   4   version, little-endian: 1
//! 12  4   length of the head
//! 16  n   head: postcard of (round, images, buckets)
//!     m   buckets of 64 bytes: 6 fingerprints u32, 6 blocks u32, 6 images u16, 4 spare
//!     32  BLAKE3 of everything before
//! ```
//!
//! A file that is damaged, of another version or of another size costs the table, nothing else.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Image;
use super::table::{AnchorTable, BUCKET_BYTES};

const MAGIC: &[u8; 8] = b"vbranchr";
const VERSION: u32 = 1;
const HASH_BYTES: usize = 32;
const FIXED_BYTES: usize = 16;

#[derive(Serialize, Deserialize)]
struct Head {
    round: u64,
    images: Vec<Option<Image>>,
    buckets: u64,
}

/// The file's bytes.
pub fn encode(table: &AnchorTable, images: &[Option<Image>], round: u64) -> io::Result<Vec<u8>> {
    let head = Head { round, images: images.to_vec(), buckets: table.buckets() as u64 };
    let head = postcard::to_stdvec(&head).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(FIXED_BYTES + head.len() + table.memory_bytes() + HASH_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(head.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&head);
    table.write_to(&mut bytes)?;
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    Ok(bytes)
}

/// Writes it in the place of the old one.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// What was loaded: table, images, round.
pub type Loaded = (AnchorTable, Vec<Option<Image>>, u64);

/// Reads it. `Ok(None)` where there is none; an error says why it is of no use.
pub fn load(path: &Path, memory_bytes: usize) -> Result<Option<Loaded>, String> {
    let bytes = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
        Ok(meta) if meta.len() > memory_bytes as u64 + (16 << 20) => {
            return Err("it is larger than the memory allowed".into());
        }
        Ok(_) => fs::read(path).map_err(|error| error.to_string())?,
    };
    decode(&bytes, memory_bytes).map(Some)
}

fn decode(bytes: &[u8], memory_bytes: usize) -> Result<Loaded, String> {
    let body = bytes.len().checked_sub(HASH_BYTES).ok_or("it is cut off")?;
    let (body, hash) = bytes.split_at(body);
    if blake3::hash(body).as_bytes() != hash {
        return Err("its checksum is wrong".into());
    }
    let (fixed, rest) = body.split_at_checked(FIXED_BYTES).ok_or("it is cut off")?;
    if &fixed[..8] != MAGIC || fixed[8..12] != VERSION.to_le_bytes() {
        return Err("it is of another version".into());
    }
    let head_len = u32::from_le_bytes([fixed[12], fixed[13], fixed[14], fixed[15]]) as usize;
    let (head, mut buckets) = rest.split_at_checked(head_len).ok_or("it is cut off")?;
    let head: Head = postcard::from_bytes(head).map_err(|error| error.to_string())?;
    let wanted = AnchorTable::new(memory_bytes).buckets();
    if head.buckets != wanted as u64 || buckets.len() != wanted * BUCKET_BYTES {
        return Err("it was made for another size of accelerator.anchor_memory".into());
    }
    if head.images.len() > super::IMAGES_MAX {
        return Err("it names too many disks".into());
    }
    let table = AnchorTable::read_from(&mut buckets, wanted).map_err(|error| error.to_string())?;
    Ok((table, head.images, head.round))
}
