//! Running a plan to its end.

use std::collections::BTreeMap;
use std::time::Duration;

use super::random::FIRST_NODE;
use super::{Fault, LIVELY, Plan, Report};
use crate::link::Link;
use crate::network::HostId;
use crate::registry::{DiskState, Restart};
use crate::trace::Trace;
use crate::world::{Ending, FlowPlan, Invariant, Memory, Power, World};

/// Longest time until a healed registry knows all nodes: a heartbeat, or the longest pause between tries, and the calls.
const REGISTERED: Duration = Duration::from_secs(90);
/// From the restart of processes until streams of S1 are opened that have to arrive.
const RESTARTED: Duration = Duration::from_secs(2);
/// Longest time until everything that was begun has ended: user and idle timeouts, with room for retries.
const ENDING: Duration = Duration::from_secs(300);
/// From the last end until nothing may be sent any more: TIME_WAIT and late retransmissions.
const AFTERMATH: Duration = Duration::from_secs(150);
/// For how long nothing may be sent.
const SILENCE: Duration = Duration::from_secs(60);

impl Plan {
    /// Runs the plan. With `trace` everything is noted down.
    #[must_use]
    pub fn run(&self, trace: bool) -> Report {
        self.run_with(trace, |_| {})
    }

    /// Runs the plan in a world that `prepare` may change before it begins.
    #[must_use]
    pub fn run_with(&self, trace: bool, prepare: impl FnOnce(&mut World)) -> Report {
        pilotage_fault::clear();
        let mut world = self.build();
        world.trace = trace.then(Trace::default);
        prepare(&mut world);
        if self.fault_points > 0 {
            pilotage_fault::install(self.seed, self.fault_points);
        }
        let faults = self.chaos(&mut world);
        pilotage_fault::clear();
        let alive = |w: &World| w.audit.violation().is_none();
        if alive(&world) {
            self.heal(&mut world);
        }
        if alive(&world) {
            self.demand_life(&mut world);
        }
        if alive(&world) {
            self.demand_silence(&mut world);
        }
        self.report(world, faults)
    }

    fn build(&self) -> World {
        let mut world = World::new(self.seed);
        for node in &self.nodes {
            let id = world.add_node(node.config.clone(), node.up.clone(), node.down.clone(), node.ppm);
            world.speak_s1(id, node.mode, node.limits, (node.streams, node.post_quantum));
        }
        let last = FIRST_NODE + self.nodes.len();
        if self.beacon {
            let beacon = world.add_beacon(Link::default(), Link::default());
            (FIRST_NODE..last).for_each(|node| world.use_beacon(node, beacon));
        }
        if self.registry {
            world.add_registry(Link::default(), Link::default(), 0);
        }
        // With a registry nobody is told anything by hand.
        for a in (FIRST_NODE..last).filter(|_| !self.registry) {
            for b in FIRST_NODE..last {
                // Some know each other from the start, the others look each other up.
                if a != b && (a + b + self.seed as usize).is_multiple_of(2) {
                    world.introduce(a, b);
                }
            }
        }
        world.adversary.activity = self.adversary;
        for flow in &self.flows {
            world.plan_flow(flow.clone());
        }
        for (at, from, to, len) in &self.datagrams {
            world.plan_datagram(*at, *from, *to, *len);
        }
        for (at, from, to) in &self.pings {
            world.plan_ping(*at, *from, *to);
        }
        world
    }

