//! Versions beside one another: older peers, peers of another major, state directories of former formats, and of newer ones.
//!
//! An older peer is played by today's vbrd with `VBR_PROTOCOL`, which leaves out capabilities that came later. State
//! directories of each format that there ever was lie in `fixtures/`, as the vbrd of that time left them.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vbr_api::{List, Peer, SessionState, Status};
use vbr_tests::disk::{self, MIB};
use vbr_tests::process::{finish, is_root, skip_unless};
use vbr_tests::site::Site;
use vbr_tests::work::WorkDir;
use vbr_tests::world::{World, WorldSpec};

const DIALECT: &str = "VBR_PROTOCOL";
const PATIENCE: Duration = Duration::from_secs(40);

/// Restarts a site that speaks so from now on.
fn speak(site: &Site, dialect: &str) -> Result<()> {
    site.stop()?;
    site.set_environment(&[(DIALECT, Path::new(dialect))]);
    site.start()
}

fn peer(site: &Site, name: &str) -> Result<Peer> {
    let peers: List<Peer> = site.json(&["peer", "list"])?;
    peers.items.into_iter().find(|peer| peer.name == name).with_context(|| format!("no peer {name}"))
}

#[test]
fn an_older_peer_replicates_in_either_direction() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    world.source.ok(&["peer", "grant", "dr", "--manage"])?;
    let image = world.path("disk.img");
    disk::mixed(&image, 16 * MIB, 1)?;
    world.job("web", &image)?;
    world.run("web")?;
    let (source, target) = (&world.source, &world.target);
    // The first release without capabilities, and one in between: once as the source, once as the target.
    for (round, (older, dialect)) in
        [(source, "1:0"), (target, "1:0"), (source, "1:3"), (target, "1:7")].into_iter().enumerate()
    {
        speak(older, dialect)?;
        world.wait_connected(PATIENCE)?;
        disk::mutate(&image, 40, round as u64)?;
        let session = world.run("web")?;
        ensure!(session.bytes.sent_payload > 0, "nothing crossed: {session:?}");
        world.prove_latest("web", &[&image])?;
        source.ok(&["job", "plan", "web"])?;
        source.ok(&["job", "edit", "web", "--keep", "9", "--keep-daily", "3"])?;
        // What the older one lacks is refused with a reason, not tried.
        if std::ptr::eq(older, source) {
            let said = target.fails(&["--site", "branch", "job", "list"], 1)?;
            ensure!(said.contains("update vbr"), "{said}");
        }
        speak(older, "")?;
        world.wait_connected(PATIENCE)?;
    }
    disk::mutate(&image, 5, 99)?;
    world.run("web")?;
    world.prove_latest("web", &[&image])?;
    target.ok(&["--site", "branch", "job", "list"])?;
    Ok(())
}

#[test]
fn a_peer_of_another_major_is_told_of_at_both_sites() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let image = world.path("disk.img");
    disk::mixed(&image, 4 * MIB, 1)?;
    world.job("web", &image)?;
    world.run("web")?;
    for (newer, sites) in [
        (&world.source, [(&world.source, "dr"), (&world.target, "branch")]),
        (&world.target, [(&world.target, "branch"), (&world.source, "dr")]),
    ] {
        speak(newer, "2")?;
        for (site, name) in sites {
            let end = Instant::now() + PATIENCE;
            let why = loop {
                let peer = peer(site, name)?;
                let why = peer.last_error.unwrap_or_default();
                if !peer.connected && why.contains("of the protocol") {
                    break why;
                }
                ensure!(Instant::now() < end, "site {} never says why: {why:?}", site.name());
                std::thread::sleep(Duration::from_millis(100));
            };
            ensure!(why.ends_with("install the same release of vbr at both sites"), "{why}");
            ensure!(site.ok(&["peer", "show", name])?.contains(&why), "peer show does not say it");
            let status: Status = site.json(&["status"])?;
            ensure!(
                status.warnings.iter().any(|warning| warning.what.contains(&why)),
                "{:?}",
                status.warnings
            );
        }
        speak(newer, "")?;
        world.wait_connected(PATIENCE)?;
    }
    disk::mutate(&image, 3, 2)?;
    world.run("web")?;
    world.prove_latest("web", &[&image])
}

/// Size, time of the last change, content.
type Seen = (u64, i64, i64, Option<blake3::Hash>);

/// Everything in a directory.
fn everything(dir: &Path) -> Result<BTreeMap<PathBuf, Seen>> {
    let (mut all, mut open) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(path) = open.pop() {
        let meta = std::fs::symlink_metadata(&path)?;
        let content = if meta.is_file() { Some(blake3::hash(&std::fs::read(&path)?)) } else { None };
        if meta.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        }
        all.insert(path, (meta.len(), meta.mtime(), meta.mtime_nsec(), content));
    }
    Ok(all)
}

