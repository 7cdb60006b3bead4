//! Length of files and functions (a ratchet: what is too long may only shrink), and leftovers.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use super::source::{code_only, files, read, rust_files};
use super::{Outcome, shown, verdict};
use crate::Failure;
use crate::process::root;

/// Longest file, in lines.
const FILE_LINES: usize = 700;
/// Longest function, in lines from `fn` to its closing brace.
const FUNCTION_LINES: usize = 70;

/// Text that never stays in the repository. Written in two halves so that this file passes.
const LEFTOVERS: &[(&str, &str)] = &[
    ("FIX", "ME"),
    ("to", "do!("),
    ("unimpl", "emented!("),
    ("db", "g!("),
    ("<<<<", "<<< "),
    (">>>>", ">>> "),
    ("/ho", "me/"),
    ("/ro", "ot/"),
    ("/wo", "rk/"),
];

pub(super) fn run(bless: bool) -> Result<Outcome, Failure> {
    let mut problems = leftovers()?;
    let found = too_long()?;
    if bless {
        write_bounds(&found)?;
    }
    let bounds = read_bounds()?;
    for (name, lines) in &found {
        match bounds.get(name) {
            Some(bound) if lines <= bound => {}
            Some(bound) => problems.push(format!("{name}: {lines} lines, its bound is {bound}: split it")),
            None => problems.push(format!("{name}: {lines} lines, too long: split it")),
        }
    }
    for (name, bound) in &bounds {
        match found.get(name) {
            Some(lines) if lines >= bound => {}
            _ => problems.push(format!(
                "{name}: shorter than its bound of {bound} now: run `cargo xtask check --only tidy --bless`"
            )),
        }
    }
    Ok(verdict(problems, format!("({} exceptions)", bounds.len())))
}

fn leftovers() -> Result<Vec<String>, Failure> {
    let mut problems = Vec::new();
    for path in files()? {
        let name = shown(&path);
        if name.starts_with("spec/vectors/") || name.ends_with(".lock") || name.ends_with(".bin") {
            continue;
        }
        for (number, line) in read(&path)?.lines().enumerate() {
            for (first, second) in LEFTOVERS {
                if line.contains(&format!("{first}{second}")) {
                    problems.push(format!("{name}:{}: `{first}{second}` must not stay", number + 1));
                }
            }
        }
    }
    Ok(problems)
}

/// Everything over its limit: `path` or `path fn name`, with its length in lines.
fn too_long() -> Result<BTreeMap<String, usize>, Failure> {
    let mut found = BTreeMap::new();
    for path in rust_files()? {
        let text = read(&path)?;
        let name = shown(&path);
        let lines = text.lines().count();
        if lines > FILE_LINES {
            found.insert(name.clone(), lines);
        }
        for (function, lines) in function_lengths(&text) {
            if lines > FUNCTION_LINES {
                let longest = found.entry(format!("{name} fn {function}")).or_insert(0);
                *longest = lines.max(*longest);
            }
        }
    }
    Ok(found)
}

/// Name and length of every function with a body.
fn function_lengths(text: &str) -> Vec<(String, usize)> {
    let code = code_only(text);
    let bytes = code.as_bytes();
    let mut lengths = Vec::new();
    for (start, _) in code.match_indices("fn ") {
        let word_before = start > 0 && (bytes[start - 1].is_ascii_alphanumeric() || bytes[start - 1] == b'_');
        let name: String =
            code[start + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if word_before || name.is_empty() {
            continue;
        }
        if let Some(end) = body_end(bytes, start) {
            let lines = code[start..end].matches('\n').count() + 1;
            lengths.push((name, lines));
        }
    }
    lengths
}

/// Position behind the closing brace of the function that begins at `start`; `None` without a body.
fn body_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let mut brackets = 0_usize;
    for (i, byte) in bytes.iter().enumerate().skip(start) {
        match byte {
            b'(' | b'[' => brackets += 1,
            b')' | b']' => brackets = brackets.saturating_sub(1),
            // A semicolon inside brackets belongs to an array type.
            b';' if depth == 0 && brackets == 0 => return None,
            b'{' => depth += 1,
            b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(i + 1);
                }
            }
            _ => {}
        }
    }
    None
}

fn bounds_path() -> PathBuf {
    root().join("crates/xtask/lengths.txt")
}

fn read_bounds() -> Result<BTreeMap<String, usize>, Failure> {
    let mut bounds = BTreeMap::new();
    for line in read(&bounds_path())?.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (lines, name) = line.split_once(' ').ok_or_else(|| format!("lengths.txt: `{line}`"))?;
        bounds.insert(name.to_owned(), lines.parse().map_err(|_| format!("lengths.txt: `{line}`"))?);
    }
    Ok(bounds)
}

fn write_bounds(found: &BTreeMap<String, usize>) -> Result<(), Failure> {
    let mut text = format!(
        "# What is longer than {FILE_LINES} lines (file) or {FUNCTION_LINES} lines (function), and its bound. It may only shrink.\n"
    );
    for (name, lines) in found {
        writeln!(text, "{lines} {name}")?;
    }
    Ok(std::fs::write(bounds_path(), text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_measured_from_fn_to_the_closing_brace() {
        let text = "trait T { fn none(&self, a: [u8; 3]); }\nfn one() { }\nfn two(x: [u8; 2]) -> u8 {\n  // }\n  if true { 1 } else { 2 }\n}\n";
        assert_eq!(function_lengths(text), [("one".to_owned(), 1), ("two".to_owned(), 4)]);
    }

    #[test]
    fn every_bound_names_something_that_is_too_long() {
        let found = too_long().expect("sources");
        for (name, bound) in read_bounds().expect("bounds") {
            assert!(
                found.get(&name).is_some_and(|lines| *lines >= bound),
                "{name} is shorter than {bound} now"
            );
        }
    }
}
