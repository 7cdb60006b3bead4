//! RESULTS.md, results.json and the plots.

use std::io::Write;
use std::path::Path;

use super::{Report, plots, table};
use crate::Failure;
use crate::settings::Options;

/// What was done for fairness and against noise; the same for every report.
const METHOD: &str = "\
Every subject runs as two fresh processes, each bound to one core (works named `-core`: both to the same one). The subjects
take turns within every repeat. A run during which other programs used more of the machine than the limit was repeated, at
most twice; those that stayed disturbed are counted in the last column and enter a median only where there is no other.
CPU is user and system time of both processes, from `getrusage`; the work of the kernel on loopback is mostly in it. Every
byte of bulk data is verified (BLAKE3, outside the clock), every reply compared. Requests and fetches keep their streams;
TCP and TLS have one connection for each stream, QUIC and Pilotage one connection or tunnel for all. Memory is the growth of resident
memory of a process divided by the number; 64-byte buffer and task of the harness for each open stream included, kernel
memory (TCP) not.

Not there: ChaCha20-Poly1305 in Pilotage's tunnels (the draft has AES-256-GCM only; the peers' figures with it are for
comparison), and data on the first packet of a connection (the draft's SYN carries none).
";

impl Report {
    /// Writes everything into a folder.
    pub fn write(&self, options: &Options, folder: &Path) -> Result<(), Failure> {
        std::fs::create_dir_all(folder)?;
        let plots = plots::write(&self.records, &folder.join("plots"))?;
        std::fs::write(folder.join("RESULTS.md"), self.markdown(options, &plots))?;
        let mut json = std::io::BufWriter::new(std::fs::File::create(folder.join("results.json"))?);
        self.json(options, &mut json)?;
        Ok(json.flush()?)
    }

    /// One object, a record on each line.
    fn json(&self, options: &Options, out: &mut impl Write) -> Result<(), Failure> {
        let text = |value: &str| serde_json::to_string(value);
        writeln!(out, "{{\"date\":{},", text(&today())?)?;
        writeln!(out, "\"machine\":{},", text(&self.machine)?)?;
        writeln!(out, "\"command\":{},", text(&command(options))?)?;
        writeln!(out, "\"records\":[")?;
        for (number, record) in self.records.iter().enumerate() {
            let comma = if number + 1 < self.records.len() { "," } else { "" };
            writeln!(out, "{}{comma}", serde_json::to_string(record)?)?;
        }
        Ok(writeln!(out, "]}}")?)
    }

    /// The report for people.
    pub fn markdown(&self, options: &Options, plots: &[plots::Plot]) -> String {
        let mut text = String::from("# Benchmark results\n\n");
        text += &format!("{}, on {}, with\n\n```sh\n{}\n```\n\n", today(), self.machine, command(options));
        text += "Figures are medians of the repeats, [smallest–largest]. Read the ratios, not the absolute figures.\n";
        text += "\n## Goals\n\n| | ratio of medians | measured | goal | |\n|---|---|--:|--:|---|\n";
        let (measured, not): (Vec<_>, Vec<_>) =
            self.verdicts().into_iter().partition(|verdict| verdict.met.is_some());
        for verdict in &measured {
            text += &format!("| {} |\n", verdict.row().join(" | "));
        }
        if let [first, .., last] = &not[..] {
            text += &format!(
                "\n{} goals (of number {} to {}) were not measured in this run.\n",
                not.len(),
                first.number,
                last.number
            );
        }
        if let Some(table) = table::overview(&self.records) {
            text +=
                &format!("\n## Overview\n\nMedians; spread and settings are below.\n\n{}", table.markdown());
        }
        for table in table::tables(&self.records) {
            text += &format!("\n## {}\n\n", table.work);
            if !table.settings.is_empty() {
                text += &format!("{}.\n\n", table.settings);
            }
            text += &table.markdown();
            let here: Vec<String> = plots
                .iter()
                .filter(|plot| plot.work == table.work)
                .map(|plot| format!("[{}](plots/{})", table::title(plot.metric), plot.file))
                .collect();
            if !here.is_empty() {
                text += &format!("\nCharts: {}.\n", here.join(", "));
            }
        }
        text += "\n## How\n\n";
        text += METHOD;
        text += "\n## Settings\n\n";
        for (subject, settings) in &self.settings {
            text += &format!("- `{subject}`: {settings}\n");
        }
        let failed: Vec<String> = self.failures().map(|failure| format!("- {failure}\n")).collect();
        if !failed.is_empty() {
            text += &format!("\n## Failed runs\n\n{}", failed.concat());
        }
        text
    }
}

/// The date, in UTC.
fn today() -> String {
    time::OffsetDateTime::now_utc().date().to_string()
}

/// The command that made the report.
fn command(options: &Options) -> String {
    options.command.clone().unwrap_or_else(|| {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        format!("cargo run --release -p pilotage-benches --bin transfer -- {}", arguments.join(" "))
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::record::Record;

    #[test]
    fn everything_is_written_and_the_json_holds_the_records() {
        let records = vec![
            Record::new("bulk-1", "pilotage", 1).metric("goodput_gbps", 8.0),
            Record { error: Some("it broke".into()), ..Record::new("bulk-1", "quinn-tuned", 1) },
        ];
        let options = Options::parse_from(["transfer", "--command", "cargo xtask bench"]);
        let folder = tempfile::tempdir().expect("folder");
        Report::new(records.clone()).write(&options, folder.path()).expect("write");
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect(name);
        let json: serde_json::Value = serde_json::from_str(&read("results.json")).expect("json");
        let kept: Vec<Record> = serde_json::from_value(json["records"].clone()).expect("records");
        assert_eq!(kept, records);
        let text = read("RESULTS.md");
        for needed in
            ["cargo xtask bench", "## bulk-1", "8.00", "were not measured", "it broke", "plots/bulk-1"]
        {
            assert!(text.contains(needed), "{needed}");
        }
        assert!(folder.path().join("plots/bulk-1-goodput-gbps.svg").exists());
    }
}