#[test]
fn a_downgrade_is_refused_and_touches_nothing() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let image = world.path("disk.img");
    disk::mixed(&image, 4 * MIB, 1)?;
    world.job("web", &image)?;
    world.run("web")?;
    for site in [&world.source, &world.target] {
        site.stop()?;
        let file = site.state().join("format.json");
        let ours = std::fs::read_to_string(&file)?;
        std::fs::write(&file, r#"{"format": 2, "written_by": "9.0.0", "more": true}"#)?;
        let before = everything(&site.state())?;
        let error = site.start().err().context("vbrd started on a newer state")?.to_string();
        for words in ["is of a newer vbr", "vbr 9.0.0 wrote it in format 2", "nothing was changed"] {
            ensure!(error.contains(words), "{words:?} is not in {error}");
        }
        ensure!(error.contains("next_step") && error.contains("install vbr 9.0.0 or newer"), "{error}");
        ensure!(everything(&site.state())? == before, "the refused start changed something");
        std::fs::write(&file, ours)?;
        site.start()?;
    }
    world.wait_connected(PATIENCE)?;
    world.run("web")?;
    world.prove_latest("web", &[&image])
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Little memory: what is kept in files of its size stays small.
fn small() -> WorldSpec {
    let toml = "[accelerator]\nanchor_memory = \"1MiB\"\nblock_memory = \"1MiB\"\n";
    WorldSpec {
        source_toml: toml.into(),
        target_toml: toml.into(),
        cache_size: "256MiB".into(),
        ..WorldSpec::default()
    }
}

/// The disk of the fixtures, as it was at its second restore point.
fn fixture_disk(path: &Path) -> Result<()> {
    disk::set_len(path, 3 * MIB + 512)?;
    disk::write_random(path, 0, 128 << 10, 1)?;
    disk::write_random(path, 2 * MIB, 64 << 10, 2)
}

/// Stands for the working directory in the records of a fixture.
const PLACE: &str = "/srv/fixture";

fn replace_place(dir: &Path, from: &str, to: &str) -> Result<()> {
    for entry in std::fs::read_dir(dir.join("jobs"))? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        ensure!(text.contains(from), "{} does not name {from}", path.display());
        std::fs::write(&path, text.replace(from, to))?;
    }
    Ok(())
}

#[test]
fn a_state_directory_of_every_format_is_taken_over() -> Result<()> {
    if skip_unless(is_root(), "a_state_directory_of_every_format_is_taken_over", "namespaces need root") {
        return Ok(());
    }
    let mut found = 0;
    for entry in std::fs::read_dir(fixtures())? {
        let archive = entry?.path();
        let name = archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(format) = name.strip_prefix("state-").and_then(|rest| rest.strip_suffix(".tar.zst")) else {
            continue;
        };
        found += 1;
        take_over(&archive).with_context(|| format!("state of format {format}"))?;
    }
    ensure!(found > 0, "no state directory in {}", fixtures().display());
    Ok(())
}

fn take_over(archive: &Path) -> Result<()> {
    let dir = WorkDir::new()?;
    finish(Command::new("tar").args(["--zstd", "-xf"]).arg(archive).arg("-C").arg(dir.path()))?;
    let image = dir.join("disk.img");
    fixture_disk(&image)?;
    let place = dir.path().to_string_lossy().into_owned();
    replace_place(&dir.join("branch/state"), PLACE, &place)?;
    let world = World::start_in(dir, &small())?;
    // Pairing, replica, both restore points and their history are there.
    world.wait_connected(PATIENCE)?;
    let before = world.points("web")?;
    ensure!(before.len() == 2, "{before:?}");
    ensure!(world.last_session("web")?.is_some_and(|session| session.state == SessionState::Succeeded));
    world.prove_latest("web", &[&image])?;
    for site in [&world.source, &world.target] {
        let status: Status = site.json(&["status"])?;
        ensure!(
            status.warnings.iter().all(|warning| !warning.what.contains("damaged")),
            "{:?}",
            status.warnings
        );
        ensure!(!site.log().contains("moved aside"), "{}", site.log());
    }
    // And the job goes on where it was: nothing of what did not change crosses.
    disk::write_random(&image, 2 * MIB, 4096, 7)?;
    let session = world.run("web")?;
    ensure!(session.bytes.changed <= 64 << 10 && session.bytes.sent_wire < 64 << 10, "{:?}", session.bytes);
    world.prove_latest("web", &[&image])?;
    ensure!(world.points("web")?.len() == 3);
    Ok(())
}

/// For a new format alone: `cargo test --workspace --test compatibility -- --ignored write_fixture`, as root.
#[test]
#[ignore = "writes the state directories of a new format"]
fn write_fixture() -> Result<()> {
    ensure!(is_root(), "the addresses in it are those of the namespaces: run it as root");
    let dir = WorkDir::new()?;
    let place = dir.path().to_owned();
    let world = World::start_in(dir, &small())?;
    world.pair()?;
    let image = world.path("disk.img");
    fixture_disk(&image)?;
    disk::write_random(&image, 0, 4096, 3)?;
    world.job("web", &image)?;
    world.run("web")?;
    std::fs::remove_file(&image)?;
    fixture_disk(&image)?;
    world.run("web")?;
    world.source.stop()?;
    world.target.stop()?;
    replace_place(&place.join("branch/state"), &place.to_string_lossy(), PLACE)?;
    let record = std::fs::read_to_string(world.source.state().join("format.json"))?;
    let record: serde_json::Value = serde_json::from_str(&record)?;
    let archive = fixtures().join(format!("state-{}.tar.zst", record["format"]));
    std::fs::create_dir_all(fixtures())?;
    let mut tar = Command::new("tar");
    tar.args(["--sparse", "--sort=name", "--owner=0", "--group=0", "-I", "zstd -19 --long=27", "-cf"]);
    finish(tar.arg(&archive).arg("-C").arg(&place).args(["branch/state", "dr/state"]))?;
    println!("{}: {} bytes", archive.display(), std::fs::metadata(&archive)?.len());
    Ok(())
}
