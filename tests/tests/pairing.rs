//! Who may talk to whom: codes that are wrong, used or expired, strangers, and revocation.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vbr_api::{List, Peer, Replica, Status};
use vbr_tests::disk::{self, MIB};
use vbr_tests::link::{End, LinkConfig};
use vbr_tests::process::skip_unless;
use vbr_tests::site::{Site, SiteConfig};
use vbr_tests::world::{World, WorldSpec};

/// The same code with another secret: the secret is its end.
fn wrong(code: &str, change: u8) -> String {
    let (rest, last) = code.split_at(code.len() - 1);
    let letters = b"abcdefghijklmnopqrstuvwxyz234567";
    let at = letters.iter().position(|letter| [*letter] == last.as_bytes()).unwrap_or(0);
    format!("{rest}{}", letters[(at + usize::from(change)) % 32] as char)
}

fn peers(site: &Site) -> Result<Vec<Peer>> {
    Ok(site.json::<List<Peer>>(&["peer", "list"])?.items)
}

fn refused(site: &Site, code: &str) -> Result<()> {
    let output = site.ctl(&["peer", "join", code])?;
    ensure!(!output.status.success(), "a bad code was taken: {code}");
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!said.trim().is_empty() && !said.contains("panicked"), "no reason was given: {said}");
    Ok(())
}

#[test]
fn codes_are_single_use_and_wrong_ones_are_refused() -> Result<()> {
    let world = World::start(&WorldSpec::default())?;
    for nonsense in ["x", "this-is-no-code", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"] {
        refused(&world.source, nonsense)?;
    }
    let code = world.target.ok(&["peer", "invite"])?;
    ensure!(code.lines().count() == 1 && !code.contains(' '), "the code does not stand alone: {code:?}");
    refused(&world.source, &wrong(&code, 1))?;
    ensure!(peers(&world.source)?.is_empty() && peers(&world.target)?.is_empty(), "a wrong code paired");
    world.source.ok(&["peer", "join", &code])?;
    world.wait_connected(Duration::from_secs(30))?;
    let names: Vec<String> = peers(&world.target)?.into_iter().map(|peer| peer.name).collect();
    ensure!(names == ["branch"], "{names:?}");
    // Used: nobody else gets in with it.
    let other = stranger(&world, "late")?;
    refused(&other, &code)?;
    ensure!(peers(&world.target)?.len() == 1, "a used code paired again");
    Ok(())
}

#[test]
fn five_wrong_tries_end_an_invitation() -> Result<()> {
    let world = World::start(&WorldSpec::default())?;
    let code = world.target.ok(&["peer", "invite"])?;
    for change in 1..=5 {
        refused(&world.source, &wrong(&code, change))?;
    }
    refused(&world.source, &code)?;
    ensure!(peers(&world.target)?.is_empty(), "paired after five wrong tries");
    // A new invitation works.
    world.pair()
}

#[test]
fn expired_codes_are_refused() -> Result<()> {
    let world = World::start(&WorldSpec::default())?;
    let code = world.target.ok(&["peer", "invite", "--for", "2s"])?;
    std::thread::sleep(Duration::from_millis(2500));
    refused(&world.source, &code)?;
    ensure!(peers(&world.target)?.is_empty(), "paired with an expired code");
    Ok(())
}

/// Another site in the source's namespace.
fn stranger(world: &World, name: &str) -> Result<Site> {
    let home = world.path(name);
    let (namespace, address, port) = match world.link() {
        Ok(link) => (Some(link.namespace(End::Source).name().to_owned()), End::Source.address(), 7399),
        Err(_) => (None, "127.0.0.1", 27_399),
    };
    let site = Site::new(SiteConfig {
        name: name.into(),
        state: home.join("state"),
        home,
        namespace,
        listen: format!("/ip4/{address}/tcp/{port}"),
        toml: "[cache]\nsize = \"256MiB\"\nreserve = \"0\"\n".into(),
    })?;
    site.start()?;
    Ok(site)
}

#[test]
fn an_unpaired_peer_reaches_nothing() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    // A stranger that knows everything about the target but was never paired: it has the branch's
    // peer list and domain key, and a key of its own.
    let other = stranger(&world, "stranger")?;
    other.stop()?;
    for file in ["peers.json", "domains.json"] {
        std::fs::copy(world.source.state().join(file), other.state().join(file))?;
    }
    other.start()?;
    let image = world.path("disk.img");
    disk::mixed(&image, 4 * MIB, 1)?;
    let path = image.to_string_lossy().into_owned();
    other.ok(&["job", "create", "evil", "--disk", &path, "--target", "dr"])?;
    other.ctl_within(&["job", "run", "evil"], Duration::from_secs(10))?;
    std::thread::sleep(Duration::from_secs(4));
    let status: Status = other.json(&["status"])?;
    ensure!(status.peers.iter().all(|peer| !peer.connected), "the target counts a stranger as connected");
    let replicas: List<Replica> = world.target.json(&["replica", "list"])?;
    ensure!(replicas.items.is_empty(), "a stranger made a replica: {replicas:?}");
    ensure!(peers(&world.target)?.len() == 1, "the target paired with a stranger");
    // And the paired branch works all the while.
    world.job("web", &image)?;
    world.run("web")?;
    world.prove_latest("web", &[&image])
}

#[test]
fn revoking_cuts_a_running_session() -> Result<()> {
    let world =
        World::paired(&WorldSpec { link: LinkConfig::shaped(20.0, 20, 0.0), ..WorldSpec::default() })?;
    if skip_unless(world.has_link(), "revoke", "a slow link needs root") {
        return Ok(());
    }
    let image = world.path("disk.img");
    disk::random(&image, 40 * MIB, 2)?;
    world.job("web", &image)?;
    let before = world.link()?.counters().port(world.port());
    world.run_in_background("web")?;
    world.link()?.wait_sent(world.port(), before.up_sent, 2 * MIB, Duration::from_secs(60))?;
    let target = peers(&world.target)?;
    world.target.ok(&["peer", "revoke", &target[0].name, "--yes"])?;
    let revoked = Instant::now();
    std::thread::sleep(Duration::from_secs(2));
    let quiet = world.link()?.counters().port(world.port());
    std::thread::sleep(Duration::from_secs(3));
    let later = world.link()?.counters().port(world.port());
    let bytes = later.up_sent - quiet.up_sent;
    ensure!(bytes < 100_000, "{bytes} bytes were sent {:?} after the revocation", revoked.elapsed());
    ensure!(world.points("web").map(|points| points.is_empty()).unwrap_or(true), "sealed after a revocation");
    ensure!(
        peers(&world.source)?.iter().all(|peer| !peer.connected),
        "the source counts itself as connected"
    );
    Ok(())
}
