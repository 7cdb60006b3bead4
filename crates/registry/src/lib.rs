//! Pilot registry: who has which address and name, and where a node is.
//!
//! * [`engine`]: the decisions, sans-IO. Proof of possession, names, visibility, presence, limits.
//! * [`store`] (feature `store`): one redb file; a batch is durable before its replies are sent.
//! * [`service`] (feature `store`): batches of requests through engine and store, sans-IO.
//! * [`server`] (feature `server`): a single-threaded mio TCP server.
//! * [`client`] (feature `client`): a blocking TCP client that speaks our dialect and the reference's.
//! * [`tls`] (features `client`, `server`): certificate and pin of the registry's port.
//!
//! Messages and signed strings live in [`pilotage_wire::registry`]. Normative text: `spec/registry.md`.

#[cfg(feature = "client")]
pub mod client;
pub mod engine;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "store")]
pub mod service;
#[cfg(feature = "store")]
pub mod store;
#[cfg(any(feature = "client", feature = "server"))]
pub mod tls;
