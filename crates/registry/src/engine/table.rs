//! Nodes with their indexes and the undo journal of the batch in progress.

use super::{Record, RecordError};
use pilotage_wire::NodeId;
use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

/// A node in memory.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) record: Record,
    /// Last sign of life; `None` after `deregister`. Of a node that is not durable: when it came.
    pub(super) last_seen: Option<Instant>,
    /// Stored or staged. The others have never signed anything and are forgotten at a restart (spec/registry.md §5.3.2).
    pub(super) durable: bool,
}

/// Invariant: `by_key` and `by_name` are exactly the inverses of `nodes`, and `unconfirmed` lists the nodes that are not
/// durable. Where a durable node and another want the same key or name, the durable one has it.
#[derive(Debug, Default)]
pub(super) struct Table {
    nodes: HashMap<NodeId, Node>,
    by_key: HashMap<[u8; 32], NodeId>,
    by_name: HashMap<Box<str>, NodeId>,
    /// Nodes that are not durable, oldest first.
    unconfirmed: BTreeSet<(Option<Instant>, NodeId)>,
    unconfirmed_names: usize,
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
        self.insert(id, Node { record, last_seen, durable: true });
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

    /// Durable nodes.
    pub(super) fn len(&self) -> usize {
        self.nodes.len() - self.unconfirmed.len()
    }

    /// All nodes, also those that are in memory only.
    pub(super) fn total(&self) -> usize {
        self.nodes.len()
    }

    /// Names of durable nodes.
    pub(super) fn names(&self) -> usize {
        self.by_name.len() - self.unconfirmed_names
    }

    pub(super) fn unconfirmed(&self) -> usize {
        self.unconfirmed.len()
    }

    /// Ids of durable nodes above `after`, ascending. Walks over all: for the operator only.
    pub(super) fn ids_after(&self, after: u32) -> BTreeSet<NodeId> {
        let wanted = |(id, node): &(&NodeId, &Node)| id.0 > after && node.durable;
        self.nodes.iter().filter(wanted).map(|(id, _)| *id).collect()
    }

    /// A sign of life: not durable, not undone.
    pub(super) fn touch(&mut self, id: NodeId, now: Instant) {
        if let Some(node) = self.nodes.get_mut(&id).filter(|node| node.durable) {
            node.last_seen = Some(now);
        }
    }

    /// Stages a new or changed record. The caller has made sure that name and key are free, the node's own, or those of
    /// a node that is not durable.
    pub(super) fn put(&mut self, id: NodeId, record: Record, last_seen: Option<Instant>) {
        let previous = self.remove(id);
        self.insert(id, Node { record, last_seen, durable: true });
        self.journal.push((id, previous));
    }

    /// Makes a record that a cluster has agreed on the state of `id`. Nothing is staged. A new place is a sign of life.
    pub(super) fn settle(&mut self, id: NodeId, record: Record, now: Instant) {
        debug_assert!(self.journal.is_empty());
        let old = self.remove(id).filter(|old| old.durable && old.record.endpoint == record.endpoint);
        let last_seen = record.endpoint.and_then(|_| old.map_or(Some(now), |old| old.last_seen));
        self.insert(id, Node { record, last_seen, durable: true });
    }

    /// What each node changed since `mark` was before; `None` if it was not durable.
    pub(super) fn before(&self, mark: usize) -> impl Iterator<Item = (NodeId, Option<&Record>)> {
        let changed = self.journal.get(mark..).unwrap_or_default().iter();
        changed.map(|(id, old)| (*id, old.as_ref().filter(|old| old.durable).map(|old| &old.record)))
    }

    /// Remembers a node that has signed nothing yet: in memory only.
    pub(super) fn put_unconfirmed(&mut self, id: NodeId, record: Record, now: Instant) {
        self.remove(id);
        self.insert(id, Node { record, last_seen: Some(now), durable: false });
    }

    /// Forgets the oldest of those if it came before `horizon`.
    pub(super) fn forget_unconfirmed(&mut self, horizon: Option<Instant>) -> bool {
        let Some(&(born, id)) = self.unconfirmed.first() else { return false };
        let old = horizon.is_some_and(|horizon| born.is_none_or(|born| born <= horizon));
        if old {
            self.remove(id);
        }
        old
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

    /// Undoes what is staged. A node that had signed nothing finds its place taken if others came meanwhile: it is
    /// forgotten then, as such nodes may be.
    pub(super) fn rollback(&mut self, max_unconfirmed: usize) {
        while let Some((id, previous)) = self.journal.pop() {
            self.remove(id);
            if let Some(node) =
                previous.filter(|node| node.durable || self.unconfirmed.len() < max_unconfirmed)
            {
                self.insert(id, node);
            }
        }
    }

    fn insert(&mut self, id: NodeId, node: Node) {
        let rival = self.by_key.get(&node.record.public_key).copied().filter(|other| *other != id);
        if let Some(rival) = rival {
            self.remove(rival);
        }
        let holder = node.record.hostname.as_deref().and_then(|name| self.by_name(name));
        if let Some(holder) = holder.filter(|other| *other != id)
            && let Some(mut other) = self.remove(holder)
        {
            other.record.hostname = None;
            self.insert(holder, other);
        }
        self.by_key.insert(node.record.public_key, id);
        if let Some(name) = &node.record.hostname {
            self.by_name.insert(name.clone(), id);
            self.unconfirmed_names += usize::from(!node.durable);
        }
        if !node.durable {
            self.unconfirmed.insert((node.last_seen, id));
        }
        self.nodes.insert(id, node);
    }

    fn remove(&mut self, id: NodeId) -> Option<Node> {
        let node = self.nodes.remove(&id)?;
        self.by_key.remove(&node.record.public_key);
        if let Some(name) = &node.record.hostname {
            self.by_name.remove(name);
            self.unconfirmed_names -= usize::from(!node.durable);
        }
        if !node.durable {
            self.unconfirmed.remove(&(node.last_seen, id));
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
        let weak = self.nodes.iter().filter(|(_, node)| !node.durable);
        assert_eq!(weak.clone().map(|(id, n)| (n.last_seen, *id)).collect::<BTreeSet<_>>(), self.unconfirmed);
        assert_eq!(weak.filter(|(_, n)| n.record.hostname.is_some()).count(), self.unconfirmed_names);
    }
}
