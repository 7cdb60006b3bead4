//! A byte stream to a port of a peer.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pilotage_proto::{ConnectionId, ConnectionStats, PathInfo, ReadError, WriteError};
use pilotage_wire::SocketAddress;

use crate::error::{closed, read_error, timed_out, write_error};
use crate::node::NodeInner;
use crate::path::{PathStatus, PathWatcher};
use crate::shared::{Core, Phase};
use crate::slot::{Direction, Slot};

/// Most bytes copied under the lock at once by a `write`: other threads get their turn, and sending starts early.
const MAX_PIECE: usize = 128 << 10;

/// Most bytes that one `write` takes, in pieces. What a piece leaves over of a full batch goes with the next.
const MAX_WRITE: usize = 1 << 20;

/// Most bytes copied under the lock by one `read`.
const MAX_READ: usize = 256 << 10;

/// A reliable, ordered byte stream in both directions.
///
/// Reading and writing block, as with [`std::net::TcpStream`], and are possible through a shared
/// reference, so that one thread may read while another writes. With the features `futures` and
/// `tokio` (both on by default) a stream also is `AsyncRead + AsyncWrite` for any runtime.
///
/// Dropping the last handle of a stream ends it in order: what was written is still delivered and
/// the peer then reads the end of the stream; what was not read yet is discarded.
pub struct Stream {
    inner: Arc<StreamInner>,
}

struct StreamInner {
    node: Arc<NodeInner>,
    id: ConnectionId,
    slot: Arc<Slot>,
    peer: SocketAddress,
    local_port: u16,
    /// Nanoseconds; 0 for none.
    read_timeout: AtomicU64,
    write_timeout: AtomicU64,
    /// The application does not want to read any more.
    read_closed: AtomicBool,
}

impl Stream {
    /// Takes over a connection that just came to be.
    pub(crate) fn adopt(
        node: &Arc<NodeInner>,
        core: &mut Core,
        id: ConnectionId,
        peer: SocketAddress,
    ) -> Self {
        let slot = core.adopt(id);
        let local_port = core.endpoint.local_port(id).unwrap_or(0);
        Self {
            inner: Arc::new(StreamInner {
                node: node.clone(),
                id,
                slot,
                peer,
                local_port,
                read_timeout: AtomicU64::new(0),
                write_timeout: AtomicU64::new(0),
                read_closed: AtomicBool::new(false),
            }),
        }
    }

    pub(crate) fn slot(&self) -> &Arc<Slot> {
        &self.inner.slot
    }

    /// One poll of a future that waits for this stream.
    pub(crate) fn poll<T>(
        &self,
        direction: Direction,
        cx: &mut Context<'_>,
        attempt: impl FnMut() -> Option<T>,
    ) -> Poll<T> {
        self.inner.node.shared.poll(&self.inner.slot, direction, cx, attempt)
    }

    pub(crate) fn id(&self) -> ConnectionId {
        self.inner.id
    }

    /// Its name in [`Node::connections`](crate::Node::connections).
    pub fn connection_id(&self) -> ConnectionId {
        self.inner.id
    }

    /// The peer and its port.
    pub fn peer(&self) -> SocketAddress {
        self.inner.peer
    }

    /// Our port.
    pub fn local_port(&self) -> u16 {
        self.inner.local_port
    }

    /// Whether nothing more will happen: both directions finished, or it failed. What came before can still be read.
    pub fn is_closed(&self) -> bool {
        self.inner.slot.is_closed()
    }

    /// The path in use: direct or relayed, where to, round-trip time, datagram size.
    pub fn path(&self) -> Option<PathInfo> {
        self.inner.node.shared.lock().endpoint.connection_path(self.inner.id)
    }

    /// The path with its reason and age.
    pub fn path_status(&self) -> Option<PathStatus> {
        let core = self.inner.node.shared.lock();
        self.inner.node.shared.path_status(&core, self.inner.peer.address.node)
    }

    /// Tells when the path changes, such as from the relay to a direct one.
    pub fn watch_path(&self) -> PathWatcher {
        PathWatcher::new(&self.inner.node, self.inner.peer.address.node)
    }

