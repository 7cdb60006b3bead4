//! The state machine of claims. `spec/registry2.md §3.3`.

use super::claim::partition_of;
use super::merkle::{MerkleLog, leaf_hash};
use super::{
    Bad, Batch, CLOCK_SLACK, Claim, ClaimError, DAY, Outcome, PARTITIONS, Proof, QUARANTINE, Subject,
    SubjectKey, TreeHead,
};
use pilotage_wire::addressing;
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

const MAGIC: &[u8; 8] = b"PCLAIMS\x01";

/// Bounds; part of the rules, so all nodes of a registry have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most things claimed at once. Default: 16,777,216.
    pub claims: usize,
    /// Most things that one agent holds. Default: 64.
    pub per_agent: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self { claims: 1 << 24, per_agent: 64 }
    }
}

/// A thing that is held, or in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// [`Claim::encode`] of what was granted last.
    claim: Box<[u8]>,
    index: u64,
    /// End of the lease, Unix seconds.
    until: u64,
    /// Nobody else gets it before, Unix seconds.
    hold: u64,
}

/// A claim that was granted, as a leaf of its partition's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// The claim; [`Claim::encode`] of it is the leaf.
    pub claim: Claim,
    /// Place in the log of the partition [`Subject::partition`].
    pub index: u64,
    /// End of the lease, Unix seconds. Of a leaf read from the log: what the claim says (0: gave it back).
    pub until: u64,
    /// Nobody else is granted the subject before this, Unix seconds. Of a leaf read from the log: what follows from it
    /// alone.
    pub hold: u64,
}

/// What a batch did.
#[derive(Debug)]
pub struct Applied {
    /// One per claim, in order.
    pub outcomes: Vec<Outcome>,
    /// New leaves, in order.
    pub granted: Vec<Granted>,
    /// Entries that ended and were removed: their keys.
    pub removed: Vec<SubjectKey>,
    undo: Undo,
}

impl Applied {
    /// Of each of [`Applied::granted`], in the same order, what it is for.
    pub fn keys(&self) -> impl Iterator<Item = &SubjectKey> {
        // What was removed comes first.
        self.undo.entries.iter().skip(self.removed.len()).map(|(key, _)| key)
    }
}

#[derive(Debug)]
struct Undo {
    time: u64,
    next_sweep: u64,
    entries: Vec<(SubjectKey, Option<Entry>)>,
    /// Leaves added per partition.
    added: [u64; PARTITIONS],
}

/// Who holds what, and the Merkle logs of how it came about.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    limits: Limits,
    time: u64,
    next_sweep: u64,
    entries: HashMap<SubjectKey, Entry, KeyHasher>,
    /// Things per agent, by the first half of its key.
    held: HashMap<[u8; 16], u16>,
    logs: [MerkleLog; PARTITIONS],
}

/// Keys are hashes already.
#[derive(Debug, Clone, Copy, Default)]
struct KeyHasher;

impl std::hash::BuildHasher for KeyHasher {
    type Hasher = FirstBytes;

    fn build_hasher(&self) -> FirstBytes {
        FirstBytes(0)
    }
}

struct FirstBytes(u64);

impl std::hash::Hasher for FirstBytes {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some((_, last)) = bytes.split_last_chunk::<8>() {
            self.0 ^= u64::from_le_bytes(*last);
        }
    }

    fn write_usize(&mut self, _: usize) {}
}

impl Claims {
    /// Nothing is held.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Things held or in quarantine.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was ever claimed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Time of the newest batch, Unix seconds.
    #[must_use]
    pub fn time(&self) -> u64 {
        self.time
    }

