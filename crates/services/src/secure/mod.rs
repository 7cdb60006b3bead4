//! Secure channel, port 443 (spec/services.md §9): an encrypted stream inside a stream, optionally with mutual proof of
//! identity. For applications; no service of a node listens here.
//!
//! The tunnel protects everything already. This channel is for those who speak to peers whose applications use it, or who
//! carry a stream further than the tunnel goes. [`Channel::client`] and [`Channel::server`] take any [`Duplex`](crate::Duplex), and a
//! channel is one again.
//!
//! Both ends must be set up alike: nothing on the wire says whether identities are proved.

mod auth;
mod channel;
mod wire;

pub use auth::{Known, MAX_REMEMBERED, Proof, Seen};
pub use channel::{Channel, Error, MAX_PLAIN};
pub use wire::{AUTH, Auth, LENGTH, MAX_FRAME, NONCE, Role, TAG, head, sealed_length};

/// The port that the draft gives to it.
pub const PORT: u16 = 443;

#[cfg(test)]
mod tests;
