//! A node's registry client and keeper, sans-IO.
//!
//! Follows the blocking client and the keeper of the node: one request at a time, 5 s for a call with its connection and
//! challenge, one silent retry when a connection that was idle turns out to be dead, a heartbeat each 30 s, a new
//! registration when the registry has forgotten us, came back or our address changed, growing pauses otherwise.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_proto::crypto::Identity;
use pilotage_wire::registry::{self as wire, Base64, LENGTH_PREFIX, Reply, Request, next_frame};
use pilotage_wire::{Address, NodeId};

/// Time between heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Time between heartbeats while the registry refuses our questions.
const DOUBTED_HEARTBEAT: Duration = Duration::from_secs(2);
/// For one call, with its connection and challenge.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest pause between tries.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Failures after which the registry counts as lost.
const MAX_FAILURES: u32 = 3;
/// Shortest time between registrations for a changed address.
const MIN_REREGISTER: Duration = Duration::from_secs(5);
/// Questions that wait; more are refused.
const MAX_ASKS: usize = 64;

/// What a node wants to be known as.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Seed of its identity key. Agents with the same seed are clones.
    pub identity: [u8; 32],
    /// Name to claim.
    pub hostname: Option<String>,
    /// Whether others may resolve it.
    pub public: bool,
    /// Its UDP socket; the registry believes the port only.
    pub listen: SocketAddr,
    /// Its addresses on the local network.
    pub lan: Vec<SocketAddr>,
}

/// A question or order for the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Where is this node?
    Resolve(NodeId),
    /// Who is it?
    Lookup(NodeId),
    /// Which node has this name?
    Name(String),
    /// Take this name, or with an empty one give it up.
    SetName(String),
    /// Be public or private.
    SetPublic(bool),
    /// Leave. The agent comes back with its next heartbeat.
    Deregister,
}

/// What an agent wants its network to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentOutput {
    /// Open a connection and call [`RegistryAgent::connected`] or [`RegistryAgent::connection_lost`] with this number.
    Connect(u64),
    /// Send these bytes on it.
    Send(u64, Vec<u8>),
    /// End it.
    Disconnect(u64),
}

