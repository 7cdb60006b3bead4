//! One port-to-port byte stream inside a tunnel (spec/stream.md).
//!
//! Sans-IO like everything here: [`Connection::on_segment`] and the application's calls change
//! state, [`Connection::poll_segment`] yields the next packet, [`Connection::deadline`] the next
//! time at which [`Connection::on_timeout`] wants to be called.
//!
//! Offsets are 64-bit and count stream bytes from 0; the 32-bit sequence number of offset `o` is
//! `isn + 1 + o`, because SYN counts as one (draft "Reliable stream"). FIN occupies the offset
//! after the last byte. RTT, MTU and congestion state belong to the [`Path`] and come in with each call.

mod info;
mod recv;
mod send;
mod timers;
#[cfg(feature = "fuzzing")]
mod view;

use std::time::Instant;

use pilotage_wire::SocketAddress;
use pilotage_wire::packet::{Flags, Header, Protocol};
use pilotage_wire::sack;

use crate::assembler::Assembler;
use crate::config::Config;
use crate::event::{ConnectError, ConnectionId, ConnectionStats, ReadError, WriteError};
use crate::mux::NewStream;
use crate::scoreboard::Scoreboard;
use crate::send_buffer::{SendBuffer, ahead_beside};
use crate::timer_table::Registered;
use crate::tunnel::path::Path;

pub(crate) use recv::SegmentFate;
pub(crate) use send::SegmentOut;
pub(crate) use timers::Timers;
#[cfg(feature = "fuzzing")]
pub(crate) use view::View;

/// Bytes per unit of the window field (spec/stream.md §4): the reference counts segments of its
/// maximum segment size, 4,096 bytes.
pub(crate) const WINDOW_UNIT: u64 = 4_096;

/// What a Pilotage peer shows in the handshake: the payload of SYN, and of the SYN-ACK that answers such a SYN. Reference
/// peers read neither payload (spec/tunnel.md §3.4).
pub(crate) const DIALECT_MARK: [u8; 4] = *b"PLTG";

/// How the peer behaves beyond the draft's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// A reference peer: whole-segment reassembly, window 0 means nothing, FIN ends both directions.
    Draft,
    /// A Pilotage peer, shown by the marker in its key exchange frame.
    Pilotage,
}

/// What a call on a connection may use besides the connection itself.
pub(crate) struct Cx<'a> {
    pub(crate) now: Instant,
    pub(crate) path: &'a mut Path,
    pub(crate) dialect: Dialect,
    pub(crate) cfg: &'a Config,
}

/// Where the connection stands. Half-closes are in the two directions' own fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// SYN is to be sent or was sent.
    SynSent,
    /// SYN was received, SYN-ACK is to be sent or was sent.
    SynReceived,
    /// Both sides know each other's ISN.
    Established,
    /// Both directions ended in order.
    Done,
    /// Failed: see the reason.
    Failed(Failure),
}

/// Why a connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It never came to be.
    Connect(ConnectError),
    /// The peer sent RST, or we did.
    Reset,
    /// No progress or no sign of life in the configured time.
    TimedOut,
    /// A reference peer closed with bytes missing.
    Truncated,
}

