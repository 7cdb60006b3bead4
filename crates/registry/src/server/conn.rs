//! One TCP connection: buffers and their bounds.

use crate::engine::{ConnState, Outcome};
use mio::net::TcpStream;
use pilotage_wire::registry::{LENGTH_PREFIX, MAX_MESSAGE, Reply, Request, next_frame};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Input kept: one message of the largest size. Bytes.
const MAX_INPUT: usize = LENGTH_PREFIX + MAX_MESSAGE;
/// Unsent output from which on requests of this connection are not read. Bytes.
const MAX_OUTPUT: usize = 128 * 1024;
/// Requests of one connection decided per turn, so that none starves the others.
const MAX_REQUESTS_PER_TURN: usize = 32;
const READ_CHUNK: usize = 16 * 1024;
/// Buffers larger than this are given back when they run empty: an idle connection costs little. Bytes.
const KEEP_BUFFER: usize = 4 * 1024;

/// One request of a batch with its reply, which waits for the commit.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) conn: usize,
    pub(super) source: IpAddr,
    /// `None` if the message was not understood.
    pub(super) request: Option<Request>,
    /// The connection's state that the request met.
    pub(super) state_before: ConnState,
    pub(super) reply: Reply,
    pub(super) wrote: bool,
}

#[derive(Debug)]
pub(super) struct Conn {
    stream: TcpStream,
    pub(super) source: IpAddr,
    state: ConnState,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of `output` already sent.
    sent: usize,
    /// The socket may have more (edge-triggered).
    pub(super) readable: bool,
    /// In the server's ready list.
    pub(super) queued: bool,
    /// The peer sends no more.
    eof: bool,
    /// Close as soon as the output is sent: the input cannot be understood any more.
    closing: bool,
    /// Socket error.
    broken: bool,
    last_request: Instant,
    /// Since when output waits for the peer.
    blocked_since: Option<Instant>,
}

impl Conn {
    pub(super) fn new(stream: TcpStream, source: IpAddr, now: Instant) -> Self {
        Self {
            stream,
            source,
            state: ConnState::default(),
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            readable: true,
            queued: false,
            eof: false,
            closing: false,
            broken: false,
            last_request: now,
            blocked_since: None,
        }
    }

    pub(super) fn stream_mut(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Fills the input buffer up to its bound.
    pub(super) fn read(&mut self) {
        while self.readable && !self.eof && !self.closing && self.input.len() < MAX_INPUT {
            let old = self.input.len();
            let chunk = READ_CHUNK.min(MAX_INPUT - old);
            self.input.resize(old + chunk, 0);
            let result = self.stream.read(&mut self.input[old..]);
            self.input.truncate(old + *result.as_ref().unwrap_or(&0));
            match result {
                Ok(0) => self.eof = true,
                // Only `WouldBlock` ends this: a short read may be followed by an end of stream whose event is already
                // spent.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.broken = true,
            }
            if self.broken {
                return;
            }
        }
    }

    /// Decides the complete requests in the input, a bounded number of them.
    pub(super) fn decide(
        &mut self,
        at: usize,
        now: Instant,
        batch: &mut Vec<Item>,
        mut apply: impl FnMut(&mut ConnState, &Request) -> Outcome,
    ) {
        let mut used = 0;
        for _ in 0..MAX_REQUESTS_PER_TURN {
            if self.closing || self.broken {
                break;
            }
            let json = match next_frame(&self.input[used..]) {
                Ok(Some(json)) => json,
                Ok(None) => break,
                Err(error) => {
                    // The stream cannot be followed beyond this point.
                    self.closing = true;
                    batch.push(self.item(at, None, Reply::error(error), false));
                    break;
                }
            };
            used += LENGTH_PREFIX + json.len();
            self.last_request = now;
            let item = match Request::parse(json) {
                Err(error) => self.item(at, None, Reply::error(error), false),
                Ok(request) => {
                    let state_before = self.state;
                    let outcome = apply(&mut self.state, &request);
                    Item { state_before, ..self.item(at, Some(request), outcome.reply, outcome.wrote) }
                }
            };
            batch.push(item);
        }
        self.input.drain(..used);
        if self.input.is_empty() && self.input.capacity() > KEEP_BUFFER {
            self.input = Vec::new();
        }
    }

    fn item(&self, conn: usize, request: Option<Request>, reply: Reply, wrote: bool) -> Item {
        Item { conn, source: self.source, request, state_before: self.state, reply, wrote }
    }

    pub(super) fn push_reply(&mut self, reply: &Reply) {
        if reply.encode(&mut self.output).is_err() {
            // Cannot happen with bounded tables; the order of replies must hold in any case.
            let fallback = Reply::error("reply is too long for the protocol");
            self.broken |= fallback.encode(&mut self.output).is_err();
        }
    }

    /// Sends what the socket takes.
    pub(super) fn flush(&mut self, now: Instant) {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => self.broken = true,
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked_since.get_or_insert(now);
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.broken = true,
            }
            if self.broken {
                return;
            }
        }
        self.blocked_since = None;
        self.sent = 0;
        self.output.clear();
        if self.output.capacity() > KEEP_BUFFER {
            self.output = Vec::new();
        }
    }

    /// Too much unread output: the peer has to read first.
    pub(super) fn is_congested(&self) -> bool {
        self.output.len() - self.sent >= MAX_OUTPUT
    }

    /// More to do without waiting for the socket.
    pub(super) fn has_work(&self) -> bool {
        if self.closing || self.broken || self.is_congested() {
            return false;
        }
        self.has_request() || (self.readable && !self.eof)
    }

    fn has_request(&self) -> bool {
        !matches!(next_frame(&self.input), Ok(None))
    }

    /// Nothing more can happen here.
    pub(super) fn is_finished(&self) -> bool {
        let sent_all = self.sent >= self.output.len();
        self.broken || (sent_all && (self.closing || (self.eof && !self.has_request())))
    }

    /// Closed because of an oversized message.
    pub(super) fn was_cut(&self) -> bool {
        self.closing
    }

    /// Why the connection has to go, if it has to.
    pub(super) fn overdue(
        &self,
        now: Instant,
        idle: Duration,
        slow_reader: Duration,
    ) -> Option<&'static str> {
        let blocked = self.blocked_since.map(|since| now.duration_since(since));
        if blocked.is_some_and(|time| time >= slow_reader) {
            return Some("replies are not read");
        }
        (now.duration_since(self.last_request) >= idle).then_some("idle")
    }
}
