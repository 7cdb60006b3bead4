//! One table for each work: a row for each subject, a column for each metric.

use std::collections::BTreeSet;

use super::stats::Spread;
use crate::record::{PEER, Record};

/// A table with its title.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The work.
    pub work: String,
    /// What was set on the work, once each.
    pub settings: String,
    /// First row: names of the columns.
    pub rows: Vec<Vec<String>>,
}

/// Metrics in the order of the columns; others follow in the order of the alphabet.
const ORDER: [&str; 25] = [
    "goodput_gbps",
    "goodput_mbps",
    "time_s",
    "of_link_ratio",
    "wire_ratio",
    "jain",
    "share_ratio",
    "alone_ms",
    "added_mean_ms",
    "added_p50_ms",
    "added_p95_ms",
    "p50_us",
    "p99_us",
    "p999_us",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "requests_per_s",
    "fetches_per_s",
    "cpu_us_per_request",
    "cpu_us_per_fetch",
    "cpu_us_per_contact",
    "established_p50_us",
    "to_established_ratio",
    "cpu_s_per_gb",
];
/// Metrics that stay in the raw records: whether the laboratory kept up, counts.
const HIDDEN: [&str; 7] =
    ["lab_late", "lab_overrun", "packets_out", "packets_back", "queue_drops", "cut", "back_ratio"];

/// The tables of all works, in the order in which the works first appear.
pub fn tables(records: &[Record]) -> Vec<Table> {
    let mut works: Vec<&str> = Vec::new();
    for record in records {
        if !works.contains(&record.work.as_str()) {
            works.push(&record.work);
        }
    }
    works.into_iter().map(|work| table(records, work)).collect()
}

/// The columns of the overview: work, metric, name.
const OVERVIEW: [(&str, &str, &str); 11] = [
    ("bulk-1", "goodput_gbps", "bulk, Gbit/s"),
    ("bulk-1", "cpu_s_per_gb", "CPU s/GB"),
    ("bulk-100", "goodput_gbps", "100 streams, Gbit/s"),
    ("request-1-core", "p50_us", "request on one core, p50 µs"),
    ("request-1", "p50_us", "on two, p50 µs"),
    ("request-1", "p99_us", "p99 µs"),
    ("request-64", "requests_per_s", "64 in flight, requests/s"),
    ("cold", "p50_us", "cold contact, p50 µs"),
    ("warm", "p50_us", "new stream, p50 µs"),
    ("idle-tunnels", "server_bytes_each", "idle tunnel, bytes"),
    ("idle-connections", "server_bytes_each", "idle connection, bytes"),
];

/// One row for each subject on loopback, with the medians that say most. `None` if there is nothing to show.
pub fn overview(records: &[Record]) -> Option<Table> {
    let here = |record: &&Record| OVERVIEW.iter().any(|(work, _, _)| *work == record.work);
    let mut subjects: Vec<&str> = Vec::new();
    for record in records.iter().filter(here) {
        if !subjects.contains(&record.subject.as_str()) {
            subjects.push(&record.subject);
        }
    }
    let mut rows = vec![vec![String::new()]];
    rows[0].extend(OVERVIEW.iter().map(|(_, _, name)| (*name).to_owned()));
    for subject in &subjects {
        let cells = OVERVIEW.iter().map(|(work, metric, _)| {
            let spread = Spread::find(records, work, subject, metric);
            spread.map_or("–".to_owned(), |spread| Spread { count: 1, ..spread }.show())
        });
        rows.push(std::iter::once((*subject).to_owned()).chain(cells).collect());
    }
    let settings = "medians; spread and settings in the tables of the works".to_owned();
    (!subjects.is_empty()).then(|| Table { work: "overview".to_owned(), settings, rows })
}

fn table(records: &[Record], work: &str) -> Table {
    let here: Vec<&Record> = records.iter().filter(|record| record.work == work).collect();
    let mut subjects: Vec<&str> = Vec::new();
    let mut names = BTreeSet::new();
    for record in &here {
        if !subjects.contains(&record.subject.as_str()) {
            subjects.push(&record.subject);
        }
        names.extend(record.metrics.keys().map(String::as_str).filter(|name| !HIDDEN.contains(name)));
    }
    let known = ORDER.iter().copied().filter(|name| names.contains(name));
    let other = names.iter().copied().filter(|name| !ORDER.contains(name));
    let metrics: Vec<&str> = known.chain(other).collect();
    let mut rows = vec![vec![String::new()]];
    rows[0].extend(metrics.iter().map(|metric| title(metric)));
    rows[0].push("runs".to_owned());
    for subject in subjects {
        let mut row = vec![subject.to_owned()];
        for metric in &metrics {
            let spread = Spread::find(records, work, subject, metric);
            row.push(spread.map_or("–".to_owned(), |spread| spread.show()));
        }
        row.push(runs(&here, subject));
        rows.push(row);
    }
    Table { work: work.to_owned(), settings: settings(records, work), rows }
}

