//! PREC: what an agent says about itself, signed by its key, at most 900 bytes. `spec/registry2.md §2`.
//!
//! # Contract
//! * A record is believed because of its signature, wherever it comes from. [`Record::decode`] checks everything but the
//!   signatures: this crate has no cryptography. `pilotage_registry::record` verifies and signs.
//! * Strict: what decodes encodes to the same bytes again, so a record has one hash.
//! * Of two valid records of the same key and network the one with the greater [`Rank`] holds: `seq`, then BLAKE3.

mod decode;
mod encode;
mod fields;
#[cfg(test)]
mod tests;

pub use decode::decode_endpoints;
pub use encode::encode_endpoints;
pub use fields::{
    Endpoint, HostnameRef, MAX_ENDPOINTS, MAX_PREKEYS, MAX_RELAYS, MAX_SEALED, MAX_SEALED_LEN, MAX_SUMMARY,
    MAX_TAG, MAX_TAGS, MAX_VECTOR, Prekey, Rotation, Sealed, SealedFor, TagError, Tombstone, Vector,
    check_tag,
};

use crate::s1::payload::PrekeyCertificate;
use crate::{NetworkId, NodeId, addressing};
use core::fmt;

/// Longest record: fits one datagram, and one item of the Mainline DHT. Bytes.
pub const MAX_RECORD: usize = 900;
/// Longest time that a record may be kept without a newer one: 30 days. Seconds.
pub const MAX_TTL: u32 = 30 * 86_400;
/// The only version there is.
pub const VERSION: u8 = 1;

const MAGIC: &[u8; 4] = b"PREC";
/// Bytes before the list of prekeys.
const HEADER_LEN: usize = 72;
const SIGNATURE_LEN: usize = 64;
const SIGN_CONTEXT: &[u8; 19] = b"pilotage-record-v1\0";
const ROTATION_CONTEXT: &[u8; 21] = b"pilotage-rotation-v1\0";

/// Numbers of the fields behind the prekeys.
mod field {
    pub(super) const ENDPOINTS: u8 = 1;
    pub(super) const RELAYS: u8 = 2;
    pub(super) const TAGS: u8 = 3;
    pub(super) const HOSTNAME: u8 = 4;
    pub(super) const DESCRIPTOR: u8 = 5;
    pub(super) const SEALED: u8 = 6;
    pub(super) const ROTATION: u8 = 7;
    pub(super) const TOMBSTONE: u8 = 8;
    pub(super) const SUMMARY: u8 = 9;
    pub(super) const VECTOR: u8 = 10;
    /// From here on: fields that may be skipped by who does not know them.
    pub(super) const OPTIONAL: u8 = 0x80;
}

/// What an agent says about itself. Fields that are lists may be empty; see [`Record::encode`] for what has to fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Least that a peer has to speak: 0 anything, 1 PILA, 2 S1 (`spec/secure.md`).
    pub min_sec: u8,
    /// Not to be found: no search, no public look-up service; to be handed out to who names the agent only.
    pub private: bool,
    /// The network in which the agent has this address.
    pub network: NetworkId,
    /// Its node id there.
    pub node: NodeId,
    /// How the node id was derived from the first key; see [`Record::derives_address`].
    pub salt: u16,
    /// The agent's Ed25519 key: its identity.
    pub key: [u8; 32],
    /// Grows with every record of the key: Unix milliseconds, or one more than the last.
    pub seq: u64,
    /// How long the record may be kept without a newer one, seconds: 1 to [`MAX_TTL`].
    pub ttl: u32,
    /// When it was made, Unix seconds.
    pub issued: u32,
    /// Capabilities of the node, as in the certificates of prekeys.
    pub caps: u64,
    /// Keys with which S1 sessions are opened, the preferred one first.
    pub prekeys: Vec<Prekey>,
    /// Where it listens, the preferred one first. Seen by everybody: a private agent uses `sealed`.
    pub endpoints: Vec<Endpoint>,
    /// Relays (beacons) over which it can be reached.
    pub relays: Vec<Endpoint>,
    /// What it can do: dotted tags (`finance.fx.history`), ascending, none twice.
    pub tags: Vec<String>,
    /// Its hostname and where that was claimed.
    pub hostname: Option<HostnameRef>,
    /// BLAKE3 of its full descriptor, which is fetched from the agent itself.
    pub descriptor: Option<[u8; 32]>,
    /// Endpoints for those with a key only.
    pub sealed: Vec<Sealed>,
    /// The key before, and its consent to this one.
    pub rotation: Option<Rotation>,
    /// The agent is gone: no other field says anything.
    pub tombstone: Option<Tombstone>,
    /// One or two sentences for people and for text search; no control characters, not empty.
    pub summary: Option<String>,
    /// An embedding of what it can do, for vector search.
    pub vector: Option<Vector>,
    /// Fields of later versions (numbers from 128), ascending; kept, not understood.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Ed25519 of `key` over [`Record::signed`].
    pub signature: [u8; 64],
}

