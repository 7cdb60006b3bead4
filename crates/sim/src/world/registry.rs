//! A registry in the world: its byte streams, and the nodes that look each other up there.
//!
//! A connection is a reliable stream over the links of both hosts. Loss shows as delay. Whatever cuts the way while
//! bytes arrive ends the connection: sometimes both ends are told, sometimes they have to find out.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_proto::{PeerConfig, PeerPolicy};
use pilotage_wire::NodeId;
use pilotage_wire::registry::Reply;

use super::audit::Invariant;
use super::host::{Power, Role};
use super::{What, World};
use crate::link::{Link, chance, fraction};
use crate::network::HostId;
use crate::registry::{
    AgentConfig, AgentEvent, AgentOutput, Ask, Crash, DiskState, HostConfig, RegistryAgent, RegistryConn,
    RegistryHost, RegistryOutput, Restart,
};

/// Unix time at the start of every world, in seconds.
const UNIX_START: i64 = 1_700_000_000;
/// What a lost segment of a byte stream costs.
const RETRANSMISSION: Duration = Duration::from_millis(250);
/// A node waits so long for the registry before it goes on with what it knows.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause before a dialler that found nobody asks again, once all faults are over.
const AGAIN: Duration = Duration::from_secs(1);

/// One connection: the node's host, its boot, and the number that its agent gave it.
pub(super) type StreamId = (HostId, u32, u64);

/// Something on its way between a node and the registry.
#[derive(Debug)]
pub(super) struct Segment {
    stream: StreamId,
    to_registry: bool,
    load: Load,
}

#[derive(Debug)]
enum Load {
    /// To the registry: please. To the node: welcome.
    Open,
    Bytes(Vec<u8>),
    Close,
}

#[derive(Debug)]
struct Stream {
    conn: Option<RegistryConn>,
    /// When the last bytes towards the node, and towards the registry, arrive.
    arrives: [Instant; 2],
}

/// The network's side of the registry.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) host: HostId,
    streams: BTreeMap<StreamId, Stream>,
    by_conn: BTreeMap<RegistryConn, StreamId>,
    /// What came for a paused process.
    held: VecDeque<Segment>,
    /// The machine has no power: nobody answers for it.
    dark: bool,
    tampered: bool,
    inquiries: u64,
}

/// What a node does when the registry has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errand {
    /// Answer the endpoint's look-up.
    Resolve,
    Flow(usize),
    Datagram {
        to: HostId,
        len: usize,
    },
    Ping {
        to: HostId,
    },
}

/// A question of a node about another, and who waits for the answer.
#[derive(Debug)]
pub(super) struct Inquiry {
    number: u64,
    endpoint: Option<SocketAddr>,
    key: Option<[u8; 32]>,
    /// The two questions are answered, well or badly.
    resolved: bool,
    looked_up: bool,
    errands: Vec<Errand>,
}

impl World {
    /// Adds a registry. All nodes that are there already register with it and look each other up there.
    pub fn add_registry(&mut self, up: Link, down: Link, ppm: i64) -> HostId {
        use rand_core::Rng;
        let number = self.hosts.len();
        let seed = self.rng.next_u64();
        let local = super::Clock::new(self.start, ppm).local(self.now);
        let role = Role::Registry(Box::new(RegistryHost::new(seed, local, HostConfig::default())));
        let host =
            self.add_host(SocketAddr::from(([198, 51, 100, number as u8], 9_000)), role, up, down, ppm);
        self.hub = Some(Hub {
            host,
            streams: BTreeMap::new(),
            by_conn: BTreeMap::new(),
            held: VecDeque::new(),
            dark: false,
            tampered: false,
            inquiries: 0,
        });
        for node in self.nodes().collect::<Vec<_>>() {
            self.start_agent(node);
            self.mark(node);
        }
        host
    }

    /// The registry, if there is one.
    #[must_use]
    pub fn registry(&self) -> Option<&RegistryHost> {
        match &self.hosts[self.hub.as_ref()?.host].role {
            Role::Registry(registry) => Some(registry),
            _ => None,
        }
    }

