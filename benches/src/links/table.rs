//! Results for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::record::Record;

/// One record on one line.
pub(super) fn line(record: &Record) -> String {
    let mut text = format!("{} #{} {}:", record.work, record.repeat, record.subject);
    if let Some(error) = &record.error {
        // Writing to a string cannot fail.
        let _ = write!(text, " FAILED: {error}");
    }
    for (name, value) in record.metrics.iter().filter(|(name, value)| shown(name, **value)) {
        let _ = write!(text, " {name} {}", number(*value));
    }
    if let Some(foreign) = record.foreign_cpu {
        let _ = write!(text, " (foreign CPU {foreign:.0} %)");
    }
    if !record.note.is_empty() {
        let _ = write!(text, " [{}]", record.note);
    }
    text
}

/// Zeroes of what should be zero are not worth their room.
fn shown(name: &str, value: f64) -> bool {
    !(matches!(name, "cut" | "lab_late" | "lab_overrun" | "queue_drops") && value == 0.0)
}

fn number(value: f64) -> String {
    if value.abs() >= 1_000.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

/// All records: a table for each work, medians with the range, and the settings.
pub(super) fn render(records: &[Record]) -> String {
    let mut works: Vec<&str> = Vec::new();
    for record in records {
        if !works.contains(&record.work.as_str()) {
            works.push(&record.work);
        }
    }
    let mut text = String::new();
    for work in works {
        let of_work: Vec<&Record> = records.iter().filter(|record| record.work == work).collect();
        let link = of_work.iter().find_map(|record| record.settings.get("link")).map_or("", String::as_str);
        let _ = writeln!(text, "\n## {work} ({link})\n");
        render_work(&mut text, &of_work);
    }
    let settings: BTreeMap<&str, &str> = records
        .iter()
        .filter_map(|record| Some((record.subject.as_str(), record.settings.get("peer")?.as_str())))
        .collect();
    let _ = writeln!(text, "\n## Settings\n");
    for (subject, peer) in settings {
        let _ = writeln!(text, "- `{subject}`: {peer}");
    }
    text
}

fn render_work(text: &mut String, records: &[&Record]) {
    let mut names: Vec<&str> = records.iter().flat_map(|r| r.metrics.keys()).map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let mut subjects: Vec<&str> = Vec::new();
    for record in records {
        if !subjects.contains(&record.subject.as_str()) {
            subjects.push(&record.subject);
        }
    }
    let _ = writeln!(text, "| | {} | runs |", names.join(" | "));
    let _ = writeln!(text, "|---|{}---|", "---|".repeat(names.len()));
    for subject in subjects {
        let of_subject: Vec<&&Record> = records.iter().filter(|record| record.subject == subject).collect();
        let good = of_subject.iter().filter(|record| record.error.is_none()).count();
        let _ = write!(text, "| {subject} |");
        for name in &names {
            let mut values: Vec<f64> =
                of_subject.iter().filter_map(|r| r.metrics.get(*name)).copied().collect();
            values.sort_by(f64::total_cmp);
            let _ = write!(text, " {} |", spread(&values));
        }
        let _ = writeln!(text, " {good} of {} |", of_subject.len());
    }
}

/// Median and range of sorted values.
fn spread(values: &[f64]) -> String {
    match values {
        [] => "-".to_owned(),
        [one] => number(*one),
        [first, .., last] => {
            let middle = values.len() / 2;
            let median = if values.len() % 2 == 1 {
                values[middle]
            } else {
                (values[middle - 1] + values[middle]) / 2.0
            };
            format!("{} [{}-{}]", number(median), number(*first), number(*last))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_medians_ranges_failures_and_settings() {
        let mut records: Vec<Record> = [3.0, 1.0, 2.0]
            .into_iter()
            .enumerate()
            .map(|(i, value)| {
                Record::new("link-x", "tcp-bbr", i as u32 + 1)
                    .metric("goodput_mbps", value)
                    .setting("peer", "kernel")
            })
            .collect();
        let mut failed = Record::new("link-x", "quinn-bbr", 1);
        failed.error = Some("no".into());
        assert!(line(&failed).contains("FAILED: no"));
        records.push(failed);
        let text = render(&records);
        assert!(text.contains("| tcp-bbr | 2.000 [1.000-3.000] | 3 of 3 |"), "{text}");
        assert!(text.contains("| quinn-bbr | - | 0 of 1 |"), "{text}");
        assert!(text.contains("- `tcp-bbr`: kernel"), "{text}");
    }
}
