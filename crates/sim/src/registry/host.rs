//! One registry process: service, disk, connections, and the check of its promises.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use pilotage_registry::engine::{Config, Record};
use pilotage_registry::service::{Committed, Service, Session, Surroundings};
use pilotage_registry::store::StoreError;
use pilotage_wire::NodeId;
use pilotage_wire::registry::Reply;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::disk::{Disk, DiskState};
use super::ledger::Ledger;

/// A supervisor starts a registry that could not start again after this long.
const SUPERVISOR: Duration = Duration::from_secs(1);
/// Commits between two backups.
const BACKUP_EACH: u64 = 8;
/// Bytes that wait for a session whose input is full; the real server leaves them in the socket.
const MAX_BACKLOG: usize = 256 * 1024;

/// A connection with a registry; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryConn(u64);

/// What a registry wants its network to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryOutput {
    /// Bytes for the peer, to be delivered in order.
    Send(RegistryConn, Vec<u8>),
    /// End the connection once everything before is delivered.
    Close(RegistryConn),
}

/// How a registry process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process is killed; what it has written stays.
    Process,
    /// The machine loses power; what was not synced is there in part.
    Power,
}

/// With which disk a registry comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Its own.
    Kept,
    /// A backup from up to eight commits ago, or more.
    OldBackup,
    /// An empty one.
    Lost,
}

/// Settings of a simulated registry.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// The registry's own policies.
    pub engine: Config,
    /// Most connections at once. Default: 1,024.
    pub max_connections: usize,
    /// A connection without a request for so long is closed. Default: 5 minutes.
    pub idle: Duration,
}

impl Default for HostConfig {
    fn default() -> Self {
        let idle = Duration::from_secs(300);
        Self { engine: Config::default(), max_connections: 1_024, idle }
    }
}

/// Upper bounds that [`RegistryHost::check`] holds the registry to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Claimed addresses.
    pub nodes: usize,
    /// Sources that the rate limiter remembers.
    pub sources: usize,
    /// Open connections.
    pub connections: usize,
}

struct Connection {
    session: Session,
    /// Received while the session's input was full.
    backlog: VecDeque<u8>,
    ready: bool,
}

/// A running process.
struct Process {
    service: Service,
    connections: BTreeMap<RegistryConn, Connection>,
    /// Connections with requests, each at most once, longest waiting first.
    ready: VecDeque<RegistryConn>,
    /// When the commit in progress is through.
    committing: Option<Instant>,
}

/// Falsifies replies before they are checked and sent.
type Tamper = Box<dyn FnMut(&mut Reply) + Send>;

/// A simulated registry: the real service over a simulated disk, and a ledger of its promises.
///
/// Time goes in, bytes go out; the same seed and calls give the same bytes.
pub struct RegistryHost {
    config: HostConfig,
    rng: RefCell<ChaCha8Rng>,
    disk: Disk,
    backup: Vec<u8>,
    process: Option<Process>,
    /// When a process that could not start tries again.
    restart: Option<Instant>,
    /// The disk is not the one that the last process had.
    replaced: bool,
    next_conn: u64,
    ledger: Ledger,
    bounds: Bounds,
    tamper: Option<Tamper>,
}

impl RegistryHost {
    /// A registry that runs from `now` on.
    #[must_use]
    pub fn new(seed: u64, now: Instant, config: HostConfig) -> Self {
        // Should that fail, `start` fails as well and says why.
        let disk = Disk::formatted().unwrap_or_default();
        let bounds = Bounds {
            nodes: config.engine.max_nodes,
            sources: config.engine.max_sources,
            connections: config.max_connections,
        };
        let mut host = Self {
            config,
            rng: RefCell::new(ChaCha8Rng::seed_from_u64(seed)),
            backup: disk.image(),
            disk,
            process: None,
            restart: None,
            replaced: false,
            next_conn: 0,
            ledger: Ledger::default(),
            bounds,
            tamper: None,
        };
        host.start(now);
        host
    }

