//! Which runs there are, and how many at a time.
//!
//! Three lanes work at the same time: what mostly waits, what measures, and the rest. In each lane every row has its first
//! run before any has its second, so that rows that are compared meet the same load.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::ledger::{Ended, How, Ledger, Row, Run};
use crate::process::Scratch;
use crate::scenario::{Outcome, Scenario, hub};
use crate::subject::{Kind, Programs};
use crate::{Failure, Options, show};

const P: Kind = Kind::Pilotage;
const R: Kind = Kind::Reference;
/// Hub, client, server.
const BY_HUB: &[(Kind, Kind, Kind)] =
    &[(P, P, P), (R, P, P), (R, P, R), (R, R, P), (P, P, R), (P, R, P), (P, R, R)];
/// Client, server.
const PAIRS: &[(Kind, Kind)] = &[(P, P), (P, R), (R, P)];
/// The same where the reference is the subject; the last is the baseline.
const FOREIGN_PAIRS: &[(Kind, Kind)] = &[(P, R), (R, P), (R, R)];
/// The reference's tools and the daemons that they drive.
const TOOL_PAIRS: &[(Kind, Kind)] = &[(R, P), (R, R)];
/// Where the reference fails with itself so often at the start, it is not tried again.
const HOPELESS: usize = 3;

/// Client and server of a scenario with the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Pairing {
    OursTheirs,
    TheirsOurs,
    TheirsTheirs,
}

impl Pairing {
    fn kinds(self) -> (Kind, Kind) {
        match self {
            Self::OursTheirs => (P, R),
            Self::TheirsOurs => (R, P),
            Self::TheirsTheirs => (R, R),
        }
    }
}

/// What runs in one go: one scenario, or all that share a hub and two nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Task {
    rows: Vec<Row>,
    seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Waiting,
    Measuring,
    Rest,
}

impl Task {
    /// The reference's own storms of packets must not run beside others of their kind.
    fn lane(&self) -> Lane {
        let Some(row) = self.rows.first() else { return Lane::Rest };
        let storms = row.is_baseline() && matches!(row.scenario, Scenario::Idle | Scenario::Close);
        match row.scenario {
            scenario if storms || scenario.factor(true).is_some() => Lane::Measuring,
            scenario if scenario.mostly_waits() => Lane::Waiting,
            _ => Lane::Rest,
        }
    }
}

impl Lane {
    fn width(self, options: &Options) -> u8 {
        match self {
            Self::Waiting => options.waiting,
            Self::Measuring => options.measuring,
            Self::Rest => options.jobs,
        }
    }
}

/// Makes all runs that were asked for and are not in the ledger yet.
pub(crate) fn run(options: &Options, programs: &Programs, ledger: &Ledger) -> Result<(), Failure> {
    let tasks = tasks(options);
    let hash = blake3::hash(&std::fs::read(programs.pilotage_path())?).to_hex();
    let program = hash.get(..8).unwrap_or_default();
    let (tasks, counters) = (&tasks, [const { AtomicUsize::new(0) }; 3]);
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for (lane, next) in [Lane::Waiting, Lane::Measuring, Lane::Rest].into_iter().zip(&counters) {
            let of_lane: Vec<&Task> = tasks.iter().filter(|task| task.lane() == lane).collect();
            let width = lane.width(options);
            for _ in 0..usize::from(width).min(of_lane.len()) {
                let of_lane = of_lane.clone();
                let how = How { program: program.to_owned(), together: width, quick: options.quick };
                workers.push(scope.spawn(move || {
                    while let Some(task) = of_lane.get(next.fetch_add(1, Ordering::Relaxed)) {
                        perform(options, programs, ledger, task, &how).map_err(|e| e.to_string())?;
                    }
                    Ok::<(), String>(())
                }));
            }
        }
        for worker in workers {
            worker.join().map_err(|_| "a worker panicked")??;
        }
        Ok(())
    })
}

