//! Trust, port 444 (spec/trust.md): who may call a private node, and how nodes agree on it.
//!
//! [`Trust`] serves the port, asks the registry for what it relays, keeps `trust.json`, and answers for the gate of a
//! private node. [`message`] is the format, `book` decides, `store` is the file, `serve` does the work.
//!
//! # Contract
//!
//! * A message counts only if the tunnel, the registry and the signature name the same key, and once.
//! * An answer counts only if we asked. (The reference believes anybody; spec/deviations.md N-3.)
//! * A trusted node is its key: the same id with another key is a stranger.
//! * A change is on the disk before anybody is told of it.
//! * Everything is bounded: [`MAX_PENDING`], [`MAX_OUTGOING`], [`MAX_TRUSTED`], [`MAX_STREAMS`].

mod access;
mod book;
pub mod message;
mod replay;
mod serve;
mod store;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pilotage::{ConnectFailure, HubError, ListenError, Node};
use pilotage_wire::NodeId;

use access::Access;
use book::{Act, Book};
pub use book::{MAX_OUTGOING, MAX_PENDING, MAX_TRUSTED, Outgoing, Pending, Refusal, Trusted};
use message::{Kind, MAX_SENT, Message};
use replay::{Replays, Stamps};
use serve::Job;
pub use serve::MAX_STREAMS;

/// The port of the trust handshake (draft-01 §8.1).
pub const PORT: u16 = 444;

/// Jobs that wait for the worker.
const MAX_JOBS: usize = 1_024;

/// Largest `trust.json` that is read, in bytes: a full one has 2 MiB.
const MAX_FILE: u64 = 8 << 20;

/// Why something about trust could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// `trust.json` cannot be read or written.
    #[error("{path}: {reason}", path = path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Port 444 cannot be served.
    #[error("port 444: {0}")]
    Listen(#[from] ListenError),
    /// No thread for it.
    #[error("no thread: {0}")]
    Thread(io::Error),
    /// The list of trust forbids it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The text does not fit into a message.
    #[error("the text is too long: a message has at most {MAX_SENT} bytes")]
    TooLong,
    /// The peer could be reached neither directly nor through the registry. The request is kept: if the peer asks us,
    /// both are agreed.
    #[error("the request did not leave: {relay}; directly: {direct}")]
    NotDelivered {
        /// Why not directly.
        direct: String,
        /// Why not through the registry.
        relay: HubError,
    },
}

/// How a request left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// To the peer itself.
    Direct,
    /// Through the registry; the peer asks there every 30 s or so.
    Relayed,
    /// The peer had asked before: both trust each other now.
    Agreed,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrustEvent {
    /// A request waits for an answer.
    Requested(Pending),
    /// A node is trusted now.
    Agreed(NodeId),
    /// A node does not want to trust us.
    Rejected(NodeId),
    /// A node trusts us no more, and so we do not trust it.
    Revoked(NodeId),
    /// A message or a relayed request was refused.
    Refused {
        /// Who sent it.
        node: NodeId,
        /// Why.
        reason: String,
    },
}

/// Told what happens, from the threads that serve.
pub type TrustObserver = Arc<dyn Fn(TrustEvent) + Send + Sync>;

/// Trust of one node. Clones are handles on the same; the last one that is dropped ends the threads.
#[derive(Clone)]
pub struct Trust {
    handle: Arc<Handle>,
}

/// Ends the threads when it goes.
struct Handle {
    inner: Arc<Inner>,
}

/// What the threads share.
struct Inner {
    node: Node,
    path: Option<PathBuf>,
    book: Mutex<Book>,
    replays: Mutex<Replays>,
    stamps: Mutex<Stamps>,
    access: Access,
    jobs: SyncSender<Job>,
    /// Streams to or from peers that are under way.
    streams: AtomicUsize,
    observer: TrustObserver,
    stop: AtomicBool,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust").field("path", &self.handle.inner.path).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::Release);
    }
}

impl Trust {
    /// Begins to serve, with what `trust.json` in `dir` holds; without a directory nothing is kept.
    ///
    /// # Errors
    /// The file is damaged, or port 444 is in use on this node.
    pub fn open(dir: Option<&Path>, node: &Node) -> Result<Self, TrustError> {
        Self::open_observed(dir, node, Arc::new(|_| {}))
    }

