//! One client: takes its commands in order.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pilotage::{Listener, Peer, SocketAddress, Stream};
use pilotage_wire::ipc::{self, JsonKind, LENGTH_PREFIX, Reply, Request};
use serde_json::Value;

use crate::connections::{FOREIGN, LOOK_UP, pump};
use crate::outbox::Outbox;
use crate::server::Shared;
use crate::socket::is_hung_up;
use crate::{calls, datagrams, report};

/// How often an accepting thread looks whether it should stop.
const STOP_POLL: Duration = Duration::from_millis(200);

/// Names of threads, for people who look at the process.
const PUMP: &str = "ipc-connection";
const PORT: &str = "ipc-port";

/// One client, on its own thread.
pub(crate) struct Client {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: u64,
    pub(crate) socket: Arc<UnixStream>,
    pub(crate) outbox: Arc<Outbox>,
    /// Raised when the client goes; its ports watch it.
    gone: Arc<AtomicBool>,
    ports: usize,
}

impl Client {
    pub(crate) fn new(shared: Arc<Shared>, id: u64, socket: Arc<UnixStream>, outbox: Arc<Outbox>) -> Self {
        Self { shared, id, socket, outbox, gone: Arc::default(), ports: 0 }
    }

    /// Takes commands until the client goes, then ends what it had.
    pub(crate) fn run(mut self) {
        if let Err(error) = self.take_commands() {
            tracing::debug!(client = self.id, %error, "a client of the local socket ended");
        }
        self.gone.store(true, Ordering::Release);
        self.outbox.end();
        // Wakes the writing thread, should it wait for a client that does not read.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        self.shared.connections.close_all(self.id);
    }

