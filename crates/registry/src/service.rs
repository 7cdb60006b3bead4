//! What a registry server does between reading and writing: requests in, durable changes, replies out.
//!
//! # Contract
//! * One turn: [`Service::decide`] for each session with input (until [`Service::is_full`]), then [`Service::commit`],
//!   then [`Service::drain`]. Replies come out of `drain` only, so none is sent before its batch is durable
//!   (spec/registry.md §8.1).
//! * A batch that could not be stored is undone, its replies say so, and writes are refused until
//!   [`Service::handle_timeout`] has brought the store back (spec/registry.md §8.3).
//! * Bounds: [`MAX_INPUT`] bytes of unread input per session, [`MAX_REQUESTS_PER_TURN`] requests per session and turn,
//!   [`MAX_BATCH`] and one session's share per batch.
//!
//! Over a ledger (`shared`) the state is a cluster's: a request that changes something, or that asks for what this node may not
//! have heard of yet, is answered in a later turn, by [`Service::finished`]; its session takes no other one until then.
//!
//! Sockets and clocks are the caller's: [`crate::server`] brings real ones, a simulator its own.

mod shared;
#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs some starting point in time")]
mod tests;

use crate::engine::{Config, ConnState, Context, Engine, Outcome};
use crate::keys::Keys;
use crate::store::{Loaded, Still, Store, StoreError};
use pilotage_fault as fault;
use pilotage_wire::registry::{LENGTH_PREFIX, MAX_MESSAGE, Reply, Request, next_frame};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use shared::Shared;
pub use shared::{Finished, MAX_TRIES};

/// Input kept of a session: one message of the largest size. Bytes.
pub const MAX_INPUT: usize = LENGTH_PREFIX + MAX_MESSAGE;
/// Requests of one session decided per turn, so that none starves the others.
pub const MAX_REQUESTS_PER_TURN: usize = 32;
/// Requests after which a turn takes no further session: bounds the batch, its undo journal and the time of a turn.
pub const MAX_BATCH: usize = 1_024;
/// Buffers larger than this are given back when they run empty. Bytes.
pub(crate) const KEEP_BUFFER: usize = 4 * 1024;
/// Pause before the first attempt to recover the store; it doubles with each failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest pause between two attempts to recover the store.
const MAX_RETRY: Duration = Duration::from_secs(10);

/// What a turn knows of the world.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// Monotonic time.
    pub now: Instant,
    /// Unix seconds.
    pub unix: u64,
    /// Gives 32 unpredictable bytes; `None` if the system has none.
    pub random: &'a dyn Fn() -> Option<[u8; 32]>,
}

/// The registry's side of one connection, without the socket.
#[derive(Debug)]
pub struct Session {
    source: IpAddr,
    state: ConnState,
    input: Vec<u8>,
    /// Bytes of `input` already decided.
    used: usize,
    closing: bool,
    last_request: Instant,
    /// The request that is answered in a later turn.
    ticket: Option<u64>,
}

impl Session {
    /// A connection from `source` that opens now.
    #[must_use]
    pub fn new(source: IpAddr, now: Instant) -> Self {
        let source = source.to_canonical();
        let state = ConnState::default();
        Self { source, state, input: Vec::new(), used: 0, closing: false, last_request: now, ticket: None }
    }

    /// Where the peer is.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// When the last complete request was decided; at first, when the connection was opened.
    #[must_use]
    pub fn last_request(&self) -> Instant {
        self.last_request
    }

    /// Takes received bytes up to [`MAX_INPUT`] and says how many; the caller keeps the others.
    pub fn feed(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.input.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// Bytes that [`Session::feed`] takes now.
    #[must_use]
    pub fn room(&self) -> usize {
        MAX_INPUT.saturating_sub(self.input.len())
    }

    pub(crate) fn waiting(&self) -> &[u8] {
        &self.input[self.used..]
    }

    /// Forgets what has been decided. A large buffer is given back when it runs empty: an idle connection costs little.
    fn compact(&mut self) {
        self.input.drain(..self.used);
        self.used = 0;
        if self.input.is_empty() && self.input.capacity() > KEEP_BUFFER {
            self.input = Vec::new();
        }
    }

    /// Whether [`Service::decide`] has something to do here.
    #[must_use]
    pub fn has_request(&self) -> bool {
        !self.closing && !self.is_waiting() && !matches!(next_frame(self.waiting()), Ok(None))
    }

    /// A request of this session is answered in a later turn.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.ticket.is_some()
    }

