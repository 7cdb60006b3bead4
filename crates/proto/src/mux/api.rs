//! The application's calls, by the slot of a stream (spec/stream.md §2: they mean what they mean for connections of the draft).

use std::time::{Duration, Instant};

use pilotage_wire::SocketAddress;

use super::recv_stream::RecvHalf;
use super::send_stream::{Ending, SendHalf};
use super::stream::{Lists, Stream};
use super::{Cx, Mux, stream_window};
use crate::congestion::Controller;
use crate::connection::{Failure, Notify};
use crate::event::{
    ConnectError, ConnectionId, ConnectionInfo, ConnectionState, ConnectionStats, ReadError, WriteError,
};
use crate::send_buffer::{SendBuffer, ahead_beside};
use crate::tunnel::path::Path;

/// A stream that is opened and has no data waits so long for some, unless its owner begins to read.
const OPEN_WAIT: Duration = Duration::from_millis(5);
/// A peer that never ends its direction must not hold a stream that nobody has any more.
const LINGER: Duration = Duration::from_secs(60);
/// Entries of streams that are gone that may wait for their time, besides four for each that is there.
const LINGERS_KEPT: usize = 64;

/// A stream to be opened.
#[derive(Debug)]
pub(crate) struct NewStream {
    pub(crate) id: ConnectionId,
    pub(crate) local: SocketAddress,
    pub(crate) remote: SocketAddress,
    /// What was written already.
    pub(crate) buf: SendBuffer,
    pub(crate) fin_queued: bool,
    pub(crate) detached: bool,
    pub(crate) write_blocked: bool,
    pub(crate) queued: Notify,
}

impl Mux {
    /// Opens a stream. It leaves with its first data.
    pub(crate) fn connect(&mut self, new: NewStream, cx: &Cx<'_>) -> u32 {
        let NewStream { id, local, remote, buf, fin_queued, detached, write_blocked, queued } = new;
        let mut send = SendHalf::new(buf, true);
        send.max = self.stream_max;
        (send.fin_queued, send.write_blocked) = (fin_queued, write_blocked);
        let slot = self.streams.insert(Box::new(Stream {
            id,
            local,
            remote,
            number: None,
            incoming: false,
            announced: true,
            gated: false,
            detached,
            notify: Notify { connected: true, ..Notify::default() },
            queued,
            closed_told: false,
            lists: Lists::default(),
            counted_unread: 0,
            send,
            recv: RecvHalf::new(stream_window(cx.cfg), cx.cfg.recv_buffer),
            failure: None,
            first_sent: None,
            stats: ConnectionStats::default(),
        }));
        self.opens.push_back((cx.now + OPEN_WAIT, slot));
        self.streams.mark(slot);
        slot
    }

    pub(crate) fn read(&mut self, slot: u32, buf: &mut [u8], cx: &mut Cx<'_>) -> Result<usize, ReadError> {
        let Some(stream) = self.streams.get_mut(slot) else { return Err(ReadError::Unknown) };
        let n = stream.recv.asm.read(buf);
        let counted = stream.is_of_this_life();
        if n > 0 {
            if stream.recv.asm.readable() == 0 {
                stream.notify.readable |= stream.recv.is_at_end();
                if cx.path.squeezed {
                    stream.recv.asm.release();
                }
            }
            if stream.recv.wants_window() {
                stream.recv.max_due = true;
                self.streams.mark(slot);
            }
            if counted {
                self.on_read(n as u64);
            }
            return Ok(n);
        }
        if buf.is_empty() {
            return Ok(0);
        }
        if stream.recv.is_at_end() && !stream.recv.discarding {
            stream.recv.eof_read = true;
            return Ok(0);
        }
        if let Some(failure) = stream.failure {
            return Err(match failure {
                Failure::Connect(e) => ReadError::Connect(e),
                Failure::TimedOut => ReadError::TimedOut,
                Failure::Reset | Failure::Truncated => ReadError::Reset,
            });
        }
        if stream.recv.reset.is_some() {
            return Err(ReadError::Reset);
        }
        // Whoever waits for the peer to speak first has nothing to open with.
        self.open_now(slot);
        Err(ReadError::Blocked)
    }

    /// Whoever opened the stream waits for the peer's answer to that, and may have no data for it.
    pub(crate) fn open_now(&mut self, slot: u32) {
        if let Some(stream) = self.streams.get_mut(slot)
            && stream.send.opening
            && stream.first_sent.is_none()
            && !stream.send.open_due
        {
            stream.send.open_due = true;
            self.streams.mark(slot);
        }
    }

    pub(crate) fn write(&mut self, slot: u32, data: &[u8]) -> Result<usize, WriteError> {
        let ready = self.streams.ready.len();
        let Some(stream) = self.streams.get_mut(slot) else { return Err(WriteError::Unknown) };
        writable(stream)?;
        if stream.send.fin_queued {
            return Err(WriteError::Finished);
        }
        if data.is_empty() {
            return Ok(0);
        }
        stream.send.buf.set_ahead(ahead_beside(ready.saturating_sub(usize::from(stream.lists.ready))));
        let n = stream.send.buf.write(data);
        if n == 0 {
            stream.send.write_blocked = true;
            return Err(WriteError::Blocked);
        }
        self.streams.mark(slot);
        Ok(n)
    }

