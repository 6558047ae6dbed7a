//! `vbrctl vm`: what can be replicated.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use serde_json::json;
use vbr_api::{DiskFormat, Power, PowerRequest, Vm};

use super::Yes;
use crate::client::encode;
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::View;
use crate::show;
use crate::table::Table;

/// What can be replicated
#[derive(Subcommand, Debug)]
pub enum Command {
    /// List the VMs and lone disks of the hosts
    #[command(after_help = "Example:\n  vbrctl vm list --host local -o wide")]
    List {
        /// Only this host
        #[arg(long, value_name = "HOST")]
        host: Option<String>,
    },
    /// Shut a VM down so that its disks can still be replicated, start it again, or switch it off
    ///
    /// For VMs of a host with the driver `qemu`. A VM that was shut down so stands still until it is switched on or off.
    #[command(
        after_help = "Example:\n  vbrctl vm power lab/web shut-down\n  vbrctl --site branch vm power lab/web on"
    )]
    Power {
        /// HOST/VM
        vm: String,
        /// What is to become of it
        #[arg(value_enum)]
        power: PowerWord,
        /// How long a guest may take to shut down
        #[arg(long, value_name = "TIME", default_value = "5m", value_parser = human::parse_span)]
        within: Duration,
        #[command(flatten)]
        yes: Yes,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PowerWord {
    ShutDown,
    On,
    Off,
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let host = match self {
            Self::List { host } => host,
            Self::Power { vm, power, within, yes } => return switch(context, vm, power, within, yes).await,
        };
        let path = match host {
            Some(host) => format!("/v1/vms?host={}", encode(&host)),
            None => "/v1/vms".into(),
        };
        let empty = "nothing found; next: vbrctl host add NAME --directory PATH, or a job with --disk PATH";
        show::list(context, &path, false, empty, &table).await
    }
}

async fn switch(
    context: &Context,
    vm: String,
    power: PowerWord,
    within: Duration,
    yes: Yes,
) -> Result<Exit, Failure> {
    let (power, word) = match power {
        PowerWord::ShutDown => (Power::ShutDown, "shut down"),
        PowerWord::On => (Power::On, "switched on"),
        PowerWord::Off => (Power::Off, "switched off"),
    };
    if power != Power::On {
        context.confirm(&format!("Have {vm} {word}"), yes.yes).await?;
    }
    let within_ms = u64::try_from(within.as_millis()).ok();
    let request = PowerRequest { vm, power, within_ms };
    let document = context.client.post_json_patiently("/v1/vms/power", &request).await?;
    context.output.done(&document, &format!("{} {word}", request.vm), json!({}))?;
    Ok(Exit::Done)
}

fn table(vms: &[Vm], view: &View) -> String {
    let mut table = Table::new(view, &["VM", ">DISKS", ">VIRTUAL", "FORMAT", "JOBS", "+PATHS"]);
    for vm in vms {
        let formats: Vec<&str> = vm.formats.iter().copied().map(DiskFormat::as_str).collect();
        let paths: Vec<&str> = vm.disks.iter().map(|disk| disk.path.as_str()).collect();
        table.row(vec![
            format!("{}/{}", vm.host, vm.name).into(),
            vm.disks.len().to_string().into(),
            vm.virtual_bytes.map(human::size).unwrap_or_default().into(),
            formats.join(" ").into(),
            vm.jobs.join(" ").into(),
            paths.join(" ").into(),
        ]);
    }
    table.finish()
}
