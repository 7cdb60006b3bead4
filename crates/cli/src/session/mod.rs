//! The node that a command works with: the one that runs in the state directory (`pilotage up`), or one of its own.
//!
//! The same command line gives the same output either way. Through a running node, options about how to start one are
//! of no effect; `--ephemeral` always starts one.

mod channel;

use std::sync::Arc;
#[cfg(unix)]
use std::sync::Weak;
use std::time::Duration;

#[cfg(unix)]
use base64::Engine as _;
#[cfg(unix)]
use base64::engine::general_purpose::STANDARD as BASE64;
use pilotage::{Address, Listener, Node, PathInfo, Peer};
use pilotage_services::Duplex;
use pilotage_services::find::Reach;
use pilotage_services::gateway::{Acceptor, DialError, Dialer};
use serde_json::{Value, json};

use crate::args::NodeArgs;
use crate::cmd::{Context, datagram, doctor, trace};
use crate::control;
use crate::error::CliError;
use crate::node;

pub(crate) use channel::Channel;
#[cfg(unix)]
use control::frames::DaemonStream;

/// A node to work with.
pub(crate) enum Session {
    /// Started for this command.
    Own(Node),
    /// Runs in another process.
    #[cfg(unix)]
    Daemon(Daemon),
}

/// A running node, spoken to through its control socket.
#[cfg(unix)]
pub(crate) struct Daemon {
    state: std::path::PathBuf,
    about: Value,
    connect_timeout: Duration,
    open: Arc<Open>,
}

/// The streams of a running node that this command has, to be broken off when it is interrupted.
#[cfg(unix)]
#[derive(Default)]
struct Open(std::sync::Mutex<(bool, Vec<Weak<DaemonStream>>)>);

#[cfg(unix)]
impl Open {
    fn lock(&self) -> std::sync::MutexGuard<'_, (bool, Vec<Weak<DaemonStream>>)> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn add(&self, stream: &Arc<DaemonStream>) {
        let mut open = self.lock();
        open.1.retain(|stream| stream.strong_count() > 0);
        open.1.push(Arc::downgrade(stream));
        if open.0 {
            stream.abort();
        }
    }

    fn abort(&self) {
        let mut open = self.lock();
        open.0 = true;
        for stream in open.1.iter().filter_map(Weak::upgrade) {
            stream.abort();
        }
    }
}

/// The answer to a ping.
pub(crate) struct Pong {
    pub(crate) rtt: Duration,
    pub(crate) path: Option<PathInfo>,
    /// Why it is this path.
    pub(crate) reason: Option<String>,
}

/// Uses the running node of the state directory, else starts one.
pub(crate) fn open(context: &Context, args: &NodeArgs) -> Result<Session, CliError> {
    #[cfg(unix)]
    if !args.ephemeral
        && let Some(daemon) = Daemon::find(context, args)
    {
        return Ok(Session::Daemon(daemon));
    }
    node::start(context, args).map(Session::Own)
}

/// A name without a hub cannot work: say so before a socket is opened. A running node has its own hub.
pub(crate) fn check_peer(context: &Context, args: &NodeArgs, peer: &Peer) -> Result<(), CliError> {
    let running = !args.ephemeral && control::path(&context.settings.state).exists();
    if running { Ok(()) } else { node::check_peer(context, args, peer) }
}

