//! Heads that a majority of the nodes has signed, and catching up: many callers share one question to the others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use pilotage_registry::claims::{
    CaughtUp, HeadSignature, LogError, PARTITIONS, Signed, SignedHead, TreeHead,
};

use super::ClaimsMachine;
use crate::{Cluster, Signature};

/// Most callers that wait for heads or to catch up; further ones are told that the registry is busy.
pub(super) const MAX_CALLERS: usize = 4_096;
/// Longest wait for the others' signatures.
const SIGNING: Duration = Duration::from_millis(1_500);
/// Longest wait to catch up: without a majority there is nothing to wait for.
const CATCHING_UP: Duration = Duration::from_millis(1_000);

#[derive(Debug)]
pub(super) struct Heads {
    /// Who answers may be the last to hold the cluster; it shall not keep it alive meanwhile.
    cluster: Weak<Cluster<ClaimsMachine>>,
    partitions: [Mutex<Partition>; PARTITIONS],
    late: Mutex<Queue<CaughtUp>>,
    callers: AtomicUsize,
}

#[derive(Debug, Default)]
struct Partition {
    signed: Option<SignedHead>,
    queue: Queue<Signed>,
}

/// Who waits for the next round, while one is under way.
struct Queue<T> {
    waiting: Vec<T>,
    busy: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: Vec::new(), busy: false }
    }
}

impl<T> std::fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queue({} waiting)", self.waiting.len())
    }
}

impl<T> Queue<T> {
    /// Whether a round has to be begun.
    fn join(&mut self, caller: T) -> bool {
        self.waiting.push(caller);
        !std::mem::replace(&mut self.busy, true)
    }

    /// Those of the next round; nobody ends the work.
    fn next(&mut self) -> Vec<T> {
        self.busy = !self.waiting.is_empty();
        std::mem::take(&mut self.waiting)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Heads {
    pub(super) fn new(cluster: &Arc<Cluster<ClaimsMachine>>) -> Self {
        Self {
            cluster: Arc::downgrade(cluster),
            partitions: Default::default(),
            late: Mutex::default(),
            callers: AtomicUsize::new(0),
        }
    }

    fn partition(&self, partition: u8) -> MutexGuard<'_, Partition> {
        lock(&self.partitions[usize::from(partition) % PARTITIONS])
    }

    /// A place among those who wait; given back with [`Heads::leave`].
    fn enter(&self) -> bool {
        let taken = |callers| (callers < MAX_CALLERS).then_some(callers + 1);
        self.callers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }

    fn leave(&self, count: usize) {
        self.callers.fetch_sub(count, Ordering::Relaxed);
    }

    pub(super) fn ready(&self, partition: u8, index: u64) -> Option<SignedHead> {
        self.partition(partition).signed.clone().filter(|head| head.head.size > index)
    }

    /// Each round begins after its callers have asked, so that what they saw in the log is in it.
    pub(super) fn newest(self: &Arc<Self>, partition: u8, signed: Signed) {
        if !self.enter() {
            return signed(Err(LogError::Busy));
        }
        let begin = self.partition(partition).queue.join(signed);
        if begin {
            self.sign(partition);
        }
    }

    fn sign(self: &Arc<Self>, partition: u8) {
        let callers = self.partition(partition).queue.next();
        if callers.is_empty() {
            return;
        }
        let Some(cluster) = self.cluster.upgrade() else {
            return self.answer(callers, &Err((0, 0)));
        };
        let head = cluster.read(|machine| machine.claims().head(partition));
        let known = self.partition(partition).signed.clone().filter(|known| known.head.size == head.size);
        if let Some(known) = known {
            self.answer(callers, &Ok(known));
            return self.sign(partition);
        }
        let nodes = cluster.voters().len();
        let heads = self.clone();
        cluster.attest_then(head.encode().to_vec(), nodes / 2 + 1, SIGNING, move |signatures| {
            let result = signed(head, &signatures, nodes);
            if let Ok(head) = &result {
                heads.partition(partition).signed = Some(head.clone());
            }
            heads.answer(callers, &result);
            heads.sign(partition);
        });
    }

    fn answer(&self, callers: Vec<Signed>, result: &Result<SignedHead, (usize, usize)>) {
        self.leave(callers.len());
        for caller in callers {
            caller(match result {
                Ok(head) => Ok(head.clone()),
                Err((have, nodes)) => {
                    Err(LogError::NoQuorum { have: *have, need: nodes / 2 + 1, nodes: *nodes })
                }
            });
        }
    }

    pub(super) fn catch_up(self: &Arc<Self>, then: CaughtUp) -> bool {
        if !self.enter() {
            return false;
        }
        let begin = lock(&self.late).join(then);
        if begin {
            self.wait_for_leader();
        }
        true
    }

    fn wait_for_leader(self: &Arc<Self>) {
        let callers = lock(&self.late).next();
        if callers.is_empty() {
            return;
        }
        let heads = self.clone();
        let answer = move || {
            heads.leave(callers.len());
            callers.into_iter().for_each(|caller| caller());
            heads.wait_for_leader();
        };
        match self.cluster.upgrade() {
            Some(cluster) => cluster.barrier_then(CATCHING_UP, move |_| answer()),
            None => answer(),
        }
    }
}

/// The head with its signatures; how many there are of how many nodes if that is no majority.
fn signed(head: TreeHead, signatures: &[Signature], nodes: usize) -> Result<SignedHead, (usize, usize)> {
    if signatures.len() < nodes / 2 + 1 {
        return Err((signatures.len(), nodes));
    }
    let signatures = signatures.iter().map(|&(key, signature)| HeadSignature { key, signature }).collect();
    Ok(SignedHead { head, signatures })
}
