//! `cargo xtask natlab`: the `pilotage` command behind every pair of NATs, in network namespaces.

use std::path::PathBuf;
use std::process::Command;

use clap::Args;

use crate::Failure;
use crate::process::{cargo, root, skipped, succeeds, target_folder};

/// What `natlab` returns where it cannot run (no root, no TUN device, no nftables).
const CANNOT_RUN: i32 = 77;
/// Where the table stands.
const TABLE: &str = "interop/NAT.md";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A dozen pairs and short scenarios: shows in two minutes that everything works
    #[arg(long)]
    quick: bool,
    /// Only these ordered pairs, such as `none:full-cone,mapped:*` (`×` serves as `:`); `none`: no pairs
    #[arg(long, value_delimiter = ',')]
    pairs: Vec<String>,
    /// Only scenarios whose names begin so, such as `roaming,NAT`; `none`: no scenarios
    #[arg(long, value_delimiter = ',')]
    scenarios: Vec<String>,
    /// Every pair this often
    #[arg(long)]
    repeats: Option<u32>,
    /// Pairs at a time
    #[arg(long)]
    jobs: Option<u32>,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
    /// Write interop/NAT.md
    #[arg(long)]
    write: bool,
    /// Keep states and logs of the programs
    #[arg(long)]
    keep: bool,
    /// Classify the NATs and end
    #[arg(long)]
    selftest: bool,
}

pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    let binary = match std::env::var_os("PILOTAGE_BIN") {
        Some(path) => Some(PathBuf::from(path)),
        // The self-test runs no node.
        None if options.selftest => None,
        None => Some(build()?),
    };
    let mut command = cargo();
    command.args(["run", "--quiet", "--release", "--package", "pilotage-lab", "--bin", "natlab", "--"]);
    if let Some(binary) = binary {
        command.arg("--binary").arg(binary);
    }
    command.arg("--command").arg(own_command());
    let flags = [
        ("--quick", options.quick),
        ("--json", options.json),
        ("--keep", options.keep),
        ("--selftest", options.selftest),
    ];
    command.args(flags.iter().filter(|(_, wanted)| *wanted).map(|(name, _)| name));
    for (name, values) in [("--pairs", &options.pairs), ("--scenarios", &options.scenarios)] {
        if !values.is_empty() {
            command.args([name, &values.join(",")]);
        }
    }
    for (name, value) in [("--repeats", options.repeats), ("--jobs", options.jobs)] {
        command.args(value.iter().flat_map(|value| [name.to_owned(), value.to_string()]));
    }
    if options.write {
        command.arg("--write").arg(root().join(TABLE));
    }
    watched(&mut command)
}

/// Its Ctrl-C goes to the program as well, which takes its namespaces away; its exit code says what came of it.
fn watched(command: &mut Command) -> Result<bool, Failure> {
    let status = command.status()?;
    if status.code() == Some(CANNOT_RUN) {
        skipped("NATs in namespaces: they need root, /dev/net/tun and nftables");
        return Ok(true);
    }
    Ok(status.success())
}

/// The program under test, as users build it.
fn build() -> Result<PathBuf, Failure> {
    if !succeeds(cargo().args(["build", "--release", "--package", "pilotage-cli"]))? {
        return Err("pilotage does not build".into());
    }
    Ok(target_folder()?.join("release/pilotage"))
}

/// This command as it was typed, for the table.
fn own_command() -> String {
    let mut words = vec!["cargo".to_owned(), "xtask".to_owned()];
    words.extend(std::env::args().skip(1));
    words.join(" ")
}