    /// Whether the registry has the present address of this node, and the node knows that.
    #[must_use]
    pub fn is_registered(&self, id: HostId) -> bool {
        let host = &self.hosts[id];
        let (Some(node), Some(registry)) = (host.node(), self.registry()) else { return false };
        // What a process that could not start yet will find is another question.
        let up = Some(registry).filter(|registry| registry.is_up());
        let known = up.and_then(|r| r.record(node.address.node)).and_then(|record| record.endpoint);
        node.agent.as_ref().is_some_and(RegistryAgent::is_registered) && known == Some(host.addr)
    }

    /// Kills the registry.
    pub fn crash_registry(&mut self, how: Crash) {
        let Some(hub) = &mut self.hub else { return };
        let host = hub.host;
        if self.hosts[host].power == Power::Down {
            return;
        }
        hub.dark = how == Crash::Power;
        self.note(&format!("registry: {how:?} ends"));
        self.crash(host);
    }

    /// Starts the registry again with this disk.
    pub fn restart_registry(&mut self, how: Restart) {
        let Some(host) = self.hub.as_ref().map(|hub| hub.host) else { return };
        if self.hosts[host].power != Power::Down {
            return;
        }
        // A process for the machine, then the disk for the process.
        self.restart(host, super::Memory::Kept);
        if how != Restart::Kept {
            self.note(&format!("registry: disk {how:?}"));
            let now = self.local(host);
            if let Role::Registry(registry) = &mut self.hosts[host].role {
                registry.restart(now, how);
            }
            self.check_registry();
        }
    }

    /// The registry's disk behaves like this from now on.
    pub fn set_registry_disk(&mut self, state: DiskState) {
        let Some(host) = self.hub.as_ref().map(|hub| hub.host) else { return };
        self.note(&format!("registry: disk {state:?}"));
        if let Role::Registry(registry) = &mut self.hosts[host].role {
            registry.set_disk(state);
        }
    }

    /// A host's wall clock jumps by so many seconds.
    pub fn jump_clock(&mut self, host: HostId, seconds: i64) {
        self.note(&format!("host {host}: wall clock {seconds:+} s"));
        self.hosts[host].clock.unix_offset += seconds;
    }

    fn unix(&self, host: HostId) -> u64 {
        let right = UNIX_START + self.elapsed().as_secs() as i64;
        u64::try_from(right + self.hosts[host].clock.unix_offset).unwrap_or(0)
    }

    /// Looks at the registry's promises.
    fn check_registry(&mut self) {
        let sabotage = self.sabotage == Some(Invariant::Registry);
        let Some(hub) = &mut self.hub else { return };
        let Role::Registry(registry) = &mut self.hosts[hub.host].role else { return };
        if sabotage && !std::mem::replace(&mut hub.tampered, true) {
            registry.tamper(|reply| {
                if let Reply::Registered(done) = reply {
                    done.node_id = NodeId(done.node_id.0 ^ 1);
                }
            });
        }
        if let Err(what) = registry.check() {
            self.audit.fail(Invariant::Registry, || what);
        }
    }

    // ------------------------------------------------------------------ processes

    /// A node's process starts: it registers at once.
    pub(super) fn start_agent(&mut self, id: HostId) {
        if self.hub.is_none() {
            return;
        }
        let (now, listen) = (self.local(id), self.hosts[id].addr);
        let Some(node) = self.hosts[id].node_mut() else { return };
        let config = AgentConfig {
            identity: node.identity_seed,
            hostname: Some(format!("node-{id}")),
            public: true,
            listen,
            lan: Vec::new(),
        };
        node.agent = Some(RegistryAgent::new(config, now));
    }

    /// A node finds out its present address.
    pub(super) fn tell_agent_address(&mut self, id: HostId) {
        let (now, listen) = (self.local(id), self.hosts[id].addr);
        if self.hosts[id].power == Power::Up
            && let Some(agent) = self.hosts[id].node_mut().and_then(|node| node.agent.as_mut())
        {
            agent.set_listen(now, listen);
            self.mark(id);
        }
    }

