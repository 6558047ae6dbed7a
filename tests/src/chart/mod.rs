//! Small SVG pictures: grouped bars, horizontal bars, lines on logarithmic axes. No IO.
//!
//! A picture brings its own background and both sets of colours, so it is legible on a light and on a
//! dark page; text is never smaller than 11 units of a picture 960 wide. Bounds: eight series, one
//! colour each.

mod bars;
mod lines;

use std::fmt::Write;

pub use bars::{Bars, Ranking};
pub use lines::Lines;

/// Light and dark, told apart without red against green (Okabe and Ito's set, the dark one lighter).
const COLOURS: [(&str, &str); 8] = [
    ("#0072b2", "#4db2ec"),
    ("#00a5cf", "#9fe3ff"),
    ("#8a8f98", "#a3a9b3"),
    ("#e69f00", "#f0b93a"),
    ("#b8559a", "#dc8fc4"),
    ("#d55e00", "#ff8b3d"),
    ("#009e73", "#3fcf9f"),
    ("#6a4fb5", "#ab93f0"),
];

const WIDTH: f64 = 960.0;

/// One row of bars or one line.
#[derive(Clone, Debug)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// Which colour: a tool keeps its own in every picture.
    pub colour: usize,
    /// One a group or a place on the axis; none where nothing was measured.
    pub values: Vec<Option<f64>>,
}

/// What is drawn so far.
struct Canvas {
    body: String,
    height: f64,
}

/// Where a text is held.
#[derive(Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

impl Canvas {
    fn new(height: f64, title: &str) -> Self {
        let mut canvas = Self { body: String::new(), height };
        canvas.text(24.0, 32.0, Anchor::Start, "title", title);
        canvas
    }

