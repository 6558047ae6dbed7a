//! Several source sites and one target: a second branch that holds nothing, and thirty at once.
//!
//! All sources share one namespace, each with a port of its own; the target's port counts them all.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vbr_api::{List, Session, SessionState, Status};

use super::meter::Meter;
use super::record::{Line, Run, Step, Told, machine};
use super::tools::{ours, put};
use super::{Effort, Figure};
use crate::disk::{self, MIB};
use crate::link::{End, LinkConfig};
use crate::report::mib;
use crate::site::{Site, SiteConfig};
use crate::workload::{disk_of, images};
use crate::world::{World, WorldSpec};

const PATIENCE: Duration = Duration::from_secs(3600);
const BRANCHES: u64 = 30;
/// Of the second branch: on a faster line vbr may not care for what the target knows of other branches.
const BRANCH_LINE: Line = Line::wan(20.0, 0.0);

/// The last image from a site that holds nothing, after another site has sent all the others.
pub fn second_branch(effort: &Effort) -> Result<Vec<Figure>> {
    let images = images()?;
    let (last, earlier) = images.split_last().context("no images")?;
    let link = LinkConfig { mtu: 1500, ..LinkConfig::fast() };
    let world = World::paired(&WorldSpec { link, cache_size: "12GiB".into(), ..WorldSpec::default() })?;
    let meter = Meter::start(world.link()?)?;
    let mut steps = Vec::new();
    for image in earlier {
        let disk = disk_of(image);
        let place = world.path(&format!("{disk}.img"));
        let new = !place.exists();
        put(image, &place)?;
        if new {
            world.job(&disk, &place)?;
        }
        steps.push(measured(&world, &meter, image, || world.run_within(&disk, PATIENCE))?);
    }
    world.source.stop()?;
    world.link()?.reshape(BRANCH_LINE.config());
    let second = branch(&world, "second", 7301)?;
    let (disk, place) = (disk_of(last), world.path("second.img"));
    put(last, &place)?;
    second.ok(&["job", "create", &disk, "--disk", &place.to_string_lossy(), "--target", "dr"])?;
    let step = measured(&world, &meter, last, || {
        let session = second.json_within(&["job", "run", &disk, "--wait"], PATIENCE)?;
        succeeded(session, &second)
    })?;
    world.prove(&format!("{disk}@latest"), &[last])?;
    let bytes = step.bytes();
    steps.push(step);
    let mut run = record("second-branch", &meter, "job run of desk at a second source", steps)?;
    run.line = BRANCH_LINE;
    run.save(&effort.out)?;
    Ok(vec![Figure::promised(
        "desk-v1 from a second branch that holds nothing",
        "<= 330 MiB",
        format!("{} MiB", mib(bytes)),
        vec![bytes as f64],
        bytes <= 330 * MIB,
    )])
}

/// Thirty sites, each with the same system and data of its own, all at once into one target.
pub fn thirty(effort: &Effort) -> Result<Vec<Figure>> {
    let world = World::start(&WorldSpec { cache_size: "2GiB".into(), ..WorldSpec::default() })?;
    let disks = small_machines(&world.path("machines"), effort.divide)?;
    let mut sites = Vec::new();
    for (number, disk) in disks.iter().enumerate() {
        let name = format!("branch-{number:02}");
        let site = branch(&world, &name, 7301 + number as u16)?;
        site.ok(&["job", "create", &name, "--disk", &disk.to_string_lossy(), "--target", "dr"])?;
        sites.push(site);
    }
    let meter = Meter::start(world.link()?)?;
    let mut data = 0;
    for disk in &disks {
        data += disk::non_zero_bytes(disk)?;
    }
    let mut step = measured(&world, &meter, Path::new("thirty-disks"), || all_at_once(&sites))?;
    step.data = data;
    let target_rss = world.target.peak_rss()?;
    for (site, disk) in sites.iter().zip(&disks) {
        world.prove(&format!("{}@latest", site.name()), &[disk])?;
    }
    let bytes = step.bytes();
    let mut run = record("thirty", &meter, "30 sources, one job run each, all at once", vec![step])?;
    run.target_rss = target_rss;
    run.save(&effort.out)?;
    Ok(vec![
        Figure::promised(
            "thirty sources at once into one target: peak memory of the target",
            "<= 768 MiB",
            format!("{} MiB", mib(target_rss)),
            vec![target_rss as f64],
            target_rss <= 768 * MIB,
        ),
        Figure::plain(
            "thirty sources at once into one target: both ways on the line",
            format!("{} MiB for {} MiB of data", mib(bytes), mib(data)),
            vec![bytes as f64],
        ),
    ])
}

