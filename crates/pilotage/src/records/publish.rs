//! The thread that publishes, refreshes, and remembers whom we meet.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pilotage_proto::SecureMode;
use pilotage_registry::book::client::BookClient;
use pilotage_registry::book::message::{ClaimAnswer, Query, RecordAnswer};
use pilotage_registry::claims::{Claim, HOSTNAME_LEASE, LEASE, Subject};
use pilotage_registry::placement::{MapKeeper, MapNode};
use pilotage_registry::record::sign_with;
use pilotage_registry::replica::agent::{Agent, Publication, Step};
use pilotage_registry::replica::find::{Finder, fetch_map};
use pilotage_registry::replica::owner_key;
use pilotage_wire::record::{HostnameRef, MAX_ENDPOINTS, Record};
use pilotage_wire::{Address, NetworkId, addressing};

use super::directory::{Alone, show};
use super::{Inner, RETRY, demanded, lock, unix, write};
use crate::node::Node;

const NETWORK: NetworkId = NetworkId(0);
const TIMEOUT: Duration = Duration::from_secs(5);
/// A node that did not answer is asked last for so long.
const MUTE: Duration = Duration::from_secs(60);
/// Salts that are tried until an address is free.
pub(super) const SALTS: usize = 16;
/// A record is signed anew after half of its life.
pub(super) const LIFE: u32 = 86_400;
const DAY: u64 = 86_400;
/// Keys of registry nodes that were believed.
const NODES: &str = "registry-nodes";
const MAX_NODES: usize = 64;

/// What is needed to go on.
struct Session {
    finder: Arc<Finder>,
    agent: Agent,
    claim: Vec<u8>,
    salt: u16,
    hostname: Option<HostnameRef>,
    /// What the record says, to see when it has to say something else.
    said: Vec<SocketAddr>,
    issued: u64,
    seq: u64,
}

pub(super) fn run(inner: &Arc<Inner>) {
    let began = Instant::now();
    let mut session: Option<Session> = None;
    let mut alone = Alone::default();
    let mut next = began;
    while !inner.stopped() {
        remember_met(inner, session.as_ref());
        if Instant::now() >= next {
            let now = began.elapsed().as_millis() as u64;
            let mut mapped = false;
            match &mut session {
                None => match open(inner, now) {
                    Ok(opened) => session = Some(opened),
                    Err(why) => {
                        inner.failed(why);
                        if let Err(why) = node_of(inner).and_then(|node| alone.step(inner, &node)) {
                            tracing::debug!(%why, "not shown to everybody");
                        }
                        next = Instant::now() + RETRY;
                    }
                },
                Some(session) => {
                    let step = session.step(inner, now);
                    tell(inner, &step);
                    let due = session.agent.due().saturating_sub(now).clamp(20, 1_000);
                    next = Instant::now() + Duration::from_millis(due);
                    mapped = step.refreshed && session.is_mapped_now(inner);
                }
            }
            if mapped {
                session = None; // and begins anew, with the map
                next = Instant::now();
            }
        }
        inner.pause(next);
    }
}

fn tell(inner: &Inner, step: &Step) {
    let mut status = lock(&inner.status);
    status.heartbeats += step.heartbeats as u64;
    if !step.refreshed {
        return;
    }
    status.stored = step.stored;
    status.refreshes += 1;
    let error = match (&step.refused.first(), step.newer, step.stored) {
        (Some(why), ..) => Some((*why).clone()),
        (None, Some(seq), _) => Some(format!(
            "a registry node has a newer record of this agent (number {seq}); does another machine use this key?"
        )),
        (None, None, 0) => Some("no registry node answers".to_owned()),
        _ => None,
    };
    // Under the same lock: nobody is to see both a record that is stored and an error of before.
    match error {
        Some(why) => status.failed(why),
        None => status.last_error = None,
    }
}