    /// Decides a batch. Each claim must have passed [`check`](super::check) with the registry's difficulty; signatures
    /// are not looked at again. Never fails: what cannot be granted says so in its outcome.
    pub fn apply(&mut self, batch: &Batch) -> Applied {
        let undo = Undo {
            time: self.time,
            next_sweep: self.next_sweep,
            entries: Vec::new(),
            added: [0; PARTITIONS],
        };
        let mut applied = Applied {
            outcomes: Vec::with_capacity(batch.claims.len()),
            granted: Vec::new(),
            removed: Vec::new(),
            undo,
        };
        self.time = self.time.max(batch.time);
        self.sweep(&mut applied);
        for claim in &batch.claims {
            let outcome = self.decide(claim, &mut applied).unwrap_or_else(Outcome::Bad);
            applied.outcomes.push(outcome);
        }
        applied
    }

    /// Takes back the batch that was applied last: it could not be stored.
    pub fn undo(&mut self, applied: Applied) {
        let undo = applied.undo;
        for (key, before) in undo.entries.into_iter().rev() {
            let now = match before {
                Some(entry) => {
                    self.count(&entry, true);
                    self.entries.insert(key, entry)
                }
                None => self.entries.remove(&key),
            };
            if let Some(entry) = now {
                self.count(&entry, false);
            }
        }
        for (log, added) in self.logs.iter_mut().zip(undo.added) {
            log.truncate(log.len().saturating_sub(added));
        }
        (self.time, self.next_sweep) = (undo.time, undo.next_sweep);
    }

    fn decide(&mut self, claim: &Claim, applied: &mut Applied) -> Result<Outcome, Bad> {
        let key = claim.subject.key();
        let now = self.time;
        let end = u64::from(claim.expires);
        let found = self.entries.get(&key).filter(|entry| entry.hold > now);
        let Some(entry) = found else {
            self.check_term(claim)?;
            if claim.is_release() || claim.transfer.is_some() {
                return Err(Bad::NotHolder);
            }
            check_derived(claim)?;
            return self.grant(key, claim, end, end + QUARANTINE, applied);
        };
        let bytes = claim.encode();
        let held = &*entry.claim;
        if *held == *bytes && (entry.until > now || claim.is_release()) {
            return Ok(Outcome::Granted { index: entry.index });
        }
        let Some((holder, seq)) = key_and_seq(held) else { return Err(Bad::Stale) };
        let (until, hold, index) = (entry.until, entry.hold, entry.index);
        let consent = claim.transfer.is_some_and(|transfer| transfer.from == holder);
        if claim.key != holder && !consent {
            return Ok(Outcome::TakenBy { agent_id: addressing::agent_id(&holder), index });
        }
        if claim.key == holder && claim.transfer.is_some() {
            return Err(Bad::NotHolder);
        }
        if claim.seq <= seq {
            // What the holder signed before and what still holds. Nothing is learnt or changed by a replay of it.
            let replay = until > now && !claim.is_release() && claim.key == holder;
            return if replay { Ok(Outcome::Granted { index }) } else { Err(Bad::Stale) };
        }
        if claim.is_release() {
            return self.grant(key, claim, now, hold.max(now.saturating_add(QUARANTINE)), applied);
        }
        self.check_term(claim)?;
        self.grant(key, claim, end, hold.max(end + QUARANTINE), applied)
    }

    fn check_term(&self, claim: &Claim) -> Result<(), Bad> {
        let end = u64::from(claim.expires);
        if claim.is_release() {
            return Ok(());
        }
        if end <= self.time {
            return Err(Bad::Expired);
        }
        let most = self.time.saturating_add(claim.subject.lease() + CLOCK_SLACK);
        if end > most { Err(Bad::TooLong) } else { Ok(()) }
    }

    fn grant(
        &mut self,
        key: SubjectKey,
        claim: &Claim,
        until: u64,
        hold: u64,
        applied: &mut Applied,
    ) -> Result<Outcome, Bad> {
        let same_holder = self
            .entries
            .get(&key)
            .and_then(|entry| key_and_seq(&entry.claim))
            .is_some_and(|(holder, _)| holder == claim.key);
        if !same_holder {
            let held = self.held.get(&half(&claim.key)).copied().unwrap_or(0);
            if held >= self.limits.per_agent {
                return Err(Bad::Quota(self.limits.per_agent));
            }
            if self.entries.len() >= self.limits.claims && !self.entries.contains_key(&key) {
                return Err(Bad::Full);
            }
        }
        let partition = usize::from(partition_of(&key));
        let index = self.logs[partition].len();
        let bytes = claim.encode();
        self.logs[partition].push(leaf_hash(&bytes));
        applied.undo.added[partition] += 1;
        let entry = Entry { claim: bytes.into(), index, until, hold };
        self.count(&entry, true);
        let before = self.entries.insert(key, entry);
        if let Some(before) = &before {
            self.count(before, false);
        }
        applied.undo.entries.push((key, before));
        applied.granted.push(Granted { claim: claim.clone(), index, until, hold });
        Ok(Outcome::Granted { index })
    }

