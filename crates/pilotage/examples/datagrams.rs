//! A burst of datagrams between two nodes in one process, and how many of them arrived.
use pilotage::{Node, NodeEvent, Peer};
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bind = "127.0.0.1:0".parse()?;
    let (alice, bob) = (Node::builder().bind(bind).start()?, Node::builder().bind(bind).start()?);
    let events = alice.events();
    let peer = Peer::At(bob.address(), bob.local_addr());
    let reply = alice.ping(&peer, Duration::from_secs(5))?;
    println!("ping {}: {:?}", reply.address, reply.rtt);
    for event in std::iter::from_fn(|| events.try_recv()) {
        if let NodeEvent::TunnelUp { peer, handshake } = event {
            println!("keys with node {peer} after {handshake:?}");
        }
    }

    let (sender, receiver) = (alice.bind_datagram(0)?, bob.bind_datagram(2000)?);
    let mut refused = 0;
    for number in 0..500_u32 {
        if sender.send_to(bob.address(), 2000, &number.to_be_bytes()).is_err() {
            refused += 1;
        }
    }
    let arrived = std::iter::from_fn(|| receiver.recv_timeout(Duration::from_millis(200))).count();
    println!("500 datagrams sent, {refused} refused by the bounded queue, {arrived} arrived");
    println!("dropped at the receiver's queue: {}", bob.stats().endpoint.drop_datagram_queue);
    Ok(())
}
