//! Transports over emulated links: cold transfers, parallel fetches, fairness, added delay.
//!
//! Every run has a laboratory of its own (`pilotage-lab`): two namespaces and the link between them. The two sides
//! are this program again, one process each, inside. What went over the link is counted by the emulator, so that
//! every transport pays for the same bytes. The results are [`crate::record::Record`]s, one JSON object on a line.

mod delay;
mod fairness;
mod fetch;
mod options;
mod peers;
mod process;
mod runner;
mod side;
mod table;
mod transfer;

pub use options::{LinkName, Options, Peer};
pub use runner::run;
