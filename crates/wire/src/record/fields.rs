//! The parts of a record.

use core::fmt;
use core::net::SocketAddr;

use crate::s1::payload::PrekeyCertificate;

/// Most prekeys: the present one and the next.
pub const MAX_PREKEYS: usize = 2;
/// Most endpoints.
pub const MAX_ENDPOINTS: usize = 8;
/// Most relays.
pub const MAX_RELAYS: usize = 4;
/// Most tags.
pub const MAX_TAGS: usize = 32;
/// Longest tag, bytes.
pub const MAX_TAG: usize = 63;
/// Longest summary, bytes.
pub const MAX_SUMMARY: usize = 200;
/// Most numbers of a vector.
pub const MAX_VECTOR: usize = 512;
/// Most sealed boxes.
pub const MAX_SEALED: usize = 8;
/// Longest sealed box, bytes.
pub const MAX_SEALED_LEN: usize = 256;

/// UDP address; written as 4 or 6, then the IP address and the port.
pub type Endpoint = SocketAddr;

/// A key with which S1 sessions are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prekey {
    /// X25519.
    pub key: [u8; 32],
    /// The identity's word for it; can be checked without the record.
    pub certificate: PrekeyCertificate,
}

/// A hostname and where it was claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostnameRef {
    /// By the rule of hostnames: `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`.
    pub name: String,
    /// Leaf of the claim in its partition's log.
    pub index: u64,
}

/// For whom a box is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SealedFor {
    /// Everybody with the key of the network.
    Network = 1,
    /// One agent, by its prekey.
    Peer = 2,
}

/// Endpoints that only some can read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sealed {
    /// For whom.
    pub whom: SealedFor,
    /// Which key: the first 8 bytes of a hash of it.
    pub key_id: [u8; 8],
    /// What a box holds is said in `spec/registry2.md §2.5`; 1 to [`MAX_SEALED_LEN`] bytes.
    pub bytes: Vec<u8>,
}

/// The key before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// Ed25519.
    pub previous: [u8; 32],
    /// Of `previous` over [`Record::rotation_signed`](super::Record::rotation_signed).
    pub signature: [u8; 64],
}

/// Why an agent is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Tombstone {
    /// It was shut down for good.
    Gone = 1,
    /// Another key took its place.
    Rotated = 2,
    /// Its key is known to others: never trust it again.
    Compromised = 3,
}

/// An embedding: signed bytes, and which model made it. Two vectors compare only if the model is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vector {
    /// First 8 bytes of BLAKE3 of the model's name and version.
    pub model: [u8; 8],
    /// 1 to [`MAX_VECTOR`] numbers.
    pub values: Vec<i8>,
}

/// Checks a tag: labels of `a-z`, `0-9`, `-` and `_`, joined by dots, at most [`MAX_TAG`] bytes.
///
/// # Errors
/// Says which rule is broken.
pub fn check_tag(tag: &str) -> Result<(), TagError> {
    if tag.is_empty() || tag.len() > MAX_TAG {
        return Err(TagError::Length(tag.len()));
    }
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    let good = |label: &str| !label.is_empty() && label.bytes().all(allowed);
    if tag.split('.').all(good) { Ok(()) } else { Err(TagError::Alphabet) }
}

/// Why a tag is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagError {
    /// Not 1 to [`MAX_TAG`] bytes; how many.
    Length(usize),
    /// A character outside the rule, or an empty label.
    Alphabet,
}

impl fmt::Display for TagError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(len) => write!(f, "tag has {len} bytes; allowed are 1 to {MAX_TAG}"),
            Self::Alphabet => f.write_str(
                "tag may contain only a-z, 0-9, - and _, in labels joined by dots (finance.fx.history)",
            ),
        }
    }
}

impl core::error::Error for TagError {}
