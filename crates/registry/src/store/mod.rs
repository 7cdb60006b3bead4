//! The registry's file: one redb database, one write transaction per batch, synced before it returns.
//!
//! # Contract
//! * [`Store::commit`] returns `Ok` only when every record of the batch is on disk; the replies of the batch may then be
//!   sent (spec/registry.md §8.1).
//! * After any error the store is *down*: the database handle is closed, nothing more is written, and
//!   [`Store::recover`] must succeed before the next commit. A failed commit may or may not have reached the disk
//!   (a lost sync), so `recover` writes the caller's present state of exactly those records.
//! * Errors say what happened to the data, which file or folder is concerned, and what the operator can do.
//!
//! The file is locked while open. Its pages carry checksums, which are all verified when it is opened.

#[cfg(test)]
pub(crate) mod faulty;
mod still;
#[cfg(test)]
mod tests;

use crate::engine::{Record, RecordError, Row, RowError, RowKey};
use pilotage_fault as fault;
use pilotage_wire::NodeId;
use redb::{Builder, Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use std::collections::BTreeSet;
use std::fs::{OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Everything is loaded at start, so a page cache is needed only for the upper levels of the tree. Bytes.
const CACHE_SIZE: usize = 32 << 20;
/// Node id → [`Record::encode`].
const NODES: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("nodes");
/// [`RowKey::encode`] → [`Row::encode`].
const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");
/// Small facts about the file.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Meta key: layout of the tables.
const SCHEMA: &str = "schema";
/// Meta key: how often the file was opened for writing. Counting proves that it can be written.
const OPENED: &str = "opened";
const SCHEMA_VERSION: u64 = 1;

/// What a simulated disk must be able to do.
pub use redb::StorageBackend;
pub use still::Still;

/// Opens the database; a test puts a faulty disk here.
pub(crate) type Opener = Box<dyn FnMut() -> Result<Database, redb::DatabaseError> + Send>;

/// A durable map from node id to record.
pub struct Store {
    /// For messages.
    path: PathBuf,
    open: Opener,
    /// `None` while down.
    db: Option<Database>,
    /// Records of the commit that failed.
    suspect: BTreeSet<NodeId>,
    /// Rows of the commit that failed.
    suspect_rows: BTreeSet<RowKey>,
    /// Encoding buffer.
    scratch: Vec<u8>,
    still: Still,
}

/// Why the store cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk or quota is exhausted.
    #[error("hub's disk is full: nothing was stored; free space in {}", dir.display())]
    Full {
        /// Folder of the store.
        dir: PathBuf,
    },
    /// Another process has the file open.
    #[error("hub's store {} is in use by another process; stop that hub or choose another file", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The content is damaged or not ours.
    #[error("hub's store {} is damaged or not a registry file ({detail}); restore a backup, or move the file away \
             and start empty: nodes get their addresses again when they register", path.display())]
    Corrupted {
        /// The file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// Written by a newer version.
    #[error("hub's store {} was written by a newer version ({detail}); run that version", path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// Not readable or not writable: permissions, missing folder, a folder instead of a file, I/O error.
    #[error("hub cannot use its store {} ({source}): nothing was stored; check the path, its owner and the disk", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A commit was tried while down.
    #[error("hub's store {} is closed after an earlier error", path.display())]
    Down {
        /// The file.
        path: PathBuf,
    },
}

/// What [`Store::open`] found.
pub type Loaded = Vec<(NodeId, Record)>;

impl Store {
    /// Opens or creates the file at `path` (mode 0600, missing folders included) and reads all records.
    ///
    /// # Errors
    /// See [`StoreError`]; also when the disk is full, since the open is recorded in the file.
    pub fn open(path: &Path) -> Result<(Self, Loaded), StoreError> {
        Self::open_with(path, file_opener(path, CACHE_SIZE))
    }

    /// As [`Store::open`], on whatever `disk` gives each time that the database is opened: for tests and simulations.
    /// `path` appears in messages only.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open_on<B: StorageBackend>(
        path: &Path,
        mut disk: impl FnMut() -> B + Send + 'static,
    ) -> Result<(Self, Loaded), StoreError> {
        let open: Opener =
            Box::new(move || Builder::new().set_cache_size(CACHE_SIZE).create_with_backend(disk()));
        Self::open_with(path, open)
    }

    pub(crate) fn open_with(path: &Path, mut open: Opener) -> Result<(Self, Loaded), StoreError> {
        // The process before us has not quite gone.
        if fault::point!("registry.store.in_use") {
            return Err(StoreError::InUse { path: path.to_owned() });
        }
        let (db, intact) = open_checked(path, &mut open)?;
        if !intact {
            tracing::warn!(path = %path.display(), "store was damaged and has been repaired; the newest changes may be missing");
        }
        let mut store = Self {
            path: path.to_owned(),
            open,
            db: Some(db),
            suspect: BTreeSet::new(),
            suspect_rows: BTreeSet::new(),
            scratch: Vec::new(),
            still: Still::default(),
        };
        let records = store.load()?;
        store.mark_open()?;
        Ok((store, records))
    }

    /// Writes all `records` and `rows` (`None`: remove) in one transaction and syncs it. An empty batch costs nothing.
    ///
    /// # Errors
    /// See [`StoreError`]. None of the batch may be acknowledged, and the store is down.
    pub fn commit<'a>(
        &mut self,
        records: impl IntoIterator<Item = (NodeId, &'a Record)>,
        rows: impl IntoIterator<Item = (RowKey, Option<&'a Row>)>,
    ) -> Result<(), StoreError> {
        let mut records = records.into_iter().peekable();
        let mut rows = rows.into_iter().peekable();
        if records.peek().is_none() && rows.peek().is_none() {
            return Ok(());
        }
        let still = self.still.clone();
        let _writing = still.hold();
        let (mut written, mut written_rows) = (Vec::new(), Vec::new());
        let mut records = records.map(|(id, record)| {
            written.push(id);
            (id, Some(record))
        });
        let mut rows = rows.inspect(|(key, _)| written_rows.push(*key));
        let result = match &self.db {
            Some(_) if fault::point!("registry.store.disk_full") => {
                records.by_ref().for_each(drop);
                rows.by_ref().for_each(drop);
                Err(io::Error::from(io::ErrorKind::StorageFull).into())
            }
            // Everything may have reached the disk all the same.
            Some(db) => write(db, &mut records, &mut rows, &mut self.scratch).and_then(|()| {
                let lost = fault::point!("registry.store.sync_unsure");
                if lost { Err(io::Error::other("sync failed").into()) } else { Ok(()) }
            }),
            None => return Err(StoreError::Down { path: self.path.clone() }),
        };
        result.map_err(|error| {
            self.db = None;
            self.suspect.extend(written);
            self.suspect_rows.extend(written_rows);
            explain(&self.path, error)
        })
    }

    /// Keeps the file as it is while somebody copies it.
    #[must_use]
    pub fn still(&self) -> Still {
        self.still.clone()
    }

    /// True after an error, until [`Store::recover`] succeeds.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.db.is_none()
    }

    /// Tries to work again: opens the file and makes the records and rows of the failed commit what `current` and `row`
    /// say they are (`None`: there is none).
    ///
    /// # Errors
    /// See [`StoreError`]; the store stays down.
    pub fn recover<'a>(
        &mut self,
        current: impl Fn(NodeId) -> Option<&'a Record>,
        row: impl Fn(&RowKey) -> Option<&'a Row>,
    ) -> Result<(), StoreError> {
        if self.db.is_some() {
            return Ok(());
        }
        if fault::point!("registry.store.recover_fails") {
            return Err(StoreError::Full { dir: folder(&self.path) });
        }
        let still = self.still.clone();
        let _writing = still.hold();
        let (db, _) = open_checked(&self.path, &mut self.open)?;
        let mut records = self.suspect.iter().map(|&id| (id, current(id)));
        let mut rows = self.suspect_rows.iter().map(|key| (*key, row(key)));
        write(&db, &mut records, &mut rows, &mut self.scratch).map_err(|error| explain(&self.path, error))?;
        self.db = Some(db);
        self.mark_open()?;
        self.suspect.clear();
        self.suspect_rows.clear();
        Ok(())
    }

    fn load(&self) -> Result<Loaded, StoreError> {
        let Some(db) = &self.db else {
            return Err(StoreError::Down { path: self.path.clone() });
        };
        let rows = read(db).map_err(|error| explain(&self.path, error))?;
        let Some((schema, rows)) = rows else {
            return Ok(Vec::new());
        };
        if schema > SCHEMA_VERSION {
            return Err(StoreError::TooNew { path: self.path.clone(), detail: format!("layout {schema}") });
        }
        let mut records = Vec::with_capacity(rows.len());
        for (id, record) in rows {
            let record = record.map_err(|error| self.bad_record(&error))?;
            records.push((id, record));
        }
        Ok(records)
    }

    /// All rows, as stored.
    ///
    /// # Errors
    /// [`StoreError`] if one is damaged.
    pub fn rows(&self) -> Result<Vec<(RowKey, Row)>, StoreError> {
        let Some(db) = &self.db else {
            return Err(StoreError::Down { path: self.path.clone() });
        };
        let stored = read_rows(db).map_err(|error| explain(&self.path, error))?;
        let decode = |(key, bytes): (Vec<u8>, Vec<u8>)| {
            let key = RowKey::decode(&key)?;
            Ok((key, Row::decode(&key, &bytes)?))
        };
        stored
            .into_iter()
            .map(decode)
            .collect::<Result<_, RowError>>()
            .map_err(|error| StoreError::Corrupted { path: self.path.clone(), detail: error.to_string() })
    }

    /// How a record that contradicts the format or the other records is reported.
    pub(crate) fn bad_record(&self, error: &RecordError) -> StoreError {
        let (path, detail) = (self.path.clone(), error.to_string());
        match error {
            RecordError::Version(_) => StoreError::TooNew { path, detail },
            _ => StoreError::Corrupted { path, detail },
        }
    }

    fn mark_open(&mut self) -> Result<(), StoreError> {
        let Some(db) = &self.db else {
            return Err(StoreError::Down { path: self.path.clone() });
        };
        mark(db).map_err(|error| {
            self.db = None;
            explain(&self.path, error)
        })
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.path)
            .field("down", &self.is_down())
            .finish_non_exhaustive()
    }
}

