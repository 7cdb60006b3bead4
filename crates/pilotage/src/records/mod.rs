//! A node's own record, kept where it belongs, and the records of those it meets (spec/replica.md).
//!
//! [`Records::start`] claims the node's address at the registry, signs a record of where the node is, puts it at the
//! registry's nodes, refreshes it and sends heartbeats. Peers that the node meets are remembered with their records, so
//! that it finds them again when no registry answers; and it tells friends who ask (port [`FRIEND_PORT`]).
//!
//! One thread does all that blocks; another one serves friends. A [`Directory`] that everybody can read, if one is given, is told
//! the record of a public node, and is the last place to look.

mod directory;
mod friends;
mod publish;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pilotage_proto::Mode;
use pilotage_registry::book::message::{Query, Whose};
use pilotage_registry::replica::cache::{Cache, Known};
use pilotage_registry::replica::follow::Follower;
use pilotage_registry::replica::owner_key;
use pilotage_wire::record::Record;
use pilotage_wire::{Address, NetworkId, addressing};

pub use directory::{Directory, DirectoryStatus, DirectoryUse, Sign};
pub use pilotage_registry::replica::follow::{Change, Position};
pub use pilotage_registry::replica::public::{Public, Tally};

use crate::acquaintances::{Acquaintance, Acquaintances};
use crate::node::Node;
use crate::resolve::Source;
use crate::shared::Phase;

/// Where friends are asked about records.
pub const FRIEND_PORT: u16 = 1_016;
/// Peers that wait to be remembered.
const MAX_MET: usize = 64;
/// Without a registry the next try comes after this long.
const RETRY: Duration = Duration::from_secs(5);

/// How a node's record is kept.
#[derive(Debug, Clone)]
pub struct RecordsConfig {
    /// A registry that serves records, `HOST:PORT`.
    pub registry: String,
    /// Keys of registry nodes that are trusted. Empty: that of the registry's first answer, which is remembered.
    pub trusted: Vec<[u8; 32]>,
    /// Directory for what is remembered.
    pub dir: PathBuf,
    /// Between two refreshes. Default: 60 s, a tenth more or less.
    pub refresh: Duration,
    /// Hostname to claim. Default: none.
    pub hostname: Option<String>,
    /// What the agent can do.
    pub tags: Vec<String>,
    /// One or two sentences about it.
    pub summary: Option<String>,
    /// No endpoints in the record, and not to be listed.
    pub private: bool,
    /// Whether friends are answered and asked. Default: true.
    pub friends: bool,
    /// Where everybody can read the record, and the last place to look. Default: none.
    pub directory: Option<Arc<dyn Directory>>,
}

impl RecordsConfig {
    /// Defaults.
    #[must_use]
    pub fn new(registry: impl Into<String>, dir: impl Into<PathBuf>) -> Self {
        Self {
            registry: registry.into(),
            trusted: Vec::new(),
            dir: dir.into(),
            refresh: Duration::from_millis(pilotage_registry::replica::REFRESH),
            hostname: None,
            tags: Vec::new(),
            summary: None,
            private: false,
            friends: true,
            directory: None,
        }
    }
}

/// How it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordsStatus {
    /// Nodes that hold our record since the last refresh.
    pub stored: usize,
    /// Refreshes so far.
    pub refreshes: u64,
    /// Heartbeats sent.
    pub heartbeats: u64,
    /// The address that we claimed.
    pub address: Option<Address>,
    /// The last thing that went wrong, until the next success.
    pub last_error: Option<String>,
    /// Agents that are remembered.
    pub remembered: usize,
    /// Questions of friends that were answered with a record.
    pub answered: u64,
    /// The directory, if one was given.
    pub directory: Option<DirectoryUse>,
}

/// Keeps a node's record. The threads end with the last clone, or with the node.
#[derive(Debug, Clone)]
pub struct Records {
    inner: Arc<Inner>,
    _threads: Arc<Threads>,
}

