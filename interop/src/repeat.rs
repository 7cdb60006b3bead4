//! One row of the table from all of its runs.

use std::time::Duration;

use crate::ledger::{Ended, Row, Run};
use crate::report::Cell;
use crate::scenario::Passed;

/// Passed if all runs did; its figure is the median.
pub(crate) fn sum_up(row: Row, runs: &[Run]) -> Cell {
    let mut cell = Cell::new(row);
    let took = Duration::from_secs_f64(runs.iter().map(|run| run.took_s).sum());
    let mut passed: Vec<&Passed> = Vec::new();
    let mut troubles = Vec::new();
    let mut skipped = None;
    for run in runs {
        match &run.ended {
            Ended::Passed(one) => passed.push(one),
            Ended::Failed(why) => troubles.push(why),
            Ended::Skipped(reason) => skipped = Some(reason),
        }
        let how = run.how.to_string();
        if !matches!(run.ended, Ended::Skipped(_)) && !cell.how.contains(&how) {
            cell.how.push(how);
        }
    }
    cell.runs = passed.len() + troubles.len();
    cell.runs_passed = passed.len();
    if let (0, Some(reason)) = (cell.runs, skipped) {
        return cell.skipped(reason);
    }
    cell.quiet = passed.iter().filter_map(|one| one.quiet).reduce(f64::max);
    let Some(last) = passed.last() else {
        return cell.failed_or_baseline(troubles.first().map_or("", |why| why), took);
    };
    let mut figures: Vec<f64> = passed.iter().filter_map(|one| one.figure.as_ref().map(|f| f.0)).collect();
    figures.sort_by(f64::total_cmp);
    let median = figures.get(figures.len() / 2).copied();
    let unit = last.figure.as_ref().map(|(_, unit)| unit.clone());
    if let (Some(low), Some(high), true) = (figures.first(), figures.last(), cell.runs > 1) {
        cell.range = Some((*low, *high));
    }
    let said = if cell.runs > 1 { format!("the last: {}", last.reason) } else { last.reason.clone() };
    let summary = Passed { figure: median.zip(unit), reason: said, quiet: None };
    let failed = troubles.first().map(|why| format!("the first that failed: {why}"));
    let cell = cell.passed(summary, took);
    match failed {
        None => cell,
        Some(text) => cell.failed_or_baseline(text, took),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::How;
    use crate::report::Verdict;
    use crate::scenario::Scenario;
    use crate::subject::Kind;

    fn sum_of(server: Kind, ends: &[Ended]) -> Cell {
        let row = Row { scenario: Scenario::StreamUp, hub: None, client: Kind::Reference, server };
        let how = How { program: "ab12".into(), together: 2, quick: false };
        let run = |(seed, ended): (usize, &Ended)| {
            Run::new(row, seed as u64, how.clone(), Duration::from_secs(2), ended.clone())
        };
        sum_up(row, &ends.iter().enumerate().map(run).collect::<Vec<_>>())
    }

    fn figure(value: f64, quiet: f64) -> Ended {
        Ended::Passed(Passed::because("well").with_figure(value, "MB/s").quiet(quiet))
    }

    #[test]
    fn a_row_passes_as_a_whole_with_its_median_and_its_loudest_end() {
        let cell = sum_of(Kind::Pilotage, &[figure(3.0, 0.0), figure(1.0, 4.0), figure(2.0, 1.0)]);
        assert_eq!((cell.result, cell.figure), (Verdict::Passed, Some(2.0)));
        assert_eq!((cell.runs_passed, cell.runs, cell.range), (3, 3, Some((1.0, 3.0))));
        assert_eq!((cell.quiet, cell.duration_s), (Some(4.0), 6.0));
        assert_eq!(cell.how.len(), 1);
    }

    #[test]
    fn one_failure_fails_the_row_but_for_the_baseline() {
        let ends = [figure(1.0, 0.0), Ended::Failed("no".into())];
        let ours = sum_of(Kind::Pilotage, &ends);
        assert_eq!((ours.result, ours.runs_passed, ours.runs), (Verdict::Failed, 1, 2));
        assert!(ours.reason.contains("no"), "{}", ours.reason);
        let baseline = sum_of(Kind::Reference, &ends);
        assert_eq!((baseline.result, baseline.figure), (Verdict::Baseline, Some(1.0)));
        let skipped = sum_of(Kind::Pilotage, &[Ended::Skipped("not here".into())]);
        assert_eq!((skipped.result, skipped.runs), (Verdict::Skipped, 0));
    }
}
