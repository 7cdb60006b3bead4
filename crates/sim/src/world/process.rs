//! Driving the processes: datagrams in, timers, datagrams and events out; crash, pause, restart, roaming.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_proto::{Endpoint, Event, RecvMeta};
use rand_core::Rng;

use super::audit::Invariant;
use super::host::{Memory, Power, Role};
use super::registry::Errand;
use super::traffic::{DATAGRAM_PORT, STREAM_PORT};
use super::{Flight, Node, What, World};
use crate::network::HostId;
use crate::registry::RegistryAgent;

/// Rounds of output and reaction at one instant after which something spins.
const ROUNDS: usize = 10_000;
/// Memory is looked at once in so many settled rounds: it walks over all connections.
const MEMORY_EVERY: u64 = 64;

impl Node {
    /// What every node's process does when it starts.
    pub(super) fn listen(&mut self) {
        // A fresh endpoint has neither port in use.
        let _ = self.endpoint.listen(STREAM_PORT);
        let _ = self.endpoint.bind_datagram(DATAGRAM_PORT);
    }
}

impl World {
    /// A datagram reaches a running process.
    pub(super) fn process_datagram(&mut self, id: HostId, flight: &mut Flight) {
        let now = self.local(id);
        match &mut self.hosts[id].role {
            Role::Node(node) => {
                let meta = RecvMeta { remote: flight.from, local_ip: None };
                node.endpoint.handle_datagram(now, &meta, &mut flight.bytes);
            }
            Role::Beacon(engine) => {
                let mut answers = Vec::new();
                engine.handle_datagram(now, flight.from, &flight.bytes, &mut |to, bytes: &[u8]| {
                    answers.push((to, bytes.to_vec()));
                });
                let stats = engine.stats();
                self.audit.check_beacon(&stats, self.sabotage);
                for (to, bytes) in answers {
                    self.put_on_wire(id, to, &bytes);
                }
            }
            // It has no UDP socket.
            Role::Registry(_) | Role::Silent => {}
        }
        self.mark(id);
    }

    pub(super) fn on_timer(&mut self, id: HostId) {
        self.fire(id);
        self.mark(id);
    }

    fn fire(&mut self, id: HostId) {
        let now = self.local(id);
        match &mut self.hosts[id].role {
            Role::Node(node) => {
                node.endpoint.handle_timeout(now);
                if let Some(agent) = node.agent.as_mut().filter(|agent| agent.poll_timeout() <= now) {
                    agent.handle_timeout(now);
                }
            }
            Role::Beacon(engine) => engine.handle_timeout(now),
            Role::Registry(_) => self.registry_timer(id),
            Role::Silent => {}
        }
    }

    /// Takes everything that processes want to send and report, until all are quiet.
    pub(super) fn settle(&mut self) {
        while let Some(id) = self.dirty.pop() {
            self.hosts[id].dirty = false;
            if self.hosts[id].power != Power::Up {
                self.hosts[id].wake = None;
                continue;
            }
            let mut rounds = 0;
            while self.flush(id) {
                rounds += 1;
                if rounds > ROUNDS {
                    self.audit.fail(Invariant::BusyLoop, || format!("host {id} never gets quiet"));
                    return;
                }
            }
            self.set_wake(id);
        }
        self.audit.check_nonces(self.sabotage == Some(Invariant::NonceOnce));
    }

    /// One round of output of one host. Whether there was any.
    fn flush(&mut self, id: HostId) -> bool {
        let now = self.local(id);
        let mut active = false;
        let mut batches = 0;
        while let Some((to, segment, batch)) = self.next_batch(id, now) {
            active = true;
            batches += 1;
            for datagram in batch.chunks(segment) {
                self.put_on_wire(id, to, datagram);
            }
            if batches > ROUNDS {
                self.audit.fail(Invariant::BusyLoop, || format!("host {id} sends without end"));
                return false;
            }
        }
        while let Some(event) = self.hosts[id].node_mut().and_then(|n| n.endpoint.poll_event()) {
            active = true;
            self.on_event(id, event);
        }
        self.flush_agent(id) || active
    }

