//! A job's disks in a directory that is carried to its target: sparse raw images, and `seed.json`, which is written last
//! and tells what they are. A directory without it is none.
//!
//! The sum of an image is BLAKE3 over its chunks of 64 KiB that are not zero, each behind its number: holes need not be
//! read for it. It finds a copy that went bad before the disk goes home; what is read of an image is compared anyway.
//! Nothing in that file is trusted: names are file names, sizes are bounded.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use serde::{Deserialize, Serialize};
use vbr_api::Moment;

use crate::exit::Exit;
use crate::extents::Sink;
use crate::failure::Failure;
use crate::human;

/// The file that makes a directory one of these.
pub const MANIFEST: &str = "seed.json";
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
const SCHEMA: u32 = 1;
const CHUNK_BYTES: u64 = 65_536;
/// Read at a time.
const READ_BYTES: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub schema: u32,
    pub job: String,
    pub written_at: Moment,
    pub disks: Vec<Image>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// In the same directory.
    pub file: String,
    /// Where it was at the source.
    pub source: String,
    pub virtual_bytes: u64,
    pub data_bytes: u64,
    /// See the module.
    pub blake3: String,
}

impl Manifest {
    pub fn new(job: &str, disks: Vec<Image>) -> Self {
        Self { schema: SCHEMA, job: job.into(), written_at: Moment::now(), disks }
    }

    /// Reads the one of a directory; none where there is none.
    pub fn find(directory: &Path) -> Result<Option<Self>, Failure> {
        let path = directory.join(MANIFEST);
        let mut text = String::new();
        let read = File::open(&path).and_then(|file| file.take(MANIFEST_BYTES_MAX).read_to_string(&mut text));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::io("Cannot read what the directory holds", &path, &error)),
            Ok(_) => {}
        }
        let wrong = |why: String| {
            let next = "write the directory again: vbrctl job seed JOB --to DIRECTORY --force";
            Failure::new(Exit::Failed, "bad_seed", format!("{} cannot be used", path.display()), why, next)
        };
        let manifest: Self = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if manifest.schema != SCHEMA {
            return Err(wrong(format!("it is of form {}, which this vbrctl does not know", manifest.schema)));
        }
        let plain = |image: &Image| Path::new(&image.file).file_name() == Some(image.file.as_ref());
        match manifest.disks.iter().find(|image| !plain(image)) {
            Some(image) => Err(wrong(format!("{:?} is no file name", image.file))),
            None => Ok(Some(manifest)),
        }
    }

    /// The images, each as long as it should be.
    pub fn images(&self, directory: &Path) -> Result<Vec<(PathBuf, &Image)>, Failure> {
        let found = self.disks.iter().map(|image| {
            let path = directory.join(&image.file);
            let len = std::fs::metadata(&path).map(|meta| meta.len());
            match len {
                Ok(len) if len == image.virtual_bytes => Ok((path, image)),
                Ok(len) => Err(bad(
                    &path,
                    format!(
                        "it is {} long and should be {}",
                        human::size(len),
                        human::size(image.virtual_bytes)
                    ),
                )),
                Err(error) => Err(Failure::io("Cannot use the carried disk", &path, &error)),
            }
        });
        found.collect()
    }
}

impl Image {
    /// Reads all of it and compares the sum. `told` hears how far it is.
    pub fn check(&self, path: &Path, told: &dyn Fn(u64)) -> Result<(), Failure> {
        let sum =
            sum(path, told).map_err(|error| Failure::io("Cannot read the carried disk", path, &error))?;
        if sum == self.blake3 {
            return Ok(());
        }
        Err(bad(path, "its content is not what was written: a block went bad, or somebody changed it".into()))
    }
}

fn bad(path: &Path, why: String) -> Failure {
    let next = "copy it again from where it is good; what is still good of it counts all the same where it is named alone: \
                vbrctl cache warm PATH";
    Failure::new(Exit::Failed, "bad_seed", format!("{} is damaged", path.display()), why, next)
}

/// Sums up what passes on its way to the file.
pub struct Summing<S> {
    inner: S,
    hasher: blake3::Hasher,
}

impl<S> Summing<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, hasher: blake3::Hasher::new() }
    }

    pub fn sum(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }
}

