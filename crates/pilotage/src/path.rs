//! Which way to a peer is in use, since when, and why.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use pilotage_nat::agent::PathReason;
use pilotage_proto::{PathInfo, PathKind};
use pilotage_wire::NodeId;

use crate::node::{Node, NodeInner};
use crate::shared::{Core, Shared, Wakes};
use crate::slot::{Direction, Slot};

/// Watchers of one node; beyond it a watcher tells the state of things and then nothing more.
const MAX_WATCHERS: usize = 4_096;
/// Peers whose age of the path is kept. The endpoint bounds tunnels well below.
const MAX_AGES: usize = 65_536;

/// How a peer is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PathStatus {
    /// The path in use; `None` before there is one.
    pub path: Option<PathInfo>,
    /// Why it is this one: a code such as `direct-host`, `relay-no-answer`, `udp-blocked` (`spec/reach.md §2`).
    pub reason: &'static str,
    /// How long it has been in use.
    pub age: Option<Duration>,
    /// Whether keys are agreed with the peer.
    pub established: bool,
}

impl PathStatus {
    /// What makes one path another one: kind, address, reason.
    fn key(&self) -> (Option<(PathKind, SocketAddr)>, &'static str, bool) {
        (self.path.map(|path| (path.kind, path.remote)), self.reason, self.established)
    }

    /// Whether datagrams go straight to the peer.
    pub fn is_direct(&self) -> bool {
        self.path.is_some_and(|path| path.kind == PathKind::Direct)
    }
}

/// What a node keeps about paths besides the endpoint.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    since: HashMap<NodeId, Instant>,
    watchers: Vec<(NodeId, Weak<Slot>)>,
}

impl Paths {
    /// The path to a peer is another one now.
    pub(crate) fn changed(&mut self, peer: NodeId, now: Instant, wakes: &mut Wakes) {
        if self.since.len() >= MAX_AGES {
            self.since.clear();
        }
        self.since.insert(peer, now);
        self.tell(peer, wakes);
    }

    /// The keys with a peer are new, which may be its first path.
    pub(crate) fn up(&mut self, peer: NodeId, now: Instant, wakes: &mut Wakes) {
        if self.since.len() < MAX_AGES {
            self.since.entry(peer).or_insert(now);
        }
        self.tell(peer, wakes);
    }

    pub(crate) fn down(&mut self, peer: NodeId, wakes: &mut Wakes) {
        self.since.remove(&peer);
        self.tell(peer, wakes);
    }

    /// Everybody learns that the node is closed.
    pub(crate) fn close(&mut self, wakes: &mut Wakes) {
        for slot in self.watchers.drain(..).filter_map(|(_, slot)| slot.upgrade()) {
            slot.set_closed();
            wakes.add(&slot, Direction::Read);
        }
    }

    fn tell(&mut self, peer: NodeId, wakes: &mut Wakes) {
        self.watchers.retain(|(_, slot)| slot.strong_count() > 0);
        for slot in
            self.watchers.iter().filter(|(watched, _)| *watched == peer).filter_map(|(_, s)| s.upgrade())
        {
            wakes.add(&slot, Direction::Read);
        }
    }

    fn watch(&mut self, peer: NodeId, slot: &Arc<Slot>) {
        self.watchers.retain(|(_, slot)| slot.strong_count() > 0);
        if self.watchers.len() < MAX_WATCHERS {
            self.watchers.push((peer, Arc::downgrade(slot)));
        }
    }
}

impl Shared {
    /// How a peer is reached; `None` without a tunnel.
    pub(crate) fn path_status(&self, core: &Core, peer: NodeId) -> Option<PathStatus> {
        let tunnel = core.endpoint.peer(peer)?;
        let age = core.paths.since.get(&peer).map(Instant::elapsed);
        let reason =
            core.endpoint.path_report(peer).map_or(PathReason::Idle, |report| report.reason).as_str();
        Some(PathStatus { path: tunnel.path, reason, age, established: tunnel.established })
    }
}

/// Tells when the path to a peer changes. Made by [`Node::watch_path`] and [`Stream::watch_path`](crate::Stream::watch_path).
///
/// The first call tells the state of things at once; later ones wait until kind, address or reason differ from what
/// was told last. A watcher that is slow misses what came between, never the last change.
pub struct PathWatcher {
    node: Arc<NodeInner>,
    peer: NodeId,
    slot: Arc<Slot>,
    told: Option<PathStatus>,
}

impl PathWatcher {
    pub(crate) fn new(node: &Arc<NodeInner>, peer: NodeId) -> Self {
        let slot = Arc::new(Slot::default());
        node.shared.lock().paths.watch(peer, &slot);
        Self { node: node.clone(), peer, slot, told: None }
    }

    /// The path now, whether it was told before or not.
    pub fn current(&self) -> Option<PathStatus> {
        let core = self.node.shared.lock();
        self.node.shared.path_status(&core, self.peer)
    }

    /// Waits for the next change; `None` after `timeout`, or once the node is closed.
    pub fn changed(&mut self, timeout: Duration) -> Option<PathStatus> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let seen = self.slot.epoch(Direction::Read);
            if let Some(news) = self.news() {
                return Some(news);
            }
            if self.slot.is_closed() || !self.slot.wait(Direction::Read, seen, deadline) {
                return None;
            }
        }
    }

    /// As [`PathWatcher::changed`], for any async runtime, without a bound in time.
    pub async fn changed_async(&mut self) -> Option<PathStatus> {
        let slot = self.slot.clone();
        poll_fn(|cx| {
            slot.poll_once(Direction::Read, cx, || match self.news() {
                Some(news) => Some(Some(news)),
                None if slot.is_closed() => Some(None),
                None => None,
            })
        })
        .await
    }

    fn news(&mut self) -> Option<PathStatus> {
        let current = self.current()?;
        if self.told.is_some_and(|told| told.key() == current.key()) {
            return None;
        }
        self.told = Some(current);
        Some(current)
    }
}

impl std::fmt::Debug for PathWatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PathWatcher").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Node {
    /// How a peer is reached, and why so; `None` without a tunnel.
    pub fn path(&self, peer: NodeId) -> Option<PathStatus> {
        let core = self.inner.shared.lock();
        self.inner.shared.path_status(&core, peer)
    }

    /// Watches the path to a peer. Keeps the node open, as a stream does.
    pub fn watch_path(&self, peer: NodeId) -> PathWatcher {
        PathWatcher::new(&self.inner, peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_watchers_is_bounded_and_forgets_those_that_are_gone() {
        let (mut paths, mut wakes) = (Paths::default(), Wakes::default());
        let slots: Vec<_> = (0..MAX_WATCHERS + 9).map(|_| Arc::new(Slot::default())).collect();
        slots.iter().for_each(|slot| paths.watch(NodeId(7), slot));
        assert_eq!(paths.watchers.len(), MAX_WATCHERS);
        paths.changed(NodeId(7), Instant::now(), &mut wakes);
        assert_eq!(wakes.len(), MAX_WATCHERS);
        drop(slots);
        wakes.deliver();
        paths.up(NodeId(8), Instant::now(), &mut wakes);
        assert_eq!((paths.watchers.len(), wakes.len(), paths.since.len()), (0, 0, 2));
    }
}
