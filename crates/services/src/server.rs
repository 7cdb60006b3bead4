//! Serves the services of this crate on a [`pilotage::Node`].
//!
//! One thread per service accepts, one thread per stream serves; at most [`MAX_STREAMS`] streams per
//! service run at a time (of the event stream more), further ones are refused. So are those of peers that
//! the [`Gate`] does not let in.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use pilotage::{DatagramSocket, Listener, Node, NodeId, SocketAddress, Stream};

use crate::clock::unix_millis;
use crate::events::Broker;
use crate::file::{ReceiveError, Received, Target};
use crate::message::{Inbox, Kind, Stored};
use crate::task::{Scores, Store, Task, Tasks};
use crate::{bench, echo, events, file, find, message, nameserver, report, task};

/// Streams that one service serves at a time.
pub const MAX_STREAMS: usize = 64;

/// Streams that one peer may have open at a time to a service that is new to draft-01.
pub const MAX_PER_PEER: usize = 16;

/// Calls that are served at a time: each holds its body and its result, 4 MiB at most.
pub const MAX_CALLS: usize = 32;

/// How often a thread looks whether it should stop.
const STOP_POLL: Duration = Duration::from_millis(200);

/// How often the time limits of tasks are looked at.
const TASK_POLL: Duration = Duration::from_secs(1);

/// How long we wait before peers are told again of decisions that they did not take.
const TELL_AGAIN: Duration = Duration::from_secs(30);

/// Who may use the services: everybody, or whom a closure lets in. It is asked at every stream.
#[derive(Clone, Default)]
pub struct Gate(Option<Arc<dyn Fn(NodeId) -> bool + Send + Sync>>);

impl Gate {
    /// Lets in whom `allows` says.
    #[must_use]
    pub fn new(allows: impl Fn(NodeId) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(allows)))
    }

    fn allows(&self, node: NodeId) -> bool {
        self.0.as_ref().is_none_or(|allows| allows(node))
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Gate(asks)" } else { "Gate(open)" })
    }
}

/// What to serve.
#[derive(Debug, Clone, Default)]
pub struct Services {
    /// Echo on port 7.
    pub echo: bool,
    /// Benchmark on port 1011.
    pub bench: bool,
    /// File transfer on port 1010.
    pub files: Option<FileService>,
    /// Data exchange on port 1001, into the directory of [`Services::files`] and under its limit; not served without it.
    pub messages: bool,
    /// Event stream on port 1002.
    pub events: bool,
    /// Task submission on port 1003.
    pub tasks: Option<TaskService>,
    /// Nameserver on port 53.
    pub nameserver: bool,
    /// How we see the asker, on port 1012.
    pub report: bool,
    /// Discovery by capability on port 1013, and calls on port 1014.
    pub find: Option<find::Host>,
    /// Who may use them.
    pub gate: Gate,
}

/// How to take tasks.
#[derive(Clone)]
pub struct TaskService {
    /// Where they are kept.
    pub store: Arc<Store>,
    /// With it, who has a lower polo score than this node cannot submit.
    pub scores: Option<Scores>,
}

impl fmt::Debug for TaskService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskService").field("scores", &self.scores.is_some()).finish_non_exhaustive()
    }
}

/// How to take files.
#[derive(Debug, Clone)]
pub struct FileService {
    /// Directory for them; it must exist.
    pub dir: PathBuf,
    /// Replace files of the same name.
    pub force: bool,
    /// Flush to the disk before confirming.
    pub fsync: bool,
    /// Bytes that may lie in `dir`, each file counted with 4 KiB at least; `None` for no limit.
    pub limit: Option<u64>,
}

