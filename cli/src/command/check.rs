//! `vbrctl check`: one line and one status, as monitors want it.

use clap::Args;
use vbr_api::Status;

use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;

/// For monitors: one line; status 0 ok, 1 warning, 2 critical, 3 unknown
///
/// Warns and fails by what `vbrctl status` says needs attention: links that are down, jobs that failed or are
/// overdue, datastores that are full, what is broken. A vbrd that does not answer is unknown.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vbrctl check\n  vbrctl check --job web")]
pub struct Command {
    /// Look at this job alone
    #[arg(long, value_name = "NAME")]
    job: Option<String>,
}

/// What a monitor understands. The numbers are a monitor's: they mean something else after other commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    Warning,
    Critical,
    Unknown,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }

    fn exit(self) -> Exit {
        match self {
            Self::Ok => Exit::Done,
            Self::Warning => Exit::Failed,
            Self::Critical => Exit::Usage,
            Self::Unknown => Exit::Incomplete,
        }
    }
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let document = match context.client.get("/v1/status").await {
            Ok(document) => document,
            Err(failure) => {
                return say(
                    context,
                    State::Unknown,
                    &format!("{}: {}", failure.body.what, failure.body.why),
                    "",
                );
            }
        };
        let status: Status = document.one()?;
        let (state, text) = judge(&status, self.job.as_deref());
        say(context, state, &text, &figures(&status, self.job.as_deref()))
    }
}

fn say(context: &Context, state: State, text: &str, figures: &str) -> Result<Exit, Failure> {
    let line = if context.output.format.is_json() {
        let value = serde_json::json!({
            "schema": vbr_api::SCHEMA, "state": state.word().to_lowercase(), "status": state.exit() as u8, "text": text,
        });
        format!("{value}\n")
    } else {
        // What follows the bar is for graphs.
        let bar = if figures.is_empty() { "" } else { " | " };
        format!("VBR {} - {}{bar}{figures}\n", state.word(), text.replace(['\n', '|'], " "))
    };
    context.output.emit(&line)?;
    Ok(state.exit())
}

/// The worst there is, and a line about it.
fn judge(status: &Status, job: Option<&str>) -> (State, String) {
    if let Some(name) = job {
        let Some(lag) = status.jobs.iter().find(|lag| lag.job == name) else {
            return (State::Unknown, format!("there is no job {name}; vbrctl job list shows them"));
        };
        let lagging = lag.rpo_lag_ms.map_or("it has no restore point".into(), |ms| {
            format!("its last restore point shows how the disks were {} ago", human::span(ms))
        });
        let failed = lag.last_state == Some(vbr_api::SessionState::Failed);
        return match (failed, lag.overdue, lag.enabled) {
            (true, ..) => (State::Critical, format!("the last session of job {name} failed; {lagging}")),
            (_, true, _) => (State::Critical, format!("job {name} is overdue; {lagging}")),
            (.., false) => (State::Warning, format!("job {name} is disabled; {lagging}")),
            _ => (State::Ok, format!("job {name}: {lagging}")),
        };
    }
    let of = |level: &'static str| status.warnings.iter().filter(move |warning| warning.level == level);
    let state = match (of("critical").count(), status.warnings.len()) {
        (0, 0) => State::Ok,
        (0, _) => State::Warning,
        _ => State::Critical,
    };
    if state == State::Ok {
        let connected = status.peers.iter().filter(|peer| peer.connected).count();
        let text = format!(
            "{}, {connected} of {} connected, {}",
            human::count(status.jobs.len() as u64, "job"),
            human::count(status.peers.len() as u64, "peer"),
            human::count(status.sessions.len() as u64, "session"),
        );
        return (state, text);
    }
    let all: Vec<&str> = of("critical").chain(of("warning")).map(|warning| warning.what.as_str()).collect();
    (state, all.join("; "))
}

/// Lags in seconds, as monitors graph them.
fn figures(status: &Status, job: Option<&str>) -> String {
    let of = |lag: &vbr_api::JobLag| {
        let ms = lag.rpo_lag_ms.filter(|_| job.is_none_or(|job| job == lag.job))?;
        Some(format!("'{} lag'={}s", lag.job, ms / 1000))
    };
    status.jobs.iter().filter_map(of).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbr_api::{JobLag, Moment, SessionState, Warning};

    fn status(levels: &[&str]) -> Status {
        let warning = |level: &&str| Warning {
            level: (*level).into(),
            what: format!("what is {level}"),
            next_step: "n".into(),
        };
        let lag = |job: &str, overdue, last_state| JobLag {
            job: job.into(),
            enabled: true,
            rpo_lag_ms: Some(65_000),
            last_state: Some(last_state),
            overdue,
        };
        Status {
            site: "branch".into(),
            peer_id: "x".into(),
            version: "0.1.0".into(),
            started_at: Moment::UNIX_EPOCH,
            listeners: Vec::new(),
            peers: Vec::new(),
            sessions: Vec::new(),
            jobs: vec![
                lag("web", false, SessionState::Succeeded),
                lag("db", true, SessionState::Succeeded),
                lag("desk", false, SessionState::Failed),
            ],
            datastores: Vec::new(),
            replicas: 0,
            receiving: Vec::new(),
            warnings: levels.iter().map(warning).collect(),
        }
    }

    #[test]
    fn the_worst_counts_and_comes_first() {
        assert_eq!(judge(&status(&[]), None).0, State::Ok);
        assert_eq!(judge(&status(&["warning"]), None).0, State::Warning);
        let (state, text) = judge(&status(&["warning", "critical"]), None);
        assert_eq!((state, text.as_str()), (State::Critical, "what is critical; what is warning"));
    }

    #[test]
    fn one_job_alone() {
        let status = status(&["critical"]);
        for (job, state) in
            [("web", State::Ok), ("db", State::Critical), ("desk", State::Critical), ("none", State::Unknown)]
        {
            assert_eq!(judge(&status, Some(job)).0, state, "{job}");
        }
        assert_eq!(figures(&status, Some("web")), "'web lag'=65s");
    }

    #[test]
    fn the_numbers_are_those_of_monitors() {
        let all = [State::Ok, State::Warning, State::Critical, State::Unknown];
        assert_eq!(all.map(|state| state.exit() as u8), [0, 1, 2, 3]);
    }
}
