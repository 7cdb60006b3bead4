//! Finding source files, and Rust text without comments and strings.

use std::path::{Path, PathBuf};

use crate::Failure;
use crate::process::{output, program, root};

/// Every file that git tracks or would track.
pub(super) fn files() -> Result<Vec<PathBuf>, Failure> {
    let list = output(program("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]))?;
    Ok(list.lines().map(|line| root().join(line)).filter(|path| path.is_file()).collect())
}

/// Those of them that are Rust.
pub(super) fn rust_files() -> Result<Vec<PathBuf>, Failure> {
    Ok(files()?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs")).collect())
}

/// The text of a file; bytes that are no UTF-8 are replaced.
pub(super) fn read(path: &Path) -> Result<String, Failure> {
    let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The same text with comments, strings and character literals replaced by blanks, so that braces and
/// words can be counted. Line breaks stay where they are.
pub(super) fn code_only(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at).unwrap_or(at);
        if end == at {
            out.push(chars[at]);
            at += 1;
            continue;
        }
        out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    out
}

/// Where the comment, string or character literal ends that begins at `at`; `None` if none begins there.
fn literal_end(chars: &[char], at: usize) -> Option<usize> {
    let next = chars.get(at + 1).copied();
    match (chars[at], next) {
        ('/', Some('/')) => Some(find(chars, at, |rest| rest[0] == '\n').unwrap_or(chars.len())),
        ('/', Some('*')) => Some(block_comment_end(chars, at)),
        ('r', Some('"' | '#')) if !is_word_before(chars, at) => raw_string_end(chars, at + 1),
        ('b', Some('r')) if !is_word_before(chars, at) => raw_string_end(chars, at + 2),
        ('"', _) => Some(string_end(chars, at)),
        ('\'', Some('\\')) => {
            Some(find(chars, at + 3, |rest| rest[0] == '\'').map_or(chars.len(), |end| end + 1))
        }
        // A lifetime has no closing quote two characters on.
        ('\'', Some(_)) if chars.get(at + 2) == Some(&'\'') => Some(at + 3),
        _ => None,
    }
}

fn is_word_before(chars: &[char], at: usize) -> bool {
    at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_')
}

fn find(chars: &[char], from: usize, hit: impl Fn(&[char]) -> bool) -> Option<usize> {
    (from..chars.len()).find(|&i| hit(&chars[i..]))
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let (mut depth, mut i) = (0_usize, at);
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                i += 1;
                continue;
            }
        }
        i += 2;
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn string_end(chars: &[char], at: usize) -> usize {
    let mut i = at + 1;
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

/// `at` is behind the `r`; `None` if no raw string begins there (a raw identifier, for example).
fn raw_string_end(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
    if chars.get(at + hashes) != Some(&'"') {
        return None;
    }
    let closing =
        |rest: &[char]| rest[0] == '"' && rest.len() > hashes && rest[1..=hashes].iter().all(|c| *c == '#');
    Some(find(chars, at + hashes + 1, closing).map_or(chars.len(), |end| end + 1 + hashes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_strings_and_characters_become_blanks() {
        let text = "a /* { /* } */ */ b // {\n\"}\\\"{\" r#\"{\"# '{' '\\'' 'a br\"{\" x";
        let code = code_only(text);
        assert!(!code.contains(['{', '}', '"']), "{code}");
        assert_eq!(code.lines().count(), text.lines().count());
        assert!(code.starts_with('a') && code.trim_end().ends_with('x'));
        assert!(code.contains("'a"), "lifetimes stay: {code}");
    }

    #[test]
    fn unterminated_literals_reach_the_end_and_do_not_panic() {
        for text in ["\"abc", "/* abc", "r#\"abc", "'\\", "//", "r#", "b"] {
            assert_eq!(code_only(text).chars().count(), text.chars().count(), "{text}");
        }
    }
}
