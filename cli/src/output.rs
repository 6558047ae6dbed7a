//! Where results go and in which form: data to stdout, everything else to stderr.
//!
//! `table` and `wide` are for people and may change; `json` and `jsonl` are vbrd's own objects, passed through.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde::de::DeserializeOwned;
use vbr_api::Moment;

use crate::client::Document;
use crate::failure::{Failure, Kind};
use crate::json;

/// `-o`. The variants are told in the option's help.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Wide,
    Json,
    Jsonl,
}

impl Format {
    pub fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::Jsonl)
    }
}

/// What a renderer needs to know.
#[derive(Clone, Copy)]
pub struct View {
    pub wide: bool,
    pub color: bool,
    pub now: Moment,
}

/// The two streams.
#[derive(Clone, Copy)]
pub struct Output {
    pub format: Format,
    pub color: bool,
}

impl Output {
    pub fn new(format: Format) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self { format, color: !plain && io::stdout().is_terminal() }
    }

    pub fn view(&self) -> View {
        View { wide: self.format == Format::Wide, color: self.color, now: Moment::now() }
    }

    /// Data.
    pub fn emit(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        let line_end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        out.write_all(text.as_bytes())
            .and_then(|()| out.write_all(line_end.as_bytes()))
            .and_then(|()| out.flush())
            .map_err(|error| Failure::output(&error))
    }

    /// Prose. A stderr that nobody reads stops nothing.
    pub fn note(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// The end of a command that failed.
    pub fn failure(&self, failure: &Failure) {
        if failure.kind != Kind::Silent {
            let text = if self.format.is_json() { failure.to_json() } else { failure.to_text() };
            let _ = io::stderr().lock().write_all(text.as_bytes());
        }
    }

    /// A single object in the chosen form.
    pub fn one_text<T: DeserializeOwned>(
        &self,
        document: &Document,
        render: &dyn Fn(&T, &View) -> String,
    ) -> Result<String, Failure> {
        document.checked()?;
        match self.format {
            Format::Json => Ok(json::pretty(&document.text)),
            Format::Jsonl => Ok(json::compact(&document.text)),
            Format::Table | Format::Wide => Ok(render(&document.one::<T>()?, &self.view())),
        }
    }

    /// A list in the chosen form. Empty text where a table would have no row.
    pub fn list_text<T: DeserializeOwned>(
        &self,
        document: &Document,
        render: &dyn Fn(&[T], &View) -> String,
    ) -> Result<String, Failure> {
        document.checked()?;
        match self.format {
            Format::Json => Ok(json::pretty(&document.text)),
            Format::Jsonl => Ok(self.json_lines(document).join("\n")),
            Format::Table | Format::Wide => {
                let items = document.list::<T>()?;
                Ok(if items.is_empty() { String::new() } else { render(&items, &self.view()) })
            }
        }
    }

    /// A list's items, a line each.
    pub fn json_lines(&self, document: &Document) -> Vec<String> {
        json::items(&document.text).iter().map(|item| json::with_schema(item)).collect()
    }

    /// The result of an order that has no object worth a table: a line for people, vbrd's answer for programs.
    pub fn done(&self, document: &Document, line: &str, fallback: serde_json::Value) -> Result<(), Failure> {
        if !self.format.is_json() {
            return self.emit(line);
        }
        let text = if document.is_json() { document.text.clone() } else { fallback.to_string() };
        self.json_object(&text)
    }

    /// A JSON object that was made or read here.
    pub fn json_object(&self, text: &str) -> Result<(), Failure> {
        let text = json::with_schema(text);
        self.emit(&if self.format == Format::Json { json::pretty(&text) } else { text })
    }
}
