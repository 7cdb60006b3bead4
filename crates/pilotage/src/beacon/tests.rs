//! A beacon on real sockets.

use std::net::UdpSocket;
use std::thread;

use pilotage_nat::{BeaconClient, Dependence};
use pilotage_proto::crypto::Identity;
use pilotage_wire::NodeId;
use pilotage_wire::addressing::first_address;
use pilotage_wire::beacon::{Message, Rank};

use super::*;

struct Running {
    addr: SocketAddr,
    handle: BeaconHandle,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<io::Result<()>>,
}

fn localhost() -> SocketAddr {
    "127.0.0.1:0".parse().expect("address")
}

fn start(options: BeaconOptions) -> Running {
    run(BeaconServer::bind(options).expect("bind"))
}

fn run(mut server: BeaconServer) -> Running {
    let (addr, handle) = (server.local_addr(), server.handle());
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    Running { addr, handle, stop, thread: thread::spawn(move || server.run(&flag)) }
}

impl Running {
    fn node(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
        socket.connect(self.addr).expect("connect");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        socket
    }

    fn end(self) -> BeaconSnapshot {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("thread").expect("serves");
        self.handle.snapshot()
    }
}

fn send(socket: &UdpSocket, message: Message<'_>) {
    let mut buf = [0; 2_048];
    let len = message.encode(&mut buf).expect("fits");
    socket.send(&buf[..len]).expect("send");
}

fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buf = [0; 2_048];
    let len = socket.recv(&mut buf).expect("receive");
    buf[..len].to_vec()
}

fn register(socket: &UdpSocket, node: NodeId) {
    send(socket, Message::Discover { node });
    let addr = socket.local_addr().expect("address");
    assert_eq!(Message::decode(&receive(socket)), Ok(Message::DiscoverReply { addr }));
}

#[test]
fn discover_punch_and_relay_over_real_sockets() {
    let beacon = start(BeaconOptions::new(localhost()));
    let (a, b) = (beacon.node(), beacon.node());
    register(&a, NodeId(101));
    register(&b, NodeId(102));
    send(&a, Message::PunchRequest { node: NodeId(101), target: NodeId(102) });
    let addr = a.local_addr().expect("address");
    assert_eq!(Message::decode(&receive(&b)), Ok(Message::PunchCommand { addr }));
    // More than one batch, in order.
    for i in 0..512u32 {
        let frame = [&b"PILS"[..], &i.to_be_bytes()].concat();
        send(&a, Message::Relay { src: NodeId(101), dst: NodeId(102), frame: &frame });
        if i % 64 == 63 {
            for i in i - 63..=i {
                let frame = [&b"PILS"[..], &i.to_be_bytes()].concat();
                let expected = Message::Deliver { src: NodeId(101), frame: &frame };
                assert_eq!(Message::decode(&receive(&b)), Ok(expected));
            }
        }
    }
    let end = beacon.end();
    assert_eq!((end.stats.relays, end.stats.registered, end.unsent), (512, 2, 0));
}

#[test]
fn a_node_that_has_gone_disturbs_nobody() {
    let beacon = start(BeaconOptions::new(localhost()));
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
    let beacon = start(BeaconOptions::new(localhost()));
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
    let other = UdpSocket::bind("127.0.0.2:0").expect("bind");
    other.connect(beacon.addr).expect("connect");
    other.set_read_timeout(Some(Duration::from_millis(500))).expect("timeout");
    let answered = (0..20).any(|_| {
        send(&other, Message::Discover { node: NodeId(7) });
        other.recv(&mut [0; 64]).is_ok()
    });
    assert!(answered);
    let end = beacon.end();
    assert_eq!(end.stats.datagrams_in, end.stats.ends());
}

#[test]
fn a_port_in_use_is_an_error_of_bind() {
    let first = BeaconServer::bind(BeaconOptions::new(localhost())).expect("bind");
    let error = BeaconServer::bind(BeaconOptions::new(first.local_addr())).expect_err("in use");
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
}

/// The client half of a node on a socket of its own.
struct Site {
    identity: Identity,
    client: BeaconClient,
    socket: UdpSocket,
}

