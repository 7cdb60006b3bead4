//! The local socket of a Pilotage node: the IPC protocol of the reference (`spec/ipc.md`), so that its tools and drivers
//! work unmodified with our node.
//!
//! # Contract
//!
//! * **Opt-in**: nothing listens unless [`serve`] is called with a path. The socket has mode 0600 in a folder that only
//!   its owner may enter, and a connection is taken from our own user or root only (`SO_PEERCRED`).
//! * **One thread per client** takes its commands, in order. A blocking dial or send holds up that client alone.
//!   Further threads: one that writes to the client, one for each port it bound and each connection it has.
//! * **Bounds** ([`Limits`]): clients, connections and ports of a client, connections of all, bytes that wait for a
//!   client. A client that does not read holds back its own peers; datagrams for it are dropped and counted
//!   ([`Counters`]).
//! * **Ends**: when a client goes, its connections end in order and its ports are free. Dropping [`IpcServer`] ends all
//!   clients and removes the socket; the node lives on.
//! * A message that cannot be understood is answered with an error; a wrong length ends that client.
//!
//! What the reference's commands need of the registry and of the trust list comes in as the traits [`RegistryCalls`] and
//! [`TrustCalls`].
//!
//! Only on Unix systems; elsewhere [`serve`] answers [`ServeError::Unsupported`].

#[cfg(unix)]
mod calls;
#[cfg(unix)]
mod client;
#[cfg(unix)]
mod connections;
#[cfg(unix)]
mod datagrams;
#[cfg(unix)]
mod outbox;
#[cfg(unix)]
mod report;
#[cfg(unix)]
mod server;
#[cfg(unix)]
mod socket;
mod traits;
#[cfg(unix)]
mod webhook;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;

pub use traits::{NoRegistry, PendingTrust, RegistryCalls, TrustCalls, TrustedPeer};

#[cfg(unix)]
pub use server::{IpcServer, serve};

/// Bounds of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Clients at a time; further ones get an error and are closed. Default 64.
    pub clients: usize,
    /// Connections that one client holds at a time, those whose peer has ended them included. Default 1,024.
    pub connections_per_client: usize,
    /// Connections of all clients together. Default 4,096.
    pub connections: usize,
    /// Ports that one client binds. Default 64.
    pub ports_per_client: usize,
    /// Bytes that wait for one client, at most one message more. Default 4 MiB.
    pub queued_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 64,
            connections_per_client: 1_024,
            connections: 4_096,
            ports_per_client: 64,
            queued_bytes: 4 << 20,
        }
    }
}

/// What to serve with.
#[derive(Default)]
pub struct Options {
    /// Where registry commands go; without one they are answered with an error.
    pub registry: Option<std::sync::Arc<dyn RegistryCalls>>,
    /// The trust list; without one handshake commands are answered with an error.
    pub trust: Option<std::sync::Arc<dyn TrustCalls>>,
    /// Bounds.
    pub limits: Limits,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// What a server counted since its start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Clients taken.
    pub clients: AtomicU64,
    /// Clients refused: another user, or too many.
    pub refused_clients: AtomicU64,
    /// Messages taken.
    pub messages: AtomicU64,
    /// Messages answered with an error.
    pub errors: AtomicU64,
    /// Incoming connections reset because a bound was reached.
    pub refused_connections: AtomicU64,
    /// Datagrams not given to a client because too many bytes waited for it.
    pub dropped_datagrams: AtomicU64,
    /// Events not posted to the webhook because too many waited.
    pub dropped_events: AtomicU64,
}

/// Why the socket could not be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The folder of the socket is not ours alone.
    #[error("socket folder {folder}: {reason} – next: {next}")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do about it.
        next: &'static str,
    },
    /// Another process serves this path, or it is no socket.
    #[error("socket {path}: {reason} – next: name another path")]
    InUse {
        /// The path.
        path: PathBuf,
        /// What is there.
        reason: &'static str,
    },
    /// The operating system refused.
    #[error("socket {path}: {source} – next: check the path (at most about 100 bytes) and its permissions")]
    System {
        /// The path.
        path: PathBuf,
        /// Its error.
        source: io::Error,
    },
    /// This platform has no such sockets.
    #[error(
        "local sockets with a check of the user are not available on this platform – next: leave the option out"
    )]
    Unsupported,
}

#[cfg(not(unix))]
mod unsupported {
    use super::{Counters, Options, ServeError};

    /// This platform has none.
    #[derive(Debug)]
    pub struct IpcServer(std::convert::Infallible);

    impl IpcServer {
        /// Counters so far.
        pub fn counters(&self) -> &Counters {
            match self.0 {}
        }
    }

    /// Answers that this platform has no such sockets.
    ///
    /// # Errors
    /// Always.
    pub fn serve(
        _node: &pilotage::Node,
        _path: &std::path::Path,
        _options: Options,
    ) -> Result<IpcServer, ServeError> {
        Err(ServeError::Unsupported)
    }
}

#[cfg(not(unix))]
pub use unsupported::{IpcServer, serve};
