//! Every test that `spec/draft-musts.md` names exists, and every row says what proves it or why nothing does.
//!
//! A row is `| D-n | § | level | sentence | what we do | proof |`. The proof is one or more test names in
//! backticks, `crate::module::…::test` (for an integration test `crate::file::test`), or `not yet: …` (what
//! is missing, or the names of the tests to come), or `not applicable: …`. Once all tests that a `not yet`
//! names exist, the words have to go; `--bless` removes them.

use std::collections::BTreeMap;

use super::source::{code_only, read, rust_files};
use super::{Outcome, shown, verdict};
use crate::Failure;
use crate::process::root;

const TABLE: &str = "spec/draft-musts.md";
/// `text` marks what the draft states without such a word.
const LEVELS: &[&str] = &["MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY", "text"];
const NOT_YET: &str = "not yet: ";
/// Words of a path that name no file.
const NO_FILE: &[&str] = &["tests", "test", "proptests", "props"];

struct Row {
    id: String,
    level: String,
    proof: String,
}

pub(super) fn run(bless: bool) -> Result<Outcome, Failure> {
    let tests = all_tests()?;
    let path = root().join(TABLE);
    let mut text = read(&path)?;
    if bless {
        text = without_fulfilled(&text, &tests);
        std::fs::write(&path, &text)?;
    }
    let rows = read_rows(&text);
    let mut problems = Vec::new();
    let (mut settled, mut open) = (0, Vec::new());
    for (index, row) in rows.iter().enumerate() {
        if row.id != format!("D-{}", index + 1) {
            problems.push(format!("{TABLE}: row {} is numbered {}", index + 1, row.id));
        }
        if !LEVELS.contains(&row.level.as_str()) {
            problems.push(format!("{TABLE}: {}: unknown level `{}`", row.id, row.level));
        }
        if row.proof.contains(NOT_YET) {
            open.push(row.id.as_str());
        } else {
            settled += 1;
        }
        problems.extend(problems_of(row, &tests).into_iter().map(|p| format!("{TABLE}: {}: {p}", row.id)));
    }
    if rows.is_empty() {
        problems.push(format!("{TABLE}: no rows found"));
    }
    let open = if open.is_empty() { String::new() } else { format!(", not yet: {}", open.join(" ")) };
    Ok(verdict(problems, format!("({} rows, {settled} settled{open})", rows.len())))
}

fn problems_of(row: &Row, tests: &Tests) -> Vec<String> {
    let names = names_in(&row.proof);
    if row.proof.contains(NOT_YET) {
        let fulfilled = !names.is_empty() && names.iter().all(|name| exists(tests, name));
        return if fulfilled {
            vec!["the tests exist now: `cargo xtask check --only trace --bless`".into()]
        } else {
            Vec::new()
        };
    }
    if names.is_empty() && !row.proof.contains("not applicable: ") {
        return vec!["neither a test nor a reason".into()];
    }
    names
        .into_iter()
        .filter(|name| !exists(tests, name))
        .map(|name| format!("there is no test `{name}`"))
        .collect()
}

/// What stands in backticks.
fn names_in(proof: &str) -> Vec<&str> {
    proof.split('`').skip(1).step_by(2).collect()
}

/// The table without `not yet` where all named tests exist.
fn without_fulfilled(text: &str, tests: &Tests) -> String {
    let lines = text.split_inclusive('\n').map(|line| {
        let names = line.split(NOT_YET).nth(1).map(names_in).unwrap_or_default();
        let fulfilled =
            line.starts_with("| D-") && !names.is_empty() && names.iter().all(|name| exists(tests, name));
        if fulfilled { line.replace(NOT_YET, "") } else { line.to_owned() }
    });
    lines.collect()
}

fn read_rows(text: &str) -> Vec<Row> {
    text.lines()
        .filter(|line| line.starts_with("| D-"))
        .map(|line| {
            let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
            let cell = |at: usize| cells.get(at).copied().unwrap_or_default().to_owned();
            Row { id: cell(0), level: cell(2), proof: cell(5) }
        })
        .collect()
}

/// Test names, each with the files (as path words) it stands in, by crate.
type Tests = BTreeMap<String, Vec<(String, Vec<String>)>>;

