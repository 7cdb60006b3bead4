//! `cargo xtask mutants`: plausible mistakes are put into the code one at a time, and the tests must notice.
//!
//! The mistakes are a list that is kept by hand, [`LIST`]: what a tired programmer could write in recovery, replay
//! protection, flow control, close and key exchange. A line of the list that is no longer in the source is an error,
//! so that the list cannot rot.
//!
//! Everything happens in a copy of the tree below the target folder. First the unit tests of the protocol crate
//! judge; only what they let pass is shown to the simulator's tests. A test program is stopped at its first failure.
//! One that runs much longer than without the mistake, or takes too much memory, has noticed it too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::process::{cargo, output, program, root, target_folder};

/// The list of mistakes.
const LIST: &str = "crates/xtask/mutants.toml";
/// Where the table goes.
const TABLE: &str = "spec/mutations.md";
/// Memory of one test program, in KiB: a mistake may make a loop that only ends with the machine.
const MEMORY: u64 = 6 << 20;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only mutants whose name or area contains this text
    filter: Option<String>,
    /// Fail if a smaller percentage is caught (explained equivalents do not count)
    #[arg(long, value_name = "PERCENT", default_value_t = 90.0)]
    min: f64,
    /// Write the table to spec/mutations.md
    #[arg(long)]
    write: bool,
    /// Take over what earlier runs caught: run only what is new, changed or survived
    #[arg(long)]
    resume: bool,
    /// Only these judges (may be given several times): what they let pass counts as survived
    #[arg(long)]
    judge: Vec<String>,
    /// Print the list with file and line, run nothing
    #[arg(long)]
    list: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    judges: Vec<Judge>,
    mutant: Vec<Mutant>,
}

/// Test programs that judge together, in the order of the list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Judge {
    /// Shown in the table.
    name: String,
    /// Arguments of `cargo test` that choose them.
    arguments: Vec<String>,
}

/// One mistake.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    area: String,
    file: String,
    /// Text that a line before the place contains, where `find` alone is not unique.
    after: Option<String>,
    /// A part of one line as it is: no more than the mistake needs, so that other changes of the line do not matter.
    find: String,
    /// What stands there with the mistake; may be empty.
    replace: String,
    /// What it means.
    why: String,
    /// Why no test can tell the difference; such a mutant must survive.
    equivalent: Option<String>,
}

/// What became of a mutant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Verdict {
    Caught { judge: String, test: String },
    Survived,
}

pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    let mut list = read_list()?;
    list.judges.retain(|judge| options.judge.is_empty() || options.judge.contains(&judge.name));
    if list.judges.is_empty() {
        return Err(format!("mutants: {LIST} has no such judge").into());
    }
    let places = places(&list, &root())?;
    if options.list {
        for (mutant, line) in list.mutant.iter().zip(&places) {
            println!("{:14} {:32} {}:{}", mutant.area, mutant.name, mutant.file, line + 1);
        }
        return Ok(true);
    }
    let chosen: Vec<&Mutant> = list.mutant.iter().filter(|m| is_chosen(m, options)).collect();
    if chosen.is_empty() {
        return Err(format!("mutants: no name or area in {LIST} contains that text").into());
    }
    let bench = Bench::prepare()?;
    let known = if options.resume { bench.read_results() } else { BTreeMap::new() };
    let mut results: BTreeMap<String, Verdict> = BTreeMap::new();
    let mut limits: Vec<Duration> = Vec::new();
    for (index, mutant) in chosen.iter().enumerate() {
        let key = mutant.key();
        let earlier = known.get(&key).filter(|verdict| **verdict != Verdict::Survived);
        let verdict = match earlier {
            Some(verdict) => verdict.clone(),
            None => bench.judge(mutant, &list.judges, &mut limits)?,
        };
        eprintln!("{}/{} {}: {}", index + 1, chosen.len(), mutant.name, verdict.show());
        results.insert(key, verdict);
        bench.write_results(&known, &results)?;
    }
    conclude(&chosen, &results, options)
}

fn is_chosen(mutant: &Mutant, options: &Options) -> bool {
    options.filter.as_ref().is_none_or(|text| mutant.name.contains(text) || mutant.area.contains(text))
}

