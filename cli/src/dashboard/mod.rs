//! `vbrctl status --watch` on a terminal: the site at a glance, kept up to date.
//!
//! `model` is what is shown and how keys change it, `panes` and `rows` make lines of it, `draw` places them (all of
//! these pure), `screen` owns the terminal, and the loop here asks vbrd once a second. A vbrd that is away is said and
//! asked again, for as long as it takes; keys are heard meanwhile. Not its job: other forms of output (`show.rs`).

mod draw;
mod model;
mod panes;
mod rows;
mod screen;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use vbr_api::{Moment, Status};

use self::model::{Model, Snapshot, Wish};
use self::rows::Look;
use self::screen::Screen;
use crate::client::{Document, Patience};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::{Failure, Kind};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A vbrd that takes longer counts as one that does not answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Shows the site until the user leaves. The first answer is wanted before the terminal is taken over: a wrong
/// socket is an ordinary error.
pub async fn run(context: &Context) -> Result<Exit, Failure> {
    let look = Look { color: context.output.color, unicode: locale_is_utf8() };
    let mut model = Model::new(look_once(context).await?, look, Moment::now());
    let mut asked = Instant::now();
    let mut screen = Screen::open().map_err(|error| broken(&error))?;
    let mut events = screen::events();
    let mut answer = Box::pin(look_later(context));
    let mut clock = tokio::time::interval(LOOK_EVERY);
    loop {
        model.now = Moment::now();
        screen.draw(&mut model).map_err(|error| broken(&error))?;
        tokio::select! {
            event = events.recv() => {
                let Some(event) = event else { return Err(broken(&"its keys cannot be read")) };
                match model.event(&event) {
                    Wish::Stay => {}
                    Wish::Quit => return Ok(Exit::Done),
                    Wish::Interrupt => return Ok(Exit::Interrupted),
                }
            }
            got = &mut answer => {
                match got {
                    Ok(snapshot) => {
                        model.answered(snapshot, u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX));
                        asked = Instant::now();
                    }
                    Err(failure) if failure.kind == Kind::Gone => model.silent(failure.body.why),
                    Err(failure) => return Err(failure),
                }
                answer = Box::pin(look_later(context));
            }
            _ = clock.tick() => {}
        }
    }
}

async fn look_later(context: &Context) -> Result<Snapshot, Failure> {
    tokio::time::sleep(LOOK_EVERY).await;
    look_once(context).await
}

async fn look_once(context: &Context) -> Result<Snapshot, Failure> {
    let get = |path: &'static str| context.client.get_patiently(path, Patience::AtMost(ANSWER));
    let status: Status = get("/v1/status").await?.one()?;
    let jobs = get("/v1/jobs").await?.list()?;
    let cache = some(get("/v1/cache").await)?;
    Ok(Snapshot { status, jobs, cache })
}

/// Cache figures are worth a line, not an end.
fn some<T: DeserializeOwned>(answer: Result<Document, Failure>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(document) => document.one().map(Some),
        Err(failure) if failure.kind == Kind::Gone => Err(failure),
        Err(_) => Ok(None),
    }
}

fn broken(why: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        Exit::Failed,
        "terminal",
        "Cannot use this terminal",
        why.to_string(),
        "look without it: vbrctl status, or vbrctl status --watch -o jsonl",
    )
}

/// As the C library decides: the first of these that is set.
fn locale_is_utf8() -> bool {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG")).unwrap_or_default();
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}
