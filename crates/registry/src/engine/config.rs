//! Limits and policies of the engine.

use pilotage_wire::registry::Beacon;
use std::time::Duration;

/// Policies and bounds. The defaults are those of spec/registry.md §9.
#[derive(Debug, Clone)]
pub struct Config {
    /// Accept registrations without proof of possession, as the reference's daemons send them. Such a registration
    /// never touches a key that has given a proof before (spec/registry.md §5.3). Default: false.
    pub allow_unsigned: bool,
    /// Most addresses ever claimed. Default: 1,000,000.
    pub max_nodes: usize,
    /// Silence after which a node counts as gone. Default: 3 minutes.
    pub presence: Duration,
    /// Life of an unused challenge. Default: 60 s.
    pub challenge_life: Duration,
    /// Limits per source address.
    pub rates: RateLimits,
    /// Most sources with a limiter entry; further ones share one. Default: 65,536.
    pub max_sources: usize,
    /// Beacons that are always listed (the hub's own). Default: none.
    pub beacons: Vec<Beacon>,
    /// Let anybody announce a beacon, as the reference does. Default: false.
    pub allow_beacon_register: bool,
    /// Most announced beacons. Default: 64.
    pub max_beacons: usize,
    /// Life of an announcement. Default: 60 s.
    pub beacon_life: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allow_unsigned: false,
            max_nodes: 1_000_000,
            presence: Duration::from_secs(180),
            challenge_life: Duration::from_secs(60),
            rates: RateLimits::default(),
            max_sources: 65_536,
            beacons: Vec::new(),
            allow_beacon_register: false,
            max_beacons: 64,
            beacon_life: Duration::from_secs(60),
        }
    }
}

/// Requests per minute and source IP address (IPv6: /64 prefix). A source may send a whole minute's worth at once.
/// 0 means no limit.
///
/// The defaults let 3,000 nodes live behind one address (the reference's: 25), and let one address cost at most about
/// 3 % of a core for signature checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimits {
    /// `challenge`.
    pub challenge: u32,
    /// `register` of keys never seen before.
    pub register: u32,
    /// `register` of known keys, `set_hostname`, `set_visibility`, `deregister`.
    pub update: u32,
    /// `heartbeat`.
    pub heartbeat: u32,
    /// `lookup`, `resolve_hostname`, `beacon_list`.
    pub lookup: u32,
    /// `resolve`.
    pub resolve: u32,
    /// `beacon_register`.
    pub beacon: u32,
}

impl RateLimits {
    /// No limits at all: for tests and closed networks.
    pub const UNLIMITED: Self =
        Self { challenge: 0, register: 0, update: 0, heartbeat: 0, lookup: 0, resolve: 0, beacon: 0 };
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            challenge: 6_000,
            register: 600,
            update: 6_000,
            heartbeat: 12_000,
            lookup: 60_000,
            resolve: 12_000,
            beacon: 60,
        }
    }
}
