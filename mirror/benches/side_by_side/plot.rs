//! A plot of ratios, as SVG.

use std::fmt::Write;

const ROW: usize = 22;
/// The left end of bars; `UNIT` is the length of a bar that equals the ideal.
const LEFT: f64 = 450.0;
const UNIT: f64 = 160.0;
const WIDEST: f64 = 480.0;

/// A bar a measure; the line is where ours equals the ideal.
pub(crate) fn ratios(ratios: &[(&str, f64)]) -> String {
    let mut bars = String::new();
    for (row, (measure, ratio)) in ratios.iter().enumerate() {
        let (bar, text) = (row * ROW + 4, row * ROW + 15);
        let width = (ratio * UNIT).clamp(1.0, WIDEST);
        let _ = writeln!(
            bars,
            r##"<text x="5" y="{text}">{measure}</text><rect x="{LEFT}" y="{bar}" width="{width:.0}" height="14" fill="#4a7"/><text x="{:.0}" y="{text}">{ratio:.2}</text>"##,
            LEFT + width + 5.0,
        );
    }
    let (height, line) = (ratios.len() * ROW + 5, LEFT + UNIT);
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="990" height="{height}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>{bars}<line x1="{line}" x2="{line}" y1="0" y2="{height}" stroke="#c33"/></svg>"##
    )
}
