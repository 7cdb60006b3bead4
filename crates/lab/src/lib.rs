//! A laboratory: network namespaces joined by an emulated link. Development only; Linux, root.
//!
//! ```text
//!  namespace 0 ──TUN──▶ link 0 ──▶ TUN── namespace 1
//!              ◀──TUN── link 1 ◀── TUN──
//! ```
//!
//! Each namespace has one TUN device, the only way out. What leaves it goes through the [`link::Link`] of that
//! namespace and arrives in the namespace that has the address. The devices take no offload, so the kernel cuts
//! everything into packets of the device's MTU and TCP and UDP meet the same fate, packet by packet.
//! One thread per namespace, with real-time priority where that is permitted, moves the packets.
//!
//! ```no_run
//! use std::time::Duration;
//! use pilotage_lab::{Lab, LabConfig, LinkConfig};
//!
//! let link = LinkConfig::new(100_000_000, Duration::from_millis(20)).losing(0.01);
//! let lab = Lab::new(&[link.clone(), link], &LabConfig::default())?;
//! let server = lab.namespace(1).command("iperf3").arg("-s").spawn()?;
//! # drop(server);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod device;
mod error;
mod lab;
pub mod link;
mod namespace;
pub mod nat;
mod pump;
pub mod selftest;

pub use error::LabError;
pub use lab::{Lab, LabConfig};
pub use link::{Bursts, CoDelConfig, Counters, Link, LinkConfig, Queue};
pub use namespace::{Namespace, sweep};