impl Session {
    /// Whether the node was started for this command.
    pub(crate) fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }

    /// What the node says about itself.
    pub(crate) fn describe(&self) -> Value {
        match self {
            Self::Own(node) => node::describe(node),
            #[cfg(unix)]
            Self::Daemon(daemon) => daemon.about.clone(),
        }
    }

    /// The same for people.
    pub(crate) fn describe_text(&self) -> String {
        node::describe_text(&self.describe())
    }

    pub(crate) fn connect(&self, peer: &Peer, port: u16) -> Result<Channel, CliError> {
        match self {
            Self::Own(node) => Ok(Channel::Own(node.connect(peer, port)?)),
            #[cfg(unix)]
            Self::Daemon(daemon) => {
                let request = json!({ "cmd": "connect", "peer": peer.to_string(), "port": port });
                daemon.stream(&request, daemon.connect_timeout)
            }
        }
    }

    pub(crate) fn ping(&self, peer: &Peer, timeout: Duration) -> Result<Pong, CliError> {
        match self {
            Self::Own(node) => {
                let reply = node.ping(peer, timeout)?;
                Ok(Pong { rtt: reply.rtt, path: reply.path, reason: reply.reason.map(str::to_owned) })
            }
            #[cfg(unix)]
            Self::Daemon(daemon) => {
                let timeout_us = crate::cmd::ping::micros(timeout);
                let request = json!({ "cmd": "ping", "peer": peer.to_string(), "timeout_us": timeout_us });
                let reply = daemon.ask(&request, timeout + RESOLVE)?;
                let rtt = Duration::from_micros(reply["rtt_us"].as_u64().unwrap_or_default());
                let reason = reply["reason"].as_str().map(str::to_owned);
                Ok(Pong { rtt, path: channel::path_from_json(&reply["path"]), reason })
            }
        }
    }

    /// Sends a datagram, and waits for its answer (`cmd::datagram`).
    pub(crate) fn datagram(&self, peer: &Peer, message: &datagram::Message) -> Result<Value, CliError> {
        match self {
            Self::Own(node) => datagram::exchange(node, peer, message),
            #[cfg(unix)]
            Self::Daemon(daemon) => {
                let request = json!({
                    "cmd": "datagram", "peer": peer.to_string(), "port": message.port, "data": BASE64.encode(&message.data),
                    "idempotent": message.idempotent, "wait_us": crate::cmd::ping::micros(message.wait),
                });
                daemon.ask(&request, message.wait + datagram::MAX_SESSION + RESOLVE)
            }
        }
    }

    /// The steps on the way to a peer (`cmd::trace`).
    pub(crate) fn trace(&self, peer: &Peer, timeout: Duration, wait: Duration) -> Result<Value, CliError> {
        match self {
            Self::Own(node) => Ok(trace::examine(node, peer, timeout, wait)),
            #[cfg(unix)]
            Self::Daemon(daemon) => {
                let micros = crate::cmd::ping::micros;
                let request = json!({
                    "cmd": "trace", "peer": peer.to_string(),
                    "timeout_us": micros(timeout), "wait_us": micros(wait),
                });
                daemon.answer(&request, timeout + wait + RESOLVE)
            }
        }
    }

    /// What is right and wrong (`cmd::doctor`).
    pub(crate) fn doctor(&self, peer: Option<&Peer>) -> Result<Value, CliError> {
        match self {
            Self::Own(node) => Ok(doctor::examine(node, peer)),
            #[cfg(unix)]
            Self::Daemon(daemon) => {
                let request = json!({ "cmd": "doctor", "peer": peer.map(Peer::to_string) });
                daemon.answer(&request, DOCTOR)
            }
        }
    }

    /// The nodes that it has tunnels with, and those on the local network.
    pub(crate) fn known_peers(&self) -> Result<Vec<Peer>, CliError> {
        match self {
            Self::Own(node) => {
                let lan = node.lan_peers();
                let near =
                    lan.iter().filter_map(|near| Some(Peer::At(near.address, *near.endpoints.first()?)));
                let own = node.peers().into_iter().map(|peer| Peer::Address(peer.peer));
                Ok(own.chain(near).collect())
            }
            #[cfg(unix)]
            Self::Daemon(daemon) => {
                let status = daemon.ask(&json!({ "cmd": "status" }), Duration::ZERO)?;
                let list = |key: &str| status[key].as_array().cloned().unwrap_or_default();
                let peers = list("peers").into_iter().chain(list("lan"));
                Ok(peers
                    .filter_map(|peer| Some(Peer::Address(peer["address"].as_str()?.parse().ok()?)))
                    .collect())
            }
        }
    }

    pub(crate) fn resolve(&self, peer: &Peer) -> Result<Address, CliError> {
        match self {
            Self::Own(node) => Ok(node.resolve(peer)?.address),
            #[cfg(unix)]
            Self::Daemon(daemon) => {
                let reply = daemon.ask(&json!({ "cmd": "resolve", "peer": peer.to_string() }), RESOLVE)?;
                let address = reply["address"].as_str().and_then(|text| text.parse().ok());
                address.ok_or_else(|| not_understood("no address"))
            }
        }
    }

    pub(crate) fn listen(&self, port: u16) -> Result<Port, CliError> {
        match self {
            Self::Own(node) => {
                let listener = node.listen(port);
                listener
                    .map(Port::Own)
                    .map_err(|error| CliError::failure("listen", error, "choose another port"))
            }
            #[cfg(unix)]
            Self::Daemon(daemon) => daemon.listen(port).map(Port::Daemon),
        }
    }

    /// Ends a node of our own; a running one goes on.
    /// The node's address.
    pub(crate) fn address(&self) -> Result<Address, CliError> {
        match self {
            Self::Own(node) => Ok(node.address()),
            #[cfg(unix)]
            Self::Daemon(daemon) => {
                let text = daemon.about["address"].as_str().unwrap_or_default();
                text.parse().map_err(|_| not_understood("no address"))
            }
        }
    }

    /// Whether a tunnel is open with a peer that is no Pilotage node.
    pub(crate) fn has_foreign_peer(&self) -> bool {
        match self {
            Self::Own(node) => node.peers().iter().any(|peer| peer.established && !peer.pilotage),
            #[cfg(unix)]
            Self::Daemon(daemon) => {
                let foreign = |peer: &Value| peer["established"] == true && peer["pilotage"] == false;
                let status = daemon.ask(&json!({ "cmd": "status" }), Duration::ZERO);
                status
                    .is_ok_and(|status| status["peers"].as_array().is_some_and(|all| all.iter().any(foreign)))
            }
        }
    }

    pub(crate) fn close(&self) {
        match self {
            Self::Own(node) => node.close(),
            #[cfg(unix)]
            Self::Daemon(_) => {}
        }
    }
}

