//! What shows that a node lied. `spec/replica.md §7`.
//!
//! A replica cannot forge a record, but it can show an old one, none, or bytes that nobody signed. Who sees two answers
//! that do not agree asks again for a *signed* answer; that, beside the better record, is what the user can show others.
//! An old answer alone does not prove intent: a node that was away for a while has old records until the agent's next
//! refresh. So a difference younger than [`GRACE`] is none.

use crate::book::message::{Attest, OwnerKey};
use crate::claims::SignedHead;
use ed25519_dalek::{Signature, VerifyingKey};
use pilotage_wire::record::Record;

/// A record that is younger than this need not be everywhere yet: two refreshes and a little. Seconds.
pub const GRACE: u64 = 150;
const CONTEXT: &[u8] = b"pilotage-held-v1\0";

/// What a node signs about what it holds: owner, the asker's number, its time, hash of the record (of nothing, if it has
/// none).
#[must_use]
pub fn attested(owner: &OwnerKey, nonce: &[u8; 16], time: u64, record: &[u8]) -> Vec<u8> {
    let mut out = CONTEXT.to_vec();
    out.extend(owner);
    out.extend(nonce);
    out.extend(time.to_be_bytes());
    out.extend(blake3::hash(record).as_bytes());
    out
}

/// An answer that a node signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The number that the asker chose.
    pub nonce: [u8; 16],
    /// The record; empty if the node said it has none.
    pub record: Vec<u8>,
    /// Time and signature.
    pub attest: Attest,
}

impl Answer {
    /// Whether the node gave this answer about this agent.
    #[must_use]
    pub fn is_of(&self, node: &[u8; 32], owner: &OwnerKey) -> bool {
        let message = attested(owner, &self.nonce, self.attest.time, &self.record);
        VerifyingKey::from_bytes(node).is_ok_and(|key| {
            key.verify_strict(&message, &Signature::from_bytes(&self.attest.signature)).is_ok()
        })
    }
}

/// What a node did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It gave a record that its agent did not sign, or another agent's.
    Forged,
    /// It gave an older record than the agent has published.
    Old,
    /// It said that it has none.
    Withheld,
    /// It signed two logs of one size.
    TwoHeads,
}

impl Fault {
    /// A word for files and output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Forged => "forged",
            Self::Old => "old",
            Self::Withheld => "withheld",
            Self::TwoHeads => "two_heads",
        }
    }
}

/// Why a node is suspected, and what shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// What it did.
    pub fault: Fault,
    /// The node.
    pub node: [u8; 32],
    /// About whom it was asked.
    pub owner: OwnerKey,
    /// What it answered.
    pub record: Vec<u8>,
    /// The same answer with its signature, if it gave one.
    pub answer: Option<Answer>,
    /// The record that the agent published, from another node.
    pub better: Option<Vec<u8>>,
    /// Two heads of one size.
    pub heads: Option<Box<(SignedHead, SignedHead)>>,
    /// When it was seen, Unix seconds.
    pub seen: u64,
}

impl Evidence {
    /// Whether anybody can check it without believing who shows it.
    #[must_use]
    pub fn is_portable(&self) -> bool {
        match self.fault {
            Fault::TwoHeads => self.heads.as_ref().is_some_and(|heads| {
                let (a, b) = (&heads.0, &heads.1);
                let both = a.signed_by(&[self.node]) == 1 && b.signed_by(&[self.node]) == 1;
                both && a.head.partition == b.head.partition
                    && a.head.size == b.head.size
                    && a.head.root != b.head.root
            }),
            _ => self
                .answer
                .as_ref()
                .is_some_and(|answer| answer.is_of(&self.node, &self.owner) && self.contradicts(answer)),
        }
    }

    /// Whether the signed answer is what the agent's own record shows to be wrong.
    fn contradicts(&self, answer: &Answer) -> bool {
        if self.fault == Fault::Forged {
            return !fits(&answer.record, &self.owner);
        }
        let better = self.better.as_deref().and_then(|bytes| crate::record::verify(bytes).ok());
        better.is_some_and(|better| {
            owner(&better) == self.owner
                && answer.attest.time > u64::from(better.issued).saturating_add(GRACE)
                && seq(&answer.record).is_none_or(|old| old < better.seq)
        })
    }
}

fn owner(record: &Record) -> OwnerKey {
    super::owner_key(&record.agent_id(), record.network)
}

/// Whether these bytes are a record that this agent signed.
#[must_use]
pub fn fits(record: &[u8], wanted: &OwnerKey) -> bool {
    crate::record::verify(record).is_ok_and(|record| owner(&record) == *wanted)
}

/// The number of an encoded record; none of no record.
fn seq(record: &[u8]) -> Option<u64> {
    pilotage_wire::record::Rank::of(record).map(|rank| rank.seq)
}
