//! LVM and NTFS: what their own tools make, masked, and compared file by file.

use super::*;

const DISK_BYTES: u64 = 256 << 20;
const EXTENT_BYTES: u64 = 4 << 20;

/// A run of a logical volume on its physical one: bytes of the disk, and where in the volume they are.
struct Piece {
    disk: u64,
    volume: u64,
    len: u64,
}

/// Makes a physical volume with the logical ones `root`, of two pieces, and `data`, of one. Device mapper is not asked: only
/// their metadata are written.
fn make_volumes(disk: &Path) -> Result<BTreeMap<String, Vec<Piece>>, String> {
    File::create(disk).and_then(|file| file.set_len(DISK_BYTES)).unwrap();
    let device = Device::attach(disk, 0)?;
    let group = format!("vbr{}", std::process::id());
    let lvm = |command: &str, args: &[&str]| {
        let quiet = "backup { backup = 0 archive = 0 } global { event_activation = 0 }";
        let all = ["--devices", &device.0, "--config", quiet, "--driverloaded", "n"];
        run(command, &[&all[..], args].concat())
    };
    lvm("pvcreate", &["-ff", "-y", &device.0])?;
    lvm("vgcreate", &[&group, &device.0])?;
    let create = |name: &str, extents: &str| {
        lvm("lvcreate", &["-y", "-an", "-Zn", "-Wn", "-l", extents, "-n", name, &group])
    };
    create("root", "20")?;
    create("data", "12")?;
    lvm("lvextend", &["-l", "+16", &format!("{group}/root")])?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    let plain = ["--noheadings", "--units", "b", "--nosuffix"];
    let first = lvm("pvs", &[&plain[..], &["-o", "pe_start", &device.0]].concat())?;
    let first = first.lines().find_map(|line| number(line.trim()).ok()).ok_or(first)?;
    let columns = "lv_name,seg_start_pe,seg_size_pe,seg_pe_ranges";
    let listed = lvm("lvs", &[&plain[..], &["--segments", "-o", columns, &group]].concat())?;
    let mut volumes: BTreeMap<String, Vec<Piece>> = BTreeMap::new();
    for line in listed.lines().filter(|line| line.contains(&device.0)) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, start, size, ranges] = words.as_slice() else { return Err(line.to_owned()) };
        let range = ranges.rsplit(':').next().and_then(|range| range.split('-').next()).unwrap_or_default();
        volumes.entry((*name).to_owned()).or_default().push(Piece {
            disk: first + number(range)? * EXTENT_BYTES,
            volume: number(start)? * EXTENT_BYTES,
            len: number(size)? * EXTENT_BYTES,
        });
    }
    Ok(volumes)
}

/// Copies a volume's pieces from one file to another: onto the disk, or from it.
fn copy(pieces: &[Piece], from: &Path, to: &Path, onto_disk: bool) {
    let (from, to) = (File::open(from).unwrap(), OpenOptions::new().write(true).open(to).unwrap());
    for piece in pieces {
        let mut data = vec![0; piece.len as usize];
        let (source, target) =
            if onto_disk { (piece.volume, piece.disk) } else { (piece.disk, piece.volume) };
        from.read_exact_at(&mut data, source).unwrap();
        to.write_all_at(&data, target).unwrap();
    }
}

fn empty(path: &Path, len: u64) {
    let _ = fs::remove_file(path);
    File::create(path).and_then(|file| file.set_len(len)).unwrap();
}

/// A file system of `len` bytes in the middle of writing.
fn busy(lab: &Lab, mkfs: &[&str], len: u64, seed: u64) -> Result<PathBuf, String> {
    let (live, image) = (lab.path("live.img"), lab.path(&format!("volume{seed}.img")));
    empty(&live, len);
    let device = Device::attach(&live, 0)?;
    run(mkfs[0], &[&mkfs[1..], &[&device.0]].concat())?;
    let dir = lab.place("live");
    let mut mount = Some(Mount::new(device, &dir, "commit=1")?);
    take(&mut mount, Moment::Live, Duration::from_millis(700), seed, &dir, || reflink(&live, &image));
    Ok(image)
}

