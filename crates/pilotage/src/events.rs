//! What happened to a node, for whoever wants to know: bounded queues that drop the oldest entry.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use pilotage_proto::{ConnectError, PathInfo};
use pilotage_wire::{Address, NodeId};

/// Most events that wait for one receiver.
pub const EVENT_CAPACITY: usize = 1024;

/// Something that happened to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeEvent {
    /// Keys with a peer were agreed for the first time or anew.
    TunnelUp {
        /// The peer.
        peer: NodeId,
        /// Time from our first frame to the keys; zero if the peer began.
        handshake: Duration,
    },
    /// A tunnel was given up.
    TunnelDown {
        /// The peer.
        peer: NodeId,
        /// Why.
        reason: ConnectError,
    },
    /// The path to a peer changed.
    PathChanged {
        /// The peer.
        peer: NodeId,
        /// The path in use now.
        path: PathInfo,
    },
    /// A peer was refused because its key could not be believed.
    PeerRefused {
        /// The node id that it claimed.
        node: NodeId,
        /// Why it was refused.
        reason: String,
    },
    /// The hub accepted our registration.
    Registered {
        /// Our address, as the hub assigned or confirmed it.
        address: Address,
    },
    /// The registry had forgotten us and assigned another address: all streams and tunnels ended.
    AddressChanged {
        /// Our address from now on.
        address: Address,
    },
    /// The hub does not answer or no longer knows us; registering is tried again.
    HubLost {
        /// What went wrong.
        reason: String,
    },
    /// Datagrams for the beacon go through the hub's WebSocket from now on, because UDP does not work, or by UDP again.
    CarriageChanged {
        /// Whether they go through the WebSocket.
        carried: bool,
    },
    /// Addresses of our interfaces came or went, or the host slept: the beacon and peers are asked anew.
    NetworkChanged {
        /// Our addresses now, with our port.
        addresses: Vec<SocketAddr>,
        /// The host slept.
        woke: bool,
    },
    /// The router gave us a port, gave us another one, or took it away.
    PortMapped {
        /// Where others reach us now.
        external: Option<SocketAddr>,
    },
    /// The node is closed; nothing follows.
    Closed,
}

/// Receives the events of a node from the moment of [`Node::events`](crate::Node::events) on.
///
/// Holds at most [`EVENT_CAPACITY`] events; when it is full the oldest one is dropped and counted.
#[derive(Debug)]
pub struct EventReceiver {
    queue: Arc<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<NodeEvent>,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl EventReceiver {
    /// The oldest event that waits, if any.
    pub fn try_recv(&self) -> Option<NodeEvent> {
        self.queue.lock().events.pop_front()
    }

    /// Waits for an event; `None` after `timeout`, or once the node is closed and all events are taken.
    pub fn recv_timeout(&self, timeout: Duration) -> Option<NodeEvent> {
        self.recv_until(Instant::now().checked_add(timeout))
    }

    /// Waits for an event; `None` once the node is closed and all events are taken.
    pub fn recv(&self) -> Option<NodeEvent> {
        self.recv_until(None)
    }

    /// Events lost because this receiver was too slow.
    pub fn dropped(&self) -> u64 {
        self.queue.dropped.load(Ordering::Relaxed)
    }

    fn recv_until(&self, deadline: Option<Instant>) -> Option<NodeEvent> {
        let mut state = self.queue.lock();
        loop {
            if let Some(event) = state.events.pop_front() {
                return Some(event);
            }
            if state.closed {
                return None;
            }
            state = match deadline {
                None => self.queue.arrived.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner()),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    let waited = self.queue.arrived.wait_timeout(state, left);
                    waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0
                }
            };
        }
    }
}

impl Iterator for EventReceiver {
    type Item = NodeEvent;

    /// As [`EventReceiver::recv`].
    fn next(&mut self) -> Option<NodeEvent> {
        self.recv()
    }
}

/// The sending side: gives every receiver its own copy.
#[derive(Debug, Default)]
pub(crate) struct EventHub {
    receivers: Mutex<Vec<Weak<Queue>>>,
}

impl EventHub {
    pub(crate) fn subscribe(&self, closed: bool) -> EventReceiver {
        let queue = Arc::new(Queue::default());
        queue.lock().closed = closed;
        let mut receivers = self.receivers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        receivers.retain(|receiver| receiver.strong_count() > 0);
        receivers.push(Arc::downgrade(&queue));
        EventReceiver { queue }
    }

    pub(crate) fn send(&self, event: NodeEvent) {
        let receivers = self.receivers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for queue in receivers.iter().filter_map(Weak::upgrade) {
            let mut state = queue.lock();
            state.closed |= event == NodeEvent::Closed;
            if state.events.len() >= EVENT_CAPACITY {
                state.events.pop_front();
                queue.dropped.fetch_add(1, Ordering::Relaxed);
            }
            state.events.push_back(event.clone());
            drop(state);
            queue.arrived.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(peer: u32) -> NodeEvent {
        NodeEvent::TunnelUp { peer: NodeId(peer), handshake: Duration::ZERO }
    }

    #[test]
    fn a_slow_receiver_loses_the_oldest_and_counts_it() {
        let hub = EventHub::default();
        let receiver = hub.subscribe(false);
        for peer in 0..EVENT_CAPACITY as u32 + 3 {
            hub.send(up(peer));
        }
        assert_eq!(receiver.dropped(), 3);
        assert_eq!(receiver.try_recv(), Some(up(3)));
    }

    #[test]
    fn each_receiver_gets_its_own_copy_and_the_end() {
        let hub = EventHub::default();
        let (a, b) = (hub.subscribe(false), hub.subscribe(false));
        hub.send(up(1));
        hub.send(NodeEvent::Closed);
        assert_eq!(a.collect::<Vec<_>>(), [up(1), NodeEvent::Closed]);
        assert_eq!(b.collect::<Vec<_>>(), [up(1), NodeEvent::Closed]);
        assert_eq!(hub.subscribe(true).recv(), None, "after the end there is nothing to wait for");
    }

    #[test]
    fn waiting_is_bounded() {
        let hub = EventHub::default();
        let receiver = hub.subscribe(false);
        assert_eq!(receiver.recv_timeout(Duration::from_millis(5)), None);
    }
}
