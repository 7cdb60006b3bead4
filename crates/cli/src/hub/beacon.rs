//! The beacon's socket: one UDP socket, one thread, around the sans-IO [`BeaconEngine`].

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token};
use pilotage_nat::{BeaconConfig, BeaconEngine, BeaconStats};
use socket2::SockRef;

/// A beacon on a bound socket.
pub(crate) struct BeaconServer {
    poll: Poll,
    socket: UdpSocket,
    local: SocketAddr,
    engine: BeaconEngine,
    buffer: Box<[u8]>,
    /// Datagrams that the kernel would not take. They are lost, as on any busy link.
    unsent: u64,
    warned: Option<Instant>,
}

impl BeaconServer {
    /// Binds the socket. Port 0 takes any free one.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let mut socket = UdpSocket::bind(address)?;
        let local = socket.local_addr()?;
        // Room for a burst of relayed frames. The kernel may grant less, which only loses some sooner.
        let sock = SockRef::from(&socket);
        if let Err(error) =
            sock.set_recv_buffer_size(BUFFER_BYTES).and(sock.set_send_buffer_size(BUFFER_BYTES))
        {
            tracing::debug!(%error, "beacon: the socket buffers keep their default size");
        }
        let poll = Poll::new()?;
        poll.registry().register(&mut socket, Token(0), Interest::READABLE)?;
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(|error| io::Error::other(format!("no randomness: {error}")))?;
        let engine = BeaconEngine::new(BeaconConfig::default(), u64::from_ne_bytes(seed));
        let buffer = vec![0; MAX_UDP_PAYLOAD].into_boxed_slice();
        Ok(Self { poll, socket, local, engine, buffer, unsent: 0, warned: None })
    }

    /// The address that the socket is bound to.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Serves until `stop` is set, which is noticed within [`STOP_CHECK`]. An error means that waiting for
    /// the socket failed; single datagrams that cannot be received or sent end nothing.
    pub(crate) fn run(&mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut events = Events::with_capacity(8);
        let mut more = true;
        while !stop.load(Ordering::Relaxed) {
            let wait = if more { Duration::ZERO } else { self.wait() };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            // Readiness is told once, on its edge: until a receive would block there is more to read.
            if more || !events.is_empty() {
                more = self.receive_batch();
            }
            self.engine.handle_timeout(Instant::now());
        }
        let BeaconStats { registered, datagrams_in, datagrams_out, relays, .. } = self.engine.stats();
        tracing::info!(
            registered,
            datagrams_in,
            datagrams_out,
            relays,
            unsent = self.unsent,
            "beacon stopped"
        );
        Ok(())
    }

    fn wait(&self) -> Duration {
        let due = self.engine.next_timeout().map(|due| due.saturating_duration_since(Instant::now()));
        due.map_or(STOP_CHECK, |due| due.min(STOP_CHECK))
    }

    /// Handles up to [`BATCH`] datagrams; returns whether there may be more.
    fn receive_batch(&mut self) -> bool {
        let Self { socket, engine, buffer, unsent, warned, .. } = self;
        let now = Instant::now();
        for _ in 0..BATCH {
            let (len, from) = match socket.recv_from(buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                // Linux reports here that somebody we answered has gone (ICMP). It concerns nobody else.
                Err(error) => {
                    warn_rarely(warned, now, &error);
                    continue;
                }
            };
            engine.handle_datagram(now, from, &buffer[..len], &mut |to, data: &[u8]| {
                if socket.send_to(data, to).is_err() {
                    *unsent += 1;
                }
            });
        }
        true
    }
}

/// At most one line in a minute, however many errors others can cause.
fn warn_rarely(warned: &mut Option<Instant>, now: Instant, error: &io::Error) {
    if warned.is_none_or(|at| now.saturating_duration_since(at) >= Duration::from_secs(60)) {
        *warned = Some(now);
        tracing::warn!(%error, "beacon: receiving failed; further errors of the next minute are not shown");
    }
}

