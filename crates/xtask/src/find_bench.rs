//! `cargo xtask find-bench`: how long searches by capability take among many agents, and how good the answers are.

use clap::Args;

use crate::Failure;
use crate::process::{cargo, succeeds};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Synthetic agents in the index
    #[arg(long, default_value_t = 190_000)]
    agents: u64,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    let mut command = cargo();
    command.args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "pilotage-discover",
        "--example",
        "find_bench",
        "--",
    ]);
    command.arg("--agents").arg(options.agents.to_string());
    if options.json {
        command.arg("--json");
    }
    succeeds(&mut command)
}
