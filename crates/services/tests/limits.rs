//! The bound on streams per service, with real sockets.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pilotage::{Node, Peer, Stream};
use pilotage_services::file::{self, SendOptions};
use pilotage_services::server::{FileService, MAX_STREAMS, Services, serve};

fn node() -> Node {
    let any: SocketAddr = "127.0.0.1:0".parse().expect("address");
    Node::builder().bind(any).start().expect("node")
}

fn answers(stream: &mut Stream) -> bool {
    let mut reply = [0; 2];
    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
    stream.write_all(b"hi").is_ok() && stream.read_exact(&mut reply).is_ok() && reply == *b"hi"
}

#[test]
fn the_65th_stream_of_a_service_is_refused_and_the_others_go_on() {
    let (server, client) = (node(), node());
    let services = Services { echo: true, ..Services::default() };
    let serving = serve(&server, &services, std::sync::Arc::new(|_| {})).expect("served");
    let peer = Peer::At(server.address(), server.local_addr());
    let mut streams = Vec::new();
    for i in 0..MAX_STREAMS {
        let mut stream = client.connect(peer.clone(), 7).expect("connect");
        assert!(answers(&mut stream), "stream {i} is served");
        streams.push(stream);
    }
    let mut one_more = client.connect(peer.clone(), 7).expect("the connection itself is accepted");
    assert!(!answers(&mut one_more), "but not served");
    assert_eq!(serving.counters().refused.load(Ordering::Relaxed), 1);
    assert!(streams.iter_mut().all(answers), "the others still are");
    // A place that is given back can be used again.
    streams.truncate(1);
    let deadline = Instant::now() + Duration::from_secs(10);
    let again = loop {
        let mut stream = client.connect(peer.clone(), 7).expect("connect");
        if answers(&mut stream) || Instant::now() > deadline {
            break answers(&mut stream);
        }
    };
    assert!(again);
    serving.stop();
    client.close();
    server.close();
}

#[test]
fn a_peer_cannot_fill_the_inbox_beyond_its_limit() {
    let (server, client) = (node(), node());
    let inbox = tempfile::tempdir().expect("directory");
    let files = FileService { dir: inbox.path().into(), force: false, fsync: false, limit: Some(3_000_000) };
    let services = Services { files: Some(files), ..Services::default() };
    let serving = serve(&server, &services, std::sync::Arc::new(|_| {})).expect("served");
    let peer = Peer::At(server.address(), server.local_addr());
    let stored = |inbox: &std::path::Path| -> u64 {
        let entries = std::fs::read_dir(inbox).expect("inbox").flatten();
        entries.map(|e| e.metadata().map_or(0, |m| m.len())).sum()
    };
    let mut results = Vec::new();
    for i in 0..5 {
        let stream = client.connect(peer.clone(), file::PORT).expect("connect");
        let data = vec![i; 1_000_000];
        let options = SendOptions { name: format!("file{i}"), size: None };
        results.push(file::send(&stream, std::io::Cursor::new(data), &options, &mut |_| {}).is_ok());
    }
    assert_eq!(results, [true, true, true, false, false]);
    assert_eq!(stored(inbox.path()), 3_000_000, "nothing of the refused ones is left");
    serving.stop();
    client.close();
    server.close();
}
