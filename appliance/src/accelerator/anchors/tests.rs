//! The store against a plain model, its file, and its bounds.

use std::collections::HashMap;

use proptest::prelude::*;

use super::gear::scan;
use super::*;

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn disk(job: &str) -> DiskKey {
    DiskKey { job: job.into(), disk: 0 }
}

fn anchors(data: &[u8]) -> Vec<(Anchor, u32)> {
    let mut all = Vec::new();
    scan(data, |at, anchor| all.push((anchor, (at / BLOCK_BYTES) as u32)));
    all
}

fn store(memory: usize) -> (tempfile::TempDir, AnchorStore) {
    let dir = tempfile::tempdir().unwrap();
    let (store, why) = AnchorStore::open(&dir.path().join("anchors"), memory);
    assert_eq!(why, None);
    (dir, store)
}

#[test]
fn content_is_found_again_after_the_seal_and_after_a_restart() {
    let (dir, store) = store(1 << 20);
    let data = noise(4 << 20, 1);
    let images = store.begin(&disk("web"), "s1").unwrap();
    assert_eq!(images.base, None);
    store.put(images.building, anchors(&data));
    store.sealed("web", "s1", true, |_, _| true);
    let images = store.begin(&disk("web"), "s2").unwrap();
    let base = images.base.unwrap();
    let found = |store: &AnchorStore| {
        let list = anchors(&data);
        let places = store.find(list.iter().map(|(anchor, _)| *anchor));
        list.iter()
            .zip(places)
            .filter(|((_, block), place)| *place == Some(Place { image: base, block: *block }))
            .count()
    };
    let all = anchors(&data).len();
    assert!(found(&store) > all * 99 / 100);

    // A quarter of the chunks changes; the rest moves over to the new image.
    store.sealed("web", "s2", true, |_, chunk| chunk % 4 != 0);
    assert_eq!(store.image(base), None);
    let (key, state) = store.image(images.building).unwrap();
    assert_eq!((key, state), (disk("web"), ImageState::Sealed));
    let stats = store.stats();
    let share = stats.entries as usize * 100 / all;
    assert!((70..80).contains(&share), "{share}");

    store.save().unwrap();
    let path = dir.path().join("anchors");
    let (again, why) = AnchorStore::open(&path, 1 << 20);
    assert_eq!((why, again.stats()), (None, stats));
    let (_, why) = AnchorStore::open(&path, 2 << 20);
    assert!(why.unwrap().contains("another size"));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (empty, why) = AnchorStore::open(&path, 1 << 20);
    assert!(why.unwrap().contains("its checksum differs"));
    assert_eq!(empty.stats().entries, 0);
}

#[test]
fn what_was_not_scanned_is_learned_again() {
    let (_dir, store) = store(1 << 20);
    store.begin(&disk("web"), "s1").unwrap();
    assert!(!store.knows(&disk("web")));
    store.sealed("web", "s1", false, |_, _| true);
    assert!(!store.knows(&disk("web")));
    store.begin(&disk("web"), "s2").unwrap();
    store.sealed("web", "s2", true, |_, _| true);
    assert!(!store.knows(&disk("web")), "what came from the base was not scanned either");
    let image = store.relearn(&disk("web")).unwrap();
    store.learned(image);
    assert!(store.knows(&disk("web")));
}

#[test]
fn a_session_that_ends_without_a_point_leaves_nothing() {
    let (_dir, store) = store(1 << 20);
    let images = store.begin(&disk("web"), "s1").unwrap();
    store.put(images.building, anchors(&noise(1 << 20, 2)));
    store.discard("s1");
    assert_eq!(store.stats().entries, 0);
    assert_eq!(store.image(images.building), None);
}

/// A table far too small thins all disks alike, and in the same places at the base and in new content.
#[test]
fn a_small_table_thins_before_it_forgets() {
    let (_dir, store) = store(8 << 10);
    let disks: Vec<Vec<u8>> = (0..4).map(|n| noise(4 << 20, 10 + n)).collect();
    for (n, data) in disks.iter().enumerate() {
        let images = store.begin(&disk(&format!("job{n}")), "s").unwrap();
        store.put(images.building, anchors(data));
        store.sealed(&format!("job{n}"), "s", true, |_, _| true);
    }
    let stats = store.stats();
    assert!(stats.entries <= stats.capacity && stats.entries > stats.capacity * 9 / 10, "{stats:?}");
    for data in &disks {
        let list = anchors(data);
        let hits = store.find(list.iter().map(|(anchor, _)| *anchor)).iter().flatten().count();
        let expected = stats.capacity as usize / 4;
        assert!(hits > expected / 2 && hits < expected * 2, "{hits} of {expected}");
    }
}

/// A disk without sessions gives way to those that have them.
#[test]
fn unused_disks_thin_first() {
    let (_dir, store) = store(8 << 10);
    let old = noise(2 << 20, 20);
    let images = store.begin(&disk("old"), "s").unwrap();
    store.put(images.building, anchors(&old));
    store.sealed("old", "s", true, |_, _| true);
    for round in 0..64u64 {
        let images = store.begin(&disk("new"), &format!("s{round}")).unwrap();
        store.put(images.building, anchors(&noise(64 << 10, 100 + round)));
        store.sealed("new", &format!("s{round}"), true, |_, _| false);
    }
    let list = anchors(&old);
    let hits = |list: &[(Anchor, u32)]| store.find(list.iter().map(|(a, _)| *a)).iter().flatten().count();
    let newest = anchors(&noise(64 << 10, 163));
    assert!(hits(&newest) * 10 > newest.len() * 8);
    assert!(hits(&list) * 2 < list.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// With room enough the table is a map from anchor to newest place.
    #[test]
    fn a_table_with_room_is_a_map(puts in prop::collection::vec((0u64..400, 0u16..4, any::<u32>()), 1..400)) {
        let mut table = AnchorTable::new(1 << 20);
        let mut model: HashMap<u64, Place> = HashMap::new();
        for (key, image, block) in puts {
            let anchor = Anchor(key.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            table.put(anchor, Place { image, block }, |_| 0);
            model.insert(anchor.0, Place { image, block });
        }
        for (anchor, place) in &model {
            prop_assert_eq!(table.get(Anchor(*anchor)), Some(*place));
        }
        prop_assert_eq!(table.len(), model.len());
    }

    #[test]
    fn garbage_files_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("anchors");
        std::fs::write(&path, &bytes).unwrap();
        let (store, why) = AnchorStore::open(&path, 1 << 16);
        prop_assert!(why.is_some() && store.stats().entries == 0);
    }
}