impl Record {
    /// A record that says nothing yet: an address, its key, its number, one day to live.
    #[must_use]
    pub fn new(network: NetworkId, node: NodeId, salt: u16, key: [u8; 32], seq: u64, issued: u32) -> Self {
        Self {
            min_sec: 0,
            private: false,
            network,
            node,
            salt,
            key,
            seq,
            ttl: 86_400,
            issued,
            caps: 0,
            prekeys: Vec::new(),
            endpoints: Vec::new(),
            relays: Vec::new(),
            tags: Vec::new(),
            hostname: None,
            descriptor: None,
            sealed: Vec::new(),
            rotation: None,
            tombstone: None,
            summary: None,
            vector: None,
            extensions: Vec::new(),
            signature: [0; 64],
        }
    }

    /// The agent (`spec/addressing.md §2`).
    #[must_use]
    pub fn agent_id(&self) -> [u8; 32] {
        addressing::agent_id(&self.key)
    }

    /// Whether the node id follows from key and salt. It does not after a change of the key; then, as always, the claim
    /// of the address says whose it is.
    #[must_use]
    pub fn derives_address(&self) -> bool {
        addressing::derive_node_id(&self.key, self.salt) == Some(self.node)
    }

    /// Last second (Unix time) in which the record may be used, by the clock of who made it.
    #[must_use]
    pub fn expires(&self) -> u64 {
        u64::from(self.issued) + u64::from(self.ttl)
    }

    /// The bytes that [`Record::signature`] covers.
    ///
    /// # Errors
    /// [`RecordError`] as in [`Record::encode`].
    pub fn signed(&self) -> Result<Vec<u8>, RecordError> {
        let bytes = self.encode()?;
        Ok(signed(&bytes))
    }

    /// The bytes that the key before signs as its consent to this record's key, for [`Rotation::signature`].
    #[must_use]
    pub fn rotation_signed(&self) -> Vec<u8> {
        let mut out = ROTATION_CONTEXT.to_vec();
        out.extend(self.key);
        out.extend(self.network.0.to_be_bytes());
        out.extend(self.node.0.to_be_bytes());
        out.extend(self.seq.to_be_bytes());
        out
    }
}

/// The signed bytes of an encoded record: context, then all but the signature. Of bytes that are no record: anything.
#[must_use]
pub fn signed(record: &[u8]) -> Vec<u8> {
    let body = &record[..record.len().saturating_sub(SIGNATURE_LEN)];
    [SIGN_CONTEXT.as_slice(), body].concat()
}

/// Which of two records of one key holds: the greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    /// [`Record::seq`].
    pub seq: u64,
    /// BLAKE3 of the record's bytes: an agent that numbers badly is still the same everywhere.
    pub hash: [u8; 32],
}

impl Rank {
    /// The rank of an encoded record; `None` if it is too short to be one.
    #[must_use]
    pub fn of(record: &[u8]) -> Option<Self> {
        let seq = record.get(48..)?.first_chunk()?;
        Some(Self { seq: u64::from_be_bytes(*seq), hash: *blake3::hash(record).as_bytes() })
    }
}

/// Why bytes are no record, or a record cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordError {
    /// The bytes end too early.
    Truncated,
    /// More than [`MAX_RECORD`] bytes; how many.
    TooLong(usize),
    /// Not "PREC".
    Magic,
    /// Another version.
    Version(u8),
    /// A field that has to be known is not.
    Field(u8),
    /// Fields are not in ascending order, or one is there twice or empty.
    Order(u8),
    /// A field has a value that it must not have; its name.
    Value(&'static str),
    /// A list has too many items; its name and the most.
    TooMany(&'static str, usize),
    /// A tag breaks a rule.
    Tag(TagError),
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("record: the bytes are cut off"),
            Self::TooLong(len) => write!(
                f,
                "record: {len} bytes, at most {MAX_RECORD} fit; shorten the summary, drop tags, endpoints or the vector"
            ),
            Self::Magic => f.write_str("record: does not start with PREC"),
            Self::Version(version) => {
                write!(f, "record: version {version}, only {VERSION} is known; update this program")
            }
            Self::Field(number) => write!(f, "record: unknown field {number}; update this program"),
            Self::Order(number) => write!(f, "record: field {number} is out of order, repeated or empty"),
            Self::Value(name) => write!(f, "record: the field \"{name}\" has a forbidden value"),
            Self::TooMany(name, max) => write!(f, "record: too many {name}, at most {max}"),
            Self::Tag(error) => write!(f, "record: {error}"),
        }
    }
}

impl core::error::Error for RecordError {}

impl From<TagError> for RecordError {
    fn from(error: TagError) -> Self {
        Self::Tag(error)
    }
}

/// A prekey as S1 wants it.
impl From<Prekey> for ([u8; 32], PrekeyCertificate) {
    fn from(prekey: Prekey) -> Self {
        (prekey.key, prekey.certificate)
    }
}