    /// Takes over what became of the request that was waited for; false if it was another session's.
    pub fn resume(&mut self, finished: &Finished) -> bool {
        if self.ticket != Some(finished.ticket) {
            return false;
        }
        self.ticket = None;
        self.state = finished.state.clone();
        true
    }

    /// The input cannot be followed any more: close after the last reply.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing
    }
}

/// One request of a batch with its reply, which waits for the commit.
#[derive(Debug)]
struct Item {
    conn: usize,
    source: IpAddr,
    /// `None` if the message was not understood.
    request: Option<Request>,
    /// The session's state that the request met.
    state_before: ConnState,
    reply: Reply,
    wrote: bool,
}

/// What became of a batch.
#[derive(Debug)]
pub enum Committed {
    /// Nothing in it needed to be stored.
    Nothing,
    /// It is durable.
    Stored,
    /// It was undone.
    Failed(StoreError),
}

/// Engine and store of a registry with the batch in progress.
#[derive(Debug)]
pub struct Service {
    engine: Engine,
    store: Store,
    /// When to try the store again, and the pause after that.
    retry: (Instant, Duration),
    batch: Vec<Item>,
    commits: u64,
    store_failures: u64,
    keys: Keys,
    /// The state is a cluster's; nothing is written into the store.
    shared: Option<Box<Shared>>,
}

impl Service {
    /// A service over an opened store and the records found there.
    ///
    /// # Errors
    /// [`StoreError`] if the records contradict each other.
    pub fn new(config: Config, store: Store, records: Loaded, now: Instant) -> Result<Self, StoreError> {
        let keys = Keys::default();
        keys.put(records.iter().map(|(id, record)| (*id, record.public_key)));
        let mut engine = Engine::new(config, records, now).map_err(|error| store.bad_record(&error))?;
        engine.load_rows(store.rows()?);
        let retry = (now, FIRST_RETRY);
        let (batch, shared) = (Vec::new(), None);
        Ok(Self { engine, store, retry, batch, commits: 0, store_failures: 0, keys, shared })
    }

    /// The state that requests meet, staged changes included.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The keys of all nodes, for other threads.
    #[must_use]
    pub fn keys(&self) -> Keys {
        self.keys.clone()
    }

    /// Keeps the store's file as it is while somebody copies it.
    #[must_use]
    pub fn still(&self) -> Still {
        self.store.still()
    }

