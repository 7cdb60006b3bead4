//! `interop`: scenarios × implementations, each between real processes on this machine.
//!
//! * [`subject`]: the implementations, each driven by its own command line. Pilotage from `PILOTAGE_BIN` (or
//!   built here), the Go reference from the folder `PILOT_REF_BIN` (programs `rendezvous`, `daemon`, `pilotctl`), its SDKs
//!   from `PILOT_REF_PYTHON` and `PILOT_REF_NODE`.
//! * [`scenario`]: what they do together. Three run by a hub in every combination of hub, client and server;
//!   all others between a client and a server with [`proxy`] in between.
//! * [`schedule`]: which runs there are and how many at a time; [`ledger`]: what each came to, over several goes.
//! * [`report`]: the table.
//!
//! What cannot run is skipped loudly and counts as skipped.

mod driver;
mod ledger;
mod lens;
mod process;
mod proxy;
mod repeat;
mod report;
mod scenario;
mod schedule;
mod subject;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::ledger::{Ledger, Run};
use crate::process::run as run_program;
use crate::proxy::Proxy;
use crate::report::{Cell, Report, Verdict};
use crate::scenario::Scenario;
use crate::schedule::Pairing;
use crate::subject::Programs;

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
    /// Runs at a time of what neither waits nor is compared
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    jobs: u8,
    /// Besides, runs at a time of scenarios with the reference whose figures are compared
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    measuring: u8,
    /// Besides, runs at a time of those that mostly wait
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    waiting: u8,
    /// Keep every run in this file as it ends; runs that are there are not made again, and --write writes all of them
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Run nothing: only tell and write what the file of --resume has
    #[arg(long, requires = "resume")]
    only_report: bool,
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
    /// How often each scenario with the reference runs, each time with the next seed; it has passed if all of them did, and
    /// its figure is the median
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
    let ledger = Ledger::open(options.resume.as_deref())?;
    if !options.only_report {
        schedule::run(options, &programs, &ledger)?;
    }
    let report = Report {
        pilotage: programs.version()?,
        seed: options.seed,
        quick: options.quick,
        duration_s: schedule::total(&ledger).as_secs_f64().round(),
        cells: cells(options, &ledger)?,
    };
    if options.write {
        report.write(Path::new(env!("CARGO_MANIFEST_DIR")))?;
    }
    println!("{}", report.closing_line());
    Ok(report.count(Verdict::Failed) == 0 && report.count(Verdict::Passed) > 0)
}

/// The proxy alone, until standard input ends.
fn run_proxy(scenario: Scenario, server: SocketAddr, seed: u64) -> Result<(), Failure> {
    let proxy = Proxy::start(scenario.plan(seed, false).setup(server))?;
    println!("{}", proxy.address());
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
    println!("{:#?}", proxy.seen());
    Ok(())
}

fn show(run: &Run, options: &Options) {
    if options.json {
        return;
    }
    let cell = repeat::sum_up(run.row, std::slice::from_ref(run));
    match cell.result {
        Verdict::Passed => println!("{}", cell.line()),
        // Loudly: also where only errors are looked at.
        _ => eprintln!("{}, seed {}", cell.line(), run.seed),
    }
}

/// All rows of the table.
fn cells(options: &Options, ledger: &Ledger) -> Result<Vec<Cell>, Failure> {
    let mut cells = Vec::new();
    for (row, runs) in ledger.rows() {
        let mut cell = repeat::sum_up(row, &runs);
        cell.settings = row.hub.is_none().then(|| row.scenario.plan(options.seed, options.quick));
        cells.push(cell);
    }
    report::compare_with_baseline(&mut cells);
    for cell in &cells {
        match options.json {
            true => println!("{}", serde_json::to_string(cell)?),
            false if options.repeats > 1 => println!("{}", cell.line()),
            false => {}
        }
    }
    Ok(cells)
}

impl Programs {
    /// What the program under test calls itself.
    fn version(&self) -> Result<String, Failure> {
        let mut command = Command::new(self.pilotage_path());
        let text = run_program(command.arg("--version"), &[], Duration::from_secs(10))?;
        Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned())
    }
}
