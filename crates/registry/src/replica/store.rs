//! Records held for others, in one redb file. `spec/replica.md §4`.
//!
//! One writer thread; what waits is committed together and answered when it is durable. Readers see committed state and
//! wait for nobody. Nothing is read at start. What cannot be opened any more may be removed: the agents bring it back.

use crate::book::message::OwnerKey;
use crate::claims::local::{Clock, Published};
use crate::record::{check_time, replaces};
use crate::replica::owner_key;
use crate::store::{StoreError, explain, file_opener, open_database};
use pilotage_wire::record::{Rank, Record};
use redb::{
    Database, ReadOnlyTable, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _,
    TableDefinition,
};
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

/// Pages kept in memory. Bytes.
const CACHE: usize = 16 << 20;
/// Puts that wait; more are refused as busy.
pub const MAX_WAITING: usize = 16 * 1_024;
/// Puts of one transaction.
const MAX_BATCH: usize = 1_024;
/// Records looked at each time that expired ones are removed.
const SWEEP: usize = 4_096;
/// How often that is.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// And after so many batches, if there is no pause.
const SWEEP_BATCHES: u32 = 512;
/// [`OwnerKey`] → length of the claim (2), claim, record.
const HELD: TableDefinition<'_, &[u8; 34], &[u8]> = TableDefinition::new("held");

type Table = ReadOnlyTable<&'static [u8; 34], &'static [u8]>;

/// A record with the claim of its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Encoded record.
    pub record: Vec<u8>,
    /// Encoded claim.
    pub claim: Vec<u8>,
}

/// What is to be kept: verified, and with the right to an address.
#[derive(Debug)]
pub struct Put {
    /// The record.
    pub record: Record,
    /// As it was signed.
    pub bytes: Vec<u8>,
    /// The claim that came with it.
    pub claim: Vec<u8>,
}

/// Called once, by the writer thread; must not block. The flag: the record is a new one.
pub type Done = Box<dyn FnOnce(Result<(Published, bool), StoreError>) + Send>;

/// The store.
#[derive(Debug)]
pub struct Replicas {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    clock: Clock,
    limit: u64,
    /// `None` after an error.
    db: RwLock<Option<Database>>,
    /// What is committed; taken by the writer before it answers, so that who was answered sees what was put.
    committed: RwLock<Option<Arc<Table>>>,
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    puts: VecDeque<(Put, Done)>,
    stop: bool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Replicas {
    /// Opens or creates the file (mode 0600). At most `limit` records.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: &Path, clock: Clock, limit: u64) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            clock,
            limit,
            db: RwLock::new(Some(open(path)?)),
            committed: RwLock::new(None),
            queue: Mutex::default(),
            wake: Condvar::new(),
        });
        shared.look()?;
        let of_thread = shared.clone();
        let writer = std::thread::Builder::new()
            .name("registry-replica".into())
            .spawn(move || of_thread.write())
            .map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
        Ok(Self { shared, writer: Some(writer) })
    }

    /// Hands a record to the writer; false if too many wait.
    pub fn submit(&self, put: Put, done: Done) -> bool {
        let mut queue = lock(&self.shared.queue);
        if queue.stop || queue.puts.len() >= MAX_WAITING {
            return false;
        }
        queue.puts.push_back((put, done));
        drop(queue);
        self.shared.wake.notify_one();
        true
    }

    /// What is held for an agent.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn get(&self, owner: &OwnerKey) -> Result<Option<Held>, StoreError> {
        self.shared.read(|table| Ok(table.get(owner)?.and_then(|bytes| split(bytes.value()))))
    }

    /// Records behind this key, in order; without those of private agents.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn after(&self, owner: &OwnerKey, most: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        use std::ops::Bound;
        self.shared.read(|table| {
            let mut records = Vec::new();
            let range = (Bound::Excluded(owner), Bound::Unbounded);
            for row in table.range::<&[u8; 34]>(range)? {
                let held = split(row?.1.value());
                records.extend(held.map(|held| held.record).filter(|record| !super::is_private(record)));
                if records.len() >= most {
                    break;
                }
            }
            Ok(records)
        })
    }

    /// How many are held.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn len(&self) -> Result<u64, StoreError> {
        self.shared.read(|table| Ok(table.len()?))
    }

    /// Whether none is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn is_empty(&self) -> Result<bool, StoreError> {
        self.len().map(|len| len == 0)
    }
}

impl Drop for Replicas {
    fn drop(&mut self) {
        lock(&self.shared.queue).stop = true;
        self.shared.wake.notify_all();
        if let Some(writer) = self.writer.take()
            && writer.thread().id() != std::thread::current().id()
        {
            let _ = writer.join();
        }
    }
}

