//! File transfer, port 1010 (spec/services.md §3): one file per stream, verified at both ends.
//!
//! The sender writes an [`Offer`], chunks and a trailer with the BLAKE3 hash; the receiver checks
//! length and hash, stores the file under its name only then, and answers with a [`Reply`] that
//! carries what *it* counted and hashed. The sender compares. Neither side holds more than
//! [`PIPELINE`] chunks in memory, and hashing and disk access run beside the transfer.

mod quota;
mod receive;
mod send;
mod wire;

pub use quota::Quota;
pub use receive::{ReceiveError, Received, Target, receive};
pub(crate) use receive::{Sink, refuse};
pub use send::{SendError, SendOptions, Sent, send};
pub use wire::{
    MAX_CHUNK, MAX_NAME, MAX_TEXT, NameError, Offer, Reply, Status, VERSION, WireError, check_name,
};

/// The port that serves it.
pub const PORT: u16 = 1010;

/// Bytes of file data in the chunks that we send.
pub const CHUNK: usize = 256 * 1024;

/// Chunks in memory between the stream and the disk, each way.
pub const PIPELINE: usize = 8;

#[cfg(test)]
mod tests;
