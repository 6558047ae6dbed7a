//! The export stream (`application/vnd.vbr.extents`), decoded.
//!
//! Records `u64 offset BE, u32 len BE, data`, ascending, zeroes left out; then `u64 disk_len, u32 0`. Sans-IO:
//! bytes in, calls on a [`Sink`] out; nothing but a header of 12 bytes is ever held. A stream without its end
//! record, with records out of order or past the disk's end, or with bytes after the end has failed.

use std::io;

const HEADER_BYTES: usize = 12;

/// Where the disk goes.
pub trait Sink {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// All data was given; the disk is `disk_len` bytes long.
    fn end(&mut self, disk_len: u64) -> io::Result<()>;
}

/// What is wrong with the stream, or with where it goes.
#[derive(Debug)]
pub enum ExtentsError {
    Stream(String),
    Sink(io::Error),
}

impl From<io::Error> for ExtentsError {
    fn from(error: io::Error) -> Self {
        Self::Sink(error)
    }
}

/// The decoder's state between two pieces.
pub struct Decoder {
    /// Length the disk is known to have, where it is known.
    expected_len: Option<u64>,
    header: [u8; HEADER_BYTES],
    header_filled: usize,
    /// Next byte's offset and how many bytes of the record are still to come.
    offset: u64,
    record_left: u64,
    data_bytes: u64,
    end: Option<u64>,
}

impl Decoder {
    pub fn new(expected_len: Option<u64>) -> Self {
        Self {
            expected_len,
            header: [0; HEADER_BYTES],
            header_filled: 0,
            offset: 0,
            record_left: 0,
            data_bytes: 0,
            end: None,
        }
    }

    /// Takes the next piece of the stream, of any length.
    pub fn feed(&mut self, mut piece: &[u8], sink: &mut dyn Sink) -> Result<(), ExtentsError> {
        while !piece.is_empty() {
            if self.end.is_some() {
                return Err(wrong("there are bytes after its end record"));
            }
            if self.record_left > 0 {
                let take = piece.len().min(usize::try_from(self.record_left).unwrap_or(usize::MAX));
                let (data, rest) = piece.split_at(take);
                sink.data(self.offset, data)?;
                self.offset += take as u64;
                self.record_left -= take as u64;
                self.data_bytes += take as u64;
                piece = rest;
                continue;
            }
            let take = piece.len().min(HEADER_BYTES - self.header_filled);
            let (part, rest) = piece.split_at(take);
            self.header[self.header_filled..self.header_filled + take].copy_from_slice(part);
            self.header_filled += take;
            piece = rest;
            if self.header_filled == HEADER_BYTES {
                self.header_filled = 0;
                self.record(sink)?;
            }
        }
        Ok(())
    }

    /// The stream is over: gives the disk's length, or says what is missing.
    pub fn finish(&self) -> Result<u64, ExtentsError> {
        self.end.ok_or_else(|| wrong("it stopped before its end record, the copy is not complete"))
    }

    /// Offset up to which the disk is known.
    pub fn position(&self) -> u64 {
        self.offset
    }

    /// Bytes of data so far, without gaps.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    fn record(&mut self, sink: &mut dyn Sink) -> Result<(), ExtentsError> {
        let mut eight = [0u8; 8];
        eight.copy_from_slice(&self.header[..8]);
        let mut four = [0u8; 4];
        four.copy_from_slice(&self.header[8..]);
        let (offset, length) = (u64::from_be_bytes(eight), u64::from(u32::from_be_bytes(four)));
        if offset < self.offset {
            return Err(wrong(&format!("a record at {offset} comes after {}", self.offset)));
        }
        let end = offset.checked_add(length).filter(|end| i64::try_from(*end).is_ok());
        let end = end.ok_or_else(|| wrong(&format!("a record at {offset} is past any disk's end")))?;
        if let Some(expected) = self.expected_len {
            let fits = if length == 0 { end == expected } else { end <= expected };
            if !fits {
                return Err(wrong(&format!("it reaches to {end}, but the disk is {expected} bytes long")));
            }
        }
        self.offset = offset;
        self.record_left = length;
        if length == 0 {
            self.end = Some(offset);
            sink.end(offset)?;
        }
        Ok(())
    }
}

fn wrong(why: &str) -> ExtentsError {
    ExtentsError::Stream(why.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Memory(Vec<u8>);

    impl Sink for Memory {
        fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            self.0.resize(offset as usize, 0);
            self.0.extend_from_slice(bytes);
            Ok(())
        }
        fn end(&mut self, disk_len: u64) -> io::Result<()> {
            self.0.resize(disk_len as usize, 0);
            Ok(())
        }
    }

    fn stream(records: &[(u64, &[u8])], len: u64) -> Vec<u8> {
        let mut out = Vec::new();
        for (offset, data) in records {
            out.extend(offset.to_be_bytes());
            out.extend((data.len() as u32).to_be_bytes());
            out.extend(*data);
        }
        out.extend(len.to_be_bytes());
        out.extend(0u32.to_be_bytes());
        out
    }

    fn decode(bytes: &[u8], step: usize, expected: Option<u64>) -> Result<Vec<u8>, ExtentsError> {
        let mut decoder = Decoder::new(expected);
        let mut memory = Memory::default();
        for piece in bytes.chunks(step) {
            decoder.feed(piece, &mut memory)?;
        }
        decoder.finish()?;
        Ok(memory.0)
    }

    #[test]
    fn any_cut_gives_the_same_disk() {
        let bytes = stream(&[(2, b"abc"), (8, b"z")], 12);
        for step in 1..=bytes.len() {
            assert_eq!(decode(&bytes, step, Some(12)).unwrap(), b"\0\0abc\0\0\0z\0\0\0", "{step}");
        }
        assert_eq!(decode(&stream(&[], 3), 5, None).unwrap(), [0, 0, 0]);
    }

    #[test]
    fn bad_streams_fail() {
        let good = stream(&[(2, b"abc")], 12);
        for cut in 0..good.len() {
            assert!(decode(&good[..cut], 7, None).is_err(), "{cut}");
        }
        let mut long = good.clone();
        long.push(0);
        assert!(decode(&long, 7, None).is_err());
        assert!(decode(&stream(&[(5, b"a"), (2, b"b")], 12), 7, None).is_err());
        assert!(decode(&stream(&[(5, b"abc")], 6), 7, None).is_err());
        assert!(decode(&stream(&[(u64::MAX, b"abc")], 6), 7, None).is_err());
        assert!(decode(&stream(&[(0, b"abc")], 4), 7, Some(5)).is_err());
        assert!(decode(&stream(&[(0, b"abc")], 2), 7, Some(2)).is_err());
    }
}
