//! Reading a dirty bitmap of qemu: where a disk changed, as its export tells.
//!
//! One connection for one bitmap, gone when it was read. Bounds: [`DIRTY_EXTENTS_MAX`] extents; a disk with more changes is
//! one that is read whole.

use super::connection::Connection;
use super::protocol::STATE_DIRTY;
use super::{ConnectOptions, NbdError, STATUS_BYTES_MAX};
use crate::block::Extent;

/// Extents of one bitmap that are kept: 16 MiB of memory.
const DIRTY_EXTENTS_MAX: usize = 1 << 20;

/// Where the bitmap of an export is dirty: ascending, apart from each other, inside the disk.
pub fn dirty_extents(options: &ConnectOptions, bitmap: &str) -> Result<Vec<Extent>, NbdError> {
    let stream = std::os::unix::net::UnixStream::connect(&options.socket)?;
    let context = format!("qemu:dirty-bitmap:{bitmap}");
    let mut connection = Connection::start(stream, &options.export, &context, options.timeout)?;
    if connection.info.context.is_none() {
        return Err(NbdError::Refused { option: "the bitmap", why: format!("it does not export {bitmap}") });
    }
    let disk_len = options.disk_len.unwrap_or(connection.info.size).min(connection.info.size);
    let (mut at, mut dirty) = (0, Vec::new());
    while at < disk_len {
        let runs = connection.status(at, (disk_len - at).min(STATUS_BYTES_MAX))?;
        for run in runs {
            let end = (at + u64::from(run.len)).min(disk_len);
            add(&mut dirty, Extent { offset: at, len: end - at }, run.flags & STATE_DIRTY != 0);
            at = end;
        }
        if dirty.len() > DIRTY_EXTENTS_MAX {
            return Err(NbdError::Protocol(format!("a bitmap of more than {DIRTY_EXTENTS_MAX} extents")));
        }
    }
    connection.disconnect();
    Ok(dirty)
}

fn add(dirty: &mut Vec<Extent>, extent: Extent, is_dirty: bool) {
    match dirty.last_mut() {
        _ if !is_dirty || extent.len == 0 => {}
        Some(last) if last.end() == extent.offset => last.len += extent.len,
        _ => dirty.push(extent),
    }
}
