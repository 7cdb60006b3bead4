//! `pilotage-sim`: runs seeds of the simulator, shows failures again, and soaks.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Fault points, and the audit of (key, nonce) pairs, are constants without them: the verdict would say less than it seems to.
    if !cfg!(debug_assertions) {
        eprintln!(
            "pilotage-sim: built without debug assertions, which it judges by: cargo run --profile sim --package pilotage-sim"
        );
        return ExitCode::FAILURE;
    }
    match cli::run(&cli::Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("pilotage-sim: {error}");
            ExitCode::FAILURE
        }
    }
}
