//! A beacon: discovery, introduction and relay for nodes, on one UDP port and a second one (`spec/nat.md`).
//!
//! [`BeaconServer`] serves a [`BeaconEngine`] on real sockets, in the thread that calls [`BeaconServer::run`]. It takes
//! many datagrams with one system call and sends many with one, and allocates nothing per datagram.
//!
//! Nodes that have no UDP can be served as well: their datagrams come by WebSocket, through the [`Side`] that was given
//! to [`BeaconServer::attach`].

mod outbox;

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mio::{Events, Interest, Poll, Token, Waker};
use pilotage_carriage::{Side, is_virtual};
use pilotage_nat::{Arrival, BeaconEngine, Port};

use self::outbox::{Outbox, Sockets};
use crate::driver::recv::RecvSlab;
use crate::driver::socket::Socket;

pub use pilotage_nat::{BeaconConfig, BeaconStats, KeySource, Rate};

/// What a beacon is to do.
#[derive(Debug, Clone)]
pub struct BeaconOptions {
    /// The UDP address to bind.
    pub listen: SocketAddr,
    /// The second port: `None` for none, 0 for any.
    pub second_port: Option<u16>,
    /// Limits, names, other beacons. `verify`, `ports` and `boot` are filled in.
    pub config: BeaconConfig,
}

impl BeaconOptions {
    /// The usual limits, and any second port.
    pub fn new(listen: SocketAddr) -> Self {
        Self { listen, second_port: Some(0), config: BeaconConfig::default() }
    }
}

/// State of a beacon, some moments ago.
#[derive(Debug, Clone, Default)]
pub struct BeaconSnapshot {
    /// The engine's counters.
    pub stats: BeaconStats,
    /// Datagrams that the kernel would not take.
    pub unsent: u64,
    /// Carried datagrams that were dropped because too many waited.
    pub carried_dropped: u64,
    /// Other beacons, and how long ago each was heard.
    pub beacons: Vec<(SocketAddr, Option<Duration>)>,
}

/// Reads counters, from any thread.
#[derive(Debug, Clone)]
pub struct BeaconHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    snapshot: Mutex<BeaconSnapshot>,
}

impl BeaconHandle {
    /// Counters, at most a second old.
    pub fn snapshot(&self) -> BeaconSnapshot {
        self.shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A beacon on bound sockets.
pub struct BeaconServer {
    poll: Poll,
    ios: Vec<(Port, mio::net::UdpSocket)>,
    sockets: Sockets,
    locals: [Option<SocketAddr>; 2],
    engine: BeaconEngine,
    slab: RecvSlab,
    outbox: Outbox,
    /// Nodes that speak to us through WebSockets, if there is such a port.
    side: Option<Side>,
    handle: BeaconHandle,
    warned: Option<Instant>,
}

impl fmt::Debug for BeaconServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BeaconServer").field("locals", &self.locals).finish_non_exhaustive()
    }
}

impl BeaconServer {
    /// Binds the sockets. Port 0 takes any free one.
    ///
    /// # Errors
    /// What the operating system says of the first port, of randomness or of its event queue. A second port that
    /// cannot be bound is left out, and a warning logged.
    pub fn bind(options: BeaconOptions) -> io::Result<Self> {
        let main = Socket::bind(options.listen, BUFFER_BYTES, BUFFER_BYTES)?;
        let local = main.local_addr();
        let other = options.second_port.and_then(|port| {
            Socket::bind(SocketAddr::new(local.ip(), port), SECOND_BUFFER, SECOND_BUFFER)
                .inspect_err(|error| tracing::warn!(%error, port, "beacon: no second port"))
                .ok()
        });
        let locals = [Some(local), other.as_ref().map(Socket::local_addr)];
        let config = BeaconConfig {
            verify: Some(pilotage_proto::crypto::verify),
            ports: locals.map(|local| local.map_or(0, |local| local.port())),
            boot: boot_number()?,
            ..options.config
        };
        let engine = BeaconEngine::with_secret(config, random()?);
        let poll = Poll::new()?;
        let mut ios = vec![(Port::Main, main.try_clone_io()?)];
        if let Some(other) = &other {
            ios.push((Port::Other, other.try_clone_io()?));
        }
        for (index, (_, io)) in ios.iter_mut().enumerate() {
            poll.registry().register(io, Token(index), Interest::READABLE)?;
        }
        let shared = Shared { snapshot: Mutex::default() };
        Ok(Self {
            poll,
            ios,
            sockets: Sockets { main, other },
            locals,
            engine,
            slab: RecvSlab::new(),
            outbox: Outbox::new(),
            side: None,
            handle: BeaconHandle { shared: Arc::new(shared) },
            warned: None,
        })
    }

