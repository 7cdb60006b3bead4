//! `cargo xtask registry-chaos`: three real registry nodes on loopback, clients that race for names, and everything that
//! can go wrong with nodes and ways: kill -9 of the leader, a frozen node, partitions. Then an independent checker reads
//! the clients' histories (spec/cluster.md §8).

mod checker;
mod clients;
mod faults;
mod nodes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use serde_json::json;

use crate::Failure;
use crate::process::{cargo, succeeds, target_folder};
use checker::Verdict;
use clients::{Kind, Record};
use nodes::Nodes;

/// What is done to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Scenario {
    /// kill -9 of the leader; it comes back after two seconds
    Kill,
    /// SIGSTOP of the leader for three seconds
    Freeze,
    /// The leader alone on one side, the others on the other
    Halves,
    /// Two nodes that reach each other only through the third
    Bridge,
    /// What the leader sends is lost, what it receives is not
    OneWay,
    /// The leader is cut off and back each second
    Flapping,
    /// The leader's disk is full, or takes nothing for good; it is started again when there is room
    Disk,
    /// The clocks of all nodes jump by an hour, ahead and back
    Clock,
}

const ALL: [Scenario; 8] = [
    Scenario::Kill,
    Scenario::Freeze,
    Scenario::Halves,
    Scenario::Bridge,
    Scenario::OneWay,
    Scenario::Flapping,
    Scenario::Disk,
    Scenario::Clock,
];

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds of each scenario
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seconds from one fault to the next
    #[arg(long, default_value_t = 10)]
    every: u64,
    /// Scenarios, such as `kill,halves`, or `all`
    #[arg(long, default_value = "kill", value_delimiter = ',')]
    scenario: Vec<String>,
    /// Clients that claim
    #[arg(long, default_value_t = 12)]
    clients: u64,
    /// Claims of one client per second, at most
    #[arg(long, default_value_t = 100)]
    rate: u64,
    /// Entries between two snapshots: small, so that nodes come back by snapshot, too
    #[arg(long, default_value_t = 500)]
    snapshot_every: u64,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
    /// Keep the nodes' folders and logs
    #[arg(long)]
    keep: bool,
    /// Use this program instead of building `crates/cluster/examples/node.rs`
    #[arg(long, value_name = "FILE")]
    node: Option<PathBuf>,
}

/// What a scenario gave.
struct Outcome {
    scenario: Scenario,
    verdict: Verdict,
    /// From the fault to the first claim that was begun after it and granted.
    back: Vec<Duration>,
    /// Of claims that were answered.
    latency: Vec<Duration>,
    claims: usize,
    granted: usize,
    unknown: usize,
    lookups: usize,
    lookups_failed: usize,
    agree: bool,
    seconds: f64,
}

pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    let scenarios = scenarios(&options.scenario)?;
    let binary = match &options.node {
        Some(path) => path.clone(),
        None => build()?,
    };
    let mut outcomes = Vec::new();
    for scenario in scenarios {
        eprintln!(
            "{scenario:?}: {} s, a fault each {} s, {} clients",
            options.seconds, options.every, options.clients
        );
        outcomes.push(one(options, &binary, scenario)?);
    }
    let passed = outcomes.iter().all(Outcome::passed);
    if options.json {
        println!(
            "{}",
            json!({ "passed": passed, "scenarios": outcomes.iter().map(Outcome::json).collect::<Vec<_>>() })
        );
    } else {
        table(&outcomes);
    }
    Ok(passed)
}

fn scenarios(names: &[String]) -> Result<Vec<Scenario>, Failure> {
    if names.iter().any(|name| name == "all") {
        return Ok(ALL.to_vec());
    }
    names.iter().map(|name| Scenario::from_str(name, true).map_err(Failure::from)).collect()
}

fn build() -> Result<PathBuf, Failure> {
    let mut command = cargo();
    command.args([
        "build",
        "--quiet",
        "--package",
        "pilotage-cluster",
        "--example",
        "node",
        "--features",
        "chaos",
    ]);
    if !succeeds(&mut command)? {
        return Err("the node does not build".into());
    }
    Ok(target_folder()?.join("debug/examples/node"))
}

fn one(options: &Options, binary: &std::path::Path, scenario: Scenario) -> Result<Outcome, Failure> {
    let mut nodes = Nodes::start(binary, options.snapshot_every)?;
    nodes.wait_for_voters(3, Duration::from_secs(60))?;
    let begin = Instant::now();
    let until = begin + Duration::from_secs(options.seconds);
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let plan = clients::Plan {
        begin,
        until,
        controls: nodes.controls(),
        expires: now + 20 * 86_400,
        pause: Duration::from_secs_f64(1.0 / options.rate.max(1) as f64),
    };
    let work = clients::start(Arc::new(plan), options.clients)?;
    let mut faults = Vec::new();
    let mut round = 0;
    loop {
        round += 1;
        let at = begin + Duration::from_secs(options.every) * round - Duration::from_secs(options.every / 2);
        if at + Duration::from_secs(options.every / 2) > until {
            break;
        }
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        faults.extend(faults::inject(&mut nodes, scenario, begin)?);
    }
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
    let history = work.finish()?;
    faults::heal(&mut nodes)?;
    let finals = nodes.final_state(&names(&history))?;
    let agree = nodes.agree(Duration::from_secs(30))?;
    let verdict = checker::check(&history, &finals);
    nodes.stop(options.keep);
    Ok(summary(scenario, verdict, &history, &faults, agree, begin.elapsed()))
}

