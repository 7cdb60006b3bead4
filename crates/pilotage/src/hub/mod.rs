//! The hub as a node sees it: a directory to register with and to ask, behind a small trait.
//!
//! Calls block for a bounded time and run on the caller's thread or on the keeper's, never on the
//! driver's.

mod registry;

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pilotage_nat::BeaconStatus;
use pilotage_proto::crypto::Identity;
use pilotage_wire::{Address, NodeId};
use serde_json::Value;

use crate::state::AddressMemory;

/// Longest wait for one answer of the registry.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The same over a connection that is not new: the network may have forgotten it.
const HASTY_TIMEOUT: Duration = Duration::from_secs(2);

/// Idle registry connections kept for the next caller.
const MAX_IDLE: usize = 4;

/// Why the hub gave no answer that helps.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubError {
    /// It could not be reached, or did not answer in time.
    Unreachable {
        /// Which registry, and what the operating system said.
        reason: String,
    },
    /// It does not know the name or node.
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// It refused.
    Refused {
        /// Its reason.
        reason: String,
    },
    /// The node was started without a registry.
    NotConfigured,
}

impl HubError {
    /// Whether trying again later, or another hub, may help.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

impl fmt::Display for HubError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { reason } => write!(f, "the hub does not answer: {reason}"),
            Self::NotFound { what } => write!(f, "the hub does not know the {what}, or may not tell us"),
            Self::Refused { reason } => write!(f, "the hub refused {reason}"),
            Self::NotConfigured => write!(f, "no hub is configured"),
        }
    }
}

impl std::error::Error for HubError {}

/// State of the connection with the hub.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HubStatus {
    /// The registry, as configured (`HOST:PORT`), if any.
    pub registry: Option<String>,
    /// The beacon that relays for us, if any.
    pub beacon: Option<SocketAddr>,
    /// How we stand with each beacon.
    pub beacons: Vec<BeaconStatus>,
    /// Whether the registry knows us at present.
    pub registered: bool,
    /// Whether it is one of the reference's: it assigns ids as it likes and checks no proofs.
    pub foreign: bool,
    /// Whether it tells others where we are.
    pub public: bool,
    /// The last thing that went wrong, until the next success.
    pub last_error: Option<String>,
    /// Time since the registry last answered a registration or heartbeat.
    pub last_heartbeat: Option<Duration>,
}

/// What a node tells the registry about itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Register {
    pub(crate) listen_addr: String,
    pub(crate) lan_addrs: Vec<String>,
    pub(crate) name: Option<String>,
    pub(crate) visibility: Visibility,
    /// E-mail address or other owner text. Only registries of the reference are told.
    pub(crate) owner: Option<String>,
}

/// Whether the registry may tell others where a node is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Visibility {
    /// Everybody may ask.
    Public,
    /// Nobody may, or those that the registry knows as trusted.
    Private,
    /// What is usual there: public at a hub of Pilotage, private at a registry of the reference.
    #[default]
    Usual,
}

impl Visibility {
    /// What it means at a registry of this kind.
    pub fn is_public(self, foreign: bool) -> bool {
        match self {
            Self::Public => true,
            Self::Private => false,
            Self::Usual => !foreign,
        }
    }
}

/// What the node wants to be known as: what it was started with, or what was set since.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wish {
    pub(crate) name: Option<String>,
    /// The name was given up since: the registry may not remember an older one.
    pub(crate) nameless: bool,
    pub(crate) visibility: Visibility,
    pub(crate) owner: Option<String>,
    /// The node left: it registers again only when a name or visibility is set.
    pub(crate) away: bool,
}

/// What the registry answers.
#[derive(Debug, Clone)]
pub(crate) struct Registered {
    pub(crate) address: Address,
    pub(crate) name: Option<String>,
    pub(crate) name_error: Option<String>,
    /// The registry is one of the reference's.
    pub(crate) foreign: bool,
}

/// What the registry knows of a node.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: Option<[u8; 32]>,
    pub(crate) name: Option<String>,
}

/// Where a node can be reached.
#[derive(Debug, Clone, Default)]
pub(crate) struct Endpoints {
    pub(crate) public: Option<SocketAddr>,
    pub(crate) lan: Vec<SocketAddr>,
}

/// Answers to both questions about a node.
pub(crate) struct Found {
    pub(crate) entry: Result<Entry, HubError>,
    pub(crate) endpoints: Result<Endpoints, HubError>,
}

