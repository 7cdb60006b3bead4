//! The table: one cell for each scenario and combination of implementations, as text, JSON and Markdown.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::Failure;
use crate::ledger::Row;
use crate::scenario::{Passed, Plan, Scenario};
use crate::subject::Kind;

/// How a cell ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Passed,
    Failed,
    Skipped,
    /// The reference cannot do this with itself: a figure of the baseline, no test of ours.
    Baseline,
}

/// One cell.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Cell {
    pub(crate) scenario: Scenario,
    /// Of scenarios that use one.
    pub(crate) hub: Option<Kind>,
    pub(crate) client: Kind,
    pub(crate) server: Kind,
    pub(crate) result: Verdict,
    pub(crate) figure: Option<f64>,
    pub(crate) unit: Option<String>,
    /// The lowest and the highest, where there were several runs.
    pub(crate) range: Option<(f64, f64)>,
    pub(crate) runs: usize,
    pub(crate) runs_passed: usize,
    /// The most packets per second that passed after the end of a run, where they were counted.
    pub(crate) quiet: Option<f64>,
    /// With which options it ran.
    pub(crate) how: Vec<String>,
    /// What was seen, why it failed, or why it was skipped.
    pub(crate) reason: String,
    pub(crate) duration_s: f64,
    /// Link, sizes, limits and seed; none where no link is emulated.
    pub(crate) settings: Option<Plan>,
}

impl Cell {
    pub(crate) fn new(row: Row) -> Self {
        let Row { scenario, hub, client, server } = row;
        Self {
            scenario,
            hub,
            client,
            server,
            result: Verdict::Failed,
            figure: None,
            unit: None,
            range: None,
            runs: 0,
            runs_passed: 0,
            quiet: None,
            how: Vec::new(),
            reason: String::new(),
            duration_s: 0.0,
            settings: None,
        }
    }

    pub(crate) fn passed(self, passed: Passed, took: Duration) -> Self {
        let (figure, unit) = passed.figure.unzip();
        let figure = figure.map(|figure| (figure * 100.0).round() / 100.0);
        let unit = unit.map(std::borrow::Cow::into_owned);
        Self { figure, unit, ..self.ended(Verdict::Passed, passed.reason, took) }
    }

    /// Whether both nodes are the reference's.
    pub(crate) fn is_baseline(&self) -> bool {
        (self.client, self.server) == (Kind::Reference, Kind::Reference)
    }

    /// It did not work; that is no failure of ours in the baseline.
    pub(crate) fn failed_or_baseline(self, reason: impl ToString, took: Duration) -> Self {
        // Pings and echoes of theirs test a hub of ours.
        let theirs_alone = self.hub.is_none() || self.scenario == Scenario::HubTransfer;
        let verdict = if self.is_baseline() && theirs_alone { Verdict::Baseline } else { Verdict::Failed };
        self.ended(verdict, reason.to_string(), took)
    }

    pub(crate) fn skipped(self, reason: impl ToString) -> Self {
        self.ended(Verdict::Skipped, reason.to_string(), Duration::ZERO)
    }

    fn ended(self, result: Verdict, reason: String, took: Duration) -> Self {
        let duration_s = (took.as_secs_f64() * 10.0).round() / 10.0;
        Self { result, reason: reason.replace(['\n', '\r'], " "), duration_s, ..self }
    }

    fn figure_text(&self) -> String {
        let Some((figure, unit)) = self.figure.zip(self.unit.as_ref()) else { return String::new() };
        let range = self.range.map_or(String::new(), |(low, high)| format!(" ({low:.2} – {high:.2})"));
        format!("{figure}{range} {unit}")
    }

    fn quiet_text(&self) -> String {
        self.quiet.map_or(String::new(), |rate| format!("{rate:.0}"))
    }

    fn who(&self) -> String {
        let pair = format!("{} → {}", word(self.client), word(self.server));
        self.hub.map_or(pair.clone(), |hub| format!("{pair}, hub {}", word(hub)))
    }

    /// One line for a terminal.
    pub(crate) fn line(&self) -> String {
        let word = match self.result {
            Verdict::Passed => "ok",
            Verdict::Failed => "FAIL",
            Verdict::Skipped => "SKIPPED",
            Verdict::Baseline => "BASE",
        };
        let figure = self.figure_text();
        let separator = if figure.is_empty() { "" } else { "; " };
        let quiet = self.quiet.map_or(String::new(), |rate| format!("; {rate:.0} packets/s afterwards"));
        format!(
            "{word:<7} {:<20} {:<20} {:>2}/{:<2} {:>6.1} s  {figure}{separator}{}{quiet}",
            self.scenario.name(),
            self.who(),
            self.runs_passed,
            self.runs,
            self.duration_s,
            self.reason
        )
    }
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Pilotage => "pilotage",
        Kind::Reference => "reference",
    }
}