/// Keys of registry nodes that were believed before.
pub(super) fn remembered_nodes(dir: &Path) -> Vec<[u8; 32]> {
    let bytes = std::fs::read(dir.join(NODES)).unwrap_or_default();
    bytes.chunks_exact(32).take(MAX_NODES).filter_map(|key| key.try_into().ok()).collect()
}

fn node_of(inner: &Inner) -> Result<Node, String> {
    lock(&inner.node).clone().ok_or_else(|| "the node is closed".to_owned())
}

fn open(inner: &Arc<Inner>, now: u64) -> Result<Session, String> {
    let node = node_of(inner)?;
    let registry = &inner.config.registry;
    let pinned = match inner.config.trusted.is_empty() {
        true => remembered_nodes(&inner.config.dir),
        false => inner.config.trusted.clone(),
    };
    let mut client =
        BookClient::connect(registry, TIMEOUT, pinned.clone()).map_err(|error| error.to_string())?;
    let info = client.info().map_err(|error| error.to_string())?;
    if pinned.is_empty() {
        write(&inner.config.dir.join(NODES), &info.node).map_err(|error| error.to_string())?;
    } else if !pinned.contains(&info.node) {
        follow(inner, &mut client)?;
    }
    lock(&inner.cache).trust(info.node);
    let (claim, salt) = claim_address(&mut client, &node, info.pow_bits)?;
    let hostname = claim_hostname(&mut client, &node, inner, info.pow_bits)?;
    let keeper = match fetch_map(registry, TIMEOUT).map_err(|error| error.to_string())? {
        Some(map) => MapKeeper::trust(map, &[info.node]).map_err(|error| error.to_string())?,
        None => alone(registry, info.node)?,
    };
    let nodes: Vec<[u8; 32]> = keeper.current().nodes.iter().map(|node| node.key).collect();
    nodes.into_iter().for_each(|key| lock(&inner.cache).trust(key));
    let finder = Arc::new(Finder::new(keeper, TIMEOUT, MUTE));
    let socket =
        UdpSocket::bind(("0.0.0.0", 0)).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
    let seq = unix().as_millis() as u64;
    let said = endpoints(&node, inner.config.private);
    let record = sign(inner, &node, salt, hostname.clone(), &said, seq)?;
    show(inner, &node, &record);
    // The registry itself, where names are looked up; then the replicas.
    let claims = Vec::new();
    match client.register(&claims, Some(&record)).map_err(|error| error.to_string())?.1 {
        RecordAnswer::Refused(why) => return Err(why),
        RecordAnswer::Older(_) | RecordAnswer::Stored | RecordAnswer::None => {}
    }
    let identity = node.inner.identity.clone();
    let interval = inner.config.refresh.as_millis() as u64;
    let agent = Agent::new(
        finder.clone(),
        (node.public_key(), NETWORK),
        Arc::new(move |message: &[u8]| identity.sign(message)),
        Publication { claim: claim.clone(), record },
        (now, interval),
        socket.ok(),
    );
    let address = addressing::derive_node_id(&node.public_key(), salt);
    lock(&inner.status).address = address.map(|node| Address { network: NETWORK, node });
    let issued = unix().as_secs();
    Ok(Session { finder, agent, claim, salt, hostname, said, issued, seq })
}

/// A registry signs with another key than before: it is followed if it has become a cluster by its old key's word
/// (spec/registry2.md §6.5), unless the keys were given.
fn follow(inner: &Inner, client: &mut BookClient) -> Result<(), String> {
    let (registry, file) = (&inner.config.registry, inner.config.dir.join(NODES));
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| format!("no random numbers: {error}"))?;
    let followed = inner.config.trusted.is_empty()
        && client
            .follow(nonce)
            .map_err(|error| format!("{registry} signs with another key than before: {error}"))?;
    if !followed {
        return Err(format!(
            "{registry} signs with a key that is not trusted, and no key that is has handed over to it; if its operator says that the key is new, remove {}",
            file.display()
        ));
    }
    tracing::info!(%registry, "the registry has become a cluster, as its old key says");
    client.nodes().iter().for_each(|key| lock(&inner.cache).trust(*key));
    write(&file, client.nodes().as_flattened()).map_err(|error| error.to_string())
}

