//! Datagrams, pings and events on real sockets.

mod common;

use std::io::ErrorKind;
use std::time::Duration;

use common::{SECOND, at, builder, node, within};
use pilotage::{NodeEvent, Peer, ProtoConfig, SendDatagramError, Stage};

#[test]
fn datagrams_arrive_with_their_sender() {
    within(30 * SECOND, || {
        let (client, server) = (node(), node());
        let receiver = server.bind_datagram(2000).expect("bind");
        let sender = client.bind_datagram(0).expect("bind");
        let peer = sender.introduce(at(&server)).expect("introduce");
        sender.send_to(peer, 2000, b"first, queued behind the key exchange").expect("send");
        let got = receiver.recv_timeout(5 * SECOND).expect("a datagram");
        assert_eq!(got.data, b"first, queued behind the key exchange");
        assert_eq!((got.from.address, got.from.port), (client.address(), sender.port()));
        // The answer needs no introduction: the tunnel exists.
        receiver.send_to(got.from.address, got.from.port, b"answer").expect("send");
        assert_eq!(sender.recv_timeout(5 * SECOND).expect("an answer").data, b"answer");
        assert!(receiver.recv_timeout(Duration::from_millis(20)).is_none());
    });
}

#[test]
fn datagrams_that_cannot_be_sent_say_why() {
    within(30 * SECOND, || {
        let (client, server) = (node(), node());
        let sender = client.bind_datagram(0).expect("bind");
        assert_eq!(
            sender.send_to(server.address(), 1, b"x").expect_err("unknown").kind(),
            ErrorKind::NotFound
        );
        let peer = sender.introduce(at(&server)).expect("introduce");
        assert_eq!(sender.send_to(peer, 1, b"").expect_err("empty").kind(), ErrorKind::InvalidInput);
        let error = sender.send_to(peer, 1, &[0; 65_507]).expect_err("too large");
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<SendDatagramError>());
        assert!(matches!(inner, Some(SendDatagramError::TooLarge { max: 1000.. })), "{error}");
    });
}

#[test]
fn a_full_queue_drops_and_counts() {
    within(30 * SECOND, || {
        let server = builder()
            .config(ProtoConfig { datagram_queue: 8, ..ProtoConfig::default() })
            .start()
            .expect("node");
        let client = node();
        let receiver = server.bind_datagram(5).expect("bind");
        let sender = client.bind_datagram(0).expect("bind");
        let peer = sender.introduce(at(&server)).expect("introduce");
        client.ping(at(&server), 5 * SECOND).expect("keys are there");
        for number in 0..50_u8 {
            sender.send_to(peer, 5, &[number]).expect("send");
        }
        client.ping(at(&server), 5 * SECOND).expect("behind the datagrams");
        let got: Vec<u8> = std::iter::from_fn(|| receiver.recv_timeout(Duration::from_millis(100)))
            .map(|d| d.data[0])
            .collect();
        assert_eq!(got, (0..8).collect::<Vec<u8>>());
        assert_eq!(server.stats().endpoint.drop_datagram_queue, 42);
    });
}

#[test]
fn a_ping_measures_the_round_trip() {
    within(30 * SECOND, || {
        let (client, server) = (node(), node());
        let first = client.ping(at(&server), 5 * SECOND).expect("with the key exchange");
        assert_eq!((first.address, first.attempts), (server.address(), 1));
        let reply = client.ping(server.address(), 5 * SECOND).expect("over the tunnel");
        assert!(reply.rtt > Duration::ZERO && reply.rtt < SECOND, "{reply:?}");
        assert_eq!(reply.path.expect("path").remote, server.local_addr());
        let back = server.ping(client.address(), 5 * SECOND).expect("the other way");
        assert_eq!(back.address, client.address());
    });
}

#[test]
fn a_ping_to_nobody_is_bounded_and_names_the_stage() {
    within(30 * SECOND, || {
        let dead = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let peer = Peer::At(node().address(), dead.local_addr().expect("address"));
        let start = std::time::Instant::now();
        let failure = node().ping(peer, Duration::from_millis(300)).expect_err("dead");
        assert_eq!(failure.stage, Stage::KeyExchange, "{failure}");
        assert!(start.elapsed() < 3 * SECOND);
    });
}

#[test]
fn events_tell_of_tunnels_and_of_the_end() {
    within(30 * SECOND, || {
        let (client, server) = (node(), node());
        let (at_client, at_server) = (client.events(), server.events());
        client.ping(at(&server), 5 * SECOND).expect("ping");
        let began = std::iter::from_fn(|| at_client.recv_timeout(5 * SECOND))
            .find_map(|event| match event {
                NodeEvent::TunnelUp { peer, handshake } => Some((peer, handshake)),
                _ => None,
            })
            .expect("an event");
        assert_eq!(began.0, server.address().node);
        assert!(began.1 > Duration::ZERO, "we began");
        let answered = std::iter::from_fn(|| at_server.recv_timeout(5 * SECOND))
            .any(|event| matches!(event, NodeEvent::TunnelUp { peer, .. } if peer == client.address().node));
        assert!(answered);
        client.close();
        assert_eq!(at_client.last(), Some(NodeEvent::Closed));
        assert_eq!(client.events().recv(), None);
    });
}

#[test]
fn after_a_ping_there_is_silence() {
    within(30 * SECOND, || {
        let (client, server) = (node(), node());
        client.ping(at(&server), 5 * SECOND).expect("ping");
        // MTU discovery may follow for a moment.
        std::thread::sleep(2 * SECOND);
        let before = (client.stats().endpoint.datagrams_sent, server.stats().endpoint.datagrams_sent);
        std::thread::sleep(3 * SECOND);
        let after = (client.stats().endpoint.datagrams_sent, server.stats().endpoint.datagrams_sent);
        assert_eq!(before, after);
    });
}
