//! Why a call failed.

use pilotage_wire::registry::FrameError;
use std::io;
use std::time::Duration;

/// Why a call failed. The text names the stage and the next step.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The name of the registry's host cannot be resolved.
    #[error("registry {addr}: cannot find the host: {source}; check the hub address (host:port)")]
    Resolve {
        /// As given.
        addr: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// No TCP connection.
    #[error("registry {addr}: cannot connect: {source}; is the hub running and reachable?")]
    Connect {
        /// As given.
        addr: String,
        /// What the operating system said about the last address tried.
        source: io::Error,
    },
    /// Connecting failed a moment ago and is not tried again yet.
    #[error("registry {addr}: not reachable; next attempt in {} ms", retry.as_millis())]
    Unreachable {
        /// As given.
        addr: String,
        /// Until the next attempt.
        retry: Duration,
    },
    /// No TLS session: another certificate than the pinned one, or no TLS at the other end.
    #[error(
        "registry {addr}: TLS failed: {detail}; compare the pin with the fingerprint that the hub printed at its start"
    )]
    Tls {
        /// As given.
        addr: String,
        /// What is wrong.
        detail: String,
    },
    /// No reply in time.
    #[error("registry {addr}: no reply to {request} within {} ms; the hub is overloaded or something in between drops the connection", timeout.as_millis())]
    Timeout {
        /// As given.
        addr: String,
        /// What was asked.
        request: &'static str,
        /// The limit.
        timeout: Duration,
    },
    /// The connection broke twice during a request.
    #[error("registry {addr}: connection lost during {request}: {source}")]
    Lost {
        /// As given.
        addr: String,
        /// What was asked.
        request: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// The other end does not speak the registry protocol.
    #[error(
        "registry {addr}: reply to {request} makes no sense ({detail}); is this address a Pilot registry?"
    )]
    Protocol {
        /// As given.
        addr: String,
        /// What was asked.
        request: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// The registry said no.
    #[error("registry refused {request}: {reason}")]
    Refused {
        /// What was asked.
        request: &'static str,
        /// The registry's words.
        reason: String,
    },
    /// Our own request does not fit into a message.
    #[error("{request} is too long for the registry protocol: {source}")]
    TooLong {
        /// What was asked.
        request: &'static str,
        /// How long.
        source: FrameError,
    },
}

impl ClientError {
    /// True if trying again later can help: the registry was not reached or did not answer.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        !matches!(
            self,
            Self::Refused { .. } | Self::TooLong { .. } | Self::Protocol { .. } | Self::Tls { .. }
        )
    }
}
