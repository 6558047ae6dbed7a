//! The driver `nbd`: disks behind NBD servers, whatever is behind those (nbdkit with its plugins, ESXi by `vddk` included;
//! qemu-nbd; storage appliances).
//!
//! Exports are raw, and read through a `qemu-storage-daemon` of our own. With `nbds://` the server proves by its certificate
//! who it is, or nothing is read; nothing goes plain that was to be encrypted. An export is a moment where its server says
//! that nobody writes (read-only): whoever exports a disk that is written to through another door breaks that promise,
//! and we cannot see it. Any other export is read as it is, and its restore points are marked as not consistent.
//!
//! There is no record of changes, so everything is read and compared. A lost connection ends the moment: nothing proves that
//! the next one shows the same. Owns nothing between sessions. Bounds: those of `host`, [`URIS_MAX`] a host.

mod inventory;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use vbr_api::{DiskFormat, DiskSpec, Host, Vm};

use self::inventory::{Entry, Found, vms};
use super::one_moment::OneMoment;
use super::{DiskSnapshot, HostError, SnapshotKind, SnapshotRequest, SourceHost, VmSnapshot};
use crate::block::BlockRead;
use crate::limits::{DISK_BYTES_MAX, DISKS_MAX};
use crate::nbd::{NbdError, NbdUri, QsdExport, RemoteExport, list_exports};

/// URIs of one host.
pub(super) const URIS_MAX: usize = 256;

/// Exports of NBD servers.
pub struct NbdHost {
    host: Host,
    runtime_dir: PathBuf,
}

/// Checks the words of a definition.
pub(super) fn check(host: &Host) -> Result<(), HostError> {
    let wrong = |why: String, next_step| {
        Err(HostError::Invalid { what: format!("host {:?}", host.name), why, next_step })
    };
    if host.uris.is_empty() || host.uris.len() > URIS_MAX {
        let next = "name servers or exports: --uri nbd://HOST:PORT, --uri VM=nbds://HOST/EXPORT, \
                    --uri VM=nbd+unix:///EXPORT?socket=/PATH";
        return wrong(format!("it needs 1 to {URIS_MAX} URIs"), next);
    }
    for text in &host.uris {
        let entry = match Entry::parse(text) {
            Ok(entry) => entry,
            Err(why) => {
                return wrong(format!("{text}: {why}"), "write [VM=]nbd://HOST[:PORT][/EXPORT], or nbds://");
            }
        };
        match (entry.uri().tls, &host.tls_dir) {
            (true, None) => {
                let next = "name the directory of its certificates (ca-cert.pem, client-cert.pem, client-key.pem) \
                            or keys (keys.psk) with --tls-dir";
                return wrong(format!("{text} wants TLS, and there are no certificates"), next);
            }
            (false, Some(_)) => {
                let next = "write nbds://, or add what goes plain as a host of its own without --tls-dir";
                return wrong(
                    format!("{text} would go unencrypted beside a directory of certificates"),
                    next,
                );
            }
            _ => {}
        }
    }
    Ok(())
}

impl NbdHost {
    /// A checked definition.
    pub fn new(host: Host, runtime_dir: PathBuf) -> Self {
        Self { host, runtime_dir }
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        self.host.uris.iter().filter_map(|text| Entry::parse(text).ok())
    }

    fn tls_dir(&self) -> Option<&Path> {
        self.host.tls_dir.as_deref().map(Path::new)
    }

    fn exports(&self, uri: &NbdUri) -> Result<Vec<RemoteExport>, HostError> {
        list_exports(uri, self.tls_dir()).map_err(|error| server_error(&uri.to_string(), error))
    }

    /// What the servers say, and the first that says nothing.
    fn ask(&self) -> (Vec<(Entry, Vec<RemoteExport>)>, Option<HostError>) {
        let (mut asked, mut silent): (Vec<(NbdUri, Vec<RemoteExport>)>, _) = (Vec::new(), None);
        let all = self.entries().map(|entry| {
            let server = entry.uri().with_export("");
            if let Some((_, exports)) = asked.iter().find(|(other, _)| *other == server) {
                return (entry, exports.clone());
            }
            let exports = self.exports(&server).unwrap_or_else(|error| {
                tracing::info!(host = self.host.name, %error, "an NBD server does not list its exports");
                silent.get_or_insert(error);
                Vec::new()
            });
            asked.push((server, exports.clone()));
            (entry, exports)
        });
        let all = all.collect();
        (all, silent)
    }

