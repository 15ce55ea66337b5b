//! Line and bar charts as inline SVG.
//!
//! The drawing stretches with the page while the words around it keep their size: curves live in an
//! SVG of 1000 by 1000 units without a fixed aspect, and the labels are plain elements placed by
//! percentages. That is what keeps the numbers legible on a phone.

use crate::html::{about, escape, fixed, tick};

/// The most points drawn of one series.
const MOST_POINTS: usize = 400;

/// How many colours the style sheet has for series.
const COLOURS: usize = 8;

/// Curves over a common axis.
#[derive(Debug, Clone, PartialEq)]
pub struct LineChart {
    /// What the chart shows.
    pub title: String,
    /// What runs along the bottom.
    pub x_label: String,
    /// What runs up the side.
    pub y_label: String,
    /// Whether the vertical axis is logarithmic; values of zero or less are then left out.
    pub log_y: bool,
    /// The curves, in the order of the legend.
    pub series: Vec<Series>,
}

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Points in ascending x. A value that is not finite breaks the curve and is counted below it.
    /// Of more than 400 points the means of 400 stretches are drawn, over a pale band from their
    /// lowest to their highest value, so that spikes stay visible.
    pub points: Vec<(f64, f64)>,
    /// Drawn dashed, in the colour of the solid series before it: a reference for that one.
    pub dashed: bool,
}

/// Horizontal bars with confidence intervals.
#[derive(Debug, Clone, PartialEq)]
pub struct BarChart {
    /// What the chart shows.
    pub title: String,
    /// Unit of the values, such as `%`; may be empty.
    pub unit: String,
    /// What the marks across the bars mean, such as `ceiling`; unused without marks.
    pub mark_label: String,
    /// The bars, from top to bottom.
    pub bars: Vec<Bar>,
}

/// One bar of a [`BarChart`].
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// What it stands for.
    pub label: String,
    /// Its length.
    pub value: f64,
    /// Lower end of the interval; equal to `high` for a bar without one.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// A value to compare with, drawn as a line across the bar.
    pub mark: Option<f64>,
}

/// A range of values mapped onto 0 to 1.
#[derive(Debug, Clone, Copy)]
struct Scale {
    low: f64,
    high: f64,
    log: bool,
}

impl Scale {
    fn place(&self, value: f64) -> f64 {
        let f = |v: f64| if self.log { v.ln() } else { v };
        (f(value) - f(self.low)) / (f(self.high) - f(self.low))
    }

    /// Round values inside the range and how they are written.
    fn ticks(&self, about: usize) -> Vec<(f64, String)> {
        if self.log {
            let stride = ((self.high / self.low).log10() / about as f64).ceil().max(1.0) as i32;
            let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
            for (digits, enough) in [(&[1.0][..], 4), (&[1.0, 2.0, 5.0][..], 3)] {
                let mut out = Vec::new();
                for power in (first..=last).filter(|p| p % stride == 0) {
                    let size = 10f64.powi(power);
                    let inside = |v: &f64| (self.low..=self.high).contains(v);
                    let round = digits.iter().map(|digit| digit * size).filter(inside);
                    out.extend(round.map(|value| (value, tick(value, size))));
                }
                if out.len() >= enough {
                    return out;
                }
            }
        }
        let step = round_step((self.high - self.low) / about as f64);
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|i| i as f64 * step).map(|v| (v, tick(v, step))).collect()
    }
}

/// The round number (1, 2 or 5 times a power of ten) at or above `rough`.
fn round_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    let times = [1.0, 2.0, 5.0].into_iter().find(|t| t * power >= rough * 0.999).unwrap_or(10.0);
    times * power
}

/// The smallest and largest of `values`, or nothing if there are none.
fn extremes(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, v| {
        Some(range.map_or((v, v), |(low, high): (f64, f64)| (low.min(v), high.max(v))))
    })
}

/// What is drawn of a series: a line, and the range it stands for where it was thinned.
struct Curve {
    line: Vec<(f64, f64)>,
    /// x, lowest and highest of the stretch around each point; empty if every point is drawn.
    range: Vec<(f64, f64, f64)>,
}

