//! `vbrctl failover`: starting replicas here, trying them, giving them back, keeping them.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use vbr_api::{
    BootTest, Failover, FailoverRequest, Firmware, NetworkMap, PlannedRequest, ReplicaState, StartedVm,
    TestRequest,
};

use super::Yes;
use crate::client::{Document, Patience, encode};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::View;
use crate::show::{self, Watch};
use crate::table::{Cell, Facts, Table, Tone};

const PATH: &str = "/v1/failovers";

/// Start replicas at this site, try them, give them back to replication, or keep them
#[derive(Subcommand, Debug)]
pub enum Command {
    /// List replicas and what runs of them
    #[command(after_help = "Example:\n  vbrctl failover list")]
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// Show one replica, and the VM that was started from it
    #[command(after_help = "Example:\n  vbrctl failover show branch/web")]
    Show {
        /// REPLICA, or SITE/REPLICA where several sites have one of that name
        replica: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Start the VM from a restore point; from then on nothing replicates into the replica
    ///
    /// What the VM writes is kept apart from the restore point: `failover undo` throws it away, `failover commit` keeps it.
    /// A VM that was switched off is started again, as it was.
    #[command(
        after_help = "Example:\n  vbrctl failover start web@latest --network br0\n  vbrctl failover start web@20261122t190501z-3fa2 --network lan=br0 --network dmz=br1 --memory 8GiB"
    )]
    Start {
        /// [SITE/]REPLICA@ID or @latest
        point: String,
        #[command(flatten)]
        vm: VmOptions,
    },
    /// Try a restore point: start it away from everybody, look, and throw away what it wrote
    ///
    /// Replication goes on meanwhile. The restore point carries the result.
    #[command(
        after_help = "Example:\n  vbrctl failover test web@latest --expect 'login:'\n  vbrctl failover test web@latest --within 2m --keep\n\nExit status 1 when the test fails."
    )]
    Test(TestArgs),
    /// Move the VM here in order, so that nothing is lost
    ///
    /// Its job is run, its guest shut down, the job run once more, and the VM started here. The source must have granted
    /// `manage` to this site, and the job must name a VM.
    #[command(after_help = "Example:\n  vbrctl failover planned branch/web --network br0")]
    Planned {
        /// REPLICA or SITE/REPLICA
        replica: String,
        #[command(flatten)]
        vm: VmOptions,
        /// How long the guest may take to shut down
        #[arg(long, value_name = "TIME", default_value = "5m", value_parser = human::parse_span)]
        shutdown_within: Duration,
    },
    /// End a failover or a test: what the VM wrote here is thrown away, and the replica takes sessions again
    #[command(after_help = "Example:\n  vbrctl failover undo web --yes")]
    Undo {
        /// REPLICA or SITE/REPLICA
        replica: String,
        #[command(flatten)]
        yes: Yes,
    },
    /// The VM stays here for good, and becomes independent of the restore points while it runs
    #[command(after_help = "Example:\n  vbrctl failover commit web --yes")]
    Commit {
        /// REPLICA or SITE/REPLICA
        replica: String,
        #[command(flatten)]
        yes: Yes,
    },
}

/// What is different here; the rest is as the restore point says.
#[derive(Args, Debug, Default)]
pub struct VmOptions {
    /// Bridge of this machine for the VM's network cards, or FROM=BRIDGE for those of one network at the source; `isolated`
    /// for none. May be given several times, the first that fits
    #[arg(long = "network", value_name = "[FROM=]BRIDGE", value_parser = parse_network)]
    networks: Vec<NetworkMap>,
    #[command(flatten)]
    hardware: Hardware,
}

#[derive(Args, Debug, Default)]
pub struct Hardware {
    /// Processors
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Memory, such as 4GiB
    #[arg(long, value_name = "SIZE", value_parser = human::parse_size)]
    memory: Option<u64>,
    /// What starts its operating system
    #[arg(long, value_enum)]
    firmware: Option<FirmwareOption>,
    /// How its disks are attached
    #[arg(long, value_enum)]
    bus: Option<Bus>,
}

