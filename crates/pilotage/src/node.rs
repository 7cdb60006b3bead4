//! A node: one UDP socket, one identity, any number of streams, listeners and datagram ports.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pilotage_nat::NatBehaviour;
use pilotage_nat::portmap::Mapping;
use pilotage_proto::crypto::Identity;
use pilotage_proto::s1::PeerPrekey;
use pilotage_proto::{ConnectError, EndpointStats, PathInfo, PeerPolicy, TunnelInfo};
use pilotage_wire::addressing::fingerprint128;
use pilotage_wire::beacon::Accept as RelayAccept;
use pilotage_wire::{Address, NodeId, SocketAddress};

use crate::asynch::blocking;
use crate::builder::NodeBuilder;
use crate::carrier::{CarriageProbe, CarriageStatus};
use crate::datagram::DatagramSocket;
use crate::driver::socket::SocketInfo;
use crate::error::{ConnectFailure, FailureCause, ListenError, Stage};
use crate::events::EventReceiver;
use crate::hub::{Hub, HubStatus};
use crate::lan::{Lan, LanPeer};
use crate::listener::Listener;
use crate::peer::Peer;
use crate::portmap::PortMapping;
use crate::resolve::ResolvedPeer;
use crate::shared::{PendingPing, Phase, Shared};
use crate::slot::{Direction, Slot};
use crate::stream::Stream;

/// How long a closing node delivers what was written before it gives up.
pub const LINGER: Duration = Duration::from_secs(2);

/// What [`Node::close`] may take beyond [`LINGER`] in the worst case.
const CLOSE_MARGIN: Duration = Duration::from_secs(1);

/// The core bounds a connection attempt itself; this only guards against a clock that jumps.
const CONNECT_MARGIN: Duration = Duration::from_secs(2);

/// Pings that may wait for an answer at once.
const MAX_PINGS: usize = 1024;

/// A lost ping is repeated after this long.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// A running node. Clones are handles on the same node.
///
/// The node closes when the last handle is gone, where streams, listeners and datagram sockets count
/// as handles: it delivers what was written for at most [`LINGER`], then tells its peers and stops.
#[derive(Clone)]
pub struct Node {
    pub(crate) inner: Arc<NodeInner>,
}

pub(crate) struct NodeInner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) hub: Option<Arc<Hub>>,
    pub(crate) identity: Identity,
    pub(crate) socket_info: SocketInfo,
    pub(crate) connect_timeout: Duration,
    pub(crate) keepalive: Duration,
    /// Endpoints and policies of the peers that the builder was given.
    pub(crate) introduced: HashMap<NodeId, SocketAddr>,
    pub(crate) policies: HashMap<NodeId, PeerPolicy>,
    pub(crate) driver: Mutex<Option<JoinHandle<()>>>,
    pub(crate) lan: Option<Lan>,
    pub(crate) port_mapping: Mutex<Option<Arc<PortMapping>>>,
}

/// The answer to a ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PingReply {
    /// Who answered.
    pub address: Address,
    /// Time between request and answer, of the request that was answered.
    pub rtt: Duration,
    /// Requests sent, the answered one included.
    pub attempts: u32,
    /// The path in use, if it is known.
    pub path: Option<PathInfo>,
    /// Why it is this one (see [`crate::PathStatus::reason`]).
    pub reason: Option<&'static str>,
}

/// Counters and sizes of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeStats {
    /// What the core counts.
    pub endpoint: EndpointStats,
    /// Time since the node was started.
    pub uptime: Duration,
    /// What the operating system granted for the UDP socket.
    pub socket: SocketInfo,
    /// System calls that sent datagrams.
    pub send_calls: u64,
    /// System calls that asked for received datagrams.
    pub receive_calls: u64,
    /// System calls in which the driver waited, or looked, for something to do.
    pub poll_calls: u64,
    /// Blocking calls of the application whose thread received for the node while it waited, in place of the driver.
    pub led_waits: u64,
    /// Sends that found the socket full.
    pub send_blocked: u64,
    /// Sends that the operating system refused; the core repairs them like losses.
    pub send_errors: u64,
    /// Streams with a handle.
    pub connections: usize,
}

/// What an attempt to connect waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ready {
    /// It may be written to.
    Writable,
    /// The peer's node has taken the stream.
    Accepted,
}

impl Node {
    /// Configures a node.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    /// Our address, as derived from our key or assigned by the hub.
    pub fn address(&self) -> Address {
        self.inner.shared.lock().endpoint.local_address()
    }

