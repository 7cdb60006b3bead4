//! Data exchange, port 1001 (spec/services.md §5): text, bytes, JSON and small files, each frame answered.
//!
//! [`serve`] puts what comes into an [`Inbox`]: a file each, and a line of the index. [`send`] and [`send_file`] wait for
//! the receiver's answer. Everything that a stream holds in memory is [`BUFFER`] bytes: payloads go to the disk as they
//! come, whatever length they announce.

mod client;
mod inbox;
mod index;
mod receive;
mod wire;

pub use client::{SendError, send, send_file};
pub use inbox::{Inbox, Stored};
pub use index::{Entry, INDEX_FILE, MAX_ENTRIES, list};
pub use receive::serve;
pub use wire::{
    Answer, HEADER, Header, Kind, MAX_ANSWER, MAX_PAYLOAD, WireError, file_frame, file_lengths, frame,
};

/// The port that serves it (draft-01 §8.1).
pub const PORT: u16 = 1001;

/// Bytes of a payload held at a time.
pub const BUFFER: usize = 64 * 1024;

#[cfg(test)]
mod tests;
