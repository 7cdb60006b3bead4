//! What came into an inbox, in order: one JSON line each in [`INDEX_FILE`].
//!
//! The file is only appended to, so a process that is killed loses at most its last line, and readers skip what they
//! cannot read. It is rewritten with the later half of its lines when it holds [`MAX_ENTRIES`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// Name of the index in the inbox directory. Names with this beginning are refused from peers.
pub const INDEX_FILE: &str = ".pilotage-inbox.jsonl";

/// Lines that the index holds at most.
pub const MAX_ENTRIES: usize = 10_000;

/// Longest line that is read, in bytes: longer ones are not ours.
const MAX_LINE: usize = 4096;

/// One thing that came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// Who sent it: the address that the tunnel proved.
    pub peer: String,
    /// `TEXT`, `BINARY`, `JSON`, `FILE` or `UNKNOWN(n)`.
    pub kind: String,
    /// Name of the file in the inbox directory.
    pub file: String,
    /// Its bytes.
    pub bytes: u64,
}

/// The index of one directory, as its only writer holds it.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    /// Lines in the file.
    lines: Mutex<usize>,
}

impl Index {
    pub(super) fn open(dir: &Path) -> Self {
        let path = dir.join(INDEX_FILE);
        let lines = read(&path).map_or(0, |entries| entries.len());
        // A line that was cut off must not swallow the next one.
        if fs::read(&path).is_ok_and(|bytes| bytes.last().is_some_and(|last| *last != b'\n')) {
            let _ = append(&path, b"\n");
        }
        Self { path, lines: Mutex::new(lines) }
    }

    pub(super) fn add(&self, entry: &Entry) -> io::Result<()> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if *lines >= MAX_ENTRIES {
            *lines = self.shorten()?;
        }
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        append(&self.path, &line)?;
        *lines += 1;
        Ok(())
    }

    /// Keeps the later half.
    fn shorten(&self) -> io::Result<usize> {
        let entries = read(&self.path)?;
        let kept = &entries[entries.len().saturating_sub(MAX_ENTRIES / 2)..];
        let fresh = self.path.with_extension("new");
        let mut file = File::create(&fresh)?;
        for entry in kept {
            let mut line = serde_json::to_vec(entry)?;
            line.push(b'\n');
            file.write_all(&line)?;
        }
        drop(file);
        fs::rename(&fresh, &self.path)?;
        Ok(kept.len())
    }
}

fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().append(true).create(true).open(path)?.write_all(bytes)
}

/// What came into the inbox `dir`, oldest first; at most [`MAX_ENTRIES`]. Empty if nothing ever came.
///
/// # Errors
/// The index is there and cannot be read.
pub fn list(dir: &Path) -> io::Result<Vec<Entry>> {
    read(&dir.join(INDEX_FILE))
}

fn read(path: &Path) -> io::Result<Vec<Entry>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut entries = Vec::new();
    // Bounded as a whole too, should somebody else have written it.
    let limit = (MAX_ENTRIES * MAX_LINE) as u64;
    for line in BufReader::new(io::Read::take(file, limit)).split(b'\n') {
        let line = line?;
        if line.len() <= MAX_LINE
            && let Ok(entry) = serde_json::from_slice(&line)
            && entries.len() < MAX_ENTRIES
        {
            entries.push(entry);
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at: u64) -> Entry {
        Entry { at, peer: "p".into(), kind: "TEXT".into(), file: format!("f{at}"), bytes: at }
    }

    #[test]
    fn a_torn_line_costs_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        Index::open(dir.path()).add(&entry(1)).unwrap();
        append(&dir.path().join(INDEX_FILE), b"{\"at\":2,\"pe").unwrap();
        Index::open(dir.path()).add(&entry(3)).unwrap();
        assert_eq!(list(dir.path()).unwrap(), [entry(1), entry(3)]);
    }

    #[test]
    fn the_index_is_bounded_and_keeps_the_latest() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(dir.path());
        for at in 0..=MAX_ENTRIES as u64 {
            index.add(&entry(at)).unwrap();
        }
        let entries = list(dir.path()).unwrap();
        assert_eq!(entries.len(), MAX_ENTRIES / 2 + 1);
        assert_eq!(entries.last(), Some(&entry(MAX_ENTRIES as u64)));
        assert!(list(&dir.path().join("nowhere")).unwrap().is_empty());
    }
}
