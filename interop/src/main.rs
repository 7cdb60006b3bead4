//! `interop`: scenarios × implementations, each between real processes on this machine.
//!
//! * [`subject`]: the implementations, each driven by its own command line. Pilotage from `PILOTAGE_BIN` (or
//!   built here), the Go reference from the folder `PILOT_REF_BIN` (programs `rendezvous`, `daemon`, `pilotctl`), its SDKs
//!   from `PILOT_REF_PYTHON` and `PILOT_REF_NODE`.
//! * [`scenario`]: what they do together. Three run by a hub in every combination of hub, client and server;
//!   all others between a client and a server with [`proxy`] in between.
//! * [`report`]: the table.
//!
//! What cannot run is skipped loudly and counts as skipped.

mod driver;
mod lens;
mod process;
mod proxy;
mod repeat;
mod report;
mod scenario;
mod subject;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

use crate::process::{Scratch, run as run_program};
use crate::proxy::Proxy;
use crate::report::{Cell, Report, Verdict};
use crate::scenario::{Scenario, hub};
use crate::subject::{Kind, Programs};

/// Any failure; the text names the stage.
type Failure = Box<dyn std::error::Error>;

#[derive(Debug, Parser)]
#[command(name = "interop", version, about = "Runs scenarios between two implementations")]
struct Options {
    /// Only these scenarios (comma-separated)
    #[arg(long, value_enum, value_delimiter = ',')]
    scenario: Vec<Scenario>,
    /// Print the scenarios and end
    #[arg(long)]
    list: bool,
    /// The subset for ordinary CI: 20 instead of 50 connections in a crowd, 10 instead of 25 MiB of cross traffic
    #[arg(long)]
    quick: bool,
    /// Seed of all impairments and contents
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Cases that run at a time; they mostly wait
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    jobs: u8,
    /// Write interop/RESULTS.md and interop/results.json
    #[arg(long)]
    write: bool,
    /// The pilotage program [default: built from this repository]
    #[arg(long, env = "PILOTAGE_BIN")]
    pilotage: Option<PathBuf>,
    /// Folder with the reference's programs
    #[arg(long, env = "PILOT_REF_BIN")]
    reference: Option<PathBuf>,
    /// Folder with the reference's Python package `pilotprotocol` and its library
    #[arg(long, env = "PILOT_REF_PYTHON")]
    reference_python: Option<PathBuf>,
    /// Folder of the reference's Node package, built, with its library in `bin`
    #[arg(long, env = "PILOT_REF_NODE")]
    reference_node: Option<PathBuf>,
    /// How often each scenario with the reference runs; it has passed if all of them did, and its figure is the median
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    repeats: u16,
    /// Only these pairings of scenarios with the reference (comma-separated; client first)
    #[arg(long, value_enum, value_delimiter = ',')]
    pairing: Vec<Pairing>,
    /// Print one JSON object per result
    #[arg(long)]
    json: bool,
    /// Keep the state folders and logs
    #[arg(long)]
    keep: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// Client and server of a scenario with the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Pairing {
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

/// Parts of scenarios as processes of their own.
#[derive(Debug, Subcommand)]
enum Part {
    /// Run only the proxy of a scenario, to follow by hand what happens; prints its address and, on Ctrl-D, what it saw
    Proxy {
        /// Whose link
        scenario: Scenario,
        /// UDP address of the server
        server: SocketAddr,
        /// Seed of the link; connection N of a crowd has 1000 times the run's seed, plus N
        #[arg(long, default_value_t = 1)]
        link_seed: u64,
    },
    /// A pipe or datagrams by a reference daemon's local socket
    Driver {
        /// The daemon's socket
        socket: PathBuf,
        #[command(subcommand)]
        action: driver::Action,
    },
    /// One end of the TCP flow of cross-traffic
    #[command(hide = true)]
    TcpSink { address: String },
    /// The other end
    #[command(hide = true)]
    TcpSource { address: String },
}

/// What runs in one go.
#[derive(Debug, Clone)]
enum Job {
    /// Scenarios with a hub and two nodes that they share.
    ByHub { hub: Kind, client: Kind, server: Kind, scenarios: Vec<Scenario> },
    /// A scenario through the proxy.
    Single { scenario: Scenario, client: Kind, server: Kind },
}

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

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("interop: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<bool, Failure> {
    match &options.part {
        Some(Part::Proxy { scenario, server, link_seed }) => {
            return run_proxy(*scenario, *server, *link_seed).map(|()| true);
        }
        Some(Part::Driver { socket, action }) => return driver::run(socket, action).map(|()| true),
        Some(Part::TcpSink { address }) => return scenario::cross::tcp_sink(address).map(|()| true),
        Some(Part::TcpSource { address }) => return scenario::cross::tcp_source(address).map(|()| true),
        None => {}
    }
    if options.list {
        for scenario in Scenario::all() {
            println!("{:<22} {}", scenario.name(), scenario.describe());
        }
        return Ok(true);
    }
    let programs = Programs::find(
        options.pilotage.as_deref(),
        options.reference.as_deref(),
        options.reference_python.as_deref(),
        options.reference_node.as_deref(),
    )?;
    let started = Instant::now();
    let mut cells = run_jobs(options, &programs, jobs(options));
    cells.sort_by_key(|cell| (cell.scenario, cell.hub, cell.client, cell.server));
    report::compare_with_baseline(&mut cells);
    let report = Report {
        pilotage: programs.version()?,
        seed: options.seed,
        quick: options.quick,
        duration_s: started.elapsed().as_secs_f64().round(),
        cells,
    };
    if options.write {
        report.write(Path::new(env!("CARGO_MANIFEST_DIR")))?;
    }
    println!("{}", report.closing_line());
    Ok(report.count(Verdict::Failed) == 0 && report.count(Verdict::Passed) > 0)
}

/// The longest first.
fn jobs(options: &Options) -> Vec<Job> {
    let mut wanted: Vec<Scenario> = Scenario::all().to_vec();
    wanted.retain(|scenario| options.scenario.is_empty() || options.scenario.contains(scenario));
    wanted.sort_by_key(|scenario| std::cmp::Reverse(scenario.weight()));
    let (by_hub, single): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|scenario| scenario.is_by_hub());
    let mut jobs = Vec::new();
    for scenario in single {
        let pairs = match scenario.is_foreign() {
            true if scenario.is_tool() => TOOL_PAIRS,
            true => FOREIGN_PAIRS,
            false => PAIRS,
        };
        let wanted = |pair: &(Kind, Kind)| {
            let chosen = options.pairing.iter().any(|pairing| pairing.kinds() == *pair);
            chosen || options.pairing.is_empty() || !scenario.is_foreign()
        };
        jobs.extend(pairs.iter().filter(|pair| wanted(pair)).map(|(client, server)| Job::Single {
            scenario,
            client: *client,
            server: *server,
        }));
    }
    if !by_hub.is_empty() {
        jobs.extend(BY_HUB.iter().map(|(hub, client, server)| Job::ByHub {
            hub: *hub,
            client: *client,
            server: *server,
            scenarios: by_hub.clone(),
        }));
    }
    jobs
}

