//! Claims and records in one redb file: the registry of one process. `spec/registry2.md §4`.
//!
//! # Contract
//! * One writer thread. What waits is decided and committed together: one sync for up to `MAX_GROUP` claims and records.
//!   An answer is given when its transaction is durable, never before.
//! * Readers see committed state only, and never wait for the writer: redb's snapshots, and Merkle logs up to the last
//!   committed size.
//! * After an error of the disk nothing more is written until the file was opened again and read anew; a batch that failed
//!   may or may not be in it. Meanwhile reading goes on from memory where it can, and proposals say why they fail.
//! * Bounds: [`MAX_WAITING`] items wait; more are refused as busy.

mod disk;
#[cfg(test)]
mod tests;
mod writer;

use super::{
    Applied, CaughtUp, Claim, ClaimLog, Claims, Decided, Granted, Limits, LogError, MAX_BATCH, Outcome,
    PARTITIONS, Proof, Signed, SignedHead, Subject, TreeHead, check_all,
};
use crate::claims::claim::partition_of;
use crate::claims::merkle::MerkleLog;
use crate::record::{self, Rank, Unbelievable};
use crate::store::{Opener, Still, StoreError};
use disk::Disk;
pub use disk::Reader;
use ed25519_dalek::{Signer as _, SigningKey};
use pilotage_wire::NetworkId;
use pilotage_wire::record::Record;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;

/// Most claims and records of one transaction. Each dirties pages of two trees, down from the roots: the more there are
/// together, the fewer pages are written for each.
const MAX_GROUP: usize = 2 * MAX_BATCH;
/// Most claims and records that wait for the writer.
pub const MAX_WAITING: usize = 64 * 1_024;

/// Unix time in seconds, from whoever has a clock.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What a registry of one process needs to know.
#[derive(Clone)]
pub struct LocalConfig {
    /// Leading zero bits that a claim's proof of work needs. Default: 16.
    pub pow_bits: u8,
    /// Bounds of claims.
    pub limits: Limits,
    /// Most records. Default: 16,777,216.
    pub records: usize,
    /// Threads that check signatures in [`ClaimLog::propose`]. Default: one.
    pub threads: usize,
    /// The time.
    pub clock: Clock,
    /// Key of this node if the file has none yet: 32 unpredictable bytes.
    pub seed: [u8; 32],
    /// Where the claims are, if this file keeps records only.
    pub holders: Option<Arc<dyn ClaimLog>>,
}

impl LocalConfig {
    /// Defaults.
    #[must_use]
    pub fn new(clock: Clock, seed: [u8; 32]) -> Self {
        Self {
            pow_bits: 16,
            limits: Limits::default(),
            records: 1 << 24,
            threads: 1,
            clock,
            seed,
            holders: None,
        }
    }
}

impl std::fmt::Debug for LocalConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pow_bits, limits, records, threads, .. } = self;
        write!(
            f,
            "LocalConfig {{ pow_bits: {pow_bits}, {limits:?}, records: {records}, threads: {threads}, .. }}"
        )
    }
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    /// It is stored, or was already.
    Stored,
    /// There is a newer one.
    Older {
        /// Number of that one.
        seq: u64,
    },
    /// Its key does not hold the address: claim that first.
    NoClaim,
    /// Its time is wrong, or its key was given up as known to others.
    Refused(Unbelievable),
    /// This registry holds as many records as it may.
    Full,
}

/// A record, and its bytes as they were signed.
pub type SignedRecord = (Record, Vec<u8>);

/// What is done together, in one transaction: first the claims, then the record.
#[derive(Debug, Clone, Default)]
pub struct Write {
    /// Passed by [`check`](super::check).
    pub claims: Vec<Claim>,
    /// A record with its bytes, verified.
    pub record: Option<SignedRecord>,
}

impl Write {
    fn weight(&self) -> usize {
        (self.claims.len() + usize::from(self.record.is_some())).max(1)
    }
}

/// What became of a [`Write`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// One per claim.
    pub outcomes: Vec<Outcome>,
    /// Of the record, if there was one.
    pub record: Option<Published>,
}

/// Called once, by the writer thread, when a write is durable or has failed. Must not block.
pub type Done = Box<dyn FnOnce(Result<Written, LogError>) + Send>;

