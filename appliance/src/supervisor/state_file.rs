//! The file that carries a site's state: sealed under a passphrase. Bytes in, bytes out; no IO.
//!
//! ```text
//! "VBRSTATE" | version u32 | Argon2id: memory in KiB u32, passes u32, salt 16 | nonce 24
//! XChaCha20-Poly1305 of a zstd frame of JSON ([`Contents`]), bound to everything before it
//! BLAKE3 of everything before it, 32
//! ```
//!
//! Numbers are big endian. The checksum tells a damaged file from a wrong passphrase; it is no secret and protects
//! nothing, the cipher does. Bounds: [`PLAIN_BYTES_MAX`]; what a file asks of memory and time.

use std::collections::BTreeMap;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};

use crate::error::Problem;

const MAGIC: &[u8; 8] = b"VBRSTATE";
const VERSION: u32 = 1;
/// 32 MiB and four passes: some tenths of a second for whoever knows the passphrase.
const MEMORY_KIB: u32 = 32 * 1024;
const PASSES: u32 = 4;
/// What a file may ask for.
const MEMORY_KIB_MAX: u32 = 128 * 1024;
const PASSES_MAX: u32 = 16;
const HEADER_BYTES: usize = 8 + 4 + 4 + 4 + 16 + 24;
const CHECKSUM_BYTES: usize = 32;
/// Of the JSON: a thousand peers and as many jobs are some 2 MiB.
const PLAIN_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Shorter ones are guessed.
const PASSPHRASE_CHARS_MIN: usize = 8;

/// What the file carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// The site that made it.
    pub site: String,
    /// When.
    pub exported_at: String,
    /// Files of the state directory, by name; base64.
    pub files: BTreeMap<String, String>,
}

/// Seals.
pub fn seal(contents: &Contents, passphrase: &str) -> Result<Vec<u8>, Problem> {
    let internal = |why: String| Problem::new("internal", "seal the state of the site", why, "report this");
    if passphrase.chars().count() < PASSPHRASE_CHARS_MIN {
        let why = format!("the passphrase has fewer than {PASSPHRASE_CHARS_MIN} characters");
        return Err(Problem::invalid(
            "seal the state of the site",
            why,
            "choose a longer one: the file holds the key of the site",
        ));
    }
    let plain = serde_json::to_vec(contents).map_err(|error| internal(error.to_string()))?;
    if plain.len() > PLAIN_BYTES_MAX {
        return Err(internal(format!("it has {} bytes, more than {PLAIN_BYTES_MAX}", plain.len())));
    }
    let packed = zstd::bulk::compress(&plain, 9).map_err(|error| internal(error.to_string()))?;
    let mut fresh = [0; 16 + 24];
    getrandom::fill(&mut fresh).map_err(|error| internal(error.to_string()))?;
    let mut out = Vec::with_capacity(HEADER_BYTES + packed.len() + 16 + CHECKSUM_BYTES);
    out.extend_from_slice(MAGIC);
    for number in [VERSION, MEMORY_KIB, PASSES] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out.extend_from_slice(&fresh);
    let cipher = cipher(passphrase, &fresh[..16], MEMORY_KIB, PASSES).map_err(internal)?;
    let payload = Payload { msg: &packed, aad: &out };
    let sealed = cipher
        .encrypt(XNonce::from_slice(&fresh[16..]), payload)
        .map_err(|error| internal(error.to_string()))?;
    out.extend_from_slice(&sealed);
    let checksum = blake3::hash(&out);
    out.extend_from_slice(checksum.as_bytes());
    Ok(out)
}

