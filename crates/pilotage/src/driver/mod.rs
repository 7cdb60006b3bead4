//! The driver: one thread per node that turns socket readiness and deadlines into calls of the core.
//!
//! One turn:
//! 1. sleep in the poller until the socket is readable (or writable, after it was full), a deadline
//!    is due, or an application thread asks for attention;
//! 2. up to [`RECV_BATCHES`] times: one batched receive, every datagram opened in place, the deadlines
//!    that are due, then send what all that released and wake the readers concerned, each once.
//!
//! While a thread of the application waits in a blocking call, it does that itself instead (see [`post`]): what it waits for
//! then costs no switch of threads. Or a task of the application's executor does it for as long as that wants (see [`task`]).
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

pub(crate) mod post;
pub(crate) mod recv;
pub(crate) mod send;
pub(crate) mod socket;
#[cfg(all(feature = "tokio", unix))]
pub(crate) mod task;
pub(crate) mod watch;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::driver::watch::Watch;
use crate::shared::{Pumped, Shared, Sleep};
use crate::state::StateDir;

/// Send batches per turn and receive batch.
const SEND_BATCHES: usize = 64;

/// How often in a row the driver wakes the threads of one stream before it leaves them the watch.
const STREAK: usize = 8;

/// How long the last datagrams of a closing node may wait for room in the socket.
const FAREWELL: Duration = Duration::from_millis(100);

/// The thread's own state.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    /// Locked as long as the thread runs.
    _state: Option<StateDir>,
}

impl Driver {
    pub(crate) fn new(shared: Arc<Shared>, state: Option<StateDir>) -> Self {
        Self { shared, _state: state }
    }

    pub(crate) fn spawn(self, watch: Watch) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("pilotage-driver".into()).spawn(move || self.run(Box::new(watch)))
    }

    fn run(self, mut watch: Box<Watch>) {
        let shared = &*self.shared;
        while let Some(timeout) = watch.prepare_sleep(shared) {
            if watch.turn(shared, timeout).is_err() {
                shared.conclude(shared.lock());
                return;
            }
            let same = watch.wakes.streak() >= STREAK;
            let shared_out = watch.threads > 0 && same && !shared.post.is_reserved();
            if watch.open && (shared_out || shared.post.is_driven()) {
                let urgent = watch.rest(shared);
                shared.post.leave(watch, urgent);
                watch = shared.post.guard();
            }
        }
        self.farewell(&mut watch);
    }

    /// Tells the peers, then everybody here, that it is over.
    fn farewell(&self, watch: &mut Watch) {
        let shared = &*self.shared;
        let mut core = shared.lock();
        core.sleep = Sleep::Awake;
        core.endpoint.close_all(Instant::now());
        let end = Instant::now() + FAREWELL;
        let mut repeated = false;
        loop {
            let pumped;
            (core, pumped) = shared.pump(core, Instant::now(), SEND_BATCHES, true, &mut watch.wakes);
            if Instant::now() >= end || (pumped == Pumped::Idle && repeated) {
                break;
            }
            if pumped == Pumped::Idle {
                repeated = true;
                core.endpoint.acknowledge_again(Instant::now());
                continue;
            }
            drop(core);
            std::thread::sleep(Duration::from_millis(1));
            core = shared.lock();
        }
        shared.conclude(core);
        watch.wakes.deliver();
        shared.save_peers(true);
    }
}
