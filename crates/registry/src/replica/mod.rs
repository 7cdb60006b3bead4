//! Records held for others: any node of the map may hold any record, because its agent signed it. `spec/replica.md`.
//!
//! No consensus. An agent puts its record at the first R nodes of its key's order ([`crate::placement`]) and puts it there
//! again each minute; who looks for it asks two of them, verifies, and takes the greater rank. Nothing else repairs.
//!
//! * [`store`] (feature `store`): the records, in a redb file of their own.
//! * [`presence`]: who was heard of when, in memory; heartbeats are datagrams. Sans-IO.
//! * [`watch`]: the latest changes, for those who follow them. Sans-IO.
//! * [`node`] (feature `server`): the three together, as a registry serves them.
//! * [`evidence`]: what shows that a node lied.
//! * [`find`] (feature `client`): looking for records, and believing none that is not verified.
//! * [`agent`] (feature `client`): an agent's refresh and heartbeats.
//! * [`follow`] (feature `client`): following changes.
//! * [`cache`] (feature `client`): verified records on disk, and answers for friends.
//! * [`public`] (feature `client`): records in places that anybody can read and write.

#[cfg(feature = "client")]
pub mod agent;
#[cfg(feature = "client")]
pub mod cache;
pub mod evidence;
#[cfg(feature = "client")]
pub mod find;
#[cfg(feature = "client")]
pub mod follow;
#[cfg(feature = "server")]
pub mod node;
pub mod presence;
#[cfg(feature = "client")]
pub mod public;
#[cfg(feature = "store")]
pub mod store;
pub mod watch;

use crate::book::message::OwnerKey;
use pilotage_wire::NetworkId;

/// How often an agent refreshes its record, by default. Milliseconds.
pub const REFRESH: u64 = 60_000;
/// Seconds between two heartbeats, by default.
pub const HEARTBEAT: u32 = 30;

/// What a record is kept under.
#[must_use]
pub fn owner_key(agent_id: &[u8; 32], network: NetworkId) -> OwnerKey {
    let mut key = [0; 34];
    key[..32].copy_from_slice(agent_id);
    key[32..].copy_from_slice(&network.0.to_be_bytes());
    key
}

/// Agent id and network of a key.
#[must_use]
pub fn owner_of(key: &OwnerKey) -> ([u8; 32], NetworkId) {
    let mut id = [0; 32];
    id.copy_from_slice(&key[..32]);
    (id, NetworkId(u16::from_be_bytes([key[32], key[33]])))
}

/// Whose record it is, if it is long enough to be one.
#[must_use]
pub fn owner_in(record: &[u8]) -> Option<OwnerKey> {
    let key: [u8; 32] = record.get(16..48)?.try_into().ok()?;
    let network = u16::from_be_bytes(record.get(6..8)?.try_into().ok()?);
    Some(owner_key(&pilotage_wire::addressing::agent_id(&key), NetworkId(network)))
}

/// Whether an encoded record asks not to be listed.
#[must_use]
pub fn is_private(record: &[u8]) -> bool {
    record.get(15).is_none_or(|flags| flags & 1 != 0)
}
