//! Opening the packs: what the disk has decides, and the index is brought in line with it.
//!
//! A pack that the index knows as closed, and that has its length, is not read. Any other is read: by
//! its footer, or record by record; cut after its last valid record; entered into the index behind the
//! length that is known to be there. The newest one goes on as the open pack.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::sync::Arc;

use super::CacheError;
use super::format::{self, Entry, PACK_FILE_BYTES_MAX, PACK_HEADER_BYTES};
use super::index::{Index, Location, PackRow};
use super::packs::{Files, Settings, read_footer, read_whole};
use super::state::{State, preallocate};

pub(super) fn recover(files: &Files, index: &Index, settings: &Settings) -> Result<State, CacheError> {
    let numbers = list(files)?;
    let (mut rows, next_pack) = index.packs();
    let after_last = numbers.last().map_or(1, |last| last.saturating_add(1));
    let mut state = State { next_pack: next_pack.max(after_last), ..State::default() };
    for number in &numbers {
        let newest = numbers.last() == Some(number);
        recover_pack(*number, rows.remove(number), newest, &mut state, files, index, settings)?;
    }
    if !rows.is_empty() {
        tracing::warn!(dir = %files.dir.display(), packs = rows.len(), "cache packs have vanished; their chunks come again when they are needed");
    }
    for number in rows.keys() {
        index.forget_pack(*number, &[])?;
    }
    index.commit(&[], &[], state.next_pack, true)?;
    if let Err(error) = state.make_room(0, settings, files) {
        tracing::warn!(%error, "the cache cannot be brought to its size");
    }
    Ok(state)
}

fn list(files: &Files) -> Result<BTreeSet<u64>, CacheError> {
    let failed = |what| move |source| CacheError::Io { what, path: files.dir.clone(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&files.dir).map_err(failed("create"))?;
    let mut numbers = BTreeSet::new();
    for entry in std::fs::read_dir(&files.dir).map_err(failed("list"))? {
        let name = entry.map_err(failed("list"))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".pack"));
        // Only names that we would give: "1.pack" and "0000000000000001.pack" are not one pack.
        if let Some(number) = number.filter(|number| number.len() == 16)
            && let Ok(number) = u64::from_str_radix(number, 16)
        {
            numbers.insert(number);
        }
    }
    Ok(numbers)
}

fn recover_pack(
    number: u64,
    row: Option<PackRow>,
    newest: bool,
    state: &mut State,
    files: &Files,
    index: &Index,
    settings: &Settings,
) -> Result<(), CacheError> {
    let path = files.path(number);
    let failed = |what| {
        let path = path.clone();
        move |source| CacheError::Io { what, path, source }
    };
    let file_len = std::fs::metadata(&path).map_err(failed("read"))?.len();
    if let Some(row) = row.filter(|row| row.closed && u64::from(row.file_len) == file_len) {
        state.add_closed(number, file_len, row.records);
        return Ok(());
    }
    let file = File::options().read(true).write(true).open(&path).map_err(failed("open"))?;
    if !is_pack(&file, number, file_len) {
        tracing::warn!(path = %path.display(), "this is no cache pack of a version that is known here; removing it");
        std::fs::remove_file(&path).map_err(failed("remove"))?;
        return Ok(index.forget_pack(number, &[])?);
    }
    let footer = read_footer(&file, number);
    let closed = footer.is_some();
    let (entries, end) = match footer {
        Some(entries) => {
            let end = file_len - format::footer_bytes(entries.len());
            (entries, end as u32)
        }
        None => cut(&file, number, file_len).map_err(failed("recover"))?,
    };
    if entries.is_empty() && !newest {
        std::fs::remove_file(&path).map_err(failed("remove"))?;
        return Ok(index.forget_pack(number, &[])?);
    }
    // A closed pack of another length than noted has been tampered with: all of it is entered again.
    let known_len = row.filter(|row| !row.closed).map_or(0, |row| row.indexed_len);
    let mut row =
        PackRow { closed, indexed_len: end, file_len: file_len as u32, records: entries.len() as u32 };
    let goes_on = newest && !closed;
    if !closed && !goes_on {
        row.file_len = close(&file, number, end, &entries).map_err(failed("close"))?;
        row.closed = true;
    }
    // What is read from the page cache may never have reached the disk.
    (settings.sync)(&file).map_err(failed("make durable"))?;
    let records: Vec<_> = entries
        .iter()
        .filter(|entry| entry.offset >= known_len)
        .map(|entry| (entry.key(), Location::of(number, entry)))
        .collect();
    index.commit(&records, &[(number, row)], state.next_pack, false)?;
    if goes_on {
        if let Err(error) = preallocate(&file, settings.pack_bytes) {
            tracing::debug!(%error, "cannot take the space of the open cache pack beforehand");
        }
        state.adopt(number, Arc::new(file), end, entries);
    } else {
        state.add_closed(number, u64::from(row.file_len), row.records);
    }
    Ok(())
}

fn is_pack(file: &File, number: u64, file_len: u64) -> bool {
    let mut header = [0; PACK_HEADER_BYTES as usize];
    file_len <= PACK_FILE_BYTES_MAX
        && file.read_exact_at(&mut header, 0).is_ok()
        && format::decode_pack_header(&header) == Some(number)
}

/// Finds the records of a pack without a footer and cuts the file after the last valid one.
fn cut(file: &File, number: u64, file_len: u64) -> io::Result<(Vec<Entry>, u32)> {
    let found = format::scan(&read_whole(file)?);
    if u64::from(found.end) < file_len {
        tracing::warn!(
            pack = number,
            bytes = file_len - u64::from(found.end),
            "cut a cache pack after its last valid record"
        );
        file.set_len(u64::from(found.end))?;
    }
    Ok((found.entries, found.end))
}

fn close(file: &File, number: u64, end: u32, entries: &[Entry]) -> io::Result<u32> {
    let footer = format::encode_footer(number, end, entries);
    file.write_all_at(&footer, u64::from(end))?;
    Ok(end + footer.len() as u32)
}
