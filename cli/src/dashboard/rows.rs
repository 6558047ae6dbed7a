//! Lines of the screen: fields of a fixed width side by side, bars and sparklines.
//!
//! Pure: text in, cells of a buffer out. Widths are those of a terminal (a wide character takes two cells); what
//! does not fit ends with an ellipsis. Text is cleaned of control characters here.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Span;

use crate::human;
use crate::table::Tone;

/// Which characters and colours the terminal is given.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// False where `NO_COLOR` is set: then bold text and words say it all.
    pub color: bool,
    /// False where the locale is not UTF-8.
    pub unicode: bool,
}

impl Look {
    /// What a tone looks like. What is bad is bold too, so that it is seen without colours.
    pub fn tone(self, tone: Tone) -> Style {
        let style = if tone == Tone::Bad { Style::new().add_modifier(Modifier::BOLD) } else { Style::new() };
        match (self.color, tone) {
            (false, _) | (_, Tone::Plain) => style,
            (_, Tone::Good) => style.fg(Color::Green),
            (_, Tone::Watch) => style.fg(Color::Yellow),
            (_, Tone::Bad) => style.fg(Color::Red),
        }
    }

    /// Titles and names.
    pub fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// Column heads and rules.
    pub fn faint(self) -> Style {
        if self.color { Style::new().fg(Color::DarkGray) } else { Style::new() }
    }

    fn levels(self) -> [char; 8] {
        if self.unicode {
            ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']
        } else {
            [' ', '.', ':', '-', '=', '+', '*', '#']
        }
    }

    fn ellipsis(self) -> &'static str {
        if self.unicode { "…" } else { "~" }
    }

    /// Before the name of the slowest stage.
    pub fn mark(self) -> &'static str {
        if self.unicode { "▶ " } else { "> " }
    }

    /// A rule; heavy under the pane that has the keys.
    pub fn rule(self, heavy: bool) -> char {
        match (self.unicode, heavy) {
            (true, false) => '─',
            (true, true) => '━',
            (false, false) => '-',
            (false, true) => '=',
        }
    }

    /// How full something is, in one character.
    pub fn level(self, part: u64, whole: u64) -> char {
        let levels = self.levels();
        let at = u128::from(part.min(whole)) * 7 / u128::from(whole.max(1));
        levels[at.min(7) as usize]
    }

    /// The newest values at the right; always `width` characters.
    pub fn spark(self, values: &[u64], most: u64, width: usize) -> String {
        let shown = &values[values.len().saturating_sub(width)..];
        let mut text = " ".repeat(width - shown.len());
        text.extend(shown.iter().map(|value| self.level(*value, most)));
        text
    }

    /// A bar of `width` characters.
    pub fn bar(self, part: u64, whole: u64, width: usize) -> String {
        let (full, empty) = if self.unicode { ("█", "░") } else { ("#", ".") };
        let filled = u128::from(part.min(whole)) * width as u128 / u128::from(whole.max(1));
        let filled = filled.min(width as u128) as usize;
        full.repeat(filled) + &empty.repeat(width - filled)
    }
}

/// Text in a place of its own.
#[derive(Clone, Debug)]
pub struct Field {
    text: String,
    width: u16,
    right: bool,
    style: Style,
}

/// Takes what is left of the line.
pub const REST: u16 = u16::MAX;

impl Field {
    pub fn left(text: impl AsRef<str>, width: u16, style: Style) -> Self {
        Self { text: human::clean(text.as_ref()), width, right: false, style }
    }

    pub fn right(text: impl AsRef<str>, width: u16, style: Style) -> Self {
        Self { right: true, ..Self::left(text, width, style) }
    }
}

/// Fields with one blank between them.
pub type Row = Vec<Field>;

/// Cells that text takes.
pub fn width(text: &str) -> u16 {
    u16::try_from(Span::raw(text).width()).unwrap_or(u16::MAX)
}

/// Writes a row into a line of the buffer.
pub fn put_row(buffer: &mut Buffer, line: Rect, row: &Row, look: Look) {
    let end = line.x + line.width;
    let mut x = line.x;
    for field in row {
        if x >= end {
            return;
        }
        let room = field.width.min(end - x);
        put(buffer, (x, line.y), room, field, look);
        x = x.saturating_add(room).saturating_add(1);
    }
}

fn put(buffer: &mut Buffer, at: (u16, u16), room: u16, field: &Field, look: Look) {
    let (x, y) = at;
    let taken = width(&field.text);
    if taken <= room {
        let from = if field.right { x + room - taken } else { x };
        buffer.set_stringn(from, y, &field.text, usize::from(room), field.style);
        return;
    }
    let (after, _) = buffer.set_stringn(x, y, &field.text, usize::from(room.saturating_sub(1)), field.style);
    buffer.set_stringn(after, y, look.ellipsis(), 1, field.style);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Look = Look { color: false, unicode: true };

    fn shown(row: &Row, columns: u16) -> String {
        let line = Rect::new(0, 0, columns, 1);
        let mut buffer = Buffer::empty(line);
        put_row(&mut buffer, line, row, LOOK);
        super::super::tests::text(&buffer)
    }

    #[test]
    fn fields_keep_to_their_place() {
        let row = vec![
            Field::left("a long name", 6, Style::new()),
            Field::right("7 s", 5, Style::new()),
            Field::left("the rest\x1b[2J", REST, Style::new()),
        ];
        assert_eq!(shown(&row, 30), "a lon…   7 s the rest?[2J\n");
        assert_eq!(shown(&row, 16), "a lon…   7 s th…\n");
        assert_eq!(shown(&row, 4), "a l…\n");
        // A character of two cells is never cut in half.
        assert_eq!(shown(&vec![Field::left("数据库", 4, Style::new())], 9), "数…\n");
    }

    #[test]
    fn bars_and_sparks() {
        assert_eq!(LOOK.bar(1, 4, 8), "██░░░░░░");
        assert_eq!(LOOK.bar(9, 4, 3), "███");
        assert_eq!(LOOK.bar(0, 0, 3), "░░░");
        assert_eq!(LOOK.spark(&[0, 50, 100], 100, 5), "  ▁▄█");
        assert_eq!(LOOK.spark(&[1, 2, 3], 0, 2), "▁▁");
        let plain = Look { unicode: false, ..LOOK };
        assert_eq!((plain.bar(1, 2, 4), plain.spark(&[0, 100], 100, 2)), ("##..".into(), " #".into()));
    }
}
