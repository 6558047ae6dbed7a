//! A hundred jobs started at once: all of them finish, equal ones get equal shares of the line, and memory stays flat.
//!
//! Slots let some of them run at a time, and towards the end of a round fewer do: whoever runs then has more of the line, and
//! should. So what a job sent is divided by its equal share of the line's time: of each moment from its slot to its end, as its log and
//! its session say, the part that falls to it among those that run. With equal shares that is the same for all of them. Bytes over
//! the time alone, which neighbours that have ended make larger, are told beside.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vbr_api::{JobLogEntry, List, Session};

use super::{Effort, Figure};
use crate::disk::{self, MIB};
use crate::link::LinkConfig;
use crate::report::{median, mib};
use crate::site::Site;
use crate::world::{World, WorldSpec};

const JOBS: u64 = 100;
const ROUNDS: usize = 3;
const SPREAD_MAX: f64 = 2.0;
/// The last round's peak memory against that of the first.
const GROWTH_MAX: f64 = 1.1;
const PATIENCE: Duration = Duration::from_secs(1800);
/// As many as a site runs at once.
const SIXTEEN: &str = "[resources]\nhost_slots = 16\nlink_slots = 16\ndatastore_slots = 16\n";

/// Three rounds with the slots that a site has, each with new content, and one with sixteen.
pub fn hundred(effort: &Effort) -> Result<Vec<Figure>> {
    let mut figures = rounds(effort)?;
    let world = world(SIXTEEN)?;
    let jobs = jobs(&world)?;
    figures.push(shares("16 at a time", &round(&world, &jobs, 4, effort)?));
    Ok(figures)
}

fn rounds(effort: &Effort) -> Result<Vec<Figure>> {
    let world = world("")?;
    let jobs = jobs(&world)?;
    let (mut figures, mut source, mut target) = (Vec::new(), Vec::new(), Vec::new());
    for number in 1..=ROUNDS {
        world.source.reset_peak_rss()?;
        world.target.reset_peak_rss()?;
        let ran = round(&world, &jobs, number as u64, effort)?;
        figures.push(shares(&format!("4 at a time, round {number}"), &ran));
        source.push(world.source.peak_rss()? as f64);
        target.push(world.target.peak_rss()? as f64);
    }
    for (job, image) in &jobs {
        world.prove(&format!("{job}@latest"), &[image.as_path()])?;
    }
    figures.push(growth("source", source));
    figures.push(growth("target", target));
    Ok(figures)
}

fn world(slots: &str) -> Result<World> {
    let (source_toml, target_toml) = (slots.to_owned(), slots.to_owned());
    let link = LinkConfig::shaped(20.0, 80, 0.0);
    World::paired(&WorldSpec { link, source_toml, target_toml, ..WorldSpec::default() })
}

/// Definitions over disks that are still empty.
fn jobs(world: &World) -> Result<Vec<(String, PathBuf)>> {
    (0..JOBS)
        .map(|number| {
            let name = format!("vm{number:03}");
            let image = world.path(&format!("{name}.img"));
            disk::set_len(&image, 4 * MIB)?;
            world.job(&name, &image)?;
            Ok((name, image))
        })
        .collect()
}

/// A job's time at work, in milliseconds of the site's clock.
struct Ran {
    from: i64,
    until: i64,
    bytes: u64,
}

impl Ran {
    /// Kilobytes a second.
    fn rate(&self) -> f64 {
        self.bytes as f64 / (self.until - self.from).max(1) as f64
    }
}

/// What each job sent in a second of the line that was its own, had all that ran shared each moment equally: kilobytes.
fn shared_rates(ran: &[Ran]) -> Vec<f64> {
    let mut moments: Vec<i64> = ran.iter().flat_map(|job| [job.from, job.until]).collect();
    moments.sort_unstable();
    let mut shares = vec![0.0; ran.len()];
    for moment in moments.windows(2) {
        let runs = |job: &Ran| job.from <= moment[0] && moment[1] <= job.until;
        let running = ran.iter().filter(|job| runs(job)).count().max(1);
        let share = (moment[1] - moment[0]) as f64 / running as f64;
        ran.iter().zip(&mut shares).filter(|(job, _)| runs(job)).for_each(|(_, sum)| *sum += share);
    }
    ran.iter().zip(shares).map(|(job, share)| job.bytes as f64 / share.max(1.0)).collect()
}