fn conclude(
    chosen: &[&Mutant],
    results: &BTreeMap<String, Verdict>,
    options: &Options,
) -> Result<bool, Failure> {
    let table = table(chosen, results);
    println!("{table}");
    if options.write {
        if options.filter.is_some() || !options.judge.is_empty() {
            return Err(format!(
                "mutants: {TABLE} is written by a run of the whole list and all judges only"
            )
            .into());
        }
        fs::write(root().join(TABLE), &table)?;
    }
    let surprises: Vec<&str> = chosen
        .iter()
        .filter(|m| m.equivalent.is_some() && results.get(&m.key()) != Some(&Verdict::Survived))
        .map(|m| m.name.as_str())
        .collect();
    if !surprises.is_empty() {
        eprintln!("mutants: explained as equivalent, but caught: {}", surprises.join(", "));
    }
    let (caught, counted) = score(chosen, results);
    let enough = caught as f64 * 100.0 >= options.min * counted as f64;
    if !enough {
        eprintln!("mutants: {caught} of {counted} caught, fewer than {} %", options.min);
    }
    Ok(enough && surprises.is_empty())
}

/// How many were caught, of how many that could be.
fn score(chosen: &[&Mutant], results: &BTreeMap<String, Verdict>) -> (usize, usize) {
    let counted: Vec<&&Mutant> = chosen.iter().filter(|m| m.equivalent.is_none()).collect();
    let caught = counted
        .iter()
        .filter(|m| results.get(&m.key()).is_some_and(|verdict| *verdict != Verdict::Survived))
        .count();
    (caught, counted.len())
}

impl Mutant {
    /// Changes with the mutant: results of an earlier wording do not count.
    fn key(&self) -> String {
        let after = self.after.as_deref().unwrap_or_default();
        [&self.name, &self.file, after, &self.find, &self.replace].join("\u{1f}")
    }
}

impl Verdict {
    fn show(&self) -> String {
        match self {
            Self::Caught { judge, test } => format!("caught ({judge}: {test})"),
            Self::Survived => "SURVIVED".to_owned(),
        }
    }
}

fn read_list() -> Result<List, Failure> {
    let text = fs::read_to_string(root().join(LIST)).map_err(|e| format!("{LIST}: {e}"))?;
    let list: List = toml::from_str(&text).map_err(|e| format!("{LIST}: {e}"))?;
    let names: BTreeSet<&str> = list.mutant.iter().map(|m| m.name.as_str()).collect();
    if names.len() != list.mutant.len() {
        return Err(format!("{LIST}: a name stands there twice").into());
    }
    Ok(list)
}

/// The line of each mutant, from 0; an error names all that have no place.
fn places(list: &List, tree: &Path) -> Result<Vec<usize>, Failure> {
    let mut found = Vec::new();
    let mut problems = String::new();
    for mutant in &list.mutant {
        let text =
            fs::read_to_string(tree.join(&mutant.file)).map_err(|e| format!("{}: {e}", mutant.file))?;
        match place(mutant, &text) {
            Ok(place) => found.push(place),
            Err(problem) => {
                let _ = writeln!(problems, "  {} ({}): {problem}", mutant.name, mutant.file);
            }
        }
    }
    if problems.is_empty() {
        Ok(found)
    } else {
        Err(format!("{LIST} does not fit the source any more; adapt or replace these:\n{problems}").into())
    }
}

/// The line of the mutant, from 0.
fn place(mutant: &Mutant, text: &str) -> Result<usize, String> {
    let find = mutant.find.as_str();
    if find.trim().is_empty() || find.contains('\n') || find == mutant.replace {
        return Err("`find` must be a part of one line, and `replace` something else".to_owned());
    }
    let lines: Vec<&str> = text.lines().collect();
    let from = match &mutant.after {
        Some(after) => {
            lines.iter().position(|l| l.contains(after)).ok_or("the text of `after` is not there")?
        }
        None => 0,
    };
    let mut hits = (from..lines.len()).filter(|&at| lines[at].contains(find));
    let first = hits.next().ok_or("the text of `find` is not there")?;
    if mutant.after.is_none() && hits.next().is_some() {
        return Err("the text of `find` is there more than once: use `after`".to_owned());
    }
    Ok(first)
}