#[derive(Args, Debug)]
pub struct TestArgs {
    /// [SITE/]REPLICA@ID or @latest
    point: String,
    /// Text that the guest must say on its serial console; without any probe, the VM must run for 10 s
    #[arg(long, value_name = "TEXT")]
    expect: Option<String>,
    /// Its guest agent (qemu-guest-agent) must answer
    #[arg(long)]
    agent: bool,
    /// How long it may take, from the start on [default: 5m with a probe, else 10s]
    #[arg(long, value_name = "TIME", value_parser = human::parse_span)]
    within: Option<Duration>,
    /// Leave it running; `failover undo` ends it
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    hardware: Hardware,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FirmwareOption {
    Bios,
    Uefi,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bus {
    Virtio,
    Scsi,
    Sata,
    Ide,
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::List { watch } => {
                let empty = "no replicas here yet; they appear when a paired site runs a job";
                show::list(context, PATH, watch.watch, empty, &table).await
            }
            Self::Show { replica, watch } => {
                let path = format!("{PATH}/one?replica={}", encode(&replica));
                show::one(context, &path, watch.watch, &facts).await
            }
            Self::Start { point, vm } => start(context, point, vm).await,
            Self::Planned { replica, vm, shutdown_within } => {
                let start = vm.request(replica);
                let shutdown_ms = u64::try_from(shutdown_within.as_millis()).ok();
                let request = PlannedRequest { start, shutdown_ms };
                let document =
                    context.client.post_json_patiently(&format!("{PATH}/planned"), &request).await?;
                done(context, &document, runs)?;
                Ok(Exit::Done)
            }
            Self::Test(arguments) => arguments.run(context).await,
            Self::Undo { replica, yes } => {
                let question = format!("Throw away what the VM of {replica} wrote here");
                context.confirm(&question, yes.yes).await?;
                let line = format!("failover of {replica} undone; the replica takes sessions again");
                order(context, "undo", &replica, &line).await
            }
            Self::Commit { replica, yes } => {
                let question = format!(
                    "Keep the VM of {replica} here for good (nothing will replicate into it any more)"
                );
                context.confirm(&question, yes.yes).await?;
                let line = format!("failover of {replica} committed");
                order(context, "commit", &replica, &line).await
            }
        }
    }
}

async fn start(context: &Context, point: String, vm: VmOptions) -> Result<Exit, Failure> {
    let request = vm.request(point);
    let document = context.client.post_json_patiently(&format!("{PATH}/start"), &request).await?;
    done(context, &document, runs)?;
    Ok(Exit::Done)
}

fn runs(failover: &Failover) -> String {
    let vm = failover.vm.clone().unwrap_or_default();
    let point = failover.point.clone().unwrap_or_default();
    format!(
        "{}/{} runs from {point}, started in {}",
        failover.site,
        failover.replica,
        human::span(vm.start_ms)
    )
}

impl VmOptions {
    pub(super) fn request(self, point: String) -> FailoverRequest {
        self.hardware.request(point, self.networks)
    }
}

async fn order(context: &Context, word: &str, replica: &str, line: &str) -> Result<Exit, Failure> {
    let path = format!("{PATH}/{word}?replica={}", encode(replica));
    let document = context.client.post(&path, Patience::Long).await?;
    done(context, &document, |_| line.to_owned())?;
    Ok(Exit::Done)
}

/// The line, and on stderr what an operator should know.
pub(super) fn done(
    context: &Context,
    document: &Document,
    line: impl Fn(&Failover) -> String,
) -> Result<(), Failure> {
    let failover: Failover = document.one()?;
    context.output.done(document, &line(&failover), json!({}))?;
    for warning in &failover.warnings {
        context.output.note(&format!("warning: {warning}"));
    }
    Ok(())
}

impl Hardware {
    fn request(self, point: String, networks: Vec<NetworkMap>) -> FailoverRequest {
        let firmware = self.firmware.map(|firmware| match firmware {
            FirmwareOption::Bios => Firmware::Bios,
            FirmwareOption::Uefi => Firmware::Uefi,
        });
        let bus = self.bus.map(|bus| match bus {
            Bus::Virtio => "virtio",
            Bus::Scsi => "scsi",
            Bus::Sata => "sata",
            Bus::Ide => "ide",
        });
        let (cpus, memory_bytes) = (self.cpus, self.memory);
        FailoverRequest { point, cpus, memory_bytes, firmware, bus: bus.map(Into::into), networks }
    }
}

impl TestArgs {
    async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let Self { point, expect, agent, within, keep, hardware } = self;
        let start = hardware.request(point, Vec::new());
        let within_ms = within.map(|within| u64::try_from(within.as_millis()).unwrap_or(u64::MAX));
        let request = TestRequest { start, expect, agent, within_ms, keep };
        let document = context.client.post_json_patiently(&format!("{PATH}/test"), &request).await?;
        let text = context.output.one_text(&document, &tested)?;
        context.output.emit(&text)?;
        let ok = document.one::<BootTest>()?.ok;
        Ok(if ok { Exit::Done } else { Exit::Failed })
    }
}

