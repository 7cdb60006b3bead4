//! Nodes with their indexes and the undo journal of the batch in progress.

use super::{Record, RecordError};
use pilotage_wire::NodeId;
use std::collections::HashMap;
use std::time::Instant;

/// A node in memory.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) record: Record,
    /// Last sign of life; `None` after `deregister`.
    pub(super) last_seen: Option<Instant>,
}

/// Invariant: `by_key` and `by_name` are exactly the inverses of `nodes`.
#[derive(Debug, Default)]
pub(super) struct Table {
    nodes: HashMap<NodeId, Node>,
    by_key: HashMap<[u8; 32], NodeId>,
    by_name: HashMap<Box<str>, NodeId>,
    /// What each change of this batch replaced, oldest first.
    journal: Vec<(NodeId, Option<Node>)>,
}

impl Table {
    /// Adds a stored record at start.
    pub(super) fn load(&mut self, id: NodeId, record: Record, now: Instant) -> Result<(), RecordError> {
        if let Some(&other) = self.by_key.get(&record.public_key) {
            return Err(RecordError::DuplicateKey(other, id));
        }
        if let Some(name) = &record.hostname
            && let Some(&other) = self.by_name.get(name)
        {
            return Err(RecordError::DuplicateName(other, id));
        }
        let last_seen = record.endpoint.is_some().then_some(now);
        self.insert(id, Node { record, last_seen });
        Ok(())
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub(super) fn by_key(&self, key: &[u8; 32]) -> Option<NodeId> {
        self.by_key.get(key).copied()
    }

    pub(super) fn by_name(&self, name: &str) -> Option<NodeId> {
        self.by_name.get(name).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn names(&self) -> usize {
        self.by_name.len()
    }

    /// A sign of life: not durable, not undone.
    pub(super) fn touch(&mut self, id: NodeId, now: Instant) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.last_seen = Some(now);
        }
    }

    /// Stages a new or changed record. The caller has made sure that name and key are free or the node's own.
    pub(super) fn put(&mut self, id: NodeId, node: Node) {
        let previous = self.remove(id);
        self.insert(id, node);
        self.journal.push((id, previous));
    }

    pub(super) fn staged_len(&self) -> usize {
        self.journal.len()
    }

    pub(super) fn staged(&self) -> impl Iterator<Item = (NodeId, &Record)> {
        self.journal.iter().filter_map(|(id, _)| self.nodes.get(id).map(|node| (*id, &node.record)))
    }

    pub(super) fn commit(&mut self) {
        self.journal.clear();
    }

    pub(super) fn rollback(&mut self) {
        while let Some((id, previous)) = self.journal.pop() {
            self.remove(id);
            if let Some(node) = previous {
                self.insert(id, node);
            }
        }
    }

    fn insert(&mut self, id: NodeId, node: Node) {
        self.by_key.insert(node.record.public_key, id);
        if let Some(name) = &node.record.hostname {
            self.by_name.insert(name.clone(), id);
        }
        self.nodes.insert(id, node);
    }

    fn remove(&mut self, id: NodeId) -> Option<Node> {
        let node = self.nodes.remove(&id)?;
        self.by_key.remove(&node.record.public_key);
        if let Some(name) = &node.record.hostname {
            self.by_name.remove(name);
        }
        Some(node)
    }

    #[cfg(test)]
    pub(super) fn assert_consistent(&self) {
        assert_eq!(self.by_key.len(), self.nodes.len());
        for (key, id) in &self.by_key {
            assert_eq!(&self.nodes[id].record.public_key, key);
        }
        let named = self.nodes.values().filter(|n| n.record.hostname.is_some()).count();
        assert_eq!(self.by_name.len(), named);
        for (name, id) in &self.by_name {
            assert_eq!(self.nodes[id].record.hostname.as_ref(), Some(name));
        }
    }
}
