//! Seeds on all cores. Every seed is a world of its own, so threads share nothing but the next number.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use pilotage_sim::{Plan, Report};

use super::totals::Totals;

/// What to run.
pub(crate) struct Work {
    pub(crate) from: u64,
    pub(crate) seeds: Option<u64>,
    pub(crate) time: Option<Duration>,
    pub(crate) jobs: usize,
    pub(crate) failures: u64,
}

enum News {
    Report(Box<Report>),
    /// A thread is done; these are its fault points.
    Points(std::collections::BTreeMap<&'static str, pilotage_fault::Count>),
    /// A seed ended in a panic.
    Panic(u64, String),
}

/// Runs the work and returns what came of it. `each` sees every report.
pub(crate) fn run(work: &Work, mut each: impl FnMut(&Totals, &Report)) -> Totals {
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let began = now();
    let mut totals = Totals::default();
    std::thread::scope(|scope| {
        let (tell, hear) = mpsc::channel();
        for _ in 0..work.jobs {
            let tell = tell.clone();
            let (next, stop) = (&next, &stop);
            scope.spawn(move || worker(work, next, stop, began, &tell));
        }
        drop(tell);
        for news in hear {
            match news {
                News::Report(report) => {
                    totals.add(&report);
                    each(&totals, &report);
                }
                News::Points(points) => totals.add_points(&points),
                News::Panic(seed, text) => {
                    eprintln!(
                        "seed {seed}: panicked: {text}\n  again: {}",
                        pilotage_sim::replay_command(seed)
                    );
                    totals.seeds += 1;
                    totals.failures += 1;
                    totals.failed.push(seed);
                }
            }
            if totals.failures >= work.failures {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
    totals.real = now().saturating_duration_since(began);
    totals.jobs = work.jobs;
    totals
}

fn worker(work: &Work, next: &AtomicU64, stop: &AtomicBool, began: Instant, tell: &mpsc::Sender<News>) {
    while !stop.load(Ordering::Relaxed) {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let late = work.time.is_some_and(|t| now().saturating_duration_since(began) >= t);
        if late || work.seeds.is_some_and(|n| number >= n) {
            break;
        }
        let seed = work.from.wrapping_add(number);
        let news = match std::panic::catch_unwind(|| Plan::random(seed).run(false)) {
            Ok(report) => News::Report(Box::new(report)),
            Err(cause) => News::Panic(seed, words(cause.as_ref())),
        };
        // The receiver lives as long as the scope.
        let _ = tell.send(news);
    }
    let _ = tell.send(News::Points(pilotage_fault::report()));
}

fn words(cause: &(dyn std::any::Any + Send)) -> String {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("no reason given").to_owned()
}

/// Real time, which the command line may read and the simulation may not.
pub(crate) fn now() -> Instant {
    Instant::now()
}