    /// The address that the socket is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.sockets.main.local_addr()
    }

    /// The second port, if there is one.
    pub fn second_port(&self) -> Option<u16> {
        self.locals[1].map(|local| local.port())
    }

    /// For reading counters.
    pub fn handle(&self) -> BeaconHandle {
        self.handle.clone()
    }

    /// Serves the nodes behind this as well.
    ///
    /// # Errors
    /// The operating system has no event for it.
    pub fn attach(&mut self, side: Side) -> io::Result<()> {
        let waker = Waker::new(self.poll.registry(), WAKER)?;
        side.on_arrival(move || {
            if let Err(error) = waker.wake() {
                tracing::warn!(%error, "beacon: it could not be woken");
            }
        });
        self.side = Some(side);
        Ok(())
    }

    /// Asks a registry which key an id belongs to. It is called in the beacon's thread, once per proof.
    pub fn set_key_source(&mut self, source: KeySource) {
        self.engine.set_key_source(source);
    }

    /// Serves until `stop` is set, which is noticed within 100 ms.
    ///
    /// # Errors
    /// Waiting for the sockets failed; single datagrams that cannot be received or sent end nothing.
    pub fn run(&mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut events = Events::with_capacity(8);
        let mut more = [true; 2];
        let mut published: Option<Instant> = None;
        while !stop.load(Ordering::Relaxed) {
            let wait = if more.contains(&true) { Duration::ZERO } else { self.wait() };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                if let Some(more) = more.get_mut(event.token().0) {
                    *more = true;
                }
            }
            // Readiness is told once, on its edge: until a receive would block there is more to read.
            for (index, more) in more.iter_mut().enumerate() {
                if *more {
                    *more = index < self.ios.len() && self.receive(index);
                }
            }
            more[0] |= self.receive_carried();
            let now = Instant::now();
            self.engine.handle_timeout(now);
            self.tell_beacons(now);
            if published.is_none_or(|at| now.saturating_duration_since(at) >= PUBLISH) {
                published = Some(now);
                self.publish(now);
            }
        }
        self.publish(Instant::now());
        let BeaconStats { registered, datagrams_in, datagrams_out, relays, .. } = self.engine.stats();
        let unsent = self.outbox.unsent;
        tracing::info!(registered, datagrams_in, datagrams_out, relays, unsent, "beacon stopped");
        Ok(())
    }

    fn wait(&self) -> Duration {
        let due = self.engine.next_timeout().map(|due| due.saturating_duration_since(Instant::now()));
        due.map_or(STOP_CHECK, |due| due.min(STOP_CHECK))
    }

    /// Some batches of datagrams from one socket; whether there may be more.
    fn receive(&mut self, index: usize) -> bool {
        let Self { ios, locals, engine, slab, outbox, sockets, side, warned, .. } = self;
        let Some((port, io)) = ios.get(index) else { return false };
        let local = locals[index];
        let mut more = true;
        for _ in 0..BATCHES {
            let socket = match port {
                Port::Main => &sockets.main,
                Port::Other => sockets.other.as_ref().unwrap_or(&sockets.main),
            };
            more = match slab.fill(socket, io) {
                Ok(more) => more,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                // Linux reports here that somebody we answered has gone (ICMP). It concerns nobody else.
                Err(error) => {
                    warn_rarely(warned, Instant::now(), &error);
                    continue;
                }
            };
            let now = Instant::now();
            let mut out =
                |port: Port, to: SocketAddr, data: &[u8]| send(outbox, sockets, side, port, to, data);
            for (meta, data) in slab.datagrams() {
                // Nobody may pass for a carried node.
                if is_virtual(meta.remote) {
                    continue;
                }
                let to = meta.local_ip.zip(local).map(|(ip, local)| SocketAddr::new(ip, local.port()));
                let arrival = Arrival { from: meta.remote, port: *port, to };
                engine.handle(now, &arrival, data, &mut out);
            }
            outbox.flush(sockets);
            if !more {
                break;
            }
        }
        more
    }

    /// Datagrams that came through WebSockets; whether there may be more.
    fn receive_carried(&mut self) -> bool {
        let Self { engine, side, outbox, sockets, .. } = self;
        let Some(from) = side.clone() else { return false };
        let now = Instant::now();
        let mut out = |port: Port, to: SocketAddr, data: &[u8]| send(outbox, sockets, side, port, to, data);
        let mut taken = 0;
        while taken < CARRIED_BATCH
            && let Some((from, data)) = from.take()
        {
            engine.handle(now, &Arrival { from, port: Port::Main, to: None }, &data, &mut out);
            taken += 1;
        }
        outbox.flush(sockets);
        taken == CARRIED_BATCH
    }

    fn tell_beacons(&mut self, now: Instant) {
        let Self { engine, outbox, sockets, .. } = self;
        engine.poll_beacons(now, &mut |to, data: &[u8]| outbox.push(sockets, Port::Main, to, data));
        outbox.flush(sockets);
    }

    fn publish(&self, now: Instant) {
        let snapshot = BeaconSnapshot {
            stats: self.engine.stats(),
            unsent: self.outbox.unsent,
            carried_dropped: self.side.as_ref().map_or(0, |side| side.stats().dropped()),
            beacons: self.engine.beacons(now),
        };
        *self.handle.shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }
}

