//! Disks to replicate: sparse images, real file systems filled from this machine's files, random and
//! zero runs, growth, mutations, qcow2; and the comparison that decides whether a copy is a copy.
//!
//! Everything is seeded, so that a failure can be repeated. Owns no state.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::process::run;

/// One mebibyte.
pub const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const CHUNK: u64 = 64 * 1024;

/// Bytes that look random and are the same for the same seed.
pub struct Seeded(blake3::OutputReader);

impl Seeded {
    /// A stream of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(blake3::Hasher::new_derive_key("vbr test disks").update(&seed.to_le_bytes()).finalize_xof())
    }

    /// The next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        self.0.fill(buffer);
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % bound.max(1)
    }
}

fn open(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    file.with_context(|| format!("opening {}", path.display()))
}

/// A sparse file of exactly `len` bytes (grows, shrinks or makes it).
pub fn set_len(path: &Path, len: u64) -> Result<()> {
    open(path)?.set_len(len).with_context(|| format!("resizing {}", path.display()))
}

/// Random bytes over a range.
pub fn write_random(path: &Path, offset: u64, len: u64, seed: u64) -> Result<()> {
    let file = open(path)?;
    let mut seeded = Seeded::new(seed);
    let mut buffer = vec![0u8; MIB as usize];
    let mut at = offset;
    while at < offset + len {
        let take = (offset + len - at).min(MIB) as usize;
        seeded.fill(&mut buffer[..take]);
        file.write_all_at(&buffer[..take], at)?;
        at += take as u64;
    }
    Ok(())
}

/// A disk full of random bytes.
pub fn random(path: &Path, len: u64, seed: u64) -> Result<()> {
    set_len(path, len)?;
    write_random(path, 0, len, seed)
}

/// A disk as machines have it: some text, some random bytes, holes, and blocks that occur twice.
pub fn mixed(path: &Path, len: u64, seed: u64) -> Result<()> {
    set_len(path, 0)?;
    set_len(path, len)?;
    let file = open(path)?;
    let mut seeded = Seeded::new(seed);
    let mut chunk = vec![0u8; CHUNK as usize];
    let mut at = 0;
    while at < len {
        let take = CHUNK.min(len - at) as usize;
        match seeded.below(10) {
            0..=3 => text(&mut chunk, &mut seeded),
            4..=5 => seeded.fill(&mut chunk),
            6 => Seeded::new(seeded.below(16)).fill(&mut chunk),
            _ => {
                at += CHUNK;
                continue;
            }
        }
        file.write_all_at(&chunk[..take], at)?;
        at += CHUNK;
    }
    Ok(())
}

/// A disk without holes or repetitions: two chunks of three compress well, one does not.
pub fn dense(path: &Path, len: u64) -> Result<()> {
    set_len(path, len)?;
    let file = open(path)?;
    let mut seeded = Seeded::new(len);
    let mut pattern = vec![0u8; 16 * MIB as usize];
    text(&mut pattern, &mut seeded);
    let mut chunk = vec![0u8; CHUNK as usize];
    for number in 0..len.div_ceil(CHUNK) {
        if number % 3 == 0 {
            seeded.fill(&mut chunk);
        } else {
            let from = seeded.below(pattern.len() as u64 - CHUNK) as usize;
            chunk.copy_from_slice(&pattern[from..from + CHUNK as usize]);
        }
        chunk[..8].copy_from_slice(&number.wrapping_add(1).to_le_bytes());
        let take = CHUNK.min(len - number * CHUNK) as usize;
        file.write_all_at(&chunk[..take], number * CHUNK)?;
    }
    Ok(())
}

