//! Streams, datagrams and reports over the local socket, between two real nodes (spec/ipc.md §3 to §5).
#![cfg(unix)]

mod common;

use std::io::Write;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use common::{Got, SECOND, daemon, eventually, node, pair, within};
use pilotage::{Address, NodeId, Peer, SocketAddress};
use pilotage_daemon::Options;
use pilotage_wire::ipc::Request;

#[test]
fn a_session_from_bind_to_close() {
    within(30 * SECOND, || {
        let (a, b) = pair(Options::default());
        let (mut server, mut client) = (b.driver(), a.driver());
        assert_eq!(server.ask(&Request::Bind { port: 5000 }), Got::BindOk(5000));
        let dialled = client.dial(b.address(), 5000);
        let Got::Accept { local_port, connection, from } = server.get() else { panic!("no accept") };
        assert_eq!((local_port, from.address), (5000, a.address()));
        client.put(&Request::Send { connection: dialled, data: b"hello" });
        assert_eq!(server.recv(connection, 5), b"hello");
        server.put(&Request::Send { connection, data: b"and back" });
        assert_eq!(client.recv(dialled, 8), b"and back");
        // What was written before the close arrives, then the end; each side gets its own notice.
        client.put(&Request::Send { connection: dialled, data: &[7; 100_000] });
        assert_eq!(client.ask(&Request::Close { connection: dialled }), Got::CloseOk(dialled));
        assert_eq!(server.recv(connection, 100_000), [7; 100_000]);
        assert_eq!(server.get(), Got::CloseOk(connection), "the peer is done");
        assert_eq!(server.ask(&Request::Close { connection }), Got::CloseOk(connection));
        let Got::Error(text) = server.ask(&Request::Send { connection, data: b"x" }) else { panic!("sent") };
        assert!(text.contains("not found"), "{text}");
    });
}

#[test]
fn a_large_transfer_both_ways_on_several_connections() {
    within(60 * SECOND, || {
        let (a, b) = pair(Options::default());
        let (mut server, mut client) = (b.driver(), a.driver());
        assert_eq!(server.ask(&Request::Bind { port: 9 }), Got::BindOk(9));
        let ids: Vec<_> = (0..3).map(|_| (client.dial(b.address(), 9), server.accept())).collect();
        let chunk: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
        let writing = client.socket.try_clone().expect("clone");
        let (data, numbers) = (chunk.clone(), ids.clone());
        let writer = std::thread::spawn(move || {
            let mut client = common::Driver { socket: writing };
            for _ in 0..10 {
                for (id, _) in &numbers {
                    client.put(&Request::Send { connection: *id, data: &data });
                }
            }
        });
        let mut received = vec![Vec::new(); 3];
        while received.iter().map(Vec::len).sum::<usize>() < 6_000_000 {
            let Got::Recv(of, data) = server.get() else { panic!("no data") };
            received[ids.iter().position(|(_, id)| *id == of).expect("known")].extend(data);
        }
        writer.join().expect("writer");
        for bytes in received {
            assert!(bytes.chunks(chunk.len()).all(|part| part == chunk), "in order and whole");
        }
    });
}

#[test]
fn what_cannot_be_done_is_said() {
    within(30 * SECOND, || {
        let a = daemon(Options::default());
        let (mut driver, mut other) = (a.driver(), a.driver());
        let error = |got| match got {
            Got::Error(text) => text,
            got => panic!("{got:?}"),
        };
        for (message, want) in [
            (&[0x23][..], "unknown command: 0x23"),
            (&[0x02, 0, 7], "unknown command: 0x02"),
            (&[0x01, 0], "2 are needed"),
            (&[0x1D], "1 are needed"),
            (&[0x0F, 9], "unknown sub-command 9"),
            (&[0x11, 0xFF], "UTF-8"),
        ] {
            driver.socket.write_all(&(message.len() as u32).to_be_bytes()).expect("write");
            driver.socket.write_all(message).expect("write");
            let text = error(driver.get());
            assert!(text.contains(want), "{text}");
        }
        assert_eq!(driver.ask(&Request::Bind { port: 2000 }), Got::BindOk(2000));
        assert_eq!(error(driver.ask(&Request::Bind { port: 2000 })), "port 2000 already bound");
        assert_eq!(error(other.ask(&Request::Bind { port: 2000 })), "port 2000 already bound");
        let Got::BindOk(49_152..) = driver.ask(&Request::Bind { port: 0 }) else { panic!("no free port") };
        let nobody = SocketAddress::new(Address::new(0, 77), 7);
        assert!(error(driver.ask(&Request::Dial { to: nobody })).starts_with("dial 0:0000.0000.004D:7"));
        assert!(error(driver.ask(&Request::SendTo { to: nobody, data: b"x" })).starts_with("sendto"));
        assert_eq!(
            error(driver.ask(&Request::Send { connection: 99, data: b"" })),
            "connection 99 not found"
        );
        assert_eq!(driver.ask(&Request::Close { connection: 99 }), Got::CloseOk(99), "as the reference does");
        assert!(error(driver.ask(&Request::SetHostname("x"))).contains("no registry"));
        assert!(a.server.counters().errors.load(std::sync::atomic::Ordering::Relaxed) >= 10);
        // A wrong length ends this client, with a reason, and no other.
        driver.socket.write_all(&[0xFF; 8]).expect("write");
        assert!(error(driver.get()).contains("length 4294967295"));
        assert_eq!(driver.get(), Got::End);
        let Got::Json(0x22, health) = other.ask(&Request::Health) else { panic!("the other one lives") };
        assert_eq!(health["status"], "ok");
    });
}