    pub(super) fn registry_timer(&mut self, id: HostId) {
        let (now, unix) = (self.local(id), self.unix(id));
        let mut out = Vec::new();
        if let Role::Registry(registry) = &mut self.hosts[id].role {
            registry.handle_timeout(now, unix, &mut out);
        }
        self.carry_replies(out);
    }

    /// A process died: the kernel ends its connections, unless the machine went with it.
    pub(super) fn streams_died(&mut self, id: HostId) {
        let Some(hub) = &mut self.hub else { return };
        hub.held.retain(|s| if s.to_registry { hub.host != id } else { s.stream.0 != id });
        let (host, dark) = (hub.host, hub.dark);
        let ended: Vec<StreamId> = hub.streams.keys().filter(|s| id == host || s.0 == id).copied().collect();
        for &stream in &ended {
            if id != host {
                self.send_segment(stream, true, Load::Close);
            } else if !dark {
                self.send_segment(stream, false, Load::Close);
            }
        }
        if id == host {
            if let Some(hub) = &mut self.hub {
                hub.streams.clear();
                hub.by_conn.clear();
            }
            if let Role::Registry(registry) = &mut self.hosts[id].role {
                registry.crash(if dark { Crash::Power } else { Crash::Process });
            }
            self.check_registry();
        }
        let Some(node) = self.hosts[id].node_mut() else { return };
        node.agent = None;
        for inquiry in std::mem::take(&mut node.inquiries).into_values() {
            for errand in inquiry.errands {
                if let Errand::Flow(flow) = errand {
                    self.traffic.flows[flow].fail(0, "its process was killed".into());
                    self.traffic.flows[flow].fail(1, "never began".into());
                }
            }
        }
    }

    /// The machine runs again.
    pub(super) fn registry_started(&mut self, id: HostId) {
        let now = self.local(id);
        if let Role::Registry(registry) = &mut self.hosts[id].role {
            registry.restart(now, Restart::Kept);
        }
        if let Some(hub) = &mut self.hub {
            hub.dark = false;
        }
        self.check_registry();
    }

    /// A paused process goes on and reads what came.
    pub(super) fn streams_resume(&mut self, id: HostId) {
        let Some(hub) = &mut self.hub else { return };
        let host = hub.host;
        let (mine, others) = std::mem::take(&mut hub.held).into_iter().partition(|s| target(s, host) == id);
        hub.held = others;
        let mine: VecDeque<Segment> = mine;
        for segment in mine {
            self.on_segment(segment);
        }
    }

    // ------------------------------------------------------------------ streams

    /// Puts something on its way, behind all that is on its way already.
    fn send_segment(&mut self, stream: StreamId, to_registry: bool, load: Load) {
        let Some(host) = self.hub.as_ref().map(|hub| hub.host) else { return };
        let (from, to) = if to_registry { (stream.0, host) } else { (host, stream.0) };
        let size = if let Load::Bytes(bytes) = &load { 40 + bytes.len() } else { 40 };
        let (up, down) = (self.network.up(from).clone(), self.network.down(to).clone());
        let mut at = self.now;
        for link in [&up, &down] {
            at = link.held_until.map_or(at, |until| until.max(at)) + link.delay;
            at += link.jitter.mul_f64(fraction(&mut self.rng));
            at += link.rate.map_or(Duration::ZERO, |r| Duration::from_secs_f64(size as f64 / r as f64));
            if chance(&mut self.rng, link.loss + link.corrupt) {
                at += RETRANSMISSION;
            }
        }
        if let Some(stream) = self.hub.as_mut().and_then(|hub| hub.streams.get_mut(&stream)) {
            let last = &mut stream.arrives[usize::from(to_registry)];
            at = at.max(*last);
            *last = at;
        }
        self.schedule(at, What::Segment(Segment { stream, to_registry, load }));
    }

    /// Something reaches the machine that it was sent to, or not.
    pub(super) fn on_segment(&mut self, segment: Segment) {
        let Some(host) = self.hub.as_ref().map(|hub| hub.host) else { return };
        let node = segment.stream.0;
        let (from, to) = if segment.to_registry { (node, host) } else { (host, node) };
        if self.network.has_wall(from, to) || self.network.up(from).down || self.network.down(to).down {
            self.lose(&segment);
            return;
        }
        if let Power::Paused(_) = self.hosts[to].power {
            if let Some(hub) = &mut self.hub {
                hub.held.push_back(segment);
            }
            return;
        }
        self.note_segment(&segment);
        if segment.to_registry {
            self.registry_receives(segment.stream, segment.load);
        } else {
            self.node_receives(segment.stream, segment.load);
        }
    }

