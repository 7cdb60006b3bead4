//! [`RaftLog`]: the registry's claims in a cluster, behind the same trait as in one process; and the draft's registry of all its
//! hubs, as a [`Ledger`](pilotage_registry::ledger::Ledger).
//!
//! Signatures are checked on the node that was asked, before anything is ordered; the members trust each other's checks
//! (crash faults only, `spec/cluster.md §1`). Claims of all callers that wait share a log entry.

mod draft;
mod heads;
mod machine;

use std::collections::VecDeque;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pilotage_registry::claims::{
    Batch, CaughtUp, Claim, ClaimLog, Decided, Granted, Limits, LogError, MAX_BATCH, Outcome, Proof, Signed,
    SignedHead, Subject, TreeHead, check_all,
};

use self::heads::Heads;
pub use self::machine::{ClaimsMachine, KEPT_LEAVES};
use crate::{Cluster, ClusterConfig, ClusterError, Faults, MAX_COMMAND, ProposeError};

/// Most callers that wait for a place in a batch; further ones are told that the registry is busy.
pub const MAX_WAITING: usize = 4_096;
/// Most batches on their way at once.
pub const IN_FLIGHT: usize = 8;
/// How long a caller waits for a majority.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Claims in a cluster.
#[derive(Debug)]
pub struct RaftLog {
    cluster: Arc<Cluster<ClaimsMachine>>,
    /// `None` only while it is dropped.
    queue: Option<SyncSender<Job>>,
    worker: Option<JoinHandle<()>>,
    heads: Arc<Heads>,
    draft: draft::Proposer,
    pow_bits: u8,
    threads: usize,
    patience: Duration,
}

/// Claims of one caller that passed their checks.
struct Job {
    claims: Vec<Claim>,
    /// How long the caller waits for a majority.
    patience: Duration,
    decided: Decided,
}

impl RaftLog {
    /// Starts the node ([`Cluster::start`]). Claims need `pow_bits` bits of work.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub fn start(config: ClusterConfig, limits: Limits, pow_bits: u8) -> Result<Self, ClusterError> {
        let faults = config.faults.clone();
        let cluster = Arc::new(Cluster::start(config, ClaimsMachine::new(limits))?);
        let (queue, jobs) = mpsc::sync_channel(MAX_WAITING);
        let asked = cluster.clone();
        let worker = std::thread::Builder::new()
            .name("claims".into())
            .spawn(move || gather(&asked, &jobs, &faults))
            .map_err(|error| ClusterError::System(error.to_string()))?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (queue, worker) = (Some(queue), Some(worker));
        let heads = Arc::new(Heads::new(&cluster));
        let draft = draft::Proposer::new(&cluster)?;
        Ok(Self { cluster, queue, worker, heads, draft, pow_bits, threads, patience: PATIENCE })
    }

    /// As the default ([`PATIENCE`]), but another wait for a majority.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The node.
    #[must_use]
    pub fn cluster(&self) -> &Cluster<ClaimsMachine> {
        &self.cluster
    }

    /// As [`ClaimLog::holder`], but never older than anything that was acknowledged before the call.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] if no majority confirms in time.
    pub fn holder_now(&self, subject: &Subject) -> Result<Option<Granted>, LogError> {
        self.cluster.barrier(self.patience).map_err(unavailable)?;
        self.holder(subject)
    }
}

impl ClaimLog for RaftLog {
    fn propose(&self, claims: Vec<Claim>) -> Result<Vec<Outcome>, LogError> {
        let checked = check_all(&claims, self.pow_bits, self.threads);
        let (mut good, mut outcomes) = (Vec::with_capacity(claims.len()), Vec::with_capacity(claims.len()));
        for (claim, check) in claims.into_iter().zip(checked) {
            outcomes.push(check.err().map(Outcome::Bad));
            if matches!(outcomes.last(), Some(None)) {
                good.push(claim);
            }
        }
        let mut decided = VecDeque::with_capacity(good.len());
        while !good.is_empty() {
            let rest = good.split_off(good.len().min(MAX_BATCH));
            let claims = std::mem::replace(&mut good, rest);
            decided.extend(self.order(claims)?);
        }
        let missing = || LogError::Store("an answer without an outcome".into());
        outcomes.into_iter().map(|bad| bad.or_else(|| decided.pop_front()).ok_or_else(missing)).collect()
    }

    fn read(&self, partition: u8, from: u64, limit: usize) -> Result<Vec<Granted>, LogError> {
        self.cluster.read(|machine| machine.leaves(partition, from, limit))
    }

    fn holder(&self, subject: &Subject) -> Result<Option<Granted>, LogError> {
        Ok(self.cluster.read(|machine| machine.claims().holder(subject)))
    }

    fn head(&self, partition: u8) -> TreeHead {
        self.cluster.read(|machine| machine.claims().head(partition))
    }

    fn prove(&self, partition: u8, index: u64, size: u64) -> Result<Proof, LogError> {
        let proof = self.cluster.read(|machine| machine.claims().prove(partition, index, size));
        proof.ok_or_else(|| {
            LogError::Store(format!("partition {partition} has no leaf {index} in a tree of {size}"))
        })
    }

    fn submit_claims(&self, claims: Vec<Claim>, decided: Decided) -> Result<(), LogError> {
        let queue = self.queue.as_ref().ok_or_else(closed)?;
        queue.try_send(Job { claims, patience: self.patience, decided }).map_err(|error| match error {
            TrySendError::Full(_) => LogError::Busy,
            TrySendError::Disconnected(_) => closed(),
        })
    }

