//! `cargo xtask bench`: the transport comparison and the micro benches.

use clap::Args;

use crate::Failure;
use crate::process::{cargo, succeeds};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Run the micro benches (criterion) instead of the transport comparison
    #[arg(long)]
    micro: bool,
    /// Passed on, such as `--size 1GiB --repeats 5 --only pilotage,tls,quinn --json`
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    let mut command = cargo();
    if options.micro {
        command.args(["bench", "--package", "pilotage-benches", "--benches", "--"]);
    } else {
        command.args(["run", "--release", "--package", "pilotage-benches", "--bin", "transfer", "--"]);
    }
    succeeds(command.args(&options.arguments))
}