/// What the caller has to tell the application after a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Notify {
    pub(crate) connected: bool,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) closed: bool,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    /// Our side, with the address that the peer knows us by in this connection.
    pub(crate) local: SocketAddress,
    pub(crate) remote: SocketAddress,
    pub(crate) state: State,
    /// Incoming connections only: whether the accept queue was told.
    pub(crate) announced: bool,
    /// Whether this side accepted the connection.
    pub(crate) incoming: bool,
    /// The application dropped its handle.
    pub(crate) detached: bool,
    /// When both sides knew each other's ISN.
    established_at: Instant,
    /// Notifications that the endpoint has not collected yet.
    pub(crate) notify: Notify,
    /// Notifications already queued for the application (set by the endpoint, merged until polled).
    pub(crate) queued: Notify,
    /// In the tunnel's round of connections that have something to send.
    pub(crate) in_ready: bool,
    /// In the tunnel's list of connections whose deadline or notifications may have changed.
    pub(crate) touched: bool,
    /// In further lists of the tunnel.
    pub(crate) lists: Lists,
    /// Unread bytes of ours that the endpoint has counted.
    pub(crate) counted_unread: usize,
    /// The earliest deadline that the endpoint's timer table holds for us.
    pub(crate) registered: Option<Registered>,

    // ---- sending
    isn: u32,
    send: SendBuffer,
    board: Scoreboard,
    /// The part of the path's in-flight count that is ours.
    counted_in_flight: u64,
    /// First offset that the peer's window does not allow.
    window_edge: u64,
    /// Segments that a reference peer's queue can take (its window counts segments).
    window_segments: u64,
    quirks: Quirks,
    /// The application ended its direction.
    fin_queued: bool,
    /// FIN was given an offset and sent.
    fin_sent: bool,
    fin_acked: bool,
    nodelay: bool,
    /// A small segment was held back long enough.
    nagle_over: bool,
    /// Send one segment past the window (persist timer fired).
    window_probe: bool,
    tail: TailProbe,
    /// Handshake segment to send.
    syn_pending: bool,
    syn_first_sent: Option<Instant>,
    syn_transmissions: u32,
    /// RST to send, after which nothing else is sent.
    rst_pending: bool,
    /// Keepalive to send.
    keepalive_pending: bool,
    write_blocked: bool,
    /// Last time at which the peer acknowledged something new, or data was first outstanding.
    progress_at: Instant,
    /// Base of the retransmission timer (RFC 6298 §5).
    rto_base: Instant,
    backoff: u32,
    /// Retransmissions that the congestion window does not hold back.
    rto_credit: u8,
    looks: Looks,

    // ---- receiving
    peer_isn: u32,
    recv: Assembler,
    peer_fin: Option<u64>,
    /// FIN was delivered in order and counts in our acknowledgement.
    peer_fin_reached: bool,
    eof_read: bool,
    /// A bare acknowledgement is due now.
    ack_pending: bool,
    /// In-order segments since the last acknowledgement.
    unacked_segments: u32,
    /// What acknowledgements may say, what they said, and what they may say next (see [`Connection::announce`]).
    ripe: u64,
    told: u64,
    ripening: Option<(u64, Instant)>,
    /// Payload-free duplicate acknowledgements owed to a reference sender (rule C14).
    bare_duplicates: u8,
    /// A hole is open that rule C14 was already applied to.
    hole_announced: bool,
    /// SACK blocks that did not fit one acknowledgement.
    sacks_kept: Vec<([(u64, u64); sack::MAX_BLOCKS], usize)>,
    /// Right edge of the window that we last advertised.
    advertised_edge: u64,
    last_received: Instant,
    /// A reference peer closed over a hole: fail if it is not filled by then.
    truncate_at: Option<Instant>,
    /// A reference peer ended both directions: nothing more is sent but one FIN (spec/stream.md §3.10).
    peer_ended: bool,

    timers: Timers,
    stats: ConnectionStats,
}

impl Connection {
    /// An outgoing connection: SYN goes out with the next poll.
    pub(crate) fn connect(
        id: ConnectionId,
        local: SocketAddress,
        remote: SocketAddress,
        isn: u32,
        now: Instant,
        cfg: &Config,
    ) -> Self {
        let mut c = Self::new(id, local, remote, isn, now, cfg);
        // A little later than the key exchange gives up, which knows better why.
        c.timers.handshake = Some(now + cfg.connect_timeout + timers::HANDSHAKE_MARGIN);
        c
    }

    /// An incoming connection: answers the SYN with the next poll.
    pub(crate) fn accept(
        id: ConnectionId,
        local: SocketAddress,
        remote: SocketAddress,
        isn: u32,
        syn: &Header,
        cx: &Cx<'_>,
    ) -> Self {
        let mut c = Self::new(id, local, remote, isn, cx.now, cx.cfg);
        c.state = State::SynReceived;
        c.incoming = true;
        c.peer_isn = syn.seq;
        // Longer than the dialler waits: its side may be established while its last ACK was lost.
        c.timers.handshake = Some(cx.now + cx.cfg.connect_timeout * 2);
        c.take_window(syn, 0, 0, cx.dialect);
        c
    }