    /// The first phase. Returns how often each fault happened.
    fn chaos(&self, world: &mut World) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        // What has to be undone, by time.
        let mut undo: Vec<(Duration, Undo)> = Vec::new();
        let mut faults = self.faults.iter().peekable();
        loop {
            let next_fault = faults.peek().map(|(at, _)| *at);
            let next_undo = undo.iter().map(|(at, _)| *at).min();
            let next = [next_fault, next_undo, Some(self.chaos)].into_iter().flatten().min();
            let next = next.unwrap_or(self.chaos).min(self.chaos);
            world.run_for(next.saturating_sub(world.elapsed()));
            if world.audit.violation().is_some() || world.elapsed() >= self.chaos {
                return counts;
            }
            while let Some((_, fault)) = faults.next_if(|(at, _)| *at <= world.elapsed()) {
                *counts.entry(fault.name()).or_default() += 1;
                if let Some((time, what)) = strike(world, fault) {
                    undo.push((world.elapsed() + time, what));
                }
            }
            let due: Vec<_> = undo.extract_if(.., |(at, _)| *at <= world.elapsed()).collect();
            for (_, what) in due {
                Self::repair(world, what);
            }
        }
    }

    fn repair(world: &mut World, what: Undo) {
        match what {
            Undo::Restart(host, memory) => world.restart(host, memory),
            Undo::Registry(back) => world.restart_registry(back),
            Undo::Disk => world.set_registry_disk(DiskState::Healthy),
            Undo::Wall(from, to) => {
                world.network.set_wall(from, to, false);
                world.network.set_wall(to, from, false);
            }
            Undo::Blackout(host) => {
                world.network.up(host).down = false;
                world.network.down(host).down = false;
            }
        }
    }

    /// All faults are over.
    fn heal(&self, world: &mut World) {
        world.adversary.activity = 0.0;
        world.registry_answers = true;
        world.network.clear_walls();
        world.set_registry_disk(DiskState::Healthy);
        let others = usize::from(self.beacon) + usize::from(self.registry);
        for host in FIRST_NODE..FIRST_NODE + self.nodes.len() + others {
            let good = healed(world.network.up(host));
            *world.network.up(host) = good;
            let good = healed(world.network.down(host));
            *world.network.down(host) = good;
            if world.host(host).power == Power::Down {
                world.restart(host, Memory::Kept);
            }
        }
        world.resume_all();
    }

    /// All nodes are in the registry again. Whether that is so.
    fn demand_registration(&self, world: &mut World, nodes: &[HostId]) -> bool {
        let done = world.run_until(REGISTERED, |w| nodes.iter().all(|id| w.is_registered(*id)));
        let missing: Vec<_> = nodes.iter().filter(|id| !world.is_registered(**id)).collect();
        world.audit.require(done || world.audit.violation().is_some(), Invariant::Liveness, || {
            format!("not in the registry within {REGISTERED:?} after all faults: hosts {missing:?}")
        });
        world.audit.violation().is_none()
    }

    /// The second phase: everybody reaches everybody, and what was begun ends.
    fn demand_life(&self, world: &mut World) {
        let nodes: Vec<HostId> = world.nodes().collect();
        if self.registry && !self.demand_registration(world, &nodes) {
            return;
        }
        // A stream of S1 that leaves in the instant of its peer's restart may be reset (spec/secure.md §11.2, 4).
        let streams = self.nodes.iter().any(|node| node.streams);
        let start = world.elapsed() + if streams { RESTARTED } else { Duration::ZERO };
        let mut fresh = Vec::new();
        for &from in &nodes {
            for &to in nodes.iter().filter(|to| **to != from) {
                fresh.push(world.plan_flow(FlowPlan {
                    from,
                    to,
                    start,
                    bytes: 2_000,
                    back: 500,
                    chunk: 1_000,
                    slow_reader: None,
                    nodelay: true,
                    ending: Ending::Orderly,
                }));
            }
        }
        let sabotaged = world.sabotage == Some(Invariant::Liveness);
        let lively = world
            .run_until(LIVELY, |w| !sabotaged && fresh.iter().all(|f| w.traffic.flows[*f].is_finished()));
        if !lively && world.audit.violation().is_none() {
            world.trace_state();
            let late: Vec<String> = fresh
                .iter()
                .map(|f| (f, &world.traffic.flows[*f]))
                .filter(|(_, f)| !f.is_finished())
                .map(|(n, f)| format!("{n}: {} to {} {:?} {:?}", f.plan.from, f.plan.to, f.ends, f.reasons))
                .collect();
            world.audit.fail(Invariant::Liveness, || {
                format!("no message within {LIVELY:?} after all faults: {}", late.join("; "))
            });
            return;
        }
        let over = world.run_until(ENDING, |w| w.traffic.open_flows().next().is_none());
        if !over && world.audit.violation().is_none() {
            let open: Vec<String> =
                world.traffic.open_flows().map(|(n, f)| format!("{n}: {}", world.describe_flow(f))).collect();
            world.audit.fail(Invariant::Liveness, || {
                format!("neither ended nor failed after {ENDING:?}: {}", open.join("; "))
            });
        }
    }

    /// The third phase: nothing is open, so nothing is sent and nothing is held.
    fn demand_silence(&self, world: &mut World) {
        world.run_for(AFTERMATH);
        let before = world.between_nodes();
        if world.sabotage == Some(Invariant::Silence) {
            world.plan_ping(world.elapsed(), FIRST_NODE, FIRST_NODE + 1);
        }
        world.run_for(SILENCE);
        let sent = world.between_nodes() - before;
        world.audit.require(sent == 0, Invariant::Silence, || {
            format!("{sent} datagrams between nodes with nothing open")
        });
        for id in world.nodes().collect::<Vec<_>>() {
            let Some(used) = world.host(id).node().map(|n| n.endpoint.memory()) else { continue };
            let idle =
                used.connections == 0 && used.received == 0 && used.written == 0 && used.queued_out == 0;
            world
                .audit
                .require(idle, Invariant::Memory, || format!("host {id} holds {used:?} with nothing open"));
        }
    }

    fn report(&self, mut world: World, faults: BTreeMap<&'static str, u64>) -> Report {
        let finished = world.traffic.flows.iter().filter(|f| f.is_finished()).count() as u64;
        Report {
            seed: self.seed,
            digest: world.digest(),
            violation: world.audit.violation().cloned(),
            simulated: world.elapsed(),
            counts: world.counts,
            stream_bytes: world.traffic.stream_bytes,
            datagrams: world.traffic.datagrams_delivered,
            frames_sealed: world.audit.frames_sealed,
            flows: (finished, world.traffic.flows.len() as u64 - finished),
            faults,
            tricks: world.adversary.played,
            trace: world.trace.take(),
        }
    }
}

