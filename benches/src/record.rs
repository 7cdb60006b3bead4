//! One measurement, as the programs of this package hand it to the report: one JSON object on a line.
//!
//! ```text
//! {"work":"bulk-1","subject":"quinn-tuned","settings":{"congestion":"cubic"},"repeat":1,
//!  "metrics":{"goodput_gbps":9.1,"cpu_s_per_gb":1.7},"foreign_cpu":0.4,"note":"","error":null}
//! ```
//!
//! (on one line). Unknown fields are ignored, fields with a default may be left out. `transfer` writes the
//! work on loopback, `links` the work on emulated links; the report reads both.
//!
//! Names of metrics say their unit: `_gbps`, `_mbps` (10^9 and 10^6 payload bits per second), `_s`, `_ms`, `_us`,
//! `_bytes`, `_per_s`, `_ratio` (1.0 = 100 %), `cpu_s_per_gb` (CPU seconds of both sides for 10^9 payload bytes),
//! `cpu_us_per_request`.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Failure;

/// Records that one report may hold; a file with more is refused rather than read into memory.
pub const MAX_RECORDS: usize = 100_000;

/// Name of the setting that describes a subject as a whole; given once, in its first record at a work.
pub const PEER: &str = "peer";

/// What one run of one subject at one work gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What was done, such as `bulk-1` or `link-100mbit-40ms-1pct`.
    pub work: String,
    /// Who did it, such as `pilotage` or `quinn-tuned`.
    pub subject: String,
    /// Every setting of the subject and of the work that is not the same for all runs of the report.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Number of the repeat, from 1.
    pub repeat: u32,
    /// What was measured. Empty if the run failed.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
    /// CPU that others used meanwhile, in percent of one core; `None` if it could not be read.
    #[serde(default)]
    pub foreign_cpu: Option<f64>,
    /// Whether `foreign_cpu` was over the limit even after all retries.
    #[serde(default)]
    pub disturbed: bool,
    /// What the transport says about itself (datagram size, retransmissions).
    #[serde(default)]
    pub note: String,
    /// Why there are no metrics.
    #[serde(default)]
    pub error: Option<String>,
}

impl Record {
    /// A record without metrics.
    pub fn new(work: impl Into<String>, subject: impl Into<String>, repeat: u32) -> Self {
        Self {
            work: work.into(),
            subject: subject.into(),
            settings: BTreeMap::new(),
            repeat,
            metrics: BTreeMap::new(),
            foreign_cpu: None,
            disturbed: false,
            note: String::new(),
            error: None,
        }
    }

    /// Adds a metric; values that are not finite are left out, since JSON has no form for them.
    #[must_use]
    pub fn metric(mut self, name: &str, value: f64) -> Self {
        if value.is_finite() {
            self.metrics.insert(name.to_owned(), value);
        }
        self
    }

    /// Adds a setting.
    #[must_use]
    pub fn setting(mut self, name: &str, value: impl Into<String>) -> Self {
        self.settings.insert(name.to_owned(), value.into());
        self
    }

    /// Writes the record as one line.
    pub fn write_line(&self, out: &mut impl Write) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(out.write_all(&line)?)
    }
}

/// Reads records from lines of JSON; empty lines are skipped, everything else must be a record.
pub fn read_lines(input: impl BufRead) -> Result<Vec<Record>, Failure> {
    let mut records = Vec::new();
    for (index, line) in input.lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        if records.len() == MAX_RECORDS {
            return Err(format!("more than {MAX_RECORDS} records").into());
        }
        records.push(serde_json::from_str(&line).map_err(|e| format!("line {}: {e}", index + 1))?);
    }
    Ok(records)
}

/// Reads the records of a file.
pub fn read_file(path: &Path) -> Result<Vec<Record>, Failure> {
    let file = std::fs::File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    read_lines(std::io::BufReader::new(file)).map_err(|e| format!("{}: {e}", path.display()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_line() {
        let record = Record::new("bulk-1", "tcp", 2)
            .metric("goodput_gbps", 1.5)
            .metric("p50_us", f64::NAN)
            .setting("congestion", "cubic");
        assert_eq!(record.metrics.len(), 1, "a value that JSON cannot hold is left out");
        let mut line = Vec::new();
        record.write_line(&mut line).expect("write");
        assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
        assert_eq!(read_lines(line.as_slice()).expect("read"), [record]);
    }

    #[test]
    fn fields_with_a_default_may_be_left_out_and_unknown_ones_added() {
        let line = br#"{"work":"w","subject":"s","repeat":1,"colour":"green"}"#;
        let read = read_lines(line.as_slice()).expect("read");
        assert_eq!(read, [Record::new("w", "s", 1)]);
    }

    #[test]
    fn what_is_no_record_is_refused_with_its_line() {
        let error = read_lines(&b"\n{\"work\":1}\n"[..]).expect_err("refused");
        assert!(error.to_string().starts_with("line 2"), "{error}");
    }

    #[test]
    fn the_number_of_records_is_bounded() {
        let line = "{\"work\":\"w\",\"subject\":\"s\",\"repeat\":1}\n";
        assert_eq!(read_lines(line.repeat(MAX_RECORDS).as_bytes()).expect("read").len(), MAX_RECORDS);
        assert!(read_lines(line.repeat(MAX_RECORDS + 1).as_bytes()).is_err());
    }
}