/// Starts a job without the console, which takes longer to start than a job to begin.
fn order(site: &Site, job: &str) -> Result<()> {
    let mut socket = UnixStream::connect(site.socket())?;
    let head = "Host: vbrd\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 2";
    write!(socket, "POST /v1/jobs/{job}/run HTTP/1.1\r\n{head}\r\n\r\n{{}}")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "job {job} was not started: {answer}");
    Ok(())
}

/// New content on every disk, all jobs at once, all to their ends.
fn round(world: &World, jobs: &[(String, PathBuf)], number: u64, effort: &Effort) -> Result<Vec<Ran>> {
    let bytes = 4 * MIB / effort.divide;
    for (at, (_, image)) in jobs.iter().enumerate() {
        disk::write_random(image, 0, bytes, number * 1000 + at as u64)?;
    }
    for (job, _) in jobs {
        order(&world.source, job)?;
    }
    let end = Instant::now() + PATIENCE;
    while !world.source.json::<List<Session>>(&["session", "list", "--active"])?.items.is_empty() {
        ensure!(Instant::now() < end, "the jobs are not over after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
    jobs.iter().map(|(job, _)| ran(&world.source, &world.wait(job)?, bytes)).collect()
}

fn ran(source: &Site, session: &Session, bytes: u64) -> Result<Ran> {
    let words = ["job", "log", &session.job, "--session", &session.session];
    let log: List<JobLogEntry> = source.json(&words)?;
    let started = log.items.iter().find(|entry| entry.event == "started");
    let from = started.with_context(|| format!("the log of {} names no start", session.job))?.at;
    let until = session.ended_at.context("it has no end")?;
    Ok(Ran { from: from.as_millisecond(), until: until.as_millisecond(), bytes })
}

fn shares(when: &str, ran: &[Ran]) -> Figure {
    let shared = shared_rates(ran);
    let (least, most) = ends(&shared);
    let spread = most / least;
    let rates: Vec<f64> = ran.iter().map(Ran::rate).collect();
    let (slowest, fastest) = ends(&rates);
    Figure::promised(
        &format!(
            "a hundred equal jobs at once, 20 Mbit/s, {when}: what each got of an equal share, most against least"
        ),
        &format!("<= {SPREAD_MAX} times"),
        format!(
            "{spread:.2} times (over their time alone {:.2}: {slowest:.0} to {fastest:.0} kB/s, median {:.0})",
            fastest / slowest,
            median(&rates)
        ),
        shared,
        spread <= SPREAD_MAX,
    )
}

fn ends(rates: &[f64]) -> (f64, f64) {
    rates.iter().fold((f64::INFINITY, 0.0), |(least, most), rate| (rate.min(least), rate.max(most)))
}

fn growth(side: &str, peaks: Vec<f64>) -> Figure {
    let grown = peaks[peaks.len() - 1] / peaks[0].max(1.0);
    let all: Vec<String> = peaks.iter().map(|peak| mib(*peak as u64)).collect();
    Figure::promised(
        &format!("a hundred jobs at once, memory of the {side}: peak of the third round against the first"),
        &format!("<= {:.0} %", GROWTH_MAX * 100.0),
        format!("{:.1} % ({} MiB)", grown * 100.0, all.join(", ")),
        peaks,
        grown <= GROWTH_MAX,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_those_that_run() {
        let ran = |from, until| Ran { from, until, bytes: 12_000 };
        let rates =
            |ran: &[Ran]| shared_rates(ran).iter().map(|rate| rate.round() as u64).collect::<Vec<_>>();
        assert_eq!(rates(&[ran(0, 40), ran(40, 80)]), [300, 300], "one after the other");
        assert_eq!(rates(&[ran(0, 40), ran(0, 40)]), [600, 600], "side by side");
        // The second has the line alone for its last 20: quicker, and no more than its share.
        assert_eq!(rates(&[ran(0, 60), ran(20, 80)]), [300, 300]);
        // It ended in half of its neighbour's time: it had more than its share, and the other had the rest alone.
        assert_eq!(rates(&[ran(0, 40), ran(0, 80)]), [600, 200]);
    }
}
