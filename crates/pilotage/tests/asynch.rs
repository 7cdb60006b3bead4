//! The async face, on a single-threaded tokio runtime and without any.

mod common;

use std::time::Duration;

use common::{SECOND, at, node, pattern};
use pilotage::{ConnectError, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn run(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    let limited = async { tokio::time::timeout(60 * SECOND, future).await.expect("in time") };
    runtime.block_on(limited);
}

#[test]
fn connect_accept_echo_and_end_on_one_thread() {
    run(async {
        let (client, server) = (node(), node());
        let listener = server.listen(7).expect("listen");
        let sent = pattern(4 << 20, 1);
        let serve = async {
            let mut stream = listener.accept_async().await.expect("accept");
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.expect("read");
            stream.write_all(&all).await.expect("write");
            AsyncWriteExt::shutdown(&mut stream).await.expect("shutdown");
        };
        let call = async {
            let stream = client.connect_async(at(&server), 7).await.expect("connect");
            let (mut reader, mut writer) = tokio::io::split(stream);
            let write = async {
                writer.write_all(&sent).await.expect("write");
                writer.shutdown().await.expect("shutdown");
            };
            let mut got = Vec::new();
            let read = async { reader.read_to_end(&mut got).await.expect("read") };
            tokio::join!(write, read);
            assert!(got == sent);
        };
        tokio::join!(serve, call);
    });
}

#[test]
fn futures_traits_do_the_same() {
    use futures_io::{AsyncRead, AsyncWrite};
    use std::pin::Pin;

    async fn write_all(mut stream: &Stream, mut data: &[u8]) {
        while !data.is_empty() {
            let len =
                std::future::poll_fn(|cx| AsyncWrite::poll_write(Pin::new(&mut stream), cx, data)).await;
            data = &data[len.expect("write")..];
        }
        std::future::poll_fn(|cx| AsyncWrite::poll_close(Pin::new(&mut stream), cx)).await.expect("close");
    }
    async fn read_all(mut stream: &Stream) -> Vec<u8> {
        let (mut all, mut buffer) = (Vec::new(), [0; 5000]);
        loop {
            let read =
                std::future::poll_fn(|cx| AsyncRead::poll_read(Pin::new(&mut stream), cx, &mut buffer));
            match read.await.expect("read") {
                0 => return all,
                len => all.extend_from_slice(&buffer[..len]),
            }
        }
    }
    run(async {
        let (client, server) = (node(), node());
        let listener = server.listen(7).expect("listen");
        let sent = pattern(300_000, 2);
        let connect = client.connect_async(at(&server), 7);
        let (near, far) = tokio::join!(connect, listener.accept_async());
        let (near, far) = (near.expect("connect"), far.expect("accept"));
        let ((), got) = tokio::join!(write_all(&near, &sent), read_all(&far));
        assert!(got == sent);
    });
}

#[test]
fn many_tasks_on_one_thread() {
    run(async {
        let (client, server) = (node(), node());
        let listener = server.listen(7).expect("listen");
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                tokio::task::spawn_local(async move {
                    while let Ok(mut stream) = listener.accept_async().await {
                        tokio::task::spawn_local(async move {
                            let mut all = Vec::new();
                            stream.read_to_end(&mut all).await.expect("read");
                            stream.write_all(&all).await.expect("write");
                        });
                    }
                });
                let tasks: Vec<_> = (0..60_u64)
                    .map(|n| {
                        let (client, peer) = (client.clone(), at(&server));
                        tokio::task::spawn_local(async move {
                            let mut stream = client.connect_async(peer, 7).await.expect("connect");
                            let sent = pattern(20_000, n);
                            stream.write_all(&sent).await.expect("write");
                            AsyncWriteExt::shutdown(&mut stream).await.expect("shutdown");
                            let mut got = Vec::new();
                            stream.read_to_end(&mut got).await.expect("read");
                            assert!(got == sent);
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await.expect("task");
                }
            })
            .await;
    });
}

#[test]
fn failures_and_datagrams_are_futures_too() {
    run(async {
        let (client, server) = (node(), node());
        let failure = client.connect_async(at(&server), 9).await.expect_err("refused");
        assert_eq!(failure.core_error(), Some(ConnectError::Refused));
        let (sender, receiver) =
            (client.bind_datagram(0).expect("bind"), server.bind_datagram(3).expect("bind"));
        sender.send_to(server.address(), 3, b"hi").expect("send");
        assert_eq!(receiver.recv_async().await.expect("receive").data, b"hi");
        let nothing = tokio::time::timeout(Duration::from_millis(30), receiver.recv_async()).await;
        assert!(nothing.is_err(), "still waiting");
    });
}

#[test]
fn a_dropped_attempt_leaves_nothing_behind() {
    run(async {
        let (client, server) = (node(), node());
        let dead = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let peer = pilotage::Peer::At(server.address(), dead.local_addr().expect("address"));
        let attempt = client.connect_async(peer, 7);
        assert!(tokio::time::timeout(Duration::from_millis(30), attempt).await.is_err());
        assert_eq!(client.stats().connections, 0);
    });
}
