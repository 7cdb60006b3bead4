//! Medians, spread, table and JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::exchange::{ClientResult, ServerResult};
use crate::settings::{Options, Subject, Verify};

/// What one run of one contender gave.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Payload bits per second, in units of 10^9.
    pub goodput_gbps: f64,
    /// CPU seconds of both processes per 10^9 payload bytes.
    pub cpu_seconds_per_gb: f64,
    /// Share of the sender in it.
    pub sender_cpu_seconds_per_gb: f64,
    /// Start of the connection to the first answer, in microseconds.
    pub connect_us: f64,
    /// Median 64-byte round trip, in microseconds.
    pub rtt_p50_us: f64,
    /// 99th percentile of the 64-byte round trips, in microseconds.
    pub rtt_p99_us: f64,
    /// Whether the receiver's hash was the sender's.
    pub verified: bool,
    /// CPU that others used meanwhile, in percent of one core.
    pub foreign_percent: Option<f64>,
    /// What the transport says about itself.
    pub note: String,
}

impl Run {
    /// Combines both sides.
    pub fn new(size: u64, sent: ClientResult, received: ServerResult, foreign_percent: Option<f64>) -> Self {
        let gigabytes = (size as f64 / 1e9).max(f64::MIN_POSITIVE);
        Self {
            goodput_gbps: size as f64 * 8.0 / sent.seconds.max(1e-9) / 1e9,
            cpu_seconds_per_gb: (sent.cpu_seconds + received.cpu_seconds) / gigabytes,
            sender_cpu_seconds_per_gb: sent.cpu_seconds / gigabytes,
            connect_us: sent.connect_us as f64,
            rtt_p50_us: percentile(&sent.round_trips_ns, 50) / 1e3,
            rtt_p99_us: percentile(&sent.round_trips_ns, 99) / 1e3,
            verified: sent.verified,
            foreign_percent,
            note: sent.note,
        }
    }
}

/// The nearest-rank percentile of sorted values; 0 if there are none.
pub fn percentile(sorted: &[u64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).map_or(0.0, |value| *value as f64)
}

/// Median, smallest and largest of some runs.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Spread {
    /// Median (mean of the middle two for an even count).
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of any number of values; all zero for none.
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (values.first(), values.last()) else { return Self::default() };
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Self { median, min: *min, max: *max }
    }
}

/// All runs of one contender.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The contender.
    pub subject: Subject,
    /// What it was set to.
    pub settings: String,
    /// Payload bits per second, in units of 10^9.
    pub goodput_gbps: Spread,
    /// CPU seconds of both processes per 10^9 payload bytes.
    pub cpu_seconds_per_gb: Spread,
    /// Connection to first answer, in microseconds.
    pub connect_us: Spread,
    /// Median 64-byte round trip, in microseconds.
    pub rtt_p50_us: Spread,
    /// 99th percentile of the 64-byte round trips, in microseconds.
    pub rtt_p99_us: Spread,
    /// Runs in which others used more CPU than allowed.
    pub contaminated: usize,
    /// The single runs.
    pub runs: Vec<Run>,
}

/// The whole comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Bytes transferred per run.
    pub bytes: u64,
    /// Repeats asked for.
    pub repeats: u32,
    /// Core of the receiver and of the sender.
    pub cores: Vec<usize>,
    /// When the receiver hashed.
    pub verify: Verify,
    /// Foreign CPU allowed per run, in percent of one core.
    pub foreign_limit_percent: f64,
    /// Processor, kernel, and how many CPUs.
    pub machine: String,
    /// Whether every run of every contender was verified.
    pub verified: bool,
    /// One row per contender.
    pub rows: Vec<Row>,
    /// Runs that failed.
    pub failures: Vec<String>,
}

