//! The whole story on one machine: two sites, 20 Mbit/s and 80 ms between them, three runs, one proof.
//!
//! `make demo`. Makes disk images with a real ext4 file system out of this machine's own files, so it
//! needs nothing from the network. As root the sites live in two network namespaces joined by a
//! shaped link whose counters check what the product says of itself; otherwise they share loopback
//! and the product's own rate limit stands for the line.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use vbr_api::{Session, SessionState};
use vbr_tests::counter::{Count, Counter};
use vbr_tests::disk::{self, MIB};
use vbr_tests::link::LinkConfig;
use vbr_tests::process::{exists, is_root};
use vbr_tests::report::{Table, mib};
use vbr_tests::world::{World, WorldSpec};

const FROM: [&str; 4] = ["/usr/bin", "/usr/sbin", "/usr/lib", "/usr/share"];
const LINE_MBIT: f64 = 20.0;
const ROUND_TRIP_MS: u64 = 80;

/// Replicates a disk, its next generation and a second machine's disk over a slow line.
#[derive(Parser)]
struct Options {
    /// MiB of operating-system files in the images.
    #[arg(long, default_value_t = 300)]
    size: u64,
    /// Give the second machine a file system of its own layout instead of the common template's.
    #[arg(long)]
    own_layout: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    for (program, package) in [("mkfs.ext4", "e2fsprogs"), ("qemu-img", "qemu-utils")] {
        ensure!(exists(program), "{program} is missing: install the package {package}");
    }
    let started = Instant::now();
    let spec = WorldSpec {
        link: LinkConfig::shaped(LINE_MBIT, ROUND_TRIP_MS, 0.0),
        loopback_rate: Some(format!("{LINE_MBIT}Mbit")),
        ..WorldSpec::default()
    };
    step(&started, "starting two sites, `branch` and `dr`");
    let world = World::start(&spec)?;
    match is_root() {
        true => {
            say(&format!("two network namespaces, {LINE_MBIT} Mbit/s and {ROUND_TRIP_MS} ms between them"))
        }
        false => say(&format!("not root: both on loopback, limited to {LINE_MBIT} Mbit/s by configuration")),
    }
    step(&started, "pairing them with a single-use code");
    world.pair()?;
    step(&started, "making disk images out of this machine's files");
    let images = Images::make(&world, &options)?;

    let mut runs = Vec::new();
    world.job("web", &images.web)?;
    runs.push(replicate(&world, &started, "web", "first run of `web`")?);
    disk::copy(&images.web_v2, &images.web)?;
    runs.push(replicate(&world, &started, "web", "`web` a day later: files added, changed, deleted")?);
    world.job("db", &images.db)?;
    runs.push(replicate(&world, &started, "db", "first run of `db`, another machine with the same system")?);

