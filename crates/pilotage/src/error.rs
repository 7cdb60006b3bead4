//! What can go wrong, with the stage that failed and what to do next.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use pilotage_proto::{ConnectError, ReadError, WriteError};

use crate::hub::HubError;

/// The step of reaching a peer that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Finding the peer's address, key and UDP endpoint.
    Resolve,
    /// Finding any way (direct or relayed) to send to the peer.
    Reach,
    /// Agreeing on keys with the peer.
    KeyExchange,
    /// Opening the port at the peer.
    Connect,
    /// Waiting for the answer to a ping.
    Ping,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "resolve",
            Self::Reach => "reach",
            Self::KeyExchange => "key exchange",
            Self::Connect => "connect",
            Self::Ping => "ping",
        })
    }
}

/// Why a peer could not be reached.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FailureCause {
    /// The core refused or gave up.
    #[error("{}", core_text(.0))]
    Core(ConnectError),
    /// The hub did not answer, or answered no.
    #[error("{0}")]
    Hub(HubError),
    /// A name was given but there is no hub to ask.
    #[error("the name {0:?} cannot be looked up: no hub is configured")]
    NoHub(String),
    /// The key that the hub names is not the one pinned earlier.
    #[error("the hub names another key for {address} than the one pinned in {}", pins.display())]
    PinMismatch {
        /// The peer.
        address: pilotage_wire::Address,
        /// The file that holds the pin, or a placeholder when pins are kept in memory only.
        pins: PathBuf,
    },
    /// Somebody answered whose key could not be believed.
    #[error("an answer was refused: {0}")]
    Distrusted(String),
    /// No answer in the time that the caller allowed.
    #[error("no answer in time")]
    TimedOut,
    /// The operating system refused something that the attempt needed.
    #[error("{0}")]
    System(String),
}

/// A peer could not be reached: which stage failed, why, and what to do next.
///
/// Displays as `<stage>: <cause> – next: <hint>`.
#[derive(Debug, Clone)]
pub struct ConnectFailure {
    /// Which step failed.
    pub stage: Stage,
    /// Why.
    pub cause: FailureCause,
    /// What the operator can do about it.
    pub hint: String,
}

impl ConnectFailure {
    pub(crate) fn new(stage: Stage, cause: FailureCause, hint: impl Into<String>) -> Self {
        Self { stage, cause, hint: hint.into() }
    }

    /// Explains an error of the core; `peer` and `pins` only make the hint more concrete.
    pub(crate) fn from_core(error: ConnectError, peer: &str, pins: &std::path::Path) -> Self {
        let (stage, hint) = match error {
            ConnectError::UnknownPeer => (
                Stage::Resolve,
                format!("give {peer} as ADDRESS@IP:PORT, or configure the hub that it is registered with"),
            ),
            ConnectError::NoPath => (
                Stage::Reach,
                format!("give {peer} as ADDRESS@IP:PORT, or configure a hub so that its relay can be used"),
            ),
            ConnectError::HandshakeTimeout => (
                Stage::KeyExchange,
                format!(
                    "check that {peer} is running, that its UDP port is reachable, and that its key belongs to its address"
                ),
            ),
            ConnectError::PinMismatch => (
                Stage::KeyExchange,
                format!(
                    "if {peer} really has a new identity, remove its entry from {} and try again; otherwise somebody is impersonating it",
                    pins.display()
                ),
            ),
            ConnectError::Timeout => (
                Stage::Connect,
                format!("{peer} is up but silent on this port: check its load and its listener"),
            ),
            ConnectError::Refused => (Stage::Connect, format!("start a listener on this port at {peer}")),
            ConnectError::Reset => (
                Stage::Connect,
                format!(
                    "{peer} ended the call at once: it may not let this node in, be full, or have just started again; \
                     try again, or ask its owner"
                ),
            ),
            ConnectError::LimitReached => {
                (Stage::Connect, "close other connections or raise the limits in the configuration".into())
            }
            ConnectError::ModeRefused => (
                Stage::KeyExchange,
                format!(
                    "switch S1 on (secure mode auto or s1), and give the key of {peer} if it is not known"
                ),
            ),
            ConnectError::Closing => (Stage::Connect, "start a new node".into()),
            _ => (Stage::Connect, "see the cause".into()),
        };
        Self::new(stage, FailureCause::Core(error), hint)
    }

