//! `cargo xtask flood`: forged initiations of S1 on a node under load, over real sockets of the loopback.

use clap::Args;

use crate::Failure;
use crate::process::{cargo, succeeds};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds of each flood
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Forged initiations a second
    #[arg(long, default_value_t = 200_000)]
    rate: u64,
    /// Only these floods (wrong, one, forged; comma-separated)
    #[arg(long)]
    kinds: Option<String>,
    /// Print the figures as JSON on standard output
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    let mut flood = cargo();
    flood.args(["run", "--release", "--quiet", "-p", "pilotage", "--example", "flood", "--"]);
    flood.args(["--seconds", &options.seconds.to_string(), "--rate", &options.rate.to_string()]);
    if let Some(kinds) = &options.kinds {
        flood.args(["--kinds", kinds]);
    }
    if options.json {
        flood.arg("--json");
    }
    succeeds(&mut flood)
}
