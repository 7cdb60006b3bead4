//! Where received messages and files lie.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::Kind;
use super::index::{Entry, Index};
use crate::clock::{rfc3339, unix_millis};
use crate::file::{Offer, Quota, ReceiveError, Sink, Target, check_name};

/// How many numbered names are tried for a file whose name is taken.
const NAME_TRIES: u32 = 1000;

/// A directory for what peers send, its limit and its index.
#[derive(Debug)]
pub struct Inbox {
    dir: PathBuf,
    fsync: bool,
    quota: Option<Arc<Quota>>,
    index: Index,
    /// Names promised to messages that are under way.
    promised: Mutex<HashSet<String>>,
}

/// A message or file that was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// What it is.
    pub kind: Kind,
    /// The name that the sender gave a file.
    pub name: Option<String>,
    /// Where it lies.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: u64,
}

/// A message that is being stored.
pub(super) struct Draft<'a> {
    promise: Promise<'a>,
    sink: Sink,
    kind: Kind,
    name: Option<String>,
    bytes: u64,
}

/// A name that nobody else is given while this lives.
struct Promise<'a> {
    inbox: &'a Inbox,
    file: String,
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        self.inbox.lock().remove(&self.file);
    }
}

impl Inbox {
    /// An inbox in `dir`, which must exist. `quota` may be shared with the file service on the same directory;
    /// `fsync` flushes each message to the disk before it is confirmed.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, quota: Option<Arc<Quota>>, fsync: bool) -> Self {
        let dir = dir.into();
        let index = Index::open(&dir);
        Self { dir, fsync, quota, index, promised: Mutex::new(HashSet::new()) }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Notes in the index something that another service stored here.
    pub fn note(&self, peer: &str, kind: Kind, path: &Path, bytes: u64) {
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let at = unix_millis(SystemTime::now());
        let entry = Entry { at, peer: peer.to_owned(), kind: kind.to_string(), file, bytes };
        if let Err(error) = self.index.add(&entry) {
            // The message itself is safe; only the list of `pilotage inbox` lacks it.
            tracing::warn!(%error, "cannot write the inbox index");
        }
    }

    /// Begins to store. A file keeps its name where that is free, and gets a number otherwise.
    pub(super) fn begin(&self, kind: Kind, name: Option<String>) -> Result<Draft<'_>, ReceiveError> {
        let wanted = match name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => {
                check_name(name).map_err(crate::file::WireError::from)?;
                name.to_owned()
            }
            None => message_name(kind),
        };
        let promise = self.promise(&wanted)?;
        let target = Target::Directory {
            dir: self.dir.clone(),
            force: false,
            fsync: self.fsync,
            quota: self.quota.clone(),
        };
        let sink = Sink::open(target, &Offer { name: promise.file.clone(), size: None })?;
        Ok(Draft { promise, sink, kind, name, bytes: 0 })
    }

    /// A name that neither lies there nor was promised to somebody else.
    fn promise(&self, wanted: &str) -> Result<Promise<'_>, ReceiveError> {
        let mut promised = self.lock();
        let (stem, extension) = match wanted.rsplit_once('.') {
            Some((stem, extension)) if !stem.is_empty() => (stem, format!(".{extension}")),
            _ => (wanted, String::new()),
        };
        let numbered = (2..NAME_TRIES).map(|n| format!("{stem} ({n}){extension}"));
        for name in std::iter::once(wanted.to_owned()).chain(numbered) {
            let free = !promised.contains(&name) && self.dir.join(&name).symlink_metadata().is_err();
            if free && check_name(&name).is_ok() {
                promised.insert(name.clone());
                return Ok(Promise { inbox: self, file: name });
            }
        }
        Err(ReceiveError::Exists(self.dir.join(wanted)))
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Draft<'_> {
    pub(super) fn write(&mut self, data: &[u8]) -> Result<(), ReceiveError> {
        self.bytes += data.len() as u64;
        self.sink.write(data)
    }

    /// Gives it its name; from now on it is there.
    pub(super) fn commit(self, peer: &str) -> Result<Stored, ReceiveError> {
        let Self { promise, sink, kind, name, bytes } = self;
        let inbox = promise.inbox;
        let path = sink.commit()?.ok_or_else(|| ReceiveError::Storage {
            path: inbox.dir.join(&promise.file),
            source: io::ErrorKind::NotFound.into(),
        })?;
        inbox.note(peer, kind, &path, bytes);
        Ok(Stored { kind, name, path, bytes })
    }
}

/// `message-20260102T030405Z-7.txt`.
fn message_name(kind: Kind) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let time: String =
        rfc3339(unix_millis(SystemTime::now())).chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    let extension = match kind {
        Kind::Text => "txt",
        Kind::Json => "json",
        _ => "bin",
    };
    format!("message-{time}-{}.{extension}", NUMBER.fetch_add(1, Ordering::Relaxed))
}
