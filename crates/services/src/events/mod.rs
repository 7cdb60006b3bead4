//! Event stream, port 1002 (spec/services.md §6): publish and subscribe by topic.
//!
//! The first event of a connection subscribes it, later ones publish; what one connection publishes goes to every other
//! one whose topic is the same or `*`. [`Broker`] is the server's part, [`subscribe`] and [`publish`] are the client's.
//! Nothing is stored: who is not connected misses it.

mod broker;
mod client;
mod wire;

pub use broker::{Broker, Counters, MAX_QUEUED_BYTES, MAX_QUEUED_EVENTS, MAX_READING, MAX_TOTAL_BYTES};
pub use client::{Subscription, publish, subscribe};
pub use wire::{ALL, Event, MAX_PAYLOAD, MAX_TOPIC, WireError};

/// The port that serves it (draft-01 §8.1).
pub const PORT: u16 = 1002;

/// Connections that one broker serves at a time.
pub const MAX_STREAMS: usize = 256;

#[cfg(test)]
mod tests;
