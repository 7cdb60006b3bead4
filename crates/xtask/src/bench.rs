//! `cargo xtask bench`: every transport on the same work, on loopback and over emulated links, in one report; or the micro
//! benches.

mod micro;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use crate::Failure;
use crate::process::{cargo, root, skipped, succeeds, target_folder};

/// What `links` returns where it cannot run (no root, no TUN device).
const CANNOT_RUN: i32 = 77;
/// Chooses no work, or no links.
const NONE: &str = "none";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Small amounts and one repeat: shows in a minute that everything works
    #[arg(long)]
    quick: bool,
    /// Only these subjects on loopback, such as `pilotage,quinn-tuned,tls` (`transfer --help` names them)
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Only these works on loopback, such as `bulk-1,request-64`; `none`: no loopback
    #[arg(long, value_delimiter = ',')]
    work: Vec<String>,
    /// Only these emulated links (`links --help` names them); `none`: no links. They need root
    #[arg(long, value_delimiter = ',')]
    links: Vec<String>,
    /// Only these peers on the links, such as `pilotage-bbr,tcp-cubic`
    #[arg(long, value_delimiter = ',')]
    link_peers: Vec<String>,
    /// Repeats, interleaved
    #[arg(long)]
    repeats: Option<u32>,
    /// Raise the priority of this session, so that other work disturbs less (as root)
    #[arg(long)]
    boost: bool,
    /// Write benches/RESULTS.md, benches/results.json and benches/plots (with --micro: benches/MICRO.md)
    #[arg(long)]
    write: bool,
    #[command(flatten)]
    micro: micro::Micro,
    /// Passed on to `transfer` (with --micro: to criterion), such as `--size 256MiB`
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    if options.micro.wanted() {
        return micro::run(&options.micro, options.write, &options.arguments);
    }
    let folder = folder()?;
    let mut files = Vec::new();
    let mut good = true;
    if !is_none(&options.work) {
        let file = folder.join("loopback.jsonl");
        good &= loopback(options, &file)?;
        files.push(file);
    }
    if !is_none(&options.links) {
        let file = folder.join("links.jsonl");
        good &= links(options, &file)?;
        files.push(file);
    }
    files.retain(|file| std::fs::metadata(file).is_ok_and(|data| data.len() > 0));
    if files.is_empty() {
        return Err("nothing was measured".into());
    }
    good &= report(options, &files)?;
    Ok(good)
}

/// Where the raw records stay until the next run.
fn folder() -> Result<PathBuf, Failure> {
    let folder = target_folder()?.join("bench-records");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn is_none(list: &[String]) -> bool {
    list.iter().any(|name| name == NONE)
}

/// A program of the package, to be run where it was built.
fn program(name: &str) -> Command {
    let mut command = cargo();
    command.args(["run", "--release", "--package", "pilotage-benches", "--bin", name, "--"]);
    command
}

fn list(command: &mut Command, name: &str, values: &[String]) {
    if !values.is_empty() {
        command.args([name, &values.join(",")]);
    }
}

fn loopback(options: &Options, records: &Path) -> Result<bool, Failure> {
    let mut command = program("transfer");
    for (name, wanted) in [("--quick", options.quick), ("--boost", options.boost)] {
        if wanted {
            command.arg(name);
        }
    }
    list(&mut command, "--only", &options.peers);
    list(&mut command, "--work", &options.work);
    if let Some(repeats) = options.repeats {
        command.args(["--repeats", &repeats.to_string()]);
    }
    command.arg("--records").arg(records).args(&options.arguments);
    // The report comes at the end, over everything.
    succeeds(command.stdout(std::process::Stdio::null()))
}

fn links(options: &Options, records: &Path) -> Result<bool, Failure> {
    if !root().join("benches/src/bin/links.rs").exists() {
        skipped("emulated links: this tree has no program `links`");
        return Ok(true);
    }
    let mut command = program("links");
    command.arg("--json");
    if options.quick {
        command.arg("--quick");
    }
    list(&mut command, "--links", &options.links);
    list(&mut command, "--peers", &options.link_peers);
    if let Some(repeats) = options.repeats {
        command.args(["--repeats", &repeats.to_string()]);
    }
    let status = command.stdout(File::create(records)?).status()?;
    if status.code() == Some(CANNOT_RUN) {
        skipped("emulated links: they need root and /dev/net/tun");
        return Ok(true);
    }
    Ok(status.success())
}

fn report(options: &Options, files: &[PathBuf]) -> Result<bool, Failure> {
    let mut command = program("transfer");
    for file in files {
        command.arg("--report").arg(file);
    }
    command.arg("--command").arg(own_command());
    if options.write {
        command.arg("--write").arg(root().join("benches"));
    }
    succeeds(&mut command)
}

/// This command as it was typed, for the report.
fn own_command() -> String {
    let mut words = vec!["cargo".to_owned(), "xtask".to_owned()];
    words.extend(std::env::args().skip(1));
    words.join(" ")
}
