//! A claim and its bytes. `spec/registry2.md §3.1`.

use ed25519_dalek::{Signer as _, SigningKey};
use pilotage_wire::registry::{HostnameError, check_hostname};
use pilotage_wire::{NetworkId, NodeId, addressing};
use std::fmt;

/// Longest name, bytes.
pub const MAX_NAME: usize = 63;
/// Longest claim, bytes.
pub const CLAIM_MAX: usize = 4 + MAX_NAME + 32 + 2 + 8 + 4 + 4 + 32 + 64 + 64;

const SIGN_CONTEXT: &[u8; 18] = b"pilotage-claim-v1\0";
const POW_CONTEXT: &str = "pilotage 2026 claim pow v1";
const SUBJECT_CONTEXT: &str = "pilotage 2026 claim subject v1";
const HASH_CONTEXT: &str = "pilotage 2026 claim hash v1";
const TRANSFER: u8 = 0x80;

/// What kind of thing is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A node id in a network.
    Address = 1,
    /// A name in a network.
    Hostname = 2,
    /// The id of a network.
    NetworkId = 3,
    /// The name of a network.
    NetworkName = 4,
}

/// What is claimed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// A node id in a network; derived from the key of the first holder (`spec/addressing.md §3`).
    Address {
        /// The network.
        network: NetworkId,
        /// The node id.
        node: NodeId,
    },
    /// A name in a network: `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`, none of the reserved ones.
    Hostname {
        /// The network.
        network: NetworkId,
        /// The name.
        name: String,
    },
    /// The id of a network, not 0 and not 65,535.
    NetworkId {
        /// The id.
        network: NetworkId,
    },
    /// The name of a network, by the rule of hostnames. One namespace for all.
    NetworkName {
        /// The network that it names.
        network: NetworkId,
        /// The name.
        name: String,
    },
}

/// The first 16 bytes of BLAKE3 of kind, network and name: the key of tables, and the partition.
pub type SubjectKey = [u8; 16];

impl Subject {
    /// What kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Address { .. } => Kind::Address,
            Self::Hostname { .. } => Kind::Hostname,
            Self::NetworkId { .. } => Kind::NetworkId,
            Self::NetworkName { .. } => Kind::NetworkName,
        }
    }

    /// The network in which it lies or which it is about.
    #[must_use]
    pub fn network(&self) -> NetworkId {
        match *self {
            Self::Address { network, .. }
            | Self::Hostname { network, .. }
            | Self::NetworkId { network }
            | Self::NetworkName { network, .. } => network,
        }
    }

    /// The key under which it is known. The network of a network's *name* is not part of it: such names are unique.
    #[must_use]
    pub fn key(&self) -> SubjectKey {
        let mut hasher = blake3::Hasher::new_derive_key(SUBJECT_CONTEXT);
        hasher.update(&[self.kind() as u8]);
        if self.kind() != Kind::NetworkName {
            hasher.update(&self.network().0.to_be_bytes());
        }
        self.with_name(|name| hasher.update(name));
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        key
    }

    /// Which Merkle log it belongs to: below [`PARTITIONS`](super::PARTITIONS).
    #[must_use]
    pub fn partition(&self) -> u8 {
        partition_of(&self.key())
    }

    /// Longest lease, seconds.
    #[must_use]
    pub fn lease(&self) -> u64 {
        if self.kind() == Kind::Hostname { super::HOSTNAME_LEASE } else { super::LEASE }
    }

    fn with_name<R>(&self, then: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Self::Address { node, .. } => then(&node.0.to_be_bytes()),
            Self::Hostname { name, .. } | Self::NetworkName { name, .. } => then(name.as_bytes()),
            Self::NetworkId { .. } => then(&[]),
        }
    }

    /// Whether anybody may claim this.
    ///
    /// # Errors
    /// Says which rule is broken.
    pub fn check(&self) -> Result<(), SubjectError> {
        match self {
            Self::Address { node, .. } if addressing::is_reserved(*node) => {
                Err(SubjectError::ReservedNode(*node))
            }
            Self::Hostname { name, .. } | Self::NetworkName { name, .. } => {
                check_hostname(name).map_err(SubjectError::Name)?;
                self.check_network()
            }
            Self::NetworkId { .. } => self.check_network(),
            Self::Address { .. } => Ok(()),
        }
    }

    fn check_network(&self) -> Result<(), SubjectError> {
        let NetworkId(id) = self.network();
        let about = matches!(self.kind(), Kind::NetworkId | Kind::NetworkName);
        if about && (id == 0 || id == u16::MAX) { Err(SubjectError::ReservedNetwork(id)) } else { Ok(()) }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { network, node } => {
                write!(f, "address {}", pilotage_wire::Address { network: *network, node: *node })
            }
            Self::Hostname { network: NetworkId(0), name } => write!(f, "hostname {name}"),
            Self::Hostname { network, name } => write!(f, "hostname {name} in network {}", network.0),
            Self::NetworkId { network } => write!(f, "network id {}", network.0),
            Self::NetworkName { network, name } => write!(f, "network name {name} (of {})", network.0),
        }
    }
}

