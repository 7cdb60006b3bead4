//! Configuring and starting a node.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pilotage_carriage::{UrlError, WssUrl};
use pilotage_proto::crypto::Identity;
use pilotage_proto::s1::{Limits, PostQuantum, Secret};
use pilotage_proto::{Config, ConnectError, Endpoint, PeerConfig, PeerPolicy, SecureMode};
use pilotage_wire::addressing::fingerprint128;
use pilotage_wire::{Address, NetworkId};

use crate::carrier::{Carrier, Plan, Prepared};
use crate::driver::Driver;
use crate::driver::post::Post;
use crate::driver::send::SendSlab;
use crate::driver::socket::Socket;
use crate::driver::watch::{WAKER, Watch};
use crate::error::StartError;
use crate::hub::{Hub, HubError, Visibility, Wish, resolve_host};
use crate::interfaces;
use crate::keeper::{Budget, HEARTBEAT, Keeper, Mailbox, adopt, derived_address, describe};
use crate::lan::Lan;
use crate::node::{Node, NodeInner};
use crate::portmap::{self, Router};
use crate::secure::Wanted;
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
    beacons: Vec<String>,
    wss: Wss,
    lan: Option<u16>,
    router: Option<Router>,
    proven_only: bool,
    wss_pin: Option<[u8; 32]>,
    hub_required: bool,
    wish: Wish,
    peers: Vec<PeerConfig>,
    config: Config,
    recv_buffer: usize,
    send_buffer: usize,
    secure: SecureMode,
    secure_limits: Limits,
    network_secrets: Vec<(NetworkId, Secret)>,
    secure_streams: bool,
    secure_early: bool,
    post_quantum: PostQuantum,
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
            beacons: Vec::new(),
            wss: Wss::None,
            lan: None,
            router: None,
            proven_only: false,
            wss_pin: None,
            hub_required: true,
            wish: Wish { visibility: Visibility::Public, ..Wish::default() },
            peers: Vec::new(),
            config: Config::default(),
            recv_buffer: SOCKET_BUFFER,
            send_buffer: SOCKET_BUFFER,
            secure: SecureMode::Auto,
            secure_limits: Limits::default(),
            network_secrets: Vec::new(),
            secure_streams: true,
            secure_early: true,
            post_quantum: PostQuantum::Off,
        }
    }
}

