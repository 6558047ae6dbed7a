//! Lines over logarithmic axes: a value against a rate.

use super::{Anchor, Canvas, Series, WIDTH, short};

/// Lines with marks; both axes are logarithmic.
#[derive(Clone, Debug)]
pub struct Lines {
    /// Above the picture.
    pub title: String,
    /// The horizontal axis with its unit.
    pub across: String,
    /// The vertical axis with its unit.
    pub axis: String,
    /// Places on the horizontal axis.
    pub places: Vec<f64>,
    /// Values one a place.
    pub series: Vec<Series>,
}

impl Lines {
    /// The picture.
    pub fn svg(&self) -> String {
        let height = 460.0;
        let mut canvas = Canvas::new(height, &self.title);
        let legend = canvas.legend(62.0, &self.series, true);
        let (left, right, above, below) = (84.0, WIDTH - 150.0, 62.0 + legend + 8.0, height - 62.0);
        let values = || self.series.iter().flat_map(|one| one.values.iter().flatten());
        let least = values().fold(f64::INFINITY, |a, b| a.min(*b)).clamp(1e-3, 1e9);
        let most = values().fold(least, |a, b| a.max(*b)).max(least * 2.0);
        let (low, high) = ((least * 0.85).ln(), (most * 1.2).ln());
        let y = |value: f64| below - (below - above) * (value.max(1e-3).ln() - low) / (high - low);
        let (first, last) = self.ends();
        let x = |place: f64| left + (right - left) * (place.ln() - first) / (last - first).max(1e-9);
        for tick in ticks(least * 0.85, most * 1.2) {
            canvas.line((left, y(tick)), (right, y(tick)), "grid");
            canvas.text(left - 8.0, y(tick) + 4.0, Anchor::End, "tick", &plain(tick));
        }
        canvas.line((left, below), (right, below), "axis");
        for place in &self.places {
            canvas.line((x(*place), below), (x(*place), below + 5.0), "axis");
            canvas.text(x(*place), below + 21.0, Anchor::Middle, "tick", &plain(*place));
        }
        canvas.text((left + right) / 2.0, below + 45.0, Anchor::Middle, "tick", &self.across);
        canvas.upright(26.0, (above + below) / 2.0, Anchor::Middle, "tick", &self.axis);
        for one in self.series.iter().rev() {
            let measured = self.places.iter().zip(&one.values);
            let points: Vec<(f64, f64)> =
                measured.filter_map(|(place, value)| Some((x(*place), y((*value)?)))).collect();
            canvas.path(&points, one.colour);
            for (x, y) in points {
                canvas.mark(x, y, one.colour);
            }
        }
        self.names(&mut canvas, right + 14.0, (above, below), &y);
        canvas.finish()
    }

    /// The name and the last value of each line beside it, moved apart where they would touch.
    fn names(&self, canvas: &mut Canvas, x: f64, (above, below): (f64, f64), y: &dyn Fn(f64) -> f64) {
        const APART: f64 = 14.0;
        let last = |one: &Series| one.values.get(self.places.len().saturating_sub(1)).copied().flatten();
        let mut ends: Vec<(f64, &str, f64)> = self
            .series
            .iter()
            .filter_map(|one| last(one).map(|value| (y(value), one.name.as_str(), value)))
            .collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut lowest = above;
        for (at, end) in ends.iter_mut().enumerate() {
            end.0 = if at == 0 { end.0 } else { end.0.max(lowest + APART) };
            lowest = end.0;
        }
        let over = (lowest - below).max(0.0);
        for (at, name, value) in ends {
            canvas.text(x, at - over + 4.0, Anchor::Start, "value", &format!("{name} {}", short(value)));
        }
    }

    fn ends(&self) -> (f64, f64) {
        let least = self.places.iter().fold(f64::INFINITY, |a, b| a.min(*b));
        let most = self.places.iter().fold(0.0f64, |a, b| a.max(*b));
        (least.max(1e-9).ln(), most.max(1e-9).ln())
    }
}

/// 1, 2 and 5 times the powers of ten between two values.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let powers = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
    let all = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|factor| factor * 10f64.powi(power)));
    all.filter(|tick| (low..=high).contains(tick)).collect()
}

fn plain(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_lie_inside() {
        assert_eq!(ticks(3.0, 60.0), [5.0, 10.0, 20.0, 50.0]);
        assert_eq!([0.5, 20.0, 1000.0].map(plain), ["0.5", "20", "1000"]);
    }

    #[test]
    fn a_missing_point_is_left_out() {
        let lines = Lines {
            title: "time".into(),
            across: "Mbit/s".into(),
            axis: "s".into(),
            places: vec![5.0, 20.0],
            series: vec![Series { name: "vbr".into(), colour: 0, values: vec![Some(3.0), None] }],
        };
        let svg = lines.svg();
        // In the legend and at the one point.
        assert_eq!(svg.matches("<circle").count(), 2, "{svg}");
        assert!(!svg.contains("NaN"));
    }
}
