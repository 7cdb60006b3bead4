//! Streams between two nodes on real sockets.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Pair, SECOND, at, builder, node, pair, pattern, within};
use pilotage::{DatagramSocket, EventReceiver, Listener, Node, PathKind, Peer, ProtoConfig, Stream};

#[test]
fn handles_can_be_shared_between_threads() {
    fn shareable<T: Send + Sync + 'static>() {}
    shareable::<Node>();
    shareable::<Stream>();
    shareable::<Listener>();
    shareable::<DatagramSocket>();
    shareable::<EventReceiver>();
}

#[test]
fn bytes_come_back_from_an_echo() {
    within(30 * SECOND, || {
        let Pair { mut near, mut far, client, server, .. } = pair();
        let echo = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                match far.read(&mut buffer).expect("read") {
                    0 => return,
                    len => far.write_all(&buffer[..len]).expect("write"),
                }
            }
        });
        for round in 0..200_u64 {
            let sent = pattern(1 + (round as usize * 37) % 3000, round);
            near.write_all(&sent).expect("write");
            let mut got = vec![0; sent.len()];
            near.read_exact(&mut got).expect("read");
            assert!(got == sent, "round {round}");
        }
        near.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(near.read(&mut [0; 1]).expect("end"), 0);
        echo.join().expect("echo");

        assert_eq!(near.peer().address, server.address());
        assert_eq!(near.peer().port, 7);
        let path = near.path().expect("path");
        assert_eq!((path.kind, path.remote), (PathKind::Direct, server.local_addr()));
        assert!(path.rtt > Duration::ZERO && path.rtt < SECOND, "{path:?}");
        let stats = client.stats();
        assert!(stats.endpoint.datagrams_sent > 200 && stats.send_calls > 200, "{stats:?}");
        assert_eq!(stats.connections, 1);
        assert_eq!(client.peers().len(), 1);
        assert!(client.peers()[0].established && client.peers()[0].authenticated);
    });
}

#[test]
fn sixty_four_megabytes_arrive_exactly() {
    within(120 * SECOND, || {
        let Pair { mut near, mut far, .. } = pair();
        let sent = Arc::new(pattern(64 << 20, 1));
        let copy = sent.clone();
        let start = Instant::now();
        let writer = std::thread::spawn(move || {
            near.write_all(&copy).expect("write");
            near.shutdown(Shutdown::Write).expect("shutdown");
            near
        });
        let mut got = Vec::with_capacity(sent.len());
        far.read_to_end(&mut got).expect("read");
        let near = writer.join().expect("writer");
        let seconds = start.elapsed().as_secs_f64();
        println!("64 MiB in {seconds:.3} s, {:.2} Gbit/s", 8.0 * sent.len() as f64 / seconds / 1e9);
        println!("{:?}", near.stats());
        assert!(got == *sent, "the bytes differ");
    });
}

#[test]
fn each_direction_ends_by_itself() {
    within(30 * SECOND, || {
        let Pair { mut near, mut far, .. } = pair();
        near.write_all(b"question").expect("write");
        near.shutdown(Shutdown::Write).expect("shutdown");
        near.shutdown(Shutdown::Write).expect("again is harmless");
        assert_eq!(near.write(b"more").expect_err("ended").kind(), ErrorKind::BrokenPipe);
        let mut question = Vec::new();
        far.read_to_end(&mut question).expect("read");
        assert_eq!(question, b"question");
        let answer = pattern(300_000, 2);
        far.write_all(&answer).expect("the other direction is open");
        drop(far);
        let mut got = Vec::new();
        near.read_to_end(&mut got).expect("read");
        assert!(got == answer);
    });
}

#[test]
fn write_then_drop_of_everything_delivers_all() {
    within(60 * SECOND, || {
        for round in 0..20 {
            let Pair { client, mut near, mut far, .. } = pair();
            let sent = pattern(200_000 + round, round as u64);
            near.write_all(&sent).expect("write");
            drop(near);
            drop(client); // the last handle: the node lingers until the peer has everything
            let mut got = Vec::new();
            far.read_to_end(&mut got).expect("read");
            assert!(got == sent, "round {round}: {} of {} bytes", got.len(), sent.len());
        }
    });
}

