//! The carrier's thread: the only one that touches the link.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use pilotage_carriage::{Action, Dialed, Dialer, Link, Monitor, Proxy, Trust, WssUrl};
use pilotage_proto::RecvMeta;
use pilotage_wire::NodeId;
use pilotage_wire::beacon::Message;

use super::{Carrier, EvidenceMemory, lock};
use crate::driver::socket::Socket;
use crate::events::NodeEvent;
use crate::shared::{Phase, Shared};

/// How long opening a link may take.
const DIAL: Duration = Duration::from_secs(8);
/// While UDP is in doubt, how often to look whether an answer came.
const LOOK: Duration = Duration::from_millis(100);
/// How often to look while UDP works, at most: it is woken when something is sent.
const IDLE: Duration = Duration::from_secs(600);
/// A link is pinged after so much silence of ours, so that middleboxes keep it.
const PING: Duration = Duration::from_secs(20);
/// Silence of the hub after which a link is given up: it answers pings.
const DEAD: Duration = Duration::from_secs(50);
/// Datagrams received in one go.
const TURN: usize = 64;
/// A probe as long as its answer over IPv6 (`spec/nat.md §4.3`).
const PADDED_PROBE: usize = 20;

const WAKER: Token = Token(0);
const LINK: Token = Token(1);

/// What a carrier needs to know.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) beacon: SocketAddr,
    pub(crate) url: WssUrl,
    /// Certificates that will do; where there are none, the memory decides.
    pub(crate) pins: Vec<[u8; 32]>,
    pub(crate) memory: EvidenceMemory,
}

impl Plan {
    /// Opens a link, and remembers what the hub showed.
    pub(crate) fn dial(&self, name: &str) -> Result<Dialed, String> {
        let (host, port) = (&self.url.host, self.url.port);
        let proxy = Proxy::from_environment(host, port, |name| std::env::var(name).ok());
        let proxy = proxy.map_err(|error| error.to_string())?;
        let trust = match self.pins.as_slice() {
            [] => Trust::FirstUse(self.memory.get(name)),
            pins => Trust::Pinned(pins.to_vec()),
        };
        let dialer = Dialer { url: self.url.clone(), trust, proxy, timeout: DIAL };
        let dialed = dialer.dial().map_err(|error| error.to_string())?;
        self.memory.keep(name, dialed.evidence);
        Ok(dialed)
    }
}

struct Open {
    link: Link,
    sent: Instant,
    heard: Instant,
}

struct Thread {
    carrier: Arc<Carrier>,
    shared: Weak<Shared>,
    socket: Weak<Socket>,
    poll: Poll,
    monitor: Monitor,
    open: Option<Open>,
    probes: u32,
}

/// A carrier whose thread does not run yet, because the node does not exist yet.
pub(crate) struct Prepared {
    pub(crate) carrier: Arc<Carrier>,
    socket: Weak<Socket>,
    poll: Poll,
}

impl Prepared {
    pub(crate) fn new(plan: Plan, socket: &Arc<Socket>) -> std::io::Result<Self> {
        let poll = Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), WAKER)?;
        let carrier = Arc::new(Carrier::new(plan, waker));
        Ok(Self { carrier, socket: Arc::downgrade(socket), poll })
    }

    /// Starts the thread.
    pub(crate) fn start(self, shared: Weak<Shared>) -> std::io::Result<()> {
        let Self { carrier, socket, poll } = self;
        let monitor = Monitor::default();
        let thread = Thread { carrier, shared, socket, poll, monitor, open: None, probes: 0 };
        std::thread::Builder::new().name("pilotage-carrier".into()).spawn(move || thread.run()).map(drop)
    }
}

