//! Sites among each other: a console at headquarters that runs a branch, keys that change, a branch that is rebuilt, its
//! state in a file, and the log of who ordered what.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use vbr_api::{AuditEntry, Job, List, Peer, Replica, Rotation, Session, SessionState, Status, Throttles, Vm};
use vbr_tests::disk::{self, MIB};
use vbr_tests::link::End;
use vbr_tests::site::{Site, SiteConfig};
use vbr_tests::world::{SESSION, World, WorldSpec};

const IMAGE: u64 = 8 * MIB;

fn peers(site: &Site) -> Result<Vec<Peer>> {
    Ok(site.json::<List<Peer>>(&["peer", "list"])?.items)
}

fn peer(site: &Site, name: &str) -> Result<Peer> {
    peers(site)?.into_iter().find(|peer| peer.name == name).with_context(|| format!("no peer {name}"))
}

fn identity(site: &Site) -> Result<String> {
    Ok(site.json::<Status>(&["status"])?.peer_id)
}

fn audit(site: &Site) -> Result<Vec<AuditEntry>> {
    Ok(site.json::<List<AuditEntry>>(&["audit", "log", "--lines", "1000"])?.items)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Waits until a site answers under another identity than this one: it restarts by itself.
fn wait_identity(site: &Site, is_it: impl Fn(&str) -> bool) -> Result<String> {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        if let Ok(now) = identity(site)
            && is_it(&now)
        {
            return Ok(now);
        }
        if Instant::now() > end {
            bail!("site {} kept its identity\n{}", site.name(), site.log_tail(40));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A world with a job `web` that ran once.
fn replicated(seed: u64) -> Result<(World, PathBuf)> {
    let world = World::paired(&WorldSpec::default())?;
    let image = world.path("web.img");
    disk::mixed(&image, IMAGE, seed)?;
    world.job("web", &image)?;
    world.run("web")?;
    Ok((world, image))
}

/// The next run goes on with the replica: one point more, and little crosses.
fn goes_on(world: &World, image: &Path, seed: u64, points: usize) -> Result<()> {
    disk::mutate(image, 3, seed)?;
    let session = world.run("web")?;
    let sent = session.bytes.sent_payload;
    ensure!(sent < IMAGE / 8, "{sent} bytes crossed for three changed blocks: {session:?}");
    ensure!(session.chunks.unchanged > 0, "it did not go on from the last point: {session:?}");
    ensure!(world.points("web")?.len() == points, "{:?}", world.points("web")?);
    world.prove_latest("web", &[image])
}

/// The branch loses everything but its disks.
fn wipe(site: &Site) -> Result<()> {
    site.kill()?;
    std::fs::remove_dir_all(site.state())?;
    std::fs::create_dir_all(site.state())?;
    Ok(())
}

#[test]
fn a_console_at_headquarters_runs_a_branch() -> Result<()> {
    let world = World::paired(&WorldSpec::default())?;
    let (hq, branch) = (&world.target, &world.source);
    let at = |words: &[&str]| -> Vec<String> {
        ["--site", "branch"].iter().chain(words).map(|word| (*word).to_owned()).collect()
    };
    let denied = |words: &[&str]| -> Result<String> {
        let all = at(words);
        hq.fails(&all.iter().map(String::as_str).collect::<Vec<_>>(), 4)
    };

    // Nothing without the grant, and it says what to do.
    let why = denied(&["status"])?;
    ensure!(why.contains("peer grant") && why.contains("--manage"), "{why}");
    denied(&["job", "list"])?;
    hq.fails(&["--site", "nobody", "status"], 5)?;
    let alone: Value = hq.json(&["status", "--all-sites"])?;
    ensure!(alone["items"].as_array().is_some_and(|sites| sites.len() == 1), "{alone}");

    branch.ok(&["peer", "grant", "dr", "--manage"])?;
    let here: Peer = branch.json(&["peer", "show", "dr"])?;
    ensure!(here.grants.iter().any(|grant| grant == "manage"), "{here:?}");
    ensure!(!here.granted.iter().any(|grant| grant == "manage"), "a grant has one direction: {here:?}");
    let there = peer(hq, "branch")?;
    ensure!(there.granted == ["manage"], "{there:?}");
    let status: Status = hq.json(&["--site", "branch", "status"])?;
    ensure!(status.site == "branch" && status.peer_id == identity(branch)?, "{status:?}");

    // Disks that a host lists, and no others.
    let shelf = world.path("shelf");
    std::fs::create_dir_all(&shelf)?;
    let image = shelf.join("web.img");
    disk::mixed(&image, IMAGE, 61)?;
    let path = text(&image);
    let create = ["job", "create", "web", "--disk", &path, "--target", "dr", "--keep", "3"];
    let why = denied(&create)?;
    ensure!(why.contains("host add"), "{why}");
    denied(&["job", "create", "evil", "--disk", "/etc/passwd", "--target", "dr"])?;
    branch.ok(&["host", "add", "lab", "--directory", &text(&shelf)])?;
    let vms: List<Vm> = hq.json(&["--site", "branch", "vm", "list"])?;
    ensure!(vms.items.iter().any(|vm| vm.name == "web"), "{vms:?}");
    let words = at(&create);
    hq.ok(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
    denied(&["job", "edit", "web", "--disk", "/etc/passwd"])?;

    // Long orders, too: the console waits at headquarters while the branch sends.
    let session: Session = hq.json_within(&["--site", "branch", "job", "run", "web", "--wait"], SESSION)?;
    ensure!(session.state == SessionState::Succeeded && session.peer == "dr", "{session:?}");
    world.prove_latest("web", &[&image])?;
    hq.fails(&["--site", "branch", "job", "show", "none"], 5)?;
    hq.ok(&["--site", "branch", "throttle", "set", "office", "--rate", "50Mbit"])?;
    let rules: Throttles = branch.json(&["throttle", "list"])?;
    ensure!(rules.items.len() == 1, "{rules:?}");
    hq.ok(&["--site", "branch", "throttle", "clear", "--all"])?;

    // What stays with consoles at the site, whatever it granted.
    let out = text(&world.path("stolen"));
    for words in [
        &["peer", "grant", "dr", "--quota", "1G"][..],
        &["peer", "invite"],
        &["peer", "revoke", "dr", "--yes"],
        &["peer", "remove", "dr", "--yes"],
        &["peer", "rotate"],
        &["peer", "replace", "a", "--with", "b", "--yes"],
        &["host", "add", "etc", "--directory", "/etc"],
        &["replica", "remove", "x", "--yes"],
        &["restore-point", "remove", "x@latest", "--yes", "--force"],
        &["restore-point", "unpin", "x@latest"],
        &["state", "export", &out],
        &["state", "import", &out, "--yes"],
    ] {
        denied(words)?;
    }
    hq.ok(&["peer", "grant", "branch", "--manage"])?;
    branch.ok(&["--site", "dr", "restore-point", "verify", "web@latest"])?;
    branch.fails(&["--site", "dr", "restore-point", "export", "web@latest", "--disk", "0", &out], 4)?;
    branch.fails(&["--site", "dr", "replica", "remove", "web", "--yes"], 4)?;
    hq.ok(&["peer", "grant", "branch", "--no-manage"])?;
    ensure!(!Path::new(&out).exists(), "a file was written for an order that was refused");

    who_ordered_what(&world)?;
    all_sites(&world)?;
    branch.ok(&["peer", "grant", "dr", "--no-manage"])?;
    denied(&["status"])?;
    ensure!(peer(hq, "branch")?.granted.is_empty(), "{:?}", peer(hq, "branch")?);
    Ok(())
}

/// The logs of both sites, after the console's orders.
fn who_ordered_what(world: &World) -> Result<()> {
    let at_branch = audit(&world.source)?;
    let ordered = |entry: &&AuditEntry| entry.caller.peer.as_deref() == Some("dr");
    let remote: Vec<&AuditEntry> = at_branch.iter().filter(ordered).collect();
    let run = remote.iter().find(|entry| entry.route.as_deref() == Some("/v1/jobs/{name}/run"));
    let run = run.with_context(|| format!("no entry for the run: {remote:?}"))?;
    ensure!(run.path == "/v1/jobs/web/run" && run.outcome == "done" && run.site.is_none(), "{run:?}");
    ensure!(run.caller.peer_id.as_deref() == Some(&identity(&world.target)?), "{run:?}");
    ensure!(run.caller.user.as_deref() == Some("root") || run.caller.user.is_none(), "{run:?}");
    let evil = remote.iter().find(|entry| entry.details.get("name") == Some(&Value::from("evil")));
    ensure!(evil.is_some_and(|entry| entry.outcome == "not_allowed" && entry.status == 403), "{evil:?}");

    // Given here: the process, and nothing of the code.
    let local: Vec<&AuditEntry> = at_branch.iter().filter(|entry| entry.caller.peer.is_none()).collect();
    let join = local.iter().find(|entry| entry.path == "/v1/peers/join").context("no entry for the join")?;
    ensure!(join.caller.uid == Some(rustix::process::getuid().as_raw()), "{join:?}");
    ensure!(join.caller.pid.is_some() && join.details.is_empty(), "{join:?}");
    let grant =
        local.iter().find(|entry| entry.path == "/v1/peers/dr/grant").context("no entry for the grant")?;
    ensure!(grant.details.get("manage") == Some(&Value::from(true)), "{grant:?}");

    // Handed on: the log at headquarters names the site.
    let at_hq = audit(&world.target)?;
    let sent = at_hq.iter().filter(|entry| entry.site.as_deref() == Some("branch"));
    ensure!(
        sent.clone().any(|entry| entry.path == "/v1/jobs/web/run" && entry.outcome == "done"),
        "{at_hq:?}"
    );
    ensure!(sent.clone().any(|entry| entry.outcome == "not_allowed"), "{at_hq:?}");
    // An export is a question by its method, and yet data leaves.
    let is_order =
        |entry: &AuditEntry| entry.method != "GET" || entry.path.starts_with("/v1/restore-points/export");
    ensure!(at_hq.iter().all(is_order), "questions are no orders: {at_hq:?}");

    // Durable, numbered without a gap, over a restart without goodbye.
    world.source.restart()?;
    world.wait_connected(Duration::from_secs(60))?;
    let after = audit(&world.source)?;
    ensure!(after[..at_branch.len()] == at_branch[..], "entries were lost: {after:?}");
    let numbered = after.windows(2).all(|pair| pair[0].sequence + 1 == pair[1].sequence);
    ensure!(numbered, "{after:?}");
    let last: List<AuditEntry> = world.source.json(&["audit", "log", "--lines", "1"])?;
    ensure!(last.items.len() == 1 && last.items.last() == after.last(), "{last:?}");
    let none: List<AuditEntry> = world.source.json(&["audit", "log", "--since", "2100-01-01"])?;
    ensure!(none.items.is_empty(), "{none:?}");
    let table = world.source.ok(&["audit", "log"])?;
    ensure!(table.contains("at dr") && table.contains("not_allowed"), "{table}");
    Ok(())
}

fn all_sites(world: &World) -> Result<()> {
    let both: Value = world.target.json(&["status", "--all-sites"])?;
    let sites = both["items"].as_array().context("no items")?;
    ensure!(both["schema"] == 1 && sites.len() == 2, "{both}");
    ensure!(
        sites[0]["local"] == true && sites[1]["site"] == "branch" && sites[1]["reachable"] == true,
        "{both}"
    );
    ensure!(sites[1]["status"]["site"] == "branch", "{both}");
    world.source.kill()?;
    let table = world.target.ctl(&["status", "--all-sites"])?;
    let said = String::from_utf8_lossy(&table.stdout).into_owned();
    ensure!(table.status.code() == Some(3), "{table:?}");
    ensure!(said.contains("dr (here)") && said.contains("branch") && said.contains("unreachable"), "{said}");
    let json = world.target.ctl(&["status", "--all-sites", "-o", "json"])?;
    let away: Value = serde_json::from_slice(&json.stdout)?;
    ensure!(json.status.code() == Some(3) && away["items"][1]["reachable"] == false, "{away}");
    let why = world.target.fails(&["--site", "branch", "status"], 1)?;
    ensure!(why.contains("peer show branch"), "{why}");
    world.source.start()?;
    world.wait_connected(Duration::from_secs(60))
}

#[test]
fn keys_change_through_crashes() -> Result<()> {
    let (world, image) = replicated(62)?;
    let (branch, dr) = (&world.source, &world.target);
    let old = identity(branch)?;
    let kept = world.path("old-state");
    std::fs::create_dir_all(&kept)?;
    for file in ["key", "peers.json", "domains.json"] {
        std::fs::copy(branch.state().join(file), kept.join(file))?;
    }

    // The peer is away: it waits, and a crash of the branch changes nothing.
    dr.kill()?;
    let output = branch.ctl(&["peer", "rotate", "-o", "json"])?;
    ensure!(output.status.code() == Some(8), "{output:?}");
    let begun: Rotation = serde_json::from_slice(&output.stdout)?;
    let next = begun.next_peer_id.clone().context("no next key")?;
    ensure!(begun.peer_id == old && begun.waiting.len() == 1 && begun.waiting[0].peer == "dr", "{begun:?}");
    branch.restart()?;
    ensure!(identity(branch)? == old, "the key came into use before the peer knew of it");
    let output = branch.ctl(&["peer", "rotate", "-o", "json"])?;
    let again: Rotation = serde_json::from_slice(&output.stdout)?;
    ensure!(again.next_peer_id.as_ref() == Some(&next), "another key after the same order: {again:?}");

    // Given up and begun again: another key, and nothing left of the first.
    branch.ok(&["peer", "rotate", "--cancel"])?;
    let none: Rotation = branch.json(&["peer", "rotate", "--show"])?;
    ensure!(none.next_peer_id.is_none(), "{none:?}");
    let output = branch.ctl(&["peer", "rotate", "-o", "json"])?;
    let anew: Rotation = serde_json::from_slice(&output.stdout)?;
    let next = anew.next_peer_id.filter(|other| *other != next).context("the key that was given up")?;

    // The peer comes back: it is told, vbrd restarts by itself, and the replica goes on.
    dr.start()?;
    ensure!(wait_identity(branch, |now| now != old)? == next, "another key than the one that was told");
    world.wait_connected(Duration::from_secs(60))?;
    ensure!(peer(dr, "branch")?.peer_id == next, "{:?}", peers(dr)?);
    goes_on(&world, &image, 63, 2)?;
    ensure!(peer(dr, "branch")?.used.is_some_and(|used| used.points == 2), "{:?}", peers(dr)?);
    dr.restart()?;
    branch.restart()?;
    world.wait_connected(Duration::from_secs(60))?;
    goes_on(&world, &image, 64, 3)?;

    // Whoever has the old key is a stranger.
    let thief = thief(&world, &kept)?;
    std::thread::sleep(Duration::from_secs(4));
    let status: Status = thief.json(&["status"])?;
    ensure!(status.peer_id == old && status.peers.iter().all(|peer| !peer.connected), "{status:?}");
    thief.kill()?;

    // And the target, which the branch dials by its identity.
    let before = identity(dr)?;
    dr.ok(&["peer", "rotate"])?;
    wait_identity(dr, |now| now != before)?;
    world.wait_connected(Duration::from_secs(60))?;
    goes_on(&world, &image, 65, 4)
}

/// A site with a copy of the branch's state.
fn thief(world: &World, kept: &Path) -> Result<Site> {
    let home = world.path("thief");
    let (namespace, address, port) = match world.link() {
        Ok(link) => (Some(link.namespace(End::Source).name().to_owned()), End::Source.address(), 7398),
        Err(_) => (None, "127.0.0.1", 27_398),
    };
    let site = Site::new(SiteConfig {
        name: "branch".into(),
        state: home.join("state"),
        home,
        namespace,
        listen: format!("/ip4/{address}/tcp/{port}"),
        toml: "[cache]\nsize = \"256MiB\"\nreserve = \"0\"\n".into(),
    })?;
    for file in ["key", "peers.json", "domains.json"] {
        std::fs::copy(kept.join(file), site.state().join(file))?;
    }
    site.start()?;
    Ok(site)
}

#[test]
fn a_rebuilt_branch_takes_over_its_replicas() -> Result<()> {
    let (world, image) = replicated(66)?;
    let (branch, dr) = (&world.source, &world.target);
    dr.ok(&["peer", "grant", "branch", "--quota", "1G"])?;
    let old = identity(branch)?;
    wipe(branch)?;
    branch.start()?;
    ensure!(identity(branch)? != old, "the state was not wiped");
    let code = dr.ok(&["peer", "invite"])?;
    branch.ok(&["peer", "join", &code])?;
    world.wait_connected(Duration::from_secs(30))?;
    ensure!(peers(dr)?.iter().any(|peer| peer.name == "branch-2"), "{:?}", peers(dr)?);

    // It ran before anybody approved: two replicas of one name are never one peer's.
    world.job("web", &image)?;
    world.run("web")?;
    let why = dr.fails(&["peer", "replace", "branch", "--with", "branch-2", "--yes"], 1)?;
    ensure!(why.contains("branch-2/web"), "{why}");
    dr.ok(&["replica", "remove", "branch-2/web", "--yes"])?;
    dr.fails(&["peer", "replace", "branch", "--with", "nobody", "--yes"], 5)?;
    dr.ok(&["peer", "replace", "branch", "--with", "branch-2", "--yes"])?;
    dr.ok(&["peer", "replace", "branch", "--with", "branch-2", "--yes"])?;

    let now = peer(dr, "branch")?;
    ensure!(now.peer_id == identity(branch)? && now.quota.bytes == Some(1 << 30), "{now:?}");
    let left = peer(dr, "branch-replaced")?;
    ensure!(left.peer_id == old && left.grants.is_empty() && left.revoked, "{left:?}");
    ensure!(left.last_error.as_deref().is_some_and(|why| why.contains("branch")), "{left:?}");
    dr.restart()?;
    world.wait_connected(Duration::from_secs(60))?;
    goes_on(&world, &image, 67, 2)?;
    let replicas: List<Replica> = dr.json(&["replica", "list"])?;
    ensure!(replicas.items.len() == 1 && replicas.items[0].site == "branch", "{replicas:?}");
    ensure!(audit(dr)?.iter().any(|entry| entry.path == "/v1/peers/branch/replace"), "{:?}", audit(dr)?);
    Ok(())
}

#[test]
fn a_state_makes_a_new_machine_the_old_site() -> Result<()> {
    let (world, image) = replicated(68)?;
    let (branch, dr) = (&world.source, &world.target);
    branch.ok(&["throttle", "set", "wide", "--rate", "900Mbit"])?;
    branch.ok(&["host", "add", "lab", "--directory", &text(&world.path(""))])?;
    let (file, words) = (world.path("branch.vbrstate"), world.path("words"));
    std::fs::write(&words, "correct horse battery\n")?;
    let (to, from) = (text(&file), text(&words));
    branch.fails(&["state", "export", &to, "--no-input"], 2)?;
    branch.ok(&["state", "export", &to, "--passphrase-file", &from])?;
    branch.fails(&["state", "export", &to, "--passphrase-file", &from], 1)?;
    let sealed = std::fs::read(&file)?;
    let key = std::fs::read(branch.state().join("key"))?;
    ensure!(!sealed.windows(16).any(|window| window == &key[4..20]), "the key lies open in the file");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file)?.permissions());
    ensure!(mode & 0o777 == 0o600, "{mode:o}");

    let old = identity(branch)?;
    let import = ["state", "import", to.as_str(), "--passphrase-file", from.as_str(), "--yes"];
    let why = branch.fails(&import, 1)?;
    ensure!(why.contains("--replace"), "{why}");

    wipe(branch)?;
    branch.start()?;
    let fresh = identity(branch)?;
    ensure!(fresh != old, "the state was not wiped");
    let (other, bad, newer) = (world.path("other"), world.path("bad"), world.path("newer"));
    std::fs::write(&other, "another passphrase\n")?;
    let why = branch.fails(&["state", "import", &to, "--passphrase-file", &text(&other), "--yes"], 4)?;
    ensure!(why.contains("passphrase"), "{why}");
    let mut damaged = sealed.clone();
    damaged[200] ^= 1;
    std::fs::write(&bad, &damaged)?;
    let why = branch.fails(&["state", "import", &text(&bad), "--passphrase-file", &from, "--yes"], 1)?;
    ensure!(why.contains("damaged"), "{why}");
    damaged[8..12].copy_from_slice(&9u32.to_be_bytes());
    std::fs::write(&newer, &damaged)?;
    let why = branch.fails(&["state", "import", &text(&newer), "--passphrase-file", &from, "--yes"], 1)?;
    ensure!(why.contains("update vbr"), "{why}");
    branch.fails(&["state", "import", &text(&image), "--passphrase-file", &from, "--yes"], 2)?;
    ensure!(identity(branch)? == fresh && peers(branch)?.is_empty(), "a refused import changed something");

    branch.ok(&import)?;
    ensure!(
        wait_identity(branch, |now| now != fresh)? == old,
        "another identity than the one that was exported"
    );
    world.wait_connected(Duration::from_secs(60))?;
    let jobs: List<Job> = branch.json(&["job", "list"])?;
    ensure!(jobs.items.len() == 1 && jobs.items[0].spec.name == "web", "{jobs:?}");
    let rules: Throttles = branch.json(&["throttle", "list"])?;
    ensure!(rules.items.len() == 1 && rules.items[0].spec.name == "wide", "{rules:?}");
    branch.ok(&["host", "show", "lab"])?;
    goes_on(&world, &image, 69, 2)?;
    let entries = audit(branch)?;
    let imports = entries.iter().filter(|entry| entry.path == "/v1/state/import");
    let outcomes: Vec<&str> = imports.clone().map(|entry| entry.outcome.as_str()).collect();
    ensure!(outcomes == ["not_allowed", "damaged", "newer", "invalid", "done"], "{outcomes:?}");
    ensure!(
        imports.clone().all(|entry| !entry.details.contains_key("passphrase")),
        "a secret was written down"
    );
    ensure!(peers(dr)?.len() == 1, "{:?}", peers(dr)?);
    Ok(())
}
