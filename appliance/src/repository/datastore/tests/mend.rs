//! Damaged chunks: written again where their content can be had, and told of where it cannot.

use super::*;
use crate::block::ChunkId;
use crate::repository::verify::{Outcome, verify_and_mend};
use std::os::unix::fs::FileExt;

/// Flips a byte of this content wherever an image of the replica holds it; answers in how many.
fn spoil(replica: &Replica, content: &[u8]) -> usize {
    let points = PathBuf::from(replica.meta().path).join("points");
    let mut spoiled = 0;
    for point in std::fs::read_dir(points).unwrap().flatten() {
        for file in std::fs::read_dir(point.path()).unwrap().flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            if !name.ends_with(".raw") && !name.ends_with(".qcow2") {
                continue;
            }
            let bytes = std::fs::read(file.path()).unwrap();
            let Some(at) = bytes.windows(32).position(|window| *window == content[..32]) else { continue };
            let file = std::fs::File::options().write(true).open(file.path()).unwrap();
            let at = at + content.len() / 2;
            file.write_all_at(&[bytes[at] ^ 0x20], at as u64).unwrap();
            file.sync_all().unwrap();
            spoiled += 1;
        }
    }
    spoiled
}

fn mend(
    replica: &Replica,
    point: &Arc<Point>,
    mut find: impl FnMut(u16, u64, ChunkId) -> Option<Vec<u8>>,
) -> Outcome {
    replica.shared.core.caches.evict(replica.key());
    verify_and_mend(replica, point, &KEY, &mut |_| true, &mut find).unwrap().unwrap()
}

/// Disks of a history's point: chunk 1 is new in each, chunk 5 is zero, the last one is short.
fn disks_of(n: u64) -> Disks {
    let mut disks: Disks =
        vec![("/vm/a".into(), noise(1, 9 * CHUNK_BYTES + 777)), ("/vm/b".into(), noise(2, 5000))];
    disks[0].1[5 * CHUNK_BYTES..6 * CHUNK_BYTES].fill(0);
    disks[0].1[CHUNK_BYTES..2 * CHUNK_BYTES].copy_from_slice(&noise(50 + n, CHUNK_BYTES));
    disks
}

/// A history of three points.
fn history(replica: &Arc<Replica>) -> Vec<(Arc<Point>, Disks)> {
    let mut points: Vec<(Arc<Point>, Disks)> = Vec::new();
    for n in 0..3 {
        let disks = disks_of(n);
        let base = points.last().map(|(point, _)| point.id().to_string());
        points.push((make_point(replica, &format!("s{n}"), base.as_deref(), &disks), disks));
    }
    points
}

fn chunk(disks: &Disks, disk: u16, chunk: u64) -> Vec<u8> {
    let data = &disks[disk as usize].1;
    let range = Geometry { disk_len: data.len() as u64 }.chunk_range(chunk);
    data[range.start as usize..range.end as usize].to_vec()
}