/// A registry of one node, which has no map.
fn alone(registry: &str, key: [u8; 32]) -> Result<MapKeeper, String> {
    use std::net::ToSocketAddrs as _;
    let endpoints: Vec<SocketAddr> =
        registry.to_socket_addrs().map_err(|error| format!("{registry}: {error}"))?.take(4).collect();
    MapKeeper::alone(MapNode { key, weight: 1, endpoints }).map_err(|error| error.to_string())
}

fn day() -> Duration {
    Duration::from_secs(unix().as_secs() / DAY * DAY)
}

/// The address of the node, or the first that is free.
fn claim_address(client: &mut BookClient, node: &Node, bits: u8) -> Result<(Vec<u8>, u16), String> {
    let (key, identity) = (node.public_key(), node.inner.identity.clone());
    let (seq, expires) = (day().as_millis() as u64, day().as_secs() as u32 + LEASE as u32);
    for (salt, _) in addressing::node_ids(&key).take(SALTS) {
        let Some(claim) = Claim::address(NETWORK, key, salt, seq, expires) else { continue };
        let claim = claim.sign_with(bits, |message| identity.sign(message));
        if granted(client, &claim)?.is_some() {
            return Ok((claim.encode(), salt));
        }
    }
    Err(format!("the first {SALTS} addresses of this key belong to others"))
}

fn claim_hostname(
    client: &mut BookClient,
    node: &Node,
    inner: &Inner,
    bits: u8,
) -> Result<Option<HostnameRef>, String> {
    let Some(name) = &inner.config.hostname else { return Ok(None) };
    let subject = Subject::Hostname { network: NETWORK, name: name.clone() };
    subject.check().map_err(|error| error.to_string())?;
    let (seq, expires) = (day().as_millis() as u64, day().as_secs() as u32 + HOSTNAME_LEASE as u32);
    let identity = node.inner.identity.clone();
    let claim = Claim::new(subject, node.public_key(), seq, expires)
        .sign_with(bits, |message| identity.sign(message));
    match granted(client, &claim)? {
        Some(index) => Ok(Some(HostnameRef { name: name.clone(), index })),
        None => Err(format!("the name {name:?} belongs to another agent; choose another one")),
    }
}

/// The leaf; `None` if it is another's.
fn granted(client: &mut BookClient, claim: &Claim) -> Result<Option<u64>, String> {
    let answers = client.register(std::slice::from_ref(claim), None).map_err(|error| error.to_string())?.0;
    match answers.into_iter().next() {
        Some(ClaimAnswer::Granted(index)) => Ok(Some(index)),
        Some(ClaimAnswer::TakenBy { .. }) => Ok(None),
        Some(ClaimAnswer::Refused(why)) => Err(why),
        None => Err("the registry did not answer".into()),
    }
}

/// Where the node can be reached: as the beacon sees it, then by its own addresses.
pub(super) fn endpoints(node: &Node, private: bool) -> Vec<SocketAddr> {
    if private {
        return Vec::new();
    }
    let local = Some(node.local_addr()).filter(|local| !local.ip().is_unspecified());
    let mut found: Vec<SocketAddr> = Vec::new();
    for at in node.observed_addr().into_iter().chain(local).chain(node.interface_addresses()) {
        if !found.contains(&at) && found.len() < MAX_ENDPOINTS {
            found.push(at);
        }
    }
    found
}

