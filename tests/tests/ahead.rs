//! Sending ahead: once a job's chunks proved to be new to the target they go without waiting for its answer,
//! which saves a round trip; what the two sites remember of shared chunks may be lost or damaged at any time.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vbr_api::{CacheStats, Session};
use vbr_tests::disk::{self, MIB};
use vbr_tests::fault::flip_bits;
use vbr_tests::link::{LinkConfig, Mode};
use vbr_tests::process::skip_unless;
use vbr_tests::world::{World, WorldSpec};

const RTT_MS: u64 = 300;

fn far_line() -> Result<World> {
    let link = LinkConfig::shaped(20.0, RTT_MS, 0.0);
    World::paired(&WorldSpec { link, loopback_rate: Some("20Mbit".into()), ..WorldSpec::default() })
}

/// Writes eight chunks of new content, and runs the job: the session, and how long it took.
fn small_run(world: &World, job: &str, image: &Path, seed: u64) -> Result<(Session, Duration)> {
    for n in 0..8 {
        disk::write_random(image, (seed % 5 + 2 * n) * MIB, 65_536, 100 * seed + n)?;
    }
    let session = world.run(job)?;
    let ended = session.ended_at.context("it has no end")?;
    let took = ended.as_millisecond() - session.started_at.as_millisecond();
    Ok((session, Duration::from_millis(took.max(0) as u64)))
}

/// Copies a part of one disk to the same place of another.
fn copy_range(from: &Path, to: &Path, at: u64, len: u64) -> Result<()> {
    let mut part = vec![0; len as usize];
    std::fs::File::open(from)?.read_exact_at(&mut part, at)?;
    let to = std::fs::File::options().write(true).open(to)?;
    to.write_all_at(&part, at)?;
    Ok(to.sync_all()?)
}

