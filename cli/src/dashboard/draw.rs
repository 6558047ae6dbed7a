//! The whole screen: which part stands where, and how the panes share the lines.
//!
//! Pure: a model into a buffer of any size. Panes get what they need where that fits; else each gets its fair share.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};

use super::model::{Model, Pane};
use super::panes::{self, Lines};
use super::rows::{Field, Look, REST, Row, put_row, width};

/// Below this nothing can be said.
const LEAST: (u16, u16) = (40, 12);

/// Draws; gives the last line that each pane may be scrolled to.
pub fn draw(buffer: &mut Buffer, model: &Model) -> [usize; 3] {
    let area = buffer.area;
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let text = format!("at least {} x {} are needed", LEAST.0, LEAST.1);
        put_row(buffer, Rect { height: 1, ..area }, &vec![Field::left(text, REST, Style::new())], model.look);
        return [0; 3];
    }
    let mut page = Page { buffer, look: model.look, y: area.y };
    page.row(&panes::site(model, area.width));
    for row in panes::attention(model, usize::from(area.height / 12)) {
        page.row(&row);
    }
    let parts: [Lines; 3] = Pane::ALL.map(|pane| match pane {
        Pane::Peers => panes::peers(model, area.width),
        Pane::Sessions => panes::sessions(model, area.width),
        Pane::Jobs => panes::jobs(model, area.width),
    });
    let left = usize::from((area.y + area.height).saturating_sub(page.y + 2));
    let heights = share(parts.each_ref().map(needed), left);
    let mut last = [0; 3];
    for ((pane, part), height) in Pane::ALL.into_iter().zip(&parts).zip(heights) {
        last[pane.index()] = page.pane(model, pane, part, height);
    }
    page.y = area.y + area.height - 2;
    page.row(&panes::room(model));
    page.row(&keys(model.look));
    if model.help {
        help(buffer, model.look);
    }
    last
}

/// Lines that a pane would like: its title, its heads and all its rows.
fn needed(part: &Lines) -> usize {
    1 + heads_of(part) + part.rows.len().max(1)
}

/// Column heads over nothing say nothing.
fn heads_of(part: &Lines) -> usize {
    usize::from(part.heads.is_some() && !part.rows.is_empty())
}

/// Lines in turn to whoever still wants one, until none are left.
fn share(wanted: [usize; 3], left: usize) -> [usize; 3] {
    let mut given = [0; 3];
    for _ in 0..left {
        // The least filled comes first; of equal ones the first.
        let hungry = (0..3).filter(|at| given[*at] < wanted[*at]).min_by_key(|at| given[*at]);
        let Some(at) = hungry else { break };
        given[at] += 1;
    }
    given
}

fn keys(look: Look) -> Row {
    let (up, down) = if look.unicode { ("↑", "↓") } else { ("k", "j") };
    vec![Field::left(
        format!("q quit   Tab next pane   {up}{down} PgUp PgDn scroll   ? help"),
        REST,
        look.faint(),
    )]
}

/// A place in the buffer, line by line.
struct Page<'a> {
    buffer: &'a mut Buffer,
    look: Look,
    y: u16,
}

