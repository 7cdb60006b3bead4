//! Which key each node has, for other threads of the process: a beacon that checks whose id is proved to it
//! (spec/nat.md §7.2).

use pilotage_wire::NodeId;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// The keys of all claimed addresses, as far as they are durable. Clones read the same. As many as the registry has nodes.
#[derive(Debug, Clone, Default)]
pub struct Keys(Arc<RwLock<HashMap<NodeId, [u8; 32]>>>);

impl Keys {
    /// The key that has this address; `None` if nobody has.
    #[must_use]
    pub fn of(&self, node: NodeId) -> Option<[u8; 32]> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&node).copied()
    }

    pub(crate) fn put(&self, keys: impl IntoIterator<Item = (NodeId, [u8; 32])>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).extend(keys);
    }
}
