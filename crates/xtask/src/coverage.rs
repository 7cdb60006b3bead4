//! `cargo xtask coverage`: which lines of the sans-IO crates the tests run.
//!
//! The compiler's own instrumentation and the llvm tools of the toolchain, without a further program:
//!
//! 1. The tests are built with this program as cargo's `RUSTC_WORKSPACE_WRAPPER`, which adds
//!    `-C instrument-coverage` for the crates of the workspace. Dependencies stay as they are: they are not
//!    built again and not slower.
//! 2. Each test process writes its counters; `llvm-profdata` adds them up, `llvm-cov` gives counts per line.
//! 3. Lines of test code (items under `#[cfg(test)]`, files and folders that such a `mod` names) do not count.
//!
//! A line counts as covered if any instance of it ran: unit tests and the simulator's tests add up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Args;
use serde::Serialize;

use crate::Failure;
use crate::process::{cargo, output, program, root, skipped, succeeds, target_folder};

/// Crates whose lines are counted.
const MEASURED: &[&str] = &["wire", "nat", "proto"];
/// Packages whose tests run.
const TESTED: &[&str] = &["pilotage-wire", "pilotage-nat", "pilotage-proto", "pilotage-sim"];
/// Set for the compiler's processes: this program is the wrapper then.
const WRAPPER: &str = "PILOTAGE_COVERAGE_WRAPPER";
/// Files in the list of the worst.
const WORST: usize = 15;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Fail if a crate is below this percentage of lines
    #[arg(long, value_name = "PERCENT")]
    min: Option<f64>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Print the numbers of all lines that no test runs
    #[arg(long)]
    lines: bool,
    /// Run the tests of this package only (may be given several times)
    #[arg(short, long)]
    package: Vec<String>,
    /// Do not run tests: report what the last run left
    #[arg(long)]
    again: bool,
}

/// What was found in one file.
#[derive(Debug, Clone, Serialize)]
struct FileReport {
    path: String,
    lines: usize,
    covered: usize,
    percent: f64,
    missed: Vec<u32>,
}

/// What was found in one crate.
#[derive(Debug, Clone, Serialize)]
struct CrateReport {
    name: String,
    lines: usize,
    covered: usize,
    percent: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    crates: Vec<CrateReport>,
    files: Vec<FileReport>,
}

/// The wrapper's work: the real compiler with one flag more. `None` if this process is not the wrapper.
pub(crate) fn as_compiler() -> Option<ExitCode> {
    std::env::var_os(WRAPPER)?;
    let mut arguments = std::env::args_os().skip(1);
    let mut compiler = Command::new(arguments.next()?);
    let arguments: Vec<_> = arguments.collect();
    // cargo asks the compiler about itself under the crate name `___`.
    let name = arguments.iter().skip_while(|a| *a != "--crate-name").nth(1);
    let instrument = name.is_some_and(|name| name != "___" && name != "build_script_build");
    compiler.args(&arguments);
    if instrument {
        compiler.args(["-C", "instrument-coverage"]);
    }
    Some(match compiler.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(status) => ExitCode::from(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1)),
        Err(error) => {
            eprintln!("xtask coverage: the compiler cannot be started: {error}");
            ExitCode::FAILURE
        }
    })
}

pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    let Some(tools) = Tools::find()? else {
        skipped("coverage: the llvm tools are missing; install them with `rustup component add llvm-tools`");
        return Ok(true);
    };
    let folder = target_folder()?.join("coverage");
    let tests_passed = options.again || measure(&folder, options)?;
    let lcov = tools.lcov(&folder)?;
    let report = report(&read_lcov(&lcov))?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", tables(&report, options.lines));
    }
    if !tests_passed {
        eprintln!("xtask coverage: tests failed, see above; the figures are those of this run");
    }
    let low: Vec<&CrateReport> =
        report.crates.iter().filter(|c| options.min.is_some_and(|min| c.percent < min)).collect();
    for one in &low {
        let min = options.min.unwrap_or_default();
        eprintln!(
            "xtask coverage: {} has {:.1} % of its lines covered, below {min} %",
            one.name, one.percent
        );
    }
    Ok(tests_passed && low.is_empty())
}

