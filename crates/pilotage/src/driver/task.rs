//! A task of the application's executor that drives the node, in place of the driver's thread.
//!
//! Requests and answers of tasks cost switches between the executor's thread and the driver's: each batch of datagrams rouses the
//! driver, which rouses the executor, whose answers the driver sends. Where one task of the executor receives for the node, those
//! whom a batch concerns run right after it on the same thread, and what they wrote leaves together when it is polled again.
//!
//! Between two polls the watch lies at the [`Post`]; so the driver's thread has it back at once when the node
//! closes or the task is dropped, wherever that happens. While the task drives, the driver's thread sleeps.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::UdpSocket;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Sleep;

use super::post::{Post, Sought};
use super::watch::Watch;
use crate::shared::Shared;

/// Steps in one poll of the task before others of the executor have their turn.
const STEPS: usize = 8;

/// How long a full socket is left alone.
const ROOM: Duration = Duration::from_millis(1);

/// Drives its node as a task of a tokio runtime: [`Node::drive`](crate::Node::drive).
#[must_use = "it drives the node only while it is polled: spawn it"]
pub struct Drive {
    shared: Arc<Shared>,
    number: u64,
    /// Tells when the socket has something; made at the first poll.
    reactor: Option<AsyncFd<UdpSocket>>,
    timer: Option<Pin<Box<Sleep>>>,
    /// A step is due at the next poll, whether or not the socket has something.
    due: bool,
}

/// The watch while the task is polled. Dropping it puts it back.
struct Held<'a> {
    post: &'a Post,
    watch: Option<Box<Watch>>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(mut watch) = self.watch.take() {
            watch.by_task = false;
            // For whoever takes it next the edge may be over.
            watch.readable = true;
            self.post.put_back(watch);
        }
    }
}

impl Drive {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self { shared, number, reactor: None, timer: None, due: true }
    }
}

/// What the task waits with.
struct Waits<'a> {
    reactor: &'a AsyncFd<UdpSocket>,
    timer: &'a mut Option<Pin<Box<Sleep>>>,
    due: &'a mut bool,
}

impl Waits<'_> {
    /// Steps until there is nothing to do, or those who were woken are to run. Ready when the node is no longer open.
    fn run(&mut self, shared: &Shared, watch: &mut Watch, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for _ in 0..STEPS {
            let mut ready = match self.reactor.poll_read_ready(cx) {
                Poll::Ready(ready) => Some(ready?),
                Poll::Pending => None,
            };
            watch.readable = ready.is_some();
            if watch.readable || std::mem::take(self.due) {
                if watch.awaits_room {
                    watch.stop_awaiting_room();
                }
                watch.step(shared);
                if let Some(ready) = ready.as_mut().filter(|_| !watch.readable) {
                    ready.clear_ready();
                }
                if watch.woken > 0 {
                    break;
                }
            }
            let timeout = watch.prepare_sleep(shared);
            let Some(timeout) = timeout.filter(|_| watch.open) else { return Poll::Ready(Ok(())) };
            let room = watch.awaits_room.then_some(ROOM);
            match timeout.into_iter().chain(room).min() {
                Some(Duration::ZERO) => {
                    *self.due = true;
                    break;
                }
                Some(left) if self.expired(Instant::now() + left, cx) => *self.due = true,
                // The reactor wakes only who asked it in vain.
                _ if ready.is_none() || self.reactor.poll_read_ready(cx).is_pending() => {
                    return Poll::Pending;
                }
                _ => {}
            }
        }
        // Those who were woken come first, and then this task again: it sends what they left to it.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether the time has come; else the task is woken then, or before: a timer that rings early costs one look, which is less than to set
    /// it anew at each poll.
    fn expired(&mut self, end: Instant, cx: &mut Context<'_>) -> bool {
        let end = tokio::time::Instant::from_std(end);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        if timer.is_elapsed() || timer.deadline() > end {
            timer.as_mut().reset(end);
        }
        timer.as_mut().poll(cx).is_ready()
    }
}

/// For readability only: asked for room as well, the reactor would be roused by every datagram that leaves the socket.
#[expect(
    deprecated,
    reason = "its successor is an unsafe function, because a type may lie about its descriptor; the standard library's socket does not"
)]
fn register(socket: UdpSocket) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, Interest::READABLE)
}

impl Future for Drive {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let shared = &*this.shared;
        let watch = match shared.post.seek(this.number, cx.waker()) {
            Sought::Watch(watch) => watch,
            Sought::Wait => return Poll::Pending,
            Sought::Over => return Poll::Ready(Ok(())),
            Sought::Taken => {
                let why = "another task drives this node already";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::AlreadyExists, why)));
            }
        };
        let mut held = Held { post: &shared.post, watch: Some(watch) };
        let Some(watch) = held.watch.as_deref_mut() else { return Poll::Pending };
        watch.by_task = true;
        let reactor = match this.reactor.take() {
            Some(reactor) => reactor,
            None => register(watch.socket.try_clone()?)?,
        };
        let reactor = this.reactor.insert(reactor);
        let mut waits = Waits { reactor, timer: &mut this.timer, due: &mut this.due };
        let outcome = ready!(waits.run(shared, watch, cx));
        drop(held);
        shared.post.stop_driving(this.number);
        Poll::Ready(outcome)
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        self.shared.post.stop_driving(self.number);
    }
}

impl fmt::Debug for Drive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drive").field("number", &self.number).finish_non_exhaustive()
    }
}
