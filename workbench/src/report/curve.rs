//! Line charts as inline SVG, so that a report is one file without scripts.

use std::fmt::Write as _;

/// One line of a chart: points `(x, y)` in increasing `x`, not necessarily finite.
pub struct Series<'a> {
    pub label: &'a str,
    /// CSS colour.
    pub color: &'a str,
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 56.0;
const BOTTOM: f64 = 28.0;
const TOP: f64 = 12.0;
const RIGHT: f64 = 12.0;
/// Ticks of an axis, about.
const TICKS: f64 = 4.0;

/// Exponential moving average of `points`; `weight` is that of the past, 0 to 1.
pub fn smooth(points: &[(f64, f64)], weight: f64) -> Vec<(f64, f64)> {
    let mut average: Option<f64> = None;
    points
        .iter()
        .filter(|(_, y)| y.is_finite())
        .map(|&(x, y)| {
            let next = average.map_or(y, |past| weight * past + (1.0 - weight) * y);
            average = Some(next);
            (x, next)
        })
        .collect()
}

/// Draws the series into one SVG element. Points that are not finite are left out; without any, a note says so.
pub fn svg_chart(title: &str, x_label: &str, series: &[Series]) -> String {
    let finite = || {
        series.iter().flat_map(|s| s.points.iter().copied()).filter(|(x, y)| x.is_finite() && y.is_finite())
    };
    let Some(first) = finite().next() else {
        return format!("<p class=\"note\">{}: no data</p>", escape(title));
    };
    let (mut x0, mut x1, mut y0, mut y1) = (first.0, first.0, first.1, first.1);
    for (x, y) in finite() {
        (x0, x1) = (x0.min(x), x1.max(x));
        (y0, y1) = (y0.min(y), y1.max(y));
    }
    if x1 <= x0 {
        x1 = x0 + 1.0;
    }
    if y1 <= y0 {
        y1 = y0 + 1.0;
    }
    let place_x = |x: f64| LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
    let place_y = |y: f64| HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - BOTTOM - TOP);

    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", escape(title));
    for y in ticks(y0, y1) {
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{py:.1}\" y2=\"{py:.1}\"/>\
             <text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            place_y(y) + 4.0,
            short_number(y),
            py = place_y(y),
        );
    }
    for x in ticks(x0, x1) {
        let _ = write!(
            svg,
            "<text class=\"tick\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            place_x(x),
            HEIGHT - 10.0,
            short_number(x),
        );
    }
    for s in series {
        let points: Vec<String> = s
            .points
            .iter()
            .filter(|(x, y)| x.is_finite() && y.is_finite())
            .map(|&(x, y)| format!("{:.1},{:.1}", place_x(x), place_y(y)))
            .collect();
        let _ = write!(
            svg,
            "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\" points=\"{}\"><title>{}</title></polyline>",
            escape(s.color),
            points.join(" "),
            escape(s.label)
        );
    }
    svg.push_str("</svg>");
    let one = |s: &Series| {
        format!("<span><i style=\"background:{}\"></i>{}</span>", escape(s.color), escape(s.label))
    };
    // A single line is what the title says.
    let legend: String = if series.len() > 1 { series.iter().map(one).collect() } else { String::new() };
    format!(
        "<figure><figcaption>{} <small>over {}</small></figcaption>{svg}<div class=\"legend\">{legend}</div></figure>",
        escape(title),
        escape(x_label),
    )
}

/// Round numbers from `low` to `high`, evenly apart: steps of 1, 2 or 5 times a power of ten.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / TICKS;
    let power = 10f64.powf(rough.log10().floor());
    let Some(step) = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| *step >= rough) else {
        return vec![low, high];
    };
    // Counted rather than added up, so that 0.3 is not 0.30000000000000004.
    let (first, last) = ((low / step).ceil(), (high / step).floor());
    (0..=(last - first).clamp(0.0, 2.0 * TICKS) as u32).map(|n| (first + f64::from(n)) * step).collect()
}

/// At most four significant digits, without trailing zeros, and without exponents in the usual range.
fn short_number(x: f64) -> String {
    let magnitude = x.abs();
    if magnitude > 0.0 && magnitude < 0.001 {
        return format!("{x:.0e}");
    }
    let decimals = if magnitude >= 1000.0 { 0 } else { 3 };
    let text = format!("{x:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Escapes text for HTML content and attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_keeps_only_finite_points() {
        let series =
            [Series { label: "loss", color: "red", points: vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 0.5)] }];
        let svg = svg_chart("loss", "step", &series);
        assert!(!svg.contains("NaN"), "{svg}");
        assert_eq!(svg.matches("points=\"").count(), 1);
    }

    #[test]
    fn a_chart_without_data_says_so() {
        assert!(svg_chart("loss", "step", &[]).contains("no data"));
        let nan = [Series { label: "loss", color: "red", points: vec![(0.0, f64::NAN)] }];
        assert!(svg_chart("loss", "step", &nan).contains("no data"));
    }

    #[test]
    fn ticks_are_round_numbers_within_the_axis() {
        assert_eq!(ticks(1.0, 400.0), [100.0, 200.0, 300.0, 400.0]);
        assert_eq!(ticks(0.12, 0.58), [0.2, 0.4]);
        assert_eq!(ticks(0.0, 4.0), [0.0, 1.0, 2.0, 3.0, 4.0]);
        for (low, high) in [(1.0, 1.0001), (-3.0, 1e9), (0.0, 1e-9), (5.0, 5.0 + 1e-14)] {
            let all = ticks(low, high);
            assert!(all.len() < 12 && all.iter().all(|x| (low - 1e-6..=high + 1e-6).contains(x)), "{all:?}");
        }
        assert_eq!([0.3, 12.5, 0.0, 2000.0, 1e-5].map(short_number), ["0.3", "12.5", "0", "2000", "1e-5"]);
    }

    #[test]
    fn text_from_outside_is_escaped() {
        assert_eq!(escape("<a b='c'>&\""), "&lt;a b=&#39;c&#39;&gt;&amp;&quot;");
    }

    #[test]
    fn smoothing_starts_at_the_first_value_and_follows() {
        let smoothed = smooth(&[(0.0, 4.0), (1.0, 2.0)], 0.5);
        assert_eq!(smoothed, vec![(0.0, 4.0), (1.0, 3.0)]);
    }
}
