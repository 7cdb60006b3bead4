//! Which protection a tunnel has, and what an endpoint needs for S1 (spec/secure.md §12).
//!
//! The draft's tunnels and [`crate::s1`] know nothing of each other. A tunnel asks here which of them it may use.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pilotage_wire::s1::payload::{SuiteList, TransportParameters};
use pilotage_wire::{Address, NetworkId};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

use crate::config::Config;
use crate::crypto::Identity;
use crate::s1::{self, Limits, Node, NodeConfig, PostQuantum, Secret, Suite};

/// How a tunnel is protected. A greater one is safer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// The draft's key exchange and frames under our rules (spec/tunnel.md §6).
    #[default]
    Draft,
    /// The secure mode S1 (spec/secure.md).
    S1,
}

impl Mode {
    /// `draft` or `s1`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::S1 => "s1",
        }
    }
}

/// Which modes an endpoint speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum SecureMode {
    /// The draft's only, as if there were no S1.
    #[default]
    Draft,
    /// S1 with whoever speaks it, the draft's with others.
    Auto,
    /// S1 only.
    S1,
}

impl SecureMode {
    /// All, with their names.
    pub const ALL: [(&'static str, Self); 3] =
        [("draft", Self::Draft), ("auto", Self::Auto), ("s1", Self::S1)];

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, mode)| *mode == self).map_or("draft", |(name, _)| name)
    }
}

impl std::str::FromStr for SecureMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text).map(|(_, mode)| *mode);
        found.ok_or_else(|| format!("{text:?} is no mode: use draft, auto or s1"))
    }
}

/// What [`Endpoint::enable_s1`](crate::Endpoint::enable_s1) needs.
#[derive(Debug, Clone)]
pub struct SecureConfig {
    /// Which modes to speak. [`SecureMode::Draft`] leaves S1 off.
    pub mode: SecureMode,
    /// Wall clock now, Unix time in milliseconds. Read once: later times are this one plus the monotonic time since.
    pub unix_ms: u64,
    /// 32 secret bytes that survive restarts and never leave the device: they make the tokens of stateless resets.
    pub device: Secret,
    /// How our node id was derived from the key.
    pub salt: u16,
    /// Suites that we have, best first.
    pub suites: SuiteList,
    /// Life of keys.
    pub limits: Limits,
    /// Secrets of networks (spec/secure.md §6.1): within these networks nobody without the secret has a session with us.
    pub network_secrets: Vec<(NetworkId, Secret)>,
    /// Whether connections within S1 are streams of its own frame layer (spec/secure.md §11), with peers that have it: the
    /// default. Without, packets of the draft travel in S1's frames.
    pub streams: bool,
    /// The post-quantum upgrade of sessions (spec/secure.md §9.5).
    pub post_quantum: PostQuantum,
    /// Whether datagrams are taken from a peer's first packet (spec/secure.md §6.4). They are from whom they say, but for whoever stole our
    /// prekey; the sender stated that they may be delivered twice.
    pub early: bool,
}

impl SecureConfig {
    /// With the suites that this CPU does well, and the specification's life of keys.
    pub fn new(mode: SecureMode, unix_ms: u64, device: [u8; 32]) -> Self {
        Self {
            mode,
            unix_ms,
            device: Secret::new(device),
            salt: 0,
            suites: Suite::offer(Suite::cpu_has_aes()),
            limits: Limits::default(),
            network_secrets: Vec::new(),
            streams: true,
            post_quantum: PostQuantum::Off,
            early: true,
        }
    }
}

/// What an endpoint has of S1.
#[derive(Debug)]
pub(crate) struct Secure {
    pub(crate) node: Node,
    pub(crate) mode: SecureMode,
    /// Connections are streams of S1, where the peer has them too.
    pub(crate) streams: bool,
    /// Early data is taken.
    pub(crate) early: bool,
    /// The upgrade of sessions.
    pub(crate) post_quantum: PostQuantum,
    /// Whose tunnel an index is that a peer chose. For stateless resets.
    pub(crate) remotes: HashMap<u32, u32>,
    /// Streams that we kept with any peer before, and do not any more, were over then (§11.2).
    pub(crate) lives_since: Instant,
    salt: u16,
    rng: ChaCha20Rng,
    began: Instant,
    began_unix_ms: u64,
}