    fn text(&mut self, x: f64, y: f64, anchor: Anchor, class: &str, text: &str) {
        let anchor = anchor.word();
        let text = escaped(text);
        // Writing into a string cannot fail.
        let _ = writeln!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" class="{class}">{text}</text>"#
        );
    }

    /// Text that reads upwards.
    fn upright(&mut self, x: f64, y: f64, anchor: Anchor, class: &str, text: &str) {
        let anchor = anchor.word();
        let text = escaped(text);
        let _ = writeln!(
            self.body,
            r#"<text transform="translate({x:.1} {y:.1}) rotate(-90)" text-anchor="{anchor}" class="{class}">{text}</text>"#
        );
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let _ = writeln!(
            self.body,
            r#"<line x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" class="{class}"/>"#,
            from.0, from.1, to.0, to.1
        );
    }

    fn bar(&mut self, at: (f64, f64), size: (f64, f64), colour: usize) {
        let _ = writeln!(
            self.body,
            r#"<rect x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}" class="f{}"/>"#,
            at.0,
            at.1,
            size.0,
            size.1.max(0.5),
            colour % COLOURS.len()
        );
    }

    fn path(&mut self, points: &[(f64, f64)], colour: usize) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            self.body,
            r#"<polyline points="{}" class="s{}"/>"#,
            points.join(" "),
            colour % COLOURS.len()
        );
    }

    /// A mark whose shape differs with its colour, for those who cannot tell colours apart.
    fn mark(&mut self, x: f64, y: f64, colour: usize) {
        let colour = colour % COLOURS.len();
        let corners: &[(f64, f64)] = match colour {
            0 => {
                let _ = writeln!(self.body, r#"<circle cx="{x:.1}" cy="{y:.1}" r="5" class="f{colour}"/>"#);
                return;
            }
            1 => &[(-6.5, -3.0), (6.5, -3.0), (6.5, 3.0), (-6.5, 3.0)],
            2 => &[(0.0, -6.0), (6.0, 5.0), (-6.0, 5.0)],
            3 => &[(0.0, -6.5), (6.5, 0.0), (0.0, 6.5), (-6.5, 0.0)],
            4 => &[(0.0, 6.0), (6.0, -5.0), (-6.0, -5.0)],
            5 => &[(-5.0, -5.0), (5.0, -5.0), (5.0, 5.0), (-5.0, 5.0)],
            6 => &[(-3.0, -6.0), (3.0, -6.0), (6.0, 0.0), (3.0, 6.0), (-3.0, 6.0), (-6.0, 0.0)],
            _ => &[(-5.0, 0.0), (5.0, -6.0), (5.0, 6.0)],
        };
        let points: Vec<String> =
            corners.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
        let _ = writeln!(self.body, r#"<polygon points="{}" class="f{colour}"/>"#, points.join(" "));
    }

    /// Names beside their colours, in rows from (24, y) on. Returns the height taken.
    fn legend(&mut self, y: f64, series: &[Series], marks: bool) -> f64 {
        let (mut x, mut down) = (24.0, 0.0);
        for one in series {
            let wide = 34.0 + 7.6 * one.name.chars().count() as f64;
            if x + wide > WIDTH - 24.0 {
                (x, down) = (24.0, down + 22.0);
            }
            if marks {
                self.mark(x + 7.0, y + down - 4.5, one.colour);
            } else {
                self.bar((x, y + down - 11.0), (13.0, 13.0), one.colour);
            }
            self.text(x + 20.0, y + down, Anchor::Start, "label", &one.name);
            x += wide + 8.0;
        }
        down + 22.0
    }

    fn finish(self) -> String {
        let mut light = String::new();
        let mut dark = String::new();
        for (number, (on_light, on_dark)) in COLOURS.iter().enumerate() {
            let _ = write!(light, ".f{number}{{fill:{on_light}}}.s{number}{{stroke:{on_light}}}");
            let _ = write!(dark, ".f{number}{{fill:{on_dark}}}.s{number}{{stroke:{on_dark}}}");
        }
        format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">
<style>
text{{font-family:system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;fill:#1f2328}}
.title{{font-size:17px;font-weight:600}}.label{{font-size:13px}}.tick{{font-size:12px;fill:#57606a}}.value{{font-size:11px}}
.page{{fill:#ffffff}}.grid{{stroke:#d8dee4}}.axis{{stroke:#57606a}}
polyline{{fill:none;stroke-width:2.2}}polygon,circle{{stroke:#ffffff}}
{light}
@media (prefers-color-scheme: dark){{
text{{fill:#e6edf3}}.tick{{fill:#a9b3be}}.page{{fill:#0d1117}}.grid{{stroke:#2b323b}}.axis{{stroke:#a9b3be}}
polygon,circle{{stroke:#0d1117}}
{dark}
}}
</style>
<rect width="100%" height="100%" rx="6" class="page"/>
{body}</svg>
"##,
            height = self.height,
            body = self.body
        )
    }
}

impl Anchor {
    fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Middle => "middle",
            Self::End => "end",
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// About five round steps up to at least `most`: the step and the top.
fn round_steps(most: f64) -> (f64, f64) {
    let rough = (most / 5.0).max(1e-9);
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].iter().map(|f| f * power).find(|step| *step >= rough);
    let step = step.unwrap_or(10.0 * power);
    (step, (most / step).ceil().max(1.0) * step)
}

/// Three digits, no more.
fn short(value: f64) -> String {
    let text = if value >= 99.95 { format!("{value:.0}") } else { format!("{value:.1}") };
    text.trim_end_matches(".0").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        assert_eq!(round_steps(637.0), (200.0, 800.0));
        assert_eq!(round_steps(100.0), (20.0, 100.0));
        assert!(round_steps(0.0).1 > 0.0);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([637.2, 41.0, 41.26, 2.93, 0.0].map(short), ["637", "41", "41.3", "2.9", "0"]);
    }

    #[test]
    fn text_is_escaped_and_both_colours_are_there() {
        let mut canvas = Canvas::new(100.0, "a < b");
        canvas.bar((0.0, 0.0), (1.0, 1.0), 9);
        let svg = canvas.finish();
        assert!(svg.contains("a &lt; b") && svg.contains("prefers-color-scheme: dark"));
        assert!(svg.contains(r#"class="f1""#));
    }
}
