//! The NBD protocol's numbers and its handshake (fixed newstyle, structured replies, one meta context: `base:allocation`, or a bitmap of qemu).
//!
//! Pure over `Read` and `Write`: owns no socket. Every length a server declares is held against a bound
//! before a buffer is made for it, and the number of replies to an option is bounded.

use std::io::{Read, Write};

use super::NbdError;

pub(super) const MAGIC_SERVER: u64 = 0x4e42_444d_4147_4943; // NBDMAGIC
pub(super) const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054; // IHAVEOPT
pub(super) const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
pub(super) const MAGIC_REQUEST: u32 = 0x2560_9513;
pub(super) const MAGIC_SIMPLE: u32 = 0x6744_6698;
pub(super) const MAGIC_STRUCTURED: u32 = 0x668e_33ef;

pub(super) const HANDSHAKE_FIXED_NEWSTYLE: u16 = 1;
pub(super) const HANDSHAKE_NO_ZEROES: u16 = 2;

pub(super) const OPTION_GO: u32 = 7;
const OPTION_STRUCTURED_REPLY: u32 = 8;
const OPTION_SET_META_CONTEXT: u32 = 10;

pub(super) const REPLY_ACK: u32 = 1;
pub(super) const REPLY_INFO: u32 = 3;
const REPLY_META_CONTEXT: u32 = 4;
pub(super) const REPLY_ERROR: u32 = 1 << 31;

pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

pub(super) const EXPORT_READ_ONLY: u16 = 1 << 1;
pub(super) const EXPORT_FLUSH: u16 = 1 << 2;
const EXPORT_WRITE_ZEROES: u16 = 1 << 6;
pub(super) const EXPORT_MULTI_CONN: u16 = 1 << 8;

pub(super) const COMMAND_READ: u16 = 0;
pub(super) const COMMAND_WRITE: u16 = 1;
pub(super) const COMMAND_DISCONNECT: u16 = 2;
pub(super) const COMMAND_FLUSH: u16 = 3;
pub(super) const COMMAND_WRITE_ZEROES: u16 = 6;
pub(super) const COMMAND_BLOCK_STATUS: u16 = 7;

pub(super) const CHUNK_DONE: u16 = 1;
pub(super) const CHUNK_NONE: u16 = 0;
pub(super) const CHUNK_OFFSET_DATA: u16 = 1;
pub(super) const CHUNK_OFFSET_HOLE: u16 = 2;
pub(super) const CHUNK_BLOCK_STATUS: u16 = 5;
pub(super) const CHUNK_ERROR_BIT: u16 = 1 << 15;

/// In the context `base:allocation`: reads as zeroes.
pub(super) const STATE_ZERO: u32 = 2;
/// In the context of a bitmap: changed.
pub(super) const STATE_DIRTY: u32 = 1;
/// The context that every client asks for where it wants no other.
pub(super) const ALLOCATION: &str = "base:allocation";

/// Bytes in a reply to an option; the longest legitimate one is a message of 4 KiB.
const OPTION_REPLY_BYTES_MAX: u32 = 16 * 1024;
/// Replies to one option.
const OPTION_REPLIES_MAX: usize = 32;

/// What the handshake settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExportInfo {
    /// Bytes the server exports.
    pub size: u64,
    pub read_only: bool,
    pub can_flush: bool,
    pub can_zero: bool,
    pub multi_conn: bool,
    /// Id of the context that was asked for; none where the server does not know it.
    pub context: Option<u32>,
    /// Largest request with data the server takes.
    pub block_max: u32,
}

/// Runs the handshake up to transmission.
pub(super) fn handshake(
    reader: &mut impl Read,
    writer: &mut impl Write,
    export: &str,
    context: &str,
) -> Result<ExportInfo, NbdError> {
    if read_u64(reader)? != MAGIC_SERVER || read_u64(reader)? != MAGIC_OPTION {
        return Err(NbdError::Protocol("no newstyle greeting".into()));
    }
    let flags = read_u16(reader)?;
    if flags & HANDSHAKE_FIXED_NEWSTYLE == 0 {
        return Err(NbdError::Protocol("the server does not speak fixed newstyle".into()));
    }
    let answer = flags & (HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES);
    writer.write_all(&u32::from(answer).to_be_bytes())?;

    send_option(writer, OPTION_STRUCTURED_REPLY, &[])?;
    negotiate(reader, OPTION_STRUCTURED_REPLY, "structured replies", |_, _| Ok(()))?;
    let context = meta_context(reader, writer, export, context)?;
    let mut info = go(reader, writer, export)?;
    info.context = context;
    Ok(info)
}