/// Longest that a running node looks for a peer.
#[cfg(unix)]
const RESOLVE: Duration = Duration::from_secs(20);

/// Longest that a running node examines itself.
#[cfg(unix)]
const DOCTOR: Duration = Duration::from_secs(60);

#[cfg(unix)]
fn not_understood(what: &str) -> CliError {
    let cause = format!("the running node's answer is not understood: {what}");
    CliError::failure("control socket", cause, "use the same version for `up` and this command")
}

#[cfg(unix)]
impl Daemon {
    /// `None` if no node runs here, or one that is too old for this.
    fn find(context: &Context, args: &NodeArgs) -> Option<Self> {
        let state = context.settings.state.clone();
        let about = control::request(&state, "describe").ok()?;
        about["address"].as_str()?;
        let told = args.bind.is_some() || args.name.is_some() || args.private || !args.peers.is_empty();
        if told {
            context
                .output
                .note("note: the node that runs already is used; options about starting one have no effect");
        }
        let default = pilotage::ProtoConfig::default().connect_timeout;
        let connect_timeout = args.connect_timeout.unwrap_or(default) + RESOLVE;
        let open = Arc::<Open>::default();
        let aborting = open.clone();
        context.stop.on_request(move || aborting.abort());
        Some(Self { state, about, connect_timeout, open })
    }

    fn exchange(
        &self,
        request: &Value,
        patience: Duration,
    ) -> Result<(Value, std::os::unix::net::UnixStream), CliError> {
        let (reply, socket) = control::open(&self.state, request, patience).map_err(|error| {
            let path = control::path(&self.state);
            CliError::failure(
                "control socket",
                format!("{}: {error}", path.display()),
                "check that `pilotage up` still runs",
            )
        })?;
        match &reply["error"] {
            Value::Null => Ok((reply, socket)),
            error => Err(CliError::from_json(error)),
        }
    }

    fn ask(&self, request: &Value, patience: Duration) -> Result<Value, CliError> {
        self.exchange(request, patience).map(|(reply, _)| reply)
    }

    /// As `ask`, for answers in which an error is part of the matter.
    fn answer(&self, request: &Value, patience: Duration) -> Result<Value, CliError> {
        let (mut reply, _) = self.exchange(request, patience)?;
        Ok(reply["report"].take())
    }

    fn stream(&self, request: &Value, patience: Duration) -> Result<Channel, CliError> {
        let (reply, socket) = self.exchange(request, patience)?;
        let id = reply["id"].as_u64().ok_or_else(|| not_understood("no stream"))?;
        let peer = reply["peer"].as_str().and_then(|text| text.parse().ok());
        let peer = peer.ok_or_else(|| not_understood("no peer"))?;
        let stream = Arc::new(DaemonStream::new(socket, id, peer));
        // As a node of our own would be closed.
        self.open.add(&stream);
        Ok(Channel::Daemon { stream, state: self.state.clone() })
    }

