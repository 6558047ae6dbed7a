//! Swap areas: everything past the header, unless a sleeping system's memory may lie in it.

use super::bytes::le32;
use super::extents::Sink;
use super::signatures::PAGES;
use super::view::View;
use super::{Keep, keep, require};

/// Finds the free bytes of a swap area.
///
/// A running system's swapped pages mean nothing after a restart, and a restore point is started afresh.
pub(super) fn map(view: &View<'_>, sink: &mut Sink) -> Result<String, Keep> {
    let mut found = None;
    for page in PAGES {
        if *page > view.len() {
            break;
        }
        let magic = view.read(page - 10, 10)?;
        match magic.as_slice() {
            b"SWAPSPACE2" if found.is_none() => found = Some(*page),
            b"SWAPSPACE2" => return keep("two swap signatures contradict each other"),
            b"SWAP-SPACE" => return keep("an old swap format"),
            other if SLEEPING.iter().any(|magic| other.starts_with(magic)) => {
                return Err(Keep::Hibernated("the swap area holds a sleeping system's memory".into()));
            }
            _ => {}
        }
    }
    let Some(page) = found else { return keep("no swap signature") };
    let header = view.read(1024, 12)?;
    // Header version 1, and a last page inside the volume: what mkswap writes, whatever the byte order.
    let (version, last) = (le32(&header, 0)?, le32(&header, 4)?);
    let (version, last) =
        if version == 1 { (version, last) } else { (version.swap_bytes(), last.swap_bytes()) };
    require(version == 1, "an unknown swap format")?;
    let end = (u64::from(last) + 1).saturating_mul(page);
    require(end <= view.len() && end > page, "the swap area is larger than its volume")?;
    sink.push(page, end - page)?;
    Ok("a swap area, only its header travels".into())
}

/// Signatures of hibernation images.
const SLEEPING: &[&[u8]] =
    &[b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB", b"\xED\xC3\x02\xE9\x98\x56\xE5\x0C"];