/// Names of the settings that are the same in all runs of a work.
pub fn common<'a>(records: &'a [Record], work: &str) -> BTreeSet<&'a str> {
    let mut here = records.iter().filter(|record| record.work == work);
    let Some(first) = here.next() else { return BTreeSet::new() };
    let mut shared: BTreeSet<&str> = first.settings.keys().map(String::as_str).collect();
    for record in here {
        shared.retain(|name| record.settings.get(*name) == first.settings.get(*name));
    }
    // What describes a subject is none of the work's, even where there is only one.
    shared.remove(PEER);
    shared
}

fn settings(records: &[Record], work: &str) -> String {
    let Some(first) = records.iter().find(|record| record.work == work) else { return String::new() };
    let shared = common(records, work);
    let shown = first.settings.iter().filter(|(name, _)| shared.contains(name.as_str()));
    shown.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join("; ")
}

fn runs(here: &[&Record], subject: &str) -> String {
    let mine = || here.iter().filter(|record| record.subject == subject);
    let failed = mine().filter(|record| record.error.is_some()).count();
    let disturbed = mine().filter(|record| record.disturbed).count();
    let mut text = mine().count().to_string();
    if disturbed > 0 {
        text += &format!(", {disturbed} disturbed");
    }
    if failed > 0 {
        text += &format!(", {failed} FAILED");
    }
    text
}

/// The name of a metric for people.
pub fn title(metric: &str) -> String {
    match metric {
        "goodput_gbps" => "Gbit/s",
        "goodput_mbps" => "Mbit/s",
        "cpu_s_per_gb" => "CPU s/GB, both",
        "client_cpu_s_per_gb" => "of it client",
        "server_cpu_s_per_gb" => "of it server",
        "p50_us" => "p50 µs",
        "p99_us" => "p99 µs",
        "p999_us" => "p99.9 µs",
        "requests_per_s" => "requests/s",
        "fetches_per_s" => "fetches/s",
        "cpu_us_per_request" => "CPU µs/request, both",
        "cpu_us_per_fetch" => "CPU µs/fetch, both",
        "cpu_us_per_contact" => "CPU µs/contact, both",
        "established_p50_us" => "established p50 µs",
        "to_established_ratio" => "new / established",
        "client_bytes_each" => "client bytes each",
        "server_bytes_each" => "server bytes each",
        other => return other.replace('_', " "),
    }
    .to_owned()
}

impl Table {
    /// For a terminal.
    pub fn text(&self) -> String {
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let mut text = format!("{} ({})\n", self.work, self.settings);
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = width(column).unwrap_or_default();
                let pad = " ".repeat(width - cell.chars().count());
                line += &if column == 0 { format!("  {cell}{pad}") } else { format!("  {pad}{cell}") };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }

    /// For Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            text += &format!("| {} |\n", row.join(" | "));
            if number == 0 {
                text += &format!("|---|{}\n", "--:|".repeat(row.len() - 1));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_row_for_each_subject_and_a_column_for_each_metric() {
        let records = [
            Record::new("w", "a", 1).metric("p99_us", 2.0).metric("p50_us", 1.0).setting("bytes", "9"),
            Record { error: Some("broken".into()), ..Record::new("w", "b", 1).setting("bytes", "9") },
            Record::new("v", "a", 1).metric("goodput_gbps", 3.0),
        ];
        let tables = tables(&records);
        assert_eq!(tables.len(), 2);
        assert_eq!(tables[0].rows[0], ["", "p50 µs", "p99 µs", "runs"]);
        assert_eq!(tables[0].rows[1], ["a", "1.00", "2.00", "1"]);
        assert_eq!(tables[0].rows[2], ["b", "–", "–", "1, 1 FAILED"]);
        assert_eq!(tables[0].settings, "bytes 9");
        assert_eq!(overview(&records), None, "no work of the overview");
        assert!(tables[1].markdown().starts_with("|  | Gbit/s | runs |\n|---|--:|--:|\n| a | 3.00 | 1 |"));
    }
}