/// At most [`MOST_POINTS`] of `points`: the means of equally long stretches and their extremes.
/// A stretch without any finite value stays as a gap.
fn thin(points: &[(f64, f64)]) -> Curve {
    if points.len() <= MOST_POINTS {
        return Curve { line: points.to_vec(), range: Vec::new() };
    }
    let mut curve = Curve { line: Vec::new(), range: Vec::new() };
    for i in 0..MOST_POINTS {
        let (from, to) = (i * points.len() / MOST_POINTS, (i + 1) * points.len() / MOST_POINTS);
        let stretch = &points[from..to];
        let x = stretch[stretch.len() / 2].0;
        let finite = || stretch.iter().map(|p| p.1).filter(|y| y.is_finite());
        let Some((low, high)) = extremes(finite()) else {
            curve.line.push((x, f64::NAN));
            curve.range.push((x, f64::NAN, f64::NAN));
            continue;
        };
        let count = finite().count() as f64;
        curve.line.push((x, finite().map(|y| y / count).sum::<f64>()));
        curve.range.push((x, low, high));
    }
    curve
}

/// Numbers for the readout: short, and exact enough to read.
fn packed(value: f64) -> String {
    if value.is_finite() {
        format!("{}", format!("{value:.5e}").parse().unwrap_or(value))
    } else {
        "NaN".into()
    }
}

