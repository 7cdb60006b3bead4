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
pub mod nat;
mod neck;
mod network;
mod pair;
mod plan;
pub mod registry;
pub mod rogue;
mod trace;
mod transfer;
mod world;

pub use link::{Arrival, Bursts, Fate, Link, LinkState};
pub use neck::Neck;
pub use network::{HostId, Network};
pub use pair::{Censor, Host, Modes, Pair, Side};
pub use plan::{Fault, LIVELY, NodePlan, Plan, Report, replay_command};
pub use trace::{Trace, describe};
pub use transfer::{Outcome, TransferError, pattern};
pub use world::{
    Adversary, Audit, Clock, Counts, DATAGRAM_PORT, End, Ending, Flow, FlowPlan, Invariant, Machine, Memory,
    Node, Power, Role, STREAM_PORT, Seen, Traffic, Trick, Violation, World,
};

/// The seeds of a test: `PILOTAGE_SEED` alone if it is set (to replay a failure), else as many as `PILOTAGE_SEEDS` says,
/// else `count` of them.
pub fn seeds(count: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().and_then(|s| s.parse().ok());
    match number("PILOTAGE_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("PILOTAGE_SEEDS").unwrap_or(count)).collect(),
    }
}

/// Virtual time has to begin somewhere; only differences matter.
pub(crate) fn base_instant() -> std::time::Instant {
    std::time::Instant::now()
}