/// One connection with a registry. Every call is bounded by [`REQUEST_TIMEOUT`] or a little more.
pub(crate) trait Directory: Send {
    fn register(&mut self, request: &Register) -> Result<Registered, HubError>;
    fn heartbeat(&mut self, node: NodeId) -> Result<(), HubError>;
    /// Whether the connection was replaced since the last registration.
    fn is_renewed(&self) -> bool;
    fn lookup(&mut self, node: NodeId) -> Result<Entry, HubError>;
    fn resolve(&mut self, node: NodeId, requester: NodeId) -> Result<Endpoints, HubError>;
    /// How long the next calls wait for an answer.
    fn set_patience(&mut self, _: Duration) {}
    /// Both, in one round trip where the connection can.
    fn find(&mut self, node: NodeId, requester: NodeId) -> Result<Found, HubError> {
        Ok(Found { entry: self.lookup(node), endpoints: self.resolve(node, requester) })
    }
    fn resolve_name(&mut self, name: &str, requester: NodeId) -> Result<Address, HubError>;
    /// Any request, with our signature over `signed` if given; the reply as it is.
    fn call(&mut self, request: &Value, signed: Option<&str>) -> Result<Value, HubError>;
}

/// Opens directories; the tests bring their own.
pub(crate) type Opener = Box<dyn Fn() -> Result<Box<dyn Directory>, HubError> + Send + Sync>;

/// The configured registry, with a small pool of connections for callers.
pub(crate) struct Hub {
    pub(crate) registry: String,
    open: Opener,
    idle: Mutex<Vec<Box<dyn Directory>>>,
    registered: Mutex<Option<Box<dyn Directory>>>,
    /// The connection of the registration was made from another network.
    stale: AtomicBool,
    state: Mutex<State>,
    wish: Mutex<Wish>,
    /// Where the address is kept that the registry gave us, and under which key.
    memory: Option<AddressMemory>,
}