pub(super) fn partition_of(key: &SubjectKey) -> u8 {
    key[0] >> 4
}

/// Why nobody may claim a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// The name breaks a rule.
    #[error(transparent)]
    Name(HostnameError),
    /// No key may own this node id.
    #[error("node id {:#010x} is reserved", .0.0)]
    ReservedNode(NodeId),
    /// Nobody may own this network id.
    #[error("network id {0} is reserved; choose one from 1 to 65534")]
    ReservedNetwork(u16),
}

/// The old holder's consent to a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// The old holder's key.
    pub from: [u8; 32],
    /// Its signature over the same bytes that the new holder signs.
    pub signature: [u8; 64],
}

/// An agent asks for something, renews it, takes it over with the old holder's consent, or gives it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What for.
    pub subject: Subject,
    /// The agent's Ed25519 key; the agent id is derived from it.
    pub key: [u8; 32],
    /// How the node id was derived from the key; 0 for all but addresses, and for a transferred address.
    pub salt: u16,
    /// Grows with every claim of an agent for the same thing: Unix milliseconds, or one more than the last.
    pub seq: u64,
    /// Until when, Unix seconds. 0: gives the thing back.
    pub expires: u32,
    /// Proof of work: see [`solve_pow`].
    pub pow: u32,
    /// Consent of the holder before, in a transfer.
    pub transfer: Option<Transfer>,
    /// Ed25519 of `key` over [`Claim::signed`].
    pub signature: [u8; 64],
}

impl Claim {
    /// An unsigned claim.
    #[must_use]
    pub fn new(subject: Subject, key: [u8; 32], seq: u64, expires: u32) -> Self {
        Self { subject, key, salt: 0, seq, expires, pow: 0, transfer: None, signature: [0; 64] }
    }

    /// The claim of a key to its own address under a salt; `None` where that is a reserved id.
    #[must_use]
    pub fn address(network: NetworkId, key: [u8; 32], salt: u16, seq: u64, expires: u32) -> Option<Self> {
        let node = addressing::derive_node_id(&key, salt)?;
        Some(Self { salt, ..Self::new(Subject::Address { network, node }, key, seq, expires) })
    }

    /// The agent (`spec/addressing.md §2`).
    #[must_use]
    pub fn agent_id(&self) -> [u8; 32] {
        addressing::agent_id(&self.key)
    }

    /// Whether it gives the thing back.
    #[must_use]
    pub fn is_release(&self) -> bool {
        self.expires == 0
    }

    /// Looks for the proof of work and signs with the agent's key, and with the old holder's if it is a transfer.
    /// Difficulty `bits` costs 2^bits hashes on average, about 0.2 µs each.
    #[must_use]
    pub fn sign(mut self, bits: u8, agent: &SigningKey, old_holder: Option<&SigningKey>) -> Self {
        self.key = agent.verifying_key().to_bytes();
        self.transfer =
            old_holder.map(|old| Transfer { from: old.verifying_key().to_bytes(), signature: [0; 64] });
        solve_pow(&mut self, bits);
        let signed = self.signed();
        self.signature = agent.sign(&signed).to_bytes();
        if let (Some(transfer), Some(old)) = (&mut self.transfer, old_holder) {
            transfer.signature = old.sign(&signed).to_bytes();
        }
        self
    }

    /// As [`Claim::sign`], where the agent's key is somebody else's to use; no transfer. [`Claim::key`] must be set.
    #[must_use]
    pub fn sign_with(mut self, bits: u8, sign: impl Fn(&[u8]) -> [u8; 64]) -> Self {
        solve_pow(&mut self, bits);
        self.signature = sign(&self.signed());
        self
    }

    /// The bytes that both signatures cover.
    #[must_use]
    pub fn signed(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(CLAIM_MAX);
        out.extend_from_slice(SIGN_CONTEXT);
        self.body(&mut out);
        out
    }

    /// Leading zero bits of the proof of work.
    #[must_use]
    pub fn pow_bits(&self) -> u32 {
        let mut body = Vec::with_capacity(CLAIM_MAX);
        self.body(&mut body);
        leading_zeros(&blake3::derive_key(POW_CONTEXT, &body))
    }

