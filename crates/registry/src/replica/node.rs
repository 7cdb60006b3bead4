//! A registry node as a replica: what it holds, who is alive, who watches. `spec/replica.md §3 to §6`.
//!
//! Bounds: [`MAX_WATCHES`] questions wait for a change, [`MAX_WATCHES_PER_CONNECTION`] of one connection (a further one
//! takes the place of its oldest); heartbeats are taken one by one from the socket's own queue.

use super::evidence::attested;
use super::presence::{self, Beat, HEARTBEAT_LEN, Presence};
use super::store::{Held, Put, Replicas};
use super::watch::History;
use super::{owner_in, owner_key};
use crate::book::message::{Ask, Attest, Hello, MAX_LISTED, OwnerKey, Told, Welcome, Whose};
use crate::claims::local::Clock;
use crate::placement::SignedMap;
use crate::record::CLOCK_SLACK;
use crate::store::StoreError;
use ed25519_dalek::{Signature, VerifyingKey};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most questions that wait for a change.
pub const MAX_WATCHES: usize = 16_384;
/// The same of one connection.
pub const MAX_WATCHES_PER_CONNECTION: usize = 16;
/// Agents that are named between two looks at the watchers; with more, all who watch one agent are looked at.
const MAX_NEWS: usize = 65_536;
/// A question is answered after this long even if nothing has changed.
pub const HOLD: Duration = Duration::from_secs(45);
/// The map's file is looked at this often.
const LOOK: Duration = Duration::from_secs(1);
/// Largest file of a map, bytes.
const MAX_MAP: u64 = 64 << 10;

/// Signs with the node's key.
pub type Sign = Arc<dyn Fn(&[u8]) -> [u8; 64] + Send + Sync>;

/// What a replica needs to know.
#[derive(Clone)]
pub struct ReplicaConfig {
    /// File of the records.
    pub store: PathBuf,
    /// File with the map of nodes; it may come, go and change.
    pub map: Option<PathBuf>,
    /// Where heartbeats are taken. If the port is in use, any other.
    pub bind: SocketAddr,
    /// Seconds between heartbeats, as agents are told.
    pub heartbeat: u32,
    /// Most records. Default: 16,777,216.
    pub records: u64,
    /// Most agents that send heartbeats. Default: 4,194,304.
    pub agents: usize,
    /// The node's key, and how it signs.
    pub node: [u8; 32],
    /// Signs with it.
    pub sign: Sign,
    /// The time, Unix seconds.
    pub clock: Clock,
}

impl ReplicaConfig {
    /// Defaults.
    #[must_use]
    pub fn new(store: PathBuf, bind: SocketAddr, node: [u8; 32], sign: Sign, clock: Clock) -> Self {
        let heartbeat = super::HEARTBEAT;
        Self { store, map: None, bind, heartbeat, records: 1 << 24, agents: 1 << 22, node, sign, clock }
    }
}

/// A connection of the server.
pub(crate) type Connection = (usize, usize, u64);
type Tell = Box<dyn FnOnce(Told) + Send>;

/// A running replica. Dropping it ends its threads.
pub struct Replica {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    config: ReplicaConfig,
    store: Replicas,
    presence: Mutex<Presence>,
    history: Mutex<History>,
    watchers: Mutex<Watchers>,
    /// Who has changed since watchers were told last.
    news: Mutex<News>,
    heard: Condvar,
    map: Mutex<Vec<u8>>,
    port: u16,
    began: Instant,
    stop: AtomicBool,
    heartbeats: AtomicU64,
}

/// What the thread that tells watchers has to do: one look at all of them for many changes.
#[derive(Default)]
struct News {
    owners: HashSet<OwnerKey>,
    /// One of them is not private.
    public: bool,
    /// Too many to be named.
    many: bool,
}

#[derive(Default)]
struct Watchers {
    of: HashMap<Connection, Vec<Watcher>>,
    count: usize,
}

