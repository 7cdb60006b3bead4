//! The types that Raft carries. `spec/cluster.md §2`.

use std::fmt;
use std::io::Cursor;
use std::net::{Ipv4Addr, SocketAddr};

use pilotage_wire::{Address, NetworkId, addressing};
use serde::{Deserialize, Serialize};

openraft::declare_raft_types!(
    /// What openraft is built of here.
    pub Types:
        D = Command,
        R = Answer,
        NodeId = u64,
        Node = Member,
        Entry = openraft::Entry<Types>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = openraft::TokioRuntime,
);

/// A member's name inside Raft: first 8 bytes of BLAKE3 over key and incarnation, never 0. A node that lost its file has
/// another one, so it cannot vote twice in a term that it has forgotten.
pub type RaftId = u64;
/// One entry of the log.
pub(crate) type Entry = openraft::Entry<Types>;
/// Where in the log.
pub(crate) type LogId = openraft::LogId<RaftId>;
/// Who is asked for.
pub(crate) type Vote = openraft::Vote<RaftId>;
/// Members, as the log says.
pub(crate) type Membership = openraft::StoredMembership<RaftId, Member>;
/// What a snapshot is about.
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<RaftId, Member>;
/// The store failed.
pub(crate) type StorageError = openraft::StorageError<RaftId>;

/// One command for the state machine, as bytes that only it understands.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command(pub Vec<u8>);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} bytes)", self.0.len())
    }
}

/// The state machine's answer; empty for entries that are none of its business.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Answer(pub Vec<u8>);

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answer({} bytes)", self.0.len())
    }
}

/// A node of the cluster, as all others know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its Ed25519 key: who opens a stream with another key is not this member.
    pub key: [u8; 32],
    /// Where its cluster port is (UDP).
    pub endpoint: SocketAddr,
    /// Its share of records, relative to the others' (`placement`). At least 1.
    pub weight: u16,
}

impl Default for Member {
    fn default() -> Self {
        Self { key: [0; 32], endpoint: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), weight: 1 }
    }
}

impl Member {
    /// The Pilot address that derives from the key.
    #[must_use]
    pub fn address(&self) -> Option<Address> {
        addressing::first_address(NetworkId(0), &self.key)
    }
}

const ID_CONTEXT: &str = "pilotage 2026 cluster raft-id v1";

/// The id of a key with a file of this incarnation.
#[must_use]
pub fn raft_id(key: &[u8; 32], incarnation: &[u8; 16]) -> RaftId {
    let mut hasher = blake3::Hasher::new_derive_key(ID_CONTEXT);
    hasher.update(key).update(incarnation);
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h]).max(1)
}
