//! VMs in units of systemd, without any right to order systemd about.
//!
//! ```text
//! vbrd --- bridge's name --> vbr-tap.socket = vbr-tap@…: `vbrd run-tap` becomes qemu's helper for bridges (root, CAP_NET_ADMIN)
//!      <-- network card ----
//!      --- arguments, cards --> vbr-vm.socket = vbr-vm@…: `vbrd run-vm` becomes qemu (vbr's user, no network, no rights)
//! ```
//!
//! Whoever connects gets a unit of its own. Cards are handed over open, so a VM needs neither a helper nor the right to gain
//! rights, and its process has no network but them. The connection stays open as long as the VM lives: its end is the VM's end.
//! Both sides are of one package, and speak to each other when a VM is started alone: an order has no version.
//! Bounds: [`ORDER_BYTES_MAX`], [`CARDS_MAX`], [`PATIENCE`] for each step.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::{Deserialize, Serialize};

use super::arguments::{NICS_MAX, check_bridge};
use super::launch::{Card, LOG, LaunchError, QEMU, one_line};
use crate::host::qemu::qmp::send_with;
use crate::nbd::find_tool;

/// systemd's sockets.
const VM_SOCKET: &str = "/run/vbr-vm.sock";
const TAP_SOCKET: &str = "/run/vbr-tap.sock";
/// Where qemu's helper for bridges lies: Debian, others.
const HELPERS: [&str; 2] = ["/usr/lib/qemu/qemu-bridge-helper", "/usr/libexec/qemu-bridge-helper"];
/// Longest order.
const ORDER_BYTES_MAX: usize = 4 << 20;
/// Network cards of one VM, which come in one message.
const CARDS_MAX: usize = NICS_MAX;
/// Longest name and longest words of a helper.
const NAME_BYTES_MAX: u64 = 64;
const WORDS_BYTES_MAX: usize = 4096;
/// For the other side.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a unit is to become.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    directory: PathBuf,
    arguments: Vec<String>,
    /// Netdevs of the network cards that come with it, in order.
    cards: Vec<String>,
}

/// systemd offers no unit.
#[derive(Debug, thiserror::Error)]
#[error("systemd offers no units for VMs ({socket}: {why})")]
pub(super) struct NotOffered {
    socket: &'static str,
    why: String,
}

impl NotOffered {
    pub(super) fn at(socket: &'static str, why: impl ToString) -> Self {
        Self { socket, why: why.to_string() }
    }
}

/// Whether systemd has started this process: then a VM has to be in another unit. What was started by something else, a shell
/// in a session for one, inherits the variable but not the number.
pub(super) fn is_needed() -> bool {
    is_main(std::env::var("SYSTEMD_EXEC_PID").ok().as_deref(), std::process::id())
}

fn is_main(said: Option<&str>, own: u32) -> bool {
    said.and_then(|pid| pid.parse().ok()) == Some(own)
}

/// Without asking for a unit.
pub(super) fn offered() -> Result<(), NotOffered> {
    for socket in [VM_SOCKET, TAP_SOCKET] {
        fs::metadata(socket).map_err(|error| NotOffered::at(socket, error))?;
    }
    Ok(())
}

/// Orders a VM; what is returned is open as long as that lives.
pub(super) fn begin(
    directory: &Path,
    arguments: Vec<String>,
    cards: &[Card],
) -> Result<UnixStream, LaunchError> {
    offered()?;
    // Before there is a unit: one that is not told what to become is one that has failed.
    let taps = cards.iter().map(|card| tap(&card.bridge)).collect::<Result<Vec<OwnedFd>, _>>()?;
    let cards = cards.iter().map(|card| card.id.clone()).collect();
    let mut text = serde_json::to_vec(&Order { directory: directory.into(), arguments, cards })
        .map_err(|error| LaunchError::Said(error.to_string()))?;
    text.push(b'\n');
    let unit = connect(VM_SOCKET)?;
    let files: Vec<BorrowedFd<'_>> = taps.iter().map(AsFd::as_fd).collect();
    send_with(&unit, &text, &files)?;
    unit.set_nonblocking(true)?;
    Ok(unit)
}