/// Told to the observer given to [`serve`], from the threads that serve.
#[derive(Debug)]
#[non_exhaustive]
pub enum Notice {
    /// A file was stored and confirmed.
    FileReceived {
        /// Who sent it.
        peer: SocketAddress,
        /// What was stored.
        file: Received,
    },
    /// A file was not stored.
    FileFailed {
        /// Who tried.
        peer: SocketAddress,
        /// Why not.
        error: ReceiveError,
    },
    /// A message or a file came to port 1001 and was confirmed.
    MessageReceived {
        /// Who sent it.
        peer: SocketAddress,
        /// What was stored.
        message: Stored,
    },
    /// A task came, or was changed by the other side or by time.
    TaskChanged(Box<Task>),
    /// A stream of another service failed.
    StreamFailed {
        /// Who had it.
        peer: SocketAddress,
        /// The service's port.
        port: u16,
        /// Why.
        error: io::Error,
    },
    /// Accepting on a port ended for good.
    ListenerFailed {
        /// The port.
        port: u16,
        /// Why.
        error: io::Error,
    },
}

/// Counters of all services together.
#[derive(Debug, Default)]
pub struct Counters {
    /// Streams served to their end.
    pub streams: AtomicU64,
    /// Streams refused because [`MAX_STREAMS`] were running.
    pub refused: AtomicU64,
    /// Files stored.
    pub files: AtomicU64,
    /// Messages and files of port 1001 stored.
    pub messages: AtomicU64,
    /// Streams refused because the gate did not let the peer in.
    pub gated: AtomicU64,
}

/// Running services; dropping it asks them to stop without waiting.
#[derive(Debug)]
pub struct Serving {
    stop: Arc<AtomicBool>,
    counters: Arc<Counters>,
    threads: Vec<JoinHandle<()>>,
    gate: Gate,
    tasks: Option<Tasks>,
    broker: Option<Arc<Broker>>,
}

impl Serving {
    /// Counters so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What the operator can do with tasks, if they are served.
    #[must_use]
    pub fn tasks(&self) -> Option<&Tasks> {
        self.tasks.as_ref()
    }

    /// The event stream's broker, if that is served.
    #[must_use]
    pub fn broker(&self) -> Option<&Broker> {
        self.broker.as_deref()
    }

    /// Stops accepting and waits for the accepting threads (at most a fraction of a second).
    /// Streams that are being served end with the node.
    pub fn stop(mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// Called with what happens.
pub type Observer = Arc<dyn Fn(Notice) + Send + Sync>;

/// Starts to serve `services` on `node`.
///
/// # Errors
/// When a port is taken on this node, or a thread cannot be started.
pub fn serve(node: &Node, services: &Services, observer: Observer) -> io::Result<Serving> {
    let mut serving = Serving {
        stop: Arc::new(AtomicBool::new(false)),
        counters: Arc::new(Counters::default()),
        threads: Vec::new(),
        gate: services.gate.clone(),
        tasks: None,
        broker: None,
    };
    if services.echo {
        let observer_ = observer.clone();
        let handler =
            move |stream: &Stream| stream_result(echo::serve(stream), stream, echo::PORT, &observer_);
        serving.listen(node, Place::of(echo::PORT), handler, Stream::reset, &observer)?;
    }
    if services.bench {
        serving.bench(node, &observer)?;
    }
    if let Some(files) = &services.files {
        serving.inbox(node, files, services.messages, &observer)?;
    }
    if services.events {
        serving.events(node, &observer)?;
    }
    if let Some(tasks) = &services.tasks {
        serving.task_submission(node, tasks, &observer)?;
    }
    if services.report {
        let (node_, observer_) = (node.clone(), observer.clone());
        let handler = move |stream: &Stream| {
            stream_result(report::serve(&node_, stream), stream, report::PORT, &observer_)
        };
        let place = Place { port: report::PORT, streams: MAX_STREAMS, per_peer: MAX_PER_PEER };
        serving.listen(node, place, handler, Stream::reset, &observer)?;
    }
    if let Some(host) = &services.find {
        serving.discovery(node, host, &observer)?;
    }
    if services.nameserver {
        let table = Mutex::new(nameserver::Table::default());
        let observer_ = observer.clone();
        let handler = move |stream: &Stream| {
            let served = nameserver::serve(stream, &table, stream.peer().address);
            stream_result(served, stream, nameserver::PORT, &observer_);
        };
        let place = Place { port: nameserver::PORT, streams: MAX_STREAMS, per_peer: MAX_PER_PEER };
        serving.listen(node, place, handler, Stream::reset, &observer)?;
    }
    Ok(serving)
}

/// A port and how many streams it serves at a time.
#[derive(Debug, Clone, Copy)]
struct Place {
    port: u16,
    streams: usize,
    per_peer: usize,
}

impl Place {
    fn of(port: u16) -> Self {
        Self { port, streams: MAX_STREAMS, per_peer: MAX_STREAMS }
    }
}

/// The streams of a service that are being served.
#[derive(Debug, Default)]
struct Running {
    total: usize,
    by_peer: HashMap<NodeId, usize>,
}

/// Gives the place back however the handler ends.
struct Seat {
    running: Arc<Mutex<Running>>,
    peer: NodeId,
}

impl Seat {
    fn take(running: &Arc<Mutex<Running>>, peer: NodeId, place: Place) -> Option<Self> {
        let mut now = running.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = now.by_peer.get(&peer).copied().unwrap_or(0);
        if now.total >= place.streams || of_peer >= place.per_peer {
            return None;
        }
        now.total += 1;
        now.by_peer.insert(peer, of_peer + 1);
        Some(Self { running: running.clone(), peer })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut now = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        now.total -= 1;
        match now.by_peer.get_mut(&self.peer) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                now.by_peer.remove(&self.peer);
            }
        }
    }
}

