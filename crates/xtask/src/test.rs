//! `cargo xtask test`: what tests need, all tests, one closing line.

use std::process::Command;

use clap::Args;

use crate::Failure;
use crate::process::{Listen, cargo, is_installed, is_root, output, program, skipped, succeeds, watch};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only this package (may be given several times); all of the workspace without it
    #[arg(short, long)]
    package: Vec<String>,
    /// Do not install anything, even as root
    #[arg(long)]
    no_install: bool,
    /// Build what the tests need, and run nothing
    #[arg(long)]
    no_run: bool,
    /// Only tests whose name contains this text
    filter: Option<String>,
}

/// A program that some tests call.
struct Need {
    program: &'static str,
    package: &'static str,
    purpose: &'static str,
}

const NEEDS: &[Need] = &[
    Need { program: "cc", package: "build-essential", purpose: "building aws-lc-rs" },
    Need { program: "ip", package: "iproute2", purpose: "tests in network namespaces" },
    Need { program: "nft", package: "nftables", purpose: "tests behind NATs" },
    Need { program: "ss", package: "iproute2", purpose: "tests that watch sockets" },
];

/// How many tests ended how.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Of those that passed: with the second try (`.config/nextest.toml`).
    flaky: u64,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.flaky += other.flaky;
    }
}

pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    install_needs(options)?;
    if options.no_run {
        return build(options);
    }
    let mut count = Count::default();
    let mut good = run_unit_and_integration(options, &mut count)?;
    good &= run_feature(options, &mut count)?;
    good &= run_doctests(options, &mut count)?;
    good &= run_replay(options, &mut count)?;
    if !good && count.failed == 0 {
        eprintln!("xtask: the tests did not build, or a runner stopped; see above");
    }
    if count.flaky > 0 {
        println!("{} passed only with their second try: see above for FLAKY", count.flaky);
    }
    println!("{} passed, {} failed, {} skipped", count.passed, count.failed, count.skipped);
    Ok(good && count.failed == 0 && count.passed > 0)
}

