//! `interop`: scenarios × implementations, each between real processes on this machine.
//!
//! A case is a hub, a responding node and an initiating node, each of one implementation; every scenario
//! runs in every case. Subjects are chosen at run time: Pilotage from `PILOTAGE_BIN` (or built here), the Go
//! reference from the folder `PILOT_REF_BIN` (programs `rendezvous`, `daemon`, `pilotctl`). What cannot run
//! is skipped loudly and counts as skipped.

mod process;
mod scenario;
mod subject;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;

use crate::process::Scratch;
use crate::scenario::Scenario;
use crate::subject::{Kind, Programs};

/// Any failure; the text names the stage.
type Failure = Box<dyn std::error::Error>;

#[derive(Debug, Parser)]
#[command(name = "interop", version, about = "Runs scenarios between two implementations")]
struct Options {
    /// Only these scenarios (comma-separated)
    #[arg(long, value_enum, value_delimiter = ',')]
    scenario: Vec<Scenario>,
    /// The pilotage program [default: built from this repository]
    #[arg(long, env = "PILOTAGE_BIN")]
    pilotage: Option<PathBuf>,
    /// Folder with the reference's programs
    #[arg(long, env = "PILOT_REF_BIN")]
    reference: Option<PathBuf>,
    /// Print one JSON object per result
    #[arg(long)]
    json: bool,
    /// Keep the state folders and logs
    #[arg(long)]
    keep: bool,
}

/// Who plays which part.
#[derive(Debug, Clone, Copy, Serialize)]
struct Case {
    hub: Kind,
    initiator: Kind,
    responder: Kind,
}

const CASES: &[Case] = &[
    Case { hub: Kind::Pilotage, initiator: Kind::Pilotage, responder: Kind::Pilotage },
    Case { hub: Kind::Reference, initiator: Kind::Pilotage, responder: Kind::Pilotage },
    Case { hub: Kind::Reference, initiator: Kind::Pilotage, responder: Kind::Reference },
    Case { hub: Kind::Reference, initiator: Kind::Reference, responder: Kind::Pilotage },
    Case { hub: Kind::Pilotage, initiator: Kind::Pilotage, responder: Kind::Reference },
    Case { hub: Kind::Pilotage, initiator: Kind::Reference, responder: Kind::Pilotage },
    Case { hub: Kind::Pilotage, initiator: Kind::Reference, responder: Kind::Reference },
];

/// One cell of the table.
#[derive(Debug, Serialize)]
struct Cell {
    #[serde(flatten)]
    case: Case,
    scenario: Scenario,
    passed: bool,
    detail: String,
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
    let programs = Programs::find(options.pilotage.as_deref(), options.reference.as_deref())?;
    let scenarios: Vec<Scenario> = Scenario::ALL
        .into_iter()
        .filter(|s| options.scenario.is_empty() || options.scenario.contains(s))
        .collect();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for case in CASES {
        if let Some(obstacle) = programs.obstacle(case.hub, [case.initiator, case.responder]) {
            eprintln!(
                "SKIPPED: hub {:?}, {:?} to {:?}: {obstacle}",
                case.hub, case.initiator, case.responder
            );
            skipped += scenarios.len();
            continue;
        }
        for cell in run_case(*case, &scenarios, &programs, options.keep) {
            if cell.passed {
                passed += 1;
            } else {
                failed += 1;
            }
            show(&cell, options.json)?;
        }
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(failed == 0 && passed > 0)
}

/// All scenarios of one case with the same hub and responder.
fn run_case(case: Case, scenarios: &[Scenario], programs: &Programs, keep: bool) -> Vec<Cell> {
    let outcome = Scratch::new(keep).and_then(|scratch| {
        let stage = scenario::Stage::start(case.hub, case.initiator, case.responder, programs, &scratch)?;
        Ok(scenarios.iter().map(|scenario| (*scenario, scenario.run(&stage))).collect::<Vec<_>>())
    });
    match outcome {
        Ok(results) => results
            .into_iter()
            .map(|(scenario, result)| match result {
                Ok(detail) => Cell { case, scenario, passed: true, detail },
                Err(error) => Cell { case, scenario, passed: false, detail: error.to_string() },
            })
            .collect(),
        Err(error) => scenarios
            .iter()
            .map(|scenario| Cell {
                case,
                scenario: *scenario,
                passed: false,
                detail: format!("starting: {error}"),
            })
            .collect(),
    }
}

fn show(cell: &Cell, json: bool) -> Result<(), Failure> {
    if json {
        println!("{}", serde_json::to_string(cell)?);
        return Ok(());
    }
    println!(
        "{:<4} hub {:<9} {:<9} -> {:<9} {:<8} {}",
        if cell.passed { "ok" } else { "FAIL" },
        format!("{:?}", cell.case.hub).to_lowercase(),
        format!("{:?}", cell.case.initiator).to_lowercase(),
        format!("{:?}", cell.case.responder).to_lowercase(),
        format!("{:?}", cell.scenario).to_lowercase(),
        cell.detail
    );
    Ok(())
}
