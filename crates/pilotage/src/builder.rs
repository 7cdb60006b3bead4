//! Configuring and starting a node.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pilotage_proto::crypto::Identity;
use pilotage_proto::{Config, ConnectError, Endpoint, PeerConfig, PeerPolicy};
use pilotage_wire::Address;

use crate::driver::Driver;
use crate::driver::post::Post;
use crate::driver::send::SendSlab;
use crate::driver::socket::Socket;
use crate::driver::watch::{WAKER, Watch};
use crate::error::StartError;
use crate::hub::{Directory, Hub, HubError, Visibility, Wish, resolve_host};
use crate::keeper::{Budget, HEARTBEAT, Keeper, Mailbox, adopt, derived_address, describe};
use crate::node::{Node, NodeInner};
use crate::shared::{Core, Shared};
use crate::slot::Direction;
use crate::state::{AddressMemory, PeerBook, StateDir};

/// TCP port of a registry where none is given; the beacon is on the next one (UDP).
pub const DEFAULT_HUB_PORT: u16 = 9000;

/// UDP socket buffers asked for, in bytes.
const SOCKET_BUFFER: usize = 4 << 20;

/// How long a starting node waits for the beacon to tell its address before it registers without.
const DISCOVERY_WAIT: Duration = Duration::from_secs(1);

/// Configures a [`Node`]. Made by [`Node::builder`].
pub struct NodeBuilder {
    identity: Option<Identity>,
    state_dir: Option<PathBuf>,
    bind: SocketAddr,
    registry: Option<String>,
    registry_tls: Option<[u8; 32]>,
    keepalive: Duration,
    beacon: Option<String>,
    hub_required: bool,
    wish: Wish,
    peers: Vec<PeerConfig>,
    config: Config,
    recv_buffer: usize,
    send_buffer: usize,
}

impl Default for NodeBuilder {
    fn default() -> Self {
        Self {
            identity: None,
            state_dir: None,
            bind: SocketAddr::from(([0, 0, 0, 0], 0)),
            registry: None,
            registry_tls: None,
            keepalive: HEARTBEAT,
            beacon: None,
            hub_required: true,
            wish: Wish { visibility: Visibility::Public, ..Wish::default() },
            peers: Vec::new(),
            config: Config::default(),
            recv_buffer: SOCKET_BUFFER,
            send_buffer: SOCKET_BUFFER,
        }
    }
}

impl fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeBuilder")
            .field("bind", &self.bind)
            .field("state_dir", &self.state_dir)
            .field("registry", &self.registry)
            .field("beacon", &self.beacon)
            .finish_non_exhaustive()
    }
}

