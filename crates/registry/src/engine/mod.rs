//! The registry's decisions, without IO.
//!
//! # Contract
//! * [`Engine::apply`] decides one request and gives its reply. The caller passes the time (monotonic for presence and
//!   limits, Unix seconds for what peers are told), the TCP source and a source of random bytes.
//! * What must be durable is *staged*: [`Engine::staged`] lists the records to write. The caller writes them all in one
//!   transaction and calls [`Engine::commit`], or, if that failed, [`Engine::rollback`]. **No reply of the batch may be
//!   sent before** (spec/registry.md §8.1).
//! * After a rollback the caller sets [`Engine::set_read_only`] and asks [`Engine::reapply`] for the replies of the
//!   batch's requests from the first write on, since they may show state that no longer exists.
//! * One batch is bounded by the caller; every table here has a bound of its own ([`Config`]).
//!
//! State that survives a restart: address claims (for ever), names, visibility, last endpoint. State that does not:
//! presence, challenges, limits, beacons.

mod config;
mod limits;
mod ops;
mod record;
mod table;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod toy;

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs some starting point in time")]
mod tests;

use pilotage_wire::NodeId;
use pilotage_wire::registry::{Beacon, CODE_RETRY, Reply, Request};
use std::net::IpAddr;
use std::time::{Duration, Instant};

pub use config::{Config, RateLimits};
use limits::{Class, Limiter};
pub use record::{MAX_LAN_ADDRS, Proof, Record, RecordError};
use table::Table;

/// What the caller knows at the time of a request.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Monotonic time.
    pub now: Instant,
    /// Unix seconds: only reported and stored, never compared for a decision.
    pub unix: u64,
    /// TCP source address of the request.
    pub source: IpAddr,
    /// Gives 32 unpredictable bytes; `None` if the system has none (the challenge then fails).
    pub random: &'a dyn Fn() -> Option<[u8; 32]>,
}

/// What the registry remembers about one TCP connection: its unused challenge.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConnState {
    challenge: Option<([u8; 32], Instant)>,
}

/// Result of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// To be sent once the batch is durable.
    pub reply: Reply,
    /// True if the request staged a record.
    pub wrote: bool,
    /// Why it was refused.
    pub refused: Option<Refusal>,
}

impl Outcome {
    fn refuse(request: &Request, refusal: Refusal, wrote: bool) -> Self {
        // Only `challenge` has a code: the shape of all other errors is the reference's.
        let code = matches!(request, Request::Challenge).then(|| CODE_RETRY.to_owned());
        Self { reply: Reply::Error { error: refusal.to_string(), code }, wrote, refused: Some(refusal) }
    }
}

/// Why a request is refused. The text goes to the peer; where existence is a secret, unknown and forbidden share one
/// value (spec/registry.md §7.3).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Over a rate limit.
    #[error("too many {what} requests from your network address; retry in {} s", retry.as_secs() + 1)]
    RateLimited {
        /// Which limit.
        what: &'static str,
        /// Until one request is allowed again.
        retry: Duration,
    },
    /// No such node, or not one that may be shown.
    #[error("node {0} is unknown or not visible to you")]
    NotVisible(NodeId),
    /// No such name, or not one that may be shown.
    #[error("hostname is unknown or not visible to you")]
    NameNotVisible,
    /// A public node that has been silent too long.
    #[error("node {0} is not on line: no heartbeat for {1} s")]
    Offline(NodeId, u64),
    /// The acting node is not registered.
    #[error("node {0} is not registered here; register first")]
    NotRegistered(NodeId),
    /// Missing or wrong signature of the acting node.
    #[error("signature is missing or does not match the key of node {0}")]
    Signature(NodeId),
    /// The key has proved possession before, so everything less is refused.
    #[error("this key is registered with proof of possession; ask for a challenge and send a proof")]
    ProofNeeded,
    /// A proof without a fresh challenge on this connection.
    #[error("no unused challenge on this connection; ask for one and sign it within {0} s")]
    NoChallenge(u64),
    /// The proof does not verify.
    #[error("proof does not match the public key, the challenge and the arguments")]
    BadProof,
    /// The `signature` of a registration does not verify.
    #[error("registration signature does not match the public key")]
    BadRegisterSignature,
    /// Registration without proof is switched off.
    #[error(
        "this registry registers only with proof of possession; ask for a challenge (or let the operator allow unsigned registration)"
    )]
    UnsignedDisabled,
    /// An unsigned registration would move a node that is on line elsewhere.
    #[error(
        "this key is on line at another network address; without proof it can move only after {0} s of silence"
    )]
    OnlineElsewhere(u64),
    /// Not a usable Ed25519 key.
    #[error("public_key is not a valid Ed25519 key")]
    BadKey,
    /// No usable port.
    #[error("listen_addr must be \"host:port\" with a port from 1 to 65535")]
    BadListenAddr,
    /// Name rule broken.
    #[error("{0}")]
    Hostname(#[from] pilotage_wire::registry::HostnameError),
    /// Name belongs to another key.
    #[error("hostname is taken by another node; choose another one")]
    NameTaken,
    /// The node table is full.
    #[error("registry is full ({0} nodes)")]
    Full(usize),
    /// Writes are suspended.
    #[error("{0}")]
    ReadOnly(String),
    /// Beacon registration is switched off or the table is full.
    #[error("beacon registration is {0}")]
    Beacon(&'static str),
    /// The operating system gave no random bytes.
    #[error("registry has no random numbers at the moment; retry later")]
    NoRandom,
}

/// The registry's state machine.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    table: Table,
    limiter: Limiter,
    /// Dynamic beacons with the time of their last announcement.
    beacons: Vec<(Beacon, Instant)>,
    read_only: Option<String>,
}

