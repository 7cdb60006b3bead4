//! One connection: buffers and their bounds.

use super::super::MAX_MESSAGE;
use super::super::message::{Request, next_frame};
use mio::net::TcpStream;
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Most input kept: one message of the largest size, or many small ones. Bytes.
const MAX_INPUT: usize = 4 + MAX_MESSAGE;
/// Unsent output from which on nothing more is read. Bytes.
const MAX_OUTPUT: usize = 512 * 1024;
/// Unanswered writes from which on nothing more is read.
const MAX_WAITING: usize = 1_024;
const READ_CHUNK: usize = 16 * 1024;
/// Buffers larger than this are given back when they run empty. Bytes.
const KEEP_BUFFER: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) stream: TcpStream,
    pub(super) source: IpAddr,
    pub(super) generation: u64,
    input: Vec<u8>,
    used: usize,
    pub(super) output: Vec<u8>,
    sent: usize,
    /// Writes whose answers come later.
    pub(super) waiting: usize,
    /// The socket may have more (edge-triggered).
    pub(super) readable: bool,
    /// In the worker's list.
    pub(super) queued: bool,
    eof: bool,
    broken: bool,
    blocked_since: Option<Instant>,
    last_request: Instant,
}

impl Conn {
    pub(super) fn new(
        stream: TcpStream,
        source: IpAddr,
        input: Vec<u8>,
        generation: u64,
        now: Instant,
    ) -> Self {
        Self {
            stream,
            source,
            generation,
            input,
            used: 0,
            output: Vec::new(),
            sent: 0,
            waiting: 0,
            readable: true,
            queued: false,
            eof: false,
            broken: false,
            blocked_since: None,
            last_request: now,
        }
    }

    pub(super) fn read(&mut self) {
        let mut chunk = [0; READ_CHUNK];
        while self.readable && !self.eof && !self.broken && !self.is_congested() {
            let room = MAX_INPUT.saturating_sub(self.input.len()).min(READ_CHUNK);
            if room == 0 {
                return;
            }
            match self.stream.read(&mut chunk[..room]) {
                Ok(0) => self.eof = true,
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.broken = true,
            }
        }
    }

    /// The next complete request; `Err` says what is wrong with one that can be answered.
    pub(super) fn next_request(&mut self, now: Instant) -> Option<(u32, Result<Request, String>)> {
        if self.broken {
            return None;
        }
        match next_frame(&self.input[self.used..]) {
            Ok(Some((number, kind, body, len))) => {
                let request = Request::decode(kind, body).map_err(|error| error.to_string());
                self.used += len;
                self.last_request = now;
                Some((number, request))
            }
            Ok(None) => None,
            Err(_) => {
                // The stream cannot be followed beyond this point.
                self.broken = true;
                None
            }
        }
    }

    pub(super) fn compact(&mut self) {
        self.input.drain(..self.used);
        self.used = 0;
        if self.input.is_empty() && self.input.capacity() > KEEP_BUFFER {
            self.input = Vec::new();
        }
    }

    pub(super) fn flush(&mut self, now: Instant) {
        while self.sent < self.output.len() && !self.broken {
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
        }
        self.blocked_since = None;
        self.sent = 0;
        self.output.clear();
        if self.output.capacity() > KEEP_BUFFER {
            self.output = Vec::new();
        }
    }

    /// Answers first.
    pub(super) fn is_congested(&self) -> bool {
        self.output.len() - self.sent >= MAX_OUTPUT || self.waiting >= MAX_WAITING
    }

    pub(super) fn has_work(&self) -> bool {
        if self.broken || self.is_congested() {
            return false;
        }
        (self.readable && !self.eof) || !matches!(next_frame(&self.input[self.used..]), Ok(None))
    }

    pub(super) fn is_finished(&self) -> bool {
        let all_sent = self.sent >= self.output.len() && self.waiting == 0;
        self.broken || (self.eof && all_sent && !self.has_work())
    }

    pub(super) fn overdue(&self, now: Instant, idle: Duration, slow_reader: Duration) -> bool {
        let blocked = self.blocked_since.is_some_and(|since| now.duration_since(since) >= slow_reader);
        blocked || (self.waiting == 0 && now.duration_since(self.last_request) >= idle)
    }
}
