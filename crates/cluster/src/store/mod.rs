//! One redb file per node: log, vote, snapshot, and who this node is. `spec/cluster.md §3`.
//!
//! # Contract
//! * A vote, and every entry that was acknowledged, is on disk (fsync) before anybody hears of it.
//! * The state machine lives in memory: at start it is the stored snapshot, and the log from there on is applied again as
//!   far as it was committed.
//! * An error of the disk stops consensus on this node; others go on. Nothing is acknowledged that was not stored.
//! * Bounds: [`MAX_COMMAND`](crate::MAX_COMMAND) per entry, [`READ_BYTES`] per read, [`MAX_SNAPSHOT`](crate::MAX_SNAPSHOT).

#[cfg(any(test, feature = "chaos"))]
mod faulty;
mod log;
mod state;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use openraft::{AnyError, ErrorSubject, ErrorVerb, StorageIOError};
use redb::{Builder, Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use self::log::LogStore;
pub(crate) use self::state::StateStore;
use crate::faults::Faults;
use crate::machine::Machine;
use crate::types::{LogId, Member, Membership, RaftId, SnapshotMeta, StorageError, Vote, raft_id};

/// The log itself is read from disk; a page cache helps with its newest part. Bytes.
const CACHE_SIZE: usize = 16 << 20;
/// Most bytes of entries that one read returns, if it returns more than one entry.
pub(crate) const READ_BYTES: usize = 256 << 10;
/// Bytes of a row of the stored snapshot.
const SNAPSHOT_ROW: usize = 1 << 20;

/// Log index → entry (postcard).
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Row number → part of the newest snapshot.
const SNAPSHOT: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("snapshot");
/// Small facts (postcard).
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const SNAPSHOT_META: &str = "snapshot";
const INCARNATION: &str = "incarnation";
const CLUSTER: &str = "cluster";
const PEERS: &str = "peers";
const SCHEMA: &str = "schema";
const SCHEMA_VERSION: u32 = 1;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has it open.
    #[error("cluster file {} is in use by another process; stop that hub or choose another folder", .0.display())]
    InUse(PathBuf),
    /// Not a cluster file, or damaged beyond repair.
    #[error("cluster file {path} is damaged or not a cluster file ({detail}); move it away and join again: the node gets a new id and everything from the others", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// Written by a newer version.
    #[error("cluster file {path} was written by a newer version (layout {layout}); run that version", path = .path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its layout.
        layout: u32,
    },
    /// Permissions, a full disk, a missing folder.
    #[error("cluster file {path} cannot be used ({detail}); check the path, its owner and the disk", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
}

/// The open file. Clones share it.
#[derive(Clone)]
pub(crate) struct Store {
    db: Arc<Database>,
    id: RaftId,
    volatile: Arc<Mutex<Volatile>>,
}

/// What is written with the next thing that has to be durable.
#[derive(Default)]
struct Volatile {
    committed: Option<LogId>,
}

/// The machine with its place in the log.
pub(crate) struct Applied<M> {
    pub(crate) machine: M,
    pub(crate) last: Option<LogId>,
    pub(crate) membership: Membership,
}

/// Shared between consensus, which applies, and everybody who reads.
pub(crate) type SharedMachine<M> = Arc<RwLock<Applied<M>>>;