    /// As [`Trust::open`], and tells what happens.
    ///
    /// # Errors
    /// As [`Trust::open`].
    pub fn open_observed(
        dir: Option<&Path>,
        node: &Node,
        observer: TrustObserver,
    ) -> Result<Self, TrustError> {
        let path = dir.map(|dir| dir.join("trust.json"));
        let book = path.as_deref().map_or_else(|| Ok(Book::default()), load)?;
        let listener = node.listen(PORT)?;
        let (jobs, work) = sync_channel(MAX_JOBS);
        let inner = Arc::new(Inner {
            node: node.clone(),
            path,
            book: Mutex::new(book),
            replays: Mutex::default(),
            stamps: Mutex::default(),
            access: Access::default(),
            jobs,
            streams: AtomicUsize::new(0),
            observer,
            stop: AtomicBool::new(false),
        });
        let trust = Self { handle: Arc::new(Handle { inner: inner.clone() }) };
        serve::start(&inner, listener, work).map_err(TrustError::Thread)?;
        Ok(trust)
    }

    /// Asks a node to trust us; its approval comes later. If it asked us before, both are agreed at once. Blocks for the
    /// registry and for an attempt to reach the node: some seconds.
    ///
    /// # Errors
    /// Nothing was asked; see [`TrustError`].
    pub fn request(&self, node: NodeId, justification: &str) -> Result<Delivery, TrustError> {
        let inner = &self.handle.inner;
        if node == inner.us() {
            return Err(Refusal::Ourselves.into());
        }
        let key = inner.key_of(node);
        let message = inner.message(Kind::Request, node, justification, "");
        if message.len() > MAX_SENT {
            return Err(TrustError::TooLong);
        }
        let agreed = inner.change(|book| book.request(now(), node, key, justification))?;
        if let Some(acts) = agreed {
            inner.carry_out(acts);
            inner.tell(TrustEvent::Agreed(node));
            return Ok(Delivery::Agreed);
        }
        inner.deliver_request(node, &message, justification)
    }

    /// Trusts a node that asked.
    ///
    /// # Errors
    /// It did not ask, or its key is not known; see [`TrustError`].
    pub fn approve(&self, node: NodeId) -> Result<(), TrustError> {
        let inner = &self.handle.inner;
        let known = inner.book().pending.get(&node).and_then(|pending| pending.public_key);
        let key = known.or_else(|| inner.key_of(node));
        let acts = inner.change(|book| book.approve(now(), node, key))?;
        inner.carry_out(acts);
        inner.tell(TrustEvent::Agreed(node));
        Ok(())
    }

    /// Turns down a node that asked.
    ///
    /// # Errors
    /// It did not ask; see [`TrustError`].
    pub fn reject(&self, node: NodeId, reason: &str) -> Result<(), TrustError> {
        let inner = &self.handle.inner;
        if inner.message(Kind::Reject, node, "", reason).len() > MAX_SENT {
            return Err(TrustError::TooLong);
        }
        let acts = inner.change(|book| book.reject(node, reason))?;
        inner.carry_out(acts);
        Ok(())
    }

    /// Trusts a node no more: streams with it end, the registry and, if it can be reached, the node are told. Also takes
    /// back a request of ours.
    ///
    /// # Errors
    /// It is not trusted; see [`TrustError`].
    pub fn revoke(&self, node: NodeId) -> Result<(), TrustError> {
        let inner = &self.handle.inner;
        let acts = inner.change(|book| book.revoke(node))?;
        inner.carry_out(acts);
        Ok(())
    }

    /// Requests that wait for [`Trust::approve`] or [`Trust::reject`].
    pub fn pending(&self) -> Vec<Pending> {
        self.handle.inner.book().pending.values().cloned().collect()
    }

    /// Requests of ours that were not answered yet.
    pub fn outgoing(&self) -> Vec<Outgoing> {
        self.handle.inner.book().outgoing.values().filter(|asked| !asked.rejected).cloned().collect()
    }

