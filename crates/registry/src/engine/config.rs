//! Limits and policies of the engine.

use super::Secret;
use pilotage_wire::NodeId;
use pilotage_wire::registry::Beacon;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Policies and bounds. The defaults are those of spec/registry.md §9.
#[derive(Debug, Clone)]
pub struct Config {
    /// What a registration without proof of possession is worth, as the reference's daemons send it. It never touches a
    /// key that has given a fresh proof before (spec/registry.md §5.3). Default: [`Unsigned::UntilSigned`].
    pub unsigned: Unsigned,
    /// Does everything that an operator may. Default: none, so nobody is one.
    pub admin_token: Option<Secret>,
    /// Let everybody change scores, as the reference does. Default: false.
    pub open_scores: bool,
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
    /// Most nodes in memory that have signed nothing yet. Default: 4,096.
    pub max_unconfirmed: usize,
    /// Bounds of networks, trust and inboxes.
    pub social: SocialLimits,
    /// A name that means a node of this hub's own, and another one at each hub of a cluster. Nobody gets it.
    pub own_name: Option<OwnName>,
}

/// What a registration without proof is worth (spec/registry.md §5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unsigned {
    /// Nothing.
    Refused,
    /// It waits, on its connection and in memory, until the key signs something there.
    #[default]
    UntilSigned,
    /// What it says, as long as it contradicts nothing better: for networks in which everybody is trusted.
    Trusted,
}

/// Bounds of networks, trust and inboxes (spec/registry.md §9.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocialLimits {
    /// Networks beside the backbone. Default: 256.
    pub networks: usize,
    /// Members of a network. Default: 1,000.
    pub members: usize,
    /// Consents in all: two per pair. Default: 1,000,000.
    pub consents: usize,
    /// Consents of one node. Default: 4,096.
    pub consents_per_node: usize,
    /// Requests and responses waiting in all inboxes. Default: 65,536.
    pub inbox: usize,
    /// Requests, and responses, waiting for one node. Default: 256.
    pub inbox_per_node: usize,
    /// Invitations waiting in all. Default: 65,536.
    pub invites: usize,
    /// Invitations waiting for one node. Default: 64.
    pub invites_per_node: usize,
    /// Look-ups remembered for the answers to them. Default: 65,536.
    pub calls: usize,
}

/// See [`Config::own_name`]. Clones share the node.
#[derive(Debug, Clone)]
pub struct OwnName {
    name: Box<str>,
    node: Arc<OnceLock<NodeId>>,
}

impl OwnName {
    /// A name that nobody has yet.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), node: Arc::default() }
    }

    /// Says whose it is; only the first one counts.
    pub fn set(&self, node: NodeId) {
        let _ = self.node.set(node);
    }

    pub(super) fn is(&self, name: &str) -> bool {
        *self.name == *name
    }

    pub(super) fn node(&self) -> Option<NodeId> {
        self.node.get().copied()
    }
}

impl Default for SocialLimits {
    fn default() -> Self {
        Self {
            networks: 256,
            members: 1_000,
            consents: 1_000_000,
            consents_per_node: 4_096,
            inbox: 65_536,
            inbox_per_node: 256,
            invites: 65_536,
            invites_per_node: 64,
            calls: 65_536,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            unsigned: Unsigned::default(),
            admin_token: None,
            open_scores: false,
            max_nodes: 1_000_000,
            presence: Duration::from_secs(180),
            challenge_life: Duration::from_secs(60),
            rates: RateLimits::default(),
            max_sources: 65_536,
            beacons: Vec::new(),
            allow_beacon_register: false,
            max_beacons: 64,
            beacon_life: Duration::from_secs(60),
            max_unconfirmed: 4_096,
            social: SocialLimits::default(),
            own_name: None,
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
    /// `register` of known keys and everything else that changes something.
    pub update: u32,
    /// `heartbeat`, `poll_handshakes`, `poll_invites`.
    pub heartbeat: u32,
    /// Questions that need no signature.
    pub lookup: u32,
    /// `resolve`, `punch`, `list_nodes`.
    pub resolve: u32,
    /// `beacon_register`.
    pub beacon: u32,
    /// Wrong tokens; beyond, tokens are not looked at.
    pub guess: u32,
}

impl RateLimits {
    /// No limits at all: for tests and closed networks.
    pub const UNLIMITED: Self = Self {
        challenge: 0,
        register: 0,
        update: 0,
        heartbeat: 0,
        lookup: 0,
        resolve: 0,
        beacon: 0,
        guess: 0,
    };
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
            guess: 30,
        }
    }
}
