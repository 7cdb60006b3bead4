//! What the driver thread and the application's threads share, and the rules for sharing it.
//!
//! * [`Core`] (the sans-IO endpoint and who waits for what) lies behind one mutex. The clock is read
//!   only while that mutex is held, so the endpoint never sees time run backwards.
//! * Whoever changed the endpoint ends with [`Shared::finish`] (or `finish_small`): it sends what became ready on the
//!   caller's own thread (a small request costs no thread switch), hands events on, and wakes the
//!   driver only where the driver would oversleep a new deadline.
//! * The mutex is released around every system call and never held while somebody is woken.
//! * Lock order: core, then peer book, then slots and queues.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use pilotage_nat::agent::{Candidate, CandidateKind};
use pilotage_proto::{ConnectError, ConnectionId, Endpoint, Event, TransmitBuf};
use pilotage_wire::NodeId;

use crate::acquaintances::Acquaintances;
use crate::carrier::Carrier;
use crate::driver::post::Post;
use crate::driver::send::{Pending, SendCounters, SendOutcome, SendSlab};
use crate::events::{EventHub, NodeEvent};
use crate::keeper::Mailbox;
use crate::lookup::Lookup;
use crate::path::Paths;
use crate::relay::Relay;
use crate::side::Sockets;
use crate::slot::{Direction, Slot};
use crate::state::PeerBook;

/// Most batches that one application call sends before it hands over to the driver.
const APP_BATCHES: usize = 16;

/// Bytes of an application call that may wait for the driver, if that is awake.
const SMALL: usize = 2 << 10;

/// Most rounds of "send, then handle events that ask for more to be sent" in one go.
const EVENT_ROUNDS: usize = 4;

/// Refused peers whose reason is remembered.
const MAX_REFUSALS: usize = 64;

/// Everything that the threads of one node share.
#[derive(Debug)]
pub(crate) struct Shared {
    core: Mutex<Core>,
    /// The address that the socket is bound to.
    pub(crate) local: SocketAddr,
    /// Who waits at the socket.
    pub(crate) post: Post,
    pub(crate) counters: SendCounters,
    pub(crate) relay: Relay,
    /// Who speaks with the beacon where UDP is blocked.
    pub(crate) carrier: Option<Arc<Carrier>>,
    /// Extra sockets.
    pub(crate) side: Arc<Sockets>,
    /// Calls of the application whose datagrams were left to the driver.
    pub(crate) left_to_driver: AtomicU64,
    pub(crate) events: EventHub,
    pub(crate) book: Mutex<PeerBook>,
    pub(crate) mailbox: Arc<Mailbox>,
    /// Where questions about callers go while the gate is closed. Locked after the core.
    pub(crate) gate: Mutex<Option<SyncSender<NodeId>>>,
    /// Signalled when the observed address or the phase changes.
    pub(crate) lifecycle: Slot,
    pub(crate) started: Instant,
    /// Who knows peers without the hub.
    pub(crate) acquaintances: OnceLock<Arc<dyn Acquaintances>>,
}

/// The endpoint and who waits for what. Always behind the mutex of [`Shared`].
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) endpoint: Endpoint,
    /// The right to send; `None` while a thread is sending (it looks again before it stops) and at the end.
    pub(crate) slab: Option<SendSlab>,
    pub(crate) connections: HashMap<ConnectionId, Arc<Slot>>,
    /// Connections without a handle whose last bytes may still be on their way.
    pub(crate) draining: HashSet<ConnectionId>,
    pub(crate) listeners: HashMap<u16, Arc<Slot>>,
    pub(crate) datagram_ports: HashMap<u16, Arc<Slot>>,
    /// Who takes datagrams to ports that nobody bound.
    pub(crate) datagram_tap: Option<Arc<Slot>>,
    pub(crate) pings: HashMap<u64, Arc<PendingPing>>,
    /// Threads that wait until everything written is acknowledged.
    pub(crate) flush_waits: Vec<(ConnectionId, Arc<Slot>)>,
    /// Peers that the operator introduced by hand: the hub has no say about them.
    pub(crate) introduced: HashSet<NodeId>,
    /// Why peers were refused lately, to explain a key exchange that never ends.
    pub(crate) refusals: VecDeque<(NodeId, String)>,
    pub(crate) observed: Option<SocketAddr>,
    pub(crate) paths: Paths,
    /// Addresses of our interfaces, with our port.
    pub(crate) candidates: Vec<SocketAddr>,
    /// The router's port that leads to ours.
    pub(crate) mapped: Option<SocketAddr>,
    /// How often the gate was replaced: verdicts of an earlier one do not count.
    pub(crate) gates: u64,
    pub(crate) sleep: Sleep,
    /// An application thread used the core since the driver last went to sleep.
    pub(crate) app_active: bool,
    /// There was nothing to send and to tell, and nobody has used the core since. Only [`Shared::pump`] says so.
    settled: bool,
    pub(crate) phase: Phase,
}

