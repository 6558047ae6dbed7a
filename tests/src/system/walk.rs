//! What a new user does, from a fresh system to a replica that is compared with its source; each step with its time.

use anyhow::{Result, ensure};
use vbr_api::Session;

use super::{DISK, System, ensure_succeeded};
use crate::disk::{self, MIB};
use crate::machine::package::Package;

const DEB: &str = "/srv/vbr.deb";
/// The disk: text, random bytes and holes.
const DISK_BYTES: u64 = 64 * MIB;

/// The steps of docs/getting-started.md in two machines that never had vbr.
pub fn walk(package: &Package) -> Result<()> {
    let system = System::boot(package)?;
    let (branch, dr) = (&system.branch, &system.dr);
    system.in_both(|machine| machine.copy(package.path(), DEB))?;
    disk_of_a_machine(&system)?;
    system.step("apt install ./vbr.deb, at both sites at once", || {
        system.in_both(|machine| machine.run(&["apt-get", "install", "--yes", DEB]).map(drop))
    })?;
    system.step("vbrctl status, at both sites", || {
        system.in_both(|machine| machine.run(&["vbrctl", "status"]).map(drop))
    })?;
    system.step("peer invite, peer join, until the link is up", || system.pair())?;
    system.step("job create, job plan", || {
        branch.run(&["vbrctl", "job", "create", "web", "--disk", DISK, "--target", "dr", "--keep", "14"])?;
        branch.run(&["vbrctl", "job", "plan", "web"]).map(drop)
    })?;
    system.step("job run web --wait: the first, a disk of 64 MiB", || run(&system))?;
    disk::write_random(&branch.path(DISK), 8 * MIB, MIB, 9)?;
    system.step("job run web --wait: the second, 1 MiB changed", || run(&system))?;
    system.step("replica list, restore-point list, verify", || {
        let replicas = dr.run(&["vbrctl", "replica", "list"])?;
        ensure!(replicas.contains("web"), "replica list does not show it:\n{replicas}");
        dr.run(&["vbrctl", "restore-point", "list", "web"])?;
        dr.run(&["vbrctl", "restore-point", "verify", "web@latest"]).map(drop)
    })?;
    system.step("restore-point export, compared with the source", || system.prove())?;
    println!("from a fresh system to a replica in {:.0} s", system.seconds());
    Ok(())
}

fn disk_of_a_machine(system: &System) -> Result<()> {
    system.fill(0, 0)?;
    disk::mixed(&system.branch.path(DISK), DISK_BYTES, 7)
}

fn run(system: &System) -> Result<()> {
    let session: Session = system.branch.json(&["job", "run", "web", "--wait"])?;
    println!("{:18}{:.1} MiB sent", "", session.bytes.sent_wire as f64 / MIB as f64);
    ensure_succeeded(&session)
}
