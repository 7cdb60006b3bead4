//! Ways to peers: candidates of both sides, policies, reports (spec/nat.md §10).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use pilotage_nat::Dependence;
use pilotage_nat::agent::{
    Agent, CANDIDATES_MAX, Candidate, CandidateKind, Locals, Nat64, NatMapping, PathPolicy, PathReport,
};
use pilotage_wire::NodeId;

use super::Endpoint;

/// Policies of peers that are kept, also of those without a tunnel.
const POLICIES_MAX: usize = 16_384;

/// What all tunnels share.
#[derive(Debug, Default)]
pub(super) struct Paths {
    pub(super) locals: Locals,
    /// As the driver told them, reflexive ones excluded.
    told: Vec<Candidate>,
    policy: PathPolicy,
    policies: HashMap<NodeId, PathPolicy>,
}

impl Endpoint {
    /// Tells the addresses of our interfaces and mapped ports, best first, in place of those told before. At most 16
    /// count, what beacons see of us included, which the endpoint learns itself.
    pub fn set_local_candidates(&mut self, now: Instant, candidates: &[Candidate]) {
        let told: Vec<_> = candidates.iter().take(CANDIDATES_MAX).copied().collect();
        if self.paths.told != told {
            self.paths.told = told;
            self.renew_locals();
            self.wake_all(now);
        }
    }

    /// Tells what kind of NAT stands before us, if that is known.
    pub fn set_nat_mapping(&mut self, now: Instant, mapping: NatMapping) {
        if self.paths.locals.mapping != mapping {
            self.paths.locals.mapping = mapping;
            self.paths.locals.version = self.paths.locals.version.wrapping_add(1);
            self.wake_all(now);
        }
    }

    /// Tells that UDP reaches nobody but, in another wrapping, the beacon; or that it does again.
    pub fn set_udp_blocked(&mut self, now: Instant, blocked: bool) {
        if self.paths.locals.udp_blocked != blocked {
            self.paths.locals.udp_blocked = blocked;
            self.paths.locals.version = self.paths.locals.version.wrapping_add(1);
            self.renew_locals();
            self.wake_all(now);
        }
    }

    /// Names addresses at which a peer may be, besides the one of its introduction. An unknown peer is ignored: what
    /// nobody introduced is not sent anything. At most 16 of a call count.
    pub fn add_remote_candidates(&mut self, now: Instant, node: NodeId, candidates: &[Candidate]) {
        let Some(&index) = self.by_node.get(&node) else { return };
        let Some((tunnel, cx)) = split!(self, index, now) else { return };
        tunnel.agent.add_remote(now, candidates, cx.locals);
        tunnel.exchange.hurry(now);
        self.mark_dirty(index, now);
    }

    /// What the operator wants: for one peer, or for all that have no policy of their own. At most 16,384 peers have
    /// one; further ones get that of all.
    pub fn set_path_policy(&mut self, now: Instant, node: Option<NodeId>, policy: PathPolicy) {
        match node {
            None => self.paths.policy = policy,
            Some(node)
                if self.paths.policies.len() < POLICIES_MAX || self.paths.policies.contains_key(&node) =>
            {
                self.paths.policies.insert(node, policy);
            }
            Some(_) => return,
        }
        let concerned: Vec<_> = match node {
            Some(node) => self.by_node.get(&node).map(|i| (node, *i)).into_iter().collect(),
            None => self.by_node.iter().map(|(n, i)| (*n, *i)).collect(),
        };
        for (node, index) in concerned {
            let policy = self.policy_for(node);
            if let Some((tunnel, mut cx)) = split!(self, index, now) {
                tunnel.set_path_policy(policy, &mut cx);
                self.mark_dirty(index, now);
            }
        }
    }

    pub(super) fn policy_for(&self, node: NodeId) -> PathPolicy {
        if self.is_own(node) {
            return PathPolicy::Auto;
        }
        self.paths.policies.get(&node).copied().unwrap_or(self.paths.policy)
    }

    /// Tells that the host has joined another network, woke up, or has other addresses: the beacon and all peers in use
    /// are asked at once.
    pub fn network_changed(&mut self, now: Instant) {
        self.beacon.rediscover(now);
        for index in 0..self.tunnels.len() as u32 {
            if let Some((tunnel, _)) = split!(self, index, now)
                && !tunnel.is_idle()
            {
                tunnel.on_network_changed(now);
                self.mark_dirty(index, now);
            }
        }
    }