    /// The core's error, if it was the core that failed.
    pub fn core_error(&self) -> Option<ConnectError> {
        match self.cause {
            FailureCause::Core(error) => Some(error),
            _ => None,
        }
    }

    /// The closest standard error kind.
    pub fn kind(&self) -> io::ErrorKind {
        match &self.cause {
            FailureCause::Core(error) => connect_kind(*error),
            FailureCause::Hub(error) if error.is_unreachable() => io::ErrorKind::NetworkUnreachable,
            FailureCause::Hub(_) | FailureCause::NoHub(_) => io::ErrorKind::NotFound,
            FailureCause::PinMismatch { .. } | FailureCause::Distrusted(_) => io::ErrorKind::PermissionDenied,
            FailureCause::TimedOut => io::ErrorKind::TimedOut,
            FailureCause::System(_) => io::ErrorKind::Other,
        }
    }
}

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} – next: {}", self.stage, self.cause, self.hint)
    }
}

impl std::error::Error for ConnectFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

impl From<ConnectFailure> for io::Error {
    fn from(failure: ConnectFailure) -> Self {
        Self::new(failure.kind(), failure)
    }
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The UDP socket could not be made.
    #[error(
        "bind {address}: {source} – next: choose another port or address, or stop the program that holds it"
    )]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another process uses the state directory.
    #[error("state {}: in use by {} – next: stop that node or choose another state directory", directory.display(), holder(*pid))]
    StateInUse {
        /// The directory.
        directory: PathBuf,
        /// The process that holds the lock; 0 if it could not be read.
        pid: u32,
    },
    /// The state directory or a file in it could not be used.
    #[error("state {}: {reason} – next: {hint}", path.display())]
    State {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A host name of the configuration does not resolve.
    #[error("resolve {name}: {reason} – next: check the host name and that PORT is given as HOST:PORT")]
    HubAddress {
        /// What was configured.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The registry did not accept the node.
    #[error("register at {registry}: {source} – next: {hint}")]
    Register {
        /// The registry.
        registry: String,
        /// What it said, or why it was not reached.
        source: HubError,
        /// What to do about it.
        hint: &'static str,
    },
    /// The registry accepted the node but not its name.
    #[error("name {name:?}: {reason} – next: choose another name")]
    Name {
        /// The name asked for.
        name: String,
        /// The registry's reason.
        reason: String,
    },
    /// A statically configured peer was not accepted.
    #[error("peer {peer}: {source} – next: correct the key or remove the old one from {}", pins.display())]
    Peer {
        /// The peer.
        peer: pilotage_wire::Address,
        /// Why.
        source: ConnectError,
        /// The file that holds the pins.
        pins: PathBuf,
    },
    /// The post-quantum upgrade cannot be had so.
    #[error("post-quantum {choice}: {reason}")]
    PostQuantum {
        /// What was asked for.
        choice: &'static str,
        /// Why not, and what to do.
        reason: &'static str,
    },
    /// The operating system refused a thread, a poller or random bytes.
    #[error("start: {0} – next: check the limits of this process")]
    System(#[from] io::Error),
}

fn holder(pid: u32) -> String {
    if pid == 0 { "another process".into() } else { format!("process {pid}") }
}

/// Why a port could not be opened on the local node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Something else of this node uses the port.
    #[error("listen on port {0}: in use by this node – next: choose another port, or 0 for any")]
    InUse(u16),
    /// The node is closed.
    #[error("listen: the node is closed – next: start a new node")]
    Closed,
    /// A limit of the core.
    #[error("listen on port {port}: {source} – next: close other listeners or raise the limits")]
    Core {
        /// The port.
        port: u16,
        /// What the core said.
        source: ConnectError,
    },
}

impl From<ListenError> for io::Error {
    fn from(error: ListenError) -> Self {
        let kind = match error {
            ListenError::InUse(_) => io::ErrorKind::AddrInUse,
            ListenError::Closed => io::ErrorKind::NotConnected,
            ListenError::Core { .. } => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

pub(crate) fn read_error(error: ReadError) -> io::Error {
    let kind = match error {
        ReadError::Blocked => io::ErrorKind::WouldBlock,
        ReadError::Reset => io::ErrorKind::ConnectionReset,
        ReadError::Truncated => io::ErrorKind::UnexpectedEof,
        ReadError::TimedOut => io::ErrorKind::TimedOut,
        ReadError::Connect(error) => connect_kind(error),
        _ => io::ErrorKind::NotConnected,
    };
    io::Error::new(kind, error)
}

pub(crate) fn write_error(error: WriteError) -> io::Error {
    let kind = match error {
        WriteError::Blocked => io::ErrorKind::WouldBlock,
        WriteError::Finished => io::ErrorKind::BrokenPipe,
        WriteError::Reset => io::ErrorKind::ConnectionReset,
        WriteError::TimedOut => io::ErrorKind::TimedOut,
        WriteError::Connect(error) => connect_kind(error),
        _ => io::ErrorKind::NotConnected,
    };
    io::Error::new(kind, error)
}

pub(crate) fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the node is closed")
}

pub(crate) fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no progress within the timeout that was set")
}

pub(crate) fn connect_kind(error: ConnectError) -> io::ErrorKind {
    match error {
        ConnectError::UnknownPeer => io::ErrorKind::NotFound,
        ConnectError::NoPath => io::ErrorKind::HostUnreachable,
        ConnectError::HandshakeTimeout | ConnectError::Timeout => io::ErrorKind::TimedOut,
        ConnectError::Refused => io::ErrorKind::ConnectionRefused,
        ConnectError::Reset => io::ErrorKind::ConnectionReset,
        ConnectError::PinMismatch => io::ErrorKind::PermissionDenied,
        ConnectError::LimitReached => io::ErrorKind::OutOfMemory,
        ConnectError::Closing => io::ErrorKind::NotConnected,
        _ => io::ErrorKind::Other,
    }
}

/// The core's texts name the stage themselves; here the stage stands in front already.
fn core_text(error: &ConnectError) -> String {
    let text = error.to_string();
    for prefix in ["key exchange: ", "connect: "] {
        if let Some(rest) = text.strip_prefix(prefix) {
            return rest.to_owned();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_failure_names_stage_cause_and_next_step_once() {
        let failure =
            ConnectFailure::from_core(ConnectError::Refused, "0:0000.0000.0010", Path::new("peers.json"));
        assert_eq!(
            failure.to_string(),
            "connect: refused, nothing listens on that port – next: start a listener on this port at 0:0000.0000.0010"
        );
        assert_eq!(io::Error::from(failure).kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_pin_mismatch_names_the_file() {
        let failure =
            ConnectFailure::from_core(ConnectError::PinMismatch, "bob", Path::new("/state/peers.json"));
        assert_eq!(failure.stage, Stage::KeyExchange);
        assert!(failure.to_string().contains("/state/peers.json"), "{failure}");
        assert_eq!(failure.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn io_kinds_follow_the_contract() {
        assert_eq!(read_error(ReadError::Reset).kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(read_error(ReadError::TimedOut).kind(), io::ErrorKind::TimedOut);
        assert_eq!(read_error(ReadError::Truncated).kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(
            read_error(ReadError::Connect(ConnectError::Refused)).kind(),
            io::ErrorKind::ConnectionRefused
        );
        assert_eq!(connect_kind(ConnectError::Reset), io::ErrorKind::ConnectionReset);
        assert_eq!(write_error(WriteError::Finished).kind(), io::ErrorKind::BrokenPipe);
    }
}