impl Serving {
    fn bench(&mut self, node: &Node, observer: &Observer) -> io::Result<()> {
        let observer_ = observer.clone();
        let handler =
            move |stream: &Stream| stream_result(bench::serve(stream), stream, bench::PORT, &observer_);
        self.listen(node, Place::of(bench::PORT), handler, Stream::reset, observer)?;
        let socket = node.bind_datagram(bench::PORT).map_err(io::Error::other)?;
        let (stop, gate) = (self.stop.clone(), self.gate.clone());
        self.spawn("bench-datagrams", move || count_datagrams(&socket, &gate, &stop))
    }

    /// Ports 1010 and, if wanted, 1001: one directory, one limit.
    fn inbox(
        &mut self,
        node: &Node,
        files: &FileService,
        messages: bool,
        observer: &Observer,
    ) -> io::Result<()> {
        let quota = files.limit.map(|limit| file::Quota::new(&files.dir, limit));
        // The index is for messages; a directory that takes files only stays as it is.
        let inbox = messages.then(|| Arc::new(Inbox::new(&files.dir, quota.clone(), files.fsync)));
        let (files, inbox_, counters) = (files.clone(), inbox.clone(), self.counters.clone());
        let observer_ = observer.clone();
        let handler = move |stream: &Stream| {
            take_file(stream, &files, quota.clone(), inbox_.as_deref(), &counters, &observer_);
        };
        let busy = |stream: Stream| file::refuse(&stream, "the receiver is busy with 64 other files");
        self.listen(node, Place::of(file::PORT), handler, busy, observer)?;
        let Some(inbox) = inbox else { return Ok(()) };
        let (observer_, counters) = (observer.clone(), self.counters.clone());
        let handler = move |stream: &Stream| {
            let peer = stream.peer();
            let mut stored = |message| {
                counters.messages.fetch_add(1, Ordering::Relaxed);
                observer_(Notice::MessageReceived { peer, message });
            };
            let served = message::serve(stream, &inbox, &peer.address.to_string(), &mut stored);
            stream_result(served, stream, message::PORT, &observer_);
        };
        let place = Place { port: message::PORT, streams: MAX_STREAMS, per_peer: MAX_PER_PEER };
        self.listen(node, place, handler, Stream::reset, observer)
    }

