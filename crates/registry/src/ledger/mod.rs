//! The draft's registry kept by several nodes at once (`spec/cluster.md §10`).
//!
//! * A node decides a request with its own [`Engine`](crate::engine::Engine) and puts what the request would change, and what it
//!   was decided upon, into a [`Transaction`]. Nothing is changed by that.
//! * A [`Ledger`] brings the transactions of all nodes into one order. [`State`] applies one if what it was decided upon is
//!   still so, and says [`Verdict::Conflict`] otherwise: the node then decides again.
//! * What was applied comes back to every node as [`Changes`], and only that reaches its engine.
//!
//! So consensus needs no knowledge of the protocol, and the engine's clock, limits and connections need not agree.
//! Presence is no part of it: nodes tell each other in [`Notice`]s.

mod state;
#[cfg(test)]
mod tests;

use crate::claims::CaughtUp;
use crate::engine::{Record, Row, RowKey};
use pilotage_wire::NodeId;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

#[doc(hidden)]
pub use state::fuzz_input;
pub use state::{Bounds, InstallError, State};

/// Most transactions of one batch.
pub const MAX_TRANSACTIONS: usize = 1_024;
/// Longest batch in its encoded form, bytes.
pub const MAX_BATCH: usize = 448 << 10;
/// Most nodes, and most calls, of one [`Notice`]; what is left waits for the next.
pub const MAX_SEEN: usize = 50_000;
/// See [`MAX_SEEN`].
pub const MAX_CALLS: usize = 4_096;
/// First byte of an encoded batch. A batch of claims begins with a time in seconds, whose first byte is zero.
pub const MARK: u8 = 0xd1;
const VERSION: u8 = 1;
/// First byte of a node's key; [`RowKey::encode`] gives other letters.
const NODE: u8 = b'd';

/// The first 16 bytes of BLAKE3 over a stored form.
pub type Print = [u8; 16];

/// Of what a value is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The record of a node.
    Node(NodeId),
    /// Everything else.
    Row(RowKey),
}

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// To [`Key::Node`].
    Node(Box<Record>),
    /// To [`Key::Row`].
    Row(Row),
}

impl Key {
    /// A letter, then the ids, big-endian.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Node(id) => [&[NODE][..], &id.0.to_be_bytes()].concat(),
            Self::Row(key) => key.encode(),
        }
    }

    /// Reads what [`Key::encode`] wrote; `None` if it is something else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (&NODE, id) => Some(Self::Node(NodeId(u32::from_be_bytes(id.try_into().ok()?)))),
            _ => RowKey::decode(bytes).ok().map(Self::Row),
        }
    }
}

impl Value {
    /// The stored form, as in the file of one node.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Node(record) => record.encode(&mut out),
            Self::Row(row) => row.encode(&mut out),
        }
        out
    }

    /// Reads the stored form; `None` if it is none, or does not belong to `key`.
    #[must_use]
    pub fn decode(key: &Key, bytes: &[u8]) -> Option<Self> {
        match key {
            Key::Node(id) => Record::decode(*id, bytes).ok().map(|record| Self::Node(Box::new(record))),
            Key::Row(key) => Row::decode(key, bytes).ok().map(Self::Row),
        }
    }
}

/// What stands for a stored form in a check.
#[must_use]
pub fn print(stored: &[u8]) -> Print {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..] = *blake3::hash(stored).as_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// Changes that are made together, if what they were decided upon has not changed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Transaction {
    /// What was decided upon: keys, each with the print of its value, or `None` if there was none. Contains all keys of `writes`.
    pub checks: Vec<(Vec<u8>, Option<Print>)>,
    /// New stored forms; `None` removes.
    pub writes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Transaction {
    /// Bytes of the encoded form, at most.
    #[must_use]
    pub fn size(&self) -> usize {
        let checks: usize = self.checks.iter().map(|(key, _)| key.len() + 20).sum();
        let writes =
            self.writes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len) + 8);
        20 + checks + writes.sum::<usize>()
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// All of it holds.
    Applied,
    /// Something that it was decided upon has changed, or a key or name belongs to another: nothing of it holds. Decide again.
    Conflict,
    /// There is no room: nothing of it holds.
    Full,
    /// It makes no sense: nothing of it holds.
    Malformed,
}

