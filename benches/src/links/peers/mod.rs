//! The transports behind two small traits with blocking calls.
//!
//! The QUIC libraries run on a tokio thread of their own; a call from here wakes it. That costs tens of
//! microseconds, which no link of this comparison can notice.

mod kernel;
mod pilotage;
mod quinn;
mod s2n;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use super::options::{Family, Peer};
use crate::Failure;

/// UDP payload of the QUIC peers and ours.
const DATAGRAM: u16 = 1_452;
/// Socket buffers of the tuned QUIC peers.
const SOCKET_BUFFER: usize = 4 << 20;
/// Stream window of the tuned QUIC peers.
const STREAM_WINDOW: u32 = 32 << 20;
/// Connection and send window of the tuned QUIC peers.
const CONNECTION_WINDOW: u32 = 64 << 20;

/// A reliable stream in both directions.
pub(super) trait Duplex: Read + Write + Send {
    /// What the transport says about the stream.
    fn note(&self) -> String {
        String::new()
    }
}

/// The side that begins.
pub(super) trait Client: Send + Sync {
    /// A new stream; the first one also makes the connection or tunnel.
    fn open(&self) -> Result<Box<dyn Duplex>, Failure>;
}

/// The side that waits.
pub(super) trait Server: Send {
    /// The next stream, of any connection.
    fn accept(&mut self) -> Result<Box<dyn Duplex>, Failure>;
}

/// Where both sides are.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The server's address.
    pub(super) server: SocketAddr,
    /// The client's address; ephemeral ports are used by all but ours.
    pub(super) client: SocketAddr,
    /// Folder for the certificate.
    pub(super) scratch: PathBuf,
}

pub(super) fn server(peer: Peer, place: &Place) -> Result<Box<dyn Server>, Failure> {
    match peer.family {
        Family::Pilotage | Family::PilotageS1 => pilotage::server(peer, place),
        Family::Tcp => kernel::tcp_server(peer, place),
        Family::Tls => kernel::tls_server(peer, place),
        Family::Quinn => quinn::server(peer, place),
        Family::S2n => s2n::server(peer, place),
    }
}

pub(super) fn client(peer: Peer, place: &Place) -> Result<Box<dyn Client>, Failure> {
    match peer.family {
        Family::Pilotage | Family::PilotageS1 => pilotage::client(peer, place),
        Family::Tcp => Ok(kernel::tcp_client(peer, place)),
        Family::Tls => kernel::tls_client(peer, place),
        Family::Quinn => quinn::client(peer, place),
        Family::S2n => s2n::client(peer, place),
    }
}

/// Everything that is set on a peer.
pub(super) fn settings(peer: Peer) -> String {
    let controller = peer.controller.name();
    let windows = if peer.tuned {
        format!(
            "stream window {} MiB, connection and send window {} MiB, socket buffers {} MiB asked for",
            STREAM_WINDOW >> 20,
            CONNECTION_WINDOW >> 20,
            SOCKET_BUFFER >> 20
        )
    } else {
        "default windows and buffers".to_owned()
    };
    match peer.family {
        Family::Pilotage => format!(
            "{controller}, default configuration except max_datagram_size {DATAGRAM}, the draft's tunnel (AES-256-GCM)"
        ),
        Family::PilotageS1 => format!(
            "{controller}, default configuration except max_datagram_size {DATAGRAM}, S1 (AES-256-GCM, X25519, Noise IK), prekey known beforehand"
        ),
        Family::Tcp => format!("kernel TCP, {controller}, kernel-tuned buffers, TCP_NODELAY, no encryption"),
        Family::Tls => {
            format!(
                "rustls + aws-lc-rs, TLS 1.3 AES-256-GCM X25519, {controller}, kernel-tuned buffers, TCP_NODELAY"
            )
        }
        Family::Quinn => {
            format!("quinn 0.11, AES-256-GCM X25519, {controller}, {windows}, datagrams up to {DATAGRAM}")
        }
        Family::S2n => format!("s2n-quic 1.91, AES-256-GCM X25519, {controller}, {windows}, MTU 1500"),
    }
}

/// The runtime of a QUIC library.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

/// The certificates come from where the loopback comparison has them.
mod tls {
    use std::path::Path;

    use crate::{Failure, certificate};

    /// s2n-quic insists on a name for what is spoken.
    const PROTOCOL: &[u8] = b"links";

    pub(super) fn server(scratch: &Path, quic: bool) -> Result<rustls::ServerConfig, Failure> {
        let mut config = certificate::server_config(scratch, quic)?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(config)
    }

    pub(super) fn client(scratch: &Path, quic: bool) -> Result<rustls::ClientConfig, Failure> {
        let mut config = certificate::client_config(scratch, quic)?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(config)
    }
}
