//! Extra sockets for a hard NAT (spec/nat.md §10.5): opened when the path agent asks for them, closed when one was hit or
//! none in time.
//!
//! A run has a thread of its own. It makes hundreds of mappings towards one address of a peer, whose guesses at ports hit
//! one of them sooner or later. The socket that was hit is kept; to the endpoint it is an address of the peer
//! ([`pilotage_nat::side`]) that is tried like any other. All others are closed at once.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use pilotage_nat::agent::{Candidate, CandidateKind, FAN_SOCKETS, FAN_TIME};
use pilotage_nat::side;
use pilotage_proto::PathKind;
use pilotage_wire::NodeId;

use crate::driver::recv::RecvSlab;
use crate::driver::socket::Socket;
use crate::shared::{Phase, Shared};

/// Runs at a time: each may need [`FAN_SOCKETS`] file descriptors.
const MAX_RUNS: usize = 2;
/// Sockets that were hit and are kept.
const MAX_KEPT: usize = 64;
/// Between two sockets opened: half a second for all.
const PACE: Duration = Duration::from_millis(2);
/// Between two looks at all sockets.
const LOOK: Duration = Duration::from_millis(20);
/// A datagram may be lost: each socket sends again after this time.
const AGAIN: Duration = Duration::from_secs(5);
/// A kept socket through which nothing came for so long is closed. Ways in use are checked far more often.
const IDLE: Duration = Duration::from_secs(180);
/// Buffers of a kept socket.
const BUFFER: usize = 1 << 20;
/// The shortest frame there is: it opens a mapping and says nothing.
const PUNCH: &[u8] = b"PILP";

/// The sockets that were hit, by number.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    kept: Mutex<HashMap<u32, Arc<Socket>>>,
    next: AtomicU32,
    runs: AtomicUsize,
}

impl Sockets {
    /// Sends a batch through an extra socket. What cannot be sent is lost, as on any way.
    pub(crate) fn send(&self, number: u32, to: SocketAddrV4, bytes: &[u8], segment: usize) -> io::Result<()> {
        let Some(socket) = self.lock().get(&number).cloned() else {
            return Ok(()); // closed meanwhile: the way dies by its silence
        };
        if bytes.len() > segment && socket.max_gso_segments() > 1 {
            return socket.send(to.into(), bytes, Some(segment));
        }
        bytes.chunks(segment.max(1)).try_for_each(|datagram| socket.send(to.into(), datagram, None))
    }