#[test]
fn damaged_chunks_are_mended_for_all_that_share_them() {
    for (name, place, backend) in backends() {
        let stores = place.open();
        let subject = replica(&stores);
        let points = history(&subject);
        let (newest, disks) = points.last().unwrap();
        let shared = if backend == Backend::Overlay { 1 } else { 3 };
        // What all have, what the newest has alone, the short last one, and a small disk's only chunk: of a disk that
        // ends within a sector each overlay has the end for itself.
        for (disk, number, copies) in [(0, 3, shared), (0, 1, 1), (0, 9, 3), (1, 0, 3)] {
            assert_eq!(spoil(&subject, &chunk(disks, disk, number)), copies, "{name}: {disk} {number}");
        }
        // And bytes where there should be none.
        let oldest = points[0].0.meta();
        let raw =
            PathBuf::from(subject.meta().path).join("points").join(&oldest.id).join(&oldest.disks[0].file);
        let raw = std::fs::File::options().write(true).open(raw).unwrap();
        raw.write_all_at(&[7], 5 * CHUNK_BYTES as u64 + 9).unwrap();
        drop(raw);
        let before = subject.meta().stored_bytes;
        let mut asked = Vec::new();
        let outcome = mend(&subject, newest, |disk, number, id| {
            asked.push((disk, number));
            let data = chunk(disks, disk, number);
            assert_eq!(KEY.chunk_id(&data), id);
            Some(data)
        });
        asked.sort_unstable();
        assert_eq!(asked, [(0, 1), (0, 3), (0, 9), (1, 0)], "{name}");
        assert!(outcome.report.ok && outcome.report.bad.is_empty(), "{name}: {:?}", outcome.report);
        assert_eq!(outcome.mended, if backend == Backend::Overlay { 5 } else { 4 }, "{name}");
        assert!(!outcome.postponed && outcome.alike.is_empty(), "{name}");
        assert_eq!((newest.mended_chunks(), newest.meta().state), (outcome.mended, PointState::Sealed));
        let grown = subject.meta().stored_bytes.saturating_sub(before);
        assert!(grown < 16 * CHUNK_BYTES as u64, "{name}: {grown} bytes more");
        // Durable, and for whoever reads it next: the hole of the oldest is its own matter with reflinks.
        drop(points);
        drop((subject, stores));
        let stores = place.open();
        let subject = replica(&stores);
        for (n, point) in subject.points().iter().enumerate() {
            if backend == Backend::Reflink && n == 0 {
                assert_eq!(mend(&subject, point, |_, _, _| None).mended, 1);
            }
            check_point(point, &disks_of(n as u64));
        }
        // A pass that finds nothing says so.
        let newest = subject.latest().unwrap();
        let again = mend(&subject, &newest, |_, _, _| None);
        assert!(again.report.ok && again.mended == 0 && newest.mended_chunks() == 0, "{name}");
    }
}

#[test]
fn what_nothing_has_marks_every_point_that_shares_it() {
    for (name, place, _) in backends() {
        let stores = place.open();
        let subject = replica(&stores);
        let points = history(&subject);
        let (newest, disks) = points.last().unwrap();
        spoil(&subject, &chunk(disks, 0, 3));
        spoil(&subject, &chunk(disks, 0, 7));
        // Content that is not what the manifest names is never written.
        let outcome = mend(&subject, newest, |disk, number, _| match number {
            7 => Some(chunk(disks, disk, 7)),
            _ => Some(noise(99, CHUNK_BYTES)),
        });
        assert_eq!((outcome.mended, outcome.report.bad_chunks), (1, 1), "{name}");
        assert_eq!(outcome.report.bad[0].offset, 3 * CHUNK_BYTES as u64);
        let mut alike = outcome.alike;
        alike.sort();
        let mut others = vec![points[0].0.id().to_string(), points[1].0.id().to_string()];
        others.sort();
        assert_eq!(alike, others, "{name}");
        assert!(subject.latest().is_none(), "{name}: a session would build on what is damaged");
        assert_eq!(subject.to_verify().len(), 3);
        // A later pass has it.
        for point in subject.to_verify() {
            assert!(mend(&subject, &point, |disk, number, _| Some(chunk(disks, disk, number))).report.ok);
        }
        for (point, disks) in &points {
            check_point(point, disks);
        }
        assert_eq!(subject.latest().unwrap().id(), newest.id());
    }
}

#[test]
fn an_overlay_that_is_being_built_upon_is_mended_later() {
    for (name, place, backend) in backends() {
        let stores = place.open();
        let subject = replica(&stores);
        let points = history(&subject);
        let (newest, disks) = points.last().unwrap();
        spoil(&subject, &chunk(disks, 0, 4));
        let building = subject.begin(&spec("s9", Some(newest.id()), disks)).unwrap();
        let bring = |disk, number, _: ChunkId| Some(chunk(disks, disk, number));
        let outcome = mend(&subject, newest, bring);
        if backend == Backend::Overlay {
            assert!(outcome.postponed && outcome.alike.is_empty() && !outcome.report.ok, "{name}");
            drop(building);
            subject.discard("s9").unwrap();
            assert!(mend(&subject, newest, bring).report.ok, "{name}");
        } else {
            assert!(outcome.report.ok && !outcome.postponed, "{name}");
        }
        for (point, disks) in &points {
            check_point(point, disks);
        }
    }
}
