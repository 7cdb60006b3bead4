//! Verified records on disk, and answers for friends. `spec/replica.md §8`.
//!
//! One file per agent: replies to [`Request::Resolve`](crate::book::message::Request), as they were verified. They are
//! verified again when they are read, and by each friend who asks. Bounds: [`MAX_AGENTS`]; the one that was met longest ago
//! goes first. A file whose record has expired is kept while a claim in it is in force: the claim still says whose key it is.

use super::{owner_key, owner_of};
use crate::book::client::{BookError, Found, check_claim, check_fits};
use crate::book::message::{ClaimPart, OwnerKey, Query, Reply, next_frame};
use crate::claims::{Proof, ProofError, SignedHead, Subject, verify_inclusion};
use crate::record::{self, Unbelievable, check_time, replaces};
use pilotage_wire::record::{Rank, Record};
use pilotage_wire::{NetworkId, NodeId};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Most agents remembered.
pub const MAX_AGENTS: usize = 1_024;
/// Largest file, bytes.
const MAX_FILE: u64 = 16 * 1_024;
/// Claims kept of an agent: its address and a hostname.
const MAX_CLAIMS: usize = 2;
const EXTENSION: &str = "prec";

/// A claim with what proves that it is in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Proven {
    subject: Subject,
    index: u64,
    /// Unix seconds.
    expires: u64,
    claim: Vec<u8>,
    proof: Proof,
    head: SignedHead,
}

/// What is remembered of an agent.
#[derive(Debug, Clone)]
struct Entry {
    record: Record,
    bytes: Vec<u8>,
    claims: Vec<Proven>,
    met: SystemTime,
}

/// An answer from the cache, or of a friend: verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The record.
    pub record: Record,
    /// As it was signed.
    pub bytes: Vec<u8>,
}

/// Verified records in a directory.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    /// Keys of registry nodes, one of which has to have signed the head of a claim's log.
    nodes: Vec<[u8; 32]>,
    entries: HashMap<OwnerKey, Entry>,
}

