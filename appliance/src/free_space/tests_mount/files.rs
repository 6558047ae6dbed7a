//! Files that are written at random, what they are, and a replica of a masked disk.

use super::*;

/// Random writers on a directory, until told to stop.
pub(super) fn write_randomly(dir: &Path, seed: u64, stop: &AtomicBool) {
    let mut rng = Rng::new(seed);
    let mut data = vec![0u8; 1 << 19];
    rng.fill(&mut data);
    let home = dir.join(format!("w{}", seed % 4));
    let _ = fs::create_dir_all(&home);
    while !stop.load(Ordering::Relaxed) {
        let path = home.join(format!("d{}", rng.below(4))).join(format!("f{}", rng.below(60)));
        let _ = fs::create_dir_all(path.parent().unwrap());
        let full =
            write_one(&mut rng, &home, &path, &data).is_err_and(|error| error.raw_os_error() == Some(28));
        if full {
            for n in 0..30 {
                let _ = fs::remove_file(home.join(format!("d{}", n % 4)).join(format!("f{}", rng.below(60))));
            }
        }
        std::thread::sleep(Duration::from_micros(rng.below(3000)));
    }
}

fn write_one(rng: &mut Rng, home: &Path, path: &Path, data: &[u8]) -> std::io::Result<()> {
    // Sizes from nothing to half a MiB, small ones more often.
    let len = (rng.below(data.len() as u64) >> rng.below(10)) as usize;
    let from = rng.below((data.len() - len) as u64 + 1) as usize;
    let piece = &data[from..from + len];
    let other = home.join(format!("d{}", rng.below(4))).join(format!("f{}", rng.below(60)));
    match rng.below(16) {
        0..=4 => {
            let mut file = File::create(path)?;
            file.write_all(piece)?;
            if rng.below(3) == 0 {
                file.sync_all()?;
            }
        }
        5..=6 => {
            let mut file = OpenOptions::new().append(true).create(true).open(path)?;
            file.write_all(piece)?;
            file.sync_data()?;
        }
        7 => {
            let mut file = OpenOptions::new().write(true).open(path)?;
            file.seek(SeekFrom::Start(rng.below(1 << 20)))?;
            file.write_all(piece)?;
        }
        8..=9 => fs::remove_file(path)?,
        10 => OpenOptions::new().write(true).open(path)?.set_len(rng.below(1 << 19))?,
        11 => fs::rename(path, other)?,
        12 => {
            let (at, len) = (rng.below(64) * 4096, (1 + rng.below(32)) * 4096);
            let (at, len) = (at.to_string(), len.to_string());
            let punch = ["-p", "-o", &at, "-l", &len, path.to_str().unwrap_or("")];
            let reserve = ["-o", &at, "-l", &len, path.to_str().unwrap_or("")];
            let _ = if rng.below(2) == 0 { run("fallocate", &punch) } else { run("fallocate", &reserve) };
        }
        13 => fs::hard_link(path, other)?,
        14 => std::os::unix::fs::symlink(path, other)?,
        _ => {
            let many = home.join(format!("many{}", rng.below(3)));
            if rng.below(4) == 0 {
                fs::remove_dir_all(&many)?;
            } else {
                fs::create_dir_all(&many)?;
                for n in 0..40 {
                    fs::write(many.join(format!("{n}-{}", rng.below(100))), &piece[..len.min(3000)])?;
                }
            }
        }
    }
    Ok(())
}

/// Every file's content and metadata.
///
/// A mount truncates orphans and stamps them with its own time: times since `begun` count as one.
pub(super) fn tree(root: &Path, begun: (i64, i64)) -> Result<BTreeMap<PathBuf, String>, String> {
    let (mut all, mut open) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(path) = open.pop() {
        let meta = fs::symlink_metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let time = (meta.mtime(), meta.mtime_nsec());
        let time = if time >= begun { (0, 0) } else { time };
        let mut line = format!("{:o} {} {} {} {time:?}", meta.mode(), meta.nlink(), meta.uid(), meta.size());
        let failed = |error| format!("{}: {error}", path.display());
        if meta.is_dir() {
            for entry in fs::read_dir(&path).map_err(failed)? {
                open.push(entry.map_err(failed)?.path());
            }
        } else if meta.is_symlink() {
            line += &format!(" -> {}", fs::read_link(&path).map_err(failed)?.display());
        } else if meta.is_file() {
            let mut content = Vec::new();
            File::open(&path).and_then(|mut file| file.read_to_end(&mut content)).map_err(failed)?;
            let mut hash = std::hash::DefaultHasher::new();
            hash.write(&content);
            line += &format!(" {:x} blocks {}", hash.finish(), meta.blocks());
        }
        all.insert(path.strip_prefix(root).unwrap().to_owned(), line);
    }
    Ok(all)
}

/// Writes what a replica of the masked disk would be.
pub(super) fn write_masked(image: &Path, free: &[Extent], to: &Path) -> Arc<dyn BlockRead> {
    let masked = MaskedDisk::new(Arc::new(ImageFile::open(image)), free.into());
    let out = File::create(to).unwrap();
    out.set_len(masked.len()).unwrap();
    let (mut at, mut buf) = (0, vec![0; 1 << 20]);
    while let Some(data) = masked.next_data(at).unwrap() {
        let len = data.len.min(buf.len() as u64) as usize;
        masked.read_at(data.offset, &mut buf[..len]).unwrap();
        out.write_all_at(&buf[..len], data.offset).unwrap();
        at = data.offset + len as u64;
    }
    Arc::new(masked)
}
