//! TCP server of the registry: one thread, mio, no blocking call except the store's commit.
//!
//! One turn of the loop: accept → read and decide requests of all ready connections (a *batch*, bounded) → commit what
//! the batch staged → only then write the replies. Durable before acknowledged, and one sync for many requests.
//!
//! Bounds: connections in all and per source; input buffer of one message; requests per connection and turn; unread
//! output, after which a connection is not read any more; a slow reader and an idle connection are cut.

mod conn;
#[cfg(test)]
mod tests;

use crate::book::server::Book;
use crate::engine;
use crate::keys::Keys;
use crate::ledger::Ledger;
use crate::service::{Service, Surroundings};
use crate::store::{Loaded, Still, Store, StoreError};
use crate::tls::ServerTls;
use conn::Conn;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};
use pilotage_wire::registry::Reply;
use rustls::ServerConnection;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const LISTENER: Token = Token(usize::MAX - 1);
const WAKER: Token = Token(usize::MAX - 2);
/// Connections accepted per turn.
const MAX_ACCEPT: usize = 256;
/// Granularity of the idle, slow-reader and store timers.
const TICK: Duration = Duration::from_secs(1);

/// What a server needs to know.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// TCP address; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// redb file; created if missing.
    pub store: PathBuf,
    /// Policies and limits of the registry itself.
    pub engine: engine::Config,
    /// Every connection speaks TLS with this certificate. Default: none does.
    pub tls: Option<ServerTls>,
    /// Most connections at once. Default: 16,384 (each needs a file descriptor).
    pub max_connections: usize,
    /// Most connections of one IP address. Default: 4,096.
    pub max_connections_per_source: usize,
    /// A connection without a complete request for so long is closed. Default: 5 minutes (the reference's).
    pub idle: Duration,
    /// A connection that leaves replies unread for so long is closed. Default: 30 s.
    pub slow_reader: Duration,
}

impl ServerConfig {
    /// Defaults for a listening address and a store file.
    pub fn new(listen: SocketAddr, store: impl Into<PathBuf>) -> Self {
        Self {
            listen,
            store: store.into(),
            engine: engine::Config::default(),
            tls: None,
            max_connections: 16_384,
            max_connections_per_source: 4_096,
            idle: Duration::from_secs(300),
            slow_reader: Duration::from_secs(30),
        }
    }
}

/// Why a server cannot start. The text names the cause and the next step.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program listens there.
    #[error(
        "registry cannot listen on TCP {0}: the port is in use; stop the other program or choose another port"
    )]
    PortInUse(SocketAddr),
    /// Ports below 1024, usually.
    #[error("registry cannot listen on TCP {0}: permission denied; choose a port from 1024 up")]
    Permission(SocketAddr),
    /// The host has no such address.
    #[error(
        "registry cannot listen on TCP {0}: this machine has no such address; use 0.0.0.0 or one of its own"
    )]
    NoSuchAddress(SocketAddr),
    /// Anything else about the socket.
    #[error("registry cannot listen on TCP {addr}: {source}")]
    Socket {
        /// Address wanted.
        addr: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// A hub brings no nodes of its own into a cluster that is there.
    #[error(
        "registry: {} has {nodes} nodes that this hub has registered alone; begin a new cluster with them by `pilotage hub to-cluster`, or join one with a new file, --store FILE, and keep the old one: nodes register again by themselves", store.display()
    )]
    OwnNodes {
        /// The file.
        store: PathBuf,
        /// Nodes in it.
        nodes: usize,
    },
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Counters and gauges of a running server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Open connections.
    pub connections: usize,
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Connections turned away because of a limit.
    pub turned_away: u64,
    /// Connections closed by us: idle, slow reader, or oversized message.
    pub cut: u64,
    /// Requests answered.
    pub requests: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Transactions committed.
    pub commits: u64,
    /// Commits or recoveries of the store that failed.
    pub store_failures: u64,
    /// True while the store cannot be written; of a cluster's registry, while no majority seems to be there.
    pub read_only: bool,
    /// The nodes and names are a cluster's.
    pub shared: bool,
    /// Claimed addresses.
    pub nodes: usize,
    /// Claimed names.
    pub names: usize,
}

/// Stops a running server and reads its statistics, from any thread.
#[derive(Debug, Clone)]
pub struct ServerHandle(Arc<Shared>);

