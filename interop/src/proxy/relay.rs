//! The proxy's thread: sockets, timers, and the list of packets under way.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use super::link::IP_OVERHEAD;
use super::{Change, Rebinding, Setup, State, Wire, lock};
use crate::Failure;

/// How often the thread looks whether it is to stop.
const TICK: Duration = Duration::from_millis(50);
/// Client addresses that are served; datagrams of further ones are dropped.
const MAX_CLIENTS: usize = 1024;
/// What IPv6 adds to [`IP_OVERHEAD`].
const IPV6_EXTRA: usize = 20;

const FRONT: Token = Token(0);
const NEAR: Token = Token(1);
const FAR: Token = Token(2);
const FIRST_CLIENT: usize = 3;

/// A socket that is polled. The second handle sends.
struct Socket {
    io: UdpSocket,
    polled: mio::net::UdpSocket,
}

impl Socket {
    fn new(io: UdpSocket, poll: &Poll, token: Token) -> std::io::Result<Self> {
        io.set_nonblocking(true)?;
        let mut polled = mio::net::UdpSocket::from_std(io.try_clone()?);
        poll.registry().register(&mut polled, token, Interest::READABLE)?;
        Ok(Self { io, polled })
    }
}

/// One client address.
struct Client {
    address: SocketAddr,
    upstream: Socket,
    since: Instant,
    /// Bytes that the server got from it and sent to it.
    got: u64,
    gave: u64,
    packets: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    /// Of this client, to the server.
    Server(usize),
    Client(usize),
    Near,
    Far,
}

/// When a packet arrives, its number, where to, and its bytes; the earliest first.
type UnderWay = Reverse<(Instant, u64, Target, Vec<u8>)>;

pub(super) struct Relay {
    setup: Setup,
    poll: Poll,
    front: Socket,
    wire: Option<(Wire, Socket, Socket)>,
    clients: Vec<Client>,
    by_address: HashMap<SocketAddr, usize>,
    /// Sockets of mappings that are gone: open, so that nothing answers for them, and never read.
    forgotten: Vec<UdpSocket>,
    rebinds: u8,
    start: Option<Instant>,
    under_way: BinaryHeap<UnderWay>,
    last_to_client: Option<Instant>,
    number: u64,
    overhead: isize,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
}

impl Relay {
    pub(super) fn new(
        mut setup: Setup,
        front: UdpSocket,
        state: Arc<Mutex<State>>,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, Failure> {
        let poll = Poll::new()?;
        let front = Socket::new(front, &poll, FRONT)?;
        let wire = match setup.wire.take() {
            None => None,
            Some(wire) => {
                let near = Socket::new(wire.near.try_clone()?, &poll, NEAR)?;
                let far = Socket::new(wire.far.try_clone()?, &poll, FAR)?;
                Some((wire, near, far))
            }
        };
        let overhead = IP_OVERHEAD + if setup.server.is_ipv6() { IPV6_EXTRA } else { 0 };
        Ok(Self {
            setup,
            poll,
            front,
            wire,
            clients: Vec::new(),
            by_address: HashMap::new(),
            forgotten: Vec::new(),
            rebinds: 0,
            start: None,
            under_way: BinaryHeap::new(),
            last_to_client: None,
            number: 0,
            overhead: overhead as isize,
            state,
            stop,
        })
    }

    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(64);
        while !self.stop.load(Ordering::Acquire) {
            let now = Instant::now();
            let due = self.under_way.peek().map(|Reverse((at, ..))| *at);
            let next = [due, self.next_rebind()].into_iter().flatten().min();
            let timeout = next.map_or(TICK, |at| at.saturating_duration_since(now).min(TICK));
            if let Err(error) = self.poll.poll(&mut events, Some(timeout))
                && error.kind() != ErrorKind::Interrupted
            {
                eprintln!("interop: proxy: {error}");
                return;
            }
            if self.next_rebind().is_some_and(|at| at <= Instant::now()) {
                self.rebind();
            }
            for event in &events {
                self.receive(event.token());
            }
            self.deliver();
        }
    }

