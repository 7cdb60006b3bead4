//! A whole story from one number: hosts, links, traffic, faults, and what must be true in the end.
//!
//! 1. **Chaos**: everything at once, for as long as the plan says. Anything may fail, nothing may be wrong.
//! 2. **Heal**: all links are good, all processes run, the adversary is gone. From now on every pair of nodes must
//!    exchange a message within [`LIVELY`], and everything that was begun must end, well or with an error.
//! 3. **Silence**: nothing is open any more, so nothing may be sent and nothing be held.

mod random;
mod run;

use std::collections::BTreeMap;
use std::time::Duration;

use pilotage_proto::s1::{Limits, PostQuantum};
use pilotage_proto::{Config, SecureMode};

use crate::link::Link;
use crate::network::HostId;
use crate::registry::{Crash, DiskState, Restart};
use crate::trace::Trace;
use crate::world::{Counts, FlowPlan, Memory, Trick, Violation};

/// How long healed nodes may take to exchange a message, in virtual time.
pub const LIVELY: Duration = Duration::from_secs(30);

/// One node of a plan.
#[derive(Debug, Clone)]
pub struct NodePlan {
    /// Its settings.
    pub config: Config,
    /// Its uplink during chaos.
    pub up: Link,
    /// Its downlink during chaos.
    pub down: Link,
    /// Millionths by which its clock is too fast.
    pub ppm: i64,
    /// Which modes it speaks.
    pub mode: SecureMode,
    /// How long its keys of S1 live.
    pub limits: Limits,
    /// Whether its connections in S1 are streams of S1.
    pub streams: bool,
    /// Whether it would like the post-quantum upgrade.
    pub post_quantum: PostQuantum,
}

/// Something bad that happens at a time.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The process is killed and comes back after a while with what it stored, or without.
    Crash {
        /// Which host.
        host: HostId,
        /// How long it stays away.
        away: Duration,
        /// What it still knows.
        memory: Memory,
    },
    /// The process is stopped for a while.
    Pause(HostId, Duration),
    /// The host gets another address.
    Roam(HostId),
    /// Nothing passes in one or both directions for a while.
    Blackout {
        /// Which host.
        host: HostId,
        /// Its uplink too.
        up: bool,
        /// Its downlink too.
        down: bool,
        /// How long.
        time: Duration,
    },
    /// What is sent is held back, and comes all at once.
    Clog(HostId, Duration),
    /// Two hosts cannot reach each other (in one direction or both) for a while, but others.
    Wall {
        /// From here.
        from: HostId,
        /// To there.
        to: HostId,
        /// And back.
        both: bool,
        /// How long.
        time: Duration,
    },
    /// The links of a host become others.
    Change(HostId, Box<Link>, Box<Link>),
    /// The registry ends and comes back after a while.
    RegistryCrash {
        /// Its process or its machine.
        how: Crash,
        /// How long it stays away.
        away: Duration,
        /// With which disk it comes back.
        back: Restart,
    },
    /// The registry's disk is bad for a while.
    Disk(DiskState, Duration),
    /// The wall clock of a host jumps by so many seconds.
    WallClock(HostId, i64),
}

impl Fault {
    /// Its name in reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Crash { memory: Memory::Kept, .. } => "crash",
            Self::Crash { memory: Memory::Lost, .. } => "crash, state lost",
            Self::Pause(..) => "pause",
            Self::Roam(_) => "roam",
            Self::Blackout { .. } => "blackout",
            Self::Clog(..) => "clog",
            Self::Wall { .. } => "wall",
            Self::Change(..) => "path change",
            Self::RegistryCrash { back: Restart::Kept, .. } => "registry crash",
            Self::RegistryCrash { .. } => "registry crash, disk lost",
            Self::Disk(..) => "registry disk",
            Self::WallClock(..) => "wall clock",
        }
    }
}

/// Everything that is to happen.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The number that it was made from.
    pub seed: u64,
    /// The nodes; their host numbers follow the adversary's two.
    pub nodes: Vec<NodePlan>,
    /// Whether there is a beacon.
    pub beacon: bool,
    /// Whether there is a registry that the nodes register at.
    pub registry: bool,
    /// Streams.
    pub flows: Vec<FlowPlan>,
    /// Datagrams: when, from, to, bytes.
    pub datagrams: Vec<(Duration, HostId, HostId, usize)>,
    /// Pings: when, from, to.
    pub pings: Vec<(Duration, HostId, HostId)>,
    /// Faults in order of time.
    pub faults: Vec<(Duration, Fault)>,
    /// Chance that the adversary acts at a datagram.
    pub adversary: f64,
    /// Chances in 1,000 that a fault point that is switched on fires.
    pub fault_points: u32,
    /// How long the first phase takes.
    pub chaos: Duration,
}

/// What came of a plan.
#[derive(Debug)]
pub struct Report {
    /// The plan's number.
    pub seed: u64,
    /// Hash over everything that happened.
    pub digest: blake3::Hash,
    /// The first broken invariant.
    pub violation: Option<Violation>,
    /// Virtual time.
    pub simulated: Duration,
    /// Counters of the wire.
    pub counts: Counts,
    /// Stream bytes that were delivered and compared.
    pub stream_bytes: u64,
    /// Datagrams that were delivered and compared.
    pub datagrams: u64,
    /// Frames sealed under nonces that were compared.
    pub frames_sealed: u64,
    /// Streams that did all that was planned, and streams that reported an error.
    pub flows: (u64, u64),
    /// Faults by name.
    pub faults: BTreeMap<&'static str, u64>,
    /// What the adversary did.
    pub tricks: [u64; Trick::ALL.len()],
    /// Everything in detail, if it was asked for.
    pub trace: Option<Trace>,
}

/// The command that shows a seed's run again.
#[must_use]
pub fn replay_command(seed: u64) -> String {
    format!(
        "cargo run --profile sim --package pilotage-sim -- replay {seed} --trace seed-{seed}.txt --pcap seed-{seed}.pcap"
    )
}
