//! What the endpoint holds, for operators and for tests of its bounds.

use super::Endpoint;
use crate::event::{MemoryUse, PathInfo};

impl Endpoint {
    /// What the endpoint holds now. Walks over all connections: not for every packet.
    pub fn memory(&self) -> MemoryUse {
        let mut total = MemoryUse {
            peers: self.by_node.len(),
            events: self.events.len(),
            lookups: self.lookups.len(),
            before_the_gate: self.gate.held_bytes(),
            datagrams_in: self.datagram_ports.values().map(|q| q.waiting.len()).sum::<usize>()
                + self.any_datagram.as_ref().map_or(0, super::any_datagram::AnyQueue::len),
            ..MemoryUse::default()
        };
        for tunnel in self.tunnels.iter().flatten() {
            total.queued_out += tunnel.datagrams.len() + tunnel.early.len() + tunnel.control.queued();
            for conn in tunnel.slots.iter() {
                total.connections += 1;
                total.received += conn.held();
                total.written += conn.unacknowledged();
            }
            for stream in tunnel.mux.iter().flat_map(|mux| mux.streams.iter()) {
                total.connections += 1;
                total.received += stream.held();
                total.written += stream.unacknowledged();
            }
        }
        total
    }

    /// The paths in use, each with the number of connections that share it, in the order in which the peers were
    /// introduced.
    pub fn paths(&self) -> Vec<(PathInfo, usize)> {
        self.tunnels.iter().flatten().filter_map(|t| Some((t.path.info()?, t.open_count()))).collect()
    }
}
