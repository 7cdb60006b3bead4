//! Every datagram that no [`DatagramSocket`](crate::DatagramSocket) takes, and the list of connections: what a daemon
//! needs that serves programs which do not say beforehand what they want to receive.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pilotage_proto::{ConnectError, ConnectionId, ConnectionInfo, DatagramIn, SendDatagramError};
use pilotage_wire::SocketAddress;

use crate::datagram::{Repeat, send_error};
use crate::error::{ListenError, closed};
use crate::node::{Node, NodeInner};
use crate::peer::Peer;
use crate::shared::Phase;
use crate::slot::{Direction, Slot};

/// Takes the datagrams to all ports that are not bound, and sends from any port.
///
/// Made by [`Node::tap_datagrams`]; there is one at a time for each node. Received datagrams wait in a bounded queue;
/// what does not fit is dropped and counted in
/// [`EndpointStats::drop_datagram_queue`](pilotage_proto::EndpointStats). Dropping it ends that.
#[derive(Debug)]
pub struct DatagramTap {
    node: Arc<NodeInner>,
    slot: Arc<Slot>,
}

impl Node {
    /// Takes the datagrams to all ports that nobody bound from now on.
    ///
    /// # Errors
    /// There is a tap already ([`ListenError::InUse`] with port 0), or the node is closed.
    pub fn tap_datagrams(&self) -> Result<DatagramTap, ListenError> {
        let mut core = self.inner.shared.lock();
        if core.phase != Phase::Open {
            return Err(ListenError::Closed);
        }
        if core.datagram_tap.is_some() {
            return Err(ListenError::InUse(0));
        }
        let slot = Arc::new(Slot::default());
        core.datagram_tap = Some(slot.clone());
        core.endpoint.catch_datagrams(true);
        Ok(DatagramTap { node: self.inner.clone(), slot })
    }

    /// All connections of the node, those of its services included. Walks over them: not for every packet.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.inner.shared.lock().endpoint.connections()
    }

    /// Resets a connection, whoever holds it; nothing happens if there is none.
    pub fn disconnect(&self, id: ConnectionId) {
        let shared = &self.inner.shared;
        let mut core = shared.lock();
        core.endpoint.reset(Instant::now(), id);
        shared.finish(core);
    }

    /// Ports with a listener, in no order.
    pub fn listening_ports(&self) -> Vec<u16> {
        self.inner.shared.lock().listeners.keys().copied().collect()
    }
}

impl DatagramTap {
    /// Sends a datagram from any of our ports. As [`DatagramSocket::send_to`](crate::DatagramSocket::send_to) otherwise.
    ///
    /// # Errors
    /// As there.
    pub fn send_from(&self, port: u16, to: SocketAddress, data: &[u8]) -> io::Result<()> {
        self.send(port, to, data, Repeat::Never)
    }

    /// As [`Self::send_from`], for a message that may be delivered twice: see
    /// [`DatagramSocket::send_idempotent`](crate::DatagramSocket::send_idempotent).
    ///
    /// # Errors
    /// As there.
    pub fn send_idempotent_from(&self, port: u16, to: SocketAddress, data: &[u8]) -> io::Result<()> {
        self.send(port, to, data, Repeat::Harmless)
    }

    fn send(&self, port: u16, to: SocketAddress, data: &[u8], repeat: Repeat) -> io::Result<()> {
        match self.try_send(port, to, data, repeat) {
            Err(SendDatagramError::Connect(ConnectError::UnknownPeer)) => {
                self.node.introduce(&Peer::Address(to.address)).map_err(io::Error::from)?;
                self.try_send(port, to, data, repeat).map_err(send_error)
            }
            result => result.map_err(send_error),
        }
    }

    /// Waits for the next datagram and the port that it came to; `Ok(None)` after `timeout`.
    ///
    /// # Errors
    /// `NotConnected` once the node is closed.
    pub fn recv_timeout(&self, timeout: Duration) -> io::Result<Option<(u16, DatagramIn)>> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let seen = self.slot.epoch(Direction::Read);
            let mut core = self.node.shared.lock();
            if let Some(received) = core.endpoint.recv_any_datagram() {
                return Ok(Some(received));
            }
            if core.phase == Phase::Closed {
                return Err(closed());
            }
            drop(core);
            if !self.node.shared.wait(&self.slot, Direction::Read, seen, deadline) {
                return Ok(None);
            }
        }
    }

    fn try_send(
        &self,
        port: u16,
        to: SocketAddress,
        data: &[u8],
        repeat: Repeat,
    ) -> Result<(), SendDatagramError> {
        let shared = &self.node.shared;
        let mut core = shared.lock();
        if core.phase != Phase::Open {
            return Err(ConnectError::Closing.into());
        }
        let (now, endpoint) = (Instant::now(), &mut core.endpoint);
        let result = match repeat {
            Repeat::Never => endpoint.send_datagram(now, to, port, data),
            Repeat::Harmless => endpoint.send_datagram_idempotent(now, to, port, data),
        };
        shared.finish(core);
        result
    }
}

impl Drop for DatagramTap {
    fn drop(&mut self) {
        let mut core = self.node.shared.lock();
        core.datagram_tap = None;
        core.endpoint.catch_datagrams(false);
    }
}
