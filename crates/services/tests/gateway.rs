//! The gateway between real TCP and real nodes (spec/services.md, "Gateway").

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use pilotage::{Node, NodeId, Peer};
use pilotage_services::Duplex;
use pilotage_services::gateway::alias::Mapping;
use pilotage_services::gateway::socks5::Password;
use pilotage_services::gateway::{self, Allow, Event, Limits, Observer};

const SECOND: Duration = Duration::from_secs(1);

fn node() -> Node {
    Node::builder().bind("127.0.0.1:0".parse().expect("address")).start().expect("node")
}

fn at(node: &Node) -> Peer {
    Peer::At(node.address(), node.local_addr())
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().expect("address")
}

/// An observer and what it saw.
fn watch() -> (Observer, Arc<Mutex<Vec<Event>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let seen_ = seen.clone();
    (Arc::new(move |event| seen_.lock().unwrap().push(event)), seen)
}

fn refusals(seen: &Mutex<Vec<Event>>) -> Vec<String> {
    let seen = seen.lock().unwrap();
    let reason = |event: &Event| match event {
        Event::Refused { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    seen.iter().filter_map(reason).collect()
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + 10 * SECOND;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn tcp(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("connect");
    stream.set_read_timeout(Some(20 * SECOND)).expect("timeout");
    stream
}

/// A TCP server that answers each connection with what it read, once it has read the end, and then says goodbye.
fn echo_at_end() -> SocketAddr {
    let listener = TcpListener::bind(loopback()).expect("listen");
    let local = listener.local_addr().expect("address");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut text = Vec::new();
                let _ = stream.read_to_end(&mut text);
                let _ = stream.write_all(&text);
                let _ = stream.write_all(b" goodbye");
            });
        }
    });
    local
}

fn data(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i % 253) as u8).collect()
}

/// TCP → overlay → TCP, with both kinds of gateway: half-close survives both, and every byte.
#[test]
fn forward_and_serve_carry_both_ends_of_a_connection() {
    let (near, far) = (node(), node());
    let (observer, served) = watch();
    let listener = Arc::new(far.listen(8080).expect("listen"));
    let allow = Allow::Nodes(vec![near.address().node]);
    let target = echo_at_end().to_string();
    let _serving = gateway::serve(listener, target, allow, Limits::default(), observer).expect("serve");
    let (observer, seen) = watch();
    let forward =
        gateway::forward(Arc::new(near.clone()), loopback(), at(&far), 8080, Limits::default(), observer)
            .expect("forward");
    let want = data(3_000_000);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let (local, want) = (forward.local_addrs()[0], want.clone());
        clients.push(thread::spawn(move || {
            let mut stream = tcp(local);
            stream.write_all(&want).expect("write");
            stream.shutdown(Shutdown::Write).expect("half");
            let mut got = Vec::new();
            stream.read_to_end(&mut got).expect("read");
            assert_eq!(got.strip_suffix(b" goodbye"), Some(&want[..]));
        }));
    }
    for client in clients {
        client.join().expect("client");
    }
    let closed = |event: &Event| {
        matches!(event, Event::Closed { sent: 3_000_000, received: 3_000_008, error: None, .. })
    };
    for seen in [seen, served] {
        eventually("three ended in order", || seen.lock().unwrap().iter().filter(|e| closed(e)).count() == 3);
    }
    eventually("no place is taken", || forward.connections() == 0);
}

#[test]
fn peers_that_are_not_allowed_get_nothing() {
    let (near, far) = (node(), node());
    let target = TcpListener::bind(loopback()).expect("listen");
    target.set_nonblocking(true).expect("nonblocking");
    let (observer, seen) = watch();
    let listener = Arc::new(far.listen(80).expect("listen"));
    let allow = Allow::Nodes(vec![NodeId(7)]);
    let to = target.local_addr().expect("address").to_string();
    let _serving = gateway::serve(listener, to, allow, Limits::default(), observer).expect("serve");
    let stream = near.connect(at(&far), 80).expect("connect");
    assert!(Read::read(&mut &stream, &mut [0; 1]).is_err(), "reset");
    assert_eq!(refusals(&seen), ["the peer is not on the allow list"]);
    assert!(target.accept().is_err(), "the target heard nothing");
}