    fn new(
        id: ConnectionId,
        local: SocketAddress,
        remote: SocketAddress,
        isn: u32,
        now: Instant,
        cfg: &Config,
    ) -> Self {
        Self {
            id,
            local,
            remote,
            state: State::SynSent,
            announced: false,
            incoming: false,
            detached: false,
            established_at: now,
            notify: Notify::default(),
            queued: Notify::default(),
            in_ready: false,
            touched: false,
            lists: Lists::default(),
            counted_unread: 0,
            registered: None,
            isn,
            send: SendBuffer::new(cfg.send_buffer),
            board: Scoreboard::new(),
            counted_in_flight: 0,
            window_edge: 0,
            window_segments: 0,
            quirks: Quirks::default(),
            fin_queued: false,
            fin_sent: false,
            fin_acked: false,
            nodelay: false,
            nagle_over: false,
            window_probe: false,
            tail: TailProbe::default(),
            syn_pending: true,
            syn_first_sent: None,
            syn_transmissions: 0,
            rst_pending: false,
            keepalive_pending: false,
            write_blocked: false,
            progress_at: now,
            rto_base: now,
            backoff: 0,
            rto_credit: 0,
            looks: Looks::default(),
            peer_isn: 0,
            recv: Assembler::new(cfg.recv_buffer),
            peer_fin: None,
            peer_fin_reached: false,
            eof_read: false,
            ack_pending: false,
            unacked_segments: 0,
            ripe: 0,
            told: 0,
            ripening: None,
            bare_duplicates: 0,
            hole_announced: false,
            sacks_kept: Vec::new(),
            advertised_edge: 0,
            last_received: now,
            truncate_at: None,
            peer_ended: false,
            timers: Timers::default(),
            stats: ConnectionStats::default(),
        }
    }

    // ------------------------------------------------------------------ the application's calls

    /// Copies received bytes out. `Ok(0)` is the end of the stream.
    pub(crate) fn read(&mut self, buf: &mut [u8], cx: &Cx<'_>) -> Result<usize, ReadError> {
        let n = self.recv.read(buf);
        if n > 0 {
            if self.recv.readable() == 0 && self.peer_fin_reached {
                self.notify.readable = true;
            }
            self.maybe_update_window(cx);
            if cx.path.squeezed {
                self.recv.release();
            }
            return Ok(n);
        }
        if buf.is_empty() {
            return Ok(0);
        }
        match self.state {
            State::Failed(f) if !self.peer_fin_reached => Err(match f {
                Failure::Connect(e) => ReadError::Connect(e),
                Failure::Reset => ReadError::Reset,
                Failure::TimedOut => ReadError::TimedOut,
                Failure::Truncated => ReadError::Truncated,
            }),
            _ if self.peer_fin_reached => {
                self.eof_read = true;
                Ok(0)
            }
            _ => Err(ReadError::Blocked),
        }
    }

    /// As [`write`](Self::write), beside so many connections (this one may be among them) that have something to send.
    pub(crate) fn write_beside(&mut self, ready: usize, data: &[u8]) -> Result<usize, WriteError> {
        self.send.set_ahead(ahead_beside(ready.saturating_sub(usize::from(self.in_ready))));
        self.write(data)
    }

    /// Takes as many bytes as fit the send buffer.
    pub(crate) fn write(&mut self, data: &[u8]) -> Result<usize, WriteError> {
        match self.state {
            State::Failed(f) => {
                return Err(match f {
                    Failure::Connect(e) => WriteError::Connect(e),
                    Failure::TimedOut => WriteError::TimedOut,
                    Failure::Reset | Failure::Truncated => WriteError::Reset,
                });
            }
            // A reference peer ended both directions before it acknowledged everything.
            State::Done if !self.send.is_empty() => return Err(WriteError::Reset),
            State::Done => return Err(WriteError::Finished),
            _ => {}
        }
        if self.fin_queued {
            return Err(WriteError::Finished);
        }
        if data.is_empty() {
            return Ok(0);
        }
        let n = self.send.write(data);
        if n == 0 {
            self.write_blocked = true;
            return Err(WriteError::Blocked);
        }
        Ok(n)
    }

