//! Drawing a plan.

use std::time::Duration;

use pilotage_proto::s1::{Limits, PostQuantum};
use pilotage_proto::{Config, ControllerKind, SecureMode};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::{Fault, NodePlan, Plan};
use crate::link::{Bursts, Link, below, chance, fraction};
use crate::network::HostId;
use crate::registry::{Crash, DiskState, Restart};
use crate::world::{Ending, FlowPlan, Memory};

/// The first node's host number: the adversary and its victim come before.
pub(super) const FIRST_NODE: HostId = 2;

/// Draws.
struct Dice(ChaCha8Rng);

impl Dice {
    fn chance(&mut self, p: f64) -> bool {
        chance(&mut self.0, p)
    }

    fn below(&mut self, n: usize) -> usize {
        below(&mut self.0, n)
    }

    fn up_to(&mut self, max: f64) -> f64 {
        max * fraction(&mut self.0)
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.0.next_u64() % (to - from + 1))
    }

    /// Small numbers more often than large ones: evenly distributed in the number of digits.
    fn skewed(&mut self, from: u64, to: u64) -> u64 {
        let (a, b) = ((from.max(1) as f64).ln(), (to.max(1) as f64).ln());
        (a + (b - a) * fraction(&mut self.0)).exp() as u64
    }

    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

impl Plan {
    /// The plan of a seed, among nodes that speak S1. They all can speak with each other: either some speak the draft's mode
    /// only and none S1 only, or the other way round.
    #[must_use]
    pub fn random_s1(seed: u64) -> Self {
        let mut plan = Self::random(seed);
        let mut dice = Dice(ChaCha8Rng::seed_from_u64(seed ^ 0x0073_6563_7572));
        let other = if dice.chance(0.5) { SecureMode::S1 } else { SecureMode::Draft };
        // Dice of their own, as above.
        let mut streams = Dice(ChaCha8Rng::seed_from_u64(seed ^ 0x7374_7265_616d));
        let share = streams.one_of(&[0.0, 0.8, 1.0, 1.0]);
        let mut upgrades = Dice(ChaCha8Rng::seed_from_u64(seed ^ 0x0075_7161_6e74_756d));
        let upgraded = upgrades.one_of(&[0.0, 0.5, 1.0]);
        for node in &mut plan.nodes {
            node.streams = streams.chance(share);
            if upgrades.chance(upgraded) {
                node.post_quantum = PostQuantum::On;
            }
            node.mode = if dice.chance(0.6) { SecureMode::Auto } else { other };
            if dice.chance(0.5) {
                node.limits.update_packets = dice.skewed(2, 1_000);
                node.limits.update_after = dice.millis(50, 60_000);
                node.limits.rekey_after = dice.millis(1_000, 180_000);
                node.limits.refuse_after = node.limits.rekey_after * 2;
            }
        }
        plan
    }