fn text(chunk: &mut [u8], seeded: &mut Seeded) {
    const WORDS: [&str; 8] =
        ["GET /index", "user=", "200 OK", "session", "warning:", "disk", "0x7f", "replica"];
    let mut at = 0;
    while at < chunk.len() {
        let line =
            format!("{} {} {}\n", WORDS[seeded.below(8) as usize], seeded.below(100_000), seeded.below(1000));
        let take = line.len().min(chunk.len() - at);
        chunk[at..at + take].copy_from_slice(&line.as_bytes()[..take]);
        at += take;
    }
}

/// Overwrites `blocks` random 4 KiB blocks inside the disk.
pub fn mutate(path: &Path, blocks: u64, seed: u64) -> Result<()> {
    let file = open(path)?;
    let len = file.metadata()?.len();
    let mut seeded = Seeded::new(seed ^ 0x6d75_7461_7465);
    let mut block = vec![0u8; BLOCK as usize];
    for _ in 0..blocks {
        let at = seeded.below(len.div_ceil(BLOCK)) * BLOCK;
        let take = BLOCK.min(len - at) as usize;
        seeded.fill(&mut block);
        file.write_all_at(&block[..take], at)?;
    }
    Ok(())
}

/// Makes a range a hole.
pub fn punch(path: &Path, offset: u64, len: u64) -> Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    fallocate(open(path)?, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?;
    Ok(())
}

/// Gathers copies of this machine's files beneath `from` into `to` until `bytes` are reached, leaving
/// out the first `skip` bytes' worth. The order is fixed, so two calls agree. Returns the bytes taken.
pub fn tree(to: &Path, from: &[&str], skip: u64, bytes: u64) -> Result<u64> {
    let mut seen = 0;
    let mut taken = 0;
    let mut stack: Vec<PathBuf> = from.iter().rev().map(PathBuf::from).collect();
    while let Some(path) = stack.pop() {
        if taken >= bytes {
            break;
        }
        let Ok(meta) = path.symlink_metadata() else { continue };
        if meta.is_dir() {
            let Ok(entries) = path.read_dir() else { continue };
            let mut names: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            names.sort_unstable_by(|a, b| b.cmp(a));
            stack.extend(names);
        } else if meta.is_file() && meta.len() > 0 && meta.len() < 64 * MIB {
            seen += meta.len();
            let name = to.join(path.strip_prefix("/").unwrap_or(&path));
            // A file that only root may read is left out: the demo runs for everyone.
            if seen > skip && copy_plain(&path, &name).is_ok() {
                taken += meta.len();
            }
        }
    }
    Ok(taken)
}

fn copy_plain(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::copy(from, to)?;
    Ok(())
}

/// A raw disk with a real ext4 file system holding `tree`'s files. Needs no root.
pub fn ext4(path: &Path, len: u64, tree: &Path, layout_seed: u64) -> Result<()> {
    set_len(path, 0)?;
    set_len(path, len)?;
    let uuid = format!("{layout_seed:08x}-0000-4000-8000-000000000001");
    let options = format!("hash_seed={uuid},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0");
    let tree = tree.as_os_str();
    let fixed = ["-q", "-F", "-b", "4096", "-L", "root", "-U", &uuid, "-E", &options, "-d"];
    let args = fixed.iter().map(AsRef::as_ref).chain([tree, path.as_os_str()]);
    run("mkfs.ext4", args.collect::<Vec<_>>()).context("mkfs.ext4 (package e2fsprogs)")?;
    Ok(())
}

