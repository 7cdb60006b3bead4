//! Pilotage: streams and datagrams between nodes that have addresses of their own, over one UDP socket.
//!
//! # Words
//!
//! A [`Node`] has an Ed25519 identity and an [`Address`] that derives from it. [`Node::listen`] opens a
//! port, [`Node::connect`] opens a [`Stream`] to a port of a [`Peer`], [`Node::bind_datagram`] a
//! [`DatagramSocket`]. All of them are encrypted and authenticated by the tunnel between the two nodes.
//!
//! # Contract
//!
//! * Everything is `Send + Sync` and may be used from any thread. One driver thread per node owns the
//!   socket; it never waits for an application. What an application does not read stays in bounded
//!   buffers, and the peer is held back.
//! * Blocking calls block the calling thread only, for a stated time at most. The same calls exist for
//!   any async runtime; none is needed.
//! * A node lives as long as a handle on it does (a stream is one). Closing delivers what was written,
//!   for at most [`LINGER`].
//! * Nothing is contacted that the caller did not name: without a hub a node only answers and calls
//!   peers by UDP endpoint.
//! * Errors name the stage that failed and the next step.
//! * After `fork` only the parent may use the node: the child has no driver thread. (`exec` is fine:
//!   socket and lock are closed then.)
//!
//! # Example
//!
//! ```
//! use std::io::{Read, Write};
//! use pilotage::{Node, Peer};
//!
//! let bind = "127.0.0.1:0".parse()?;
//! let server = Node::builder().bind(bind).start()?;
//! let client = Node::builder().bind(bind).start()?;
//! let listener = server.listen(7)?;
//! let mut stream = client.connect(Peer::At(server.address(), server.local_addr()), 7)?;
//! stream.write_all(b"hello")?;
//! let mut buffer = [0; 5];
//! listener.accept()?.read_exact(&mut buffer)?;
//! assert_eq!(&buffer, b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod acquaintances;
mod asynch;
pub mod beacon;
mod builder;
mod carrier;
mod datagram;
mod driver;
mod error;
mod events;
mod gate;
mod hub;
mod interfaces;
mod keeper;
mod lan;
mod listener;
mod lookup;
mod node;
mod path;
mod peer;
mod portmap;
pub mod records;
mod relay;
mod resolve;
mod secure;
mod shared;
mod side;
mod slot;
mod state;
mod stream;
mod tap;

pub use acquaintances::{Acquaintance, Acquaintances};
pub use builder::{DEFAULT_HUB_PORT, NodeBuilder};
pub use carrier::{CarriageProbe, CarriageStatus};
pub use datagram::DatagramSocket;
pub use driver::socket::SocketInfo;
#[cfg(all(feature = "tokio", unix))]
pub use driver::task::Drive;
pub use error::{ConnectFailure, FailureCause, ListenError, Stage, StartError};
pub use events::{EVENT_CAPACITY, EventReceiver, NodeEvent};
pub use gate::Gate;
pub use hub::{HubError, HubStatus, Visibility};
pub use lan::LanPeer;
pub use listener::Listener;
pub use node::{LINGER, Node, NodeStats, PingReply};
pub use path::{PathStatus, PathWatcher};
pub use peer::{Peer, PeerParseError};
pub use resolve::{ResolvedPeer, Source};
pub use state::MAX_PINS;
pub use stream::Stream;
pub use tap::DatagramTap;

pub use pilotage_nat::portmap::{Mapping, Protocol as MappingProtocol};
pub use pilotage_nat::{BeaconStatus, Dependence, NatBehaviour};
pub use pilotage_proto::crypto::{Identity, verify};
pub use pilotage_proto::s1::{Limits as SecureLimits, PeerPrekey, PostQuantum, Suite};
pub use pilotage_proto::{
    Config as ProtoConfig, ConnectError, ConnectionId, ConnectionInfo, ConnectionState, ConnectionStats,
    ControllerKind, DatagramIn, EARLY_DATAGRAM_MAX, EndpointStats, Mode, PathInfo, PathKind, PeerConfig,
    PeerPolicy, SecureMode, SendDatagramError, TunnelInfo,
};
pub use pilotage_wire::beacon::Accept as RelayAccept;
pub use pilotage_wire::{Address, NetworkId, NodeId, SocketAddress};
