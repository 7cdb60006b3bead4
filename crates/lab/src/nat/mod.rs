//! Worlds of NATs: hosts in namespaces behind boxes of the kernel or of this process, joined by a public segment.
//!
//! | part | what it is |
//! |---|---|
//! | [`NatKind`] | the twelve kinds by name, and what each must be seen to be |
//! | [`World`] | hub, sides, and what can be done to them: reboot, roam, pull the cable |
//! | [`table`], [`translator`], [`packet`] | the user-space NAT, without clock or device |
//! | [`probe`] | what a host is behind, by plain sockets (in the manner of RFC 5780) |
//! | [`selftest`] | every kind is what its name says |
//!
//! ```no_run
//! use pilotage_lab::nat::{NatKind, World, WorldConfig};
//!
//! let world = World::new(&[NatKind::FullCone, NatKind::SymmetricRandom], &WorldConfig::default())?;
//! let inside = world.side(0).host().command("ip").arg("address").status()?;
//! # drop(inside);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod boxes;
mod kind;
mod mapper;
pub mod packet;
pub mod probe;
mod segment;
pub mod selftest;
pub mod table;
#[cfg(test)]
mod tests;
pub mod translator;
mod world;

use std::process::{Command, Stdio};

pub use kind::{Behaviour, MAPPING_LIFETIME, NatKind};
pub use table::{Allocation, Dependence, NatConfig, NatCounters};
pub use world::{ROAMING_ADDRESSES, Side, World, WorldConfig};

use crate::{Lab, LabError};

/// Says why there can be no world here.
///
/// # Errors
/// [`LabError::Unavailable`].
pub fn available() -> Result<(), LabError> {
    Lab::available()?;
    let version = Command::new("nft").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !version.is_ok_and(|status| status.success()) {
        return Err(LabError::Unavailable("`nft` (nftables) is missing".into()));
    }
    Ok(())
}
