//! `vbrctl vm`: what can be replicated.

use clap::Subcommand;
use vbr_api::{DiskFormat, Vm};

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
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let Self::List { host } = self;
        let path = match host {
            Some(host) => format!("/v1/vms?host={}", encode(&host)),
            None => "/v1/vms".into(),
        };
        let empty = "nothing found; next: vbrctl host add NAME --directory PATH, or a job with --disk PATH";
        show::list(context, &path, false, empty, &table).await
    }
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
