//! The driver `libvirt`: VMs by their names, through libvirt's own backups (pull mode).
//!
//! All disks of a running VM are exported by qemu at one moment, over a Unix socket in the host's directory; libvirt copies
//! aside what the guest overwrites, into scratch images there. Changes come from checkpoints, named by job and session;
//! those of the last sealed session stay, since a checkpoint records until it is deleted. A VM that is off is read from its
//! files, as the driver `disk` does it.
//!
//! Nothing of a snapshot needs a record here: a backup of ours is known by the names of its exports, and ended by the next
//! session, or taken up again by the same one. One that is not ours is left alone. With several URIs a VM is looked for
//! at each, and read where it runs; they are libvirts of this machine. Bounds: those of `host`, one snapshot a VM at once.

mod backup;
mod domain;
mod errors;
mod space;
#[cfg(test)]
mod tests;
mod virsh;
mod xml;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vbr_api::{DiskSpec, Host, Vm};

use self::domain::{DomainDisk, disks};
use self::errors::vm_error;
use self::virsh::{Domain, Virsh, said};
use super::claim::Claims;
use super::clones::CloneStore;
use super::disk::DiskHost;
use super::{HostError, SnapshotRequest, SourceHost, VmSnapshot};
use crate::limits::DISKS_MAX;
use crate::nbd::NbdError;

/// Unless said otherwise.
const SYSTEM: &str = "qemu:///system";
/// Of one host.
const URIS_MAX: usize = 16;

/// VMs of the libvirts of this machine.
pub struct LibvirtHost {
    host: Host,
    clones: Arc<CloneStore>,
    runtime_dir: PathBuf,
    /// VMs that are off.
    files: DiskHost,
    claims: Claims,
}

/// Checks the words of a definition.
pub(super) fn check(host: &Host) -> Result<(), HostError> {
    let wrong = |why: String, next_step| {
        Err(HostError::Invalid { what: format!("host {:?}", host.name), why, next_step })
    };
    if host.directories.len() != 1 {
        let next = "name one directory that qemu may write to and vbrd may enter, for sockets and for what guests overwrite \
                    meanwhile: --directory /var/lib/libvirt/vbr";
        return wrong("it needs one directory".into(), next);
    }
    if host.uris.len() > URIS_MAX {
        return wrong(format!("it has more than {URIS_MAX} URIs"), "spread them over several hosts");
    }
    for uri in &host.uris {
        let local = uri.split_once("://").filter(|(scheme, _)| matches!(*scheme, "qemu" | "qemu+unix"));
        if !local.is_some_and(|(_, rest)| rest.starts_with('/')) || uri.chars().any(char::is_control) {
            let next = "write qemu:///system, or qemu+unix:///system?socket=/PATH; disks are read through a socket of the \
                        machine that the VM runs on, so vbrd runs on each of them";
            return wrong(format!("{uri:?} is no libvirt with qemu on this machine"), next);
        }
    }
    Ok(())
}

/// A VM, and the libvirt that has it.
struct Place {
    virsh: Virsh,
    domain: Domain,
}

impl LibvirtHost {
    /// A checked definition.
    pub fn new(host: Host, clones: Arc<CloneStore>, runtime_dir: PathBuf) -> Self {
        let files = DiskHost::new(host.clone(), clones.clone(), runtime_dir.clone());
        Self { host, clones, runtime_dir, files, claims: Claims::default() }
    }

    fn libvirts(&self) -> Vec<Virsh> {
        let default = [SYSTEM.to_owned()];
        let uris = if self.host.uris.is_empty() { &default[..] } else { &self.host.uris };
        uris.iter().map(|uri| Virsh::new(uri)).collect()
    }

    /// For sockets and scratch images.
    fn directory(&self) -> &Path {
        self.host.directories.first().map_or(Path::new("/"), Path::new)
    }

    fn vm_error(&self, vm: &str, error: NbdError) -> HostError {
        vm_error(&format!("VM {}/{vm}", self.host.name), &error)
    }

    /// Where the VM runs; where it is off, if it runs nowhere.
    fn find(&self, vm: &str) -> Result<Place, HostError> {
        let (mut off, mut silent) = (None, None);
        for virsh in self.libvirts() {
            let domains = match virsh.domains() {
                Ok(domains) => domains,
                Err(error) => {
                    silent.get_or_insert((virsh, error));
                    continue;
                }
            };
            match domains.into_iter().find(|domain| domain.name == vm) {
                Some(domain) if domain.active => return Ok(Place { virsh, domain }),
                Some(domain) => drop(off.get_or_insert(Place { virsh, domain })),
                None => {}
            }
        }
        match (off, silent) {
            // It may well run at the one that does not answer.
            (_, Some((virsh, error))) => {
                Err(vm_error(&format!("VM {}/{vm} at {}", self.host.name, virsh.uri()), &error))
            }
            (Some(place), None) => Ok(place),
            (None, None) => Err(HostError::NoSuchVm { host: self.host.name.clone(), vm: vm.into() }),
        }
    }