impl Cache {
    /// Reads the directory, which is made if needed. Files that do not verify are removed; `nodes`: keys of registry nodes
    /// that are trusted.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(dir: &Path, nodes: Vec<[u8; 32]>, unix: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let mut cache = Self { dir: dir.to_owned(), nodes, entries: HashMap::new() };
        let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
        for file in fs::read_dir(dir)? {
            let file = file?;
            let path = file.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                files.push((file.metadata()?.modified().unwrap_or(SystemTime::UNIX_EPOCH), path));
            }
        }
        files.sort();
        let surplus = files.len().saturating_sub(MAX_AGENTS);
        for (at, (met, path)) in files.into_iter().enumerate() {
            let read = (at >= surplus).then(|| cache.read(&path, met, unix)).flatten();
            match read {
                Some((owner, entry)) => drop(cache.entries.insert(owner, entry)),
                None => {
                    tracing::debug!(file = %path.display(), "a cached record is expired, old, or not to be believed");
                    let _ = fs::remove_file(path);
                }
            }
        }
        Ok(cache)
    }

    /// Agents remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// From now on heads that this node signed count.
    pub fn trust(&mut self, node: [u8; 32]) {
        if !self.nodes.contains(&node) {
            self.nodes.push(node);
        }
    }

    fn read(&self, path: &Path, met: SystemTime, unix: u64) -> Option<(OwnerKey, Entry)> {
        if fs::metadata(path).ok()?.len() > MAX_FILE {
            return None;
        }
        let bytes = fs::read(path).ok()?;
        let entry = self.parse(&bytes, met, unix)?;
        let owner = owner_key(&entry.record.agent_id(), entry.record.network);
        (file_name(&owner) == path.file_name()?.to_str()?).then_some((owner, entry))
    }

    fn parse(&self, mut bytes: &[u8], met: SystemTime, unix: u64) -> Option<Entry> {
        let mut found: Option<Entry> = None;
        while let Ok(Some((_, kind, body, len))) = next_frame(bytes) {
            let Ok(Reply::Resolved { record: Some(record), claim }) = Reply::decode(kind, body) else {
                return None;
            };
            let parsed = record::verify(&record).ok()?;
            // An expired one is not used, but its claims may be in force.
            check_time(&parsed, unix).or_else(only_expired).ok()?;
            let proven = claim.and_then(|part| self.prove(&part, &parsed, unix).ok());
            let entry = found.get_or_insert_with(|| Entry {
                record: parsed,
                bytes: record.clone(),
                claims: Vec::new(),
                met,
            });
            if entry.bytes != record || entry.claims.len() >= MAX_CLAIMS {
                return None;
            }
            entry.claims.extend(proven);
            bytes = &bytes[len..];
        }
        let useful =
            |entry: &Entry| check_time(&entry.record, unix).is_ok() || entry.claim_in_force(unix).is_some();
        found.filter(|entry| bytes.is_empty() && useful(entry))
    }

    /// Whether a claim is the record's, in force, and in a log that a trusted node signed.
    fn prove(&self, part: &ClaimPart, record: &Record, unix: u64) -> Result<Proven, BookError> {
        let claim =
            crate::claims::Claim::decode(&part.claim).map_err(|error| BookError::Claim(error.to_string()))?;
        let claim = check_claim(&part.claim, &claim.subject)?;
        if claim.key != record.key {
            return Err(BookError::Mismatch("claim"));
        }
        if u64::from(claim.expires) < unix {
            return Err(BookError::Claim("it has expired".into()));
        }
        let (proof, head) = part.proof.clone().ok_or(BookError::Proof(ProofError::NotIncluded))?;
        if head.head.partition != claim.subject.partition() {
            return Err(BookError::Mismatch("partition"));
        }
        verify_inclusion(&head.head, &part.claim, part.index, &proof)?;
        if head.signed_by(&self.nodes) == 0 {
            return Err(BookError::Unsigned);
        }
        let (index, expires) = (part.index, u64::from(claim.expires));
        Ok(Proven { subject: claim.subject, index, expires, claim: part.claim.clone(), proof, head })
    }

    /// Remembers what was found. Records of private agents are kept too, and given to nobody.
    pub fn put(&mut self, found: &Found, now: SystemTime) {
        let owner = owner_key(&found.record.agent_id(), found.record.network);
        let proven = found.claim.as_ref().zip(found.proof.as_ref().zip(found.head.as_ref()));
        let proven = proven.map(|((claim, index), (proof, head))| Proven {
            subject: claim.subject.clone(),
            index: *index,
            expires: u64::from(claim.expires),
            claim: claim.encode(),
            proof: proof.clone(),
            head: head.clone(),
        });
        self.remember(owner, found.record.clone(), found.bytes.clone(), proven, now);
    }

    /// Remembers a newer record of an agent that is known.
    pub fn renew(&mut self, record: &Record, bytes: &[u8], now: SystemTime) {
        let owner = owner_key(&record.agent_id(), record.network);
        self.remember(owner, record.clone(), bytes.to_vec(), None, now);
    }

    fn remember(
        &mut self,
        owner: OwnerKey,
        record: Record,
        bytes: Vec<u8>,
        proven: Option<Proven>,
        met: SystemTime,
    ) {
        if !self.entries.contains_key(&owner) && self.entries.len() >= MAX_AGENTS {
            self.forget_oldest();
        }
        let entry = self.entries.entry(owner).or_insert_with(|| Entry {
            record: record.clone(),
            bytes: bytes.clone(),
            claims: Vec::new(),
            met,
        });
        if follows(&entry.record, &entry.bytes, &bytes) {
            (entry.record, entry.bytes) = (record, bytes);
        }
        entry.met = met;
        if let Some(proven) = proven {
            let kind = proven.subject.kind();
            entry.claims.retain(|claim| claim.subject.kind() != kind);
            entry.claims.push(proven);
        }
        let path = self.dir.join(file_name(&owner));
        let part = path.with_extension("new");
        if let Err(error) = fs::write(&part, entry.encode()).and_then(|()| fs::rename(&part, &path)) {
            tracing::warn!(%error, file = %path.display(), "cannot remember a record");
        }
    }

    fn forget_oldest(&mut self) {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.met).map(|(owner, _)| *owner);
        if let Some(owner) = oldest {
            self.entries.remove(&owner);
            let _ = fs::remove_file(self.dir.join(file_name(&owner)));
        }
    }

    fn find(&self, query: &Query, unix: u64) -> Option<&Entry> {
        match query {
            Query::Agent { id, network } => self.entries.get(&owner_key(id, *network)),
            Query::Address { .. } | Query::Hostname { .. } => {
                let subject = query.subject()?;
                let answers = |claim: &Proven| claim.subject == subject && claim.expires >= unix;
                self.entries.values().find(|entry| entry.claims.iter().any(answers))
            }
        }
    }

    /// The key of the agent that answers a question, by a claim in force; its record may have expired.
    #[must_use]
    pub fn key(&self, query: &Query, unix: u64) -> Option<[u8; 32]> {
        self.find(query, unix).map(|entry| entry.record.key)
    }

    /// What is remembered of an agent, though it may have expired: what is older than this is not news.
    #[must_use]
    pub fn last(&self, key: &[u8; 32], network: NetworkId) -> Option<Known> {
        let id = pilotage_wire::addressing::agent_id(key);
        let entry = self.entries.get(&owner_key(&id, network))?;
        Some(Known { record: entry.record.clone(), bytes: entry.bytes.clone() })
    }

    /// The agent that answers a question, while its record and claim are good.
    #[must_use]
    pub fn get(&self, query: &Query, unix: u64) -> Option<Known> {
        let entry = self.find(query, unix)?;
        check_time(&entry.record, unix).ok()?;
        Some(Known { record: entry.record.clone(), bytes: entry.bytes.clone() })
    }

    /// Agents whose records are good: network, node id and endpoints of each, the last met first.
    #[must_use]
    pub fn agents(&self, unix: u64) -> Vec<(NetworkId, NodeId, Vec<std::net::SocketAddr>)> {
        let good = |entry: &&Entry| check_time(&entry.record, unix).is_ok();
        let mut entries: Vec<&Entry> = self.entries.values().filter(good).collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.met));
        entries
            .iter()
            .map(|entry| (entry.record.network, entry.record.node, entry.record.endpoints.clone()))
            .collect()
    }

    /// What a friend is answered: never about private agents.
    #[must_use]
    pub fn answer(&self, query: &Query, unix: u64) -> Reply {
        let found = self
            .find(query, unix)
            .filter(|entry| !entry.record.private && check_time(&entry.record, unix).is_ok());
        let Some(entry) = found else { return Reply::NotFound };
        let subject = query.subject();
        let claim = entry.claims.iter().find(|claim| Some(&claim.subject) == subject.as_ref());
        Reply::Resolved { record: Some(entry.bytes.clone()), claim: claim.map(Proven::part) }
    }

    /// Verifies what a friend answered, as if a registry had: record, claim, proof, and that a node that we trust has signed
    /// the head. What is good is remembered.
    ///
    /// # Errors
    /// [`BookError`], whatever is wrong first.
    pub fn believe(
        &mut self,
        query: &Query,
        reply: &Reply,
        unix: u64,
        now: SystemTime,
    ) -> Result<Known, BookError> {
        let Reply::Resolved { record: Some(bytes), claim } = reply else {
            return Err(BookError::NotFound { what: "record, or its friend does not".into() });
        };
        let record = record::verify(bytes)?;
        check_time(&record, unix)?;
        let mut proven = None;
        if let Some(subject) = query.subject() {
            let part = claim.as_ref().ok_or(BookError::Mismatch("claim"))?;
            let found = self.prove(part, &record, unix)?;
            if found.subject != subject {
                return Err(BookError::Mismatch("claim"));
            }
            proven = Some(found);
        }
        check_fits(&record, None, query)?;
        let owner = owner_key(&record.agent_id(), record.network);
        self.remember(owner, record, bytes.clone(), proven, now);
        self.get(query, unix).ok_or(BookError::Mismatch("record"))
    }
}