    /// Ends our direction behind all written bytes.
    pub(crate) fn shutdown(&mut self) -> Result<(), WriteError> {
        match self.state {
            State::Failed(Failure::Connect(e)) => Err(WriteError::Connect(e)),
            State::Failed(Failure::TimedOut) => Err(WriteError::TimedOut),
            State::Failed(_) => Err(WriteError::Reset),
            _ => {
                self.fin_queued = true;
                Ok(())
            }
        }
    }

    /// Gives up both directions and tells the peer.
    pub(crate) fn reset(&mut self, path: &mut Path) {
        if matches!(self.state, State::Established | State::SynReceived) || self.syn_transmissions > 0 {
            self.rst_pending = !matches!(self.state, State::Done | State::Failed(_));
        }
        self.fail(Failure::Reset, path);
    }

    /// The application dropped its handle: unread bytes are discarded from now on.
    pub(crate) fn detach(&mut self, now: Instant) {
        self.detached = true;
        self.fin_queued = true;
        self.discard_unread();
        // A peer that never ends its direction must not hold the connection for ever.
        self.timers.linger = Some(now + timers::DETACHED_LINGER);
    }

    pub(crate) fn readable(&self) -> usize {
        self.recv.readable()
    }

    /// Whether [`read`](Self::read) would say no more than that there is nothing yet.
    pub(crate) fn read_waits(&self) -> bool {
        self.readable() == 0 && !self.peer_fin_reached && !matches!(self.state, State::Failed(_))
    }

    /// Received bytes in memory, those behind holes included.
    pub(crate) fn held(&self) -> usize {
        self.recv.held()
    }

    /// A SYN of another connection on the same ports, and this one is over but for an application that still holds it.
    pub(crate) fn gives_way_to(&self, hdr: &Header) -> bool {
        let syn = hdr.flags.contains(Flags::SYN) && !hdr.flags.contains(Flags::ACK);
        syn && hdr.seq != self.peer_isn && matches!(self.state, State::Done | State::Failed(_))
    }

    /// Written bytes that the peer has not acknowledged.
    pub(crate) fn unacknowledged(&self) -> usize {
        (self.send.end() - self.send.acked()) as usize
    }

    /// Memory of the receive buffer: a single byte behind a hole takes as much as all that could stand before it.
    pub(crate) fn allocated(&self) -> usize {
        self.recv.allocated()
    }

    pub(crate) fn writable(&self) -> usize {
        self.send.free()
    }

    pub(crate) fn unsent(&self) -> usize {
        self.send.unsent() as usize
    }

    /// Whether the peer has acknowledged all that was written (and FIN, if it was queued).
    pub(crate) fn is_flushed(&self) -> bool {
        self.send.is_empty() && (!self.fin_queued || self.fin_acked)
    }

    pub(crate) fn set_nodelay(&mut self, nodelay: bool) {
        self.nodelay = nodelay;
    }

    pub(crate) fn stats(&self) -> ConnectionStats {
        let mut s = self.stats;
        s.bytes_received = self.recv.next();
        s.bytes_acked = self.send.acked();
        s
    }

    pub(crate) fn connect_error(&self) -> Option<ConnectError> {
        match self.state {
            State::Failed(Failure::Connect(e)) => Some(e),
            _ => None,
        }
    }

