//! `cargo xtask bench --micro`: what the parts of the stack cost, in nanoseconds (criterion) and instructions (valgrind).
//!
//! Instructions are the difference between running a workload `n` and `2n` times, so what setting it up costs is not in
//! them. They do not depend on what else the machine does, but on the instructions that valgrind knows: a library that
//! chooses by processor takes its AVX2 code there, not AVX-512.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde_json::Value;

use crate::Failure;
use crate::process::{cargo, is_installed, output, program, root, skipped, succeeds, target_folder};

#[derive(Debug, Args)]
pub(crate) struct Micro {
    /// Run the micro benches instead: nanoseconds of the stack's parts
    #[arg(long)]
    micro: bool,
    /// With --micro: count instructions, too (needs valgrind)
    #[arg(long, requires = "micro")]
    instructions: bool,
}

impl Micro {
    /// Whether the micro benches are wanted.
    pub(crate) fn wanted(&self) -> bool {
        self.micro
    }
}

/// One workload and what was measured of it.
#[derive(Debug, Default, PartialEq)]
struct Row {
    name: String,
    /// One run is so many of them.
    operations: u64,
    /// Payload bytes of one operation.
    bytes: u64,
    /// Of one operation.
    nanoseconds: Option<f64>,
    instructions: Option<f64>,
}

/// Runs them. `write`: into benches/MICRO.md as well. `arguments` go to criterion: a filter, or its options.
pub(crate) fn run(options: &Micro, write: bool, arguments: &[String]) -> Result<bool, Failure> {
    let program = build()?;
    let results = target_folder()?.join("micro");
    // What an earlier run left would pass for measured.
    let _ = std::fs::remove_dir_all(&results);
    let mut bench = Command::new(&program);
    bench.current_dir(root()).env("CRITERION_HOME", &results).arg("--bench").args(arguments);
    if !succeeds(&mut bench)? {
        return Ok(false);
    }
    let times = estimates(&results)?;
    let mut rows: Vec<Row> =
        list(&program)?.into_iter().filter(|row| times.contains_key(&row.name)).collect();
    for row in &mut rows {
        row.nanoseconds = times.get(&row.name).map(|run| run / row.operations as f64);
    }
    if options.instructions && is_installed("valgrind") {
        for row in &mut rows {
            row.instructions = Some(count(&program, row)?);
        }
    } else if options.instructions {
        skipped("instructions: `valgrind` is missing; as root: apt-get install -y valgrind");
    }
    let table = table(&rows);
    print!("{table}");
    if write {
        std::fs::write(root().join("benches/MICRO.md"), page(&table)?)?;
    }
    Ok(!rows.is_empty())
}

/// Builds the benches; where the program lies.
fn build() -> Result<PathBuf, Failure> {
    let mut command = cargo();
    command.args(["bench", "--package", "pilotage-micro", "--bench", "micro", "--no-run"]);
    let text = output(command.args(["--message-format", "json-render-diagnostics"]))?;
    let built = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    built
        .filter(|message| message["target"]["name"] == "micro")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| "cargo names no program of the micro benches".into())
}

fn list(micro: &Path) -> Result<Vec<Row>, Failure> {
    let text = output(program(micro).arg("--list"))?;
    text.lines()
        .map(|line| parse_listed(line).ok_or_else(|| format!("`{line}` is no workload").into()))
        .collect()
}

fn parse_listed(line: &str) -> Option<Row> {
    let mut parts = line.split('\t');
    Some(Row {
        name: parts.next()?.to_owned(),
        operations: parts.next()?.parse().ok().filter(|n| *n > 0)?,
        bytes: parts.next()?.parse().ok()?,
        ..Row::default()
    })
}

/// Nanoseconds of one run, by name, from what criterion wrote below `folder`.
fn estimates(folder: &Path) -> Result<HashMap<String, f64>, Failure> {
    let mut found = HashMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            }
        }
        let (about, estimates) = (folder.join("benchmark.json"), folder.join("estimates.json"));
        if folder.ends_with("new") && about.is_file() && estimates.is_file() {
            let about: Value = serde_json::from_str(&std::fs::read_to_string(about)?)?;
            let estimates: Value = serde_json::from_str(&std::fs::read_to_string(estimates)?)?;
            if let (Some(name), Some(ns)) =
                (about["full_id"].as_str(), estimates["median"]["point_estimate"].as_f64())
            {
                found.insert(name.to_owned(), ns);
            }
        }
    }
    Ok(found)
}

