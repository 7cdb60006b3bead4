//! `transfer`: compares Pilotage with TLS over TCP, QUIC and plain TCP on this machine.

use std::process::ExitCode;

use clap::Parser;
use pilotage_benches::settings::Options;
use pilotage_benches::{Failure, runner};

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("transfer: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything was verified.
fn run(options: &Options) -> Result<bool, Failure> {
    if let Some(role) = options.role {
        runner::run_side(options, role)?;
        return Ok(true);
    }
    let report = runner::run_all(options)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(report.verified)
}