    /// The next batch of a node, with the checks that belong to it.
    fn next_batch(&mut self, id: HostId, now: Instant) -> Option<(SocketAddr, usize, Vec<u8>)> {
        let sabotage = self.sabotage;
        let peers: Vec<_> = match self.hosts[id].node() {
            Some(node) => node.endpoint.paths(),
            None => return None,
        };
        let node = self.hosts[id].node_mut()?;
        let transmit = node.endpoint.poll_transmit(now, &mut node.buf)?;
        let batch = node.buf.bytes(transmit.size).to_vec();
        let segment = transmit.segment_size.unwrap_or(transmit.size).max(1);
        for (path, ((before, _), (after, shared))) in peers.iter().zip(node.endpoint.paths()).enumerate() {
            if before.remote == after.remote && before.kind == after.kind {
                let mut after = after;
                if sabotage == Some(Invariant::InFlight) {
                    after.in_flight += 1 << 40;
                }
                if sabotage == Some(Invariant::Window) {
                    after.congestion_window = 1;
                }
                self.audit.on_batch((id, path), shared, before, &after);
            }
        }
        for datagram in batch.chunks(segment) {
            let mut config = node.config.clone();
            if sabotage == Some(Invariant::DatagramSize) {
                config.max_datagram_size = 100;
            }
            match sabotage {
                Some(Invariant::NoPlaintext) => self.audit.check_datagram(b"PILT and more", &config),
                _ => self.audit.check_datagram(datagram, &config),
            }
        }
        Some((transmit.destination, segment, batch))
    }

    /// Asks a host when it wants to be called, in true time. What is due must have been done.
    fn set_wake(&mut self, id: HostId) {
        let now = self.local(id);
        for _ in 0..100 {
            let wanted = match &mut self.hosts[id].role {
                Role::Node(node) => {
                    let agent = node.agent.as_ref().map(RegistryAgent::poll_timeout);
                    [node.endpoint.poll_timeout(), agent].into_iter().flatten().min()
                }
                Role::Registry(registry) => registry.poll_timeout(),
                Role::Beacon(engine) => engine.next_timeout(),
                Role::Silent => None,
            };
            let overdue = wanted.is_some_and(|t| t <= now);
            if !overdue {
                self.hosts[id].wake = wanted.map(|t| self.hosts[id].clock.world(t));
                self.check_memory(id);
                return;
            }
            if self.sabotage != Some(Invariant::TimerInThePast) {
                self.fire(id);
            }
            let mut rounds = 0;
            while self.flush(id) && rounds < ROUNDS {
                rounds += 1;
            }
        }
        self.audit.fail(Invariant::TimerInThePast, || {
            format!("host {id} wants to be called at once, again and again")
        });
    }

    fn check_memory(&mut self, id: HostId) {
        if !self.counts.steps.is_multiple_of(MEMORY_EVERY) {
            return;
        }
        if let Some(node) = self.hosts[id].node() {
            let mut used = node.endpoint.memory();
            if self.sabotage == Some(Invariant::Memory) {
                used.lookups = 65;
            }
            self.audit.check_memory(&used, &node.config);
        }
    }

    // ------------------------------------------------------------------ what happens to machines

    /// Kills a process: all that it did not store is gone.
    pub fn crash(&mut self, id: HostId) {
        if self.hosts[id].power == Power::Down {
            return;
        }
        self.note(&format!("host {id} is killed"));
        self.hosts[id].power = Power::Down;
        self.hosts[id].backlog.clear();
        self.hosts[id].wake = None;
        self.applications_died(id);
        self.streams_died(id);
    }

    /// Starts a killed process again.
    pub fn restart(&mut self, id: HostId, memory: Memory) {
        if self.hosts[id].power != Power::Down {
            return;
        }
        self.note(&format!("host {id} starts again, memory {memory:?}"));
        let now = self.local(id);
        let seed = self.rng.next_u64();
        let host = &mut self.hosts[id];
        host.power = Power::Up;
        host.boot += 1;
        match &mut host.role {
            Role::Node(node) => {
                node.restart(memory, now, &mut self.rng);
                node.listen();
            }
            Role::Beacon(engine) => **engine = super::host::beacon(seed),
            Role::Registry(_) => self.registry_started(id),
            Role::Silent => {}
        }
        self.start_agent(id);
        self.mark(id);
    }

