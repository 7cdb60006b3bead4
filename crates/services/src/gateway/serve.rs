//! A port of ours that leads to a TCP target.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pilotage::SocketAddress;

use super::sessions::{Place, Running, Sessions};
use super::{Acceptor, Allow, Limits, Observer};
use crate::Duplex;

/// How often the accepting thread looks whether it should stop.
const STOP_POLL: Duration = Duration::from_millis(200);

/// Joins every stream of an allowed peer with a TCP connection of its own to `target` (`HOST:PORT`, looked up anew for
/// each). Streams of others are reset, and those for which the target cannot be reached.
///
/// # Errors
/// There is no thread.
pub fn serve(
    acceptor: Arc<dyn Acceptor>,
    target: String,
    allow: Allow,
    limits: Limits,
    observer: Observer,
) -> io::Result<Running> {
    let sessions = Sessions::new(limits, observer);
    let running = Running { sessions: sessions.clone(), local: Vec::new() };
    thread::Builder::new().name("gateway-serve".into()).spawn(move || {
        while !sessions.is_stopped() {
            match acceptor.accept(STOP_POLL) {
                Ok(Some((stream, peer))) => take(&sessions, stream, peer, &target, &allow),
                Ok(None) => {}
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => {
                    // The node was closed, or will not come back.
                    tracing::debug!(%error, "the gateway accepts no more");
                    return;
                }
            }
        }
    })?;
    Ok(running)
}

fn take(sessions: &Arc<Sessions>, stream: Arc<dyn Duplex>, peer: SocketAddress, target: &str, allow: &Allow) {
    let from = peer.to_string();
    if !allow.includes(peer.address.node) {
        // Told before the peer can know of it.
        sessions.refuse(&from, target, "the peer is not on the allow list");
        return stream.abort();
    }
    let Some(place) = sessions.enter() else {
        sessions.refuse(&from, target, format!("{} connections are open", sessions.limits.connections));
        return stream.abort();
    };
    let (to, patience) = (target.to_owned(), sessions.limits.patience);
    let spawned = thread::Builder::new().name("gateway".into()).spawn(move || {
        join(&place, &from, &stream, &to, patience);
    });
    if let Err(error) = spawned {
        sessions.refuse(&peer.to_string(), target, error);
    }
}

fn join(place: &Place, from: &str, stream: &Arc<dyn Duplex>, to: &str, patience: Duration) {
    place.track(stream);
    match connect(to, patience) {
        Ok(tcp) => {
            let tcp: Arc<dyn Duplex> = Arc::new(tcp);
            place.join((from, stream), (to, &tcp));
        }
        Err(error) => {
            place.sessions().refuse(from, to, error);
            stream.abort();
        }
    }
}

/// Tries each address of the name, all within `patience`.
fn connect(target: &str, patience: Duration) -> io::Result<TcpStream> {
    let deadline = Instant::now() + patience;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let addresses: Vec<SocketAddr> = target.to_socket_addrs()?.collect();
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
