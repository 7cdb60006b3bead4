//! What a caller sees when something is wrong: the stage, the cause, and in bounded time.

mod common;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use common::{SECOND, at, builder, identity, node, within};
use pilotage::{
    ConnectError, FailureCause, ListenError, Node, NodeEvent, Peer, ProtoConfig, Stage, StartError,
};

fn impatient() -> ProtoConfig {
    ProtoConfig { connect_timeout: Duration::from_millis(1500), ..ProtoConfig::default() }
}

#[test]
fn a_port_without_listener_refuses() {
    within(30 * SECOND, || {
        let (client, server) = (node(), node());
        let failure = client.connect(at(&server), 4242).expect_err("refused");
        assert_eq!((failure.stage, failure.core_error()), (Stage::Connect, Some(ConnectError::Refused)));
        assert_eq!(failure.kind(), std::io::ErrorKind::ConnectionRefused);
        assert!(failure.to_string().contains("next: start a listener"), "{failure}");
        // Dropping a listener closes its port.
        drop(server.listen(4242).expect("listen"));
        assert_eq!(client.connect(at(&server), 4242).expect_err("refused").stage, Stage::Connect);
    });
}

#[test]
fn a_dead_address_fails_in_the_key_exchange_and_in_time() {
    within(30 * SECOND, || {
        let dead = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let client = builder().config(impatient()).start().expect("node");
        let peer = Peer::At(node().address(), dead.local_addr().expect("address"));
        let start = Instant::now();
        let failure = client.connect(peer, 7).expect_err("dead");
        assert_eq!(
            (failure.stage, failure.core_error()),
            (Stage::KeyExchange, Some(ConnectError::HandshakeTimeout))
        );
        let took = start.elapsed();
        assert!(took >= SECOND && took < 4 * SECOND, "{took:?}");
    });
}

#[test]
fn unknown_peers_and_names_fail_before_anything_is_sent() {
    within(30 * SECOND, || {
        let client = node();
        let failure = client.connect(node().address(), 7).expect_err("unknown");
        assert_eq!((failure.stage, failure.core_error()), (Stage::Resolve, Some(ConnectError::UnknownPeer)));
        let failure = client.connect("bob".parse::<Peer>().expect("name"), 7).expect_err("no hub");
        assert!(matches!(failure.cause, FailureCause::NoHub(_)), "{failure}");
        assert_eq!(failure.to_string().matches("resolve").count(), 1, "{failure}");
        assert_eq!(client.stats().endpoint.datagrams_sent, 0);
    });
}

#[test]
fn somebody_else_at_the_address_is_not_believed() {
    within(30 * SECOND, || {
        let client = builder().config(impatient()).start().expect("node");
        let (wanted, other) = (node(), node());
        let events = client.events();
        // `other` answers where `wanted` should be: its frames carry its own id, so nobody answers for `wanted`.
        let failure =
            client.connect(Peer::At(wanted.address(), other.local_addr()), 7).expect_err("impostor");
        assert_eq!(failure.stage, Stage::KeyExchange, "{failure}");
        drop(events);
    });
}

#[test]
fn a_wrong_pin_is_a_hard_error() {
    within(30 * SECOND, || {
        let server = builder().identity(identity(1)).start().expect("node");
        let listener = server.listen(7).expect("listen");
        let wrong = identity(2).public_key();
        let client = builder()
            .config(impatient())
            .peer(server.address(), server.local_addr(), Some(wrong))
            .start()
            .expect("node");
        let failure = client.connect(server.address(), 7).expect_err("pin");
        assert_eq!(failure.stage, Stage::KeyExchange, "{failure}");
        assert!(listener.accept_timeout(Duration::from_millis(100)).expect("open").is_none());
        assert!(!client.peers()[0].authenticated);
    });
}

#[test]
fn a_pinned_peer_with_another_key_is_refused_and_the_file_named() {
    within(60 * SECOND, || {
        let dir = tempfile::tempdir().expect("directory");
        let server = builder().identity(identity(1)).config(impatient()).start().expect("node");
        let _listener = server.listen(7).expect("listen");
        let address = server.address();
        let client = builder().state_dir(dir.path()).start().expect("node");
        client.connect(at(&server), 7).expect("pins the peer");
        drop(client);
        let peers = std::fs::read_to_string(dir.path().join("peers.json")).expect("saved");
        let (good, bad) = (hex::encode(identity(1).public_key()), hex::encode(identity(2).public_key()));
        assert!(peers.contains(&good) && peers.contains(&address.to_string()), "{peers}");
        std::fs::write(dir.path().join("peers.json"), peers.replace(&good, &bad)).expect("tamper");

        // As caller: nobody at that address has the pinned key.
        let client = builder().state_dir(dir.path()).config(impatient()).start().expect("node");
        let failure = client.connect(at(&server), 7).expect_err("pin mismatch");
        assert_eq!(failure.stage, Stage::KeyExchange, "{failure}");
        drop(client);

        // As callee: the caller is refused, and the operator is told which file says so.
        let client = builder().state_dir(dir.path()).start().expect("node");
        let events = client.events();
        let open = client.listen(7).expect("listen");
        let caller = builder().identity(identity(1)).config(impatient()).start().expect("node");
        caller.connect(at(&client), 7).expect_err("refused");
        let refused = std::iter::from_fn(|| events.recv_timeout(SECOND))
            .find_map(|event| match event {
                NodeEvent::PeerRefused { node, reason } if node == address.node => Some(reason),
                _ => None,
            })
            .expect("an event");
        assert!(refused.contains("peers.json"), "{refused}");
        drop((client, open, events));

        // A configured key that contradicts the pin does not start.
        let known = Some(identity(1).public_key());
        let clash = builder().peer(address, server.local_addr(), known).state_dir(dir.path()).start();
        let clash = clash.expect_err("clash");
        assert!(
            matches!(clash, StartError::Peer { .. }) && clash.to_string().contains("peers.json"),
            "{clash}"
        );
    });
}

