//! What the harnesses with whole endpoints share: addresses, the transmit buffer, a relay of a few lines.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::Instant;

use pilotage_wire::beacon::Message;
use pilotage_wire::{Address, NodeId};

use crate::Endpoint;
use crate::transmit::TransmitBuf;

thread_local! {
    /// 64 KiB that need not be allocated for each execution.
    static BUF: RefCell<TransmitBuf> = RefCell::new(TransmitBuf::new(4));
}

/// A UDP address of host `host`; `place` counts where it has moved to.
pub(crate) fn udp(host: u8, place: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, host.wrapping_add((place & 0x0C) << 2)], 4_000 + u16::from(place & 3)))
}

/// The overlay address of host `host`.
pub(crate) fn overlay(host: u8) -> Address {
    Address::new(0, 0x1000 + u32::from(host))
}

/// Hands every datagram that leaves now to `out`. Panics if they do not end.
pub(crate) fn drain(endpoint: &mut Endpoint, now: Instant, mut out: impl FnMut(SocketAddr, &[u8])) {
    BUF.with_borrow_mut(|buf| {
        for count in 0.. {
            assert!(count < 2_000, "does not stop sending");
            let Some(transmit) = endpoint.poll_transmit(now, buf) else { break };
            let segment = transmit.segment_size.unwrap_or(transmit.size);
            assert!(segment > 0 && transmit.size > 0, "an empty datagram");
            for datagram in buf.bytes(transmit.size).chunks(segment) {
                out(transmit.destination, datagram);
            }
        }
    });
}

/// Where the nodes are that have registered, and what the relay does with a datagram.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    nodes: Vec<(NodeId, SocketAddr)>,
}

impl Relay {
    /// Answers discovers, passes punch requests on, relays frames.
    pub(crate) fn handle(&mut self, from: SocketAddr, data: &[u8], mut out: impl FnMut(SocketAddr, Vec<u8>)) {
        let Ok(message) = Message::decode(data) else { return };
        match message {
            Message::Discover { node } | Message::DiscoverEx { node } => {
                self.nodes.retain(|(n, _)| *n != node);
                self.nodes.push((node, from));
                out(from, encoded(&Message::DiscoverReply { addr: from }));
            }
            Message::PunchRequest { target, .. } => {
                if let Some(to) = self.find(target) {
                    out(to, encoded(&Message::PunchCommand { addr: from }));
                    out(from, encoded(&Message::PunchCommand { addr: to }));
                }
            }
            Message::Relay { src, dst, frame } => {
                if let Some(to) = self.find(dst) {
                    out(to, encoded(&Message::Deliver { src, frame }));
                }
            }
            _ => {}
        }
    }

    fn find(&self, node: NodeId) -> Option<SocketAddr> {
        self.nodes.iter().find(|(n, _)| *n == node).map(|(_, addr)| *addr)
    }
}

fn encoded(message: &Message<'_>) -> Vec<u8> {
    let mut bytes = vec![0; message.encoded_len()];
    message.encode(&mut bytes).expect("the buffer is as long as needed");
    bytes
}
