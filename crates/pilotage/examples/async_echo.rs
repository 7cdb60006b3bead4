//! Two nodes in one process, driven by tokio tasks on one thread: ten clients, one echo server.
use pilotage::{Node, Peer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bind = "127.0.0.1:0".parse()?;
    let (server, client) = (Node::builder().bind(bind).start()?, Node::builder().bind(bind).start()?);
    let peer = Peer::At(server.address(), server.local_addr());
    let listener = server.listen(7)?;
    tokio::spawn(async move {
        while let Ok(stream) = listener.accept_async().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(stream);
                let copied = tokio::io::copy(&mut reader, &mut writer).await;
                let ended = writer.shutdown().await;
                println!("server: {copied:?} bytes echoed, end {ended:?}");
            });
        }
    });
    for number in 1..=10 {
        let mut stream = client.connect_async(&peer, 7).await?;
        stream.write_all(format!("message {number}").as_bytes()).await?;
        AsyncWriteExt::shutdown(&mut stream).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        println!("client: {answer:?} after {:?}", stream.path().map(|path| path.rtt));
    }
    Ok(())
}
