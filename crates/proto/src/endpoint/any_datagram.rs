//! Datagrams for ports that nobody bound, for a program that wants to see them all (draft-01 facts §7, §20), and the
//! list of connections for an operator.

use std::collections::VecDeque;

use pilotage_fault as fault;
use pilotage_wire::SocketAddress;
use pilotage_wire::packet::Header;

use super::Endpoint;
use crate::event::{ConnectionInfo, DatagramIn, Event};

/// Datagrams that wait for `recv_any_datagram`.
#[derive(Debug, Default)]
pub(super) struct AnyQueue {
    waiting: VecDeque<(u16, DatagramIn)>,
    announced: bool,
}

impl AnyQueue {
    /// [`Event::AnyDatagram`] was polled.
    pub(super) fn polled(&mut self) {
        self.announced = false;
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

impl Endpoint {
    /// Keeps datagrams to ports that are not bound from now on, or drops them as before together with those that wait.
    /// At most [`Config::datagram_queue`](crate::Config) wait; further ones are dropped and counted.
    pub fn catch_datagrams(&mut self, catch: bool) {
        self.any_datagram = catch.then(AnyQueue::default);
    }

    /// The next datagram to a port that is not bound, with that port.
    pub fn recv_any_datagram(&mut self) -> Option<(u16, DatagramIn)> {
        self.any_datagram.as_mut()?.waiting.pop_front()
    }

    /// A datagram to a port that is not bound.
    pub(super) fn on_stray_datagram(&mut self, hdr: &Header, payload: &[u8]) {
        let max = self.cfg.datagram_queue;
        let Some(queue) = &mut self.any_datagram else {
            self.stats.drop_segment += 1;
            return;
        };
        if payload.is_empty() {
            return; // draft-01 facts §7
        }
        if queue.waiting.len() >= max || fault::point!("proto.endpoint.any_datagram_queue_full") {
            self.stats.drop_datagram_queue += 1;
            return;
        }
        let from = SocketAddress { address: hdr.src, port: hdr.src_port };
        queue.waiting.push_back((hdr.dst_port, DatagramIn { from, data: payload.to_vec() }));
        if !queue.announced {
            queue.announced = true;
            self.events.push_back(Event::AnyDatagram);
        }
    }

    /// All connections that are not forgotten yet. Walks over all of them: not for every packet.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        let tunnels = self.tunnels.iter().flatten();
        let of = |tunnel: &'_ crate::tunnel::Tunnel| {
            let streams = tunnel.mux.iter().flat_map(|mux| mux.streams.iter());
            let streams = streams.map(|stream| stream.info(&tunnel.path));
            tunnel.slots.iter().map(|conn| conn.info(&tunnel.path)).chain(streams).collect::<Vec<_>>()
        };
        tunnels.flat_map(|tunnel| of(tunnel)).collect()
    }
}