    fn receive(&mut self, token: Token) {
        let mut buffer = [0; 65_536];
        loop {
            let socket = match token {
                FRONT => &self.front.io,
                NEAR | FAR => match &self.wire {
                    Some((_, near, _)) if token == NEAR => &near.io,
                    Some((_, _, far)) => &far.io,
                    None => return,
                },
                Token(number) => match self.clients.get(number - FIRST_CLIENT) {
                    Some(client) => &client.upstream.io,
                    None => return,
                },
            };
            match socket.recv_from(&mut buffer) {
                Ok((len, from)) => self.take(token, from, &mut buffer[..len]),
                // The other end is not there (yet): as good as lost.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, token: Token, from: SocketAddr, packet: &mut [u8]) {
        let now = Instant::now();
        match token {
            FRONT => self.take_from_client(now, from, packet),
            NEAR | FAR => self.take_from_wire(now, token, packet),
            Token(number) if from == self.setup.server => {
                self.take_from_server(now, number - FIRST_CLIENT, packet);
            }
            _ => {}
        }
    }

    fn take_from_client(&mut self, now: Instant, from: SocketAddr, packet: &mut [u8]) {
        let Some(index) = self.client(now, from) else { return };
        let age = self.age(now);
        let gated = self.at_gate(index, now);
        let client = &mut self.clients[index];
        client.packets += 1;
        let mut state = lock(&self.state);
        state.seen.up.sights.note(age, packet);
        if gated && client.packets > 1 {
            state.seen.gated += 1;
            return;
        }
        let fate = state.up.offer(now, age, packet, self.overhead);
        drop(state);
        if let Ok(at) = fate {
            self.schedule(at, Target::Server(index), packet);
        }
    }

    fn take_from_server(&mut self, now: Instant, index: usize, packet: &mut [u8]) {
        let age = self.age(now);
        let gated = self.at_gate(index, now);
        let client = &mut self.clients[index];
        client.gave += packet.len() as u64;
        let mut state = lock(&self.state);
        state.seen.down.sights.note(age, packet);
        if gated {
            state.seen.answers_at_gate += 1;
            let excess = client.gave as i64 - client.got as i64;
            state.seen.excess_at_gate = state.seen.excess_at_gate.max(Some(excess));
        }
        let fate = state.down.offer(now, age, packet, self.overhead);
        drop(state);
        if let Ok(at) = fate {
            self.schedule(at, Target::Client(index), packet);
        }
    }

    fn take_from_wire(&mut self, now: Instant, token: Token, packet: &mut [u8]) {
        let Some((wire, ..)) = &self.wire else { return };
        (wire.mend)(packet);
        let overhead = -(wire.overhead as isize);
        let age = self.age(now);
        let mut state = lock(&self.state);
        let link = if token == NEAR { &mut state.up } else { &mut state.down };
        let fate = link.offer(now, age, packet, overhead);
        state.seen.wire_passed += u64::from(fate.is_ok());
        drop(state);
        if let Ok(at) = fate {
            self.schedule(at, if token == NEAR { Target::Far } else { Target::Near }, packet);
        }
    }

    fn age(&mut self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.start.get_or_insert(now))
    }

    fn at_gate(&self, index: usize, now: Instant) -> bool {
        let since = self.clients[index].since;
        self.setup.gate.is_some_and(|gate| now.saturating_duration_since(since) < gate)
    }

    /// The number of a client, which is new if need be.
    fn client(&mut self, now: Instant, address: SocketAddr) -> Option<usize> {
        if let Some(index) = self.by_address.get(&address) {
            return Some(*index);
        }
        let index = self.clients.len();
        if index >= MAX_CLIENTS {
            return None;
        }
        let ip = self.front.io.local_addr().ok()?.ip();
        let upstream = self.bind(SocketAddr::new(ip, 0), index)?;
        self.clients.push(Client { address, upstream, since: now, got: 0, gave: 0, packets: 0 });
        self.by_address.insert(address, index);
        lock(&self.state).seen.clients += 1;
        Some(index)
    }

    /// A socket towards the server.
    fn bind(&self, address: SocketAddr, index: usize) -> Option<Socket> {
        let made = UdpSocket::bind(address).and_then(|io| {
            lock(&self.state).seen.sources.push(io.local_addr()?);
            Socket::new(io, &self.poll, Token(FIRST_CLIENT + index))
        });
        made.inspect_err(|error| eprintln!("interop: proxy: {error}")).ok()
    }

    fn next_rebind(&self) -> Option<Instant> {
        let Rebinding { first_ms, every_ms, .. } = self.setup.rebinding?;
        let after = u64::from(first_ms) + u64::from(every_ms) * u64::from(self.rebinds);
        (self.rebinds < 250).then_some(self.start? + Duration::from_millis(after))
    }

    /// Gives every client another mapping; the server's packets to the old one are lost from now on.
    fn rebind(&mut self) {
        let Some(Rebinding { change, .. }) = self.setup.rebinding else { return };
        self.rebinds += 1;
        for index in 0..self.clients.len() {
            let Ok(old) = self.clients[index].upstream.io.local_addr() else { continue };
            let wanted = match change {
                Change::Port => SocketAddr::new(old.ip(), 0),
                Change::Address => {
                    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1 + self.rebinds)), old.port())
                }
            };
            let Some(fresh) = self.bind(wanted, index) else { continue };
            let mut old = std::mem::replace(&mut self.clients[index].upstream, fresh);
            // It is closed with the proxy anyway.
            let _ = self.poll.registry().deregister(&mut old.polled);
            self.forgotten.push(old.io);
        }
    }

    fn schedule(&mut self, at: Instant, target: Target, packet: &[u8]) {
        self.number += 1;
        self.under_way.push(Reverse((at, self.number, target, packet.to_vec())));
    }

    fn deliver(&mut self) {
        while self.under_way.peek().is_some_and(|Reverse((at, ..))| *at <= Instant::now()) {
            let Some(Reverse((at, _, target, packet))) = self.under_way.pop() else { return };
            let (socket, to) = match target {
                Target::Server(index) => {
                    let client = &mut self.clients[index];
                    client.got += packet.len() as u64;
                    (&client.upstream.io, self.setup.server)
                }
                Target::Client(index) => (&self.front.io, self.clients[index].address),
                Target::Near | Target::Far => match &self.wire {
                    Some((wire, near, _)) if target == Target::Near => (&near.io, wire.near_peer),
                    Some((wire, _, far)) => (&far.io, wire.far_peer),
                    None => continue,
                },
            };
            // A full socket is a full queue further on: the packet is lost, as anywhere.
            let _ = socket.send_to(&packet, to);
            if let (Some(start), Target::Server(_) | Target::Client(_)) = (self.start, target) {
                let seen = &mut lock(&self.state).seen;
                seen.lasted = at.saturating_duration_since(start);
                if let Target::Client(_) = target {
                    let pause =
                        self.last_to_client.map_or(Duration::ZERO, |last| at.saturating_duration_since(last));
                    seen.longest_pause = seen.longest_pause.max(pause);
                    self.last_to_client = Some(at);
                }
            }
        }
    }
}