    fn note_segment(&mut self, segment: &Segment) {
        let (node, boot, number) = segment.stream;
        let arrow = if segment.to_registry { "says" } else { "hears" };
        let what = match &segment.load {
            Load::Bytes(bytes) => String::from_utf8_lossy(bytes.get(4..).unwrap_or_default()).into_owned(),
            other => format!("{other:?}"),
        };
        self.note(&format!("registry: {node}/{boot}/{number} {arrow} {what}"));
    }

    /// The way is cut. The connection is over, and half of the time both ends hear of it.
    fn lose(&mut self, segment: &Segment) {
        let stream = segment.stream;
        self.note(&format!("registry: {}/{}/{} is cut", stream.0, stream.1, stream.2));
        let told = chance(&mut self.rng, 0.5) && !matches!(segment.load, Load::Open);
        if let (Some(conn), true) = (self.forget(stream), told) {
            self.registry_closes(conn);
            self.node_receives(stream, Load::Close);
        }
    }

    fn forget(&mut self, stream: StreamId) -> Option<RegistryConn> {
        let hub = self.hub.as_mut()?;
        let conn = hub.streams.remove(&stream)?.conn?;
        hub.by_conn.remove(&conn);
        Some(conn)
    }

    fn registry_closes(&mut self, conn: RegistryConn) {
        let Some(host) = self.hub.as_ref().map(|hub| hub.host) else { return };
        if let Role::Registry(registry) = &mut self.hosts[host].role {
            registry.close(conn);
        }
        self.mark(host);
    }

    fn registry_receives(&mut self, stream: StreamId, load: Load) {
        let Some(hub) = &mut self.hub else { return };
        let (host, dark) = (hub.host, hub.dark);
        let conn = hub.streams.get(&stream).and_then(|s| s.conn);
        let (now, unix, source) = (self.local(host), self.unix(host), self.hosts[stream.0].addr.ip());
        let Role::Registry(registry) = &mut self.hosts[host].role else { return };
        let mut out = Vec::new();
        match (load, conn) {
            (Load::Close, _) => {
                if let Some(conn) = self.forget(stream) {
                    self.registry_closes(conn);
                }
            }
            // Nobody is there to say so.
            _ if dark => {}
            (Load::Open, _) => match registry.open(now, source) {
                Some(conn) => self.accept_stream(stream, conn),
                None => self.send_segment(stream, false, Load::Close),
            },
            (Load::Bytes(bytes), Some(conn)) => registry.handle(now, unix, conn, &bytes, &mut out),
            (Load::Bytes(_), None) => self.send_segment(stream, false, Load::Close),
        }
        self.carry_replies(out);
        self.mark(host);
    }

    fn accept_stream(&mut self, id: StreamId, conn: RegistryConn) {
        if let Some(hub) = &mut self.hub
            && let Some(stream) = hub.streams.get_mut(&id)
        {
            stream.conn = Some(conn);
            hub.by_conn.insert(conn, id);
            self.send_segment(id, false, Load::Open);
        } else {
            // Given up before it was there.
            self.registry_closes(conn);
        }
    }

    /// Sends what the registry answers, and looks at what it did.
    fn carry_replies(&mut self, out: Vec<RegistryOutput>) {
        for output in out {
            let (conn, load) = match output {
                RegistryOutput::Send(conn, bytes) => (conn, Load::Bytes(bytes)),
                RegistryOutput::Close(conn) => (conn, Load::Close),
            };
            let stream = self.hub.as_ref().and_then(|hub| hub.by_conn.get(&conn).copied());
            let closes = matches!(load, Load::Close);
            match stream {
                Some(stream) => {
                    self.send_segment(stream, false, load);
                    if closes {
                        self.forget(stream);
                    }
                }
                // Its way was cut: sending shows it.
                None => self.registry_closes(conn),
            }
        }
        self.check_registry();
    }