impl LineChart {
    pub(crate) fn html(&self) -> String {
        let mut left_out = 0;
        let drawn: Vec<Curve> = self
            .series
            .iter()
            .map(|series| {
                let mut points: Vec<(f64, f64)> = Vec::with_capacity(series.points.len());
                for &(x, y) in &series.points {
                    let good = y.is_finite() && (!self.log_y || y > 0.0);
                    left_out += usize::from(!good || !x.is_finite());
                    if x.is_finite() {
                        points.push((x, if good { y } else { f64::NAN }));
                    }
                }
                thin(&points)
            })
            .collect();
        let finite = || drawn.iter().flat_map(|c| &c.line).filter(|p| p.1.is_finite());
        let highs = drawn.iter().flat_map(|c| &c.range).flat_map(|r| [r.1, r.2]);
        let heights = finite().map(|p| p.1).chain(highs.filter(|v| v.is_finite()));
        let title = escape(&self.title);
        let mut out = format!("<figure class=\"chart\">\n<figcaption>{title}</figcaption>\n");
        let ranges = extremes(finite().map(|p| p.0)).zip(extremes(heights));
        let Some((x_range, y_range)) = ranges else {
            return out + "<p class=\"empty\">Nothing to draw yet.</p>\n</figure>\n";
        };
        let x = widen(x_range);
        let x = Scale { low: x.0, high: x.1, log: false };
        let y = self.y_scale(y_range);

        let colours = self.colours();
        out += "<div class=\"legend\" role=\"group\" aria-label=\"Curves shown\">";
        for (i, series) in self.series.iter().enumerate() {
            let dashed = if series.dashed { " dashed" } else { "" };
            out += &format!(
                "<button type=\"button\" aria-pressed=\"true\" data-series=\"{i}\">\
                 <i class=\"key c{}{dashed}\"></i>{}</button>",
                colours[i],
                escape(&series.name)
            );
        }
        let y_note = if self.log_y { " (log scale)" } else { "" };
        out += &format!("</div>\n<p class=\"axis\">{}{y_note}</p>\n", escape(&self.y_label));

        let (x_ticks, y_ticks) = (x.ticks(6), y.ticks(6));
        let wide = y_ticks.iter().map(|t| t.1.chars().count()).max().unwrap_or(1);
        out += &format!("<div class=\"plot\" style=\"--wide:{wide}ch\">\n");
        out += "<div class=\"up\" aria-hidden=\"true\">";
        for (value, label) in &y_ticks {
            out += &format!(
                "<span style=\"top:{:.2}%\">{label}</span>",
                100.0 - 100.0 * y.place(*value)
            );
        }
        out += &format!(
            "</div>\n<div class=\"area\" data-x0=\"{}\" data-x1=\"{}\" data-y0=\"{}\" \
             data-y1=\"{}\" data-log=\"{}\" data-x=\"{}\" data-title=\"{title}\">\n\
             <svg viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\" role=\"img\" \
             aria-label=\"{}\">\n<g class=\"grid\">",
            x.low,
            x.high,
            y.low,
            y.high,
            self.log_y,
            escape(&self.x_label),
            escape(&self.summary())
        );
        for (value, _) in &y_ticks {
            let at = 1000.0 - 1000.0 * y.place(*value);
            out += &format!("<line x1=\"0\" x2=\"1000\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
        }
        out += "</g>\n";
        let at = |px: f64, py: f64| {
            format!("{:.1} {:.1}", 1000.0 * x.place(px), 1000.0 - 1000.0 * y.place(py))
        };
        for (i, curve) in drawn.iter().enumerate() {
            let colour = colours[i];
            for band in curve.range.split(|r| !r.1.is_finite()).filter(|band| !band.is_empty()) {
                let above = band.iter().map(|&(px, _, high)| at(px, high));
                let below = band.iter().rev().map(|&(px, low, _)| at(px, low));
                let outline: Vec<String> = above.chain(below).collect();
                out += &format!(
                    "<path class=\"band c{colour}\" data-band=\"{i}\" d=\"M{}Z\"/>\n",
                    outline.join("L")
                );
            }
            let mut path = String::new();
            let mut values = String::new();
            let mut pen = 'M';
            for &(px, py) in &curve.line {
                values += &format!("{} {};", packed(px), packed(py));
                if py.is_finite() {
                    path += &format!("{pen}{}", at(px, py));
                    pen = 'L';
                } else {
                    pen = 'M';
                }
            }
            let series = &self.series[i];
            let dashed = if series.dashed { " dashed" } else { "" };
            out += &format!(
                "<path class=\"c{colour}{dashed}\" data-name=\"{}\" data-values=\"{}\" d=\"{path}\"/>\n",
                escape(&series.name),
                values.trim_end_matches(';')
            );
        }
        out += "</svg>\n</div>\n<div class=\"along\" aria-hidden=\"true\">";
        for (value, label) in &x_ticks {
            out += &format!("<span style=\"left:{:.2}%\">{label}</span>", 100.0 * x.place(*value));
        }
        out += &format!("</div>\n</div>\n<p class=\"axis x\">{}</p>\n", escape(&self.x_label));
        if left_out > 0 {
            let why = if self.log_y { "finite and above zero" } else { "finite" };
            out += &format!("<p class=\"axis lost\">Left out, not {why}: {left_out}.</p>\n");
        }
        out + &self.values() + "</figure>\n"
    }

    /// The colour of each series; dashed ones share that of the solid one before them.
    fn colours(&self) -> Vec<usize> {
        let mut solid = 0;
        let colour = |series: &Series| {
            solid += usize::from(!series.dashed || solid == 0);
            (solid - 1) % COLOURS
        };
        self.series.iter().map(colour).collect()
    }

    fn y_scale(&self, (low, high): (f64, f64)) -> Scale {
        if self.log_y {
            let room = (high / low).powf(0.05).max(1.05);
            return Scale { low: low / room, high: high * room, log: true };
        }
        let (low, high) = widen((low, high));
        let room = 0.05 * (high - low);
        // A range that nearly reaches zero is shown from zero.
        let from = if low >= 0.0 && low < 0.4 * high { 0.0 } else { low - room };
        Scale { low: from, high: high + room, log: false }
    }

    /// First, lowest, highest and last value of each series, from all its points.
    fn ends(&self) -> impl Iterator<Item = (&Series, [(f64, f64); 4])> {
        self.series.iter().filter_map(|series| {
            let finite = || series.points.iter().copied().filter(|p| p.1.is_finite());
            let low = finite().min_by(|a, b| a.1.total_cmp(&b.1))?;
            let high = finite().max_by(|a, b| a.1.total_cmp(&b.1))?;
            Some((series, [finite().next()?, low, high, finite().next_back()?]))
        })
    }

    fn summary(&self) -> String {
        let mut out = format!("{}: {} by {}.", self.title, self.y_label, self.x_label);
        for (series, [first, low, high, last]) in self.ends() {
            out += &format!(
                " {}: from {} to {}, lowest {}, highest {}.",
                series.name,
                about(first.1),
                about(last.1),
                about(low.1),
                about(high.1)
            );
        }
        out
    }

    /// The folded table below the chart.
    fn values(&self) -> String {
        let mut out = format!(
            "<details class=\"values\"><summary>Values</summary><div class=\"scroll\"><table>\
             <caption class=\"quiet\">{}</caption><thead><tr><th scope=\"col\">curve</th>",
            escape(&self.title)
        );
        for name in ["first", "lowest", "highest", "last"] {
            out += &format!("<th scope=\"col\" class=\"number\">{name}</th>");
        }
        out += "</tr></thead>\n<tbody>\n";
        for (series, ends) in self.ends() {
            out += &format!("<tr><th scope=\"row\">{}</th>", escape(&series.name));
            for (x, y) in ends {
                out += &format!(
                    "<td class=\"number\">{} <small>at {}</small></td>",
                    about(y),
                    about(x)
                );
            }
            out += "</tr>\n";
        }
        out + "</tbody></table></div></details>\n"
    }
}

/// A range that has some width.
fn widen((low, high): (f64, f64)) -> (f64, f64) {
    let least = 1e-9 * low.abs().max(high.abs());
    if high - low > least {
        return (low, high);
    }
    let room = if low == 0.0 { 1.0 } else { 0.5 * low.abs() };
    (low - room, high + room)
}

impl BarChart {
    pub(crate) fn html(&self) -> String {
        let mut out = format!(
            "<figure class=\"chart\"><table class=\"bars\">\n<caption>{}</caption>\n\
             <thead class=\"quiet\"><tr><th scope=\"col\">what</th><th scope=\"col\">bar</th>\
             <th scope=\"col\">value</th></tr></thead>\n<tbody>\n",
            escape(&self.title)
        );
        let ends = |bar: &Bar| [bar.value, bar.low, bar.high, bar.mark.unwrap_or(0.0)];
        let all = self.bars.iter().flat_map(ends).filter(|v| v.is_finite());
        let (low, high) = widen(extremes(all.chain([0.0])).unwrap_or((0.0, 1.0)));
        let step = round_step((high - low) / 5.0);
        let scale = Scale {
            low: (low / step + 1e-9).floor() * step,
            high: (high / step - 1e-9).ceil() * step,
            log: false,
        };
        let ticks = scale.ticks(5);
        let decimals = match low.abs().max(high.abs()) {
            size if size >= 100.0 && self.unit != "%" => 0,
            size if size >= 10.0 => 1,
            size if size >= 0.1 => 2,
            _ => 4,
        };
        let place = |value: f64| 1000.0 * scale.place(value).clamp(0.0, 1.0);
        for bar in &self.bars {
            out += &format!("<tr><th scope=\"row\">{}</th><td>", escape(&bar.label));
            out +=
                "<svg viewBox=\"0 0 1000 24\" preserveAspectRatio=\"none\" aria-hidden=\"true\">";
            for (value, _) in &ticks {
                let at = place(*value);
                out += &format!(
                    "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"0\" y2=\"24\"/>"
                );
            }
            if bar.value.is_finite() {
                let (a, b) = (place(0.0), place(bar.value));
                let (left, width) = (a.min(b), (b - a).abs());
                out +=
                    &format!("<rect x=\"{left:.1}\" width=\"{width:.1}\" y=\"5\" height=\"14\"/>");
            }
            let interval = bar.low.is_finite() && bar.high.is_finite() && bar.low < bar.high;
            if interval {
                let (a, b) = (place(bar.low), place(bar.high));
                out += &format!(
                    "<path class=\"whisker\" d=\"M{a:.1} 12L{b:.1} 12M{a:.1} 8L{a:.1} 16M{b:.1} 8L{b:.1} 16\"/>"
                );
            }
            if let Some(mark) = bar.mark.filter(|m| m.is_finite()) {
                let at = place(mark);
                out += &format!(
                    "<line class=\"mark\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"1\" y2=\"23\"/>"
                );
            }
            out += &format!("</svg></td><td class=\"number\">{}", fixed(bar.value, decimals));
            if interval {
                let (low, high) = (fixed(bar.low, decimals), fixed(bar.high, decimals));
                out += &format!(" <small>{low} to {high}</small>");
            }
            if let Some(mark) = bar.mark {
                let (name, mark) = (escape(&self.mark_label), fixed(mark, decimals));
                out += &format!("<span class=\"quiet\">, {name} {mark}</span>");
            }
            out += "</td></tr>\n";
        }
        out += "</tbody>\n<tfoot aria-hidden=\"true\"><tr><td></td><td><div class=\"along\">";
        for (value, label) in &ticks {
            out += &format!("<span style=\"left:{:.2}%\">{label}</span>", place(*value) / 10.0);
        }
        out += &format!("</div></td><td>{}</td></tr></tfoot>\n</table>\n", escape(&self.unit));
        if self.bars.iter().any(|bar| bar.mark.is_some()) {
            out += &format!(
                "<p class=\"axis\"><i class=\"key mark\"></i>{}</p>\n",
                escape(&self.mark_label)
            );
        }
        out + "</figure>\n"
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64, log: bool) -> Vec<String> {
        Scale { low, high, log }.ticks(5).into_iter().map(|t| t.1).collect()
    }