/// Another generation of an ext4 image, made with debugfs so that it needs no root: adds `added`'s
/// files, replaces nothing else, deletes `deleted` paths. Unlike a new mkfs it keeps the layout.
pub fn ext4_edit(path: &Path, added: &Path, deleted: &[String]) -> Result<()> {
    let mut script = String::new();
    let mut stack = vec![added.to_path_buf()];
    while let Some(directory) = stack.pop() {
        let mut entries: Vec<_> = directory.read_dir()?.flatten().collect();
        entries.sort_by_key(|entry| entry.path());
        for entry in entries {
            let inside = Path::new("/").join(entry.path().strip_prefix(added)?);
            if entry.file_type()?.is_dir() {
                script += &format!("mkdir \"{}\"\n", inside.display());
                stack.push(entry.path());
            } else {
                script +=
                    &format!("rm \"{0}\"\nwrite \"{1}\" \"{0}\"\n", inside.display(), entry.path().display());
            }
        }
    }
    for name in deleted {
        script += &format!("rm \"{name}\"\n");
    }
    let file = path.with_extension("debugfs");
    // Directories first: debugfs makes no parents.
    let (mut first, rest): (Vec<&str>, Vec<&str>) =
        script.lines().partition(|line| line.starts_with("mkdir"));
    first.sort_unstable_by_key(|line| line.len());
    std::fs::write(&file, [first, rest].concat().join("\n"))?;
    let args = ["-w".as_ref(), "-f".as_ref(), file.as_os_str(), path.as_os_str()];
    run("debugfs", args).context("debugfs (package e2fsprogs)")?;
    std::fs::remove_file(&file)?;
    Ok(())
}

/// Every file of two ext4 images is the same: names, kinds, sizes, content. Both are mounted read-only;
/// needs root.
pub fn ensure_same_files(a: &Path, b: &Path) -> Result<()> {
    let list = |image: &Path| -> Result<String> {
        let at = tempfile::tempdir()?;
        run("mount", ["-o".as_ref(), "loop,ro".as_ref(), image.as_os_str(), at.path().as_os_str()])?;
        let sums = "find . -type f -print0 | sort -z | xargs -0r b2sum; find . ! -type f -printf '%y %p %l\n' | sort";
        let listed = std::process::Command::new("sh").args(["-c", sums]).current_dir(at.path()).output();
        run("umount", [at.path()])?;
        let listed = listed?;
        anyhow::ensure!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        Ok(String::from_utf8_lossy(&listed.stdout).into_owned())
    };
    let (left, right) = (list(a)?, list(b)?);
    let differs = left.lines().zip(right.lines()).find(|(left, right)| left != right);
    anyhow::ensure!(
        left == right && left.lines().count() > 1,
        "{} and {} differ: {differs:?}",
        a.display(),
        b.display()
    );
    Ok(())
}

/// The same content as qcow2.
pub fn to_qcow2(raw: &Path, qcow2: &Path) -> Result<()> {
    let args = ["convert", "-f", "raw", "-O", "qcow2"].map(AsRef::as_ref);
    run("qemu-img", args.into_iter().chain([raw.as_os_str(), qcow2.as_os_str()]))
        .context("package qemu-utils")?;
    Ok(())
}

/// A copy that stays sparse, cloned where the file system can.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let args = ["--reflink=auto", "--sparse=always"].map(AsRef::as_ref);
    run("cp", args.into_iter().chain([from.as_os_str(), to.as_os_str()]))?;
    Ok(())
}

/// Bytes that take space.
pub fn allocated(path: &Path) -> Result<u64> {
    Ok(path.metadata()?.blocks() * 512)
}

/// Fails unless both hold the same bytes; says where the first difference is.
pub fn ensure_same(a: &Path, b: &Path) -> Result<()> {
    if let Some(place) = difference(a, b)? {
        bail!("{} and {} differ {place}", a.display(), b.display());
    }
    Ok(())
}