#[test]
fn what_cannot_be_reached_is_refused_with_a_reason() {
    let (near, far) = (node(), node());
    let (observer, seen) = watch();
    let forward = gateway::forward(
        Arc::new(near.clone()),
        loopback(),
        at(&far),
        9,
        Limits::default(),
        observer.clone(),
    )
    .expect("forward");
    assert!(matches!(tcp(forward.local_addrs()[0]).read(&mut [0; 1]), Ok(0) | Err(_)));
    eventually("told", || refusals(&seen).iter().any(|reason| reason.contains("refused")));
    // A TCP target that is not there.
    let gone = TcpListener::bind(loopback()).expect("listen").local_addr().expect("address").to_string();
    let listener = Arc::new(far.listen(10).expect("listen"));
    let _serving =
        gateway::serve(listener, gone, Allow::Anybody, Limits::default(), observer).expect("serve");
    let stream = near.connect(at(&far), 10).expect("connect");
    assert!(Read::read(&mut &stream, &mut [0; 1]).is_err(), "reset");
    assert_eq!(refusals(&seen).len(), 2);
}

#[test]
fn connections_are_bounded_and_end_with_the_gateway() {
    let (near, far) = (node(), node());
    let listener = far.listen(80).expect("listen");
    let (observer, seen) = watch();
    let limits = Limits { connections: 2, ..Limits::default() };
    let forward = gateway::forward(Arc::new(near.clone()), loopback(), at(&far), 80, limits, observer)
        .expect("forward");
    let local = forward.local_addrs()[0];
    let mut clients: Vec<TcpStream> = (0..2).map(|_| tcp(local)).collect();
    let streams: Vec<_> = (0..2).map(|_| listener.accept().expect("accept")).collect();
    assert!(matches!(tcp(local).read(&mut [0; 1]), Ok(0) | Err(_)), "the third one");
    eventually("told", || refusals(&seen) == ["2 connections are open already"]);
    drop(forward);
    for client in &mut clients {
        assert!(matches!(client.read(&mut [0; 1]), Ok(0) | Err(_)), "broken off");
    }
    for stream in &streams {
        assert!(matches!(Read::read(&mut &*stream, &mut [0; 1]), Ok(0) | Err(_)), "broken off");
    }
    eventually("the address is free", || TcpListener::bind(local).is_ok());
}

/// A TCP client that does not read holds the peer back: the gateway stores no more than its buffers.
#[test]
fn a_client_that_does_not_read_holds_the_peer_back() {
    let (near, far) = (node(), node());
    let listener = far.listen(80).expect("listen");
    let (observer, _) = watch();
    let forward =
        gateway::forward(Arc::new(near.clone()), loopback(), at(&far), 80, Limits::default(), observer)
            .expect("forward");
    let client = tcp(forward.local_addrs()[0]);
    let stream = listener.accept().expect("accept");
    stream.set_write_timeout(Some(SECOND)).expect("timeout");
    let chunk = data(65_536);
    let mut written = 0_u64;
    let error = loop {
        match Write::write(&mut &stream, &chunk[(written % 65_536) as usize..]) {
            Ok(len) => written += len as u64,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "held back, not broken");
    assert!(written < 64 << 20, "{written} bytes were taken");
    Duplex::finish(&stream).expect("end");
    let mut got = 0_u64;
    let mut buf = vec![0; 100_000];
    loop {
        match client.read(&mut buf).expect("read") {
            0 => break,
            len => {
                let first = (got % 65_536) as usize;
                assert_eq!(buf[0], chunk[first]);
                got += len as u64;
            }
        }
    }
    assert_eq!(got, written, "everything came, then the end");
}

/// A client that speaks SOCKS5 as curl does.
fn socks(
    proxy: SocketAddr,
    host: &str,
    port: u16,
    login: Option<(&str, &str)>,
) -> Result<TcpStream, Vec<u8>> {
    let mut stream = tcp(proxy);
    stream.write_all(if login.is_some() { b"\x05\x02\x00\x02" } else { b"\x05\x01\x00" }).expect("greeting");
    let mut method = [0; 2];
    stream.read_exact(&mut method).expect("method");
    if method[1] == 0xFF {
        return Err(method.to_vec());
    }
    if let (2, Some((name, password))) = (method[1], login) {
        let mut message = vec![1, name.len() as u8];
        message.extend_from_slice(name.as_bytes());
        message.push(password.len() as u8);
        message.extend_from_slice(password.as_bytes());
        stream.write_all(&message).expect("login");
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).expect("answer");
        if answer != [1, 0] {
            return Err(answer.to_vec());
        }
    }
    let mut request = vec![5, 1, 0, 3, host.len() as u8];
    request.extend_from_slice(host.as_bytes());
    request.extend_from_slice(&port.to_be_bytes());
    // Data right behind the request: nobody has to wait for the answer.
    request.extend_from_slice(b"early ");
    stream.write_all(&request).expect("request");
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).expect("reply");
    if answer[1] == 0 { Ok(stream) } else { Err(answer.to_vec()) }
}

