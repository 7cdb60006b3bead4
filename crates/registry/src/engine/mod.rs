//! The registry's decisions, without IO.
//!
//! # Contract
//! * [`Engine::apply`] decides one request and gives its reply. The caller passes the time (monotonic for presence and
//!   limits, Unix seconds for what peers are told), the TCP source and a source of random bytes.
//! * What must be durable is *staged*: [`Engine::staged`] and [`Engine::staged_rows`] list what to write. The caller writes them all in one
//!   transaction and calls [`Engine::commit`], or, if that failed, [`Engine::rollback`]. **No reply of the batch may be
//!   sent before** (spec/registry.md §8.1).
//! * After a rollback the caller sets [`Engine::set_read_only`] and asks [`Engine::reapply`] for the replies of the
//!   batch's requests from the first write on, since they may show state that no longer exists.
//! * One batch is bounded by the caller; every table here has a bound of its own ([`Config`]).
//!
//! State that survives a restart: address claims (for ever), names, visibility, last endpoint, networks, trust, inboxes.
//! State that does not: presence, challenges, limits, beacons, and nodes that have not signed anything yet.

mod auth;
mod config;
mod keys;
mod limits;
mod members;
mod network;
mod networks;
mod ops;
mod record;
mod refusal;
mod register;
mod rows;
mod secret;
mod shared;
mod table;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod toy;
mod trust;

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs some starting point in time")]
mod tests;

use pilotage_wire::NodeId;
use pilotage_wire::registry::{Beacon, CODE_RETRY, Reply, Request};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

pub use config::{Config, OwnName, RateLimits, SocialLimits, Unsigned};
use limits::{Class, Limiter};
pub use network::{JoinRule, Network, Role};
pub use record::{MAX_LAN_ADDRS, Profile, Proof, Record, RecordError};
pub use refusal::Refusal;
use register::Pending;
use rows::Rows;
pub use rows::{Row, RowError, RowKey};
pub use secret::Secret;
pub use shared::Mark;
use shared::News;
#[cfg(feature = "store")]
pub(crate) use shared::changes;
use table::Table;

/// What the caller knows at the time of a request.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Monotonic time.
    pub now: Instant,
    /// Unix seconds: reported, stored, and compared with the end of a key.
    pub unix: u64,
    /// TCP source address of the request.
    pub source: IpAddr,
    /// Gives 32 unpredictable bytes; `None` if the system has none (the challenge then fails).
    pub random: &'a dyn Fn() -> Option<[u8; 32]>,
}