    /// Names the claim; the same claim again has the same one.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        blake3::derive_key(HASH_CONTEXT, &self.encode())
    }

    /// Everything before the signatures.
    fn body(&self, out: &mut Vec<u8>) {
        out.push(self.subject.kind() as u8 | if self.transfer.is_some() { TRANSFER } else { 0 });
        out.extend(self.subject.network().0.to_be_bytes());
        self.subject.with_name(|name| {
            // A name that is too long is cut here and refused by `check`.
            let name = &name[..name.len().min(MAX_NAME)];
            out.push(name.len() as u8);
            out.extend_from_slice(name);
        });
        out.extend(self.key);
        out.extend(self.salt.to_be_bytes());
        out.extend(self.seq.to_be_bytes());
        out.extend(self.expires.to_be_bytes());
        out.extend(self.transfer.iter().flat_map(|transfer| transfer.from));
        out.extend(self.pow.to_be_bytes());
    }

    /// As it lies in logs, leaves and messages; at most [`CLAIM_MAX`] bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(192);
        self.body(&mut out);
        out.extend(self.signature);
        out.extend(self.transfer.iter().flat_map(|transfer| transfer.signature));
        out
    }

    /// Reads a claim. Strict: what decodes encodes to the same bytes again. Says nothing about signatures.
    ///
    /// # Errors
    /// [`ClaimError`], whatever is wrong first.
    pub fn decode(bytes: &[u8]) -> Result<Self, ClaimError> {
        let mut read = Reader(bytes);
        let kind = read.array::<1>()?[0];
        let transferred = kind & TRANSFER != 0;
        let network = NetworkId(u16::from_be_bytes(read.array()?));
        let len = usize::from(read.array::<1>()?[0]);
        let subject = subject(kind & !TRANSFER, network, read.bytes(len)?)?;
        subject.check().map_err(ClaimError::Subject)?;
        let key = read.array()?;
        let salt = u16::from_be_bytes(read.array()?);
        let seq = u64::from_be_bytes(read.array()?);
        let expires = u32::from_be_bytes(read.array()?);
        let from = if transferred { Some(read.array()?) } else { None };
        let pow = u32::from_be_bytes(read.array()?);
        let signature = read.array()?;
        let transfer = match from {
            Some(from) => Some(Transfer { from, signature: read.array()? }),
            None => None,
        };
        if !read.0.is_empty() {
            return Err(ClaimError::TooLong);
        }
        if salt != 0 && (transferred || subject.kind() != Kind::Address) {
            return Err(ClaimError::Value("salt"));
        }
        if transferred && expires == 0 {
            return Err(ClaimError::Value("expires"));
        }
        Ok(Self { subject, key, salt, seq, expires, pow, transfer, signature })
    }
}

fn subject(kind: u8, network: NetworkId, name: &[u8]) -> Result<Subject, ClaimError> {
    let text = || match std::str::from_utf8(name) {
        Ok(text) if name.len() <= MAX_NAME => Ok(text.to_owned()),
        _ => Err(ClaimError::Value("name")),
    };
    match kind {
        1 => {
            let node: [u8; 4] = name.try_into().map_err(|_| ClaimError::Value("node id"))?;
            Ok(Subject::Address { network, node: NodeId(u32::from_be_bytes(node)) })
        }
        2 => Ok(Subject::Hostname { network, name: text()? }),
        3 if name.is_empty() => Ok(Subject::NetworkId { network }),
        3 => Err(ClaimError::Value("name")),
        4 => Ok(Subject::NetworkName { network, name: text()? }),
        other => Err(ClaimError::Kind(other)),
    }
}

/// Finds the smallest `pow` with which the claim's hash starts with `bits` zero bits. If there is none (one in 10^6 at 28
/// bits, never below), the claim stays unsolved and is refused as such.
pub fn solve_pow(claim: &mut Claim, bits: u8) {
    let mut body = Vec::with_capacity(CLAIM_MAX);
    claim.body(&mut body);
    let at = body.len() - 4;
    let (head, _) = body.split_at(at);
    let mut start = blake3::Hasher::new_derive_key(POW_CONTEXT);
    start.update(head);
    claim.pow = (0..=u32::MAX)
        .find(|pow| {
            let mut hasher = start.clone();
            hasher.update(&pow.to_be_bytes());
            leading_zeros(hasher.finalize().as_bytes()) >= u32::from(bits)
        })
        .unwrap_or(u32::MAX);
}

fn leading_zeros(hash: &[u8; 32]) -> u32 {
    let (first, _) = hash.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    u64::from_be_bytes(*first).leading_zeros()
}

/// Why bytes are not a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// The bytes end too early.
    #[error("claim: the bytes are cut off")]
    Truncated,
    /// There are bytes behind it.
    #[error("claim: there are bytes behind the claim")]
    TooLong,
    /// No such kind.
    #[error("claim: unknown kind {0}")]
    Kind(u8),
    /// A field has a value that it must not have; its name.
    #[error("claim: the field \"{0}\" has a forbidden value")]
    Value(&'static str),
    /// Nobody may claim that.
    #[error("claim: {0}")]
    Subject(SubjectError),
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], ClaimError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(ClaimError::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], ClaimError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(ClaimError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }
}