fn install_needs(options: &Options) -> Result<(), Failure> {
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| !is_installed(need.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    if !options.no_install && is_installed("apt-get") && is_root() {
        let mut install = program("apt-get");
        install.env("DEBIAN_FRONTEND", "noninteractive");
        install.args(["install", "-y", "--no-install-recommends"]).args(&packages);
        // A fresh image has no package lists yet: fetch them once, then try again.
        if succeeds(&mut install)?
            || (succeeds(program("apt-get").args(["update", "-q"]))? && succeeds(&mut install)?)
        {
            return Ok(());
        }
    }
    for need in missing.iter().filter(|need| !is_installed(need.program)) {
        skipped(&format!(
            "{}: `{}` is missing; as root: apt-get install -y {}",
            need.purpose, need.program, need.package
        ));
    }
    Ok(())
}

fn scope(options: &Options) -> Vec<String> {
    if options.package.is_empty() {
        return vec!["--workspace".to_owned()];
    }
    options.package.iter().flat_map(|name| ["--package".to_owned(), name.clone()]).collect()
}

/// Builds the programs that `run_unit_and_integration` runs, with the features that they have there.
fn build(options: &Options) -> Result<bool, Failure> {
    succeeds(build_command().args(scope(options)))
}

/// As `cargo test --no-run`, with the programs of packages that have no tests to run them.
fn build_command() -> Command {
    let mut command = cargo();
    command.args(["build", "--quiet", "--bins", "--tests", "--examples"]);
    command
}

/// Builds everything as the tests need it. Fewer packages at a time would have other features of what they share,
/// and most of it would be built twice.
pub(crate) fn build_all() -> Result<bool, Failure> {
    succeeds(build_command().arg("--workspace"))
}

/// Tests of what is off by default, with the program built once more: `pilotage --mainline` (decision 0046). The feature adds
/// nothing to any other package, so that those are not built again.
fn run_feature(options: &Options, count: &mut Count) -> Result<bool, Failure> {
    if !options.package.is_empty() && !options.package.iter().any(|name| name == "pilotage-cli") {
        return Ok(true);
    }
    let mut command = cargo();
    let nextest = output(cargo().args(["nextest", "--version"])).is_ok();
    match nextest {
        true => command.args(["nextest", "run", "--no-fail-fast", "--no-tests=pass"]),
        false => command.args(["test", "--no-fail-fast"]),
    };
    command.args(scope(options)).args(["--features", crate::checks::OPTIONAL, "--test", "mainline"]);
    command.args(&options.filter);
    let listen = if nextest { Listen::Err } else { Listen::Out };
    watch(&mut command, listen, |line| {
        count.add(if nextest { read_nextest(line) } else { read_libtest(line) }.unwrap_or_default());
    })
}

fn run_unit_and_integration(options: &Options, count: &mut Count) -> Result<bool, Failure> {
    let mut command = cargo();
    if output(cargo().args(["nextest", "--version"])).is_ok() {
        command.args(["nextest", "run", "--no-fail-fast", "--no-tests=pass"]).args(scope(options));
        command.args(&options.filter);
        return watch(&mut command, Listen::Err, |line| {
            if let Some(summary) = read_nextest(line) {
                count.add(summary);
            }
        });
    }
    command
        .args(["test", "--no-fail-fast", "--tests", "--examples"])
        .args(scope(options))
        .args(&options.filter);
    watch(&mut command, Listen::Out, |line| count.add(read_libtest(line).unwrap_or_default()))
}

fn run_doctests(options: &Options, count: &mut Count) -> Result<bool, Failure> {
    let mut command = cargo();
    command.args(["test", "--no-fail-fast", "--doc"]);
    if options.package.is_empty() {
        command.arg("--workspace");
    } else {
        // cargo refuses this for packages that are programs only.
        let libraries = crate::checks::libraries(&options.package)?;
        if libraries.is_empty() {
            return Ok(true);
        }
        command.args(libraries.iter().flat_map(|name| ["--package", name.as_str()]));
    }
    command.args(&options.filter);
    watch(&mut command, Listen::Out, |line| count.add(read_libtest(line).unwrap_or_default()))
}

/// Replays what fuzzing has kept (fuzz/tests/replay.rs). A workspace of its own, because its build of our crates has a
/// toy in place of the cryptography; the libFuzzer programs, which need more than a stable compiler, are left out.
fn run_replay(options: &Options, count: &mut Count) -> Result<bool, Failure> {
    if !options.package.is_empty() && !options.package.iter().any(|name| name == "pilotage-fuzz") {
        return Ok(true);
    }
    let mut command = cargo();
    command.args(["test", "--manifest-path", "fuzz/Cargo.toml", "--no-default-features", "--no-fail-fast"]);
    command.args(["--test", "replay"]).args(&options.filter);
    watch(&mut command, Listen::Out, |line| count.add(read_libtest(line).unwrap_or_default()))
}

/// Reads `     Summary [   0.5s] 12 tests run: 11 passed (1 slow), 1 failed, 2 skipped`.
fn read_nextest(line: &str) -> Option<Count> {
    let text = line.trim_start().strip_prefix("Summary [")?.split_once("run:")?.1;
    let mut count = Count::default();
    // What is in brackets says more of those that passed.
    for part in text.split([',', '(', ')']) {
        let mut words = part.split_whitespace();
        let (Some(number), Some(kind)) = (words.next().and_then(|n| n.parse::<u64>().ok()), words.next())
        else {
            continue;
        };
        match kind {
            "passed" => count.passed += number,
            "skipped" => count.skipped += number,
            "flaky" => count.flaky += number,
            "slow" | "leaky" => {}
            // "1 due to being flaky": counted as failed already.
            "due" => {}
            // failed, timed out, exec failed: all of them are failures.
            _ => count.failed += number,
        }
    }
    Some(count)
}

/// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; …`.
fn read_libtest(line: &str) -> Option<Count> {
    let text = line.trim_start().strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut count = Count::default();
    for part in text.split(';') {
        let mut words = part.split_whitespace();
        let (Some(number), Some(kind)) = (words.next().and_then(|n| n.parse::<u64>().ok()), words.next())
        else {
            continue;
        };
        match kind {
            "passed" => count.passed = number,
            "failed" => count.failed = number,
            "ignored" => count.skipped = number,
            _ => {}
        }
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_both_runners_are_read() {
        let nextest =
            "     Summary [   1.234s] 14 tests run: 11 passed (1 slow), 2 failed, 1 timed out, 3 skipped";
        let count = Count { passed: 11, failed: 3, skipped: 3, flaky: 0 };
        assert_eq!(read_nextest(nextest), Some(count));
        let flaky = "     Summary [   1.234s] 14 tests run: 11 passed (1 slow, 2 flaky), 3 failed (1 due to being flaky), 3 skipped";
        assert_eq!(read_nextest(flaky), Some(Count { flaky: 2, ..count }));
        let one = "     Summary [   0.004s] 1 test run: 1 passed, 0 skipped";
        assert_eq!(read_nextest(one), Some(Count { passed: 1, ..Count::default() }));
        let libtest = "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 9 filtered out; finished in 0.01s";
        assert_eq!(read_libtest(libtest), Some(Count { passed: 3, failed: 2, skipped: 1, flaky: 0 }));
        assert_eq!(read_nextest("        PASS [   0.004s] a::b"), None);
        assert_eq!(read_libtest("test a::b ... ok"), None);
    }
}
