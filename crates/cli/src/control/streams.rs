//! Requests of other processes for pings, streams and ports of the running node (`spec/decisions/0013`).
//!
//! | request | answer |
//! |---|---|
//! | `describe` | what a node says about itself |
//! | `resolve` peer | address |
//! | `ping` peer, timeout_us | rtt_us, path |
//! | `trace` peer, timeout_us, wait_us | report |
//! | `doctor` peer or null | report |
//! | `datagram` peer, port, data in base64, idempotent, wait_us | peer, took_us, answer in base64 or null, from_port, rtt_us |
//! | `connect` peer, port | id, peer; then frames |
//! | `listen` port | port; then a line with id and peer for each stream that comes, until the connection ends |
//! | `accept` id | id, peer; then frames |
//! | `stream` id | path and counters |
//!
//! A failure is `{"error": {stage, cause, next, exit_code}}`.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use pilotage::{ListenError, Listener, Node, Peer, Stream};
use serde_json::{Value, json};

use super::Reply;
use super::frames::{FrameReader, Piece, write_data, write_end, write_failed, write_flushed};
use crate::cmd::ping::{micros, path_json};
use crate::cmd::send::stats_json;
use crate::cmd::{datagram, doctor, trace};
use crate::error::CliError;
use crate::node;

/// Streams that other processes hold at a time, those that wait to be fetched and ports included.
pub(crate) const MAX_STREAMS: usize = 256;

/// Longest ping or attempt to connect that is made for others.
const MAX_PATIENCE: Duration = Duration::from_secs(600);

/// How long a stream waits to be fetched by who listens.
const FETCH: Duration = Duration::from_secs(10);

/// How often a listening thread looks whether its client is still there.
const STOP_POLL: Duration = Duration::from_millis(200);

/// How long it takes to see whether a socket has ended.
const GLANCE: Duration = Duration::from_millis(1);

/// How often somebody who waits for acknowledgements is looked after.
const FLUSH_STEP: Duration = Duration::from_secs(5);

/// What other processes hold of the running node.
pub(crate) struct Streams {
    node: Node,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    held: HashMap<u64, Held>,
}

struct Held {
    stream: Arc<Stream>,
    /// Came to a port and waits to be fetched, since then.
    waiting: Option<Instant>,
}

