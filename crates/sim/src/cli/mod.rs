//! The command line: `run`, `replay`, `soak`, `speed`.

mod bytes;
mod pool;
mod speed;
mod totals;

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use pilotage_sim::{Plan, Report, replay_command};

/// Any failure; the text names the stage.
type Failure = Box<dyn std::error::Error>;

#[derive(Debug, Parser)]
#[command(name = "pilotage-sim", version, about = "Runs the whole stack in virtual time, from seeds")]
pub(crate) struct Options {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run so many seeds on all cores
    Run(Run),
    /// Run random seeds for a given time on all cores
    Soak(Soak),
    /// Run one seed again, with everything in detail
    Replay(Replay),
    /// Transfer and compare so many gigabytes over links that lose, damage, repeat and reorder
    Bytes(bytes::Options),
    /// Simulated time per second of one core, for an idle and for a busy pair
    Speed(speed::Options),
}

#[derive(Debug, Args)]
struct Run {
    /// How many seeds
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0)]
    from: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Soak {
    /// For so many minutes of real time
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Begin at this seed instead of one drawn at random
    #[arg(long)]
    from: Option<u64>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// Threads; all cores by default
    #[arg(long)]
    jobs: Option<usize>,
    /// End after so many failures
    #[arg(long, default_value_t = 10)]
    failures: u64,
    /// Print the totals as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Replay {
    /// Which seed
    seed: u64,
    /// Write one line per event to this file
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Write a capture of all datagrams to this file (pcap)
    #[arg(long)]
    pcap: Option<PathBuf>,
    /// Print the plan: hosts, links, traffic, faults
    #[arg(long)]
    plan: bool,
}

pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    match &options.task {
        Task::Run(run) => many(run.from, Some(run.seeds), None, &run.common),
        Task::Soak(soak) => {
            let time = Duration::try_from_secs_f64(soak.minutes * 60.0)
                .map_err(|e| format!("soak: --minutes {}: {e}", soak.minutes))?;
            let from = soak.from.unwrap_or_else(random_seed);
            many(from, None, Some(time), &soak.common)
        }
        Task::Replay(options) => replay(options),
        Task::Bytes(options) => bytes::run(options),
        Task::Speed(options) => speed::run(options),
    }
}

/// Different at each start, which is the point of a soak.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() >> 16
}

fn many(from: u64, seeds: Option<u64>, time: Option<Duration>, common: &Common) -> Result<bool, Failure> {
    let jobs = match common.jobs {
        Some(0) => return Err("--jobs: at least 1".into()),
        Some(jobs) => jobs,
        None => std::thread::available_parallelism()?.get(),
    };
    eprintln!("seeds from {from}, {jobs} threads");
    let show = std::io::stderr().is_terminal();
    let work = pool::Work { from, seeds, time, jobs, failures: common.failures };
    let totals = pool::run(&work, |totals, report| {
        if let Some(violation) = &report.violation {
            eprintln!("seed {}: {violation}\n  again: {}", report.seed, replay_command(report.seed));
        }
        if show && totals.seeds.is_multiple_of(100) {
            eprint!("\r{}\x1b[K", totals.progress());
        }
    });
    if show {
        eprintln!();
    }
    if common.json {
        println!("{}", totals.json());
    } else {
        print!("{totals}");
    }
    Ok(totals.failures == 0 && totals.seeds > 0)
}

fn replay(options: &Replay) -> Result<bool, Failure> {
    let plan = Plan::random(options.seed);
    if options.plan {
        writeln!(std::io::stdout(), "{plan:#?}")?;
    }
    let wanted = options.trace.is_some() || options.pcap.is_some();
    let report = plan.run(wanted);
    if let Some(trace) = &report.trace {
        write(options.trace.as_deref(), |out| trace.write_text(out))?;
        write(options.pcap.as_deref(), |out| trace.write_pcap(out))?;
    }
    show(&report)?;
    Ok(report.violation.is_none())
}

fn write(
    path: Option<&Path>,
    content: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    let failed = |e: std::io::Error| format!("writing {}: {e}", path.display());
    let mut out = BufWriter::new(File::create(path).map_err(failed)?);
    content(&mut out).map_err(failed)?;
    out.flush().map_err(failed)?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

fn show(report: &Report) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "seed      {}", report.seed)?;
    writeln!(out, "digest    {}", report.digest)?;
    writeln!(out, "simulated {:?}", report.simulated)?;
    writeln!(out, "wire      {:?}", report.counts)?;
    writeln!(
        out,
        "streams   {} finished, {} with an error, {} bytes compared",
        report.flows.0, report.flows.1, report.stream_bytes
    )?;
    writeln!(out, "datagrams {}", report.datagrams)?;
    writeln!(out, "faults    {:?}", report.faults)?;
    match &report.violation {
        Some(violation) => writeln!(out, "FAILED    {violation}")?,
        None => writeln!(out, "ok")?,
    }
    Ok(())
}