    /// The plan of a seed.
    #[must_use]
    pub fn random(seed: u64) -> Self {
        let mut dice = Dice(ChaCha8Rng::seed_from_u64(seed ^ 0x0070_6c61_6e00));
        let count = dice.one_of(&[2, 2, 2, 2, 3, 3, 4, 5]);
        let rough = dice.chance(0.7);
        let mut nodes: Vec<NodePlan> = (0..count).map(|_| node(&mut dice, rough)).collect();
        // Dice of their own: what else a seed means stays as it is.
        let mut controllers = Dice(ChaCha8Rng::seed_from_u64(seed ^ 0x0063_7562_6963));
        for node in &mut nodes {
            if node.config.congestion == ControllerKind::Bbr && controllers.chance(0.4) {
                node.config.congestion = ControllerKind::Cubic;
            }
        }
        let chaos = Duration::from_secs(dice.skewed(4, 45));
        let beacon = dice.chance(0.4);
        let flows = (0..dice.skewed(1, 10)).map(|_| flow(&mut dice, count, chaos)).collect();
        let datagrams = (0..dice.below(40))
            .map(|_| {
                let (from, to) = two_of(&mut dice, count);
                (dice.millis(0, chaos.as_millis() as u64), from, to, dice.skewed(16, 1_100) as usize)
            })
            .collect();
        let pings = (0..dice.below(8))
            .map(|_| {
                let (from, to) = two_of(&mut dice, count);
                (dice.millis(0, chaos.as_millis() as u64), from, to)
            })
            .collect();
        let mut faults: Vec<(Duration, Fault)> = (0..if rough { dice.below(9) } else { dice.below(2) })
            .map(|_| (dice.millis(0, chaos.as_millis() as u64), fault(&mut dice, count, beacon)))
            .collect();
        let registry = dice.chance(0.15);
        if registry {
            let host = FIRST_NODE + count + usize::from(beacon);
            for _ in 0..if rough { dice.below(5) } else { dice.below(2) } {
                faults
                    .push((dice.millis(0, chaos.as_millis() as u64), registry_fault(&mut dice, count, host)));
            }
        }
        faults.sort_by_key(|(at, _)| *at);
        Self {
            seed,
            nodes,
            beacon,
            registry,
            flows,
            datagrams,
            pings,
            faults,
            adversary: if dice.chance(0.5) { dice.up_to(0.2) } else { 0.0 },
            fault_points: if dice.chance(0.5) { dice.skewed(1, 200) as u32 } else { 0 },
            chaos,
        }
    }
}

fn two_of(dice: &mut Dice, count: usize) -> (HostId, HostId) {
    let from = dice.below(count);
    let to = (from + 1 + dice.below(count - 1)) % count;
    (FIRST_NODE + from, FIRST_NODE + to)
}

fn node(dice: &mut Dice, rough: bool) -> NodePlan {
    let mut config = Config::default();
    if dice.chance(0.5) {
        config.send_buffer = dice.skewed(4_096, 4 << 20) as usize;
        config.recv_buffer = dice.skewed(65_536, 16 << 20) as usize;
        // A common bound below that of single connections would let one stalled reader stop a whole tunnel.
        config.receive_memory = (dice.skewed(200_000, 1 << 30) as usize).max(4 * config.recv_buffer);
    }
    if dice.chance(0.3) {
        config.congestion = ControllerKind::NewReno;
    }
    if dice.chance(0.3) {
        config.initial_sequence_number = Some(u32::MAX - dice.skewed(1, 100_000) as u32);
    }
    if dice.chance(0.3) {
        config.rekey_after_frames = dice.skewed(40, 10_000);
    }
    if dice.chance(0.2) {
        config.rekey_after = Duration::from_secs(dice.skewed(5, 60));
    }
    if dice.chance(0.3) {
        config.max_datagram_size = dice.skewed(1_200, 9_000) as usize;
    }
    config.mtu_discovery = dice.chance(0.8);
    if dice.chance(0.2) {
        config.accept_queue = 1 + dice.below(8);
    }
    let ppm = if dice.chance(0.5) { dice.below(1_001) as i64 - 500 } else { 0 };
    let (up, down) = (link(dice, rough), link(dice, rough));
    NodePlan {
        config,
        up,
        down,
        ppm,
        mode: SecureMode::Draft,
        limits: Limits::default(),
        streams: false,
        post_quantum: PostQuantum::Off,
    }
}

fn link(dice: &mut Dice, rough: bool) -> Link {
    let mut link = Link { delay: Duration::from_micros(dice.skewed(50, 60_000)), ..Link::default() };
    if dice.chance(0.2) {
        link.mtu = dice.one_of(&[1_228, 1_280, 1_400, 1_452, 1_472, 4_000, 8_972]);
        link.icmp = dice.chance(0.5);
    }
    if dice.chance(0.25) {
        link.rate = Some(dice.skewed(8_000, 4_000_000));
        link.queue = dice.skewed(3_000, 300_000) as usize;
    }
    if !rough {
        return link;
    }
    if dice.chance(0.1) {
        link.delay = dice.millis(100, 750);
    }
    if dice.chance(0.3) {
        link.jitter = link.delay.mul_f64(dice.up_to(2.0));
    }
    if dice.chance(0.3) {
        link.loss = dice.up_to(0.25);
    }
    if dice.chance(0.2) {
        let (share, length) = (dice.up_to(0.25), 1.0 + dice.up_to(15.0));
        link.bursts = Some(Bursts::new(share, length));
    }
    if dice.chance(0.2) {
        link.corrupt = dice.up_to(0.2);
    }
    if dice.chance(0.15) {
        link.splice = dice.up_to(0.1);
    }
    if dice.chance(0.2) {
        link.duplicate = dice.up_to(0.3);
    }
    if dice.chance(0.25) {
        link.reorder = dice.up_to(0.4);
    }
    link
}

