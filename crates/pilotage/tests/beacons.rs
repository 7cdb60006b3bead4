//! Nodes with several beacons: one falls silent in the middle of a transfer.

mod common;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{SECOND, builder, identity, within};
use pilotage::beacon::{BeaconOptions, BeaconServer};
use pilotage::{Node, PathKind, Peer, PeerConfig, PeerPolicy};

struct Beacon {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Beacon {
    /// For both IP versions.
    fn start() -> Option<Self> {
        let any: SocketAddr = "[::]:0".parse().expect("address");
        let mut server = BeaconServer::bind(BeaconOptions::new(any)).ok()?;
        let port = server.local_addr().port();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = std::thread::spawn(move || server.run(&flag).expect("serves"));
        Some(Self { port, stop, thread })
    }

    fn kill(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("thread");
    }
}

/// A node on one IP version only, so that two of different ones can reach each other by a relay alone.
fn node(seed: u8, ip: &str, beacons: &[&Beacon]) -> Node {
    let at = |port| SocketAddr::new(ip.parse().expect("address"), port);
    let beacons: Vec<String> = beacons.iter().map(|beacon| at(beacon.port).to_string()).collect();
    builder().identity(identity(seed)).bind(at(0)).beacons(beacons).start().expect("node")
}

fn introduce(seed: u8, ip: &str, beacons: &[&Beacon], peer: &Node) -> Node {
    let at = |port| SocketAddr::new(ip.parse().expect("address"), port);
    let beacons: Vec<String> = beacons.iter().map(|beacon| at(beacon.port).to_string()).collect();
    let known = PeerConfig {
        address: peer.address(),
        key: Some(peer.public_key()),
        endpoint: None,
        policy: PeerPolicy::default(),
        prekey: None,
    };
    let builder = builder().identity(identity(seed)).bind(at(0)).beacons(beacons);
    builder.peer_config(known).start().expect("node")
}

fn registered(node: &Node, beacons: usize) {
    let end = Instant::now() + 10 * SECOND;
    loop {
        let status = node.hub_status().expect("beacons");
        if status.beacons.iter().filter(|beacon| beacon.rank.is_some()).count() == beacons {
            return;
        }
        assert!(Instant::now() < end, "{status:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A sender that proves nothing, as a daemon of the reference: relayed to nodes as they are by default, and to no other.
#[test]
fn who_wants_proofs_is_not_reached_by_senders_without() {
    for (seed, only) in [(5, false), (6, true)] {
        // A beacon of its own for each: its counters are told once a second, so that what was relayed for one node would
        // be counted while the other one is looked at.
        within(60 * SECOND, move || unproven_sender(seed, only));
    }
}

fn unproven_sender(seed: u8, only: bool) {
    use pilotage_wire::beacon::Message;
    let mut server =
        BeaconServer::bind(BeaconOptions::new("127.0.0.1:0".parse().expect("address"))).expect("bind");
    let (at, handle) = (server.local_addr(), server.handle());
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let thread = std::thread::spawn(move || server.run(&flag).expect("serves"));
    let sender = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    let say = |message: Message<'_>| {
        let mut space = [0; 256];
        let len = message.encode(&mut space).expect("fits");
        sender.send_to(&space[..len], at).expect("sent");
    };
    let node = builder().identity(identity(seed)).beacons([at.to_string()]).proven_only(only);
    let node = node.start().expect("node");
    registered(&node, 1);
    let src = pilotage::NodeId(77_777);
    let end = Instant::now() + 10 * SECOND;
    loop {
        say(Message::Discover { node: src });
        say(Message::Relay { src, dst: node.address().node, frame: b"PILP" });
        std::thread::sleep(Duration::from_millis(20));
        let stats = handle.snapshot().stats;
        let (relayed, refused) = (stats.relays, stats.not_permitted);
        assert_eq!(if only { relayed } else { refused }, 0, "{stats:?}");
        if relayed + refused > 2 {
            break;
        }
        assert!(Instant::now() < end, "neither relayed nor refused: {stats:?}");
    }
    node.close();
    stop.store(true, Ordering::SeqCst);
    thread.join().expect("thread");
}

#[test]
fn another_beacon_takes_over_within_two_seconds_and_no_byte_is_lost() {
    within(120 * SECOND, || {
        let (Some(first), Some(second)) = (Beacon::start(), Beacon::start()) else {
            return; // no IPv6 on this machine
        };
        let bob = node(2, "::1", &[&first, &second]);
        let alice = introduce(1, "127.0.0.1", &[&first, &second], &bob);
        registered(&alice, 2);
        registered(&bob, 2);
        let listener = bob.listen(7).expect("listen");
        let mut near = alice.connect(Peer::from(bob.address()), 7).expect("connect");
        let mut far = listener.accept_timeout(5 * SECOND).expect("accept").expect("a stream");
        assert_eq!(near.path().map(|path| path.kind), Some(PathKind::Relay));
        let writer = std::thread::spawn(move || {
            // Some 20 kB each 10 ms.
            for n in 0..500u32 {
                near.write_all(&n.to_be_bytes().repeat(5_000)).expect("write");
                std::thread::sleep(Duration::from_millis(10));
            }
            near
        });
        let mut victims = [Some(first), Some(second)];
        let (mut worst, mut last) = (Duration::ZERO, Instant::now());
        let mut block = vec![0; 20_000];
        for n in 0..500u32 {
            far.read_exact(&mut block).expect("read");
            worst = worst.max(last.elapsed());
            last = Instant::now();
            assert!(block.chunks(4).all(|word| word == n.to_be_bytes()), "block {n}");
            if n == 100 {
                // The one that relays for the sender.
                let status = alice.hub_status().expect("beacons");
                let primary = status.beacons.iter().position(|beacon| beacon.primary).expect("one");
                victims[primary].take().expect("alive").kill();
                last = Instant::now();
            }
        }
        writer.join().expect("writer");
        eprintln!("longest stall {worst:?}");
        assert!(worst < Duration::from_millis(2_500), "stalled for {worst:?}");
        alice.close();
        bob.close();
    });
}
