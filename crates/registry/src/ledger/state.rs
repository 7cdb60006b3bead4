//! The deterministic state that all nodes of a [`Ledger`](super::Ledger) have in common.

use super::{
    Batch, Changes, Key, MAX_TRANSACTIONS, Notice, Transaction, Value, Verdict, decode_verdicts,
    encode_verdicts, print,
};
use crate::engine::{Row, RowKey};
use pilotage_wire::NodeId;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

const MAGIC: &[u8; 4] = b"PRL1";
/// Proposers whose last batch is remembered. A node has another name after each start.
const MAX_PROPOSERS: usize = 256;
/// Changes that can be asked for one by one; who is further behind gets everything.
const MAX_RECENT: usize = 16_384;

/// How much a state may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Nodes. Default: 1,000,000, as of one node's registry.
    pub nodes: usize,
    /// Bytes of all keys and values. Default: 384 MiB, which leaves room in a snapshot of the cluster.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { nodes: 1_000_000, bytes: 384 << 20 }
    }
}

/// Why bytes are not a snapshot. The old state stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot of the registry is damaged; take another one")]
pub struct InstallError;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Proposer {
    name: u64,
    number: u64,
    verdicts: Vec<Verdict>,
}

/// The values with the indexes that make keys and names unique. The same batches in the same order give the same verdicts and
/// the same snapshot bytes on every machine; no clock, no randomness.
pub struct State {
    bounds: Bounds,
    values: BTreeMap<Box<[u8]>, Box<[u8]>>,
    bytes: usize,
    nodes: usize,
    /// Invariant: exactly the public keys and hostnames of all nodes, and the names of all networks.
    by_key: HashMap<[u8; 32], NodeId>,
    by_name: HashMap<Box<str>, NodeId>,
    by_network: HashMap<Box<str>, u16>,
    /// Who proposed last stands last.
    proposers: VecDeque<Proposer>,
    /// Changes since this process began; no part of the state.
    revision: Arc<AtomicU64>,
    recent: VecDeque<Key>,
    wake: Arc<OnceLock<Wake>>,
}