/// Looks at each figure that has to reach a multiple of the reference's own in the same run.
pub(crate) fn compare_with_baseline(cells: &mut [Cell]) {
    let baselines: Vec<(Scenario, f64)> = cells
        .iter()
        .filter(|cell| cell.is_baseline() && cell.hub.is_none())
        .filter_map(|cell| Some((cell.scenario, cell.figure?)))
        .collect();
    for cell in cells.iter_mut().filter(|cell| !cell.is_baseline() && cell.result == Verdict::Passed) {
        let sender = if cell.scenario.is_down() { cell.server } else { cell.client };
        let wanted = cell.scenario.factor(sender == Kind::Pilotage);
        let base = baselines.iter().find(|(scenario, _)| *scenario == cell.scenario);
        let (Some(wanted), Some((_, base)), Some(figure)) = (wanted, base, cell.figure) else { continue };
        let times = figure / base.max(1e-9);
        cell.reason += &format!("; {times:.1} times the reference with itself");
        if times < wanted {
            cell.result = Verdict::Failed;
            cell.reason += &format!(", which is less than {wanted:.0}");
        }
    }
}

/// What no row shows.
const NOT_HERE: &str = "\n## Not in the table\n\n\
    - Names (port 53) and the secure channel (port 443): the reference has no program that speaks them. Its name server \
    ends at once at this state, and its secure channel is a library without a service. Their bytes are tested with \
    vectors and recorded sessions of it (`spec/vectors`).\n\
    - Scenarios in front of a key exchange (handshake-loss, rebind-port and the like) with the reference: its programs take no UDP \
    address of a peer.\n";

/// All cells of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The first line of `pilotage --version`.
    pub(crate) pilotage: String,
    pub(crate) seed: u64,
    pub(crate) quick: bool,
    /// Sum of all runs, many of which ran at the same time.
    pub(crate) duration_s: f64,
    pub(crate) cells: Vec<Cell>,
}

