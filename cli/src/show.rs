//! The common shape of reading commands: fetch, render, and with `--watch` again until interrupted.
//!
//! A watched table is redrawn in place on a terminal; a watched `jsonl` list prints the lines that are new.

use std::collections::HashSet;
use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::Args;
use serde::de::DeserializeOwned;

use crate::client::Document;
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::json;
use crate::output::{Format, View};
use crate::reconnect::Reconnect;

const WATCH_EVERY: Duration = Duration::from_secs(2);

/// `--watch`
#[derive(Args, Clone, Copy, Debug)]
pub struct Watch {
    /// Show changes until interrupted (looks every 2 s; with -o jsonl one object per change)
    #[arg(long)]
    pub watch: bool,
}

/// Shows a list; `empty` is said on stderr where there is nothing.
pub async fn list<T: DeserializeOwned>(
    context: &Context,
    path: &str,
    watch: bool,
    empty: &str,
    render: &dyn Fn(&[T], &View) -> String,
) -> Result<Exit, Failure> {
    let output = context.output;
    if watch {
        return follow(context, path, &|document| output.list_text(document, render), empty, Shape::List)
            .await;
    }
    print_list(context, &context.client.get(path).await?, empty, render)
}

/// Shows a list that was fetched already.
pub fn print_list<T: DeserializeOwned>(
    context: &Context,
    document: &Document,
    empty: &str,
    render: &dyn Fn(&[T], &View) -> String,
) -> Result<Exit, Failure> {
    let text = context.output.list_text(document, render)?;
    if text.is_empty() && !context.output.format.is_json() {
        context.output.note(empty);
    }
    context.output.emit(&text)?;
    Ok(Exit::Done)
}

/// Shows a single object.
pub async fn one<T: DeserializeOwned>(
    context: &Context,
    path: &str,
    watch: bool,
    render: &dyn Fn(&T, &View) -> String,
) -> Result<Exit, Failure> {
    let output = context.output;
    if watch {
        return follow(context, path, &|document| output.one_text(document, render), "", Shape::One).await;
    }
    output.emit(&output.one_text(&context.client.get(path).await?, render)?)?;
    Ok(Exit::Done)
}

/// One object again and again for programs: a line of JSON whenever it changed.
pub async fn documents(context: &Context, path: &str) -> Result<Exit, Failure> {
    let line = |document: &Document| {
        document.checked()?;
        Ok(json::compact(&document.text) + "\n")
    };
    follow(context, path, &line, "", Shape::Line).await
}

/// What is watched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    One,
    List,
    /// One object in a line, also where nobody asked for JSON.
    Line,
}

/// Fetches again and again and shows what changed; ends by interruption or failure only.
async fn follow(
    context: &Context,
    path: &str,
    text_of: &dyn Fn(&Document) -> Result<String, Failure>,
    empty: &str,
    shape: Shape,
) -> Result<Exit, Failure> {
    let output = context.output;
    let is_text = !output.format.is_json() && shape != Shape::Line;
    let redraw = is_text && io::stdout().is_terminal();
    let mut reconnect = Reconnect::new(context.patience);
    let mut note = |text: &str| output.note(text);
    let mut last: Option<String> = None;
    let mut last_lines: HashSet<String> = HashSet::new();
    loop {
        match context.client.get(path).await {
            Ok(document) => {
                reconnect.answered(&mut note);
                let text = text_of(&document)?;
                if redraw {
                    let body = if text.is_empty() { empty } else { &text };
                    output.emit(&format!("\x1b[H\x1b[2J{body}"))?;
                } else if shape == Shape::List && output.format == Format::Jsonl {
                    let lines = output.json_lines(&document);
                    for line in lines.iter().filter(|line| !last_lines.contains(*line)) {
                        output.emit(line)?;
                    }
                    last_lines = lines.into_iter().collect();
                } else if last.as_ref() != Some(&text) {
                    if last.is_some() && is_text {
                        output.emit("\n")?;
                    }
                    output.emit(&text)?;
                    last = Some(text);
                }
            }
            Err(failure) => {
                reconnect.again(failure, &mut note).await?;
                continue;
            }
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}