struct Inner {
    config: RecordsConfig,
    cache: Mutex<Cache>,
    status: Mutex<RecordsStatus>,
    met: Mutex<VecDeque<Address>>,
    /// What friends did not know, and when they were asked.
    unknown: Mutex<VecDeque<(Query, Instant)>>,
    /// What the directory was asked, what came of it, and how many ask it behind the scenes.
    asked: Mutex<directory::Asked>,
    tally: Mutex<Tally>,
    afresh: AtomicUsize,
    wake: Condvar,
    stop: AtomicBool,
    node: Mutex<Option<Node>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").field("registry", &self.config.registry).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Threads {
    inner: Arc<Inner>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::Release);
        // A node is closed by its last handle.
        lock(&self.inner.node).take();
        self.inner.wake.notify_all();
        for handle in lock(&self.handles).drain(..) {
            let _ = handle.join();
        }
    }
}

impl Records {
    /// Starts. Nothing is contacted before it returns.
    ///
    /// # Errors
    /// The directory cannot be used, the port for friends is taken, or there is no thread.
    pub fn start(node: &Node, config: RecordsConfig) -> io::Result<Self> {
        let nodes = publish::remembered_nodes(&config.dir);
        let trusted = config.trusted.iter().copied().chain(nodes).collect();
        let cache = Cache::open(&config.dir.join("records"), trusted, unix().as_secs())?;
        let friends = config.friends;
        let inner = Arc::new(Inner {
            status: Mutex::new(RecordsStatus { remembered: cache.len(), ..RecordsStatus::default() }),
            cache: Mutex::new(cache),
            met: Mutex::default(),
            unknown: Mutex::default(),
            asked: Mutex::default(),
            tally: Mutex::default(),
            afresh: AtomicUsize::new(0),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
            node: Mutex::new(Some(node.clone())),
            config,
        });
        let mut handles = Vec::new();
        if friends {
            let listener = node.listen(FRIEND_PORT).map_err(io::Error::other)?;
            let inner = inner.clone();
            handles.push(spawn("pilotage-friends", move || friends::serve(&inner, &listener))?);
        }
        let of_thread = inner.clone();
        handles.push(spawn("pilotage-records", move || publish::run(&of_thread))?);
        node.set_acquaintances(Arc::new(Remembered(inner.clone())));
        let threads = Threads { inner: inner.clone(), handles: Mutex::new(handles) };
        Ok(Self { inner, _threads: Arc::new(threads) })
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> RecordsStatus {
        let mut status = lock(&self.inner.status).clone();
        status.remembered = lock(&self.inner.cache).len();
        status.directory = directory::status(&self.inner);
        status
    }

    /// Follows changes of records at the registry: of one agent, or of all that are not private. From a position on, or
    /// first of all what there is.
    #[must_use]
    pub fn watch(&self, agent: Option<[u8; 32]>, from: Option<Position>) -> Follower {
        let network = NetworkId(0);
        let whose = agent.map_or(Whose::All, |id| Whose::Of(owner_key(&id, network)));
        Follower::new(vec![self.inner.config.registry.clone()], whose, from)
    }
}

/// Where names and addresses of agents that were met are looked up.
#[derive(Debug)]
struct Remembered(Arc<Inner>);

impl Remembered {
    /// Whom we know, or our friends do.
    fn find(&self, query: &Query) -> Option<Acquaintance> {
        // Friends are asked without the lock: what they say goes into the cache.
        let kept = lock(&self.0.cache).get(query, unix().as_secs());
        match kept {
            Some(known) => usable(known, Source::Remembered),
            None => usable(friends::ask(&self.0, query)?, Source::Friend),
        }
    }

    /// Likewise, and the directory is the last place to look. Whether who is remembered has moved is looked up there for the
    /// next time.
    fn find_publicly(&self, query: &Query, pinned: Option<[u8; 32]>) -> Option<Acquaintance> {
        let known = match query {
            Query::Address { network, node } => {
                self.of_key(Address { network: *network, node: *node }, pinned)
            }
            _ => None,
        };
        if let Some(known) = known.or_else(|| self.find(query)) {
            if known.source == Source::Remembered {
                directory::ask_afresh(&self.0, query, known.key);
            }
            return Some(known);
        }
        let name = self.0.config.directory.as_ref()?.name();
        usable(directory::ask(&self.0, query, pinned)?, Source::Directory(name))
    }