fn send(
    outbox: &mut Outbox,
    sockets: &Sockets,
    side: &Option<Side>,
    port: Port,
    to: SocketAddr,
    data: &[u8],
) {
    let taken = side.as_ref().is_some_and(|side| side.send(to, data));
    if taken || is_virtual(to) {
        return;
    }
    outbox.push(sockets, port, to, data);
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(format!("no randomness: {error}")))?;
    Ok(bytes)
}

/// Above those of earlier runs, and no two beacons have the same.
fn boot_number() -> io::Result<u64> {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_millis() as u64);
    let [a, b] = random::<2>()?;
    Ok(millis << 16 | u64::from(u16::from_be_bytes([a, b])))
}

/// At most one line in a minute, however many errors others can cause.
fn warn_rarely(warned: &mut Option<Instant>, now: Instant, error: &io::Error) {
    if warned.is_none_or(|at| now.saturating_duration_since(at) >= Duration::from_secs(60)) {
        *warned = Some(now);
        tracing::warn!(%error, "beacon: receiving failed; further errors of the next minute are not shown");
    }
}

/// Receive calls handled before the other socket, the timers and the stop flag get their turn.
const BATCHES: usize = 16;
/// How long a set stop flag may go unnoticed.
const STOP_CHECK: Duration = Duration::from_millis(100);
/// How old a snapshot may be.
const PUBLISH: Duration = Duration::from_secs(1);
/// Room for a burst of relayed frames. The kernel may grant less, which only loses some sooner.
const BUFFER_BYTES: usize = 4 << 20;
/// The second port takes probes only.
const SECOND_BUFFER: usize = 256 << 10;
/// Datagrams of WebSockets handled before the sockets get their turn.
const CARRIED_BATCH: usize = 256;
const WAKER: Token = Token(16);

#[cfg(test)]
mod tests;
