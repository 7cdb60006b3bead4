//! The file: tables, transactions, and what is read at start.

use super::LocalConfig;
use super::writer::Kept;
use crate::claims::claim::partition_of;
use crate::claims::machine::{Granted, Part};
use crate::claims::merkle::leaf_hash;
use crate::claims::{
    Applied, Claim, Claims, Limits, LogError, PARTITIONS, QUARANTINE, Subject, SubjectKey, TreeHead,
};
use crate::store::{Opener, Still, StoreError, explain, open_database};
use pilotage_wire::NetworkId;
use redb::{
    AccessGuard, Database, ReadOnlyTable, ReadTransaction, ReadableDatabase as _, ReadableTable as _,
    ReadableTableMetadata as _, TableDefinition,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

/// Pages kept in memory. Bytes.
pub(super) const CACHE_SIZE: usize = 48 << 20;
/// Small facts: version, time, key of this node, heads.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("claims-meta");
/// [`SubjectKey`] → leaf (8), end of the lease (8), end of the quarantine (8), claim.
const ENTRIES: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("claims-entries");
/// Partition and leaf → claim, or only its hash (32 bytes) if it came with a snapshot.
const LEAVES: TableDefinition<'_, (u8, u64), &[u8]> = TableDefinition::new("claims-leaves");
/// Agent id and network → record.
const RECORDS: TableDefinition<'_, &[u8; 34], &[u8]> = TableDefinition::new("records");
const VERSION: &[u8] = &[1];

/// What was found in the file.
pub(super) struct Loaded {
    pub(super) claims: Claims,
    pub(super) node_key: [u8; 32],
}

pub(super) struct Disk {
    path: PathBuf,
    open: Mutex<Opener>,
    /// `None` after an error.
    db: RwLock<Option<Database>>,
    /// When opening again failed last, Unix seconds.
    failed: Mutex<Option<u64>>,
    still: Still,
}

impl Disk {
    pub(super) fn open(
        path: &Path,
        open: Opener,
        config: &LocalConfig,
    ) -> Result<(Self, Loaded), StoreError> {
        let disk = Self {
            path: path.to_owned(),
            open: Mutex::new(open),
            db: RwLock::new(None),
            failed: Mutex::default(),
            still: Still::default(),
        };
        let loaded = disk.load(config)?;
        Ok((disk, loaded))
    }

    pub(super) fn still(&self) -> Still {
        self.still.clone()
    }

    fn load(&self, config: &LocalConfig) -> Result<Loaded, StoreError> {
        let _writing = self.still.hold();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let db = open_database(&self.path, &mut open)?;
        let node_key = prepare(&db, &config.seed).map_err(|error| explain(&self.path, error))?;
        let transaction = db.begin_read().map_err(|error| explain(&self.path, error))?;
        // redb asserts what it believes about its pages; nothing of ours is touched inside.
        let read = std::panic::AssertUnwindSafe(|| read_claims(&transaction, config.limits));
        let claims = std::panic::catch_unwind(read)
            .unwrap_or_else(|_| Err(LoadError::Content("its pages contradict each other".into())))
            .map_err(|error| self.explain_load(error))?;
        drop(transaction);
        *self.db.write().unwrap_or_else(PoisonError::into_inner) = Some(db);
        Ok(Loaded { claims, node_key })
    }

    fn explain_load(&self, error: LoadError) -> StoreError {
        match error {
            LoadError::Redb(error) => explain(&self.path, error),
            LoadError::Content(detail) => StoreError::Corrupted { path: self.path.clone(), detail },
        }
    }

    /// After an error: opens and reads the file again, at most once a second. `None` if there was no error.
    pub(super) fn reopen(&self, config: &LocalConfig) -> Result<Option<Claims>, LogError> {
        if self.db.read().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(None);
        }
        let now = (config.clock)();
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if *failed == Some(now) {
            return Err(self.down());
        }
        match self.load(config) {
            Ok(loaded) => {
                *failed = None;
                Ok(Some(loaded.claims))
            }
            Err(error) => {
                *failed = Some(now);
                Err(LogError::Unavailable { reason: error.to_string() })
            }
        }
    }

    fn down(&self) -> LogError {
        LogError::Unavailable { reason: StoreError::Down { path: self.path.clone() }.to_string() }
    }

    fn with<R>(&self, run: impl FnOnce(&Database) -> Result<R, redb::Error>) -> Result<R, LogError> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let db = db.as_ref().ok_or_else(|| self.down())?;
        run(db).map_err(|error| LogError::Store(explain(&self.path, error).to_string()))
    }

    /// Writes a batch in one transaction and syncs it. After an error the file is closed.
    pub(super) fn commit(
        &self,
        applied: &Applied,
        records: &Kept<'_>,
        clock: (u64, u64),
        heads: &[TreeHead; PARTITIONS],
    ) -> Result<(), LogError> {
        let _writing = self.still.hold();
        let result = self.with(|db| write(db, applied, records, clock, heads));
        self.close_after(result)
    }

    /// Replaces all claims.
    pub(super) fn install(&self, claims: &Claims) -> Result<(), LogError> {
        let _writing = self.still.hold();
        let result = self.with(|db| replace(db, claims));
        self.close_after(result)
    }

    fn close_after(&self, result: Result<(), LogError>) -> Result<(), LogError> {
        if result.is_err() {
            *self.db.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        result
    }

    pub(super) fn reader(&self, time: u64) -> Result<Reader, LogError> {
        self.with(|db| {
            let transaction = db.begin_read()?;
            let (entries, records) = (transaction.open_table(ENTRIES)?, transaction.open_table(RECORDS)?);
            Ok(Reader { path: self.path.clone(), time, entries, records })
        })
    }

    pub(super) fn records(&self) -> Result<u64, LogError> {
        self.with(|db| Ok(db.begin_read()?.open_table(RECORDS)?.len()?))
    }

    pub(super) fn leaves(&self, partition: u8, from: u64, limit: usize) -> Result<Vec<Granted>, LogError> {
        let rows = self.with(|db| {
            let table = db.begin_read()?.open_table(LEAVES)?;
            let rows = table.range((partition, from)..=(partition, u64::MAX))?.take(limit);
            rows.map(|row| {
                row.map(|(key, value)| (key.value().1, value.value().to_vec())).map_err(redb::Error::from)
            })
            .collect::<Result<Vec<_>, _>>()
        })?;
        if let Some((last, _)) = rows.iter().rfind(|(_, bytes)| bytes.len() == 32) {
            return Err(LogError::Compacted { partition, first: last + 1 });
        }
        let leaf = |(index, bytes): (u64, Vec<u8>)| {
            let claim = Claim::decode(&bytes).map_err(|_| self.damaged("a leaf"))?;
            let until = u64::from(claim.expires);
            Ok(Granted { claim, index, until, hold: until + QUARANTINE })
        };
        rows.into_iter().map(leaf).collect()
    }

    pub(super) fn snapshot(&self, limits: Limits) -> Result<Vec<u8>, LogError> {
        let claims = self.with(|db| Ok(read_claims(&db.begin_read()?, limits)))?;
        claims
            .map(|claims| claims.snapshot())
            .map_err(|error| LogError::Store(self.explain_load(error).to_string()))
    }

    fn damaged(&self, what: &str) -> LogError {
        damaged(&self.path, what)
    }
}