    fn node_receives(&mut self, stream: StreamId, load: Load) {
        let (id, boot, number) = stream;
        if self.hosts[id].boot != boot || self.hosts[id].power == Power::Down {
            if let Some(conn) = self.forget(stream) {
                self.registry_closes(conn);
            }
            return;
        }
        let now = self.local(id);
        let Some(agent) = self.hosts[id].node_mut().and_then(|n| n.agent.as_mut()) else { return };
        match load {
            Load::Open => agent.connected(now, number),
            Load::Bytes(bytes) => agent.handle(now, number, &bytes),
            Load::Close => agent.connection_lost(now, number),
        }
        if self.hosts[id].power == Power::Up {
            self.mark(id);
        }
    }

    /// What a node's agent wants and has learned. Whether there was anything.
    pub(super) fn flush_agent(&mut self, id: HostId) -> bool {
        let mut active = false;
        while let Some(output) = self.hosts[id].node_mut().and_then(|n| n.agent.as_mut()?.poll_output()) {
            active = true;
            let boot = self.hosts[id].boot;
            match output {
                AgentOutput::Connect(number) => {
                    let stream = Stream { conn: None, arrives: [self.now; 2] };
                    if let Some(hub) = &mut self.hub {
                        hub.streams.insert((id, boot, number), stream);
                    }
                    self.send_segment((id, boot, number), true, Load::Open);
                }
                AgentOutput::Send(number, bytes) => {
                    self.send_segment((id, boot, number), true, Load::Bytes(bytes));
                }
                AgentOutput::Disconnect(number) => {
                    self.send_segment((id, boot, number), true, Load::Close);
                }
            }
        }
        while let Some(event) = self.hosts[id].node_mut().and_then(|n| n.agent.as_mut()?.poll_event()) {
            active = true;
            self.on_agent_event(id, event);
        }
        active
    }

    fn on_agent_event(&mut self, id: HostId, event: AgentEvent) {
        match event {
            AgentEvent::Registered { address, name, name_error } => {
                let own = self.hosts[id].node().map(|n| n.address);
                self.audit.require(own == Some(address), Invariant::Registry, || {
                    format!("host {id} was given {address}, its key has {own:?}")
                });
                self.note(&format!("host {id}: registered as {address} {name:?} {name_error:?}"));
            }
            AgentEvent::HubLost => self.note(&format!("host {id}: registry lost")),
            AgentEvent::Answer(ask, reply) => self.on_answer(id, &ask, &reply),
            AgentEvent::Failed(ask, reason) => {
                self.note(&format!("host {id}: {ask:?}: {reason}"));
                self.on_answered(id, &ask);
            }
        }
    }

    // ------------------------------------------------------------------ questions

    /// A node asks the registry about another and does the errand when it knows. `false` if there is no registry.
    pub(super) fn inquire(&mut self, id: HostId, node: NodeId, errand: Errand) -> bool {
        let Some(hub) = &mut self.hub else { return false };
        hub.inquiries += 1;
        let number = hub.inquiries;
        let (now, boot) = (self.local(id), self.hosts[id].boot);
        let Some(owner) = self.hosts[id].node_mut() else { return false };
        if let Some(inquiry) = owner.inquiries.get_mut(&node) {
            inquiry.errands.push(errand);
            // Who asks later wants to know where the peer is now, as `Node::connect` does: half an answer is too old.
            if inquiry.resolved
                && let Some(agent) = &mut owner.agent
            {
                inquiry.resolved = !agent.ask(now, Ask::Resolve(node));
                self.mark(id);
            }
            return true;
        }
        let inquiry = Inquiry {
            number,
            endpoint: None,
            key: None,
            resolved: false,
            looked_up: false,
            errands: vec![errand],
        };
        owner.inquiries.insert(node, inquiry);
        if let Some(agent) = &mut owner.agent {
            // Asking too much is answered by nobody, as is asking without an agent: patience ends that.
            let _ = agent.ask(now, Ask::Resolve(node)) && agent.ask(now, Ask::Lookup(node));
        }
        self.schedule(self.now + PATIENCE, What::Unanswered { host: id, boot, node, number });
        self.mark(id);
        true
    }

