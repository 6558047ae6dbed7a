//! Waiting for a session: long polls, progress, and an exit status by the session's state.
//!
//! Outlives a restart of vbrd (see `reconnect.rs`); the session itself never depends on this process.

use std::time::{Duration, Instant};

use clap::Args;
use vbr_api::{Job, Session};

use crate::client::{Document, Patience, encode};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::{Failure, Kind};
use crate::human;
use crate::json;
use crate::output::Format;
use crate::progress::Progress;
use crate::reconnect::Reconnect;
use crate::summary;

/// One long poll. Short, so that a change between two polls is seen soon.
const POLL: Duration = Duration::from_secs(2);
/// Beyond the poll itself vbrd may take this long before it counts as away.
const GRACE: Duration = Duration::from_secs(20);
/// Figures change all the time: no more than five looks a second.
const PAUSE: Duration = Duration::from_millis(200);

/// How long to wait.
#[derive(Args, Clone, Copy, Debug)]
pub struct Timeout {
    /// Give up waiting after this time (90s, 10m, 1h30m); the session goes on, exit status 8
    #[arg(long, value_name = "TIME", value_parser = human::parse_span)]
    pub timeout: Option<Duration>,
}

/// How a wait ended.
enum Outcome {
    Over(Box<Session>, Document),
    TimedOut(Option<(Box<Session>, Document)>),
}

/// Waits until the session is over and shows the result; with `events` also each change on the way.
pub async fn wait(
    context: &Context,
    id: &str,
    timeout: Option<Duration>,
    events: bool,
) -> Result<Exit, Failure> {
    context.on_interrupt(format!(
        "interrupted: session {id} goes on in vbrd\n  next: vbrctl job wait {id}, or vbrctl session cancel {id}"
    ));
    let events = events && context.output.format.is_json();
    match follow(context, id, timeout, events).await? {
        Outcome::Over(session, document) => {
            if !events {
                show(context, &session, &document)?;
            }
            finish(&session)
        }
        Outcome::TimedOut(last) => {
            let state = match &last {
                Some((session, document)) => {
                    if !events {
                        show(context, session, document)?;
                    }
                    format!("session {id} is still {}", session.state.as_str())
                }
                None => "vbrd has not answered".into(),
            };
            Err(Failure::new(
                Exit::Pending,
                "timed_out",
                format!("Stopped waiting for session {id}"),
                format!("{state} after {}", human::span(timeout.unwrap_or_default().as_millis() as u64)),
                format!("it goes on in vbrd: vbrctl job wait {id}"),
            ))
        }
    }
}

/// The session that a job's or a session's name stands for.
pub async fn resolve(context: &Context, name: &str) -> Result<String, Failure> {
    match context.client.get(&format!("/v1/jobs/{}", encode(name))).await {
        Ok(document) => {
            let job: Job = document.one()?;
            job.running.or(job.last_session).ok_or_else(|| {
                Failure::new(
                    Exit::NotFound,
                    "not_found",
                    format!("Job {name} has no session"),
                    "it has not run yet",
                    format!("run it: vbrctl job run {name}"),
                )
            })
        }
        Err(failure) if failure.exit == Exit::NotFound => Ok(name.to_string()),
        Err(failure) => Err(failure),
    }
}

async fn follow(
    context: &Context,
    id: &str,
    timeout: Option<Duration>,
    events: bool,
) -> Result<Outcome, Failure> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut progress = Progress::new();
    let mut reconnect = Reconnect::new(context.patience);
    let mut last: Option<(Box<Session>, Document)> = None;
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) && last.is_some() {
            return Ok(Outcome::TimedOut(last));
        }
        // The first look answers at once, so that something is on the screen.
        let poll = if last.is_none() { Duration::ZERO } else { left.map_or(POLL, |left| left.min(POLL)) };
        let path = format!("/v1/sessions/{}?wait_ms={}", encode(id), poll.as_millis());
        let limit = left.map_or(poll + GRACE, |left| (left + PAUSE).min(poll + GRACE));
        match context.client.get_patiently(&path, Patience::AtMost(limit)).await {
            Ok(document) => {
                reconnect.answered(&mut |text| progress.note(text));
                let session: Box<Session> = Box::new(document.one()?);
                progress.update(&session);
                if events && last.as_ref().is_none_or(|(_, before)| before.text != document.text) {
                    event(context, &document)?;
                }
                if session.state.is_over() {
                    return Ok(Outcome::Over(session, document));
                }
                last = Some((session, document));
                tokio::time::sleep(left.map_or(PAUSE, |left| left.min(PAUSE))).await;
            }
            Err(failure) => {
                let again = reconnect.again(failure, &mut |text| progress.note(text)).await;
                again.map_err(|failure| still_going(failure, id))?;
                if left.is_some_and(|left| left.is_zero()) {
                    return Ok(Outcome::TimedOut(last));
                }
            }
        }
    }
}

/// vbrd stayed away: the session is not lost with it.
fn still_going(mut failure: Failure, id: &str) -> Failure {
    if failure.kind == Kind::Gone {
        failure.body.next_step = format!(
            "{}; the session goes on when vbrd is back: vbrctl job wait {id}",
            failure.body.next_step
        );
    }
    failure
}

fn show(context: &Context, session: &Session, document: &Document) -> Result<(), Failure> {
    let output = context.output;
    if output.format.is_json() {
        return event(context, document);
    }
    output.emit(&summary::session(session, &output.view()))
}

fn event(context: &Context, document: &Document) -> Result<(), Failure> {
    let output = context.output;
    let text = json::with_schema(&document.text);
    output.emit(&if output.format == Format::Json { json::pretty(&text) } else { text })
}

/// The exit status; a session that failed says why on stderr too.
fn finish(session: &Session) -> Result<Exit, Failure> {
    let exit = Exit::of_session(session.state);
    if exit != Exit::Failed {
        return Ok(exit);
    }
    let mut failure = Failure::new(
        exit,
        "session_failed",
        format!("Session {} of job {} {}", session.session, session.job, session.state.as_str()),
        match session.state {
            vbr_api::SessionState::Cancelled => "somebody cancelled it",
            _ => "no reason was recorded",
        },
        format!("run it again: vbrctl job run {} --wait", session.job),
    );
    if let Some(error) = &session.error {
        failure.body = error.clone();
    }
    Err(failure)
}
