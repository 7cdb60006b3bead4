//! Watching paths: what is told at once, what later, and at the end.

use std::time::Duration;

use pilotage::{Node, PathKind, Peer};

fn pair() -> (Node, Node) {
    let bind = "127.0.0.1:0".parse().expect("address");
    let node = || Node::builder().bind(bind).start().expect("node");
    (node(), node())
}

#[test]
fn a_watcher_tells_the_path_its_reason_and_its_end() {
    let (server, client) = pair();
    let listener = server.listen(7).expect("listener");
    let stream = client.connect(Peer::At(server.address(), server.local_addr()), 7).expect("stream");
    let _other = listener.accept().expect("accept");
    let mut watcher = stream.watch_path();
    let first = watcher.changed(Duration::from_secs(5)).expect("a path");
    let path = first.path.expect("in use");
    assert_eq!((path.kind, path.remote), (PathKind::Direct, server.local_addr()));
    assert!(first.reason.starts_with("direct-") && first.is_direct() && first.established, "{first:?}");
    assert_eq!(stream.path_status().map(|status| status.reason), Some(first.reason));
    assert!(first.age.is_some());
    let reply = client.ping(Peer::Address(server.address()), Duration::from_secs(5)).expect("pong");
    assert_eq!(reply.reason, Some(first.reason));
    let waiting = std::thread::spawn(move || {
        let mut told = 0;
        // Bounded: the end of the node ends it at once.
        while watcher.changed(Duration::from_secs(20)).is_some() {
            told += 1;
            assert!(told < 10, "the same again and again");
        }
        watcher
    });
    client.close();
    let mut watcher = waiting.join().expect("no panic");
    assert_eq!(watcher.changed(Duration::from_secs(20)), None, "at once");
}

#[tokio::test]
async fn a_watcher_is_a_future_too() {
    let (server, client) = pair();
    let mut watcher = client.watch_path(server.address().node);
    assert_eq!(client.path(server.address().node), None);
    let task = tokio::spawn(async move { watcher.changed_async().await });
    let peer = Peer::At(server.address(), server.local_addr());
    tokio::task::spawn_blocking(move || client.ping(peer, Duration::from_secs(5)))
        .await
        .expect("task")
        .expect("pong");
    let told = tokio::time::timeout(Duration::from_secs(10), task).await.expect("in time").expect("task");
    assert!(told.is_some_and(|status| status.path.is_some()), "{told:?}");
}
