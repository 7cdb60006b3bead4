//! Discovery by capability between nodes, ports 1013 and 1014 (spec/discovery.md).
//!
//! [`Host`] answers for a node: what it declares, the index of others' cards if it holds one, and calls. [`find`] asks
//! several nodes at once and makes one list; [`call()`] carries a call out, with another provider when one fails. What is
//! decided is decided in `pilotage_discover`; here are streams, threads and the clock.

mod ask;
mod call;
mod frame;
mod handler;
mod host;

use std::sync::Arc;
use std::time::SystemTime;

use pilotage::{Address, Node, Peer};

pub use ask::{
    Asked, Findings, MAX_ASKED, Provider, announce, announce_group, describe, find, groups_for, routed,
};
pub use call::{CallFailed, CallOptions, Served, call};
pub use handler::{Handler, HandlerError, MAX_RUN, Program, Tcp};
pub use host::{Host, MAX_GROUPS, Offer, OfferError};

use crate::clock::unix_millis;
use crate::duplex::Duplex;
use crate::gateway::DialError;

/// The port of questions and announcements.
pub const PORT: u16 = 1013;

/// The name under which a hub's own index registers.
pub const HUB_INDEX: &str = "pilotage-index";

/// The port of calls.
pub const CALL_PORT: u16 = 1014;

/// Opens streams to peers and says who is at the other end.
pub trait Reach: Send + Sync {
    /// Connects; blocks for a bounded time.
    ///
    /// # Errors
    /// Why not.
    fn reach(&self, peer: &Peer, port: u16) -> Result<(Arc<dyn Duplex>, Address), DialError>;
}

impl Reach for Node {
    fn reach(&self, peer: &Peer, port: u16) -> Result<(Arc<dyn Duplex>, Address), DialError> {
        match self.connect(peer, port) {
            Ok(stream) => {
                let address = stream.peer().address;
                Ok((Arc::new(stream), address))
            }
            Err(failure) => Err(DialError { kind: failure.kind(), text: failure.to_string() }),
        }
    }
}

/// Seconds since 1970.
#[must_use]
pub fn unix_seconds() -> u64 {
    unix_millis(SystemTime::now()) / 1_000
}
