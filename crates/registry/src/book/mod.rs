//! The second request family of the registry's port: records and claims, in binary. `spec/registry2.md §5`.
//!
//! A connection that starts with [`MAGIC`] speaks it; all others speak the draft's protocol. Requests have numbers, may
//! follow each other without waiting, and are answered in any order.
//!
//! * [`message`]: the bytes, sans-IO.
//! * [`handover`]: a key that names its successors, sans-IO.
//! * [`server`] (feature `server`): worker threads that answer questions at once, and hand writes to threads that check
//!   signatures and from there to the [`shelf::Shelf`].
//! * [`shelf`] (feature `server`): what is served, from one process or from a cluster.
//! * [`compare`] (feature `client`): whether heads that were shown to different people are of one log.
//! * [`client`] (feature `client`): believes nothing that is not signed, proven, and consistent with what it saw before.

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
pub mod compare;
pub mod handover;
pub mod message;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod shelf;

/// First bytes of a connection that speaks this protocol. As a length of the draft's protocol they would be far too large.
pub const MAGIC: [u8; 4] = *b"PRG2";
/// Longest message, bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;
