//! The test of a restore point: it is started away from everybody, looked at, and thrown away.
//!
//! It is good where the expected text was said or the guest agent answered; without either, where it ran for its time.
//! Replication goes on meanwhile. The restore point carries the result, with the end of what the guest said and its screen.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vbr_api::{BootTest, Moment, TestRequest};

use super::{Failovers, title};
use crate::error::Problem;
use crate::host::target::{RunState, TargetVm, agent_answers};
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
            let looks = Looks { vm: &vm, directory: replica.failover_dir(), request, within, begun };
            (start, looks.look(stopped))
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
    let default = if request.expect.is_some() || request.agent { WITHIN } else { RUNS_FOR };
    let within = request.within_ms.map_or(default, Duration::from_millis);
    if within.is_zero() || within > WITHIN_MAX {
        return wrong("it would take no time, or more than an hour", "say --within with 1s to 1h");
    }
    Ok(within)
}

/// What is looked at, and for what.
struct Looks<'a> {
    vm: &'a TargetVm,
    directory: PathBuf,
    request: &'a TestRequest,
    within: Duration,
    begun: Instant,
}

impl Looks<'_> {
    /// Looks until what is expected was seen. Answers what was seen, or what was not.
    fn look(&self, stopped: &dyn Fn() -> bool) -> Result<String, String> {
        let deadline = Instant::now() + self.within;
        let (expect, mut said, mut answered) = (self.request.expect.as_deref(), Vec::new(), false);
        let mut text = expect;
        loop {
            if let Some(found) = text.filter(|text| self.vm.console(CONSOLE_BYTES).contains(text)) {
                said.push(format!("{found:?} was said after {}", self.elapsed()));
                text = None;
            }
            // Asked where its answer matters, for who asks waits.
            if !answered && (self.request.agent || expect.is_none()) && agent_answers(&self.directory) {
                said.push(format!("its guest agent answered after {}", self.elapsed()));
                answered = true;
            }
            let enough = answered || (expect.is_some() && !self.request.agent);
            if text.is_none() && enough {
                return Ok(said.join(", "));
            }
            let state = self.vm.run_state().map_err(|error| error.to_string())?;
            if state != RunState::Running {
                return Err(format!("the VM is {} after {}", state.as_str(), self.elapsed()));
            }
            if stopped() {
                return Err("vbrd was stopped".into());
            }
            if Instant::now() >= deadline {
                return self.too_late(text, answered);
            }
            std::thread::sleep(PAUSE.min(deadline.saturating_duration_since(Instant::now())));
        }
    }

    /// What has not come in time; with nothing expected of it, it has run.
    fn too_late(&self, text: Option<&str>, answered: bool) -> Result<String, String> {
        let seconds = self.within.as_secs();
        let mut missing: Vec<String> =
            text.map(|text| format!("{text:?} was not said")).into_iter().collect();
        if self.request.agent && !answered {
            missing.push("its guest agent did not answer".into());
        }
        match missing.is_empty() {
            true => Ok(format!("it ran for {seconds} s")),
            false => Err(format!("{} within {seconds} s", missing.join(", and "))),
        }
    }

    fn elapsed(&self) -> String {
        format!("{:.1} s", self.begun.elapsed().as_secs_f64())
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
