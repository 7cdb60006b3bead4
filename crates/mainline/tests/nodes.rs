//! Nodes that find each other by the Mainline DHT when no registry answers: sockets on 127.0.0.1.

use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mainline::Testnet;
use pilotage::records::{Records, RecordsConfig};
use pilotage::{Node, Peer, Source};
use pilotage_mainline::{Mainline, MainlineConfig};

const LONG: Duration = Duration::from_secs(60);

/// Nobody listens there.
const NO_REGISTRY: &str = "127.0.0.1:1";

fn node(state: &Path) -> Node {
    let builder = Node::builder().bind("127.0.0.1:0".parse().unwrap()).state_dir(state);
    builder.start().unwrap()
}

fn records(node: &Node, state: &Path, net: &Testnet, private: bool) -> Records {
    let mut config = RecordsConfig::new(NO_REGISTRY, state);
    config.private = private;
    let mainline = MainlineConfig {
        bootstrap: net.bootstrap.clone(),
        bind: Some(Ipv4Addr::LOCALHOST),
        gap: Duration::from_millis(10),
        answer: Duration::from_millis(600),
        ..MainlineConfig::default()
    };
    config.directory = Some(Arc::new(Mainline::start(mainline).unwrap()));
    Records::start(node, config).unwrap()
}

fn published(records: &Records) -> u64 {
    records.status().directory.expect("a directory").status.published
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(begin.elapsed() < LONG, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Two state directories whose nodes have met, and nothing else.
fn met() -> (tempfile::TempDir, tempfile::TempDir) {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, other) = (node(a.path()), node(b.path()));
    let listener = one.listen(7).unwrap();
    let _stream = other.connect(Peer::At(one.address(), one.local_addr()), 7).unwrap();
    drop(listener.accept_timeout(LONG).unwrap().unwrap());
    until("pinned", || {
        std::fs::read_to_string(b.path().join("peers.json")).is_ok_and(|pins| pins.len() > 40)
    });
    other.close();
    one.close();
    (a, b)
}

#[test]
fn a_peer_that_moved_is_found_without_any_registry() {
    let net = Testnet::builder(5).build().unwrap();
    let (a, b) = met();
    // It comes back at another port, and nobody is told but the DHT.
    let one = node(a.path());
    let of_one = records(&one, a.path(), &net, false);
    let listener = one.listen(7).unwrap();
    until("published", || published(&of_one) == 1);
    let other = node(b.path());
    let of_other = records(&other, b.path(), &net, true);
    let found = other.resolve(&Peer::Address(one.address())).unwrap();
    assert_eq!((found.source, found.endpoint), (Source::Directory("mainline"), Some(one.local_addr())));
    assert_eq!(found.source.as_str(), "mainline");
    assert_eq!(found.key, Some(one.public_key()));
    let mut stream = other.connect(Peer::Address(one.address()), 7).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut far = listener.accept_timeout(LONG).unwrap().expect("a stream");
    let mut text = [0; 5];
    far.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello");
    let used = of_other.status().directory.unwrap();
    assert_eq!((used.name, used.tally.taken, used.tally.refused()), ("mainline", 1, 0));
    // Who is private has told nobody.
    assert_eq!((used.status.published, used.status.asked), (0, 1));
    assert!(of_one.status().last_error.is_some(), "that no registry answers is still said");
    other.close();
    one.close();
}

#[test]
fn whose_key_is_not_known_is_not_found_and_nobody_is_asked() {
    let net = Testnet::builder(3).build().unwrap();
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, other) = (node(a.path()), node(b.path()));
    let of_one = records(&one, a.path(), &net, false);
    let of_other = records(&other, b.path(), &net, false);
    until("published", || published(&of_one) == 1);
    other.resolve(&Peer::Address(one.address())).unwrap_err();
    other.resolve(&Peer::Name("one".into())).unwrap_err();
    assert_eq!(of_other.status().directory.unwrap().status.asked, 0);
    other.close();
    one.close();
}