    fn chart(log_y: bool, points: Vec<(f64, f64)>) -> LineChart {
        let series = vec![Series { name: "a".into(), points, dashed: false }];
        let (x_label, y_label) = ("step".into(), "loss".into());
        LineChart { title: "Loss".into(), x_label, y_label, log_y, series }
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(0.0, 4000.0, false), ["0", "1,000", "2,000", "3,000", "4,000"]);
        assert_eq!(labels(0.13, 0.58, false), ["0.2", "0.3", "0.4", "0.5"]);
        assert_eq!(labels(0.9, 110.0, true), ["1", "2", "5", "10", "20", "50", "100"]);
        assert_eq!(labels(1e-4, 10.0, true), ["1e-4", "0.001", "0.01", "0.1", "1", "10"]);
        // Less than a decade: evenly stepped values, placed on the logarithmic axis.
        assert_eq!(labels(2.1, 4.6, true), ["2.5", "3.0", "3.5", "4.0", "4.5"]);
    }

    #[test]
    fn thinning_keeps_spikes_and_gaps() {
        let mut points: Vec<(f64, f64)> =
            (0..10_000).map(|i| (f64::from(i), (f64::from(i) * 0.01).sin())).collect();
        points[7_777].1 = 50.0;
        for point in &mut points[3_000..3_200] {
            point.1 = f64::NAN;
        }
        let thinned = thin(&points);
        assert_eq!(thinned.line.len(), MOST_POINTS);
        assert!(thinned.range.iter().any(|r| r.2 == 50.0));
        assert!(thinned.line.iter().filter(|p| p.1.is_nan()).count() >= 7);
        assert!(thinned.line.windows(2).all(|w| w[0].0 < w[1].0));
        // 25 values of 4 and of 6 in turn have the mean 5 within a hundredth or so.
        let saw = (0..10_000).map(|i| (f64::from(i), f64::from(4 + i % 2 * 2))).collect::<Vec<_>>();
        assert!(thin(&saw).line.iter().all(|p| (p.1 - 5.0).abs() < 0.05));
        assert!(thin(&points[..400]).range.is_empty());
        let html = chart(false, points).html();
        assert_eq!(html.matches("data-band=\"0\"").count(), 2, "a band on either side of the gap");
    }