#[test]
fn a_client_that_goes_leaves_nothing_behind() {
    within(30 * SECOND, || {
        let (a, b) = pair(Options::default());
        let (mut server, mut client) = (b.driver(), a.driver());
        assert_eq!(server.ask(&Request::Bind { port: 5000 }), Got::BindOk(5000));
        let dialled = client.dial(b.address(), 5000);
        let accepted = server.accept();
        client.put(&Request::Send { connection: dialled, data: b"last words" });
        drop(client);
        assert_eq!(server.recv(accepted, 10), b"last words");
        assert_eq!(server.get(), Got::CloseOk(accepted));
        eventually("the client is forgotten", || a.server.clients() == 0);
        drop(server);
        eventually("the port is free", || b.node.listening_ports().is_empty());
        eventually("its connections are over", || b.node.stats().connections == 0);
        assert_eq!(b.driver().ask(&Request::Bind { port: 5000 }), Got::BindOk(5000));
    });
}

#[test]
fn a_dial_that_takes_long_holds_up_its_own_client_only() {
    within(40 * SECOND, || {
        let a = daemon(Options::default());
        // Nobody answers there.
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("socket");
        let at = silent.local_addr().expect("address");
        let nobody = Address::new(0, 0x00AB_CDEF);
        let _ = a.node.ping(Peer::At(nobody, at), Duration::from_millis(50));
        let (mut slow, mut quick) = (a.driver(), a.driver());
        let begin = Instant::now();
        slow.put(&Request::Dial { to: SocketAddress::new(nobody, 7) });
        slow.put(&Request::Health);
        for _ in 0..10 {
            let Got::Json(0x22, _) = quick.ask(&Request::Health) else { panic!("no health") };
        }
        assert!(begin.elapsed() < 5 * SECOND, "{:?}", begin.elapsed());
        let Got::Error(text) = slow.get_within(30 * SECOND) else { panic!("dialled") };
        assert!(text.starts_with("dial"), "{text}");
        let Got::Json(0x22, _) = slow.get() else { panic!("in order") };
    });
}

#[test]
fn datagrams_reach_every_client_with_both_ports() {
    within(30 * SECOND, || {
        let (a, b) = pair(Options::default());
        let (mut sender, mut one, mut two) = (a.driver(), b.driver(), b.driver());
        for driver in [&mut one, &mut two] {
            let Got::Json(0x22, _) = driver.ask(&Request::Health) else { panic!("admitted") };
        }
        sender.put(&Request::SendTo { to: SocketAddress::new(b.address(), 9999), data: b"dgram" });
        let mut reply_to = None;
        for driver in [&mut one, &mut two] {
            let Got::RecvFrom { from, port, data } = driver.get() else { panic!("no datagram") };
            assert_eq!((from.address, port, data.as_slice()), (a.address(), 9999, &b"dgram"[..]));
            assert!(from.port >= 49_152);
            reply_to = Some(from);
        }
        one.put(&Request::SendIdempotent { to: reply_to.expect("source"), data: b"answer" });
        let Got::RecvFrom { port, data, .. } = sender.get() else { panic!("no answer") };
        assert_eq!((Some(port), data.as_slice()), (reply_to.map(|from| from.port), &b"answer"[..]));
        // A service of the node keeps its datagrams for itself.
        let service = b.node.bind_datagram(1234).expect("bind");
        sender.put(&Request::SendTo { to: SocketAddress::new(b.address(), 1234), data: b"private" });
        assert_eq!(service.recv_timeout(5 * SECOND).expect("datagram").data, b"private");
        assert_eq!(one.get_within(Duration::from_millis(50)), Got::Nothing);
    });
}