/// What the driver thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sleep {
    /// It will look at all deadlines before it sleeps.
    Awake,
    /// It sleeps until then, or until the socket or the waker rouses it.
    Until(Option<Instant>),
    /// Nobody waits at the socket. The driver looks after it within twice [`GRACE`](crate::driver::post::GRACE), which
    /// is as exact as the poller.
    Guarded,
}

/// Life of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    /// Written data is being delivered until everything is acknowledged or `deadline`.
    Closing {
        deadline: Instant,
    },
    Closed,
}

/// Somebody who waits for the answer to a ping.
#[derive(Debug)]
pub(crate) struct PendingPing {
    pub(crate) peer: NodeId,
    pub(crate) slot: Slot,
    pub(crate) answer: Mutex<Option<Result<Duration, ConnectError>>>,
}

impl PendingPing {
    fn set(&self, answer: Result<Duration, ConnectError>) {
        let mut slot = self.answer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if slot.is_none() {
            *slot = Some(answer);
        }
    }
}

/// Wake-ups collected under the lock and delivered after it is released.
#[derive(Debug, Default)]
pub(crate) struct Wakes {
    slots: Vec<(Arc<Slot>, Direction)>,
    pings: Vec<Arc<PendingPing>>,
    /// Kept for its memory; empty between two deliveries.
    tasks: Vec<Waker>,
    /// Slots of the last delivery for which a thread waited.
    threads: usize,
    /// The same, and tasks.
    waiting: usize,
    /// The slot that last had a waiting thread (its address, only to compare), and for how many deliveries in a row.
    streak: (usize, usize),
}

impl Wakes {
    pub(crate) fn add(&mut self, slot: &Arc<Slot>, direction: Direction) {
        self.slots.push((slot.clone(), direction));
    }

    /// What is to be delivered.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Slots of the last delivery for which a thread waited.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// How often in a row the threads of one and the same slot were woken.
    pub(crate) fn streak(&self) -> usize {
        self.streak.1
    }

    /// Threads and tasks that the last delivery woke.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(crate) fn deliver(&mut self) {
        self.notify();
        for task in self.tasks.drain(..) {
            task.wake();
        }
    }

    /// As [`Self::deliver`], but of several tasks the first wakes the others.
    pub(crate) fn deliver_by(&mut self, relay: &Relay) {
        self.notify();
        relay.wake(&mut self.tasks);
    }

    /// Notifies the threads and collects the tasks.
    fn notify(&mut self) {
        self.threads = 0;
        for (slot, direction) in self.slots.drain(..) {
            if slot.advance(direction, &mut self.tasks) {
                self.threads += 1;
                let slot = Arc::as_ptr(&slot).addr();
                self.streak = if self.streak.0 == slot { (slot, self.streak.1 + 1) } else { (slot, 1) };
            }
        }
        for ping in self.pings.drain(..) {
            ping.slot.advance(Direction::Read, &mut self.tasks);
        }
        self.waiting = self.threads + self.tasks.len();
    }
}

/// Where a round of sending ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// Nothing more to send now.
    Idle,
    /// Another thread is sending and will see what we changed.
    Elsewhere,
    /// The budget is used up; there is more.
    More,
    /// The socket is full.
    Blocked,
}

impl Core {
    pub(crate) fn new(endpoint: Endpoint, slab: SendSlab) -> Self {
        Self {
            endpoint,
            slab: Some(slab),
            connections: HashMap::new(),
            draining: HashSet::new(),
            listeners: HashMap::new(),
            datagram_ports: HashMap::new(),
            datagram_tap: None,
            pings: HashMap::new(),
            flush_waits: Vec::new(),
            introduced: HashSet::new(),
            refusals: VecDeque::new(),
            observed: None,
            paths: Paths::default(),
            candidates: Vec::new(),
            mapped: None,
            gates: 0,
            sleep: Sleep::Awake,
            app_active: false,
            settled: false,
            phase: Phase::Open,
        }
    }

    /// Makes the slot of a connection that just came to be.
    pub(crate) fn adopt(&mut self, id: ConnectionId) -> Arc<Slot> {
        self.connections.entry(id).or_default().clone()
    }