    /// Keeps a socket; `None` if there are too many.
    fn keep(&self, socket: Arc<Socket>) -> Option<u32> {
        let mut kept = self.lock();
        if kept.len() >= MAX_KEPT {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        kept.insert(number, socket);
        Some(number)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<Socket>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins a run, if there are not too many.
pub(crate) fn spawn(shared: Weak<Shared>, peer: NodeId, target: SocketAddr) {
    let (Some(strong), SocketAddr::V4(target)) = (shared.upgrade(), target) else { return };
    let Some(bind) = bind_address(strong.local.ip()) else { return };
    let sockets = strong.side.clone();
    drop(strong);
    if sockets.runs.fetch_add(1, Ordering::AcqRel) >= MAX_RUNS {
        sockets.runs.fetch_sub(1, Ordering::AcqRel);
        return;
    }
    let counted = sockets.clone();
    let run = move || {
        let hit = Fan { shared: shared.clone(), peer, target, bind }.run();
        sockets.runs.fetch_sub(1, Ordering::AcqRel);
        if let Some(socket) = hit {
            serve(&shared, &sockets, peer, target, socket);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("pilotage-side".into()).spawn(run) {
        counted.runs.fetch_sub(1, Ordering::AcqRel);
        tracing::warn!(%error, "no thread for extra sockets");
    }
}

/// Where extra sockets are bound: like the first, but they speak IPv4 only.
fn bind_address(local: IpAddr) -> Option<SocketAddr> {
    match local.to_canonical() {
        ip @ IpAddr::V4(_) => Some(SocketAddr::new(ip, 0)),
        ip if ip.is_unspecified() => Some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)),
        IpAddr::V6(_) => None,
    }
}

/// One run.
struct Fan {
    shared: Weak<Shared>,
    peer: NodeId,
    target: SocketAddrV4,
    bind: SocketAddr,
}

impl Fan {
    /// The socket that was hit.
    fn run(&self) -> Option<UdpSocket> {
        let begun = Instant::now();
        let mut open = Vec::new();
        let mut looked = begun;
        for _ in 0..FAN_SOCKETS {
            match self.open() {
                Ok(socket) => open.push(socket),
                // File descriptors are scarce: fewer sockets find it, too, only later.
                Err(error) => {
                    tracing::debug!(%error, open = open.len(), "no more extra sockets");
                    break;
                }
            }
            std::thread::sleep(PACE);
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                if let Some(hit) = self.look(&open) {
                    return Some(open.swap_remove(hit));
                }
            }
        }
        tracing::debug!(sockets = open.len(), target = %self.target, "extra sockets for a hard NAT");
        let mut again = begun + AGAIN;
        while begun.elapsed() < FAN_TIME && !open.is_empty() && self.is_wanted() {
            if let Some(hit) = self.look(&open) {
                tracing::debug!(took = ?begun.elapsed(), "an extra socket was hit");
                return Some(open.swap_remove(hit));
            }
            if Instant::now() >= again {
                again += AGAIN;
                for socket in &open {
                    let _ = socket.send_to(PUNCH, self.target);
                }
            }
            std::thread::sleep(LOOK);
        }
        None
    }

    fn open(&self) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind(self.bind)?;
        socket.set_nonblocking(true)?;
        // A datagram that does not leave is as good as lost.
        let _ = socket.send_to(PUNCH, self.target);
        Ok(socket)
    }

    /// Which socket heard the peer's NAT. Anything from there will do: what counts is proven afterwards.
    fn look(&self, open: &[UdpSocket]) -> Option<usize> {
        let mut space = [0; 64];
        let from = |socket: &UdpSocket, space: &mut [u8]| socket.recv_from(space).ok().map(|(_, from)| from);
        open.iter().position(|socket| from(socket, &mut space) == Some(self.target.into()))
    }

    /// Whether the peer is still reached by the relay only, and the node open.
    fn is_wanted(&self) -> bool {
        let Some(shared) = self.shared.upgrade() else { return false };
        let core = shared.lock();
        let direct = |path: pilotage_proto::PathInfo| path.kind == PathKind::Direct;
        let known = core.endpoint.peer(self.peer);
        core.phase == Phase::Open && known.is_some_and(|tunnel| !tunnel.path.is_some_and(direct))
    }
}

/// Tells the endpoint of the way that was found and hands it what comes.
fn serve(shared: &Weak<Shared>, sockets: &Sockets, peer: NodeId, target: SocketAddrV4, socket: UdpSocket) {
    let wrapped = Socket::wrap(socket, BUFFER).map(Arc::new);
    let Some((socket, number)) =
        wrapped.ok().and_then(|socket| Some((socket.clone(), sockets.keep(socket)?)))
    else {
        return;
    };
    if let Some(strong) = shared.upgrade() {
        let mut core = strong.lock();
        let way = Candidate { addr: side::through(number, target), kind: CandidateKind::PeerReflexive };
        core.endpoint.add_remote_candidates(Instant::now(), peer, &[way]);
        strong.finish(core);
    }
    if let Err(error) = receive(shared, &socket, number) {
        tracing::warn!(%error, "an extra socket failed");
    }
    sockets.lock().remove(&number);
}

/// Until the node is closed or nothing comes any more.
fn receive(shared: &Weak<Shared>, socket: &Socket, number: u32) -> io::Result<()> {
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(2));
    let mut io = socket.try_clone_io()?;
    poll.registry().register(&mut io, Token(0), Interest::READABLE)?;
    let mut slab = RecvSlab::new();
    let mut heard = Instant::now();
    while heard.elapsed() < IDLE {
        match poll.poll(&mut events, Some(Duration::from_secs(1))) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let Some(shared) = shared.upgrade() else { return Ok(()) };
        loop {
            match slab.fill(socket, &io) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An error of an earlier send (ICMP): reading it has cleared it.
                Err(_) => continue,
            }
            heard = Instant::now();
            let mut core = shared.lock();
            for (mut meta, datagram) in slab.datagrams() {
                let SocketAddr::V4(from) = meta.remote else { continue };
                meta.remote = side::through(number, from);
                // Beacons are not asked from here.
                if datagram.first().is_some_and(|first| *first >= 0x10) {
                    core.endpoint.handle_datagram(heard, &meta, datagram);
                }
            }
            shared.finish(core);
        }
        if shared.lock().phase == Phase::Closed {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(socket: &UdpSocket) -> SocketAddrV4 {
        match socket.local_addr().expect("address") {
            SocketAddr::V4(v4) => v4,
            SocketAddr::V6(v6) => panic!("{v6}"),
        }
    }

    /// A peer's socket that hears from all and answers one.
    #[test]
    fn the_socket_that_was_hit_is_found_and_carries_batches() {
        let peer = UdpSocket::bind("127.0.0.1:0").expect("bind");
        peer.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        let target = v4(&peer);
        let bind = bind_address("127.0.0.1".parse().expect("address")).expect("IPv4");
        let fan = Fan { shared: Weak::new(), peer: NodeId(77), target, bind };
        let mut open: Vec<_> = (0..8).map(|_| fan.open().expect("a socket")).collect();
        assert_eq!(fan.look(&open), None);
        let mut space = [0; 2_000];
        let heard: Vec<_> = (0..8)
            .map(|_| {
                let (len, from) = peer.recv_from(&mut space).expect("a punch");
                assert_eq!(&space[..len], PUNCH);
                from
            })
            .collect();
        // Somebody else hits nothing.
        let stranger = UdpSocket::bind("127.0.0.1:0").expect("bind");
        stranger.send_to(PUNCH, heard[1]).expect("sent");
        peer.send_to(PUNCH, heard[5]).expect("sent");
        let end = Instant::now() + Duration::from_secs(5);
        let hit = loop {
            if let Some(hit) = fan.look(&open) {
                break hit;
            }
            assert!(Instant::now() < end, "not noticed");
        };
        let socket = open.swap_remove(hit);
        assert_eq!(socket.local_addr().expect("address"), heard[5]);
        assert!(!fan.is_wanted(), "a node that is gone wants nothing");

        let sockets = Sockets::default();
        let number = sockets.keep(Arc::new(Socket::wrap(socket, BUFFER).expect("a socket"))).expect("room");
        sockets.send(number, target, &[7; 250], 100).expect("sent");
        let sizes = [(); 3].map(|()| {
            let (len, from) = peer.recv_from(&mut space).expect("a datagram");
            assert_eq!(from, heard[5]);
            len
        });
        assert_eq!(sizes, [100, 100, 50]);
        sockets.lock().clear();
        sockets.send(number, target, &[7; 250], 100).expect("a closed one is like loss");
    }

    #[test]
    fn kept_sockets_are_bounded_and_never_numbered_twice() {
        let sockets = Sockets::default();
        let socket = Socket::wrap(UdpSocket::bind("127.0.0.1:0").expect("bind"), BUFFER).map(Arc::new);
        let socket = socket.expect("a socket");
        let numbers: Vec<_> = (0..MAX_KEPT).filter_map(|_| sockets.keep(socket.clone())).collect();
        assert_eq!(numbers.len(), MAX_KEPT);
        assert_eq!(sockets.keep(socket.clone()), None);
        sockets.lock().clear();
        assert!(!numbers.contains(&sockets.keep(socket).expect("room again")));
    }

    #[test]
    fn extra_sockets_speak_ipv4() {
        let bound = |ip: &str| bind_address(ip.parse().expect("address")).map(|at| at.to_string());
        assert_eq!(bound("0.0.0.0").as_deref(), Some("0.0.0.0:0"));
        assert_eq!(bound("::").as_deref(), Some("0.0.0.0:0"));
        assert_eq!(bound("192.0.2.1").as_deref(), Some("192.0.2.1:0"));
        assert_eq!(bound("2001:db8::1"), None);
    }
}
