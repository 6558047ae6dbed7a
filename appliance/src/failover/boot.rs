//! The test of a restore point: it is started away from everybody, looked at, and thrown away.
//!
//! Replication goes on meanwhile. The restore point carries the result, with the end of what the guest said and its screen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vbr_api::{BootTest, Moment, TestRequest};

use super::{Failovers, title};
use crate::error::Problem;
use crate::host::target::{RunState, TargetVm};
use crate::repository::datastore::{Order, Point, Replica};

/// For a guest to say what is expected of it.
const WITHIN: Duration = Duration::from_secs(300);
/// Without any probe: it has to run for so long.
const RUNS_FOR: Duration = Duration::from_secs(10);
/// Longest test.
const WITHIN_MAX: Duration = Duration::from_secs(3600);
/// Longest text that is looked for.
const EXPECT_MAX: usize = 1024;
/// What is looked at, and what is kept, of the console.
const CONSOLE_BYTES: u64 = 4 << 20;
const CONSOLE_KEPT: u64 = 16 * 1024;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

impl Failovers {
    /// Starts a restore point, waits for what is expected, and throws away what it wrote. `stopped`: vbrd stops.
    pub fn test(
        &self,
        replica: &Arc<Replica>,
        point: &str,
        request: &TestRequest,
        stopped: &dyn Fn() -> bool,
    ) -> Result<BootTest, Problem> {
        let within = within(request)?;
        let _turn = self.turn(replica)?;
        replica.allows(Order::Test)?;
        let point = replica.point(point)?;
        let settings = self.settings(&point, &request.start)?.isolated();
        let begun = Instant::now();
        replica.begin_failover(Order::Test, &point, settings.started(&point, request.keep)?)?;
        let vm = TargetVm::at(&replica.failover_dir());
        let outcome = self.run(replica).map(|()| begun.elapsed()).map(|start| {
            self.note_time(replica, begun);
            (start, look(&vm, request.expect.as_deref(), within, begun, stopped))
        });
        let (start, result) = match outcome {
            Ok((start, result)) => (start, result),
            Err(problem) => (begun.elapsed(), Err(format!("it cannot be started: {}", problem.why))),
        };
        let mut test = BootTest {
            point: point.id().into(),
            at: Moment::now(),
            ok: result.is_ok(),
            why: result.unwrap_or_else(|why| why),
            start_ms: start.as_millis() as u64,
            duration_ms: begun.elapsed().as_millis() as u64,
            console: vm.console(CONSOLE_KEPT),
            screenshot: None,
        };
        test.screenshot = screenshot(&vm, &point);
        if !request.keep {
            self.undo_now(replica)?;
        }
        if let Err(error) = point.note_boot_test(&test) {
            tracing::warn!(%error, "the result of a test was not written down");
        }
        let (ok, why) = (test.ok, &test.why);
        tracing::info!(ok, why, point = point.id(), "{} was tested by starting it", title(replica));
        Ok(test)
    }
}

fn within(request: &TestRequest) -> Result<Duration, Problem> {
    let wrong = |why: &str, next: &str| Err(Problem::invalid("the test", why, next));
    if request.expect.as_ref().is_some_and(|text| text.is_empty() || text.len() > EXPECT_MAX) {
        return wrong("the text to expect is empty, or longer than 1024 bytes", "say --expect TEXT");
    }
    let default = if request.expect.is_some() { WITHIN } else { RUNS_FOR };
    let within = request.within_ms.map_or(default, Duration::from_millis);
    if within.is_zero() || within > WITHIN_MAX {
        return wrong("it would take no time, or more than an hour", "say --within with 1s to 1h");
    }
    Ok(within)
}

/// Looks until what is expected was seen. Answers what was seen, or what was not.
fn look(
    vm: &TargetVm,
    expect: Option<&str>,
    within: Duration,
    begun: Instant,
    stopped: &dyn Fn() -> bool,
) -> Result<String, String> {
    let deadline = Instant::now() + within;
    loop {
        let console = expect.map(|_| vm.console(CONSOLE_BYTES)).unwrap_or_default();
        if let Some(text) = expect.filter(|text| console.contains(text)) {
            return Ok(format!("{text:?} was said after {:.1} s", begun.elapsed().as_secs_f64()));
        }
        let state = vm.run_state().map_err(|error| error.to_string())?;
        if state != RunState::Running {
            return Err(format!("the VM is {} after {:.1} s", state.as_str(), begun.elapsed().as_secs_f64()));
        }
        if stopped() {
            return Err("vbrd was stopped".into());
        }
        if Instant::now() >= deadline {
            return match expect {
                None => Ok(format!("it ran for {} s", within.as_secs())),
                Some(text) => Err(format!("{text:?} was not said within {} s", within.as_secs())),
            };
        }
        std::thread::sleep(PAUSE.min(deadline.saturating_duration_since(Instant::now())));
    }
}

/// Where the picture lies; none where there is none.
fn screenshot(vm: &TargetVm, point: &Point) -> Option<String> {
    let path = point.boot_picture();
    match vm.run_state() {
        Ok(RunState::Off) | Err(_) => return None,
        Ok(_) => {}
    }
    if let Err(error) = vm.screenshot(&path) {
        tracing::info!(%error, "there is no picture of the test");
        return None;
    }
    path.is_file().then(|| path.display().to_string())
}