fn apply(mutant: &Mutant, text: &str) -> Result<String, String> {
    let at = place(mutant, text)?;
    let mut out = String::with_capacity(text.len());
    for (number, line) in text.lines().enumerate() {
        match number == at {
            true => out.push_str(&line.replacen(&mutant.find, &mutant.replace, 1)),
            false => out.push_str(line),
        }
        out.push('\n');
    }
    Ok(out)
}

/// The copy of the tree in which mistakes are made.
struct Bench {
    tree: PathBuf,
    /// Holds the copy, the results and the output of the last test program.
    folder: PathBuf,
    /// Where cargo builds.
    target: PathBuf,
}

/// How a run of test programs ended.
enum Ended {
    Passed,
    Failed(String),
}

impl Bench {
    /// Makes the copy or brings it up to date. Unchanged files keep their time, so that cargo does not build them again.
    fn prepare() -> Result<Self, Failure> {
        let target = target_folder()?;
        let folder = target.join("mutants");
        let bench = Self { tree: folder.join("tree"), folder, target };
        let list = output(program("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]))?;
        let mut wanted = BTreeSet::new();
        for name in list.lines().filter(|name| root().join(name).is_file()) {
            let (from, to) = (root().join(name), bench.tree.join(name));
            let content = fs::read(&from)?;
            if fs::read(&to).ok().as_ref() != Some(&content) {
                fs::create_dir_all(to.parent().ok_or("a file has no folder")?)?;
                fs::write(&to, content)?;
            }
            wanted.insert(to);
        }
        remove_others(&bench.tree, &wanted)?;
        Ok(bench)
    }

    /// How long a judge may take. Without a mistake all its tests must pass.
    fn limit(&self, judge: &Judge) -> Result<Duration, Failure> {
        let programs = self.build(judge)?.ok_or("mutants: the tests do not build without a mistake")?;
        let begin = Instant::now();
        if let Ended::Failed(test) = self.run_all(&programs, Duration::from_secs(600))? {
            return Err(format!("mutants: {test} fails without any mistake").into());
        }
        let took = begin.elapsed();
        eprintln!(
            "mutants: the tests of `{}` take {:.1} s without a mistake",
            judge.name,
            took.as_secs_f64()
        );
        Ok(took * 4 + Duration::from_secs(20))
    }

    /// Shows a mutant to the judges in turn. `limits` gets those that are not known yet.
    fn judge(
        &self,
        mutant: &Mutant,
        judges: &[Judge],
        limits: &mut Vec<Duration>,
    ) -> Result<Verdict, Failure> {
        // What cannot be told from the original need not keep the slow judges busy.
        let count = if mutant.equivalent.is_some() { 1 } else { judges.len() };
        for (index, judge) in judges.iter().take(count).enumerate() {
            if limits.len() <= index {
                limits.push(self.limit(judge)?);
            }
            if let Some(test) = self.noticed(mutant, judge, limits[index])? {
                return Ok(Verdict::Caught { judge: judge.name.clone(), test });
            }
        }
        Ok(Verdict::Survived)
    }

    /// The test that notices the mistake. The copy is put right again.
    fn noticed(&self, mutant: &Mutant, judge: &Judge, limit: Duration) -> Result<Option<String>, Failure> {
        let path = self.tree.join(&mutant.file);
        let original = fs::read_to_string(&path)?;
        fs::write(&path, apply(mutant, &original)?)?;
        let ended = self.build(judge).and_then(|programs| match programs {
            Some(programs) => self.run_all(&programs, limit),
            None => Err(format!("mutants: {} does not compile; its mistake must", mutant.name).into()),
        });
        fs::write(&path, &original)?;
        Ok(match ended? {
            Ended::Failed(test) => Some(test),
            Ended::Passed => None,
        })
    }

    /// Builds the test programs: (program, folder to run it in). `None` if they do not compile.
    fn build(&self, judge: &Judge) -> Result<Option<Vec<(PathBuf, PathBuf)>>, Failure> {
        let mut command = cargo();
        command.current_dir(&self.tree).args(["test", "--quiet", "--no-run", "--message-format=json"]);
        // The same target folder: dependencies are there already, and the copy's own crates have names of their own.
        command.args(&judge.arguments).arg("--target-dir").arg(&self.target);
        // Nobody looks into these programs with a debugger.
        command.env("CARGO_PROFILE_DEV_DEBUG", "0");
        let out = command.output()?;
        if !out.status.success() {
            for line in
                String::from_utf8_lossy(&out.stdout).lines().filter(|l| l.contains("\"level\":\"error\""))
            {
                let message: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
                eprintln!("{}", message["message"]["rendered"].as_str().unwrap_or(line));
            }
            eprintln!("{}", String::from_utf8_lossy(&out.stderr).trim());
            return Ok(None);
        }
        let mut programs = Vec::new();
        for line in String::from_utf8_lossy(&out.stdout).lines().filter(|line| line.starts_with('{')) {
            let message: serde_json::Value = serde_json::from_str(line)?;
            let manifest = message["manifest_path"].as_str().and_then(|m| Path::new(m).parent());
            if let (Some(path), Some(folder)) = (message["executable"].as_str(), manifest)
                && message["profile"]["test"].as_bool() == Some(true)
            {
                programs.push((PathBuf::from(path), folder.to_owned()));
            }
        }
        if programs.is_empty() {
            return Err(format!("mutants: {} have no test program", judge.name).into());
        }
        Ok(Some(programs))
    }

    fn run_all(&self, programs: &[(PathBuf, PathBuf)], limit: Duration) -> Result<Ended, Failure> {
        let begin = Instant::now();
        for (path, folder) in programs {
            let left = limit.saturating_sub(begin.elapsed());
            if let Ended::Failed(test) = self.run_one(path, folder, left)? {
                return Ok(Ended::Failed(test));
            }
        }
        Ok(Ended::Passed)
    }

    /// Runs one test program until its first failure.
    fn run_one(&self, path: &Path, folder: &Path, limit: Duration) -> Result<Ended, Failure> {
        let log = self.folder.join("log");
        let mut command = limited(path);
        command.current_dir(folder).stdin(Stdio::null()).stderr(Stdio::null());
        // Cases that an earlier mutant left behind must not judge this one.
        command.env("PROPTEST_FAILURE_PERSISTENCE", "off");
        let mut child = command.stdout(fs::File::create(&log)?).spawn()?;
        let begin = Instant::now();
        loop {
            let ended = child.try_wait()?;
            let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
            if let Some(test) = first_failure(&text) {
                let _ = child.kill();
                child.wait()?;
                return Ok(Ended::Failed(test));
            }
            match ended {
                Some(status) if status.success() => return Ok(Ended::Passed),
                Some(status) => return Ok(Ended::Failed(format!("the test program stopped: {status}"))),
                None if begin.elapsed() > limit => {
                    let _ = child.kill();
                    child.wait()?;
                    return Ok(Ended::Failed("does not end".to_owned()));
                }
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn results_file(&self) -> PathBuf {
        self.folder.join("results.json")
    }

    fn read_results(&self) -> BTreeMap<String, Verdict> {
        let text = fs::read_to_string(self.results_file()).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    fn write_results(
        &self,
        known: &BTreeMap<String, Verdict>,
        new: &BTreeMap<String, Verdict>,
    ) -> Result<(), Failure> {
        let mut all = known.clone();
        all.extend(new.clone());
        fs::write(self.results_file(), serde_json::to_string_pretty(&all)?)?;
        Ok(())
    }
}

/// The program with a bound of its memory, where a shell can set one.
fn limited(path: &Path) -> Command {
    if cfg!(unix) {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -v {MEMORY}; exec \"$0\"")).arg(path);
        command
    } else {
        Command::new(path)
    }
}

/// The name in `test a::b ... FAILED`.
fn first_failure(log: &str) -> Option<String> {
    let name = |line: &str| {
        let name = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
        Some(name.trim_end_matches(" - should panic").to_owned())
    };
    log.lines().find_map(name)
}

/// Removes files of the copy that the repository no longer has.
fn remove_others(folder: &Path, wanted: &BTreeSet<PathBuf>) -> Result<(), Failure> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(&path, wanted)?;
        } else if !wanted.contains(&path) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn table(chosen: &[&Mutant], results: &BTreeMap<String, Verdict>) -> String {
    let (caught, counted) = score(chosen, results);
    let equivalent = chosen.len() - counted;
    let share = if counted == 0 { 0.0 } else { caught as f64 * 100.0 / counted as f64 };
    let mut out = format!(
        "# Mutation check\n\nWritten by `cargo xtask mutants --write`. Plausible mistakes ([the list](../{LIST})) are put \
         into the code one at a time; a mistake is *caught* if a test fails, does not end, or stops. A test program is \
         stopped at its first failure, so other tests may notice too.\n\n\
         **{caught} of {counted} caught ({share:.0} %)**, and {equivalent} that cannot be told from the original.\n\n\
         | area | mistake | place | caught by |\n|---|---|---|---|\n"
    );
    for mutant in chosen {
        let by = match results.get(&mutant.key()) {
            Some(Verdict::Caught { judge, test }) => format!("{judge}: `{test}`"),
            Some(Verdict::Survived) if mutant.equivalent.is_some() => "equivalent, see below".to_owned(),
            _ => "**survived**".to_owned(),
        };
        let file = mutant.file.strip_prefix("crates/proto/src/").unwrap_or(&mutant.file);
        let _ = writeln!(out, "| {} | {}: {} | {file} | {by} |", mutant.area, mutant.name, mutant.why);
    }
    let explained = chosen.iter().filter_map(|m| m.equivalent.as_ref().map(|reason| (m, reason)));
    for (index, (mutant, reason)) in explained.enumerate() {
        if index == 0 {
            out.push_str("\n## Equivalent\n\n");
        }
        let _ = writeln!(out, "* `{}`: {reason}", mutant.name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant(after: Option<&str>, find: &str, replace: &str) -> Mutant {
        Mutant {
            name: "n".into(),
            area: "a".into(),
            file: "f".into(),
            after: after.map(str::to_owned),
            find: find.into(),
            replace: replace.into(),
            why: "w".into(),
            equivalent: None,
        }
    }

    const TEXT: &str = "fn a() {\n    x += 1;\n}\nfn b() {\n    x += 1;\n    y();\n}\n";

    #[test]
    fn the_committed_list_fits_the_source() {
        let list = read_list().unwrap();
        places(&list, &root()).unwrap();
        assert!(list.mutant.len() >= 40, "the list is too short to say anything");
    }

    #[test]
    fn a_place_must_be_there_and_be_the_only_one() {
        assert!(place(&mutant(None, "x += 1", ""), TEXT).unwrap_err().contains("more than once"));
        assert!(place(&mutant(None, "z();", ""), TEXT).unwrap_err().contains("not there"));
        assert!(place(&mutant(Some("fn c"), "y();", ""), TEXT).unwrap_err().contains("after"));
        for (find, replace) in [("y();", "y();"), ("  ", ""), ("x += 1;\n    y();", "")] {
            assert!(place(&mutant(None, find, replace), TEXT).unwrap_err().contains("one line"));
        }
        assert_eq!(place(&mutant(Some("fn b"), "x += 1;", ""), TEXT), Ok(4));
    }

    #[test]
    fn a_mistake_replaces_its_words_only() {
        let changed = apply(&mutant(Some("fn b"), "1", "2"), TEXT).unwrap();
        assert_eq!(changed, "fn a() {\n    x += 1;\n}\nfn b() {\n    x += 2;\n    y();\n}\n");
        let forgotten = apply(&mutant(None, "y();", ""), TEXT).unwrap();
        assert_eq!(forgotten.lines().count(), TEXT.lines().count());
    }

    #[test]
    fn the_first_failed_test_is_named() {
        let log =
            "running 2 tests\ntest a::b ... ok\ntest a::c - should panic ... FAILED\ntest d ... FAILED\n";
        assert_eq!(first_failure(log).as_deref(), Some("a::c"));
        assert_eq!(first_failure("test a::b ... ok\ntest c ... "), None);
    }

    #[test]
    fn equivalent_mutants_are_no_part_of_the_score() {
        let (one, mut two) = (mutant(None, "p", "q"), mutant(None, "r", "s"));
        two.equivalent = Some("same".into());
        let caught = Verdict::Caught { judge: "j".into(), test: "t".into() };
        let results = BTreeMap::from([(one.key(), caught), (two.key(), Verdict::Survived)]);
        assert_eq!(score(&[&one, &two], &results), (1, 1));
        let table = table(&[&one, &two], &results);
        assert!(table.contains("1 of 1 caught (100 %)") && table.contains("## Equivalent"), "{table}");
    }
}