    fn prove_consistency(&self, partition: u8, old: u64, size: u64) -> Option<Proof> {
        self.cluster.read(|machine| machine.claims().prove_consistency(partition, old, size))
    }

    fn ready_head(&self, partition: u8, index: u64) -> Option<SignedHead> {
        self.heads.ready(partition, index)
    }

    fn newest_head(&self, partition: u8, signed: Signed) {
        self.heads.newest(partition, signed);
    }

    fn catch_up(&self, then: CaughtUp) -> bool {
        self.heads.catch_up(then)
    }

    fn node_key(&self) -> [u8; 32] {
        self.cluster.key()
    }

    fn signers(&self) -> Vec<[u8; 32]> {
        self.cluster.voters()
    }

    fn pow_bits(&self) -> u8 {
        self.pow_bits
    }

    fn claims(&self) -> usize {
        self.cluster.read(|machine| machine.claims().len())
    }

    fn snapshot(&self) -> Result<Vec<u8>, LogError> {
        Ok(self.cluster.read(|machine| machine.claims().snapshot()))
    }

    /// A cluster is not overwritten through one of its nodes.
    fn install(&self, _: &[u8]) -> Result<(), LogError> {
        let reason = "a snapshot is installed into a node that stands alone, which then founds a cluster";
        Err(LogError::Unavailable { reason: reason.into() })
    }
}

impl RaftLog {
    fn order(&self, claims: Vec<Claim>) -> Result<Vec<Outcome>, LogError> {
        let (answer, answered) = mpsc::channel();
        // Whoever has given up does not hear it.
        self.submit_claims(claims, Box::new(move |outcomes| drop(answer.send(outcomes))))?;
        match answered.recv_timeout(self.patience) {
            Ok(outcomes) => outcomes,
            Err(RecvTimeoutError::Timeout) => {
                let reason = format!("no majority of its nodes has answered within {:?}", self.patience);
                Err(LogError::Unavailable { reason })
            }
            Err(RecvTimeoutError::Disconnected) => Err(closed()),
        }
    }
}

impl Drop for RaftLog {
    /// When this returns the file and the ports are free.
    fn drop(&mut self) {
        self.queue = None;
        // On a thread of the cluster's nothing must wait for what that thread itself has to finish.
        if let Some(worker) = self.worker.take()
            && tokio::runtime::Handle::try_current().is_err()
        {
            let _ = worker.join();
        }
    }
}

/// Counts batches on their way.
#[derive(Debug, Default)]
struct Flights {
    count: Mutex<usize>,
    landed: Condvar,
}

impl Flights {
    fn take_off(&self) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = self
            .landed
            .wait_while(count, |count| *count >= IN_FLIGHT)
            .unwrap_or_else(PoisonError::into_inner);
        *count += 1;
    }

    fn land(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.landed.notify_one();
    }
}

/// Puts what waits into batches, until nobody can ask any more.
fn gather(cluster: &Arc<Cluster<ClaimsMachine>>, jobs: &Receiver<Job>, faults: &Faults) {
    let flights = Arc::new(Flights::default());
    let mut kept: Option<Job> = None;
    while let Some(first) = kept.take().or_else(|| jobs.recv().ok()) {
        flights.take_off();
        let mut size = first.claims.len();
        let mut group = vec![first];
        while let Ok(job) = jobs.try_recv() {
            if size + job.claims.len() > MAX_BATCH {
                kept = Some(job);
                break;
            }
            size += job.claims.len();
            group.push(job);
        }
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        submit(cluster, &flights, group, faults.time(time));
    }
}

fn submit(cluster: &Arc<Cluster<ClaimsMachine>>, flights: &Arc<Flights>, mut group: Vec<Job>, time: u64) {
    let sizes: Vec<usize> = group.iter().map(|job| job.claims.len()).collect();
    let claims = group.iter_mut().flat_map(|job| std::mem::take(&mut job.claims)).collect();
    let command = Batch { time, claims }.encode();
    debug_assert!(command.len() <= MAX_COMMAND);
    let flights = flights.clone();
    let patience = group.iter().map(|job| job.patience).max().unwrap_or(PATIENCE);
    cluster.propose_then(command, patience, move |outcome| {
        flights.land();
        let outcomes = outcome.map_err(|error| reason(&error)).and_then(|bytes| {
            let outcomes = machine::read_outcomes(&bytes);
            outcomes
                .filter(|outcomes| outcomes.len() == sizes.iter().sum::<usize>())
                .ok_or_else(|| "an answer that cannot be read".to_owned())
        });
        let mut outcomes = outcomes.map(Vec::into_iter);
        for (job, size) in group.into_iter().zip(sizes) {
            let part = match &mut outcomes {
                Ok(outcomes) => Ok(outcomes.by_ref().take(size).collect()),
                Err(reason) => Err(LogError::Unavailable { reason: reason.clone() }),
            };
            (job.decided)(part);
        }
    });
}

fn unavailable(error: ProposeError) -> LogError {
    LogError::Unavailable { reason: reason(&error) }
}

/// The cause alone: what to do stands in [`LogError::Unavailable`].
fn reason(error: &ProposeError) -> String {
    match error {
        ProposeError::Unavailable { waited, last } => {
            format!("no majority of its nodes has answered within {waited:?}: {last}")
        }
        other => other.to_string(),
    }
}

fn closed() -> LogError {
    LogError::Unavailable { reason: "the node is closed".into() }
}

/// A batch of the longest claims fits into a command.
const _: () = assert!(10 + MAX_BATCH * (2 + pilotage_registry::claims::CLAIM_MAX) <= MAX_COMMAND);

#[cfg(test)]
mod tests;
