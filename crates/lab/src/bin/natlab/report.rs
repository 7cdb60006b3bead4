//! What came of a run: goals, tables, and every pair with its reason; as text, JSON and Markdown.

use std::fmt::Write as _;

use pilotage_lab::nat::NatKind;
use pilotage_lab::nat::selftest::Finding;
use serde::Serialize;
use serde_json::{Value, json};

use crate::pair::PairResult;
use crate::scenario::Seen;

/// From one side to the other and back, in milliseconds.
const ROUND_TRIP_MS: u64 = 100;
/// Goals: time to the first byte, and to a direct path where one NAT is hard.
const FIRST_BYTE_MS: u64 = 1_500;
const HARD_EASY_MS: u64 = 12_000;
const HARD_EASY_SHARE: f64 = 0.98;

/// Everything.
pub(crate) struct Report {
    pub(crate) command: String,
    pub(crate) seconds: u64,
    pub(crate) findings: Vec<Finding>,
    pub(crate) pairs: Vec<PairResult>,
    pub(crate) scenarios: Vec<Seen>,
}

/// One goal, and how near it was.
#[derive(Debug, Serialize)]
struct Goal {
    goal: &'static str,
    seen: String,
    /// `None`: there was nothing to measure it by.
    met: Option<bool>,
}

/// What a pair has in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    /// Both sides keep their mapping for every peer, over IPv4.
    Cones,
    /// One side does not.
    HardEasy,
    /// Neither does.
    HardHard,
    /// One side has only IPv6.
    Nat64,
    /// One side gets no UDP through.
    Blocked,
}

fn group(pair: &PairResult) -> Group {
    let either = |kind| pair.from == kind || pair.to == kind;
    if either(NatKind::UdpBlocked) {
        Group::Blocked
    } else if either(NatKind::Nat64) {
        Group::Nat64
    } else {
        match (pair.from.is_cone(), pair.to.is_cone()) {
            (true, true) => Group::Cones,
            (false, false) => Group::HardHard,
            _ => Group::HardEasy,
        }
    }
}

/// The value below or at which this share of the values lies (nearest rank).
fn percentile(values: impl Iterator<Item = u64>, share: f64) -> Option<u64> {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    let rank = (share * values.len() as f64).ceil() as usize;
    values.get(rank.max(1) - 1).copied()
}

impl Report {
    /// Whether everything connected, nothing was lost, and no scenario failed. Goals of speed are told, not judged: a
    /// machine may be busy.
    pub(crate) fn passed(&self) -> bool {
        self.pairs.iter().all(|pair| pair.connected && pair.lost == 0 && pair.error.is_none())
            && self.scenarios.iter().all(|seen| seen.passed != Some(false))
    }

    fn of(&self, wanted: Group) -> impl Iterator<Item = &PairResult> {
        self.pairs.iter().filter(move |pair| group(pair) == wanted)
    }

    fn goals(&self) -> Vec<Goal> {
        let connected = self.pairs.iter().filter(|pair| pair.connected).count();
        let lost: usize = self.pairs.iter().map(|pair| pair.lost).sum();
        let first = || self.pairs.iter().filter_map(|pair| pair.first_byte_ms);
        let p99 = percentile(first(), 0.99);
        let cones: Vec<_> = self.of(Group::Cones).collect();
        let cones_direct = cones.iter().filter(|pair| pair.is_direct()).count();
        // Signalling is over when the first byte is back: both know of each other then.
        let upgrade = |pair: &&PairResult| Some(pair.direct_ms?.saturating_sub(pair.first_byte_ms?));
        let p95 = percentile(cones.iter().filter_map(upgrade), 0.95);
        let hard: Vec<_> = self.of(Group::HardEasy).collect();
        let hard_direct =
            hard.iter().filter(|pair| pair.direct_ms.is_some_and(|ms| ms <= HARD_EASY_MS)).count();
        let of = |part: usize, whole: usize| format!("{part} of {whole}");
        let some = |there: bool, met: bool| there.then_some(met);
        vec![
            Goal {
                goal: "every pair connects",
                seen: of(connected, self.pairs.len()),
                met: some(!self.pairs.is_empty(), connected == self.pairs.len()),
            },
            Goal {
                goal: "no byte of a stream is lost or reordered when its path changes",
                seen: format!("{lost} numbers lost"),
                met: some(connected > 0, lost == 0),
            },
            Goal {
                goal: "time to first byte, p99: at most 1.5 s",
                seen: format!("p50 {}, p99 {}", ms(percentile(first(), 0.5)), ms(p99)),
                met: p99.map(|p99| p99 <= FIRST_BYTE_MS),
            },
            Goal {
                goal: "every cone pair becomes direct",
                seen: of(cones_direct, cones.len()),
                met: some(!cones.is_empty(), cones_direct == cones.len()),
            },
            Goal {
                goal: "cone pairs: direct at most two round trips after the first byte, p95",
                seen: ms(p95),
                met: p95.map(|p95| p95 <= 2 * ROUND_TRIP_MS),
            },
            Goal {
                goal: "hard with easy: direct within 12 s in 98 %",
                seen: of(hard_direct, hard.len()),
                met: some(!hard.is_empty(), hard_direct as f64 >= HARD_EASY_SHARE * hard.len() as f64),
            },
        ]
    }