    fn listen(&self, port: u16) -> Result<DaemonPort, CliError> {
        let (_, socket) = self.exchange(&json!({ "cmd": "listen", "port": port }), Duration::ZERO)?;
        let daemon = Self {
            state: self.state.clone(),
            about: Value::Null,
            connect_timeout: self.connect_timeout,
            open: self.open.clone(),
        };
        Ok(DaemonPort { daemon, lines: std::sync::Mutex::new((socket, Vec::new())) })
    }
}

/// A port that streams come to.
pub(crate) enum Port {
    /// Of a node of our own.
    Own(Listener),
    /// Of a running node.
    #[cfg(unix)]
    Daemon(DaemonPort),
}

impl Port {
    /// The next stream; `None` after `timeout`.
    pub(crate) fn accept_timeout(&self, timeout: Duration) -> std::io::Result<Option<Channel>> {
        match self {
            Self::Own(listener) => Ok(listener.accept_timeout(timeout)?.map(Channel::Own)),
            #[cfg(unix)]
            Self::Daemon(port) => port.accept_timeout(timeout),
        }
    }
}

/// A port of a running node, for as long as this lives.
#[cfg(unix)]
pub(crate) struct DaemonPort {
    daemon: Daemon,
    /// The connection that announces streams, and the part of a line that came.
    lines: std::sync::Mutex<(std::os::unix::net::UnixStream, Vec<u8>)>,
}

#[cfg(unix)]
impl DaemonPort {
    fn accept_timeout(&self, timeout: Duration) -> std::io::Result<Option<Channel>> {
        use std::io::{Error, ErrorKind, Read};
        let mut lines = self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (socket, line) = &mut *lines;
        socket.set_read_timeout(Some(timeout))?;
        loop {
            let mut byte = [0; 1];
            match socket.read(&mut byte) {
                Ok(0) => return Err(Error::new(ErrorKind::NotConnected, "the running node has ended")),
                Ok(_) if byte != *b"\n" => line.push(byte[0]),
                Ok(_) => break,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
            if line.len() as u64 > control::MAX_REQUEST {
                return Err(Error::new(ErrorKind::InvalidData, "the running node's line is too long"));
            }
        }
        let told: Value = serde_json::from_slice(&std::mem::take(line))?;
        drop(lines);
        let request = json!({ "cmd": "accept", "id": told["id"] });
        match self.daemon.stream(&request, Duration::ZERO) {
            Ok(channel) => Ok(Some(channel)),
            // It ended before we fetched it.
            Err(error) => {
                tracing::debug!(%error, "an announced stream could not be fetched");
                Ok(None)
            }
        }
    }
}

impl Dialer for Session {
    fn dial(&self, peer: &Peer, port: u16) -> Result<Arc<dyn Duplex>, DialError> {
        match self {
            Self::Own(node) => node.dial(peer, port),
            #[cfg(unix)]
            Self::Daemon(_) => match self.connect(peer, port) {
                Ok(channel) => Ok(Arc::new(channel)),
                Err(error) => Err(DialError { kind: error.kind(), text: error.to_string() }),
            },
        }
    }
}

impl Reach for Session {
    fn reach(&self, peer: &Peer, port: u16) -> Result<(Arc<dyn Duplex>, Address), DialError> {
        match self.connect(peer, port) {
            Ok(channel) => {
                let address = channel.peer().address;
                Ok((Arc::new(channel), address))
            }
            Err(error) => {
                Err(DialError { kind: error.kind(), text: format!("{}: {}", error.stage, error.cause) })
            }
        }
    }
}

impl Acceptor for Port {
    fn accept(
        &self,
        timeout: Duration,
    ) -> std::io::Result<Option<(Arc<dyn Duplex>, pilotage::SocketAddress)>> {
        let channel = self.accept_timeout(timeout)?;
        Ok(channel.map(|channel| {
            let peer = channel.peer();
            (Arc::new(channel) as Arc<dyn Duplex>, peer)
        }))
    }
}
