//! One TCP connection, with or without TLS: buffers and their bounds.

use crate::book;
use crate::service::{Finished, KEEP_BUFFER, Session};
use mio::net::TcpStream;
use pilotage_wire::registry::Reply;
use rustls::ServerConnection;
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Unsent output from which on requests of this connection are not read. Bytes.
const MAX_OUTPUT: usize = 128 * 1024;
const READ_CHUNK: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct Conn {
    stream: TcpStream,
    tls: Option<Box<ServerConnection>>,
    /// TLS has decrypted more than the session took.
    decrypted: bool,
    session: Session,
    output: Vec<u8>,
    /// Bytes of `output` already sent.
    sent: usize,
    /// The socket may have more (edge-triggered).
    pub(super) readable: bool,
    /// In the server's ready list.
    pub(super) queued: bool,
    /// The peer sends no more.
    eof: bool,
    /// Socket error.
    broken: bool,
    /// Since when output waits for the peer.
    blocked_since: Option<Instant>,
}

impl Conn {
    pub(super) fn new(
        stream: TcpStream,
        tls: Option<Box<ServerConnection>>,
        source: IpAddr,
        now: Instant,
    ) -> Self {
        Self {
            stream,
            tls,
            decrypted: false,
            session: Session::new(source, now),
            output: Vec::new(),
            sent: 0,
            readable: true,
            queued: false,
            eof: false,
            broken: false,
            blocked_since: None,
        }
    }

    pub(super) fn stream_mut(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Fills the session's input up to its bound.
    pub(super) fn read(&mut self) {
        if self.tls.is_some() {
            return self.read_tls();
        }
        let mut chunk = [0; READ_CHUNK];
        while self.readable && !self.eof && !self.session.is_closing() {
            let room = self.session.room().min(READ_CHUNK);
            if room == 0 {
                return;
            }
            match self.stream.read(&mut chunk[..room]) {
                Ok(0) => self.eof = true,
                // Only `WouldBlock` ends this: a short read may be followed by an end of stream whose event is already
                // spent.
                Ok(n) => {
                    self.session.feed(&chunk[..n]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.broken = true,
            }
            if self.broken {
                return;
            }
        }
    }

    /// As [`Conn::read`]. TLS holds one record at most: what is decrypted goes first, then more is read.
    fn read_tls(&mut self) {
        let Some(tls) = &mut self.tls else { return };
        let mut chunk = [0; READ_CHUNK];
        while !self.broken && !self.session.is_closing() {
            let room = self.session.room().min(READ_CHUNK);
            if room == 0 {
                return;
            }
            match tls.reader().read(&mut chunk[..room]) {
                // The peer says that it is done.
                Ok(0) => {
                    (self.eof, self.decrypted) = (true, false);
                    return;
                }
                Ok(n) => {
                    self.decrypted = true;
                    self.session.feed(&chunk[..n]);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.decrypted = false,
                // Cut without a goodbye.
                Err(_) => {
                    (self.eof, self.decrypted) = (true, false);
                    return;
                }
            }
            if !self.readable || self.eof {
                return;
            }
            match tls.read_tls(&mut self.stream) {
                Ok(0) => self.eof = true,
                Ok(_) => self.broken |= tls.process_new_packets().is_err(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.broken = true,
            }
        }
        if self.broken {
            // The alert that says why, if it fits.
            let _ = tls.write_tls(&mut self.stream);
        }
    }

    /// Whether the first bytes are those of the second request family. As a request of the draft's they are too long.
    pub(super) fn speaks_book(&self) -> bool {
        self.tls.is_none() && self.session.waiting().starts_with(&book::MAGIC)
    }

    /// The socket, and what was read after the magic.
    pub(super) fn into_book(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.session.waiting().get(book::MAGIC.len()..).unwrap_or_default().to_vec())
    }

    /// What can be decided; nothing after a socket error.
    pub(super) fn session(&mut self) -> Option<&mut Session> {
        (!self.broken).then_some(&mut self.session)
    }

    /// Goes on after a request that took longer than its turn; false if it was another connection's.
    pub(super) fn resume(&mut self, finished: &Finished) -> bool {
        self.session.resume(finished)
    }

    /// As if the connection had broken: nothing more is sent.
    pub(super) fn break_off(&mut self) {
        self.broken = true;
        self.output.clear();
        self.sent = 0;
    }

    pub(super) fn push_reply(&mut self, reply: &Reply) {
        // A reply without those before it would be taken for another's.
        if self.broken {
            return;
        }
        if reply.encode(&mut self.output).is_err() {
            // Cannot happen with bounded tables; the order of replies must hold in any case.
            let fallback = Reply::error("reply is too long for the protocol");
            self.broken |= fallback.encode(&mut self.output).is_err();
        }
    }

    /// Sends what the socket takes.
    pub(super) fn flush(&mut self, now: Instant) {
        if self.tls.is_some() {
            return self.flush_tls(now);
        }
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
        self.all_sent();
    }

    /// As [`Conn::flush`]; also sends what the handshake has to say.
    fn flush_tls(&mut self, now: Instant) {
        let Some(tls) = &mut self.tls else { return };
        loop {
            if self.sent < self.output.len() {
                match tls.writer().write(&self.output[self.sent..]) {
                    Ok(n) => self.sent += n,
                    Err(_) => self.broken = true,
                }
            }
            while tls.wants_write() && !self.broken {
                match tls.write_tls(&mut self.stream) {
                    Ok(0) => self.broken = true,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.blocked_since.get_or_insert(now);
                        return;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => self.broken = true,
                }
            }
            if self.broken {
                return;
            }
            if self.sent >= self.output.len() {
                break;
            }
        }
        self.all_sent();
    }

    fn all_sent(&mut self) {
        self.blocked_since = None;
        self.sent = 0;
        self.output.clear();
        if self.output.capacity() > KEEP_BUFFER {
            self.output = Vec::new();
        }
    }

    /// Says goodbye if the socket takes it.
    pub(super) fn part(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = tls.write_tls(&mut self.stream);
        }
    }

    /// Too much unread output: the peer has to read first.
    pub(super) fn is_congested(&self) -> bool {
        self.output.len() - self.sent >= MAX_OUTPUT
    }

    /// More to do without waiting for the socket.
    pub(super) fn has_work(&self) -> bool {
        // What comes while a request waits is read when it is answered.
        if self.session.is_closing() || self.session.is_waiting() || self.broken || self.is_congested() {
            return false;
        }
        self.session.has_request()
            || (self.readable && !self.eof)
            || (self.decrypted && self.session.room() > 0)
    }

    pub(super) fn source(&self) -> IpAddr {
        self.session.source()
    }

    /// Nothing more can happen here.
    pub(super) fn is_finished(&self) -> bool {
        let sent_all =
            self.sent >= self.output.len() && !self.tls.as_ref().is_some_and(|tls| tls.wants_write());
        let asks = self.session.has_request() || self.session.is_waiting();
        let read_all = self.eof && !self.decrypted && !asks;
        self.broken || (sent_all && (self.session.is_closing() || read_all))
    }

    /// Closed because of an oversized message.
    pub(super) fn was_cut(&self) -> bool {
        self.session.is_closing()
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
        (now.duration_since(self.session.last_request()) >= idle).then_some("idle")
    }
}