    /// The last handle of a connection is gone.
    pub(crate) fn abandon(&mut self, now: Instant, id: ConnectionId) {
        let slot = self.connections.remove(&id);
        self.flush_waits.retain(|(waiting, _)| *waiting != id);
        if slot.is_some_and(|slot| !slot.is_connected()) {
            // An attempt that was given up: nobody has written anything to deliver.
            self.endpoint.reset(now, id);
        }
        self.endpoint.close(now, id);
        if !self.endpoint.is_flushed(id) {
            self.draining.insert(id);
        }
    }

    /// Our UDP address as the beacon sees it. Through a link it sees one that means nothing to anybody else.
    pub(crate) fn observed_address(&self) -> Option<SocketAddr> {
        self.endpoint.observed_address().filter(|address| !pilotage_carriage::is_virtual(*address))
    }

    /// Whether nothing that an application wrote is still on its way.
    pub(crate) fn all_delivered(&mut self) -> bool {
        let endpoint = &self.endpoint;
        self.draining.retain(|id| !endpoint.is_flushed(*id));
        self.draining.is_empty()
            && self.connections.iter().all(|(id, slot)| slot.is_closed() || endpoint.is_flushed(*id))
    }

    /// Wakes the threads in `flush_waits` whose connection is flushed or over.
    fn check_flushed(&mut self, wakes: &mut Wakes) {
        let endpoint = &self.endpoint;
        self.flush_waits.retain(|(id, slot)| {
            let over = slot.is_closed() || endpoint.is_flushed(*id);
            if over {
                wakes.add(slot, Direction::Write);
            }
            !over
        });
    }

    /// Notes why a peer was refused.
    pub(crate) fn note_refusal(&mut self, node: NodeId, reason: &str) {
        self.refusals.retain(|(refused, _)| *refused != node);
        if self.refusals.len() >= MAX_REFUSALS {
            self.refusals.pop_front();
        }
        self.refusals.push_back((node, reason.to_owned()));
    }

    pub(crate) fn refusal(&self, node: NodeId) -> Option<String> {
        self.refusals.iter().find(|(refused, _)| *refused == node).map(|(_, reason)| reason.clone())
    }

    /// Somebody is about to use the core.
    pub(crate) fn unsettle(&mut self) {
        self.settled = false;
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.settled
    }

    fn driver_oversleeps(&mut self) -> bool {
        match self.sleep {
            Sleep::Awake | Sleep::Guarded => false,
            Sleep::Until(wakes_at) => {
                let deadline = self.endpoint.poll_timeout();
                deadline.is_some_and(|deadline| wakes_at.is_none_or(|wakes_at| deadline < wakes_at))
            }
        }
    }
}