/// All names that anybody claimed.
fn names(history: &[Record]) -> Vec<u64> {
    let names: std::collections::BTreeSet<u64> =
        history.iter().filter(|record| record.kind == Kind::Claim).map(|record| record.name).collect();
    names.into_iter().collect()
}

fn summary(
    scenario: Scenario,
    verdict: Verdict,
    history: &[Record],
    faults: &[Duration],
    agree: bool,
    elapsed: Duration,
) -> Outcome {
    let claims: Vec<&Record> = history.iter().filter(|record| record.kind == Kind::Claim).collect();
    let answered = |record: &&&Record| record.answered();
    let mut latency: Vec<Duration> =
        claims.iter().filter(answered).map(|record| record.end - record.start).collect();
    latency.sort_unstable();
    let back = faults.iter().filter_map(|&fault| {
        let after = claims.iter().filter(answered).filter(|record| record.start >= fault);
        after.map(|record| record.end - fault).min()
    });
    let mut back: Vec<Duration> = back.collect();
    back.sort_unstable();
    let lookups: Vec<&Record> = history.iter().filter(|record| record.kind == Kind::Lookup).collect();
    Outcome {
        scenario,
        verdict,
        back,
        claims: claims.len(),
        granted: claims.iter().filter(|record| record.granted()).count(),
        unknown: claims.iter().filter(|record| !record.answered()).count(),
        latency,
        lookups: lookups.len(),
        lookups_failed: lookups.iter().filter(|record| !record.answered()).count(),
        agree,
        seconds: elapsed.as_secs_f64(),
    }
}

/// The value below which `share` of the sorted ones lie.
fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let at = (sorted.len().saturating_sub(1) as f64 * share).ceil() as usize;
    sorted.get(at).copied().unwrap_or_default()
}

impl Outcome {
    fn passed(&self) -> bool {
        let quick = self.scenario != Scenario::Kill || quantile(&self.back, 0.99) <= Duration::from_secs(2);
        let uninterrupted = self.scenario != Scenario::Kill || self.lookups_failed == 0;
        self.verdict.violations.is_empty() && self.agree && quick && uninterrupted && self.granted > 0
    }

    fn json(&self) -> serde_json::Value {
        let ms = |duration: Duration| (duration.as_secs_f64() * 1e4).round() / 10.0;
        json!({
            "scenario": format!("{:?}", self.scenario).to_lowercase(),
            "passed": self.passed(),
            "seconds": self.seconds.round(),
            "faults": self.back.len(),
            "claims": self.claims,
            "granted": self.granted,
            "unknown": self.unknown,
            "lost": self.verdict.lost,
            "double": self.verdict.double,
            "violations": self.verdict.violations,
            "replicas_agree": self.agree,
            "claims_back_ms": { "p50": ms(quantile(&self.back, 0.5)), "p99": ms(quantile(&self.back, 0.99)) },
            "claim_ms": {
                "p50": ms(quantile(&self.latency, 0.5)),
                "p99": ms(quantile(&self.latency, 0.99)),
                "max": ms(quantile(&self.latency, 1.0)),
            },
            "lookups": self.lookups,
            "lookups_failed": self.lookups_failed,
        })
    }
}

fn table(outcomes: &[Outcome]) {
    println!(
        "{:<9} {:>6} {:>7} {:>8} {:>7} {:>5} {:>6} {:>9} {:>9} {:>8} {:>8} {:>9} {:>6}  result",
        "scenario",
        "faults",
        "claims",
        "granted",
        "unknown",
        "lost",
        "double",
        "back p50",
        "back p99",
        "p50",
        "p99",
        "look-ups",
        "failed"
    );
    for outcome in outcomes {
        let ms = |duration: Duration| format!("{:.0} ms", duration.as_secs_f64() * 1e3);
        println!(
            "{:<9} {:>6} {:>7} {:>8} {:>7} {:>5} {:>6} {:>9} {:>9} {:>8} {:>8} {:>9} {:>6}  {}",
            format!("{:?}", outcome.scenario).to_lowercase(),
            outcome.back.len(),
            outcome.claims,
            outcome.granted,
            outcome.unknown,
            outcome.verdict.lost,
            outcome.verdict.double,
            ms(quantile(&outcome.back, 0.5)),
            ms(quantile(&outcome.back, 0.99)),
            ms(quantile(&outcome.latency, 0.5)),
            ms(quantile(&outcome.latency, 0.99)),
            outcome.lookups,
            outcome.lookups_failed,
            if outcome.passed() { "passed" } else { "FAILED" },
        );
        for violation in outcome.verdict.violations.iter().take(10) {
            println!("    {violation}");
        }
        if !outcome.agree {
            println!("    the nodes' states differ");
        }
    }
}
