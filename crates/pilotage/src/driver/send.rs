//! Sending: the one send slab of a node, and what to do when the operating system says no.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pilotage_proto::{Transmit, TransmitBuf};

use super::socket::Socket;
use crate::carrier::Carrier;
use crate::side::Sockets;

/// The send slab and a batch that the socket did not take yet.
///
/// There is one per node and it doubles as the right to send: whoever took it out of the core sends
/// for everybody, so datagrams leave in the order in which the core sealed them even though any
/// thread may send. (Two senders would reorder batches whenever one of them is preempted between
/// sealing and sending, which the peer's loss detection would take for loss.)
#[derive(Debug)]
pub(crate) struct SendSlab {
    socket: Arc<Socket>,
    /// Who takes what does not go by UDP.
    carrier: Option<Arc<Carrier>>,
    /// Who takes what leaves by another socket.
    pub(crate) side: Arc<Sockets>,
    pub(crate) buf: TransmitBuf,
    pub(crate) pending: Option<Pending>,
}

/// What is left of a batch that met a full socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pending {
    transmit: Transmit,
    /// Bytes of it that are already sent.
    done: usize,
}

impl From<Transmit> for Pending {
    fn from(transmit: Transmit) -> Self {
        Self { transmit, done: 0 }
    }
}

impl Pending {
    /// In bytes.
    pub(crate) fn size(&self) -> usize {
        self.transmit.size
    }
}

/// How a send ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SendOutcome {
    /// The operating system took everything, or dropped it, which the core repairs like any loss.
    Done,
    /// The socket is full; the rest is kept.
    Blocked,
    /// A datagram of this size is larger than the local interface takes (RFC 8899 §3, PTB).
    TooBig { destination: SocketAddr, size: usize },
}

/// Counters of system calls: those that send, and the others of the driver.
#[derive(Debug, Default)]
pub(crate) struct SendCounters {
    pub(crate) receives: AtomicU64,
    pub(crate) polls: AtomicU64,
    pub(crate) led: AtomicU64,
    pub(crate) calls: AtomicU64,
    pub(crate) blocked: AtomicU64,
    pub(crate) errors: AtomicU64,
}

impl SendSlab {
    pub(crate) fn new(socket: Arc<Socket>, carrier: Option<Arc<Carrier>>, side: Arc<Sockets>) -> Self {
        let buf = TransmitBuf::new(socket.max_gso_segments());
        Self { socket, carrier, side, buf, pending: None }
    }