/// Builds and runs the tests; leaves raw counters and the list of programs in `folder`.
fn measure(folder: &Path, options: &Options) -> Result<bool, Failure> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::create_dir_all(folder)?;
    let names: Vec<&str> = if options.package.is_empty() {
        TESTED.to_vec()
    } else {
        options.package.iter().map(String::as_str).collect()
    };
    let test = |more: &[&str]| -> Result<Command, Failure> {
        let mut command = cargo();
        command.args(["test", "--tests"]).args(names.iter().flat_map(|name| ["--package", name])).args(more);
        command.env("RUSTC_WORKSPACE_WRAPPER", std::env::current_exe()?).env(WRAPPER, "1");
        command.env("LLVM_PROFILE_FILE", folder.join("%p-%m.profraw"));
        Ok(command)
    };
    if !succeeds(&mut test(&["--no-run"])?)? {
        return Err("coverage: the tests do not build".into());
    }
    let built = output(&mut test(&["--no-run", "--message-format=json"])?)?;
    let programs = read_programs(&built)?;
    if programs.is_empty() {
        return Err("coverage: cargo names no test program".into());
    }
    std::fs::write(folder.join("programs"), programs.join("\n"))?;
    let mut run = test(&["--no-fail-fast"])?;
    if options.json {
        // Standard output is for the JSON alone.
        run.stdout(std::process::Stdio::null());
    }
    succeeds(&mut run)
}

/// Paths of the test programs in cargo's JSON messages.
fn read_programs(messages: &str) -> Result<Vec<String>, Failure> {
    let mut programs = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: serde_json::Value = serde_json::from_str(line)?;
        if let (Some(path), Some(true)) =
            (message["executable"].as_str(), message["profile"]["test"].as_bool())
        {
            programs.push(path.to_owned());
        }
    }
    Ok(programs)
}

/// The llvm tools that belong to the compiler.
struct Tools {
    profdata: PathBuf,
    cov: PathBuf,
}

impl Tools {
    fn find() -> Result<Option<Self>, Failure> {
        let sysroot = output(program("rustc").args(["--print", "sysroot"]))?;
        let about = output(program("rustc").arg("-vV"))?;
        let host = about.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc names no host")?;
        let folder = Path::new(sysroot.trim()).join("lib/rustlib").join(host).join("bin");
        let tool = |name: &str| folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
        let tools = Self { profdata: tool("llvm-profdata"), cov: tool("llvm-cov") };
        Ok((tools.profdata.is_file() && tools.cov.is_file()).then_some(tools))
    }

    /// Counts per line of all measured crates, in lcov's format.
    fn lcov(&self, folder: &Path) -> Result<String, Failure> {
        let Ok(list) = std::fs::read_to_string(folder.join("programs")) else {
            return Err("coverage: nothing was measured yet: run without --again".into());
        };
        let mut raw: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "profraw") {
                raw.push(path);
            }
        }
        raw.sort();
        let names = raw.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join("\n");
        let (inputs, sum) = (folder.join("inputs"), folder.join("sum.profdata"));
        std::fs::write(&inputs, names)?;
        let mut merge = program(&self.profdata);
        merge.args(["merge", "--sparse", "--input-files"]).arg(&inputs).arg("--output").arg(&sum);
        output(&mut merge)?;
        let mut export = program(&self.cov);
        export.args(["export", "--format=lcov", "--skip-functions"]);
        export.arg(format!("--instr-profile={}", sum.display()));
        for (index, path) in list.lines().enumerate() {
            if index > 0 {
                export.arg("--object");
            }
            export.arg(path);
        }
        export.arg("--sources");
        export.args(MEASURED.iter().map(|name| root().join("crates").join(name).join("src")));
        output(&mut export)
    }
}

/// Counts per file and line.
type Counts = BTreeMap<PathBuf, BTreeMap<u32, u64>>;

