//! Every kind is what its name says, as seen by sockets on both sides of it.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::{Behaviour, NatKind, World, WorldConfig, probe};
use crate::LabError;

/// Half of the round trip: short, so that the many answers that do not come are not waited for long.
const ONE_WAY: Duration = Duration::from_millis(2);
/// A busy machine gets this many tries.
const TRIES: u32 = 3;

/// What one kind was found to be.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// Its name.
    pub kind: NatKind,
    /// What it must be.
    pub expected: Behaviour,
    /// What was seen.
    pub found: Behaviour,
    /// TCP ports of the hub that were reached, of 443 and 9000.
    pub tcp: BTreeSet<u16>,
    /// Whether the table is gone after a reboot: the old outside end is dead until the host sends again.
    pub forgets: Option<bool>,
    /// Whether all of it is as it must be.
    pub passed: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed { "ok" } else { "FAILED" };
        write!(f, "{:<21} {:<44} {verdict}  {}", self.kind, self.kind.made_by(), self.found)?;
        if !self.passed {
            write!(f, "\n  expected: {}; TCP {:?}, forgets: {:?}", self.expected, self.tcp, self.forgets)?;
        }
        Ok(())
    }
}

impl fmt::Display for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.udp {
            return f.write_str("no UDP");
        }
        let dependence = |value: Option<super::Dependence>| match value {
            Some(super::Dependence::EndpointIndependent) => "endpoint-independent",
            Some(super::Dependence::AddressDependent) => "address-dependent",
            Some(super::Dependence::AddressAndPortDependent) => "address-and-port-dependent",
            None => "?",
        };
        let ports = match self.allocation {
            Some(super::Allocation::Preserve) => "kept",
            Some(super::Allocation::Sequential) => "counted",
            Some(super::Allocation::Random) => "random",
            None => "?",
        };
        write!(
            f,
            "mapping {}, filtering {}, ports {ports}, {} routers",
            dependence(self.mapping),
            dependence(self.filtering),
            self.hops.map_or("?".into(), |hops| hops.to_string()),
        )?;
        f.write_str(if self.hairpin == Some(true) { ", hairpin" } else { "" })?;
        f.write_str(if self.mappable { ", maps ports on demand" } else { "" })
    }
}

/// Examines these kinds side by side and hands each finding to `tell`.
///
/// # Errors
/// [`LabError::Unavailable`] where there can be no world; others if a step fails.
pub fn run(kinds: &[NatKind], tell: &(dyn Fn(&Finding) + Sync)) -> Result<Vec<Finding>, LabError> {
    super::available()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = kinds
            .iter()
            .map(|kind| {
                scope.spawn(move || {
                    let mut finding = examine(*kind)?;
                    for _ in 1..TRIES {
                        if finding.passed {
                            break;
                        }
                        finding = examine(*kind)?;
                    }
                    tell(&finding);
                    Ok(finding)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread.join().unwrap_or_else(|_| Err(LabError::failed("self-test", "a thread panicked")))
            })
            .collect()
    })
}

/// Examines one kind, in a world of its own.
///
/// # Errors
/// As [`run`].
pub fn examine(kind: NatKind) -> Result<Finding, LabError> {
    let world = World::new(&[kind], &WorldConfig { one_way: ONE_WAY, ..WorldConfig::default() })?;
    let _server = probe::Server::start(&world)?;
    let found = probe::behaviour(&world, 0)?;
    let tcp = probe::tcp(&world, 0)?;
    let forgets = if found.udp { probe::forgets(&world, 0)? } else { None };
    let expected = kind.behaviour();
    let expected_tcp: &[u16] = if kind == NatKind::UdpBlocked { &[443] } else { &[443, 9_000] };
    // A public host has no table, and one that is translated one to one needs none.
    let expected_forgets = match kind {
        NatKind::None | NatKind::OneToOne => Some(false),
        NatKind::UdpBlocked => None,
        _ => Some(true),
    };
    let passed = found == expected
        && tcp.iter().copied().eq(expected_tcp.iter().copied())
        && forgets == expected_forgets;
    Ok(Finding { kind, expected, found, tcp, forgets, passed })
}
