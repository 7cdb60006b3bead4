//! `cargo xtask fuzz`: a short run of every fuzz target.

use clap::Args;

use crate::Failure;
use crate::process::{cargo, output, program, root, skipped, succeeds};

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
    if output(cargo().args(["fuzz", "--version"])).is_err() {
        skipped(&format!(
            "{} fuzz targets: install cargo-fuzz with `cargo install cargo-fuzz`",
            targets.len()
        ));
        return Ok(true);
    }
    if output(program("rustup").args(["run", "nightly", "rustc", "--version"])).is_err() {
        skipped(&format!(
            "{} fuzz targets: install a nightly toolchain with `rustup toolchain install nightly`",
            targets.len()
        ));
        return Ok(true);
    }
    let mut failed = Vec::new();
    for target in &targets {
        let mut command = program("cargo");
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
