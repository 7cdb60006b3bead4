//! The driver: one thread per node that turns socket readiness and deadlines into calls of the core.
//!
//! One turn:
//! 1. sleep in the poller until the socket is readable (or writable, after it was full), a deadline
//!    is due, or an application thread asks for attention;
//! 2. up to [`RECV_BATCHES`] times: one batched receive, every datagram opened in place, the deadlines
//!    that are due, then send what all that released and wake the readers concerned, each once.
//!
//! Every step is bounded, so a flood of datagrams cannot starve the timers; what is left over is
//! continued in the next turn, which then does not sleep. The thread never waits for an application:
//! what an application does not read stays in the endpoint's bounded buffers.
//!
//! # Sleeping
//!
//! The poller of Linux sleeps in whole milliseconds, rounded up. A deadline at most [`SPIN`] away, less
//! than falling asleep costs, is awaited by polling; longer ones are slept for and may be noticed up to
//! a millisecond late. That costs no throughput, because the core's pacer releases at least 1.5 ms worth
//! of data at once (spec/recovery.md R7.2), and a late recovery timer costs time, never correctness. A
//! timerfd would be exact, at the price of one more system call per turn and of another dependency.
//!
//! For [`TICK`] after an application used the core the driver sleeps no longer than
//! that, so that an application that writes often need not wake it each time for a new deadline.

pub(crate) mod recv;
pub(crate) mod send;
pub(crate) mod socket;

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use crate::driver::recv::RecvSlab;
use crate::driver::socket::Socket;
use crate::shared::{Core, Phase, Pumped, Shared, Sleep, Wakes};
use crate::slot::Direction;
use crate::state::StateDir;

/// Receive batches per turn.
const RECV_BATCHES: usize = 8;

/// Send batches per turn and receive batch.
const SEND_BATCHES: usize = 64;

/// Longest wait that is spent polling instead of sleeping.
const SPIN: Duration = Duration::from_micros(20);

/// Longest sleep while applications are active.
const TICK: Duration = Duration::from_millis(4);

/// How long at most the driver gives way to those whom it has woken, and how often in vain.
const GATHER: Duration = Duration::from_micros(100);
const GATHER_IDLE: u32 = 3;

/// How often a closing node looks whether everything is delivered.
const CLOSING_TICK: Duration = Duration::from_millis(5);

/// How long the last datagrams of a closing node may wait for room in the socket.
const FAREWELL: Duration = Duration::from_millis(100);

const SOCKET: Token = Token(0);
pub(crate) const WAKER: Token = Token(1);

/// The thread's own state.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    socket: Arc<Socket>,
    /// Locked as long as the thread runs.
    _state: Option<StateDir>,
    poll: Poll,
    io: mio::net::UdpSocket,
    slab: RecvSlab,
    wakes: Wakes,
    /// The last receive did not empty the socket.
    readable: bool,
    /// The poller was asked to tell when the socket has room.
    awaits_room: bool,
    /// The last round of sending did not finish for lack of budget.
    unsent: bool,
}

impl Driver {
    pub(crate) fn new(
        shared: Arc<Shared>,
        socket: Arc<Socket>,
        state: Option<StateDir>,
        poll: Poll,
    ) -> io::Result<Self> {
        let mut io = socket.try_clone_io()?;
        poll.registry().register(&mut io, SOCKET, Interest::READABLE)?;
        Ok(Self {
            shared,
            socket,
            _state: state,
            poll,
            io,
            slab: RecvSlab::new(),
            wakes: Wakes::default(),
            readable: true,
            awaits_room: false,
            unsent: false,
        })
    }

    pub(crate) fn spawn(self) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("pilotage-driver".into()).spawn(move || self.run())
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(8);
        while let Some(timeout) = self.prepare_sleep() {
            if timeout == Some(Duration::ZERO) && !self.readable && !self.unsent {
                // Spinning towards a close deadline: let others use this core meanwhile.
                std::thread::yield_now();
            }
            self.shared.counters.polls.fetch_add(1, Ordering::Relaxed);
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!(%error, "the poller failed; the node stops");
                    self.shared.conclude(self.shared.lock());
                    return;
                }
            }
            for event in &events {
                if event.token() == SOCKET {
                    self.readable |= event.is_readable() || event.is_error();
                    if event.is_writable() {
                        self.stop_awaiting_room();
                    }
                }
            }
            // Every received batch also runs the deadlines and sends; without one that is still to do.
            if !self.receive() {
                self.advance(false);
            }
        }
        self.farewell();
    }

    /// How long to sleep: `None` ends the thread, `Some(None)` sleeps without bound.
    fn prepare_sleep(&mut self) -> Option<Option<Duration>> {
        let shared = self.shared.clone();
        shared.relay.run();
        let mut core = shared.lock();
        // What applications left to us while we were awake.
        core = self.pump(&shared, core);
        let now = Instant::now();
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

    /// True if at least one batch came.
    fn receive(&mut self) -> bool {
        let mut received = false;
        for _ in 0..RECV_BATCHES {
            if !self.readable {
                break;
            }
            self.shared.counters.receives.fetch_add(1, Ordering::Relaxed);
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
            self.advance(true);
        }
        received
    }

    /// One step of the core: what the slab holds, if it is new, the deadlines that are due, then whatever
    /// there is to send and to tell.
    fn advance(&mut self, received: bool) {
        let shared = self.shared.clone();
        let mut core = shared.lock();
        core.sleep = Sleep::Awake;
        let now = Instant::now();
        if received {
            for (meta, datagram) in self.slab.datagrams() {
                core.endpoint.handle_datagram(now, &meta, datagram);
            }
        }
        if core.endpoint.poll_timeout().is_some_and(|due| due <= now) {
            core.endpoint.handle_timeout(now);
        }
        let mut core = self.pump(&shared, core);
        let observed = core.endpoint.observed_address();
        let moved = observed != core.observed;
        core.observed = observed;
        drop(core);
        let woken = self.wakes.len();
        self.wakes.deliver_by(&shared.relay);
        if moved {
            shared.lifecycle.signal(Direction::Read);
            shared.mailbox.address_changed();
        }
        if woken > 1 {
            gather(&shared);
        }
    }

    /// Sends, and collects whom that concerns.
    fn pump<'a>(&mut self, shared: &'a Shared, core: MutexGuard<'a, Core>) -> MutexGuard<'a, Core> {
        let (core, pumped) = shared.pump(core, SEND_BATCHES, !self.awaits_room, &mut self.wakes);
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

    fn stop_awaiting_room(&mut self) {
        self.awaits_room = false;
        // Left registered, every datagram that leaves the socket would rouse this thread.
        if let Err(error) = self.poll.registry().reregister(&mut self.io, SOCKET, Interest::READABLE) {
            tracing::debug!(%error, "writable interest stays");
        }
        // Re-registering an edge-triggered source reports only what is new on some systems.
        self.readable = true;
    }

    /// Tells the peers, then everybody here, that it is over.
    fn farewell(&mut self) {
        let shared = self.shared.clone();
        let mut core = shared.lock();
        core.sleep = Sleep::Awake;
        core.endpoint.close_all(Instant::now());
        let end = Instant::now() + FAREWELL;
        loop {
            let pumped;
            (core, pumped) = shared.pump(core, SEND_BATCHES, true, &mut self.wakes);
            if pumped == Pumped::Idle || Instant::now() >= end {
                break;
            }
            drop(core);
            std::thread::sleep(Duration::from_millis(1));
            core = shared.lock();
        }
        shared.conclude(core);
        self.wakes.deliver();
        shared.save_peers(true);
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
