//! Pilot registry: who has which address and name, and where a node is.
//!
//! * [`book`]: the second request family of the registry's port: records and claims (`spec/registry2.md`).
//! * [`claims`]: who was first: claims, their state machine and Merkle logs, sans-IO (`spec/registry2.md`).
//! * [`engine`]: the decisions, sans-IO. Proof of possession, names, visibility, presence, limits.
//! * [`store`] (feature `store`): one redb file; a batch is durable before its replies are sent.
//! * [`keys`] (feature `store`): which key each node has, for a beacon in the same process.
//! * [`ledger`]: the draft's registry kept by several nodes at once: transactions and their state machine, sans-IO (`spec/cluster.md §10`).
//! * [`placement`]: which nodes hold a record; sans-IO (`spec/cluster.md §7`).
//! * [`replica`]: records held for others, presence, watching (`spec/replica.md`).
//! * [`record`]: signatures of PREC records, pure (`spec/registry2.md`).
//! * [`service`] (feature `store`): batches of requests through engine and store, sans-IO.
//! * [`server`] (feature `server`): a single-threaded mio TCP server.
//! * [`client`] (feature `client`): a blocking TCP client that speaks our dialect and the reference's.
//! * [`tls`] (features `client`, `server`): certificate and pin of the registry's port.
//!
//! Messages and signed strings live in [`pilotage_wire::registry`]. Normative text: `spec/registry.md`.

pub mod book;
pub mod claims;
#[cfg(feature = "client")]
pub mod client;
pub mod engine;
#[cfg(feature = "store")]
pub mod keys;
pub mod ledger;
pub mod placement;
mod points;
pub mod record;
pub mod replica;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "store")]
pub mod service;
#[cfg(feature = "store")]
pub mod store;
#[cfg(any(feature = "client", feature = "server"))]
pub mod tls;