    /// The beacon sees us elsewhere: relayed tunnels begin again at once, not when their timers say so.
    pub(super) fn on_mapping_changed(&mut self, now: Instant) {
        for index in 0..self.tunnels.len() as u32 {
            if let Some((tunnel, _)) = split!(self, index, now)
                && !tunnel.is_idle()
            {
                tunnel.on_mapping_changed(now);
                self.mark_dirty(index, now);
            }
        }
    }

    /// All that is known of the ways to a peer.
    pub fn path_report(&self, node: NodeId) -> Option<PathReport> {
        self.tunnel(*self.by_node.get(&node)?).map(|t| t.path_report(&self.paths.locals))
    }

    // ------------------------------------------------------------------ inside

    pub(super) fn new_agent(&self, node: NodeId, now: Instant) -> Agent {
        // No secret: it only keeps the timers of many peers apart.
        let seed = self.local.node.0.rotate_left(16) ^ node.0;
        Agent::new(self.local.node.0 > node.0, self.policy_for(node), seed, now)
    }

    /// A beacon has told where it sees us, or something about our NAT; or there are other beacons.
    pub(super) fn on_observed(&mut self) {
        if let Some(mapping) = self.beacon.nat_mapping() {
            let now = self.now;
            self.set_nat_mapping(now, mapping_of(mapping));
        }
        self.renew_locals();
    }

    /// Another relay, or none any more.
    pub(super) fn set_relay(&mut self, now: Instant, relay: Option<SocketAddr>) {
        if self.beacon_addr == relay {
            return;
        }
        self.beacon_addr = relay;
        self.renew_locals();
        for index in 0..self.tunnels.len() as u32 {
            if let Some((tunnel, mut cx)) = split!(self, index, now) {
                tunnel.on_relay_changed(&mut cx);
                self.mark_dirty(index, now);
            }
        }
    }

    /// The address at which we reach a peer that others reach at `addr`: another one behind a NAT64.
    pub(super) fn towards(&self, addr: SocketAddr) -> SocketAddr {
        self.paths.locals.nat64.map_or(addr, |nat64| nat64.towards(addr))
    }

    fn renew_locals(&mut self) {
        let mut candidates = self.paths.told.clone();
        let mut seen = self.beacon.reflexive();
        // On the loopback everybody who is reached at all has been named, and a way round it may be on purpose.
        seen.retain(|addr| {
            let known = candidates.iter().any(|c| c.addr == *addr);
            // Nor is what a hub calls the link that carries our datagrams an address of ours.
            let inner = pilotage_nat::side::is_inner(*addr);
            !self.paths.locals.udp_blocked && !known && !inner && !addr.ip().to_canonical().is_loopback()
        });
        candidates.truncate(CANDIDATES_MAX.saturating_sub(seen.len()));
        candidates.extend(seen.into_iter().map(|addr| Candidate { addr, kind: CandidateKind::Reflexive }));
        let forbidden: Vec<_> = self.beacon.beacons().map(|beacon| beacon.address).collect();
        let nat64 = self
            .beacon
            .beacons()
            .find_map(|beacon| Nat64::from_beacon(beacon.address, beacon.observed?))
            .filter(|_| !self.paths.locals.udp_blocked);
        let locals = &mut self.paths.locals;
        if locals.candidates != candidates || locals.forbidden != forbidden || locals.nat64 != nat64 {
            locals.nat64 = nat64;
            locals.candidates = candidates;
            locals.forbidden = forbidden;
            locals.version = locals.version.wrapping_add(1);
            let now = self.now;
            self.wake_all(now);
        }
    }

    /// Every tunnel in use may have something to tell.
    fn wake_all(&mut self, now: Instant) {
        for index in 0..self.tunnels.len() as u32 {
            if self.tunnel(index).is_some_and(|t| !t.is_idle()) {
                self.mark_dirty(index, now);
            }
        }
    }
}

fn mapping_of(seen: Dependence) -> NatMapping {
    match seen {
        Dependence::EndpointIndependent => NatMapping::EndpointIndependent,
        Dependence::AddressDependent => NatMapping::AddressDependent,
        Dependence::AddressAndPortDependent => NatMapping::AddressAndPortDependent,
    }
}