    fn events(&mut self, node: &Node, observer: &Observer) -> io::Result<()> {
        let broker = Arc::new(Broker::default());
        self.broker = Some(broker.clone());
        let observer_ = observer.clone();
        let handler = move |stream: &Stream| {
            let served = stream.try_clone().map_err(events::WireError::from);
            match served.and_then(|stream| broker.serve(&Arc::new(stream))) {
                // How subscribers leave: they have nothing to say at the end.
                Err(events::WireError::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => {}
                served => stream_result(served.map_err(io::Error::other), stream, events::PORT, &observer_),
            }
        };
        let place = Place { port: events::PORT, streams: events::MAX_STREAMS, per_peer: MAX_STREAMS };
        self.listen(node, place, handler, Stream::reset, observer)
    }

    fn task_submission(&mut self, node: &Node, service: &TaskService, observer: &Observer) -> io::Result<()> {
        let own = node.clone();
        let taken =
            task::Taken::new(service.store.clone(), move || own.address().node, service.scores.clone());
        let observer_ = observer.clone();
        let handler = move |stream: &Stream| {
            let mut changed = |task| observer_(Notice::TaskChanged(Box::new(task)));
            let served = task::serve(stream, &taken, stream.peer().address, &mut changed);
            stream_result(served.map_err(io::Error::other), stream, task::PORT, &observer_);
        };
        let place = Place { port: task::PORT, streams: MAX_STREAMS, per_peer: MAX_PER_PEER };
        self.listen(node, place, handler, Stream::reset, observer)?;
        let tasks = Tasks::new(service.store.clone(), node.clone());
        self.tasks = Some(tasks.clone());
        let (stop, observer) = (self.stop.clone(), observer.clone());
        self.spawn("tasks", move || tend_tasks(&tasks, &stop, &observer))
    }

    /// Ports 1013 and 1014. Who is refused for lack of a place reads a reset stream, and knows that nothing began.
    fn discovery(&mut self, node: &Node, host: &find::Host, observer: &Observer) -> io::Result<()> {
        let (own, host_, observer_) = (node.clone(), host.clone(), observer.clone());
        let handler =
            move |stream: &Stream| stream_result(host_.serve(&own, stream), stream, find::PORT, &observer_);
        let place = Place { port: find::PORT, streams: MAX_STREAMS, per_peer: MAX_PER_PEER };
        self.listen(node, place, handler, Stream::reset, observer)?;
        let (host, observer_) = (host.clone(), observer.clone());
        let handler = move |stream: &Stream| {
            stream_result(host.serve_call(stream), stream, find::CALL_PORT, &observer_)
        };
        let place = Place { port: find::CALL_PORT, streams: MAX_CALLS, per_peer: MAX_PER_PEER };
        self.listen(node, place, handler, Stream::reset, observer)
    }

    fn listen(
        &mut self,
        node: &Node,
        place: Place,
        handler: impl Fn(&Stream) + Send + Sync + 'static,
        busy: impl Fn(Stream) + Send + 'static,
        observer: &Observer,
    ) -> io::Result<()> {
        let listener = node.listen(place.port).map_err(io::Error::other)?;
        let (stop, counters, observer) = (self.stop.clone(), self.counters.clone(), observer.clone());
        let (handler, gate) = (Arc::new(handler), self.gate.clone());
        let running = Arc::new(Mutex::new(Running::default()));
        self.spawn("accept", move || {
            while !stop.load(Ordering::Acquire) {
                match next(&listener) {
                    Ok(None) => {}
                    Ok(Some(stream)) if !gate.allows(stream.peer().address.node) => {
                        counters.gated.fetch_add(1, Ordering::Relaxed);
                        stream.reset();
                    }
                    Ok(Some(stream)) => match Seat::take(&running, stream.peer().address.node, place) {
                        Some(seat) => start(stream, &handler, seat, &counters),
                        None => {
                            counters.refused.fetch_add(1, Ordering::Relaxed);
                            busy(stream);
                        }
                    },
                    // The node was closed: that is an orderly end.
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => return,
                    Err(error) => {
                        observer(Notice::ListenerFailed { port: place.port, error });
                        return;
                    }
                }
            }
        })
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name(name.into()).spawn(run)?);
        Ok(())
    }
}