fn damaged(path: &Path, what: &str) -> LogError {
    LogError::Store(
        StoreError::Corrupted { path: path.to_owned(), detail: format!("{what} is none") }.to_string(),
    )
}

/// Claims and records as they were committed when it was made. Keeps old pages alive: not to be held for long.
pub struct Reader {
    path: PathBuf,
    time: u64,
    entries: ReadOnlyTable<&'static [u8; 16], &'static [u8]>,
    records: ReadOnlyTable<&'static [u8; 34], &'static [u8]>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("path", &self.path).field("time", &self.time).finish_non_exhaustive()
    }
}

impl Reader {
    /// The claim that holds a subject, also in quarantine.
    ///
    /// # Errors
    /// [`LogError`] if the store fails.
    pub fn holder(&self, subject: &Subject) -> Result<Option<Granted>, LogError> {
        let Some(bytes) = self.entry(&subject.key())? else { return Ok(None) };
        let granted = entry(bytes.value()).ok_or_else(|| damaged(&self.path, "a claim"))?;
        Ok(Some(granted).filter(|granted| granted.hold > self.time))
    }

    /// As [`Reader::holder`] while its lease lasts, as bytes: leaf and claim.
    ///
    /// # Errors
    /// [`LogError`] if the store fails.
    pub fn claim(&self, subject: &Subject) -> Result<Option<(u64, Vec<u8>)>, LogError> {
        let Some(bytes) = self.entry(&subject.key())? else { return Ok(None) };
        let (index, until, _, claim) =
            entry_parts(bytes.value()).ok_or_else(|| damaged(&self.path, "a claim"))?;
        Ok((until > self.time).then(|| (index, claim.to_vec())))
    }

