//! Whether a thread that is at work does anything, as the kernel sees it: it, and the process it waits for.
//!
//! One step may honestly take hours inside one system call, or in one run of a tool, and says nothing meanwhile; at a
//! disk that does not answer it looks the same from within. From outside they differ: who works is scheduled now and
//! then, also if he mostly waits for a slow disk; who hangs is not scheduled at all.
//!
//! Not its job: whether the work leads anywhere. A loop without end has a pulse.

use std::cell::RefCell;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// Threads of a process that are looked at.
const THREADS_MAX: usize = 256;

thread_local! {
    /// Of the work that this thread does.
    static OWN: RefCell<Option<Arc<Pulse>>> = const { RefCell::new(None) };
}

/// Of one piece of work. 0 stands for no thread and no process.
#[derive(Debug, Default)]
pub struct Pulse {
    thread: AtomicI32,
    child: AtomicI32,
}

impl Pulse {
    /// Does the work on this thread; meanwhile it can be felt.
    pub fn during<R>(self: &Arc<Self>, work: impl FnOnce() -> R) -> R {
        struct Until<'a>(&'a Pulse);
        impl Drop for Until<'_> {
            fn drop(&mut self) {
                self.0.thread.store(0, Ordering::Relaxed);
                OWN.take();
            }
        }
        OWN.set(Some(self.clone()));
        self.thread.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
        let _until = Until(self);
        work()
    }

    /// A number that differs from the one before where something was done in between. None where nothing is under
    /// way, or where the kernel does not tell.
    pub fn feel(&self) -> Option<u64> {
        let thread = Some(self.thread.load(Ordering::Relaxed)).filter(|thread| *thread != 0)?;
        let own = scheduled(&format!("/proc/self/task/{thread}/schedstat"))?;
        let child = match self.child.load(Ordering::Relaxed) {
            0 => 0,
            child => scheduled_all(child),
        };
        Some(own.wrapping_add(child))
    }
}

/// Waits for a process on this thread, sleeping: what that does counts as this thread's work.
pub fn waiting_for<R>(child: u32, wait: impl FnOnce() -> R) -> R {
    struct Until(Option<Arc<Pulse>>);
    impl Drop for Until {
        fn drop(&mut self) {
            if let Some(pulse) = &self.0 {
                pulse.child.store(0, Ordering::Relaxed);
            }
        }
    }
    let own = OWN.with_borrow(Clone::clone);
    if let Some(pulse) = &own {
        pulse.child.store(i32::try_from(child).unwrap_or_default(), Ordering::Relaxed);
    }
    let _until = Until(own);
    wait()
}

/// All threads of a process.
fn scheduled_all(process: i32) -> u64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return 0 };
    let stats = threads.flatten().take(THREADS_MAX).map(|thread| thread.path().join("schedstat"));
    stats.filter_map(|stat| scheduled(&stat.to_string_lossy())).fold(0, u64::wrapping_add)
}

/// Nanoseconds on a processor, and how often: either grows with whatever a thread does.
fn scheduled(path: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let mut fields = text.split_whitespace().map(str::parse::<u64>);
    let (ran, _waited, times) = (fields.next()?.ok()?, fields.next()?, fields.next()?.ok()?);
    Some(ran.wrapping_add(times))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    /// Feels twice, so far apart.
    fn moves(pulse: &Pulse, apart: Duration) -> bool {
        let first = pulse.feel().expect("the kernel tells");
        std::thread::sleep(apart);
        pulse.feel().expect("the kernel tells") != first
    }

    #[test]
    fn who_works_moves_and_who_waits_does_not() {
        let pulse = Arc::new(Pulse::default());
        assert_eq!(pulse.feel(), None, "nothing is under way");
        let (order, orders) = channel::<()>();
        let (begun, begins) = channel();
        std::thread::scope(|scope| {
            let worker = pulse.clone();
            scope.spawn(move || {
                worker.during(|| {
                    begun.send(()).unwrap();
                    orders.recv().unwrap(); // Hangs.
                    while orders.try_recv().is_err() {
                        std::hint::spin_loop();
                    }
                });
                begun.send(()).unwrap();
            });
            begins.recv().unwrap();
            std::thread::sleep(Duration::from_millis(50)); // Until it hangs.
            assert!(!moves(&pulse, Duration::from_millis(300)), "who waits does nothing");
            order.send(()).unwrap();
            assert!(moves(&pulse, Duration::from_millis(300)), "who computes does something");
            order.send(()).unwrap();
            begins.recv().unwrap();
            assert_eq!(pulse.feel(), None, "it is over");
        });
    }

    #[test]
    fn what_a_process_does_counts_for_who_waits_for_it() {
        for (script, alive) in [("while :; do :; done", true), ("exec sleep 60", false)] {
            let pulse = Arc::new(Pulse::default());
            let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let id = child.id();
            std::thread::scope(|scope| {
                let worker = pulse.clone();
                scope.spawn(move || worker.during(|| waiting_for(id, || child.wait())).unwrap());
                std::thread::sleep(Duration::from_millis(300));
                let moved = moves(&pulse, Duration::from_millis(400));
                kill_process(Pid::from_raw(id.cast_signed()).unwrap(), Signal::KILL).unwrap();
                assert_eq!(moved, alive, "{script}");
            });
        }
    }
}