/// Opens the file at `path`; creates it, but only the first time: a file that vanishes later must not be replaced by an
/// empty one.
pub(crate) fn file_opener(path: &Path, cache_size: usize) -> Opener {
    let path = path.to_owned();
    let mut may_create = true;
    Box::new(move || {
        if std::mem::take(&mut may_create) && !path.try_exists()? {
            create_whole(&path)?;
        }
        let file = options().open(&path)?;
        Builder::new().set_cache_size(cache_size).create_file(file)
    })
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    // Endpoints of private nodes are inside.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Makes a new database beside `path`, which gets its name only when it is complete: a process that dies on the way
/// leaves nothing behind that looks like a damaged store.
fn create_whole(path: &Path) -> Result<(), redb::DatabaseError> {
    let dir = folder(path);
    std::fs::create_dir_all(&dir)?;
    let mut part = path.as_os_str().to_owned();
    part.push(".new");
    let part = PathBuf::from(part);
    let file = options().create(true).truncate(false).open(&part)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(redb::DatabaseError::DatabaseAlreadyOpen),
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    // Another process was faster, and what is locked may be its file under a new name.
    if path.try_exists()? {
        return Ok(());
    }
    file.set_len(0)?;
    file.unlock()?;
    let db = Builder::new().create_file(file)?;
    if let Err(error) = std::fs::rename(&part, path)
        && !path.try_exists()?
    {
        return Err(error.into());
    }
    drop(db);
    // The name is as durable as the content.
    #[cfg(unix)]
    std::fs::File::open(&dir)?.sync_all()?;
    Ok(())
}

/// Opens the database and verifies all checksums: opening alone looks at the roots only. The flag is false if damage
/// was found and repaired.
fn open_checked(path: &Path, open: &mut Opener) -> Result<(Database, bool), StoreError> {
    guarded(path, || {
        let mut db = open()?;
        let intact = db.check_integrity()?;
        Ok((db, intact))
    })
}

/// Opens the database without a look at all its pages: for a file whose content proves itself. After a crash redb still
/// goes back to the last transaction whose checksums hold.
pub(crate) fn open_database(path: &Path, open: &mut Opener) -> Result<Database, StoreError> {
    guarded(path, open)
}

fn guarded<R>(
    path: &Path,
    attempt: impl FnOnce() -> Result<R, redb::DatabaseError>,
) -> Result<R, StoreError> {
    // redb asserts some properties of the file header instead of reporting them. Nothing of ours is touched inside, and
    // what redb holds is dropped with it.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(attempt)) {
        Ok(result) => result.map_err(|error: redb::DatabaseError| explain(path, error)),
        Err(_) => Err(StoreError::Corrupted {
            path: path.to_owned(),
            detail: "its header contradicts itself".into(),
        }),
    }
}

