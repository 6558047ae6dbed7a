//! A job's disk as its first run would read it, for whoever carries it to the target: the other end of `seeding`.
//!
//! Read from a snapshot like a session's, free space masked as the job says. Each disk is read from a snapshot of its own: a
//! seed is a hint, so disks need not be of one moment, and what changes while one is read of which no clone could be
//! taken costs bytes on the line later, and nothing else. Owns that snapshot while it is read. Memory: 1 MiB.

use std::io;

use super::free::mask;
use super::manager::JobManager;
use super::snapshot::{host_of, resolve, vm_of};
use crate::block::{BlockRead, CHUNK_BYTES, is_zero};
use crate::error::Problem;
use crate::host::{SnapshotRequest, VmSnapshot};

/// Read at a time.
const READ_BYTES: u64 = 1024 * 1024;

/// A disk that is to be carried.
pub struct Carried {
    /// Of this one disk.
    snapshot: Option<VmSnapshot>,
}

impl JobManager {
    /// Takes the snapshot of one of a job's disks. Blocking.
    pub fn carry(&self, job: &str, disk: u16) -> Result<Carried, Problem> {
        let spec = self.show(job)?.spec;
        let (host, disks) = resolve(&self.parts, &spec)?;
        let wanted = disks.get(usize::from(disk)).cloned().ok_or_else(|| {
            Problem::not_found(
                format!("disk {disk} of job {job}"),
                format!("it has {}, which count from 0: vbrctl job show {job}", disks.len()),
            )
        })?;
        let session = format!("seed{:x}", vbr_api::Moment::now().as_nanosecond());
        let (job, vm) = (job.to_string(), vm_of(&spec));
        let request = SnapshotRequest { job, session, vm, disks: vec![wanted] };
        let snapshot = host.snapshot(&request).map_err(Problem::from)?;
        let (mut snapshot, _) = mask(snapshot, spec.free_space, false)?;
        self.parts.ceilings.limit(host_of(&spec), &mut snapshot);
        Ok(Carried { snapshot: Some(snapshot) })
    }
}

impl Carried {
    /// Gives its chunks that are not zero to `sink`, in ascending order and at most 1 MiB at a time; answers its exact length.
    /// Blocking.
    pub fn read(&self, sink: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>) -> Result<u64, Problem> {
        let Some(disk) = self.snapshot.as_ref().and_then(|snapshot| snapshot.disks.first()) else {
            return Err(Problem::new("internal", "the disk", "its snapshot is gone", "report this"));
        };
        let failed = |error: io::Error| Problem::io(format!("reading {}", disk.spec.path), &error);
        read(&*disk.reader, sink).map_err(failed)
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        if let Some(snapshot) = self.snapshot.take() {
            snapshot.release(false);
        }
    }
}

fn read(disk: &dyn BlockRead, sink: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<u64> {
    let (len, grid) = (disk.len(), CHUNK_BYTES as u64);
    let mut buffer = vec![0; READ_BYTES as usize];
    let mut at = 0;
    while at < len {
        let Some(data) = disk.next_data(at)?.filter(|data| data.offset < len) else { break };
        let start = data.offset / grid * grid;
        let end = data.end().next_multiple_of(grid).min(start + READ_BYTES).min(len);
        let part = &mut buffer[..(end - start) as usize];
        disk.read_at(start, part)?;
        let mut run = 0..0;
        for chunk in part.chunks(CHUNK_BYTES) {
            let next = run.end + chunk.len();
            if !is_zero(chunk) {
                run.end = next;
                continue;
            }
            give(start, part, run.clone(), sink)?;
            run = next..next;
        }
        give(start, part, run, sink)?;
        at = end;
    }
    Ok(len)
}

fn give(
    start: u64,
    part: &[u8],
    run: std::ops::Range<usize>,
    sink: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    match part.get(run.clone()).filter(|data| !data.is_empty()) {
        Some(data) => sink(start + run.start as u64, data),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_file::RawFile;

    #[test]
    fn chunks_that_are_not_zero_come_whole_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let grid = CHUNK_BYTES as u64;
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(40 * grid + 777).unwrap();
        let put = |at: u64, data: &[u8]| std::os::unix::fs::FileExt::write_all_at(&file, data, at).unwrap();
        put(3 * grid + 5000, b"a");
        put(5 * grid, &vec![0; 2 * CHUNK_BYTES]);
        put(6 * grid + 70, b"b");
        put(14 * grid, &vec![1; 20 * CHUNK_BYTES]);
        put(40 * grid + 776, b"c");
        let expected = std::fs::read(&path).unwrap();
        let (mut copy, mut next) = (vec![0; expected.len()], 0);
        let len = read(&RawFile::open(&path).unwrap(), &mut |at, data| {
            assert!(at >= next && at % grid == 0 && data.len() as u64 <= READ_BYTES);
            assert!(data.chunks(CHUNK_BYTES).all(|chunk| !is_zero(chunk)));
            next = at + data.len() as u64;
            copy[at as usize..next as usize].copy_from_slice(data);
            Ok(())
        });
        assert_eq!(len.unwrap(), expected.len() as u64);
        assert!(copy == expected);
        let full = read(&RawFile::open(&path).unwrap(), &mut |_, _| Err(io::ErrorKind::BrokenPipe.into()));
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
