//! Tables and lists of facts for people.
//!
//! Columns are named once: `>` in front aligns right (figures), `+` shows the column in `wide` only.
//! Nothing wraps, so that a line stays one thing for grep. Text is cleaned of control characters here.

use comfy_table::{Cell as Field, CellAlignment, Color, ContentArrangement};

use crate::human;
use crate::output::View;

/// How a cell is meant; shown as a colour where colours are wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Good,
    Watch,
    Bad,
}

/// A cell's text.
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// Rows under a header.
pub struct Table {
    shown: Vec<bool>,
    right: Vec<bool>,
    table: comfy_table::Table,
}

impl Table {
    pub fn new(view: &View, columns: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        if view.color {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        let shown: Vec<bool> = columns.iter().map(|name| view.wide || !name.contains('+')).collect();
        let right: Vec<bool> = columns.iter().map(|name| name.contains('>')).collect();
        let mut this = Self { shown, right, table };
        let header = columns.iter().map(|name| Cell::from(name.trim_start_matches(['+', '>']))).collect();
        let header = this.fields(header);
        this.table.set_header(header);
        this
    }

    pub fn row(&mut self, cells: Vec<Cell>) {
        let fields = self.fields(cells);
        self.table.add_row(fields);
    }

    pub fn finish(mut self) -> String {
        for column in self.table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut text = String::new();
        for line in self.table.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn fields(&self, cells: Vec<Cell>) -> Vec<Field> {
        let shown = cells.into_iter().zip(&self.shown).zip(&self.right).filter(|((_, shown), _)| **shown);
        shown
            .map(|((cell, _), right)| {
                let text = if cell.text.is_empty() { "-".into() } else { human::clean(&cell.text) };
                let mut field = Field::new(text);
                if *right {
                    field = field.set_alignment(CellAlignment::Right);
                }
                match cell.tone {
                    Tone::Plain => field,
                    Tone::Good => field.fg(Color::Green),
                    Tone::Watch => field.fg(Color::Yellow),
                    Tone::Bad => field.fg(Color::Red),
                }
            })
            .collect()
    }
}

/// Aligned `label  value` lines.
#[derive(Default)]
pub struct Facts {
    facts: Vec<(String, String)>,
}

impl Facts {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn add(&mut self, label: &str, value: impl Into<String>) -> &mut Self {
        self.facts.push((label.into(), value.into()));
        self
    }

    pub fn add_some(&mut self, label: &str, value: Option<String>) -> &mut Self {
        if let Some(value) = value {
            self.add(label, value);
        }
        self
    }

    /// Several values under one label.
    pub fn add_all(&mut self, label: &str, values: impl IntoIterator<Item = String>) -> &mut Self {
        for (at, value) in values.into_iter().enumerate() {
            self.add(if at == 0 { label } else { "" }, value);
        }
        self
    }

    pub fn finish(&self) -> String {
        let width = self.facts.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0) + 2;
        let mut text = String::new();
        for (label, value) in &self.facts {
            let value = if value.is_empty() { "-".into() } else { human::clean(value) };
            text.push_str(format!("{label:width$}{value}").trim_end());
            text.push('\n');
        }
        text
    }
}

/// `part` indented by two spaces under a title.
pub fn section(title: &str, part: &str) -> String {
    let mut text = format!("{title}\n");
    for line in part.lines() {
        text.push_str(format!("  {line}").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(wide: bool) -> View {
        View { wide, color: false, now: "2026-11-22T19:00:00Z".parse().unwrap() }
    }

    fn sample(wide: bool) -> String {
        let mut table = Table::new(&view(wide), &["NAME", ">SIZE", "+PATH"]);
        table.row(vec!["web".into(), "1.5 MiB".into(), "/a".into()]);
        table.row(vec!["database".into(), "".into(), "/b\x1b[2J".into()]);
        table.finish()
    }

    #[test]
    fn columns() {
        assert_eq!(sample(false), "NAME         SIZE\nweb       1.5 MiB\ndatabase        -\n");
        assert_eq!(
            sample(true),
            "NAME         SIZE  PATH\nweb       1.5 MiB  /a\ndatabase        -  /b?[2J\n"
        );
    }

    #[test]
    fn facts() {
        let mut facts = Facts::new();
        facts.add("Job", "web").add_all("Disks", ["/a".into(), "/b".into()]).add_some("None", None);
        assert_eq!(facts.finish(), "Job    web\nDisks  /a\n       /b\n");
    }
}
