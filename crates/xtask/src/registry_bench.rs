//! `cargo xtask registry-bench`: load on a registry of one process.

use clap::Args;

use crate::Failure;
use crate::process::{cargo, succeeds};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// All of it: 190,000 agents and 10 seconds a step, instead of 20,000 and 3
    #[arg(long)]
    full: bool,
    /// Print the figures as JSON on standard output
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    let mut load = cargo();
    load.args(["run", "--release", "--quiet", "-p", "pilotage-registry", "--example", "load", "--"]);
    if !options.full {
        load.arg("--quick");
    }
    if options.json {
        load.arg("--json");
    }
    succeeds(&mut load)
}
