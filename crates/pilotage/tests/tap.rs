//! Datagrams that nobody bound, and the list of connections.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use common::{SECOND, at, builder, node, pair, within};
use pilotage::{ConnectionState, ListenError, ProtoConfig, SocketAddress};

#[test]
fn a_tap_gets_what_nobody_bound() {
    within(30 * SECOND, || {
        let (client, server) = (node(), node());
        let bound = server.bind_datagram(80).expect("bind");
        let tap = server.tap_datagrams().expect("tap");
        assert!(matches!(server.tap_datagrams(), Err(ListenError::InUse(0))), "one at a time");
        let sender = client.bind_datagram(0).expect("bind");
        let peer = sender.introduce(at(&server)).expect("introduce");
        client.ping(at(&server), 5 * SECOND).expect("keys");
        sender.send_to(peer, 80, b"for the service").expect("send");
        sender.send_to(peer, 81, b"for nobody").expect("send");
        let (port, got) = tap.recv_timeout(5 * SECOND).expect("open").expect("a datagram");
        assert_eq!((port, got.data.as_slice()), (81, &b"for nobody"[..]));
        assert_eq!(bound.recv_timeout(5 * SECOND).expect("a datagram").data, b"for the service");
        assert_eq!(tap.recv_timeout(Duration::from_millis(20)).expect("open"), None);
        // It answers from any port.
        let to = SocketAddress::new(got.from.address, got.from.port);
        tap.send_from(81, to, b"answer").expect("send");
        let answer = sender.recv_timeout(5 * SECOND).expect("answer");
        assert_eq!((answer.from.port, answer.data.as_slice()), (81, &b"answer"[..]));
        // Without it they are dropped again, and another one starts empty.
        drop(tap);
        let dropped = server.stats().endpoint.drop_segment;
        sender.send_to(peer, 81, b"lost").expect("send");
        common::eventually(|| server.stats().endpoint.drop_segment > dropped);
        let tap = server.tap_datagrams().expect("free");
        assert_eq!(tap.recv_timeout(Duration::from_millis(20)).expect("open"), None);
        server.close();
        assert_eq!(tap.recv_timeout(SECOND).expect_err("closed").kind(), ErrorKind::NotConnected);
    });
}

#[test]
fn a_full_tap_drops_and_counts() {
    within(30 * SECOND, || {
        let config = ProtoConfig { datagram_queue: 8, ..ProtoConfig::default() };
        let server = builder().config(config).start().expect("node");
        let client = node();
        let tap = server.tap_datagrams().expect("tap");
        let sender = client.bind_datagram(0).expect("bind");
        let peer = sender.introduce(at(&server)).expect("introduce");
        client.ping(at(&server), 5 * SECOND).expect("keys");
        for number in 0..20_u8 {
            sender.send_to(peer, 1_000 + u16::from(number), &[number]).expect("send");
        }
        common::eventually(|| server.stats().endpoint.drop_datagram_queue == 12);
        for number in 0..8_u8 {
            let (port, got) = tap.recv_timeout(SECOND).expect("open").expect("a datagram");
            assert_eq!((port, got.data), (1_000 + u16::from(number), vec![number]));
        }
    });
}

#[test]
fn connections_are_listed_and_can_be_ended() {
    within(30 * SECOND, || {
        let mut pair = pair();
        pair.near.write_all(&[7; 1_000]).expect("write");
        pair.far.read_exact(&mut [0; 1_000]).expect("read");
        let listed = pair.client.connections();
        let [info] = listed.as_slice() else { panic!("{listed:?}") };
        assert_eq!((info.id, info.local.port), (pair.near.connection_id(), pair.near.local_port()));
        assert_eq!((info.remote.address, info.remote.port), (pair.server.address(), 7));
        assert_eq!((info.state, info.incoming), (ConnectionState::Established, false));
        assert!(info.rtt.is_some() && info.peer_window > 0 && info.own_window > 0);
        let far = pair.server.connections()[0];
        assert_eq!((far.stats.bytes_received, far.incoming), (1_000, true));
        assert_eq!(pair.server.listening_ports(), [7]);
        pair.near.shutdown(std::net::Shutdown::Write).expect("end");
        assert_eq!(pair.far.read(&mut [0; 1]).expect("the end"), 0);
        assert_eq!(pair.server.connections()[0].state, ConnectionState::CloseWait);
        assert_eq!(pair.client.connections()[0].state, ConnectionState::FinWait);
        pair.server.disconnect(far.id);
        assert_eq!(pair.near.read(&mut [0; 1]).expect_err("reset").kind(), ErrorKind::ConnectionReset);
        common::eventually(|| pair.far.is_closed());
    });
}