#[test]
fn a_state_directory_serves_one_node_at_a_time() {
    within(30 * SECOND, || {
        let dir = tempfile::tempdir().expect("directory");
        let first = builder().state_dir(dir.path()).start().expect("node");
        let address = first.address();
        match builder().state_dir(dir.path()).start() {
            Err(StartError::StateInUse { pid, .. }) => assert_eq!(pid, std::process::id()),
            other => panic!("{other:?}"),
        }
        // A child process does not inherit the lock or the port.
        let local = first.local_addr();
        let mut child = std::process::Command::new("sleep").arg("20").spawn().expect("child");
        // The kernel lets us go on a moment before it has closed the child's copies of our files.
        std::thread::sleep(Duration::from_millis(300));
        drop(first);
        let again = Node::builder().bind(local).state_dir(dir.path()).start().expect("free again");
        assert_eq!(again.address(), address, "the same identity");
        child.kill().expect("kill");
        child.wait().expect("wait");
    });
}

#[test]
fn starting_fails_with_the_reason() {
    within(30 * SECOND, || {
        let busy = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let taken = busy.local_addr().expect("address");
        let error = Node::builder().bind(taken).start().expect_err("in use");
        assert!(matches!(error, StartError::Bind { .. }) && error.to_string().contains("next:"), "{error}");

        let dir = tempfile::tempdir().expect("directory");
        std::fs::write(dir.path().join("identity.json"), "{ not json").expect("write");
        let error = builder().state_dir(dir.path()).start().expect_err("damaged");
        assert!(matches!(error, StartError::State { .. }), "{error}");

        let file = dir.path().join("identity.json");
        assert!(matches!(builder().state_dir(&file).start(), Err(StartError::State { .. })), "a file");

        let error = builder().hub("127.0.0.1:1").start().expect_err("no hub");
        assert!(
            matches!(error, StartError::Register { .. }) && error.to_string().contains("127.0.0.1:1"),
            "{error}"
        );
        let error = builder().hub("no such host").start().expect_err("no hub");
        assert!(matches!(error, StartError::HubAddress { .. }), "{error}");
    });
}

#[test]
fn ports_are_used_once() {
    within(30 * SECOND, || {
        let node = node();
        let held = node.listen(7).expect("listen");
        assert_eq!(node.listen(7).expect_err("in use"), ListenError::InUse(7));
        drop(held);
        node.listen(7).expect("free again");
        let (a, b) = (node.listen(0).expect("any"), node.listen(0).expect("another"));
        assert!(a.port() >= 49_152 && a.port() != b.port());
        let socket = node.bind_datagram(7).expect("datagrams have ports of their own");
        assert_eq!(node.bind_datagram(7).expect_err("in use"), ListenError::InUse(7));
        drop(socket);
    });
}

#[test]
fn noise_on_the_socket_changes_nothing() {
    within(30 * SECOND, || {
        let server = node();
        let listener = server.listen(7).expect("listen");
        let noise = UdpSocket::bind("127.0.0.1:0").expect("bind");
        for len in 0..1500_usize {
            let mut data = common::pattern(len, len as u64);
            if len % 2 == 0 {
                data.iter_mut().zip(*b"PILS").for_each(|(byte, magic)| *byte = magic);
            }
            noise.send_to(&data, server.local_addr()).expect("send");
        }
        let stream = node().connect(at(&server), 7);
        stream.expect("still serving");
        assert!(listener.accept_timeout(5 * SECOND).expect("accept").is_some());
    });
}

#[test]
fn a_flood_of_noise_stops_neither_data_nor_timers() {
    use std::io::{Read, Write};
    within(60 * SECOND, || {
        let common::Pair { server, mut near, mut far, .. } = common::pair();
        let target = server.local_addr();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flood = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let noise = UdpSocket::bind("127.0.0.1:0").expect("bind");
                let mut sent = 0_u64;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let mut data = common::pattern(64 + (sent % 1000) as usize, sent);
                    data[..4].copy_from_slice(if sent.is_multiple_of(2) { b"PILS" } else { b"PILA" });
                    let _ = noise.send_to(&data, target);
                    sent += 1;
                }
                sent
            }
        });
        let echo = std::thread::spawn(move || std::io::copy(&mut far.try_clone().expect("clone"), &mut far));
        let start = Instant::now();
        let mut rounds = 0;
        while start.elapsed() < 2 * SECOND {
            near.write_all(&[7; 5000]).expect("write");
            near.read_exact(&mut [0; 5000]).expect("read");
            rounds += 1;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let sent = flood.join().expect("flood");
        near.shutdown(std::net::Shutdown::Write).expect("shutdown");
        echo.join().expect("echo").expect("copied");
        assert!(sent > 1000 && rounds > 20, "{sent} datagrams of noise, {rounds} round trips");
        let stats = server.stats().endpoint;
        assert!(stats.drop_no_session + stats.drop_malformed + stats.drop_rate_limited > 0, "{stats:?}");
    });
}
