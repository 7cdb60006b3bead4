//! One bar chart for each work and metric that says most about it: SVG, drawn with the primitives of plotters.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::stats::Spread;
use super::table::title;
use crate::Failure;
use crate::record::Record;

/// Metrics that get a chart, if a work has them.
const CHARTED: [&str; 9] = [
    "goodput_gbps",
    "goodput_mbps",
    "cpu_s_per_gb",
    "p50_us",
    "p99_us",
    "p99_ms",
    "added_mean_ms",
    "requests_per_s",
    "server_bytes_each",
];
/// Sizes in pixels.
const WIDTH: u32 = 760;
const BAR: i32 = 20;
const GAP: i32 = 8;
const TOP: i32 = 44;
const LEFT: i32 = 150;
const RIGHT: i32 = 190;
const BOTTOM: i32 = 12;

/// A chart that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plot {
    /// Its work.
    pub work: String,
    /// Its metric.
    pub metric: &'static str,
    /// Its file name.
    pub file: String,
}

/// Writes the charts into a folder, which is made if needed.
pub fn write(records: &[Record], folder: &Path) -> Result<Vec<Plot>, Failure> {
    std::fs::create_dir_all(folder)?;
    let mut plots: Vec<Plot> = Vec::new();
    for record in records {
        for metric in CHARTED {
            let done = plots.iter().any(|plot| plot.work == record.work && plot.metric == metric);
            if done || !record.metrics.contains_key(metric) {
                continue;
            }
            let file = format!("{}-{}.svg", file_name(&record.work), metric.replace('_', "-"));
            let bars = bars(records, &record.work, metric);
            std::fs::write(folder.join(&file), draw(&record.work, metric, &bars)?)?;
            plots.push(Plot { work: record.work.clone(), metric, file });
        }
    }
    Ok(plots)
}

/// Only what is safe in a file name: works come from records of other programs too.
fn file_name(work: &str) -> String {
    work.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

fn bars(records: &[Record], work: &str, metric: &str) -> Vec<(String, Spread)> {
    let mut bars: Vec<(String, Spread)> = Vec::new();
    for record in records.iter().filter(|record| record.work == work) {
        if bars.iter().any(|(subject, _)| *subject == record.subject) {
            continue;
        }
        if let Some(spread) = Spread::find(records, work, &record.subject, metric) {
            bars.push((record.subject.clone(), spread));
        }
    }
    bars
}

/// Horizontal bars of the medians; the line over each goes from the smallest to the largest value.
fn draw(work: &str, metric: &str, bars: &[(String, Spread)]) -> Result<String, Failure> {
    let mut svg = String::new();
    let height = TOP + bars.len() as i32 * (BAR + GAP) + BOTTOM;
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height as u32)).into_drawing_area();
        area.fill(&WHITE)?;
        let left = Pos::new(HPos::Left, VPos::Center);
        let right = Pos::new(HPos::Right, VPos::Center);
        let font = ("sans-serif", 14).into_font().color(&BLACK);
        let heading = format!("{work}: {} (median; line: smallest to largest)", title(metric));
        area.draw(&Text::new(heading, (12, TOP / 2), font.pos(left)))?;
        let most = bars.iter().map(|(_, spread)| spread.max).fold(f64::MIN_POSITIVE, f64::max);
        let room = f64::from(WIDTH as i32 - LEFT - RIGHT);
        let at = |value: f64| LEFT + (value / most * room).round() as i32;
        for (number, (subject, spread)) in bars.iter().enumerate() {
            let top = TOP + number as i32 * (BAR + GAP);
            let middle = top + BAR / 2;
            area.draw(&Text::new(subject.clone(), (LEFT - 8, middle), font.pos(right)))?;
            let fill = colour(subject).filled();
            area.draw(&Rectangle::new([(LEFT, top), (at(spread.median), top + BAR)], fill))?;
            let line = vec![(at(spread.min), middle), (at(spread.max), middle)];
            area.draw(&PathElement::new(line, BLACK.stroke_width(2)))?;
            area.draw(&Text::new(spread.show(), (at(spread.max) + 8, middle), font.pos(left)))?;
        }
        area.present()?;
    }
    Ok(svg)
}

/// Ours stand out; what is not encrypted, or no transport, recedes.
fn colour(subject: &str) -> RGBColor {
    match subject {
        s if s.starts_with("pilotage") => RGBColor(0x1f, 0x77, 0xb4),
        s if s.starts_with("quinn") => RGBColor(0xff, 0xa0, 0x56),
        s if s.starts_with("s2n") => RGBColor(0xe6, 0xb8, 0x00),
        s if s.starts_with("tls") => RGBColor(0x5a, 0xae, 0x61),
        _ => RGBColor(0xb0, 0xb0, 0xb0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_a_bar_for_each_subject() {
        let records = [
            Record::new("w/../x", "a", 1).metric("p50_us", 2.0).metric("p999_us", 4.0),
            Record::new("w/../x", "b<c", 1).metric("p50_us", 4.0),
        ];
        let folder = tempfile::tempdir().expect("folder");
        let plots = write(&records, folder.path()).expect("plots");
        assert_eq!(plots.len(), 1, "p99.9 has no chart");
        assert_eq!(plots[0].file, "w----x-p50-us.svg");
        let svg = std::fs::read_to_string(folder.path().join(&plots[0].file)).expect("file");
        assert_eq!(svg.matches("<rect").count(), 3, "background and two bars");
        assert!(svg.contains("b&lt;c"), "text is escaped");
    }
}
