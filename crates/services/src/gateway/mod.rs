//! The gateway: TCP programs talk to peers, and peers to TCP programs (spec/services.md, "Gateway").
//!
//! | what | TCP side | overlay side |
//! |---|---|---|
//! | [`forward`] | listens | connects to one port of one peer |
//! | [`serve`] | connects to one target | listens on one port, for an allow list |
//! | [`socks5`] | listens; the client names peer and port (RFC 1928) | connects |
//! | [`alias`] | listens on addresses of its own, one for each peer | connects to the same port |
//!
//! Both directions of a connection end separately. Nothing is held but one buffer of [`relay::BUFFER`] bytes for each
//! direction, so a side that does not read holds the other back. At most [`Limits::connections`] are joined at a time.
//! Dropping a [`Running`] stops accepting and breaks off what is left.

pub mod alias;
mod forward;
pub mod relay;
mod serve;
mod sessions;
pub mod socks5;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use pilotage::{Listener, Node, NodeId, Peer, SocketAddress};

use crate::Duplex;

pub use alias::aliases;
pub use forward::forward;
pub use serve::serve;
pub use sessions::Running;
pub use socks5::socks5 as serve_socks5;

/// Bounds of one gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections joined at a time; further ones are refused. Default 256.
    pub connections: usize,
    /// How long a TCP target or the greeting of a SOCKS client may take. Default 10 s.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 256, patience: Duration::from_secs(10) }
    }
}

/// Why a peer's port could not be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialError {
    /// What kind of failure.
    pub kind: io::ErrorKind,
    /// Stage, cause and next step, for people.
    pub text: String,
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for DialError {}

/// Opens streams to peers: a [`Node`], or something that speaks to one.
pub trait Dialer: Send + Sync {
    /// Connects; blocks for a bounded time.
    ///
    /// # Errors
    /// Why not.
    fn dial(&self, peer: &Peer, port: u16) -> Result<Arc<dyn Duplex>, DialError>;
}

impl Dialer for Node {
    fn dial(&self, peer: &Peer, port: u16) -> Result<Arc<dyn Duplex>, DialError> {
        match self.connect(peer, port) {
            Ok(stream) => Ok(Arc::new(stream)),
            Err(failure) => Err(DialError { kind: failure.kind(), text: failure.to_string() }),
        }
    }
}

/// Yields streams of peers: a [`Listener`], or something that speaks to one.
pub trait Acceptor: Send + Sync {
    /// Waits for the next stream and who opened it; `None` after `timeout`.
    ///
    /// # Errors
    /// `NotConnected` once the node is closed.
    fn accept(&self, timeout: Duration) -> io::Result<Option<(Arc<dyn Duplex>, SocketAddress)>>;
}

impl Acceptor for Listener {
    fn accept(&self, timeout: Duration) -> io::Result<Option<(Arc<dyn Duplex>, SocketAddress)>> {
        let stream = self.accept_timeout(timeout)?;
        Ok(stream.map(|stream| {
            let peer = stream.peer();
            (Arc::new(stream) as Arc<dyn Duplex>, peer)
        }))
    }
}

/// Who may use what [`serve`] offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allow {
    /// Whoever can reach the node.
    Anybody,
    /// These nodes alone.
    Nodes(Vec<NodeId>),
}

impl Allow {
    fn includes(&self, node: NodeId) -> bool {
        match self {
            Self::Anybody => true,
            Self::Nodes(nodes) => nodes.contains(&node),
        }
    }
}

/// Told to the observer, from the threads that work.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Two connections were joined.
    Opened {
        /// Number of this pair.
        id: u64,
        /// Who began.
        from: String,
        /// To where.
        to: String,
    },
    /// Both directions ended, or one broke.
    Closed {
        /// Number of the pair.
        id: u64,
        /// Bytes from the side that began.
        sent: u64,
        /// Bytes to it.
        received: u64,
        /// How long it lasted.
        lasted: Duration,
        /// Why it broke, if it did.
        error: Option<String>,
    },
    /// A connection was not joined.
    Refused {
        /// Who tried.
        from: String,
        /// To where, as far as it is known.
        to: String,
        /// Why not.
        reason: String,
    },
}

/// Called with what happens.
pub type Observer = Arc<dyn Fn(Event) + Send + Sync>;
