//! The proof: file systems in the middle of writing, snapshotted, masked, replayed and compared.
//!
//! Needs root, loop devices and the tools of the file systems; says so and passes where one is missing.
//! `VBR_FREE_SPACE_IMAGES=N` sets how many images each proof makes (default: about one of each kind).

mod files;
mod lab;
mod volumes;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::hash::Hasher;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use self::files::{tree, write_masked, write_randomly};
use self::lab::{Device, Lab, Mount, can_run, images, run};
use super::tests::{ImageFile, Rng};
use super::{FreeSpace, MaskedDisk, changed_since, map};
use crate::block::{BlockRead, Extent};

const IMAGE_BYTES: u64 = 160 << 20;
const PART_OFFSET: u64 = 1 << 20;

/// A kind of file system under proof.
struct Config {
    name: &'static str,
    mkfs: &'static [&'static str],
    mount: &'static str,
    /// Skips even while it is mounted and being written.
    live: bool,
    /// Where it need not skip, it must not.
    strict: bool,
    /// Skips while it is frozen.
    frozen: bool,
    gpt: bool,
}

const fn ext(name: &'static str, mkfs: &'static [&'static str], mount: &'static str, gpt: bool) -> Config {
    Config { name, mkfs, mount, live: true, strict: true, frozen: true, gpt }
}

const EXT: &[Config] = &[
    ext("default", &["mkfs.ext4", "-q", "-F", "-b", "4096"], "commit=1", true),
    ext("1K", &["mkfs.ext4", "-q", "-F", "-b", "1024"], "commit=1", false),
    ext("no csum", &["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "^metadata_csum"], "commit=1", false),
    ext(
        "gdt csum",
        &["mkfs.ext4", "-q", "-F", "-b", "1024", "-O", "^metadata_csum,uninit_bg"],
        "commit=1",
        true,
    ),
    ext("bigalloc", &["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "bigalloc"], "commit=1", false),
    ext("32 bit", &["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "^64bit"], "commit=1", true),
    ext(
        "meta_bg",
        &["mkfs.ext4", "-q", "-F", "-b", "1024", "-O", "meta_bg,^resize_inode"],
        "commit=1,discard",
        false,
    ),
    ext("data=journal", &["mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=16"], "data=journal", true),
    ext("data=journal 1K", &["mkfs.ext4", "-q", "-F", "-b", "1024"], "data=journal,commit=1", false),
    ext("ext3", &["mkfs.ext3", "-q", "-F", "-b", "4096"], "commit=1,nodelalloc", false),
    ext("ext3 1K", &["mkfs.ext3", "-q", "-F", "-b", "1024", "-J", "size=4"], "commit=1", true),
    ext("checksummed ext3", &["mkfs.ext3", "-q", "-F", "-b", "4096"], "commit=1,journal_checksum", false),
    ext("orphan file", &["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "orphan_file"], "commit=1", false),
    ext(
        "async commit",
        &["mkfs.ext4", "-q", "-F", "-b", "4096"],
        "journal_async_commit,data=writeback,commit=1",
        false,
    ),
    Config {
        live: false,
        strict: false,
        frozen: false,
        ..ext("fast commit", &["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "fast_commit"], "commit=1", false)
    },
    Config {
        live: false,
        frozen: false,
        ..ext("no journal", &["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "^has_journal"], "rw", false)
    },
    Config {
        live: false,
        frozen: false,
        ..ext("ext2", &["mkfs.ext2", "-q", "-F", "-b", "1024"], "rw", true)
    },
];

/// How the moment of a snapshot comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Live,
    Frozen,
    Shutdown,
    Unmounted,
}

/// What a guest sees of an image: its files after the replay, and whether the checker is content.
fn look(
    lab: &Lab,
    image: &Path,
    gpt: bool,
    xfs: bool,
    begun: (i64, i64),
) -> Result<(BTreeMap<PathBuf, String>, bool), String> {
    let (options, checker) = if xfs { ("nouuid", ["xfs_repair", "-n"]) } else { ("rw", ["e2fsck", "-fn"]) };
    look_with(lab, image, if gpt { PART_OFFSET } else { 0 }, ("auto", options), checker, begun)
}

fn look_with(
    lab: &Lab,
    image: &Path,
    offset: u64,
    (kind, options): (&str, &str),
    [checker, flag]: [&str; 2],
    begun: (i64, i64),
) -> Result<(BTreeMap<PathBuf, String>, bool), String> {
    let mount = Mount::of(kind, Device::attach(image, offset)?, &lab.place("look"), options)?;
    let tree = tree(&mount.dir, begun);
    drop(mount);
    let device = Device::attach(image, offset)?;
    let clean = run(checker, &[flag, &device.0]);
    if let Err(error) = &clean {
        eprintln!("{}: {error}", image.display());
    }
    Ok((tree?, clean.is_ok()))
}

/// Times from now on: the checker and the mount change what they look at.
fn begun() -> (i64, i64) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    (now.as_secs() as i64, i64::from(now.subsec_nanos()))
}

/// Numbers of a proof.
#[derive(Default, Debug)]
struct Tally {
    images: u64,
    skipping: u64,
    skipped_bytes: u64,
    all_bytes: u64,
    incrementals: u64,
    with_transactions: u64,
    files: usize,
    reasons: BTreeMap<String, u64>,
}

/// Maps an image, and holds the masked copy against the image itself.
fn prove(
    lab: &Lab,
    image: &Path,
    gpt: bool,
    xfs: bool,
    tally: &mut Tally,
) -> Result<(FreeSpace, Arc<dyn BlockRead>), String> {
    let found = map(&ImageFile::open(image));
    let skipped: u64 = found.free.iter().map(|extent| extent.len).sum();
    let counted: u64 = found.volumes.iter().map(|volume| volume.skipped_bytes).sum();
    assert_eq!(skipped, counted);
    super::tests::check_shape(&found, fs::metadata(image).unwrap().len());
    let masked_path = lab.path("masked.img");
    let masked = write_masked(image, &found.free, &masked_path);
    tally.images += 1;
    for volume in &found.volumes {
        let reason = volume.reason.split('(').next().unwrap_or_default().to_owned();
        *tally.reasons.entry(reason).or_default() += 1;
    }
    tally.all_bytes += fs::metadata(image).unwrap().len();
    tally.skipped_bytes += skipped;
    tally.with_transactions +=
        u64::from(found.volumes.iter().any(|volume| volume.reason.contains("transaction")));
    // What is kept as a whole is the image itself, and may be broken (a live ext2).
    if skipped > 0 {
        let begun = begun();
        let plain_path = lab.path("plain.img");
        reflink(image, &plain_path);
        let plain = look(lab, &plain_path, gpt, xfs, begun)?;
        tally.skipping += 1;
        let seen =
            look(lab, &masked_path, gpt, xfs, begun).map_err(|error| format!("masked copy: {error}"))?;
        if seen.0 != plain.0 {
            let lost = plain.0.iter().find(|(path, line)| seen.0.get(*path) != Some(line));
            let instead = lost.and_then(|(path, _)| seen.0.get(path));
            return Err(format!(
                "the masked copy differs, first at {lost:?}: {instead:?}; {:?}",
                found.volumes
            ));
        }
        if plain.1 && !seen.1 {
            return Err(format!("the checker finds errors in the masked copy alone; {:?}", found.volumes));
        }
        tally.files += seen.0.len();
    }
    Ok((found, masked))
}

fn reflink(from: &Path, to: &Path) {
    run("cp", &["--reflink=always", from.to_str().unwrap(), to.to_str().unwrap()]).unwrap();
}

/// Dirty extents of 4 KiB between two images.
fn difference(a: &Path, b: &Path) -> Vec<Extent> {
    let (a, b) = (fs::read(a).unwrap(), fs::read(b).unwrap());
    let pairs = a.chunks(4096).zip(b.chunks(4096)).enumerate();
    pairs
        .filter(|(_, (a, b))| a != b)
        .map(|(n, (_, b))| Extent { offset: n as u64 * 4096, len: b.len() as u64 })
        .collect()
}

/// A replica of the first masked image, brought to the second by changed extents alone.
fn prove_incremental(
    lab: &Lab,
    base: (&Path, &FreeSpace, &Arc<dyn BlockRead>),
    now: (&Path, &FreeSpace, &Arc<dyn BlockRead>),
) -> Result<(), String> {
    let mut replica = vec![0; base.2.len() as usize];
    base.2.read_at(0, &mut replica).unwrap();
    for extent in changed_since(&difference(base.0, now.0), &base.1.free, &now.1.free) {
        let range = extent.offset as usize..extent.end() as usize;
        now.2.read_at(extent.offset, &mut replica[range]).unwrap();
    }
    let mut want = vec![0; now.2.len() as usize];
    now.2.read_at(0, &mut want).unwrap();
    let _ = lab;
    if replica == want { Ok(()) } else { Err("the incremental's replica differs".into()) }
}

/// One life of a file system: made, written, snapshotted at several moments.
fn life(lab: &Lab, config: &Config, seed: u64, xfs: bool, tally: &mut Tally) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let live = lab.path("live.img");
    let _ = fs::remove_file(&live);
    let bytes = if xfs { 2 * IMAGE_BYTES } else { IMAGE_BYTES };
    File::create(&live).and_then(|file| file.set_len(bytes)).unwrap();
    if config.gpt {
        let script = format!("printf 'label: gpt\\nstart=2048\\n' | sfdisk -q {}", live.display());
        run("sh", &["-c", &script])?;
    }
    // The backup of the GPT lies behind the partition.
    let offset = if config.gpt { PART_OFFSET } else { 0 };
    let device = if config.gpt {
        let len = (bytes - PART_OFFSET - (1 << 20)).to_string();
        let (offset, live) = (offset.to_string(), live.to_str().unwrap());
        let args = ["--find", "--show", "--offset", &offset, "--sizelimit", &len, live];
        Device(run("losetup", &args)?.trim().to_owned())
    } else {
        Device::attach(&live, offset)?
    };
    let mut mkfs = config.mkfs.to_vec();
    mkfs.push(&device.0);
    run(mkfs[0], &mkfs[1..])?;
    let mut mount = Some(Mount::new(device, &lab.place("live"), config.mount)?);
    let last = if rng.below(2) == 0 { Moment::Shutdown } else { Moment::Unmounted };
    let second = if rng.below(3) == 0 { Moment::Frozen } else { Moment::Live };
    let mut base: Option<(PathBuf, FreeSpace, Arc<dyn BlockRead>)> = None;
    // A live XFS is kept, so its proof begins frozen.
    let first = if xfs { Moment::Frozen } else { Moment::Live };
    for (n, moment) in [first, second, last].into_iter().enumerate() {
        let image = lab.path(&format!("snap{n}.img"));
        let dir = lab.place("live");
        let millis = Duration::from_millis(200 + rng.below(700));
        take(&mut mount, moment, millis, rng.next(), &dir, || reflink(&live, &image));
        let (found, masked) =
            prove(lab, &image, config.gpt, xfs, tally).map_err(|error| format!("{moment:?}: {error}"))?;
        let expected = match moment {
            Moment::Live | Moment::Shutdown => config.live,
            Moment::Frozen => config.frozen,
            Moment::Unmounted => true,
        };
        let skipped: u64 = found.free.iter().map(|extent| extent.len).sum();
        if expected && skipped == 0 {
            return Err(format!("{moment:?}: nothing is skipped: {:?}", found.volumes));
        }
        if !expected && skipped > 0 && config.strict {
            return Err(format!("{moment:?}: skipped without a proof: {:?}", found.volumes));
        }
        if let Some((path, free, disk)) = &base {
            prove_incremental(lab, (path, free, disk), (&image, &found, &masked))?;
            tally.incrementals += 1;
        }
        base = Some((image, found, masked));
    }
    Ok(())
}

/// Writes for a while and copies the disk at the moment asked for.
fn take(
    mount: &mut Option<Mount>,
    moment: Moment,
    millis: Duration,
    seed: u64,
    dir: &Path,
    copy: impl FnOnce(),
) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for n in 0..3 {
            let stop = &stop;
            scope.spawn(move || write_randomly(dir, seed.wrapping_mul(4) + n, stop));
        }
        let end = Instant::now() + millis;
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(60));
            if seed.is_multiple_of(3) {
                let _ = run("sync", &["-f", dir.to_str().unwrap()]);
            }
        }
        let place = dir.to_str().unwrap();
        match moment {
            Moment::Live => copy(),
            Moment::Frozen => {
                run("fsfreeze", &["-f", place]).unwrap();
                copy();
                run("fsfreeze", &["-u", place]).unwrap();
            }
            Moment::Shutdown => {
                let how = if seed.is_multiple_of(2) { "shutdown" } else { "shutdown -f" };
                run("xfs_io", &["-x", "-c", how, place]).unwrap();
                stop.store(true, Ordering::Relaxed);
                drop(mount.take());
                copy();
            }
            Moment::Unmounted => {
                stop.store(true, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(50));
                drop(mount.take());
                copy();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

fn proof(configs: &[Config], default: u64, xfs: bool) {
    let tools = ["losetup", "mount", "fsfreeze", "sfdisk", "mkfs.xfs", "xfs_io", "mkfs.ext4", "fallocate"];
    if !can_run(&tools) {
        return;
    }
    let lab = match Lab::new() {
        Ok(lab) => lab,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let seed = std::env::var("VBR_FREE_SPACE_SEED").ok().and_then(|n| n.parse().ok());
    let seed: u64 = seed.unwrap_or(u64::from(std::process::id()) * 1000);
    let (mut tally, wanted, mut failures) = (Tally::default(), images(default), Vec::new());
    // A short run begins elsewhere each time.
    let all = wanted > 3 * configs.len() as u64;
    let begin = if all { 0 } else { seed as usize / 1000 % configs.len() };
    for (n, config) in configs.iter().cycle().skip(begin).enumerate() {
        if tally.images >= wanted {
            break;
        }
        let seed = seed + n as u64;
        if let Err(why) = life(&lab, config, seed, xfs, &mut tally) {
            eprintln!("FAILED {} seed {seed}: {why}", config.name);
            failures.push(format!("{} seed {seed}: {why}", config.name));
        }
    }
    eprintln!("{tally:?}, failures: {}", failures.len());
    assert!(failures.is_empty(), "{failures:#?}");
    // Of all that was made, a good share is really skipped: a mask of nothing would prove nothing. (A short run may have met
    // those alone that are skipped when they are unmounted.)
    assert!(tally.skipped_bytes * if all { 5 } else { 20 } > tally.all_bytes, "{tally:?}");
}

#[test]
fn ext_survives_the_mask() {
    proof(EXT, 6, false);
}

const fn xfs(name: &'static str, mkfs: &'static [&'static str], gpt: bool) -> Config {
    Config { name, mkfs, mount: "nouuid", live: false, strict: false, frozen: true, gpt }
}

const XFS: &[Config] = &[
    xfs("default", &["mkfs.xfs", "-q", "-f"], true),
    xfs("1K", &["mkfs.xfs", "-q", "-f", "-b", "size=1024"], false),
    xfs("old", &["mkfs.xfs", "-q", "-f", "-m", "reflink=0,rmapbt=0,finobt=0"], true),
    xfs("rmap", &["mkfs.xfs", "-q", "-f", "-m", "rmapbt=1"], false),
    xfs("sunit", &["mkfs.xfs", "-q", "-f", "-d", "su=64k,sw=2,agcount=2", "-s", "size=4096"], false),
];

#[test]
fn xfs_survives_the_mask() {
    proof(XFS, 3, true);
}

/// A disk with damaged bytes.
struct Damaged {
    inner: ImageFile,
    bytes: Vec<(u64, u8)>,
}

impl BlockRead for Damaged {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.inner.read_at(offset, buf)?;
        for (at, flip) in &self.bytes {
            if let Some(byte) = at.checked_sub(offset).and_then(|at| buf.get_mut(at as usize)) {
                *byte ^= flip;
            }
        }
        Ok(())
    }

    fn next_data(&self, from: u64) -> std::io::Result<Option<Extent>> {
        self.inner.next_data(from)
    }
}

/// The proof can fail: it sees a mask that is too large. And damage to a busy file system frees nothing.
#[test]
fn the_proof_sees_a_wrong_mask() {
    if !can_run(&["losetup", "mount", "mkfs.xfs", "mkfs.ext4"]) {
        return;
    }
    let lab = match Lab::new() {
        Ok(lab) => lab,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let live = lab.path("live.img");
    File::create(&live).and_then(|file| file.set_len(IMAGE_BYTES)).unwrap();
    let device = Device::attach(&live, 0).unwrap();
    run("mkfs.ext4", &["-q", "-F", &device.0]).unwrap();
    let dir = lab.place("live");
    let mut mount = Some(Mount::new(device, &dir, "rw").unwrap());
    let mut data = vec![0; 20 << 20];
    Rng::new(1).fill(&mut data);
    fs::write(dir.join("large"), &data).unwrap();
    // Committed one by one and hardly checkpointed: the bitmaps on the disk are old.
    for n in 0..100 {
        let mut file = File::create(dir.join(format!("small{n}"))).unwrap();
        file.write_all(&data[n * 5000..n * 5000 + 6000]).and_then(|()| file.sync_all()).unwrap();
    }
    let image = lab.path("snap.img");
    take(&mut mount, Moment::Live, Duration::ZERO, 1, &dir, || reflink(&live, &image));
    drop(mount);

    let sound = map(&ImageFile::open(&image));
    assert!(sound.volumes[0].reason.contains("replayed"), "{sound:?}");
    let mut rng = Rng::new(2);
    let kept = super::extents::without(&[Extent { offset: 0, len: IMAGE_BYTES }], &sound.free);
    for _ in 0..200 {
        let place = kept[rng.below(kept.len() as u64) as usize];
        let bytes = vec![(place.offset + rng.below(place.len), 1 << rng.below(8))];
        let found = map(&Damaged { inner: ImageFile::open(&image), bytes });
        let more = super::extents::without(&found.free, &sound.free);
        assert!(more.is_empty(), "damage freed {more:?}");
    }

    let begun = (i64::MAX, 0);
    let plain = lab.path("plain.img");
    reflink(&image, &plain);
    let plain = look(&lab, &plain, false, false, begun).unwrap();
    let masked = lab.path("masked.img");
    write_masked(&image, &sound.free, &masked);
    assert_eq!(look(&lab, &masked, false, false, begun).unwrap(), plain);
    // As if one long run of the large file were free.
    let file = kept.iter().filter(|extent| extent.offset > 32 << 20).max_by_key(|extent| extent.len).unwrap();
    let mut wrong = sound.free.clone();
    wrong.push(Extent { offset: file.offset, len: file.len / 2 });
    wrong.sort_unstable_by_key(|extent| extent.offset);
    write_masked(&image, &wrong, &masked);
    assert_ne!(look(&lab, &masked, false, false, begun).ok(), Some(plain));
}