/// Instructions of one operation.
fn count(micro: &Path, row: &Row) -> Result<f64, Failure> {
    // Enough that allocations and other rare things even out, and no more: valgrind takes its time.
    let runs = if row.operations * row.bytes > 16_384 { 50 } else { 500 };
    let (once, twice) = (instructions(micro, row, runs)?, instructions(micro, row, 2 * runs)?);
    Ok((twice - once) / (runs * row.operations) as f64)
}

fn instructions(micro: &Path, row: &Row, runs: u64) -> Result<f64, Failure> {
    let mut command = program("valgrind");
    command.args([
        "--tool=cachegrind",
        "--cache-sim=no",
        "--branch-sim=no",
        "--cachegrind-out-file=/dev/null",
    ]);
    let out = command.arg(micro).args(["--run", &row.name, &runs.to_string()]).output()?;
    let text = String::from_utf8_lossy(&out.stderr);
    read_instructions(&text)
        .filter(|_| out.status.success())
        .ok_or_else(|| format!("valgrind on `{}`: {}", row.name, text.trim()).into())
}

/// `==12== I   refs:      1,234,567`
fn read_instructions(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.contains("I ") && line.contains("refs:"))?;
    line.rsplit(':').next()?.trim().replace(',', "").parse().ok()
}

fn table(rows: &[Row]) -> String {
    let mut text = String::from("| workload | of | ns | GB/s | instructions |\n|---|--:|--:|--:|--:|\n");
    for row in rows {
        let ns = row.nanoseconds.map(significant).unwrap_or_default();
        let rate = row.nanoseconds.filter(|_| row.bytes > 1).map(|ns| significant(row.bytes as f64 / ns));
        let instructions = row.instructions.map(significant).unwrap_or_default();
        let _ = writeln!(
            text,
            "| {} | {} | {ns} | {} | {instructions} |",
            row.name,
            row.operations,
            rate.unwrap_or_default()
        );
    }
    text
}

/// Three digits, and none behind the point from 100 on.
fn significant(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn page(table: &str) -> Result<String, Failure> {
    let date = output(program("date").args(["-u", "+%F"]))?;
    let about = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = about.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split(':').nth(1).unwrap_or("?").trim().to_owned()
    };
    let valgrind = output(program("valgrind").arg("--version")).unwrap_or_else(|_| "no valgrind".to_owned());
    Ok(format!(
        "# What the parts cost\n\n\
         Made by `cargo xtask bench --micro --instructions --write` on {}, {} (model {}), {}.\n\n\
         Per operation; a run of a workload is as many as the second column says. Time: the median of criterion, which \
         other work on the machine makes longer. Instructions: valgrind, without what setting up costs; there libraries \
         that choose by processor take their AVX2 code, so those of AES are not the ones that were timed. `copy and \
         open` has the cost of `copy` in it. The rows of `stack` are the work of both ends for one data packet: write, \
         frame, checksum, seal, a copy for the wire, open, reassemble, read, and its share of acknowledgements.\n\n{table}",
        date.trim(),
        field("model name"),
        field("model\t"),
        valgrind.trim(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_valgrind_says_is_read() {
        let text = "==7== Cachegrind\n==7== \n==7== I   refs:      1,234,567\n";
        assert_eq!(read_instructions(text), Some(1_234_567.0));
        assert_eq!(read_instructions("==7== D   refs: 1\n"), None);
    }

    #[test]
    fn what_the_benches_list_is_read() {
        let row = parse_listed("packet/encode/64\t1\t64").expect("a workload");
        assert_eq!((row.name.as_str(), row.operations, row.bytes), ("packet/encode/64", 1, 64));
        assert_eq!(parse_listed("packet/encode/64\t0\t64"), None);
        assert_eq!(parse_listed("packet"), None);
    }

    #[test]
    fn a_row_has_what_is_known() {
        let row = Row {
            name: "copy/1382".into(),
            operations: 1,
            bytes: 1_382,
            nanoseconds: Some(13.82),
            instructions: None,
        };
        assert!(table(&[row]).ends_with("| copy/1382 | 1 | 13.8 | 100 |  |\n"));
    }
}