/// Disks of thirty machines: copies of one system, and files of their own.
fn small_machines(dir: &Path, divide: u64) -> Result<Vec<PathBuf>> {
    let (system, template) = (dir.join("system"), dir.join("template.img"));
    disk::tree(&system, &["/usr/bin", "/usr/lib"], 0, 24 * MIB / divide)?;
    disk::ext4(&template, 64 * MIB, &system, 30)?;
    (0..BRANCHES)
        .map(|number| {
            let (own, image) = (dir.join(format!("own-{number}")), dir.join(format!("vm-{number}.img")));
            std::fs::create_dir_all(&own)?;
            let half = 2 * MIB / divide;
            disk::random(&own.join("upload.bin"), half, 900 + number)?;
            let lines = (0..half / 64)
                .map(|line| format!("{line:012} host {number:02} served request {}\n", line * 7919));
            std::fs::write(own.join("service.log"), lines.collect::<String>())?;
            disk::copy(&template, &image)?;
            disk::ext4_edit(&image, &own, &[])?;
            Ok(image)
        })
        .collect()
}

/// Starts every site's job, waits for all. The session of the last site stands for all in the record.
fn all_at_once(sites: &[Site]) -> Result<Session> {
    for site in sites {
        let _: Session = site.json(&["job", "run", &site.name()])?;
    }
    let limit = Instant::now() + PATIENCE;
    let mut last = None;
    for site in sites {
        last = Some(loop {
            let list: List<Session> = site.json(&["session", "list", "--job", &site.name()])?;
            if let Some(session) = list.items.into_iter().find(|session| session.state.is_over()) {
                break succeeded(session, site)?;
            }
            ensure!(Instant::now() < limit, "{} is not over after {PATIENCE:?}", site.name());
            std::thread::sleep(Duration::from_millis(200));
        });
    }
    last.context("no sites")
}

/// Another source in the namespace of the first, paired with the target.
fn branch(world: &World, name: &str, port: u16) -> Result<Site> {
    let home = world.path(name);
    let site = Site::new(SiteConfig {
        name: name.into(),
        state: home.join("state"),
        namespace: Some(world.link()?.namespace(End::Source).name().to_owned()),
        listen: format!("/ip4/{}/tcp/{port}", End::Source.address()),
        home,
        toml: "[cache]\nsize = \"1GiB\"\nreserve = \"0\"\n[source]\nsnapshot_floor = \"0\"\n".into(),
    })?;
    site.start()?;
    let code = world.target.ok(&["peer", "invite"])?;
    site.ok(&["peer", "join", &code])?;
    let limit = Instant::now() + Duration::from_secs(60);
    loop {
        let status: Status = site.json(&["status"])?;
        if status.peers.iter().any(|peer| peer.name == "dr" && peer.connected) {
            return Ok(site);
        }
        if Instant::now() > limit {
            bail!("{name} is not connected\n{}", site.log_tail(20));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn succeeded(session: Session, site: &Site) -> Result<Session> {
    let good = session.state == SessionState::Succeeded;
    ensure!(good, "{} ended as {:?}: {:?}\n{}", session.job, session.state, session.error, site.log_tail(40));
    Ok(session)
}

fn measured(
    world: &World,
    meter: &Meter,
    image: &Path,
    run: impl FnOnce() -> Result<Session>,
) -> Result<Step> {
    let counters = world.link()?.counters();
    let (port, packets, usage) = (counters.port(world.port()), counters.packet_bytes(), meter.read());
    let started = Instant::now();
    let session = run()?;
    let seconds = started.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_millis(300));
    let (now, after) = (counters.port(world.port()), meter.read());
    Ok(Step {
        image: image.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        up: now.up_sent - port.up_sent,
        down: now.down_sent - port.down_sent,
        packets: counters.packet_bytes() - packets,
        seconds,
        source_cpu: after[0].cpu - usage[0].cpu,
        target_cpu: after[1].cpu - usage[1].cpu,
        data: 0,
        session: Some(Told {
            bytes: session.bytes,
            chunks: session.chunks,
            load: session.stage_load_percent,
            bottleneck: session.bottleneck,
        }),
    })
}

fn record(part: &str, meter: &Meter, setting: &str, steps: Vec<Step>) -> Result<Run> {
    let [source, target] = meter.read();
    Ok(Run {
        part: part.into(),
        tool: "vbr keep".into(),
        version: ours::version(),
        setting: setting.into(),
        command: format!("vbr-bench {part}"),
        line: Line::UNSHAPED,
        congestion: String::new(),
        steps,
        source_rss: source.rss,
        target_rss: target.rss,
        machine: machine(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_share_a_system_and_have_data_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let disks = small_machines(dir.path(), 8).unwrap();
        assert_eq!(disks.len() as u64, BRANCHES);
        let mut counter = crate::counter::Counter::default();
        let first = counter.count(&disks[0], None).unwrap();
        let second = counter.count(&disks[1], None).unwrap();
        assert!(
            second.unseen_bytes > 0 && second.unseen_bytes < first.unseen_bytes / 2,
            "{first:?} {second:?}"
        );
    }
}