impl Secure {
    /// `seed` is the endpoint's; what is drawn here does not change what is drawn from it there.
    pub(crate) fn new(
        config: SecureConfig,
        identity: Identity,
        address: Address,
        seed: &[u8; 32],
        cfg: &Config,
        now: Instant,
    ) -> Self {
        let post_quantum = config.post_quantum;
        let SecureConfig {
            mode, unix_ms, device, salt, suites, limits, network_secrets, streams, early, ..
        } = config;
        // No streams and no windows: packets of the draft only (spec/secure.md §12.6).
        let legacy_only = TransportParameters {
            max_datagram: u16::MAX,
            idle: 0,
            ack_delay: 0,
            streams: 0,
            tunnel_window: 0,
            stream_window: 0,
        };
        let mut rng = ChaCha20Rng::from_seed(blake3::derive_key("pilotage 2026 s1 randomness v1", seed));
        let config = NodeConfig {
            identity,
            address,
            salt,
            caps: 0,
            seq: unix_ms.max(1),
            suites,
            transport: if streams { crate::mux::parameters(cfg) } else { legacy_only },
            device,
            limits,
            post_quantum,
            psks: network_secrets,
        };
        let node = Node::new(config, &mut s1::Cx { now, unix_ms, rng: &mut rng });
        Self {
            node,
            mode,
            streams,
            early,
            post_quantum,
            remotes: HashMap::new(),
            lives_since: now,
            salt,
            rng,
            began: now,
            began_unix_ms: unix_ms,
        }
    }

    /// A registry calls us something else.
    pub(crate) fn set_address(&mut self, address: Address) {
        self.node.set_address(address, self.salt);
    }

    /// Time in which the monotonic clock stood still.
    pub(crate) fn slept(&mut self, slept: Duration) {
        let ms = u64::try_from(slept.as_millis()).unwrap_or(u64::MAX);
        self.began_unix_ms = self.began_unix_ms.saturating_add(ms);
        self.node.slept(ms);
    }

    /// A random number, not 0.
    pub(crate) fn draw(&mut self) -> u64 {
        self.rng.next_u64().max(1)
    }

    /// The node, and what its calls need.
    pub(crate) fn parts(&mut self, now: Instant) -> (&mut Node, s1::Cx<'_>) {
        let up = now.saturating_duration_since(self.began).as_millis() as u64;
        (&mut self.node, s1::Cx { now, unix_ms: self.began_unix_ms.saturating_add(up), rng: &mut self.rng })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "tests need a clock as a base")]
    fn time_goes_on_while_the_host_sleeps() {
        let now = Instant::now();
        let config = SecureConfig::new(SecureMode::S1, 1_000_000, [1; 32]);
        let identity = Identity::from_seed([1; 32]);
        let mut secure =
            Secure::new(config, identity, Address::new(0, 77), &[2; 32], &Config::default(), now);
        let second = Duration::from_secs(1);
        assert_eq!(secure.parts(now + second).1.unix_ms, 1_001_000);
        secure.slept(3_600 * second);
        assert_eq!(secure.parts(now + 2 * second).1.unix_ms, 4_602_000);
    }

    #[test]
    fn modes_have_names_and_an_order() {
        for (name, mode) in SecureMode::ALL {
            assert_eq!(name.parse(), Ok(mode));
            assert_eq!(mode.name(), name);
        }
        assert!("S2".parse::<SecureMode>().is_err());
        assert!(Mode::Draft < Mode::S1, "a floor is a minimum");
        assert_eq!(SecureMode::default(), SecureMode::Draft, "off until proven");
    }
}