impl NodeBuilder {
    /// Who the node is. Default: the identity of the state directory, or a fresh random one.
    ///
    /// Together with [`NodeBuilder::state_dir`] this identity is used, and the stored one left alone.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Keeps identity and pinned keys in this directory, which is made if needed and locked while the
    /// node runs. Default: nothing is kept.
    pub fn state_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(directory.into());
        self
    }

    /// The UDP address to bind. Default: any IPv4 address, a free port.
    pub fn bind(mut self, address: SocketAddr) -> Self {
        self.bind = address;
        self
    }

    /// The registry to register with and to ask, `HOST:PORT` (TCP). Default: none.
    pub fn registry(mut self, registry: impl Into<String>) -> Self {
        self.registry = Some(registry.into());
        self
    }

    /// Speaks TLS with the registry, and only with the one whose certificate (DER) has this SHA-256. Default: no TLS.
    pub fn registry_tls_pin(mut self, sha256: [u8; 32]) -> Self {
        self.registry_tls = Some(sha256);
        self
    }

    /// Time between heartbeats to the registry, 1 s to 2 min. Default: 30 s. Registries forget nodes after 3 min, and
    /// those of the reference take 50 heartbeats a minute from all nodes behind one address.
    pub fn keepalive(mut self, interval: Duration) -> Self {
        self.keepalive = interval.clamp(Duration::from_secs(1), Duration::from_secs(120));
        self
    }

    /// An e-mail address or other owner text, for registries of the reference. They give the node of an owner to
    /// whoever names it, so every node needs its own. Kept in the state directory. Default: the one kept, or none.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.wish.owner = Some(owner.into());
        self
    }

    /// The beacon for discovery, hole punching and relaying, `HOST:PORT` (UDP). Default: none.
    pub fn beacon(mut self, beacon: impl Into<String>) -> Self {
        self.beacon = Some(beacon.into());
        self
    }

    /// A hub, `HOST[:PORT]`: the registry on this port (default [`DEFAULT_HUB_PORT`]), the beacon on the next.
    pub fn hub(mut self, hub: impl Into<String>) -> Self {
        let (registry, beacon) = split_hub(&hub.into());
        self.registry = Some(registry);
        self.beacon = Some(beacon);
        self
    }

    /// Whether [`NodeBuilder::start`] fails where the registry does not accept the node. Default: true;
    /// otherwise the node starts and goes on trying.
    pub fn hub_required(mut self, required: bool) -> Self {
        self.hub_required = required;
        self
    }

    /// The name to claim at the registry.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.wish.name = Some(name.into());
        self
    }

    /// Whether anybody may learn our UDP endpoint from the registry. Default: true.
    pub fn public(self, public: bool) -> Self {
        self.visibility(if public { Visibility::Public } else { Visibility::Private })
    }

    /// As [`NodeBuilder::public`], with a choice that depends on the kind of registry.
    pub fn visibility(mut self, visibility: Visibility) -> Self {
        self.wish.visibility = visibility;
        self
    }

    /// Introduces a peer at a known UDP endpoint; no hub is asked about it. Without a key the peer is
    /// believed if its key derives its address, and is pinned with the first tunnel.
    pub fn peer(self, address: Address, at: SocketAddr, key: Option<[u8; 32]>) -> Self {
        self.peer_config(PeerConfig { address, key, endpoint: Some(at), policy: PeerPolicy::default() })
    }

    /// As [`NodeBuilder::peer`], with everything that can be said about a peer, such as the permission
    /// for unauthenticated or unencrypted tunnels with it (rule C6 of spec/tunnel.md).
    pub fn peer_config(mut self, peer: PeerConfig) -> Self {
        self.peers.push(peer);
        self
    }

    /// Limits and timeouts of the transport.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Receive buffer to ask the operating system for, in bytes. Default: 4 MiB.
    pub fn recv_buffer_bytes(mut self, bytes: usize) -> Self {
        self.recv_buffer = bytes;
        self
    }

    /// Send buffer to ask the operating system for, in bytes. Default: 4 MiB.
    pub fn send_buffer_bytes(mut self, bytes: usize) -> Self {
        self.send_buffer = bytes;
        self
    }

    /// Binds the socket, starts the node's threads and, if a registry is configured, registers.
    ///
    /// Blocks for the registry at most some seconds.
    ///
    /// # Errors
    /// Say what failed and what to do next.
    pub fn start(mut self) -> Result<Node, StartError> {
        let state = self.state_dir.as_deref().map(StateDir::open).transpose()?;
        let identity = self.find_identity(state.as_ref())?;
        let Kept { book, addresses } = self.read_state(state.as_ref(), &identity)?;
        let bind_error = |source| StartError::Bind { address: self.bind, source };
        let socket =
            Arc::new(Socket::bind(self.bind, self.recv_buffer, self.send_buffer).map_err(bind_error)?);
        let local = socket.local_addr();
        let beacon = self.beacon.as_deref().map(|name| host(name, local)).transpose()?;
        if let Some(registry) = &self.registry {
            host(registry, local)?;
        }

        let poll = mio::Poll::new()?;
        let post = Post::new(mio::Waker::new(poll.registry(), WAKER)?);
        let mailbox = Arc::new(Mailbox::new(self.registry.is_some(), beacon));
        let known_as = addresses.as_ref().zip(self.registry.as_ref()).and_then(|(known, at)| known.at(at));
        let core = self.core(&identity, known_as, &socket, beacon)?;
        let shared = Arc::new(Shared::new(core, local, post, book, mailbox.clone()));
        let driver = Driver::new(shared.clone(), state).spawn(Watch::new(socket.clone(), poll)?)?;

        let hub = self
            .registry
            .clone()
            .map(|registry| Hub::new(registry, &identity, self.registry_tls, addresses))
            .map(|hub| Arc::new(hub.wishing(self.wish.clone())));
        let inner = NodeInner {
            hub: hub.clone(),
            identity,
            socket_info: socket.info(),
            connect_timeout: self.config.connect_timeout,
            keepalive: self.keepalive,
            introduced: self
                .peers
                .iter()
                .filter_map(|peer| Some((peer.address.node, peer.endpoint?)))
                .collect(),
            policies: self
                .peers
                .iter()
                .map(|peer| (peer.address.node, peer.policy))
                .collect::<HashMap<_, _>>(),
            driver: Mutex::new(Some(driver)),
            shared: shared.clone(),
        };
        // From here on an early return closes the node again.
        let node = Node { inner: Arc::new(inner) };

        let (directory, registered) = match &hub {
            Some(hub) => self.register(&shared, hub)?,
            None => (None, false),
        };
        self.introduce_peers(&shared)?;
        let keeper = Keeper {
            shared: Arc::downgrade(&shared),
            mailbox,
            hub,
            policies: node.inner.policies.clone(),
            directory,
            registered,
            heartbeat: self.keepalive,
            strangers: Budget::default(),
        };
        keeper.spawn()?;
        Ok(node)
    }

    /// What the state directory holds besides the identity.
    fn read_state(&mut self, state: Option<&StateDir>, identity: &Identity) -> Result<Kept, StartError> {
        let Some(state) = state else {
            return Ok(Kept { book: PeerBook::default(), addresses: None });
        };
        self.wish.owner = state.owner(self.wish.owner.as_deref())?;
        let addresses = state.addresses(identity.public_key())?;
        Ok(Kept { book: state.peers(self.registry.as_deref())?, addresses: Some(addresses) })
    }

    fn find_identity(&self, state: Option<&StateDir>) -> Result<Identity, StartError> {
        match (&self.identity, state) {
            (Some(identity), _) => Ok(identity.clone()),
            (None, Some(state)) => state.identity(fresh_identity),
            (None, None) => Ok(fresh_identity()?),
        }
    }

    fn core(
        &self,
        identity: &Identity,
        known_as: Option<Address>,
        socket: &Arc<Socket>,
        beacon: Option<SocketAddr>,
    ) -> Result<Core, StartError> {
        let now = Instant::now();
        let address = known_as.unwrap_or_else(|| derived_address(&identity.public_key()));
        let mut endpoint = Endpoint::new(self.config.clone(), identity.clone(), address, random()?, now);
        endpoint.set_beacon(now, beacon);
        Ok(Core::new(endpoint, SendSlab::new(socket.clone())))
    }

    /// Introduces the configured peers. After the registration, because the registry may assign our
    /// address only as long as no peer knows it.
    fn introduce_peers(&self, shared: &Shared) -> Result<(), StartError> {
        let mut core = shared.lock();
        let book = shared.book();
        for peer in &self.peers {
            let failed = |source| StartError::Peer { peer: peer.address, source, pins: book.location() };
            let pinned = book.get(peer.address.node).map(|pin| pin.key);
            if peer.key.is_some() && pinned.is_some() && peer.key != pinned {
                return Err(failed(ConnectError::PinMismatch));
            }
            let known = PeerConfig { key: peer.key.or(pinned), ..peer.clone() };
            core.endpoint.add_peer(Instant::now(), known).map_err(failed)?;
            core.introduced.insert(peer.address.node);
        }
        drop(book);
        shared.finish(core);
        Ok(())
    }

    /// The first registration, on the caller's thread, so that its failure is the caller's to see.
    fn register(
        &self,
        shared: &Arc<Shared>,
        hub: &Hub,
    ) -> Result<(Option<Box<dyn Directory>>, bool), StartError> {
        if shared.mailbox.beacon().is_some() {
            await_observed(shared);
        }
        let outcome = hub.open().and_then(|mut directory| {
            let request = describe(shared, hub, &hub.wish());
            let registered = directory.register(&request)?;
            adopt(shared, hub, &request, &registered)?;
            Ok((directory, registered))
        });
        match outcome {
            Ok((directory, registered)) => match (&self.wish.name, registered.name_error) {
                (Some(name), Some(reason)) if self.hub_required => {
                    Err(StartError::Name { name: name.clone(), reason })
                }
                _ => Ok((Some(directory), true)),
            },
            Err(source) if self.hub_required => {
                let hint = register_hint(&source);
                Err(StartError::Register { registry: hub.registry.clone(), source, hint })
            }
            Err(error) => {
                hub.note_error(error.to_string(), false);
                Ok((None, false))
            }
        }
    }
}

