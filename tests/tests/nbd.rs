//! Disks behind NBD servers, by real ones: with TLS and without, read-only and not, there and gone.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vbr_api::{ErrorBody, List, Session, SessionState, Vm};
use vbr_tests::disk::{self, MIB};
use vbr_tests::nbdkit::{Nbdkit, make_certificates};
use vbr_tests::world::{World, WorldSpec, free_port};

/// Nothing here needs a link, and servers are reached at loopback.
fn world() -> Result<World> {
    World::paired(&WorldSpec { loopback: true, ..WorldSpec::default() })
}

/// A directory of images for a server.
fn images(world: &World) -> Result<PathBuf> {
    let images = world.path("images");
    std::fs::create_dir_all(&images)?;
    Ok(images)
}

fn read_only_tcp(port: u16, more: &[&str]) -> Vec<String> {
    let mut at = vec!["--readonly".to_owned(), "--ipaddr=127.0.0.1".into(), format!("--port={port}")];
    at.extend(more.iter().map(|word| (*word).to_owned()));
    at
}

/// Runs a job that has to fail.
fn refused(world: &World, job: &str) -> Result<ErrorBody> {
    let run = world.source.ctl(&["job", "run", job, "--wait"])?;
    ensure!(run.status.code() == Some(1), "{job}: {run:?}");
    let session = world.last_session(job)?.context("no session")?;
    session.error.with_context(|| format!("{job} failed without a word"))
}

#[test]
fn exports_over_tls_and_whom_it_refuses() -> Result<()> {
    let (world, port) = (world()?, free_port()?);
    let (images, tls, foreign) = (images(&world)?, world.path("tls"), world.path("foreign"));
    make_certificates(&tls)?;
    make_certificates(&foreign)?;
    let web = images.join("web");
    disk::mixed(&web, 48 * MIB, 11)?;
    // A length that is no multiple of a sector.
    disk::set_len(&images.join("odd"), 3 * MIB + 77)?;
    disk::write_random(&images.join("odd"), 3 * MIB, 77, 12)?;
    let certificates = format!("--tls-certificates={}", tls.join("server").display());
    let at = read_only_tcp(port, &["--tls=require", "--tls-verify-peer", &certificates]);
    let mut server = Nbdkit::start(&images, &at)?;
    let uri = format!("nbds://127.0.0.1:{port}");
    let client = tls.join("client").display().to_string();
    world.source.ok(&["host", "add", "store", "--driver", "nbd", "--uri", &uri, "--tls-dir", &client])?;
    let vms: List<Vm> = world.source.json(&["vm", "list", "--host", "store"])?;
    let shown: Vec<_> = vms.items.iter().map(|vm| (vm.name.as_str(), vm.virtual_bytes)).collect();
    ensure!(shown == [("odd", Some(3 * MIB + 77)), ("web", Some(48 * MIB))], "{shown:?}");

    for job in ["web", "odd"] {
        let vm = format!("store/{job}");
        world.source.ok(&["job", "create", job, "--vm", &vm, "--target", "dr"])?;
        let full = world.run(job)?;
        ensure!(full.transport_mode == "network" && full.disks[0].snapshot == "export", "{full:?}");
        ensure!(full.consistent == Some(true) && full.warnings.is_empty(), "{full:?}");
        world.prove_latest(job, &[&images.join(job)])?;
    }
    // Another moment behind the same export: all is read, what is new is sent.
    server.kill()?;
    disk::write_random(&web, 7 * MIB, MIB, 13)?;
    server.again()?;
    let next = world.run("web")?;
    let why = next.full_read_reason.clone().unwrap_or_default();
    ensure!(!next.tracked && why.contains("no record") && next.bytes.changed == MIB, "{next:?}");
    world.prove_latest("web", &[&web])?;

    // Whom it refuses, each with a word of its own.
    let stranger = foreign.join("client").display().to_string();
    let plain_port = free_port()?;
    let _plain = Nbdkit::start(&world_dir(&images, "plain")?, &read_only_tcp(plain_port, &[]))?;
    let nobody = free_port()?;
    let cases: [(&str, String, Option<&str>, &str); 5] = [
        ("ca", format!("x={uri}/web"), Some(&stranger), "certificate"),
        ("plain", format!("x=nbds://127.0.0.1:{plain_port}/web"), Some(&client), "starttls"),
        ("bare", format!("x=nbd://127.0.0.1:{port}/web"), None, "TLS"),
        ("missing", format!("x={uri}/none"), Some(&client), "not available"),
        ("nobody", format!("x=nbds://127.0.0.1:{nobody}/web"), Some(&client), "refused"),
    ];
    for (name, uri, tls, word) in &cases {
        let mut order = vec!["host", "add", name, "--driver", "nbd", "--uri", uri];
        order.extend(tls.iter().flat_map(|dir| ["--tls-dir", dir]));
        world.source.ok(&order)?;
        let vm = format!("{name}/x");
        world.source.ok(&["job", "create", name, "--vm", &vm, "--target", "dr"])?;
        let error = refused(&world, name)?;
        ensure!(error.code == "nbd_server" && error.retry, "{name}: {error:?}");
        ensure!(error.why.contains(word) && !error.next_step.is_empty(), "{name}: {error:?}");
        println!("{name}: {} | {}", error.why, error.next_step);
    }
    Ok(())
}