impl Report {
    /// Sums up.
    pub fn new(
        options: &Options,
        subjects: &[Subject],
        mut runs: BTreeMap<Subject, Vec<Run>>,
        failures: Vec<String>,
    ) -> Self {
        let rows: Vec<Row> = subjects
            .iter()
            .filter_map(|&subject| runs.remove(&subject).map(|runs| row(options, subject, runs)))
            .collect();
        let verified = failures.is_empty()
            && !rows.is_empty()
            && rows.iter().all(|row| row.runs.iter().all(|run| run.verified));
        Self {
            bytes: options.size,
            repeats: options.repeats,
            cores: options.cores.clone(),
            verify: options.verify,
            foreign_limit_percent: options.foreign_limit,
            machine: machine(),
            verified,
            rows,
            failures,
        }
    }
}

fn row(options: &Options, subject: Subject, runs: Vec<Run>) -> Row {
    let spread = |value: fn(&Run) -> f64| Spread::of(runs.iter().map(value));
    Row {
        subject,
        settings: subject.settings(options),
        goodput_gbps: spread(|run| run.goodput_gbps),
        cpu_seconds_per_gb: spread(|run| run.cpu_seconds_per_gb),
        connect_us: spread(|run| run.connect_us),
        rtt_p50_us: spread(|run| run.rtt_p50_us),
        rtt_p99_us: spread(|run| run.rtt_p99_us),
        contaminated: runs
            .iter()
            .filter(|run| run.foreign_percent.is_some_and(|foreign| foreign > options.foreign_limit))
            .count(),
        runs,
    }
}

fn machine() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name").and_then(|rest| rest.split_once(':')))
        .map_or("unknown processor", |(_, model)| model.trim());
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{model}, {cpus} CPUs, Linux {}", kernel.trim())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} bytes, {} repeats (interleaved), receiver on core {}, sender on core {}; median [min-max]",
            self.bytes,
            self.repeats,
            self.cores.first().copied().unwrap_or_default(),
            self.cores.last().copied().unwrap_or_default(),
        )?;
        writeln!(f, "{}\n", self.machine)?;
        writeln!(
            f,
            "{:<15} {:>22} {:>20} {:>11} {:>11} {:>11}  {:<8} runs",
            "", "goodput Gbit/s", "CPU s/GB (both)", "rtt p50 us", "rtt p99 us", "connect us", "verified"
        )?;
        for row in &self.rows {
            let good = row.runs.iter().all(|run| run.verified);
            let busy = if row.contaminated == 0 {
                String::new()
            } else {
                format!(" ({} with foreign load)", row.contaminated)
            };
            writeln!(
                f,
                "{:<15} {:>22} {:>20} {:>11.1} {:>11.1} {:>11.0}  {:<8} {}{busy}",
                row.subject.name(),
                show(row.goodput_gbps, 2),
                show(row.cpu_seconds_per_gb, 3),
                row.rtt_p50_us.median,
                row.rtt_p99_us.median,
                row.connect_us.median,
                if good { "yes" } else { "NO" },
                row.runs.len(),
            )?;
        }
        writeln!(f)?;
        for row in &self.rows {
            let note = row.runs.last().map_or("", |run| run.note.as_str());
            let sep = if note.is_empty() { "" } else { "; " };
            writeln!(f, "{}: {}{sep}{note}", row.subject.name(), row.settings)?;
        }
        for failure in &self.failures {
            writeln!(f, "FAILED {failure}")?;
        }
        Ok(())
    }
}

fn show(spread: Spread, digits: usize) -> String {
    format!("{:.digits$} [{:.digits$}-{:.digits$}]", spread.median, spread.min, spread.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles() {
        let spread = Spread::of([3.0, 1.0, 2.0].into_iter());
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of([1.0, 2.0].into_iter()).median, 1.5);
        assert_eq!(Spread::of(std::iter::empty()).median, 0.0);
        let sorted: Vec<u64> = (1..=100).collect();
        assert_eq!(percentile(&sorted, 50), 50.0);
        assert_eq!(percentile(&sorted, 99), 99.0);
        assert_eq!(percentile(&[], 99), 0.0);
        assert_eq!(percentile(&[7], 50), 7.0);
    }
}