struct Watcher {
    whose: Whose,
    history: u64,
    from: u64,
    since: Instant,
    tell: Tell,
}

/// Counters of a [`Replica`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplicaStats {
    /// Records held.
    pub records: u64,
    /// Agents that have a slot for heartbeats.
    pub agents: usize,
    /// Those of them that were heard of lately.
    pub alive: usize,
    /// Heartbeats taken since the start.
    pub heartbeats: u64,
    /// Questions that wait for a change.
    pub watches: usize,
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica").field("store", &self.shared.config.store).finish_non_exhaustive()
    }
}

#[allow(clippy::disallowed_methods, reason = "a replica is at the IO edge: it reads the clock for presence")]
fn now() -> Instant {
    Instant::now()
}

impl Replica {
    /// Opens the store and the socket, and starts the threads. `seed`: 40 unpredictable bytes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn start(config: ReplicaConfig, seed: &[u8; 40]) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Io { path: config.store.clone(), source };
        let any = SocketAddr::new(config.bind.ip(), 0);
        let socket = UdpSocket::bind(config.bind).or_else(|_| UdpSocket::bind(any)).map_err(failed)?;
        socket.set_read_timeout(Some(Duration::from_millis(250))).map_err(failed)?;
        let port = socket.local_addr().map_err(failed)?.port();
        let (mut secret, mut number) = ([0; 32], [0; 8]);
        secret.copy_from_slice(&seed[..32]);
        number.copy_from_slice(&seed[32..]);
        let shared = Arc::new(Shared {
            store: Replicas::open(&config.store, config.clock.clone(), config.records)?,
            presence: Mutex::new(Presence::new(secret, config.agents)),
            history: Mutex::new(History::new(u64::from_be_bytes(number))),
            watchers: Mutex::default(),
            news: Mutex::default(),
            heard: Condvar::new(),
            map: Mutex::default(),
            port,
            began: now(),
            stop: AtomicBool::new(false),
            heartbeats: AtomicU64::new(0),
            config,
        });
        shared.look_at_map(&mut None);
        let failed = |source| StoreError::Io { path: shared.config.store.clone(), source };
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(run).map_err(failed)
        };
        let (beats, tells) = (shared.clone(), shared.clone());
        let threads = vec![
            spawn("registry-presence", Box::new(move || beats.run(&socket)))?,
            spawn("registry-watch", Box::new(move || tells.tell_all()))?,
        ];
        Ok(Self { shared, threads })
    }

    /// UDP port of heartbeats.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.shared.port
    }

    /// State now.
    #[must_use]
    pub fn stats(&self) -> ReplicaStats {
        let presence = lock(&self.shared.presence);
        ReplicaStats {
            records: self.shared.store.len().unwrap_or(0),
            agents: presence.len(),
            alive: presence.alive(self.shared.seconds(), self.shared.config.heartbeat),
            heartbeats: self.shared.heartbeats.load(Ordering::Relaxed),
            watches: lock(&self.shared.watchers).count,
        }
    }

    /// The signed map, if there is one.
    #[must_use]
    pub fn map(&self) -> Option<SignedMap> {
        SignedMap::decode(&lock(&self.shared.map)).ok()
    }

    /// What is held for an agent.
    pub(crate) fn held(&self, owner: &OwnerKey) -> Option<Held> {
        self.shared.store.get(owner).ok().flatten()
    }

    /// The answer to what needs no more than a look.
    pub(crate) fn answer(
        &self,
        ask: &Ask,
        other: impl Fn(&OwnerKey) -> Option<Vec<u8>>,
        others: impl Fn(&OwnerKey, usize) -> Vec<Vec<u8>>,
        draw: impl FnOnce() -> [u8; 32],
    ) -> Result<Told, String> {
        match ask {
            Ask::Get { owner, nonce } => Ok(self.shared.get(owner, nonce.as_ref(), other(owner))),
            Ask::Map => Ok(Told::Map(lock(&self.shared.map).clone())),
            Ask::List { after } => {
                let page = self.shared.store.after(after, MAX_LISTED).map_err(|error| error.to_string())?;
                Ok(Told::List(merged(page, others(after, MAX_LISTED))))
            }
            Ask::Hello(hello) => self.shared.welcome(hello, other, &draw()),
            Ask::Put { .. } | Ask::Watch { .. } => Err("not a question".into()),
        }
    }

    /// Answers now, or when something has changed. False if too many wait.
    pub(crate) fn watch(&self, at: Connection, whose: Whose, history: u64, from: u64, tell: Tell) -> bool {
        let since = now();
        self.shared.watch(at, Watcher { whose, history, from, since, tell })
    }

    /// Hands a verified record to the store; false if too many wait.
    pub(crate) fn put(
        &self,
        put: Put,
        done: impl FnOnce(Result<crate::claims::local::Published, StoreError>) + Send + 'static,
    ) -> bool {
        let shared = self.shared.clone();
        let owner = owner_key(&put.record.agent_id(), put.record.network);
        let bytes = put.bytes.clone();
        self.shared.store.submit(
            put,
            Box::new(move |result| {
                if matches!(result, Ok((_, true))) {
                    shared.changed(&owner, &bytes);
                }
                done(result.map(|(published, _)| published));
            }),
        )
    }

    /// A record was stored elsewhere in this node.
    pub(crate) fn changed(&self, owner: &OwnerKey, record: &[u8]) {
        self.shared.changed(owner, record);
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.heard.notify_all();
        for thread in self.threads.drain(..) {
            // The last owner may be an answer that one of them gives.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    /// Since the start: a clock that does not go back.
    fn seconds(&self) -> u32 {
        self.began.elapsed().as_secs() as u32
    }

    fn get(&self, owner: &OwnerKey, nonce: Option<&[u8; 16]>, other: Option<Vec<u8>>) -> Told {
        let held = self.store.get(owner).ok().flatten();
        let (record, claim) = match (held, other) {
            (Some(held), Some(other)) if newer(&other, &held.record) => (other, Vec::new()),
            (Some(held), _) => (held.record, held.claim),
            (None, other) => (other.unwrap_or_default(), Vec::new()),
        };
        let seen = lock(&self.presence).seen(self.seconds(), owner);
        let attest = nonce.map(|nonce| {
            let time = (self.config.clock)();
            Attest { time, signature: (self.config.sign)(&attested(owner, nonce, time, &record)) }
        });
        Told::Held { record, claim, seen, attest }
    }

    fn welcome(
        &self,
        hello: &Hello,
        other: impl Fn(&OwnerKey) -> Option<Vec<u8>>,
        secret: &[u8; 32],
    ) -> Result<Told, String> {
        let owner = owner_key(&pilotage_wire::addressing::agent_id(&hello.key), hello.network);
        let signed = presence::hello_signed(&self.config.node, hello);
        let valid = VerifyingKey::from_bytes(&hello.key).is_ok_and(|key| {
            !key.is_weak() && key.verify_strict(&signed, &Signature::from_bytes(&hello.signature)).is_ok()
        });
        if !valid {
            return Err("the signature is wrong, or meant for another node".into());
        }
        if hello.time.abs_diff((self.config.clock)()) > CLOCK_SLACK {
            return Err("the time is more than a day off; is this machine's clock right?".into());
        }
        if self.store.get(&owner).ok().flatten().is_none() && other(&owner).is_none() {
            return Err("this node holds no record of the agent; put one here first".into());
        }
        let granted = lock(&self.presence).admit(self.seconds(), &owner);
        let (slot, token) = granted.ok_or("this node watches as many agents as it may")?;
        let sealed = presence::seal_token(&token, secret, &hello.ephemeral)
            .ok_or("the ephemeral key is not a usable X25519 key")?;
        let mut welcome = Welcome {
            slot,
            port: self.port,
            interval: self.config.heartbeat,
            ephemeral: presence::public(secret),
            sealed,
            signature: [0; 64],
        };
        welcome.signature = (self.config.sign)(&presence::welcome_signed(hello, &welcome));
        Ok(Told::Welcome(welcome))
    }

    fn watch(&self, at: Connection, watcher: Watcher) -> bool {
        // Under the lock of the history, so that no change is missed in between.
        let history = lock(&self.history);
        if let Some(told) = history.since(&watcher.whose, watcher.history, watcher.from) {
            drop(history);
            (watcher.tell)(told);
            return true;
        }
        let mut watchers = lock(&self.watchers);
        let watchers = &mut *watchers;
        let of = watchers.of.entry(at).or_default();
        let mut displaced = None;
        if of.len() >= MAX_WATCHES_PER_CONNECTION {
            displaced = Some(of.remove(0));
        } else if watchers.count >= MAX_WATCHES {
            if of.is_empty() {
                watchers.of.remove(&at);
            }
            return false;
        } else {
            watchers.count += 1;
        }
        of.push(watcher);
        if let Some(old) = displaced {
            (old.tell)(history.nothing(old.from));
        }
        true
    }

    fn changed(&self, owner: &OwnerKey, record: &[u8]) {
        {
            let mut history = lock(&self.history);
            // Who asks from now on finds it in the history.
            if !history.push(owner, record) || lock(&self.watchers).count == 0 {
                return;
            }
        }
        let mut news = lock(&self.news);
        let first = news.owners.is_empty();
        if news.owners.len() < MAX_NEWS {
            news.owners.insert(*owner);
        } else {
            news.many = true;
        }
        news.public |= !super::is_private(record);
        drop(news);
        // Whoever finds nothing there wakes the thread, which takes all.
        if first {
            self.heard.notify_one();
        }
    }

    /// Tells watchers what has changed, and those who waited for long that nothing has.
    fn tell_all(&self) {
        while !self.stop.load(Ordering::Acquire) {
            let news = {
                let mut news = lock(&self.news);
                if news.owners.is_empty() {
                    news = self.heard.wait_timeout(news, LOOK).unwrap_or_else(PoisonError::into_inner).0;
                }
                std::mem::take(&mut *news)
            };
            let old = now().checked_sub(HOLD);
            let history = lock(&self.history);
            self.tell(&history, |watcher| {
                let wanted = match &watcher.whose {
                    Whose::All => news.public,
                    Whose::Of(whose) => news.many || news.owners.contains(whose),
                };
                wanted || old.is_some_and(|old| watcher.since <= old)
            });
        }
    }

    /// Answers those who are chosen.
    fn tell(&self, history: &History, chosen: impl Fn(&Watcher) -> bool) {
        let mut ready = Vec::new();
        {
            let mut watchers = lock(&self.watchers);
            let watchers = &mut *watchers;
            watchers.of.retain(|_, of| {
                for at in (0..of.len()).rev() {
                    if chosen(&of[at]) {
                        ready.push(of.remove(at));
                    }
                }
                !of.is_empty()
            });
            watchers.count = watchers.count.saturating_sub(ready.len());
        }
        for watcher in ready {
            let since = history.since(&watcher.whose, watcher.history, watcher.from);
            (watcher.tell)(since.unwrap_or_else(|| history.nothing(watcher.from)));
        }
    }

    fn run(&self, socket: &UdpSocket) {
        let mut buffer = [0; HEARTBEAT_LEN + 1];
        let mut next = now() + LOOK;
        let mut modified = None;
        let mut count = 0_u32;
        while !self.stop.load(Ordering::Acquire) {
            match socket.recv_from(&mut buffer) {
                Ok((len, from)) => self.heartbeat(socket, &buffer[..len], from),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    count = 0;
                }
                // An earlier answer could not be delivered.
                Err(_) => {}
            }
            // The clock is not read for each datagram.
            count = count.wrapping_add(1);
            if count % 256 == 1 && now() >= next {
                next = now() + LOOK;
                self.look_at_map(&mut modified);
            }
        }
    }

    fn heartbeat(&self, socket: &UdpSocket, datagram: &[u8], from: SocketAddr) {
        let beat = lock(&self.presence).beat(self.seconds(), datagram);
        match beat {
            Beat::Alive => {
                self.heartbeats.fetch_add(1, Ordering::Relaxed);
            }
            // Four times shorter than what it answers: nobody gains by a forged sender.
            Beat::Unknown(reply) => drop(socket.send_to(&reply, from)),
            Beat::Ignored => {}
        }
    }

    /// Reads the map's file if it has changed, and adds this node's signature.
    fn look_at_map(&self, modified: &mut Option<std::time::SystemTime>) {
        let Some(path) = &self.config.map else { return };
        let found = std::fs::metadata(path).ok().filter(|meta| meta.len() <= MAX_MAP);
        let stamp = found.and_then(|meta| meta.modified().ok());
        if stamp.is_none() || stamp == *modified {
            return;
        }
        *modified = stamp;
        match read_map(path) {
            Ok(mut signed) => {
                let ours = signed.map.nodes.iter().any(|node| node.key == self.config.node);
                if ours && !signed.signatures.iter().any(|one| one.key == self.config.node) {
                    signed
                        .signatures
                        .push(signed.map.sign_with(self.config.node, |bytes| (self.config.sign)(bytes)));
                }
                let epoch = signed.map.epoch;
                tracing::info!(epoch, nodes = signed.map.nodes.len(), ours, "registry map");
                *lock(&self.map) = signed.encode();
            }
            Err(error) => tracing::warn!(%error, file = %path.display(), "registry map is not used"),
        }
    }
}

