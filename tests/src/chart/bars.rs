//! Bars: in groups side by side, and one under another with their values behind them.

use super::{Anchor, Canvas, Series, WIDTH, round_steps, short};

/// A value stands upright above a bar that is narrower than this.
const UPRIGHT_BELOW: f64 = 30.0;

/// Groups of bars, one bar a series, each with its value above it.
#[derive(Clone, Debug)]
pub struct Bars {
    /// Above the picture.
    pub title: String,
    /// The vertical axis with its unit.
    pub axis: String,
    /// Under the groups.
    pub groups: Vec<String>,
    /// Values one a group.
    pub series: Vec<Series>,
    /// The top of the axis; what fits unless said.
    pub top: Option<f64>,
}

impl Bars {
    /// The picture.
    pub fn svg(&self) -> String {
        let height = 440.0;
        let mut canvas = Canvas::new(height, &self.title);
        let legend = canvas.legend(62.0, &self.series, false);
        let (left, right, above, below) = (74.0, WIDTH - 20.0, 62.0 + legend + 28.0, height - 38.0);
        let most =
            self.series.iter().flat_map(|one| one.values.iter().flatten()).fold(0.0f64, |a, b| a.max(*b));
        let (step, fitting) = round_steps(self.top.unwrap_or(most));
        let top = self.top.unwrap_or(fitting);
        let y = |value: f64| below - (below - above) * (value / top).min(1.0);
        let mut tick = 0.0;
        while tick <= top * 1.0001 {
            canvas.line((left, y(tick)), (right, y(tick)), if tick == 0.0 { "axis" } else { "grid" });
            canvas.text(left - 8.0, y(tick) + 4.0, Anchor::End, "tick", &short(tick));
            tick += step;
        }
        canvas.upright(24.0, (above + below) / 2.0, Anchor::Middle, "tick", &self.axis);
        let wide = (right - left) / self.groups.len().max(1) as f64;
        let bar = (wide - 18.0) / self.series.len().max(1) as f64;
        for (at, group) in self.groups.iter().enumerate() {
            let start = left + wide * at as f64 + 9.0;
            canvas.text(left + wide * (at as f64 + 0.5), below + 22.0, Anchor::Middle, "label", group);
            for (place, one) in self.series.iter().enumerate() {
                let Some(Some(value)) = one.values.get(at) else { continue };
                let x = start + bar * place as f64;
                canvas.bar((x + 0.75, y(*value)), (bar - 1.5, below - y(*value)), one.colour);
                if bar >= UPRIGHT_BELOW {
                    canvas.text(x + bar / 2.0, y(*value) - 5.0, Anchor::Middle, "value", &short(*value));
                } else {
                    let foot = y(*value) - 4.0;
                    canvas.upright(x + bar / 2.0 + 4.0, foot, Anchor::Start, "value", &short(*value));
                }
            }
        }
        canvas.finish()
    }
}

/// Bars one under another.
#[derive(Clone, Debug)]
pub struct Ranking {
    /// Above the picture.
    pub title: String,
    /// The horizontal axis with its unit.
    pub axis: String,
    /// Name, colour, value.
    pub rows: Vec<(String, usize, f64)>,
}

impl Ranking {
    /// The picture.
    pub fn svg(&self) -> String {
        let row = 30.0;
        let (above, below) = (52.0, 52.0 + row * self.rows.len() as f64 + 6.0);
        let mut canvas = Canvas::new(below + 52.0, &self.title);
        let longest = self.rows.iter().map(|row| row.0.chars().count()).max().unwrap_or(0);
        let (left, right) = (36.0 + 7.4 * longest as f64, WIDTH - 70.0);
        let most = self.rows.iter().fold(0.0f64, |most, row| most.max(row.2));
        let (step, top) = round_steps(most);
        let x = |value: f64| left + (right - left) * value / top;
        let mut tick = 0.0;
        while tick <= top * 1.0001 {
            canvas.line((x(tick), above), (x(tick), below), if tick == 0.0 { "axis" } else { "grid" });
            canvas.text(x(tick), below + 18.0, Anchor::Middle, "tick", &short(tick));
            tick += step;
        }
        canvas.text((left + right) / 2.0, below + 40.0, Anchor::Middle, "tick", &self.axis);
        for (at, (name, colour, value)) in self.rows.iter().enumerate() {
            let y = above + 6.0 + row * at as f64;
            canvas.text(left - 10.0, y + 16.0, Anchor::End, "label", name);
            canvas.bar((left, y), (x(*value) - left, row - 8.0), *colour);
            canvas.text(x(*value) + 8.0, y + 16.0, Anchor::Start, "label", &short(*value));
        }
        canvas.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_bar_and_a_gap_has_none() {
        let series =
            |colour, values: [Option<f64>; 2]| Series { name: "one".into(), colour, values: values.to_vec() };
        let bars = Bars {
            title: "bytes".into(),
            axis: "MiB".into(),
            groups: vec!["a".into(), "b".into()],
            series: vec![series(0, [Some(1.0), Some(20.0)]), series(1, [None, Some(3.0)])],
            top: None,
        };
        let svg = bars.svg();
        // A page, two in the legend, three values.
        assert_eq!(svg.matches("<rect").count(), 6);
        let ranking =
            Ranking { title: "sum".into(), axis: "MiB".into(), rows: vec![("vbr".into(), 0, 637.0)] };
        assert!(ranking.svg().contains(">637<"));
    }
}
