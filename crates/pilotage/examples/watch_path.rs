//! Watches how a peer is reached, and why: blocking in one thread, as a future in another.
use std::time::Duration;

use pilotage::{Node, PathStatus, Peer};

fn show(who: &str, status: &PathStatus) {
    let way = status.path.map(|path| format!("{:?} {}, rtt {:?}", path.kind, path.remote, path.rtt));
    println!("{who}: {} ({})", way.unwrap_or_else(|| "no path yet".into()), status.reason);
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bind = "127.0.0.1:0".parse()?;
    let (server, client) = (Node::builder().bind(bind).start()?, Node::builder().bind(bind).start()?);
    let listener = server.listen(7)?;
    let stream = client.connect(Peer::At(server.address(), server.local_addr()), 7)?;

    let mut watcher = stream.watch_path();
    let thread = std::thread::spawn(move || {
        // The first call tells how things stand; later ones wait for a change, here in vain.
        while let Some(status) = watcher.changed(Duration::from_millis(300)) {
            show("thread", &status);
        }
    });
    let mut watcher = listener.accept()?.watch_path();
    if let Some(status) = watcher.changed_async().await {
        show("future", &status);
    }
    thread.join().map_err(|_| "the thread panicked")?;
    Ok(())
}
