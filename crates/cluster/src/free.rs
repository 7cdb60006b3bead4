//! An address for a node of a cluster in tests, which has to be known before the node runs. Used by the tests of the command as well.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

/// A loopback address that nobody has, neither by UDP nor by TCP. It is none of those that the system gives to sockets that do not ask for a
/// certain one (on Linux from 32,768 upwards): such a socket of another test could take it before the node does.
pub(crate) fn free() -> SocketAddr {
    static DRAWN: AtomicU32 = AtomicU32::new(0);
    loop {
        let draw = DRAWN.fetch_add(1, Ordering::Relaxed);
        // Tests that run beside this one are other processes, with ids not far from ours.
        let port = 12_000 + std::process::id().wrapping_mul(1_009).wrapping_add(draw) % 20_000;
        let at = SocketAddr::from(([127, 0, 0, 1], port as u16));
        if UdpSocket::bind(at).is_ok() && TcpListener::bind(at).is_ok() {
            return at;
        }
    }
}
