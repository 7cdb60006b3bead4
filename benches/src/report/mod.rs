//! From records to tables, verdicts and plots.

pub mod criteria;
mod goals;
pub mod plots;
pub mod stats;
pub mod table;
mod write;

use std::collections::BTreeSet;
use std::fmt;

use crate::record::{PEER, Record};

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
    /// Puts records together with what is known of this machine.
    pub fn new(records: Vec<Record>) -> Self {
        Self { machine: machine(), settings: settings(&records), records }
    }

    /// Whether nothing failed and something was measured.
    pub fn is_complete(&self) -> bool {
        !self.records.is_empty() && self.records.iter().all(|record| record.error.is_none())
    }

    /// How the goals stand.
    pub fn verdicts(&self) -> Vec<criteria::Verdict> {
        criteria::verdicts(&self.records)
    }

    fn failures(&self) -> impl Iterator<Item = String> + '_ {
        self.records.iter().filter_map(|record| {
            let error = record.error.as_ref()?;
            Some(format!("{}: {} (repeat {}): {error}", record.work, record.subject, record.repeat))
        })
    }
}

/// Everything that records say was set on each subject, what is common to all runs of a work excepted.
fn settings(records: &[Record]) -> Vec<(String, String)> {
    let mut subjects: Vec<&str> = Vec::new();
    for record in records {
        if !subjects.contains(&record.subject.as_str()) {
            subjects.push(&record.subject);
        }
    }
    let describe = |subject: &str| {
        let mut parts = BTreeSet::new();
        for record in records.iter().filter(|record| record.subject == subject) {
            let common = table::common(records, &record.work);
            let own = record.settings.iter().filter(|(name, _)| !common.contains(name.as_str()));
            parts.extend(own.map(|(name, value)| match name.as_str() {
                PEER => value.clone(),
                _ => format!("{name} {value}"),
            }));
        }
        parts.into_iter().collect::<Vec<_>>().join("; ")
    };
    subjects.into_iter().map(|subject| (subject.to_owned(), describe(subject))).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; median [smallest–largest] of the repeats\n", self.machine)?;
        for table in table::tables(&self.records).iter().chain(&table::overview(&self.records)) {
            writeln!(f, "{}", table.text())?;
        }
        for verdict in self.verdicts().iter().filter(|verdict| verdict.met.is_some()) {
            writeln!(f, "goal {}", verdict.row().join(" | "))?;
        }
        for (subject, settings) in &self.settings {
            writeln!(f, "{subject}: {settings}")?;
        }
        for failure in self.failures() {
            writeln!(f, "FAILED {failure}")?;
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