    /// Whether a process runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// Whether the process refuses changes because of its disk.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.service.is_read_only())
    }

    /// Batches made durable over the whole life.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.ledger.generation()
    }

    /// Claimed addresses in the store.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.ledger.durable().len()
    }

    /// What the store certainly has about a node.
    #[must_use]
    pub fn record(&self, id: NodeId) -> Option<&Record> {
        self.ledger.durable().get(&id)
    }

    /// The disk behaves like this from now on.
    pub fn set_disk(&mut self, state: DiskState) {
        self.disk.set_state(state);
    }

    /// A connection from `source` is open. `None`: refused, because no process runs or there are too many.
    pub fn open(&mut self, now: Instant, source: IpAddr) -> Option<RegistryConn> {
        let process = self.process.as_mut()?;
        if process.connections.len() >= self.config.max_connections {
            return None;
        }
        let conn = RegistryConn(self.next_conn);
        self.next_conn += 1;
        let session = Session::new(source, now);
        process.connections.insert(conn, Connection { session, backlog: VecDeque::new(), ready: false });
        Some(conn)
    }

    /// The peer or the network has ended a connection.
    pub fn close(&mut self, conn: RegistryConn) {
        if let Some(process) = &mut self.process {
            process.connections.remove(&conn);
        }
    }

    /// Bytes have arrived, in order, in pieces of any size. Bytes for a connection that is not there end it.
    ///
    /// Requests that arrive while a batch is being committed form the next batch, as with the real server. Their replies
    /// come out of [`RegistryHost::handle_timeout`].
    pub fn handle(
        &mut self,
        now: Instant,
        unix: u64,
        conn: RegistryConn,
        bytes: &[u8],
        out: &mut Vec<RegistryOutput>,
    ) {
        let Some(process) = &mut self.process else {
            out.push(RegistryOutput::Close(conn));
            return;
        };
        if !process.receive(conn, bytes) {
            process.connections.remove(&conn);
            out.push(RegistryOutput::Close(conn));
            return;
        }
        if process.committing.is_none() {
            self.turn(now, unix, out);
        }
    }

    /// When [`RegistryHost::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let process = self.process.as_ref();
        let committing = process.and_then(|process| process.committing);
        let store = process.and_then(|process| process.service.poll_timeout());
        let idle = process.and_then(|process| {
            process.connections.values().map(|conn| conn.session.last_request() + self.config.idle).min()
        });
        [self.restart, committing, store, idle].into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, unix: u64, out: &mut Vec<RegistryOutput>) {
        if self.restart.is_some_and(|at| at <= now) {
            self.start(now);
        }
        let Some(process) = &mut self.process else { return };
        if process.committing.is_some_and(|at| at <= now) {
            process.committing = None;
            self.commit(now, unix, out);
            self.turn(now, unix, out);
        }
        let Some(process) = &mut self.process else { return };
        if process.committing.is_none() {
            let down = process.service.is_read_only();
            process.service.handle_timeout(now);
            if down && !process.service.is_read_only() {
                self.ledger.recovered();
            }
        }
        let idle = self.config.idle;
        process.close_all(|conn| now.saturating_duration_since(conn.session.last_request()) >= idle, out);
    }

    /// The process ends at once. A commit in progress gets as far as bad luck lets it. All connections are gone without a
    /// word.
    pub fn crash(&mut self, how: Crash) {
        self.restart = None;
        let seed = self.rng.get_mut().next_u64();
        if let Some(mut process) = self.process.take() {
            if let Some(at) = process.committing {
                self.disk.kill_at_sync(seed % 4);
                let random = || None;
                let _ = process.service.commit(&Surroundings { now: at, unix: 0, random: &random });
            }
            self.disk.end_process();
            self.ledger.crashed();
        }
        if how == Crash::Power {
            self.disk.lose_power(seed);
        }
    }

    /// A new process starts. If it cannot, a supervisor tries each second.
    pub fn restart(&mut self, now: Instant, how: Restart) {
        if self.process.is_some() {
            self.crash(Crash::Process);
        }
        match how {
            Restart::Kept => {}
            Restart::OldBackup => self.disk.replace(self.backup.clone()),
            Restart::Lost => self.disk.replace(Disk::formatted().map_or(Vec::new(), |disk| disk.image())),
        }
        self.replaced |= how != Restart::Kept;
        self.start(now);
    }

    /// Checks what must hold after every event:
    ///
    /// * an address has one owner and a key one address, over the whole life;
    /// * what was acknowledged is durable, is there after a restart, and never gets older;
    /// * a name has one owner;
    /// * a batch is stored entirely or not at all, and replies show nothing that is not durable;
    /// * engine and store agree;
    /// * tables are within [`Bounds`].
    ///
    /// [`Restart::OldBackup`] and [`Restart::Lost`] begin a new life.
    ///
    /// # Errors
    /// Says what is broken.
    pub fn check(&mut self) -> Result<(), String> {
        self.ledger.verdict()?;
        let Some(process) = &self.process else { return Ok(()) };
        let engine = process.service.engine();
        within("claimed addresses", engine.nodes(), self.bounds.nodes)?;
        within("sources of the limiter", engine.tracked_sources(), self.bounds.sources)?;
        within("connections", process.connections.len(), self.bounds.connections)
    }

    /// Other bounds than those of the configuration: to see the check notice.
    pub fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// `falsify` changes each reply before it is checked and sent: to see the check notice.
    pub fn tamper(&mut self, falsify: impl FnMut(&mut Reply) + Send + 'static) {
        self.tamper = Some(Box::new(falsify));
    }

    /// Puts the last backup on the disk behind everybody's back: to see the check notice.
    pub fn swap_disk(&mut self) {
        self.disk.replace(self.backup.clone());
    }

    /// Starts a process on the disk as it is.
    fn start(&mut self, now: Instant) {
        self.restart = None;
        let started = self.disk.open().and_then(|(store, records)| {
            let found: BTreeMap<_, _> = records.iter().cloned().collect();
            Ok((Service::new(self.config.engine.clone(), store, records, now)?, found))
        });
        match started {
            Ok((service, found)) => {
                self.ledger.loaded(found, !std::mem::take(&mut self.replaced));
                let (connections, ready) = (BTreeMap::new(), VecDeque::new());
                self.process = Some(Process { service, connections, ready, committing: None });
                self.check_table();
            }
            // What an operator would have to see to; the supervisor's next try succeeds once the disk is well.
            Err(StoreError::Full { .. } | StoreError::InUse { .. } | StoreError::Io { .. }) => {
                self.disk.end_process();
                self.restart = Some(now + SUPERVISOR);
            }
            Err(error) => self.ledger.break_with(format!("the store cannot be opened: {error}")),
        }
    }

    /// Decides what has arrived. Replies that need no commit go out at once.
    fn turn(&mut self, now: Instant, unix: u64, out: &mut Vec<RegistryOutput>) {
        loop {
            let Some(process) = &mut self.process else { return };
            if process.ready.is_empty() {
                return;
            }
            let random = || Some(random(&self.rng));
            let env = Surroundings { now, unix, random: &random };
            let ledger = &mut self.ledger;
            for _ in 0..process.ready.len() {
                if process.service.is_full() {
                    break;
                }
                let Some(id) = process.ready.pop_front() else { break };
                let Some(conn) = process.connections.get_mut(&id) else { continue };
                let number = usize::try_from(id.0).unwrap_or(usize::MAX);
                process.service.decide_watched(&env, number, &mut conn.session, |engine| {
                    if let Some((id, record)) = engine.staged().last() {
                        ledger.staged(id, record);
                    }
                });
                conn.refill();
                conn.ready = conn.session.has_request();
                if conn.ready {
                    process.ready.push_back(id);
                }
            }
            if ledger.has_batch() {
                process.committing = Some(now + sync_time(&self.rng));
                return;
            }
            self.commit(now, unix, out);
        }
    }

    /// Commits the batch and sends its replies.
    fn commit(&mut self, now: Instant, unix: u64, out: &mut Vec<RegistryOutput>) {
        let Some(process) = &mut self.process else { return };
        let random = || Some(random(&self.rng));
        let stored = match process.service.commit(&Surroundings { now, unix, random: &random }) {
            Committed::Nothing => false,
            Committed::Stored => {
                self.ledger.committed();
                true
            }
            Committed::Failed(_) => {
                self.ledger.failed();
                true
            }
        };
        let replies: Vec<_> = process.service.drain().collect();
        for (number, reply) in replies {
            let conn = RegistryConn(number as u64);
            // A reply on a connection that is gone is nobody's promise.
            if !process.connections.contains_key(&conn) {
                continue;
            }
            if let Some(mut reply) = reply {
                if let Some(tamper) = &mut self.tamper {
                    tamper(&mut reply);
                }
                self.ledger.replied(&reply);
                let mut frame = Vec::new();
                if reply.encode(&mut frame).is_ok() {
                    out.push(RegistryOutput::Send(conn, frame));
                    continue;
                }
            }
            process.connections.remove(&conn);
            out.push(RegistryOutput::Close(conn));
        }
        process.close_all(|conn| conn.session.is_closing(), out);
        self.ledger.released();
        if stored {
            self.check_table();
            if self.ledger.generation().is_multiple_of(BACKUP_EACH) {
                self.backup = self.disk.image();
            }
        }
    }

    /// Compares engine, store and promises after a change.
    fn check_table(&mut self) {
        if let Err(what) = self.ledger.check_table() {
            self.ledger.break_with(what);
        }
        let Some(process) = &self.process else { return };
        let engine = process.service.engine();
        let durable = self.ledger.durable();
        let named = durable.values().filter(|record| record.hostname.is_some()).count();
        let same = engine.nodes() == durable.len()
            && engine.names() == named
            && durable.iter().all(|(id, record)| engine.record(*id) == Some(record));
        if !same {
            self.ledger.break_with("the engine shows something else than the store".to_owned());
        }
    }
}