/// Whether the new record takes the place of the old one, of the same agent.
pub(super) fn follows(old: &Record, old_bytes: &[u8], new: &[u8]) -> bool {
    Rank::of(old_bytes).zip(Rank::of(new)).is_some_and(|(held, come)| replaces(old, held, come))
}

/// That it has expired is no error here.
fn only_expired(why: Unbelievable) -> Result<(), Unbelievable> {
    if why == Unbelievable::Expired { Ok(()) } else { Err(why) }
}

impl Entry {
    fn claim_in_force(&self, unix: u64) -> Option<&Proven> {
        self.claims.iter().find(|claim| claim.expires >= unix)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let record = Some(self.bytes.clone());
        if self.claims.is_empty() {
            Reply::Resolved { record: record.clone(), claim: None }.encode(0, &mut out);
        }
        for claim in &self.claims {
            Reply::Resolved { record: record.clone(), claim: Some(claim.part()) }.encode(0, &mut out);
        }
        out
    }
}

impl Proven {
    fn part(&self) -> ClaimPart {
        let proof = Some((self.proof.clone(), self.head.clone()));
        ClaimPart { index: self.index, claim: self.claim.clone(), proof }
    }
}

fn file_name(owner: &OwnerKey) -> String {
    let (id, network) = owner_of(owner);
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}-{}.{EXTENSION}", network.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_one_met_longest_ago_is_forgotten_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = Cache::open(dir.path(), Vec::new(), 0).unwrap();
        let record = |number: u32| {
            let mut key = [1; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            Record::new(NetworkId(0), NodeId(number + 100), 0, key, 1, 0)
        };
        for number in 0..MAX_AGENTS as u32 + 20 {
            let met = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(number));
            cache.renew(&record(number), &record(number).encode().unwrap(), met);
        }
        let id = |number| Query::Agent { id: record(number).agent_id(), network: NetworkId(0) };
        assert_eq!((cache.len(), fs::read_dir(dir.path()).unwrap().count()), (MAX_AGENTS, MAX_AGENTS));
        assert!(cache.get(&id(19), 0).is_none() && cache.get(&id(20), 0).is_some());
    }
}
