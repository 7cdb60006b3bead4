//! Sends a line to the peer that `echo_server` printed, and prints what comes back.
use pilotage::{Node, Peer};
use std::io::{Read, Write};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let peer: Peer = std::env::args().nth(1).ok_or("usage: echo_client ADDRESS@IP:PORT")?.parse()?;
    let mut stream = Node::builder().start()?.connect(peer, 7)?;
    stream.write_all(b"hello over Pilotage")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    println!("{answer:?} from {}, path {:?}", stream.peer(), stream.path());
    Ok(())
}