    /// Nodes that we trust.
    pub fn trusted(&self) -> Vec<Trusted> {
        self.handle.inner.book().trusted.values().cloned().collect()
    }

    /// Whether we trust this node, by the key that its tunnel has shown if there is one.
    pub fn is_trusted(&self, node: NodeId) -> bool {
        self.handle.inner.is_trusted(node)
    }

    /// Closes the node to everybody but trusted nodes and those that share a network with us, as a private daemon of
    /// the reference does: others get no answer. Who shares a network is asked of the registry; its first call may have
    /// to be repeated (as SYN are). Once this `Trust` is gone, nobody is let in.
    pub fn guard(&self) {
        let inner = Arc::downgrade(&self.handle.inner);
        self.handle.inner.node.set_gate(Arc::new(move |node| {
            inner.upgrade().is_some_and(|inner| !inner.stop.load(Ordering::Acquire) && inner.may_enter(node))
        }));
    }
}

impl Inner {
    fn us(&self) -> NodeId {
        self.node.address().node
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Changes the book and the file, or neither.
    fn change<T>(&self, change: impl FnOnce(&mut Book) -> Result<T, Refusal>) -> Result<T, TrustError> {
        let mut book = self.book();
        let mut changed = book.clone();
        let done = change(&mut changed)?;
        if let Some(path) = self.path.as_deref().filter(|_| changed != *book) {
            save(path, &changed)?;
        }
        *book = changed;
        Ok(done)
    }

    /// Hands acts to the worker, in their order; a full queue drops them with a word, for the state itself is kept.
    fn carry_out(&self, acts: Vec<Act>) {
        for act in acts {
            if let Act::Dismiss { node } = act {
                self.access.forget(node);
                self.node.dismiss(node);
            } else if self.jobs.try_send(Job::Act(act)).is_err() {
                tracing::warn!("too much to tell about trust: some of it is dropped");
            }
        }
    }

    fn is_trusted(&self, node: NodeId) -> bool {
        let Some(key) = self.book().key_of(node) else { return false };
        self.node.peer(node).and_then(|tunnel| tunnel.key).is_none_or(|shown| shown == key)
    }

    fn message(&self, kind: Kind, to: NodeId, justification: &str, reason: &str) -> Vec<u8> {
        let us = self.us();
        let signature = self.node.sign(message::signed_string(us.0, to.0).as_bytes());
        let mut stamps = self.stamps.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let timestamp = stamps.next(now(), to, kind);
        drop(stamps);
        let message = Message {
            kind,
            node: us.0,
            public_key: self.node.public_key(),
            justification: justification.to_owned(),
            signature,
            reason: reason.to_owned(),
            timestamp,
        };
        message.encode()
    }

    fn tell(&self, event: TrustEvent) {
        (self.observer)(event);
    }
}

/// What a failed attempt to connect says, in one line.
fn said(failure: &ConnectFailure) -> String {
    failure.to_string().replace('\n', " ")
}

#[allow(clippy::disallowed_methods, reason = "services are the IO edge")]
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

fn load(path: &Path) -> Result<Book, TrustError> {
    let problem = |reason: String| TrustError::Store { path: path.to_owned(), reason };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Book::default()),
        Err(error) => return Err(problem(error.to_string())),
        Ok(about) if about.len() > MAX_FILE => return Err(problem("larger than any that is written".into())),
        Ok(_) => {}
    }
    let text = fs::read_to_string(path).map_err(|error| problem(error.to_string()))?;
    store::from_json(&text).map_err(|reason| problem(format!("{reason}; correct the file, or remove it")))
}

/// Replaces the file so that a crash leaves the old or the new content, never a mixture.
fn save(path: &Path, book: &Book) -> Result<(), TrustError> {
    use std::io::Write;
    let temporary = path.with_extension("json.new");
    let write = || {
        let json = store::to_json(book)?;
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&temporary)?;
        file.write_all(&json)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // The name is durable once its directory is.
        match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) if cfg!(unix) => fs::File::open(parent)?.sync_all(),
            _ => Ok(()),
        }
    };
    write().map_err(|error: io::Error| TrustError::Store { path: path.to_owned(), reason: error.to_string() })
}
