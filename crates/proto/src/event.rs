//! What an endpoint reports: events, errors and statistics.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_nat::agent::PathReason;
use pilotage_wire::{Address, NodeId, SocketAddress};

use crate::s1::{PeerPrekey, Suite};
use crate::secure::Mode;

/// Names one connection of an endpoint. Never reused for another connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl ConnectionId {
    /// A number for people: no two connections that exist at a time share it, later ones may.
    pub fn number(&self) -> u32 {
        self.index
    }
}

/// Something that happened. Events of one kind about one connection are merged until polled.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// An outgoing connection is established.
    Connected(ConnectionId),
    /// A connection waits in the accept queue of this local port: call [`Endpoint::accept`](crate::Endpoint::accept).
    Incoming {
        /// The listening port.
        port: u16,
    },
    /// New bytes, the end of the stream, or an error can be read.
    Readable(ConnectionId),
    /// The send buffer has room again, or writing failed for good.
    Writable(ConnectionId),
    /// Both directions are finished and acknowledged, or the connection failed; said once. Nothing more will come, but
    /// what came before can still be read, and [`Event::Readable`] may still say so.
    Closed(ConnectionId),
    /// A datagram waits on this local port: call [`Endpoint::recv_datagram`](crate::Endpoint::recv_datagram).
    Datagram {
        /// The bound port.
        port: u16,
    },
    /// A datagram to a port that nobody bound waits: call
    /// [`Endpoint::recv_any_datagram`](crate::Endpoint::recv_any_datagram).
    AnyDatagram,
    /// A control echo came back.
    Pong {
        /// Which peer answered.
        peer: Address,
        /// What [`Endpoint::ping`](crate::Endpoint::ping) returned.
        token: u64,
        /// Time between request and answer.
        rtt: Duration,
    },
    /// A node that we know nothing of wants a tunnel: answer with
    /// [`Endpoint::resolve_peer`](crate::Endpoint::resolve_peer). At most 64 wait at a time.
    LookupPeer {
        /// The node id it claims.
        node: NodeId,
        /// The Ed25519 key that it presented (not yet believed).
        presented_key: [u8; 32],
        /// Where its frame came from.
        from: SocketAddr,
    },
    /// A peer calls while the gate is closed: answer with [`Endpoint::admit`](crate::Endpoint::admit). At most 64 wait
    /// at a time.
    Knock {
        /// The peer.
        peer: NodeId,
    },
    /// Keys with this peer were agreed for the first time or anew.
    TunnelUp {
        /// The peer.
        peer: NodeId,
        /// Time from our first frame to the keys; zero if the peer began.
        handshake: Duration,
    },
    /// S1 is in use with this peer, and both sides have shown it. Whoever keeps pins keeps with them that this peer speaks
    /// S1, and its prekey, for [`PeerConfig::prekey`](crate::PeerConfig) and
    /// [`PeerPolicy::least`](crate::PeerPolicy) of the next process. Said once for each prekey.
    PeerSecured {
        /// The peer.
        peer: NodeId,
        /// Its identity, prekey and certificate.
        prekey: Box<PeerPrekey>,
    },
    /// No valid frame came from this peer for so long that its tunnel was given up.
    TunnelDown {
        /// The peer.
        peer: NodeId,
        /// Why.
        reason: ConnectError,
    },
    /// The path to this peer changed (roaming, relay to direct, …).
    PathChanged {
        /// The peer.
        peer: NodeId,
        /// The path in use now.
        path: PathInfo,
        /// Why it is this one.
        reason: PathReason,
    },
    /// Nobody answers where this peer should be. Whoever knows a newer address tells it with
    /// [`Endpoint::add_peer`](crate::Endpoint::add_peer); the attempt goes on meanwhile. At most once in 3 s and peer.
    AddressWanted {
        /// The peer.
        peer: NodeId,
    },
    /// Our NAT takes another port for each destination, and the peer is guessing which: whoever has the sockets sends
    /// from [`FAN_SOCKETS`](pilotage_nat::agent::FAN_SOCKETS) others to this address, and names the one that hears from
    /// there as a candidate of the peer ([`pilotage_nat::side`]). At most once in five minutes and peer.
    SocketsWanted {
        /// The peer.
        peer: NodeId,
        /// Where its NAT is.
        target: SocketAddr,
    },
}

/// How datagrams reach a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// Straight to the peer's UDP address.
    Direct,
    /// Through the beacon's relay.
    Relay,
}

/// The path in use and its measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathInfo {
    /// Direct or relayed.
    pub kind: PathKind,
    /// Where datagrams are sent: the peer, or the beacon.
    pub remote: SocketAddr,
    /// Smoothed round-trip time; zero before the first sample.
    pub rtt: Duration,
    /// Lowest round-trip time seen.
    pub min_rtt: Duration,
    /// Largest UDP payload known to pass, in bytes.
    pub datagram_size: usize,
    /// Congestion window, in bytes.
    pub congestion_window: u64,
    /// Bytes in flight.
    pub in_flight: u64,
}