impl Site {
    fn new(seed: u8, beacons: &[SocketAddr]) -> Self {
        let identity = Identity::from_seed([seed; 32]);
        let now = Instant::now();
        let address = first_address(pilotage_wire::NetworkId(0), &identity.public_key()).expect("address");
        let mut client = BeaconClient::new();
        client.set_seed(u64::from(seed));
        client.set_node(address.node, now);
        client.set_key(identity.public_key(), now);
        client.set_beacons(beacons, now);
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
        client.set_local_port(socket.local_addr().expect("address").port());
        socket.set_read_timeout(Some(Duration::from_millis(5))).expect("timeout");
        Self { identity, client, socket }
    }

    fn run_until(&mut self, what: &str, mut done: impl FnMut(&BeaconClient) -> bool) {
        struct Key<'a>(&'a Identity);
        impl pilotage_nat::Signer for Key<'_> {
            fn sign(&self, message: &[u8]) -> [u8; 64] {
                self.0.sign(message)
            }
        }
        let end = Instant::now() + Duration::from_secs(30);
        let mut buf = [0; 2_048];
        while !done(&self.client) {
            assert!(Instant::now() < end, "{what}: {:?}", self.client);
            let now = Instant::now();
            while let Some((to, message)) = self.client.poll_transmit_with(now, &Key(&self.identity)) {
                self.socket.send_to(&message, to).expect("send");
            }
            if let Ok((len, from)) = self.socket.recv_from(&mut buf)
                && let Ok(message) = Message::decode(&buf[..len])
            {
                self.client.handle(from, &message, Instant::now());
            }
        }
    }
}

#[test]
fn a_node_proves_its_key_and_learns_how_its_nat_behaves() {
    let beacon = start(BeaconOptions::new(localhost()));
    let mut site = Site::new(1, &[beacon.addr]);
    site.run_until("registration", |client| {
        client.beacons().next().is_some_and(|beacon| beacon.rank == Some(Rank::Derived))
    });
    site.run_until("behaviour", |client| client.nat_behaviour().is_some());
    let found = site.client.nat_behaviour().expect("found");
    // No NAT at all.
    assert_eq!(
        (found.mapping, found.filtering, found.hairpin, found.preserves_port, found.compared_addresses),
        (Dependence::EndpointIndependent, Some(Dependence::AddressDependent), Some(true), Some(true), false)
    );
    let end = beacon.end();
    assert_eq!((end.stats.registered, end.stats.proven, end.stats.proofs), (1, 1, 1));
}

#[test]
fn without_a_second_port_the_rest_is_found_out() {
    let beacon = start(BeaconOptions { second_port: None, ..BeaconOptions::new(localhost()) });
    let mut site = Site::new(1, &[beacon.addr]);
    site.run_until("behaviour", |client| client.nat_behaviour().is_some());
    let found = site.client.nat_behaviour().expect("found");
    assert_eq!((found.filtering, found.hairpin), (None, Some(true)));
    beacon.end();
}

#[test]
fn of_several_beacons_one_that_answers_becomes_primary() {
    let beacon = start(BeaconOptions::new(localhost()));
    let silent = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let silent = silent.local_addr().expect("address");
    let mut site = Site::new(1, &[silent, beacon.addr]);
    site.run_until("primary", |client| client.beacon() == Some(beacon.addr) && client.observed().is_some());
    beacon.end();
}

fn reserve() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").expect("bind").local_addr().expect("address")
}

#[test]
fn a_frame_goes_from_one_beacon_to_the_other() {
    let (x, y) = (reserve(), reserve());
    let sharing = |own: SocketAddr, other: SocketAddr| {
        let config = BeaconConfig { peers: vec![other], peer_key: Some([7; 32]), ..BeaconConfig::default() };
        start(BeaconOptions { config, ..BeaconOptions::new(own) })
    };
    let (first, second) = (sharing(x, y), sharing(y, x));
    let (a, b) = (first.node(), second.node());
    register(&a, NodeId(101));
    register(&b, NodeId(102));
    b.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
    let end = Instant::now() + Duration::from_secs(20);
    let mut buf = [0; 64];
    let len = loop {
        send(&a, Message::Relay { src: NodeId(101), dst: NodeId(102), frame: b"PILS" });
        match b.recv(&mut buf) {
            Ok(len) => break len,
            Err(_) => assert!(Instant::now() < end, "{:?} {:?}", first.handle, second.handle),
        }
    };
    assert_eq!(Message::decode(&buf[..len]), Ok(Message::Deliver { src: NodeId(101), frame: b"PILS" }));
    let (first, second) = (first.end(), second.end());
    assert!(first.stats.handed_over > 0 && second.stats.carried > 0);
    assert!(first.beacons[0].1.is_some() && second.beacons[0].1.is_some());
}
