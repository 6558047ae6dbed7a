//! Scrubbing: what is damaged is found without anybody asking for it, once, and comes back by being sent again.

use super::*;

fn scrub(site: &Site, known: bool) -> ScrubReport {
    site.cache().scrub(&|tag| Some(key()).filter(|key| known && key.tag() == tag), &mut |_, _, _| true)
}

#[test]
fn damage_is_found_dropped_and_sent_again() {
    let site = Site::new(settings(100));
    site.append_all(0..60);
    let clean = scrub(&site, true);
    assert!(clean.whole && clean.packs as usize == site.pack_files().len(), "{clean:?}");
    assert_eq!((clean.records, clean.bad, clean.vanished), (60, 0, 0));
    let files = site.pack_files();
    let first = packs::read_footer(&File::open(&files[0]).unwrap(), 1).unwrap();
    flip(&files[0], u64::from(first[1].offset) + 20); // Header.
    flip(&files[0], u64::from(first[3].offset + RECORD_HEADER_BYTES)); // Payload.
    let open = files.last().unwrap();
    let entries = site.cache().shared.state().open.as_ref().unwrap().entries.clone();
    flip(open, u64::from(entries[0].offset + RECORD_HEADER_BYTES)); // In the pack that is written to.
    let found = scrub(&site, true);
    assert_eq!((found.records, found.bad), (60, 3), "{found:?}");
    assert_eq!(site.cache().stats().bad_records, 3);
    assert!(site.cache().damage_warning().unwrap().contains("3 damaged records"));
    let ended = site.cache().scrub(&|_| Some(key()), &mut |_, _, _| false);
    assert!(!ended.whole && site.cache().damage_warning().is_some(), "a pass that was ended proves nothing");
    let again = scrub(&site, true);
    assert_eq!((again.records, again.bad), (57, 0), "what was dropped is not found again: {again:?}");
    assert_eq!(site.cache().damage_warning(), None, "everything was read, and is good");
    assert_eq!(site.kept(0..60), 57);
    site.append_all(0..60);
    assert_eq!(site.kept(0..60), 60, "it came again");
    let healed = scrub(&site, true);
    assert_eq!((healed.records, healed.bad), (60, 0), "{healed:?}");
}

#[test]
fn without_the_key_the_sums_are_checked_and_with_it_the_content() {
    let site = Site::new(settings(100));
    site.append_all(0..40);
    let first = site.pack_files().remove(0);
    let entries = packs::read_footer(&File::open(&first).unwrap(), 1).unwrap();
    // Another content under this id, with sums that fit: only the hash can tell.
    let (entry, n) = (entries[2], 2);
    let wrong = content_of(9999, entry.plain_len as usize);
    let record = format::encode_record(&id_of(n), key().tag(), &wrong);
    OpenOptions::new()
        .write(true)
        .open(&first)
        .unwrap()
        .write_all_at(&record, u64::from(entry.offset))
        .unwrap();
    assert_eq!(scrub(&site, false).bad, 0);
    assert_eq!(scrub(&site, true).bad, 1);
    flip(&first, u64::from(entries[4].offset + RECORD_HEADER_BYTES));
    assert_eq!(scrub(&site, false).bad, 1);
}

#[test]
fn a_pack_that_is_gone_is_noticed_and_a_pass_can_be_ended() {
    let site = Site::new(settings(100));
    site.append_all(0..60);
    let mut left = 10;
    let ended = site.cache().scrub(&|_| Some(key()), &mut |bytes, done, packs| {
        assert!(done < packs);
        left -= u32::from(bytes > 0);
        left > 0
    });
    assert!(!ended.whole && ended.records == 10, "{ended:?}");
    std::fs::remove_file(site.pack_files().remove(0)).unwrap();
    let found = scrub(&site, true);
    assert!(found.whole && found.vanished == 1 && found.records < 60, "{found:?}");
    assert_eq!(scrub(&site, true).vanished, 0);
}
