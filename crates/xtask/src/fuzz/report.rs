//! What a fuzz run came to, read from libFuzzer's closing lines, and the table of it.

use std::time::Duration;

use serde::Serialize;

use crate::Failure;

/// One target's run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Finished {
    pub(super) target: String,
    pub(super) executions: u64,
    pub(super) seconds: f64,
    pub(super) per_second: u64,
    /// Branches reached, and inputs kept for that.
    pub(super) coverage: u64,
    pub(super) corpus: u64,
    pub(super) peak_mb: u64,
    /// Files with inputs that failed; the word "stopped" if it ended badly without one.
    pub(super) findings: Vec<String>,
}

/// Reads what libFuzzer wrote.
pub(super) fn read(target: &str, log: &str, succeeded: bool, took: Duration) -> Finished {
    let stat = |name: &str| {
        let line = log.lines().find_map(|line| line.strip_prefix("stat::")?.strip_prefix(name));
        line.and_then(|text| text.trim_start_matches(':').trim().parse().ok()).unwrap_or(0)
    };
    // `#123 DONE   cov: 1164 ft: 5688 corp: 1067/155Kb …`; the last line of this form counts.
    let status =
        log.lines().rev().find(|line| line.starts_with('#') && line.contains(" cov: ")).unwrap_or("");
    let field = |name: &str| {
        let value = status.split_once(name).map_or("", |(_, rest)| rest.trim_start());
        let digits: String = value.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    };
    let written =
        log.lines().filter_map(|line| line.split_once("Test unit written to ").map(|(_, file)| file));
    let mut findings: Vec<String> = written.map(|file| file.trim().to_owned()).collect();
    if !succeeded && findings.is_empty() {
        findings.push("stopped".to_owned());
    }
    let executions = stat("number_of_executed_units");
    let seconds = took.as_secs_f64();
    Finished {
        target: target.to_owned(),
        executions,
        seconds,
        per_second: (executions as f64 / seconds.max(0.001)) as u64,
        coverage: field("cov:"),
        corpus: field("corp:"),
        peak_mb: stat("peak_rss_mb"),
        findings,
    }
}

/// The closing table: on standard error for people, with `json` also on standard output for programs.
pub(super) fn print(all: &[Finished], json: bool) -> Result<(), Failure> {
    eprintln!(
        "\n{:<16} {:>12} {:>8} {:>8} {:>6} {:>5} {:>9}",
        "target", "executions", "1/s", "branches", "corpus", "MB", "findings"
    );
    for one in all {
        eprintln!(
            "{:<16} {:>12} {:>8} {:>8} {:>6} {:>5} {:>9}",
            one.target,
            one.executions,
            one.per_second,
            one.coverage,
            one.corpus,
            one.peak_mb,
            one.findings.len()
        );
    }
    let executions: u64 = all.iter().map(|one| one.executions).sum();
    let findings: Vec<&String> = all.iter().flat_map(|one| &one.findings).collect();
    eprintln!("fuzz: {} targets, {executions} executions, {} findings", all.len(), findings.len());
    for file in findings {
        eprintln!("fuzz: {file}");
    }
    if json {
        println!("{}", serde_json::to_string_pretty(all)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "#7\tINITED cov: 211 ft: 469 corp: 6/854b exec/s: 0 rss: 29Mb\n\
        #21057\tDONE   cov: 1164 ft: 5688 corp: 1067/155Kb lim: 250 exec/s: 4211 rss: 30Mb\n\
        stat::number_of_executed_units: 21057\nstat::peak_rss_mb:              30\n";

    #[test]
    fn closing_lines_are_read() {
        let one = read("stream", LOG, true, Duration::from_secs(3));
        assert_eq!((one.executions, one.per_second, one.coverage), (21_057, 7_019, 1_164));
        assert_eq!((one.corpus, one.peak_mb, one.findings), (1_067, 30, vec![]));
    }

    #[test]
    fn a_failure_counts_with_and_without_an_input() {
        let log = format!("{LOG}artifact_prefix='x/'; Test unit written to x/crash-1\n");
        assert_eq!(read("a", &log, false, Duration::from_secs(1)).findings, ["x/crash-1"]);
        assert_eq!(read("a", "", false, Duration::ZERO).findings, ["stopped"]);
    }
}
