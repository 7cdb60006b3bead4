//! The sans-IO core of Pilotage: one [`Endpoint`] per UDP socket, a tunnel per peer, connections inside tunnels.
//!
//! # Contract
//!
//! Nothing in this crate reads a clock, opens a socket or takes ambient randomness. The caller
//! passes `now` (monotonic) to every call that can depend on time, and a 32-byte seed once.
//!
//! * **Inputs**: [`Endpoint::handle_datagram`] (decrypts in place), [`Endpoint::handle_timeout`],
//!   and the calls of the application (`connect`, `read`, `write`, …).
//! * **Outputs**: [`Endpoint::poll_transmit`], [`Endpoint::poll_event`], [`Endpoint::poll_timeout`].
//!
//! After a batch of inputs: drain `poll_transmit`, then `poll_event`, then read `poll_timeout` once.
//! `handle_timeout` may be called early or late; a late call only makes recovery later.
//!
//! # Example
//!
//! See `examples/plain_socket.rs` in the `pilotage` crate: the whole core driven by a
//! `std::net::UdpSocket` in one thread.

pub mod assembler;
pub mod config;
pub mod congestion;
pub mod crypto;
pub mod event;
pub mod mtud;
pub mod replay;
pub mod ring;
pub mod rtt;
pub mod s1;
pub mod scoreboard;
pub mod secure;
pub mod send_buffer;
pub mod timer_table;
pub mod transmit;

#[doc(hidden)]
pub mod audit;
mod connection;
mod endpoint;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod mux;
mod tunnel;

pub use config::{Config, PeerConfig, PeerPolicy};
pub use congestion::ControllerKind;
pub use endpoint::Endpoint;
pub use event::{
    ConnectError, ConnectionId, ConnectionInfo, ConnectionState, ConnectionStats, DatagramIn, EndpointStats,
    Event, MemoryUse, PathInfo, PathKind, ReadError, SendDatagramError, TunnelInfo, WriteError,
};
pub use secure::{Mode, SecureConfig, SecureMode};
pub use transmit::{RecvMeta, Transmit, TransmitBuf};
pub use tunnel::EARLY_DATAGRAM_MAX;
