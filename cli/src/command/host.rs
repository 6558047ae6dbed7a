//! `vbrctl host`: where VMs and disks live.

use clap::Subcommand;
use serde_json::json;
use vbr_api::Host;

use super::Yes;
use super::job::options::absolute;
use crate::client::encode;
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::View;
use crate::show;
use crate::table::{Facts, Table};

/// Hosts where VMs and disks live
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Add a host; adding the same host again changes nothing
    #[command(
        after_help = "Examples:\n  vbrctl host add lab --directory /srv/vm --directory /srv/more\n  vbrctl host add \\\n    pve --driver qemu --directory /run/qemu-server\n  vbrctl host add \\\n    kvm1 --driver libvirt --directory /var/lib/libvirt/vbr\n  vbrctl host add \\\n    store --driver nbd --uri nbds://store.example --tls-dir /etc/vbr/tls\n  vbrctl host add \\\n    esx --driver nbd --uri 'web=nbd+unix:///?socket=/run/nbdkit/web-0.sock'"
    )]
    Add {
        name: String,
        /// How disks are reached there: `disk` reads images and block devices, `qemu` running VMs by their monitors,
        /// `libvirt` its VMs, `nbd` exports of NBD servers
        #[arg(long, default_value = "disk", value_parser = ["disk", "qemu", "libvirt", "nbd"])]
        driver: String,
        /// Directory whose images (or monitors, NAME.qmp) are listed as VMs; may be given several times. With `libvirt`: where
        /// qemu listens, and where what guests overwrite meanwhile is kept
        #[arg(long = "directory", value_name = "PATH")]
        directories: Vec<String>,
        /// With `nbd`: a server or an export (nbd://, nbds://, nbd+unix://, nbds+unix://), or a disk of the VM that is
        /// named. With `libvirt`: a libvirt of this machine [default there: qemu:///system]. May be given several times
        #[arg(long = "uri", value_name = "[VM=]URI")]
        uris: Vec<String>,
        /// Certificates for nbds://, in qemu's layout: ca-cert.pem, client-cert.pem, client-key.pem; or keys.psk
        #[arg(long, value_name = "PATH")]
        tls_dir: Option<String>,
    },
    /// List hosts
    #[command(after_help = "Example:\n  vbrctl host list")]
    List,
    /// Show one host
    #[command(after_help = "Example:\n  vbrctl host show local")]
    Show { name: String },
    /// Forget a host; its disks and its jobs' replicas stay
    #[command(after_help = "Example:\n  vbrctl host remove lab --yes")]
    Remove {
        name: String,
        #[command(flatten)]
        yes: Yes,
    },
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::Add { name, driver, directories, uris, tls_dir } => {
                let directories = directories.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?;
                let tls_dir = tls_dir.map(|path| absolute(&path)).transpose()?;
                let host = Host { name: name.clone(), driver, directories, uris, tls_dir };
                let document = context.client.post_json("/v1/hosts", &host).await?;
                let word = if document.status == 200 { "unchanged" } else { "added" };
                context.output.done(&document, &format!("host {name} {word}"), json!({ "name": name }))?;
                Ok(Exit::Done)
            }
            Self::List => {
                show::list(context, "/v1/hosts", false, "no hosts; next: vbrctl host add", &table).await
            }
            Self::Show { name } => {
                show::one(context, &format!("/v1/hosts/{}", encode(&name)), false, &facts).await
            }
            Self::Remove { name, yes } => {
                context.confirm(&format!("Forget the host {name}"), yes.yes).await?;
                let document = context.client.delete(&format!("/v1/hosts/{}", encode(&name))).await?;
                context.output.done(
                    &document,
                    &format!("host {name} removed"),
                    json!({ "removed": [name] }),
                )?;
                Ok(Exit::Done)
            }
        }
    }
}

fn table(hosts: &[Host], view: &View) -> String {
    let mut table = Table::new(view, &["NAME", "DRIVER", "WHERE"]);
    for host in hosts {
        let places: Vec<&str> = host.directories.iter().chain(&host.uris).map(String::as_str).collect();
        table.row(vec![host.name.as_str().into(), host.driver.as_str().into(), places.join(" ").into()]);
    }
    table.finish()
}

fn facts(host: &Host, _: &View) -> String {
    let mut facts = Facts::new();
    facts.add("Host", host.name.as_str()).add("Driver", host.driver.as_str());
    facts.add_all("Directories", host.directories.iter().cloned());
    facts.add_all("URIs", host.uris.iter().cloned());
    if let Some(directory) = &host.tls_dir {
        facts.add("TLS", directory.as_str());
    }
    facts.finish()
}
