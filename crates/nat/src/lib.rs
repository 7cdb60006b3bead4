//! Reachability through a beacon, sans-IO: address discovery, hole punching and relay (`spec/nat.md`).
//!
//! * [`BeaconEngine`] is the server: one UDP socket's worth of registrations. It speaks the reference's
//!   protocol, bounds every table and never amplifies.
//! * [`BeaconClient`] is a node's half: it keeps our registration alive, asks for introductions and says
//!   which of the beacon's messages may be believed.
//!
//! # Contract
//!
//! Nothing here reads a clock, opens a socket or takes ambient randomness: `now` and a seed come in.
//! Neither half panics on any input, and both stay within the bounds that their documentation names.
//!
//! Beacon messages are not authenticated. What that leaves open is listed in `spec/nat.md §6`.

#![forbid(unsafe_code)]

mod budget;
mod client;
mod engine;
mod scope;

pub use budget::Rate;
pub use client::{BeaconClient, ClientEvent, ClientMessage};
pub use engine::{BeaconConfig, BeaconEngine, BeaconStats};

/// Where the tests' own clocks start; they then advance it by hand.
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an Instant has no other source; tests only count from it")]
fn clock_start() -> std::time::Instant {
    std::time::Instant::now()
}