/// The registry of one process; the [`ClaimLog`] of `pilotage hub` without a cluster.
#[derive(Debug)]
pub struct LocalLog {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    config: LocalConfig,
    node: SigningKey,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Also what the writer has applied but not committed.
    claims: RwLock<Claims>,
    /// Committed heads, and the logs under them: readers need not wait while a batch is decided.
    heads: RwLock<[TreeHead; PARTITIONS]>,
    logs: [RwLock<MerkleLog>; PARTITIONS],
    signed: Mutex<Vec<Option<SignedHead>>>,
    disk: Disk,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Queue {
    items: std::collections::VecDeque<(Job, Option<Done>)>,
    weight: usize,
    stop: bool,
}

#[allow(
    clippy::large_enum_variant,
    reason = "nearly all are writes; a box for each would cost more than it saves"
)]
enum Job {
    Write(Write),
    Install(Vec<u8>),
}

impl LocalLog {
    /// Opens or creates the file (mode 0600) and reads all claims.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: &Path, config: LocalConfig) -> Result<Self, StoreError> {
        Self::start(path, crate::store::file_opener(path, disk::CACHE_SIZE), config)
    }

    /// As [`LocalLog::open`] on whatever `disk` gives each time that the file is opened, for tests and simulations.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open_on<B: crate::store::StorageBackend>(
        path: &Path,
        mut disk: impl FnMut() -> B + Send + 'static,
        config: LocalConfig,
    ) -> Result<Self, StoreError> {
        let open: Opener = Box::new(move || {
            redb::Builder::new().set_cache_size(disk::CACHE_SIZE).create_with_backend(disk())
        });
        Self::start(path, open, config)
    }

    fn start(path: &Path, open: Opener, config: LocalConfig) -> Result<Self, StoreError> {
        let (disk, loaded) = Disk::open(path, open, &config)?;
        let heads = std::array::from_fn(|partition| loaded.claims.head(partition as u8));
        let logs = std::array::from_fn(|partition| RwLock::new(loaded.claims.log(partition as u8).clone()));
        let shared = Arc::new(Shared {
            node: SigningKey::from_bytes(&loaded.node_key),
            config,
            queue: Mutex::default(),
            wake: Condvar::new(),
            claims: RwLock::new(loaded.claims),
            heads: RwLock::new(heads),
            logs,
            signed: Mutex::new(vec![None; PARTITIONS]),
            disk,
        });
        let of_thread = shared.clone();
        let writer = std::thread::Builder::new()
            .name("registry-writer".into())
            .spawn(move || writer::run(&of_thread))
            .map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
        Ok(Self { shared, writer: Some(writer) })
    }

    /// The key with which this node signs heads.
    #[must_use]
    pub fn node_key(&self) -> [u8; 32] {
        self.shared.node.verifying_key().to_bytes()
    }

    /// Signs with that key. Whoever calls this puts a context of its own before what is signed.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.shared.node.sign(message).to_bytes()
    }

    /// Keeps the file as it is while somebody copies it.
    #[must_use]
    pub fn still(&self) -> Still {
        self.shared.disk.still()
    }

    /// Leading zero bits that a claim needs.
    #[must_use]
    pub fn pow_bits(&self) -> u8 {
        self.shared.config.pow_bits
    }

    /// Things claimed.
    #[must_use]
    pub fn claims(&self) -> usize {
        self.shared.claims().len()
    }

    /// Records stored.
    ///
    /// # Errors
    /// [`LogError`] if the store fails.
    pub fn records(&self) -> Result<u64, LogError> {
        self.shared.disk.records()
    }

    /// The time by this registry's clock, Unix seconds.
    #[must_use]
    pub fn now(&self) -> u64 {
        (self.shared.config.clock)()
    }

    /// Hands a write to the writer. What is in it must be checked and verified.
    ///
    /// # Errors
    /// [`LogError::Busy`] if too much waits; `done` is not called then.
    pub fn submit(&self, write: Write, done: Done) -> Result<(), LogError> {
        self.shared.push(Job::Write(write), done)
    }

    /// Verifies and stores records.
    ///
    /// # Errors
    /// [`LogError`]; the records may be published again.
    pub fn publish(&self, records: &[&[u8]]) -> Result<Vec<Published>, LogError> {
        let verified = record::verify_all(records, self.shared.config.threads);
        let writes = verified.into_iter().zip(records).map(|(result, bytes)| {
            let write = |record| Write { claims: Vec::new(), record: Some((record, bytes.to_vec())) };
            result.map(write)
        });
        let mut answers = Vec::with_capacity(records.len());
        let (send, receive) = sync_channel(records.len().max(1));
        let mut waiting = 0;
        for (at, write) in writes.enumerate() {
            match write {
                Ok(write) => {
                    self.submit(write, tell(&send, at))?;
                    waiting += 1;
                    answers.push(None);
                }
                Err(error) => answers.push(Some(Published::Refused(error))),
            }
        }
        for _ in 0..waiting {
            let (at, written): (usize, Result<Written, LogError>) = receive.recv().map_err(|_| stopped())?;
            answers[at] = written?.record;
        }
        Ok(answers.into_iter().map(|answer| answer.unwrap_or(Published::NoClaim)).collect())
    }

    /// The record of an agent in a network as it was published, also an expired one.
    ///
    /// # Errors
    /// [`LogError`] if the store fails.
    pub fn record(&self, agent_id: &[u8; 32], network: NetworkId) -> Result<Option<Vec<u8>>, LogError> {
        self.reader()?.record(agent_id, network)
    }

    /// A signed head that covers leaf `index` of a partition; heads are signed when somebody wants one.
    #[must_use]
    pub fn signed_head(&self, partition: u8, index: u64) -> SignedHead {
        let mut signed = lock(&self.shared.signed);
        let slot = &mut signed[usize::from(partition) % PARTITIONS];
        if let Some(head) = slot.as_ref().filter(|head| head.head.size > index) {
            return head.clone();
        }
        let head = self.head(partition);
        let new = SignedHead { head, signatures: vec![head.sign(&self.shared.node)] };
        slot.insert(new).clone()
    }

    /// The head of a partition as it is now, signed.
    #[must_use]
    pub fn fresh_head(&self, partition: u8) -> SignedHead {
        let size = self.head(partition).size;
        // Of an empty log there is a head as well.
        if size > 0 {
            return self.signed_head(partition, size - 1);
        }
        let head = self.head(partition);
        SignedHead { head, signatures: vec![head.sign(&self.shared.node)] }
    }

    /// Proof that the first `old` leaves are the start of the first `size`.
    #[must_use]
    pub fn prove_consistency(&self, partition: u8, old: u64, size: u64) -> Option<Proof> {
        self.shared.log(partition).consistency(old, size).map(Proof)
    }

    /// Claims and records as they are committed now, for many questions.
    ///
    /// # Errors
    /// [`LogError`] if the store fails.
    pub fn reader(&self) -> Result<Reader, LogError> {
        let time = self.head(0).time.max(self.now());
        self.shared.disk.reader(time)
    }
}