impl Store {
    /// Opens or makes the file. `faults` are for tests.
    pub(crate) fn open(path: &Path, key: &[u8; 32], faults: &Faults) -> Result<Self, StoreError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|error| StoreError::Io { path: path.to_owned(), detail: error.to_string() })?;
        }
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE_SIZE);
        #[cfg(any(test, feature = "chaos"))]
        let open = || builder.create_with_backend(faulty::FaultyFile::open(path, faults.clone())?);
        #[cfg(not(any(test, feature = "chaos")))]
        let open = {
            let _ = faults;
            || builder.create(path)
        };
        Self::open_by(path, key, open)
    }

    /// As [`Store::open`], on a simulated disk. `path` is for messages.
    #[cfg(test)]
    pub(crate) fn open_on(
        path: &Path,
        key: &[u8; 32],
        disk: impl redb::StorageBackend,
    ) -> Result<Self, StoreError> {
        Self::open_by(path, key, || Builder::new().set_cache_size(CACHE_SIZE).create_with_backend(disk))
    }

    fn open_by(
        path: &Path,
        key: &[u8; 32],
        open: impl FnOnce() -> Result<Database, redb::DatabaseError>,
    ) -> Result<Self, StoreError> {
        // redb asserts some properties of a file's header. Nothing of ours is touched inside.
        let db = std::panic::catch_unwind(std::panic::AssertUnwindSafe(open))
            .map_err(|_| StoreError::Damaged {
                path: path.to_owned(),
                detail: "its header contradicts itself".into(),
            })?
            .map_err(|error| explain(path, error))?;
        let incarnation = prepare(&db).map_err(|error| explain(path, error))?;
        let incarnation =
            incarnation.map_err(|layout| StoreError::TooNew { path: path.to_owned(), layout })?;
        let id = raft_id(key, &incarnation);
        Ok(Self { db: Arc::new(db), id, volatile: Arc::default() })
    }

    /// This node's id: stays the same as long as the file does.
    pub(crate) fn id(&self) -> RaftId {
        self.id
    }

    /// The cluster that this file belongs to; `None` before it was founded or joined.
    pub(crate) fn cluster(&self) -> Result<Option<[u8; 16]>, redb::Error> {
        self.meta(CLUSTER)
    }

    /// Members to listen to before the log names any.
    pub(crate) fn peers(&self) -> Result<Vec<(RaftId, Member)>, redb::Error> {
        Ok(self.meta(PEERS)?.unwrap_or_default())
    }

    /// Remembers which cluster this is and who was there when we joined.
    pub(crate) fn set_cluster(&self, id: [u8; 16], peers: &[(RaftId, Member)]) -> Result<(), redb::Error> {
        let transaction = self.db.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            put(&mut meta, CLUSTER, &id)?;
            put(&mut meta, PEERS, &peers)?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Makes a file that has seen nothing yet that of a cluster's first node, whose state is `bytes`: as if it had founded the cluster
    /// alone, come to that state, and purged its log. In one transaction: after a crash all of it is there, or nothing.
    pub(crate) fn begin_with(
        &self,
        cluster: [u8; 16],
        member: Member,
        bytes: &[u8],
    ) -> Result<(), redb::Error> {
        let last = LogId::new(openraft::CommittedLeaderId::new(1, self.id), 1);
        let members = openraft::Membership::new(
            vec![std::collections::BTreeSet::from([self.id])],
            std::collections::BTreeMap::from([(self.id, member)]),
        );
        let about = SnapshotMeta {
            last_log_id: Some(last),
            last_membership: Membership::new(Some(last), members),
            snapshot_id: "begin".into(),
        };
        let transaction = self.db.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            let fresh = meta.get(CLUSTER)?.is_none() && meta.get(VOTE)?.is_none();
            if !fresh || transaction.open_table(LOG)?.first()?.is_some() {
                return Err(redb::Error::Corrupted("it is a node of a cluster already".into()));
            }
            put(&mut meta, VOTE, &Vote::new_committed(1, self.id))?;
            put(&mut meta, PURGED, &last)?;
            put(&mut meta, COMMITTED, &last)?;
            put(&mut meta, CLUSTER, &cluster)?;
            put(&mut meta, PEERS, &Vec::<(RaftId, Member)>::new())?;
            write_snapshot(&transaction, &mut meta, &about, bytes)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn meta<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, redb::Error> {
        let transaction = self.db.begin_read()?;
        let meta = transaction.open_table(META)?;
        meta.get(name)?.map(|bytes| decode(bytes.value())).transpose()
    }

    fn volatile(&self) -> MutexGuard<'_, Volatile> {
        self.volatile.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stored snapshot with its bytes.
    fn snapshot(&self) -> Result<Option<(SnapshotMeta, Vec<u8>)>, redb::Error> {
        let transaction = self.db.begin_read()?;
        let meta = transaction.open_table(META)?;
        let Some(about) = meta.get(SNAPSHOT_META)? else { return Ok(None) };
        let (about, len): (SnapshotMeta, u64) = decode(about.value())?;
        let mut bytes = Vec::new();
        for row in transaction.open_table(SNAPSHOT)?.iter()? {
            bytes.extend_from_slice(row?.1.value());
        }
        if bytes.len() as u64 != len {
            return Err(redb::Error::Corrupted(format!(
                "snapshot has {} bytes instead of {len}",
                bytes.len()
            )));
        }
        Ok(Some((about, bytes)))
    }

    /// Replaces the stored snapshot, durably.
    fn set_snapshot(&self, about: &SnapshotMeta, bytes: &[u8]) -> Result<(), redb::Error> {
        let transaction = self.db.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            write_snapshot(&transaction, &mut meta, about, bytes)?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// The machine as the stored snapshot says. The log behind it is applied by openraft.
    pub(crate) fn restore<M: Machine>(&self, mut machine: M) -> Result<SharedMachine<M>, String> {
        let (mut last, mut membership) = (None, Membership::default());
        if let Some((about, bytes)) = self.snapshot().map_err(|error| error.to_string())? {
            machine.install(&bytes)?;
            (last, membership) = (about.last_log_id, about.last_membership);
        }
        Ok(Arc::new(RwLock::new(Applied { machine, last, membership })))
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Makes the tables of a new file and reads who it is; the layout, if that is newer than ours.
fn prepare(db: &Database) -> Result<Result<[u8; 16], u32>, redb::Error> {
    let transaction = db.begin_write()?;
    let incarnation;
    {
        let strange = transaction.list_tables()?.next().is_some();
        let mut meta = transaction.open_table(META)?;
        let layout: Option<u32> = get(&meta, SCHEMA)?;
        match layout {
            None if strange => return Err(redb::Error::Corrupted("tables of another program".into())),
            Some(layout) if layout > SCHEMA_VERSION => return Ok(Err(layout)),
            _ => {}
        }
        incarnation = match get::<[u8; 16]>(&meta, INCARNATION)? {
            Some(known) => known,
            None => {
                let mut fresh = [0; 16];
                getrandom::fill(&mut fresh)
                    .map_err(|error| redb::Error::Io(std::io::Error::other(error.to_string())))?;
                put(&mut meta, INCARNATION, &fresh)?;
                fresh
            }
        };
        put(&mut meta, SCHEMA, &SCHEMA_VERSION)?;
        transaction.open_table(LOG)?;
        transaction.open_table(SNAPSHOT)?;
    }
    transaction.commit()?;
    Ok(Ok(incarnation))
}

fn write_snapshot(
    transaction: &redb::WriteTransaction,
    meta: &mut MetaTable<'_>,
    about: &SnapshotMeta,
    bytes: &[u8],
) -> Result<(), redb::Error> {
    let mut rows = transaction.open_table(SNAPSHOT)?;
    let mut old = rows.len_rows()?;
    for (number, part) in (0_u32..).zip(bytes.chunks(SNAPSHOT_ROW)) {
        rows.insert(number, part)?;
        old = old.saturating_sub(1);
    }
    let first_stale = u32::try_from(bytes.chunks(SNAPSHOT_ROW).len()).unwrap_or(u32::MAX);
    if old > 0 {
        rows.retain_in(first_stale.., |_, _| false)?;
    }
    put(meta, SNAPSHOT_META, &(about, bytes.len() as u64))
}

type MetaTable<'t> = redb::Table<'t, &'static str, &'static [u8]>;

fn get<T: DeserializeOwned>(meta: &MetaTable<'_>, name: &str) -> Result<Option<T>, redb::Error> {
    meta.get(name)?.map(|bytes| decode(bytes.value())).transpose()
}

fn put<T: Serialize>(meta: &mut MetaTable<'_>, name: &str, value: &T) -> Result<(), redb::Error> {
    meta.insert(name, encode(value)?.as_slice())?;
    Ok(())
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, redb::Error> {
    postcard::to_stdvec(value).map_err(|error| redb::Error::Corrupted(format!("cannot be written: {error}")))
}

/// A row that cannot be read is a damaged file.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, redb::Error> {
    postcard::from_bytes(bytes).map_err(|error| redb::Error::Corrupted(format!("unreadable row: {error}")))
}

/// redb's row count under a name that says what it is here.
trait Rows {
    fn len_rows(&self) -> Result<u64, redb::Error>;
}

impl Rows for redb::Table<'_, u32, &'static [u8]> {
    fn len_rows(&self) -> Result<u64, redb::Error> {
        Ok(redb::ReadableTableMetadata::len(self)?)
    }
}

fn explain(path: &Path, error: impl Into<redb::Error>) -> StoreError {
    let path = path.to_owned();
    match error.into() {
        redb::Error::DatabaseAlreadyOpen => StoreError::InUse(path),
        redb::Error::Io(source) if source.kind() != std::io::ErrorKind::InvalidData => {
            StoreError::Io { path, detail: source.to_string() }
        }
        other => StoreError::Damaged { path, detail: other.to_string() },
    }
}

/// An error of the file, as consensus wants it.
fn failed(subject: ErrorSubject<RaftId>, verb: ErrorVerb, error: impl Into<redb::Error>) -> StorageError {
    let error: redb::Error = error.into();
    StorageIOError::new(subject, verb, AnyError::new(&error)).into()
}

/// Does `work`, which waits for the disk, without holding up the runtime's other tasks.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// The vote that is stored.
fn read_vote(store: &Store) -> Result<Option<Vote>, redb::Error> {
    store.meta(VOTE)
}

#[cfg(test)]
mod crash;
#[cfg(test)]
mod tests;
