//! What each run came to. With a file (one JSON object for each run) a table can be made in several goes, and one that was
//! interrupted loses nothing that had ended.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::scenario::{Outcome, Passed, Scenario};
use crate::subject::Kind;

/// Longest file of runs that is read.
const MAX_FILE: u64 = 64 << 20;

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) scenario: Scenario,
    /// Of scenarios in which implementations of it are told apart.
    pub(crate) hub: Option<Kind>,
    pub(crate) client: Kind,
    pub(crate) server: Kind,
}

impl Row {
    /// Whether both nodes are the reference's, at a hub that is no subject.
    pub(crate) fn is_baseline(&self) -> bool {
        (self.client, self.server) == (Kind::Reference, Kind::Reference)
    }
}

/// With which options a run ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct How {
    /// Begin of the program's BLAKE3 hash.
    pub(crate) program: String,
    /// Runs of its kind that ran at a time.
    pub(crate) together: u8,
    pub(crate) quick: bool,
}

impl std::fmt::Display for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let quick = if self.quick { ", the quick subset" } else { "" };
        write!(f, "program {}, {} at a time{quick}", self.program, self.together)
    }
}

/// How a run ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ended {
    Passed(Passed),
    Failed(String),
    /// It cannot run here; not kept in the file.
    Skipped(String),
}

impl From<Result<Outcome, Failure>> for Ended {
    fn from(result: Result<Outcome, Failure>) -> Self {
        match result {
            Ok(Outcome::Passed(passed)) => Self::Passed(passed),
            Ok(Outcome::Skipped(reason)) => Self::Skipped(reason),
            Err(error) => Self::Failed(error.to_string()),
        }
    }
}

/// One scenario once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) row: Row,
    pub(crate) seed: u64,
    pub(crate) how: How,
    pub(crate) took_s: f64,
    pub(crate) ended: Ended,
}

impl Run {
    pub(crate) fn new(row: Row, seed: u64, how: How, took: Duration, ended: Ended) -> Self {
        Self { row, seed, how, took_s: (took.as_secs_f64() * 10.0).round() / 10.0, ended }
    }
}

/// All runs, and the file that they go to.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    runs: Vec<Run>,
    file: Option<File>,
}

impl Ledger {
    /// Reads the runs of a file, if there is one, and adds to it from now on. A last line that was cut off is dropped.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(Self::default()) };
        let explain = |e: std::io::Error| format!("--resume: {}: {e}", path.display());
        let mut text = String::new();
        if path.exists() {
            if std::fs::metadata(path).map_err(explain)?.len() > MAX_FILE {
                return Err(format!("--resume: {} is too long", path.display()).into());
            }
            text = std::fs::read_to_string(path).map_err(explain)?;
        }
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        let mut runs = Vec::new();
        for (number, line) in text[..whole].lines().enumerate().filter(|(_, line)| !line.is_empty()) {
            let run = serde_json::from_str::<Run>(line);
            runs.push(run.map_err(|e| format!("--resume: {}:{}: {e}", path.display(), number + 1))?);
        }
        let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(explain)?;
        if whole < text.len() {
            file.set_len(whole as u64).map_err(explain)?;
            file.flush().map_err(explain)?;
        }
        Ok(Self { kept: Mutex::new(Kept { runs, file: Some(file) }) })
    }

    /// Adds a run, to the file too.
    pub(crate) fn add(&self, run: Run) -> Result<(), Failure> {
        let mut kept = self.lock();
        if !matches!(run.ended, Ended::Skipped(_)) {
            let line = serde_json::to_string(&run)? + "\n";
            if let Some(file) = &mut kept.file {
                file.write_all(line.as_bytes())?;
            }
        }
        kept.runs.push(run);
        Ok(())
    }

    /// Whether this run has been made.
    pub(crate) fn has(&self, row: Row, seed: u64, quick: bool) -> bool {
        self.lock().runs.iter().any(|run| (run.row, run.seed, run.how.quick) == (row, seed, quick))
    }

    /// Whether so many runs of the row failed and none passed.
    pub(crate) fn is_hopeless(&self, row: Row, failures: usize) -> bool {
        let kept = self.lock();
        let runs = || kept.runs.iter().filter(|run| run.row == row);
        runs().filter(|run| matches!(run.ended, Ended::Failed(_))).count() >= failures
            && !runs().any(|run| matches!(run.ended, Ended::Passed(_)))
    }

    /// All runs of each row, rows in the order of the table, runs in that of their seeds.
    pub(crate) fn rows(&self) -> Vec<(Row, Vec<Run>)> {
        let mut runs = self.lock().runs.clone();
        runs.sort_by_key(|run| (run.row, run.seed));
        let mut rows: Vec<(Row, Vec<Run>)> = Vec::new();
        for run in runs {
            match rows.last_mut() {
                Some((row, of_row)) if *row == run.row => of_row.push(run),
                _ => rows.push((run.row, vec![run])),
            }
        }
        rows
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn run(seed: u64, ended: Ended) -> Run {
        let (client, server) = (Kind::Reference, Kind::Reference);
        let row = Row { scenario: Scenario::StreamUp, hub: None, client, server };
        let how = How { program: "ab".into(), together: 2, quick: false };
        Run::new(row, seed, how, Duration::from_millis(1260), ended)
    }

    #[test]
    fn what_has_ended_survives_an_interruption() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("runs.jsonl");
        let ledger = Ledger::open(Some(&path)).expect("a new file");
        let passed = Passed::because("well").with_figure(2.5, "MB/s").quiet(0.5);
        ledger.add(run(2, Ended::Passed(passed))).expect("add");
        ledger.add(run(1, Ended::Failed("no".into()))).expect("add");
        ledger.add(run(3, Ended::Skipped("not here".into()))).expect("add");
        let mut text = std::fs::read(&path).expect("file");
        text.extend_from_slice(b"{\"row\":{\"scen");
        std::fs::write(&path, text).expect("write");

        let ledger = Ledger::open(Some(&path)).expect("the same file");
        let row = run(1, Ended::Failed(String::new())).row;
        assert!(ledger.has(row, 1, false) && ledger.has(row, 2, false));
        assert!(!ledger.has(row, 3, false) && !ledger.has(row, 1, true));
        ledger.add(run(4, Ended::Failed("again".into()))).expect("add");
        let rows = Ledger::open(Some(&path)).expect("the same file").rows();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].1.iter().map(|run| run.seed).collect::<Vec<_>>(), [1, 2, 4]);
        let Ended::Passed(passed) = &rows[0].1[1].ended else { panic!("it had passed") };
        assert_eq!(passed.figure, Some((2.5, "MB/s".into())));
        assert_eq!(passed.quiet, Some(0.5));
    }

    #[test]
    fn a_foreign_file_is_refused_with_its_line() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("runs.jsonl");
        std::fs::write(&path, "\n{\"event\":\"ready\"}\n").expect("write");
        let error = Ledger::open(Some(&path)).expect_err("no run");
        assert!(error.to_string().contains("runs.jsonl:2:"), "{error}");
    }

    #[test]
    fn a_row_is_hopeless_only_if_nothing_of_it_passed() {
        let ledger = Ledger::default();
        let row = run(1, Ended::Failed(String::new())).row;
        for seed in 0..3 {
            assert!(!ledger.is_hopeless(row, 3));
            ledger.add(run(seed, Ended::Failed("no".into()))).expect("add");
        }
        assert!(ledger.is_hopeless(row, 3));
        ledger.add(run(9, Ended::Passed(Passed::because("well")))).expect("add");
        assert!(!ledger.is_hopeless(row, 3));
    }
}
