//! Blocking TCP client of a registry, ours or the reference's.
//!
//! Every call sends one request (two with a proof) and waits at most the timeout for the reply. A connection that broke
//! while idle is replaced without a word; if the registry cannot be reached, calls fail at once until a doubling pause
//! (0.5 s to 8 s) is over, so that a caller in a loop does no harm.
//!
//! Which dialect is spoken is found out by the first operation that needs a signature over more than its name: a
//! registry that does not know `challenge` gets the reference's plain messages (spec/registry.md §4.4).

mod error;
mod json;
mod transport;
mod types;

use pilotage_wire::registry::{self as wire, Base64, Reply, Request};
use pilotage_wire::{Address, NodeId};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub use error::ClientError;
use transport::{Failure, Transport};
pub use types::{ClientTls, Found, HostnameReply, Lookup, Registered, Registration, Resolved};

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(8);

/// Signs with the node's identity key (Ed25519).
pub type Sign<'a> = &'a dyn Fn(&[u8]) -> [u8; 64];

/// What the registry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Unknown,
    Pilotage,
    Reference,
}

/// A connection to one registry, re-established as needed. Not shared between threads.
#[derive(Debug)]
pub struct Client {
    addr: String,
    timeout: Duration,
    tls: ClientTls,
    stream: Option<Transport>,
    /// The connection was opened after the last registration.
    renewed: bool,
    dialect: Dialect,
    /// No attempt to connect before this.
    not_before: Option<Instant>,
    pause: Duration,
}

#[allow(clippy::disallowed_methods, reason = "the client is the IO edge")]
fn clock() -> Instant {
    Instant::now()
}

impl Client {
    /// [`Client::connect_with`] without TLS.
    ///
    /// # Errors
    /// [`ClientError::Resolve`] or [`ClientError::Connect`].
    pub fn connect(addr: &str, timeout: Duration) -> Result<Self, ClientError> {
        Self::connect_with(addr, timeout, ClientTls::Plain)
    }

    /// Connects to `addr` ("host:port"). `timeout` bounds this call and each later one; only the system's name
    /// resolver is outside that bound.
    ///
    /// # Errors
    /// [`ClientError::Resolve`], [`ClientError::Connect`] or [`ClientError::Tls`].
    pub fn connect_with(addr: &str, timeout: Duration, tls: ClientTls) -> Result<Self, ClientError> {
        let mut client = Self {
            addr: addr.to_owned(),
            timeout,
            tls,
            stream: None,
            renewed: true,
            dialect: Dialect::Unknown,
            not_before: None,
            pause: FIRST_PAUSE,
        };
        client.open(clock() + timeout)?;
        Ok(client)
    }

