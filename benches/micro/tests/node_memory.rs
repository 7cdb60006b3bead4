//! What idle connections and tunnels cost a real node, everything included: handles, slots, tables, the cryptography's C
//! heap. Resident memory of the process.

use std::net::SocketAddr;

use pilotage::{Node, Peer, ProtoConfig, Stream};

/// Most bytes of an idle connection, at each end.
const CONNECTION: usize = 4 << 10;
const COUNT: usize = 10_000;

/// Bytes of this process that lie in memory; `None` where the system does not tell.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kib| kib << 10)
}

fn node() -> Node {
    let bind: SocketAddr = "127.0.0.1:0".parse().expect("address");
    let config = ProtoConfig {
        max_connections_per_peer: 2 * COUNT,
        max_datagram_size: 1_452,
        ..ProtoConfig::default()
    };
    Node::builder().bind(bind).config(config).start().expect("node")
}

fn converse(ours: &mut Stream, theirs: &mut Stream) {
    use std::io::{Read, Write};
    let mut buf = [0; 64];
    ours.write_all(&[1; 64]).expect("request");
    theirs.read_exact(&mut buf).expect("request");
    theirs.write_all(&buf).expect("reply");
    ours.read_exact(&mut buf).expect("reply");
}

#[test]
fn ten_thousand_connections_of_two_nodes_with_their_handles() {
    let Some(_) = resident() else {
        eprintln!("SKIPPED: this system does not tell how much memory a process has");
        return;
    };
    let (server, client) = (node(), node());
    let listener = server.listen(7).expect("port");
    let peer = Peer::At(server.address(), server.local_addr());
    let mut held = Vec::with_capacity(COUNT + 100);
    let mut before = 0;
    for number in 0..COUNT + 100 {
        if number == 100 {
            // Slabs and pages that the first connections touched are not theirs.
            before = resident().unwrap_or_default();
        }
        let mut ours = client.connect(&peer, 7).expect("connection");
        let mut theirs = listener.accept().expect("connection");
        converse(&mut ours, &mut theirs);
        held.push((ours, theirs));
    }
    let each = resident().unwrap_or_default().saturating_sub(before) / COUNT / 2;
    println!(
        "connection with its handle: {each} bytes resident each of {COUNT}, mean of both ends (bound {CONNECTION})"
    );
    assert_eq!(server.stats().connections, COUNT + 100);
    assert!(each <= CONNECTION, "{each} bytes each");
    // Ten thousand farewells one after the other would take longer than everything before.
    client.close();
    server.close();
    drop(held);
}