/// How far and how narrow a link is stays; that it damages and loses is over.
fn healed(link: &Link) -> Link {
    Link {
        delay: link.delay.min(Duration::from_millis(200)),
        mtu: link.mtu,
        icmp: link.icmp,
        rate: link.rate.map(|r| r.max(50_000)),
        queue: link.queue.max(20_000),
        ..Link::default()
    }
}

/// What ends a fault.
enum Undo {
    Restart(HostId, Memory),
    Registry(Restart),
    Disk,
    Wall(HostId, HostId),
    Blackout(HostId),
}

/// Lets a fault happen. Returns what ends it, and when, if it does not end by itself.
fn strike(world: &mut World, fault: &Fault) -> Option<(Duration, Undo)> {
    match fault {
        Fault::Crash { host, away, memory } => {
            world.crash(*host);
            return Some((*away, Undo::Restart(*host, *memory)));
        }
        Fault::Pause(host, time) => world.pause(*host, *time),
        Fault::Roam(host) => world.roam(*host),
        Fault::Blackout { host, up, down, time } => {
            world.network.up(*host).down = *up;
            world.network.down(*host).down = *down;
            return Some((*time, Undo::Blackout(*host)));
        }
        Fault::Clog(host, time) => {
            let until = world.now + *time;
            world.network.up(*host).held_until = Some(until);
        }
        Fault::Wall { from, to, both, time } => {
            world.network.set_wall(*from, *to, true);
            if *both {
                world.network.set_wall(*to, *from, true);
            }
            return Some((*time, Undo::Wall(*from, *to)));
        }
        Fault::Change(host, up, down) => {
            *world.network.up(*host) = (**up).clone();
            *world.network.down(*host) = (**down).clone();
        }
        Fault::RegistryCrash { how, away, back } => {
            world.crash_registry(*how);
            return Some((*away, Undo::Registry(*back)));
        }
        Fault::Disk(state, time) => {
            world.set_registry_disk(*state);
            return Some((*time, Undo::Disk));
        }
        Fault::WallClock(host, seconds) => world.jump_clock(*host, *seconds),
    }
    None
}
