//! Records of public nodes on the Mainline DHT (spec/replica.md §9, decision 0046).
//!
//! [`Mainline`] is a [`Directory`]: it keeps one record stored as a mutable item (BEP 44) under the node's Ed25519 key, and finds
//! those of others by their keys. Everybody can read what lies there, so that only records of public agents come this far; and
//! everybody can answer, so that whoever asks verifies the record itself.
//!
//! The DHT is opened for each use and closed soon after: a node of ours is a client there, for minutes in an hour. It never
//! stores or forwards what belongs to others.

mod client;
mod item;
mod wait;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use std::{fmt, io};

use pilotage::NetworkId;
use pilotage::records::{Directory, DirectoryStatus, Public, Sign};

use client::Client;

/// Look-ups at a time; a further one finds nothing.
pub const MAX_ASKING: usize = 4;
/// Records that one look-up gives: those of the greatest numbers.
pub const MAX_FOUND: usize = 4;
/// A record that could not be stored is tried again after this long.
const RETRY: Duration = Duration::from_secs(60);
/// A record is stored, or is not, within this time.
const PUT_PATIENCE: Duration = Duration::from_secs(20);

/// How the DHT is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MainlineConfig {
    /// Nodes to begin with, `HOST:PORT`, IPv4. Empty: the well-known ones of the public DHT.
    pub bootstrap: Vec<String>,
    /// Address to send from. Default: any.
    pub bind: Option<Ipv4Addr>,
    /// Between two storings of the same record: nodes of the DHT forget after two hours. Default: an hour, a tenth more or less.
    pub republish: Duration,
    /// Between two storings of different records at least. Default: 30 s.
    pub gap: Duration,
    /// How long a look-up may take. Default: 8 s.
    pub patience: Duration,
    /// How long a node of the DHT has to answer. Default: 2 s.
    pub answer: Duration,
}

impl Default for MainlineConfig {
    fn default() -> Self {
        Self {
            bootstrap: Vec::new(),
            bind: None,
            republish: Duration::from_secs(3_600),
            gap: Duration::from_secs(30),
            patience: Duration::from_secs(8),
            answer: Duration::from_secs(2),
        }
    }
}

/// The Mainline DHT as a directory. Its thread ends soon after the value: what is just being stored is not waited for.
#[derive(Debug)]
pub struct Mainline {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: MainlineConfig,
    client: Client,
    own: Mutex<Own>,
    wake: Condvar,
    asking: AtomicUsize,
    status: Mutex<DirectoryStatus>,
}

/// What is to be stored.
#[derive(Default)]
struct Own {
    record: Option<(Public, Sign)>,
    /// When it is stored (again).
    due: Option<Instant>,
    tried: Option<Instant>,
    stop: bool,
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seq = self.record.as_ref().map(|(record, _)| record.seq());
        f.debug_struct("Own").field("seq", &seq).field("due", &self.due).finish_non_exhaustive()
    }
}

impl Mainline {
    /// Starts. Nothing is sent before there is a record to store, or a question.
    ///
    /// # Errors
    /// There is no thread.
    pub fn start(config: MainlineConfig) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            client: Client::new(&config),
            config,
            own: Mutex::default(),
            wake: Condvar::new(),
            asking: AtomicUsize::new(0),
            status: Mutex::default(),
        });
        let of_thread = shared.clone();
        let run = move || of_thread.run();
        thread::Builder::new().name("pilotage-mainline".into()).spawn(run)?;
        Ok(Self { shared })
    }
}

impl Drop for Mainline {
    fn drop(&mut self) {
        lock(&self.shared.own).stop = true;
        self.shared.wake.notify_all();
    }
}

impl Directory for Mainline {
    fn name(&self) -> &'static str {
        "mainline"
    }

    fn publish(&self, record: Public, sign: Sign) {
        let mut own = lock(&self.shared.own);
        if own.record.as_ref().is_some_and(|(old, _)| old.bytes() == record.bytes()) {
            return;
        }
        own.due = Some(own.tried.map_or_else(Instant::now, |tried| tried + self.shared.config.gap));
        own.record = Some((record, sign));
        self.shared.wake.notify_all();
    }

    fn find(&self, key: &[u8; 32], network: NetworkId) -> Vec<Vec<u8>> {
        self.shared.find(*key, network)
    }

    fn status(&self) -> DirectoryStatus {
        lock(&self.shared.status).clone()
    }
}

impl Shared {
    /// Lets the thread look when to close the DHT. With the lock: between its look and its sleep nothing is missed.
    fn tell(&self) {
        let _own = lock(&self.own);
        self.wake.notify_all();
    }

    fn run(&self) {
        while let Some((record, sign)) = self.next() {
            let stored = self.client.put(&record, &sign, Instant::now() + PUT_PATIENCE);
            let mut status = lock(&self.status);
            let again = match stored {
                Ok(nodes) => {
                    status.published += 1;
                    (status.stored_at, status.last_error) = (nodes, None);
                    jittered(self.config.republish, &record, status.published)
                }
                Err(why) => {
                    tracing::warn!(%why, "record not stored on the Mainline DHT");
                    status.last_error = Some(why);
                    RETRY.min(self.config.republish)
                }
            };
            drop(status);
            let mut own = lock(&self.own);
            own.tried = Some(Instant::now());
            // A newer one that came meanwhile has its own time.
            if own.record.as_ref().is_some_and(|(now, _)| now.bytes() == record.bytes()) {
                own.due = Some(Instant::now() + again);
            }
        }
    }

    /// Waits for the next record to store; `None` at the end. The DHT is closed while there is nothing to do.
    fn next(&self) -> Option<(Public, Sign)> {
        let mut own = lock(&self.own);
        loop {
            if own.stop {
                return None;
            }
            let left = own.due.map(|due| due.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                own.due = None;
                return own.record.clone();
            }
            let until = left.into_iter().chain(self.client.close_idle()).min();
            own = match until {
                Some(left) => self.wake.wait_timeout(own, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.wake.wait(own).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn find(self: &Arc<Self>, key: [u8; 32], network: NetworkId) -> Vec<Vec<u8>> {
        if self.asking.fetch_add(1, Ordering::AcqRel) >= MAX_ASKING {
            self.asking.fetch_sub(1, Ordering::AcqRel);
            return Vec::new();
        }
        let deadline = Instant::now() + self.config.patience;
        let (send, receive) = mpsc::sync_channel(1);
        let of_thread = self.clone();
        // Opening the DHT resolves names, for which nobody sets a time.
        let run = move || {
            let answered = of_thread.client.get(&key, network, deadline, |found| drop(send.send(found)));
            match answered {
                Ok(refused) => lock(&of_thread.status).refused += refused,
                Err(why) => tracing::debug!(%why, "nothing found on the Mainline DHT"),
            }
            of_thread.asking.fetch_sub(1, Ordering::AcqRel);
            of_thread.tell();
        };
        if thread::Builder::new().name("pilotage-mainline-ask".into()).spawn(run).is_err() {
            self.asking.fetch_sub(1, Ordering::AcqRel);
            return Vec::new();
        }
        lock(&self.status).asked += 1;
        receive.recv_timeout(self.config.patience + Duration::from_millis(500)).unwrap_or_default()
    }
}

/// A tenth more or less, other for each node and each time: nodes that started together do not come together.
fn jittered(time: Duration, record: &Public, round: u64) -> Duration {
    let of_node = u64::from(record.key()[0]) * 7 + round * 13;
    time * (90 + (of_node % 21) as u32) / 100
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