impl ServerHandle {
    /// Makes [`Server::run`] return soon. May be called more than once.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::Release);
        // A failure means that the loop is gone already.
        let _ = self.0.waker.wake();
    }

    /// State after the last turn of the loop.
    #[must_use]
    pub fn stats(&self) -> ServerStats {
        *self.0.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    waker: Waker,
    stats: Mutex<ServerStats>,
}

/// A bound registry server; [`Server::run`] serves.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    local_addr: SocketAddr,
    poll: Poll,
    listener: TcpListener,
    /// The listener may have more connections.
    acceptable: bool,
    /// After a failure, when to accept again.
    accept_after: Instant,
    shared: Arc<Shared>,
    service: Service,
    /// Serves connections that speak the second request family.
    book: Option<Book>,
    conns: Vec<Option<Conn>>,
    free: Vec<usize>,
    per_source: HashMap<IpAddr, usize>,
    /// Connections with something to read or decide, each at most once.
    ready: VecDeque<usize>,
    stats: ServerStats,
}

#[allow(clippy::disallowed_methods, reason = "the server is the IO edge: it reads the clock for the engine")]
fn clock() -> Instant {
    Instant::now()
}

#[allow(clippy::disallowed_methods, reason = "the server is the IO edge: it reads the clock for the engine")]
fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn random() -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).ok()?;
    Some(bytes)
}

fn surroundings(now: Instant) -> Surroundings<'static> {
    Surroundings { now, unix: unix_time(), random: &random }
}

