//! Serving one disk by NBD, read only: the other side of the protocol, for one client on one connection.
//!
//! Fixed newstyle and simple replies, requests of any alignment, one at a time. Pure over `Read` and `Write`: owns no socket.
//! Every length that a client sends is held against a bound before a buffer is made for it. Not its job: who may connect,
//! and what is read.

use std::io::{ErrorKind, Read, Write};

use super::NbdError;
use super::protocol::{
    COMMAND_DISCONNECT, COMMAND_FLUSH, COMMAND_READ, COMMAND_WRITE, EXPORT_FLUSH, EXPORT_MULTI_CONN,
    EXPORT_READ_ONLY, HANDSHAKE_FIXED_NEWSTYLE, HANDSHAKE_NO_ZEROES, INFO_BLOCK_SIZE, INFO_EXPORT,
    MAGIC_OPTION, MAGIC_OPTION_REPLY, MAGIC_REQUEST, MAGIC_SERVER, MAGIC_SIMPLE, OPTION_GO, REPLY_ACK,
    REPLY_ERROR, REPLY_INFO, read_u16, read_u32, read_u64,
};
use crate::block::BlockRead;

/// Bytes that one request may read; clients are told.
const REQUEST_BYTES_MAX: u32 = 4 << 20;
/// Bytes of an option, its longest legitimate name included.
const OPTION_BYTES_MAX: u32 = 8 * 1024;
/// Options before a client has to begin.
const OPTIONS_MAX: usize = 64;
const BLOCK_PREFERRED: u32 = 64 * 1024;

const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const EXPORT_HAS_FLAGS: u16 = 1;
const FLAGS: u16 = EXPORT_HAS_FLAGS | EXPORT_READ_ONLY | EXPORT_FLUSH | EXPORT_MULTI_CONN;
const REPLY_UNSUPPORTED: u32 = REPLY_ERROR | 1;

const NOT_PERMITTED: u32 = 1;
const IO_ERROR: u32 = 5;
const INVALID: u32 = 22;

/// Serves until the client leaves. Whatever name it asks for, it gets this disk.
pub fn serve(stream: &mut (impl Read + Write), disk: &dyn BlockRead) -> Result<(), NbdError> {
    stream.write_all(&MAGIC_SERVER.to_be_bytes())?;
    stream.write_all(&MAGIC_OPTION.to_be_bytes())?;
    stream.write_all(&(HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES).to_be_bytes())?;
    let no_zeroes = read_u32(stream)? & u32::from(HANDSHAKE_NO_ZEROES) != 0;
    for _ in 0..OPTIONS_MAX {
        match option(stream, disk.len(), no_zeroes)? {
            Negotiated::Again => {}
            Negotiated::Begin => return transmit(stream, disk),
            Negotiated::Left => return Ok(()),
        }
    }
    Err(NbdError::Protocol("the client negotiates without an end".into()))
}

enum Negotiated {
    Again,
    Begin,
    Left,
}

fn option(stream: &mut (impl Read + Write), disk_len: u64, no_zeroes: bool) -> Result<Negotiated, NbdError> {
    if read_u64(stream)? != MAGIC_OPTION {
        return Err(NbdError::Protocol("not an option".into()));
    }
    let (option, len) = (read_u32(stream)?, read_u32(stream)?);
    if len > OPTION_BYTES_MAX {
        return Err(NbdError::Protocol(format!("an option of {len} bytes")));
    }
    let mut data = vec![0; len as usize];
    stream.read_exact(&mut data)?;
    let mut reply = |kind: u32, body: &[u8]| -> Result<(), NbdError> {
        let mut frame = MAGIC_OPTION_REPLY.to_be_bytes().to_vec();
        [option, kind, body.len() as u32]
            .iter()
            .for_each(|word| frame.extend_from_slice(&word.to_be_bytes()));
        frame.extend_from_slice(body);
        Ok(stream.write_all(&frame)?)
    };
    let mut export = disk_len.to_be_bytes().to_vec();
    export.extend_from_slice(&FLAGS.to_be_bytes());
    match option {
        OPTION_EXPORT_NAME => {
            if !no_zeroes {
                export.extend_from_slice(&[0; 124]);
            }
            stream.write_all(&export)?;
            Ok(Negotiated::Begin)
        }
        OPTION_INFO | OPTION_GO => {
            reply(REPLY_INFO, &[&INFO_EXPORT.to_be_bytes(), export.as_slice()].concat())?;
            let mut blocks = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
            let sizes = [1, BLOCK_PREFERRED, REQUEST_BYTES_MAX];
            sizes.iter().for_each(|size: &u32| blocks.extend_from_slice(&size.to_be_bytes()));
            reply(REPLY_INFO, &blocks)?;
            reply(REPLY_ACK, &[])?;
            Ok(if option == OPTION_GO { Negotiated::Begin } else { Negotiated::Again })
        }
        OPTION_ABORT => {
            reply(REPLY_ACK, &[])?;
            Ok(Negotiated::Left)
        }
        _ => {
            reply(REPLY_UNSUPPORTED, &[])?;
            Ok(Negotiated::Again)
        }
    }
}

fn transmit(stream: &mut (impl Read + Write), disk: &dyn BlockRead) -> Result<(), NbdError> {
    let mut buffer = Vec::new();
    loop {
        let mut magic = [0; 4];
        match stream.read_exact(&mut magic) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        if u32::from_be_bytes(magic) != MAGIC_REQUEST {
            return Err(NbdError::Protocol("not a request".into()));
        }
        let _flags = read_u16(stream)?;
        let command = read_u16(stream)?;
        let (handle, offset, len) = (read_u64(stream)?, read_u64(stream)?, read_u32(stream)?);
        buffer.clear();
        let error = match command {
            COMMAND_DISCONNECT => return Ok(()),
            COMMAND_FLUSH => 0,
            COMMAND_READ => read(disk, offset, len, &mut buffer),
            // What it would write comes with it: it is taken off the stream, whatever its length says.
            COMMAND_WRITE if len <= REQUEST_BYTES_MAX => {
                std::io::copy(&mut Read::by_ref(stream).take(u64::from(len)), &mut std::io::sink())?;
                NOT_PERMITTED
            }
            COMMAND_WRITE => return Err(NbdError::Protocol(format!("a request of {len} bytes"))),
            _ => INVALID,
        };
        let mut reply = MAGIC_SIMPLE.to_be_bytes().to_vec();
        reply.extend_from_slice(&error.to_be_bytes());
        reply.extend_from_slice(&handle.to_be_bytes());
        stream.write_all(&reply)?;
        if error == 0 {
            stream.write_all(&buffer)?;
        }
    }
}

/// The error's number in the protocol; 0: read.
fn read(disk: &dyn BlockRead, offset: u64, len: u32, buffer: &mut Vec<u8>) -> u32 {
    let end = offset.checked_add(u64::from(len));
    if len > REQUEST_BYTES_MAX || end.is_none_or(|end| end > disk.len()) {
        return INVALID;
    }
    buffer.resize(len as usize, 0);
    match disk.read_at(offset, buffer) {
        Ok(()) => 0,
        Err(error) => {
            tracing::warn!(%error, offset, len, "a client of a disk cannot be given what it reads");
            IO_ERROR
        }
    }
}