/// Opens.
pub fn open(file: &[u8], passphrase: &str) -> Result<Contents, Problem> {
    const WHAT: &str = "the state to import";
    if file.len() < HEADER_BYTES + CHECKSUM_BYTES || !file.starts_with(MAGIC) {
        let why = if file.starts_with(MAGIC) {
            "it is cut off"
        } else {
            "it was not made by `vbrctl state export`"
        };
        return Err(Problem::invalid(WHAT, why, "name the file that `vbrctl state export` wrote"));
    }
    let number = |at: usize| u32::from_be_bytes([file[at], file[at + 1], file[at + 2], file[at + 3]]);
    let (version, memory, passes) = (number(8), number(12), number(16));
    if version > VERSION {
        let why = format!("it has the version {version}, and this vbr knows {VERSION}");
        return Err(Problem::new("newer", WHAT, why, "update vbr here, then import it again"));
    }
    let (body, checksum) = file.split_at(file.len() - CHECKSUM_BYTES);
    let bounded = (8..=MEMORY_KIB_MAX).contains(&memory) && (1..=PASSES_MAX).contains(&passes);
    if blake3::hash(body).as_bytes() != checksum || version == 0 || !bounded {
        let next = "copy the file again from where it is kept";
        return Err(Problem::new(
            "damaged",
            WHAT,
            "its checksum does not match: it is cut off or damaged",
            next,
        ));
    }
    let internal = |why: String| Problem::new("internal", WHAT, why, "report this");
    let (header, sealed) = body.split_at(HEADER_BYTES);
    let cipher = cipher(passphrase, &header[20..36], memory, passes).map_err(internal)?;
    let payload = Payload { msg: sealed, aad: header };
    let packed = cipher.decrypt(XNonce::from_slice(&header[36..]), payload).map_err(|_| {
        Problem::not_allowed(
            WHAT,
            "the passphrase is another one",
            "give the passphrase that it was exported with",
        )
    })?;
    let unsound = |why: String| Problem::new("damaged", WHAT, why, "make another export");
    let plain =
        zstd::bulk::decompress(&packed, PLAIN_BYTES_MAX).map_err(|error| unsound(error.to_string()))?;
    serde_json::from_slice(&plain).map_err(|error| unsound(error.to_string()))
}

fn cipher(passphrase: &str, salt: &[u8], memory: u32, passes: u32) -> Result<XChaCha20Poly1305, String> {
    let params = Params::new(memory, passes, 1, Some(32)).map_err(|error| error.to_string())?;
    let mut blocks = vec![Block::default(); params.block_count()];
    let mut key = [0; 32];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(passphrase.as_bytes(), salt, &mut key, &mut blocks)
        .map_err(|error| error.to_string())?;
    XChaCha20Poly1305::new_from_slice(&key).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Contents {
        Contents {
            site: "branch".into(),
            exported_at: "2026-01-31T00:00:00Z".into(),
            files: BTreeMap::from([("key".to_owned(), "c2VjcmV0".to_owned())]),
        }
    }

    fn code(file: &[u8], passphrase: &str) -> String {
        open(file, passphrase).unwrap_err().code
    }

    #[test]
    fn sealed_and_opened() {
        let file = seal(&contents(), "correct horse").unwrap();
        assert_eq!(open(&file, "correct horse").unwrap(), contents());
        assert!(!file.windows(6).any(|w| w == b"c2VjcmV0" || w == b"branch"));
        assert_ne!(seal(&contents(), "correct horse").unwrap(), file);
        assert_eq!(code(&file, "correct house"), "not_allowed");
        assert_eq!(seal(&contents(), "short").unwrap_err().code, "invalid");
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_apart() {
        let file = seal(&contents(), "correct horse").unwrap();
        assert_eq!(code(b"PK", "correct horse"), "invalid");
        assert_eq!(code(&file[..40], "correct horse"), "invalid");
        assert_eq!(code(&file[..file.len() - 1], "correct horse"), "damaged");
        for at in [9usize, 13, 21, 40, HEADER_BYTES + 3, file.len() - 1] {
            let mut bad = file.clone();
            bad[at] ^= 1;
            let expected = if at == 9 { "newer" } else { "damaged" };
            assert_eq!(code(&bad, "correct horse"), expected, "{at}");
        }
        // With a checksum that was made to fit: the cipher refuses it.
        let mut forged = file[..file.len() - CHECKSUM_BYTES].to_vec();
        forged[HEADER_BYTES + 3] ^= 1;
        forged.extend_from_slice(blake3::hash(&forged).as_bytes());
        assert_eq!(code(&forged, "correct horse"), "not_allowed");
        let mut greedy = file[..file.len() - CHECKSUM_BYTES].to_vec();
        greedy[12] = 0xff;
        greedy.extend_from_slice(blake3::hash(&greedy).as_bytes());
        assert_eq!(code(&greedy, "correct horse"), "damaged");
    }

    /// A file of version 1, made once: later versions open it.
    #[test]
    fn golden_layout() {
        let file = seal(&contents(), "correct horse").unwrap();
        assert_eq!(&file[..20], b"VBRSTATE\0\0\0\x01\0\0\x80\0\0\0\0\x04");
    }
}
