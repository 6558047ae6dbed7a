//! One NBD connection in transmission: requests out, replies in, several in flight.
//!
//! Owned by one caller at a time (a mutex in `client`). Reads are finished before a call returns;
//! writes may stay in flight, their errors are kept and are final. The two directions cannot block each
//! other: while replies with data are outstanding only 28-byte requests are sent, and while data is
//! sent only short replies are outstanding; both fit a socket's buffer.

use std::collections::HashMap;
use std::io::{BufReader, IoSlice, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::protocol::{self as p, ExportInfo};
use super::{DEPTH_MAX, NbdError, READ_BYTES_MAX, STATUS_EXTENTS_MAX, WRITE_BYTES_MAX, ZERO_BYTES_MAX};

/// Chunks in the reply to one request: a 256 KiB read in pieces of 512 bytes, and some.
const CHUNKS_MAX: u32 = 2048;
/// Bytes in an error chunk: code, length, message of at most 4 KiB, offset.
const ERROR_BYTES_MAX: u32 = 8 * 1024;

/// A run of the same state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StatusRun {
    pub len: u32,
    /// As the context that was asked for defines them.
    pub flags: u32,
}

pub(super) struct Connection {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    pub info: ExportInfo,
    pending: HashMap<u64, Pending>,
    /// Requests pending whose reply the current call waits for (everything but writes).
    awaited: usize,
    next_cookie: u64,
    write_error: Option<String>,
}

struct Pending {
    command: u16,
    offset: u64,
    len: u64,
    chunks: u32,
    covered: Covered,
    has_status: bool,
    error: Option<std::io::Error>,
}

/// Where replies of the current call go.
#[derive(Default)]
struct Sink<'a> {
    buf: &'a mut [u8],
    offset: u64,
    status: Vec<StatusRun>,
    error: Option<NbdError>,
}

impl Connection {
    /// In the context `base:allocation`, or another one.
    pub fn start(
        stream: UnixStream,
        export: &str,
        context: &str,
        timeout: Duration,
    ) -> Result<Self, NbdError> {
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        // Larger buffers save wake-ups; the system may grant less, and that works too.
        let _ = socket2::SockRef::from(&stream).set_send_buffer_size(4 * WRITE_BYTES_MAX);
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::with_capacity(4096, stream);
        let info = p::handshake(&mut reader, &mut writer, export, context)?;
        Ok(Self {
            reader,
            writer,
            info,
            pending: HashMap::new(),
            awaited: 0,
            next_cookie: 1,
            write_error: None,
        })
    }

