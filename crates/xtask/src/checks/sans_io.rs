//! The pure crates read no clock, socket, file or ambient randomness.
//!
//! Each pure crate has a `clippy.toml` that forbids those calls; clippy runs in the check of that name.
//! Here: nobody switched the lint off outside of tests, the configurations are all there and equal, and the
//! registry's engine (a module of a crate that otherwise may do IO) passes a check of its source text.

use std::path::{Path, PathBuf};

use super::source::{code_only, read, rust_files};
use super::{Outcome, shown, verdict};
use crate::Failure;
use crate::process::{cargo, output, program, root, succeeds};

const PURE_CRATES: &[&str] = &["wire", "nat", "proto", "discover"];
const ENGINE: &str = "crates/registry/src/engine";
const LINTS: &[&str] = &["clippy::disallowed_methods", "clippy::disallowed_types"];
const WASM: &str = "wasm32-unknown-unknown";

/// What may not stand in the registry's engine.
const FORBIDDEN: &[&str] = &[
    "Instant::now",
    "SystemTime::now",
    ".elapsed()",
    "std::net::Udp",
    "std::net::Tcp",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "thread::",
    "std::fs",
    "File::",
    "getrandom",
    "Mutex",
    "RwLock",
    "mpsc",
    "mio::",
    "redb::",
    "socket2::",
];

pub(super) fn run() -> Result<Outcome, Failure> {
    let mut problems = Vec::new();
    let mut rules = Vec::new();
    for name in PURE_CRATES {
        let path = root().join("crates").join(name).join("clippy.toml");
        match read(&path) {
            Ok(text) => rules.push((shown(&path), text)),
            Err(error) => problems.push(error.to_string()),
        }
    }
    if let Some((first, text)) = rules.first() {
        for (other, _) in rules.iter().filter(|(_, other)| other != text) {
            problems.push(format!("{other} differs from {first}: the sans-IO rules are one set"));
        }
    }
    let (pure, engine): (Vec<PathBuf>, Vec<PathBuf>) = rust_files()?
        .into_iter()
        .filter(|path| is_pure(&shown(path)) || is_engine(&shown(path)))
        .partition(|path| is_pure(&shown(path)));
    for path in &pure {
        problems.extend(switched_off(path, &read(path)?));
    }
    for path in &engine {
        problems.extend(forbidden_in_engine(path, &read(path)?));
    }
    if engine.is_empty() {
        problems.push(format!("{ENGINE}: the registry has no engine module to look at"));
    }
    Ok(verdict(problems, format!("({} pure files, {} engine files)", pure.len(), engine.len())))
}

fn is_pure(name: &str) -> bool {
    PURE_CRATES.iter().any(|pure| name.starts_with(&format!("crates/{pure}/src/"))) && !is_test_file(name)
}

fn is_engine(name: &str) -> bool {
    (name.starts_with(&format!("{ENGINE}/")) || name == format!("{ENGINE}.rs")) && !is_test_file(name)
}

/// A file that is only compiled for tests.
fn is_test_file(name: &str) -> bool {
    name.ends_with("/tests.rs") || name.contains("/tests/") || name.ends_with("_tests.rs")
}

/// The code without the items that stand behind `#[cfg(test)]`; line breaks stay where they are.
fn without_tests(code: &str) -> String {
    let mut kept = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        let (before, item) = rest.split_at(at);
        let end = item_end(item);
        kept.push_str(before);
        kept.extend(item[..end].chars().filter(|c| *c == '\n'));
        rest = &item[end..];
    }
    kept + rest
}

/// Where the item ends that begins here: behind its semicolon or its closing brace.
fn item_end(item: &str) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in item.bytes().enumerate() {
        match byte {
            b';' if depth == 0 => return at + 1,
            b'{' => depth += 1,
            b'}' if depth <= 1 => return at + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    item.len()
}

fn switched_off(path: &Path, text: &str) -> Vec<String> {
    let code = without_tests(&code_only(text));
    LINTS
        .iter()
        .filter(|lint| code.contains(**lint))
        .map(|lint| format!("{}: `{lint}` is switched off outside of tests", shown(path)))
        .collect()
}

fn forbidden_in_engine(path: &Path, text: &str) -> Vec<String> {
    let code = without_tests(&code_only(text));
    let mut problems = Vec::new();
    for (number, line) in code.lines().enumerate() {
        for word in FORBIDDEN.iter().filter(|word| line.contains(**word)) {
            problems.push(format!("{}:{}: `{word}` in a sans-IO module", shown(path), number + 1));
        }
    }
    problems
}

/// Builds the pure crates for a target that has no clock, socket or file at all.
pub(super) fn run_wasm() -> Result<Outcome, Failure> {
    let sysroot = output(program("rustc").args(["--print", "sysroot"]))?;
    if !Path::new(sysroot.trim()).join("lib/rustlib").join(WASM).is_dir() {
        return Ok(Outcome::Skipped(format!("the target is missing: `rustup target add {WASM}`")));
    }
    let mut command = cargo();
    command.args(["build", "--target", WASM, "--no-default-features", "--features", "pilotage-wire/default"]);
    command.args(["--package", "pilotage-wire", "--package", "pilotage-nat", "--package", "pilotage-proto"]);
    // Nothing of it is run, so nothing is optimised.
    command.args([
        "--config",
        "profile.dev.opt-level=0",
        "--config",
        "profile.dev.package.\"*\".opt-level=0",
    ]);
    let problem = format!("wire, nat and proto do not build for {WASM}");
    Ok(verdict(if succeeds(&mut command)? { Vec::new() } else { vec![problem] }, String::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_may_name_a_clock_only_in_tests_and_comments() {
        let path = Path::new("engine.rs");
        let good = "// Instant::now\nfn a() {}\n#[cfg(test)]\nmod tests { fn b() { Instant::now(); } }";
        assert!(forbidden_in_engine(path, good).is_empty());
        assert_eq!(forbidden_in_engine(path, "fn a() { Instant::now(); }").len(), 1);
        let behind = "#[cfg(test)]\nmod tests;\nfn a() { Instant::now(); }";
        assert_eq!(forbidden_in_engine(path, behind).len(), 1, "code behind a test module is looked at");
    }

    #[test]
    fn switching_the_lint_off_is_seen_outside_of_tests_only() {
        let path = Path::new("lib.rs");
        assert_eq!(switched_off(path, "#![allow(clippy::disallowed_methods)]").len(), 1);
        assert!(
            switched_off(path, "#[cfg(test)]\n#[allow(clippy::disallowed_methods)]\nmod tests {}").is_empty()
        );
    }
}
