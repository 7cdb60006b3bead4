//! Configuration of an endpoint and of single peers.

use std::net::SocketAddr;
use std::time::Duration;

use pilotage_wire::Address;

use crate::congestion::ControllerKind;
use crate::s1::PeerPrekey;
use crate::secure::Mode;

/// Settings of an [`Endpoint`](crate::Endpoint). Every limit is a hard bound.
#[derive(Debug, Clone)]
pub struct Config {
    /// Largest UDP payload that we ever send, in bytes (1,200 to 65,507).
    pub max_datagram_size: usize,
    /// UDP payload used before path-MTU discovery has found more, in bytes (RFC 8899 BASE_PLPMTU).
    pub initial_datagram_size: usize,
    /// Whether to probe for larger datagrams (RFC 8899).
    pub mtu_discovery: bool,
    /// Congestion controller of new paths.
    pub congestion: ControllerKind,
    /// Bound of one connection's send buffer, in bytes.
    pub send_buffer: usize,
    /// Bound of one connection's receive buffer and so of its advertised window, in bytes.
    pub recv_buffer: usize,
    /// Bound of the receive buffers' memory of all connections together. Beyond it no window is widened, no buffer
    /// grows beyond 128 KiB, and connections with more than 64 KiB unread take no further data until some is read.
    pub receive_memory: usize,
    /// Bound of connections with one peer.
    pub max_connections_per_peer: usize,
    /// Bound of connections in all.
    pub max_connections: usize,
    /// Bound of connections that wait to be accepted, per listener.
    pub accept_queue: usize,
    /// Bound of peers with a tunnel.
    pub max_peers: usize,
    /// Bound of received datagrams that wait to be read, per port.
    pub datagram_queue: usize,
    /// Silence after which an open connection sends a keepalive (draft: 30 s).
    pub keepalive: Duration,
    /// Silence after which an open connection is given up (draft: 120 s).
    pub idle_timeout: Duration,
    /// How long a connection attempt may take.
    pub connect_timeout: Duration,
    /// How long unacknowledged data is retransmitted before the connection is given up.
    pub user_timeout: Duration,
    /// Longest wait for a second segment before an acknowledgement is sent (draft: 40 ms); between Pilotage peers never
    /// longer than 10 ms.
    pub delayed_ack: Duration,
    /// How long a closed connection stays known to answer late segments (draft: 10 s).
    pub time_wait: Duration,
    /// First sequence number of new connections; `None` draws it at random (RFC 6528). Given only in tests, to begin
    /// close to the wrap: up to 4,095 below it.
    pub initial_sequence_number: Option<u32>,
    /// A tunnel is re-keyed after this many sealed frames (rule C8).
    pub rekey_after_frames: u64,
    /// A tunnel is re-keyed after this long (rule C8).
    pub rekey_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_datagram_size: 65_507,
            initial_datagram_size: 1_200,
            mtu_discovery: true,
            congestion: ControllerKind::Bbr,
            send_buffer: 4 << 20,
            recv_buffer: 16 << 20,
            receive_memory: 1 << 30,
            max_connections_per_peer: 1_024,
            max_connections: 65_536,
            accept_queue: 64,
            max_peers: 16_384,
            datagram_queue: 1_024,
            keepalive: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(120),
            connect_timeout: Duration::from_secs(15),
            user_timeout: Duration::from_secs(30),
            delayed_ack: Duration::from_millis(40),
            time_wait: Duration::from_secs(10),
            initial_sequence_number: None,
            rekey_after_frames: 1 << 22,
            rekey_after: Duration::from_secs(3600),
        }
    }
}

/// Longest time a peer may sit on a single segment before it acknowledges (draft: 40 ms delayed ACK).
pub(crate) const MAX_ACK_DELAY: Duration = Duration::from_millis(40);

/// The same of a Pilotage peer, whatever its configuration says: half of what it takes to notice, and enough for an
/// answer to ride on.
pub(crate) const OWN_ACK_DELAY: Duration = Duration::from_millis(10);

/// What the operator allows for one peer (rule C6). The default allows nothing but PILA and PILS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerPolicy {
    /// Accept and send unencrypted PILT frames.
    pub allow_plaintext: bool,
    /// Accept the anonymous PILK key exchange.
    pub allow_unauthenticated: bool,
    /// The least mode: of the peer's record, of what was spoken with it before, or as the operator demands
    /// (spec/secure.md §12).
    pub least: Mode,
}

/// What the caller knows about a peer.
#[derive(Debug, Clone)]
pub struct PeerConfig {
    /// The peer's address; the node part identifies the tunnel.
    pub address: Address,
    /// The peer's Ed25519 public key; `None` where only an unauthenticated exchange is possible.
    pub key: Option<[u8; 32]>,
    /// Where to send datagrams to; `None` where only the relay can reach it.
    pub endpoint: Option<SocketAddr>,
    /// What the operator allows.
    pub policy: PeerPolicy,
    /// Its prekey for S1, from its record or from an earlier session.
    pub prekey: Option<PeerPrekey>,
}