    /// Once a day of the log's time: removes what nobody holds any more.
    fn sweep(&mut self, applied: &mut Applied) {
        if self.time < self.next_sweep {
            return;
        }
        self.next_sweep = self.time.saturating_add(DAY);
        let now = self.time;
        let mut ended: Vec<SubjectKey> =
            self.entries.iter().filter(|(_, entry)| entry.hold <= now).map(|(key, _)| *key).collect();
        ended.sort_unstable();
        for key in ended {
            if let Some(entry) = self.entries.remove(&key) {
                self.count(&entry, false);
                applied.undo.entries.push((key, Some(entry)));
                applied.removed.push(key);
            }
        }
    }

    fn count(&mut self, entry: &Entry, more: bool) {
        let Some((holder, _)) = key_and_seq(&entry.claim) else { return };
        match self.held.entry(half(&holder)) {
            Slot::Occupied(mut held) if more => *held.get_mut() = held.get().saturating_add(1),
            Slot::Occupied(held) if *held.get() <= 1 => {
                held.remove();
            }
            Slot::Occupied(mut held) => *held.get_mut() -= 1,
            Slot::Vacant(slot) if more => {
                slot.insert(1);
            }
            Slot::Vacant(_) => {}
        }
    }

    /// The claim that holds a subject, also in quarantine; nothing after that.
    #[must_use]
    pub fn holder(&self, subject: &Subject) -> Option<Granted> {
        let entry = self.entries.get(&subject.key()).filter(|entry| entry.hold > self.time)?;
        granted(entry).ok()
    }

    /// Size and root of a partition's log now.
    #[must_use]
    pub fn head(&self, partition: u8) -> TreeHead {
        let log = &self.logs[usize::from(partition) % PARTITIONS];
        let size = log.len();
        TreeHead { partition, size, root: log.root(size).unwrap_or_default(), time: self.time }
    }

    /// Whether a head is, or was, one of this log; its time must not lie ahead of the log's.
    #[must_use]
    pub fn had_head(&self, head: &TreeHead) -> bool {
        let log = self.logs.get(usize::from(head.partition));
        head.time <= self.time && log.and_then(|log| log.root(head.size)) == Some(head.root)
    }

    /// Proof that leaf `index` is among the first `size`; `None` if there are fewer.
    #[must_use]
    pub fn prove(&self, partition: u8, index: u64, size: u64) -> Option<Proof> {
        self.logs.get(usize::from(partition))?.inclusion(index, size).map(Proof)
    }

    /// Proof that the first `old` leaves are the start of the first `size`; `None` if there are fewer, or `old` is 0.
    #[must_use]
    pub fn prove_consistency(&self, partition: u8, old: u64, size: u64) -> Option<Proof> {
        self.logs.get(usize::from(partition))?.consistency(old, size).map(Proof)
    }