/// Datagrams handled before the stop flag and the timers get their turn.
const BATCH: usize = 256;
/// How long a set stop flag may go unnoticed.
const STOP_CHECK: Duration = Duration::from_millis(100);
const BUFFER_BYTES: usize = 4 << 20;
const MAX_UDP_PAYLOAD: usize = 65_535;

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::sync::Arc;
    use std::thread;

    use pilotage_wire::NodeId;
    use pilotage_wire::beacon::Message;

    use super::*;

    struct Running {
        addr: SocketAddr,
        stop: Arc<AtomicBool>,
        thread: thread::JoinHandle<io::Result<()>>,
    }

    fn start() -> Running {
        let mut server = BeaconServer::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = server.local_addr();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        Running { addr, stop, thread: thread::spawn(move || server.run(&flag)) }
    }

    impl Running {
        fn node(&self) -> UdpSocket {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(self.addr).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket
        }

        fn end(self) {
            self.stop.store(true, Ordering::Relaxed);
            self.thread.join().unwrap().unwrap();
        }
    }

    fn send(socket: &UdpSocket, message: Message<'_>) {
        let mut buf = [0; 2_048];
        let len = message.encode(&mut buf).unwrap();
        socket.send(&buf[..len]).unwrap();
    }

    fn receive(socket: &UdpSocket) -> Vec<u8> {
        let mut buf = [0; 2_048];
        let len = socket.recv(&mut buf).unwrap();
        buf[..len].to_vec()
    }

    fn register(socket: &UdpSocket, node: NodeId) {
        send(socket, Message::Discover { node });
        let addr = socket.local_addr().unwrap();
        assert_eq!(Message::decode(&receive(socket)), Ok(Message::DiscoverReply { addr }));
    }

    #[test]
    fn discover_punch_and_relay_over_real_sockets() {
        let beacon = start();
        let (a, b) = (beacon.node(), beacon.node());
        register(&a, NodeId(101));
        register(&b, NodeId(102));
        send(&a, Message::PunchRequest { node: NodeId(101), target: NodeId(102) });
        let addr = a.local_addr().unwrap();
        assert_eq!(Message::decode(&receive(&b)), Ok(Message::PunchCommand { addr }));
        // More than one batch, in order.
        for i in 0..2 * BATCH as u32 {
            let frame = [&b"PILS"[..], &i.to_be_bytes()].concat();
            send(&a, Message::Relay { src: NodeId(101), dst: NodeId(102), frame: &frame });
            if i % 64 == 63 {
                for i in i - 63..=i {
                    let frame = [&b"PILS"[..], &i.to_be_bytes()].concat();
                    assert_eq!(
                        Message::decode(&receive(&b)),
                        Ok(Message::Deliver { src: NodeId(101), frame: &frame })
                    );
                }
            }
        }
        beacon.end();
    }

    #[test]
    fn a_node_that_has_gone_disturbs_nobody() {
        let beacon = start();
        let a = beacon.node();
        register(&a, NodeId(101));
        let gone = beacon.node();
        register(&gone, NodeId(102));
        drop(gone);
        // Each of these makes the kernel report an unreachable port to the beacon's socket.
        for _ in 0..50 {
            send(&a, Message::Relay { src: NodeId(101), dst: NodeId(102), frame: b"PILS" });
        }
        register(&a, NodeId(101));
        beacon.end();
    }

    #[test]
    fn random_datagrams_at_full_speed_leave_it_working() {
        let beacon = start();
        let noise = beacon.node();
        let mut state = 1u64;
        for len in (0..64).cycle().take(20_000) {
            let bytes: Vec<u8> = (0..len)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 59) as u8
                })
                .collect();
            let _ = noise.send(&bytes);
        }
        // Its own budget is used up by now: another source, 127.0.0.2, has its own.
        let other = UdpSocket::bind("127.0.0.2:0").unwrap();
        other.connect(beacon.addr).unwrap();
        other.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let answered = (0..20).any(|_| {
            send(&other, Message::Discover { node: NodeId(7) });
            other.recv(&mut [0; 64]).is_ok()
        });
        assert!(answered);
        beacon.end();
    }

    #[test]
    fn a_port_in_use_is_an_error_of_bind() {
        let first = BeaconServer::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = BeaconServer::bind(first.local_addr()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }
}