/// What an agent learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentEvent {
    /// We have an address, and perhaps a name.
    Registered {
        /// Our address.
        address: Address,
        /// Our name.
        name: Option<String>,
        /// Why we did not get the wanted one.
        name_error: Option<String>,
    },
    /// The registry does not answer or has forgotten us.
    HubLost,
    /// An answer.
    Answer(Ask, Reply),
    /// No answer, or no.
    Failed(Ask, String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Job {
    Register,
    Heartbeat,
    Ask(Ask),
}

/// A call in progress.
#[derive(Debug)]
struct Call {
    job: Job,
    deadline: Instant,
    /// A dead idle connection has been replaced already, or there was none.
    fresh: bool,
    /// The request that is out is the challenge.
    challenge: bool,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Link {
    Closed,
    Opening,
    Open,
}

/// Why a call ended badly.
enum Trouble {
    Unreachable(String),
    Refused(String),
}

/// One node's dealings with the registry.
///
/// After each call drain [`poll_output`](Self::poll_output) and [`poll_event`](Self::poll_event), and call
/// [`handle_timeout`](Self::handle_timeout) when [`poll_timeout`](Self::poll_timeout) is due.
#[derive(Debug)]
pub struct RegistryAgent {
    config: AgentConfig,
    identity: Identity,
    node: Option<NodeId>,
    link: Link,
    number: u64,
    input: Vec<u8>,
    /// The registry has once given us a challenge: never less again.
    proves: bool,
    /// This connection's registry knows no challenges.
    plain: bool,
    call: Option<Call>,
    asks: VecDeque<Ask>,
    due: Instant,
    failures: u32,
    registered: bool,
    /// No registration or heartbeat has been answered on this connection yet.
    reconnected: bool,
    /// Our address has changed and nothing was done about it yet.
    moved: bool,
    last_register: Instant,
    last_beat: Instant,
    output: VecDeque<AgentOutput>,
    events: VecDeque<AgentEvent>,
}

impl RegistryAgent {
    /// An agent that registers at once.
    #[must_use]
    pub fn new(config: AgentConfig, now: Instant) -> Self {
        Self {
            identity: Identity::from_seed(config.identity),
            config,
            node: None,
            link: Link::Closed,
            number: 0,
            input: Vec::new(),
            proves: false,
            plain: false,
            call: None,
            asks: VecDeque::new(),
            due: now,
            failures: 0,
            registered: false,
            reconnected: false,
            moved: false,
            last_register: now,
            last_beat: now,
            output: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Our Ed25519 public key.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        self.identity.public_key()
    }

    /// Our node id, once the registry has told it.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        self.node
    }

    /// Whether we believe that the registry knows us.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.registered
    }

    /// The name that we want.
    #[must_use]
    pub fn hostname(&self) -> Option<&str> {
        self.config.hostname.as_deref()
    }

    /// Asks when it is its turn; false if too many wait.
    pub fn ask(&mut self, now: Instant, ask: Ask) -> bool {
        if self.asks.len() >= MAX_ASKS {
            return false;
        }
        self.asks.push_back(ask);
        self.proceed(now);
        true
    }

    /// Our UDP socket is seen elsewhere now.
    pub fn set_listen(&mut self, now: Instant, listen: SocketAddr) {
        if std::mem::replace(&mut self.config.listen, listen) != listen {
            self.moved = true;
            self.proceed(now);
        }
    }

    /// The connection is open.
    pub fn connected(&mut self, now: Instant, number: u64) {
        if number == self.number && self.link == Link::Opening {
            self.link = Link::Open;
            self.send(now);
        }
    }

    /// The connection could not be opened, or has ended.
    pub fn connection_lost(&mut self, now: Instant, number: u64) {
        if number != self.number || self.link == Link::Closed {
            return;
        }
        let was_open = self.link == Link::Open;
        self.link = Link::Closed;
        match &mut self.call {
            // It may have been dead for long: one more try is free.
            Some(call) if was_open && !call.fresh => {
                call.fresh = true;
                self.connect();
            }
            Some(_) => self.fail(now, Trouble::Unreachable("connection lost".into())),
            None => {}
        }
    }

    /// Bytes of the registry, in order.
    pub fn handle(&mut self, now: Instant, number: u64, bytes: &[u8]) {
        if number != self.number || self.link != Link::Open {
            return;
        }
        self.input.extend_from_slice(bytes);
        while self.link == Link::Open {
            let reply = match next_frame(&self.input) {
                Ok(None) => return,
                Ok(Some(json)) => {
                    let (len, reply) = (LENGTH_PREFIX + json.len(), Reply::parse(json).ok());
                    self.input.drain(..len);
                    reply
                }
                Err(_) => None,
            };
            match (reply, self.call.is_some()) {
                (Some(reply), true) => self.take(now, reply),
                // The other end does not keep to the protocol.
                (None, true) => self.fail(now, Trouble::Refused("makes no sense".into())),
                (_, false) => self.disconnect(),
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        self.call.as_ref().map_or(self.due, |call| call.deadline)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.call.as_ref().is_some_and(|call| call.deadline <= now) {
            self.fail(now, Trouble::Unreachable("no reply in time".into()));
        }
        self.proceed(now);
    }

    /// The next thing to do with the connection.
    pub fn poll_output(&mut self) -> Option<AgentOutput> {
        self.output.pop_front()
    }

    /// The next thing learned.
    pub fn poll_event(&mut self) -> Option<AgentEvent> {
        self.events.pop_front()
    }

    /// Begins the next call if none is in progress: questions first, as other threads ask them.
    fn proceed(&mut self, now: Instant) {
        while self.call.is_none() {
            // Only now: a registration that was under way told the old address.
            if std::mem::take(&mut self.moved) && self.registered {
                self.registered = false;
                self.due = self.last_register + MIN_REREGISTER;
            }
            // What keeps us registered comes first: questions may never end.
            let next = if self.due > now { self.asks.pop_front() } else { None };
            let job = match next {
                Some(ask) if self.node.is_none() => {
                    self.events.push_back(AgentEvent::Failed(ask, "not registered yet".into()));
                    continue;
                }
                Some(ask) => Job::Ask(ask),
                None if self.due > now => return,
                None if self.registered => Job::Heartbeat,
                None => Job::Register,
            };
            if !matches!(job, Job::Ask(_)) {
                self.last_beat = now;
            }
            let fresh = self.link != Link::Open;
            self.call = Some(Call { job, deadline: now + TIMEOUT, fresh, challenge: false });
            if fresh {
                self.connect();
            } else {
                self.send(now);
            }
        }
    }

    fn connect(&mut self) {
        self.number += 1;
        self.reconnected = true;
        self.link = Link::Opening;
        self.input.clear();
        self.plain = false;
        self.output.push_back(AgentOutput::Connect(self.number));
    }

    fn disconnect(&mut self) {
        if self.link != Link::Closed {
            self.link = Link::Closed;
            self.output.push_back(AgentOutput::Disconnect(self.number));
        }
    }

    /// Sends the first request of the call.
    fn send(&mut self, now: Instant) {
        let Some(call) = &mut self.call else { return };
        let proved = matches!(
            call.job,
            Job::Register | Job::Ask(Ask::SetName(_) | Ask::SetPublic(_) | Ask::Deregister)
        );
        call.challenge = proved && !self.plain;
        let request = if call.challenge { Some(Request::Challenge) } else { self.request(None) };
        self.put(now, request);
    }

    fn put(&mut self, now: Instant, request: Option<Request>) {
        let mut frame = Vec::new();
        match request.map(|request| request.encode(&mut frame)) {
            Some(Ok(())) => self.output.push_back(AgentOutput::Send(self.number, frame)),
            _ => self.fail(now, Trouble::Refused("cannot be asked".into())),
        }
    }

    /// The request of the call, with a proof if there is a challenge. `None`: we have no address yet.
    fn request(&self, nonce: Option<&[u8; 32]>) -> Option<Request> {
        let call = self.call.as_ref()?;
        let ask = match &call.job {
            Job::Register => return Some(Request::Register(self.registration(nonce))),
            Job::Heartbeat => {
                let node_id = self.node?;
                let signature = self.signed(wire::heartbeat_string(node_id).as_bytes());
                return Some(Request::Heartbeat(wire::Heartbeat { node_id, listen_addr: None, signature }));
            }
            Job::Ask(ask) => ask,
        };
        let node_id = self.node?;
        let both = |string: String, proof: &dyn Fn(&[u8; 32]) -> Vec<u8>| match nonce {
            Some(nonce) => (None, self.signed(&proof(nonce))),
            None => (self.signed(string.as_bytes()), None),
        };
        Some(match ask {
            Ask::Resolve(target) => {
                let signature = self.signed(wire::resolve_string(node_id, *target).as_bytes());
                Request::Resolve(wire::Resolve { node_id: *target, requester_id: node_id, signature })
            }
            Ask::Lookup(target) => Request::Lookup(wire::Lookup { node_id: *target }),
            Ask::Name(name) => {
                let (hostname, requester_id) = (name.clone(), Some(node_id));
                Request::ResolveHostname(wire::ResolveHostname { hostname, requester_id })
            }
            Ask::SetName(name) => {
                let proof = |nonce: &[u8; 32]| wire::set_hostname_proof(nonce, node_id, name);
                let (signature, proof) = both(wire::set_hostname_string(node_id), &proof);
                Request::SetHostname(wire::SetHostname { node_id, hostname: name.clone(), signature, proof })
            }
            Ask::SetPublic(public) => {
                let proof = |nonce: &[u8; 32]| wire::set_visibility_proof(nonce, node_id, *public);
                let (signature, proof) = both(wire::set_visibility_string(node_id), &proof);
                Request::SetVisibility(wire::SetVisibility { node_id, public: *public, signature, proof })
            }
            Ask::Deregister => {
                let proof = |nonce: &[u8; 32]| wire::deregister_proof(nonce, node_id);
                let (signature, proof) = both(wire::deregister_string(node_id), &proof);
                Request::Deregister(wire::Deregister { node_id, signature, proof })
            }
        })
    }

    fn registration(&self, nonce: Option<&[u8; 32]>) -> wire::Register {
        let mut request = wire::Register {
            listen_addr: self.config.listen.to_string(),
            public_key: Base64(self.identity.public_key()),
            hostname: self.config.hostname.clone(),
            lan_addrs: self.config.lan.iter().map(ToString::to_string).collect(),
            public: Some(self.config.public),
            signature: None,
            proof: None,
        };
        match nonce {
            Some(nonce) => request.proof = self.signed(&wire::register_proof(nonce, &request)),
            None => {
                let text = wire::register_string(&request.listen_addr, &request.public_key);
                request.signature = self.signed(text.as_bytes());
            }
        }
        request
    }

    fn signed(&self, message: &[u8]) -> Option<wire::Signature> {
        Some(Base64(self.identity.sign(message)))
    }

    /// A reply to the request that is out.
    fn take(&mut self, now: Instant, reply: Reply) {
        let Some(call) = &mut self.call else { return };
        if std::mem::take(&mut call.challenge) {
            match reply {
                Reply::Challenge { nonce } => {
                    self.proves = true;
                    let request = self.request(Some(&nonce.0));
                    self.put(now, request);
                }
                // A registry of the reference, perhaps: any error without a code, unless we know better.
                Reply::Error { code: None, .. } if !self.proves => {
                    self.plain = true;
                    let request = self.request(None);
                    self.put(now, request);
                }
                Reply::Error { error, .. } => self.fail(now, Trouble::Refused(error)),
                _ => self.fail(now, Trouble::Refused("another question is answered".into())),
            }
            return;
        }
        match (&call.job, reply) {
            (_, Reply::Error { error, .. }) => self.fail(now, Trouble::Refused(error)),
            (Job::Register, Reply::Registered(done)) => {
                self.node = Some(done.node_id);
                let address = Address::new(0, done.node_id.0);
                let (name, name_error) = (done.hostname, done.hostname_error);
                self.events.push_back(AgentEvent::Registered { address, name, name_error });
                self.call = None;
                self.last_register = now;
                self.succeeded(now);
            }
            (Job::Heartbeat, Reply::Heartbeat { .. }) => {
                self.call = None;
                self.succeeded(now);
            }
            (Job::Ask(ask), reply) if answers(ask, &reply) => {
                self.events.push_back(AgentEvent::Answer(ask.clone(), reply));
                self.call = None;
                self.proceed(now);
            }
            _ => self.fail(now, Trouble::Refused("another question is answered".into())),
        }
    }

    fn succeeded(&mut self, now: Instant) {
        // A registry that was away may have lost what it knew of us.
        let away = std::mem::take(&mut self.failures) > 0 || self.reconnected;
        let came_back = away && self.registered;
        self.reconnected = false;
        self.registered = !came_back;
        self.due = if came_back { now } else { now + HEARTBEAT };
        self.proceed(now);
    }

    fn fail(&mut self, now: Instant, trouble: Trouble) {
        let Some(call) = self.call.take() else { return };
        let (unreachable, reason) = match trouble {
            Trouble::Unreachable(reason) => (true, reason),
            Trouble::Refused(reason) => (false, reason),
        };
        match call.job {
            Job::Ask(ask) => {
                // A late reply must not be taken for the answer to the next question.
                if unreachable {
                    self.disconnect();
                } else if self.registered && matches!(ask, Ask::Resolve(_)) {
                    // Answered to everybody whom it knows: it may have forgotten us, which a heartbeat tells.
                    self.due = self.due.min(self.last_beat + DOUBTED_HEARTBEAT);
                }
                self.events.push_back(AgentEvent::Failed(ask, reason));
            }
            Job::Register | Job::Heartbeat => {
                self.disconnect();
                self.failures += 1;
                let forgotten = self.registered && !unreachable;
                self.registered &= unreachable && self.failures < MAX_FAILURES;
                if self.failures == MAX_FAILURES || forgotten {
                    self.events.push_back(AgentEvent::HubLost);
                }
                let pause = Duration::from_secs(1 << self.failures.saturating_sub(1).min(5)).min(MAX_PAUSE);
                self.due = now + if forgotten { Duration::ZERO } else { pause };
            }
        }
        self.proceed(now);
    }
}

fn answers(ask: &Ask, reply: &Reply) -> bool {
    match (ask, reply) {
        (Ask::Resolve(id), Reply::Resolved(found)) => {
            found.node_id == *id && found.real_addr.parse::<SocketAddr>().is_ok()
        }
        (Ask::Lookup(id), Reply::Lookup(found)) => found.node_id == *id,
        (Ask::Name(_), Reply::Hostname(_))
        | (Ask::SetName(_), Reply::SetHostname { .. })
        | (Ask::SetPublic(_), Reply::SetVisibility { .. })
        | (Ask::Deregister, Reply::Deregistered) => true,
        _ => false,
    }
}