    pub(crate) fn shutdown(&mut self, slot: u32) -> Result<(), WriteError> {
        let Some(stream) = self.streams.get_mut(slot) else { return Err(WriteError::Unknown) };
        writable(stream)?;
        stream.send.fin_queued = true;
        self.streams.mark(slot);
        Ok(())
    }

    /// The application drops its handle: what is unread is thrown away, what was written is still delivered.
    pub(crate) fn detach(&mut self, slot: u32, now: Instant) {
        let Some(stream) = self.streams.get_mut(slot) else { return };
        stream.detached = true;
        stream.send.fin_queued = true;
        let counted = stream.is_of_this_life();
        let dropped = stream.recv.discard();
        stream.recv.max_due |= stream.recv.wants_window();
        let (id, over) = (stream.id, stream.is_over());
        if !over {
            self.linger(now, slot, id);
        }
        if counted {
            self.on_read(dropped);
        }
        self.streams.mark(slot);
        self.settle_end(slot);
    }

    /// Takes a stream out of the table: it is over and nobody holds it.
    pub(crate) fn remove(&mut self, slot: u32) -> Option<Box<Stream>> {
        let stream = self.streams.remove(slot)?;
        if stream.incoming && stream.number.is_some() {
            self.on_peer_stream_over();
        }
        self.release();
        Some(stream)
    }

    /// A stream waits for a verdict on its peer, and not for ever.
    pub(crate) fn hold(&mut self, slot: u32, now: Instant) {
        if let Some(stream) = self.streams.get_mut(slot) {
            stream.gated = true;
            let id = stream.id;
            self.linger(now, slot, id);
        }
    }

    fn linger(&mut self, now: Instant, slot: u32, id: ConnectionId) {
        self.lingers.push_back((now + LINGER, slot, id));
        // Those that are gone by now: a peer that opens and ends streams quickly must not fill the list.
        if self.lingers.len() > 4 * self.streams.len() + LINGERS_KEPT {
            let Self { lingers, streams, .. } = self;
            lingers.retain(|(_, slot, id)| streams.get(*slot).is_some_and(|s| s.id == *id));
        }
    }

    /// All streams are reset and told so. What came is acknowledged: a peer whose last words are not would repeat them to nobody.
    pub(crate) fn reset_all(&mut self, now: Instant) {
        self.received.say_all(now);
        for slot in self.streams.slots() {
            self.reset(slot);
        }
    }

    /// Repeats the last acknowledgement, of what came since `fresh`.
    pub(crate) fn acknowledge_again(&mut self, fresh: Instant, now: Instant) {
        self.received.repeat(fresh, now);
    }
}

fn writable(stream: &Stream) -> Result<(), WriteError> {
    match stream.failure {
        Some(Failure::Connect(e)) => Err(WriteError::Connect(e)),
        Some(Failure::TimedOut) => Err(WriteError::TimedOut),
        Some(Failure::Reset | Failure::Truncated) => Err(WriteError::Reset),
        None if stream.send.reset != Ending::None => Err(WriteError::Reset),
        None => Ok(()),
    }
}

impl Stream {
    pub(crate) fn connect_error(&self) -> Option<ConnectError> {
        let waits = !self.incoming && self.send.opening;
        match self.failure? {
            Failure::Connect(error) => Some(error),
            Failure::Reset | Failure::Truncated if waits => Some(ConnectError::Reset),
            Failure::TimedOut if waits => Some(ConnectError::Timeout),
            _ => None,
        }
    }

    /// Received bytes in memory.
    pub(crate) fn held(&self) -> usize {
        self.recv.asm.held()
    }

    /// Written bytes that the peer has not acknowledged.
    pub(crate) fn unacknowledged(&self) -> usize {
        (self.send.buf.end() - self.send.buf.acked()) as usize
    }

    pub(crate) fn stats(&self) -> ConnectionStats {
        let (bytes_received, bytes_acked) = (self.recv.asm.next(), self.send.buf.acked());
        ConnectionStats { bytes_received, bytes_acked, ..self.stats }
    }

    /// As an operator sees it.
    pub(crate) fn info(&self, path: &Path) -> ConnectionInfo {
        let state = match self.number {
            _ if self.is_ended() => ConnectionState::Closed,
            None => ConnectionState::SynSent,
            _ if self.send.fin_queued => ConnectionState::FinWait,
            _ if self.recv.is_at_end() => ConnectionState::CloseWait,
            _ => ConnectionState::Established,
        };
        ConnectionInfo {
            id: self.id,
            local: self.local,
            remote: self.remote,
            incoming: self.incoming,
            state,
            stats: self.stats(),
            congestion_window: path.controller.window(),
            slow_start_threshold: path.controller.ssthresh(),
            in_flight: self.send.buf.next() - self.send.buf.acked(),
            rtt: path.rtt.has_sample().then(|| (path.rtt.smoothed(), path.rtt.variance())),
            unacknowledged: self.unacknowledged(),
            out_of_order: self.held().saturating_sub(self.recv.asm.readable()),
            unread: self.recv.asm.readable(),
            peer_window: self.send.max.saturating_sub(self.send.buf.next()),
            own_window: self.recv.window.told.saturating_sub(self.recv.highest),
            recovering: self.send.has_lost(),
        }
    }
}