    /// Fills `buf` from `offset`.
    pub fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), NbdError> {
        let (len, step) = (buf.len(), READ_BYTES_MAX.min(self.info.block_max as usize));
        let mut sink = Sink { buf, offset, ..Sink::default() };
        self.settle(offset..offset + len as u64, &mut sink)?;
        let mut sent = 0;
        while (sent < len && sink.error.is_none()) || self.awaited > 0 {
            if sent < len && sink.error.is_none() && self.pending.len() < DEPTH_MAX {
                let part = step.min(len - sent);
                self.send(p::COMMAND_READ, offset + sent as u64, part as u64, &[])?;
                sent += part;
            } else {
                self.receive(&mut sink)?;
            }
        }
        sink.error.map_or(Ok(()), Err)
    }

    /// The states from `offset`; they may end before or after `offset + len`.
    pub fn status(&mut self, offset: u64, len: u64) -> Result<Vec<StatusRun>, NbdError> {
        let mut sink = Sink::default();
        self.settle(offset..offset + len, &mut sink)?;
        self.send(p::COMMAND_BLOCK_STATUS, offset, len, &[])?;
        while self.awaited > 0 {
            self.receive(&mut sink)?;
        }
        sink.error.map_or(Ok(sink.status), Err)
    }

    /// Sends all of `data`; its success is known after [`Self::flush`].
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), NbdError> {
        let step = WRITE_BYTES_MAX.min(self.info.block_max as usize);
        for (index, part) in data.chunks(step).enumerate() {
            let at = offset + (index * step) as u64;
            self.make_room(at..at + part.len() as u64)?;
            self.send(p::COMMAND_WRITE, at, part.len() as u64, part)?;
        }
        self.check_writes()
    }

    /// Makes a range read as zeroes; its success is known after [`Self::flush`].
    pub fn zero(&mut self, offset: u64, len: u64) -> Result<(), NbdError> {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let part = (end - at).min(ZERO_BYTES_MAX);
            if self.info.can_zero {
                self.make_room(at..at + part)?;
                self.send(p::COMMAND_WRITE_ZEROES, at, part, &[])?;
                at += part;
            } else {
                let zeroes = vec![0; part.min(WRITE_BYTES_MAX as u64) as usize];
                self.write(at, &zeroes)?;
                at += zeroes.len() as u64;
            }
        }
        self.check_writes()
    }

    /// Waits for all writes and makes them durable.
    pub fn flush(&mut self) -> Result<(), NbdError> {
        let mut sink = Sink::default();
        while !self.pending.is_empty() {
            self.receive(&mut sink)?;
        }
        self.check_writes()?;
        if self.info.can_flush {
            self.send(p::COMMAND_FLUSH, 0, 0, &[])?;
            while self.awaited > 0 {
                self.receive(&mut sink)?;
            }
        }
        if let Some(error) = sink.error {
            // After a failed flush the system may have dropped what it could not write.
            self.write_error = Some(error.to_string());
            return Err(error);
        }
        Ok(())
    }

    /// Tells the server that we are done; failures do not matter any more.
    pub fn disconnect(&mut self) {
        let _ = self.send(p::COMMAND_DISCONNECT, 0, 0, &[]);
    }

    fn check_writes(&self) -> Result<(), NbdError> {
        self.write_error.clone().map_or(Ok(()), |why| Err(NbdError::WriteFailed(why)))
    }

    /// Room for one more write, and none in flight that overlaps it: servers may reorder.
    fn make_room(&mut self, range: Range<u64>) -> Result<(), NbdError> {
        let mut sink = Sink::default();
        self.check_writes()?;
        self.settle(range, &mut sink)?;
        while self.pending.len() >= DEPTH_MAX {
            self.receive(&mut sink)?;
        }
        self.check_writes()
    }

    /// Waits for writes in flight that overlap `range`, so that what follows sees them.
    fn settle(&mut self, range: Range<u64>, sink: &mut Sink<'_>) -> Result<(), NbdError> {
        let overlaps = |w: &Pending| w.offset < range.end && range.start < w.offset + w.len;
        while self.pending.values().any(overlaps) {
            self.receive(sink)?;
        }
        Ok(())
    }

    fn send(&mut self, command: u16, offset: u64, len: u64, data: &[u8]) -> Result<(), NbdError> {
        let Ok(wire_len) = u32::try_from(len) else {
            return Err(NbdError::Protocol(format!("a request of {len} bytes")));
        };
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut head = [0; 28];
        head[..4].copy_from_slice(&p::MAGIC_REQUEST.to_be_bytes());
        head[6..8].copy_from_slice(&command.to_be_bytes());
        head[8..16].copy_from_slice(&cookie.to_be_bytes());
        head[16..24].copy_from_slice(&offset.to_be_bytes());
        head[24..].copy_from_slice(&wire_len.to_be_bytes());
        write_both(&mut self.writer, &head, data)?;
        if command == p::COMMAND_DISCONNECT {
            return Ok(());
        }
        if !is_write(command) {
            self.awaited += 1;
        }
        let pending = Pending {
            command,
            offset,
            len,
            chunks: 0,
            covered: Covered::default(),
            has_status: false,
            error: None,
        };
        self.pending.insert(cookie, pending);
        Ok(())
    }

    /// Takes one reply (or one chunk of one) from the socket.
    fn receive(&mut self, sink: &mut Sink<'_>) -> Result<(), NbdError> {
        match p::read_u32(&mut self.reader)? {
            p::MAGIC_SIMPLE => {
                let (code, cookie) = (p::read_u32(&mut self.reader)?, p::read_u64(&mut self.reader)?);
                let pending = self.pending.get_mut(&cookie).ok_or_else(|| unknown(cookie))?;
                if code != 0 {
                    pending.error = Some(p::server_error(code));
                } else if matches!(pending.command, p::COMMAND_READ | p::COMMAND_BLOCK_STATUS) {
                    return Err(NbdError::Protocol("a simple reply where a structured one is due".into()));
                }
                self.finish(cookie, sink)
            }
            p::MAGIC_STRUCTURED => self.receive_chunk(sink),
            other => Err(NbdError::Protocol(format!("a reply begins with {other:#x}"))),
        }
    }

    fn receive_chunk(&mut self, sink: &mut Sink<'_>) -> Result<(), NbdError> {
        let (flags, kind) = (p::read_u16(&mut self.reader)?, p::read_u16(&mut self.reader)?);
        let (cookie, len) = (p::read_u64(&mut self.reader)?, p::read_u32(&mut self.reader)?);
        let pending = self.pending.get_mut(&cookie).ok_or_else(|| unknown(cookie))?;
        pending.chunks += 1;
        if pending.chunks > CHUNKS_MAX {
            return Err(NbdError::Protocol("no end of chunks in one reply".into()));
        }
        match kind {
            p::CHUNK_NONE if len == 0 && flags & p::CHUNK_DONE != 0 => {}
            p::CHUNK_OFFSET_DATA => pending.take_data(&mut self.reader, len, sink)?,
            p::CHUNK_OFFSET_HOLE => pending.take_hole(&mut self.reader, len, sink)?,
            p::CHUNK_BLOCK_STATUS => {
                pending.take_status(&mut self.reader, len, self.info.context, sink)?;
            }
            kind if kind & p::CHUNK_ERROR_BIT != 0 => pending.take_error(&mut self.reader, len)?,
            _ => return Err(NbdError::Protocol(format!("a chunk of type {kind} with {len} bytes"))),
        }
        if flags & p::CHUNK_DONE != 0 { self.finish(cookie, sink) } else { Ok(()) }
    }

    fn finish(&mut self, cookie: u64, sink: &mut Sink<'_>) -> Result<(), NbdError> {
        let pending = self.pending.remove(&cookie).ok_or_else(|| unknown(cookie))?;
        if !is_write(pending.command) {
            self.awaited -= 1;
        }
        let Some(source) = pending.error else {
            let whole = match pending.command {
                p::COMMAND_READ => pending.covered.total == pending.len,
                p::COMMAND_BLOCK_STATUS => pending.has_status,
                _ => true,
            };
            return if whole { Ok(()) } else { Err(NbdError::Protocol("a reply ended early".into())) };
        };
        let error = NbdError::Request { command: name(pending.command), offset: pending.offset, source };
        if is_write(pending.command) {
            self.write_error.get_or_insert_with(|| error.to_string());
        } else {
            sink.error.get_or_insert(error);
        }
        Ok(())
    }
}