/// Why a connection could not be made, or a tunnel was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The peer was never introduced with [`Endpoint::add_peer`](crate::Endpoint::add_peer).
    #[error("peer unknown: resolve its address first")]
    UnknownPeer,
    /// There is neither an address nor a relay to reach the peer by.
    #[error("no way to reach the peer: it has no known address and no beacon is configured")]
    NoPath,
    /// No authenticated key exchange in time.
    #[error("key exchange: no valid answer from the peer in time")]
    HandshakeTimeout,
    /// The tunnel is up but the port never answered.
    #[error("connect: the peer's port did not answer in time")]
    Timeout,
    /// Nothing listens on the port.
    #[error("connect: refused, nothing listens on that port")]
    Refused,
    /// The connection was reset before the peer's node had taken it: the peer ended the session, or has forgotten it.
    #[error("connect: reset by the peer before it had taken the connection")]
    Reset,
    /// The peer's key is not the one that we pinned.
    #[error("key exchange: the peer presented another key than the pinned one")]
    PinMismatch,
    /// A local limit (connections, peers, ports) is reached.
    #[error("connect: local limit reached")]
    LimitReached,
    /// The peer may only be spoken to in S1, and we do not speak it, or do not know the peer's key.
    #[error(
        "key exchange: this peer may only be spoken to in S1, which is off here, or its key is not known"
    )]
    ModeRefused,
    /// The endpoint is closing.
    #[error("connect: the node is closing")]
    Closing,
}

/// Why bytes cannot be read now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Nothing to read yet: wait for [`Event::Readable`].
    #[error("nothing to read yet")]
    Blocked,
    /// The peer reset the connection.
    #[error("connection reset by the peer")]
    Reset,
    /// The peer ended the stream before all announced bytes had come (reference peers do).
    #[error("the peer closed the stream before all bytes had arrived")]
    Truncated,
    /// No sign of life from the peer within the bound.
    #[error("connection timed out: no answer from the peer")]
    TimedOut,
    /// The connection could not be made.
    #[error(transparent)]
    Connect(ConnectError),
    /// The handle names no connection (any more).
    #[error("no such connection")]
    Unknown,
}

/// Why bytes cannot be written now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The send buffer is full: wait for [`Event::Writable`].
    #[error("send buffer full")]
    Blocked,
    /// The write half was shut down by us.
    #[error("write half is shut down")]
    Finished,
    /// The peer reset the connection or ended both directions.
    #[error("connection reset by the peer")]
    Reset,
    /// No sign of life from the peer within the bound.
    #[error("connection timed out: no answer from the peer")]
    TimedOut,
    /// The connection could not be made.
    #[error(transparent)]
    Connect(ConnectError),
    /// The handle names no connection (any more).
    #[error("no such connection")]
    Unknown,
}

/// Why a datagram was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendDatagramError {
    /// The peer is unknown or unreachable.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Larger than the path carries; `max` bytes would fit now.
    #[error("datagram too large: at most {max} bytes fit this path now")]
    TooLarge {
        /// Bytes that fit now.
        max: usize,
    },
    /// The bounded send queue is full: the datagram was dropped and counted.
    #[error("datagram queue full")]
    QueueFull,
    /// Empty datagrams are not delivered by draft peers (draft-01 facts §7).
    #[error("a datagram needs at least one byte")]
    Empty,
}

/// A received datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatagramIn {
    /// Who sent it, with its source port.
    pub from: SocketAddress,
    /// The payload.
    pub data: Vec<u8>,
}

/// Counters of one connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// Stream bytes written by the application and acknowledged by the peer.
    pub bytes_acked: u64,
    /// Stream bytes delivered in order.
    pub bytes_received: u64,
    /// Data segments sent, retransmissions included.
    pub segments_sent: u64,
    /// Data segments received, duplicates included.
    pub segments_received: u64,
    /// Data segments sent again.
    pub segments_retransmitted: u64,
    /// Retransmission timeouts.
    pub timeouts: u64,
    /// Tail loss probes sent.
    pub tail_loss_probes: u64,
    /// Duplicate segments received.
    pub duplicates_received: u64,
}

/// Where a connection stands, in the draft's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionState {
    /// We asked for it.
    SynSent,
    /// The peer asked for it and was answered.
    SynReceived,
    /// Open both ways, as far as is known.
    Established,
    /// We ended our direction, or want to.
    FinWait,
    /// The peer ended its direction.
    CloseWait,
    /// Over; somebody still holds it.
    Closed,
}