    /// For people, at the end of a run.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::new();
        for Goal { goal, seen, met } in self.goals() {
            let _ = writeln!(text, "{:<9} {goal}: {seen}", verdict(met));
        }
        for seen in &self.scenarios {
            let _ = writeln!(text, "{:<9} {}: {}", verdict(seen.passed), seen.name, seen.text);
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "command": self.command,
            "machine": machine(),
            "seconds": self.seconds,
            "passed": self.passed(),
            "goals": self.goals(),
            "nats": self.findings,
            "pairs": self.pairs,
            "scenarios": self.scenarios,
        })
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = format!(
            "# Behind real NATs\n\nWritten by `{}` on {}, in {} s, on {}. What it does is in [spec/natlab.md](../spec/natlab.md).\n\n\
             Every pair has a world of its own: a hub in public, a node behind each NAT, {ROUND_TRIP_MS} ms from side to side and from \
             each side to the hub and back. A dials B's echo service; a number every 50 ms goes through the stream while the \
             path changes.\n\n## Goals\n\n| goal | seen | |\n|---|---|---|\n",
            self.command,
            date(),
            self.seconds,
            machine(),
        );
        for Goal { goal, seen, met } in self.goals() {
            let _ = writeln!(text, "| {goal} | {seen} | {} |", verdict(met));
        }
        self.nats(&mut text);
        self.grid(&mut text);
        self.list(&mut text);
        self.more(&mut text);
        text
    }

    fn nats(&self, text: &mut String) {
        text.push_str("\n## The NATs\n\nAs the self-test saw them before the run.\n\n| kind | made by | seen to be |\n|---|---|---|\n");
        for Finding { kind, found, .. } in &self.findings {
            let _ = writeln!(text, "| {kind} | {} | {found} |", kind.made_by());
        }
    }

    /// Rows dial columns; the last run of each pair counts.
    fn grid(&self, text: &mut String) {
        if self.pairs.is_empty() {
            return;
        }
        text.push_str(
            "\n## Every kind with every other\n\nRows dial, columns are dialled. `0.3` is direct 0.3 s after the dial, `R` relayed to the \
             end, `–` not connected, empty not run.\n\n|  |",
        );
        NatKind::ALL.iter().for_each(|kind| *text += &format!(" {kind} |"));
        text.push_str("\n|---|");
        NatKind::ALL.iter().for_each(|_| text.push_str("---|"));
        for from in NatKind::ALL {
            let _ = write!(text, "\n| {from} |");
            for to in NatKind::ALL {
                let one = self.pairs.iter().rev().find(|pair| pair.from == from && pair.to == to);
                let _ = write!(text, " {} |", one.map_or(String::new(), cell));
            }
        }
        text.push('\n');
    }

    fn list(&self, text: &mut String) {
        if self.pairs.is_empty() {
            return;
        }
        text.push_str(
            "\n## Why\n\nTimes in milliseconds from the dial; `longest` is the longest way there and back of a number in the stream. \
             The reasons are those of A and, where it differs, of B.\n\n\
             | A → B | first byte | first path | direct after | path at the end | reason | longest | lost |\n|---|---|---|---|---|---|---|---|\n",
        );
        for pair in &self.pairs {
            let or_none = |value: Option<u64>| value.map_or(String::new(), |value| value.to_string());
            let word = |value: &Option<String>| value.clone().unwrap_or_default();
            let mut reason = match (&pair.reason, &pair.peer_reason) {
                (Some(own), Some(peer)) if own != peer => format!("{own}; B: {peer}"),
                (own, peer) => {
                    own.clone().or(peer.clone()).unwrap_or_else(|| "(the program gives none)".into())
                }
            };
            if pair.mapped > 0 {
                reason += &format!("; {} port mapping(s)", pair.mapped);
            }
            if let Some(error) = &pair.error {
                reason = error.replace(['|', '\n'], " ");
            }
            let _ = writeln!(
                text,
                "| {} → {} | {} | {} | {} | {} | {reason} | {} | {} |",
                pair.from,
                pair.to,
                or_none(pair.first_byte_ms),
                word(&pair.first_path),
                or_none(pair.direct_ms),
                word(&pair.path),
                or_none(pair.longest_ms),
                pair.lost,
            );
        }
    }

    fn more(&self, text: &mut String) {
        if self.scenarios.is_empty() {
            return;
        }
        text.push_str("\n## More than pairs\n\n| scenario | what was seen | |\n|---|---|---|\n");
        for seen in &self.scenarios {
            let _ = writeln!(
                text,
                "| {} | {} | {} |",
                seen.name,
                seen.text.replace(['|', '\n'], " "),
                verdict(seen.passed)
            );
        }
    }
}