/// Reads the `SF:` and `DA:` records of lcov's format.
fn read_lcov(text: &str) -> Counts {
    let mut counts = Counts::new();
    let mut file = PathBuf::new();
    for line in text.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            file = PathBuf::from(path);
        } else if let Some((number, count)) = line.strip_prefix("DA:").and_then(|rest| rest.split_once(','))
            && let (Ok(number), Ok(count)) = (number.parse(), count.parse::<u64>())
        {
            let slot = counts.entry(file.clone()).or_default().entry(number).or_default();
            *slot = slot.saturating_add(count);
        }
    }
    counts
}

fn report(counts: &Counts) -> Result<Report, Failure> {
    // All files: one without any counted line may still name a test module.
    let mut sources: BTreeMap<PathBuf, String> = BTreeMap::new();
    for name in MEASURED {
        read_sources(&root().join("crates").join(name).join("src"), &mut sources)?;
    }
    let test_files: Vec<PathBuf> = sources.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
    let mut files = Vec::new();
    for (path, lines) in counts {
        if test_files.iter().any(|test| path.starts_with(test)) {
            continue;
        }
        let source = sources.get(path).ok_or_else(|| format!("coverage: {} is gone", path.display()))?;
        let test_lines = test_lines(source);
        let counted: Vec<(u32, u64)> =
            lines.iter().filter(|(n, _)| !test_lines.contains(n)).map(|(n, c)| (*n, *c)).collect();
        if counted.is_empty() {
            continue;
        }
        let missed: Vec<u32> = counted.iter().filter(|(_, c)| *c == 0).map(|(n, _)| *n).collect();
        let covered = counted.len() - missed.len();
        files.push(FileReport {
            path: path.strip_prefix(root()).unwrap_or(path).display().to_string(),
            lines: counted.len(),
            covered,
            percent: percent(covered, counted.len()),
            missed,
        });
    }
    let crates = MEASURED
        .iter()
        .map(|name| {
            let own = files.iter().filter(|f| Path::new(&f.path).starts_with(Path::new("crates").join(name)));
            let (lines, covered) = own.fold((0, 0), |(l, c), f| (l + f.lines, c + f.covered));
            CrateReport { name: (*name).to_owned(), lines, covered, percent: percent(covered, lines) }
        })
        .collect();
    Ok(Report { crates, files })
}

fn read_sources(folder: &Path, into: &mut BTreeMap<PathBuf, String>) -> Result<(), Failure> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read_sources(&path, into)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            into.insert(path, text);
        }
    }
    Ok(())
}

/// A crate of which nothing was measured has no line covered: it must not pass as complete.
fn percent(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

/// Where the items under `#[cfg(test)]` lie, as line numbers. Relies on the formatting that CI checks: an item
/// ends at the first line that is its closing brace, as far indented as its first line.
fn test_lines(text: &str) -> BTreeSet<u32> {
    let lines: Vec<&str> = text.lines().collect();
    let mut inside = BTreeSet::new();
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| is_test_attribute(line)) {
        let indent = &line[..line.len() - line.trim_start().len()];
        let closing = [format!("{indent}}}"), format!("{indent}}};")];
        let ends = |l: &&str| closing.iter().any(|c| c == *l) || is_one_line_item(l, indent);
        let length = lines[at..].iter().position(ends).unwrap_or(lines.len() - at - 1);
        inside.extend((at..=at + length).filter_map(|n| u32::try_from(n + 1).ok()));
    }
    inside
}

/// `mod tests;`, `use …;`, or a whole item on one line, at this depth.
fn is_one_line_item(line: &str, indent: &str) -> bool {
    let Some(rest) = line.strip_prefix(indent) else { return false };
    !rest.starts_with([' ', '#', '/', '}']) && (rest.ends_with(';') || rest.ends_with('}'))
}

/// Files and folders that a `mod name;` under `#[cfg(test)]` in this file names.
fn test_modules(path: &Path, text: &str) -> Vec<PathBuf> {
    let lines: Vec<&str> = text.lines().collect();
    let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    let parent = path.parent().unwrap_or(path);
    let folder = if matches!(stem, "lib" | "main" | "mod") { parent.to_owned() } else { parent.join(stem) };
    let mut found = Vec::new();
    for (at, _) in lines.iter().enumerate().filter(|(_, line)| is_test_attribute(line)) {
        let item = lines[at + 1..].iter().map(|l| l.trim()).find(|l| !l.starts_with("#["));
        if let Some(name) = item.and_then(|l| l.strip_prefix("mod ")).and_then(|l| l.strip_suffix(';')) {
            found.push(folder.join(format!("{name}.rs")));
            found.push(folder.join(name));
        }
    }
    found
}