/// Where a caller of [`LocalLog::propose`] waits.
fn tell(send: &SyncSender<(usize, Result<Written, LogError>)>, at: usize) -> Done {
    let send = send.clone();
    Box::new(move |written| {
        // The caller has gone: nobody wants to know.
        let _ = send.try_send((at, written));
    })
}

impl ClaimLog for LocalLog {
    fn propose(&self, claims: Vec<Claim>) -> Result<Vec<Outcome>, LogError> {
        let checked = check_all(&claims, self.shared.config.pow_bits, self.shared.config.threads);
        let mut outcomes: Vec<Option<Outcome>> =
            checked.iter().map(|result| result.err().map(Outcome::Bad)).collect();
        let good: Vec<usize> = (0..claims.len()).filter(|&at| outcomes[at].is_none()).collect();
        let (send, receive) = sync_channel(good.len().div_ceil(MAX_BATCH).max(1));
        let mut claims: Vec<Option<Claim>> = claims.into_iter().map(Some).collect();
        for (part, places) in good.chunks(MAX_BATCH).enumerate() {
            let claims = places.iter().filter_map(|&at| claims[at].take()).collect();
            self.submit(Write { claims, record: None }, tell(&send, part))?;
        }
        for _ in 0..good.chunks(MAX_BATCH).len() {
            let (part, written) = receive.recv().map_err(|_| stopped())?;
            let places = good.chunks(MAX_BATCH).nth(part).unwrap_or(&[]);
            for (&at, outcome) in places.iter().zip(written?.outcomes) {
                outcomes[at] = Some(outcome);
            }
        }
        outcomes.into_iter().map(|outcome| outcome.ok_or_else(stopped)).collect()
    }

    fn read(&self, partition: u8, from: u64, limit: usize) -> Result<Vec<Granted>, LogError> {
        self.shared.disk.leaves(partition, from, limit)
    }

    fn holder(&self, subject: &Subject) -> Result<Option<Granted>, LogError> {
        self.reader()?.holder(subject)
    }

    fn head(&self, partition: u8) -> TreeHead {
        let heads = self.shared.heads.read().unwrap_or_else(PoisonError::into_inner);
        heads[usize::from(partition) % PARTITIONS]
    }

    fn prove(&self, partition: u8, index: u64, size: u64) -> Result<Proof, LogError> {
        let none = || LogError::Store(format!("partition {partition} has no leaf {index} of {size}"));
        self.shared.log(partition).inclusion(index, size).map(Proof).ok_or_else(none)
    }