#[derive(Debug, Default)]
struct State {
    registered: bool,
    last_error: Option<String>,
    last_heartbeat: Option<Instant>,
    name: Option<String>,
    foreign: bool,
    public: bool,
    /// Our own addresses on the local network, as registered.
    lan: Vec<SocketAddr>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl Hub {
    /// The registry at `HOST:PORT`, spoken to with this identity; over TLS if its certificate's SHA-256 is given.
    pub(crate) fn new(
        registry: String,
        identity: &Identity,
        pin: Option<[u8; 32]>,
        memory: Option<AddressMemory>,
    ) -> Self {
        let open = registry::opener(registry.clone(), identity.clone(), pin);
        Self { memory, ..Self::with_opener(registry, open) }
    }

    pub(crate) fn with_opener(registry: String, open: Opener) -> Self {
        Self {
            registry,
            open,
            idle: Mutex::default(),
            registered: Mutex::default(),
            stale: AtomicBool::new(false),
            state: Mutex::default(),
            wish: Mutex::default(),
            memory: None,
        }
    }

    /// The same with what the node wants to be known as.
    pub(crate) fn wishing(self, wish: Wish) -> Self {
        Self { wish: Mutex::new(wish), ..self }
    }

    /// Whoever holds this keeps others from registering and from setting name and visibility.
    pub(crate) fn wish(&self) -> MutexGuard<'_, Wish> {
        self.wish.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Any request. A name or visibility that the registry takes is what later registrations ask for; after `deregister`
    /// there are none.
    pub(crate) fn call(&self, request: &Value, signed: Option<&str>) -> Result<Value, HubError> {
        let ask = || self.ask(|directory| directory.call(request, signed));
        match request["type"].as_str() {
            Some("set_hostname") => {
                let mut wish = self.wish();
                let reply = ask()?;
                // What it made of the name, if it says.
                let name = reply["hostname"].as_str().or_else(|| request["hostname"].as_str());
                wish.name = name.filter(|name| !name.is_empty()).map(str::to_owned);
                wish.nameless = wish.name.is_none();
                self.state().name.clone_from(&wish.name);
                Ok(reply)
            }
            Some("set_visibility") => {
                let mut wish = self.wish();
                let reply = ask()?;
                if let Some(public) = request["public"].as_bool() {
                    wish.visibility = if public { Visibility::Public } else { Visibility::Private };
                    self.state().public = public;
                }
                Ok(reply)
            }
            Some("deregister") => {
                let mut wish = self.wish();
                let reply = ask()?;
                wish.away = true;
                self.note_error(
                    "it was left on request; set a name or visibility to come back".into(),
                    false,
                );
                Ok(reply)
            }
            _ => ask(),
        }
    }

    pub(crate) fn open(&self) -> Result<Box<dyn Directory>, HubError> {
        (self.open)()
    }

    /// The connection over which we are registered, if there is one; the keeper's. Others wait or open their own.
    pub(crate) fn registered(&self) -> MutexGuard<'_, Option<Box<dyn Directory>>> {
        self.registered.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Forgets connections that were made from another network: they would only be waited for.
    pub(crate) fn forget_connections(&self) {
        self.idle().clear();
        self.stale.store(true, Ordering::Release);
    }

    /// Whether the connection of the registration was made from another network; asked once.
    pub(crate) fn take_stale(&self) -> bool {
        self.stale.swap(false, Ordering::AcqRel)
    }

    /// Asks over the connection that registered us, unless that is in use or from another network. `None`: not asked, or
    /// without an answer.
    fn ask_registered<T>(
        &self,
        question: &mut impl FnMut(&mut dyn Directory) -> Result<T, HubError>,
    ) -> Option<Result<T, HubError>> {
        if self.stale.load(Ordering::Acquire) {
            return None;
        }
        let mut directory = self.registered.try_lock().ok()?;
        hastily(directory.as_mut()?.as_mut(), question)
    }

    /// Asks over the connection that registered us or a pooled one; a connection that has gone stale is replaced once.
    pub(crate) fn ask<T>(
        &self,
        mut question: impl FnMut(&mut dyn Directory) -> Result<T, HubError>,
    ) -> Result<T, HubError> {
        if let Some(answer) = self.ask_registered(&mut question) {
            return answer;
        }
        let idle = self.idle().pop();
        if let Some(mut directory) = idle
            && let Some(answer) = hastily(directory.as_mut(), &mut question)
        {
            self.put_back(directory);
            return answer;
        }
        let mut directory = self.open()?;
        let answer = question(directory.as_mut());
        if !matches!(&answer, Err(error) if error.is_unreachable()) {
            self.put_back(directory);
        }
        answer
    }

    fn put_back(&self, directory: Box<dyn Directory>) {
        let mut idle = self.idle();
        if idle.len() < MAX_IDLE {
            idle.push(directory);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Box<dyn Directory>>> {
        self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn note_registered(&self, registered: &Registered, public: bool, lan: Vec<SocketAddr>) {
        if let Some(memory) = &self.memory {
            memory.keep(&self.registry, registered.address);
        }
        let mut state = self.state();
        state.foreign = registered.foreign;
        state.public = public;
        state.registered = true;
        state.last_error = registered.name_error.clone();
        state.last_heartbeat = Some(Instant::now());
        state.name = registered.name.clone();
        state.lan = lan;
    }

    pub(crate) fn note_alive(&self) {
        let mut state = self.state();
        state.registered = true;
        state.last_error = None;
        state.last_heartbeat = Some(Instant::now());
    }

    pub(crate) fn note_error(&self, error: String, still_registered: bool) {
        let mut state = self.state();
        state.registered &= still_registered;
        state.last_error = Some(error);
    }

    pub(crate) fn name(&self) -> Option<String> {
        self.state().name.clone()
    }

    /// Whether the registry is one of the reference's, as far as we know.
    pub(crate) fn is_foreign(&self) -> bool {
        self.state().foreign
    }

    pub(crate) fn lan(&self) -> Vec<SocketAddr> {
        self.state().lan.clone()
    }

    pub(crate) fn status(&self, beacon: Option<SocketAddr>) -> HubStatus {
        let state = self.state();
        HubStatus {
            registry: Some(self.registry.clone()),
            beacon,
            beacons: Vec::new(),
            registered: state.registered,
            foreign: state.foreign,
            public: state.public,
            last_error: state.last_error.clone(),
            last_heartbeat: state.last_heartbeat.map(|at| at.elapsed()),
        }
    }
}

/// Asks over a connection that may be dead without our knowing. `None`: no answer in the time that is given to it.
fn hastily<T>(
    directory: &mut dyn Directory,
    question: &mut impl FnMut(&mut dyn Directory) -> Result<T, HubError>,
) -> Option<Result<T, HubError>> {
    directory.set_patience(HASTY_TIMEOUT);
    let answer = question(directory);
    directory.set_patience(REQUEST_TIMEOUT);
    match answer {
        Err(error) if error.is_unreachable() => None,
        answer => Some(answer),
    }
}

/// Resolves `HOST:PORT`, preferring the family that a socket bound to `local` can reach.
pub(crate) fn resolve_host(name: &str, local: SocketAddr) -> Result<SocketAddr, String> {
    let found: Vec<SocketAddr> = name.to_socket_addrs().map_err(|error| error.to_string())?.collect();
    let usable = |address: &&SocketAddr| address.is_ipv4() || local.is_ipv6();
    let preferred = found.iter().find(|address| address.is_ipv4()).or_else(|| found.iter().find(usable));
    preferred.copied().ok_or_else(|| "no address of the family of the local socket".into())
}

#[cfg(test)]
pub(crate) mod fake {
    //! A registry in memory that can be switched off.

    use super::*;
    use std::collections::HashMap;
    use std::sync::Arc;

    #[derive(Debug, Default)]
    pub(crate) struct World {
        pub(crate) down: bool,
        pub(crate) entries: HashMap<NodeId, Entry>,
        pub(crate) opened: usize,
        pub(crate) asked: usize,
        pub(crate) registrations: usize,
        pub(crate) heartbeats: usize,
    }

    pub(crate) struct Fake(pub(crate) Arc<Mutex<World>>, pub(crate) Address);

    pub(crate) fn hub(world: &Arc<Mutex<World>>, address: Address) -> Hub {
        let world = world.clone();
        Hub::with_opener(
            "fake:1".into(),
            Box::new(move || {
                let fake = Fake(world.clone(), address);
                fake.world()?.opened += 1;
                Ok(Box::new(fake))
            }),
        )
    }

    impl Fake {
        fn world(&self) -> Result<MutexGuard<'_, World>, HubError> {
            let world = self.0.lock().expect("world");
            if world.down {
                return Err(HubError::Unreachable { reason: "down".into() });
            }
            Ok(world)
        }
    }

    impl Directory for Fake {
        fn register(&mut self, request: &Register) -> Result<Registered, HubError> {
            self.world()?.registrations += 1;
            Ok(Registered { address: self.1, name: request.name.clone(), name_error: None, foreign: false })
        }
        fn is_renewed(&self) -> bool {
            false
        }
        fn heartbeat(&mut self, _: NodeId) -> Result<(), HubError> {
            self.world()?.heartbeats += 1;
            Ok(())
        }
        fn lookup(&mut self, node: NodeId) -> Result<Entry, HubError> {
            self.world()?.asked += 1;
            let found = self.world()?.entries.get(&node).cloned();
            found.ok_or_else(|| HubError::NotFound { what: format!("node {node}") })
        }
        fn resolve(&mut self, _: NodeId, _: NodeId) -> Result<Endpoints, HubError> {
            drop(self.world()?);
            Ok(Endpoints::default())
        }
        fn resolve_name(&mut self, name: &str, _: NodeId) -> Result<Address, HubError> {
            drop(self.world()?);
            Err(HubError::NotFound { what: format!("name {name:?}") })
        }
        fn call(&mut self, request: &Value, _: Option<&str>) -> Result<Value, HubError> {
            drop(self.world()?);
            Ok(request.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn connections_are_reused_and_replaced_when_stale() {
        let world = Arc::new(Mutex::new(fake::World::default()));
        let hub = fake::hub(&world, Address::new(0, 99));
        let ask = || hub.ask(|directory| directory.heartbeat(NodeId(99)));
        ask().expect("first");
        ask().expect("second");
        assert_eq!(world.lock().expect("world").opened, 1);
        world.lock().expect("world").down = true;
        assert!(ask().expect_err("down").is_unreachable());
        world.lock().expect("world").down = false;
        ask().expect("back");
        assert_eq!(world.lock().expect("world").opened, 2);
    }

    #[test]
    fn questions_take_the_connection_that_registered_us_unless_it_is_in_use_or_old() {
        let world = Arc::new(Mutex::new(fake::World::default()));
        let hub = fake::hub(&world, Address::new(0, 99));
        *hub.registered() = Some(hub.open().expect("registered"));
        let ask = || hub.ask(|directory| directory.heartbeat(NodeId(99)));
        let opened = || world.lock().expect("world").opened;
        ask().expect("first");
        assert_eq!(opened(), 1, "no new one");
        let held = hub.registered();
        ask().expect("while the keeper uses it");
        assert_eq!(opened(), 2);
        drop(held);
        hub.forget_connections();
        ask().expect("from another network");
        assert_eq!(opened(), 3);
        assert!(hub.take_stale() && !hub.take_stale(), "the keeper replaces it once");
        ask().expect("replaced");
        assert_eq!(opened(), 3);
        world.lock().expect("world").down = true;
        assert!(ask().expect_err("down").is_unreachable());
        assert!(hub.registered().is_some(), "the keeper finds out itself");
    }

    #[test]
    fn host_names_prefer_a_reachable_family() {
        let v4 = "0.0.0.0:0".parse().expect("address");
        assert_eq!(resolve_host("127.0.0.1:9001", v4), Ok("127.0.0.1:9001".parse().expect("address")));
        assert!(resolve_host("[::1]:9001", v4).is_err());
        assert!(resolve_host("no port", v4).is_err());
    }
}
