//! Sums over many seeds.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use pilotage_fault::Count;
use pilotage_sim::{Report, Trick};

/// Seeds whose numbers are listed when they failed.
const LISTED: usize = 20;

#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) seeds: u64,
    pub(crate) failures: u64,
    pub(crate) failed: Vec<u64>,
    pub(crate) real: Duration,
    pub(crate) jobs: usize,
    simulated: f64,
    sent: u64,
    delivered: u64,
    forged: u64,
    steps: u64,
    stream_bytes: u64,
    datagrams: u64,
    frames_sealed: u64,
    finished: u64,
    broken: u64,
    faults: BTreeMap<&'static str, u64>,
    tricks: [u64; Trick::ALL.len()],
    points: BTreeMap<&'static str, Count>,
}

impl Totals {
    pub(crate) fn add(&mut self, report: &Report) {
        self.seeds += 1;
        if report.violation.is_some() {
            self.failures += 1;
            if self.failed.len() < LISTED {
                self.failed.push(report.seed);
            }
        }
        self.simulated += report.simulated.as_secs_f64();
        self.sent += report.counts.sent;
        self.delivered += report.counts.delivered;
        self.forged += report.counts.forged;
        self.steps += report.counts.steps;
        self.stream_bytes += report.stream_bytes;
        self.datagrams += report.datagrams;
        self.frames_sealed += report.frames_sealed;
        self.finished += report.flows.0;
        self.broken += report.flows.1;
        for (name, count) in &report.faults {
            *self.faults.entry(name).or_default() += count;
        }
        for (sum, count) in self.tricks.iter_mut().zip(report.tricks) {
            *sum += count;
        }
    }

    pub(crate) fn add_points(&mut self, points: &BTreeMap<&'static str, Count>) {
        for (name, count) in points {
            let sum = self.points.entry(name).or_default();
            sum.reached += count.reached;
            sum.fired += count.fired;
        }
    }

    pub(crate) fn progress(&self) -> String {
        format!(
            "{} seeds, {:.1} simulated days, {} failures",
            self.seeds,
            self.simulated / 86_400.0,
            self.failures
        )
    }

    pub(crate) fn json(&self) -> String {
        let map = |entries: Vec<String>| format!("{{{}}}", entries.join(","));
        let faults = map(self.faults.iter().map(|(n, c)| format!("\"{n}\":{c}")).collect());
        let tricks = map(Trick::ALL.iter().zip(self.tricks).map(|(t, c)| format!("\"{t:?}\":{c}")).collect());
        let points = map(self
            .points
            .iter()
            .map(|(n, c)| format!("\"{n}\":{{\"reached\":{},\"fired\":{}}}", c.reached, c.fired))
            .collect());
        let failed: Vec<String> = self.failed.iter().map(u64::to_string).collect();
        format!(
            "{{\"seeds\":{},\"failures\":{},\"failed\":[{}],\"real_seconds\":{:.1},\"threads\":{},\"simulated_seconds\":{:.0},\
             \"datagrams_sent\":{},\"forged\":{},\"stream_bytes\":{},\"datagrams\":{},\"frames_sealed\":{},\
             \"streams_finished\":{},\"streams_failed\":{},\"faults\":{faults},\"tricks\":{tricks},\"points\":{points}}}",
            self.seeds,
            self.failures,
            failed.join(","),
            self.real.as_secs_f64(),
            self.jobs,
            self.simulated,
            self.sent,
            self.forged,
            self.stream_bytes,
            self.datagrams,
            self.frames_sealed,
            self.finished,
            self.broken,
        )
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores = self.real.as_secs_f64() * self.jobs as f64;
        writeln!(
            f,
            "seeds      {} in {:.1} s on {} threads",
            self.seeds,
            self.real.as_secs_f64(),
            self.jobs
        )?;
        writeln!(
            f,
            "simulated  {:.1} days ({:.0} s per second of one core)",
            self.simulated / 86_400.0,
            self.simulated / cores.max(1e-9)
        )?;
        writeln!(
            f,
            "wire       {} datagrams sent, {} delivered, {} by the adversary",
            self.sent, self.delivered, self.forged
        )?;
        writeln!(
            f,
            "streams    {} finished, {} with an error, {} bytes compared",
            self.finished, self.broken, self.stream_bytes
        )?;
        writeln!(f, "datagrams  {} delivered and compared", self.datagrams)?;
        writeln!(f, "nonces     {} compared", self.frames_sealed)?;
        for (name, count) in &self.faults {
            writeln!(f, "fault      {count:>9} {name}")?;
        }
        for (trick, count) in Trick::ALL.iter().zip(self.tricks) {
            writeln!(f, "adversary  {count:>9} {trick:?}")?;
        }
        for (name, count) in &self.points {
            writeln!(f, "point      {:>9} of {:>11} {name}", count.fired, count.reached)?;
        }
        writeln!(f, "{} seeds, {} failures {:?}", self.seeds, self.failures, self.failed)
    }
}