#[test]
fn info_has_the_keys_that_the_tools_read() {
    within(30 * SECOND, || {
        let (a, b) = pair(Options::default());
        let (mut server, mut client) = (b.driver(), a.driver());
        server.ask(&Request::Bind { port: 80 });
        let dialled = client.dial(b.address(), 80);
        server.accept();
        client.put(&Request::Send { connection: dialled, data: &[1; 1000] });
        let Got::Json(0x0E, info) = client.ask(&Request::Info) else { panic!("no info") };
        for key in [
            "uptime_secs",
            "connections",
            "ports",
            "peers",
            "encrypted_peers",
            "authenticated_peers",
            "bytes_sent",
            "bytes_recv",
            "pkts_sent",
            "pkts_recv",
            "tunnel_encryption_success",
            "tunnel_encryption_failure",
            "handshake_pending_count",
            "node_id",
        ] {
            assert!(info[key].is_u64(), "{key}: {}", info[key]);
        }
        for key in ["address", "hostname", "public_key", "email"] {
            assert!(info[key].is_string(), "{key}: {}", info[key]);
        }
        assert_eq!((&info["encrypt"], &info["identity"]), (&true.into(), &true.into()));
        let peer = &info["peer_list"][0];
        assert_eq!(peer["node_id"], b.address().node.0);
        assert_eq!((&peer["encrypted"], &peer["authenticated"]), (&true.into(), &true.into()));
        let connection = &info["conn_list"][0];
        assert_eq!(connection["id"], dialled);
        assert_eq!((&connection["state"], &connection["remote_port"]), (&"ESTABLISHED".into(), &80.into()));
        for key in [
            "local_port",
            "cong_win",
            "ssthresh",
            "in_flight",
            "srtt_ms",
            "rttvar_ms",
            "unacked",
            "ooo_buf",
            "peer_recv_win",
            "recv_win",
            "bytes_sent",
            "bytes_recv",
            "segs_sent",
            "segs_recv",
            "retransmits",
            "fast_retx",
            "sack_recv",
            "sack_sent",
            "dup_acks",
        ] {
            assert!(connection[key].is_u64(), "{key}: {}", connection[key]);
        }
        assert_eq!(connection["bytes_sent"], 1000);
    });
}

#[test]
fn any_client_may_end_any_connection() {
    within(30 * SECOND, || {
        let (a, b) = pair(Options::default());
        let (mut server, mut client, mut tool) = (b.driver(), a.driver(), a.driver());
        server.ask(&Request::Bind { port: 80 });
        let dialled = client.dial(b.address(), 80);
        let accepted = server.accept();
        let Got::Error(_) = tool.ask(&Request::Send { connection: dialled, data: b"x" }) else {
            panic!("but not send in it")
        };
        assert_eq!(tool.ask(&Request::Close { connection: dialled }), Got::CloseOk(dialled));
        assert_eq!(client.get(), Got::CloseOk(dialled), "who had it is told");
        assert_eq!(server.get(), Got::CloseOk(accepted));
        // A connection of a service, by the number of the list.
        let listener = a.node.listen(4000).expect("listen");
        let _stream = b.node.connect(Peer::At(a.address(), a.node.local_addr()), 4000).expect("connect");
        let served = listener.accept().expect("accept");
        let Got::Json(_, info) = tool.ask(&Request::Info) else { panic!("no info") };
        let list = info["conn_list"].as_array().expect("list");
        let entry = list.iter().find(|entry| entry["local_port"] == 4000).expect("listed");
        let connection = u32::try_from(entry["id"].as_u64().expect("number")).expect("u32");
        assert_eq!(tool.ask(&Request::Close { connection }), Got::CloseOk(connection));
        let error = std::io::Read::read(&mut &served, &mut [0; 1]).expect_err("reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn the_peer_may_go_on_after_half_a_close() {
    within(30 * SECOND, || {
        let a = daemon(Options::default());
        let b = node();
        let mut driver = a.driver();
        driver.ask(&Request::Bind { port: 80 });
        let stream = b.connect(Peer::At(a.address(), a.node.local_addr()), 80).expect("connect");
        let accepted = driver.accept();
        stream.shutdown(Shutdown::Write).expect("half");
        assert_eq!(driver.get(), Got::CloseOk(accepted), "the receive side ended");
        driver.put(&Request::Send { connection: accepted, data: b"still here" });
        let mut bytes = [0; 10];
        std::io::Read::read_exact(&mut &stream, &mut bytes).expect("read");
        assert_eq!(&bytes, b"still here");
    });
}

#[test]
fn the_end_of_the_server_ends_its_clients_but_not_the_node() {
    within(30 * SECOND, || {
        let a = daemon(Options::default());
        let path = a.server.path().to_owned();
        let mut driver = a.driver();
        driver.ask(&Request::Bind { port: 80 });
        drop(a.server);
        assert_eq!(driver.get(), Got::End);
        assert!(!path.exists());
        eventually("the port is free", || a.node.listening_ports().is_empty());
        assert_ne!(a.node.address().node, NodeId(0));
        eventually("the tap is free", || a.node.tap_datagrams().is_ok());
    });
}