impl Streams {
    pub(crate) fn new(node: Node) -> Arc<Self> {
        Arc::new(Self { node, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to a request of this module; `None` for others.
    pub(crate) fn answer(self: &Arc<Self>, request: &Value) -> Option<Reply> {
        let answered = match request["cmd"].as_str()? {
            "describe" => Ok(Reply::Line(node::describe(&self.node))),
            "resolve" => self.resolve(request).map(Reply::Line),
            "ping" => self.ping(request).map(Reply::Line),
            "trace" => self.trace(request).map(Reply::Line),
            "doctor" => self.doctor(request).map(Reply::Line),
            "datagram" => self.datagram(request).map(Reply::Line),
            "stream" => self.describe(request).map(Reply::Line),
            "connect" => self.connect(request),
            "listen" => self.listen(request),
            "accept" => self.accept(request),
            _ => return None,
        };
        Some(answered.unwrap_or_else(|error| Reply::Line(json!({ "error": error.to_json() }))))
    }

    fn resolve(&self, request: &Value) -> Result<Value, CliError> {
        let found = self.node.resolve(&peer(request)?)?;
        Ok(json!({ "address": found.address.to_string() }))
    }

    fn ping(&self, request: &Value) -> Result<Value, CliError> {
        let timeout = request["timeout_us"].as_u64().map_or(Duration::ZERO, Duration::from_micros);
        let reply = self.node.ping(peer(request)?, timeout.min(MAX_PATIENCE))?;
        Ok(json!({
            "rtt_us": micros(reply.rtt), "path": reply.path.as_ref().map(path_json), "reason": reply.reason,
        }))
    }

    fn datagram(&self, request: &Value) -> Result<Value, CliError> {
        let data = request["data"].as_str().and_then(|text| BASE64.decode(text).ok());
        let data =
            data.ok_or_else(|| CliError::usage("control socket", "no data in base64", "tell what to send"))?;
        let wait = request["wait_us"].as_u64().map_or(Duration::ZERO, Duration::from_micros);
        let idempotent = request["idempotent"] == true;
        let message = datagram::Message { port: port(request)?, data, idempotent, wait };
        datagram::exchange(&self.node, &peer(request)?, &message)
    }

    fn trace(&self, request: &Value) -> Result<Value, CliError> {
        let time =
            |key: &str| request[key].as_u64().map_or(Duration::ZERO, Duration::from_micros).min(MAX_PATIENCE);
        let report = trace::examine(&self.node, &peer(request)?, time("timeout_us"), time("wait_us"));
        Ok(json!({ "report": report }))
    }

    fn doctor(&self, request: &Value) -> Result<Value, CliError> {
        let peer = if request["peer"].is_null() { None } else { Some(peer(request)?) };
        Ok(json!({ "report": doctor::examine(&self.node, peer.as_ref()) }))
    }

    fn describe(&self, request: &Value) -> Result<Value, CliError> {
        let id = request["id"].as_u64().unwrap_or_default();
        let stream = self.lock().held.get(&id).map(|held| held.stream.clone());
        let stream = stream.ok_or_else(|| gone(id))?;
        Ok(json!({ "path": stream.path().as_ref().map(path_json), "stats": stats_json(&stream.stats()) }))
    }

    fn connect(self: &Arc<Self>, request: &Value) -> Result<Reply, CliError> {
        let (peer, port) = (peer(request)?, port(request)?);
        self.check_room()?;
        let stream = Arc::new(self.node.connect(&peer, port)?);
        let id = self.hold(&stream, false);
        Ok(self.hand_over(id, stream))
    }

    fn accept(self: &Arc<Self>, request: &Value) -> Result<Reply, CliError> {
        let id = request["id"].as_u64().unwrap_or_default();
        let mut state = self.lock();
        let held = state.held.get_mut(&id).filter(|held| held.waiting.is_some()).ok_or_else(|| gone(id))?;
        held.waiting = None;
        let stream = held.stream.clone();
        drop(state);
        Ok(self.hand_over(id, stream))
    }

    fn hand_over(self: &Arc<Self>, id: u64, stream: Arc<Stream>) -> Reply {
        let value = json!({ "id": id, "peer": stream.peer().to_string() });
        let streams = self.clone();
        let take = move |socket: UnixStream| {
            let _ = socket.set_read_timeout(None);
            let _ = socket.set_write_timeout(None);
            // Whole chunks come from the client, which gathers itself if it wants to.
            let _ = stream.set_nodelay(true);
            relay(&stream, &socket);
            streams.lock().held.remove(&id);
        };
        Reply::Take(value, Box::new(take))
    }

    fn listen(self: &Arc<Self>, request: &Value) -> Result<Reply, CliError> {
        self.check_room()?;
        let port = port(request)?;
        let listener = self.bind(port).map_err(|error| {
            CliError::failure("listen", error, "the running node uses this port: choose another")
        })?;
        let value = json!({ "port": listener.port() });
        let streams = self.clone();
        Ok(Reply::Take(value, Box::new(move |socket| streams.announce(&listener, &socket))))
    }

    /// A client that has just gone may still hold the port for a moment.
    fn bind(&self, port: u16) -> Result<Listener, ListenError> {
        let deadline = Instant::now() + 3 * STOP_POLL;
        loop {
            match self.node.listen(port) {
                Err(ListenError::InUse(_)) if Instant::now() < deadline => thread::sleep(STOP_POLL / 10),
                outcome => return outcome,
            }
        }
    }

    /// Tells a listening client about streams until it goes.
    fn announce(&self, listener: &Listener, mut socket: &UnixStream) {
        let _ = socket.set_read_timeout(Some(GLANCE));
        let mut waiting = Vec::new();
        // It says nothing: bytes or an end mean that it is gone.
        while matches!(socket.read(&mut [0; 1]), Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            self.drop_unfetched();
            match listener.accept_timeout(STOP_POLL) {
                Ok(Some(stream)) if self.check_room().is_err() => stream.reset(),
                Ok(Some(stream)) => {
                    let peer = stream.peer().to_string();
                    let id = self.hold(&Arc::new(stream), true);
                    waiting.retain(|id| self.lock().held.contains_key(id));
                    waiting.push(id);
                    let line = format!("{}\n", json!({ "id": id, "peer": peer }));
                    // A line is short: a client that lets them pile up is not worth waiting for.
                    if socket.write_all(line.as_bytes()).is_err() {
                        break;
                    }
                }
                Ok(None) => {}
                Err(_) => break,
            }
        }
        let mut state = self.lock();
        let unfetched: Vec<Held> = waiting
            .iter()
            .filter(|id| state.held.get(id).is_some_and(|held| held.waiting.is_some()))
            .copied()
            .collect::<Vec<_>>()
            .into_iter()
            .filter_map(|id| state.held.remove(&id))
            .collect();
        drop(state);
        reset(unfetched);
    }

    fn drop_unfetched(&self) {
        let mut state = self.lock();
        let late = |held: &Held| held.waiting.is_some_and(|since| since.elapsed() > FETCH);
        let ids: Vec<u64> = state.held.iter().filter(|(_, held)| late(held)).map(|(id, _)| *id).collect();
        let dropped: Vec<Held> = ids.iter().filter_map(|id| state.held.remove(id)).collect();
        drop(state);
        reset(dropped);
    }

    fn check_room(&self) -> Result<(), CliError> {
        if self.lock().held.len() < MAX_STREAMS {
            return Ok(());
        }
        let cause = format!("{MAX_STREAMS} streams of other processes are open in the running node");
        Err(CliError::failure("connect", cause, "let some of them end, or use --ephemeral"))
    }

    fn hold(&self, stream: &Arc<Stream>, waiting: bool) -> u64 {
        let mut state = self.lock();
        state.last += 1;
        let id = state.last;
        state.held.insert(id, Held { stream: stream.clone(), waiting: waiting.then(Instant::now) });
        id
    }
}

/// Streams that nobody fetched.
fn reset(unfetched: Vec<Held>) {
    for held in unfetched {
        if let Ok(stream) = held.stream.try_clone() {
            stream.reset();
        }
    }
}

fn gone(id: u64) -> CliError {
    CliError::failure("stream", format!("the running node has no stream {id}"), "run the command again")
}

fn peer(request: &Value) -> Result<Peer, CliError> {
    let text = request["peer"].as_str().unwrap_or_default();
    text.parse().map_err(|error| CliError::usage("command line", error, "name the peer in another way"))
}

fn port(request: &Value) -> Result<u16, CliError> {
    let port = request["port"].as_u64().and_then(|port| u16::try_from(port).ok());
    port.ok_or_else(|| CliError::usage("command line", "a port is 0 to 65535", "choose another port"))
}

/// Joins a stream with the process that asked for it, until both directions have ended or one side fails.
fn relay(stream: &Stream, socket: &UnixStream) {
    // Frames of two threads must not mix.
    let writing = Mutex::new(());
    let finished = AtomicBool::new(false);
    thread::scope(|scope| {
        let down = || {
            let result = stream_to_client(stream, socket, &writing);
            if result.is_err() {
                let _ = socket.shutdown(Shutdown::Both);
            }
        };
        if thread::Builder::new().name("control-stream".into()).spawn_scoped(scope, down).is_err() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        let result = client_to_stream(stream, socket, &writing, &finished);
        match result {
            Ok(()) => {}
            // The client is gone. What it ended in order is still delivered, anything else is broken off.
            Err(_) if finished.load(Ordering::Acquire) => {
                let _ = stream.shutdown(Shutdown::Both);
            }
            Err(_) => {
                if let Ok(stream) = stream.try_clone() {
                    stream.reset();
                }
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    });
}

fn locked(writing: &Mutex<()>) -> MutexGuard<'_, ()> {
    writing.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fails only if the client is gone.
fn stream_to_client(stream: &Stream, socket: &UnixStream, writing: &Mutex<()>) -> io::Result<()> {
    let mut buf = vec![0; 64 << 10];
    loop {
        match Read::read(&mut &*stream, &mut buf) {
            Ok(0) => {
                let _guard = locked(writing);
                return write_end(socket);
            }
            Ok(len) => {
                let mut rest = &buf[..len];
                while !rest.is_empty() {
                    let _guard = locked(writing);
                    let written = write_data(socket, rest)?;
                    rest = rest.get(written..).unwrap_or_default();
                }
            }
            Err(error) => {
                let _guard = locked(writing);
                write_failed(socket, &error)?;
                drop(_guard);
                // The client's writes end, too; what was sent to it can still be read.
                return socket.shutdown(Shutdown::Read);
            }
        }
    }
}

/// Returns once the client ended its direction and then closed the socket, or with an error if it went before.
fn client_to_stream(
    stream: &Stream,
    socket: &UnixStream,
    writing: &Mutex<()>,
    finished: &AtomicBool,
) -> io::Result<()> {
    let mut frames = FrameReader::default();
    let mut buf = vec![0; 64 << 10];
    loop {
        let outcome = match frames.read(socket, &mut buf)? {
            Piece::Data(len) => Write::write_all(&mut &*stream, &buf[..len]),
            Piece::End => stream.shutdown(Shutdown::Write).inspect(|()| {
                finished.store(true, Ordering::Release);
            }),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "no frame of a client")),
        };
        let ended = finished.load(Ordering::Acquire);
        match outcome.and_then(|()| if ended { flushed(stream, socket) } else { Ok(()) }) {
            Ok(()) if ended => {
                let _guard = locked(writing);
                write_flushed(socket)?;
                drop(_guard);
                // Now the client may go at any time.
                return match frames.read(socket, &mut buf) {
                    Err(error) => Err(error),
                    Ok(_) => Err(io::ErrorKind::InvalidData.into()),
                };
            }
            Ok(()) => {}
            Err(error) => {
                let _guard = locked(writing);
                let _ = write_failed(socket, &error);
                let _ = socket.shutdown(Shutdown::Read);
                return Err(error);
            }
        }
    }
}

/// Waits until the peer has everything, as long as the client is there.
fn flushed(stream: &Stream, socket: &UnixStream) -> io::Result<()> {
    loop {
        match stream.wait_flushed(FLUSH_STEP) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut && !stream.is_closed() => {
                // Not O_NONBLOCK, which the other thread's writes would feel, too.
                socket.set_read_timeout(Some(GLANCE))?;
                let gone = matches!((&*socket).read(&mut [0; 1]), Ok(0));
                socket.set_read_timeout(None)?;
                if gone {
                    return Ok(());
                }
            }
            other => return other,
        }
    }
}
