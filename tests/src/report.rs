//! Tables for people, in plain text and in Markdown. No IO.

use std::fmt;

/// Rows of text under headings.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row<S: AsRef<str>>(&mut self, cells: &[S]) {
        self.rows.push(cells.iter().map(|cell| cell.as_ref().to_owned()).collect());
    }

    /// The same as Markdown.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        for (at, row) in self.rows.iter().enumerate() {
            out += &format!("| {} |\n", row.join(" | "));
            if at == 0 {
                out += &format!("|{}\n", "---|".repeat(row.len()));
            }
        }
        out
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for (at, row) in self.rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
            if at == 0 {
                writeln!(
                    f,
                    "{}",
                    widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>().join("  ")
                )?;
            }
        }
        Ok(())
    }
}

/// Mebibytes with a decimal, two below 10.
pub fn mib(bytes: u64) -> String {
    let value = bytes as f64 / f64::from(1 << 20);
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") }
}

/// The middle of some measurements.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => (sorted[len / 2 - 1] + sorted[len / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_become_markdown() {
        let mut table = Table::new(&["a", "long"]);
        table.row(&["xyz", "1"]);
        assert_eq!(table.to_string(), "a    long\n---  ----\nxyz     1\n");
        assert_eq!(table.markdown(), "| a | long |\n|---|---|\n| xyz | 1 |\n");
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