    /// True while the store cannot be written; of a cluster's state, while no majority seems to be there.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.shared.as_ref().map_or_else(|| self.store.is_down(), |shared| !shared.is_writable())
    }

    /// Transactions committed since the start; of a cluster, batches of this node.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.commits
    }

    /// Commits or recoveries of the store that failed since the start.
    #[must_use]
    pub fn store_failures(&self) -> u64 {
        self.store_failures
    }

    /// True when the turn must not take another session.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.batch.len() >= MAX_BATCH
    }

    /// Decides the complete requests in the session's input, a bounded number of them. `conn` comes back with the
    /// replies.
    pub fn decide(&mut self, env: &Surroundings<'_>, conn: usize, session: &mut Session) {
        self.decide_watched(env, conn, session, |_| {});
    }

    /// As [`Service::decide`]; `watch` sees the engine after each request.
    pub fn decide_watched(
        &mut self,
        env: &Surroundings<'_>,
        conn: usize,
        session: &mut Session,
        mut watch: impl FnMut(&Engine),
    ) {
        for _ in 0..MAX_REQUESTS_PER_TURN {
            if !self.decide_next(env, conn, session) {
                break;
            }
            watch(&self.engine);
            // What is left waits for the next turn, as it does behind many others.
            if fault::point!("registry.service.short_turn") {
                break;
            }
        }
        session.compact();
    }

    fn decide_next(&mut self, env: &Surroundings<'_>, conn: usize, session: &mut Session) -> bool {
        if session.closing || session.is_waiting() {
            return false;
        }
        let (len, parsed) = match next_frame(session.waiting()) {
            Ok(Some(json)) => (json.len(), Request::parse(json)),
            Ok(None) => return false,
            Err(error) => {
                // The stream cannot be followed beyond this point.
                session.closing = true;
                self.push(conn, session, None, Reply::error(error), false);
                return true;
            }
        };
        session.used += LENGTH_PREFIX + len;
        session.last_request = env.now;
        match parsed {
            Err(error) => self.push(conn, session, None, Reply::error(error), false),
            Ok(request) if self.shared.is_some() => self.decide_shared(env, conn, session, request),
            Ok(request) => {
                let context = context(env, session.source);
                let mut state = session.state.clone();
                let Outcome { reply, wrote, .. } = self.engine.apply(&context, &mut state, &request);
                self.push(conn, session, Some(request), reply, wrote);
                session.state = state;
            }
        }
        true
    }

    fn push(&mut self, conn: usize, session: &Session, request: Option<Request>, reply: Reply, wrote: bool) {
        let (source, state_before) = (session.source, session.state.clone());
        self.batch.push(Item { conn, source, request, state_before, reply, wrote });
    }

    /// Makes the batch durable, or makes its replies say that it is not (spec/registry.md §8.1, §8.3).
    pub fn commit(&mut self, env: &Surroundings<'_>) -> Committed {
        if self.shared.is_some() {
            self.propose(env);
            return Committed::Nothing;
        }
        let Some(first) = self.batch.iter().position(|item| item.wrote) else {
            return Committed::Nothing;
        };
        match self.store.commit(self.engine.staged(), self.engine.staged_rows()) {
            Ok(()) => {
                self.keys.put(self.engine.staged().map(|(id, record)| (id, record.public_key)));
                self.engine.commit();
                self.commits += 1;
                Committed::Stored
            }
            Err(error) => {
                self.engine.rollback();
                tracing::error!(%error, "store failed: registrations are refused until it works again");
                self.store_failures += 1;
                self.engine.set_read_only(Some(error.to_string()));
                self.retry = (env.now + FIRST_RETRY, FIRST_RETRY);
                for item in &mut self.batch[first..] {
                    item.decide_again(&mut self.engine, env);
                }
                Committed::Failed(error)
            }
        }
    }

    /// The replies of the batch, in the order of the requests, each with the `conn` of its request. `None`: close that
    /// connection without a reply.
    pub fn drain(&mut self) -> impl Iterator<Item = (usize, Option<Reply>)> {
        self.batch.drain(..).map(|item| {
            // What a peer sees when the connection breaks after its request was carried out.
            let lost = fault::point!("registry.service.lose_reply");
            (item.conn, (!lost).then_some(item.reply))
        })
    }

    /// When [`Service::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.store.is_down().then_some(self.retry.0)
    }

    /// Tries to bring the store back if that is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if !self.store.is_down() || now < self.retry.0 {
            return;
        }
        let engine = &self.engine;
        match self.store.recover(|id| engine.record(id), |key| engine.row(key)) {
            Ok(()) => {
                tracing::info!("store works again");
                self.engine.set_read_only(None);
            }
            Err(error) => {
                tracing::warn!(%error, "store still fails");
                self.store_failures += 1;
                self.engine.set_read_only(Some(error.to_string()));
                let pause = (self.retry.1 * 2).min(MAX_RETRY);
                self.retry = (now + pause, pause);
            }
        }
    }
}

fn context<'a>(env: &Surroundings<'a>, source: IpAddr) -> Context<'a> {
    Context { now: env.now, unix: env.unix, source, random: env.random }
}

impl Item {
    /// The reply after the batch was undone. A challenge stays valid: it is not part of the store.
    fn decide_again(&mut self, engine: &mut Engine, env: &Surroundings<'_>) {
        let Some(request) = self.request.as_ref().filter(|r| !matches!(r, Request::Challenge)) else {
            return;
        };
        let mut state = self.state_before.clone();
        self.reply = engine.reapply(&context(env, self.source), &mut state, request).reply;
    }
}