/// Waits for the source's copy of the filter, which is fetched after a session.
fn wait_for_filter(world: &World) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while std::fs::read_dir(world.source.state().join("filters")).map_or(0, Iterator::count) == 0 {
        if Instant::now() > end {
            bail!("no filter came\n{}", world.source.log_tail(20));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn restart(world: &World) -> Result<()> {
    world.target.start()?;
    world.source.start()?;
    world.wait_connected(Duration::from_secs(30))
}

fn figures_add_up(session: &Session) -> Result<()> {
    let chunks = &session.chunks;
    let sum = chunks.unchanged + chunks.known + chunks.delta + chunks.literal;
    ensure!(sum == chunks.total && chunks.ahead <= chunks.delta + chunks.literal, "{chunks:?}");
    let (bytes, sent) = (&session.bytes, (chunks.delta + chunks.literal) * 65_536);
    ensure!(bytes.deduplicated + sent + bytes.zero == bytes.changed, "{bytes:?} {chunks:?}");
    Ok(())
}

#[test]
fn what_is_surely_new_goes_ahead_and_saves_a_round_trip() -> Result<()> {
    let world = far_line()?;
    let (first, second) = (world.path("a.img"), world.path("b.img"));
    disk::random(&first, 24 * MIB, 1)?;
    disk::random(&second, 24 * MIB, 2)?;
    copy_range(&first, &second, 20 * MIB, MIB / 4)?; // One chunk in a hundred is not new.
    world.job("a", &first)?;
    world.job("b", &second)?;
    // Without a filter nothing is predicted and nothing goes ahead.
    ensure!(world.run("a")?.chunks.ahead == 0, "ahead without a filter");
    wait_for_filter(&world)?;
    let (mut asked, mut ahead) = (Duration::MAX, Duration::MAX);
    for seed in 1..4 {
        let (session, took) = small_run(&world, "a", &first, seed)?;
        ensure!(session.chunks.ahead == 0, "ahead after {} predictions", 8 * (seed - 1));
        asked = asked.min(took);
    }
    // The second job's first run is mostly new, which opens its gate.
    let cold = world.run("b")?;
    figures_add_up(&cold)?;
    ensure!(cold.chunks.known == 4, "what the first job had sent is known: {:?}", cold.chunks);
    for seed in 11..14 {
        let (session, took) = small_run(&world, "b", &second, seed)?;
        ensure!(session.chunks.ahead == 8 && session.chunks.literal == 8, "{:?}", session.chunks);
        figures_add_up(&session)?;
        ahead = ahead.min(took);
    }
    println!("8 new chunks at 20 Mbit/s and {RTT_MS} ms: {asked:?} asked, {ahead:?} ahead");
    if world.has_link() {
        let saved = asked.saturating_sub(ahead).as_millis() as u64;
        ensure!(saved >= RTT_MS / 2, "{asked:?} asked, {ahead:?} ahead: no round trip was saved");
    }
    // What goes ahead although the target has it (the first job's content) is dropped or ignored.
    copy_range(&first, &second, 8 * MIB, 2 * MIB)?;
    let session = world.run("b")?;
    figures_add_up(&session)?;
    println!("content of the other job: {:?}", session.chunks);
    world.prove_latest("a", &[&first])?;
    world.prove_latest("b", &[&second])?;
    // An unchanged run asks for nothing.
    let same = world.run("b")?;
    ensure!(same.bytes.sent_wire + same.bytes.received_wire < 4096, "{:?}", same.bytes);
    Ok(())
}

/// A line that is reset while chunks go ahead: what was settled before its NEED is offered again.
#[test]
fn a_cut_while_chunks_go_ahead() -> Result<()> {
    let world = far_line()?;
    if skip_unless(world.has_link(), "a cut", "a link with outages needs root") {
        return Ok(());
    }
    let (first, image) = (world.path("a.img"), world.path("b.img"));
    disk::random(&first, MIB, 1)?;
    disk::random(&image, 24 * MIB, 2)?;
    world.job("a", &first)?;
    world.job("b", &image)?;
    world.run("a")?;
    wait_for_filter(&world)?;
    world.run("b")?;
    for (number, after) in [20_000, 60_000, 150_000, 400_000, 1_000_000].into_iter().enumerate() {
        for n in 0..32 {
            disk::write_random(&image, n * 11 * 65_536, 65_536, 1000 * (number as u64 + 1) + n)?;
        }
        let before = world.link()?.counters().port(world.port()).up_sent;
        world.run_in_background("b")?;
        world.link()?.wait_sent(world.port(), before, after, Duration::from_secs(60))?;
        world.link()?.cut(Mode::Reset, Duration::from_millis(300));
        let session = world.wait("b")?;
        ensure!(session.chunks.ahead > 0, "nothing went ahead: {:?}", session.chunks);
    }
    world.prove_latest("b", &[&image])
}

#[test]
fn lost_and_damaged_filters_change_nothing_but_bytes() -> Result<()> {
    let world = far_line()?;
    let image = world.path("a.img");
    disk::random(&image, 24 * MIB, 1)?;
    world.job("a", &image)?;
    world.run("a")?;
    wait_for_filter(&world)?;
    let (filters, shared) = (world.source.state().join("filters"), world.target.state().join("shared"));

    world.source.stop()?;
    world.target.stop()?;
    ensure!(flip_bits(&filters, 20, 1, |_| true)? > 0, "the source keeps no filter");
    ensure!(flip_bits(&shared, 20, 2, |_| true)? > 0, "the target keeps no set");
    restart(&world)?;
    small_run(&world, "a", &image, 1)?;
    world.prove_latest("a", &[&image])?;

    // The copy at the source is now of a set that is no more.
    world.source.stop()?;
    world.target.stop()?;
    std::fs::remove_dir_all(&shared)?;
    restart(&world)?;
    disk::write_random(&image, 0, 20 * MIB, 9)?;
    let session = world.run("a")?;
    figures_add_up(&session)?;
    let (session, _) = small_run(&world, "a", &image, 2)?;
    figures_add_up(&session)?;
    world.prove_latest("a", &[&image])?;

    world.source.stop()?;
    std::fs::remove_dir_all(&filters)?;
    world.source.start()?;
    world.wait_connected(Duration::from_secs(30))?;
    small_run(&world, "a", &image, 3)?;
    world.prove_latest("a", &[&image])?;
    let stats: CacheStats = world.target.json(&["cache", "stats"])?;
    ensure!(
        stats.shared_chunks == 0 && stats.shared_filter_bytes > 0,
        "one branch shares nothing: {stats:?}"
    );
    Ok(())
}