impl Pending {
    /// The part of the caller's buffer that `offset` and `len` from the server mean, if they may.
    fn place<'b>(&mut self, offset: u64, len: u64, sink: &'b mut Sink<'_>) -> Result<&'b mut [u8], NbdError> {
        let inside = self.command == p::COMMAND_READ
            && len > 0
            && offset >= self.offset
            && offset.checked_add(len).is_some_and(|end| end <= self.offset + self.len);
        if !inside || !self.covered.add(offset..offset + len) {
            return Err(NbdError::Protocol(format!(
                "data for {len} bytes at {offset} that nobody asked for"
            )));
        }
        let start = (offset - sink.offset) as usize;
        sink.buf
            .get_mut(start..start + len as usize)
            .ok_or_else(|| NbdError::Protocol("data outside the request".into()))
    }

    fn take_data(&mut self, reader: &mut impl Read, len: u32, sink: &mut Sink<'_>) -> Result<(), NbdError> {
        let Some(data_len) = len.checked_sub(8) else {
            return Err(NbdError::Protocol("a data chunk without an offset".into()));
        };
        let offset = p::read_u64(reader)?;
        Ok(reader.read_exact(self.place(offset, u64::from(data_len), sink)?)?)
    }

    fn take_hole(&mut self, reader: &mut impl Read, len: u32, sink: &mut Sink<'_>) -> Result<(), NbdError> {
        if len != 12 {
            return Err(NbdError::Protocol(format!("a hole chunk of {len} bytes")));
        }
        let (offset, hole) = (p::read_u64(reader)?, p::read_u32(reader)?);
        self.place(offset, u64::from(hole), sink)?.fill(0);
        Ok(())
    }

