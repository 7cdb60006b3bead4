//! The server: takes clients, and what they share.

use std::collections::HashMap;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use pilotage::{DatagramTap, Node};
use pilotage_wire::ipc::Reply;

use crate::client::Client;
use crate::connections::Connections;
use crate::outbox::Outbox;
use crate::webhook::Webhook;
use crate::{
    Counters, Limits, NoRegistry, Options, RegistryCalls, ServeError, TrustCalls, datagrams, socket,
};

/// How long a refused client may take to read why.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(200);

/// What all threads of a server share.
pub(crate) struct Shared {
    pub(crate) node: Node,
    pub(crate) registry: Arc<dyn RegistryCalls>,
    pub(crate) trust: Option<Arc<dyn TrustCalls>>,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<Counters>,
    pub(crate) connections: Connections,
    pub(crate) tap: Option<Arc<DatagramTap>>,
    pub(crate) webhook: Webhook,
    clients: Mutex<HashMap<u64, Handle>>,
    stop: AtomicBool,
}

/// What is kept of a client while its thread runs.
struct Handle {
    socket: Arc<UnixStream>,
    outbox: Arc<Outbox>,
}

/// A served socket. Dropping it ends all clients and removes the socket; the node lives on.
pub struct IpcServer {
    path: PathBuf,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for IpcServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IpcServer").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Serves the socket at `path` for clients of our own user.
///
/// The folder is made if it is not there; it must belong to us and be closed to others. A socket that nobody serves any
/// more is replaced.
///
/// # Errors
/// Say what is wrong with the path and what to do.
pub fn serve(node: &Node, path: &Path, options: Options) -> Result<IpcServer, ServeError> {
    let listener = socket::bind(path)?;
    let system = |source| ServeError::System { path: path.to_owned(), source };
    let counters = Arc::<Counters>::default();
    let tap = node.tap_datagrams().map(Arc::new);
    if let Err(error) = &tap {
        tracing::warn!(%error, "no datagrams for clients of the local socket");
    }
    let shared = Arc::new(Shared {
        node: node.clone(),
        registry: options.registry.unwrap_or_else(|| Arc::new(NoRegistry)),
        trust: options.trust,
        limits: options.limits,
        connections: Connections::default(),
        tap: tap.ok(),
        webhook: Webhook::new(node.clone(), counters.clone()),
        counters,
        clients: Mutex::default(),
        stop: AtomicBool::new(false),
    });
    let server = IpcServer { path: path.to_owned(), shared: shared.clone() };
    if let Some(tap) = shared.tap.clone() {
        let weak = Arc::downgrade(&shared);
        let run = move || datagrams::run(&tap, &weak);
        thread::Builder::new().name("ipc-datagrams".into()).spawn(run).map_err(system)?;
    }
    let run = move || accept(&listener, &shared);
    thread::Builder::new().name("ipc-accept".into()).spawn(run).map_err(system)?;
    Ok(server)
}

impl IpcServer {
    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Counters so far.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Clients now.
    pub fn clients(&self) -> usize {
        self.shared.clients().len()
    }
}

impl Drop for IpcServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // Wakes the accepting thread.
        let _ = UnixStream::connect(&self.path);
        let _ = std::fs::remove_file(&self.path);
        for handle in self.shared.clients().values() {
            handle.outbox.end();
            let _ = handle.socket.shutdown(Shutdown::Both);
        }
        self.shared.webhook.end();
    }
}

impl Shared {
    fn clients(&self) -> MutexGuard<'_, HashMap<u64, Handle>> {
        self.clients.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The queues of all clients.
    pub(crate) fn outboxes(&self) -> Vec<Arc<Outbox>> {
        self.clients().values().map(|handle| handle.outbox.clone()).collect()
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    for id in 0_u64.. {
        let accepted = listener.accept();
        if shared.is_stopping() {
            return;
        }
        match accepted {
            Ok((socket, _)) => admit(shared, id, socket),
            // Out of file descriptors, most likely: do not spin.
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn admit(shared: &Arc<Shared>, id: u64, stream: UnixStream) {
    if !socket::is_ours(&stream) {
        shared.counters.refused_clients.fetch_add(1, Ordering::Relaxed);
        tracing::warn!("a client of another user was refused on the local socket");
        return;
    }
    let max = shared.limits.clients;
    if shared.clients().len() >= max {
        refuse(shared, &stream, &format!("{max} clients are connected already"));
        return;
    }
    let socket = Arc::new(stream);
    let outbox = Arc::new(Outbox::new(shared.limits.queued_bytes));
    shared.clients().insert(id, Handle { socket: socket.clone(), outbox: outbox.clone() });
    shared.counters.clients.fetch_add(1, Ordering::Relaxed);
    let (writing, write_to) = (outbox.clone(), socket.clone());
    let writer = thread::Builder::new().name("ipc-write".into()).spawn(move || writing.run(&write_to));
    let client = Client::new(shared.clone(), id, socket.clone(), outbox.clone());
    let shared_ = shared.clone();
    let reader = thread::Builder::new().name("ipc-client".into()).spawn(move || {
        client.run();
        shared_.clients().remove(&id);
    });
    if let Err(error) = writer.and(reader) {
        tracing::warn!(%error, "no thread for a client of the local socket");
        outbox.end();
        let _ = socket.shutdown(Shutdown::Both);
        shared.clients().remove(&id);
    }
}

fn refuse(shared: &Shared, mut socket: &UnixStream, text: &str) {
    shared.counters.refused_clients.fetch_add(1, Ordering::Relaxed);
    let reply = Reply::Error { code: 1, text };
    let mut frame = vec![0; reply.encoded_len()];
    if reply.encode(&mut frame).is_ok() {
        let _ = socket.set_write_timeout(Some(REFUSAL_TIMEOUT));
        let _ = socket.write_all(&frame);
    }
}