    /// Our Ed25519 public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.inner.identity.public_key()
    }

    /// Our fingerprint in its 128-bit form, `pa1…` (spec/addressing.md).
    pub fn fingerprint(&self) -> String {
        fingerprint128(&self.public_key())
    }

    /// The address that the UDP socket is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.shared.local
    }

    /// Our UDP address as the beacon sees it, once it told us.
    pub fn observed_addr(&self) -> Option<SocketAddr> {
        self.inner.shared.lock().observed_address()
    }

    /// How the NAT between us and the beacons behaves, once it was found out. Needs a beacon of ours, and some seconds.
    pub fn nat_behaviour(&self) -> Option<NatBehaviour> {
        self.inner.shared.lock().endpoint.nat_behaviour()
    }

    /// From whom beacons of ours let relayed frames and introductions through to us; `permitted`, at most 64, is for
    /// [`RelayAccept::Named`]. Default: from every registered node. Beacons of the reference let everything through.
    pub fn set_relay_accept(&self, accept: RelayAccept, permitted: &[NodeId]) {
        let mut core = self.inner.shared.lock();
        core.endpoint.set_relay_accept(Instant::now(), accept, permitted);
        self.inner.shared.finish(core);
    }

    /// The name that the hub granted us.
    pub fn name(&self) -> Option<String> {
        self.inner.hub.as_ref().and_then(|hub| hub.name())
    }

    /// Accepts streams on a port; 0 takes a free one from 49,152 up.
    ///
    /// # Errors
    /// The port is in use by this node, a limit is reached, or the node is closed.
    pub fn listen(&self, port: u16) -> Result<Listener, ListenError> {
        Listener::open(&self.inner, port)
    }

    /// Finds a peer without contacting it. Blocks while the hub is asked (each question at most 5 s).
    ///
    /// # Errors
    /// The stage is always [`Stage::Resolve`].
    pub fn resolve(&self, peer: &Peer) -> Result<ResolvedPeer, ConnectFailure> {
        self.inner.resolve(peer)
    }

    /// Opens a stream to a port of a peer: finds the peer, agrees on keys if need be, and connects. The peer's node has taken the
    /// stream when this returns; [`Node::open`] does not wait for that.
    ///
    /// Blocks at most for the hub's answers and the configured connect timeout.
    ///
    /// # Errors
    /// Say which stage failed and what to do next. A peer whose application takes the stream and ends it at once (a gate, a limit) may show here, as
    /// [`ConnectionReset`](std::io::ErrorKind::ConnectionReset), or with the first read.
    pub fn connect(&self, peer: impl Into<Peer>, port: u16) -> Result<Stream, ConnectFailure> {
        self.connect_as(&peer.into(), port, Ready::Accepted)
    }

    /// As [`Node::connect`], but returns as soon as the stream may be written to: with a peer that speaks streams of S1 that is at once,
    /// and what is written first travels with the opening (spec/secure.md §11.3), one round trip earlier.
    ///
    /// Whether somebody listens there shows with the first read: it fails with [`ConnectionRefused`](std::io::ErrorKind::ConnectionRefused)
    /// if not. With a peer of the draft there is no difference.
    ///
    /// ```
    /// use std::io::{Read, Write};
    /// use pilotage::{Node, Peer};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let server = Node::builder().bind("127.0.0.1:0".parse()?).start()?;
    /// let listener = server.listen(7)?;
    /// let client = Node::builder().bind("127.0.0.1:0".parse()?).start()?;
    /// let mut stream = client.open(Peer::At(server.address(), server.local_addr()), 7)?;
    /// stream.write_all(b"first")?;
    /// let mut taken = listener.accept()?;
    /// let mut words = [0; 5];
    /// taken.read_exact(&mut words)?;
    /// assert_eq!(&words, b"first");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Node::connect`].
    pub fn open(&self, peer: impl Into<Peer>, port: u16) -> Result<Stream, ConnectFailure> {
        self.connect_as(&peer.into(), port, Ready::Writable)
    }

    fn connect_as(&self, peer: &Peer, port: u16, ready: Ready) -> Result<Stream, ConnectFailure> {
        let stream = self.begin_connect(peer, port)?;
        let deadline = Instant::now() + self.inner.connect_timeout + CONNECT_MARGIN;
        loop {
            let seen = stream.slot().epoch(Direction::Write);
            if let Some(outcome) = self.connect_outcome(&stream, peer, ready) {
                return outcome.map(|()| stream);
            }
            if !self.inner.shared.wait(stream.slot(), Direction::Write, seen, Some(deadline)) {
                return Err(self.inner.failure(ConnectError::Timeout, peer));
            }
        }
    }

    /// As [`Node::connect`], for any async runtime.
    ///
    /// Where the hub must be asked, a short-lived thread does so. Dropping the future gives up the attempt.
    ///
    /// # Errors
    /// As [`Node::connect`].
    pub async fn connect_async(&self, peer: impl Into<Peer>, port: u16) -> Result<Stream, ConnectFailure> {
        self.connect_async_as(peer.into(), port, Ready::Accepted).await
    }

    /// As [`Node::open`], for any async runtime.
    ///
    /// # Errors
    /// As [`Node::connect`].
    pub async fn open_async(&self, peer: impl Into<Peer>, port: u16) -> Result<Stream, ConnectFailure> {
        self.connect_async_as(peer.into(), port, Ready::Writable).await
    }

    async fn connect_async_as(&self, peer: Peer, port: u16, ready: Ready) -> Result<Stream, ConnectFailure> {
        let stream = if self.inner.needs_hub(&peer) {
            let (node, target) = (self.clone(), peer.clone());
            let begun = blocking::run("pilotage-resolve", move || node.begin_connect(&target, port)).await;
            begun.map_err(|error| {
                let hint = "check the thread limit of this process";
                ConnectFailure::new(Stage::Resolve, FailureCause::System(error.to_string()), hint)
            })??
        } else {
            self.begin_connect(&peer, port)?
        };
        let outcome = || self.connect_outcome(&stream, &peer, ready);
        std::future::poll_fn(|cx| stream.poll(Direction::Write, cx, outcome)).await.map(|()| stream)
    }

    /// Sends control echoes (port 0) until one is answered, one each second.
    ///
    /// # Errors
    /// The stage that failed; [`Stage::Ping`] if the peer is known but nothing came back in time.
    pub fn ping(&self, peer: impl Into<Peer>, timeout: Duration) -> Result<PingReply, ConnectFailure> {
        let peer = peer.into();
        let deadline = Instant::now() + timeout;
        let address = self.inner.introduce(&peer)?;
        let pending =
            Arc::new(PendingPing { peer: address.node, slot: Slot::default(), answer: Mutex::new(None) });
        let answer = self.await_pong(&peer, address, deadline, &pending);
        self.inner.shared.lock().pings.retain(|_, other| !Arc::ptr_eq(other, &pending));
        answer
    }

    /// Sends and receives datagrams on a port; 0 takes a free one from 49,152 up.
    ///
    /// # Errors
    /// The port is in use by this node, a limit is reached, or the node is closed.
    pub fn bind_datagram(&self, port: u16) -> Result<DatagramSocket, ListenError> {
        DatagramSocket::open(&self.inner, port)
    }

    /// What happens to the node from now on.
    pub fn events(&self) -> EventReceiver {
        // Under the lock, so that the end is either seen here or delivered later.
        let core = self.inner.shared.lock();
        self.inner.shared.events.subscribe(core.phase == Phase::Closed)
    }

    /// Counters and sizes.
    pub fn stats(&self) -> NodeStats {
        let shared = &self.inner.shared;
        let core = shared.lock();
        NodeStats {
            endpoint: core.endpoint.stats(),
            uptime: shared.started.elapsed(),
            socket: self.inner.socket_info,
            send_calls: shared.counters.calls.load(Ordering::Relaxed),
            receive_calls: shared.counters.receives.load(Ordering::Relaxed),
            poll_calls: shared.counters.polls.load(Ordering::Relaxed),
            led_waits: shared.counters.led.load(Ordering::Relaxed),
            send_blocked: shared.counters.blocked.load(Ordering::Relaxed),
            send_errors: shared.counters.errors.load(Ordering::Relaxed),
            connections: core.connections.len(),
        }
    }

    /// The peers with a tunnel.
    pub fn peers(&self) -> Vec<TunnelInfo> {
        self.inner.shared.lock().endpoint.peers()
    }

    /// Our prekey for S1 with its certificate, which peers may be told ([`PeerConfig::prekey`](crate::PeerConfig::prekey)):
    /// they then need no round trip to ask for it. `None` without S1.
    pub fn prekey(&self) -> Option<PeerPrekey> {
        self.inner.shared.lock().endpoint.prekey()
    }

    /// How it stands with the hub; `None` if none is configured.
    pub fn hub_status(&self) -> Option<HubStatus> {
        let beacons = self.inner.shared.lock().endpoint.beacons();
        let beacon = beacons.iter().find(|beacon| beacon.primary).map(|beacon| beacon.address);
        match &self.inner.hub {
            Some(hub) => Some(HubStatus { beacons, ..hub.status(beacon) }),
            None => beacon.map(|_| HubStatus { beacon, beacons, ..HubStatus::default() }),
        }
    }

    /// Whether datagrams for the beacon go by UDP or through the hub's WebSocket; `None` without a beacon and URL.
    pub fn carriage(&self) -> Option<CarriageStatus> {
        self.inner.shared.carrier.as_ref().map(|carrier| carrier.status())
    }

    /// Opens a link to the hub's WebSocket and closes it again, to see whether it could be used. Blocks up to 8 s;
    /// `None` without a beacon and URL.
    ///
    /// # Errors
    /// Say which step failed.
    pub fn try_hub_wss(&self) -> Option<Result<CarriageProbe, String>> {
        self.inner.shared.carrier.as_ref().map(|carrier| carrier.try_link())
    }

    /// The addresses of our interfaces at which others may reach our socket, at most 16; looked at each second.
    /// A node that is bound to the loopback has none.
    pub fn interface_addresses(&self) -> Vec<SocketAddr> {
        self.inner.shared.lock().candidates.clone()
    }

    /// Nodes that say they are on the local network, if the node looks for them ([`NodeBuilder::lan`]).
    pub fn lan_peers(&self) -> Vec<LanPeer> {
        self.inner.lan.as_ref().map(Lan::all).unwrap_or_default()
    }

    /// The router's port that leads to ours, if there is one ([`NodeBuilder::port_mapping`]).
    pub fn port_mapping(&self) -> Option<Mapping> {
        let mapping = self.inner.port_mapping.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        mapping.as_ref().and_then(|mapping| mapping.current())
    }

    /// Closes the node now, whatever handles are left: ends every stream in order, waits at most
    /// [`LINGER`] for the peers to acknowledge what was written, then stops. Idempotent.
    pub fn close(&self) {
        self.inner.close();
    }

    /// Introduces the peer and sends the first segment.
    fn begin_connect(&self, peer: &Peer, port: u16) -> Result<Stream, ConnectFailure> {
        let address = self.inner.introduce(peer)?;
        let shared = &self.inner.shared;
        let mut core = shared.lock();
        if core.phase != Phase::Open {
            return Err(self.inner.failure(ConnectError::Closing, peer));
        }
        let to = SocketAddress { address, port };
        let id = match core.endpoint.connect(Instant::now(), to) {
            Ok(id) => id,
            Err(error) => {
                drop(core);
                return Err(self.inner.failure(error, peer));
            }
        };
        let stream = Stream::adopt(&self.inner, &mut core, id, to);
        let watched = self.inner.hub.is_some()
            && !core.introduced.contains(&address.node)
            && core.endpoint.peer(address.node).is_some_and(|tunnel| tunnel.established);
        shared.finish(core);
        if watched {
            shared.mailbox.watch(address, stream.slot());
        }
        Ok(stream)
    }

    /// `None` while the attempt is under way.
    fn connect_outcome(
        &self,
        stream: &Stream,
        peer: &Peer,
        ready: Ready,
    ) -> Option<Result<(), ConnectFailure>> {
        let (connected, closed) = (stream.slot().is_connected(), stream.slot().is_closed());
        if connected && ready == Ready::Writable {
            return Some(Ok(()));
        }
        if !connected && !closed {
            return None;
        }
        let shared = &self.inner.shared;
        let mut core = shared.lock();
        if connected && core.endpoint.is_accepted(stream.id()) {
            return Some(Ok(()));
        }
        if !closed {
            core.endpoint.open_now(Instant::now(), stream.id());
            shared.finish(core);
            return None;
        }
        let peer_node = stream.peer().address.node;
        let established = core.endpoint.peer(peer_node).is_some_and(|tunnel| tunnel.established);
        let error = match core.phase {
            Phase::Closed => ConnectError::Closing,
            _ => core.endpoint.connect_error(stream.id()).unwrap_or(match established {
                // It was taken and ended, or is gone: nobody has waited in vain.
                true => ConnectError::Reset,
                false => ConnectError::Timeout,
            }),
        };
        // The attempt's own clock may run out before that of the key exchange it waits for.
        let error = match error {
            ConnectError::Timeout if !established => ConnectError::HandshakeTimeout,
            error => error,
        };
        let refusal = core.refusal(peer_node);
        drop(core);
        let mut failure = self.inner.failure(error, peer);
        if error == ConnectError::HandshakeTimeout {
            let book = self.inner.shared.book();
            if let Some(reason) = refusal {
                failure.cause = FailureCause::Distrusted(reason);
                failure.hint =
                    "check that the address is the peer's, or introduce the peer with its key".into();
            } else if book.get(peer_node).is_some() {
                let pins = book.location();
                failure.hint +=
                    &format!("; if it has a new identity, remove its pinned key from {}", pins.display());
            }
        }
        Some(Err(failure))
    }

    fn await_pong(
        &self,
        peer: &Peer,
        address: Address,
        deadline: Instant,
        pending: &Arc<PendingPing>,
    ) -> Result<PingReply, ConnectFailure> {
        let shared = &self.inner.shared;
        for attempts in 1.. {
            let seen = pending.slot.epoch(Direction::Read);
            let mut core = shared.lock();
            if core.pings.len() >= MAX_PINGS {
                drop(core);
                return Err(self.inner.failure(ConnectError::LimitReached, peer));
            }
            match core.endpoint.ping(Instant::now(), address) {
                Ok(token) => core.pings.insert(token, pending.clone()),
                Err(error) => {
                    drop(core);
                    return Err(self.inner.failure(error, peer));
                }
            };
            shared.finish(core);
            let next = deadline.min(Instant::now() + PING_INTERVAL);
            pending.slot.wait(Direction::Read, seen, Some(next));
            let answer = pending.answer.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
            match answer {
                Some(Ok(rtt)) => {
                    let status = shared.path_status(&shared.lock(), address.node);
                    let (path, reason) = (status.and_then(|one| one.path), status.map(|one| one.reason));
                    return Ok(PingReply { address, rtt, attempts, path, reason });
                }
                Some(Err(error)) => return Err(self.inner.failure(error, peer)),
                None if Instant::now() >= deadline => break,
                None => {}
            }
        }
        Err(self.unanswered(peer, address))
    }

    /// A ping got no answer: was it the key exchange that did not end, or the echo?
    fn unanswered(&self, peer: &Peer, address: Address) -> ConnectFailure {
        let core = self.inner.shared.lock();
        let established = core.endpoint.peer(address.node).is_some_and(|tunnel| tunnel.established);
        drop(core);
        if established {
            let hint = format!("check the load of {peer} and the loss on the way to it");
            return ConnectFailure::new(Stage::Ping, FailureCause::TimedOut, hint);
        }
        self.inner.failure(ConnectError::HandshakeTimeout, peer)
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = self.inner.shared.local;
        f.debug_struct("Node")
            .field("address", &self.address())
            .field("local_addr", &local)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for NodeInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeInner").field("local", &self.shared.local).finish_non_exhaustive()
    }
}

