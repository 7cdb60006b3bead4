//! The watch: poller, socket and receive slab. Whoever holds it receives and keeps the deadlines for the whole node.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use super::SEND_BATCHES;
use super::recv::RecvSlab;
use super::socket::Socket;
use crate::shared::{Core, Phase, Pumped, Shared, Sleep, Wakes};
use crate::slot::Direction;

/// Receive batches per turn.
const RECV_BATCHES: usize = 8;

/// Longest wait that is spent polling instead of sleeping.
const SPIN: Duration = Duration::from_micros(20);

/// Longest sleep while applications are active.
const TICK: Duration = Duration::from_millis(4);

/// How long at most the driver gives way to those whom it has woken, and how often in vain.
const GATHER: Duration = Duration::from_micros(100);
const GATHER_IDLE: u32 = 3;

/// How often a closing node looks whether everything is delivered.
const CLOSING_TICK: Duration = Duration::from_millis(5);

const SOCKET: Token = Token(0);
pub(crate) const WAKER: Token = Token(1);

/// What a turn needs. There is one for each node, held by one thread at a time (see [`super::post`]).
pub(crate) struct Watch {
    pub(super) socket: Arc<Socket>,
    poll: Poll,
    events: Events,
    io: mio::net::UdpSocket,
    slab: RecvSlab,
    pub(super) wakes: Wakes,
    /// The last receive did not empty the socket.
    pub(super) readable: bool,
    /// The poller was asked to tell when the socket has room.
    pub(super) awaits_room: bool,
    /// The last round of sending did not finish for lack of budget.
    pub(super) unsent: bool,
    /// The node was open when somebody last looked.
    pub(super) open: bool,
    /// Threads that waited for what the present turn brought.
    pub(super) threads: usize,
    /// The same, and tasks.
    pub(super) woken: usize,
    /// A task has it: those whom it wakes run after it on the same executor.
    pub(super) by_task: bool,
}

impl Watch {
    pub(crate) fn new(socket: Arc<Socket>, poll: Poll) -> io::Result<Self> {
        let mut io = socket.try_clone_io()?;
        poll.registry().register(&mut io, SOCKET, Interest::READABLE)?;
        Ok(Self {
            socket,
            poll,
            events: Events::with_capacity(8),
            io,
            slab: RecvSlab::new(),
            wakes: Wakes::default(),
            readable: true,
            awaits_room: false,
            unsent: false,
            open: true,
            threads: 0,
            woken: 0,
            by_task: false,
        })
    }

    /// One turn: waits at most so long, then receives, keeps deadlines and sends.
    ///
    /// # Errors
    /// The poller failed, and will again.
    pub(super) fn turn(&mut self, shared: &Shared, timeout: Option<Duration>) -> io::Result<()> {
        if timeout == Some(Duration::ZERO) && !self.readable && !self.unsent {
            // Spinning towards a close deadline: let others use this core meanwhile.
            std::thread::yield_now();
        }
        shared.counters.polls.fetch_add(1, Ordering::Relaxed);
        let polled = self.poll.poll(&mut self.events, timeout);
        shared.post.awake();
        match polled {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.events.clear(),
            Err(error) => {
                tracing::error!(%error, "the poller failed; the node stops");
                return Err(error);
            }
        }
        let mut room = false;
        for event in &self.events {
            if event.token() == SOCKET {
                self.readable |= event.is_readable() || event.is_error();
                room |= event.is_writable();
            }
        }
        if room {
            self.stop_awaiting_room();
        }
        self.step(shared);
        Ok(())
    }

    /// A turn without the wait.
    pub(super) fn step(&mut self, shared: &Shared) {
        self.threads = 0;
        self.woken = 0;
        // Every received batch also runs the deadlines and sends; without one that is still to do.
        if !self.receive(shared) {
            self.advance(shared, false);
        }
    }

    /// How long to sleep: `None` ends the node, `Some(None)` sleeps without bound.
    pub(super) fn prepare_sleep(&mut self, shared: &Shared) -> Option<Option<Duration>> {
        shared.relay.run();
        let mut core = shared.look();
        let now = Instant::now();
        // What applications left to us while we were awake.
        if !core.is_settled() {
            core = self.pump(shared, core, now);
        }
        self.open = core.phase == Phase::Open;
        if let Phase::Closing { deadline } = core.phase
            && (now >= deadline || core.all_delivered())
        {
            return None;
        }
        let due = core.endpoint.poll_timeout();
        if self.readable || self.unsent {
            core.sleep = Sleep::Awake;
            drop(core);
            self.wakes.deliver();
            return Some(Some(Duration::ZERO));
        }
        let mut until = due;
        let mut at_most = |tick: Duration| {
            let end = now + tick;
            until = Some(until.map_or(end, |until| until.min(end)));
        };
        if std::mem::take(&mut core.app_active) {
            at_most(TICK);
        }
        if core.phase != Phase::Open {
            at_most(CLOSING_TICK);
        }
        core.sleep = Sleep::Until(until);
        drop(core);
        self.wakes.deliver();
        Some(until.map(|until| {
            let left = until.saturating_duration_since(now);
            match left {
                // Nothing can be sent before the socket has room: no use in spinning.
                left if self.awaits_room => left.max(Duration::from_millis(1)),
                left if left <= SPIN => Duration::ZERO,
                left => left,
            }
        }))
    }

