//! The hub's end: one thread, any number of links within bounds, and a side door to the beacon.

mod connection;
mod side;

use std::collections::HashMap;
use std::hash::RandomState;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};
use rustls::{ServerConfig, ServerConnection};

use self::connection::{Connection, Fate};
use self::side::Shared;
pub use self::side::{Side, Stats};
use crate::virtual_address::{source_prefix, virtual_address};

/// Bounds of a [`Server`].
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most links at a time; further ones are closed at once.
    pub connections: usize,
    /// Most links from one IPv4 address or IPv6 /64. Many nodes may stand behind one address.
    pub connections_per_source: usize,
    /// How long TLS and WebSocket may take to be agreed.
    pub handshake: Duration,
    /// Silence after which a link is closed. Nodes ask the beacon each 25 s.
    pub idle: Duration,
    /// Datagrams per second from one link, and as many at once.
    pub datagrams_per_second: u32,
    /// Bytes per second from one link, and as many at once.
    pub bytes_per_second: u32,
    /// Datagrams that wait for one link.
    pub queue: usize,
    /// Datagrams that wait for the beacon.
    pub inbox: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4_096,
            connections_per_source: 256,
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            datagrams_per_second: 32_768,
            bytes_per_second: 32 << 20,
            queue: 512,
            inbox: 4_096,
        }
    }
}

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
/// Tokens of links begin here.
const FIRST: usize = 2;
/// How long a set stop flag, or a link that is overdue, may go unnoticed.
const TICK: Duration = Duration::from_millis(250);
/// Connections accepted in one go.
const ACCEPTS: usize = 64;
/// How long to accept nothing after the system had no descriptor left.
const BREATH: Duration = Duration::from_millis(500);

/// Accepts links on one TCP port.
pub struct Server {
    listener: TcpListener,
    local: SocketAddr,
    poll: Poll,
    tls: Arc<ServerConfig>,
    limits: Limits,
    shared: Arc<Shared>,
    secret: RandomState,
    links: Vec<Option<Connection>>,
    free: Vec<usize>,
    by_source: HashMap<IpAddr, usize>,
    by_address: HashMap<SocketAddr, usize>,
    next_port: u16,
    /// Links with more to read than one turn allows.
    busy: Vec<usize>,
    resume: Option<Instant>,
    swept: Instant,
}

impl Server {
    /// Binds the port; 0 takes any free one. The [`Side`] goes to the beacon.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn bind(address: SocketAddr, tls: Arc<ServerConfig>, limits: Limits) -> io::Result<(Self, Side)> {
        let mut listener = TcpListener::bind(address)?;
        let local = listener.local_addr()?;
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let shared = Arc::new(Shared::new(Waker::new(poll.registry(), WAKER)?, limits));
        let side = Side::new(shared.clone());
        let server = Self {
            listener,
            local,
            poll,
            tls,
            limits,
            shared,
            secret: RandomState::new(),
            links: Vec::new(),
            free: Vec::new(),
            by_source: HashMap::new(),
            by_address: HashMap::new(),
            next_port: 0,
            busy: Vec::new(),
            resume: None,
            swept: Instant::now(),
        };
        Ok((server, side))
    }

    /// The bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Serves until `stop` is set, which is noticed within a quarter of a second.
    ///
    /// # Errors
    /// Waiting for the sockets failed. What single links do ends nothing.
    pub fn run(&mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        while !stop.load(Ordering::Relaxed) {
            let wait = if self.busy.is_empty() { TICK } else { Duration::ZERO };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let now = Instant::now();
            let mut turn = std::mem::take(&mut self.busy);
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(now),
                    WAKER => {}
                    Token(token) => turn.push(token - FIRST),
                }
            }
            turn.sort_unstable();
            turn.dedup();
            for index in turn {
                self.serve(index, now);
            }
            self.deliver(now);
            self.sweep(now);
        }
        for link in self.links.drain(..).flatten() {
            link.close();
        }
        Ok(())
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS {
            match self.listener.accept() {
                Ok((stream, from)) => self.welcome(stream, from, now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // Whoever called has gone.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "carriage: no connection can be accepted now");
                    self.resume = Some(now + BREATH);
                    return;
                }
            }
        }
        // The edge was told once and there may be more.
        self.resume = Some(now);
    }

    fn welcome(&mut self, mut stream: mio::net::TcpStream, from: SocketAddr, now: Instant) {
        let source = source_prefix(from.ip());
        let of_source = self.by_source.get(&source).copied().unwrap_or(0);
        let open = self.links.len() - self.free.len();
        if open >= self.limits.connections || of_source >= self.limits.connections_per_source {
            self.shared.stats.refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let Some(address) = self.free_address(source) else { return };
        let index = self.free.pop().unwrap_or_else(|| {
            self.links.push(None);
            self.links.len() - 1
        });
        let _ = stream.set_nodelay(true);
        let both = Interest::READABLE | Interest::WRITABLE;
        let session = ServerConnection::new(self.tls.clone());
        match (self.poll.registry().register(&mut stream, Token(index + FIRST), both), session) {
            (Ok(()), Ok(session)) => {
                self.shared.stats.accepted.fetch_add(1, Ordering::Relaxed);
                *self.by_source.entry(source).or_default() += 1;
                self.by_address.insert(address, index);
                self.links[index] = Some(Connection::new(stream, session, source, address, now, self.limits));
            }
            _ => self.free.push(index),
        }
    }

    /// A virtual address that no other link has.
    fn free_address(&mut self, source: IpAddr) -> Option<SocketAddr> {
        // At most `connections_per_source` of the ports are taken.
        for _ in 0..=self.limits.connections_per_source {
            self.next_port = self.next_port.checked_add(1).unwrap_or(1);
            let address = virtual_address(source, self.next_port, &self.secret);
            if !self.by_address.contains_key(&address) {
                return Some(address);
            }
        }
        None
    }

    /// Reads from a link, and writes what waits for it.
    fn serve(&mut self, index: usize, now: Instant) {
        let Some(Some(link)) = self.links.get_mut(index) else { return };
        match link.advance(now, &self.shared) {
            Fate::Done => {}
            Fate::More => self.busy.push(index),
            Fate::Over(reason) => self.remove(index, reason),
        }
    }

    /// What the beacon sends to links.
    fn deliver(&mut self, now: Instant) {
        for address in self.shared.take_ready() {
            if let Some(&index) = self.by_address.get(&address) {
                self.serve(index, now);
            }
        }
    }

    fn sweep(&mut self, now: Instant) {
        if self.resume.is_some_and(|at| at <= now) {
            self.resume = None;
            self.accept(now);
        }
        if now.saturating_duration_since(self.swept) < TICK {
            return;
        }
        self.swept = now;
        for index in 0..self.links.len() {
            if self.links[index].as_ref().is_some_and(|link| link.is_overdue(now)) {
                self.shared.stats.idle.fetch_add(1, Ordering::Relaxed);
                self.remove(index, "silent for too long");
            }
        }
    }

    fn remove(&mut self, index: usize, reason: &str) {
        let Some(link) = self.links.get_mut(index).and_then(Option::take) else { return };
        tracing::debug!(address = %link.address(), reason, "carriage: link ended");
        self.by_address.remove(&link.address());
        if let Some(count) = self.by_source.get_mut(&link.source()) {
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&link.source());
            }
        }
        self.shared.forget(link.address());
        self.free.push(index);
        link.close();
    }
}