    /// Stops a process for a while: its socket keeps a little, its clock goes on.
    pub fn pause(&mut self, id: HostId, time: Duration) {
        if self.hosts[id].power != Power::Up {
            return;
        }
        self.note(&format!("host {id} is stopped for {time:?}"));
        let until = self.now + time;
        self.hosts[id].power = Power::Paused(until);
        self.hosts[id].wake = None;
        self.schedule(until, What::Resume(id));
    }

    pub(super) fn resume(&mut self, id: HostId) {
        if !matches!(self.hosts[id].power, Power::Paused(t) if t <= self.now) {
            return;
        }
        self.note(&format!("host {id} goes on"));
        self.hosts[id].power = Power::Up;
        while let Some(flight) = self.hosts[id].backlog.pop_front() {
            self.arrive(flight);
        }
        self.streams_resume(id);
        self.tell_agent_address(id);
        self.on_timer(id);
    }

    /// Ends all pauses now.
    pub fn resume_all(&mut self) {
        for id in 0..self.hosts.len() {
            if let Power::Paused(_) = self.hosts[id].power {
                self.hosts[id].power = Power::Paused(self.now);
                self.resume(id);
            }
        }
    }

    /// Gives a host another UDP address, as a changed network or NAT mapping does.
    pub fn roam(&mut self, id: HostId) {
        let old = self.hosts[id].addr;
        let mut new = old;
        new.set_port(old.port() % 60_000 + 1);
        self.note(&format!("host {id} moves from {old} to {new}"));
        self.by_addr.remove(&old);
        self.by_addr.insert(new, id);
        self.hosts[id].addr = new;
        self.tell_agent_address(id);
    }

    pub(super) fn on_event(&mut self, id: HostId, event: Event) {
        match event {
            Event::LookupPeer { node, .. } => {
                if self.inquire(id, node, Errand::Resolve) {
                    return;
                }
                let delay = Duration::from_millis(1 + u64::from(self.rng.next_u32() % 100));
                let boot = self.hosts[id].boot;
                self.schedule(self.now + delay, What::Lookup { host: id, boot, node });
            }
            Event::Pong { .. } => self.traffic.pongs += 1,
            Event::TunnelUp { peer, .. } => self.note(&format!("host {id}: keys with {peer}")),
            Event::TunnelDown { peer, reason } => {
                self.note(&format!("host {id}: tunnel to {peer} is given up: {reason:?}"));
            }
            Event::PathChanged { peer, path, reason } => {
                self.note(&format!("host {id}: to {peer} by {:?} {}, {reason}", path.kind, path.remote));
            }
            other => self.on_application_event(id, &other),
        }
    }

    /// The directory that answers look-ups: it knows all nodes and their present addresses.
    pub(super) fn answer_lookup(&mut self, id: HostId, boot: u32, node: pilotage_wire::NodeId) {
        if self.hosts[id].boot != boot || self.hosts[id].power != Power::Up {
            return;
        }
        let found = self.hosts.iter().find_map(|h| {
            let n = h.node().filter(|n| n.address.node == node)?;
            Some(n.introduction(h.addr))
        });
        let now = self.local(id);
        if let Some(owner) = self.hosts[id].node_mut() {
            if let Some(peer) = &found {
                owner.known.retain(|p| p.address != peer.address);
                owner.known.push(peer.clone());
            }
            owner.endpoint.resolve_peer(now, node, found);
        }
        self.mark(id);
    }

    /// The endpoint of a node.
    pub fn endpoint(&mut self, id: HostId) -> Option<&mut Endpoint> {
        self.mark(id);
        self.hosts[id].node_mut().map(|n| &mut n.endpoint)
    }
}