impl Shared {
    fn with<R>(&self, run: impl FnOnce(&Database) -> Result<R, redb::Error>) -> Result<R, StoreError> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let db = db.as_ref().ok_or_else(|| StoreError::Down { path: self.path.clone() })?;
        run(db).map_err(|error| explain(&self.path, error))
    }

    fn read<R>(&self, run: impl FnOnce(&Table) -> Result<R, redb::Error>) -> Result<R, StoreError> {
        let table = self.committed.read().unwrap_or_else(PoisonError::into_inner).clone();
        let table = table.ok_or_else(|| StoreError::Down { path: self.path.clone() })?;
        run(&table).map_err(|error| explain(&self.path, error))
    }

    /// From now on readers see what is committed now.
    fn look(&self) -> Result<(), StoreError> {
        let table = self.with(|db| Ok(db.begin_read()?.open_table(HELD)?))?;
        *self.committed.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(table));
        Ok(())
    }

    fn write(&self) {
        let mut cursor = [0; 34];
        let mut batches = 0_u32;
        loop {
            let batch: Vec<(Put, Done)> = {
                let mut queue = lock(&self.queue);
                if queue.puts.is_empty() && !queue.stop {
                    let waited = self.wake.wait_timeout(queue, SWEEP_EVERY);
                    queue = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                if queue.stop {
                    return;
                }
                let count = queue.puts.len().min(MAX_BATCH);
                queue.puts.drain(..count).collect()
            };
            batches = batches.wrapping_add(1);
            if batch.is_empty() || batches.is_multiple_of(SWEEP_BATCHES) {
                cursor = self.sweep(&cursor);
            }
            self.batch(batch);
        }
    }

    fn batch(&self, batch: Vec<(Put, Done)>) {
        if batch.is_empty() {
            return;
        }
        let (puts, done): (Vec<Put>, Vec<Done>) = batch.into_iter().unzip();
        let result =
            self.reopened().and_then(|()| self.with(|db| keep(db, &puts, (self.clock)(), self.limit)));
        let result = result.and_then(|answers| self.look().map(|()| answers));
        match result {
            Ok(answers) => answers.into_iter().zip(done).for_each(|(answer, done)| done(Ok(answer))),
            Err(error) => {
                tracing::error!(%error, "registry's replicas cannot be written");
                self.close();
                done.into_iter().for_each(|done| done(Err(StoreError::Down { path: self.path.clone() })));
            }
        }
    }

    /// After an error: the file, opened again.
    fn reopened(&self) -> Result<(), StoreError> {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        if db.is_none() {
            *db = Some(open(&self.path)?);
            drop(db);
            self.look()?;
        }
        Ok(())
    }

    fn close(&self) {
        *self.committed.write().unwrap_or_else(PoisonError::into_inner) = None;
        *self.db.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Removes what nobody may use any more; where to go on next time.
    fn sweep(&self, cursor: &OwnerKey) -> OwnerKey {
        match self.with(|db| remove_expired(db, cursor, (self.clock)())) {
            Ok(next) => {
                if let Err(error) = self.look() {
                    tracing::warn!(%error, "replicas cannot be read");
                }
                next
            }
            Err(error) => {
                tracing::warn!(%error, "expired records are not removed");
                [0; 34]
            }
        }
    }
}

fn open(path: &Path) -> Result<Database, StoreError> {
    let db = open_database(path, &mut file_opener(path, CACHE))?;
    let prepare = || -> Result<(), redb::Error> {
        let transaction = db.begin_write()?;
        transaction.open_table(HELD)?;
        Ok(transaction.commit()?)
    };
    prepare().map_err(|error| explain(path, error))?;
    Ok(db)
}

fn split(bytes: &[u8]) -> Option<Held> {
    let (len, rest) = bytes.split_first_chunk()?;
    let (claim, record) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
    Some(Held { record: record.to_vec(), claim: claim.to_vec() })
}

fn join(put: &Put) -> Vec<u8> {
    let mut out = (put.claim.len() as u16).to_be_bytes().to_vec();
    out.extend_from_slice(&put.claim);
    out.extend_from_slice(&put.bytes);
    out
}

/// What becomes of each; all that are kept are durable.
fn keep(db: &Database, puts: &[Put], now: u64, limit: u64) -> Result<Vec<(Published, bool)>, redb::Error> {
    let transaction = db.begin_write()?;
    let mut answers = Vec::with_capacity(puts.len());
    {
        let mut table = transaction.open_table(HELD)?;
        let mut count = table.len()?;
        // Those of this batch are in the table already when the next one is decided.
        let mut decoded: HashMap<OwnerKey, Record> = HashMap::new();
        for put in puts {
            let owner = owner_key(&put.record.agent_id(), put.record.network);
            if let Err(error) = check_time(&put.record, now) {
                answers.push((Published::Refused(error), false));
                continue;
            }
            let old = table.get(&owner)?.and_then(|bytes| split(bytes.value()));
            let answer = match &old {
                Some(old) if old.record == put.bytes => Some(Published::Stored),
                Some(old) => older(old, put, decoded.get(&owner)),
                None if count >= limit => Some(Published::Full),
                None => None,
            };
            if let Some(answer) = answer {
                answers.push((answer, false));
                continue;
            }
            count += u64::from(old.is_none());
            table.insert(&owner, join(put).as_slice())?;
            decoded.insert(owner, put.record.clone());
            answers.push((Published::Stored, true));
        }
    }
    transaction.commit()?;
    Ok(answers)
}

/// The answer if the old record stays.
fn older(old: &Held, put: &Put, decoded: Option<&Record>) -> Option<Published> {
    let lowest = Rank { seq: 0, hash: [0; 32] };
    let rank = |bytes: &[u8]| Rank::of(bytes).unwrap_or(lowest);
    let parsed = match decoded {
        Some(record) => record.clone(),
        // What is no record is replaced.
        None => Record::decode(&old.record).ok()?,
    };
    let replaced = replaces(&parsed, rank(&old.record), rank(&put.bytes));
    (!replaced).then_some(Published::Older { seq: parsed.seq })
}

fn remove_expired(db: &Database, cursor: &OwnerKey, now: u64) -> Result<OwnerKey, redb::Error> {
    let mut gone = Vec::new();
    let mut next = [0; 34];
    {
        let table = db.begin_read()?.open_table(HELD)?;
        for (at, row) in table.range::<&[u8; 34]>(cursor..)?.enumerate() {
            let (key, value) = row?;
            if at == SWEEP {
                next = *key.value();
                break;
            }
            let expired = split(value.value())
                .and_then(|held| Record::decode(&held.record).ok())
                .is_none_or(|record| record.expires() < now);
            if expired {
                gone.push(*key.value());
            }
        }
    }
    if !gone.is_empty() {
        let transaction = db.begin_write()?;
        {
            let mut table = transaction.open_table(HELD)?;
            for key in &gone {
                table.remove(key)?;
            }
        }
        transaction.commit()?;
    }
    Ok(next)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilotage_wire::{NetworkId, NodeId};
    use std::sync::mpsc::channel;

    fn put(number: u32, seq: u64, issued: u32) -> Put {
        let mut key = [1; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        let mut record = Record::new(NetworkId(0), NodeId(number + 100), 0, key, seq, issued);
        record.ttl = 1_000;
        let bytes = record.encode().unwrap();
        Put { record, bytes, claim: vec![7; 10] }
    }

    fn wait(store: &Replicas, put: Put) -> (Published, bool) {
        let (send, receive) = channel();
        assert!(store.submit(put, Box::new(move |result| send.send(result.unwrap()).unwrap())));
        receive.recv().unwrap()
    }

    #[test]
    fn what_waits_and_what_is_held_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        // The writer stands still as long as somebody holds this.
        let gate = Arc::new(Mutex::new(()));
        let of_clock = gate.clone();
        let clock: Clock = Arc::new(move || {
            drop(of_clock.lock());
            1_000
        });
        let store = Replicas::open(&dir.path().join("r.redb"), clock, 2).unwrap();
        assert_eq!(wait(&store, put(1, 1, 900)), (Published::Stored, true));
        assert_eq!(wait(&store, put(1, 1, 900)), (Published::Stored, false), "nothing new");
        assert_eq!(wait(&store, put(2, 1, 900)), (Published::Stored, true));
        assert_eq!(wait(&store, put(3, 1, 900)), (Published::Full, false));
        assert_eq!(wait(&store, put(1, 2, 900)), (Published::Stored, true), "no new place is needed");
        assert_eq!(store.len().unwrap(), 2);
        let held = gate.lock().unwrap();
        let mut taken = 0;
        while store.submit(put(1, 2, 900), Box::new(|_| {})) {
            taken += 1;
            assert!(taken <= MAX_WAITING + MAX_BATCH, "no bound");
        }
        assert!(taken >= MAX_WAITING);
        drop(held);
        assert_eq!(
            store.get(&owner_key(&put(2, 1, 900).record.agent_id(), NetworkId(0))).unwrap().unwrap().claim,
            [7; 10]
        );
    }

    #[test]
    fn expired_records_are_removed_a_part_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let store = Replicas::open(&dir.path().join("r.redb"), Arc::new(|| 1_000), 1 << 20).unwrap();
        for number in 0..50 {
            wait(&store, put(number, 1, if number % 2 == 0 { 100 } else { 900 }));
        }
        let next = store.shared.with(|db| remove_expired(db, &[0; 34], 1_500)).unwrap();
        store.shared.look().unwrap();
        assert_eq!((next, store.len().unwrap()), ([0; 34], 25));
        let mut from = [0; 34];
        let mut listed = 0;
        loop {
            let page = store.after(&from, 10).unwrap();
            let Some(last) = page.last().and_then(|record| crate::replica::owner_in(record)) else { break };
            (from, listed) = (last, listed + page.len());
        }
        assert_eq!(listed, 25);
    }
}