    fn disks_of(&self, vm: &str, place: &Place) -> Result<Vec<DomainDisk>, HostError> {
        let definition = place.virsh.definition(&place.domain.uuid);
        Ok(disks(&definition.map_err(|error| self.vm_error(vm, error))?))
    }

    /// A VM that is off is read from its files; an error where it has something else.
    fn check_files(
        &self,
        vm: &str,
        disks: &[DomainDisk],
        request: &SnapshotRequest,
    ) -> Result<(), HostError> {
        let asked = |disk: &&DomainDisk| request.disks.iter().any(|spec| spec.path == disk.path);
        let odd = disks.iter().filter(asked).find(|disk| !disk.is_path || disk.format.is_none());
        odd.map_or(Ok(()), |disk| {
            Err(HostError::Hypervisor {
                what: format!("VM {}/{vm}", self.host.name),
                why: format!(
                    "it is off, and its disk {} is no raw or qcow2 image of this machine",
                    disk.target
                ),
                next_step: "start the VM: then its disks are read through qemu, whatever they are",
            })
        })
    }

    fn describe(&self, virsh: &Virsh, domain: &Domain) -> Vm {
        let looked = virsh.definition(&domain.uuid).map(|definition| disks(&definition));
        let disks = looked.unwrap_or_else(|error| {
            tracing::info!(vm = domain.name, why = said(&error), "the VM cannot be asked for its disks");
            Vec::new()
        });
        let sizes = virsh.sizes(&domain.uuid).unwrap_or_default();
        let size = |disk: &DomainDisk| {
            sizes.iter().find(|(target, _)| *target == disk.target).map(|(_, bytes)| *bytes)
        };
        let specs: Vec<DiskSpec> = disks.iter().map(DomainDisk::spec).collect();
        let mut formats: Vec<_> = specs.iter().map(|spec| spec.format).collect();
        formats.dedup();
        Vm {
            host: self.host.name.clone(),
            name: domain.name.clone(),
            virtual_bytes: disks.iter().map(size).sum::<Option<u64>>().filter(|_| !disks.is_empty()),
            disks: specs,
            formats,
            jobs: Vec::new(),
        }
    }
}

impl SourceHost for LibvirtHost {
    fn name(&self) -> &str {
        &self.host.name
    }

    fn driver(&self) -> &'static str {
        "libvirt"
    }

    fn list(&self) -> Result<Vec<Vm>, HostError> {
        let mut found: Vec<(Virsh, Domain)> = Vec::new();
        for virsh in self.libvirts() {
            let domains = virsh.domains().unwrap_or_else(|error| {
                tracing::warn!(uri = virsh.uri(), why = said(&error), "a libvirt is left out of the list");
                Vec::new()
            });
            for domain in domains {
                match found.iter_mut().find(|(_, other)| other.name == domain.name) {
                    Some(other) if domain.active && !other.1.active => *other = (virsh.clone(), domain),
                    Some(_) => {}
                    None => found.push((virsh.clone(), domain)),
                }
            }
        }
        found.sort_by(|a, b| a.1.name.cmp(&b.1.name));
        Ok(found.iter().map(|(virsh, domain)| self.describe(virsh, domain)).collect())
    }

    fn resolve(&self, vm: &str) -> Result<Vec<DiskSpec>, HostError> {
        let disks = self.disks_of(vm, &self.find(vm)?)?;
        if disks.is_empty() || disks.len() > DISKS_MAX {
            return Err(HostError::Invalid {
                what: format!("VM {}/{vm}", self.host.name),
                why: format!(
                    "it has {} disks that it writes to; 1 to {DISKS_MAX} can be replicated",
                    disks.len()
                ),
                next_step: "attach a disk, or name another VM",
            });
        }
        Ok(disks.iter().map(DomainDisk::spec).collect())
    }

    fn snapshot(&self, request: &SnapshotRequest) -> Result<VmSnapshot, HostError> {
        super::disk::check_request(request)?;
        let vm = request.vm.as_deref().unwrap_or_default();
        let claim = self.claims.take(&self.host.name, vm)?;
        let place = self.find(vm)?;
        let disks = self.disks_of(vm, &place)?;
        if place.domain.active {
            return self.begin(claim, place, &disks, request);
        }
        self.check_files(vm, &disks, request)?;
        self.files.snapshot(request)
    }

    fn reopen(&self, request: &SnapshotRequest, identity: &str) -> Result<Option<VmSnapshot>, HostError> {
        super::disk::check_request(request)?;
        let Some(taken_at) = backup::taken_at(identity, &request.session) else {
            return self.files.reopen(request, identity);
        };
        let vm = request.vm.as_deref().unwrap_or_default();
        let claim = self.claims.take(&self.host.name, vm)?;
        let Ok(place) = self.find(vm) else { return Ok(None) };
        if !place.domain.active {
            return Ok(None);
        }
        let disks = self.disks_of(vm, &place)?;
        self.take_up(claim, place, &disks, request, taken_at)
    }
}
