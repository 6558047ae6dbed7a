//! A hundred jobs started at once: all of them finish, equal ones get equal shares of the line, and memory stays flat.
//!
//! Slots let some of them run at a time. So a job's throughput is its disk over the time from its slot to its end, as
//! its log and its session say, and it is compared with those of the jobs that ran at the same time: for half of the
//! shorter one's time at least. The slowest and the fastest of all are told beside.

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

    /// They ran at the same time.
    fn beside(&self, other: &Ran) -> bool {
        let together = self.until.min(other.until) - self.from.max(other.from);
        2 * together >= (self.until - self.from).min(other.until - other.from)
    }
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
    let rates: Vec<f64> = ran.iter().map(Ran::rate).collect();
    let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let most = rates.iter().copied().fold(0.0, f64::max);
    let spread = spread(ran);
    Figure::promised(
        &format!(
            "a hundred equal jobs at once, 20 Mbit/s, {when}: fastest against slowest that ran together"
        ),
        &format!("<= {SPREAD_MAX} times"),
        format!("{spread:.2} times (all: {least:.0} to {most:.0} kB/s, median {:.0})", median(&rates)),
        rates,
        spread <= SPREAD_MAX,
    )
}

/// The most that a job was faster than one beside it.
fn spread(ran: &[Ran]) -> f64 {
    let pairs = ran.iter().flat_map(|one| ran.iter().map(move |other| (one, other)));
    pairs
        .filter(|(one, other)| one.beside(other))
        .map(|(one, other)| one.rate() / other.rate())
        .fold(1.0, f64::max)
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
    fn those_that_ran_together_are_compared() {
        let ran = |from, until| Ran { from, until, bytes: 1000 };
        assert_eq!(spread(&[ran(0, 40), ran(40, 50)]), 1.0, "one after the other");
        assert_eq!(spread(&[ran(0, 40), ran(36, 46)]), 1.0, "for less than half of its time");
        assert_eq!(spread(&[ran(0, 40), ran(10, 40), ran(15, 35)]), 2.0);
    }
}