impl NodeInner {
    pub(crate) fn close(&self) {
        let shared = &self.shared;
        let mut core = shared.lock();
        if core.phase == Phase::Open {
            let now = Instant::now();
            core.phase = Phase::Closing { deadline: now + LINGER };
            let open: Vec<_> = core.connections.keys().copied().collect();
            for id in open {
                // What was written still goes out, with the end of the stream behind it.
                let _ = core.endpoint.shutdown(now, id);
            }
            shared.finish(core);
            shared.post.end_driving();
            shared.wake_driver();
        } else {
            drop(core);
        }
        let driver = self.driver.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let Some(driver) = driver else {
            return;
        };
        let mapping = self.port_mapping.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(mapping) = mapping {
            mapping.close();
        }
        if let Some(lan) = &self.lan {
            lan.close();
        }
        if driver.thread().id() == std::thread::current().id() {
            // A task woken by the driver dropped the last handle: the driver finishes by itself.
            return;
        }
        let deadline = Instant::now() + LINGER + CLOSE_MARGIN;
        loop {
            let seen = shared.lifecycle.epoch(Direction::Read);
            if shared.lifecycle.is_closed() {
                // It has nothing left to wait for; a panic in it was reported by the panic hook.
                let _ = driver.join();
                return;
            }
            if !shared.lifecycle.wait(Direction::Read, seen, Some(deadline)) {
                tracing::warn!("the driver did not stop in time");
                return;
            }
        }
    }
}

impl Drop for NodeInner {
    fn drop(&mut self) {
        self.close();
    }
}