    /// Nothing is left to do on the wire.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Done | State::Failed(_)) && !self.rst_pending && !self.ack_pending
    }

    /// What a late segment of a closed connection is answered with: our next sequence number and acknowledgement.
    pub(crate) fn final_numbers(&self) -> (u32, u32) {
        (self.seq_of(self.board.nxt()), self.ack_number())
    }

    /// Nothing of it has left.
    pub(crate) fn is_silent(&self) -> bool {
        self.state == State::SynSent && self.syn_transmissions == 0
    }

    /// What becomes a stream of S1 instead, while [`Self::is_silent`].
    pub(crate) fn into_stream(self: Box<Self>) -> NewStream {
        NewStream {
            id: self.id,
            local: self.local,
            remote: self.remote,
            buf: self.send,
            fin_queued: self.fin_queued,
            detached: self.detached,
            write_blocked: self.write_blocked,
            queued: self.queued,
        }
    }

    // ------------------------------------------------------------------ shared by the halves

    /// Enters the failed state once; later failures do not hide the first.
    pub(crate) fn fail(&mut self, failure: Failure, path: &mut Path) {
        if matches!(self.state, State::Done | State::Failed(_)) {
            return;
        }
        self.state = State::Failed(failure);
        path.in_flight = path.in_flight.saturating_sub(self.counted_in_flight);
        self.counted_in_flight = 0;
        self.timers = Timers::default();
        self.ack_pending = false;
        self.notify.readable = true;
        self.notify.writable = true;
        self.notify.closed = true;
    }

    fn seq_of(&self, offset: u64) -> u32 {
        self.isn.wrapping_add(1).wrapping_add(offset as u32)
    }

    /// The acknowledgement number for what was received in order.
    fn ack_number(&self) -> u32 {
        let next = self.recv.next() + u64::from(self.peer_fin_reached);
        self.peer_isn.wrapping_add(1).wrapping_add(next as u32)
    }

    /// A header of this connection with flags and numbers still zero.
    fn header(&self, flags: Flags) -> Header {
        Header {
            flags,
            protocol: Protocol::Stream,
            src: self.local.address,
            dst: self.remote.address,
            src_port: self.local.port,
            dst_port: self.remote.port,
            seq: 0,
            ack: 0,
            window: 0,
        }
    }

    /// Keeps the path's in-flight count equal to the sum over its connections.
    fn sync_in_flight(&mut self, path: &mut Path) {
        let mine = self.board.in_flight();
        path.in_flight = (path.in_flight + mine).saturating_sub(self.counted_in_flight);
        self.counted_in_flight = mine;
    }

    /// Both directions over: nothing more will be sent but answers to late segments.
    fn maybe_done(&mut self) {
        if self.state == State::Established && self.fin_acked && self.peer_fin_reached {
            self.state = State::Done;
            self.timers = Timers::default();
            self.keepalive_pending = false;
            self.notify.closed = true;
        }
    }
}

/// The lists of the tunnel in which a connection stands, besides the round of those that want to send.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lists {
    /// The round of connections with something to send again.
    pub(crate) urgent: bool,
    /// The list of connections that hold an acknowledgement back.
    pub(crate) held: bool,
}

/// The tail loss probe of a flight.
#[derive(Debug, Clone, Copy, Default)]
struct TailProbe {
    /// Send one.
    wanted: bool,
    /// One is outstanding for this flight (RFC 8985 §7.3: one per flight).
    out: bool,
    /// Until this offset is acknowledged no further one is sent.
    end: u64,
}

/// What the order of delivery on the path has been asked for (spec/recovery.md §4.7).
#[derive(Debug, Clone, Copy, Default)]
struct Looks {
    /// When to ask again whether the path has delivered anything that was sent later.
    again: Option<Instant>,
    /// Losses that it has shown since anything new was acknowledged.
    repairs: u8,
}

/// What is remembered about a reference peer's way to receive.
#[derive(Debug, Clone, Copy, Default)]
struct Quirks {
    /// A segment was sent again in pieces.
    was_split: bool,
    /// Blocks that it reports for ever although everything in them is acknowledged.
    stale_blocks: sack::Blocks,
    /// Until this offset is acknowledged it gets no more than it can hold beyond a hole.
    careful_until: u64,
}

/// The offset that the 32-bit `number` means, seen from the 64-bit position `near` whose number is `near_number`.
fn unwrap_offset(number: u32, near_number: u32, near: u64) -> Option<u64> {
    let diff = i64::from(number.wrapping_sub(near_number) as i32);
    u64::try_from(near as i64 + diff).ok()
}

#[cfg(test)]
mod tests;
