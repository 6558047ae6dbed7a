//! Throttling: how near what crosses the line is to a rule's rate, over any second and any 10 s, and how long a change
//! takes to act.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vbr_api::Peer;

use super::{Effort, Figure};
use crate::disk;
use crate::link::LinkConfig;
use crate::rate::Samples;
use crate::world::{World, WorldSpec};

const LINE_MBIT: f64 = 100.0;
const RTT_MS: u64 = 40;
/// Rates of the rule in Mbit/s, and loss of the line.
const CASES: [(f64, f64); 4] = [(2.0, 0.0), (8.0, 0.0), (50.0, 0.0), (8.0, 0.01)];
/// Seconds before and in which a rate is looked at.
const WARM_UP: f64 = 3.0;
const SECONDS: f64 = 24.0;
/// Windows in seconds, and how far their rate may be off.
const WINDOWS: [(f64, f64); 2] = [(1.0, 5.0), (10.0, 3.0)];
/// From, to, in Mbit/s.
const CHANGES: [(f64, f64); 3] = [(8.0, 2.0), (2.0, 8.0), (8.0, 50.0)];
const CHANGE_SECONDS_MAX: f64 = 1.0;

/// A session of incompressible data, a rule for all peers.
pub fn throttle(effort: &Effort) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (mbit, loss) in CASES {
        figures.extend(steady(effort, mbit, loss)?);
    }
    for (from, to) in CHANGES {
        figures.push(change(from, to)?);
    }
    Ok(figures)
}

fn world(loss: f64) -> Result<World> {
    World::paired(&WorldSpec { link: LinkConfig::shaped(LINE_MBIT, RTT_MS, loss), ..WorldSpec::default() })
}

fn set(world: &World, mbit: f64) -> Result<()> {
    world.source.ok(&["throttle", "set", "line", "--rate", &format!("{mbit}Mbit")]).map(drop)
}

/// A session that has something to send for so long, begun.
fn begin(world: &World, megabits: f64, seed: u64) -> Result<()> {
    let image = world.path("noise.img");
    disk::random(&image, (megabits * 1e6 / 8.0) as u64, seed)?;
    world.job("noise", &image)?;
    let before = world.link()?.counters().port(world.port()).up_sent;
    world.run_in_background("noise")?;
    world.link()?.wait_sent(world.port(), before, 200_000, Duration::from_secs(60)).map(drop)
}

fn end(world: &World) -> Result<()> {
    world.source.ok(&["throttle", "clear", "--all"])?;
    world.wait("noise")?;
    world.prove_latest("noise", &[&world.path("noise.img")])
}

fn steady(effort: &Effort, mbit: f64, loss: f64) -> Result<Vec<Figure>> {
    let world = world(loss)?;
    set(&world, mbit)?;
    let time = (SECONDS / effort.divide as f64).max(11.0);
    begin(&world, mbit * (WARM_UP + time + 4.0), 600)?;
    let mut control = Vec::new();
    let (samples, ()) = Samples::during(world.link()?, world.port(), |start| {
        while start.elapsed().as_secs_f64() < WARM_UP + time {
            std::thread::sleep(Duration::from_millis(900));
            let peer: Peer = world.source.json(&["peer", "show", "dr"])?;
            control.push(peer.control_rtt_ms.unwrap_or_default() as f64);
        }
        Ok(())
    })?;
    ensure!(
        !world.last_session("noise")?.context("no session")?.state.is_over(),
        "the session was too short"
    );
    end(&world)?;
    let place = match loss {
        0.0 => format!("rule of {mbit} Mbit/s on a line of {LINE_MBIT} Mbit/s"),
        loss => format!("rule of {mbit} Mbit/s, {} % loss", loss * 100.0),
    };
    let mut figures = Vec::new();
    for (window, limit) in WINDOWS {
        let (least, most) = samples.extremes(window, WARM_UP, WARM_UP + time)?;
        let [least, most] = [least, most].map(|rate| 100.0 * (rate / (mbit * 1e6) - 1.0));
        let worst = least.abs().max(most.abs());
        figures.push(Figure::promised(
            &format!("throttling, {place}: TCP payload sent, any {window} s against the rate"),
            &format!("<= {limit} % off"),
            format!("{least:+.2} % to {most:+.2} %"),
            vec![least, most],
            worst <= limit,
        ));
    }
    let longest = control.iter().copied().fold(0.0, f64::max);
    let value = format!("{:.0} ms, longest {longest:.0}", crate::report::median(&control));
    figures.push(Figure::plain(
        &format!("throttling, {place}: heartbeats beside bulk, median"),
        value,
        control,
    ));
    Ok(figures)
}

fn change(from: f64, to: f64) -> Result<Figure> {
    let world = world(0.0)?;
    set(&world, from)?;
    begin(&world, from * 8.0 + to * 10.0, 700)?;
    let (samples, asked) = Samples::during(world.link()?, world.port(), |start| {
        let wait = |until: f64| {
            let now = start.elapsed().as_secs_f64();
            std::thread::sleep(Duration::from_secs_f64((until - now).max(0.0)));
        };
        wait(WARM_UP);
        let asked = Instant::now().duration_since(start).as_secs_f64();
        set(&world, to)?;
        wait(asked + 7.0);
        Ok(asked)
    })?;
    end(&world)?;
    let settled = samples.settles_at(to * 1e6, 0.05, asked, asked + 6.5);
    let value = settled.map(|at| at - asked);
    Ok(Figure::promised(
        &format!(
            "throttling: from the order to {to} instead of {from} Mbit/s until each second is within 5 %"
        ),
        &format!("<= {CHANGE_SECONDS_MAX} s"),
        value.map_or("not within 5 s".into(), |value| format!("{value:.2} s")),
        value.into_iter().collect(),
        value.is_some_and(|value| value <= CHANGE_SECONDS_MAX),
    ))
}