/// What a log orders: transactions of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Drawn by a node at its start.
    pub proposer: u64,
    /// Rises with each batch of the proposer, which begins one when the one before is answered or given up. A batch that
    /// arrives twice is applied once, and one that arrives after a later one is not applied at all.
    pub number: u64,
    /// At most [`MAX_TRANSACTIONS`], applied in order, each on its own.
    pub transactions: Vec<Transaction>,
}

impl Batch {
    /// As it lies in a log.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![MARK, VERSION]).unwrap_or_default()
    }

    /// Reads what [`Batch::encode`] wrote, and nothing else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let body = bytes.strip_prefix(&[MARK, VERSION])?;
        match postcard::take_from_bytes::<Self>(body) {
            Ok((batch, [])) if batch.transactions.len() <= MAX_TRANSACTIONS => Some(batch),
            _ => None,
        }
    }
}

/// Verdicts as they travel.
#[must_use]
pub fn encode_verdicts(verdicts: &[Verdict]) -> Vec<u8> {
    postcard::to_stdvec(verdicts).unwrap_or_default()
}

/// Reads what [`encode_verdicts`] wrote.
#[must_use]
pub fn decode_verdicts(bytes: &[u8]) -> Option<Vec<Verdict>> {
    match postcard::take_from_bytes::<Vec<Verdict>>(bytes) {
        Ok((verdicts, [])) if verdicts.len() <= MAX_TRANSACTIONS => Some(verdicts),
        _ => None,
    }
}

/// What a node has seen lately and the others have not. Nobody keeps it, and it may be lost.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Notice {
    /// Ids that gave a sign of life; at most [`MAX_SEEN`].
    pub seen: Vec<u32>,
    /// Who has looked up whom (`spec/registry.md §11.4`); at most [`MAX_CALLS`].
    pub calls: Vec<(u32, u32)>,
}

impl Notice {
    /// As it travels; at most 300 KiB.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// Reads what [`Notice::encode`] wrote; `None` if it is something else, or beyond the bounds.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match postcard::take_from_bytes::<Self>(bytes) {
            Ok((notice, [])) if notice.seen.len() <= MAX_SEEN && notice.calls.len() <= MAX_CALLS => {
                Some(notice)
            }
            _ => None,
        }
    }
}

/// What has changed since some revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Where the next question begins.
    pub revision: u64,
    /// The values are everything there is: rows that are not among them do not exist.
    pub whole: bool,
    /// Newest values, `None` = removed; each key once.
    pub values: Vec<(Key, Option<Value>)>,
}

/// Called once with a verdict per transaction, or with the reason why there is none: the batch may or may not be applied then.
/// Must not block.
pub type Decided = Box<dyn FnOnce(Result<Vec<Verdict>, String>) + Send>;

/// Whatever brings the transactions of several nodes into one order. Nothing here blocks.
pub trait Ledger: fmt::Debug + Send + Sync {
    /// Orders a batch of at most [`MAX_TRANSACTIONS`] and about [`MAX_BATCH`] bytes. The caller proposes nothing more until it is
    /// decided. When it is, what was applied is among this node's changes, or will be in a moment.
    fn propose(&self, transactions: Vec<Transaction>, decided: Decided);

    /// Revision of this node's state; it rises with each change.
    fn revision(&self) -> u64;

    /// What has changed on this node since a revision; everything, if that was long ago.
    fn changes(&self, since: u64) -> Changes;

    /// Calls when this node has seen everything that was applied anywhere before, or after a second if that cannot be known.
    /// False if too many wait already; the function is not called then.
    fn catch_up(&self, then: CaughtUp) -> bool;

    /// From now on `wake` is called after each change and each notice; it must not block.
    fn wake_by(&self, wake: Arc<dyn Fn() + Send + Sync>);

    /// Sends a notice to all other nodes, once.
    fn tell(&self, notice: &Notice);

    /// Notices of others that have come since the last call.
    fn heard(&self) -> Vec<Notice>;

    /// Whether a majority seems to be there.
    fn is_writable(&self) -> bool;
}