type Wake = Arc<dyn Fn() + Send + Sync>;

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("nodes", &self.nodes)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl State {
    /// Nothing is kept.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            values: BTreeMap::new(),
            bytes: 0,
            nodes: 0,
            by_key: HashMap::new(),
            by_name: HashMap::new(),
            by_network: HashMap::new(),
            proposers: VecDeque::new(),
            revision: Arc::default(),
            recent: VecDeque::new(),
            wake: Arc::default(),
        }
    }

    /// Nodes.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Nothing was ever applied.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.proposers.is_empty()
    }

    /// The revision, for a look without the state's lock.
    #[must_use]
    pub fn revision(&self) -> Arc<AtomicU64> {
        self.revision.clone()
    }

    /// `wake` is called after each change, under whatever lock the state is behind: it must neither block nor look here. Only the
    /// first one is.
    pub fn wake_by(&self, wake: Arc<dyn Fn() + Send + Sync>) {
        let _ = self.wake.set(wake);
    }

    /// Applies an encoded batch and gives the encoded verdicts; none for bytes that are no batch.
    pub fn apply(&mut self, command: &[u8]) -> Vec<u8> {
        let Some(batch) = Batch::decode(command) else { return encode_verdicts(&[]) };
        let at = self.proposers.iter().position(|known| known.name == batch.proposer);
        let known = at.and_then(|at| self.proposers.remove(at));
        let entry = match known {
            Some(known) if known.number == batch.number => known,
            // Given up long ago: whoever proposed it has told so.
            Some(known) if known.number > batch.number => {
                self.proposers.push_back(known);
                return encode_verdicts(&vec![Verdict::Conflict; batch.transactions.len()]);
            }
            _ => {
                let before = self.revision.load(Ordering::Acquire);
                let verdicts =
                    batch.transactions.iter().map(|transaction| self.decide(transaction)).collect();
                if self.revision.load(Ordering::Acquire) != before
                    && let Some(wake) = self.wake.get()
                {
                    wake();
                }
                Proposer { name: batch.proposer, number: batch.number, verdicts }
            }
        };
        let answer = encode_verdicts(&entry.verdicts);
        if self.proposers.len() >= MAX_PROPOSERS {
            self.proposers.pop_front();
        }
        self.proposers.push_back(entry);
        answer
    }

    fn decide(&mut self, transaction: &Transaction) -> Verdict {
        let writes = match self.check(transaction) {
            Ok(writes) => writes,
            Err(verdict) => return verdict,
        };
        for (key, bytes, value) in writes {
            self.write(key, bytes, value.as_ref());
        }
        Verdict::Applied
    }

    /// The writes, decoded, if all of them may be made.
    fn check<'a>(&self, transaction: &'a Transaction) -> Result<Vec<Write<'a>>, Verdict> {
        let checked: BTreeSet<&[u8]> = transaction.checks.iter().map(|(key, _)| key.as_slice()).collect();
        let mut writes = Vec::with_capacity(transaction.writes.len());
        let mut written = BTreeSet::new();
        for (name, bytes) in &transaction.writes {
            let key = Key::decode(name).ok_or(Verdict::Malformed)?;
            if !checked.contains(name.as_slice()) || !written.insert(key) {
                return Err(Verdict::Malformed);
            }
            let value = match bytes {
                Some(bytes) => Some(Value::decode(&key, bytes).ok_or(Verdict::Malformed)?),
                // An id stays with its key for ever (spec/registry.md §5.7).
                None if matches!(key, Key::Node(_)) => return Err(Verdict::Malformed),
                None => None,
            };
            writes.push((key, bytes.as_deref(), value));
        }
        for (name, seen) in &transaction.checks {
            let now = self.values.get(name.as_slice()).map(|bytes| print(bytes));
            if now != *seen {
                return Err(Verdict::Conflict);
            }
        }
        self.check_unique(&writes)?;
        let added: usize = writes.iter().map(|(_, bytes, _)| bytes.map_or(0, |bytes| bytes.len() + 9)).sum();
        let new = |(key, _, _): &&Write<'_>| {
            matches!(key, Key::Node(_)) && !self.values.contains_key(key.encode().as_slice())
        };
        let new_nodes = writes.iter().filter(new).count();
        // What changes without growing is always possible.
        let grows = writes.iter().any(|(key, bytes, _)| {
            let old = self.values.get(key.encode().as_slice()).map_or(0, |old| old.len());
            bytes.is_some_and(|bytes| bytes.len() > old)
        });
        if (grows && self.bytes + added > self.bounds.bytes)
            || (new_nodes > 0 && self.nodes + new_nodes > self.bounds.nodes)
        {
            return Err(Verdict::Full);
        }
        Ok(writes)
    }

    /// A key and a name belong to one node, a network's name to one network.
    fn check_unique(&self, writes: &[Write<'_>]) -> Result<(), Verdict> {
        let (mut keys, mut names, mut networks) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (key, _, value) in writes {
            let free = match (key, value) {
                (Key::Node(id), Some(Value::Node(record))) => {
                    let name = record.hostname.as_deref();
                    self.by_key.get(&record.public_key).is_none_or(|holder| holder == id)
                        && name.is_none_or(|name| self.by_name.get(name).is_none_or(|holder| holder == id))
                        && keys.insert(record.public_key)
                        && name.is_none_or(|name| names.insert(name))
                }
                (Key::Row(RowKey::Network(id)), Some(Value::Row(Row::Network(network)))) => {
                    self.by_network.get(&network.name).is_none_or(|holder| holder == id)
                        && networks.insert(&*network.name)
                }
                _ => true,
            };
            if !free {
                return Err(Verdict::Conflict);
            }
        }
        Ok(())
    }

    fn write(&mut self, key: Key, bytes: Option<&[u8]>, value: Option<&Value>) {
        let name = key.encode();
        if let Some(old) = self.values.remove(name.as_slice()) {
            self.bytes -= name.len() + old.len();
            self.index(&key, Value::decode(&key, &old).as_ref(), false);
        }
        self.index(&key, value, true);
        if let Some(bytes) = bytes {
            self.bytes += name.len() + bytes.len();
            self.values.insert(name.into(), bytes.into());
        }
        self.note(key);
        // Invitations to a network that is no more would stay for ever; whoever removed it may not have seen all of them.
        if let (Key::Row(RowKey::Network(network)), None) = (key, value) {
            let first = Key::Row(RowKey::Invite(NodeId(0), 0)).encode();
            let last = Key::Row(RowKey::Invite(NodeId(u32::MAX), u16::MAX)).encode();
            let of_it = |key: &Key| matches!(key, Key::Row(RowKey::Invite(_, to)) if *to == network);
            let range = self.values.range::<[u8], _>((
                std::ops::Bound::Included(first.as_slice()),
                std::ops::Bound::Included(last.as_slice()),
            ));
            let invites: Vec<Key> = range.filter_map(|(key, _)| Key::decode(key)).filter(of_it).collect();
            for invite in invites {
                self.write(invite, None, None);
            }
        }
    }

    fn index(&mut self, key: &Key, value: Option<&Value>, add: bool) {
        match (key, value) {
            (Key::Node(id), Some(Value::Node(record))) => {
                let name = record.hostname.clone();
                if add {
                    self.nodes += 1;
                    self.by_key.insert(record.public_key, *id);
                    name.map(|name| self.by_name.insert(name, *id));
                } else {
                    self.nodes -= 1;
                    self.by_key.remove(&record.public_key);
                    name.map(|name| self.by_name.remove(&name));
                }
            }
            (Key::Row(RowKey::Network(id)), Some(Value::Row(Row::Network(network)))) => {
                if add {
                    self.by_network.insert(network.name.clone(), *id);
                } else {
                    self.by_network.remove(&network.name);
                }
            }
            _ => {}
        }
    }

    fn note(&mut self, key: Key) {
        if self.recent.len() >= MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(key);
        self.revision.fetch_add(1, Ordering::Release);
    }

    /// What has changed since a revision of this process.
    #[must_use]
    pub fn changes(&self, since: u64) -> Changes {
        let revision = self.revision.load(Ordering::Acquire);
        let read = |key: &Key| {
            let stored = self.values.get(key.encode().as_slice());
            (*key, stored.and_then(|bytes| Value::decode(key, bytes)))
        };
        let behind = revision.checked_sub(since).and_then(|behind| usize::try_from(behind).ok());
        match behind.filter(|behind| *behind <= self.recent.len()) {
            Some(behind) => {
                let keys: BTreeSet<Key> = self.recent.range(self.recent.len() - behind..).copied().collect();
                Changes { revision, whole: false, values: keys.iter().map(read).collect() }
            }
            None => {
                let all = self.values.keys().filter_map(|key| Key::decode(key));
                Changes { revision, whole: true, values: all.map(|key| read(&key)).collect() }
            }
        }
    }

    /// The whole state; equal states give equal bytes. Magic, the proposers, the values, BLAKE3 of all that.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.bytes + 8 * self.values.len());
        out.extend_from_slice(MAGIC);
        out.extend((self.proposers.len() as u32).to_be_bytes());
        for proposer in &self.proposers {
            out.extend(proposer.name.to_be_bytes());
            out.extend(proposer.number.to_be_bytes());
            put(&mut out, &encode_verdicts(&proposer.verdicts));
        }
        out.extend((self.values.len() as u32).to_be_bytes());
        for (key, value) in &self.values {
            put(&mut out, key);
            put(&mut out, value);
        }
        let check = blake3::hash(&out);
        out.extend_from_slice(check.as_bytes());
        out
    }

    /// Becomes what [`State::snapshot`] wrote on some node. The bounds stay.
    ///
    /// # Errors
    /// [`InstallError`]; the old state stays.
    pub fn install(&mut self, snapshot: &[u8]) -> Result<(), InstallError> {
        let (body, check) = snapshot.split_last_chunk::<32>().ok_or(InstallError)?;
        if blake3::hash(body) != *check {
            return Err(InstallError);
        }
        let mut new = Self::new(self.bounds);
        new.read(body).ok_or(InstallError)?;
        self.replace(new);
        Ok(())
    }

    /// Becomes another state, for those who watch this one.
    pub fn replace(&mut self, mut new: Self) {
        // Whoever asks for changes gets everything.
        new.recent.clear();
        self.revision.fetch_add(1, Ordering::Release);
        new.revision = self.revision.clone();
        new.wake = self.wake.clone();
        *self = new;
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }

    fn read(&mut self, body: &[u8]) -> Option<()> {
        let mut rest = body.strip_prefix(MAGIC)?;
        for _ in 0..take_u32(&mut rest)? {
            let name = take_u64(&mut rest)?;
            let number = take_u64(&mut rest)?;
            let verdicts = decode_verdicts(take(&mut rest)?)?;
            if self.proposers.len() >= MAX_PROPOSERS || verdicts.len() > MAX_TRANSACTIONS {
                return None;
            }
            self.proposers.push_back(Proposer { name, number, verdicts });
        }
        for _ in 0..take_u32(&mut rest)? {
            let (name, bytes) = (take(&mut rest)?, take(&mut rest)?);
            let key = Key::decode(name)?;
            let value = Value::decode(&key, bytes)?;
            let write = [(key, Some(bytes), Some(value))];
            self.check_unique(&write).ok()?;
            let [(key, bytes, value)] = write;
            self.write(key, bytes, value.as_ref());
        }
        rest.is_empty().then_some(())
    }

    #[cfg(test)]
    pub(super) fn assert_consistent(&self) {
        let mut again = Self::new(self.bounds);
        again.install(&self.snapshot()).expect("its own snapshot");
        assert_eq!(again.by_key, self.by_key);
        assert_eq!(again.by_name, self.by_name);
        assert_eq!(again.by_network, self.by_network);
        assert_eq!((again.bytes, again.nodes), (self.bytes, self.nodes));
        assert_eq!(again.snapshot(), self.snapshot());
    }
}

