//! `cargo xtask fuzz`: a short run of every fuzz target.

use std::process::Command;

use clap::Args;

use crate::Failure;
use crate::process::{cargo, output, program, root, skipped, succeeds};

/// Where tools that only CI needs are built.
const TOOLS: &str = "target/tools";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds for each target
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Only this target
    #[arg(long)]
    target: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    let targets: Vec<String> = targets()?
        .into_iter()
        .filter(|name| options.target.as_ref().is_none_or(|wanted| wanted == name))
        .collect();
    if targets.is_empty() {
        return Err("fuzz: no such target in fuzz/Cargo.toml".into());
    }
    if output(program("rustup").args(["run", "nightly", "rustc", "--version"])).is_err() {
        skipped(&format!(
            "{} fuzz targets: install a nightly toolchain with `rustup toolchain install nightly`",
            targets.len()
        ));
        return Ok(true);
    }
    if !has_cargo_fuzz()? {
        skipped(&format!(
            "{} fuzz targets: install cargo-fuzz with `cargo install cargo-fuzz`",
            targets.len()
        ));
        return Ok(true);
    }
    // Seeds made from spec/vectors: each run begins with replaying them.
    if !succeeds(cargo().current_dir(root().join("fuzz")).args(["run", "--quiet", "--example", "seeds"]))? {
        return Err("fuzz: the seeds could not be made".into());
    }
    let mut failed = Vec::new();
    for target in &targets {
        let mut command = with_tools(program("cargo"));
        command.args(["+nightly", "fuzz", "run", target, "--"]);
        command
            .arg(format!("-max_total_time={}", options.seconds))
            .args(["-rss_limit_mb=1024", "-timeout=10"]);
        if !succeeds(&mut command)? {
            failed.push(target.as_str());
        }
    }
    if failed.is_empty() {
        eprintln!("fuzz: {} targets, {} s each, nothing found", targets.len(), options.seconds);
    } else {
        eprintln!("fuzz: FAILED: {} (inputs are in fuzz/artifacts)", failed.join(", "));
    }
    Ok(failed.is_empty())
}

/// Whether cargo-fuzz can be called. In CI it is built into target/tools if it is missing, so that the fuzz
/// targets run there too; on a developer's machine nothing is installed unasked.
fn has_cargo_fuzz() -> Result<bool, Failure> {
    let there = || output(with_tools(program("cargo")).args(["fuzz", "--version"])).is_ok();
    if there() {
        return Ok(true);
    }
    if std::env::var_os("CI").is_none() {
        return Ok(false);
    }
    eprintln!("fuzz: building cargo-fuzz into target/tools");
    let root_flag = root().join(TOOLS);
    let built =
        succeeds(cargo().args(["install", "--quiet", "--locked", "cargo-fuzz", "--root"]).arg(root_flag))?;
    Ok(built && there())
}

/// Finds what was installed below target/tools.
fn with_tools(mut command: Command) -> Command {
    let mut paths = vec![root().join(TOOLS).join("bin")];
    if let Some(path) = std::env::var_os("PATH") {
        paths.extend(std::env::split_paths(&path));
    }
    if let Ok(joined) = std::env::join_paths(paths) {
        command.env("PATH", joined);
    }
    command
}

/// Names of the binaries in fuzz/Cargo.toml.
fn targets() -> Result<Vec<String>, Failure> {
    let path = root().join("fuzz/Cargo.toml");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("fuzz: fuzz/Cargo.toml: {e}"))?;
    Ok(read_targets(&text))
}

fn read_targets(manifest: &str) -> Vec<String> {
    let mut in_bin = false;
    let mut names = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            in_bin = line == "[[bin]]";
        } else if let Some(value) = line.strip_prefix("name").filter(|_| in_bin) {
            names.push(value.trim_matches(|c: char| c == '=' || c == '"' || c.is_whitespace()).to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    #[test]
    fn targets_are_the_binaries_only() {
        let manifest =
            "[package]\nname = \"x\"\n[[bin]]\nname = \"frame\"\npath = \"a\"\n\n[[bin]]\nname=\"sack\"\n";
        assert_eq!(super::read_targets(manifest), ["frame", "sack"]);
    }
}