fn prove_volumes(lab: &Lab, seed: u64) -> Result<(), String> {
    let disk = lab.path("disk.img");
    let volumes = make_volumes(&disk)?;
    let lens: BTreeMap<&str, u64> =
        volumes.iter().map(|(name, all)| (name.as_str(), all.iter().map(|piece| piece.len).sum())).collect();
    assert_eq!(volumes["root"].len(), 2, "the root was to lie in two pieces");
    for (name, block) in [("root", "4096"), ("data", "1024")] {
        let mkfs = ["mkfs.ext4", "-q", "-F", "-b", block];
        let image = busy(lab, &mkfs, lens[name], seed + u64::from(name == "data"))?;
        copy(&volumes[name], &image, &disk, true);
    }
    let found = map(&ImageFile::open(&disk));
    super::super::tests::check_shape(&found, DISK_BYTES);
    let masked = lab.path("masked.img");
    write_masked(&disk, &found.free, &masked);
    for (name, pieces) in &volumes {
        let of = |volume: &super::super::Volume| volume.name.ends_with(&format!("/{name}"));
        let skipped: u64 = found.volumes.iter().filter(|volume| of(volume)).map(|v| v.skipped_bytes).sum();
        if skipped == 0 {
            return Err(format!("nothing of {name} is skipped: {:?}", found.volumes));
        }
        let seen = [&disk, &masked].map(|from| {
            let gathered = lab.path("gathered.img");
            empty(&gathered, lens[name.as_str()]);
            copy(pieces, from, &gathered, false);
            look(lab, &gathered, false, false, (0, 0))
        });
        let [plain, seen] = seen;
        let (plain, seen) = (plain?, seen?);
        if plain != seen || plain.0.len() < 10 {
            return Err(format!("{name} of the masked copy differs, {} files", plain.0.len()));
        }
        eprintln!("{name}: {} files, {skipped} bytes skipped", seen.0.len());
    }
    Ok(())
}

#[test]
fn linear_volumes_survive_the_mask() {
    if !can_run(&["losetup", "mount", "mkfs.xfs", "mkfs.ext4", "lvcreate", "lvextend", "pvcreate", "lvs"]) {
        return;
    }
    let lab = match Lab::new() {
        Ok(lab) => lab,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    for seed in 0..images(2) {
        let seed = u64::from(std::process::id()) * 1000 + seed * 2;
        prove_volumes(&lab, seed).map_err(|why| format!("seed {seed}: {why}")).unwrap();
    }
}

/// The log as a clean unmount by Windows leaves it: two restart pages, of which the newer one says so. (NTFS-3G empties it.)
fn close_the_log(image: &Path, cluster: usize) {
    let mut disk = fs::read(image).unwrap();
    let log = disk.windows(8192).step_by(cluster).position(|data| data.iter().all(|byte| *byte == 0xFF));
    let log = log.unwrap() * cluster;
    for (at, lsn, flags) in [(log, 5u64, 0u16), (log + 4096, 6, 2)] {
        super::super::tests::restart_page(&mut disk[at..at + 4096], lsn, flags);
    }
    fs::write(image, disk).unwrap();
}

fn prove_ntfs(lab: &Lab, seed: u64, cluster: &str) -> Result<(), String> {
    let live = lab.path("live.img");
    empty(&live, IMAGE_BYTES);
    let device = Device::attach(&live, 0)?;
    run("mkfs.ntfs", &["-q", "-F", "-f", "-c", cluster, &device.0])?;
    let dir = lab.place("live");
    let mut mount = Some(Mount::of("ntfs-3g", device, &dir, "rw")?);
    let image = lab.path("ntfs.img");
    take(&mut mount, Moment::Unmounted, Duration::from_millis(900), seed, &dir, || reflink(&live, &image));
    let kept = map(&ImageFile::open(&image));
    if !kept.free.is_empty() {
        return Err(format!("skipped with an empty log: {:?}", kept.volumes));
    }
    close_the_log(&image, cluster.parse().unwrap());
    let found = map(&ImageFile::open(&image));
    super::super::tests::check_shape(&found, IMAGE_BYTES);
    if found.free.is_empty() {
        return Err(format!("nothing is skipped: {:?}", found.volumes));
    }
    let masked = lab.path("masked.img");
    write_masked(&image, &found.free, &masked);
    let see = |image: &Path| look_with(lab, image, 0, ("ntfs-3g", "ro"), ["ntfsfix", "-n"], begun());
    let (plain, seen) = (see(&image)?, see(&masked)?);
    if plain != seen || plain.0.len() < 10 {
        return Err(format!("the masked copy differs, {} files; {:?}", plain.0.len(), found.volumes));
    }
    eprintln!("ntfs {cluster}: {} files, {} bytes skipped", seen.0.len(), found.volumes[0].skipped_bytes);
    Ok(())
}

#[test]
fn ntfs_survives_the_mask() {
    if !can_run(&["losetup", "mount", "mkfs.xfs", "mkfs.ntfs", "ntfs-3g", "ntfsfix"]) {
        return;
    }
    if !Path::new("/dev/fuse").exists() {
        return eprintln!("skipped: no FUSE here");
    }
    let lab = match Lab::new() {
        Ok(lab) => lab,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    for n in 0..images(2) {
        let seed = u64::from(std::process::id()) * 1000 + n;
        let cluster = ["4096", "1024", "16384"][n as usize % 3];
        prove_ntfs(&lab, seed, cluster).map_err(|why| format!("seed {seed}: {why}")).unwrap();
    }
}