/// Key, stored form, and what that says.
type Write<'a> = (Key, Option<&'a [u8]>, Option<Value>);

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(u32::from_be_bytes(*head))
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(u64::from_be_bytes(*head))
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(take_u32(rest)?).ok()?;
    let (head, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(head)
}

/// One input of the fuzz target `ledger`: a batch, a notice or a snapshot, by the first byte. What is understood keeps its bounds, and a
/// state is what its snapshot says.
///
/// # Panics
/// If an invariant does not hold.
#[doc(hidden)]
pub fn fuzz_input(data: &[u8]) {
    let Some((&kind, bytes)) = data.split_first() else { return };
    match kind % 3 {
        0 => {
            let Some(batch) = Batch::decode(bytes) else { return };
            assert_eq!(Batch::decode(&batch.encode()).as_ref(), Some(&batch));
            let mut state = State::new(Bounds { nodes: 3, bytes: 2_000 });
            let answer = state.apply(bytes);
            let verdicts = decode_verdicts(&answer).unwrap_or_default();
            assert_eq!(verdicts.len(), batch.transactions.len());
            assert!(state.nodes <= 3 && state.bytes <= 2_000 + bytes.len());
            let snapshot = state.snapshot();
            assert_eq!(state.apply(bytes), answer, "once");
            assert_eq!(state.snapshot(), snapshot, "once");
            let mut other = State::new(Bounds::default());
            assert_eq!(other.install(&snapshot), Ok(()));
            assert_eq!(other.snapshot(), snapshot, "one state has one snapshot");
        }
        1 => {
            let Some(notice) = Notice::decode(bytes) else { return };
            assert_eq!(Notice::decode(&notice.encode()), Some(notice));
        }
        _ => {
            // The check at the end is right, so that the rest is looked at.
            let snapshot = [bytes, blake3::hash(bytes).as_bytes()].concat();
            let mut state = State::new(Bounds::default());
            if state.install(&snapshot).is_ok() {
                let again = state.snapshot();
                assert_eq!(state.install(&again), Ok(()));
                assert_eq!(state.snapshot(), again, "one state has one snapshot");
            }
        }
    }
}