pub(super) fn sign(
    inner: &Inner,
    node: &Node,
    salt: u16,
    hostname: Option<HostnameRef>,
    endpoints: &[SocketAddr],
    seq: u64,
) -> Result<Vec<u8>, String> {
    let key = node.public_key();
    let id = addressing::derive_node_id(&key, salt).ok_or("no address follows from this key")?;
    let mut record = Record::new(NETWORK, id, salt, key, seq, unix().as_secs() as u32);
    record.ttl = LIFE;
    // Whoever speaks nothing else says so, and nobody who knows the record tries less.
    record.min_sec = if node.inner.shared.lock().endpoint.secure_mode() == SecureMode::S1 { 2 } else { 0 };
    record.private = inner.config.private;
    record.endpoints = endpoints.to_vec();
    record.hostname = hostname;
    record.tags = inner.config.tags.clone();
    record.tags.sort_unstable();
    record.tags.dedup();
    record.summary = inner.config.summary.clone();
    let identity = node.inner.identity.clone();
    sign_with(&mut record, key, |message| identity.sign(message)).map_err(|error| error.to_string())
}

impl Session {
    fn step(&mut self, inner: &Inner, now: u64) -> Step {
        if let Err(why) = self.say_anew(inner, now) {
            inner.failed(why);
        }
        let step = self.agent.step(now, unix().as_millis() as u64, || {
            let mut secret = [0; 32];
            // Without randomness the token is not secret; the node that starts without any fails long before.
            let _ = getrandom::fill(&mut secret);
            secret
        });
        if step.refreshed {
            self.renew_map();
        }
        step
    }

    /// A new record, if we are elsewhere now or the old one grows old.
    fn say_anew(&mut self, inner: &Inner, now: u64) -> Result<(), String> {
        let node = node_of(inner)?;
        let here = endpoints(&node, inner.config.private);
        let old = unix().as_secs().saturating_sub(self.issued) > u64::from(LIFE) / 2;
        if here == self.said && !old {
            return Ok(());
        }
        self.seq = (self.seq + 1).max(unix().as_millis() as u64);
        let record = sign(inner, &node, self.salt, self.hostname.clone(), &here, self.seq)?;
        (self.said, self.issued) = (here, unix().as_secs());
        show(inner, &node, &record);
        self.agent.publish(now, Publication { claim: self.claim.clone(), record });
        Ok(())
    }

    /// Whether the registry was alone when we asked first, and has a map by now.
    fn is_mapped_now(&self, inner: &Inner) -> bool {
        self.finder.map().nodes.len() == 1
            && matches!(fetch_map(&inner.config.registry, TIMEOUT), Ok(Some(_)))
    }

    fn renew_map(&self) {
        let map = self.finder.map();
        let Some(node) = map.nodes.first().filter(|_| map.nodes.len() > 1) else { return };
        if let Err(error) = self.finder.renew(node) {
            tracing::warn!(%error, "registry map not renewed");
        }
    }
}

/// Looks the record up of each peer that was met, with proof, and keeps it.
fn remember_met(inner: &Inner, session: Option<&Session>) {
    let Some(session) = session else { return };
    let met: Vec<Address> = lock(&inner.met).drain(..).collect();
    if met.is_empty() {
        return;
    }
    let pinned = match inner.config.trusted.is_empty() {
        true => remembered_nodes(&inner.config.dir),
        false => inner.config.trusted.clone(),
    };
    let Ok(mut client) = BookClient::connect(&inner.config.registry, TIMEOUT, pinned) else { return };
    for address in met {
        let query = Query::Address { network: address.network, node: address.node };
        let now = SystemTime::now();
        let found = match client.resolve(&query, unix().as_secs()) {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, %address, "a peer that was met is not remembered");
                continue;
            }
        };
        lock(&inner.cache).put(&found, now);
        if let Ok(node) = node_of(inner) {
            node.demand_mode(address, &found.record.key, demanded(&found.record));
        }
        // Its name as well, and a newer record if a replica has one.
        if let Some(name) = &found.record.hostname {
            let query = Query::Hostname { network: address.network, name: name.name.clone() };
            if let Ok(named) = client.resolve(&query, unix().as_secs())
                && named.record.key == found.record.key
            {
                lock(&inner.cache).put(&named, now);
            }
        }
        let owner = owner_key(&found.record.agent_id(), found.record.network);
        if let Some(best) = session.finder.resolve(&owner, unix().as_secs()).best {
            lock(&inner.cache).renew(&best.record, &best.bytes, now);
        }
    }
}