    #[test]
    fn curves_break_at_values_that_are_not_finite() {
        let html = chart(false, vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0), (3.0, 2.0)]).html();
        let path = html.split(" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(path.matches('M').count(), 2);
        assert!(html.contains("Left out, not finite: 1."));
        let html = chart(true, vec![(0.0, 0.0), (1.0, 1.0), (2.0, 10.0)]).html();
        assert!(html.contains("not finite and above zero: 1."));
    }

    #[test]
    fn odd_input_still_makes_a_chart() {
        assert!(chart(false, vec![]).html().contains("Nothing to draw yet"));
        assert!(chart(true, vec![(0.0, -1.0)]).html().contains("Nothing to draw yet"));
        for log in [false, true] {
            let html = chart(log, vec![(5.0, 2.0)]).html();
            let drawing = html.split("<svg").nth(1).unwrap();
            assert!(!drawing.contains("NaN") && !drawing.contains("inf"), "{drawing}");
        }
        let empty = BarChart {
            title: String::new(),
            unit: String::new(),
            mark_label: String::new(),
            bars: vec![],
        };
        assert!(!empty.html().contains("NaN"));
    }

    #[test]
    fn dashed_series_take_the_colour_before_them() {
        let series = |dashed| Series { name: String::new(), points: vec![], dashed };
        let mut chart = chart(false, vec![]);
        chart.series = [false, true, false, true, true].map(series).to_vec();
        assert_eq!(chart.colours(), [0, 0, 1, 1, 1]);
        chart.series = vec![series(true), series(true), series(false)];
        assert_eq!(chart.colours(), [0, 0, 1]);
    }

    #[test]
    fn bars_reach_their_value_on_a_shared_scale() {
        let bar = |value, low, high| Bar { label: "b".into(), value, low, high, mark: Some(80.0) };
        let html = BarChart {
            title: "Exact".into(),
            unit: "%".into(),
            mark_label: "ceiling".into(),
            bars: vec![bar(40.0, 30.0, 52.0), bar(20.0, 20.0, 20.0)],
        }
        .html();
        assert!(html.contains("<rect x=\"0.0\" width=\"500.0\""));
        assert!(html.contains("<rect x=\"0.0\" width=\"250.0\""));
        assert_eq!(html.matches("class=\"whisker\"").count(), 1);
        assert!(html.contains("40.0 <small>30.0 to 52.0</small>"));
        assert!(html.contains("ceiling 80.0"));
    }
}
