//! The connections that a gateway has joined: how many at most, who is told, and how they end.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use super::{Event, Limits, Observer, relay};
use crate::Duplex;

/// How long the wake-up of an accepting thread may take.
const WAKE_TIMEOUT: Duration = Duration::from_millis(500);

/// Shared by the threads of one gateway.
pub(super) struct Sessions {
    pub(super) limits: Limits,
    observer: Observer,
    state: Mutex<State>,
    stopped: AtomicBool,
}

#[derive(Default)]
struct State {
    last: u64,
    /// What to break off when the gateway stops.
    active: HashMap<u64, Vec<Arc<dyn Duplex>>>,
}

/// The right to join one pair of connections; given back when dropped.
pub(super) struct Place {
    sessions: Arc<Sessions>,
    id: u64,
}

impl Sessions {
    pub(super) fn new(limits: Limits, observer: Observer) -> Arc<Self> {
        Arc::new(Self { limits, observer, state: Mutex::default(), stopped: AtomicBool::new(false) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(super) fn tell(&self, event: Event) {
        (self.observer)(event);
    }

    pub(super) fn refuse(&self, from: &str, to: &str, reason: impl ToString) {
        self.tell(Event::Refused { from: from.into(), to: to.into(), reason: reason.to_string() });
    }

    /// A place, if one is free.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut state = self.lock();
        if self.is_stopped() || state.active.len() >= self.limits.connections {
            return None;
        }
        state.last += 1;
        let id = state.last;
        state.active.insert(id, Vec::new());
        Some(Place { sessions: self.clone(), id })
    }

    /// Breaks off everything.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        let active: Vec<_> = self.lock().active.values().flatten().cloned().collect();
        for stream in active {
            stream.abort();
        }
    }
}

impl Place {
    pub(super) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// From now on the stream is broken off when the gateway stops.
    pub(super) fn track(&self, stream: &Arc<dyn Duplex>) {
        if let Some(streams) = self.sessions.lock().active.get_mut(&self.id) {
            streams.push(stream.clone());
        }
        if self.sessions.is_stopped() {
            stream.abort();
        }
    }

    /// Joins two streams until their end, and tells about it.
    pub(super) fn join(&self, from: (&str, &Arc<dyn Duplex>), to: (&str, &Arc<dyn Duplex>)) {
        self.track(from.1);
        self.track(to.1);
        let id = self.id;
        self.sessions.tell(Event::Opened { id, from: from.0.into(), to: to.0.into() });
        let begin = Instant::now();
        let traffic = relay::join(&**from.1, &**to.1);
        self.sessions.tell(Event::Closed {
            id,
            sent: traffic.sent,
            received: traffic.received,
            lasted: begin.elapsed(),
            error: traffic.error.map(|error| error.to_string()),
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sessions.lock().active.remove(&self.id);
    }
}

/// A gateway at work. Dropping it stops accepting and breaks off the connections that it joined.
pub struct Running {
    pub(super) sessions: Arc<Sessions>,
    /// TCP addresses that it listens on.
    pub(super) local: Vec<SocketAddr>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("local", &self.local).finish_non_exhaustive()
    }
}

impl Running {
    /// The TCP addresses that it listens on; none for [`serve`](super::serve).
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local
    }

    /// Connections joined now, those that are still being opened included.
    pub fn connections(&self) -> usize {
        self.sessions.lock().active.len()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.sessions.stop();
        for local in &self.local {
            // Wakes the accepting thread.
            let _ = TcpStream::connect_timeout(&reachable(*local), WAKE_TIMEOUT);
        }
    }
}

/// An address at which a listener on `local` can be reached from this machine.
fn reachable(local: SocketAddr) -> SocketAddr {
    let ip = match local.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, local.port())
}

/// Accepts TCP connections on a thread and gives each to `handle` on a thread of its own.
pub(super) fn accept_tcp(
    listener: TcpListener,
    sessions: &Arc<Sessions>,
    target: &str,
    handle: impl Fn(&Place, TcpStream, SocketAddr) + Send + Sync + 'static,
) -> io::Result<SocketAddr> {
    let local = listener.local_addr()?;
    let (sessions, target, handle) = (sessions.clone(), target.to_owned(), Arc::new(handle));
    thread::Builder::new().name("gateway-accept".into()).spawn(move || {
        loop {
            let accepted = listener.accept();
            if sessions.is_stopped() {
                return;
            }
            match accepted {
                Ok((stream, from)) => start(&sessions, &target, stream, from, &handle),
                // Out of file descriptors, most likely: do not spin.
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    })?;
    Ok(local)
}

fn start<H>(sessions: &Arc<Sessions>, target: &str, stream: TcpStream, from: SocketAddr, handle: &Arc<H>)
where
    H: Fn(&Place, TcpStream, SocketAddr) + Send + Sync + 'static,
{
    let Some(place) = sessions.enter() else {
        let reason = format!("{} connections are open already", sessions.limits.connections);
        return sessions.refuse(&from.to_string(), target, reason);
    };
    let handle = handle.clone();
    let spawned = thread::Builder::new().name("gateway".into()).spawn(move || handle(&place, stream, from));
    if let Err(error) = spawned {
        sessions.refuse(&from.to_string(), target, error);
    }
}
