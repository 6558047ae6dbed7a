//! File systems made by their own tools, sound and damaged.

use super::*;

/// Runs a tool on a new image file; `None`, with a message, where the tool is missing.
fn made(mib: u64, command: &[&str]) -> Option<MemoryDisk> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    File::create(&path).and_then(|file| file.set_len(mib << 20)).unwrap();
    match std::process::Command::new(command[0]).args(&command[1..]).arg(&path).output() {
        Ok(out) if out.status.success() => Some(MemoryDisk(std::fs::read(&path).unwrap())),
        Ok(out) => {
            eprintln!("skipped: {command:?}: {}", String::from_utf8_lossy(&out.stderr));
            None
        }
        Err(error) => {
            eprintln!("skipped: {command:?}: {error}");
            None
        }
    }
}

/// Damages an image in many places: the answer is the same, or smaller, and never a panic. Where all
/// metadata carries checksums, no other block may become free.
fn damage(disk: &MemoryDisk, rounds: u64, seed: u64) {
    let sound = map(disk);
    let skipped: u64 = sound.free.iter().map(|extent| extent.len).sum();
    assert!(skipped > disk.len() / 4, "{sound:?}");
    check_shape(&sound, disk.len());
    let mut rng = Rng::new(seed);
    // Only what is not zero and not free is worth damaging.
    let used: Vec<usize> =
        (0..disk.0.len()).filter(|at| disk.0[*at] != 0).filter(|at| at % 7 == 0 || *at < 8192).collect();
    let (mut disk, mut noticed) = (disk.clone(), 0);
    for _ in 0..rounds {
        let at = used[rng.below(used.len() as u64) as usize];
        let old = disk.0[at];
        disk.0[at] = if rng.below(2) == 0 { old ^ 1 << rng.below(8) } else { rng.next() as u8 };
        let found = map(&disk);
        check_shape(&found, disk.len());
        let more = crate::free_space::extents::without(&found.free, &sound.free);
        assert!(more.is_empty(), "byte {at}: {old} -> {}: {more:?}", disk.0[at]);
        noticed += u64::from(found.free != sound.free);
        disk.0[at] = old;
    }
    assert!(noticed > 0, "no damage was ever noticed");
}

#[test]
fn damage_to_ext4_frees_nothing() {
    for (mib, command) in [
        (24, &["mkfs.ext4", "-q", "-F", "-b", "1024", "-N", "512"][..]),
        (24, &["mkfs.ext4", "-q", "-F", "-b", "4096", "-N", "512", "-O", "bigalloc"]),
    ] {
        if let Some(disk) = made(mib, command) {
            damage(&disk, 300, 1);
        }
    }
}

#[test]
fn every_kind_of_ext_is_read() {
    for features in [
        &["-O", "^metadata_csum"][..],
        &["-O", "^metadata_csum,uninit_bg"],
        &["-O", "meta_bg,^resize_inode"],
        &["-O", "^64bit"],
        &["-O", "sparse_super2"],
        &["-O", "^sparse_super,^resize_inode"],
        &["-O", "mmp"],
        &["-O", "fast_commit"],
        &["-O", "^has_journal"],
        &["-O", "^flex_bg"],
        &["-O", "bigalloc", "-C", "8192"],
        &["-O", "^extent,^64bit,^flex_bg"],
    ] {
        let mut command = vec!["mkfs.ext4", "-q", "-F", "-b", "1024", "-N", "512"];
        command.extend(features);
        let Some(disk) = made(24, &command) else { continue };
        let found = map(&disk);
        check_shape(&found, disk.len());
        assert!(found.volumes[0].skipped_bytes > disk.len() / 2, "{features:?} {found:?}");
        // What is skipped holds nothing but zeroes in a new file system.
        for extent in &found.free {
            let range = extent.offset as usize..extent.end() as usize;
            assert!(disk.0[range].iter().all(|byte| *byte == 0), "{features:?} {extent:?}");
        }
    }
}

#[test]
fn damage_to_xfs_frees_nothing() {
    if let Some(disk) = made(300, &["mkfs.xfs", "-q", "-f"]) {
        damage(&disk, 30, 2);
    }
    if let Some(disk) = made(300, &["mkfs.xfs", "-q", "-f", "-m", "crc=0"]) {
        let found = map(&disk);
        assert!(found.volumes[0].skipped_bytes > disk.len() / 2, "{found:?}");
    }
}

#[test]
fn ntfs_is_believed_where_its_log_says_so() {
    let Some(mut disk) = made(24, &["mkfs.ntfs", "-q", "-F", "-f", "-c", "4096"]) else { return };
    let found = map(&disk);
    assert!(found.free.is_empty() && found.volumes[0].reason.contains("empty log"), "{found:?}");

    // The log as a clean unmount leaves it: two restart pages, the newer one says "clean".
    let log = disk.0.windows(8192).step_by(4096).position(|data| data.iter().all(|byte| *byte == 0xFF));
    let log = log.unwrap() * 4096;
    for (at, lsn, flags) in [(log, 5u64, 0u16), (log + 4096, 6, 2)] {
        restart_page(&mut disk.0[at..at + 4096], lsn, flags);
    }
    let found = map(&disk);
    check_shape(&found, disk.len());
    assert!(found.volumes[0].skipped_bytes > disk.len() / 2, "{found:?}");
    for extent in &found.free {
        let range = extent.offset as usize..extent.end() as usize;
        assert!(disk.0[range].iter().all(|byte| *byte == 0), "{extent:?}");
    }

    let mut dirty = disk.clone();
    dirty.0[log + 64..log + 72].copy_from_slice(&7u64.to_le_bytes());
    assert!(map(&dirty).free.is_empty(), "the newer page is not clean");
    let mut shadowed = disk.clone();
    let id = [0x6B, 0x87, 0x08, 0x38, 0x76, 0xC1, 0x48, 0x4E, 0xB7, 0xAE, 0x04, 0x04, 0x6E, 0x6C, 0xC7, 0x52];
    shadowed.0[0x1E00..0x1E10].copy_from_slice(&id);
    shadowed.0[0x1E30] = 1;
    assert!(map(&shadowed).volumes[0].reason.contains("shadow"));
    // NTFS has no checksums: damage is survived, not always noticed.
    let mut rng = Rng::new(3);
    let used: Vec<usize> = (0..disk.0.len()).filter(|at| disk.0[*at] != 0).collect();
    for _ in 0..300 {
        let at = used[rng.below(used.len() as u64) as usize];
        let old = std::mem::replace(&mut disk.0[at], rng.next() as u8);
        check_shape(&map(&disk), disk.len());
        disk.0[at] = old;
    }
}
