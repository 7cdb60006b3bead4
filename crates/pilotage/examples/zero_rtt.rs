//! A question that may be asked twice, and its answer, in the first round trip with a peer: no handshake is waited for.
//!
//! The peer takes early questions only when its process is 20 s old, so this example waits that long.
use pilotage::{Mode, Node, PeerConfig, PeerPolicy, SecureMode};
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bind = "127.0.0.1:0".parse()?;
    let server = Node::builder().bind(bind).secure_mode(SecureMode::S1).start()?;
    let clock = server.bind_datagram(2000)?;
    std::thread::spawn(move || {
        while let Ok(question) = clock.recv() {
            let from = question.from;
            let _ = clock.send_to(from.address, from.port, b"half past ten");
        }
    });
    println!("the server grows old enough …");
    std::thread::sleep(Duration::from_secs(21));
    for (name, idempotent) in [("after the handshake", false), ("in the first packet", true)] {
        // What a record, an earlier session or the operator tells of the peer.
        let peer = PeerConfig {
            address: server.address(),
            key: Some(server.public_key()),
            endpoint: Some(server.local_addr()),
            policy: PeerPolicy { least: Mode::S1, ..PeerPolicy::default() },
            prekey: server.prekey(),
        };
        let client = Node::builder().bind(bind).secure_mode(SecureMode::S1).peer_config(peer).start()?;
        let socket = client.bind_datagram(0)?;
        let asked = Instant::now();
        match idempotent {
            true => socket.send_idempotent(server.address(), 2000, b"what time is it?")?,
            false => socket.send_to(server.address(), 2000, b"what time is it?")?,
        }
        let answer = socket.recv_timeout(Duration::from_secs(5)).ok_or("no answer")?;
        let stats = client.stats().endpoint;
        println!(
            "{name}: {:?} after {:?}; {} sent early, {} taken",
            String::from_utf8_lossy(&answer.data),
            asked.elapsed(),
            stats.early_sent,
            stats.early_accepted
        );
    }
    Ok(())
}
