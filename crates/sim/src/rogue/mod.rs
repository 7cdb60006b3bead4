//! Authenticated attackers: peers made by hand, next to one real endpoint.
//!
//! [`Arena`] holds the endpoint under attack, a virtual clock and an open network on which anybody may
//! send from any address. [`Rogue`] is a peer with an identity of its own that does the key exchange for
//! real and then seals whatever a test wants, and opens what it receives. [`RogueStream`] knows the
//! numbers of one connection.
//!
//! ```
//! use pilotage_sim::rogue::{Arena, Rogue};
//! use pilotage_wire::packet::Flags;
//!
//! let mut arena = Arena::new(1);
//! let mut rogue = Rogue::introduced(&mut arena, 1);
//! assert!(rogue.shake_hands(&mut arena));
//! let stream = rogue.connect(&mut arena, 80).expect("the arena listens on what is asked for");
//! rogue.say(&mut arena, &stream.data(0), b"hello");
//! rogue.say(&mut arena, &stream.segment(Flags::FIN | Flags::ACK, 5), &[]);
//! arena.run_for(std::time::Duration::from_millis(100));
//! assert_eq!(arena.read_all(stream.at_target()), b"hello");
//! ```
//!
//! Everything random comes from the seeds. Nothing here is bounded: it is for tests.

mod arena;
mod peer;
mod stream;

pub use arena::{Arena, Ledger};
pub use peer::{Rogue, RogueSession};
pub use stream::RogueStream;
