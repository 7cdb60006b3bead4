//! `transfer`: compares Pilotage with QUIC, TLS over TCP and plain TCP on this machine.

use std::process::ExitCode;

use clap::Parser;
use pilotage_benches::report::Report;
use pilotage_benches::settings::Options;
use pilotage_benches::{Failure, record, runner, side};

fn main() -> ExitCode {
    match run(&Options::parse().resolved()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("transfer: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether nothing failed.
fn run(options: &Options) -> Result<bool, Failure> {
    if let Some(role) = options.role {
        side::run(options, role)?;
        return Ok(true);
    }
    let records = if options.report.is_empty() {
        runner::run_all(options)?
    } else {
        let files: Result<Vec<_>, _> = options.report.iter().map(|path| record::read_file(path)).collect();
        files?.into_iter().flatten().collect()
    };
    let report = Report::new(records);
    if let Some(folder) = &options.write {
        report.write(options, folder)?;
    }
    if options.json {
        let mut out = std::io::stdout().lock();
        for record in &report.records {
            record.write_line(&mut out)?;
        }
    } else {
        print!("{report}");
    }
    Ok(report.is_complete())
}