/// One connection as an operator sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Its name.
    pub id: ConnectionId,
    /// Our address and port.
    pub local: SocketAddress,
    /// The peer's address and port.
    pub remote: SocketAddress,
    /// Whether the peer opened it.
    pub incoming: bool,
    /// Where it stands.
    pub state: ConnectionState,
    /// Counters.
    pub stats: ConnectionStats,
    /// Congestion window of the path, in bytes, shared with the other connections of this peer.
    pub congestion_window: u64,
    /// Slow start threshold of the path, in bytes; `None` before the first loss.
    pub slow_start_threshold: Option<u64>,
    /// Bytes of this connection in flight.
    pub in_flight: u64,
    /// Smoothed round-trip time of the path and its variance, once measured.
    pub rtt: Option<(Duration, Duration)>,
    /// Written bytes that the peer has not acknowledged.
    pub unacknowledged: usize,
    /// Received bytes behind a hole.
    pub out_of_order: usize,
    /// Received bytes that the application has not read.
    pub unread: usize,
    /// Bytes that the peer still takes.
    pub peer_window: u64,
    /// Bytes that we still take.
    pub own_window: u64,
    /// Whether lost segments wait to be sent again.
    pub recovering: bool,
}

/// What is known of one tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelInfo {
    /// The peer's address.
    pub peer: Address,
    /// The peer's Ed25519 key, if known.
    pub key: Option<[u8; 32]>,
    /// Whether keys are agreed.
    pub established: bool,
    /// Whether the key exchange was authenticated.
    pub authenticated: bool,
    /// Whether the peer showed that it is Pilotage.
    pub pilotage: bool,
    /// Frames sealed under the current keys.
    pub frames_sealed: u64,
    /// Which protection is in use; without keys, [`Mode::Draft`].
    pub mode: Mode,
    /// The least that is accepted from this peer.
    pub least_mode: Mode,
    /// The suite, in S1.
    pub suite: Option<Suite>,
    /// When the keys in use were agreed.
    pub keys_since: Option<Instant>,
    /// Number of the key phase that we send in; 0 in the draft's mode, which has none.
    pub phase: u64,
    /// Whether the keys in use need a secret of ML-KEM-768, too.
    pub post_quantum: bool,
    /// The path in use, once there is one.
    pub path: Option<PathInfo>,
    /// Open connections in it.
    pub connections: usize,
}

/// What an endpoint holds now. Every number has a bound in [`Config`](crate::Config).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Received bytes that were not read yet, those behind holes included, over all connections.
    pub received: usize,
    /// Written bytes that were not acknowledged yet, over all connections.
    pub written: usize,
    /// Received datagrams that wait to be read.
    pub datagrams_in: usize,
    /// Datagrams and answers that wait to be sent.
    pub queued_out: usize,
    /// Peers.
    pub peers: usize,
    /// Connections that are not forgotten yet, closed ones in TIME_WAIT excluded.
    pub connections: usize,
    /// Events that wait to be polled.
    pub events: usize,
    /// Strangers whose keys are being looked up.
    pub lookups: usize,
    /// Bytes of datagrams whose sender waits for a verdict.
    pub before_the_gate: usize,
}

/// Counters of an endpoint. Every silent drop has one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EndpointStats {
    /// Datagrams received.
    pub datagrams_received: u64,
    /// Datagrams sent.
    pub datagrams_sent: u64,
    /// Bytes received in datagrams.
    pub bytes_received: u64,
    /// Bytes sent in datagrams.
    pub bytes_sent: u64,
    /// Dropped: not a frame or packet at all.
    pub drop_malformed: u64,
    /// Dropped: plaintext or anonymous key exchange that nobody allowed (rule C6).
    pub drop_not_allowed: u64,
    /// Dropped: sealed frame that did not open.
    pub drop_unauthentic: u64,
    /// Dropped: replayed or too old.
    pub drop_replay: u64,
    /// Dropped: sealed frame of a peer without keys.
    pub drop_no_session: u64,
    /// Dropped: inner source or destination does not belong (rule C4).
    pub drop_misaddressed: u64,
    /// Dropped: key exchange over the rate limit (rule C10).
    pub drop_rate_limited: u64,
    /// Dropped: key exchange with a bad signature or a wrong key.
    pub drop_bad_key_exchange: u64,
    /// Dropped: beacon message from elsewhere than the beacon (rule C15).
    pub drop_beacon: u64,
    /// Dropped: received datagram while the port's queue was full.
    pub drop_datagram_queue: u64,
    /// Dropped: segment for no connection, or out of window.
    pub drop_segment: u64,
    /// Dropped: SYN or datagram of a peer that the gate did not let in.
    pub drop_not_admitted: u64,
    /// Connections refused for a limit.
    pub refused: u64,
    /// Keys agreed.
    pub handshakes: u64,
    /// Idempotent datagrams that left in a PILI (spec/secure.md §6.4).
    pub early_sent: u64,
    /// Of those: the peer said that it took them.
    pub early_accepted: u64,
    /// Of those: it did not say so, and they left again once there were keys.
    pub early_repeated: u64,
    /// Datagrams of peers that were taken from a PILI.
    pub early_taken: u64,
}
