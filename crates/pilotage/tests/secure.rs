//! The secure mode S1 on real sockets: transfer, renewal of keys, restart, what is remembered (spec/secure.md §12).

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{SECOND, builder, pattern, within};
use pilotage::{Identity, Mode, Node, Peer, PostQuantum, SecureLimits, SecureMode, Suite};

/// A node with a known key, so that others can name it.
fn identity(n: u8) -> Identity {
    Identity::from_seed([n; 32])
}

fn mode(node: &Node) -> Option<Mode> {
    node.peers().first().filter(|peer| peer.established).map(|peer| peer.mode)
}

fn await_mode(node: &Node, wanted: Mode) {
    let start = Instant::now();
    while mode(node) != Some(wanted) {
        assert!(start.elapsed() < 60 * SECOND, "{:?}", node.peers());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sends `len` bytes from one to the other, and compares them.
fn transfer(client: &Node, server: &Node, port: u16, len: usize) {
    let listener = server.listen(port).expect("free");
    let mut near = client.connect(Peer::At(server.address(), server.local_addr()), port).expect("connects");
    let mut far = listener.accept().expect("accepts");
    let sent = pattern(len, u64::from(port));
    let copy = sent.clone();
    let writer = std::thread::spawn(move || {
        near.write_all(&copy).expect("write");
        near.shutdown(Shutdown::Write).expect("shutdown");
        let mut back = Vec::new();
        near.read_to_end(&mut back).expect("read");
        assert_eq!(back, b"thanks");
    });
    let mut got = Vec::with_capacity(len);
    far.read_to_end(&mut got).expect("read");
    far.write_all(b"thanks").expect("write");
    far.shutdown(Shutdown::Write).expect("shutdown");
    writer.join().expect("writer");
    assert!(got == sent, "the bytes differ");
}

#[test]
fn two_nodes_move_data_in_s1_and_renew_their_keys_under_load() {
    within(120 * SECOND, || {
        let limits = SecureLimits {
            update_packets: 100,
            rekey_after: Duration::from_millis(150),
            refuse_after: 10 * SECOND,
            ..SecureLimits::default()
        };
        let start = |n: u8| builder().identity(identity(n)).secure_mode(SecureMode::S1).secure_limits(limits);
        let server = start(1).start().expect("server");
        let key = Some(identity(1).public_key());
        let client = start(2).peer(server.address(), server.local_addr(), key).start().expect("client");
        for port in 1..4 {
            transfer(&client, &server, port, 24 << 20);
            std::thread::sleep(Duration::from_millis(200));
        }
        for node in [&client, &server] {
            let peer = node.peers().remove(0);
            assert_eq!((peer.mode, peer.least_mode), (Mode::S1, Mode::S1));
            assert!(matches!(peer.suite, Some(Suite::Aes256Gcm | Suite::ChaCha20Poly1305)));
            assert!(peer.keys_since.is_some_and(|since| since.elapsed() < 60 * SECOND));
            assert!(node.stats().endpoint.handshakes >= 3, "{:?}", node.stats().endpoint);
        }
    });
}

#[test]
fn a_restarted_node_is_reached_again_in_s1() {
    within(60 * SECOND, || {
        let dir = tempfile::tempdir().expect("directory");
        let start = |at| {
            let node = builder().identity(identity(3)).state_dir(dir.path()).secure_mode(SecureMode::S1);
            node.bind(at).start().expect("server")
        };
        let server = start("127.0.0.1:0".parse().expect("address"));
        let at = server.local_addr();
        let key = Some(identity(3).public_key());
        let client = builder().secure_mode(SecureMode::S1).peer(server.address(), at, key);
        let client = client.start().expect("client");
        let listener = server.listen(9).expect("free");
        let mut near = client.connect(Peer::At(server.address(), at), 9).expect("connects");
        let mut far = listener.accept().expect("accepts");
        near.write_all(b"one").expect("write");
        far.read_exact(&mut [0; 3]).expect("read");
        // The streams are reset; but that the keys are gone with the process nobody is told.
        drop((far, listener));
        server.close();
        drop(server);
        let server = start(at);
        let begun = Instant::now();
        while near.write_all(b"two").is_ok() {
            assert!(begun.elapsed() < 20 * SECOND, "the stream of the dead process must end");
            std::thread::sleep(Duration::from_millis(5));
        }
        transfer(&client, &server, 10, 1 << 20);
        assert_eq!(mode(&client), Some(Mode::S1));
        assert_eq!(mode(&server), Some(Mode::S1));
    });
}

#[test]
fn what_was_s1_once_stays_s1() {
    within(180 * SECOND, || {
        let dirs = [tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory")];
        let start = |n: usize, mode| {
            builder().identity(identity(10 + n as u8)).state_dir(dirs[n].path()).secure_mode(mode)
        };
        let server = start(0, SecureMode::Auto).start().expect("server");
        let key = Some(identity(10).public_key());
        let at = server.local_addr();
        let client = start(1, SecureMode::Auto).peer(server.address(), at, key).start().expect("client");
        transfer(&client, &server, 5, 4 << 20);
        await_mode(&client, Mode::S1);
        await_mode(&server, Mode::S1);
        transfer(&client, &server, 6, 4 << 20);
        assert_eq!(client.peers()[0].least_mode, Mode::S1);
        client.close();
        drop(client);
        let pins = std::fs::read_to_string(dirs[1].path().join("peers.json")).expect("pins");
        assert!(pins.contains("\"s1\""), "{pins}");
        // The next process begins with S1.
        let client = start(1, SecureMode::Auto).peer(server.address(), at, key).start().expect("client");
        transfer(&client, &server, 7, 1 << 20);
        assert_eq!(mode(&client), Some(Mode::S1));
        // And speaks nothing less, even if the other side does not speak S1 any more.
        server.close();
        drop(server);
        let server = start(0, SecureMode::Draft).bind(at).start().expect("server");
        let _listener = server.listen(8).expect("free");
        let config = pilotage::ProtoConfig { connect_timeout: 2 * SECOND, ..Default::default() };
        client.close();
        drop(client);
        let client = start(1, SecureMode::Auto).config(config).peer(server.address(), at, key);
        let client = client.start().expect("client");
        assert!(client.connect(Peer::At(server.address(), at), 8).is_err());
        assert_eq!(mode(&client), None);
        // Unless the operator says so.
        client.close();
        drop(client);
        let client = start(1, SecureMode::Draft).peer(server.address(), at, key).start().expect("client");
        client.connect(Peer::At(server.address(), at), 8).expect("the draft's mode");
    });
}

#[test]
fn a_node_of_the_draft_is_reached_as_ever() {
    within(60 * SECOND, || {
        for modes in [[SecureMode::Draft, SecureMode::Auto], [SecureMode::Auto, SecureMode::Draft]] {
            let server = builder().secure_mode(modes[0]).start().expect("server");
            let client = builder().secure_mode(modes[1]).start().expect("client");
            transfer(&client, &server, 5, 1 << 20);
            assert_eq!(mode(&client), Some(Mode::Draft));
        }
    });
}

/// Who does not have the secret of the network has no session in it, whatever else it knows.
#[test]
fn a_network_with_a_secret_is_for_those_who_have_it() {
    within(120 * SECOND, || {
        let network = pilotage::NetworkId(0);
        let start = |n: u8| builder().identity(identity(n)).secure_mode(SecureMode::S1);
        let server = start(20).network_secret(network, [1; 32]).start().expect("server");
        let (to, at, key) = (server.address(), server.local_addr(), Some(identity(20).public_key()));
        let member = start(21).network_secret(network, [1; 32]).peer(to, at, key).start().expect("member");
        transfer(&member, &server, 5, 1 << 20);
        let _listener = server.listen(6).expect("free");
        let config = pilotage::ProtoConfig { connect_timeout: 2 * SECOND, ..Default::default() };
        for other in [start(22), start(23).network_secret(network, [2; 32])] {
            let other = other.config(config.clone()).peer(to, at, key).start().expect("other");
            assert!(other.connect(Peer::At(to, at), 6).is_err());
        }
    });
}

/// Streams of S1 on sockets: many at once, both ways, and what nobody listens for.
#[test]
fn many_streams_in_one_tunnel_and_one_that_nobody_takes() {
    within(120 * SECOND, || {
        let server = builder().identity(identity(31)).secure_mode(SecureMode::S1).secure_streams(true);
        let server = server.start().expect("server");
        let (at, key) = (server.local_addr(), Some(identity(31).public_key()));
        let client = builder().identity(identity(32)).secure_mode(SecureMode::S1).secure_streams(true);
        let client = client.peer(server.address(), at, key).start().expect("client");
        let listener = server.listen(7).expect("free");
        let echo = std::thread::spawn(move || {
            for _ in 0..100 {
                let mut far = listener.accept().expect("accepts");
                std::thread::spawn(move || {
                    let mut all = Vec::new();
                    far.read_to_end(&mut all).expect("read");
                    far.write_all(&all).expect("write");
                    far.shutdown(Shutdown::Write).expect("shutdown");
                });
            }
        });
        let askers: Vec<_> = (0..100u64)
            .map(|n| {
                let mut near = client.connect(Peer::At(server.address(), at), 7).expect("connects");
                std::thread::spawn(move || {
                    let sent = pattern(1_000 + 500 * n as usize, n);
                    near.write_all(&sent).expect("write");
                    near.shutdown(Shutdown::Write).expect("shutdown");
                    let mut back = Vec::new();
                    near.read_to_end(&mut back).expect("read");
                    assert!(back == sent, "the bytes differ");
                })
            })
            .collect();
        for asker in askers {
            asker.join().expect("asker");
        }
        echo.join().expect("echo");
        let failure = client.connect(Peer::At(server.address(), at), 99).expect_err("nobody listens");
        assert_eq!(failure.kind(), std::io::ErrorKind::ConnectionRefused, "{failure}");
        // To open costs no round trip; what the peer says to it comes with the first read.
        let mut near = client.open(Peer::At(server.address(), at), 99).expect("opens");
        let refused = near.read(&mut [0; 1]).expect_err("nobody listens");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{refused}");
    });
}

/// Passes datagrams between a client and a server, and drops the first one of the server after `armed`.
fn pass_on(server: SocketAddr, armed: &Arc<AtomicBool>, dropped: &Arc<AtomicUsize>) -> SocketAddr {
    let sockets = [0; 2].map(|_| UdpSocket::bind("127.0.0.1:0").expect("socket"));
    let front = sockets[0].local_addr().expect("address");
    let client = Arc::new(Mutex::new(None));
    for side in [0, 1] {
        let [from, to] = [side, 1 - side].map(|n| sockets[n].try_clone().expect("clone"));
        let (client, armed, dropped) = (client.clone(), armed.clone(), dropped.clone());
        std::thread::spawn(move || {
            let mut buf = [0; 2_048];
            while let Ok((len, source)) = from.recv_from(&mut buf) {
                let target = if side == 0 {
                    *client.lock().expect("whole") = Some(source);
                    Some(server)
                } else {
                    *client.lock().expect("whole")
                };
                if side == 1 && armed.swap(false, Ordering::SeqCst) {
                    dropped.fetch_add(1, Ordering::SeqCst);
                } else if let Some(target) = target {
                    let _ = to.send_to(&buf[..len], target);
                }
            }
        });
    }
    front
}

/// A node that has got everything ends, and what it says to that is lost once.
#[test]
fn who_ends_leaves_nobody_waiting_for_one_lost_datagram() {
    within(60 * SECOND, || {
        let server = builder().identity(identity(36)).secure_mode(SecureMode::S1).start().expect("server");
        let (armed, dropped) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let at = pass_on(server.local_addr(), &armed, &dropped);
        let client = builder().identity(identity(37)).secure_mode(SecureMode::S1);
        let key = Some(identity(36).public_key());
        let client = client.peer(server.address(), at, key).start().expect("client");
        let listener = server.listen(7).expect("free");
        let mut near = client.connect(Peer::At(server.address(), at), 7).expect("connects");
        let mut far = listener.accept().expect("accepts");
        // The server has said all, so that nothing keeps it once it has read all.
        far.shutdown(Shutdown::Write).expect("open");
        assert_eq!(near.read(&mut [0; 1]).expect("the end"), 0);
        far.wait_flushed(3 * SECOND).expect("acknowledged");
        let reader = std::thread::spawn(move || {
            far.read_exact(&mut [0; 14]).expect("all of it");
            armed.store(true, Ordering::SeqCst);
            server.close();
        });
        near.write_all(b"the last words").expect("room");
        near.wait_flushed(3 * SECOND).expect("acknowledged by what was repeated");
        reader.join().expect("reader");
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
    });
}

/// The comparison: without streams of its own S1 carries the draft's packets, also towards a node that has them.
#[test]
fn without_its_own_streams_s1_carries_the_drafts_packets() {
    within(120 * SECOND, || {
        let server = builder().identity(identity(33)).secure_mode(SecureMode::S1).secure_streams(false);
        let server = server.start().expect("server");
        let key = Some(identity(33).public_key());
        let client = builder().identity(identity(34)).secure_mode(SecureMode::S1).secure_streams(true);
        let client = client.peer(server.address(), server.local_addr(), key).start().expect("client");
        transfer(&client, &server, 7, 4 << 20);
        assert_eq!(mode(&client), Some(Mode::S1));
        // The handshake of ports says no, as ever.
        assert!(client.connect(Peer::At(server.address(), server.local_addr()), 99).is_err());
    });
}

/// Idempotent messages on sockets: with the prekey of the last session, which the pin remembers, the question and its answer
/// need no session before them. Blocking and async; a node that takes none early gets them all the same.
#[test]
fn idempotent_messages_and_their_answers_come_first() {
    within(120 * SECOND, || {
        let dir = tempfile::tempdir().expect("directory");
        let server = |n: u8, early| {
            let node = builder().identity(identity(n)).secure_mode(SecureMode::S1).secure_early(early);
            node.start().expect("server")
        };
        let servers = [server(40, true), server(41, false)];
        let clocks: Vec<_> = servers.iter().map(|node| node.bind_datagram(9).expect("free")).collect();
        // Nothing early is taken before the process is so old.
        std::thread::sleep(21 * SECOND);
        let client = || {
            let mut client =
                builder().identity(identity(42)).state_dir(dir.path()).secure_mode(SecureMode::S1);
            for (node, n) in servers.iter().zip([40, 41]) {
                client = client.peer(node.address(), node.local_addr(), Some(identity(n).public_key()));
            }
            client.start().expect("client")
        };
        // Round 0 learns the prekeys; from then on they are known.
        for round in 0..3 {
            let client = client();
            let socket = client.bind_datagram(5).expect("free");
            for (node, clock) in servers.iter().zip(&clocks) {
                let to = node.address();
                match round {
                    2 => block_on(socket.send_idempotent_async(to, 9, b"when?")).expect("sent"),
                    _ => socket.send_idempotent(to, 9, b"when?").expect("sent"),
                }
                let question = clock.recv_timeout(20 * SECOND).expect("the question");
                assert_eq!(question.data, b"when?");
                clock.send_to(question.from.address, question.from.port, b"now").expect("sent");
                let answer = socket.recv_timeout(20 * SECOND).expect("the answer");
                assert_eq!((answer.data, answer.from.address), (b"now".to_vec(), to));
            }
            let stats = client.stats().endpoint;
            let early = if round == 0 { (0, 0, 0) } else { (2, 1, 1) };
            assert_eq!(
                (stats.early_sent, stats.early_accepted, stats.early_repeated),
                early,
                "round {round}"
            );
            client.close();
        }
        let taken = servers.each_ref().map(|node| node.stats().endpoint.early_taken);
        assert_eq!(taken, [2, 0]);
        assert!(
            clocks.iter().all(|clock| clock.recv_timeout(Duration::from_millis(50)).is_none()),
            "once each"
        );
    });
}

/// Where both would like it, a session has the post-quantum upgrade; who demands it has no session with others, and demands S1.
#[test]
fn sessions_are_upgraded_where_both_would_like_it() {
    within(60 * SECOND, || {
        let node =
            |n: u8, choice| builder().identity(identity(n)).secure_mode(SecureMode::S1).post_quantum(choice);
        let server = node(50, PostQuantum::On).start().expect("server");
        let plain = node(51, PostQuantum::Off).start().expect("server");
        for server in [&server, &plain] {
            let listener = server.listen(7).expect("free");
            std::thread::spawn(move || {
                while let Ok(mut stream) = listener.accept() {
                    let mut buf = [0; 5];
                    if stream.read_exact(&mut buf).is_ok() {
                        let _ = stream.write_all(&buf);
                    }
                }
            });
        }
        let mut client = node(52, PostQuantum::Require);
        for (node, n) in [(&server, 50), (&plain, 51)] {
            client = client.peer(node.address(), node.local_addr(), Some(identity(n).public_key()));
        }
        let client = client.start().expect("client");
        let mut stream = client.connect(server.address(), 7).expect("a session");
        stream.write_all(b"hello").expect("sent");
        let mut buf = [0; 5];
        stream.read_exact(&mut buf).expect("echoed");
        assert_eq!(&buf, b"hello");
        let upgraded = |node: &Node| node.peers().iter().any(|peer| peer.post_quantum && peer.phase > 0);
        assert!(upgraded(&client) && upgraded(&server));
        let refused = client.connect(plain.address(), 7).map(drop).expect_err("no session");
        assert!(refused.to_string().contains("key exchange"), "{refused}");
        let error =
            node(53, PostQuantum::Require).secure_mode(SecureMode::Auto).start().expect_err("no choice");
        assert!(error.to_string().contains("secure mode s1"), "{error}");
    });
}

/// Waits for a future that some thread completes.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = std::pin::pin!(future);
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    loop {
        if let std::task::Poll::Ready(value) =
            future.as_mut().poll(&mut std::task::Context::from_waker(&waker))
        {
            return value;
        }
        std::thread::park_timeout(SECOND);
    }
}

/// What a record of the peer says, as whoever keeps records tells it.
#[derive(Debug)]
struct Record {
    key: [u8; 32],
    least: Mode,
}

impl pilotage::Acquaintances for Record {
    fn by_name(&self, _: &str) -> Option<pilotage::Acquaintance> {
        None
    }

    fn by_address(&self, _: pilotage::Address) -> Option<pilotage::Acquaintance> {
        None
    }

    fn met(&self, _: pilotage::Address) {}

    fn least(&self, _: pilotage::Address, key: &[u8; 32]) -> Mode {
        if *key == self.key { self.least } else { Mode::Draft }
    }
}

/// A peer whose record demands S1 is spoken to in nothing less, also by who knows no prekey of it; a record of another key says nothing.
#[test]
fn what_a_record_demands_is_the_least() {
    within(120 * SECOND, || {
        let config = pilotage::ProtoConfig { connect_timeout: 2 * SECOND, ..Default::default() };
        // The server's mode, whose record it is, what comes of it.
        for (n, server, own, got) in [
            (50, SecureMode::Auto, true, Some(Mode::S1)),
            (51, SecureMode::Draft, true, None),
            (52, SecureMode::Draft, false, Some(Mode::Draft)),
        ] {
            let server = builder().identity(identity(n)).secure_mode(server).start().expect("server");
            let key = identity(n).public_key();
            let client =
                builder().identity(identity(60 + n)).secure_mode(SecureMode::Auto).config(config.clone());
            let client =
                client.peer(server.address(), server.local_addr(), Some(key)).start().expect("client");
            let key = if own { key } else { identity(1).public_key() };
            client.set_acquaintances(std::sync::Arc::new(Record { key, least: Mode::S1 }));
            let _listener = server.listen(6).expect("free");
            let done = client.connect(Peer::Address(server.address()), 6);
            assert_eq!(done.is_ok(), got.is_some(), "{n}: {:?}", done.err());
            assert_eq!(mode(&client), got, "{n}");
            let least = if own { Mode::S1 } else { Mode::Draft };
            assert_eq!(client.peers()[0].least_mode, least, "{n}");
        }
        // Who has switched S1 off is told at once, and what to do.
        let server = builder().identity(identity(53)).secure_mode(SecureMode::Draft).start().expect("server");
        let key = identity(53).public_key();
        let client = builder().secure_mode(SecureMode::Draft);
        let client = client.peer(server.address(), server.local_addr(), Some(key)).start().expect("client");
        client.set_acquaintances(std::sync::Arc::new(Record { key, least: Mode::S1 }));
        let error = client.connect(Peer::Address(server.address()), 6).expect_err("refused");
        assert!(error.to_string().contains("S1"), "{error}");
    });
}