/// What the state directory held.
struct Kept {
    book: PeerBook,
    addresses: Option<AddressMemory>,
}

/// Waits a moment for the beacon's answer; without it the registry sees our TCP address only.
fn await_observed(shared: &Shared) {
    let deadline = Instant::now() + DISCOVERY_WAIT;
    loop {
        let seen = shared.lifecycle.epoch(Direction::Read);
        if shared.lock().endpoint.observed_address().is_some() {
            return;
        }
        if !shared.lifecycle.wait(Direction::Read, seen, Some(deadline)) {
            tracing::warn!("the beacon did not answer; registering without an observed address");
            return;
        }
    }
}

fn register_hint(error: &HubError) -> &'static str {
    match error {
        HubError::Unreachable { .. } => "start the hub, or correct its address",
        HubError::NotFound { .. } => "check that this is a registry",
        HubError::Refused { .. } | HubError::NotConfigured => "see the reason that the registry gives",
    }
}

fn host(name: &str, local: SocketAddr) -> Result<SocketAddr, StartError> {
    resolve_host(name, local).map_err(|reason| StartError::HubAddress { name: name.to_owned(), reason })
}

/// Registry and beacon of `HOST[:PORT]`. IPv6 addresses with a port need brackets.
fn split_hub(hub: &str) -> (String, String) {
    let colons = hub.matches(':').count();
    let (host, port) = if hub.ends_with(']') || colons == 0 {
        (hub.to_owned(), Some(DEFAULT_HUB_PORT))
    } else if colons > 1 && !hub.starts_with('[') {
        (format!("[{hub}]"), Some(DEFAULT_HUB_PORT))
    } else {
        let (host, port) = hub.rsplit_once(':').unwrap_or((hub, ""));
        (host.to_owned(), port.parse().ok())
    };
    match port {
        Some(port) => (format!("{host}:{port}"), format!("{host}:{}", port.saturating_add(1))),
        // Kept as it is, so that resolving it reports what the user wrote.
        None => (hub.to_owned(), hub.to_owned()),
    }
}

fn fresh_identity() -> io::Result<Identity> {
    random().map(Identity::from_seed)
}

fn random() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(format!("no random bytes: {error}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_has_two_ports() {
        for (hub, registry, beacon) in [
            ("127.0.0.1", "127.0.0.1:9000", "127.0.0.1:9001"),
            ("hub.example:9100", "hub.example:9100", "hub.example:9101"),
            ("[::1]:7", "[::1]:7", "[::1]:8"),
            ("::1", "[::1]:9000", "[::1]:9001"),
            ("[::1]", "[::1]:9000", "[::1]:9001"),
            ("hub:port", "hub:port", "hub:port"),
        ] {
            assert_eq!(split_hub(hub), (registry.to_owned(), beacon.to_owned()), "{hub}");
        }
    }
}
