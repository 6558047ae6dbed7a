//! Batches: needed chunks packed into one zstd frame, and back.
//!
//! Pure but for the reader it is handed. A batch closes at 4 MiB of plain data, or as soon as its
//! compressed form has passed 1 MiB, so that incompressible data does not make frames that fill the
//! whole credit window. Level 3 with a 4 MiB window: the window spans the batch, which level 3's own
//! default (2 MiB) does not.

use std::io::{Read, Write};

use bytes::Bytes;
use zstd::stream::raw::CParameter;

use crate::block::CHUNK_BYTES;
use crate::limits::{BATCH_PLAIN_BYTES_MAX, BATCH_RAW_BYTES_TARGET, BATCH_STORED_BYTES_TARGET};
use crate::wire::message::{Batch, BatchHeader, Codec, Entry};

/// zstd level of a batch.
const LEVEL: i32 = 3;
/// 4 MiB: a batch sees all of itself.
const WINDOW_LOG: u32 = 22;

/// What goes wrong with a batch.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The encoder or decoder failed.
    #[error("zstd: {0}")]
    Codec(#[from] std::io::Error),
    /// The decoded data has another length than the recipe says.
    #[error("batch holds {found} bytes of plain data, its recipe says {expected}")]
    Length {
        /// By the recipe.
        expected: usize,
        /// In the payload.
        found: usize,
    },
}

/// Packs chunks into one batch.
pub struct BatchBuilder {
    entries: Vec<Entry>,
    plain: Vec<u8>,
    encoder: zstd::stream::write::Encoder<'static, Vec<u8>>,
}

impl BatchBuilder {
    /// An empty batch.
    pub fn new() -> Result<Self, BatchError> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::with_capacity(64 * 1024), LEVEL)?;
        encoder.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
        encoder.include_contentsize(false)?;
        encoder.include_checksum(false)?;
        Ok(Self { entries: Vec::new(), plain: Vec::new(), encoder })
    }

    /// Adds a chunk's bytes.
    pub fn literal(&mut self, disk: u16, chunk: u64, data: &[u8]) -> Result<(), BatchError> {
        self.encoder.write_all(data)?;
        self.plain.extend_from_slice(data);
        self.entries.push(Entry::Literal { disk, chunk });
        Ok(())
    }

    /// Adds a reference to a literal sent earlier.
    pub fn copy(&mut self, disk: u16, chunk: u64, id: crate::block::ShortId) {
        self.entries.push(Entry::Copy { disk, chunk, id });
    }

    /// True where nothing was added.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// True where the next chunk belongs into another batch.
    pub fn is_full(&self) -> bool {
        self.plain.len() + CHUNK_BYTES > BATCH_PLAIN_BYTES_MAX
            || self.encoder.get_ref().len() >= self.stored_bytes_target()
            || self.entries.len() >= 4096
    }

    /// Data that does not shrink gains nothing from company: smaller batches of it are acknowledged
    /// sooner, so that the credit window fills a long line.
    fn stored_bytes_target(&self) -> usize {
        let stored = self.encoder.get_ref().len();
        let shrinks = stored < self.plain.len() / 10 * 9;
        if shrinks { BATCH_STORED_BYTES_TARGET } else { BATCH_RAW_BYTES_TARGET }
    }

    /// Closes the batch.
    pub fn finish(self) -> Result<Batch, BatchError> {
        let plain_len = self.plain.len() as u32;
        let stored = self.encoder.finish()?;
        let (codec, payload) =
            if stored.len() < self.plain.len() { (Codec::Zstd, stored) } else { (Codec::Raw, self.plain) };
        Ok(Batch {
            header: BatchHeader { entries: self.entries, codec, plain_len },
            payload: Bytes::from(payload),
        })
    }
}

/// The plain data of a batch. Allocates no more than the recipe's bounded length.
pub fn decode(batch: &Batch) -> Result<Vec<u8>, BatchError> {
    let expected = batch.header.plain_len as usize;
    if batch.header.codec == Codec::Raw {
        let found = batch.payload.len();
        return if found == expected {
            Ok(batch.payload.to_vec())
        } else {
            Err(BatchError::Length { expected, found })
        };
    }
    if expected == 0 {
        return Ok(Vec::new());
    }
    let mut decoder = zstd::stream::read::Decoder::with_buffer(&batch.payload[..])?.single_frame();
    decoder.window_log_max(WINDOW_LOG)?;
    let mut plain = vec![0; expected];
    let mut filled = 0;
    while filled < expected {
        match decoder.read(&mut plain[filled..])? {
            0 => return Err(BatchError::Length { expected, found: filled }),
            n => filled += n,
        }
    }
    if decoder.read(&mut [0; 1])? != 0 {
        return Err(BatchError::Length { expected, found: expected + 1 });
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn incompressible_batches_stay_small_and_raw() {
        let noise = noise(8 * 1024 * 1024);
        let mut builder = BatchBuilder::new().unwrap();
        for (n, chunk) in noise.chunks(CHUNK_BYTES).enumerate() {
            if builder.is_full() {
                break;
            }
            builder.literal(0, n as u64, chunk).unwrap();
        }
        let batch = builder.finish().unwrap();
        assert_eq!(batch.header.codec, Codec::Raw);
        assert!(batch.payload.len() <= BATCH_RAW_BYTES_TARGET + 3 * CHUNK_BYTES, "{}", batch.payload.len());
        assert_eq!(decode(&batch).unwrap(), noise[..batch.payload.len()]);
    }

    #[test]
    fn a_bomb_is_refused() {
        let stored = zstd::encode_all(&vec![0u8; 64 << 20][..], 3).unwrap();
        let header = BatchHeader { entries: vec![], codec: Codec::Zstd, plain_len: 4096 };
        assert!(decode(&Batch { header, payload: Bytes::from(stored) }).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn round_trip(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..2000), 1..40)) {
            let mut builder = BatchBuilder::new().unwrap();
            for (n, chunk) in chunks.iter().enumerate() {
                builder.literal(1, n as u64, chunk).unwrap();
            }
            let batch = builder.finish().unwrap();
            prop_assert_eq!(decode(&batch).unwrap(), chunks.concat());
        }

        #[test]
        fn garbage_never_panics(payload in prop::collection::vec(any::<u8>(), 0..4000), plain_len in 0u32..(4 << 20)) {
            let header = BatchHeader { entries: vec![], codec: Codec::Zstd, plain_len };
            let _ = decode(&Batch { header, payload: Bytes::from(payload) });
        }
    }
}
