//! `cargo xtask check`: every mechanical check, each with a name, all run even if one fails.

mod licence;
mod readme;
mod sans_io;
mod source;
mod tidy;
mod trace;

use clap::Args;

use crate::Failure;
use crate::process::{cargo, root, skipped, succeeds};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these checks (comma-separated)
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Let `tidy` write the present lengths as the new bounds, and `trace` drop fulfilled `not yet`s
    #[arg(long)]
    bless: bool,
}

/// How a check ended.
enum Outcome {
    Passed(String),
    Failed(Vec<String>),
    Skipped(String),
}

/// What is off by default. Only the program itself has it.
pub(crate) const OPTIONAL: &str = "pilotage-cli/mainline";

type Check = fn(&Options) -> Result<Outcome, Failure>;

const CHECKS: &[(&str, Check)] = &[
    ("tidy", |options| tidy::run(options.bless)),
    ("trace", |options| trace::run(options.bless)),
    ("sans-io", |_| sans_io::run()),
    ("licences", |_| licence::run()),
    ("deny", |_| licence::run_cargo_deny()),
    ("fmt", |_| tool(&mut cargo(), &["fmt", "--all", "--", "--check"])),
    ("clippy", |_| tool(&mut cargo(), &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])),
    ("clippy-optional", |_| {
        let scope = ["clippy", "--workspace", "--bins", "--features", OPTIONAL, "--test", "mainline"];
        tool(&mut cargo(), &[&scope[..], &["--", "-D", "warnings"]].concat())
    }),
    ("docs", |_| {
        let mut command = cargo();
        command.env("RUSTDOCFLAGS", "-D warnings");
        tool(&mut command, &["doc", "--workspace", "--no-deps"])
    }),
    ("wasm", |_| sans_io::run_wasm()),
    ("readme", |_| readme::run()),
];

pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    if let Some(unknown) = options.only.iter().find(|name| !CHECKS.iter().any(|(known, _)| known == name)) {
        let known: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
        return Err(format!("check: no check is named `{unknown}`; there are {}", known.join(", ")).into());
    }
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        if !options.only.is_empty() && !options.only.iter().any(|wanted| wanted == name) {
            continue;
        }
        match check(options)? {
            Outcome::Passed(text) => eprintln!("check {name}: ok {text}"),
            Outcome::Skipped(why) => skipped(&format!("check {name}: {why}")),
            Outcome::Failed(problems) => {
                for problem in &problems {
                    eprintln!("check {name}: {problem}");
                }
                failed.push(*name);
            }
        }
    }
    if failed.is_empty() {
        eprintln!("check: all passed");
    } else {
        eprintln!("check: FAILED: {}", failed.join(", "));
    }
    Ok(failed.is_empty())
}

fn tool(command: &mut std::process::Command, arguments: &[&str]) -> Result<Outcome, Failure> {
    Ok(if succeeds(command.args(arguments))? {
        Outcome::Passed(String::new())
    } else {
        Outcome::Failed(vec![format!("`cargo {}` failed, see above", arguments.join(" "))])
    })
}

/// Those of these packages that have a library.
pub(crate) fn libraries(names: &[String]) -> Result<Vec<String>, Failure> {
    let is_library = |target: &licence::Target| target.kind.iter().any(|kind| kind == "lib");
    let packages = licence::metadata()?.packages.into_iter();
    let wanted = packages.filter(|p| names.contains(&p.name) && p.targets.iter().any(is_library));
    Ok(wanted.map(|package| package.name).collect())
}

/// Passed with a text, or failed with problems if there are any.
fn verdict(problems: Vec<String>, text: String) -> Outcome {
    if problems.is_empty() { Outcome::Passed(text) } else { Outcome::Failed(problems) }
}

/// The path from the root, with forward slashes.
fn shown(path: &std::path::Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().replace('\\', "/")
}