    /// One disk, opened; and whether its server says that nobody writes to it.
    fn open(&self, spec: &DiskSpec) -> Result<(DiskSnapshot, bool), HostError> {
        let path = &spec.path;
        let uri: NbdUri = path.parse().map_err(|why| HostError::Invalid {
            what: format!("disk {path}"),
            why,
            next_step: "name a VM of the host: vbrctl vm list shows them",
        })?;
        // A server need not list what it has: then nothing is known of it but its bytes. What is wrong with it, if
        // anything, is said when it is opened.
        let listed = self.exports(&uri).unwrap_or_default();
        let known = listed.into_iter().find(|export| export.name == uri.export);
        let bytes = known.as_ref().map(|known| known.bytes);
        let export = QsdExport::open_remote(&uri, self.tls_dir(), bytes, &self.runtime_dir);
        let export = export.map_err(|error| server_error(path, error))?;
        if export.len() == 0 {
            return Err(HostError::Empty { path: path.clone() });
        }
        if export.len() > DISK_BYTES_MAX {
            return Err(HostError::Invalid {
                what: format!("disk {path}"),
                why: "it is larger than 64 TiB".into(),
                next_step: "split it into smaller disks",
            });
        }
        let still = known.is_some_and(|known| known.read_only);
        let reader: Arc<dyn BlockRead> = Arc::new(OneMoment::new(export, path.clone(), "its NBD server"));
        let kind = if still { SnapshotKind::Export } else { SnapshotKind::Live };
        Ok((DiskSnapshot { kind, ..DiskSnapshot::still(spec.clone(), reader) }, still))
    }
}

/// An error of a server, and what to do about it by what qemu says.
fn server_error(uri: &str, error: NbdError) -> HostError {
    let (all, what) = (error.to_string(), format!("disk {uri}"));
    // Before its words qemu repeats what it was told.
    let why = all.rsplit_once("}: ").map_or(all.as_str(), |(_, words)| words).to_owned();
    let said = why.to_ascii_lowercase();
    let next_step = match &error {
        NbdError::ToolMissing(_) => "install the packages qemu-utils and qemu-system-common, then try again",
        _ if said.contains("certificate") || said.contains("handshake") => {
            "compare ca-cert.pem in the TLS directory with the authority that signed the server's certificate, and the \
             name in that with the host in the URI (or its tls-hostname)"
        }
        _ if said.contains("tls channel") => {
            "the server does not take our certificate: compare client-cert.pem in the TLS directory with what it wants"
        }
        _ if said.contains("tls") => {
            "write nbds:// where the server wants TLS (with --tls-dir), and let the server offer it where the URI does"
        }
        _ if said.contains("export") => "qemu-nbd --list shows what the server exports; correct the URI",
        _ => "look whether the server runs and can be reached from here, then try again",
    };
    HostError::Server { what, why, next_step }
}

fn specs(disks: &[Found]) -> Vec<DiskSpec> {
    disks.iter().map(|(uri, _)| DiskSpec { path: uri.to_string(), format: DiskFormat::Raw }).collect()
}

impl SourceHost for NbdHost {
    fn name(&self) -> &str {
        &self.host.name
    }

    fn driver(&self) -> &'static str {
        "nbd"
    }

    fn list(&self) -> Result<Vec<Vm>, HostError> {
        let (all, _) = self.ask();
        let vm = |(name, disks): (String, Vec<Found>)| Vm {
            host: self.host.name.clone(),
            name,
            disks: specs(&disks),
            virtual_bytes: disks.iter().map(|(_, bytes)| *bytes).sum(),
            formats: vec![DiskFormat::Raw],
            jobs: Vec::new(),
        };
        Ok(vms(&all).into_iter().map(vm).collect())
    }

    fn resolve(&self, vm: &str) -> Result<Vec<DiskSpec>, HostError> {
        // Whoever is named needs no list of anybody.
        let named: Vec<_> = self.entries().map(|entry| (entry, Vec::new())).collect();
        if named.iter().any(|(entry, _)| matches!(entry, Entry::Named(name, _) if name == vm)) {
            return Ok(vms(&named).get(vm).map(|disks| specs(disks)).unwrap_or_default());
        }
        let (all, silent) = self.ask();
        match (vms(&all).get(vm), silent) {
            (Some(disks), _) => Ok(specs(disks)),
            (None, Some(error)) => Err(error),
            (None, None) => Err(HostError::NoSuchVm { host: self.host.name.clone(), vm: vm.into() }),
        }
    }

    fn snapshot(&self, request: &SnapshotRequest) -> Result<VmSnapshot, HostError> {
        super::disk::check_request(request)?;
        let opened = request.disks.iter().map(|spec| self.open(spec)).collect::<Result<Vec<_>, _>>()?;
        let taken_at = Timestamp::now();
        let one_moment = opened.iter().all(|(_, still)| *still);
        let live = opened.iter().filter(|(_, still)| !still).map(|(disk, _)| {
            format!(
                "{}: its server does not say that nobody writes to it, so the restore point may mix several moments; \
                 export a snapshot, read-only",
                disk.spec.path
            )
        });
        let warnings = live.collect();
        let disks = opened.into_iter().map(|(disk, _)| disk).collect();
        let identity = format!("nbd.{}.{}", taken_at.as_nanosecond(), request.session);
        let transport_mode = "network";
        Ok(VmSnapshot {
            disks,
            identity,
            taken_at,
            one_moment,
            transport_mode,
            warnings,
            config: None,
            hold: None,
        })
    }

    fn reopen(&self, request: &SnapshotRequest, _: &str) -> Result<Option<VmSnapshot>, HostError> {
        super::disk::check_request(request)?;
        // Nothing that a server says proves that it shows the same moment as before.
        Ok(None)
    }
}

const _: () = assert!(DISKS_MAX <= URIS_MAX);
