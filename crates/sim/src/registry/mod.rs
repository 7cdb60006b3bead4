//! A registry process on a simulated disk, and the nodes' registry clients, for a simulated network.
//!
//! * [`RegistryHost`] is the real service, engine and store of `pilotage-registry` over a disk that can fill up, fail
//!   and lose power. It checks what it promises: see [`RegistryHost::check`].
//! * [`RegistryAgent`] is a node's client and keeper: registers, sends heartbeats, asks, and starts over when the
//!   connection or the registry goes.
//!
//! Both are sans-IO. Whoever drives them carries bytes, in order, over connections that may break at any time.

mod agent;
mod disk;
mod host;
mod ledger;

pub use agent::{AgentConfig, AgentEvent, AgentOutput, Ask, RegistryAgent};
pub use disk::DiskState;
pub use host::{Bounds, Crash, HostConfig, RegistryConn, RegistryHost, RegistryOutput, Restart};