impl Engine {
    /// An engine that knows the stored `records`. Nodes with an endpoint count as present from `now` on, so that peers
    /// find them until their next heartbeat is due.
    ///
    /// # Errors
    /// [`RecordError`] if the records contradict each other or the key derivation.
    pub fn new(
        config: Config,
        records: impl IntoIterator<Item = (NodeId, Record)>,
        now: Instant,
    ) -> Result<Self, RecordError> {
        let mut table = Table::default();
        for (id, record) in records {
            table.load(id, record, now)?;
        }
        let limiter = Limiter::new(&config);
        Ok(Self { config, table, limiter, beacons: Vec::new(), read_only: None })
    }

    /// Decides one request.
    pub fn apply(&mut self, ctx: &Context<'_>, conn: &mut ConnState, request: &Request) -> Outcome {
        let class = self.class(request);
        if let Err(refusal) = self.limiter.charge(ctx.now, ctx.source, class) {
            return Outcome::refuse(request, refusal, false);
        }
        self.reapply(ctx, conn, request)
    }

    /// [`Engine::apply`] without counting towards the limits: for a request that was counted already.
    pub fn reapply(&mut self, ctx: &Context<'_>, conn: &mut ConnState, request: &Request) -> Outcome {
        let staged = self.table.staged_len();
        let result = match request {
            Request::Challenge => self.challenge(ctx, conn),
            Request::Register(request) => self.register(ctx, conn, request),
            Request::Heartbeat(request) => self.heartbeat(ctx, request),
            Request::Lookup(request) => self.lookup(ctx, request),
            Request::Resolve(request) => self.resolve(ctx, request),
            Request::ResolveHostname(request) => self.resolve_hostname(request),
            Request::SetHostname(request) => self.set_hostname(ctx, conn, request),
            Request::SetVisibility(request) => self.set_visibility(ctx, conn, request),
            Request::Deregister(request) => self.deregister(ctx, conn, request),
            Request::BeaconRegister(request) => self.beacon_register(ctx, request),
            Request::BeaconList => Ok(self.beacon_list(ctx)),
        };
        let wrote = self.table.staged_len() > staged;
        match result {
            Ok(reply) => Outcome { reply, wrote, refused: None },
            Err(refusal) => Outcome::refuse(request, refusal, wrote),
        }
    }

    /// Records changed since the last [`Engine::commit`] or [`Engine::rollback`], with their newest content. A record
    /// that changed twice may be listed twice.
    pub fn staged(&self) -> impl Iterator<Item = (NodeId, &Record)> {
        self.table.staged()
    }

    /// The staged records are durable.
    pub fn commit(&mut self) {
        self.table.commit();
    }

    /// The staged records could not be stored: everything since the last commit is undone.
    pub fn rollback(&mut self) {
        self.table.rollback();
    }

    /// `Some(reason)`: requests that need a durable change are refused with this text until `None` is set. Everything
    /// else goes on.
    pub fn set_read_only(&mut self, reason: Option<String>) {
        self.read_only = reason;
    }

    /// The stored form of a node, if it exists.
    #[must_use]
    pub fn record(&self, id: NodeId) -> Option<&Record> {
        self.table.get(id).map(|node| &node.record)
    }

    /// Number of claimed addresses.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.table.len()
    }

    /// Number of claimed names.
    #[must_use]
    pub fn names(&self) -> usize {
        self.table.names()
    }

    /// Number of sources that the rate limiter remembers; at most [`Config::max_sources`].
    #[must_use]
    pub fn tracked_sources(&self) -> usize {
        self.limiter.len()
    }

    /// Which limit a request counts towards. Known keys are exempt from the registration limit (spec/registry.md §9.1).
    fn class(&self, request: &Request) -> Class {
        match request {
            Request::Challenge => Class::Challenge,
            Request::Register(r) if self.table.by_key(&r.public_key.0).is_none() => Class::Register,
            Request::Register(_)
            | Request::SetHostname(_)
            | Request::SetVisibility(_)
            | Request::Deregister(_) => Class::Update,
            Request::Heartbeat(_) => Class::Heartbeat,
            Request::Resolve(_) => Class::Resolve,
            Request::Lookup(_) | Request::ResolveHostname(_) | Request::BeaconList => Class::Lookup,
            Request::BeaconRegister(_) => Class::Beacon,
        }
    }
}