fn next(listener: &Listener) -> io::Result<Option<Stream>> {
    match listener.accept_timeout(STOP_POLL) {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        other => other,
    }
}

/// Serves a stream on a thread of its own.
fn start<H>(stream: Stream, handler: &Arc<H>, seat: Seat, counters: &Arc<Counters>)
where
    H: Fn(&Stream) + Send + Sync + 'static,
{
    let (handler, counters) = (handler.clone(), counters.clone());
    let spawned = thread::Builder::new().name("serve".into()).spawn(move || {
        let _seat = seat;
        handler(&stream);
        counters.streams.fetch_add(1, Ordering::Relaxed);
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "cannot start a thread for a stream: it is dropped");
    }
}

/// Applies the time limits of tasks, and tells peers what they have to know.
fn tend_tasks(tasks: &Tasks, stop: &AtomicBool, observer: &Observer) {
    let telling = Arc::new(AtomicBool::new(false));
    let (mut looked, mut told) = (Instant::now(), Instant::now());
    while !stop.load(Ordering::Acquire) {
        thread::sleep(STOP_POLL);
        let mut due = tasks.take_poke() || told.elapsed() >= TELL_AGAIN;
        if looked.elapsed() >= TASK_POLL {
            looked = Instant::now();
            for task in tasks.store().expire(unix_millis(SystemTime::now())) {
                due |= task.untold;
                observer(Notice::TaskChanged(Box::new(task)));
            }
        }
        if !due {
            continue;
        }
        if telling.swap(true, Ordering::AcqRel) {
            // Again when the last round is over.
            tasks.poke();
            continue;
        }
        told = Instant::now();
        // Connecting takes time, and stopping must not wait for it.
        let (tasks, done) = (tasks.clone(), telling.clone());
        let spawned = thread::Builder::new().name("tasks-tell".into()).spawn(move || {
            tasks.tell();
            done.store(false, Ordering::Release);
        });
        if spawned.is_err() {
            telling.store(false, Ordering::Release);
        }
    }
}

fn stream_result<T>(result: io::Result<T>, stream: &Stream, port: u16, observer: &Observer) {
    if let Err(error) = result {
        observer(Notice::StreamFailed { peer: stream.peer(), port, error });
    }
}

fn take_file(
    stream: &Stream,
    files: &FileService,
    quota: Option<Arc<file::Quota>>,
    inbox: Option<&Inbox>,
    counters: &Counters,
    observer: &Observer,
) {
    let (dir, force, fsync) = (files.dir.clone(), files.force, files.fsync);
    let target = Target::Directory { dir, force, fsync, quota };
    let peer = stream.peer();
    match file::receive(stream, target, &mut |_, _| {}) {
        Ok(file) => {
            counters.files.fetch_add(1, Ordering::Relaxed);
            if let (Some(inbox), Some(path)) = (inbox, &file.path) {
                inbox.note(&peer.address.to_string(), Kind::File, path, file.bytes);
            }
            observer(Notice::FileReceived { peer, file });
        }
        Err(error) => observer(Notice::FileFailed { peer, error }),
    }
}

fn count_datagrams(socket: &DatagramSocket, gate: &Gate, stop: &AtomicBool) {
    let mut counter = bench::Counter::new();
    while !stop.load(Ordering::Acquire) {
        let Some(datagram) = socket.recv_timeout(STOP_POLL) else { continue };
        let from = datagram.from;
        if !gate.allows(from.address.node) {
            continue;
        }
        if let Some(answer) = counter.handle(from, &datagram.data) {
            let _ = socket.send_to(from.address, from.port, &answer);
        }
    }
}
