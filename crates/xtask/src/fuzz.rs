//! `cargo xtask fuzz`: runs the fuzz targets, for a short time in CI or for as many executions as wanted.
//!
//! The targets are built once, without a sanitizer (our crates forbid `unsafe`, so there is nothing that one could find
//! at that price) and without traced comparisons (the seeds hold every magic number). Then the programs run side by
//! side. What they discover goes to a folder below the target directory; `fuzz/corpus/` is only read, and written by
//! `--minimise` (spec/testing.md).

mod report;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use clap::Args;

use crate::Failure;
use crate::process::{cargo, output, program, root, skipped, succeeds};
use report::{Finished, print};

/// Where tools that only CI needs are built.
const TOOLS: &str = "target/tools";
/// Bytes of an input, where fuzz/Cargo.toml says nothing else.
const MAX_LEN: i64 = 1_024;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds for each target
    #[arg(long, default_value_t = 20, conflicts_with = "executions")]
    seconds: u64,
    /// Executions of each target, whatever time they take
    #[arg(long)]
    executions: Option<u64>,
    /// Begin the search at this number and leave out what earlier runs on this machine found: two runs on one tree then
    /// try the same inputs in the same order, as far as each gets
    #[arg(long, conflicts_with = "minimise", value_parser = clap::value_parser!(u32).range(1..))]
    seed: Option<u32>,
    /// Only this target (may be given several times)
    #[arg(long)]
    target: Vec<String>,
    /// Targets that run at a time; all cores without it
    #[arg(long)]
    jobs: Option<usize>,
    /// Print the closing table as JSON on standard output
    #[arg(long)]
    json: bool,
    /// Instead of exploring: rewrite fuzz/corpus with the fewest inputs that reach what is reached now
    #[arg(long)]
    minimise: bool,
}

/// A program of fuzz/Cargo.toml.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    name: String,
    max_len: i64,
}

/// Where things of one target are.
struct Places {
    program: PathBuf,
    /// New inputs, kept between runs on this machine.
    found: PathBuf,
    /// Inputs in the repository.
    corpus: PathBuf,
    regressions: PathBuf,
    artifacts: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    let targets = chosen(options)?;
    if !tools_are_there(targets.len())? {
        return Ok(true);
    }
    // Seeds made from spec/vectors: each run begins with replaying them.
    if !succeeds(
        cargo().current_dir(root().join("fuzz")).args(["run", "--quiet", "--no-default-features"]).args([
            "--example",
            "seeds",
            "--",
            &target_folder().join("fuzz-seeds").display().to_string(),
        ]),
    )? {
        return Err("fuzz: the seeds could not be made".into());
    }
    build(options)?;
    if options.minimise {
        return minimise(&targets);
    }
    let finished = explore(options, &targets)?;
    let good = finished.iter().all(|target| target.findings.is_empty());
    print(&finished, options.json)?;
    Ok(good)
}

fn chosen(options: &Options) -> Result<Vec<Target>, Failure> {
    let path = root().join("fuzz/Cargo.toml");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("fuzz: fuzz/Cargo.toml: {e}"))?;
    let all = read_targets(&text)?;
    if let Some(unknown) = options.target.iter().find(|name| !all.iter().any(|t| t.name == **name)) {
        let names: Vec<&str> = all.iter().map(|t| t.name.as_str()).collect();
        return Err(format!("fuzz: no target {unknown:?}; there are: {}", names.join(", ")).into());
    }
    let wanted = |t: &Target| options.target.is_empty() || options.target.contains(&t.name);
    Ok(all.into_iter().filter(wanted).collect())
}

/// Names of the programs in fuzz/Cargo.toml, with the longest input of each.
fn read_targets(manifest: &str) -> Result<Vec<Target>, Failure> {
    let manifest: toml::Table = manifest.parse()?;
    let lengths = manifest["package"].get("metadata").and_then(|m| m.get("max_len"));
    let programs =
        manifest.get("bin").and_then(toml::Value::as_array).ok_or("fuzz/Cargo.toml has no [[bin]]")?;
    let names = programs.iter().filter_map(|bin| bin.get("name")?.as_str());
    Ok(names
        .map(|name| {
            let max_len = lengths.and_then(|l| l.get(name)).and_then(toml::Value::as_integer);
            Target { name: name.to_owned(), max_len: max_len.unwrap_or(MAX_LEN) }
        })
        .collect())
}

// ------------------------------------------------------------------ tools

fn tools_are_there(targets: usize) -> Result<bool, Failure> {
    if output(program("rustup").args(["run", "nightly", "rustc", "--version"])).is_err() {
        skipped(&format!(
            "{targets} fuzz targets: install a nightly toolchain with `rustup toolchain install nightly`"
        ));
        return Ok(false);
    }
    if !has_cargo_fuzz()? {
        skipped(&format!("{targets} fuzz targets: install cargo-fuzz with `cargo install cargo-fuzz`"));
        return Ok(false);
    }
    Ok(true)
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

// ------------------------------------------------------------------ building and running

/// Where cargo puts the programs: fuzz/target, or what CARGO_TARGET_DIR says.
fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("fuzz/target"), PathBuf::from)
}

fn build(options: &Options) -> Result<(), Failure> {
    // cargo-fuzz takes one target or all of them.
    let all = [String::new()];
    let wanted = if options.target.is_empty() { &all[..] } else { &options.target[..] };
    for name in wanted {
        let mut command = with_tools(program("cargo"));
        command.args(["+nightly", "fuzz", "build", "-s", "none", "--no-trace-compares"]);
        command.args(Some(name).filter(|name| !name.is_empty()));
        if !succeeds(&mut command)? {
            return Err("fuzz: the targets did not build".into());
        }
    }
    Ok(())
}

