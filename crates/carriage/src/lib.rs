//! Carriage: the datagrams between a node and its beacon over WebSocket and TLS, where UDP is blocked (`spec/reach.md §1`).
//!
//! * [`Monitor`] decides: is UDP blocked, when to open a connection, when to go back. No clock, no socket.
//! * [`Dialer`] opens a [`Link`] to a hub, directly or through a proxy (`HTTPS_PROXY` and its relatives).
//! * [`Server`] accepts links at the hub and hands their datagrams to the beacon through a [`Side`], each link under an
//!   address of its own that is routed nowhere ([`is_virtual`]).
//!
//! # Contract
//!
//! * One binary message is one datagram, in both directions, unchanged. What it says is the business of the beacon and of
//!   the node, as over UDP; nothing is believed because it came by a link.
//! * A link may drop what it cannot take, as a network does. Every queue has a bound, and what is dropped is counted.
//! * TLS hides who talks to whom from the way to the hub. It protects no content: tunnel frames are sealed between nodes.

mod dial;
mod link;
mod monitor;
mod proxy;
mod server;
mod tls;
mod trust;
mod url;
mod virtual_address;

pub use dial::{DialError, Dialed, Dialer};
pub use link::{Link, LinkError};
pub use monitor::{Action, Monitor};
pub use proxy::{Proxy, ProxyError, connect_reply};
pub use server::{Limits, Server, Side, Stats};
pub use tls::{CertificateError, fingerprint, server_config_from_pem};
pub use trust::{Evidence, Trust};
pub use url::{UrlError, WssUrl};
pub use virtual_address::is_virtual;

/// The resource at the hub.
pub const PATH: &str = "/pilotage/beacon";

/// The WebSocket subprotocol: version 1 of "one message is one datagram".
pub const SUBPROTOCOL: &str = "pilotage-beacon.v1";

/// Header of the hub's answer: its clock, milliseconds since 1970. `pilotage doctor` shows the difference.
pub const TIME_HEADER: &str = "pilotage-time";

/// Largest datagram that is carried, in bytes.
pub const MAX_CARRIED: usize = 16 * 1024;
