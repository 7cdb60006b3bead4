//! Deterministic network simulation for the sans-IO core (development only).
//!
//! [`Pair`] runs two [`Endpoint`](pilotage_proto::Endpoint)s over a simulated [`Link`] under a virtual
//! clock that jumps to the next event, so a minute of protocol time costs milliseconds. Everything
//! random comes from one seed: the same seed gives the same [`Pair::digest`] on any machine.
//!
//! ```
//! use pilotage_sim::{Link, Pair};
//!
//! let mut pair = Pair::new(7, Link { loss: 0.1, ..Link::default() });
//! let outcome = pair.transfer(&[42; 100_000]);
//! assert_eq!(outcome.received, vec![42; 100_000]);
//! ```

mod link;
mod pair;
mod transfer;

pub use link::Link;
pub use pair::{Host, Pair, Side};
pub use transfer::{Outcome, TransferError, pattern};

/// The seeds of a test: `PILOTAGE_SEED` alone if it is set (to replay a failure), else `count` of them.
pub fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("PILOTAGE_SEED").ok().and_then(|s| s.parse().ok()) {
        Some(seed) => vec![seed],
        None => (0..count).collect(),
    }
}