fn flow(dice: &mut Dice, count: usize, chaos: Duration) -> FlowPlan {
    let (from, to) = two_of(dice, count);
    let bytes = if dice.chance(0.05) { 0 } else { dice.skewed(1, 300_000) };
    let ending = match dice.below(10) {
        0..=4 => Ending::Orderly,
        5..=7 => Ending::CloseAfterWrite,
        8 => Ending::Reset(dice.skewed(1, bytes.max(2))),
        _ => Ending::ReaderCloses(dice.skewed(1, bytes.max(2))),
    };
    FlowPlan {
        from,
        to,
        start: dice.millis(0, chaos.as_millis() as u64 * 3 / 4),
        bytes,
        back: if dice.chance(0.4) { dice.skewed(1, 100_000) } else { 0 },
        chunk: dice.skewed(1, 65_536).max(bytes / 500) as usize,
        slow_reader: dice.chance(0.1).then(|| dice.skewed(500, 40_000) as usize),
        nodelay: dice.chance(0.5),
        ending,
    }
}

fn fault(dice: &mut Dice, count: usize, beacon: bool) -> Fault {
    let host = FIRST_NODE + dice.below(count);
    match dice.below(if beacon { 10 } else { 9 }) {
        0 | 1 => Fault::Crash {
            host,
            away: dice.millis(1, 10_000),
            memory: if dice.chance(0.5) { Memory::Kept } else { Memory::Lost },
        },
        2 => Fault::Pause(host, dice.millis(1, 12_000)),
        3 | 4 => Fault::Roam(host),
        5 => {
            let (up, down) = dice.one_of(&[(true, true), (true, false), (false, true)]);
            Fault::Blackout { host, up, down, time: Duration::from_millis(dice.skewed(20, 30_000)) }
        }
        6 => Fault::Clog(host, Duration::from_millis(dice.skewed(20, 5_000))),
        7 => {
            let (from, to) = two_of(dice, count);
            Fault::Wall { from, to, both: dice.chance(0.7), time: dice.millis(50, 20_000) }
        }
        8 => Fault::Change(host, Box::new(link(dice, true)), Box::new(link(dice, true))),
        _ => Fault::Crash {
            host: FIRST_NODE + count, // the beacon comes after the nodes
            away: dice.millis(1, 10_000),
            memory: Memory::Lost,
        },
    }
}

/// Something that happens to the registry on this host, or to a wall clock.
fn registry_fault(dice: &mut Dice, count: usize, host: HostId) -> Fault {
    let time = Duration::from_millis(dice.skewed(50, 20_000));
    match dice.below(8) {
        0..=2 => Fault::RegistryCrash {
            how: dice.one_of(&[Crash::Process, Crash::Power]),
            away: time,
            back: match dice.below(10) {
                0 => Restart::OldBackup,
                1 => Restart::Lost,
                _ => Restart::Kept,
            },
        },
        3 => Fault::Disk(dice.one_of(&[DiskState::Full, DiskState::SyncFails]), time),
        4 => {
            let whose = if dice.chance(0.5) { host } else { FIRST_NODE + dice.below(count) };
            Fault::WallClock(whose, dice.one_of(&[3_600, -3_600, -7_200]))
        }
        5 => Fault::Pause(host, time.min(Duration::from_secs(12))),
        6 => Fault::Blackout { host, up: true, down: dice.chance(0.5), time },
        _ => {
            let (from, to) = (FIRST_NODE + dice.below(count), host);
            Fault::Wall { from, to, both: dice.chance(0.7), time }
        }
    }
}
