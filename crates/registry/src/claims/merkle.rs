//! Merkle logs of granted claims as in RFC 6962: SHA-256, leaf prefix 0, node prefix 1. `spec/registry2.md §3.4`.
//!
//! Proofs are made here from cached subtrees and verified by the crate `ct-merkle`, an independent implementation.

use ct_merkle::{ConsistencyProof, InclusionProof, RootHash};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;

const HEAD_CONTEXT: &[u8; 17] = b"pilotage-head-v1\0";
/// Bytes of a head that are signed, without the context.
const HEAD_LEN: usize = 1 + 8 + 32 + 8;
/// Most signatures of a head: one per node of the registry.
pub const MAX_HEAD_SIGNATURES: usize = 16;
/// Larger logs than this do not exist; `ct-merkle` counts nodes, two per leaf.
const MAX_SIZE: u64 = 1 << 48;

type Hash = [u8; 32];

/// One log: roots of all complete subtrees, level by level; `levels[0]` are the leaves' hashes. A clone shares most of its
/// memory with what it was cloned from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct MerkleLog {
    levels: Vec<Level>,
}

/// Hashes that are shared with other logs, together. 2 KiB.
const CHUNK: usize = 64;

/// Hashes of which only the end changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Level {
    full: Vec<Arc<[Hash; CHUNK]>>,
    /// Fewer than [`CHUNK`].
    rest: Vec<Hash>,
}

impl Level {
    fn len(&self) -> usize {
        self.full.len() * CHUNK + self.rest.len()
    }

    fn get(&self, at: usize) -> Option<&Hash> {
        match self.full.get(at / CHUNK) {
            Some(chunk) => chunk.get(at % CHUNK),
            None => self.rest.get(at.checked_sub(self.full.len() * CHUNK)?),
        }
    }

    fn push(&mut self, hash: Hash) {
        self.rest.push(hash);
        if let Ok(chunk) = <[Hash; CHUNK]>::try_from(self.rest.as_slice()) {
            self.full.push(Arc::new(chunk));
            self.rest.clear();
        }
    }

    fn truncate(&mut self, len: usize) {
        let (full, rest) = (len / CHUNK, len % CHUNK);
        if let Some(chunk) = self.full.get(full) {
            self.rest.clear();
            self.rest.extend_from_slice(&chunk[..rest]);
            self.full.truncate(full);
        } else if full == self.full.len() {
            self.rest.truncate(rest);
        }
    }

    /// Becomes as `newer`, of which it is a beginning.
    #[cfg(feature = "store")]
    fn follow(&mut self, newer: &Self) {
        self.full.extend_from_slice(newer.full.get(self.full.len()..).unwrap_or(&[]));
        self.rest.clone_from(&newer.rest);
    }
}

