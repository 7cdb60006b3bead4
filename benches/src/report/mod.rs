//! From records to tables, verdicts and plots.

pub mod stats;
pub mod table;

use std::fmt;

use crate::record::Record;
use crate::settings::Options;

/// Everything that was measured, and how.
#[derive(Debug, Clone)]
pub struct Report {
    /// Processor, kernel, and how many CPUs.
    pub machine: String,
    /// The single runs.
    pub records: Vec<Record>,
    /// What every subject was set to: name and text.
    pub settings: Vec<(String, String)>,
}

impl Report {
    /// Puts records together with what is known of this machine and of the subjects.
    pub fn new(options: &Options, records: Vec<Record>) -> Self {
        let settings = crate::subject::Subject::all()
            .iter()
            .filter(|subject| records.iter().any(|record| record.subject == subject.name()))
            .map(|subject| (subject.name().to_owned(), subject.settings(options)))
            .collect();
        Self { machine: machine(), records, settings }
    }

    /// Whether nothing failed and something was measured.
    pub fn is_complete(&self) -> bool {
        !self.records.is_empty() && self.records.iter().all(|record| record.error.is_none())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; median [min-max] of the repeats\n", self.machine)?;
        for table in table::tables(&self.records) {
            writeln!(f, "{}", table.text())?;
        }
        for (subject, settings) in &self.settings {
            writeln!(f, "{subject}: {settings}")?;
        }
        for record in &self.records {
            if let Some(error) = &record.error {
                writeln!(
                    f,
                    "FAILED {}: {} (repeat {}): {error}",
                    record.work, record.subject, record.repeat
                )?;
            }
        }
        Ok(())
    }
}

/// Processor, kernel, and how many CPUs.
pub fn machine() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name").and_then(|rest| rest.split_once(':')))
        .map_or("unknown processor", |(_, model)| model.trim());
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{model}, {cpus} CPUs, Linux {}", kernel.trim())
}
