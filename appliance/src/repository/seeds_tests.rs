use super::*;

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    std::fs::write(path, bytes)
}

fn seeds(dir: &Path) -> Seeds {
    let allowed = vec![dir.join("seed")];
    let (seeds, why) = Seeds::open(dir.join("seeds.json"), allowed, dir, write);
    assert_eq!(why, None);
    seeds
}

#[test]
fn a_peer_reads_beneath_the_allowed_directories_only() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    std::fs::create_dir_all(root.join("seed/inner")).unwrap();
    std::fs::create_dir_all(root.join("seed/web/points")).unwrap();
    for name in ["secret", "seed/inner/a.img", "seed/web/replica.json", "seed/web/points/disk"] {
        std::fs::write(root.join(name), [7; 100]).unwrap();
    }
    std::os::unix::fs::symlink(root.join("secret"), root.join("seed/link")).unwrap();
    std::os::unix::fs::symlink(&root, root.join("seed/up")).unwrap();
    let seeds = seeds(&root);
    let code = |name: &str| {
        let path = root.join(name);
        let found = seeds.image_for_peer(path.to_str().unwrap(), DiskFormat::Raw);
        found.map_or_else(|problem| problem.code, |_| "ok".into())
    };
    assert_eq!(code("seed/inner/a.img"), "ok");
    assert_eq!(code("seed/inner/b.img"), "not_found");
    assert_eq!(code("secret"), "not_allowed");
    assert_eq!(code("seed"), "not_allowed");
    assert_eq!(code("seedling"), "not_allowed");
    assert_eq!(code("seed/link"), "not_allowed");
    assert_eq!(code("seed/up/secret"), "not_allowed");
    assert_eq!(code("seed/web/points/disk"), "not_allowed");
    assert_eq!(code("seed/../secret"), "invalid");
    let long = format!("{}/{}", root.display(), "x".repeat(PATH_BYTES_MAX));
    assert_eq!(seeds.image_for_peer(&long, DiskFormat::Raw).unwrap_err().code, "invalid");
    assert_eq!(seeds.image_for_peer("seed/a", DiskFormat::Raw).unwrap_err().code, "invalid");

    // A link that takes the image's place after it was checked leads nowhere.
    let path = root.join("seed/inner/a.img");
    let seed = seeds.image_for_peer(path.to_str().unwrap(), DiskFormat::Raw).unwrap();
    assert!(seed.is_unchanged());
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(root.join("secret"), &path).unwrap();
    assert!(seeds.reader(&seed).is_err());
    assert!(!seed.is_unchanged());
}

#[test]
fn chunks_are_read_in_place_and_only_as_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.img");
    let mut content = vec![1; CHUNK_BYTES];
    content.extend_from_slice(&[2; 1000]);
    std::fs::write(&path, &content).unwrap();
    let (key, other) = (DomainKey([1; 32]), DomainKey([2; 32]));
    let first = seeds(dir.path());
    let seed = first.image(path.to_str().unwrap(), DiskFormat::Raw).unwrap();
    first.enter(&seed, key.tag()).unwrap();
    first.enter(&seed, key.tag()).unwrap();
    assert_eq!(first.all().len(), 1);

    // The record outlives the process.
    let seeds = seeds(dir.path());
    let id = key.chunk_id(&[2; 1000]);
    let found = seeds.read(seed.key(), 1, id.short(), &key).unwrap();
    assert_eq!(found, (id, vec![2; 1000]));
    assert!(seeds.read(seed.key(), 0, id.short(), &key).is_none());
    assert!(seeds.read(seed.key(), 2, id.short(), &key).is_none());
    assert!(seeds.read(seed.key(), u64::MAX, id.short(), &key).is_none());
    let foreign = other.chunk_id(&[2; 1000]).short();
    assert!(seeds.read(seed.key(), 1, foreign, &other).is_none(), "another domain sees nothing");

    content[CHUNK_BYTES] = 9;
    std::fs::write(&path, &content).unwrap();
    assert!(seeds.read(seed.key(), 1, id.short(), &key).is_none());
    std::fs::remove_file(&path).unwrap();
    assert!(seeds.read(seed.key(), 0, key.chunk_id(&[1; CHUNK_BYTES]).short(), &key).is_none());
}

#[test]
fn there_is_a_bound_and_a_damaged_record_is_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let seeds = seeds(dir.path());
    let tag = DomainKey([1; 32]).tag();
    for n in 0..SEEDS_MAX + 3 {
        let path = PathBuf::from(format!("/images/{n}"));
        let seed = Seed { path, format: DiskFormat::Raw, beneath: None, stamp: (1, 2), domains: Vec::new() };
        seeds.enter(&seed, tag).unwrap();
    }
    assert_eq!(seeds.all().len(), SEEDS_MAX);
    assert_eq!(seeds.all()[0].path, Path::new("/images/3"));
    std::fs::write(dir.path().join("seeds.json"), "[{").unwrap();
    let (seeds, why) = Seeds::open(dir.path().join("seeds.json"), Vec::new(), dir.path(), write);
    assert!(why.is_some() && seeds.all().is_empty());
}
