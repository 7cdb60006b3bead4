//! Nodes that a task of a tokio runtime drives instead of their own thread.
#![cfg(unix)]

mod common;

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use common::{SECOND, at, builder, node, pattern};
use pilotage::{Listener, Node, PeerConfig, PeerPolicy, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("runtime")
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(60 * SECOND, future).await.expect("in time")
}

/// Until the driver's thread has left the node to the task.
async fn taken_over(node: &Node) {
    loop {
        let before = node.stats().poll_calls;
        tokio::time::sleep(Duration::from_millis(60)).await;
        if node.stats().poll_calls == before {
            return;
        }
    }
}

async fn echo(listener: Listener) {
    while let Ok(mut stream) = listener.accept_async().await {
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(&mut stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        });
    }
}

/// Closing waits for the peer, which a task of this thread drives.
async fn close(node: Node) {
    tokio::task::spawn_blocking(move || node.close()).await.expect("closed");
}

async fn exchange(stream: &mut Stream, words: &[u8]) {
    stream.write_all(words).await.expect("write");
    let mut answer = vec![0; words.len()];
    stream.read_exact(&mut answer).await.expect("read");
    assert_eq!(answer, words);
}

#[test]
fn the_task_does_all_the_waiting_and_answers_share_datagrams() {
    const STREAMS: usize = 32;
    const ROUNDS: usize = 50;
    runtime().block_on(in_time(async {
        let server = node();
        // As a record would tell it: so all are streams of S1 from the first on, which share packets.
        let known = PeerConfig {
            address: server.address(),
            key: Some(server.public_key()),
            endpoint: Some(server.local_addr()),
            policy: PeerPolicy::default(),
            prekey: server.prekey(),
        };
        let client = builder().peer_config(known).start().expect("node starts");
        tokio::spawn(client.drive());
        tokio::spawn(server.drive());
        tokio::spawn(echo(server.listen(7).expect("listen")));
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            let mut stream = client.open_async(server.address(), 7).await.expect("open");
            exchange(&mut stream, b"first").await;
            streams.push(stream);
        }
        taken_over(&client).await;
        taken_over(&server).await;
        let before = [client.stats(), server.stats()];
        let rounds = |mut stream: Stream| async move {
            for round in 0..ROUNDS {
                exchange(&mut stream, &[round as u8; 64]).await;
            }
            stream
        };
        let tasks: Vec<_> = streams.into_iter().map(|stream| tokio::spawn(rounds(stream))).collect();
        let mut kept = Vec::new();
        for task in tasks {
            kept.push(task.await.expect("exchanges"));
        }
        for (before, after) in before.iter().zip([client.stats(), server.stats()]) {
            assert_eq!(before.poll_calls, after.poll_calls, "the thread slept");
            let sent = after.endpoint.datagrams_sent - before.endpoint.datagrams_sent;
            assert!(
                sent < (STREAMS * ROUNDS / 4) as u64,
                "{sent} datagrams for {} messages",
                STREAMS * ROUNDS
            );
        }
        close(client).await;
    }));
}

#[test]
fn bulk_data_both_ways_at_once_arrives_whole() {
    runtime().block_on(in_time(async {
        let (client, server) = (node(), node());
        tokio::spawn(client.drive());
        tokio::spawn(server.drive());
        tokio::spawn(echo(server.listen(7).expect("listen")));
        let sent = pattern(16 << 20, 3);
        let stream = client.open_async(at(&server), 7).await.expect("open");
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut got = Vec::new();
        let write = async {
            writer.write_all(&sent).await.expect("write");
            writer.shutdown().await.expect("shutdown");
        };
        tokio::join!(write, async { reader.read_to_end(&mut got).await.expect("read") });
        assert!(got == sent);
    }));
}

#[test]
fn the_thread_takes_over_when_the_task_is_dropped_in_the_middle() {
    runtime().block_on(in_time(async {
        let (client, server) = (node(), node());
        let tasks = [tokio::spawn(client.drive()), tokio::spawn(server.drive())];
        tokio::spawn(echo(server.listen(7).expect("listen")));
        let mut stream = client.open_async(at(&server), 7).await.expect("open");
        for round in 0..200_u8 {
            exchange(&mut stream, &[round; 3000]).await;
            match round {
                80 => tasks[0].abort(),
                120 => tasks[1].abort(),
                _ => {}
            }
        }
        // And back to a task again.
        tokio::spawn(client.drive());
        taken_over(&client).await;
        exchange(&mut stream, b"driven again").await;
    }));
}

#[test]
fn a_node_outlives_the_runtime_that_drove_it() {
    let (client, server) = (node(), node());
    let listener = server.listen(7).expect("listen");
    let first = runtime();
    let mut near = first.block_on(in_time(async {
        tokio::spawn(client.drive());
        tokio::spawn(server.drive());
        let mut stream = client.open_async(at(&server), 7).await.expect("open");
        stream.write_all(b"one").await.expect("write");
        stream
    }));
    drop(first);
    let mut far = listener.accept().expect("accept");
    far.set_read_timeout(Some(20 * SECOND)).expect("timeout");
    let mut words = [0; 3];
    std::io::Read::read_exact(&mut far, &mut words).expect("read");
    std::io::Write::write_all(&mut near, b"two").expect("write");
    std::io::Read::read_exact(&mut far, &mut words).expect("read");
    assert_eq!(&words, b"two");
}

#[test]
fn only_one_task_drives() {
    runtime().block_on(in_time(async {
        let (client, server) = (node(), node());
        tokio::spawn(server.drive());
        taken_over(&server).await;
        let error = server.drive().await.expect_err("a second one");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        tokio::spawn(echo(server.listen(7).expect("listen")));
        exchange(&mut client.open_async(at(&server), 7).await.expect("open"), b"goes on").await;
        close(client).await;
    }));
}

#[test]
fn closing_on_the_thread_of_the_runtime_delivers_and_ends_the_task() {
    runtime().block_on(in_time(async {
        let (client, server) = (node(), node());
        let drive = tokio::spawn(client.drive());
        let listener = server.listen(7).expect("listen");
        let mut stream = client.open_async(at(&server), 7).await.expect("open");
        stream.write_all(&pattern(200_000, 5)).await.expect("write");
        taken_over(&client).await;
        let begun = Instant::now();
        // Blocks this thread, so that the task cannot run.
        client.close();
        assert!(begun.elapsed() < SECOND, "{:?}", begun.elapsed());
        drive.await.expect("no panic").expect("an orderly end");
        let mut got = Vec::new();
        listener.accept_async().await.expect("accept").read_to_end(&mut got).await.expect("read");
        assert!(got == pattern(200_000, 5));
        assert!(client.drive().await.is_ok(), "nothing to drive any more");
    }));
}

#[test]
fn threads_block_beside_a_task_that_drives() {
    let pool = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let (client, server) = (node(), node());
    pool.spawn(client.drive());
    pool.spawn(server.drive());
    pool.spawn(echo(server.listen(7).expect("listen")));
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (client, target) = (&client, at(&server));
            scope.spawn(move || {
                let mut stream = client.open(target, 7).expect("open");
                stream.set_read_timeout(Some(20 * SECOND)).expect("timeout");
                let words = pattern(5000, number);
                for _ in 0..100 {
                    std::io::Write::write_all(&mut stream, &words).expect("write");
                    let mut answer = vec![0; words.len()];
                    std::io::Read::read_exact(&mut stream, &mut answer).expect("read");
                    assert!(answer == words);
                }
            });
        }
    });
    assert_eq!(client.stats().led_waits, 0, "no thread received for a driven node");
}
