//! One scenario several times.

use std::time::Duration;

use crate::report::Cell;
use crate::scenario::{Outcome, Passed};

/// Runs that only wait may do so together, this many at a time.
const TOGETHER: u64 = 5;

/// Runs `once` with seeds from `seed` on; an error ends the series.
pub(crate) fn all(
    together: bool,
    seed: u64,
    runs: u64,
    once: impl Fn(u64) -> Result<Outcome, String> + Sync,
) -> Vec<Result<Outcome, String>> {
    let mut outcomes = Vec::new();
    let width = if together { TOGETHER } else { 1 };
    let mut next = 0;
    while next < runs && outcomes.iter().all(|outcome| matches!(outcome, Ok(Outcome::Passed(_)))) {
        let batch = next..(next + width).min(runs);
        next = batch.end;
        let done = std::thread::scope(|scope| {
            let threads: Vec<_> = batch
                .map(|run| {
                    scope.spawn({
                        let once = &once;
                        move || once(seed + run)
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err("the runner panicked".into())))
                .collect::<Vec<_>>()
        });
        outcomes.extend(done);
    }
    outcomes
}

/// One cell of all runs: passed if all did.
pub(crate) fn sum_up(cell: Cell, outcomes: Vec<Result<Outcome, String>>, took: Duration) -> Cell {
    let total = outcomes.len();
    let mut passed: Vec<Passed> = Vec::new();
    let mut troubles = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(Outcome::Passed(one)) => passed.push(one),
            Ok(Outcome::Skipped(reason)) => return cell.skipped(reason),
            Err(error) => troubles.push(error),
        }
    }
    let Some(last) = passed.last().cloned() else {
        let why = troubles.first().cloned().unwrap_or_default();
        return cell.failed_or_baseline(why, took);
    };
    let mut figures: Vec<f64> =
        passed.iter().filter_map(|one| one.figure.map(|(figure, _)| figure)).collect();
    figures.sort_by(f64::total_cmp);
    let median = figures.get(figures.len() / 2).copied();
    let unit = last.figure.map(|(_, unit)| unit);
    let mut reason = last.reason;
    if total > 1 {
        let range = match (figures.first(), figures.last(), unit) {
            (Some(low), Some(high), Some(unit)) => format!(", {low:.2} to {high:.2} {unit}"),
            _ => String::new(),
        };
        reason = format!("{} of {total} runs{range}; the last: {reason}", passed.len());
    }
    let summary = Passed { figure: median.zip(unit), reason };
    match troubles.first() {
        None => cell.passed(summary, took),
        Some(why) => {
            let text = format!("{} of {total} runs passed; the first that did not: {why}", passed.len());
            let cell = cell.passed(summary, took);
            cell.failed_or_baseline(text, took)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Verdict;
    use crate::scenario::Scenario;
    use crate::subject::Kind;

    fn cell(server: Kind) -> Cell {
        Cell::new(Scenario::StreamUp, None, Kind::Reference, server)
    }

    fn figure(value: f64) -> Result<Outcome, String> {
        Ok(Outcome::Passed(Passed::because("well").with_figure(value, "MB/s")))
    }

    #[test]
    fn a_series_passes_as_a_whole_with_its_median() {
        let runs = [3.0, 1.0, 2.0];
        let outcomes = all(false, 7, 3, |seed| figure(runs[seed as usize - 7]));
        let cell = sum_up(cell(Kind::Pilotage), outcomes, Duration::ZERO);
        assert_eq!((cell.result, cell.figure), (Verdict::Passed, Some(2.0)));
        assert!(cell.reason.starts_with("3 of 3 runs, 1.00 to 3.00 MB/s"), "{}", cell.reason);
    }

    #[test]
    fn one_failure_ends_the_series_and_fails_it_but_for_the_baseline() {
        let run = |seed| if seed == 1 { figure(1.0) } else { Err("no".to_owned()) };
        let outcomes = all(false, 1, 20, run);
        assert_eq!(outcomes.len(), 2);
        let ours = sum_up(cell(Kind::Pilotage), outcomes.clone(), Duration::ZERO);
        assert_eq!(ours.result, Verdict::Failed);
        assert!(ours.reason.contains("1 of 2 runs passed"), "{}", ours.reason);
        assert_eq!(sum_up(cell(Kind::Reference), outcomes, Duration::ZERO).result, Verdict::Baseline);
        assert_eq!(all(true, 1, 20, |_| Err("no".into())).len(), 5);
    }
}