impl<S: Sink> Sink for Summing<S> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            if at.is_multiple_of(CHUNK_BYTES) {
                self.hasher.update(&(at / CHUNK_BYTES).to_le_bytes());
            }
            let room = (CHUNK_BYTES - at % CHUNK_BYTES) as usize;
            let (chunk, behind) = rest.split_at(room.min(rest.len()));
            self.hasher.update(chunk);
            at += chunk.len() as u64;
            rest = behind;
        }
        self.inner.data(offset, bytes)
    }

    fn end(&mut self, disk_len: u64) -> io::Result<()> {
        self.inner.end(disk_len)
    }
}

/// Of a file as it lies there.
fn sum(path: &Path, told: &dyn Fn(u64)) -> io::Result<String> {
    let file = File::open(path)?;
    let (len, mut hasher, mut buffer) = (file.metadata()?.len(), blake3::Hasher::new(), vec![0; READ_BYTES]);
    let mut at = 0;
    while at < len {
        at = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data / CHUNK_BYTES * CHUNK_BYTES,
            Err(rustix::io::Errno::NXIO) => break, // Nothing but a hole.
            // Not every file system tells its holes.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => at,
            Err(error) => return Err(error.into()),
        };
        let take = usize::try_from(len - at).unwrap_or(READ_BYTES).min(READ_BYTES);
        file.read_exact_at(&mut buffer[..take], at)?;
        for chunk in buffer[..take].chunks(CHUNK_BYTES as usize) {
            if chunk.iter().any(|byte| *byte != 0) {
                hasher.update(&(at / CHUNK_BYTES).to_le_bytes());
                hasher.update(chunk);
            }
            at += chunk.len() as u64;
        }
        told(at);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk_file::SparseFile;

    fn image(file: &str, len: u64, blake3: String) -> Image {
        Image { file: file.into(), source: "/a".into(), virtual_bytes: len, data_bytes: 0, blake3 }
    }

    #[test]
    fn a_sum_is_the_same_on_the_way_and_where_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk-0.raw");
        let mut sink = Summing::new(SparseFile(File::create_new(&path).unwrap()));
        let data: Vec<u8> = (0..3 * CHUNK_BYTES).map(|n| (n % 251) as u8 + 1).collect();
        for (at, piece) in data.chunks(50_000).enumerate() {
            sink.data(20 * CHUNK_BYTES + at as u64 * 50_000, piece).unwrap();
        }
        sink.data(60 * CHUNK_BYTES, b"the last one is short").unwrap();
        sink.end(60 * CHUNK_BYTES + 21).unwrap();
        let image = image("disk-0.raw", 60 * CHUNK_BYTES + 21, sink.sum());
        image.check(&path, &|_| ()).unwrap();
        let manifest = Manifest::new("web", vec![image.clone()]);
        assert_eq!(manifest.images(dir.path()).unwrap().len(), 1);

        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0], 21 * CHUNK_BYTES).unwrap();
        assert_eq!(image.check(&path, &|_| ()).unwrap_err().body.code, "bad_seed");
        file.write_all_at(&data[CHUNK_BYTES as usize..][..1], 21 * CHUNK_BYTES).unwrap();
        image.check(&path, &|_| ()).unwrap();
        file.set_len(60 * CHUNK_BYTES).unwrap();
        assert_eq!(manifest.images(dir.path()).unwrap_err().body.code, "bad_seed");
    }

    #[test]
    fn what_is_written_is_found_again_and_nonsense_is_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::find(dir.path()).unwrap(), None);
        let good = Manifest::new("web", vec![image("disk-0.raw", 5, "00".into())]);
        let path = dir.path().join(MANIFEST);
        std::fs::write(&path, serde_json::to_vec(&good).unwrap()).unwrap();
        assert_eq!(Manifest::find(dir.path()).unwrap(), Some(good.clone()));
        for file in ["../disk-0.raw", "/etc/shadow", "", ".", "a/b"] {
            let bad = Manifest { disks: vec![image(file, 5, "00".into())], ..good.clone() };
            std::fs::write(&path, serde_json::to_vec(&bad).unwrap()).unwrap();
            assert!(Manifest::find(dir.path()).is_err(), "{file:?}");
        }
        std::fs::write(&path, "{").unwrap();
        assert!(Manifest::find(dir.path()).is_err());
        std::fs::write(&path, serde_json::to_vec(&Manifest { schema: 2, ..good }).unwrap()).unwrap();
        assert!(Manifest::find(dir.path()).is_err());
    }
}