#[test]
fn wait_flushed_returns_once_the_peer_has_everything() {
    within(30 * SECOND, || {
        let Pair { mut near, far, .. } = pair();
        near.wait_flushed(SECOND).expect("nothing written yet");
        near.write_all(&pattern(1 << 20, 3)).expect("write");
        near.wait_flushed(10 * SECOND).expect("flushed");
        assert_eq!(near.stats().bytes_acked, 1 << 20);
        drop(far);
    });
}

#[test]
fn two_hundred_parallel_connections_keep_their_bytes_apart() {
    within(120 * SECOND, || {
        let roomy = ProtoConfig { accept_queue: 256, ..ProtoConfig::default() };
        let (client, server) = (node(), builder().config(roomy).start().expect("node"));
        let listener = server.listen(7).expect("listen");
        let acceptor = std::thread::spawn(move || {
            let mut echoes = Vec::new();
            for mut stream in listener.incoming().take(200) {
                echoes.push(std::thread::spawn(move || {
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all).expect("read");
                    stream.write_all(&all).expect("write");
                }));
            }
            echoes.into_iter().for_each(|echo| echo.join().expect("echo"));
        });
        let peer = at(&server);
        let threads: Vec<_> = (0..200_u64)
            .map(|n| {
                let (client, peer) = (client.clone(), peer.clone());
                std::thread::spawn(move || {
                    let mut stream = client.connect(peer, 7).expect("connect");
                    let sent = pattern(5_000 + 13 * n as usize, n);
                    stream.write_all(&sent).expect("write");
                    stream.shutdown(Shutdown::Write).expect("shutdown");
                    let mut got = Vec::new();
                    stream.read_to_end(&mut got).expect("read");
                    assert!(got == sent, "connection {n}");
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("connection"));
        acceptor.join().expect("acceptor");
        assert_eq!(client.peers().len(), 1, "one tunnel carries them all");
    });
}

#[test]
fn a_stalled_reader_does_not_slow_another_connection() {
    within(60 * SECOND, || {
        let Pair { client, server, listener, near: mut stuck, far: _never_read } = pair();
        let full = Arc::new(AtomicBool::new(false));
        let flag = full.clone();
        stuck.set_write_timeout(Some(SECOND)).expect("timeout");
        let writer = std::thread::spawn(move || {
            let block = vec![7; 1 << 20];
            let error = loop {
                if let Err(error) = stuck.write_all(&block) {
                    break error;
                }
            };
            flag.store(true, Ordering::SeqCst);
            assert_eq!(error.kind(), ErrorKind::TimedOut, "held back, not broken: {error}");
            stuck
        });
        let stuck = writer.join().expect("writer");
        assert!(full.load(Ordering::SeqCst));

        let mut near = client.connect(at(&server), 7).expect("connect beside it");
        let mut far = listener.accept().expect("accept");
        let start = Instant::now();
        let copy = std::thread::spawn(move || {
            let mut buffer = [0; 1000];
            while far.read_exact(&mut buffer).is_ok() {
                far.write_all(&buffer).expect("write");
            }
        });
        let sent = pattern(1000, 5);
        for _ in 0..500 {
            near.write_all(&sent).expect("write");
            let mut got = [0; 1000];
            near.read_exact(&mut got).expect("read");
            assert!(got[..] == sent[..]);
        }
        let took = start.elapsed();
        drop(near);
        copy.join().expect("copy");
        assert!(took < 5 * SECOND, "500 round trips took {took:?} beside a stalled reader");
        drop(stuck);
    });
}

#[test]
fn reading_and_writing_at_once_through_clones() {
    within(60 * SECOND, || {
        let Pair { near, far, .. } = pair();
        let sent = Arc::new(pattern(8 << 20, 9));
        let mut threads = Vec::new();
        for end in [near, far] {
            let (mut reader, data) = (end.try_clone().expect("clone"), sent.clone());
            threads.push(std::thread::spawn(move || {
                let mut writer = &end;
                writer.write_all(&data).expect("write");
                end.shutdown(Shutdown::Write).expect("shutdown");
            }));
            let data = sent.clone();
            threads.push(std::thread::spawn(move || {
                let mut got = Vec::new();
                reader.read_to_end(&mut got).expect("read");
                assert!(got == *data);
            }));
        }
        threads.into_iter().for_each(|thread| thread.join().expect("thread"));
    });
}

#[test]
fn timeouts_and_shutdown_wake_a_waiting_reader() {
    within(30 * SECOND, || {
        let Pair { mut near, far: _far, .. } = pair();
        assert_eq!(
            near.set_read_timeout(Some(Duration::ZERO)).expect_err("zero").kind(),
            ErrorKind::InvalidInput
        );
        near.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
        let start = Instant::now();
        assert_eq!(near.read(&mut [0; 1]).expect_err("nothing comes").kind(), ErrorKind::TimedOut);
        assert!(start.elapsed() >= Duration::from_millis(50));
        near.set_read_timeout(None).expect("timeout");
        let mut waiting = near.try_clone().expect("clone");
        let reader = std::thread::spawn(move || waiting.read(&mut [0; 1]).expect("end"));
        std::thread::sleep(Duration::from_millis(50));
        near.shutdown(Shutdown::Read).expect("shutdown");
        assert_eq!(reader.join().expect("reader"), 0);
    });
}

#[test]
fn a_reset_is_an_error_at_the_other_end() {
    within(30 * SECOND, || {
        let Pair { near, mut far, .. } = pair();
        near.reset();
        assert_eq!(far.read(&mut [0; 1]).expect_err("reset").kind(), ErrorKind::ConnectionReset);
        assert_eq!(far.write(&[1]).expect_err("reset").kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn closing_a_node_ends_its_streams_in_order_and_frees_its_port() {
    within(30 * SECOND, || {
        let Pair { client, mut near, mut far, .. } = pair();
        near.write_all(b"last words").expect("write");
        let local = client.local_addr();
        let start = Instant::now();
        client.close();
        client.close();
        assert!(start.elapsed() < 3 * SECOND, "{:?}", start.elapsed());
        let mut got = Vec::new();
        let end = far.read_to_end(&mut got);
        assert_eq!(got, b"last words", "{end:?}");
        assert_eq!(near.write(b"x").expect_err("closed").kind(), ErrorKind::NotConnected);
        assert_eq!(near.read(&mut [0; 1]).map_err(|error| error.kind()), Err(ErrorKind::NotConnected));
        assert!(client.listen(9).is_err());
        // The stream still exists, but nothing of the closed node holds the port.
        Node::builder().bind(local).start().expect("the port is free again");
    });
}

#[test]
fn waiting_calls_return_when_the_node_closes() {
    within(30 * SECOND, || {
        let node = node();
        let listener = node.listen(7).expect("listen");
        let socket = node.bind_datagram(7).expect("bind");
        let events = node.events();
        let results = Arc::new(Mutex::new(Vec::new()));
        let waiting = [
            std::thread::spawn({
                let results = results.clone();
                move || results.lock().expect("lock").push(listener.accept().expect_err("closed").kind())
            }),
            std::thread::spawn({
                let results = results.clone();
                move || {
                    let error = socket.recv().expect_err("closed");
                    results.lock().expect("lock").push(error.kind());
                }
            }),
            std::thread::spawn(move || assert!(events.last().is_some())),
        ];
        std::thread::sleep(Duration::from_millis(50));
        node.close();
        for thread in waiting {
            thread.join().expect("returned");
        }
    });
}

#[test]
fn a_node_reaches_itself_by_any_name() {
    within(60 * SECOND, || {
        let node = node();
        let listener = node.listen(7).expect("listen");
        // Its own address, and with an endpoint that leads nowhere: nobody is asked.
        let nowhere = Peer::At(node.address(), "192.0.2.1:9".parse().expect("address"));
        for peer in [Peer::Address(node.address()), nowhere, at(&node)] {
            let mut near = node.connect(peer, 7).expect("ourselves");
            let mut far = listener.accept_timeout(10 * SECOND).expect("accept").expect("a stream");
            assert_eq!((far.peer().address, near.peer().address), (node.address(), node.address()));
            let sent = pattern(1 << 20, 3);
            let copy = sent.clone();
            let writing = std::thread::spawn(move || {
                near.write_all(&copy).expect("room");
                near.shutdown(Shutdown::Write).expect("open");
                let mut answer = String::new();
                near.read_to_string(&mut answer).expect("answer");
                answer
            });
            let mut got = Vec::new();
            far.read_to_end(&mut got).expect("all of it");
            assert!(got == sent);
            far.write_all(b"thank you").expect("still open");
            drop(far);
            assert_eq!(writing.join().expect("writer"), "thank you");
        }
        assert!(node.peers().is_empty(), "we are no peer");
        assert!(node.ping(node.address(), 10 * SECOND).is_ok());
    });
}