pub(super) fn leaf_hash(leaf: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(leaf).finalize().into()
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

impl MerkleLog {
    pub(super) fn len(&self) -> u64 {
        self.levels.first().map_or(0, Level::len) as u64
    }

    pub(super) fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        for level in 0.. {
            if self.levels.len() == level {
                self.levels.push(Level::default());
            }
            let nodes = &mut self.levels[level];
            let len = nodes.len();
            let left = if len % 2 == 1 { nodes.get(len - 1).copied() } else { None };
            nodes.push(hash);
            match left {
                Some(left) => hash = node_hash(&left, &hash),
                None => return,
            }
        }
    }

    /// Forgets leaves from `len` on.
    pub(super) fn truncate(&mut self, len: u64) {
        for (level, nodes) in self.levels.iter_mut().enumerate() {
            nodes.truncate((len >> level) as usize);
        }
        while self.levels.pop_if(|nodes| nodes.len() == 0).is_some() {}
    }

    /// Takes over what a log has more, of which this one is a beginning. Hashes nothing, and shares its memory.
    #[cfg(feature = "store")]
    pub(super) fn follow(&mut self, newer: &Self) {
        self.levels.resize_with(newer.levels.len(), Level::default);
        self.levels.iter_mut().zip(&newer.levels).for_each(|(ours, theirs)| ours.follow(theirs));
    }

    pub(super) fn leaf(&self, index: u64) -> Option<&Hash> {
        self.levels.first()?.get(usize::try_from(index).ok()?)
    }

    pub(super) fn leaves(&self) -> impl Iterator<Item = &Hash> {
        let full =
            self.levels.iter().take(1).flat_map(|leaves| leaves.full.iter().flat_map(|chunk| chunk.iter()));
        full.chain(self.levels.first().map_or(&[][..], |leaves| &leaves.rest))
    }

    /// Root of the first `size` leaves; of none, the hash of nothing.
    pub(super) fn root(&self, size: u64) -> Option<Hash> {
        match size {
            0 => Some(Sha256::digest([]).into()),
            _ if size > self.len() => None,
            _ => Some(self.range(0, size)),
        }
    }

    /// Root of the leaves from `start` (aligned to the largest power of two below `len`, as RFC 6962 splits) on.
    fn range(&self, start: u64, len: u64) -> Hash {
        if len.is_power_of_two() {
            let level = len.trailing_zeros();
            // Callers stay below the log's length.
            let found =
                self.levels.get(level as usize).and_then(|nodes| nodes.get((start >> level) as usize));
            return found.copied().unwrap_or_default();
        }
        let left = split(len);
        node_hash(&self.range(start, left), &self.range(start + left, len - left))
    }

    /// RFC 6962 §2.1.1.
    pub(super) fn inclusion(&self, index: u64, size: u64) -> Option<Vec<Hash>> {
        if index >= size || size > self.len() {
            return None;
        }
        let (mut start, mut len) = (0, size);
        let mut path = Vec::new();
        while len > 1 {
            let left = split(len);
            if index - start < left {
                path.push(self.range(start + left, len - left));
                len = left;
            } else {
                path.push(self.range(start, left));
                start += left;
                len -= left;
            }
        }
        path.reverse();
        Some(path)
    }

    /// RFC 6962 §2.1.2.
    pub(super) fn consistency(&self, old: u64, size: u64) -> Option<Vec<Hash>> {
        if old == 0 || old > size || size > self.len() {
            return None;
        }
        let (mut start, mut len, mut old) = (0, size, old);
        let mut whole = true;
        let mut path = Vec::new();
        while old < len {
            let left = split(len);
            if old <= left {
                path.push(self.range(start + left, len - left));
                len = left;
            } else {
                path.push(self.range(start, left));
                (start, len, old) = (start + left, len - left, old - left);
                whole = false;
            }
        }
        if !whole {
            path.push(self.range(start, len));
        }
        path.reverse();
        Some(path)
    }
}

/// The largest power of two below `len`; `len` is at least 2.
fn split(len: u64) -> u64 {
    1 << (63 - (len - 1).leading_zeros())
}

/// Hashes from a leaf or subtree up to the root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Proof(pub Vec<[u8; 32]>);

/// Size and root of one partition's log at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeHead {
    /// The partition.
    pub partition: u8,
    /// Leaves.
    pub size: u64,
    /// RFC 6962 root of them.
    pub root: [u8; 32],
    /// Unix seconds of the batch after which the log looked so.
    pub time: u64,
}

impl TreeHead {
    /// As it is signed and sent: partition (1), size (8), root (32), time (8).
    #[must_use]
    pub fn encode(&self) -> [u8; HEAD_LEN] {
        let mut out = [0; HEAD_LEN];
        out[0] = self.partition;
        out[1..9].copy_from_slice(&self.size.to_be_bytes());
        out[9..41].copy_from_slice(&self.root);
        out[41..].copy_from_slice(&self.time.to_be_bytes());
        out
    }

    /// Every 49 bytes are a head if the partition exists.
    #[must_use]
    pub fn decode(bytes: &[u8; HEAD_LEN]) -> Option<Self> {
        let (partition, rest) = bytes.split_first()?;
        let (size, rest) = rest.split_first_chunk()?;
        let (root, rest) = rest.split_first_chunk()?;
        let (time, _) = rest.split_first_chunk()?;
        let (size, time) = (u64::from_be_bytes(*size), u64::from_be_bytes(*time));
        (usize::from(*partition) < super::PARTITIONS).then_some(Self {
            partition: *partition,
            size,
            root: *root,
            time,
        })
    }

    /// What a node signs: the context and [`TreeHead::encode`].
    #[must_use]
    pub fn signed(&self) -> Vec<u8> {
        [HEAD_CONTEXT.as_slice(), &self.encode()].concat()
    }

