//! Two nodes without a hub find each other by multicast DNS on the loopback, on a port of their own.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use pilotage::{Node, Peer};

fn node(name: &str, port: u16) -> Node {
    let bind = "127.0.0.1:0".parse().expect("address");
    Node::builder().bind(bind).name(name).lan_port(port).start().expect("node")
}

#[test]
fn nodes_without_a_hub_find_each_other_by_name_and_by_address() {
    // Not that of other test runs on this machine.
    let port = 20_000 + (std::process::id() % 20_000) as u16;
    let (alice, bob) = (node("alice", port), node("bob", port));
    let listener = bob.listen(7).expect("listener");
    let deadline = Instant::now() + Duration::from_secs(10);
    while alice.lan_peers().is_empty() {
        if Instant::now() >= deadline {
            println!("SKIPPED: no multicast on the loopback of this machine");
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let found = &alice.lan_peers()[0];
    assert_eq!((found.address, found.name.as_deref()), (bob.address(), Some("bob")));
    assert_eq!(found.fingerprint, Some(bob.fingerprint()));
    assert_eq!(found.endpoints, [bob.local_addr()]);
    for peer in ["bob".parse::<Peer>().expect("name"), Peer::Address(bob.address())] {
        let mut stream = alice.connect(peer, 7).expect("stream");
        stream.write_all(b"hello").expect("write");
        let mut buffer = [0; 5];
        listener.accept().expect("accept").read_exact(&mut buffer).expect("read");
        assert_eq!(&buffer, b"hello");
    }
    let nobody = alice.connect("carol".parse::<Peer>().expect("name"), 7).expect_err("nobody");
    assert_eq!(nobody.stage, pilotage::Stage::Resolve);
    // Who leaves says so.
    bob.close();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !alice.lan_peers().is_empty() {
        assert!(Instant::now() < deadline, "the farewell was not heard");
        std::thread::sleep(Duration::from_millis(50));
    }
}