    /// The record of an agent in a network as it was published, also an expired one.
    ///
    /// # Errors
    /// [`LogError`] if the store fails.
    pub fn record(&self, agent_id: &[u8; 32], network: NetworkId) -> Result<Option<Vec<u8>>, LogError> {
        self.record_at(&record_key(agent_id, network))
    }

    pub(super) fn record_at(&self, key: &RecordKey) -> Result<Option<Vec<u8>>, LogError> {
        let found = self.records.get(key).map_err(|error| self.failed(error))?;
        Ok(found.map(|bytes| bytes.value().to_vec()))
    }

    /// Records behind a key (agent id, network), in order.
    ///
    /// # Errors
    /// [`LogError`] if the store fails.
    pub fn records_after(&self, key: &[u8; 34], most: usize) -> Result<Vec<Vec<u8>>, LogError> {
        let range = (std::ops::Bound::Excluded(key), std::ops::Bound::Unbounded);
        let rows = self.records.range::<&[u8; 34]>(range).map_err(|error| self.failed(error))?;
        rows.take(most)
            .map(|row| row.map(|(_, record)| record.value().to_vec()).map_err(|error| self.failed(error)))
            .collect()
    }

    fn entry(&self, key: &SubjectKey) -> Result<Option<AccessGuard<'_, &'static [u8]>>, LogError> {
        self.entries.get(key).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: redb::StorageError) -> LogError {
        LogError::Store(explain(&self.path, error).to_string())
    }
}

enum LoadError {
    Redb(redb::Error),
    Content(String),
}

impl<E: Into<redb::Error>> From<E> for LoadError {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

/// Agent id and network.
pub(super) type RecordKey = [u8; 34];

pub(super) fn record_key(agent_id: &[u8; 32], network: NetworkId) -> RecordKey {
    let mut key = [0; 34];
    key[..32].copy_from_slice(agent_id);
    key[32..].copy_from_slice(&network.0.to_be_bytes());
    key
}

fn entry_bytes(granted: &Granted) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(200);
    for number in [granted.index, granted.until, granted.hold] {
        bytes.extend(number.to_be_bytes());
    }
    bytes.extend(granted.claim.encode());
    bytes
}

fn entry_parts(bytes: &[u8]) -> Option<(u64, u64, u64, &[u8])> {
    let (index, rest) = bytes.split_first_chunk()?;
    let (until, rest) = rest.split_first_chunk()?;
    let (hold, claim) = rest.split_first_chunk()?;
    Some((u64::from_be_bytes(*index), u64::from_be_bytes(*until), u64::from_be_bytes(*hold), claim))
}