    /// The whole state as bytes; equal states give equal bytes. About 40 bytes per leaf and 180 per thing held.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let leaves: u64 = self.logs.iter().map(MerkleLog::len).sum();
        let mut out = Vec::with_capacity(64 + leaves as usize * 32 + self.entries.len() * 200);
        out.extend_from_slice(MAGIC);
        out.extend(self.time.to_be_bytes());
        out.extend(self.next_sweep.to_be_bytes());
        for log in &self.logs {
            out.extend(log.len().to_be_bytes());
            log.leaves().for_each(|leaf| out.extend_from_slice(leaf));
        }
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_unstable_by_key(|(key, _)| **key);
        out.extend((entries.len() as u64).to_be_bytes());
        for (_, entry) in entries {
            for number in [entry.index, entry.until, entry.hold] {
                out.extend(number.to_be_bytes());
            }
            out.extend((entry.claim.len() as u16).to_be_bytes());
            out.extend_from_slice(&entry.claim);
        }
        let check = blake3::hash(&out);
        out.extend_from_slice(check.as_bytes());
        out
    }

    /// Replaces the whole state by a snapshot's. The limits stay.
    ///
    /// # Errors
    /// [`SnapshotError`] if the bytes are damaged or contradict themselves; the state is then as before.
    pub fn install(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        let (body, check) = snapshot.split_last_chunk::<32>().ok_or(SnapshotError::Damaged)?;
        if blake3::hash(body).as_bytes() != check {
            return Err(SnapshotError::Damaged);
        }
        let mut rest = body.strip_prefix(MAGIC).ok_or(SnapshotError::Version)?;
        let mut new = Self::new(self.limits);
        new.time = number(&mut rest)?;
        new.next_sweep = number(&mut rest)?;
        for log in &mut new.logs {
            for _ in 0..number(&mut rest)? {
                let (leaf, tail) = rest.split_first_chunk::<32>().ok_or(SnapshotError::Damaged)?;
                log.push(*leaf);
                rest = tail;
            }
        }
        let mut last = None;
        for _ in 0..number(&mut rest)? {
            let (index, until, hold) = (number(&mut rest)?, number(&mut rest)?, number(&mut rest)?);
            let (len, tail) = rest.split_first_chunk::<2>().ok_or(SnapshotError::Damaged)?;
            let (bytes, tail) =
                tail.split_at_checked(u16::from_be_bytes(*len).into()).ok_or(SnapshotError::Damaged)?;
            rest = tail;
            let key = new.restore(bytes, index, until, hold)?;
            if last.replace(key).is_some_and(|last| last >= key) {
                return Err(SnapshotError::Contradiction);
            }
        }
        if !rest.is_empty() {
            return Err(SnapshotError::Damaged);
        }
        *self = new;
        Ok(())
    }

    /// Puts an entry back whose leaf is in the log already.
    pub(super) fn restore(
        &mut self,
        bytes: &[u8],
        index: u64,
        until: u64,
        hold: u64,
    ) -> Result<SubjectKey, SnapshotError> {
        let (key, entry) = entry_in(|partition| &self.logs[partition], bytes, index, until, hold)?;
        self.count(&entry, true);
        self.entries.insert(key, entry);
        Ok(key)
    }

    /// Makes room for so many entries, as far as the bounds allow.
    #[cfg(feature = "store")]
    pub(super) fn reserve(&mut self, entries: usize) {
        self.entries.reserve(entries.min(self.limits.claims));
        self.held.reserve(entries.min(self.limits.claims));
    }

    /// Puts a partition back, of which nothing is there yet.
    #[cfg(feature = "store")]
    pub(super) fn restore_part(&mut self, partition: u8, part: Part) {
        self.logs[usize::from(partition) % PARTITIONS] = part.log;
        for (key, entry) in part.entries {
            self.count(&entry, true);
            self.entries.insert(key, entry);
        }
    }

    /// A partition's log.
    #[cfg(feature = "store")]
    pub(super) fn log(&self, partition: u8) -> &MerkleLog {
        &self.logs[usize::from(partition) % PARTITIONS]
    }

    /// Everything held or in quarantine, in no order.
    #[cfg(feature = "store")]
    pub(super) fn all(&self) -> impl Iterator<Item = (SubjectKey, Granted)> {
        self.entries.iter().filter_map(|(key, entry)| Some((*key, granted(entry).ok()?)))
    }

    /// Puts the clock back.
    #[cfg(feature = "store")]
    pub(super) fn restore_time(&mut self, time: u64, next_sweep: u64) {
        (self.time, self.next_sweep) = (time, next_sweep);
    }

    #[cfg(feature = "store")]
    pub(super) fn next_sweep(&self) -> u64 {
        self.next_sweep
    }
}