    pub(super) fn give_up_inquiry(&mut self, id: HostId, boot: u32, node: NodeId, number: u64) {
        let host = &self.hosts[id];
        if host.boot != boot
            || host.node().and_then(|n| n.inquiries.get(&node)).is_none_or(|i| i.number != number)
        {
            return;
        }
        match host.power {
            Power::Paused(until) => {
                let at = until.max(self.now + PATIENCE);
                self.schedule(at, What::Unanswered { host: id, boot, node, number });
            }
            _ => self.end_inquiry(id, node),
        }
    }

    fn on_answer(&mut self, id: HostId, ask: &Ask, reply: &Reply) {
        let (Ask::Resolve(node) | Ask::Lookup(node)) = ask else { return };
        // Whose key it is in truth; nobody else may ever be given this address.
        let truth =
            self.hosts.iter().find_map(|h| h.node().filter(|n| n.address.node == *node)).map(|n| n.key);
        let Some(inquiry) = self.hosts[id].node_mut().and_then(|n| n.inquiries.get_mut(node)) else { return };
        match reply {
            Reply::Resolved(found) => inquiry.endpoint = found.real_addr.parse().ok(),
            Reply::Lookup(found) => {
                inquiry.key = found.public_key.as_ref().map(|key| key.0);
                let right = inquiry.key.is_none() || inquiry.key == truth;
                self.audit.require(right, Invariant::Registry, || {
                    format!("host {id} was told a wrong key of node {node}")
                });
            }
            _ => {}
        }
        self.on_answered(id, ask);
    }

    /// A question of an inquiry has been dealt with; when both are, it ends.
    fn on_answered(&mut self, id: HostId, ask: &Ask) {
        let (Ask::Resolve(node) | Ask::Lookup(node)) = ask else { return };
        let Some(inquiry) = self.hosts[id].node_mut().and_then(|n| n.inquiries.get_mut(node)) else { return };
        match ask {
            Ask::Resolve(_) => inquiry.resolved = true,
            _ => inquiry.looked_up = true,
        }
        if inquiry.resolved && inquiry.looked_up {
            self.end_inquiry(id, *node);
        }
    }

    /// The answer is complete, or will not come.
    fn end_inquiry(&mut self, id: HostId, node: NodeId) {
        let now = self.local(id);
        let Some(owner) = self.hosts[id].node_mut() else { return };
        let Some(inquiry) = owner.inquiries.remove(&node) else { return };
        let found = match (inquiry.endpoint, inquiry.key) {
            (Some(endpoint), Some(key)) => Some(PeerConfig {
                address: pilotage_wire::Address::new(0, node.0),
                key: Some(key),
                endpoint: Some(endpoint),
                policy: PeerPolicy::default(),
                prekey: None,
            }),
            _ => None,
        };
        if let Some(peer) = &found {
            owner.known.retain(|p| p.address != peer.address);
            owner.known.push(peer.clone());
            // The bound of peers is far above the number of hosts.
            let _ = owner.endpoint.add_peer(now, peer.clone());
        }
        self.mark(id);
        for errand in inquiry.errands {
            self.run_errand(id, node, errand, found.clone());
        }
    }

    fn run_errand(&mut self, id: HostId, node: NodeId, errand: Errand, found: Option<PeerConfig>) {
        match errand {
            Errand::Resolve => {
                let now = self.local(id);
                if let Some(endpoint) = self.endpoint(id) {
                    endpoint.resolve_peer(now, node, found);
                }
            }
            // People try again; while there are faults some do not.
            Errand::Flow(flow) if found.is_none() && self.registry_answers => {
                self.schedule(self.now + AGAIN, What::StartFlow(flow));
            }
            Errand::Flow(flow) => self.start_flow(flow, true),
            Errand::Datagram { to, len } => self.send_datagram(id, to, len, true),
            Errand::Ping { to } => self.send_ping(id, to, true),
        }
    }
}

fn target(segment: &Segment, registry: HostId) -> HostId {
    if segment.to_registry { registry } else { segment.stream.0 }
}
