//! Licences of everything that we link, read from `cargo metadata`; works offline.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Outcome, verdict};
use crate::Failure;
use crate::process::{cargo, output, program, root, succeeds};

/// SPDX identifiers that we may link and pass on.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];
/// Exceptions (`WITH …`) that only widen what a licence allows.
const EXCEPTIONS: &[&str] = &["LLVM-exception"];

#[derive(Debug, Deserialize)]
pub(super) struct Metadata {
    pub(super) packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Package {
    pub(super) name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    pub(super) targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) kind: Vec<String>,
}

/// The resolved tree for this platform, without the network where that is possible.
pub(super) fn metadata() -> Result<Metadata, Failure> {
    let version = output(program("rustc").arg("-vV"))?;
    let host =
        version.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc -vV names no host")?;
    let arguments = ["metadata", "--format-version", "1", "--filter-platform", host];
    let text = match output(cargo().args(arguments).arg("--offline")) {
        Ok(text) => text,
        Err(_) => output(cargo().args(arguments))?,
    };
    Ok(serde_json::from_str(&text)?)
}

pub(super) fn run() -> Result<Outcome, Failure> {
    let mut problems = Vec::new();
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for package in metadata()?.packages {
        if package.source.as_deref().is_some_and(|source| !source.starts_with("registry+")) {
            problems
                .push(format!("{} {}: comes from outside of the registry", package.name, package.version));
        }
        let Some(licence) = &package.license else {
            problems.push(format!("{} {}: names no licence", package.name, package.version));
            continue;
        };
        *count.entry(licence.clone()).or_default() += 1;
        match is_allowed(licence) {
            Ok(true) => {}
            Ok(false) => {
                problems.push(format!("{} {}: `{licence}` is not allowed", package.name, package.version));
            }
            Err(error) => problems.push(format!("{} {}: {error}", package.name, package.version)),
        }
    }
    Ok(verdict(
        problems,
        format!("({} packages, {} expressions)", count.values().sum::<usize>(), count.len()),
    ))
}

/// cargo-deny with the configuration in `.cargo/deny.toml`, where it is installed; advisories where their
/// database is on this machine.
pub(super) fn run_cargo_deny() -> Result<Outcome, Failure> {
    if output(cargo().args(["deny", "--version"])).is_err() {
        return Ok(Outcome::Skipped(
            "advisories: cargo-deny is not installed (`cargo install cargo-deny`); licences were checked above"
                .into(),
        ));
    }
    let config = root().join(".cargo/deny.toml");
    let mut command = cargo();
    command
        .args(["deny", "--offline", "check", "--config"])
        .arg(&config)
        .args(["bans", "licenses", "sources"]);
    if !succeeds(&mut command)? {
        return Ok(Outcome::Failed(vec!["cargo deny found something, see above".into()]));
    }
    let database = std::env::var_os("CARGO_HOME")
        .map(std::path::PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
        .map(|cargo_home| cargo_home.join("advisory-dbs"));
    if !database.is_some_and(|path| path.is_dir()) {
        return Ok(Outcome::Skipped("advisories: no database here; fetch it with `cargo deny fetch`".into()));
    }
    let mut command = cargo();
    command.args(["deny", "--offline", "check", "--config"]).arg(&config).arg("advisories");
    let problems =
        if succeeds(&mut command)? { Vec::new() } else { vec!["advisories found, see above".into()] };
    Ok(verdict(problems, String::new()))
}

/// Whether an SPDX expression can be satisfied with what we allow.
fn is_allowed(expression: &str) -> Result<bool, String> {
    // Old manifests write `MIT/Apache-2.0` for OR.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let allowed = any_of(&words, &mut at)?;
    if at == words.len() { Ok(allowed) } else { Err(format!("licence `{expression}` cannot be read")) }
}

fn any_of(words: &[&str], at: &mut usize) -> Result<bool, String> {
    let mut allowed = all_of(words, at)?;
    while words.get(*at).is_some_and(|word| *word == "OR") {
        *at += 1;
        allowed |= all_of(words, at)?;
    }
    Ok(allowed)
}

fn all_of(words: &[&str], at: &mut usize) -> Result<bool, String> {
    let mut allowed = one(words, at)?;
    while words.get(*at).is_some_and(|word| *word == "AND") {
        *at += 1;
        allowed &= one(words, at)?;
    }
    Ok(allowed)
}

fn one(words: &[&str], at: &mut usize) -> Result<bool, String> {
    let word = *words.get(*at).ok_or("licence expression ends early")?;
    *at += 1;
    if word == "(" {
        let allowed = any_of(words, at)?;
        if words.get(*at) != Some(&")") {
            return Err("licence expression: closing bracket missing".into());
        }
        *at += 1;
        return Ok(allowed);
    }
    let mut allowed = ALLOWED.contains(&word);
    if words.get(*at) == Some(&"WITH") {
        let exception = words.get(*at + 1).ok_or("licence expression ends early")?;
        allowed &= EXCEPTIONS.contains(exception);
        *at += 2;
    }
    Ok(allowed)
}

#[cfg(test)]
mod tests {
    use super::is_allowed;

    #[test]
    fn spdx_expressions_are_evaluated() {
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0-only OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0-only",
            "ISC AND (Apache-2.0 OR ISC) AND Apache-2.0 AND MIT",
        ] {
            assert_eq!(is_allowed(good), Ok(true), "{good}");
        }
        for bad in
            ["GPL-3.0-only", "MIT AND AGPL-3.0-only", "(GPL-2.0-only OR AGPL-3.0-only)", "Apache-2.0 WITH x"]
        {
            assert_eq!(is_allowed(bad), Ok(false), "{bad}");
        }
        for broken in ["", "MIT MIT", "(MIT", "MIT AND", "MIT WITH"] {
            assert!(is_allowed(broken).is_err(), "{broken}");
        }
    }
}