fn cell(pair: &PairResult) -> String {
    match (pair.connected, pair.is_direct(), pair.direct_ms) {
        (false, ..) => "–".into(),
        (_, true, Some(ms)) => format!("{:.1}", ms as f64 / 1_000.0),
        (_, true, None) => "direct".into(),
        _ => "R".into(),
    }
}

fn verdict(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "met",
        Some(false) => "NOT MET",
        None => "not run",
    }
}

fn ms(value: Option<u64>) -> String {
    value.map_or("nothing".into(), |value| format!("{value} ms"))
}

/// Cores, model and kernel.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    format!(
        "{cores} cores of {}, Linux {}, load {} at the end",
        model.map_or("an unknown processor", |(_, model)| model),
        kernel.trim(),
        load.split(' ').next().unwrap_or("unknown"),
    )
}

/// Today, as the machine has it.
fn date() -> String {
    let output = std::process::Command::new("date").args(["-u", "+%Y-%m-%d"]).output();
    output.map_or_else(
        |_| "an unknown day".into(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let values = || [50, 10, 40, 20, 30].into_iter();
        assert_eq!(percentile(values(), 0.5), Some(30));
        assert_eq!(percentile(values(), 0.99), Some(50));
        assert_eq!(percentile(values(), 0.0), Some(10));
        assert_eq!(percentile(std::iter::empty(), 0.5), None);
    }

    #[test]
    fn pairs_fall_into_their_groups() {
        let pair = |from, to| PairResult::new(from, to);
        assert_eq!(group(&pair(NatKind::None, NatKind::Double)), Group::Cones);
        assert_eq!(group(&pair(NatKind::SymmetricRandom, NatKind::Double)), Group::HardEasy);
        assert_eq!(group(&pair(NatKind::SymmetricRandom, NatKind::SymmetricSequential)), Group::HardHard);
        assert_eq!(group(&pair(NatKind::Nat64, NatKind::SymmetricSequential)), Group::Nat64);
        assert_eq!(group(&pair(NatKind::Nat64, NatKind::UdpBlocked)), Group::Blocked);
    }

    #[test]
    fn a_report_without_runs_claims_nothing() {
        let report = Report {
            command: "natlab".into(),
            seconds: 1,
            findings: Vec::new(),
            pairs: Vec::new(),
            scenarios: Vec::new(),
        };
        assert!(report.goals().iter().all(|goal| goal.met.is_none()));
        assert!(!report.markdown().contains("| met |"));
    }

    #[test]
    fn a_lost_number_fails_the_run() {
        let mut pair = PairResult::new(NatKind::None, NatKind::None);
        (pair.connected, pair.lost) = (true, 1);
        let report = Report {
            command: String::new(),
            seconds: 1,
            findings: Vec::new(),
            pairs: vec![pair],
            scenarios: Vec::new(),
        };
        assert!(!report.passed() && report.goals()[1].met == Some(false));
    }
}
