//! The form of a bundle: a tar (ustar) of plain files, compressed with zstd or gzip.
//!
//! Written by hand, because a dozen small files need no library: regular files alone, names below 100 bytes.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// A tar consists of these.
const BLOCK: usize = 512;
/// Room for a name in the header.
const NAME_BYTES_MAX: usize = 99;
const ZSTD_LEVEL: i32 = 9;

/// A file of a bundle.
pub struct Entry {
    pub name: String,
    pub bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Zstd,
    Gzip,
}

impl Form {
    /// By the ending of the file's name.
    pub fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let ends = |endings: [&str; 2]| endings.iter().any(|ending| name.ends_with(ending));
        match () {
            () if ends([".tar.zst", ".tzst"]) => Some(Self::Zstd),
            () if ends([".tar.gz", ".tgz"]) => Some(Self::Gzip),
            () => None,
        }
    }
}

/// The files in one folder.
pub fn tar(folder: &str, entries: &[Entry], seconds: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        let mut name = format!("{folder}/{}", entry.name);
        name.truncate(NAME_BYTES_MAX);
        out.extend(header(&name, entry.bytes.len(), seconds));
        out.extend(&entry.bytes);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    out
}

fn header(name: &str, length: usize, seconds: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{length:011o}\0"));
    put(136, &format!("{seconds:011o}\0"));
    // Counted as blanks while the sum is made.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

pub fn compress(form: Form, plain: Vec<u8>) -> io::Result<Vec<u8>> {
    match form {
        Form::Zstd => zstd::encode_all(&plain[..], ZSTD_LEVEL),
        Form::Gzip => gzip(plain),
    }
}

/// Every Debian has the program; a library for it would be one more.
fn gzip(plain: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut command = Command::new("gzip");
    command.arg("-nc").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let stdin = child.stdin.take();
    // On a thread of its own: what is written and what is read go through pipes that fill up.
    let written = std::thread::spawn(move || stdin.map_or(Ok(()), |mut stdin| stdin.write_all(&plain)));
    let output = child.wait_with_output()?;
    written.join().unwrap_or_else(|_| Err(io::Error::other("the writer to gzip ended")))?;
    if output.status.success() { Ok(output.stdout) } else { Err(io::Error::other("gzip failed")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tar_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let long = vec![b'x'; 100_000];
        let entries = [
            Entry { name: "README".into(), bytes: b"what it holds\n".to_vec() },
            Entry { name: "api/long.json".into(), bytes: long.clone() },
            Entry { name: "empty".into(), bytes: Vec::new() },
        ];
        for (form, file) in [(Form::Zstd, "a.tar.zst"), (Form::Gzip, "a.tar.gz")] {
            assert_eq!(Form::of(Path::new(file)), Some(form));
            let packed = compress(form, tar("vbr-support", &entries, 1_700_000_000)).unwrap();
            let plain = match form {
                Form::Zstd => zstd::decode_all(&packed[..]).unwrap(),
                Form::Gzip => {
                    std::fs::write(dir.path().join(file), &packed).unwrap();
                    let out =
                        Command::new("gzip").args(["-dc", file]).current_dir(dir.path()).output().unwrap();
                    assert!(out.status.success());
                    out.stdout
                }
            };
            std::fs::write(dir.path().join("a.tar"), plain).unwrap();
            let out = Command::new("tar").args(["-xf", "a.tar"]).current_dir(dir.path()).output().unwrap();
            assert!(
                out.status.success() && out.stderr.is_empty(),
                "{}",
                String::from_utf8_lossy(&out.stderr)
            );
            assert_eq!(std::fs::read(dir.path().join("vbr-support/api/long.json")).unwrap(), long);
            assert_eq!(std::fs::read(dir.path().join("vbr-support/empty")).unwrap(), b"");
        }
        assert_eq!(Form::of(Path::new("a.zip")), None);
    }
}