fn meta_context(
    reader: &mut impl Read,
    writer: &mut impl Write,
    export: &str,
    context: &str,
) -> Result<Option<u32>, NbdError> {
    let query = context.as_bytes();
    let mut body = counted(export.as_bytes());
    body.extend_from_slice(&1u32.to_be_bytes());
    body.extend_from_slice(&counted(query));
    send_option(writer, OPTION_SET_META_CONTEXT, &body)?;
    let mut id = None;
    let done = negotiate(reader, OPTION_SET_META_CONTEXT, "a meta context", |kind, data| {
        if let (REPLY_META_CONTEXT, Some((head, name))) = (kind, data.split_first_chunk::<4>())
            && name == query
        {
            id = Some(u32::from_be_bytes(*head));
        }
        Ok(())
    });
    match done {
        Ok(()) => Ok(id),
        // Without it everything is read: slower, never wrong. A wrong export name is refused by GO.
        Err(NbdError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn go(reader: &mut impl Read, writer: &mut impl Write, export: &str) -> Result<ExportInfo, NbdError> {
    // NBD_INFO_BLOCK_SIZE is not asked for: a server must then take requests of any alignment.
    let mut body = counted(export.as_bytes());
    body.extend_from_slice(&0u16.to_be_bytes());
    send_option(writer, OPTION_GO, &body)?;
    let (mut found, mut block_max) = (None, 32 << 20);
    negotiate(reader, OPTION_GO, "the export", |kind, data| {
        if kind != REPLY_INFO {
            return Ok(());
        }
        match data {
            [a, b, rest @ ..] if u16::from_be_bytes([*a, *b]) == INFO_EXPORT => {
                let (Some(size), Some(flags)) = (number::<8>(rest, 0), number::<2>(rest, 8)) else {
                    return Err(NbdError::Protocol("NBD_INFO_EXPORT is too short".into()));
                };
                found = Some((size, flags as u16));
            }
            [a, b, rest @ ..] if u16::from_be_bytes([*a, *b]) == INFO_BLOCK_SIZE => {
                let (Some(min), Some(max)) = (number::<4>(rest, 0), number::<4>(rest, 8)) else {
                    return Err(NbdError::Protocol("NBD_INFO_BLOCK_SIZE is too short".into()));
                };
                if min != 1 || max < 64 * 1024 {
                    return Err(NbdError::Protocol(format!("blocks of {min} to {max} bytes")));
                }
                block_max = max as u32;
            }
            _ => {}
        }
        Ok(())
    })?;
    let Some((size, flags)) = found else {
        return Err(NbdError::Protocol("the export was granted without its size".into()));
    };
    Ok(ExportInfo {
        size,
        read_only: flags & EXPORT_READ_ONLY != 0,
        can_flush: flags & EXPORT_FLUSH != 0,
        can_zero: flags & EXPORT_WRITE_ZEROES != 0,
        multi_conn: flags & EXPORT_MULTI_CONN != 0,
        context: None,
        block_max,
    })
}

fn counted(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u32).to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

/// A big-endian number of `N` bytes at `at`, where the slice is long enough.
fn number<const N: usize>(data: &[u8], at: usize) -> Option<u64> {
    let bytes = data.get(at..at + N)?;
    Some(bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn send_option(writer: &mut impl Write, option: u32, body: &[u8]) -> Result<(), NbdError> {
    let mut frame = MAGIC_OPTION.to_be_bytes().to_vec();
    frame.extend_from_slice(&option.to_be_bytes());
    frame.extend_from_slice(&counted(body));
    Ok(writer.write_all(&frame)?)
}

/// Reads replies to an option until its acknowledgement or its refusal.
fn negotiate(
    reader: &mut impl Read,
    option: u32,
    name: &'static str,
    mut each: impl FnMut(u32, &[u8]) -> Result<(), NbdError>,
) -> Result<(), NbdError> {
    for _ in 0..OPTION_REPLIES_MAX {
        if read_u64(reader)? != MAGIC_OPTION_REPLY || read_u32(reader)? != option {
            return Err(NbdError::Protocol(format!("not a reply to option {option}")));
        }
        let (kind, len) = (read_u32(reader)?, read_u32(reader)?);
        if len > OPTION_REPLY_BYTES_MAX {
            return Err(NbdError::Protocol(format!("a reply of {len} bytes to option {option}")));
        }
        let mut data = vec![0; len as usize];
        reader.read_exact(&mut data)?;
        if kind & REPLY_ERROR != 0 {
            let text = String::from_utf8_lossy(&data);
            return Err(NbdError::Refused {
                option: name,
                why: format!("{text} (code {})", kind & !REPLY_ERROR),
            });
        }
        if kind == REPLY_ACK {
            return Ok(());
        }
        each(kind, &data)?;
    }
    Err(NbdError::Protocol(format!("no end of replies to option {option}")))
}

pub(super) fn read_u16(reader: &mut impl Read) -> Result<u16, NbdError> {
    let mut bytes = [0; 2];
    reader.read_exact(&mut bytes)?;
    Ok(u16::from_be_bytes(bytes))
}

pub(super) fn read_u32(reader: &mut impl Read) -> Result<u32, NbdError> {
    let mut bytes = [0; 4];
    reader.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

pub(super) fn read_u64(reader: &mut impl Read) -> Result<u64, NbdError> {
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

/// A server's error number as an error of this system; what is not in the protocol's list is EIO.
pub(super) fn server_error(code: u32) -> std::io::Error {
    let errno = match code {
        1 | 5 | 12 | 22 | 28 | 75 | 95 | 108 => code as i32,
        _ => 5,
    };
    std::io::Error::from_raw_os_error(errno)
}
