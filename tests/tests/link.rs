//! The link itself: rate, delay, loss, outages and counters, checked with ping and iperf3.

use std::time::Duration;

use anyhow::{Result, ensure};
use vbr_tests::link::{End, Link, LinkConfig, Mode};
use vbr_tests::measure::{iperf_mbit, ping_ms};
use vbr_tests::process::{exists, is_root, skip_unless};

fn cannot_run(case: &str) -> bool {
    skip_unless(is_root() && exists("iperf3"), case, "needs root and iperf3")
}

#[test]
fn a_shaped_link_has_its_rate_and_delay() -> Result<()> {
    if cannot_run("link rate") {
        return Ok(());
    }
    let link = Link::up(LinkConfig::shaped(20.0, 80, 0.0))?;
    let rtt = ping_ms(&link)?;
    ensure!((79.5..90.0).contains(&rtt), "round trip {rtt} ms");
    let before = link.counters().port(5201);
    let mbit = iperf_mbit(&link, Duration::from_secs(6), 2)?;
    let moved = link.counters().port(5201).up_delivered - before.up_delivered;
    ensure!((17.0..19.3).contains(&mbit), "{mbit} Mbit/s of 20");
    // iperf3 says what it received in 6 s; the link also saw the 2 s before that it left out.
    let said = mbit * 1e6 / 8.0 * 8.0;
    ensure!((moved as f64) > said * 0.85 && (moved as f64) < said * 1.1, "counted {moved}, iperf3 {said}");
    Ok(())
}

#[test]
fn loss_is_random_and_bbr_bears_it() -> Result<()> {
    if cannot_run("link loss") {
        return Ok(());
    }
    let link = Link::up(LinkConfig::shaped(50.0, 20, 0.02))?;
    // What else the machine does may cost one measurement its rate, not three.
    let mut mbit = 0.0;
    for _ in 0..3 {
        mbit = iperf_mbit(&link, Duration::from_secs(5), 2)?;
        if mbit >= 40.0 {
            break;
        }
    }
    ensure!((40.0..48.5).contains(&mbit), "{mbit} Mbit/s of 50 with 2 % loss");
    let port = link.counters().port(5201);
    let lost = 1.0 - port.up_delivered as f64 / port.up_sent as f64;
    ensure!((0.01..0.10).contains(&lost), "lost {lost}");
    Ok(())
}

#[test]
fn an_unshaped_link_is_fast() -> Result<()> {
    if cannot_run("link speed") {
        return Ok(());
    }
    let link = Link::up(LinkConfig::fast())?;
    let mbit = iperf_mbit(&link, Duration::from_secs(2), 2)?;
    ensure!(mbit > 300.0, "{mbit} Mbit/s");
    Ok(())
}

#[test]
fn outages_stop_packets_and_resets_reach_both_ends() -> Result<()> {
    if cannot_run("link outages") {
        return Ok(());
    }
    let link = Link::up(LinkConfig::shaped(100.0, 10, 0.0))?;
    ensure!(ping_ms(&link)? < 30.0);
    link.set_mode(Mode::BlackHole);
    ensure!(ping_ms(&link).is_err(), "a black hole answered");
    link.set_mode(Mode::Reset);
    let refused = link
        .namespace(End::Source)
        .command("iperf3")
        .args(["-c", End::Target.address(), "-t", "1", "--connect-timeout", "3000"])
        .output()?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("refused"), "{refused:?}");
    link.set_mode(Mode::Up);
    ensure!(ping_ms(&link)? < 30.0);
    Ok(())
}

#[test]
fn namespaces_are_removed() -> Result<()> {
    if cannot_run("link clean-up") {
        return Ok(());
    }
    let link = Link::up(LinkConfig::fast())?;
    let path = link.namespace(End::Source).path();
    ensure!(path.exists());
    drop(link);
    ensure!(!path.exists(), "{} is left", path.display());
    Ok(())
}
