//! `links`: transports over emulated links.

use std::process::ExitCode;

use clap::Parser;
use pilotage_benches::links::{Options, run};
use pilotage_lab::LabError;

/// Exit code of a run that was skipped.
const SKIPPED: u8 = 77;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => match error.downcast_ref::<LabError>() {
            Some(LabError::Unavailable(_)) => {
                eprintln!("links: SKIPPED: {error}");
                ExitCode::from(SKIPPED)
            }
            _ => {
                eprintln!("links: {error}");
                ExitCode::FAILURE
            }
        },
    }
}
