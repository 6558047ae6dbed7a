//! A shaped link by hand: two namespaces joined until standard input ends, steered by lines on it.
//!
//! `vbr-link --mbit 20 --rtt-ms 80 --loss 0.01` prints the two namespaces' names; use them with
//! `ip netns exec NAME …` or `nsenter --net=/run/netns/NAME …`. Needs root.
//! Lines: `up`, `blackhole`, `reset`, `shape MBIT RTT_MS LOSS`, `port PORT`, `counters`, `quit`.

use std::io::BufRead;

use anyhow::{Context, Result};
use clap::Parser;
use vbr_tests::link::{End, Link, LinkConfig, Mode};

#[derive(Parser)]
struct Options {
    /// Line rate, Mbit/s, each way.
    #[arg(long, default_value_t = 20.0)]
    mbit: f64,
    /// Round trip in milliseconds.
    #[arg(long, default_value_t = 80)]
    rtt_ms: u64,
    /// Fraction of packets lost from source to target.
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    /// Bytes of an IP packet.
    #[arg(long, default_value_t = 1500)]
    mtu: u16,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let config =
        LinkConfig { mtu: options.mtu, ..LinkConfig::shaped(options.mbit, options.rtt_ms, options.loss) };
    let link = Link::up(config)?;
    for end in [End::Source, End::Target] {
        println!("{:?} {} {}", end, link.namespace(end).name(), end.address());
    }
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["up"] => link.set_mode(Mode::Up),
            ["blackhole"] => link.set_mode(Mode::BlackHole),
            ["reset"] => link.set_mode(Mode::Reset),
            ["shape", mbit, rtt, loss] => match shape(mbit, rtt, loss) {
                Ok(config) => link.reshape(config),
                Err(error) => eprintln!("{error:#}"),
            },
            ["port", port] => match port.parse() {
                Ok(port) => println!("{:?}", link.counters().port(port)),
                Err(error) => eprintln!("{port}: {error}"),
            },
            ["counters"] => println!("{}", link.counters().describe()),
            ["quit"] => break,
            [] => {}
            _ => eprintln!("unknown: {line}"),
        }
    }
    Ok(())
}

fn shape(mbit: &str, rtt: &str, loss: &str) -> Result<LinkConfig> {
    let number = |text: &str| text.parse::<f64>().with_context(|| format!("{text} is no number"));
    Ok(LinkConfig::shaped(number(mbit)?, number(rtt)? as u64, number(loss)?))
}
