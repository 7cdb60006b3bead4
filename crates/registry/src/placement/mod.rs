//! Which nodes hold a record: rendezvous hashing over a signed map. Sans-IO. `spec/cluster.md §7`.
//!
//! * [`Map`]: the nodes with keys, endpoints and weights, an epoch, and how many replicas a record has.
//! * [`SignedMap`], [`MapKeeper`]: which maps a client believes. Never an older one, and a newer one only if those of the
//!   map before vouch for it.
//! * [`Map::ranked`]: all nodes in a key's order of preference. The first [`Map::replicas`] live ones hold the record.
//!   Without a node, only its keys move, and each of them to the next node in its own order.
//! * [`Refresh`]: an agent's timer and memory of nodes that failed. Nothing else repairs: what was lost with a node is
//!   written again by who signed it.

mod map;
mod refresh;
mod score;
#[cfg(test)]
mod tests;

pub use map::{
    MAX_ENDPOINTS, MAX_NODES, MAX_OPERATORS, MAX_REPLICAS, Map, MapError, MapKeeper, MapNode, MapSignature,
    SignedMap,
};
pub use refresh::{MAX_SUSPECTS, Refresh};

/// One input of the fuzz target `registry_map`: a map that is understood keeps its bounds and is written as it was read.
///
/// # Panics
/// If an invariant does not hold.
#[doc(hidden)]
pub fn fuzz_input(data: &[u8]) {
    let Ok(signed) = SignedMap::decode(data) else { return };
    assert_eq!(signed.encode(), data);
    assert!(signed.map.nodes.len() <= MAX_NODES && signed.map.operators.len() <= MAX_OPERATORS);
    let key = [7; 32];
    let ranked = signed.map.ranked(&key);
    assert_eq!(ranked.len(), signed.map.nodes.len());
    assert!(signed.map.holders(&key, |_| true).len() <= MAX_REPLICAS);
}
