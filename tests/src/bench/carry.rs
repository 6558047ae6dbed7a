//! Measuring one tool, whatever it is: bytes by the link's counters, time by the clock, CPU and memory
//! of both ends by the meter.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::meter::{Meter, Usage};
use super::record::{Line, Run, Step, command, machine};
use super::tools::Tool;
use crate::process::finish;
use crate::report::mib;

/// The last acknowledgements are still under way when a command ends.
const DRAIN: Duration = Duration::from_millis(300);

/// A tool and the meter at its link.
pub struct Bench {
    /// What carries.
    pub tool: Box<dyn Tool>,
    meter: Meter,
}

impl Bench {
    /// Starts the meter.
    pub fn new(tool: Box<dyn Tool>) -> Result<Self> {
        let meter = Meter::start(tool.link()?)?;
        Ok(Self { tool, meter })
    }

    /// Carries one image and says what it took.
    pub fn step(&mut self, image: &Path) -> Result<Step> {
        let name = image.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        self.tool.prepare(image)?;
        let before = Moment::of(self)?;
        let started = Instant::now();
        let session = self.tool.carry(image).with_context(|| format!("carrying {name}"))?;
        let seconds = started.elapsed().as_secs_f64();
        std::thread::sleep(DRAIN);
        let after = Moment::of(self)?;
        self.tool.check(image).with_context(|| format!("{name} arrived as something else"))?;
        let step = Step {
            image: name,
            up: after.up - before.up,
            down: after.down - before.down,
            packets: after.packets - before.packets,
            seconds,
            source_cpu: after.usage[0].cpu - before.usage[0].cpu,
            target_cpu: after.usage[1].cpu - before.usage[1].cpu,
            data: 0,
            session,
        };
        eprintln!(
            "   {:>8}: {} MiB out, {} MiB back, {:.1} s, CPU {:.1} s and {:.1} s",
            step.image,
            mib(step.up),
            mib(step.down),
            step.seconds,
            step.source_cpu,
            step.target_cpu
        );
        Ok(step)
    }

    /// Carries all images in order.
    pub fn steps(&mut self, images: &[PathBuf]) -> Result<Vec<Step>> {
        images.iter().map(|image| self.step(image)).collect()
    }

    /// A record of these steps, with the peaks of memory so far.
    pub fn record(&self, part: &str, tool: &str, line: Line, steps: Vec<Step>) -> Result<Run> {
        let [source, target] = self.meter.read();
        Ok(Run {
            part: part.to_owned(),
            tool: tool.to_owned(),
            version: self.tool.version(),
            setting: self.tool.setting(),
            command: command(part, tool, line),
            line,
            congestion: self.congestion()?,
            steps,
            source_rss: source.rss,
            target_rss: target.rss,
            machine: machine(),
        })
    }

    fn congestion(&self) -> Result<String> {
        let mut command = self.tool.link()?.namespace(crate::link::End::Source).command("cat");
        let said = finish(command.arg("/proc/sys/net/ipv4/tcp_congestion_control"))?;
        Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
    }
}

/// Everything that is counted, at one moment.
struct Moment {
    up: u64,
    down: u64,
    packets: u64,
    usage: [Usage; 2],
}

impl Moment {
    fn of(bench: &Bench) -> Result<Self> {
        let counters = bench.tool.link()?.counters();
        let port = counters.port(bench.tool.port());
        Ok(Self {
            up: port.up_sent,
            down: port.down_sent,
            packets: counters.packet_bytes(),
            usage: bench.meter.read(),
        })
    }
}