impl Server {
    /// Listens and opens the store.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(config: ServerConfig) -> Result<Self, BindError> {
        // The port first: a second hub with the same configuration is then told about the port, not about a lock.
        let listener = listen(config.listen)?;
        let (store, records) = Store::open(&config.store)?;
        Self::assemble(config, listener, store, records)
    }

    #[cfg(test)]
    fn with_store(config: ServerConfig, store: Store, records: Loaded) -> Result<Self, BindError> {
        let listener = listen(config.listen)?;
        Self::assemble(config, listener, store, records)
    }

    fn assemble(
        config: ServerConfig,
        mut listener: TcpListener,
        store: Store,
        records: Loaded,
    ) -> Result<Self, BindError> {
        let now = clock();
        let service = Service::new(config.engine.clone(), store, records, now)?;
        let engine = service.engine();
        let socket_error = |source| BindError::Socket { addr: config.listen, source };
        let poll = Poll::new().map_err(socket_error)?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(socket_error)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE).map_err(socket_error)?;
        let local_addr = listener.local_addr().map_err(socket_error)?;
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), waker, stats: Mutex::default() });
        tracing::info!(%local_addr, store = %config.store.display(), nodes = engine.nodes(), names = engine.names(), "registry listens");
        let mut server = Self {
            config,
            local_addr,
            poll,
            listener,
            acceptable: true,
            accept_after: now,
            shared,
            service,
            book: None,
            conns: Vec::new(),
            free: Vec::new(),
            per_source: HashMap::new(),
            ready: VecDeque::new(),
            stats: ServerStats::default(),
        };
        server.publish_stats();
        Ok(server)
    }

    /// The address that is really listened on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The keys of all nodes, for other threads.
    #[must_use]
    pub fn keys(&self) -> Keys {
        self.service.keys()
    }

    /// Keeps the store's file as it is while somebody copies it.
    #[must_use]
    pub fn still(&self) -> Still {
        self.service.still()
    }

    /// From now on the registry is the one that `ledger` keeps with other hubs (`spec/cluster.md §10`); the store stays as it is.
    ///
    /// # Errors
    /// [`BindError::OwnNodes`] if the store has nodes or networks that this hub has granted alone.
    pub fn share(&mut self, ledger: Arc<dyn Ledger>) -> Result<(), BindError> {
        self.may_share()?;
        let shared = self.shared.clone();
        // A failure means that the loop is gone already.
        let wake = Arc::new(move || drop(shared.waker.wake()));
        self.service.share(ledger, wake, &surroundings(clock()));
        self.publish_stats();
        Ok(())
    }

    /// Whether [`Server::share`] will find nothing in the way.
    ///
    /// # Errors
    /// [`BindError::OwnNodes`].
    pub fn may_share(&self) -> Result<(), BindError> {
        if self.service.is_empty() {
            return Ok(());
        }
        Err(BindError::OwnNodes { store: self.config.store.clone(), nodes: self.service.engine().nodes() })
    }

    /// From now on connections that ask for records and claims are served by `book` (`spec/registry2.md §5`). Without one,
    /// and over TLS, they are cut like any other that speaks something else.
    pub fn serve_book(&mut self, book: Book) {
        self.book = Some(book);
    }

    /// For stopping and watching from elsewhere.
    #[must_use]
    pub fn handle(&self) -> ServerHandle {
        ServerHandle(self.shared.clone())
    }

    /// Serves until [`ServerHandle::stop`]. Everything acknowledged is on disk at any moment, so there is nothing to
    /// save at the end.
    ///
    /// # Errors
    /// Only if the operating system's event queue fails.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1_024);
        let mut next_tick = clock() + TICK;
        while !self.shared.stop.load(Ordering::Acquire) {
            let timeout = self.timeout(next_tick);
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.acceptable = true,
                    WAKER => {}
                    Token(at) => self.wake_conn(at, event.is_readable() || event.is_error()),
                }
            }
            let now = clock();
            if self.acceptable && now >= self.accept_after {
                self.accept(now);
            }
            self.turn(now);
            if now >= next_tick {
                next_tick = now + TICK;
                self.tick(now);
            }
            self.publish_stats();
        }
        tracing::info!(local_addr = %self.local_addr, "registry stops");
        Ok(())
    }

    /// Nobody connected and a healthy store: sleep until something happens.
    fn timeout(&self, next_tick: Instant) -> Option<Duration> {
        if !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let healthy = !self.service.is_read_only() && !self.service.is_shared();
        let timers = self.stats.connections > 0 || !healthy || self.acceptable;
        timers.then(|| next_tick.saturating_duration_since(clock()))
    }

    fn wake_conn(&mut self, at: usize, readable: bool) {
        if let Some(Some(conn)) = self.conns.get_mut(at) {
            conn.readable |= readable;
            if !std::mem::replace(&mut conn.queued, true) {
                self.ready.push_back(at);
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..MAX_ACCEPT {
            match self.listener.accept() {
                Ok((stream, peer)) => self.admit(stream, peer.ip().to_canonical(), now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.acceptable = false;
                    return;
                }
                // Gone before we looked.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Most likely out of file descriptors: `acceptable` stays, a later turn tries again.
                    tracing::warn!(%error, "cannot accept a connection");
                    self.accept_after = now + TICK;
                    return;
                }
            }
        }
    }

    fn admit(&mut self, mut stream: mio::net::TcpStream, source: IpAddr, now: Instant) {
        let of_source = self.per_source.get(&source).copied().unwrap_or(0);
        let reason = if self.stats.connections >= self.config.max_connections {
            "registry has too many connections; retry later"
        } else if of_source >= self.config.max_connections_per_source {
            "registry has too many connections from your network address"
        } else {
            let at = self.free.pop().unwrap_or_else(|| {
                self.conns.push(None);
                self.conns.len() - 1
            });
            let _ = stream.set_nodelay(true);
            let tls = match self.tls_session() {
                Ok(tls) => tls,
                Err(error) => {
                    tracing::warn!(%error, "no TLS session");
                    self.free.push(at);
                    return;
                }
            };
            let interest = Interest::READABLE | Interest::WRITABLE;
            if let Err(error) = self.poll.registry().register(&mut stream, Token(at), interest) {
                tracing::warn!(%error, "cannot watch a connection");
                self.free.push(at);
                return;
            }
            self.conns[at] = Some(Conn::new(stream, tls, source, now));
            *self.per_source.entry(source).or_insert(0) += 1;
            self.stats.connections += 1;
            self.stats.accepted += 1;
            return;
        };
        self.stats.turned_away += 1;
        // Plain words on a TLS connection would only puzzle the peer.
        if self.config.tls.is_some() {
            return;
        }
        let mut frame = Vec::new();
        if Reply::error(reason).encode(&mut frame).is_ok() {
            // One short write into an empty socket buffer; if it does not fit, the close says enough.
            let _ = io::Write::write(&mut stream, &frame);
        }
    }

    fn tls_session(&self) -> Result<Option<Box<ServerConnection>>, rustls::Error> {
        let session = self.config.tls.as_ref().map(|tls| ServerConnection::new(tls.config()));
        Ok(session.transpose()?.map(Box::new))
    }

    /// Reads, decides, commits, replies.
    fn turn(&mut self, now: Instant) {
        let mut touched = Vec::new();
        self.service.receive(&surroundings(now));
        // Each connection gets its share once per turn; what is left waits for the next one.
        for _ in 0..self.ready.len() {
            if self.service.is_full() {
                break;
            }
            let Some(at) = self.ready.pop_front() else { break };
            let Some(Some(conn)) = self.conns.get_mut(at) else { continue };
            conn.queued = false;
            touched.push(at);
            if conn.is_congested() {
                continue;
            }
            conn.read();
            if self.book.is_some() && conn.speaks_book() {
                self.hand_over(at);
                continue;
            }
            if let Some(session) = conn.session() {
                self.service.decide(&surroundings(now), at, session);
            }
        }
        self.service.commit(&surroundings(now));
        for (at, reply) in self.service.drain() {
            self.stats.requests += 1;
            self.stats.errors += u64::from(matches!(reply, Some(Reply::Error { .. })));
            match (self.conns.get_mut(at), reply) {
                (Some(Some(conn)), Some(reply)) => conn.push_reply(&reply),
                (Some(Some(conn)), None) => conn.break_off(),
                _ => {}
            }
        }
        for finished in self.service.finished() {
            let Some(Some(conn)) = self.conns.get_mut(finished.conn) else { continue };
            // The connection of a request that took long may be gone, and another in its place.
            if conn.resume(&finished) {
                self.stats.requests += 1;
                self.stats.errors += u64::from(matches!(finished.reply, Reply::Error { .. }));
                conn.push_reply(&finished.reply);
                touched.push(finished.conn);
            }
        }
        for at in touched {
            let Some(Some(conn)) = self.conns.get_mut(at) else { continue };
            conn.flush(now);
            if conn.is_finished() {
                self.close(at);
            } else if conn.has_work() && !std::mem::replace(&mut conn.queued, true) {
                self.ready.push_back(at);
            }
        }
    }

    /// The connection goes to the threads that serve records and claims.
    fn hand_over(&mut self, at: usize) {
        let Some(mut conn) = self.conns.get_mut(at).and_then(Option::take) else { return };
        let _ = self.poll.registry().deregister(conn.stream_mut());
        let source = conn.source();
        self.forget(at, source);
        if let Some(book) = &self.book {
            let (stream, input) = conn.into_book();
            book.adopt(stream, source, input);
        }
    }

    fn tick(&mut self, now: Instant) {
        self.service.handle_timeout(now);
        self.service.tell();
        for at in 0..self.conns.len() {
            let Some(conn) = &self.conns[at] else { continue };
            if let Some(why) = conn.overdue(now, self.config.idle, self.config.slow_reader) {
                tracing::debug!(source = %conn.source(), why, "connection cut");
                self.stats.cut += 1;
                self.close(at);
            }
        }
    }

    fn close(&mut self, at: usize) {
        let Some(mut conn) = self.conns.get_mut(at).and_then(Option::take) else { return };
        if conn.was_cut() {
            self.stats.cut += 1;
        }
        conn.part();
        let _ = self.poll.registry().deregister(conn.stream_mut());
        self.forget(at, conn.source());
    }

    fn forget(&mut self, at: usize, source: IpAddr) {
        if let Some(count) = self.per_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.per_source.remove(&source);
            }
        }
        self.stats.connections -= 1;
        self.free.push(at);
    }

    fn publish_stats(&mut self) {
        self.stats.nodes = self.service.engine().nodes();
        self.stats.names = self.service.engine().names();
        self.stats.commits = self.service.commits();
        self.stats.store_failures = self.service.store_failures();
        self.stats.read_only = self.service.is_read_only();
        self.stats.shared = self.service.is_shared();
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.stats;
    }
}

fn listen(addr: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(addr).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::PortInUse(addr),
        io::ErrorKind::PermissionDenied => BindError::Permission(addr),
        io::ErrorKind::AddrNotAvailable => BindError::NoSuchAddress(addr),
        _ => BindError::Socket { addr, source },
    })
}
