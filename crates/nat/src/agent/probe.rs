//! Guessing the port that a hard NAT takes for us (spec/nat.md §10.5).
//!
//! A node behind a NAT with address-dependent mapping has mappings towards us whose ports only its NAT knows: one for its
//! socket, and hundreds for the sockets that it opens for this (`fan`). NATs that count give the next ports after the one
//! that the beacon saw, so those come first; then all others in a scattered order, up to the budget.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Probes of one run.
pub(super) const PROBES_MAX: u32 = 2_000;
/// Pause between two probes: 200 a second.
const PROBE_EVERY: Duration = Duration::from_millis(5);
/// Ports next to the one that was seen, tried first: two upwards for one downwards.
const NEAR: u32 = 600;
/// Ports that NATs use.
const LOWEST: u32 = 1_024;
const PORTS: u32 = 65_536 - LOWEST;

/// One run.
#[derive(Debug)]
pub(super) struct PortProbe {
    base: SocketAddr,
    scatter: u32,
    pub(super) sent: u32,
    pub(super) next: Instant,
}

impl PortProbe {
    pub(super) fn new(base: SocketAddr, seed: u32, now: Instant) -> Self {
        Self { base, scatter: seed % PORTS, sent: 0, next: now }
    }

    pub(super) fn is_about(&self, addr: SocketAddr) -> bool {
        self.base.ip() == addr.ip()
    }

    /// Whether the budget is spent.
    pub(super) fn is_over(&self) -> bool {
        self.sent >= PROBES_MAX
    }

    /// The next address to try, if it is time for it.
    pub(super) fn poll(&mut self, now: Instant) -> Option<SocketAddr> {
        if self.is_over() || self.next > now {
            return None;
        }
        let port = self.port(self.sent);
        self.sent += 1;
        // Late calls do not make bursts.
        self.next = now + PROBE_EVERY;
        Some(SocketAddr::new(self.base.ip(), port))
    }

    /// The port of the probe with this number.
    fn port(&self, number: u32) -> u16 {
        let base = u32::from(self.base.port());
        let offset = if number < NEAR {
            // +1 +2 -1 +3 +4 -2 …
            let (round, place) = (number / 3, number % 3);
            match place {
                0 => PORTS + round * 2 + 1,
                1 => PORTS + round * 2 + 2,
                _ => PORTS - round - 1,
            }
        } else {
            // Every port once: the factor is prime to the number of ports.
            self.scatter + (number - NEAR).wrapping_mul(40_503) % PORTS
        };
        let place = (base.max(LOWEST) - LOWEST + offset) % PORTS;
        (LOWEST + place) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn probes_are_paced_bounded_and_begin_next_to_what_was_seen() {
        let mut now = crate::clock_start();
        let mut probe = PortProbe::new("198.51.100.7:40000".parse().unwrap(), 99, now);
        let mut seen = HashSet::new();
        let mut ports = Vec::new();
        loop {
            while let Some(addr) = probe.poll(now) {
                assert_eq!(addr.ip(), "198.51.100.7".parse::<std::net::IpAddr>().unwrap());
                assert!(addr.port() >= 1_024);
                seen.insert(addr.port());
                ports.push(addr.port());
            }
            if probe.is_over() {
                break;
            }
            assert_eq!(probe.poll(now), None, "one at a time");
            now = probe.next;
        }
        assert_eq!(ports[..6], [40_001, 40_002, 39_999, 40_003, 40_004, 39_998]);
        assert_eq!(ports.len() as u32, PROBES_MAX);
        assert!(seen.len() > 1_950, "{} different ports", seen.len());
        assert_eq!(probe.poll(now + Duration::from_secs(1)), None);
    }

    #[test]
    fn the_last_port_is_followed_by_the_first() {
        let now = crate::clock_start();
        for base in [65_535u16, 1_024, 1, 80] {
            let probe = PortProbe::new(SocketAddr::from(([198, 51, 100, 7], base)), u32::MAX, now);
            for number in 0..PROBES_MAX {
                assert!(probe.port(number) >= 1_024);
            }
        }
    }
}
