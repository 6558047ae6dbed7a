//! Measuring a link with other people's tools: what ours is compared with.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::link::{End, Link};
use crate::process::finish;

/// Round trip of one ping, in milliseconds; an error when nothing comes back within a second.
pub fn ping_ms(link: &Link) -> Result<f64> {
    let mut ping = link.namespace(End::Source).command("ping");
    let output = finish(ping.args(["-n", "-c", "3", "-i", "0.1", "-W", "1", End::Target.address()]))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let summary = said.lines().find(|line| line.starts_with("rtt")).context("ping gave no summary")?;
    let average = summary.split('/').nth(4).context("ping's summary has another shape")?;
    Ok(average.parse()?)
}

/// Goodput of one TCP stream with BBR from source to target, in Mbit/s, as the receiver saw it. The
/// first `omitted` seconds (slow start) do not count.
pub fn iperf_mbit(link: &Link, time: Duration, omitted: u64) -> Result<f64> {
    let mut server = link
        .namespace(End::Target)
        .command("iperf3")
        .args(["-s", "-1", "-p", "5201"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting iperf3 (package iperf3)")?;
    std::thread::sleep(Duration::from_millis(300));
    let seconds = time.as_secs().max(1).to_string();
    let mut client = link.namespace(End::Source).command("iperf3");
    client.args(["-c", End::Target.address(), "-p", "5201", "-C", "bbr", "-J", "-t", &seconds]);
    if omitted > 0 {
        client.args(["-O", &omitted.to_string()]);
    }
    let result = finish(&mut client);
    // The server ends by itself after one test; after a failure it does not.
    if result.is_err() {
        let _ = server.kill();
    }
    server.wait()?;
    let report: Value = serde_json::from_slice(&result?.stdout)?;
    if let Some(error) = report.get("error") {
        bail!("iperf3: {error}");
    }
    let bits = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    Ok(bits.ok_or_else(|| anyhow!("iperf3's report has another shape"))? / 1e6)
}
