//! Crashes at any step and lost power.

use super::*;

#[test]
fn a_removal_is_finished_after_a_crash_at_any_step() {
    let place = Place::plain();
    // Which of three points goes: the raw base, an overlay in the middle, the newest.
    for victim in 0..3 {
        for crash_at in 0..20 {
            let _ = std::fs::remove_dir_all(place.store_dir());
            let stores = place.open();
            let subject = replica(&stores);
            let mut disks: Disks =
                vec![("/vm/a".into(), noise(1, 400_001)), ("/vm/b".into(), noise(2, 100_000))];
            let mut model = Vec::new();
            for n in 0..4u64 {
                let base = model.last().map(|(id, _): &(String, Disks)| id.clone());
                change(
                    &mut disks,
                    3,
                    &[(n as u32 * 70_000, 90_000, n == 2)],
                    Some(400_001 - n as u32 * 50_000 + 9),
                );
                disks[1].1[5] = n as u8;
                let point = make_point(&subject, &format!("s{n}"), base.as_deref(), &disks);
                model.push((point.id().to_string(), disks.clone()));
            }
            let (id, _) = model.remove(if victim == 2 { 3 } else { victim });
            let mut steps = 0;
            let result = subject.retire_with(&id, &mut |_| {
                steps += 1;
                if steps > crash_at { Err(RepositoryError::invalid("test", "crash")) } else { Ok(()) }
            });
            let finished = result.is_ok();
            if crash_at % 2 == 0 && !finished && subject.point(&id).is_ok() {
                // Without a restart: it goes on.
                subject.retire(&id).unwrap();
            }
            drop((subject, stores));
            let stores = place.open();
            let subject = replica(&stores);
            assert!(stores.warnings().is_empty(), "{victim} {crash_at}: {:?}", stores.warnings());
            let first = subject.points().iter().any(|point| point.id() == id);
            // Before the journal (or the rename, where there is none) nothing has happened.
            assert!(!first || crash_at < 2, "{victim} {crash_at}");
            for (kept, disks) in &model {
                check_content(&subject.point(kept).unwrap(), disks);
            }
            assert!(!place.store_dir().join("branch/web/retire.json").exists());
            assert_eq!(std::fs::read_dir(place.store_dir().join("branch/web/retiring")).unwrap().count(), 0);
            for (kept, _) in &model {
                for entry in
                    std::fs::read_dir(place.store_dir().join("branch/web/points").join(kept)).unwrap()
                {
                    // Names inside the images are right for people too.
                    let path = entry.unwrap().path();
                    if path.extension().is_some_and(|e| e == "qcow2") {
                        let args = ["check", "-q", "-f", "qcow2", path.to_str().unwrap()];
                        crate::nbd::qemu_img(&args).unwrap();
                    }
                }
            }
            if finished {
                break;
            }
        }
    }
}

#[test]
fn what_was_acknowledged_survives_a_power_failure() {
    for mkfs in [&["mkfs.xfs", "-q", "-m", "reflink=1"][..], &["mkfs.ext4", "-q"][..]] {
        let Some(place) = Place::mounted(mkfs) else { continue };
        let stores = place.open();
        let subject = replica(&stores);
        let mut disks: Disks = vec![("/vm/a".into(), vec![0; 2 * PAGE_BYTES as usize + 400_001])];
        for page in 0..3 {
            let at = page * PAGE_BYTES as usize;
            disks[0].1[at..at + 900].copy_from_slice(&noise(page as u64, 900));
        }
        let first = make_point(&subject, "s1", None, &disks).id().to_string();
        let first_disks = disks.clone();
        drop((subject, stores));
        place.lose_power();
        // A session is cut after its first page is durable and its second is not.
        let stores = place.open();
        let subject = replica(&stores);
        check_point(&subject.point(&first).unwrap(), &first_disks);
        for page in 0..3 {
            disks[0].1[page * PAGE_BYTES as usize + 300_000] = 7;
        }
        let building = subject.begin(&spec("s2", Some(&first), &disks)).unwrap();
        assert!(!fill(&building, &disks, 1, 2));
        assert_eq!(building.cursors(), [2]);
        // In a chunk that the snapshot changes; others are never written.
        building.disk(0).unwrap().write_at(2 * PAGE_BYTES + 300_000, &[9; 900]).unwrap();
        drop((building, subject, stores));
        place.lose_power();
        let stores = place.open();
        let subject = replica(&stores);
        let building = subject.reopen("s2").unwrap().unwrap();
        assert_eq!(building.cursors(), [2]);
        assert!(fill(&building, &disks, 0, usize::MAX));
        let second = seal(&building, &disks, 1).id().to_string();
        drop((building, subject, stores));
        place.lose_power();
        let stores = place.open();
        let subject = replica(&stores);
        check_point(&subject.point(&second).unwrap(), &disks);
        subject.retire(&first).unwrap();
        drop((subject, stores));
        place.lose_power();
        let stores = place.open();
        let subject = replica(&stores);
        assert_eq!(subject.points().len(), 1);
        check_point(&subject.latest().unwrap(), &disks);
        assert_eq!(subject.latest().unwrap().vm(), Some(crate::vm_config::tests::sample()));
        assert!(stores.warnings().is_empty());
    }
}