    fn take_status(
        &mut self,
        reader: &mut impl Read,
        len: u32,
        context: Option<u32>,
        sink: &mut Sink<'_>,
    ) -> Result<(), NbdError> {
        let extents = len.wrapping_sub(4) as usize / 8;
        let fits = len >= 12 && len % 8 == 4 && extents <= STATUS_EXTENTS_MAX;
        if self.command != p::COMMAND_BLOCK_STATUS || self.has_status || !fits {
            return Err(NbdError::Protocol(format!("a block status of {len} bytes that nobody asked for")));
        }
        if context != Some(p::read_u32(reader)?) {
            return Err(NbdError::Protocol("the status of an unknown context".into()));
        }
        self.has_status = true;
        for _ in 0..extents {
            let (len, flags) = (p::read_u32(reader)?, p::read_u32(reader)?);
            if len == 0 {
                return Err(NbdError::Protocol("an empty extent".into()));
            }
            sink.status.push(StatusRun { len, flags });
        }
        Ok(())
    }

    fn take_error(&mut self, reader: &mut impl Read, len: u32) -> Result<(), NbdError> {
        if !(6..=ERROR_BYTES_MAX).contains(&len) {
            return Err(NbdError::Protocol(format!("an error chunk of {len} bytes")));
        }
        let code = p::read_u32(reader)?;
        let mut rest = vec![0; len as usize - 4];
        reader.read_exact(&mut rest)?;
        self.error.get_or_insert(p::server_error(code));
        Ok(())
    }
}

/// Which bytes of a read have come: overlaps are refused, so a full count means no gap.
#[derive(Default)]
struct Covered {
    ranges: Vec<Range<u64>>,
    total: u64,
}

impl Covered {
    fn add(&mut self, range: Range<u64>) -> bool {
        let at = self.ranges.partition_point(|known| known.end <= range.start);
        if self.ranges.get(at).is_some_and(|known| known.start < range.end) {
            return false;
        }
        self.total += range.end - range.start;
        self.ranges.insert(at, range);
        true
    }
}

fn is_write(command: u16) -> bool {
    matches!(command, p::COMMAND_WRITE | p::COMMAND_WRITE_ZEROES)
}

fn name(command: u16) -> &'static str {
    match command {
        p::COMMAND_READ => "READ",
        p::COMMAND_WRITE => "WRITE",
        p::COMMAND_WRITE_ZEROES => "WRITE_ZEROES",
        p::COMMAND_BLOCK_STATUS => "BLOCK_STATUS",
        _ => "FLUSH",
    }
}

fn unknown(cookie: u64) -> NbdError {
    NbdError::Protocol(format!("a reply to request {cookie}, which is not in flight"))
}

/// Head and data in as few calls as the socket allows.
fn write_both(writer: &mut UnixStream, head: &[u8], data: &[u8]) -> std::io::Result<()> {
    let mut sent = 0;
    while sent < head.len() {
        let written = writer.write_vectored(&[IoSlice::new(&head[sent..]), IoSlice::new(data)])?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        if written > head.len() - sent {
            return writer.write_all(&data[written - (head.len() - sent)..]);
        }
        sent += written;
    }
    writer.write_all(data)
}
