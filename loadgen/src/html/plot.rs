//! Plots as SVG within the page. Colours are the page's own, so that they follow light and dark.

use plotters::prelude::*;

/// One line of a plot.
#[derive(Debug)]
pub struct Line<'a> {
    /// For the legend.
    pub name: &'a str,
    /// x and y, by x.
    pub points: Vec<(f64, f64)>,
}

/// What stands around the lines.
#[derive(Debug)]
pub struct Frame<'a> {
    /// For who cannot see it.
    pub title: &'a str,
    /// Below.
    pub x: &'a str,
    /// On the left.
    pub y: &'a str,
    /// The values of x are numbers of nines: written as percentiles.
    pub is_percentile: bool,
}

const SIZE: (u32, u32) = (900, 300);
/// About so many labels on the axes.
const X_LABELS: usize = 8;
const Y_LABELS: usize = 6;
const COLOURS: [RGBColor; 2] = [RGBColor(1, 2, 3), RGBColor(4, 5, 6)];
/// What stands for the page's colours until [`recolour`].
const INK: RGBColor = RGBColor(0, 0, 0);
const GRID: RGBColor = RGBColor(7, 8, 9);

/// An SVG element; nothing when no line has two points.
pub fn lines(frame: &Frame<'_>, lines: &[Line<'_>]) -> String {
    let all = || lines.iter().flat_map(|line| &line.points);
    if !lines.iter().any(|line| line.points.len() > 1) {
        return String::new();
    }
    let x_min = all().map(|p| p.0).fold(f64::INFINITY, f64::min);
    let x_max = all().map(|p| p.0).fold(f64::NEG_INFINITY, f64::max);
    // Above several lines stand their names.
    let headroom = if lines.len() > 1 { 1.3 } else { 1.08 };
    let y_max = all().map(|p| p.1).fold(0.0, f64::max) * headroom;
    let mut svg = String::new();
    draw(&mut svg, frame, lines, x_min..x_max.max(x_min + 1e-9), 0.0..y_max.max(1e-6)).expect("a plot in memory");
    recolour(&svg, frame.title)
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(
    svg: &mut String,
    frame: &Frame<'_>,
    lines: &[Line<'_>],
    x: std::ops::Range<f64>,
    y: std::ops::Range<f64>,
) -> Drawn {
    let (x_step, y_step) = ((x.end - x.start) / X_LABELS as f64, (y.end - y.start) / Y_LABELS as f64);
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart =
        ChartBuilder::on(&root).margin(10).x_label_area_size(44).y_label_area_size(78).build_cartesian_2d(x, y)?;
    let percentile = |nines: &f64| percentile(*nines);
    let (x_plain, y_plain) = (|value: &f64| short(*value, x_step), |value: &f64| short(*value, y_step));
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(("sans-serif", 16))
        .x_desc(frame.x)
        .y_desc(frame.y)
        .x_labels(X_LABELS)
        .y_labels(Y_LABELS)
        .x_label_formatter(if frame.is_percentile { &percentile } else { &x_plain })
        .y_label_formatter(&y_plain)
        .draw()?;
    for (line, colour) in lines.iter().zip(COLOURS) {
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    if lines.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .label_font(("sans-serif", 16))
            .draw()?;
    }
    root.present()?;
    drop(chart);
    Ok(())
}

/// Gives the SVG the page's colours, a size that follows the page's, and a name.
fn recolour(svg: &str, title: &str) -> String {
    let (width, height) = SIZE;
    let fixed = format!("<svg width=\"{width}\" height=\"{height}\"");
    svg.replace(&fixed, &format!("<svg role=\"img\" aria-label=\"{title}\""))
        .replace("#000000", "currentColor")
        .replace("#010203", "var(--a)")
        .replace("#040506", "var(--b)")
        .replace("#070809", "var(--line)")
}

/// The percentile with so many nines, with no more digits than tell it from its neighbours on an axis.
fn percentile(nines: f64) -> String {
    let digits = (nines - 1.01).ceil().max(0.0);
    let (share, scale) = (1.0 - 10_f64.powf(-nines), 10_f64.powf(digits));
    format!("{} %", (share * 100.0 * scale).round() / scale)
}

/// A number for an axis on which labels are about `step` apart: with the digits that tell them apart.
fn short(value: f64, step: f64) -> String {
    let (scale, unit) = match value.abs() {
        large if large >= 1e6 => (1e6, " M"),
        large if large >= 1e4 => (1e3, " k"),
        _ => (1.0, ""),
    };
    // One more than the step has: labels stand at halves and quarters as well.
    let digits = (1.0 - (step / scale).log10().floor()).clamp(0.0, 9.0);
    let factor = 10_f64.powf(digits);
    // Not "-0".
    format!("{}{unit}", (value / scale * factor).round() / factor + 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_an_axis_differ() {
        for (from, step) in
            [(0.0, 0.001), (0.0, 0.0025), (54.6, 0.005), (1_000_000.0, 1_000.0), (10_000.0, 2.0), (0.0, 50.0)]
        {
            let labels: Vec<String> = (0..8).map(|n| short(from + step * f64::from(n), step)).collect();
            assert!(labels.windows(2).all(|pair| pair[0] != pair[1]), "{labels:?}");
        }
        assert_eq!([short(2.5, 0.5), short(20_000.0, 5_000.0), short(-0.0, 1.0)], ["2.5", "20 k", "0"]);
    }

    #[test]
    fn percentiles_are_short() {
        let labels = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0].map(percentile);
        assert_eq!(labels, ["0 %", "68 %", "90 %", "96.8 %", "99 %", "99.68 %", "99.9 %", "99.999 %"]);
    }
}