impl Report {
    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.cells.iter().filter(|cell| cell.result == verdict).count()
    }

    /// `N passed, N failed, N skipped`
    pub(crate) fn closing_line(&self) -> String {
        let [passed, failed, skipped] =
            [Verdict::Passed, Verdict::Failed, Verdict::Skipped].map(|verdict| self.count(verdict));
        format!("{passed} passed, {failed} failed, {skipped} skipped")
    }

    /// Writes `RESULTS.md` and `results.json`.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Failure> {
        std::fs::write(folder.join("RESULTS.md"), self.markdown())?;
        std::fs::write(folder.join("results.json"), serde_json::to_string_pretty(self)? + "\n")?;
        Ok(())
    }

    fn markdown(&self) -> String {
        let mut text = format!(
            "# Interop results\n\n\
             Written by `cargo run --release -p pilotage-interop -- --write`: real processes on one machine, the \
             link between them emulated by a user-space proxy. {}, {}, seeds from {}, {:.0} s of runs{}.\n\n\
             **{}**\n\n\
             A row is all runs of a scenario between two implementations: how many of them passed, the median of \
             their figures with the lowest and the highest, the most packets per second that passed the proxy after \
             the end of a run, and what the last one saw. `reference alone fails`: the reference cannot do it with \
             itself, which is no failure of ours.\n\n",
            self.pilotage,
            std::env::consts::OS,
            self.seed,
            self.duration_s,
            if self.quick { ", the quick subset" } else { "" },
            self.closing_line()
        );
        text.push_str(
            "| scenario | client → server | result | runs | figure | packets/s after | what was seen | time |\n",
        );
        text.push_str("|---|---|---|---|---|---|---|---|\n");
        for cell in self.cells.iter().filter(|cell| cell.result != Verdict::Skipped) {
            let result = match cell.result {
                Verdict::Passed => "passed",
                Verdict::Baseline => "reference alone fails",
                _ => "**FAILED**",
            };
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {result} | {}/{} | {} | {} | {} | {:.1} s |",
                cell.scenario.name(),
                cell.who(),
                cell.runs_passed,
                cell.runs,
                cell.figure_text(),
                cell.quiet_text(),
                cell.reason.replace('|', "\\|"),
                cell.duration_s
            );
        }
        self.markdown_of_skipped(&mut text);
        text.push_str(NOT_HERE);
        self.markdown_of_options(&mut text);
        self.markdown_of_settings(&mut text);
        text
    }

    /// With which options the rows ran, those that ran alike together.
    fn markdown_of_options(&self, text: &mut String) {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for cell in self.cells.iter().filter(|cell| !cell.how.is_empty()) {
            let (how, row) = (cell.how.join("; "), format!("{} {}", cell.scenario.name(), cell.who()));
            match groups.iter_mut().find(|group| group.0 == how) {
                Some(group) => group.1.push(row),
                None => groups.push((how, vec![row])),
            }
        }
        text.push_str(
            "\n## How the rows ran\n\nThe program is named by the begin of its BLAKE3 hash; beside runs of the same \
             kind, those of others may have run.\n\n",
        );
        for (how, rows) in groups {
            let _ = writeln!(text, "- {how}: {}", rows.join(", "));
        }
    }

    /// One line for each reason and combination.
    fn markdown_of_skipped(&self, text: &mut String) {
        let mut groups: Vec<(String, &str, Vec<String>)> = Vec::new();
        for cell in self.cells.iter().filter(|cell| cell.result == Verdict::Skipped) {
            let who = cell.who();
            match groups.iter_mut().find(|group| group.0 == who && group.1 == cell.reason) {
                Some(group) => group.2.push(cell.scenario.name()),
                None => groups.push((who, &cell.reason, vec![cell.scenario.name()])),
            }
        }
        if groups.is_empty() {
            return;
        }
        text.push_str("\n## Skipped\n\nNever counted as passed.\n\n");
        for (who, reason, scenarios) in groups {
            let _ = writeln!(text, "- {who}: {} ({reason})", scenarios.join(", "));
        }
    }

    fn markdown_of_settings(&self, text: &mut String) {
        text.push_str("\n## Scenarios\n\n| scenario | what is done | each way of the link | limit |\n|---|---|---|---|\n");
        let mut told = Vec::new();
        for cell in &self.cells {
            if told.contains(&cell.scenario) {
                continue;
            }
            told.push(cell.scenario);
            let (link, limit) = match &cell.settings {
                Some(plan) => (plan.describe(), plan.limit_s),
                None => ("none".to_owned(), 60),
            };
            let _ = writeln!(
                text,
                "| {} | {} | {link} | {limit} s |",
                cell.scenario.name(),
                cell.scenario.describe()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_counts_and_names_everything() {
        let (client, server) = (Kind::Pilotage, Kind::Pilotage);
        let cell = |scenario| Cell {
            runs: 20,
            how: vec!["program ab, 2 at a time".into()],
            ..Cell::new(Row { scenario, hub: None, client, server })
        };
        let took = Duration::from_millis(1260);
        let mut slow =
            cell(Scenario::Goodput).passed(Passed::because("a|b").with_figure(9.123, "Mbit/s"), took);
        (slow.runs_passed, slow.range, slow.quiet) = (19, Some((8.0, 10.004)), Some(2.0));
        slow.settings = Some(Scenario::Goodput.plan(1, false));
        let cells = vec![
            slow,
            cell(Scenario::Ipv6).failed_or_baseline("no\nway", took),
            cell(Scenario::Ping).skipped("no reference"),
            cell(Scenario::Echo).skipped("no reference"),
        ];
        let report = Report { pilotage: "p 1".into(), seed: 1, quick: false, duration_s: 2.0, cells };
        assert_eq!(report.closing_line(), "1 passed, 1 failed, 2 skipped");
        let text = report.markdown();
        for part in [
            "| goodput | pilotage → pilotage | passed | 19/20 | 9.12 (8.00 – 10.00) Mbit/s | 2 | a\\|b | 1.3 s |",
            "| ipv6 | pilotage → pilotage | **FAILED** | 0/20 |  |  | no way | 1.3 s |",
            "- program ab, 2 at a time: goodput pilotage → pilotage, ipv6 pilotage → pilotage",
            "- pilotage → pilotage: ping, echo (no reference)",
            "10 Mbit/s, queue 25",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let json = serde_json::to_value(&report).expect("json");
        assert_eq!(json["cells"][0]["settings"]["up"]["queue"], 25);
        assert_eq!(
            (&json["cells"][0]["result"], &json["cells"][1]["figure"]),
            (&"passed".into(), &().into())
        );
    }
}
