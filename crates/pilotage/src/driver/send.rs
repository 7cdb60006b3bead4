//! Sending: the one send slab of a node, and what to do when the operating system says no.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pilotage_proto::{Transmit, TransmitBuf};

use super::socket::Socket;

/// The send slab and a batch that the socket did not take yet.
///
/// There is one per node and it doubles as the right to send: whoever took it out of the core sends
/// for everybody, so datagrams leave in the order in which the core sealed them even though any
/// thread may send. (Two senders would reorder batches whenever one of them is preempted between
/// sealing and sending, which the peer's loss detection would take for loss.)
#[derive(Debug)]
pub(crate) struct SendSlab {
    socket: Arc<Socket>,
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

/// Counters of the sending side.
#[derive(Debug, Default)]
pub(crate) struct SendCounters {
    pub(crate) calls: AtomicU64,
    pub(crate) blocked: AtomicU64,
    pub(crate) errors: AtomicU64,
}

impl SendSlab {
    pub(crate) fn new(socket: Arc<Socket>) -> Self {
        let buf = TransmitBuf::new(socket.max_gso_segments());
        Self { socket, buf, pending: None }
    }

    /// Sends a batch, or what was left of one.
    pub(crate) fn send(&mut self, batch: Pending, count: &SendCounters) -> SendOutcome {
        let Pending { transmit, done } = batch;
        let bytes = &self.buf.bytes(transmit.size)[done.min(transmit.size)..];
        let segment = transmit.segment_size.unwrap_or(transmit.size).max(1);
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
