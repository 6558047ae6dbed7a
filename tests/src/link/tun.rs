//! A TUN device inside a network namespace. The descriptor works from any namespace; only opening
//! has to happen inside, so a short-lived thread enters it and ends.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{Mode, OFlags};
use rustix::thread::LinkNameSpaceType;

use super::Namespace;
use crate::process::run;

pub(super) const DEVICE: &str = "vbr0";
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// Makes the device, gives it `address` facing `peer`, and returns its non-blocking descriptor.
pub fn open_in(namespace: &Namespace, mtu: u16, address: &str, peer: &str) -> Result<OwnedFd> {
    let path = namespace.path();
    let opened = std::thread::spawn(move || -> Result<OwnedFd> {
        let handle = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        rustix::thread::move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))
            .context("entering the network namespace")?;
        create()
    });
    let device = opened.join().map_err(|_| anyhow!("the thread that opens the TUN device panicked"))??;
    let name = namespace.name();
    run("ip", ["-n", name, "addr", "add", address, "peer", peer, "dev", DEVICE])?;
    run("ip", ["-n", name, "link", "set", DEVICE, "mtu", &mtu.to_string(), "txqueuelen", "4000", "up"])?;
    Ok(device)
}

fn create() -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let device = rustix::fs::open("/dev/net/tun", flags, Mode::empty()).context("opening /dev/net/tun")?;
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(DEVICE.bytes()) {
        *to = from as libc::c_char;
    }
    let request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short,
        },
    };
    // SAFETY: the descriptor is open and `request` is a live ifreq, which is what TUNSETIFF reads and writes.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, &request) };
    if answer < 0 {
        return Err(std::io::Error::last_os_error()).context("making a TUN device");
    }
    Ok(device)
}
