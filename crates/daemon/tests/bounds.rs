//! Every bound of the server, reached (spec/ipc.md §8).
#![cfg(unix)]

mod common;

use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Got, SECOND, daemon, eventually, pair, within};
use pilotage::{Peer, SocketAddress};
use pilotage_daemon::{Limits, Options};
use pilotage_wire::ipc::Request;

fn limited(limits: Limits) -> Options {
    Options { limits, ..Options::default() }
}

#[test]
fn clients() {
    within(30 * SECOND, || {
        let a = daemon(limited(Limits { clients: 2, ..Limits::default() }));
        let (mut one, two) = (a.driver(), a.driver());
        eventually("both are there", || a.server.clients() == 2);
        let mut three = a.driver();
        let Got::Error(text) = three.get() else { panic!("admitted") };
        assert_eq!(text, "2 clients are connected already");
        assert_eq!(three.get(), Got::End);
        assert_eq!(a.server.counters().refused_clients.load(Ordering::Relaxed), 1);
        let Got::Json(..) = one.ask(&Request::Health) else { panic!("the first one lives") };
        drop(two);
        eventually("a place is free", || a.server.clients() == 1);
        let Got::Json(..) = a.driver().ask(&Request::Health) else { panic!("not admitted") };
    });
}

#[test]
fn ports_of_a_client() {
    within(30 * SECOND, || {
        let a = daemon(limited(Limits { ports_per_client: 3, ..Limits::default() }));
        let mut driver = a.driver();
        for port in 1..=3 {
            assert_eq!(driver.ask(&Request::Bind { port }), Got::BindOk(port));
        }
        let Got::Error(text) = driver.ask(&Request::Bind { port: 4 }) else { panic!("bound") };
        assert!(text.contains("3 ports already"), "{text}");
        assert_eq!(a.driver().ask(&Request::Bind { port: 4 }), Got::BindOk(4), "another client");
    });
}

#[test]
fn connections_of_a_client_both_ways() {
    within(30 * SECOND, || {
        let (a, b) = pair(limited(Limits { connections_per_client: 2, ..Limits::default() }));
        let (mut server, mut client) = (b.driver(), a.driver());
        server.ask(&Request::Bind { port: 80 });
        let first = client.dial(b.address(), 80);
        let accepted = server.accept();
        client.dial(b.address(), 80);
        server.accept();
        let to = SocketAddress::new(b.address(), 80);
        let Got::Error(text) = client.ask(&Request::Dial { to }) else { panic!("dialled") };
        assert!(text.contains("2 connections already"), "{text}");
        // Incoming ones are reset and counted.
        client.ask(&Request::Bind { port: 81 });
        let refused = b.node.connect(Peer::At(a.address(), a.node.local_addr()), 81).expect("connect");
        let error = std::io::Read::read(&mut &refused, &mut [0; 1]).expect_err("reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(a.server.counters().refused_connections.load(Ordering::Relaxed), 1);
        // A connection whose peer has ended it gives way.
        let _ = server.get(); // the accepted connection of the refused dial
        loop {
            match server.ask(&Request::Close { connection: accepted }) {
                Got::CloseOk(id) if id == accepted => break,
                _ => continue,
            }
        }
        assert_eq!(client.get(), Got::CloseOk(first));
        client.dial(b.address(), 80);
    });
}

#[test]
fn connections_of_all_clients() {
    within(30 * SECOND, || {
        let (a, b) = pair(limited(Limits { connections: 1, ..Limits::default() }));
        let (mut server, mut one, mut two) = (b.driver(), a.driver(), a.driver());
        server.ask(&Request::Bind { port: 80 });
        one.dial(b.address(), 80);
        let to = SocketAddress::new(b.address(), 80);
        let Got::Error(text) = two.ask(&Request::Dial { to }) else { panic!("dialled") };
        assert!(text.contains("all clients have 1"), "{text}");
    });
}

/// A client that does not read holds its own peers back, loses datagrams with a count, and harms no other.
#[test]
fn bytes_that_wait_for_a_client() {
    within(60 * SECOND, || {
        let (a, b) = pair(limited(Limits { queued_bytes: 64 << 10, ..Limits::default() }));
        let mut deaf = a.driver();
        deaf.ask(&Request::Bind { port: 80 });
        let stream = b.node.connect(Peer::At(a.address(), a.node.local_addr()), 80).expect("connect");
        stream.set_write_timeout(Some(SECOND)).expect("timeout");
        let mut written = 0_u64;
        let error = loop {
            match Write::write(&mut &stream, &[9; 65_536]) {
                Ok(len) => written += len as u64,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "held back, not broken");
        // Buffers of both nodes, of the kernel's socket, and the queue.
        assert!(written < 32 << 20, "{written} bytes were taken");
        let mut other = a.driver();
        for _ in 0..20 {
            let Got::Json(..) = other.ask(&Request::Health) else { panic!("held up") };
        }
        let mut sender = b.driver();
        sender.put(&Request::SendTo { to: SocketAddress::new(a.address(), 5), data: &[1; 100] });
        let Got::RecvFrom { .. } = other.get() else { panic!("no datagram") };
        eventually("counted", || a.server.counters().dropped_datagrams.load(Ordering::Relaxed) == 1);
        // Once it reads everything comes.
        let accepted = deaf.accept();
        let mut received = 0;
        while received < written {
            let Got::Recv(of, data) = deaf.get() else { panic!("no data") };
            assert_eq!(of, accepted);
            received += data.len() as u64;
        }
    });
}

/// A client that sends to a peer that does not read is held back, and noticed when it goes.
#[test]
fn a_blocked_send_ends_with_its_client() {
    within(60 * SECOND, || {
        let (a, b) = pair(Options::default());
        let listener = b.node.listen(80).expect("listen");
        let mut driver = a.driver();
        let connection = driver.dial(b.address(), 80);
        let _unread = listener.accept().expect("accept");
        driver.socket.set_write_timeout(Some(SECOND)).expect("timeout");
        let data = vec![0; 1 << 20];
        let request = Request::Send { connection, data: &data[..1_000_000] };
        let mut frame = vec![0; request.encoded_len()];
        request.encode(&mut frame).expect("room");
        let blocked = (0..64).any(|_| driver.socket.write_all(&frame).is_err());
        assert!(blocked, "64 MB were taken");
        drop(driver);
        eventually("noticed", || a.server.clients() == 0);
        std::thread::sleep(Duration::from_millis(10));
    });
}