fn places(name: &str) -> Result<Places, Failure> {
    let version = output(program("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc names no host")?;
    let folder = target_folder();
    let in_repository = |kind: &str| root().join("fuzz").join(kind).join(name);
    let places = Places {
        program: folder.join(host).join("release").join(name),
        found: folder.join("fuzz-corpus").join(name),
        corpus: in_repository("corpus"),
        regressions: in_repository("regressions"),
        artifacts: in_repository("artifacts"),
    };
    std::fs::create_dir_all(&places.found)?;
    std::fs::create_dir_all(&places.artifacts)?;
    Ok(places)
}

/// Folders of inputs that are only read; libFuzzer wants them to exist.
fn read_only(places: &Places, name: &str) -> Vec<PathBuf> {
    let seeds = target_folder().join("fuzz-seeds").join(name);
    [places.corpus.clone(), places.regressions.clone(), seeds].into_iter().filter(|p| p.is_dir()).collect()
}

/// Runs all targets, some at a time.
fn explore(options: &Options, targets: &[Target]) -> Result<Vec<Finished>, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = options.jobs.unwrap_or(cores).clamp(1, targets.len().max(1));
    let waiting = Mutex::new(targets.iter().rev().collect::<Vec<_>>());
    let finished = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    // The guard must not live as long as the run.
                    let next = waiting.lock().ok().and_then(|mut waiting| waiting.pop());
                    let Some(target) = next else { break };
                    let result = explore_one(options, target).map_err(|error| error.to_string());
                    if let Ok(mut finished) = finished.lock() {
                        finished.push(result);
                    }
                }
            });
        }
    });
    let finished = finished.into_inner().map_err(|_| "fuzz: a runner panicked")?;
    let mut finished = finished.into_iter().collect::<Result<Vec<Finished>, String>>()?;
    finished.sort_by_key(|done| targets.iter().position(|t| t.name == done.target));
    if finished.len() == targets.len() { Ok(finished) } else { Err("fuzz: a runner panicked".into()) }
}

fn explore_one(options: &Options, target: &Target) -> Result<Finished, Failure> {
    let places = places(&target.name)?;
    let limit = match options.executions {
        Some(executions) => format!("-runs={executions}"),
        None => format!("-max_total_time={}", options.seconds),
    };
    eprintln!("fuzz: {} {limit}", target.name);
    let mut command = program(&places.program);
    command
        .args([limit, format!("-max_len={}", target.max_len)])
        .args(["-rss_limit_mb=1024", "-timeout=10", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/", places.artifacts.display()));
    let mut found = places.found.clone();
    if let Some(seed) = options.seed {
        command.arg(format!("-seed={seed}"));
        found.set_extension("seeded");
        remove(&found)?;
        std::fs::create_dir_all(&found)?;
    }
    command.arg(&found).args(read_only(&places, &target.name));
    let began = std::time::Instant::now();
    let out =
        command.output().map_err(|e| format!("fuzz: cannot start {}: {e}", places.program.display()))?;
    let log = String::from_utf8_lossy(&out.stderr).into_owned();
    let finished = report::read(&target.name, &log, out.status.success(), began.elapsed());
    if !finished.findings.is_empty() {
        eprintln!("{log}\nfuzz: FAILED: {}", target.name);
    }
    Ok(finished)
}

/// Replaces `fuzz/corpus/<target>` by the fewest inputs that reach every branch that is reached now.
fn minimise(targets: &[Target]) -> Result<bool, Failure> {
    let mut good = true;
    for target in targets {
        let places = places(&target.name)?;
        let fresh = places.found.with_extension("minimised");
        remove(&fresh)?;
        std::fs::create_dir_all(&fresh)?;
        let mut command = program(&places.program);
        // Counting how often a branch is taken would keep thousands of inputs.
        command
            .args(["-set_cover_merge=1", "-use_counters=0", "-rss_limit_mb=1024", "-timeout=10"])
            .arg(format!("-max_len={}", target.max_len))
            .args([&fresh, &places.found])
            .args(read_only(&places, &target.name));
        if !succeeds(&mut command)? {
            good = false;
            continue;
        }
        remove(&places.corpus)?;
        copy_folder(&fresh, &places.corpus)?;
        remove(&fresh)?;
    }
    Ok(good)
}

fn remove(folder: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn copy_folder(from: &Path, to: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_programs_with_their_lengths() {
        let manifest = "[package]\nname = \"x\"\n[package.metadata.max_len]\nsack = 9\n\
                        [[bin]]\nname = \"frame\"\npath = \"a\"\n\n[[bin]]\nname=\"sack\"\n";
        let target = |name: &str, max_len| Target { name: name.to_owned(), max_len };
        assert_eq!(read_targets(manifest).unwrap(), [target("frame", MAX_LEN), target("sack", 9)]);
        assert!(read_targets("[package]\nname = \"x\"").is_err());
    }

    #[test]
    fn the_real_manifest_names_every_program_once() {
        let text = std::fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
        let targets = read_targets(&text).unwrap();
        let mut names: Vec<&str> = targets.iter().map(|t| t.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), targets.len());
        for name in names {
            assert!(root().join("fuzz/fuzz_targets").join(name).with_extension("rs").is_file(), "{name}");
        }
    }
}