#[test]
fn socks5_clients_reach_peers_by_name() {
    let (near, far) = (node(), node());
    near.ping(at(&far), 5 * SECOND).expect("known from now on");
    let listener = far.listen(7).expect("listen");
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || pilotage_services::echo::serve(&stream));
        }
    });
    let (observer, seen) = watch();
    let proxy = gateway::serve_socks5(Arc::new(near.clone()), loopback(), None, Limits::default(), observer);
    let proxy = proxy.expect("proxy");
    let local = proxy.local_addrs()[0];
    let name = format!("{}.pilot", far.address());
    let mut stream = socks(local, &name, 7, None).expect("connected");
    stream.write_all(b"and late").expect("write");
    stream.shutdown(Shutdown::Write).expect("half");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("read");
    assert_eq!(text, "early and late");
    // Refusals, by the reply's second byte.
    assert_eq!(socks(local, &name, 8, None).expect_err("refused")[1], 5);
    assert_eq!(socks(local, "example.com", 80, None).expect_err("not ours")[1], 2);
    assert_eq!(socks(local, "nobody.pilot", 80, None).expect_err("no hub knows it")[1], 4);
    for (message, reply) in [
        (&b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50"[..], 7),
        (b"\x05\x01\x00\x05\x01\x00\x09", 8),
    ] {
        let mut stream = tcp(local);
        stream.write_all(message).expect("write");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("read");
        assert_eq!(answer[3], reply, "{answer:?}");
    }
    let mut http = tcp(local);
    http.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("write");
    assert!(matches!(http.read(&mut [0; 8]), Ok(0) | Err(_)), "closed");
    eventually("told", || refusals(&seen).iter().any(|reason| reason.contains("SOCKS 5 was expected")));
}

#[test]
fn socks5_with_and_without_a_password() {
    let near = node();
    let (observer, seen) = watch();
    let everywhere: SocketAddr = "0.0.0.0:0".parse().expect("address");
    let dialer = Arc::new(near);
    let open = gateway::serve_socks5(dialer.clone(), everywhere, None, Limits::default(), observer.clone());
    assert_eq!(open.expect_err("open to all").kind(), std::io::ErrorKind::PermissionDenied);
    let limits = Limits { patience: Duration::from_millis(500), ..Limits::default() };
    let password = Password::new("ann", "secret");
    let proxy = gateway::serve_socks5(dialer, loopback(), password, limits, observer).expect("proxy");
    let local = proxy.local_addrs()[0];
    assert_eq!(socks(local, "bob.pilot", 7, None).expect_err("no password"), [5, 0xFF]);
    assert_eq!(socks(local, "bob.pilot", 7, Some(("ann", "wrong"))).expect_err("wrong"), [1, 1]);
    let reply = socks(local, "bob.pilot", 7, Some(("ann", "secret"))).expect_err("no hub knows bob");
    assert_eq!(reply[..2], [5, 4], "admitted");
    // Who says nothing does not keep a place.
    let mut silent = tcp(local);
    silent.write_all(b"\x05").expect("write");
    assert!(matches!(silent.read(&mut [0; 1]), Ok(0) | Err(_)));
    eventually("places are free", || proxy.connections() == 0);
    assert!(refusals(&seen).iter().any(|reason| reason == "wrong name or password"));
}

/// Aliases in 127.0.0.0/8 need no root; others are tested where `ip` may change the interface.
#[test]
fn aliases_stand_for_peers() {
    let (near, one, two) = (node(), node(), node());
    let (first, second) = (one.listen(47_701).expect("listen"), two.listen(47_701).expect("listen"));
    let map = |node: &Node, ip: &str| Mapping { peer: at(node), ip: ip.parse().expect("address") };
    let mappings = [map(&one, "127.4.77.1"), map(&two, "127.4.77.2")];
    let (observer, _) = watch();
    let aliases =
        gateway::aliases(Arc::new(near.clone()), &mappings, &[47_701], Limits::default(), observer.clone());
    let aliases = aliases.expect("aliases");
    assert!(aliases.added().is_empty(), "the loopback network is there already");
    for (listener, local) in [&first, &second].into_iter().zip(aliases.local_addrs()) {
        let mut client = tcp(*local);
        client.write_all(b"hi").expect("write");
        let stream = listener.accept().expect("accept");
        let mut text = [0; 2];
        Read::read_exact(&mut &stream, &mut text).expect("read");
        assert_eq!(&text, b"hi");
    }
    let ports: Vec<u16> = (1..=1_025).collect();
    let error = gateway::aliases(Arc::new(near), &mappings[..1], &ports, Limits::default(), observer);
    assert_eq!(error.expect_err("too many").kind(), std::io::ErrorKind::InvalidInput);
}