fn read_map(path: &Path) -> Result<SignedMap, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    SignedMap::decode(&bytes).map_err(|error| error.to_string())
}

/// One page of two: in order, each agent once with its newest record.
fn merged(one: Vec<Vec<u8>>, other: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut page: BTreeMap<OwnerKey, Vec<u8>> = BTreeMap::new();
    for record in one.into_iter().chain(other) {
        let Some(owner) = owner_in(&record) else { continue };
        let known = page.entry(owner).or_default();
        if known.is_empty() || newer(&record, known) {
            *known = record;
        }
    }
    page.into_values().take(MAX_LISTED).collect()
}

fn newer(one: &[u8], other: &[u8]) -> bool {
    use pilotage_wire::record::Rank;
    Rank::of(one) > Rank::of(other)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_are_bounded_in_all() {
        let dir = tempfile::tempdir().unwrap();
        let bind = ([127, 0, 0, 1], 0).into();
        let sign: Sign = Arc::new(|_| [0; 64]);
        let config = ReplicaConfig::new(dir.path().join("r.redb"), bind, [1; 32], sign, Arc::new(|| 1_000));
        let replica = Replica::start(config, &[3; 40]).unwrap();
        let (number, last) = lock(&replica.shared.history).position();
        let told = Arc::new(AtomicU64::new(0));
        let watch = |conn: usize| {
            let told = told.clone();
            let tell = Box::new(move |_: Told| {
                told.fetch_add(1, Ordering::Relaxed);
            });
            replica.watch((0, conn, 1), Whose::All, number, last, tell)
        };
        assert!((0..MAX_WATCHES).all(watch));
        assert!(!watch(MAX_WATCHES), "one more");
        assert_eq!(replica.stats().watches, MAX_WATCHES);
        assert_eq!(told.load(Ordering::Relaxed), 0);
        replica.changed(&[2; 34], &[0; 100]);
        // Taken out of the table together, told one by one.
        while replica.stats().watches > 0 || told.load(Ordering::Relaxed) < MAX_WATCHES as u64 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(told.load(Ordering::Relaxed), MAX_WATCHES as u64);
        assert!(watch(1), "there is room again");
    }
}
