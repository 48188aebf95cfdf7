//! Writes line plots as SVG, without a library: two axes from 0, and a legend.

use std::{fmt::Write as _, fs};

use crate::report::folder;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 45.0;
/// Colors that color-blind readers can distinguish (Okabe and Ito, "Color Universal Design").
const COLOURS: [&str; 4] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7"];
/// Number of marks on an axis.
const MARKS: u32 = 5;

/// A line of a plot with its name.
pub struct Line {
    /// The name in the legend.
    pub name: String,
    /// Points in the order of x.
    pub points: Vec<(f64, f64)>,
}

/// Writes `NAME.svg` into the folder of the results.
pub fn write(name: &str, title: &str, [x_axis, y_axis]: [&str; 2], lines: &[Line]) {
    let points = || lines.iter().flat_map(|line| &line.points);
    let x_most = points().map(|(x, _)| *x).fold(f64::MIN_POSITIVE, f64::max);
    let y_most = points().map(|(_, y)| *y).fold(f64::MIN_POSITIVE, f64::max);
    let x_at = |x: f64| LEFT + x / x_most * (WIDTH - LEFT - 20.0);
    let y_at = |y: f64| HEIGHT - BOTTOM - y / y_most * (HEIGHT - BOTTOM - 40.0);

    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
<text x="{LEFT}" y="20" font-size="14">{title}</text>
<text x="{}" y="{}" text-anchor="end">{x_axis}</text>
<text x="{LEFT}" y="36" fill="#555">{y_axis}</text>
"##,
        WIDTH - 20.0,
        HEIGHT - 8.0
    );
    for mark in 0..=MARKS {
        let share = f64::from(mark) / f64::from(MARKS);
        let (x, y) = (x_at(share * x_most), y_at(share * y_most));
        let (foot, end) = (HEIGHT - BOTTOM, WIDTH - 20.0);
        let (x_label, y_label) = (label(share * x_most), label(share * y_most));
        writeln!(svg, r##"<path d="M{LEFT} {y:.1}H{end}" stroke="#ddd"/>"##).unwrap();
        writeln!(svg, r#"<text x="{x:.1}" y="{}" text-anchor="middle">{x_label}</text>"#, foot + 16.0).unwrap();
        writeln!(svg, r#"<text x="{}" y="{:.1}" text-anchor="end">{y_label}</text>"#, LEFT - 6.0, y + 4.0).unwrap();
    }
    for (number, (line, colour)) in lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let path: Vec<_> = line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_at(*x), y_at(*y))).collect();
        let path = path.join(" ");
        writeln!(svg, r#"<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>"#).unwrap();
        let x = LEFT + 10.0 + 150.0 * f64::from(u32::try_from(number).unwrap());
        writeln!(svg, r#"<text x="{x}" y="{}" fill="{colour}">{}</text>"#, HEIGHT - 8.0, line.name).unwrap();
    }
    svg.push_str("</svg>\n");
    fs::write(folder().join(format!("{name}.svg")), svg).unwrap();
}

fn label(value: f64) -> String {
    if value >= 10.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
