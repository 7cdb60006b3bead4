//! Sends back whatever comes on port 7. Prints the peer to give to `echo_client`.
use pilotage::Node;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let node = Node::builder().bind("127.0.0.1:0".parse()?).start()?;
    println!("{}@{}", node.address(), node.local_addr());
    for stream in node.listen(7)?.incoming() {
        std::thread::spawn(move || {
            let bytes = std::io::copy(&mut &stream, &mut &stream);
            println!("{}: {bytes:?} bytes echoed", stream.peer());
        });
    }
    Ok(())
}
