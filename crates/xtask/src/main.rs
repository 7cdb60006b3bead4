//! `cargo xtask …`: the tasks of this repository. CI runs nothing that is not here.
//!
//! * `test`: installs what tests need where it can, runs every test, ends with one countable line
//! * `check`: everything mechanical: format, lints, documentation, sans-IO, licences, tidiness, traceability
//! * `fuzz`: a short run of every fuzz target
//! * `coverage`: which lines of the sans-IO crates the tests run
//! * `mutants`: whether the tests notice mistakes that are made on purpose
//! * `bench`: the transport comparison, or the micro benches
//! * `find-bench`: searches by capability among many agents
//! * `natlab`: the command behind every pair of NATs
//! * `registry-bench`: load on a registry of one process
//! * `flood`: forged initiations of S1 on a node under load
//! * `registry-chaos`: a registry of three processes that are killed, frozen and cut off
//!
//! A task that cannot run says so loudly (`SKIPPED: …`) and never counts as passed.

mod bench;
mod chaos;
mod checks;
mod coverage;
mod find_bench;
mod flood;
mod fuzz;
mod mutants;
mod natlab;
mod process;
mod registry_bench;
mod test;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Why a task ended early; the text names the stage and the next step.
type Failure = Box<dyn std::error::Error>;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Tasks of this repository", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what tests need where possible, run all tests, end with `N passed, N failed, N skipped`
    Test(test::Options),
    /// Format, lints, documentation, sans-IO rules, licences, file and function length, README, traceability
    Check(checks::Options),
    /// Run every fuzz target for a short time (needs a nightly toolchain and cargo-fuzz)
    Fuzz(fuzz::Options),
    /// Lines of wire, nat and proto that the tests run (needs the llvm-tools component)
    Coverage(coverage::Options),
    /// Put plausible mistakes into a copy of the code, one at a time: the tests must notice them
    Mutants(mutants::Options),
    /// Compare with TLS over TCP, QUIC and TCP, or run the micro benches
    Bench(bench::Options),
    /// Search by capability among 190,000 synthetic agents, hold the times and the answers against their goals
    FindBench(find_bench::Options),
    /// Run the command behind every pair of NATs, in network namespaces (root); `--write` makes interop/NAT.md
    Natlab(natlab::Options),
    /// Registrations, look-ups, memory and start time of a registry of one process
    RegistryBench(registry_bench::Options),
    /// Forged initiations of S1 on a node under load: flows, handshakes and memory against the goals
    Flood(flood::Options),
    /// Kill, freeze and cut off the nodes of a registry of three processes; a checker reads what its clients saw
    RegistryChaos(chaos::Options),
}

fn main() -> ExitCode {
    // cargo calls this program in the compiler's place while coverage is measured.
    if let Some(code) = coverage::as_compiler() {
        return code;
    }
    let outcome = match Arguments::parse().task {
        Task::Test(options) => test::run(&options),
        Task::Check(options) => checks::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Coverage(options) => coverage::run(&options),
        Task::Mutants(options) => mutants::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::FindBench(options) => find_bench::run(&options),
        Task::Natlab(options) => natlab::run(&options),
        Task::RegistryBench(options) => registry_bench::run(&options),
        Task::Flood(options) => flood::run(&options),
        Task::RegistryChaos(options) => chaos::run(&options),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Names of all tasks, for the check of README commands.
fn task_names() -> Vec<String> {
    Arguments::command().get_subcommands().map(|c| c.get_name().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