/// In the order of their seeds; those that take longest first.
fn tasks(options: &Options) -> Vec<Task> {
    let mut wanted: Vec<Scenario> = Scenario::all().to_vec();
    wanted.retain(|scenario| options.scenario.is_empty() || options.scenario.contains(scenario));
    wanted.sort_by_key(|scenario| std::cmp::Reverse(scenario.weight()));
    let (by_hub, single): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|scenario| scenario.is_by_hub());
    let chosen = |pair: (Kind, Kind)| {
        options.pairing.is_empty() || options.pairing.iter().any(|pairing| pairing.kinds() == pair)
    };
    let mut tasks = Vec::new();
    for seed in options.seed..options.seed + u64::from(options.repeats) {
        // Other scenarios show the same each time.
        let first = seed == options.seed;
        for &scenario in single.iter().filter(|scenario| first || scenario.is_foreign()) {
            let pairs = match scenario.is_foreign() {
                true if scenario.is_tool() => TOOL_PAIRS,
                true => FOREIGN_PAIRS,
                false => PAIRS,
            };
            for &(client, server) in pairs.iter().filter(|pair| !scenario.is_foreign() || chosen(**pair)) {
                tasks.push(Task { rows: vec![Row { scenario, hub: None, client, server }], seed });
            }
        }
        for &(hub, client, server) in BY_HUB {
            let row = |scenario| Row { scenario, hub: Some(hub), client, server };
            let rows: Vec<Row> = by_hub.iter().map(|&scenario| row(scenario)).collect();
            let foreign = (client, server) != (P, P) || hub != P;
            if !rows.is_empty()
                && (first || foreign)
                && ((client, server) == (P, P) || chosen((client, server)))
            {
                tasks.push(Task { rows, seed });
            }
        }
    }
    tasks
}

/// Runs what of a task is not in the ledger.
fn perform(
    options: &Options,
    programs: &Programs,
    ledger: &Ledger,
    task: &Task,
    how: &How,
) -> Result<(), Failure> {
    let is_due = |row: &Row| {
        let hopeless = row.is_baseline() && ledger.is_hopeless(*row, HOPELESS);
        !hopeless && !ledger.has(*row, task.seed, options.quick)
    };
    let due: Vec<Row> = task.rows.iter().copied().filter(is_due).collect();
    let Some(first) = due.first().copied() else { return Ok(()) };
    let note = |row: Row, started: Instant, ended: Ended| {
        let run = Run::new(row, task.seed, how.clone(), started.elapsed(), ended);
        show(&run, options);
        ledger.add(run)
    };
    let started = Instant::now();
    let hub_kind = first.hub.unwrap_or(first.server);
    if let Some(obstacle) = programs.obstacle(hub_kind, [first.client, first.server]) {
        return due.into_iter().try_for_each(|row| note(row, started, Ended::Skipped(obstacle.to_owned())));
    }
    let scratch = Scratch::new(options.keep)?;
    let Some(hub_kind) = first.hub else {
        let plan = first.scenario.plan(task.seed, options.quick);
        let result = first.scenario.run((first.client, first.server), &plan, programs, &scratch);
        return note(first, started, result.into());
    };
    match hub::Stage::start(hub_kind, first.client, first.server, programs, &scratch) {
        Ok(stage) => due.into_iter().try_for_each(|row| {
            let started = Instant::now();
            note(row, started, hub::play(row.scenario, &stage).map(Outcome::Passed).into())
        }),
        Err(error) => {
            let ended = Ended::Failed(format!("starting: {error}"));
            due.into_iter().try_for_each(|row| note(row, started, ended.clone()))
        }
    }
}

/// How long all runs took together.
pub(crate) fn total(ledger: &Ledger) -> Duration {
    let seconds: f64 = ledger.rows().iter().flat_map(|(_, runs)| runs).map(|run| run.took_s).sum();
    Duration::from_secs_f64(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn options(words: &[&str]) -> Options {
        Options::parse_from([&["interop"], words].concat())
    }

    #[test]
    fn every_row_has_its_first_run_before_any_has_its_second() {
        let tasks = tasks(&options(&["--scenario", "stream-up,echo", "--repeats", "2", "--seed", "5"]));
        assert!(tasks.is_sorted_by_key(|task| task.seed));
        assert_eq!((tasks[0].seed, tasks[tasks.len() - 1].seed), (5, 6));
        // Three pairings and seven combinations by hub, of which the one without the reference runs once.
        assert_eq!(tasks.len(), 2 * (3 + 7) - 1);
    }

    #[test]
    fn only_the_chosen_pairing_and_nothing_measured_beside_a_storm() {
        let chosen = options(&["--scenario", "stream-up,idle,stdio", "--pairing", "theirs-theirs"]);
        let lanes: Vec<Lane> = tasks(&chosen).iter().map(Task::lane).collect();
        assert_eq!(lanes, [Lane::Measuring, Lane::Measuring, Lane::Rest]);
        let others = options(&["--scenario", "idle", "--pairing", "ours-theirs,theirs-ours"]);
        assert!(tasks(&others).iter().all(|task| task.lane() == Lane::Waiting));
    }
}