    /// Sends a batch, or what was left of one.
    pub(crate) fn send(&mut self, batch: Pending, count: &SendCounters) -> SendOutcome {
        let Pending { transmit, done } = batch;
        let bytes = &self.buf.bytes(transmit.size)[done.min(transmit.size)..];
        let segment = transmit.segment_size.unwrap_or(transmit.size).max(1);
        if self.carrier.as_ref().is_some_and(|carrier| carrier.take(transmit.destination, bytes, segment)) {
            return SendOutcome::Done;
        }
        if let Some((number, real)) = pilotage_nat::side::split(transmit.destination) {
            return self.send_aside(transmit, number, real, count);
        }
        if done == 0 && segment < transmit.size && self.buf.max_segments() > 1 {
            count.calls.fetch_add(1, Ordering::Relaxed);
            match self.socket.send(transmit.destination, bytes, Some(segment)) {
                Ok(()) => return SendOutcome::Done,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return self.block(batch, count);
                }
                Err(error) if quinn_udp::is_msg_size_err(&error) => {
                    return SendOutcome::TooBig { destination: transmit.destination, size: segment };
                }
                Err(error) => {
                    // quinn-udp turns offload off when the kernel or the driver refuses it; follow it,
                    // and send this batch one by one below.
                    tracing::debug!(%error, "batched send failed");
                    if self.socket.max_gso_segments() > 1 {
                        count.errors.fetch_add(1, Ordering::Relaxed);
                        return SendOutcome::Done;
                    }
                    self.buf.set_max_segments(1);
                }
            }
        }
        self.send_singly(batch, segment, count)
    }

    fn send_aside(
        &self,
        transmit: Transmit,
        number: u32,
        real: SocketAddrV4,
        count: &SendCounters,
    ) -> SendOutcome {
        let segment = transmit.segment_size.unwrap_or(transmit.size).max(1);
        count.calls.fetch_add(1, Ordering::Relaxed);
        match self.side.send(number, real, self.buf.bytes(transmit.size), segment) {
            Ok(()) => SendOutcome::Done,
            Err(error) if quinn_udp::is_msg_size_err(&error) => {
                SendOutcome::TooBig { destination: transmit.destination, size: segment }
            }
            Err(error) => {
                tracing::debug!(%error, %real, "send failed");
                count.errors.fetch_add(1, Ordering::Relaxed);
                SendOutcome::Done
            }
        }
    }

    fn send_singly(&mut self, mut batch: Pending, segment: usize, count: &SendCounters) -> SendOutcome {
        let mut outcome = SendOutcome::Done;
        while batch.done < batch.transmit.size {
            let end = (batch.done + segment).min(batch.transmit.size);
            let datagram = &self.buf.bytes(end)[batch.done..];
            count.calls.fetch_add(1, Ordering::Relaxed);
            match self.socket.send(batch.transmit.destination, datagram, None) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.block(batch, count),
                Err(error) if quinn_udp::is_msg_size_err(&error) => {
                    outcome =
                        SendOutcome::TooBig { destination: batch.transmit.destination, size: datagram.len() };
                }
                Err(error) => {
                    // Unreachable network, filter, no buffers: as good as lost on the way.
                    tracing::debug!(%error, destination = %batch.transmit.destination, "send failed");
                    count.errors.fetch_add(1, Ordering::Relaxed);
                }
            }
            batch.done = end;
        }
        outcome
    }

    fn block(&mut self, batch: Pending, count: &SendCounters) -> SendOutcome {
        count.blocked.fetch_add(1, Ordering::Relaxed);
        self.pending = Some(batch);
        SendOutcome::Blocked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    fn slab(max_segments: usize) -> (SendSlab, UdpSocket, SocketAddr) {
        let socket = Socket::bind("127.0.0.1:0".parse().expect("address"), 1 << 20, 1 << 20).expect("bind");
        let mut slab = SendSlab::new(Arc::new(socket), None, Arc::default());
        slab.buf.set_max_segments(max_segments.min(slab.buf.max_segments()));
        let peer = UdpSocket::bind("127.0.0.1:0").expect("bind");
        peer.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        let address = peer.local_addr().expect("address");
        (slab, peer, address)
    }

    #[test]
    fn a_batch_arrives_as_the_same_datagrams_with_and_without_offload() {
        for (max_segments, calls) in [(64, 1), (1, 10)] {
            let (mut slab, peer, destination) = slab(max_segments);
            let offload = slab.buf.max_segments() > 1;
            let count = SendCounters::default();
            let batch = Transmit { destination, size: 950, segment_size: Some(100) };
            assert_eq!(slab.send(batch.into(), &count), SendOutcome::Done);
            let mut buffer = [0; 2000];
            let sizes: Vec<usize> = (0..10).map(|_| peer.recv(&mut buffer).expect("a datagram")).collect();
            assert_eq!(sizes, [100, 100, 100, 100, 100, 100, 100, 100, 100, 50]);
            assert!(!offload || count.calls.load(Ordering::Relaxed) == calls);
        }
    }

    #[test]
    fn what_is_left_of_a_batch_is_sent_later() {
        let (mut slab, peer, destination) = slab(1);
        let transmit = Transmit { destination, size: 250, segment_size: Some(100) };
        let rest = Pending { transmit, done: 100 };
        assert_eq!(slab.send(rest, &SendCounters::default()), SendOutcome::Done);
        let mut buffer = [0; 2000];
        assert_eq!(peer.recv(&mut buffer).expect("second"), 100);
        assert_eq!(peer.recv(&mut buffer).expect("third"), 50);
    }

    #[test]
    fn an_unreachable_destination_is_a_loss_not_an_error() {
        let (mut slab, _, _) = slab(64);
        let count = SendCounters::default();
        // A socket bound to the loopback address has no way to the outside.
        let destination = "192.0.2.1:9".parse().expect("address");
        let transmit = Transmit { destination, size: 250, segment_size: None };
        assert_eq!(slab.send(transmit.into(), &count), SendOutcome::Done);
    }
}