    /// The last thing before the watch is left: sends what applications left to us. True if the driver should go on at once.
    pub(super) fn rest(&mut self, shared: &Shared) -> bool {
        shared.relay.run();
        let mut core = shared.look();
        if !core.is_settled() {
            core = self.pump(shared, core, Instant::now());
        }
        core.sleep = Sleep::Guarded;
        let closing = core.phase != Phase::Open;
        drop(core);
        self.wakes.deliver();
        self.unsent || closing
    }

    /// True if at least one batch came.
    fn receive(&mut self, shared: &Shared) -> bool {
        let mut received = false;
        for _ in 0..RECV_BATCHES {
            if !self.readable {
                break;
            }
            shared.counters.receives.fetch_add(1, Ordering::Relaxed);
            match self.slab.fill(&self.socket, &self.io) {
                Ok(more) => self.readable = more,
                Err(error) => {
                    if error.kind() == io::ErrorKind::WouldBlock {
                        self.readable = false;
                    } else {
                        // A pending error of an earlier send (ICMP): reading it has cleared it.
                        tracing::debug!(%error, "receive failed");
                    }
                    continue;
                }
            }
            received = true;
            self.advance(shared, true);
        }
        received
    }

    /// One step of the core: what the slab holds, if it is new, the deadlines that are due, then whatever
    /// there is to send and to tell.
    fn advance(&mut self, shared: &Shared, received: bool) {
        let mut core = shared.lock();
        core.sleep = Sleep::Awake;
        let now = Instant::now();
        if received {
            let carrier = shared.carrier.as_ref();
            for (meta, datagram) in self.slab.datagrams() {
                if carrier.is_some_and(|carrier| carrier.on_datagram(meta.remote)) {
                    continue;
                }
                core.endpoint.handle_datagram(now, &meta, datagram);
            }
        }
        if core.endpoint.poll_timeout().is_some_and(|due| due <= now) {
            core.endpoint.handle_timeout(now);
        }
        let mut core = self.pump(shared, core, now);
        let observed = core.endpoint.observed_address();
        let moved = observed != core.observed;
        core.observed = observed;
        drop(core);
        if self.by_task {
            self.wakes.deliver();
        } else {
            self.wakes.deliver_by(&shared.relay);
        }
        self.threads += self.wakes.threads();
        self.woken += self.wakes.waiting();
        if moved {
            shared.lifecycle.signal(Direction::Read);
            shared.mailbox.address_changed();
        }
        if self.wakes.waiting() > 1 && !self.by_task {
            gather(shared);
        }
    }

    /// Sends, and collects whom that concerns.
    pub(super) fn pump<'a>(
        &mut self,
        shared: &'a Shared,
        core: MutexGuard<'a, Core>,
        now: Instant,
    ) -> MutexGuard<'a, Core> {
        let (core, pumped) = shared.pump(core, now, SEND_BATCHES, !self.awaits_room, &mut self.wakes);
        self.unsent = pumped == Pumped::More;
        if pumped == Pumped::Blocked && !self.awaits_room {
            self.await_room();
        }
        core
    }

    fn await_room(&mut self) {
        let both = Interest::READABLE | Interest::WRITABLE;
        match self.poll.registry().reregister(&mut self.io, SOCKET, both) {
            Ok(()) => self.awaits_room = true,
            // Without the interest the batch is tried again each turn.
            Err(error) => {
                tracing::debug!(%error, "no writable interest");
                self.unsent = true;
            }
        }
    }

    pub(super) fn stop_awaiting_room(&mut self) {
        self.awaits_room = false;
        // Left registered, every datagram that leaves the socket would rouse this thread.
        if let Err(error) = self.poll.registry().reregister(&mut self.io, SOCKET, Interest::READABLE) {
            tracing::debug!(%error, "writable interest stays");
        }
        // Re-registering an edge-triggered source reports only what is new on some systems.
        self.readable = true;
    }
}

/// Several tasks or threads were woken at once: lets them run first, so that their answers leave together. What they write
/// meanwhile is sent before the driver sleeps.
fn gather(shared: &Shared) {
    let start = Instant::now();
    let mut seen = shared.left_to_driver.load(Ordering::Relaxed);
    let mut idle = 0;
    while idle < GATHER_IDLE && start.elapsed() < GATHER {
        std::thread::yield_now();
        let now = shared.left_to_driver.load(Ordering::Relaxed);
        idle = if now == seen { idle + 1 } else { 0 };
        seen = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Node;

    #[test]
    fn a_node_with_nothing_to_say_is_asked_again_only_when_somebody_has_used_it() {
        let node = Node::builder().bind("127.0.0.1:0".parse().expect("address")).start().expect("a node");
        let shared = &node.inner.shared;
        let end = Instant::now() + Duration::from_secs(20);
        while !shared.look().is_settled() {
            assert!(Instant::now() < end, "its driver finds something to say for ever");
            std::thread::sleep(Duration::from_millis(1));
        }
        let used = shared.lock();
        assert!(!used.is_settled());
        let mut wakes = Wakes::default();
        let (core, pumped) = shared.pump(used, Instant::now(), SEND_BATCHES, false, &mut wakes);
        assert_eq!((core.is_settled(), pumped), (true, Pumped::Idle));
    }
}
