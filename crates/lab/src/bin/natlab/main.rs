//! `natlab`: the `pilotage` program behind real NATs, every kind against every other. `cargo xtask natlab` runs it.

mod echo;
mod matrix;
mod own_nat;
mod pair;
mod party;
mod program;
mod reference;
mod report;
mod scenario;
mod stop;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use pilotage_lab::LabError;
use pilotage_lab::nat::{self, NatKind, selftest};

use crate::matrix::Choice;
use crate::report::Report;

/// Why a run ended early.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Exit code of a run that was skipped.
const SKIPPED: u8 = 77;
/// How long a pair is watched for a direct path.
const WATCH: Duration = Duration::from_secs(12);
const QUICK_WATCH: Duration = Duration::from_secs(6);

/// Runs `pilotage` behind every kind of NAT. Needs root, /dev/net/tun and nftables; without them it exits with code 77.
#[derive(Debug, Parser)]
#[command(name = "natlab", version)]
struct Options {
    /// The program under test
    #[arg(long, env = "PILOTAGE_BIN")]
    binary: Option<PathBuf>,
    /// A dozen pairs, and short scenarios
    #[arg(long)]
    quick: bool,
    /// Only these ordered pairs, such as `none:full-cone,mapped:*`; `none` alone: no pairs
    #[arg(long, value_delimiter = ',')]
    pairs: Vec<String>,
    /// Every pair this often
    #[arg(long, default_value_t = 1)]
    repeats: u32,
    /// Pairs at a time
    #[arg(long, default_value_t = 6)]
    jobs: usize,
    /// One JSON object instead of a report
    #[arg(long)]
    json: bool,
    /// Write the report to this file
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// How this run was started, for the report
    #[arg(long, default_value = "natlab")]
    command: String,
    /// Only scenarios that begin so, such as `roaming,NAT`; `none`: no scenarios
    #[arg(long, value_delimiter = ',')]
    scenarios: Vec<String>,
    /// Keep states and logs of the programs
    #[arg(long)]
    keep: bool,
    /// Classify the NATs and end
    #[arg(long)]
    selftest: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("natlab: {error}");
            match error.downcast_ref::<LabError>() {
                Some(LabError::Unavailable(_)) => {
                    eprintln!("SKIPPED: NATs: {error}");
                    ExitCode::from(SKIPPED)
                }
                _ if stop::requested() => ExitCode::from(130),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(options: &Options) -> Result<bool, Failure> {
    nat::available()?;
    stop::listen()?;
    let begun = Instant::now();
    let findings = selftest::run(&NatKind::ALL, &|finding| eprintln!("{finding}"))?;
    if findings.iter().any(|finding| !finding.passed) {
        return Err("a NAT is not what its name says: nothing measured behind it would count".into());
    }
    if options.selftest {
        return Ok(true);
    }
    let folder = std::env::temp_dir().join(format!("natlab-{}", std::process::id()));
    let outcome = measure(options, &folder, begun, findings);
    if options.keep {
        eprintln!("states and logs are in {}", folder.display());
    } else {
        // What was never made cannot be removed.
        let _ = std::fs::remove_dir_all(&folder);
    }
    outcome
}

fn measure(
    options: &Options,
    folder: &std::path::Path,
    begun: Instant,
    findings: Vec<selftest::Finding>,
) -> Result<bool, Failure> {
    let binary = options.binary.as_ref().ok_or("name the program under test with --binary")?;
    let binary = std::fs::canonicalize(binary)
        .map_err(|error| format!("{}: {error}; build it with `cargo build --release`", binary.display()))?;
    let choices: Vec<Choice> = match options.pairs.as_slice() {
        [none] if none == "none" => Vec::new(),
        list => list.iter().map(|text| text.parse()).collect::<Result<_, LabError>>()?,
    };
    let once = match (options.pairs.is_empty(), options.quick) {
        (true, true) => matrix::quick(),
        (true, false) => matrix::chosen(&[]),
        (false, _) if choices.is_empty() => Vec::new(),
        (false, _) => matrix::chosen(&choices),
    };
    let pairs: Vec<_> = (0..options.repeats).flat_map(|_| once.clone()).collect();
    let watch = if options.quick { QUICK_WATCH } else { WATCH };
    let results = matrix::run(&binary, folder, &pairs, options.jobs, watch);
    let scenarios = scenario::all(&binary, folder, extent(options.quick), &options.scenarios);
    stop::check()?;
    let seconds = begun.elapsed().as_secs();
    let report = Report { command: options.command.clone(), seconds, findings, pairs: results, scenarios };
    if options.json {
        println!("{}", serde_json::to_string(&report.json())?);
    } else {
        print!("{}", report.summary());
    }
    if let Some(file) = &options.write {
        std::fs::write(file, report.markdown())?;
    }
    Ok(report.passed())
}

fn extent(quick: bool) -> scenario::Extent {
    let seconds = Duration::from_secs;
    if quick {
        scenario::Extent { roaming: seconds(8), short: seconds(8), references: 1, jobs: 4 }
    } else {
        scenario::Extent { roaming: seconds(60), short: seconds(15), references: usize::MAX, jobs: 2 }
    }
}