    /// One node's signature.
    #[must_use]
    pub fn sign(&self, node: &SigningKey) -> HeadSignature {
        HeadSignature {
            key: node.verifying_key().to_bytes(),
            signature: node.sign(&self.signed()).to_bytes(),
        }
    }
}

/// One registry node's signature over a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadSignature {
    /// The node's Ed25519 key.
    pub key: [u8; 32],
    /// Over [`TreeHead::encode`].
    pub signature: [u8; 64],
}

/// A head with the signatures of registry nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedHead {
    /// The head.
    pub head: TreeHead,
    /// Of different nodes, at most [`MAX_HEAD_SIGNATURES`].
    pub signatures: Vec<HeadSignature>,
}

impl SignedHead {
    /// Head (49), count (1), then key (32) and signature (64) of each.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.head.encode().to_vec();
        let signatures = &self.signatures[..self.signatures.len().min(MAX_HEAD_SIGNATURES)];
        out.push(signatures.len() as u8);
        for one in signatures {
            out.extend(one.key);
            out.extend(one.signature);
        }
        out
    }

    /// Reads a head from the start of `bytes`; gives what follows it.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = bytes.split_first_chunk()?;
        let head = TreeHead::decode(head)?;
        let (count, mut rest) = rest.split_first()?;
        if usize::from(*count) > MAX_HEAD_SIGNATURES {
            return None;
        }
        let mut signatures = Vec::with_capacity(usize::from(*count));
        for _ in 0..*count {
            let (key, tail) = rest.split_first_chunk()?;
            let (signature, tail) = tail.split_first_chunk()?;
            signatures.push(HeadSignature { key: *key, signature: *signature });
            rest = tail;
        }
        Some((Self { head, signatures }, rest))
    }

    /// How many of `nodes` have signed this head; each counts once. A cluster's clients ask for a majority.
    #[must_use]
    pub fn signed_by(&self, nodes: &[[u8; 32]]) -> usize {
        let message = self.head.signed();
        let has_signed = |node: &&[u8; 32]| {
            self.signatures.iter().filter(|one| one.key == **node).take(1).any(|one| {
                VerifyingKey::from_bytes(&one.key).is_ok_and(|key| {
                    key.verify_strict(&message, &Signature::from_bytes(&one.signature)).is_ok()
                })
            })
        };
        nodes.iter().filter(has_signed).count()
    }
}

/// Why a proof proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The leaf is not in that tree at that place.
    #[error("the registry's proof is wrong: the claim is not in the log that it signed")]
    NotIncluded,
    /// The older tree is not the start of the newer one: the registry has rewritten its log.
    #[error("the registry's log was rewritten: the older head is not the start of the newer one")]
    Rewritten,
}

/// Verifies that `leaf` (a claim's bytes) is leaf `index` under the head.
///
/// # Errors
/// [`ProofError::NotIncluded`].
pub fn verify_inclusion(head: &TreeHead, leaf: &[u8], index: u64, proof: &Proof) -> Result<(), ProofError> {
    if head.size > MAX_SIZE || index >= head.size {
        return Err(ProofError::NotIncluded);
    }
    let root = RootHash::<Sha256>::new(head.root.into(), head.size);
    let proof =
        InclusionProof::<Sha256>::try_from_bytes(proof.0.concat()).map_err(|_| ProofError::NotIncluded)?;
    root.verify_inclusion(&leaf, index, &proof).map_err(|_| ProofError::NotIncluded)
}

/// Verifies that the log under `old` is the start of the log under `new`.
///
/// # Errors
/// [`ProofError::Rewritten`].
pub fn verify_consistency(old: &TreeHead, new: &TreeHead, proof: &Proof) -> Result<(), ProofError> {
    if old.partition != new.partition || old.size > new.size || new.size > MAX_SIZE {
        return Err(ProofError::Rewritten);
    }
    if old.size == 0 {
        return Ok(());
    }
    if old.size == new.size {
        return if old.root == new.root { Ok(()) } else { Err(ProofError::Rewritten) };
    }
    let (first, second) =
        (RootHash::<Sha256>::new(old.root.into(), old.size), RootHash::new(new.root.into(), new.size));
    let proof =
        ConsistencyProof::<Sha256>::try_from_bytes(proof.0.concat()).map_err(|_| ProofError::Rewritten)?;
    second.verify_consistency(&first, &proof).map_err(|_| ProofError::Rewritten)
}
