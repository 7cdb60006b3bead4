//! Unreliable datagrams (protocol 2) between ports.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pilotage_proto::{ConnectError, DatagramIn, SendDatagramError};
use pilotage_wire::{Address, SocketAddress};

use crate::asynch::blocking;
use crate::error::{ListenError, closed, connect_kind};
use crate::listener::choose_port;
use crate::node::NodeInner;
use crate::peer::Peer;
use crate::shared::Phase;
use crate::slot::{Direction, Slot};

/// Sends and receives datagrams on one port: encrypted like streams, but neither ordered nor repeated.
///
/// Received datagrams wait in a bounded queue; what does not fit is dropped and counted in
/// [`EndpointStats::drop_datagram_queue`](pilotage_proto::EndpointStats). Dropping the socket closes the port.
#[derive(Debug)]
pub struct DatagramSocket {
    node: Arc<NodeInner>,
    port: u16,
    slot: Arc<Slot>,
}

impl DatagramSocket {
    pub(crate) fn open(node: &Arc<NodeInner>, port: u16) -> Result<Self, ListenError> {
        let mut core = node.shared.lock();
        let port = choose_port(&core, port, |core, port| core.datagram_ports.contains_key(&port))?;
        core.endpoint.bind_datagram(port).map_err(|source| ListenError::Core { port, source })?;
        let slot = Arc::new(Slot::default());
        core.datagram_ports.insert(port, slot.clone());
        Ok(Self { node: node.clone(), port, slot })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sends a datagram. Returns once it is on its way or queued behind the key exchange.
    ///
    /// A peer without a tunnel is found first, which blocks while a hub is asked. A peer that is known
    /// only by name or endpoint is introduced with [`DatagramSocket::introduce`].
    ///
    /// # Errors
    /// `InvalidInput` if it is empty or does not fit the path (the error then holds a
    /// [`SendDatagramError`] with the size that fits), `WouldBlock` if the bounded send queue is full,
    /// otherwise the reason why the peer cannot be reached.
    pub fn send_to(&self, peer: Address, port: u16, data: &[u8]) -> io::Result<()> {
        self.send(peer, port, data, Repeat::Never)
    }

    /// As [`Self::send_to`], for a message that may be delivered twice: acting twice on it must be the same as acting once.
    ///
    /// To a peer without a session whose prekey for the secure mode S1 is known (from its pin, from
    /// [`PeerConfig::prekey`](crate::PeerConfig::prekey), or from an earlier session of this process) it leaves in the very
    /// first packet, if it has at most [`EARLY_DATAGRAM_MAX`](crate::EARLY_DATAGRAM_MAX) (889) bytes: it arrives after half a
    /// round trip, and an answer of at most about 950 bytes after a whole one (spec/secure.md §6.4). In every other case, and if the
    /// peer does not say that it took it, it leaves as by `send_to`: nothing has to be done about it.
    ///
    /// What is given up for that: an attacker who keeps the peer's answer back makes us send the message again, so that it is
    /// delivered twice. A copy that he sends is not delivered by the same process, nor by the next one or by a replica, which
    /// have other prekeys. Whoever steals the peer's prekey within its life (7 days) can read recorded early messages and
    /// forge some.
    ///
    /// # Errors
    /// As [`Self::send_to`].
    pub fn send_idempotent(&self, peer: Address, port: u16, data: &[u8]) -> io::Result<()> {
        self.send(peer, port, data, Repeat::Harmless)
    }

    /// As [`Self::send_idempotent`], on any async runtime: a short-lived thread asks the hub where that is needed.
    ///
    /// # Errors
    /// As [`Self::send_to`].
    pub async fn send_idempotent_async(&self, peer: Address, port: u16, data: &[u8]) -> io::Result<()> {
        match self.try_send(peer, port, data, Repeat::Harmless) {
            Err(SendDatagramError::Connect(ConnectError::UnknownPeer)) => {
                let (node, target) = (self.node.clone(), Peer::Address(peer));
                let found = blocking::run("pilotage-resolve", move || node.introduce(&target)).await?;
                found.map_err(io::Error::from)?;
                self.try_send(peer, port, data, Repeat::Harmless).map_err(send_error)
            }
            result => result.map_err(send_error),
        }
    }

    fn send(&self, peer: Address, port: u16, data: &[u8], repeat: Repeat) -> io::Result<()> {
        match self.try_send(peer, port, data, repeat) {
            Err(SendDatagramError::Connect(ConnectError::UnknownPeer)) => {
                self.introduce(peer)?;
                self.try_send(peer, port, data, repeat).map_err(send_error)
            }
            result => result.map_err(send_error),
        }
    }

    /// Finds a peer, so that datagrams can be sent to its address, which is returned.
    ///
    /// # Errors
    /// As [`Node::resolve`](crate::Node::resolve).
    pub fn introduce(&self, peer: impl Into<Peer>) -> io::Result<Address> {
        self.node.introduce(&peer.into()).map_err(io::Error::from)
    }

    /// Waits for the next datagram.
    ///
    /// # Errors
    /// `NotConnected` once the node is closed.
    pub fn recv(&self) -> io::Result<DatagramIn> {
        loop {
            let seen = self.slot.epoch(Direction::Read);
            if let Some(received) = self.try_recv() {
                return received;
            }
            self.node.shared.wait(&self.slot, Direction::Read, seen, None);
        }
    }

    /// Waits for the next datagram; `None` after `timeout`, or once the node is closed.
    pub fn recv_timeout(&self, timeout: Duration) -> Option<DatagramIn> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let seen = self.slot.epoch(Direction::Read);
            if let Some(received) = self.try_recv() {
                return received.ok();
            }
            if !self.node.shared.wait(&self.slot, Direction::Read, seen, deadline) {
                return None;
            }
        }
    }

    /// Waits for the next datagram, on any async runtime.
    ///
    /// # Errors
    /// `NotConnected` once the node is closed.
    pub async fn recv_async(&self) -> io::Result<DatagramIn> {
        std::future::poll_fn(|cx| self.node.shared.poll(&self.slot, Direction::Read, cx, || self.try_recv()))
            .await
    }

    fn try_recv(&self) -> Option<io::Result<DatagramIn>> {
        let mut core = self.node.shared.lock();
        match core.endpoint.recv_datagram(self.port) {
            Some(datagram) => Some(Ok(datagram)),
            None if core.phase == Phase::Closed => Some(Err(closed())),
            None => None,
        }
    }

    fn try_send(
        &self,
        address: Address,
        port: u16,
        data: &[u8],
        repeat: Repeat,
    ) -> Result<(), SendDatagramError> {
        let shared = &self.node.shared;
        let mut core = shared.lock();
        if core.phase != Phase::Open {
            return Err(ConnectError::Closing.into());
        }
        let to = SocketAddress { address, port };
        let (now, endpoint) = (Instant::now(), &mut core.endpoint);
        let result = match repeat {
            Repeat::Never => endpoint.send_datagram(now, to, self.port, data),
            Repeat::Harmless => endpoint.send_datagram_idempotent(now, to, self.port, data),
        };
        shared.finish(core);
        result
    }
}

/// What delivering a datagram twice would do.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Repeat {
    Never,
    Harmless,
}

impl Drop for DatagramSocket {
    fn drop(&mut self) {
        let mut core = self.node.shared.lock();
        core.datagram_ports.remove(&self.port);
        core.endpoint.unbind_datagram(self.port);
    }
}

pub(crate) fn send_error(error: SendDatagramError) -> io::Error {
    let kind = match error {
        SendDatagramError::Connect(error) => connect_kind(error),
        SendDatagramError::QueueFull => io::ErrorKind::WouldBlock,
        _ => io::ErrorKind::InvalidInput,
    };
    io::Error::new(kind, error)
}