impl Page<'_> {
    fn row(&mut self, row: &Row) {
        let area = self.buffer.area;
        if self.y < area.y + area.height {
            let line = Rect { x: area.x, y: self.y, width: area.width, height: 1 };
            put_row(self.buffer, line, row, self.look);
            self.y += 1;
        }
    }

    /// Gives the last line that it may be scrolled to.
    fn pane(&mut self, model: &Model, pane: Pane, part: &Lines, height: usize) -> usize {
        let visible = height.saturating_sub(1 + heads_of(part));
        let last = part.rows.len().saturating_sub(visible);
        let from = model.scroll[pane.index()].min(last);
        let to = (from + visible).min(part.rows.len());
        if height == 0 {
            return last;
        }
        let span =
            if last > 0 { format!("lines {}-{to} of {}", from + 1, part.rows.len()) } else { String::new() };
        self.title(pane, &part.about, &span, model.pane == pane);
        if let Some(heads) = part.heads.as_ref().filter(|_| height > 1 && heads_of(part) > 0) {
            self.row(heads);
        }
        if part.rows.is_empty() && visible > 0 {
            self.row(&vec![Field::left(nothing(pane), REST, self.look.faint())]);
        }
        for row in &part.rows[from..to] {
            self.row(row);
        }
        last
    }

    fn title(&mut self, pane: Pane, about: &str, span: &str, heavy: bool) {
        let rule = self.look.rule(heavy);
        let name = match pane {
            Pane::Peers => "Peers",
            Pane::Sessions => "Sessions",
            Pane::Jobs => "Jobs",
        };
        let columns = self.buffer.area.width;
        let end = if span.is_empty() { 0 } else { width(span) + 4 };
        let start = format!("{rule}{rule} {name}");
        let filled = width(&start) + 3 + width(about);
        let fill = |count: u16| rule.to_string().repeat(usize::from(count));
        let style = if heavy { self.look.strong() } else { self.look.faint() };
        let mut row = vec![
            Field::left(&start, width(&start), self.look.strong()),
            Field::left(about, width(about), Style::new()),
            Field::left(
                fill(columns.saturating_sub(filled + end)),
                columns.saturating_sub(filled + end),
                style,
            ),
        ];
        if !span.is_empty() {
            row.push(Field::left(span, width(span), Style::new()));
            row.push(Field::left(fill(2), 2, style));
        }
        self.row(&row);
    }
}

fn nothing(pane: Pane) -> &'static str {
    match pane {
        Pane::Peers => "none yet: vbrctl peer invite",
        Pane::Sessions => "nothing runs",
        Pane::Jobs => "none: vbrctl job create NAME --disk PATH --target PEER",
    }
}

const HELP: &[&str] = &[
    "q, Esc, Ctrl-C   leave; sessions go on in vbrd",
    "Tab              the next pane gets the keys (heavy line)",
    "up, down, k, j   scroll by a line; PgUp and PgDn by ten",
    "Home, End, g, G  first and last line",
    "",
    "RPO LAG    age of what the last restore point shows",
    "OVERDUE    two runs were due since and brought none",
    "SENDS      TCP payload, mean of 3 s; the line: newest right",
    "host mover accel net accel mover host   load of the stages",
    "  from source to target, in percent, and the slowest of them",
    "",
    "any key closes this",
];

fn help(buffer: &mut Buffer, look: Look) {
    let area = buffer.area;
    let columns = HELP.iter().map(|line| width(line)).max().unwrap_or(0) + 4;
    let (columns, lines) = (columns.min(area.width), (HELP.len() as u16 + 2).min(area.height));
    let (x, y) = (area.x + (area.width - columns) / 2, area.y + (area.height - lines) / 2);
    let style = Style::new().add_modifier(Modifier::REVERSED);
    for line in 0..lines {
        let text = line.checked_sub(1).and_then(|at| HELP.get(usize::from(at))).copied().unwrap_or_default();
        for column in 0..columns {
            if let Some(cell) = buffer.cell_mut((x + column, y + line)) {
                cell.reset();
                cell.set_style(style);
            }
        }
        let place = Rect { x: x + 2, y: y + line, width: columns.saturating_sub(4), height: 1 };
        put_row(buffer, place, &vec![Field::left(text, REST, style)], look);
    }
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn lines_are_shared_fairly() {
        assert_eq!(share([3, 2, 5], 20), [3, 2, 5]);
        assert_eq!(share([3, 2, 100], 15), [3, 2, 10]);
        assert_eq!(share([40, 2, 100], 18), [8, 2, 8]);
        assert_eq!(share([4, 4, 4], 0), [0, 0, 0]);
    }
}
