//! Serves the services of this crate on a [`pilotage::Node`].
//!
//! One thread per service accepts, one thread per stream serves; at most [`MAX_STREAMS`] streams per
//! service run at a time, further ones are refused.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pilotage::{DatagramSocket, Listener, Node, SocketAddress, Stream};

use crate::file::{ReceiveError, Received, Target};
use crate::{bench, echo, file};

/// Streams that one service serves at a time.
pub const MAX_STREAMS: usize = 64;

/// How often a thread looks whether it should stop.
const STOP_POLL: Duration = Duration::from_millis(200);

/// What to serve.
#[derive(Debug, Clone, Default)]
pub struct Services {
    /// Echo on port 7.
    pub echo: bool,
    /// Benchmark on port 1011.
    pub bench: bool,
    /// File transfer on port 1010.
    pub files: Option<FileService>,
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
}

/// Running services; dropping it asks them to stop without waiting.
#[derive(Debug)]
pub struct Serving {
    stop: Arc<AtomicBool>,
    counters: Arc<Counters>,
    threads: Vec<JoinHandle<()>>,
}

impl Serving {
    /// Counters so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
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
    };
    if services.echo {
        let observer_ = observer.clone();
        let handler =
            move |stream: &Stream| stream_result(echo::serve(stream), stream, echo::PORT, &observer_);
        serving.listen(node, echo::PORT, handler, Stream::reset, &observer)?;
    }
    if services.bench {
        let observer_ = observer.clone();
        let handler =
            move |stream: &Stream| stream_result(bench::serve(stream), stream, bench::PORT, &observer_);
        serving.listen(node, bench::PORT, handler, Stream::reset, &observer)?;
        let socket = node.bind_datagram(bench::PORT).map_err(io::Error::other)?;
        let stop = serving.stop.clone();
        serving.spawn("bench-datagrams", move || count_datagrams(&socket, &stop))?;
    }
    if let Some(files) = services.files.clone() {
        let observer_ = observer.clone();
        let counters = serving.counters.clone();
        let quota = files.limit.map(|limit| file::Quota::new(&files.dir, limit));
        let handler = move |stream: &Stream| take_file(stream, &files, quota.clone(), &counters, &observer_);
        let busy = |stream: Stream| file::refuse(&stream, "the receiver is busy with 64 other files");
        serving.listen(node, file::PORT, handler, busy, &observer)?;
    }
    Ok(serving)
}

impl Serving {
    fn listen(
        &mut self,
        node: &Node,
        port: u16,
        handler: impl Fn(&Stream) + Send + Sync + 'static,
        busy: impl Fn(Stream) + Send + 'static,
        observer: &Observer,
    ) -> io::Result<()> {
        let listener = node.listen(port).map_err(io::Error::other)?;
        let (stop, counters, observer) = (self.stop.clone(), self.counters.clone(), observer.clone());
        let handler = Arc::new(handler);
        let running = Arc::new(AtomicUsize::new(0));
        self.spawn("accept", move || {
            while !stop.load(Ordering::Acquire) {
                match next(&listener) {
                    Ok(None) => {}
                    Ok(Some(stream)) => {
                        if running.load(Ordering::Acquire) >= MAX_STREAMS {
                            counters.refused.fetch_add(1, Ordering::Relaxed);
                            busy(stream);
                            continue;
                        }
                        start(stream, &handler, &running, &counters);
                    }
                    // The node was closed: that is an orderly end.
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => return,
                    Err(error) => {
                        observer(Notice::ListenerFailed { port, error });
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
fn start<H>(stream: Stream, handler: &Arc<H>, running: &Arc<AtomicUsize>, counters: &Arc<Counters>)
where
    H: Fn(&Stream) + Send + Sync + 'static,
{
    /// Gives the place back however the handler ends.
    struct Place(Arc<AtomicUsize>);
    impl Drop for Place {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::AcqRel);
        }
    }
    running.fetch_add(1, Ordering::AcqRel);
    let place = Place(running.clone());
    let (handler, counters) = (handler.clone(), counters.clone());
    let spawned = thread::Builder::new().name("serve".into()).spawn(move || {
        let _place = place;
        handler(&stream);
        counters.streams.fetch_add(1, Ordering::Relaxed);
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "cannot start a thread for a stream: it is dropped");
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
    counters: &Counters,
    observer: &Observer,
) {
    let (dir, force, fsync) = (files.dir.clone(), files.force, files.fsync);
    let target = Target::Directory { dir, force, fsync, quota };
    let peer = stream.peer();
    match file::receive(stream, target, &mut |_, _| {}) {
        Ok(file) => {
            counters.files.fetch_add(1, Ordering::Relaxed);
            observer(Notice::FileReceived { peer, file });
        }
        Err(error) => observer(Notice::FileFailed { peer, error }),
    }
}

fn count_datagrams(socket: &DatagramSocket, stop: &AtomicBool) {
    let mut counter = bench::Counter::new();
    while !stop.load(Ordering::Acquire) {
        let Some(datagram) = socket.recv_timeout(STOP_POLL) else { continue };
        let from = datagram.from;
        if let Some(answer) = counter.handle(from, &datagram.data) {
            let _ = socket.send_to(from.address, from.port, &answer);
        }
    }
}
