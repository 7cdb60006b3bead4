//! Registry nodes that agree: claims ordered by Raft over Pilotage streams, and where records lie.
//!
//! * [`claims`]: [`RaftLog`], the registry's claims in a cluster, behind the same trait as in one process.
//! * [`Cluster`]: a node. Founds, joins, proposes, reads; consensus is openraft's, the [`Machine`] is anybody's.
//! * [`placement`]: which nodes hold a record; sans-IO.
//! * [`frame`]: what members say to each other; pure, fuzzed. [`faults`]: what goes wrong on purpose, for tests.
//!
//! # Contract
//! * The API blocks, for a stated time at most; tokio runs inside and nowhere else. Do not call it from a tokio task.
//! * What was acknowledged is on the disks of a majority. What was not answered may or may not happen: ask again.
//! * Every queue, frame, table and wait has a bound, named where it is.
//!
//! Normative text: `spec/cluster.md`.

pub mod claims;
pub mod faults;
pub mod frame;
#[cfg(test)]
mod free;
mod machine;
mod net;
mod node;
pub use pilotage_registry::placement;
mod status;
mod store;
mod types;

pub use claims::RaftLog;
pub use faults::{DiskFault, Faults};
pub use machine::Machine;
pub use net::{PORT, STRANGERS, STREAMS};
pub use node::{
    Cluster, ClusterConfig, ClusterError, FILE, MAX_MEMBERS, MAX_VOTERS, ProposeError, Signature, Start,
    Timing, key_at,
};
pub use status::{MemberStatus, Status, id_text, parse_id};
pub use store::StoreError;
pub use types::{Answer, Command, Member, RaftId, Types, raft_id};

/// Longest command, bytes: a batch of claims.
pub const MAX_COMMAND: usize = 512 << 10;
/// Largest snapshot, bytes.
pub const MAX_SNAPSHOT: usize = 1 << 30;