fn run_jobs(options: &Options, programs: &Programs, jobs: Vec<Job>) -> Vec<Cell> {
    let (next, cells) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let done = match job {
                Job::ByHub { hub, client, server, scenarios } => {
                    run_by_hub(options, programs, (*hub, *client, *server), scenarios)
                }
                Job::Single { scenario, client, server } => {
                    vec![run_single(options, programs, *scenario, (*client, *server))]
                }
            };
            let mut cells = cells.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            done.iter().for_each(|cell| show(cell, options.json));
            cells.extend(done);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(work);
        }
    });
    cells.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// All scenarios of one combination with the same hub and responder.
fn run_by_hub(
    options: &Options,
    programs: &Programs,
    (hub_kind, client, server): (Kind, Kind, Kind),
    scenarios: &[Scenario],
) -> Vec<Cell> {
    let cell = |scenario: &Scenario| Cell::new(*scenario, Some(hub_kind), client, server);
    if let Some(obstacle) = programs.obstacle(hub_kind, [client, server]) {
        return scenarios.iter().map(|scenario| cell(scenario).skipped(obstacle)).collect();
    }
    let mut done = Vec::new();
    let staged = Scratch::new(options.keep).and_then(|scratch| {
        let stage = hub::Stage::start(hub_kind, client, server, programs, &scratch)?;
        for scenario in scenarios {
            let started = Instant::now();
            done.push(match hub::play(*scenario, &stage) {
                Ok(passed) => cell(scenario).passed(passed, started.elapsed()),
                Err(error) => cell(scenario).failed(error, started.elapsed()),
            });
        }
        Ok(())
    });
    if let Err(error) = staged {
        let failed = |scenario| cell(scenario).failed(format!("starting: {error}"), Duration::ZERO);
        return scenarios.iter().map(failed).collect();
    }
    done
}

fn run_single(options: &Options, programs: &Programs, scenario: Scenario, kinds: (Kind, Kind)) -> Cell {
    let plan = scenario.plan(options.seed, options.quick);
    let mut cell = Cell::new(scenario, None, kinds.0, kinds.1);
    cell.settings = Some(plan.clone());
    if let Some(obstacle) = programs.obstacle(kinds.1, [kinds.0, kinds.1]) {
        return cell.skipped(obstacle);
    }
    let started = Instant::now();
    let once = |seed: u64| {
        let plan = scenario.plan(seed, options.quick);
        Scratch::new(options.keep)
            .and_then(|scratch| scenario.run(kinds, &plan, programs, &scratch))
            .map_err(|error| error.to_string())
    };
    let runs = if scenario.is_foreign() { u64::from(options.repeats) } else { 1 };
    let outcomes = repeat::all(scenario.mostly_waits(), options.seed, runs, once);
    repeat::sum_up(cell, outcomes, started.elapsed())
}

/// The proxy alone, until standard input ends.
fn run_proxy(scenario: Scenario, server: SocketAddr, seed: u64) -> Result<(), Failure> {
    let proxy = Proxy::start(scenario.plan(seed, false).setup(server))?;
    println!("{}", proxy.address());
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
    println!("{:#?}", proxy.seen());
    Ok(())
}

fn show(cell: &Cell, json: bool) {
    match (json, serde_json::to_string(cell)) {
        (true, Ok(line)) => println!("{line}"),
        _ if cell.result == Verdict::Passed => println!("{}", cell.line()),
        // Loudly: also where only errors are looked at.
        _ => eprintln!("{}", cell.line()),
    }
}

impl Programs {
    /// What the program under test calls itself.
    fn version(&self) -> Result<String, Failure> {
        let mut command = Command::new(self.pilotage_path());
        let text = run_program(command.arg("--version"), &[], Duration::from_secs(10))?;
        Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned())
    }
}