impl fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeBuilder")
            .field("bind", &self.bind)
            .field("state_dir", &self.state_dir)
            .field("registry", &self.registry)
            .field("beacons", &self.beacons)
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
    pub fn beacon(self, beacon: impl Into<String>) -> Self {
        self.beacons([beacon])
    }

    /// Several beacons, at most eight. The first that answers relays; the others keep our registration, and one of them
    /// takes over when it falls silent.
    pub fn beacons(mut self, beacons: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.beacons = beacons.into_iter().map(Into::into).collect();
        self
    }

    /// A hub, `HOST[:PORT]`: the registry on this port (default [`DEFAULT_HUB_PORT`]), the beacon on the next.
    pub fn hub(mut self, hub: impl Into<String>) -> Self {
        let (registry, beacon) = split_hub(&hub.into());
        if matches!(self.wss, Wss::None) {
            let host = registry.rsplit_once(':').map_or(registry.as_str(), |(host, _)| host);
            self.wss = Wss::Derived(host.to_owned());
        }
        self.registry = Some(registry);
        self.beacons = vec![beacon];
        self
    }

    /// The hub's WebSocket, `wss://HOST[:PORT][/PATH]`, through which the beacon is spoken to where UDP is blocked.
    /// Default: port 443 of the host of [`NodeBuilder::hub`]; none without a beacon. Nothing is dialled while UDP works.
    /// Proxies are taken from `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`.
    pub fn hub_wss(mut self, url: impl Into<String>) -> Self {
        self.wss = Wss::Url(url.into());
        self
    }

    /// Takes only the hub whose certificate (DER) has this SHA-256 at its WebSocket. Default: what a browser would take,
    /// else the certificate of the first time, which is kept in the state directory.
    pub fn hub_wss_pin(mut self, sha256: [u8; 32]) -> Self {
        self.wss_pin = Some(sha256);
        self
    }

    /// Uses UDP only, even where it is blocked.
    pub fn no_hub_wss(mut self) -> Self {
        self.wss = Wss::Off;
        self
    }

    /// Announces the node on the local network and finds others there, by DNS-SD over multicast DNS: without a hub by
    /// name and address, with one where the hub does not help. What is announced is address, name, fingerprint and
    /// endpoints; what others announce is proved by their key exchange. Default: false.
    pub fn lan(mut self, lan: bool) -> Self {
        self.lan = lan.then_some(0);
        self
    }

    /// As [`NodeBuilder::lan`], on another port than that of multicast DNS: only nodes on the same port find each other.
    pub fn lan_port(mut self, port: u16) -> Self {
        self.lan = Some(port);
        self
    }

    /// Asks the router of this network for a port that leads to ours, by PCP, NAT-PMP or UPnP, and gives it back at the end.
    /// Default: false.
    pub fn port_mapping(mut self, map: bool) -> Self {
        self.router = map.then_some(Router::Gateway);
        self
    }

    /// Whether beacons let through to us only what comes from nodes that proved their key (spec/nat.md §7.3). Daemons of the
    /// reference prove nothing, so they then reach us directly or not at all. Default: false.
    /// [`Node::set_relay_accept`] is finer.
    pub fn proven_only(mut self, only: bool) -> Self {
        self.proven_only = only;
        self
    }

    /// As [`NodeBuilder::port_mapping`], by asking this router, at this port.
    pub fn port_mapping_at(mut self, router: SocketAddr) -> Self {
        self.router = Some(Router::At(router));
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
        self.peer_config(PeerConfig {
            address,
            key,
            endpoint: Some(at),
            policy: PeerPolicy::default(),
            prekey: None,
        })
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

    /// Which protection tunnels get: the draft's, S1, or whichever the peer speaks (spec/secure.md §12), which is the default.
    pub fn secure_mode(mut self, mode: SecureMode) -> Self {
        self.secure = mode;
        self
    }

    /// Life of the keys of S1. Default: the specification's.
    pub fn secure_limits(mut self, limits: Limits) -> Self {
        self.secure_limits = limits;
        self
    }

    /// The secret of a network (spec/secure.md §6.1): whoever begins a session from an address in this network, we or a peer,
    /// has it with those who know the same secret, and with nobody else. Used in S1 only.
    pub fn network_secret(mut self, network: NetworkId, secret: [u8; 32]) -> Self {
        self.network_secrets.retain(|(of, _)| *of != network);
        self.network_secrets.push((network, Secret::new(secret)));
        self
    }

    /// Whether connections in S1 are streams of its own frame layer, with peers that have it (spec/secure.md §11): the
    /// default. Otherwise the draft's packets travel in S1's frames.
    pub fn secure_streams(mut self, streams: bool) -> Self {
        self.secure_streams = streams;
        self
    }

    /// Whether datagrams are taken from the first packet of a peer in S1, before it has shown that it is there: messages that
    /// its application marked as idempotent (spec/secure.md §6.4). Default: yes. Without, they come half a round trip
    /// to a whole one later.
    pub fn secure_early(mut self, early: bool) -> Self {
        self.secure_early = early;
        self
    }

    /// Whether sessions of S1 get a second secret, by ML-KEM-768, so that who records them now reads them with no quantum computer
    /// later (spec/secure.md §9.5). Default: [`PostQuantum::Off`]. It costs 2.5 KB and half a millisecond for each session. With
    /// [`PostQuantum::Require`], which needs [`SecureMode::S1`], nobody who does not do it has a session with this node, nothing
    /// of an application leaves before it is done, and there is no early data.
    pub fn post_quantum(mut self, post_quantum: PostQuantum) -> Self {
        self.post_quantum = post_quantum;
        self
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            mode: self.secure,
            limits: self.secure_limits,
            streams: self.secure_streams,
            early: self.secure_early,
            post_quantum: self.post_quantum,
        }
    }

    /// Binds the socket, starts the node's threads and, if a registry is configured, registers.
    ///
    /// Blocks for the registry at most some seconds.
    ///
    /// # Errors
    /// Say what failed and what to do next.
    pub fn start(mut self) -> Result<Node, StartError> {
        crate::secure::check(self.secure, self.post_quantum)?;
        let state = self.state_dir.as_deref().map(StateDir::open).transpose()?;
        let identity = self.find_identity(state.as_ref())?;
        let Kept { book, addresses } = self.read_state(state.as_ref(), &identity)?;
        let bind_error = |source| StartError::Bind { address: self.bind, source };
        let socket =
            Arc::new(Socket::bind(self.bind, self.recv_buffer, self.send_buffer).map_err(bind_error)?);
        let local = socket.local_addr();
        let beacons = self.beacons.iter().map(|name| host(name, local)).collect::<Result<Vec<_>, _>>()?;
        if let Some(registry) = &self.registry {
            host(registry, local)?;
        }

        let poll = mio::Poll::new()?;
        let post = Post::new(mio::Waker::new(poll.registry(), WAKER)?);
        let mailbox = Arc::new(Mailbox::new(self.registry.is_some(), !beacons.is_empty()));
        let known_as = addresses.as_ref().zip(self.registry.as_ref()).and_then(|(known, at)| known.at(at));
        let plan = self.carriage(beacons.first().copied(), state.as_ref())?;
        let prepared = plan.map(|plan| Prepared::new(plan, &socket)).transpose()?;
        let carrier = prepared.as_ref().map(|prepared| prepared.carrier.clone());
        let mut core = self.core(&identity, known_as, &socket, &beacons, carrier.clone())?;
        let secrets = std::mem::take(&mut self.network_secrets);
        crate::secure::enable(&mut core.endpoint, self.wanted(), secrets, state.as_ref())?;
        let shared = Arc::new(Shared::new(core, local, post, book, mailbox.clone(), carrier));
        let lan = self.find_others(&identity, local, known_as)?;
        let driver = Driver::new(shared.clone(), state).spawn(Watch::new(socket.clone(), poll)?)?;

        let hub = self.directory(&identity, addresses);
        let inner = NodeInner {
            lan,
            port_mapping: Mutex::new(None),
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
            policies: self.peers.iter().map(|peer| (peer.address.node, peer.policy)).collect(),
            driver: Mutex::new(Some(driver)),
            shared: shared.clone(),
        };
        // From here on an early return closes the node again.
        let node = Node { inner: Arc::new(inner) };
        self.start_helpers(&node, prepared)?;

        let registered = match &hub {
            Some(hub) => self.register(&shared, hub)?,
            None => false,
        };
        self.introduce_peers(&shared)?;
        let keeper = Keeper {
            shared: Arc::downgrade(&shared),
            mailbox,
            hub,
            policies: node.inner.policies.clone(),
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
        beacons: &[SocketAddr],
        carrier: Option<Arc<Carrier>>,
    ) -> Result<Core, StartError> {
        let now = Instant::now();
        let address = known_as.unwrap_or_else(|| derived_address(&identity.public_key()));
        let mut endpoint = Endpoint::new(self.config.clone(), identity.clone(), address, random()?, now);
        endpoint.set_local_port(socket.local_addr().port());
        if self.proven_only {
            endpoint.set_relay_accept(now, pilotage_wire::beacon::Accept::Proven, &[]);
        }
        endpoint.set_beacons(now, beacons);
        Ok(Core::new(endpoint, SendSlab::new(socket.clone(), carrier, Arc::default())))
    }

    fn directory(&self, identity: &Identity, addresses: Option<AddressMemory>) -> Option<Arc<Hub>> {
        let registry = self.registry.clone()?;
        let hub = Hub::new(registry, identity, self.registry_tls, addresses);
        Some(Arc::new(hub.wishing(self.wish.clone())))
    }

    /// The threads besides driver and keeper.
    fn start_helpers(&self, node: &Node, prepared: Option<Prepared>) -> Result<(), StartError> {
        let shared = &node.inner.shared;
        let local = shared.local;
        if let Some(prepared) = prepared {
            prepared.start(Arc::downgrade(shared))?;
        }
        interfaces::spawn(Arc::downgrade(shared), node.inner.hub.clone(), local)?;
        if let Some(router) = self.router {
            let nonce = random()?.first_chunk().copied().unwrap_or_default();
            let mapping = portmap::spawn(Arc::downgrade(shared), local.port(), router, nonce)?;
            *node.inner.port_mapping.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(mapping);
        }
        Ok(())
    }

    /// The local network, if it is wanted. Where there is none, a node with a hub goes on without.
    fn find_others(
        &self,
        identity: &Identity,
        local: SocketAddr,
        known_as: Option<Address>,
    ) -> Result<Option<Lan>, StartError> {
        let Some(port) = self.lan else { return Ok(None) };
        let key = identity.public_key();
        let address = known_as.unwrap_or_else(|| derived_address(&key));
        match Lan::start(address, &fingerprint128(&key), self.wish.name.as_deref(), local, port) {
            Ok(lan) => Ok(Some(lan)),
            Err(reason) if self.registry.is_some() => {
                tracing::warn!(reason, "nodes on the local network are not found");
                Ok(None)
            }
            Err(reason) => Err(StartError::from(io::Error::other(format!("multicast DNS: {reason}")))),
        }
    }

    /// How to speak with the beacon where UDP is blocked; `None` where that is not wanted or not possible.
    fn carriage(
        &self,
        beacon: Option<SocketAddr>,
        state: Option<&StateDir>,
    ) -> Result<Option<Plan>, StartError> {
        let Some(beacon) = beacon else { return Ok(None) };
        let bad = |name: &str, error: UrlError| StartError::HubAddress {
            name: name.to_owned(),
            reason: error.to_string(),
        };
        let url = match &self.wss {
            Wss::None | Wss::Off => return Ok(None),
            Wss::Url(url) => url.parse().map_err(|error| bad(url, error))?,
            // A host that cannot stand in a URL was refused before, or has no WebSocket.
            Wss::Derived(host) => match WssUrl::of_host(host) {
                Ok(url) => url,
                Err(_) => return Ok(None),
            },
        };
        let memory = state.map(StateDir::evidence).transpose()?.unwrap_or_default();
        Ok(Some(Plan { beacon, url, pins: self.wss_pin.into_iter().collect(), memory }))
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
            let known = crate::secure::remembered(&core.endpoint, &book, known);
            core.endpoint.add_peer(Instant::now(), known).map_err(failed)?;
            core.introduced.insert(peer.address.node);
        }
        drop(book);
        shared.finish(core);
        Ok(())
    }

    /// The first registration, on the caller's thread, so that its failure is the caller's to see.
    fn register(&self, shared: &Arc<Shared>, hub: &Hub) -> Result<bool, StartError> {
        if shared.mailbox.has_beacon() {
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
                _ => {
                    *hub.registered() = Some(directory);
                    Ok(true)
                }
            },
            Err(source) if self.hub_required => {
                let hint = register_hint(&source);
                Err(StartError::Register { registry: hub.registry.clone(), source, hint })
            }
            Err(error) => {
                hub.note_error(error.to_string(), false);
                Ok(false)
            }
        }
    }
}

/// Where the hub's WebSocket is.
enum Wss {
    None,
    Off,
    Derived(String),
    Url(String),
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

pub(crate) fn random() -> io::Result<[u8; 32]> {
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