fn write<'a>(
    db: &Database,
    records: &mut dyn Iterator<Item = (NodeId, Option<&'a Record>)>,
    rows: &mut dyn Iterator<Item = (RowKey, Option<&'a Row>)>,
    scratch: &mut Vec<u8>,
) -> Result<(), redb::Error> {
    let transaction = db.begin_write()?;
    {
        let mut table = transaction.open_table(NODES)?;
        for (id, record) in records {
            match record {
                Some(record) => {
                    scratch.clear();
                    record.encode(scratch);
                    table.insert(id.0, scratch.as_slice())?;
                }
                None => {
                    table.remove(id.0)?;
                }
            }
        }
        let mut table = transaction.open_table(ROWS)?;
        for (key, row) in rows {
            let key = key.encode();
            match row {
                Some(row) => {
                    scratch.clear();
                    row.encode(scratch);
                    table.insert(key.as_slice(), scratch.as_slice())?;
                }
                None => {
                    table.remove(key.as_slice())?;
                }
            }
        }
    }
    // Durability::Immediate is the default: returns after fsync.
    transaction.commit()?;
    Ok(())
}

/// Keys and contents as stored.
type RawRows = Vec<(Vec<u8>, Vec<u8>)>;

/// Files of earlier versions have no such table.
fn read_rows(db: &Database) -> Result<RawRows, redb::Error> {
    let transaction = db.begin_read()?;
    let table = match transaction.open_table(ROWS) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        other => other?,
    };
    let mut rows = Vec::new();
    for row in table.iter()? {
        let (key, value) = row?;
        rows.push((key.value().to_vec(), value.value().to_vec()));
    }
    Ok(rows)
}