    step(&started, "counting what plain methods would have sent");
    let mut counter = Counter::default();
    let counts = [
        counter.count(&images.web_v1, None)?,
        counter.count(&images.web_v2, Some(&images.web_v1))?,
        counter.count(&images.db, None)?,
    ];
    step(&started, "exporting the last restore points and comparing them byte for byte");
    world.prove("web@latest", &[images.web_v2.as_path()])?;
    world.prove("db@latest", &[images.db.as_path()])?;
    say("web@latest and db@latest verify and are identical to their sources");
    println!("\n{}", summary(&runs, &counts));
    println!(
        "MiB. saved: of the disk's non-zero data. line: TCP payload counted outside the product, both ways."
    );
    println!("done in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

struct Images {
    web: PathBuf,
    web_v1: PathBuf,
    web_v2: PathBuf,
    db: PathBuf,
}

impl Images {
    fn make(world: &World, options: &Options) -> Result<Self> {
        let path = |name: &str| world.path(name);
        let system = path("system");
        let taken = disk::tree(&system, &FROM, 0, options.size * MIB)?;
        let len = (taken * 3 / 2 + 256 * MIB).next_multiple_of(64 * MIB);
        let template = path("template.img");
        disk::ext4(&template, len, &system, 1)?;
        say(&format!("operating system: {} MiB of files on a disk of {} MiB", mib(taken), mib(len)));
        let images = Self {
            web: path("web.img"),
            web_v1: path("web-v1.img"),
            web_v2: path("web-v2.img"),
            db: path("db.img"),
        };
        disk::copy(&template, &images.web_v1)?;
        disk::copy(&template, &images.web)?;
        // A day: some packages' worth of new files, some old ones gone, a log that grew.
        let day = path("day");
        disk::tree(&day, &FROM, taken, 40 * MIB)?;
        write_log(&day.join("var/log/access.log"), 8 * MIB)?;
        let deleted = some_files(&system, 120)?;
        disk::copy(&template, &images.web_v2)?;
        disk::ext4_edit(&images.web_v2, &day, &deleted)?;
        // The second machine: the same system with files of its own.
        let own = path("own");
        disk::tree(&own, &FROM, taken + 40 * MIB, 60 * MIB)?;
        if options.own_layout {
            disk::tree(&own, &FROM, 0, taken)?;
            disk::ext4(&images.db, len + 128 * MIB, &own, 2)?;
        } else {
            disk::copy(&template, &images.db)?;
            disk::ext4_edit(&images.db, &own, &some_files(&system, 40)?)?;
        }
        for directory in [&system, &day, &own] {
            std::fs::remove_dir_all(directory)?;
        }
        Ok(images)
    }
}

/// Every n-th file, as the image names it.
fn some_files(tree: &Path, count: usize) -> Result<Vec<String>> {
    let mut files = Vec::new();
    let mut stack = vec![tree.to_path_buf()];
    while let Some(directory) = stack.pop() {
        for entry in directory.read_dir()?.flatten() {
            match entry.file_type()?.is_dir() {
                true => stack.push(entry.path()),
                false => {
                    files.push(Path::new("/").join(entry.path().strip_prefix(tree)?).display().to_string())
                }
            }
        }
    }
    files.sort_unstable();
    let every = (files.len() / count).max(1);
    Ok(files.into_iter().step_by(every).collect())
}

fn write_log(path: &Path, len: u64) -> Result<()> {
    std::fs::create_dir_all(path.parent().context("a log has a directory")?)?;
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    let mut random = disk::Seeded::new(42);
    let mut written = 0;
    while written < len {
        let line = format!(
            "10.{}.{}.{} - - \"GET /item/{} HTTP/1.1\" 200 {}\n",
            random.below(255),
            random.below(255),
            random.below(255),
            random.below(100_000),
            random.below(65_536)
        );
        written += line.len() as u64;
        file.write_all(line.as_bytes())?;
    }
    file.flush()?;
    Ok(())
}

struct Run {
    what: String,
    session: Session,
    seconds: f64,
    line_bytes: Option<u64>,
}

fn replicate(world: &World, started: &Instant, job: &str, what: &str) -> Result<Run> {
    step(started, what);
    let crossed = || world.link().ok().map(|link| link.counters().port(world.port()));
    let before = crossed();
    let begun = Instant::now();
    let mut session = world.run_in_background(job)?;
    let terminal = std::io::stdout().is_terminal();
    let mut shown = Instant::now();
    while !session.state.is_over() {
        std::thread::sleep(Duration::from_millis(200));
        session = world.source.json(&["session", "show", &session.session])?;
        if terminal || shown.elapsed() > Duration::from_secs(5) {
            shown = Instant::now();
            progress(&session, terminal);
        }
    }
    progress(&session, terminal);
    if terminal {
        println!();
    }
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(
        session.state == SessionState::Succeeded,
        "{job} ended as {:?}: {:?}\n{}\n{}",
        session.state,
        session.error,
        world.source.log_tail(30),
        world.target.log_tail(30)
    );
    let line_bytes =
        before.zip(crossed()).map(|(old, new)| new.up_sent + new.down_sent - old.up_sent - old.down_sent);
    Ok(Run { what: format!("{job} {}", session.mode), session, seconds, line_bytes })
}

fn progress(session: &Session, terminal: bool) {
    let processed: u64 = session.disks.iter().map(|disk| disk.processed_bytes).sum();
    let percent = (processed * 100).checked_div(session.bytes.virtual_).unwrap_or(0);
    let line = format!(
        "  {:>3} %  read {} MiB  changed {} MiB  sent {} MiB  {:.1} Mbit/s  {}",
        percent,
        mib(session.bytes.read),
        mib(session.bytes.changed),
        mib(session.bytes.sent_wire),
        session.rate_wire_bps as f64 / 1e6,
        session.state.as_str()
    );
    match terminal {
        true => print!("\r{line:<90}"),
        false => println!("{line}"),
    }
    // A closed standard output ends the demo soon enough.
    let _ = std::io::stdout().flush();
}

fn summary(runs: &[Run], counts: &[Count]) -> Table {
    let headings = [
        "run",
        "virtual",
        "read",
        "changed",
        "sent",
        "line",
        "saved",
        "time",
        "zstd of all",
        "zstd of changed",
    ];
    let mut table = Table::new(&headings);
    for (run, count) in runs.iter().zip(counts) {
        let bytes = &run.session.bytes;
        let saved = 100.0 * (1.0 - bytes.sent_wire as f64 / count.data_bytes.max(1) as f64);
        table.row(&[
            run.what.clone(),
            mib(bytes.virtual_),
            mib(bytes.read),
            mib(bytes.changed),
            mib(bytes.sent_wire),
            run.line_bytes.map_or("-".into(), mib),
            format!("{saved:.1} %"),
            format!("{:.1} s", run.seconds),
            mib(count.zstd_all_bytes),
            mib(count.zstd_changed_bytes),
        ]);
    }
    table
}

fn step(started: &Instant, what: &str) {
    println!("[{:>3.0} s] {what}", started.elapsed().as_secs_f64());
}

fn say(what: &str) {
    println!("        {what}");
}
