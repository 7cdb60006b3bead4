//! `cargo xtask bench`: the transport comparison and the micro benches.

mod micro;

use clap::Args;

use crate::Failure;
use crate::process::{cargo, succeeds};

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    micro: micro::Micro,
    /// With --micro: write benches/MICRO.md
    #[arg(long)]
    write: bool,
    /// Passed on, such as `--size 1GiB --repeats 5 --only pilotage,tls,quinn --json`
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    if options.micro.wanted() {
        return micro::run(&options.micro, options.write, &options.arguments);
    }
    let mut command = cargo();
    command.args(["run", "--release", "--package", "pilotage-benches", "--bin", "transfer", "--"]);
    succeeds(command.args(&options.arguments))
}