/// Why bytes are not a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Cut off, altered, or something else.
    #[error("the snapshot of claims is damaged; take another one")]
    Damaged,
    /// Another format.
    #[error("the snapshot of claims is of another version; use the program that wrote it")]
    Version,
    /// Its parts do not fit each other.
    #[error("the snapshot of claims contradicts itself; take another one")]
    Contradiction,
    /// A claim inside is none.
    #[error("the snapshot of claims: {0}")]
    Claim(ClaimError),
}

/// One partition, read by itself: partitions have nothing in common but the counts per agent.
#[cfg(feature = "store")]
#[derive(Debug, Default)]
pub(super) struct Part {
    log: MerkleLog,
    entries: Vec<(SubjectKey, Entry)>,
}

#[cfg(feature = "store")]
impl Part {
    /// Leaves so far.
    pub(super) fn len(&self) -> u64 {
        self.log.len()
    }

    /// Puts the next leaf back.
    pub(super) fn restore_leaf(&mut self, hash: [u8; 32]) {
        self.log.push(hash);
    }

    /// Puts the entry with this key back, after all leaves.
    pub(super) fn restore(
        &mut self,
        key: &SubjectKey,
        bytes: &[u8],
        index: u64,
        until: u64,
        hold: u64,
    ) -> Result<(), SnapshotError> {
        let (found, entry) = entry_in(|_| &self.log, bytes, index, until, hold)?;
        if found != *key {
            return Err(SnapshotError::Contradiction);
        }
        self.entries.push((found, entry));
        Ok(())
    }
}

/// An entry whose leaf is in the log of its partition.
fn entry_in<'a>(
    log: impl FnOnce(usize) -> &'a MerkleLog,
    bytes: &[u8],
    index: u64,
    until: u64,
    hold: u64,
) -> Result<(SubjectKey, Entry), SnapshotError> {
    let claim = Claim::decode(bytes).map_err(SnapshotError::Claim)?;
    let key = claim.subject.key();
    if log(usize::from(partition_of(&key))).leaf(index) != Some(&leaf_hash(bytes)) {
        return Err(SnapshotError::Contradiction);
    }
    Ok((key, Entry { claim: bytes.into(), index, until, hold }))
}

fn granted(entry: &Entry) -> Result<Granted, ClaimError> {
    let claim = Claim::decode(&entry.claim)?;
    Ok(Granted { claim, index: entry.index, until: entry.until, hold: entry.hold })
}

/// Only who is first has to show where the node id comes from: later holders have the consent of one before.
fn check_derived(claim: &Claim) -> Result<(), Bad> {
    match claim.subject {
        Subject::Address { node, .. } if addressing::derive_node_id(&claim.key, claim.salt) != Some(node) => {
            Err(Bad::NotDerived)
        }
        _ => Ok(()),
    }
}

/// Key and seq of an encoded claim, without reading the rest.
fn key_and_seq(claim: &[u8]) -> Option<([u8; 32], u64)> {
    let start = 4 + usize::from(*claim.get(3)?);
    let (key, rest) = claim.get(start..)?.split_first_chunk::<32>()?;
    let (_salt, rest) = rest.split_first_chunk::<2>()?;
    let (seq, _) = rest.split_first_chunk::<8>()?;
    Some((*key, u64::from_be_bytes(*seq)))
}

/// The key of an encoded claim; says nothing about the rest of it.
#[must_use]
pub fn key_of(claim: &[u8]) -> Option<[u8; 32]> {
    key_and_seq(claim).map(|(key, _)| key)
}

fn half(key: &[u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&key[..16]);
    half
}

fn number(rest: &mut &[u8]) -> Result<u64, SnapshotError> {
    let (bytes, tail) = rest.split_first_chunk().ok_or(SnapshotError::Damaged)?;
    *rest = tail;
    Ok(u64::from_be_bytes(*bytes))
}