    fn take_commands(&mut self) -> io::Result<()> {
        let socket = self.socket.clone();
        let mut message = Vec::new();
        loop {
            let mut prefix = [0; LENGTH_PREFIX];
            (&*socket).read_exact(&mut prefix)?;
            let len = match ipc::message_len(prefix) {
                Ok(len) => len,
                Err(error) => {
                    // Where the next message begins is not known any more.
                    self.fail(&error.to_string());
                    self.outbox.flush(Duration::from_secs(1));
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            };
            // A short message after a long one must not keep the memory.
            message.clear();
            message.shrink_to(64 << 10);
            // Grows with what comes, not with what is announced.
            (&*socket).take(len as u64).read_to_end(&mut message)?;
            if message.len() < len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.shared.counters.messages.fetch_add(1, Ordering::Relaxed);
            let done = match Request::decode(&message) {
                Ok(request) => self.execute(request),
                Err(ipc::IpcError::Command(command)) => Err(format!("unknown command: 0x{command:02x}")),
                Err(error) => Err(error.to_string()),
            };
            if let Err(text) = done {
                self.fail(&text);
            }
        }
    }

    fn fail(&self, text: &str) {
        self.shared.counters.errors.fetch_add(1, Ordering::Relaxed);
        self.outbox.push(&Reply::Error { code: 1, text });
    }

    fn execute(&mut self, request: Request<'_>) -> Result<(), String> {
        let shared = &self.shared;
        match request {
            Request::Bind { port } => return self.bind(port),
            Request::Dial { to } => return self.dial(to),
            Request::Send { connection, data } => return self.send(connection, data),
            Request::Close { connection } => self.close(connection),
            Request::SendTo { to, data } => {
                return datagrams::send(shared, self.source_port(), to, (data, false));
            }
            Request::SendIdempotent { to, data } => {
                return datagrams::send(shared, self.source_port(), to, (data, true));
            }
            Request::Info => return self.json(JsonKind::Info, report::info(shared)),
            Request::Health => return self.json(JsonKind::Health, report::health(shared)),
            Request::SetWebhook(url) => {
                shared.webhook.set(url)?;
                return self.json(JsonKind::SetWebhook, serde_json::json!({ "webhook": url }));
            }
            Request::Handshake(request) => {
                return self.json(JsonKind::Handshake, calls::handshake(shared, request)?);
            }
            Request::Network(request) => {
                return self.json(JsonKind::Network, calls::network(shared, request)?);
            }
            Request::ResolveHostname(_)
            | Request::SetHostname(_)
            | Request::SetVisibility { .. }
            | Request::Deregister
            | Request::SetTags(_)
            | Request::SetTaskExec { .. } => {
                let (kind, reply) = calls::registry(shared, request)?;
                return self.json(kind, reply);
            }
        }
        Ok(())
    }

    fn json(&self, kind: JsonKind, value: Value) -> Result<(), String> {
        let body = value.to_string();
        if body.len() >= ipc::MAX_MESSAGE {
            return Err(format!("the answer has {} bytes, which is more than a message holds", body.len()));
        }
        self.outbox.push(&Reply::Json { kind, body: body.as_bytes() });
        Ok(())
    }

    /// Each client sends its datagrams from a port of its own, in the dynamic range.
    fn source_port(&self) -> u16 {
        0xC000 | (self.id & 0x3FFF) as u16
    }

    fn bind(&mut self, port: u16) -> Result<(), String> {
        let max = self.shared.limits.ports_per_client;
        if self.ports >= max {
            return Err(format!("this client has bound {max} ports already"));
        }
        let listener = self.shared.node.listen(port).map_err(|error| match error {
            pilotage::ListenError::InUse(port) => format!("port {port} already bound"),
            other => other.to_string(),
        })?;
        let acceptor = Acceptor {
            shared: self.shared.clone(),
            client: self.id,
            outbox: self.outbox.clone(),
            gone: self.gone.clone(),
        };
        let port = listener.port();
        // The reply first, in the order of the requests; only then what comes to the port.
        let (go, wait) = std::sync::mpsc::channel::<()>();
        spawn(PORT, move || {
            if wait.recv().is_ok() {
                acceptor.run(&listener);
            }
        })?;
        self.ports += 1;
        self.outbox.push(&Reply::BindOk { port });
        let _ = go.send(());
        Ok(())
    }

    fn dial(&self, to: SocketAddress) -> Result<(), String> {
        let stream = self.shared.node.connect(Peer::Address(to.address), to.port);
        let stream = stream.map_err(|error| format!("dial {to}: {error}"))?;
        let limits = &self.shared.limits;
        let (id, stream) =
            self.shared.connections.add(self.id, stream, limits).map_err(|(reason, stream)| {
                stream.reset();
                format!("dial {to}: {reason}")
            })?;
        self.outbox.push(&Reply::DialOk { connection: id });
        start_pump(&self.shared, self.id, id, stream, &self.outbox)
    }

    /// Blocks while the peer takes no more: this protocol has no other way to hold the client back.
    fn send(&self, connection: u32, data: &[u8]) -> Result<(), String> {
        let stream = self.shared.connections.of(self.id, connection);
        let stream = stream.ok_or_else(|| format!("connection {connection} not found"))?;
        let failed = |error: io::Error| format!("connection {connection}: {error}");
        stream.set_write_timeout(Some(LOOK_UP)).map_err(failed)?;
        let mut left = data;
        while !left.is_empty() {
            match Write::write(&mut &*stream, left) {
                Ok(len) => left = left.get(len..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::TimedOut && !stream.is_closed() => {
                    if is_hung_up(&self.socket) {
                        return Ok(());
                    }
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    fn close(&self, connection: u32) {
        if connection >= FOREIGN {
            let found = self.shared.node.connections();
            let found = found.iter().find(|info| report::foreign_number(info.id) == connection);
            if let Some(info) = found {
                self.shared.node.disconnect(info.id);
            }
        } else {
            self.shared.connections.close(self.id, connection);
        }
        // Also for one that is not there (any more), as the reference does.
        self.outbox.push(&Reply::CloseOk { connection });
    }
}

/// Accepts on one port of a client.
struct Acceptor {
    shared: Arc<Shared>,
    client: u64,
    outbox: Arc<Outbox>,
    gone: Arc<AtomicBool>,
}

impl Acceptor {
    fn run(&self, listener: &Listener) {
        while !self.gone.load(Ordering::Acquire) {
            match listener.accept_timeout(STOP_POLL) {
                Ok(Some(stream)) => self.take(listener.port(), stream),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return,
                Err(error) => {
                    tracing::warn!(port = listener.port(), %error, "accepting for a client failed");
                    thread::sleep(STOP_POLL);
                }
            }
        }
    }

    fn take(&self, local_port: u16, stream: Stream) {
        let from = stream.peer();
        match self.shared.connections.add(self.client, stream, &self.shared.limits) {
            Ok((id, stream)) => {
                self.outbox.push(&Reply::Accept { local_port, connection: id, from });
                if let Err(error) = start_pump(&self.shared, self.client, id, stream, &self.outbox) {
                    tracing::warn!(%error, "a connection was dropped");
                }
            }
            Err((_, stream)) => {
                self.shared.counters.refused_connections.fetch_add(1, Ordering::Relaxed);
                stream.reset();
            }
        }
    }
}

fn start_pump(
    shared: &Arc<Shared>,
    client: u64,
    id: u32,
    stream: Arc<Stream>,
    outbox: &Arc<Outbox>,
) -> Result<(), String> {
    // A driver's message goes out as it is: the drivers write a header and its body apart, and no command of the protocol
    // says that they belong together, so gathering costs them a round trip and a delayed acknowledgement each time.
    let _ = stream.set_nodelay(true);
    let (shared_, outbox_) = (shared.clone(), outbox.clone());
    spawn(PUMP, move || pump(&shared_.connections, id, &stream, &outbox_)).inspect_err(|_| {
        shared.connections.close(client, id);
        outbox.push(&Reply::CloseOk { connection: id });
    })
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let spawned = thread::Builder::new().name(name.into()).spawn(run);
    spawned.map(drop).map_err(|error| format!("no thread for it: {error}"))
}