fn entry(bytes: &[u8]) -> Option<Granted> {
    let (index, until, hold, claim) = entry_parts(bytes)?;
    Some(Granted { claim: Claim::decode(claim).ok()?, index, until, hold })
}

/// Makes the tables, and gives the key of this node, made from `seed` if there is none. Writing at each start shows early
/// that the file can be written.
fn prepare(db: &Database, seed: &[u8; 32]) -> Result<[u8; 32], redb::Error> {
    let transaction = db.begin_write()?;
    let key = {
        let mut meta = transaction.open_table(META)?;
        let version = meta.get("version")?.map(|version| version.value().to_vec());
        if version.is_some_and(|version| version != VERSION) {
            return Err(redb::Error::Corrupted("claims of another version".into()));
        }
        meta.insert("version", VERSION)?;
        let found = meta.get("node")?.and_then(|key| key.value().try_into().ok());
        let key = found.unwrap_or(*seed);
        meta.insert("node", key.as_slice())?;
        transaction.open_table(ENTRIES)?;
        transaction.open_table(LEAVES)?;
        transaction.open_table(RECORDS)?;
        key
    };
    transaction.commit()?;
    Ok(key)
}

fn write(
    db: &Database,
    applied: &Applied,
    records: &Kept<'_>,
    clock: (u64, u64),
    heads: &[TreeHead; PARTITIONS],
) -> Result<(), redb::Error> {
    let transaction = db.begin_write()?;
    {
        let mut entries = transaction.open_table(ENTRIES)?;
        let mut leaves = transaction.open_table(LEAVES)?;
        for key in &applied.removed {
            entries.remove(key)?;
        }
        let granted = applied.keys().zip(&applied.granted);
        let mut granted: Vec<_> = granted.map(|(key, new)| (key, new.index, entry_bytes(new))).collect();
        // In the order of the keys: neighbours share pages.
        granted.sort_unstable_by_key(|(key, index, _)| (partition_of(key), *index));
        for (key, index, bytes) in &granted {
            leaves.insert((partition_of(key), *index), &bytes[24..])?;
        }
        // Of two for one subject the later one comes later.
        granted.sort_by_key(|(key, ..)| **key);
        for (key, _, bytes) in &granted {
            entries.insert(*key, bytes.as_slice())?;
        }
        let mut table = transaction.open_table(RECORDS)?;
        for (key, (_, bytes)) in records {
            table.insert(key, bytes.as_slice())?;
        }
        let mut meta = transaction.open_table(META)?;
        write_meta(&mut meta, clock, heads)?;
    }
    // Durability::Immediate is the default: returns after fsync.
    transaction.commit()?;
    Ok(())
}

fn write_meta(
    meta: &mut redb::Table<'_, &'static str, &'static [u8]>,
    (time, next_sweep): (u64, u64),
    heads: &[TreeHead; PARTITIONS],
) -> Result<(), redb::Error> {
    let clock = [time.to_be_bytes(), next_sweep.to_be_bytes()];
    meta.insert("clock", clock.as_flattened())?;
    let heads: Vec<u8> = heads.iter().flat_map(TreeHead::encode).collect();
    meta.insert("heads", heads.as_slice())?;
    Ok(())
}

