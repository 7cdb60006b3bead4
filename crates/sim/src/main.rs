//! `pilotage-sim`: runs seeds of the simulator, shows failures again, and soaks.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::run(&cli::Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("pilotage-sim: {error}");
            ExitCode::FAILURE
        }
    }
}