    /// The address as given to [`Client::connect`].
    #[must_use]
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// Bounds later calls by another time.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Our side of the connection: the IP that the registry sees, unless there is a NAT.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.stream.as_ref().and_then(Transport::local_addr)
    }

    /// Never falls back to the plain messages: this registry has given a challenge before (spec/registry.md §4.4).
    pub fn require_proof(&mut self) {
        self.dialect = Dialect::Pilotage;
    }

    /// True if no registration was made over the present connection. The registry may then have been restarted with an
    /// older state, or see us at another address, even if it accepts heartbeats: register again.
    #[must_use]
    pub fn is_renewed(&self) -> bool {
        self.renewed
    }

    /// Registers or renews an address and claims the wanted name. With a registry of the reference, visibility is a
    /// second request.
    ///
    /// # Errors
    /// See [`ClientError`]; a refused name is no error but [`Registered::hostname_error`].
    pub fn register(
        &mut self,
        registration: &Registration,
        sign: Sign<'_>,
    ) -> Result<Registered, ClientError> {
        let request = Request::Register(wire::Register {
            listen_addr: registration.listen_addr.clone(),
            public_key: Base64(registration.public_key),
            hostname: registration.hostname.clone(),
            lan_addrs: registration.lan_addrs.clone(),
            public: Some(registration.public),
            signature: None,
            proof: None,
        });
        let nonsense = |error: serde_json::Error| self.protocol("register", error.to_string());
        let mut request = serde_json::to_value(request).map_err(nonsense)?;
        if let Some(owner) = &registration.owner {
            request["owner"] = owner.as_str().into();
        }
        let text = wire::register_string(&registration.listen_addr, &Base64(registration.public_key));
        let reply = self.call_json(request, Some((&text, sign)))?;
        let nonsense = |error: serde_json::Error| self.protocol("register", error.to_string());
        let reply: Reply = serde_json::from_value(reply).map_err(nonsense)?;
        let Reply::Registered(done) = reply else {
            return Err(self.unexpected("register"));
        };
        let proved = self.dialect == Dialect::Pilotage;
        if !proved {
            // It keeps what was said before, so both must be said.
            self.set_visibility(done.node_id, registration.public_abroad, sign)?;
        }
        self.renewed = false;
        // A foreign registry assigns the id as it likes; the address text is its rendering of it.
        Ok(Registered {
            address: Address::new(0, done.node_id.0),
            observed_addr: done.observed_addr,
            hostname: done.hostname,
            hostname_error: done.hostname_error,
            proved,
        })
    }

    /// Says that `node` is alive; gives the registry's clock in Unix seconds.
    ///
    /// # Errors
    /// See [`ClientError`]; `Refused` means that the node has to register again.
    pub fn heartbeat(&mut self, node: NodeId, sign: Sign<'_>) -> Result<u64, ClientError> {
        let signature = Base64(sign(wire::heartbeat_string(node).as_bytes()));
        let request = wire::Heartbeat { node_id: node, listen_addr: None, signature: Some(signature) };
        match self.call(&Request::Heartbeat(request))? {
            Reply::Heartbeat { time, .. } => Ok(time),
            _ => Err(self.unexpected("heartbeat")),
        }
    }

    /// Where `node` is. `sign` signs for `requester`, which must be registered.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn resolve(
        &mut self,
        node: NodeId,
        requester: NodeId,
        sign: Sign<'_>,
    ) -> Result<Resolved, ClientError> {
        let reply = self.call(&signed_resolve(node, requester, sign))?;
        self.resolved(reply)
    }

    fn resolved(&self, reply: Reply) -> Result<Resolved, ClientError> {
        let Reply::Resolved(found) = reply else {
            return Err(self.unexpected("resolve"));
        };
        let real_addr = found
            .real_addr
            .parse()
            .map_err(|_| self.protocol("resolve", format!("real_addr {:?}", found.real_addr)))?;
        Ok(Resolved {
            real_addr,
            lan_addrs: found.lan_addrs.iter().filter_map(|addr| addr.parse().ok()).collect(),
        })
    }

    /// Who `node` is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn lookup(&mut self, node: NodeId) -> Result<Lookup, ClientError> {
        let reply = self.call(&Request::Lookup(wire::Lookup { node_id: node }))?;
        self.described(node, reply)
    }

    /// Who `node` is and where, as [`Client::lookup`] and [`Client::resolve`], in one round trip: the second question
    /// leaves without waiting for the answer to the first.
    ///
    /// # Errors
    /// See [`ClientError`]; a refusal of one question is in its own place.
    pub fn find(&mut self, node: NodeId, requester: NodeId, sign: Sign<'_>) -> Result<Found, ClientError> {
        let who = Request::Lookup(wire::Lookup { node_id: node });
        let place = signed_resolve(node, requester, sign);
        let [info, at] = self.call_both([&who, &place])?;
        let refused = |reply: Reply, request: &'static str| match reply {
            Reply::Error { error, .. } => Err(ClientError::Refused { request, reason: error }),
            reply => Ok(reply),
        };
        Ok(Found {
            info: refused(info, "lookup").and_then(|reply| self.described(node, reply)),
            place: refused(at, "resolve").and_then(|reply| self.resolved(reply)),
        })
    }

    fn described(&self, node: NodeId, reply: Reply) -> Result<Lookup, ClientError> {
        let Reply::Lookup(info) = reply else {
            return Err(self.unexpected("lookup"));
        };
        if info.node_id != node {
            return Err(self.protocol("lookup", format!("describes node {}", info.node_id)));
        }
        Ok(Lookup {
            address: Address::new(0, node.0),
            public_key: info.public_key.map(|key| key.0),
            public: info.public,
            hostname: info.hostname,
            real_addr: info.real_addr.and_then(|addr| addr.parse().ok()),
        })
    }

    /// Which node is called `name`. Private names are told only to their own node.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn resolve_hostname(
        &mut self,
        name: &str,
        requester: Option<NodeId>,
    ) -> Result<HostnameReply, ClientError> {
        let request = wire::ResolveHostname { hostname: name.to_owned(), requester_id: requester };
        match self.call(&Request::ResolveHostname(request))? {
            Reply::Hostname(info) => Ok(HostnameReply {
                node: info.node_id,
                address: Address::new(0, info.node_id.0),
                public: info.public,
            }),
            _ => Err(self.unexpected("resolve_hostname")),
        }
    }

    /// Changes the name of `node`; an empty name gives it up.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn set_hostname(&mut self, node: NodeId, hostname: &str, sign: Sign<'_>) -> Result<(), ClientError> {
        let reply = self.proved("set_hostname", |nonce| {
            let (signature, proof) = match nonce {
                Some(nonce) => (None, Some(sign(&wire::set_hostname_proof(nonce, node, hostname)))),
                None => (Some(sign(wire::set_hostname_string(node).as_bytes())), None),
            };
            Request::SetHostname(wire::SetHostname {
                node_id: node,
                hostname: hostname.to_owned(),
                signature: signature.map(Base64),
                proof: proof.map(Base64),
            })
        })?;
        match reply {
            Reply::SetHostname { .. } => Ok(()),
            _ => Err(self.unexpected("set_hostname")),
        }
    }

    /// Makes `node` public or private.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn set_visibility(&mut self, node: NodeId, public: bool, sign: Sign<'_>) -> Result<(), ClientError> {
        let reply = self.proved("set_visibility", |nonce| {
            let (signature, proof) = match nonce {
                Some(nonce) => (None, Some(sign(&wire::set_visibility_proof(nonce, node, public)))),
                None => (Some(sign(wire::set_visibility_string(node).as_bytes())), None),
            };
            Request::SetVisibility(wire::SetVisibility {
                node_id: node,
                public,
                signature: signature.map(Base64),
                proof: proof.map(Base64),
            })
        })?;
        match reply {
            Reply::SetVisibility { .. } => Ok(()),
            _ => Err(self.unexpected("set_visibility")),
        }
    }

    /// Leaves: name and endpoint go, the address stays with the key (with our registry).
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn deregister(&mut self, node: NodeId, sign: Sign<'_>) -> Result<(), ClientError> {
        let reply = self.proved("deregister", |nonce| {
            let (signature, proof) = match nonce {
                Some(nonce) => (None, Some(sign(&wire::deregister_proof(nonce, node)))),
                None => (Some(sign(wire::deregister_string(node).as_bytes())), None),
            };
            Request::Deregister(wire::Deregister {
                node_id: node,
                signature: signature.map(Base64),
                proof: proof.map(Base64),
            })
        })?;
        match reply {
            Reply::Deregistered => Ok(()),
            _ => Err(self.unexpected("deregister")),
        }
    }

    /// Sends a request that needs a challenge first, or its reference form.
    ///
    /// The challenge is bound to the connection, so if that breaks in between, both are repeated once.
    fn proved(
        &mut self,
        request: &'static str,
        mut build: impl FnMut(Option<&[u8; 32]>) -> Request,
    ) -> Result<Reply, ClientError> {
        let deadline = clock() + self.timeout;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let fresh = self.open(deadline)?;
            match self.proved_once(request, &mut build, deadline) {
                Err(ClientError::Lost { .. }) if attempt == 1 && !fresh => {}
                other => return other,
            }
        }
    }

    fn proved_once(
        &mut self,
        request: &'static str,
        build: &mut impl FnMut(Option<&[u8; 32]>) -> Request,
        deadline: Instant,
    ) -> Result<Reply, ClientError> {
        let nonce = self.nonce(request, deadline)?;
        match self.exchange(&build(nonce.as_ref()), deadline)? {
            Reply::Error { error, .. } => Err(ClientError::Refused { request, reason: error }),
            reply => Ok(reply),
        }
    }

    /// One request that stands alone; repeated once if an idle connection turns out to be dead.
    fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let deadline = clock() + self.timeout;
        let mut fresh = self.open(deadline)?;
        loop {
            match self.exchange(request, deadline) {
                Err(ClientError::Lost { .. }) if !fresh => {
                    fresh = {
                        self.open(deadline)?;
                        true
                    }
                }
                Ok(Reply::Error { error, .. }) => {
                    return Err(ClientError::Refused { request: request.kind(), reason: error });
                }
                other => return other,
            }
        }
    }

    /// Two requests that stand alone, in one flight; both repeated once if an idle connection turns out to be dead.
    fn call_both(&mut self, requests: [&Request; 2]) -> Result<[Reply; 2], ClientError> {
        let deadline = clock() + self.timeout;
        let mut fresh = self.open(deadline)?;
        loop {
            match self.exchange_both(requests, deadline) {
                Err(ClientError::Lost { .. }) if !fresh => {
                    self.open(deadline)?;
                    fresh = true;
                }
                other => return other,
            }
        }
    }

    fn exchange_both(
        &mut self,
        requests: [&Request; 2],
        deadline: Instant,
    ) -> Result<[Reply; 2], ClientError> {
        let mut frames = Vec::new();
        for request in requests {
            let too_long = |source| ClientError::TooLong { request: request.kind(), source };
            let mut frame = Vec::new();
            request.encode(&mut frame).map_err(too_long)?;
            frames.extend_from_slice(&frame);
        }
        let [first, second] = requests.map(Request::kind);
        let sent = match &mut self.stream {
            Some(stream) => stream.send(&frames, deadline),
            None => Err(Failure::Io(io::ErrorKind::NotConnected.into())),
        };
        sent.map_err(|failure| self.failed(first, failure))?;
        Ok([self.next_reply(first, deadline)?, self.next_reply(second, deadline)?])
    }

    fn next_reply(&mut self, kind: &'static str, deadline: Instant) -> Result<Reply, ClientError> {
        let json = match &mut self.stream {
            Some(stream) => stream.receive(deadline),
            None => Err(Failure::Io(io::ErrorKind::NotConnected.into())),
        };
        let json = json.map_err(|failure| self.failed(kind, failure))?;
        Reply::parse(&json).map_err(|error| self.failed(kind, Failure::Message(error)))
    }

    /// Makes sure that there is a connection. True if it is a new one.
    fn open(&mut self, deadline: Instant) -> Result<bool, ClientError> {
        if self.stream.is_some() {
            return Ok(false);
        }
        let now = clock();
        if let Some(retry) = self.not_before.and_then(|at| at.checked_duration_since(now))
            && !retry.is_zero()
        {
            return Err(ClientError::Unreachable { addr: self.addr.clone(), retry });
        }
        match Transport::open(&self.addr, self.tls, deadline) {
            Ok(stream) => {
                self.stream = Some(stream);
                self.renewed = true;
                // Another program may answer now; one that knew challenges is still expected to.
                if self.dialect == Dialect::Reference {
                    self.dialect = Dialect::Unknown;
                }
                self.not_before = None;
                self.pause = FIRST_PAUSE;
                Ok(true)
            }
            Err(error) => {
                self.not_before = Some(clock() + self.pause);
                self.pause = (self.pause * 2).min(MAX_PAUSE);
                Err(error)
            }
        }
    }

    /// Writes a request and reads its reply on the present connection, which is dropped on any failure: a late reply
    /// must not be taken for the answer to the next request.
    fn exchange(&mut self, request: &Request, deadline: Instant) -> Result<Reply, ClientError> {
        let kind = request.kind();
        let mut frame = Vec::new();
        request.encode(&mut frame).map_err(|source| ClientError::TooLong { request: kind, source })?;
        let json = self.transact(kind, &frame, deadline)?;
        Reply::parse(&json).map_err(|error| self.failed(kind, Failure::Message(error)))
    }

    /// As [`Client::exchange`], below the messages.
    fn transact(
        &mut self,
        kind: &'static str,
        frame: &[u8],
        deadline: Instant,
    ) -> Result<Vec<u8>, ClientError> {
        let result = match &mut self.stream {
            Some(stream) => stream.transact(frame, deadline),
            None => Err(Failure::Io(io::ErrorKind::NotConnected.into())),
        };
        result.map_err(|failure| self.failed(kind, failure))
    }

    fn failed(&mut self, request: &'static str, failure: Failure) -> ClientError {
        self.stream = None;
        let addr = self.addr.clone();
        match failure {
            Failure::Timeout => ClientError::Timeout { addr, request, timeout: self.timeout },
            Failure::Io(source) => ClientError::Lost { addr, request, source },
            Failure::Frame(error) => self.protocol(request, error.to_string()),
            Failure::Message(error) => self.protocol(request, error.to_string()),
        }
    }

    fn refusal_or_nonsense(&self, request: &'static str, reply: Reply) -> ClientError {
        match reply {
            Reply::Error { error, .. } => ClientError::Refused { request, reason: error },
            _ => self.unexpected(request),
        }
    }

    fn unexpected(&self, request: &'static str) -> ClientError {
        self.protocol(request, "it answers another question".to_owned())
    }

    fn protocol(&self, request: &'static str, detail: String) -> ClientError {
        ClientError::Protocol { addr: self.addr.clone(), request, detail }
    }
}

fn signed_resolve(node: NodeId, requester: NodeId, sign: Sign<'_>) -> Request {
    let signature = Base64(sign(wire::resolve_string(requester, node).as_bytes()));
    Request::Resolve(wire::Resolve { node_id: node, requester_id: requester, signature: Some(signature) })
}