impl Shared {
    pub(crate) fn new(
        core: Core,
        local: SocketAddr,
        post: Post,
        book: PeerBook,
        mailbox: Arc<Mailbox>,
        carrier: Option<Arc<Carrier>>,
    ) -> Self {
        let side = core.slab.as_ref().map(|slab| slab.side.clone()).unwrap_or_default();
        Self {
            core: Mutex::new(core),
            local,
            post,
            counters: SendCounters::default(),
            relay: Relay::default(),
            carrier,
            side,
            left_to_driver: AtomicU64::new(0),
            events: EventHub::default(),
            book: Mutex::new(book),
            mailbox,
            gate: Mutex::new(None),
            lifecycle: Slot::default(),
            started: Instant::now(),
            acquaintances: OnceLock::new(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Core> {
        let mut core = self.look();
        core.unsettle();
        core
    }

    /// As [`Self::lock`], for who changes nothing that may have to be sent or told.
    pub(crate) fn look(&self) -> MutexGuard<'_, Core> {
        // A panic in another thread must not take every thread of the application down with it.
        self.core.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, PeerBook> {
        self.book.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// One poll of a future that waits for a slot.
    pub(crate) fn poll<T>(
        &self,
        slot: &Slot,
        direction: Direction,
        cx: &mut Context<'_>,
        attempt: impl FnMut() -> Option<T>,
    ) -> Poll<T> {
        self.relay.run();
        let polled = slot.poll_once(direction, cx, attempt);
        if polled.is_pending() && self.post.reserve() {
            self.wake_driver();
        }
        polled
    }

    /// Tells the endpoint and the registry where others reach us.
    pub(crate) fn tell_candidates(&self, core: &mut Core) {
        tracing::debug!(interfaces = ?core.candidates, mapped = ?core.mapped, "our addresses");
        let hosts = core.candidates.iter().map(|&addr| Candidate { addr, kind: CandidateKind::Host });
        let mapped = core.mapped.map(|addr| Candidate { addr, kind: CandidateKind::Mapped });
        let candidates: Vec<_> = mapped.into_iter().chain(hosts).collect();
        core.endpoint.set_local_candidates(Instant::now(), &candidates);
        self.mailbox.address_changed();
    }

    /// Wakes the driver, or whoever waits at the socket in its stead.
    pub(crate) fn wake_driver(&self) {
        self.post.call();
    }

    /// Ends a call of the application that moved only `len` bytes: where the driver is awake, it sends what became ready
    /// together with what others have by then, before it sleeps. A call for each small message would cost most of its time.
    pub(crate) fn finish_small<'a>(&'a self, mut core: MutexGuard<'a, Core>, now: Instant, len: usize) {
        if len <= SMALL && core.sleep == Sleep::Awake {
            core.app_active = true;
            self.left_to_driver.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.finish_at(core, now);
    }

    /// Ends a call of the application: sends, hands events on, wakes whom it concerns.
    pub(crate) fn finish<'a>(&'a self, core: MutexGuard<'a, Core>) {
        self.finish_at(core, Instant::now());
    }

    fn finish_at<'a>(&'a self, mut core: MutexGuard<'a, Core>, now: Instant) {
        let mut wakes = Wakes::default();
        let pumped;
        (core, pumped) = self.pump(core, now, APP_BATCHES, false, &mut wakes);
        core.app_active = true;
        let wake = matches!(pumped, Pumped::More | Pumped::Blocked) || core.driver_oversleeps();
        drop(core);
        wakes.deliver();
        if wake {
            self.wake_driver();
        }
    }

    /// Sends up to `budget` batches and handles events. `retry`: also try a batch that was blocked. It is `now` or was a moment ago.
    pub(crate) fn pump<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        mut now: Instant,
        budget: usize,
        retry: bool,
        wakes: &mut Wakes,
    ) -> (MutexGuard<'a, Core>, Pumped) {
        let (mut pumped, mut answered) = (Pumped::Idle, true);
        for _ in 0..EVENT_ROUNDS {
            (core, pumped) = self.transmit(core, &mut now, budget, retry);
            answered = self.handle_events(&mut core, wakes);
            if !answered {
                break;
            }
        }
        core.check_flushed(wakes);
        core.settled = pumped == Pumped::Idle && !answered;
        (core, pumped)
    }

    /// In the middle of a long write: sends no more than the full batches that a stream's unsent bytes make. A batch costs the
    /// same whether it is full or not, and what would go in it is at hand.
    pub(crate) fn send_full<'a>(
        &'a self,
        core: MutexGuard<'a, Core>,
        now: &mut Instant,
        id: ConnectionId,
    ) -> MutexGuard<'a, Core> {
        match core.endpoint.unsent(id) / TransmitBuf::CAPACITY {
            0 => core,
            full => self.transmit(core, now, full, false).0,
        }
    }

    fn transmit<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        now: &mut Instant,
        budget: usize,
        retry: bool,
    ) -> (MutexGuard<'a, Core>, Pumped) {
        let Some(mut slab) = core.slab.take() else {
            return (core, Pumped::Elsewhere);
        };
        let mut pumped = Pumped::More;
        if slab.pending.is_some() && !retry {
            core.slab = Some(slab);
            return (core, Pumped::Blocked);
        }
        for _ in 0..budget {
            let batch = match slab.pending.take() {
                Some(batch) => batch,
                None => match core.endpoint.poll_transmit(*now, &mut slab.buf) {
                    Some(transmit) => Pending::from(transmit),
                    None => {
                        pumped = Pumped::Idle;
                        break;
                    }
                },
            };
            drop(core);
            let outcome = slab.send(batch, &self.counters);
            if batch.size() > SMALL {
                *now = Instant::now();
            }
            core = self.lock();
            match outcome {
                SendOutcome::Done => {}
                SendOutcome::Blocked => {
                    pumped = Pumped::Blocked;
                    break;
                }
                SendOutcome::TooBig { destination, size } => {
                    core.endpoint.on_message_too_big(*now, destination, size);
                }
            }
        }
        if core.phase != Phase::Closed {
            core.slab = Some(slab);
        }
        (core, pumped)
    }

    /// Hands events on; true if handling one may have given the endpoint something to send.
    fn handle_events(&self, core: &mut Core, wakes: &mut Wakes) -> bool {
        let mut answered = false;
        while let Some(event) = core.endpoint.poll_event() {
            match event {
                Event::Connected(id) => {
                    if let Some(slot) = core.connections.get(&id) {
                        slot.set_connected();
                        wakes.add(slot, Direction::Write);
                    }
                }
                Event::Readable(id) => {
                    if let Some(slot) = core.connections.get(&id) {
                        wakes.add(slot, Direction::Read);
                    }
                }
                Event::Writable(id) => {
                    if let Some(slot) = core.connections.get(&id) {
                        wakes.add(slot, Direction::Write);
                    }
                }
                Event::Closed(id) => {
                    core.draining.remove(&id);
                    if let Some(slot) = core.connections.get(&id) {
                        slot.set_closed();
                        wakes.add(slot, Direction::Read);
                        wakes.add(slot, Direction::Write);
                    }
                }
                Event::Incoming { port } => {
                    if let Some(slot) = core.listeners.get(&port) {
                        wakes.add(slot, Direction::Read);
                    }
                }
                Event::Datagram { port } => {
                    if let Some(slot) = core.datagram_ports.get(&port) {
                        wakes.add(slot, Direction::Read);
                    }
                }
                Event::AnyDatagram => {
                    if let Some(slot) = &core.datagram_tap {
                        wakes.add(slot, Direction::Read);
                    }
                }
                Event::Pong { token, rtt, .. } => {
                    if let Some(ping) = core.pings.remove(&token) {
                        ping.set(Ok(rtt));
                        wakes.pings.push(ping);
                    }
                }
                Event::LookupPeer { node, presented_key, from } => {
                    // All zero: a sealed frame came, which presents none.
                    let key = Some(presented_key).filter(|key| *key != [0; 32]);
                    let relayed = core.endpoint.is_beacon(from);
                    answered |= self.on_lookup(core, Lookup { node, key, relayed });
                }
                Event::Knock { peer } => self.on_knock(core, peer),
                other => self.on_tunnel_event(core, other, wakes),
            }
        }
        answered
    }

    fn on_tunnel_event(&self, core: &mut Core, event: Event, wakes: &mut Wakes) {
        match event {
            Event::TunnelUp { peer, handshake } => {
                if let Some(info) = core.endpoint.peer(peer)
                    && self.book().on_tunnel_up(&info, !handshake.is_zero())
                {
                    self.mailbox.save_soon();
                }
                core.paths.up(peer, Instant::now(), wakes);
                self.events.send(NodeEvent::TunnelUp { peer, handshake });
            }
            Event::TunnelDown { peer, reason } => {
                core.pings.retain(|_, ping| {
                    if ping.peer == peer {
                        ping.set(Err(reason));
                        wakes.pings.push(ping.clone());
                    }
                    ping.peer != peer
                });
                core.paths.down(peer, wakes);
                self.events.send(NodeEvent::TunnelDown { peer, reason });
            }
            Event::PeerSecured { peer, prekey } if self.book().on_secured(peer, *prekey) => {
                self.mailbox.save_soon();
            }
            Event::AddressWanted { peer } => {
                if let Some(tunnel) = core.endpoint.peer(peer) {
                    self.mailbox.want_address(tunnel.peer);
                }
            }
            Event::SocketsWanted { peer, target } => self.mailbox.want_sockets(peer, target),
            Event::PathChanged { peer, path, .. } => {
                core.paths.changed(peer, Instant::now(), wakes);
                self.events.send(NodeEvent::PathChanged { peer, path });
            }
            _ => {}
        }
    }

    /// Marks everything as over and wakes everybody.
    pub(crate) fn conclude(&self, mut core: MutexGuard<'_, Core>) {
        let mut wakes = Wakes::default();
        core.phase = Phase::Closed;
        // The socket goes with it, so that the port is free although handles may live on.
        core.slab = None;
        core.sleep = Sleep::Awake;
        for slot in core.connections.values() {
            slot.set_closed();
            wakes.add(slot, Direction::Read);
            wakes.add(slot, Direction::Write);
        }
        for slot in core.listeners.values().chain(core.datagram_ports.values()).chain(&core.datagram_tap) {
            slot.set_closed();
            wakes.add(slot, Direction::Read);
        }
        for (_, ping) in core.pings.drain() {
            ping.set(Err(ConnectError::Closing));
            wakes.pings.push(ping);
        }
        core.flush_waits.clear();
        core.paths.close(&mut wakes);
        drop(core);
        wakes.deliver();
        self.lifecycle.set_closed();
        self.lifecycle.signal(Direction::Read);
        self.post.end_driving();
        self.mailbox.stop();
        if let Some(carrier) = &self.carrier {
            carrier.stop();
        }
        self.ask_nobody();
        self.events.send(NodeEvent::Closed);
    }
}
