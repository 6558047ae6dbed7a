//! `job seed` and `cache warm DIRECTORY`: a directory that is whole or absent.

use std::fs;

use crate::fake::{Answer, Fake, Run, error, left_in, ok};
use crate::samples;

const LEN: u64 = 3 << 20;

fn record(offset: u64, data: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

fn good(byte: u8) -> Answer {
    let bytes = [record(65_536, &[byte; 2 * 65_536]), record(LEN, b"")].concat();
    Answer::Stream(bytes.chunks(7_777).map(<[u8]>::to_vec).collect())
}

/// A job of two disks; `second` is what comes of the second one.
fn serving(second: fn() -> Answer) -> Fake {
    Fake::start(move |request| match request.line.as_str() {
        "GET /v1/jobs/web" => {
            let (one, two) =
                (r#"{"path":"/srv/vm/web.img""#, r#"{"path":"/srv/vm/data.img","format":"raw"}"#);
            ok(samples::job("web").replace(one, &format!("{two},{one}")))
        }
        "GET /v1/jobs/web/seed?disk=0" => good(1),
        "GET /v1/jobs/web/seed?disk=1" => second(),
        "POST /v1/cache/warm" => ok(warming()),
        line if line.starts_with("GET /v1/cache/warm") && !line.contains("/w-1") => {
            ok(samples::list(&[warming()]))
        }
        _ => error(404, "not_found"),
    })
}

fn warming() -> String {
    r#"{"schema":1,"id":"w-1","subject":"disk","asked_by":null,"state":"succeeded","total_bytes":1,"read_bytes":1,"chunks":1,"known_chunks":0,"bad_chunks":0,"chunks_by_block":1,"ordered_at":"2026-11-22T10:00:00Z","ended_at":null,"error":null}"#.into()
}

fn seed(fake: &Fake, more: &[&str]) -> Run {
    fake.run(&[&["job", "seed", "web", "--to", "out"], more].concat())
}

#[test]
fn a_directory_is_written_and_warmed() {
    let fake = serving(|| good(2));
    let run = seed(&fake, &["-o", "json"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(
        (&run.json()["data_bytes"], &run.json()["virtual_bytes"]),
        (&(4 * 65_536).into(), &(2 * LEN).into())
    );
    let out = fake.path("out");
    assert_eq!(left_in(&out), ["disk-0.raw", "disk-1.raw", "seed.json"]);
    let mut disk = vec![0; LEN as usize];
    disk[65_536..3 * 65_536].fill(2);
    assert!(fs::read(out.join("disk-1.raw")).unwrap() == disk);

    let warm = |more: &[&str]| fake.run(&[&["cache", "warm", "./out"], more].concat());
    let run = warm(&["--check", "--wait"]);
    assert!(run.code == 0 && run.out.contains("w-1"), "{run:?}");
    let ordered = |fake: &Fake| {
        let seen = fake.seen.lock().unwrap();
        seen.iter().filter(|request| request.line == "POST /v1/cache/warm").count()
    };
    assert_eq!(ordered(&fake), 2);

    // What is bad, too short or not whole is not ordered.
    fs::write(out.join("disk-1.raw"), [&disk[1..], b"\0"].concat()).unwrap();
    let run = warm(&["--check"]);
    assert!(run.code == 1 && run.err.contains("disk-1.raw is damaged"), "{run:?}");
    fs::write(out.join("disk-1.raw"), b"short").unwrap();
    assert_eq!(warm(&[]).code, 1);
    fs::remove_file(out.join("seed.json")).unwrap();
    assert_eq!(warm(&[]).code, 2);
    assert_eq!(fake.run(&["cache", "warm", "./out/disk-0.raw", "--check"]).code, 2);
    assert_eq!(ordered(&fake), 2);
}

#[test]
fn what_is_cut_short_leaves_nothing() {
    let ends: [fn() -> Answer; 4] = [
        || Answer::Stream(vec![record(65_536, b"abc")]),
        || Answer::Broken(vec![record(65_536, b"abc"), record(LEN, b"")]),
        || Answer::HangUp,
        || error(404, "not_found"),
    ];
    for (number, end) in ends.into_iter().enumerate() {
        let fake = serving(end);
        let run = seed(&fake, &[]);
        assert!(run.code == 1 || run.code == 5, "{number}: {run:?}");
        assert!(left_in(fake.dir.path()).is_empty(), "{number}");
        fs::create_dir(fake.path("out")).unwrap();
        fs::write(fake.path("out/mine"), b"x").unwrap();
        assert_ne!(seed(&fake, &[]).code, 0);
        assert_eq!(left_in(&fake.path("out")), ["mine"], "{number}");
    }
}

#[test]
fn what_is_there_is_replaced_by_force_only() {
    let fake = serving(|| good(2));
    assert_eq!(seed(&fake, &[]).code, 0);
    let first = fs::read(fake.path("out/seed.json")).unwrap();
    fs::write(fake.path("out/mine"), b"x").unwrap();
    let run = seed(&fake, &[]);
    assert!(run.code == 2 && run.err.contains("--force"), "{run:?}");
    assert!(fs::read(fake.path("out/seed.json")).unwrap() == first);
    assert_eq!(seed(&fake, &["--force"]).code, 0);
    assert!(fs::read(fake.path("out/seed.json")).unwrap() != first);
    assert_eq!(left_in(&fake.path("out")), ["disk-0.raw", "disk-1.raw", "mine", "seed.json"]);
    fs::write(fake.path("file"), b"x").unwrap();
    assert_eq!(fake.run(&["job", "seed", "web", "--to", "file", "--force"]).code, 2);
    assert_eq!(fake.run(&["job", "seed", "web", "--to", "none/out"]).code, 1);
    assert_eq!(fake.run(&["job", "seed", "no", "--to", "out2"]).code, 5);
    assert!(!fake.path("out2").exists());
}
