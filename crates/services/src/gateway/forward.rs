//! A local TCP port that leads to one port of one peer.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use pilotage::Peer;

use super::sessions::{Running, Sessions, accept_tcp};
use super::{Dialer, Limits, Observer};
use crate::Duplex;

/// Listens on `local`; every TCP connection is joined with a stream of its own to `port` of `peer`.
///
/// The peer is looked for anew for each connection. Where it cannot be reached the TCP connection is closed.
///
/// # Errors
/// The address cannot be listened on, or there is no thread.
pub fn forward(
    dialer: Arc<dyn Dialer>,
    local: SocketAddr,
    peer: Peer,
    port: u16,
    limits: Limits,
    observer: Observer,
) -> io::Result<Running> {
    let listener = TcpListener::bind(local)?;
    let sessions = Sessions::new(limits, observer);
    let local = listen(listener, &sessions, dialer, peer, port)?;
    Ok(Running { sessions, local: vec![local] })
}

/// One listener of possibly several that share their bounds.
pub(super) fn listen(
    listener: TcpListener,
    sessions: &Arc<Sessions>,
    dialer: Arc<dyn Dialer>,
    peer: Peer,
    port: u16,
) -> io::Result<SocketAddr> {
    let target = format!("{peer} port {port}");
    let to = target.clone();
    accept_tcp(listener, sessions, &target, move |place, stream, from| {
        let from = from.to_string();
        let stream: Arc<dyn Duplex> = Arc::new(stream);
        place.track(&stream);
        match dialer.dial(&peer, port) {
            Ok(far) => place.join((&from, &stream), (&to, &far)),
            Err(error) => {
                // A reset says more than an orderly end without a byte, where the stream can say it.
                stream.abort();
                place.sessions().refuse(&from, &to, error);
            }
        }
    })
}