impl Thread {
    fn run(mut self) {
        let mut events = Events::with_capacity(4);
        let mut more = false;
        while !self.carrier.stop.load(Ordering::Acquire) {
            let wait = if more { Duration::ZERO } else { self.wait() };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => {
                    tracing::error!(%error, "the carrier's poller failed; UDP only from now on");
                    self.carrier.carried.store(false, Ordering::Release);
                    return;
                }
                _ => {}
            }
            self.look(Instant::now());
            more = match self.exchange() {
                Ok(more) => more,
                Err(reason) => {
                    self.lose(&reason);
                    false
                }
            };
            while let Some(action) = self.monitor.poll(Instant::now()) {
                self.act(action);
            }
            lock(&self.carrier.facts).in_doubt = self.monitor.in_doubt();
        }
        if let Some(open) = self.open.take() {
            open.link.close();
        }
    }

    fn wait(&self) -> Duration {
        let now = Instant::now();
        let due = self.monitor.timeout().map(|at| at.saturating_duration_since(now));
        let link = self.open.as_ref().map(|open| (open.sent + PING).saturating_duration_since(now));
        let look = self.monitor.in_doubt().then_some(LOOK);
        [due, link, look].into_iter().flatten().fold(IDLE, Duration::min)
    }

    /// Takes over what senders and receivers have seen.
    fn look(&mut self, now: Instant) {
        if self.carrier.network_changed.swap(false, Ordering::AcqRel) {
            self.monitor.on_network_change(now);
        }
        if self.carrier.sent.load(Ordering::Acquire) {
            self.monitor.on_sent(now);
        }
        if self.carrier.heard.swap(false, Ordering::AcqRel) {
            self.monitor.on_heard(now);
            // From now on the next datagram is news again.
            self.carrier.sent.store(false, Ordering::Release);
        }
    }

    /// Moves datagrams both ways; true if there may be more to read.
    fn exchange(&mut self) -> Result<bool, String> {
        let Some(open) = &mut self.open else { return Ok(false) };
        let now = Instant::now();
        let text = |error: pilotage_carriage::LinkError| error.to_string();
        let mut came = Vec::new();
        while came.len() < TURN {
            match open.link.receive().map_err(text)? {
                Some(data) => came.push(data.to_vec()),
                None => break,
            }
        }
        let more = came.len() == TURN;
        if !came.is_empty() {
            open.heard = now;
        }
        if now.saturating_duration_since(open.sent) >= PING {
            open.link.ping().map_err(text)?;
            open.sent = now;
        }
        if now.saturating_duration_since(open.heard) >= DEAD && self.monitor.is_carried() {
            return Err("the hub says nothing any more".into());
        }
        while let Some(datagram) = self.carrier.next() {
            if !open.link.send(&datagram).map_err(text)? {
                self.carrier.put_back(datagram);
                break;
            }
            open.sent = now;
            self.carrier.datagrams_sent.fetch_add(1, Ordering::Relaxed);
        }
        open.link.flush().map_err(text)?;
        self.carrier.datagrams_received.fetch_add(came.len() as u64, Ordering::Relaxed);
        self.deliver(came);
        Ok(more)
    }

    /// Hands datagrams to the endpoint, as if the beacon's socket had sent them.
    fn deliver(&self, mut came: Vec<Vec<u8>>) {
        let Some(shared) = self.shared.upgrade() else { return };
        // After the return to UDP, too: the beacon may still send this way what was under way.
        if came.is_empty() {
            return;
        }
        let mut core = shared.lock();
        if core.phase == Phase::Closed {
            return;
        }
        let now = Instant::now();
        let meta = RecvMeta { remote: self.carrier.plan.beacon, local_ip: None };
        for datagram in &mut came {
            core.endpoint.handle_datagram(now, &meta, datagram);
        }
        let moved = core.endpoint.observed_address() != core.observed;
        shared.finish(core);
        if moved {
            // The driver tells those who wait for our address.
            shared.wake_driver();
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Probe => self.probe(),
            Action::Open => self.dial(),
            Action::Carry => self.switch(true),
            Action::Return => self.switch(false),
            Action::Close => {
                if let Some(open) = self.open.take() {
                    open.link.close();
                }
            }
        }
    }

    /// Asks the beacon by UDP, from the node's own socket, without an id: nothing is registered by that.
    fn probe(&mut self) {
        let Some(socket) = self.socket.upgrade() else { return };
        let mut buf = [0; PADDED_PROBE];
        let len = Message::Discover { node: NodeId::UNREGISTERED }.encode(&mut buf).unwrap_or(0);
        // Over IPv6 every other one is padded, so that a beacon may answer that never sends more than it got.
        let padded = self.carrier.plan.beacon.ip().to_canonical().is_ipv6() && self.probes.is_multiple_of(2);
        self.probes = self.probes.wrapping_add(1);
        let len = if padded { PADDED_PROBE } else { len };
        if let Err(error) = socket.send(self.carrier.plan.beacon, &buf[..len], None) {
            tracing::debug!(%error, "probe not sent");
        }
    }

    fn dial(&mut self) {
        let registered = self.carrier.plan.dial(&self.carrier.url).and_then(|mut dialed| {
            let both = Interest::READABLE | Interest::WRITABLE;
            let registry = self.poll.registry();
            registry.register(dialed.link.source(), LINK, both).map_err(|error| error.to_string())?;
            Ok(dialed)
        });
        // What happened meanwhile counts first: UDP may have answered.
        self.look(Instant::now());
        match registered {
            Ok(dialed) => {
                let now = Instant::now();
                tracing::info!(url = %self.carrier.url, took = ?dialed.took, "link to the hub is open");
                let mut facts = lock(&self.carrier.facts);
                facts.links += 1;
                facts.fingerprint = Some(dialed.fingerprint);
                facts.last_error = None;
                drop(facts);
                self.open = Some(Open { link: dialed.link, sent: now, heard: now });
                self.monitor.on_opened(now);
            }
            Err(reason) => self.lose(&reason),
        }
    }

    fn lose(&mut self, reason: &str) {
        tracing::debug!(reason, url = %self.carrier.url, "no link to the hub");
        self.open = None;
        lock(&self.carrier.facts).last_error = Some(reason.to_owned());
        self.monitor.on_lost(Instant::now());
    }

    /// From now on datagrams for the beacon go the other way; the node registers there.
    fn switch(&mut self, carried: bool) {
        self.carrier.sent.store(false, Ordering::Release);
        self.carrier.clear();
        self.carrier.carried.store(carried, Ordering::Release);
        lock(&self.carrier.facts).changed = Some(Instant::now());
        let Some(shared) = self.shared.upgrade() else { return };
        let mut core = shared.lock();
        if core.phase == Phase::Open {
            let now = Instant::now();
            core.endpoint.set_udp_blocked(now, carried);
            core.endpoint.network_changed(now);
        }
        shared.finish(core);
        shared.events.send(NodeEvent::CarriageChanged { carried });
    }
}