/// What the registry remembers about one TCP connection: its unused challenge, and a registration that waits for a
/// signature.
#[derive(Debug, Clone, Default)]
pub struct ConnState {
    challenge: Option<([u8; 32], Instant)>,
    pending: Option<Arc<Pending>>,
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

/// The registry's state machine.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    table: Table,
    rows: Rows,
    /// Who has looked up whom lately; at most [`SocialLimits::calls`].
    calls: HashMap<(NodeId, NodeId), Instant>,
    calls_swept: Option<Instant>,
    /// First registration of the oldest node, Unix seconds.
    oldest: Option<u64>,
    limiter: Limiter,
    /// Dynamic beacons with the time of their last announcement.
    beacons: Vec<(Beacon, Instant)>,
    read_only: Option<String>,
    /// What other nodes of a cluster have to be told; `None` if there are none.
    news: Option<News>,
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
        let mut oldest: Option<u64> = None;
        for (id, record) in records {
            oldest = Some(oldest.map_or(record.created, |oldest| oldest.min(record.created)));
            table.load(id, record, now)?;
        }
        let limiter = Limiter::new(&config);
        let rows = Rows::default();
        let calls = HashMap::new();
        let calls_swept = None;
        let beacons = Vec::new();
        let (read_only, news) = (None, None);
        Ok(Self { config, table, rows, calls, calls_swept, oldest, limiter, beacons, read_only, news })
    }

    /// The stored rows; for a new engine, before its first request.
    pub fn load_rows(&mut self, rows: impl IntoIterator<Item = (RowKey, Row)>) {
        rows.into_iter().for_each(|(key, row)| self.rows.load(key, row));
    }

    /// Decides one request.
    pub fn apply(&mut self, ctx: &Context<'_>, conn: &mut ConnState, request: &Request) -> Outcome {
        self.charge(ctx, request).unwrap_or_else(|| self.reapply(ctx, conn, request))
    }

    /// Counts a request towards the limits; the outcome of one that is beyond them.
    pub fn charge(&mut self, ctx: &Context<'_>, request: &Request) -> Option<Outcome> {
        let class = self.class(request);
        let charged = self.limiter.charge(ctx.now, ctx.source, class);
        charged.err().map(|refusal| Outcome::refuse(request, refusal, false))
    }

    /// [`Engine::apply`] without counting towards the limits: for a request that was counted already.
    pub fn reapply(&mut self, ctx: &Context<'_>, conn: &mut ConnState, request: &Request) -> Outcome {
        let staged = self.staged_len();
        let result = match request {
            Request::Challenge => self.challenge(ctx, conn),
            Request::Register(request) => self.register(ctx, conn, request),
            Request::Heartbeat(request) => self.heartbeat(ctx, conn, request),
            Request::Lookup(request) => self.lookup(ctx, request),
            Request::Resolve(r) => self.resolve(ctx, conn, request, r),
            Request::ResolveHostname(request) => self.resolve_hostname(ctx, request),
            Request::SetHostname(r) => self.set_hostname(ctx, conn, request, r),
            Request::SetVisibility(r) => self.set_visibility(ctx, conn, request, r),
            Request::Deregister(_) => self.deregister(ctx, conn, request),
            Request::BeaconRegister(request) => self.beacon_register(ctx, request),
            Request::BeaconList => Ok(self.beacon_list(ctx)),
            Request::SetTags(r) => self.set_tags(ctx, conn, request, r),
            Request::SetTaskExec(r) => self.set_task_exec(ctx, conn, request, r),
            Request::RotateKey(r) => self.rotate_key(ctx, conn, request, r),
            Request::SetKeyExpiry(r) => self.set_key_expiry(ctx, conn, request, r),
            Request::GetKeyInfo(r) => self.key_info(ctx, r.node_id),
            Request::GetPoloScore(r) => self.polo_score(r.node_id),
            Request::UpdatePoloScore(r) => self.update_polo_score(ctx, request, r),
            Request::SetPoloScore(r) => self.set_polo_score(ctx, request, r),
            Request::Punch(r) => self.punch(ctx, conn, request, r),
            Request::ReportTrust(r) => self.report_trust(ctx, conn, request, r),
            Request::RevokeTrust(r) => self.revoke_trust(ctx, conn, request, r),
            Request::CheckTrust(r) => Ok(self.check_trust(ctx, r)),
            Request::RequestHandshake(r) => self.request_handshake(ctx, conn, request, r),
            Request::PollHandshakes(_) => self.poll_handshakes(ctx, conn, request),
            Request::RespondHandshake(r) => self.respond_handshake(ctx, conn, request, r),
            _ => self.apply_to_networks(ctx, conn, request),
        };
        let wrote = self.staged_len() > staged;
        match result {
            Ok(reply) => Outcome { reply, wrote, refused: None },
            Err(refusal) => Outcome::refuse(request, refusal, wrote),
        }
    }

    fn apply_to_networks(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
    ) -> Result<Reply, Refusal> {
        match request {
            Request::ListNetworks => Ok(self.list_networks()),
            Request::ListNodes(r) => self.list_nodes(ctx, r),
            Request::CreateNetwork(r) => self.create_network(ctx, r),
            Request::JoinNetwork(r) => self.join_network(ctx, conn, request, r),
            Request::LeaveNetwork(r) => self.leave_network(ctx, conn, request, r),
            Request::InviteToNetwork(r) => self.invite(ctx, conn, request, r),
            Request::PollInvites(_) => self.poll_invites(ctx, conn, request),
            Request::RespondInvite(r) => self.respond_invite(ctx, conn, request, r),
            Request::KickMember(r) => self.kick(ctx, conn, request, r),
            Request::PromoteMember(r) => self.promote(ctx, conn, request, r),
            Request::DemoteMember(r) => self.demote(ctx, conn, request, r),
            Request::TransferOwnership(r) => self.transfer(ctx, conn, request, r),
            Request::RenameNetwork(r) => self.rename(ctx, conn, request, r),
            Request::DeleteNetwork(r) => self.delete_network(ctx, conn, request, r),
            Request::SetNetworkPolicy(r) => self.set_policy(ctx, conn, request, r),
            Request::GetNetworkPolicy(r) => self.policy(r.network_id),
            Request::GetMemberRole(r) => self.member_role(ctx, r),
            // Every other type has its arm in `reapply`.
            _ => Err(Refusal::BadArgument("this request is not served")),
        }
    }

    fn staged_len(&self) -> usize {
        self.table.staged_len() + self.rows.staged_len()
    }

    /// Records changed since the last [`Engine::commit`] or [`Engine::rollback`], with their newest content. A record
    /// that changed twice may be listed twice.
    pub fn staged(&self) -> impl Iterator<Item = (NodeId, &Record)> {
        self.table.staged()
    }

    /// Rows changed since then, with their newest content; `None`: removed. A row may be listed twice.
    pub fn staged_rows(&self) -> impl Iterator<Item = (RowKey, Option<&Row>)> {
        self.rows.staged()
    }

    /// What is staged is durable.
    pub fn commit(&mut self) {
        self.table.commit();
        self.rows.commit();
    }

    /// The staged records could not be stored: everything since the last commit is undone.
    pub fn rollback(&mut self) {
        self.table.rollback(self.config.max_unconfirmed);
        self.rows.rollback();
    }

    /// `Some(reason)`: requests that need a durable change are refused with this text until `None` is set. Everything
    /// else goes on.
    pub fn set_read_only(&mut self, reason: Option<String>) {
        self.read_only = reason;
    }

    /// The stored form of a node, if it exists: stored or staged.
    #[must_use]
    pub fn record(&self, id: NodeId) -> Option<&Record> {
        self.table.get(id).filter(|node| node.durable).map(|node| &node.record)
    }

    /// The stored form of a row, if it exists.
    #[must_use]
    pub fn row(&self, key: &RowKey) -> Option<&Row> {
        self.rows.get(key)
    }

    /// Number of nodes that have signed nothing yet; at most [`Config::max_unconfirmed`].
    #[must_use]
    pub fn unconfirmed(&self) -> usize {
        self.table.unconfirmed()
    }

    /// Number of look-ups that are remembered; at most [`SocialLimits::calls`].
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls.len()
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
            Request::Heartbeat(_) | Request::PollHandshakes(_) | Request::PollInvites(_) => Class::Heartbeat,
            Request::Resolve(_) | Request::Punch(_) | Request::ListNodes(_) => Class::Resolve,
            Request::Lookup(_)
            | Request::ResolveHostname(_)
            | Request::BeaconList
            | Request::CheckTrust(_)
            | Request::GetKeyInfo(_)
            | Request::GetPoloScore(_)
            | Request::ListNetworks
            | Request::GetNetworkPolicy(_)
            | Request::GetMemberRole(_) => Class::Lookup,
            Request::BeaconRegister(_) => Class::Beacon,
            _ => Class::Update,
        }
    }
}