    /// Counters of this stream; zero once both ends are done with it.
    pub fn stats(&self) -> ConnectionStats {
        self.inner.node.shared.lock().endpoint.connection_stats(self.inner.id).unwrap_or_default()
    }

    /// Another handle on the same stream.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { inner: self.inner.clone() })
    }

    /// Ends one direction or both.
    ///
    /// `Write`: the peer reads the end of the stream behind everything written so far. `Read`: local
    /// only; this side reads the end of the stream from now on, and a peer that goes on writing is held
    /// back once the receive buffer is full.
    ///
    /// (With tokio's extension trait in scope, its `shutdown` is called as
    /// `AsyncWriteExt::shutdown(&mut stream)`; both end the write half.)
    ///
    /// # Errors
    /// The stream was reset or timed out.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if matches!(how, Shutdown::Read | Shutdown::Both) {
            self.inner.read_closed.store(true, Ordering::Release);
            self.inner.slot.signal(Direction::Read);
        }
        if how == Shutdown::Read {
            return Ok(());
        }
        let shared = &self.inner.node.shared;
        let mut core = shared.lock();
        if core.phase == Phase::Closed {
            return Err(closed());
        }
        let result = core.endpoint.shutdown(Instant::now(), self.inner.id);
        shared.finish(core);
        match result {
            Ok(()) | Err(WriteError::Finished) => Ok(()),
            Err(error) => Err(write_error(error)),
        }
    }

    /// Sends small writes at once instead of gathering them while data is unacknowledged (RFC 896).
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        let shared = &self.inner.node.shared;
        let mut core = shared.lock();
        core.endpoint.set_nodelay(Instant::now(), self.inner.id, nodelay);
        shared.finish(core);
        Ok(())
    }

    /// Longest wait of a blocking `read`, then [`io::ErrorKind::TimedOut`]. Shared by all handles of this stream.
    ///
    /// # Errors
    /// A timeout of zero, as in the standard library.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        store_timeout(&self.inner.read_timeout, timeout)
    }

    /// Longest wait of a blocking `write`, then [`io::ErrorKind::TimedOut`]. Shared by all handles of this stream.
    ///
    /// # Errors
    /// A timeout of zero, as in the standard library.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        store_timeout(&self.inner.write_timeout, timeout)
    }

    /// Waits until the peer's node has acknowledged everything written so far.
    ///
    /// (`flush` waits for nothing, as with TCP: written data is always on its way.)
    ///
    /// # Errors
    /// `TimedOut` after `timeout`; the stream's error if it failed before.
    pub fn wait_flushed(&self, timeout: Duration) -> io::Result<()> {
        let StreamInner { node, id, slot, .. } = &*self.inner;
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let seen = slot.epoch(Direction::Write);
            let mut core = node.shared.lock();
            if core.phase == Phase::Closed {
                return Err(closed());
            }
            if core.endpoint.is_flushed(*id) {
                return Ok(());
            }
            if slot.is_closed() {
                // An empty write tells why.
                let error = core.endpoint.write(Instant::now(), *id, &[]).err();
                return Err(write_error(error.unwrap_or(WriteError::Reset)));
            }
            core.flush_waits.push((*id, slot.clone()));
            drop(core);
            let woken = slot.wait(Direction::Write, seen, deadline);
            let mut core = node.shared.lock();
            // One entry per waiting thread: take out one that was not delivered.
            if let Some(at) = core.flush_waits.iter().position(|(waiting, _)| waiting == id) {
                core.flush_waits.swap_remove(at);
            }
            drop(core);
            if !woken {
                return Err(timed_out());
            }
        }
    }

    /// Gives up both directions at once; the peer reads an error, and unsent data is discarded.
    pub fn reset(self) {
        let shared = &self.inner.node.shared;
        let mut core = shared.lock();
        core.endpoint.reset(Instant::now(), self.inner.id);
        shared.finish(core);
    }

    /// One attempt; `None` if there is nothing to read yet.
    pub(crate) fn try_read(&self, buf: &mut [u8]) -> Option<io::Result<usize>> {
        let inner = &*self.inner;
        if buf.is_empty() || inner.read_closed.load(Ordering::Acquire) {
            return Some(Ok(0));
        }
        let shared = &inner.node.shared;
        let mut core = shared.look();
        if core.endpoint.read_waits(inner.id) && core.phase != Phase::Closed {
            return None;
        }
        core.unsettle();
        let now = Instant::now();
        let len = buf.len().min(MAX_READ);
        match core.endpoint.read(now, inner.id, &mut buf[..len]) {
            Ok(len) => {
                // Reading may open the window, which the peer has to be told.
                shared.finish_small(core, now, len);
                Some(Ok(len))
            }
            // The core has reset what was left; the caller should learn who did.
            Err(_) if core.phase == Phase::Closed => Some(Err(closed())),
            Err(ReadError::Blocked) => None,
            Err(error) => Some(Err(read_error(error))),
        }
    }

    /// One attempt; `None` if there is no room yet.
    pub(crate) fn try_write(&self, data: &[u8]) -> Option<io::Result<usize>> {
        let inner = &*self.inner;
        if data.is_empty() {
            return Some(Ok(0));
        }
        let data = &data[..data.len().min(MAX_WRITE)];
        let shared = &inner.node.shared;
        let (mut core, mut now) = (shared.lock(), Instant::now());
        let mut taken = 0;
        loop {
            if core.phase != Phase::Open {
                break if taken == 0 { Some(Err(closed())) } else { Some(Ok(taken)) };
            }
            let piece = &data[taken..data.len().min(taken + MAX_PIECE)];
            match core.endpoint.write(now, inner.id, piece) {
                Ok(len) => taken += len,
                Err(WriteError::Blocked) if taken == 0 => break None,
                Err(error) if taken == 0 => break Some(Err(write_error(error))),
                // The next call will say it.
                Err(_) => {
                    shared.finish_small(core, now, taken);
                    break Some(Ok(taken));
                }
            }
            if taken == data.len() || core.endpoint.writable(inner.id) == 0 {
                shared.finish_small(core, now, taken);
                break Some(Ok(taken));
            }
            core = shared.send_full(core, &mut now, inner.id);
        }
    }

    fn block_on<T>(
        &self,
        direction: Direction,
        timeout: &AtomicU64,
        mut attempt: impl FnMut() -> Option<io::Result<T>>,
    ) -> io::Result<T> {
        let mut deadline = None;
        loop {
            let seen = self.inner.slot.epoch(direction);
            if let Some(result) = attempt() {
                return result;
            }
            // The clock is not read unless something really has to wait.
            if deadline.is_none() {
                deadline = load_timeout(timeout).and_then(|timeout| Instant::now().checked_add(timeout));
            }
            if !self.inner.node.shared.wait(&self.inner.slot, direction, seen, deadline) {
                return Err(timed_out());
            }
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.block_on(Direction::Read, &self.inner.read_timeout, || self.try_read(buf))
    }
}