fn mark(db: &Database) -> Result<(), redb::Error> {
    let transaction = db.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        let opened = meta.get(OPENED)?.map_or(0, |count| count.value());
        meta.insert(OPENED, opened.wrapping_add(1))?;
        meta.insert(SCHEMA, SCHEMA_VERSION)?;
        transaction.open_table(NODES)?;
        transaction.open_table(ROWS)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Layout number and all rows; `None` for a file without our tables that holds nothing else.
type Rows = Option<(u64, Vec<(NodeId, Result<Record, RecordError>)>)>;

fn read(db: &Database) -> Result<Rows, redb::Error> {
    let transaction = db.begin_read()?;
    let meta = match transaction.open_table(META) {
        Err(redb::TableError::TableDoesNotExist(_)) => {
            // A new file has no tables. A file with others was written by some other program.
            return match transaction.list_tables()?.next() {
                None => Ok(None),
                Some(_) => Err(redb::Error::Corrupted("tables of another program".into())),
            };
        }
        other => other?,
    };
    let schema = meta.get(SCHEMA)?.map_or(0, |version| version.value());
    let mut rows = Vec::new();
    for row in transaction.open_table(NODES)?.iter()? {
        let (id, bytes) = row?;
        let id = NodeId(id.value());
        rows.push((id, Record::decode(id, bytes.value())));
    }
    Ok(Some((schema, rows)))
}

/// Maps redb's errors to what an operator can act on.
pub(crate) fn explain(path: &Path, error: impl Into<redb::Error>) -> StoreError {
    let path = path.to_owned();
    match error.into() {
        redb::Error::DatabaseAlreadyOpen => StoreError::InUse { path },
        redb::Error::UpgradeRequired(version) => {
            StoreError::Corrupted { path, detail: format!("file format {version}") }
        }
        redb::Error::Io(source) => match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                StoreError::Full { dir: folder(&path) }
            }
            // redb reports a file that is no database this way.
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                StoreError::Corrupted { path, detail: source.to_string() }
            }
            _ => StoreError::Io { path, source },
        },
        other => StoreError::Corrupted { path, detail: other.to_string() },
    }
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    }
}