/// The other end is closed when the VM has ended.
pub(super) fn is_over(unit: &mut UnixStream) -> bool {
    !matches!(unit.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

fn connect(socket: &'static str) -> Result<UnixStream, LaunchError> {
    let stream = UnixStream::connect(socket).map_err(|error| NotOffered::at(socket, error))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A network card on a bridge, or the helper's words.
fn tap(bridge: &str) -> Result<OwnedFd, LaunchError> {
    let mut stream = connect(TAP_SOCKET)?;
    stream.write_all(format!("{bridge}\n").as_bytes())?;
    let (mut said, mut files) = (Vec::new(), Vec::new());
    while files.is_empty() && said.len() < WORDS_BYTES_MAX {
        if receive(stream.as_fd(), RecvFlags::CMSG_CLOEXEC, &mut said, &mut files)? == 0 {
            break;
        }
    }
    files.pop().ok_or_else(|| {
        let why = one_line(&String::from_utf8_lossy(&said));
        let why = if why.is_empty() { "its helper has ended without a word".into() } else { why };
        LaunchError::Bridge { bridge: bridge.into(), why }
    })
}

/// What comes next, with the files that come along.
fn receive(
    from: BorrowedFd<'_>,
    flags: RecvFlags,
    bytes: &mut Vec<u8>,
    files: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut part = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CARDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        rustix::io::retry_on_intr(|| recvmsg(from, &mut [IoSliceMut::new(&mut part)], &mut control, flags))?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            files.extend(sent);
        }
    }
    bytes.extend_from_slice(&part[..received.bytes]);
    Ok(received.bytes)
}

/// `vbrd run-vm`: reads what to run from its standard input, and becomes it. Comes back only where that fails.
pub fn become_vm() -> io::Error {
    match order() {
        Ok((order, taps)) => match become_of(&order, &taps) {
            Ok(mut command) => {
                let error = command.exec();
                let _ = fs::write(order.directory.join(LOG), format!("{QEMU}: {error}"));
                error
            }
            Err(error) => error,
        },
        Err(error) => error,
    }
}

fn order() -> io::Result<(Order, Vec<OwnedFd>)> {
    let (mut text, mut taps) = (Vec::new(), Vec::new());
    let own = io::stdin();
    while text.last() != Some(&b'\n') {
        // qemu inherits the cards.
        let more = receive(own.as_fd(), RecvFlags::empty(), &mut text, &mut taps)?;
        if more == 0 || text.len() > ORDER_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "nobody says what to run"));
        }
    }
    let order: Order = serde_json::from_slice(&text)?;
    if order.cards.len() != taps.len() {
        let why = format!("{} network cards were announced, {} came", order.cards.len(), taps.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok((order, taps))
}

fn become_of(order: &Order, taps: &[OwnedFd]) -> io::Result<Command> {
    let program = find_tool(QEMU)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{QEMU} was not found")))?;
    let mut command = Command::new(program);
    // Its standard input stays what it is: the connection that tells vbrd that it lives.
    command.args(&order.arguments).current_dir(&order.directory).env("LC_ALL", "C").stdout(Stdio::null());
    for (card, tap) in order.cards.iter().zip(taps) {
        command.arg("-netdev").arg(format!("tap,id={card},fd={}", tap.as_raw_fd()));
    }
    command.stderr(File::create(order.directory.join(LOG))?);
    Ok(command)
}

/// `vbrd run-tap`: reads a bridge's name from its standard input, and becomes qemu's helper, which answers there.
pub fn become_tap() -> io::Error {
    match bridge() {
        Ok(name) => {
            let Some(helper) = HELPERS.into_iter().find(|path| Path::new(path).is_file()) else {
                return io::Error::new(io::ErrorKind::NotFound, "qemu-bridge-helper is missing");
            };
            Command::new(helper).args(["--use-vnet", "--fd=0", &format!("--br={name}")]).exec()
        }
        Err(error) => error,
    }
}

fn bridge() -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(io::stdin().lock().take(NAME_BYTES_MAX)).read_line(&mut line)?;
    let name = line.trim_end_matches('\n');
    check_bridge(name).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_back_as_it_was_given() {
        let order = Order {
            directory: "/srv/a b".into(),
            arguments: vec!["-name".into(), "x\ny\"".into()],
            cards: vec!["net0".into()],
        };
        let text = serde_json::to_string(&order).unwrap();
        assert!(!text.contains('\n'), "one line");
        let back: Order = serde_json::from_str(&text).unwrap();
        assert_eq!((back.directory, back.arguments), (order.directory, order.arguments));
    }

    #[test]
    fn only_what_systemd_itself_has_started_needs_a_unit() {
        assert!(is_main(Some("7"), 7));
        assert!(!is_main(Some("7"), 8), "a shell in a unit has started it");
        assert!(!is_main(None, 7) && !is_main(Some("x"), 7));
    }

    #[test]
    fn files_come_with_the_words_that_they_were_sent_with() {
        let (near, far) = UnixStream::pair().unwrap();
        let cards: Vec<File> = (0..CARDS_MAX).map(|_| File::open("/dev/null").unwrap()).collect();
        let sent: Vec<BorrowedFd<'_>> = cards.iter().map(AsFd::as_fd).collect();
        send_with(&near, b"order\n", &sent).unwrap();
        drop(near);
        let (mut text, mut files) = (Vec::new(), Vec::new());
        let mut next = || receive(far.as_fd(), RecvFlags::CMSG_CLOEXEC, &mut text, &mut files).unwrap();
        assert_eq!((next(), next()), (6, 0));
        assert_eq!((text.as_slice(), files.len()), (b"order\n".as_slice(), CARDS_MAX));
    }
}