impl Write for &Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.block_on(Direction::Write, &self.inner.write_timeout, || self.try_write(data))
    }

    /// Waits for nothing: written data is always on its way. See [`Stream::wait_flushed`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buf)
    }
}

impl Write for Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        (&*self).write(data)
    }

    /// Waits for nothing: written data is always on its way. See [`Stream::wait_flushed`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("peer", &self.inner.peer)
            .field("local_port", &self.inner.local_port)
            .finish_non_exhaustive()
    }
}

impl Drop for StreamInner {
    fn drop(&mut self) {
        let shared = &self.node.shared;
        let mut core = shared.lock();
        core.abandon(Instant::now(), self.id);
        shared.finish(core);
        shared.post.call_if_left();
    }
}

fn store_timeout(cell: &AtomicU64, timeout: Option<Duration>) -> io::Result<()> {
    let nanos = match timeout {
        None => 0,
        Some(Duration::ZERO) => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a timeout of zero; use None for no timeout",
            ));
        }
        Some(timeout) => u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX),
    };
    cell.store(nanos, Ordering::Release);
    Ok(())
}

fn load_timeout(cell: &AtomicU64) -> Option<Duration> {
    match cell.load(Ordering::Acquire) {
        0 => None,
        nanos => Some(Duration::from_nanos(nanos)),
    }
}