/// A directory beside, with one small image.
fn world_dir(images: &Path, name: &str) -> Result<PathBuf> {
    let directory = images.with_file_name(name);
    std::fs::create_dir_all(&directory)?;
    disk::random(&directory.join("web"), MIB, 3)?;
    Ok(directory)
}

#[test]
fn exports_that_may_be_written_are_told_as_that() -> Result<()> {
    let world = world()?;
    let images = images(&world)?;
    let disks = [images.join("one"), images.join("two")];
    disk::mixed(&disks[0], 16 * MIB, 21)?;
    disk::mixed(&disks[1], 24 * MIB, 22)?;
    let socket = world.path("nbd.sock");
    let at = [format!("--unix={}", socket.display())];
    let _server = Nbdkit::start(&images, &at)?;
    let uri = |export: &str| format!("shop=nbd+unix:///{export}?socket={}", socket.display());
    world.source.ok(&[
        "host",
        "add",
        "gate",
        "--driver",
        "nbd",
        "--uri",
        &uri("one"),
        "--uri",
        &uri("two"),
    ])?;
    world.source.ok(&["job", "create", "shop", "--vm", "gate/shop", "--target", "dr"])?;
    world.source.ctl(&["job", "run", "shop", "--wait"])?;
    let session = world.last_session("shop")?.context("no session")?;
    ensure!(session.state == SessionState::Warning && session.consistent == Some(false), "{session:?}");
    ensure!(session.disks.len() == 2 && session.disks.iter().all(|disk| disk.snapshot == "live"));
    ensure!(session.warnings.len() == 2 && session.warnings[0].contains("read-only"), "{session:?}");
    // Nobody wrote, so it is what is there.
    world.prove("shop@latest", &[&disks[0], &disks[1]])
}

/// Waits until a session has sent something.
fn begun(world: &World, session: &str) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let seen: Session = world.source.json(&["session", "show", session])?;
        if seen.bytes.changed > 0 {
            return Ok(());
        }
        ensure!(Instant::now() < end, "it does not begin: {seen:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_lost_server_ends_the_moment_and_nothing_of_it_is_sealed() -> Result<()> {
    let world = world()?;
    let images = images(&world)?;
    let web = images.join("web");
    disk::random(&web, 12 * MIB, 31)?;
    let socket = world.path("nbd.sock");
    let at = ["--readonly".to_owned(), format!("--unix={}", socket.display())];
    let mut server = Nbdkit::start(&images, &at)?;
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    world.source.ok(&["host", "add", "store", "--driver", "nbd", "--uri", &uri])?;
    // Slow enough to be cut in the middle.
    let order = ["job", "create", "web", "--vm", "store/web", "--target", "dr", "--rate", "8Mbit"];
    world.source.ok(&order)?;
    let first = world.run_in_background("web")?;
    begun(&world, &first.session)?;
    server.kill()?;
    disk::write_random(&web, 0, 4 * MIB, 32)?;
    server.again()?;
    // It is back at once, with other content: the session must not take it for the same.
    let lost = world.wait_over_within("web", Duration::from_secs(60))?;
    let error = lost.error.context("no error")?;
    ensure!(lost.state == SessionState::Failed && error.code == "source_lost" && error.retry, "{error:?}");
    ensure!(world.points("web").map_or(0, |points| points.len()) == 0, "something was sealed");

    // vbrd is killed in the middle, and the server shows another moment when it is back: begun anew.
    let second = world.run_in_background("web")?;
    begun(&world, &second.session)?;
    world.source.kill()?;
    server.kill()?;
    disk::write_random(&web, 8 * MIB, 2 * MIB, 33)?;
    server.again()?;
    world.source.start()?;
    let sealed = world.wait("web")?;
    ensure!(sealed.session == second.session, "{sealed:?}");
    world.prove_latest("web", &[&web])
}
