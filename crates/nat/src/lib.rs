//! Reachability through a beacon, sans-IO: address discovery, hole punching and relay (`spec/nat.md`).
//!
//! * [`BeaconEngine`] is the server: one UDP socket's worth of registrations. It speaks the reference's
//!   protocol and proof of keys behind it, bounds every table and never amplifies.
//! * [`BeaconClient`] is a node's half: it keeps our registrations alive, asks for introductions, finds out how the
//!   NAT behaves and says which of the beacons' messages may be believed.
//! * [`agent::Agent`] decides, for one peer, which of its addresses are tried and which is used.
//! * [`portmap::Mapper`] asks the router for a port (PCP, NAT-PMP), [`portmap::igd::Igd`] by UPnP.
//!
//! # Contract
//!
//! Nothing here reads a clock, opens a socket or takes ambient randomness: `now` and a seed come in.
//! Neither half panics on any input, and both stay within the bounds that their documentation names.
//!
//! The messages of the reference are not authenticated. What that leaves open is listed in `spec/nat.md §6`.

#![forbid(unsafe_code)]

pub mod agent;
mod budget;
mod client;
mod engine;
pub mod portmap;
mod scope;
pub mod side;

pub use budget::Rate;
pub use client::{BeaconClient, BeaconStatus, ClientEvent, ClientMessage, Dependence, NatBehaviour, Signer};
pub use engine::{Arrival, BeaconConfig, BeaconEngine, BeaconStats, KeySource, Port, Verify};

/// Where the tests' own clocks start; they then advance it by hand.
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an Instant has no other source; tests only count from it")]
fn clock_start() -> std::time::Instant {
    std::time::Instant::now()
}