    /// A peer whose key we know, but no claim of its address: it was found by its key before.
    fn of_key(&self, address: Address, pinned: Option<[u8; 32]>) -> Option<Acquaintance> {
        let key = pinned.filter(|_| self.0.config.directory.is_some())?;
        let query = Query::Agent { id: addressing::agent_id(&key), network: address.network };
        let known = lock(&self.0.cache).get(&query, unix().as_secs())?;
        (known.record.node == address.node).then(|| usable(known, Source::Remembered))?
    }

    fn pinned(&self, address: Address) -> Option<[u8; 32]> {
        let node = lock(&self.0.node).clone()?;
        let book = node.inner.shared.book();
        book.get(address.node).map(|pin| pin.key)
    }
}

fn query_of(address: Address) -> Query {
    Query::Address { network: address.network, node: address.node }
}

/// What a record demands of those who call its agent: whoever speaks with keys of PILA at least is nothing less than the draft's
/// mode, as it is here.
pub(super) fn demanded(record: &Record) -> Mode {
    if record.min_sec >= 2 { Mode::S1 } else { Mode::Draft }
}

fn usable(known: Known, source: Source) -> Option<Acquaintance> {
    let record = known.record;
    if record.tombstone.is_some() {
        return None;
    }
    let address = Address { network: record.network, node: record.node };
    Some(Acquaintance { address, key: record.key, endpoints: record.endpoints, source })
}

impl Acquaintances for Remembered {
    fn by_name(&self, name: &str) -> Option<Acquaintance> {
        let query = Query::Hostname { network: NetworkId(0), name: name.to_owned() };
        self.find_publicly(&query, None)
    }

    fn by_address(&self, address: Address) -> Option<Acquaintance> {
        self.find_publicly(&query_of(address), self.pinned(address))
    }

    fn caller(&self, address: Address) -> Option<Acquaintance> {
        self.find(&query_of(address))
    }

    fn least(&self, address: Address, key: &[u8; 32]) -> Mode {
        let (cache, now) = (lock(&self.0.cache), unix().as_secs());
        // Who was found by its key alone has no claim of its address here.
        let by_key =
            || cache.get(&Query::Agent { id: addressing::agent_id(key), network: address.network }, now);
        let known = cache.get(&query_of(address), now).or_else(by_key);
        let theirs = |known: &Known| known.record.key == *key && known.record.node == address.node;
        known.filter(theirs).map_or(Mode::Draft, |known| demanded(&known.record))
    }

    fn met(&self, address: Address) {
        let mut met = lock(&self.0.met);
        if met.len() < MAX_MET && !met.contains(&address) {
            met.push_back(address);
            self.0.wake.notify_all();
        }
    }
}

impl Inner {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
            || lock(&self.node).as_ref().is_none_or(|node| node.inner.shared.lock().phase != Phase::Open)
    }

    /// Waits until then, until a peer was met, or for a quarter of a second.
    fn pause(&self, until: Instant) {
        let met = lock(&self.met);
        let left = until.saturating_duration_since(Instant::now()).min(Duration::from_millis(250));
        if met.is_empty() && !left.is_zero() && !self.stop.load(Ordering::Acquire) {
            drop(self.wake.wait_timeout(met, left));
        }
    }

    fn failed(&self, why: String) {
        lock(&self.status).failed(why);
    }
}

impl RecordsStatus {
    fn failed(&mut self, why: String) {
        if self.last_error.as_ref() != Some(&why) {
            tracing::warn!(%why, "record not published");
        }
        self.last_error = Some(why);
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.into()).spawn(run)
}

fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file that appears whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = path.with_extension("new");
    std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path))
}
