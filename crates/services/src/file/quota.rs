//! How much a directory may be filled by what others send (spec/services.md §3.7).

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a file counts at least, so that many tiny ones meet the limit too.
const FILE_MIN: u64 = 4 * 1024;

/// A directory at its limit is looked through again at most this often.
const RESCAN: Duration = Duration::from_secs(10);

/// The limit of one directory, shared by all transfers into it.
#[derive(Debug)]
pub struct Quota {
    dir: PathBuf,
    limit: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Bytes of the files that lie there.
    stored: u64,
    /// Bytes of transfers that are under way.
    pending: u64,
    scanned: Instant,
}

/// The part of the limit that one transfer has taken. Dropped, it is given back; kept, the file counts as stored.
#[derive(Debug)]
pub(crate) struct Share {
    quota: Arc<Quota>,
    taken: u64,
}

impl Quota {
    /// A limit in bytes on what lies in `dir`, what lies there now included; each file counts 4 KiB at least.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, limit: u64) -> Arc<Self> {
        let dir = dir.into();
        let state = State { stored: scan(&dir), pending: 0, scanned: Instant::now() };
        Arc::new(Self { dir, limit, state: Mutex::new(state) })
    }

    /// Begins a transfer; `None` at the limit.
    pub(super) fn begin(self: &Arc<Self>) -> Option<Share> {
        self.take(FILE_MIN).then(|| Share { quota: self.clone(), taken: FILE_MIN })
    }

    /// The limit, in bytes.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    fn take(&self, bytes: u64) -> bool {
        let mut state = self.lock();
        let fits = |s: &State| s.stored.saturating_add(s.pending).saturating_add(bytes) <= self.limit;
        if !fits(&state) && state.scanned.elapsed() >= RESCAN {
            // Somebody may have made room.
            state.scanned = Instant::now();
            state.stored = scan(&self.dir);
        }
        let taken = fits(&state);
        if taken {
            state.pending += bytes;
        }
        taken
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Takes what a file of `total` bytes needs so far; `false` at the limit.
    pub(super) fn grow_to(&mut self, total: u64) -> bool {
        let more = total.saturating_sub(self.taken);
        let taken = more == 0 || self.quota.take(more);
        if taken {
            self.taken += more;
        }
        taken
    }

    /// The file has its name now.
    pub(super) fn keep(self) {
        self.quota.lock().stored += self.taken;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.quota.lock();
        state.pending = state.pending.saturating_sub(self.taken);
    }
}

/// Bytes of the files in a directory. Files being received are counted by their transfers.
fn scan(dir: &std::path::Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with(".pilotage-"))
        .filter_map(|entry| entry.metadata().ok())
        .filter(fs::Metadata::is_file)
        .map(|meta| meta.len().max(FILE_MIN))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_there_and_what_is_under_way_share_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("old"), vec![0; 50_000]).unwrap();
        let quota = Quota::new(dir.path(), 100_000);
        let mut first = quota.begin().expect("room");
        assert!(first.grow_to(30_000));
        let mut second = quota.begin().expect("room");
        assert!(!second.grow_to(30_000), "80,000 are taken");
        drop(first);
        assert!(second.grow_to(30_000), "given back");
        second.keep();
        assert_eq!(quota.lock().stored, 80_000);
        assert_eq!(quota.lock().pending, 0);
    }

    #[test]
    fn many_tiny_files_meet_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let quota = Quota::new(dir.path(), 10 * FILE_MIN);
        let shares: Vec<_> = std::iter::from_fn(|| quota.begin()).take(100).collect();
        assert_eq!(shares.len(), 10);
    }
}