    fn submit_claims(&self, claims: Vec<Claim>, decided: Decided) -> Result<(), LogError> {
        let done = move |written: Result<Written, LogError>| decided(written.map(|written| written.outcomes));
        self.submit(Write { claims, record: None }, Box::new(done))
    }

    fn prove_consistency(&self, partition: u8, old: u64, size: u64) -> Option<Proof> {
        self.prove_consistency(partition, old, size)
    }

    fn ready_head(&self, partition: u8, index: u64) -> Option<SignedHead> {
        (index < self.head(partition).size).then(|| self.signed_head(partition, index))
    }

    fn newest_head(&self, partition: u8, signed: Signed) {
        signed(Ok(self.fresh_head(partition)));
    }

    /// Nobody else grants anything.
    fn catch_up(&self, _: CaughtUp) -> bool {
        false
    }

    fn node_key(&self) -> [u8; 32] {
        self.node_key()
    }

    fn signers(&self) -> Vec<[u8; 32]> {
        vec![self.node_key()]
    }

    fn pow_bits(&self) -> u8 {
        self.pow_bits()
    }

    fn claims(&self) -> usize {
        self.claims()
    }

    fn snapshot(&self) -> Result<Vec<u8>, LogError> {
        self.shared.disk.snapshot(self.shared.config.limits)
    }

    fn install(&self, snapshot: &[u8]) -> Result<(), LogError> {
        let (send, receive) = sync_channel(1);
        self.shared.push(Job::Install(snapshot.to_vec()), tell(&send, 0))?;
        receive.recv().map_err(|_| stopped())?.1.map(drop)
    }
}

impl Drop for LocalLog {
    fn drop(&mut self) {
        lock(&self.shared.queue).stop = true;
        self.shared.wake.notify_all();
        if let Some(writer) = self.writer.take() {
            // It ends after the batch in hand; what waits is refused. The last owner may be an answer that the writer itself
            // has just given.
            if writer.thread().id() != std::thread::current().id() {
                let _ = writer.join();
            }
        }
    }
}

impl Shared {
    fn push(&self, job: Job, done: Done) -> Result<(), LogError> {
        let mut queue = lock(&self.queue);
        if queue.stop {
            return Err(stopped());
        }
        let weight = job.weight();
        if queue.weight + weight > MAX_WAITING {
            return Err(LogError::Busy);
        }
        queue.weight += weight;
        queue.items.push_back((job, Some(done)));
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }

    fn claims(&self) -> std::sync::RwLockReadGuard<'_, Claims> {
        self.claims.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn claims_mut(&self) -> std::sync::RwLockWriteGuard<'_, Claims> {
        self.claims.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self, partition: u8) -> std::sync::RwLockReadGuard<'_, MerkleLog> {
        self.logs[usize::from(partition) % PARTITIONS].read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was applied is on disk: readers may see the new leaves, and the heads over them. Only the writer applies, so
    /// that nothing else is in the logs meanwhile.
    fn committed(&self, applied: &Applied, heads: [TreeHead; PARTITIONS]) {
        let mut grown = [false; PARTITIONS];
        applied.keys().for_each(|key| grown[usize::from(partition_of(key))] = true);
        {
            let claims = self.claims();
            for partition in (0..PARTITIONS).filter(|&partition| grown[partition]) {
                let mut log = self.logs[partition].write().unwrap_or_else(PoisonError::into_inner);
                log.follow(claims.log(partition as u8));
            }
        }
        *self.heads.write().unwrap_or_else(PoisonError::into_inner) = heads;
    }

    /// Another state altogether, which is on disk.
    fn replaced(&self, claims: Claims) {
        for (partition, log) in self.logs.iter().enumerate() {
            *log.write().unwrap_or_else(PoisonError::into_inner) = claims.log(partition as u8).clone();
        }
        let heads = std::array::from_fn(|partition| claims.head(partition as u8));
        *self.claims_mut() = claims;
        lock(&self.signed).fill(None);
        *self.heads.write().unwrap_or_else(PoisonError::into_inner) = heads;
    }
}

impl Job {
    fn weight(&self) -> usize {
        match self {
            Self::Write(write) => write.weight(),
            Self::Install(_) => 1,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stopped() -> LogError {
    LogError::Unavailable { reason: "the registry is stopping".into() }
}

/// Rank of stored bytes; what is too short to be a record ranks lowest.
fn rank(bytes: &[u8]) -> Rank {
    Rank::of(bytes).unwrap_or(Rank { seq: 0, hash: [0; 32] })
}