impl Process {
    /// False if the connection is not there or its peer ignores all bounds.
    fn receive(&mut self, id: RegistryConn, bytes: &[u8]) -> bool {
        let Some(conn) = self.connections.get_mut(&id) else { return false };
        conn.backlog.extend(bytes);
        conn.refill();
        if conn.backlog.len() > MAX_BACKLOG {
            return false;
        }
        if conn.session.has_request() && !std::mem::replace(&mut conn.ready, true) {
            self.ready.push_back(id);
        }
        true
    }

    fn close_all(&mut self, which: impl Fn(&Connection) -> bool, out: &mut Vec<RegistryOutput>) {
        self.connections.retain(|id, conn| {
            let closes = which(conn);
            if closes {
                out.push(RegistryOutput::Close(*id));
            }
            !closes
        });
    }
}

impl Connection {
    fn refill(&mut self) {
        while !self.backlog.is_empty() {
            let taken = self.session.feed(self.backlog.as_slices().0);
            self.backlog.drain(..taken);
            if taken == 0 {
                return;
            }
        }
    }
}

impl fmt::Debug for RegistryHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryHost")
            .field("up", &self.is_up())
            .field("read_only", &self.is_read_only())
            .field("commits", &self.commits())
            .field("nodes", &self.nodes())
            .finish_non_exhaustive()
    }
}

fn random(rng: &RefCell<ChaCha8Rng>) -> [u8; 32] {
    let mut bytes = [0; 32];
    rng.borrow_mut().fill_bytes(&mut bytes);
    bytes
}

/// How long a commit takes: an SSD's sync, now and then a stall.
fn sync_time(rng: &RefCell<ChaCha8Rng>) -> Duration {
    let random = rng.borrow_mut().next_u32();
    let micros = 100 + random % 4_000;
    Duration::from_micros(u64::from(if random.is_multiple_of(97) { micros * 100 } else { micros }))
}

fn within(what: &str, count: usize, bound: usize) -> Result<(), String> {
    if count <= bound { Ok(()) } else { Err(format!("{count} {what}, allowed are {bound}")) }
}