/// Where two files differ; reads only what is not a hole in both.
pub fn difference(a: &Path, b: &Path) -> Result<Option<String>> {
    let (first, second) = (
        File::open(a).with_context(|| format!("opening {}", a.display()))?,
        File::open(b).with_context(|| format!("opening {}", b.display()))?,
    );
    let (len, other) = (end(&first)?, end(&second)?);
    if len != other {
        return Ok(Some(format!("in length: {len} and {other}")));
    }
    let (mut left, mut right) = (vec![0u8; MIB as usize], vec![0u8; MIB as usize]);
    let mut at = 0;
    while at < len {
        at = next_data(&first, at, len)?.min(next_data(&second, at, len)?) / BLOCK * BLOCK;
        if at >= len {
            break;
        }
        let take = MIB.min(len - at) as usize;
        first.read_exact_at(&mut left[..take], at)?;
        second.read_exact_at(&mut right[..take], at)?;
        if left[..take] != right[..take] {
            let inside = left.iter().zip(&right).position(|(l, r)| l != r).unwrap_or(0);
            return Ok(Some(format!(
                "at byte {} (chunk {})",
                at + inside as u64,
                (at + inside as u64) / CHUNK
            )));
        }
        at += take as u64;
    }
    Ok(None)
}

/// Length of a file or block device.
pub fn end(file: &File) -> Result<u64> {
    Ok(seek(file, SeekFrom::End(0))?)
}

/// The first byte at or after `at` that may be data; `len` where only holes follow.
pub fn next_data(file: &File, at: u64, len: u64) -> Result<u64> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(found) => Ok(found),
        Err(Errno::NXIO) => Ok(len),
        // A device without holes is all data.
        Err(_) => Ok(at),
    }
}

/// Sum of non-zero 64 KiB chunks in bytes.
pub fn non_zero_bytes(path: &Path) -> Result<u64> {
    let file = File::open(path)?;
    let len = end(&file)?;
    let mut buffer = vec![0u8; CHUNK as usize];
    let (mut at, mut sum) = (0, 0);
    while at < len {
        at = next_data(&file, at, len)? / CHUNK * CHUNK;
        if at >= len {
            break;
        }
        let take = CHUNK.min(len - at) as usize;
        file.read_exact_at(&mut buffer[..take], at)?;
        if buffer[..take].iter().any(|byte| *byte != 0) {
            sum += take as u64;
        }
        at += CHUNK;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_sees_single_bytes_and_lengths() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        mixed(&a, 5 * MIB + 17, 3).unwrap();
        copy(&a, &b).unwrap();
        assert_eq!(difference(&a, &b).unwrap(), None);
        for at in [0, 4096, 3 * MIB + 5, 5 * MIB + 16] {
            let file = open(&b).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            assert!(difference(&a, &b).unwrap().unwrap().contains(&format!("byte {at}")));
            file.write_all_at(&byte, at).unwrap();
        }
        assert_eq!(difference(&a, &b).unwrap(), None);
        set_len(&b, 5 * MIB + 18).unwrap();
        assert!(difference(&a, &b).unwrap().unwrap().contains("length"));
    }

    #[test]
    fn an_ext4_image_is_made_and_edited() {
        let dir = tempfile::tempdir().unwrap();
        let (files, image) = (dir.path().join("files"), dir.path().join("x.img"));
        std::fs::create_dir_all(files.join("etc/deep")).unwrap();
        std::fs::write(files.join("etc/deep/a"), b"first").unwrap();
        ext4(&image, 16 * MIB, &files, 7).unwrap();
        let more = dir.path().join("more");
        std::fs::create_dir_all(more.join("etc/deep/er")).unwrap();
        std::fs::write(more.join("etc/deep/er/b"), b"second").unwrap();
        ext4_edit(&image, &more, &["/etc/deep/a".into()]).unwrap();
        let image = image.to_str().unwrap();
        assert_eq!(run("debugfs", ["-R", "cat /etc/deep/er/b", image]).unwrap(), "second");
        assert_eq!(run("debugfs", ["-R", "cat /etc/deep/a", image]).unwrap(), "");
        run("e2fsck", ["-fn", image]).unwrap();
    }

    #[test]
    fn mutations_repeat() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for path in [&a, &b] {
            mixed(path, 2 * MIB, 1).unwrap();
            mutate(path, 9, 2).unwrap();
        }
        ensure_same(&a, &b).unwrap();
        assert!(non_zero_bytes(&a).unwrap() > MIB);
    }
}
