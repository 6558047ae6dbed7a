//! A process whose first thread stands still while all others run: a hang as a deadlock makes it.
//!
//! By ptrace, and not by SIGSTOP, which stops all threads and is undone by the signal that follows systemd's own.
//! Owns the thread that traces; it ends with the process.

use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};

/// A held process.
pub struct Held {
    tracer: JoinHandle<i32>,
}

impl Held {
    /// Stops the first thread of process `pid` for good.
    pub fn hold(pid: u32) -> Result<Self> {
        let pid = libc::pid_t::try_from(pid)?;
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let tracer = std::thread::Builder::new().name("held".into()).spawn(move || {
            let begun = interrupt(pid);
            let failed = begun.is_err();
            // The caller waits for it.
            let _ = tell.send(begun);
            if failed { 0 } else { wait_for_end(pid) }
        })?;
        told.recv().context("the tracer is gone")?.context("holding a process by ptrace")?;
        Ok(Self { tracer })
    }

    /// Waits until the process has ended; returns the signal that ended it, 0 for none.
    pub fn ended(self) -> Result<i32> {
        self.tracer.join().map_err(|_| anyhow!("the tracer panicked"))
    }
}

fn interrupt(pid: libc::pid_t) -> std::io::Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
        // SAFETY: neither request reads or writes memory of ours; address and data are unused and null.
        if unsafe { libc::ptrace(request, pid, none, none) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Whatever the thread stops for, it is not let go.
fn wait_for_end(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    loop {
        // SAFETY: the pointer is to a live integer.
        let answer = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        if answer != pid || libc::WIFEXITED(status) {
            return 0;
        }
        if libc::WIFSIGNALED(status) {
            return libc::WTERMSIG(status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_held_process_stands_still_until_it_is_killed() {
        let mut child = Command::new("sleep").arg("0.3").spawn().unwrap();
        let held = Held::hold(child.id()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert!(child.try_wait().unwrap().is_none(), "it stands still");
        child.kill().unwrap();
        assert_eq!(held.ended().unwrap(), libc::SIGKILL);
        // The tracer has reaped it, being a thread of its parent.
        assert!(child.wait().is_err());
    }
}
