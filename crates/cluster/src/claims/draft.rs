//! The draft's registry of a cluster's hubs: [`Ledger`] over the same log as the claims. `spec/cluster.md §10`.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pilotage_registry::claims::CaughtUp;
use pilotage_registry::ledger::{
    Batch, Changes, Decided, Ledger, MAX_BATCH, Notice, Transaction, decode_verdicts,
};

use super::{ClaimsMachine, RaftLog, reason};
use crate::{Cluster, ClusterError, MAX_COMMAND};

/// Notices that wait to be read; the oldest go first, as newer ones come anyway.
const MAX_NOTICES: usize = 64;

/// Notices of other members.
#[derive(Clone, Default)]
pub(super) struct Inbox(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    notices: VecDeque<Notice>,
    wake: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inbox({} notices)", self.lock().notices.len())
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What cannot be read is of another version, and dropped.
    pub(super) fn put(&self, bytes: &[u8]) {
        let Some(notice) = Notice::decode(bytes) else { return };
        let mut waiting = self.lock();
        // Nobody reads at a node that is no hub.
        let Some(wake) = waiting.wake.clone() else { return };
        if waiting.notices.len() >= MAX_NOTICES {
            waiting.notices.pop_front();
        }
        waiting.notices.push_back(notice);
        drop(waiting);
        wake();
    }

    fn take(&self) -> Vec<Notice> {
        self.lock().notices.drain(..).collect()
    }
}

/// What this process proposes under.
#[derive(Debug)]
pub(super) struct Proposer {
    name: u64,
    number: AtomicU64,
    revision: Arc<AtomicU64>,
    inbox: Inbox,
}

impl Proposer {
    pub(super) fn new(cluster: &Cluster<ClaimsMachine>) -> Result<Self, ClusterError> {
        let mut name = [0; 8];
        getrandom::fill(&mut name).map_err(|error| ClusterError::System(error.to_string()))?;
        let (revision, inbox) = cluster.read(|machine| (machine.draft().revision(), machine.inbox()));
        Ok(Self { name: u64::from_be_bytes(name), number: AtomicU64::new(1), revision, inbox })
    }
}

impl Ledger for RaftLog {
    fn propose(&self, transactions: Vec<Transaction>, decided: Decided) {
        let number = self.draft.number.fetch_add(1, Ordering::Relaxed);
        let command = Batch { proposer: self.draft.name, number, transactions }.encode();
        self.cluster.propose_then(command, self.patience, move |outcome| {
            let verdicts = outcome.map_err(|error| reason(&error)).and_then(|answer| {
                decode_verdicts(&answer).ok_or_else(|| "an answer that cannot be read".to_owned())
            });
            decided(verdicts);
        });
    }

    fn revision(&self) -> u64 {
        self.draft.revision.load(Ordering::Acquire)
    }

    fn changes(&self, since: u64) -> Changes {
        self.cluster.read(|machine| machine.draft().changes(since))
    }

    fn catch_up(&self, then: CaughtUp) -> bool {
        self.heads.catch_up(then)
    }

    fn wake_by(&self, wake: Arc<dyn Fn() + Send + Sync>) {
        self.draft.inbox.lock().wake = Some(wake.clone());
        self.cluster.read(|machine| machine.draft().wake_by(wake));
    }

    fn tell(&self, notice: &Notice) {
        self.cluster.tell(&notice.encode());
    }

    fn heard(&self) -> Vec<Notice> {
        self.draft.inbox.take()
    }

    fn is_writable(&self) -> bool {
        self.cluster.has_majority()
    }
}

/// A batch, with what its encoding may add to the sizes of its transactions, fits into a command.
const _: () = assert!(MAX_BATCH + (32 << 10) <= MAX_COMMAND);

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use pilotage_registry::claims::Limits;

    use super::*;
    use crate::Machine as _;

    fn change(n: u16, machine: &ClaimsMachine) -> Vec<u8> {
        use pilotage_registry::engine::{Row, RowKey};
        use pilotage_registry::ledger::{Key, Value, print};
        let key = Key::Row(RowKey::NextNetwork);
        let old = machine.draft().changes(u64::MAX).values;
        let old = old.first().and_then(|(_, value)| value.as_ref()).map(|value| print(&value.encode()));
        let new = Value::Row(Row::NextNetwork(n)).encode();
        let transaction =
            Transaction { checks: vec![(key.encode(), old)], writes: vec![(key.encode(), Some(new))] };
        Batch { proposer: 1, number: n.into(), transactions: vec![transaction] }.encode()
    }

    #[test]
    fn a_snapshot_holds_both_and_an_old_one_claims_alone() {
        let mut machine = ClaimsMachine::new(Limits::default());
        let old = machine.snapshot();
        machine.apply(&change(2, &machine));
        let both = machine.snapshot();
        assert_ne!(old, both);
        let mut other = ClaimsMachine::new(Limits::default());
        other.install(&both).expect("its own");
        assert_eq!(other.snapshot(), both);
        // Goes on from there as the first does.
        let next = change(3, &machine);
        assert_eq!(other.apply(&next), machine.apply(&next));
        assert_eq!(other.snapshot(), machine.snapshot());
        let before = other.snapshot();
        for cut in 0..both.len() {
            assert!(other.install(&both[..cut]).is_err(), "{cut}");
        }
        let mut bad = both.clone();
        *bad.last_mut().expect("some") ^= 1;
        assert!(other.install(&bad).is_err());
        assert_eq!(other.snapshot(), before, "nothing of a damaged one is taken");
        other.install(&old).expect("of a version without a draft's registry");
        assert_eq!(other.snapshot(), old);
    }

    #[test]
    fn notices_wait_within_a_bound_for_a_hub_and_for_nobody_else() {
        let machine = ClaimsMachine::new(Limits::default());
        let notice = |n| Notice { seen: vec![n], calls: Vec::new() };
        machine.notice(&notice(0).encode());
        assert!(machine.inbox().take().is_empty());
        let woken = Arc::new(AtomicUsize::new(0));
        let count = woken.clone();
        machine.inbox().lock().wake = Some(Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        }));
        machine.notice(b"nonsense");
        for n in 0..100 {
            machine.notice(&notice(n).encode());
        }
        let kept = machine.inbox().take();
        assert_eq!((kept.len(), woken.load(Ordering::Relaxed)), (MAX_NOTICES, 100));
        assert_eq!(kept.last(), Some(&notice(99)));
    }
}