fn tested(test: &BootTest, _: &View) -> String {
    let mut facts = Facts::new();
    facts
        .add("Restore point", test.point.as_str())
        .add("Result", if test.ok { "good" } else { "FAILED" })
        .add("Because", human::clean(&test.why))
        .add("Started in", human::span(test.start_ms))
        .add("In all", human::span(test.duration_ms))
        .add_some("Screen", test.screenshot.clone());
    let mut text = facts.finish();
    let said: Vec<&str> = test.console.lines().rev().take(10).collect();
    if !said.is_empty() {
        text.push_str("\nThe end of its serial console:\n");
        for line in said.into_iter().rev() {
            text.push_str(&format!("  {}\n", human::clean(line)));
        }
    }
    text
}

fn table(replicas: &[Failover], view: &View) -> String {
    let mut table = Table::new(view, &["SITE", "REPLICA", "STATE", "POINT", "VM", ">WRITTEN", "SINCE"]);
    for failover in replicas {
        let vm = failover.vm.as_ref();
        table.row(vec![
            failover.site.as_str().into(),
            failover.replica.as_str().into(),
            state(failover.state),
            failover.point.clone().unwrap_or_default().into(),
            vm.map(|vm| vm.run_state.clone()).unwrap_or_default().into(),
            vm.map(|vm| human::size_short(vm.written_bytes)).unwrap_or_default().into(),
            failover.started_at.map(|at| human::age(at, view.now)).unwrap_or_default().into(),
        ]);
    }
    table.finish()
}

fn state(state: ReplicaState) -> Cell {
    let tone = match state {
        ReplicaState::Failover
        | ReplicaState::TestFailover
        | ReplicaState::Permanent
        | ReplicaState::FailingBack
        | ReplicaState::Failback => Tone::Watch,
        _ => Tone::Plain,
    };
    Cell::toned(state.as_str(), tone)
}

fn facts(failover: &Failover, view: &View) -> String {
    let mut facts = Facts::new();
    facts
        .add("Replica", format!("{}/{}", failover.site, failover.replica))
        .add("State", failover.state.as_str())
        .add_some("Restore point", failover.point.clone())
        .add_some(
            "Started",
            failover.started_at.map(|at| format!("{}, {}", human::moment(at), human::age(at, view.now))),
        );
    if let Some(back) = &failover.failback {
        let stands = match (&back.point, failover.state) {
            (Some(point), ReplicaState::Failback) => format!("it runs at {} from {point}", failover.site),
            (Some(point), _) => format!("it was ordered to be started at {} from {point}", failover.site),
            (None, _) => format!("job {} carries it to {}", back.job, failover.site),
        };
        facts
            .add("Failback", format!("{stands}, {}", human::age(back.since, view.now)))
            .add("Its VM there", back.vm.as_str());
    }
    if let Some(vm) = &failover.vm {
        vm_facts(&mut facts, vm);
    }
    facts.finish()
}

fn vm_facts(facts: &mut Facts, vm: &StartedVm) {
    let progress = vm.flatten.map(|flatten| {
        let percent = human::percent(flatten.done_bytes, flatten.total_bytes);
        format!(
            "{percent} of {} copied; the restore point stays until then",
            human::size(flatten.total_bytes)
        )
    });
    facts
        .add("VM", format!("{}, {}", vm.name, vm.run_state))
        .add("Processors", vm.cpus.to_string())
        .add("Memory", human::size(vm.memory_bytes))
        .add("Written since", human::size(vm.written_bytes))
        .add("Screen", format!("{}/vnc (VNC over a unix socket)", vm.directory))
        .add("Serial console", format!("{}/console.log", vm.directory))
        .add_some("Commit", progress);
}

fn parse_network(text: &str) -> Result<NetworkMap, String> {
    let (from, to) = match text.rsplit_once('=') {
        Some((from, to)) => (Some(from), to),
        None => (None, text),
    };
    if to.is_empty() || from.is_some_and(str::is_empty) {
        return Err("write BRIDGE, isolated, or FROM=BRIDGE".into());
    }
    Ok(NetworkMap { from: from.map(Into::into), to: to.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_named_alone_or_for_one_of_the_source() {
        assert_eq!(parse_network("br0"), Ok(NetworkMap { from: None, to: "br0".into() }));
        assert_eq!(parse_network("lan=br0"), Ok(NetworkMap { from: Some("lan".into()), to: "br0".into() }));
        assert!(
            parse_network("=br0").is_err() && parse_network("lan=").is_err() && parse_network("").is_err()
        );
    }
}
