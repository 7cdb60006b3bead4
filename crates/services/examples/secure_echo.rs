//! An echo through a secure channel on port 443 between two nodes that prove who they are.
//!
//! `cargo run -p pilotage-services --example secure_echo`

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;

use pilotage::{Identity, Node, NodeId, Peer};
use pilotage_services::secure::{Channel, Known, PORT, Proof};
use pilotage_services::{Duplex, echo};

fn main() -> Result<(), Box<dyn Error>> {
    let any: SocketAddr = "127.0.0.1:0".parse()?;
    let (alice, bob) = (Identity::from_seed([1; 32]), Identity::from_seed([2; 32]));
    let server = Node::builder().bind(any).identity(bob.clone()).start()?;
    let client = Node::builder().bind(any).identity(alice.clone()).start()?;

    // Who is who: an application would ask the registry or its own list.
    let keys = [(client.address().node, alice.public_key()), (server.address().node, bob.public_key())];
    let known: Known =
        Arc::new(move |node: NodeId| keys.iter().find(|(id, _)| *id == node).map(|(_, key)| *key));

    let listener = server.listen(PORT)?;
    let proof = Proof::new(server.address().node, bob, known.clone());
    let serving = std::thread::spawn(move || -> Result<u64, String> {
        let stream = listener.accept().map_err(|error| error.to_string())?;
        let tunnel_says = stream.peer().address.node;
        let channel = Channel::server(stream, Some(&proof)).map_err(|error| error.to_string())?;
        if channel.peer() != Some(tunnel_says) {
            return Err("another node than the one at the other end of the tunnel".into());
        }
        echo::serve(&channel).map_err(|error| error.to_string())
    });

    let stream = client.connect(Peer::At(server.address(), server.local_addr()), PORT)?;
    let channel = Channel::client(stream, Some(&Proof::new(client.address().node, alice, known)))?;
    let time = echo::round_trip(&channel, b"hello through two layers")?;
    println!("{} answered in {time:?}", channel.peer().map(|node| node.to_string()).unwrap_or_default());
    channel.finish()?;
    let echoed = serving.join().map_err(|_| "the server panicked")??;
    println!("{echoed} bytes echoed");
    client.close();
    server.close();
    Ok(())
}