fn is_test_attribute(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(all(test")
}

fn tables(report: &Report, all_lines: bool) -> String {
    let mut out = String::from("| crate | lines | covered | % |\n|---|---:|---:|---:|\n");
    for one in &report.crates {
        let _ = writeln!(out, "| {} | {} | {} | {:.1} |", one.name, one.lines, one.covered, one.percent);
    }
    let _ = writeln!(
        out,
        "\nLines of code without test modules. The {WORST} files with the lowest share:\n\n\
         | file | lines | missed | % |\n|---|---:|---:|---:|"
    );
    let mut worst: Vec<&FileReport> = report.files.iter().collect();
    worst.sort_by(|a, b| a.percent.total_cmp(&b.percent).then_with(|| a.path.cmp(&b.path)));
    for file in worst.iter().take(WORST) {
        let missed = file.missed.len();
        let _ = writeln!(out, "| {} | {} | {missed} | {:.1} |", file.path, file.lines, file.percent);
    }
    if all_lines {
        out.push_str("\nLines that no test runs:\n\n");
        for file in report.files.iter().filter(|f| !f.missed.is_empty()) {
            let _ = writeln!(out, "{}: {}", file.path, ranges(&file.missed));
        }
    }
    out
}

/// `1, 3–5` for 1, 3, 4, 5.
fn ranges(numbers: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match parts.last_mut() {
            Some((_, end)) if *end + 1 == number => *end = number,
            _ => parts.push((number, number)),
        }
    }
    let show = |&(a, b): &(u32, u32)| if a == b { a.to_string() } else { format!("{a}–{b}") };
    parts.iter().map(show).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lcov_records_of_one_file_are_added_up() {
        let counts = read_lcov("SF:/a.rs\nDA:1,2\nDA:3,0\nend_of_record\nSF:/a.rs\nDA:3,4\nDA:x,1\n");
        assert_eq!(counts[Path::new("/a.rs")], BTreeMap::from([(1, 2), (3, 4)]));
    }

    #[test]
    fn test_code_is_known_by_its_attribute() {
        let text = "fn a() {\n}\n#[cfg(test)]\nmod tests;\n\nfn b() {}\nimpl X {\n    #[cfg(test)]\n    fn t(\n        x: u8,\n    ) {\n        if x {\n        }\n    }\n    fn c() {}\n}\n#[cfg(test)]\n#[allow(x)]\nmod more {\n    use super::*;\n    fn d() {}\n}\nfn e() {}\n";
        let expected: BTreeSet<u32> = [3, 4].into_iter().chain(8..=14).chain(17..=22).collect();
        assert_eq!(test_lines(text), expected);
        let named = test_modules(Path::new("/c/ring.rs"), text);
        assert_eq!(named, [PathBuf::from("/c/ring/tests.rs"), PathBuf::from("/c/ring/tests")]);
        assert_eq!(test_modules(Path::new("/c/mod.rs"), text)[0], Path::new("/c/tests.rs"));
    }

    #[test]
    fn programs_are_the_test_executables_only() {
        let text = concat!(
            "{\"executable\":\"/t/wire-1\",\"profile\":{\"test\":true}}\n",
            "{\"executable\":null,\"profile\":{\"test\":false}}\n",
            "{\"executable\":\"/t/sim\",\"profile\":{\"test\":false}}\n",
            "{\"reason\":\"build-finished\"}\nnoise\n"
        );
        assert_eq!(read_programs(text).unwrap(), ["/t/wire-1"]);
    }

    #[test]
    fn numbers_are_shown_as_ranges_and_nothing_measured_is_not_complete() {
        assert_eq!(ranges(&[1, 3, 4, 5, 9]), "1, 3–5, 9");
        assert_eq!(percent(0, 0), 0.0);
    }
}