fn replace(db: &Database, claims: &Claims) -> Result<(), redb::Error> {
    let transaction = db.begin_write()?;
    transaction.delete_table(ENTRIES)?;
    transaction.delete_table(LEAVES)?;
    {
        let mut entries = transaction.open_table(ENTRIES)?;
        let mut leaves = transaction.open_table(LEAVES)?;
        for partition in 0..PARTITIONS as u8 {
            for (index, hash) in claims.log(partition).leaves().enumerate() {
                leaves.insert((partition, index as u64), hash.as_slice())?;
            }
        }
        for (key, granted) in claims.all() {
            let bytes = entry_bytes(&granted);
            entries.insert(&key, bytes.as_slice())?;
            leaves.insert((granted.claim.subject.partition(), granted.index), &bytes[24..])?;
        }
        let mut meta = transaction.open_table(META)?;
        let heads = std::array::from_fn(|partition| claims.head(partition as u8));
        write_meta(&mut meta, (claims.time(), claims.next_sweep()), &heads)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Reads all claims, and holds the Merkle logs that follow from the leaves against the heads that were written with them.
fn read_claims(transaction: &ReadTransaction, limits: Limits) -> Result<Claims, LoadError> {
    let mut claims = Claims::new(limits);
    let stored = usize::try_from(transaction.open_table(ENTRIES)?.len()?);
    claims.reserve(stored.unwrap_or(usize::MAX));
    if transaction.open_table(LEAVES)?.range((PARTITIONS as u8, 0)..)?.next().is_some() {
        return Err(content("a leaf is of no partition"));
    }
    read_parts(transaction, &mut claims)?;
    let meta = transaction.open_table(META)?;
    if let Some(clock) = meta.get("clock")? {
        let (time, rest) = clock.value().split_first_chunk().ok_or_else(|| content("no time"))?;
        let (next_sweep, _) = rest.split_first_chunk().ok_or_else(|| content("no time"))?;
        claims.restore_time(u64::from_be_bytes(*time), u64::from_be_bytes(*next_sweep));
    }
    if let Some(heads) = meta.get("heads")? {
        let found = (0..PARTITIONS as u8).flat_map(|partition| claims.head(partition).encode());
        if !found.eq(heads.value().iter().copied()) {
            return Err(content("the claims are not those of the log's heads"));
        }
    }
    Ok(claims)
}

/// Threads that read at start, with the one that waits for it.
const READERS: usize = 4;

/// Reads the partitions on all cores.
fn read_parts(transaction: &ReadTransaction, claims: &mut Claims) -> Result<(), LoadError> {
    let helpers = std::thread::available_parallelism().map_or(1, usize::from).min(READERS) - 1;
    let next = AtomicU8::new(0);
    let one = || {
        let partition = next.fetch_add(1, Ordering::Relaxed);
        (usize::from(partition) < PARTITIONS).then(|| (partition, read_part(transaction, partition)))
    };
    std::thread::scope(|scope| {
        let helper = || std::iter::from_fn(one).collect::<Vec<_>>();
        let helpers: Vec<_> = (0..helpers).map(|_| scope.spawn(helper)).collect();
        let mut take = |(partition, part): (u8, Result<Part, LoadError>)| {
            part.map(|part| claims.restore_part(partition, part))
        };
        std::iter::from_fn(one).try_for_each(&mut take)?;
        for helper in helpers {
            let parts = helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            parts.into_iter().try_for_each(&mut take)?;
        }
        Ok(())
    })
}

/// One partition: its leaves, then what is held by them.
fn read_part(transaction: &ReadTransaction, partition: u8) -> Result<Part, LoadError> {
    let mut part = Part::default();
    for row in transaction.open_table(LEAVES)?.range((partition, 0)..=(partition, u64::MAX))? {
        let (key, value) = row?;
        if part.len() != key.value().1 {
            return Err(content("a leaf of the log is missing"));
        }
        let bytes = value.value();
        part.restore_leaf(bytes.try_into().unwrap_or_else(|_| leaf_hash(bytes)));
    }
    // The partition is the first four bits of the key.
    let (mut first, mut last) = ([0; 16], [0xff; 16]);
    (first[0], last[0]) = (partition << 4, partition << 4 | 0x0f);
    for row in transaction.open_table(ENTRIES)?.range::<&[u8; 16]>(&first..=&last)? {
        let (key, value) = row?;
        let (index, until, hold, claim) =
            entry_parts(value.value()).ok_or_else(|| content("a claim is cut off"))?;
        let restored = part.restore(key.value(), claim, index, until, hold);
        restored.map_err(|error| LoadError::Content(error.to_string()))?;
    }
    Ok(part)
}

fn content(text: &str) -> LoadError {
    LoadError::Content(text.to_owned())
}