fn all_tests() -> Result<Tests, Failure> {
    let mut tests = Tests::new();
    for path in rust_files()? {
        let name = shown(&path);
        let mut words = name.trim_end_matches(".rs").split('/').map(str::to_owned);
        let krate = match words.next().as_deref() {
            Some("crates") => words.next().unwrap_or_default(),
            Some(other) => other.to_owned(),
            None => continue,
        };
        let text = read(&path)?;
        let words: Vec<String> = words.chain(modules_in(&text)).collect();
        for test in tests_in(&text) {
            tests.entry(krate.clone()).or_default().push((test, words.clone()));
        }
    }
    Ok(tests)
}

/// Functions that follow a `#[test]` attribute.
fn tests_in(text: &str) -> Vec<String> {
    let code = code_only(text);
    let mut found = Vec::new();
    for (at, _) in code.match_indices("#[test]") {
        // Other attributes may stand between; a test function follows within a few lines.
        let Some(name_at) = code[at..].find("fn ").map(|offset| at + offset + 3) else { continue };
        found.push(code[name_at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
    }
    found
}

/// Modules that are written out in the file.
fn modules_in(text: &str) -> Vec<String> {
    let code = code_only(text);
    let names = code.lines().filter_map(|line| line.trim().strip_prefix("mod ")?.strip_suffix(" {"));
    names.map(str::to_owned).collect()
}

fn exists(tests: &Tests, name: &str) -> bool {
    let words: Vec<&str> = name.split("::").collect();
    let [krate, middle @ .., test] = &words[..] else { return false };
    let krate = krate.replace('_', "-");
    let folder = krate.strip_prefix("pilotage-").unwrap_or(&krate);
    let modules: Vec<&&str> = middle.iter().filter(|word| !NO_FILE.contains(*word)).collect();
    tests.get(folder).is_some_and(|known| {
        known.iter().any(|(found, file)| {
            found == test && modules.iter().all(|module| file.iter().any(|word| word == **module))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_tests_are_found() {
        let rows = read_rows("| D-1 | §5 | MUST | a | b | `pilotage_wire::packet::tests::t` |\nother\n");
        assert_eq!((rows.len(), rows[0].level.as_str()), (1, "MUST"));
        assert_eq!(tests_in("#[test]\n#[cfg(unix)]\nfn a_b() {}\n// #[test] fn c() {}\nfn d() {}"), ["a_b"]);
        assert_eq!(modules_in("mod a {\n    mod b {\n// mod c {\nmod d;\n"), ["a", "b"]);
    }

    #[test]
    fn not_yet_goes_once_all_named_tests_exist() {
        let mut tests = Tests::new();
        tests.insert("wire".into(), vec![("t".into(), vec!["src".into(), "packet".into()])]);
        let (has, lacks) = ("`pilotage_wire::packet::tests::t`", "`pilotage_wire::packet::tests::u`");
        let row = |proof: &str| format!("| D-1 | 1 | MUST | a | b | {proof} |\n");
        assert_eq!(without_fulfilled(&row(&format!("not yet: {has}")), &tests), row(has));
        for kept in [format!("not yet: {has} {lacks}"), "not yet: a service".into(), lacks.into()] {
            assert_eq!(without_fulfilled(&row(&kept), &tests), row(&kept));
        }
        let problems = |proof: &str| problems_of(&read_rows(&row(proof))[0], &tests).len();
        assert_eq!(problems(has), 0);
        assert_eq!(problems(lacks), 1);
        assert_eq!(problems(""), 1);
        assert_eq!(problems(&format!("not yet: {lacks}")), 0);
        assert_eq!(problems(&format!("not yet: {has}")), 1);
        assert_eq!(problems("not applicable: reason"), 0);
    }

    #[test]
    fn a_name_must_match_crate_module_and_function() {
        let mut tests = Tests::new();
        tests.insert("wire".into(), vec![("t".into(), vec!["src".into(), "packet".into()])]);
        assert!(exists(&tests, "pilotage_wire::packet::tests::t"));
        assert!(!exists(&tests, "pilotage_wire::frame::tests::t"));
        assert!(!exists(&tests, "pilotage_nat::packet::tests::t"));
        assert!(!exists(&tests, "pilotage_wire::packet::tests::u"));
        assert!(!exists(&tests, "t"));
    }
}
