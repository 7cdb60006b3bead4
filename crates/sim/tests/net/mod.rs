//! A network of one registry and its agents under virtual time.

mod chaos;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use pilotage_registry::engine::{Config, RateLimits};
use pilotage_sim::registry::{
    AgentConfig, AgentEvent, AgentOutput, Ask, HostConfig, RegistryAgent, RegistryConn, RegistryHost,
    RegistryOutput, Restart,
};
use pilotage_wire::registry::Reply;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

pub(crate) use chaos::Chaos;

/// Events in a simulated second beyond which something spins.
const BUSY: u64 = 5_000;

pub(crate) fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    rng.next_u64() % bound.max(1)
}

/// Who takes part.
pub(crate) struct Setup {
    pub(crate) host: HostConfig,
    pub(crate) agents: Vec<AgentSetup>,
    /// The host's clock runs this much faster, in millionths.
    pub(crate) drift: i64,
    /// Operators may put an old or empty disk in.
    pub(crate) lossy: bool,
}

pub(crate) struct AgentSetup {
    pub(crate) config: AgentConfig,
    /// TCP source.
    pub(crate) source: IpAddr,
    pub(crate) start: Duration,
}

impl Setup {
    /// Agents that quarrel about nothing.
    pub(crate) fn quiet(count: u8) -> Self {
        let agents = (0..count)
            .map(|n| agent(n, n, Some(format!("n{n}")), Duration::from_millis(u64::from(n))))
            .collect();
        Self { host: HostConfig::default(), agents, drift: 0, lossy: false }
    }

    pub(crate) fn random(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5e7);
        let count = 2 + below(&mut rng, 9) as u8;
        let agents = (0..count)
            .map(|n| {
                // A third are clones of another, and names are scarce.
                let identity =
                    if below(&mut rng, 3) == 0 { below(&mut rng, u64::from(count)) as u8 } else { n };
                let name = (below(&mut rng, 4) > 0).then(|| format!("n{}", below(&mut rng, 4)));
                agent(n, identity, name, Duration::from_millis(below(&mut rng, 30_000)))
            })
            .collect();
        let mut engine = Config { allow_beacon_register: seed.is_multiple_of(3), ..Config::default() };
        if below(&mut rng, 4) == 0 {
            engine.rates =
                RateLimits { challenge: 120, register: 20, update: 90, heartbeat: 90, ..engine.rates };
        }
        if below(&mut rng, 8) == 0 {
            engine.max_nodes = 1 + below(&mut rng, u64::from(count)) as usize;
        }
        let host = HostConfig { engine, ..HostConfig::default() };
        let drift = below(&mut rng, 100_000) as i64 - 50_000;
        Self { host, agents, drift, lossy: below(&mut rng, 4) == 0 }
    }
}

/// Agents with the same number modulo four are behind one address.
fn agent(n: u8, identity: u8, hostname: Option<String>, start: Duration) -> AgentSetup {
    let source = IpAddr::from([192, 0, 2, 1 + n % 4]);
    let config = AgentConfig {
        identity: [identity + 1; 32],
        hostname,
        public: true,
        listen: SocketAddr::new(IpAddr::from([10, 0, 0, n]), 4_000 + u16::from(n)),
        lan: vec![SocketAddr::new(IpAddr::from([10, 0, 0, n]), 4_000 + u16::from(n))],
    };
    AgentSetup { config, source, start }
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stats {
    pub(crate) events: u64,
    pub(crate) crashes: u64,
    pub(crate) refused: u64,
    pub(crate) lost: u64,
    pub(crate) registered: u64,
}

pub(crate) struct Peer {
    pub(crate) agent: RegistryAgent,
    pub(crate) source: IpAddr,
    /// Nothing passes, and nobody says so, until then.
    pub(crate) silent_until: Instant,
    start: Instant,
    public: bool,
    listen: SocketAddr,
    /// Its newest connection, and when the last bytes of each direction arrive.
    number: u64,
    arrives: [Instant; 2],
}

#[derive(Debug)]
enum Event {
    Open(usize, u64),
    ToHost(usize, u64, Vec<u8>),
    CloseHost(usize, u64),
    Opened(usize, u64),
    ToAgent(usize, u64, Vec<u8>),
    CloseAgent(usize, u64),
    Restart(Restart),
}

pub(crate) struct Net {
    pub(crate) host: RegistryHost,
    pub(crate) agents: Vec<Peer>,
    pub(crate) events: Vec<(usize, AgentEvent)>,
    pub(crate) captured: Vec<Vec<u8>>,
    pub(crate) stats: Stats,
    pub(crate) lossy: bool,
    max_nodes: usize,
    drift: i64,
    unix: i64,
    base: Instant,
    now: Instant,
    queue: BTreeMap<(Instant, u64), Event>,
    sequence: u64,
    conns: BTreeMap<(usize, u64), RegistryConn>,
    owners: BTreeMap<RegistryConn, (usize, u64)>,
    rng: ChaCha8Rng,
    hash: blake3::Hasher,
    second: (u64, u64),
    verbose: bool,
}

impl Net {
    #[allow(clippy::disallowed_methods, reason = "an Instant has no other source; all else counts from it")]
    pub(crate) fn new(seed: u64, setup: &Setup) -> Self {
        let base = Instant::now();
        let agents = setup
            .agents
            .iter()
            .map(|setup| Peer {
                agent: RegistryAgent::new(setup.config.clone(), base + setup.start),
                source: setup.source,
                silent_until: base,
                start: base + setup.start,
                public: setup.config.public,
                listen: setup.config.listen,
                number: 0,
                arrives: [base; 2],
            })
            .collect();
        Self {
            host: RegistryHost::new(seed, base, setup.host.clone()),
            agents,
            events: Vec::new(),
            captured: Vec::new(),
            stats: Stats::default(),
            lossy: setup.lossy,
            max_nodes: setup.host.engine.max_nodes,
            drift: setup.drift,
            unix: 1_700_000_000,
            base,
            now: base,
            queue: BTreeMap::new(),
            sequence: 0,
            conns: BTreeMap::new(),
            owners: BTreeMap::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            hash: blake3::Hasher::new(),
            second: (0, 0),
            verbose: std::env::var_os("PILOTAGE_VERBOSE").is_some(),
        }
    }

    pub(crate) fn digest(&self) -> [u8; 32] {
        *self.hash.finalize().as_bytes()
    }

    /// The host's clock.
    pub(crate) fn now(&self) -> Instant {
        self.host_time(self.now)
    }

    pub(crate) fn world_now(&self) -> Instant {
        self.now
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.now - self.base
    }

    fn host_time(&self, at: Instant) -> Instant {
        let micros = (at - self.base).as_micros() as i64;
        self.base + Duration::from_micros((micros + micros * self.drift / 1_000_000) as u64)
    }

    /// The world's time at which the host's clock has reached `at`.
    fn world_time(&self, at: Instant) -> Instant {
        let micros = at.saturating_duration_since(self.base).as_micros() as i64;
        let mut world =
            self.base + Duration::from_micros((micros * 1_000_000 / (1_000_000 + self.drift)) as u64);
        while self.host_time(world) < at {
            world += Duration::from_micros(1);
        }
        world
    }

    fn unix(&self) -> u64 {
        u64::try_from(self.unix + self.elapsed().as_secs() as i64).unwrap_or(0)
    }

    pub(crate) fn jump_clock(&mut self, seconds: i64) {
        self.unix += seconds;
    }

    pub(crate) fn ask(&mut self, n: usize, ask: Ask) {
        let now = self.now;
        self.agents[n].agent.ask(now, ask);
        self.pump(n);
    }

    pub(crate) fn endpoint(&self, n: usize) -> Option<SocketAddr> {
        self.host.record(self.agents[n].agent.node()?)?.endpoint
    }

    pub(crate) fn restart(&mut self, how: Restart) {
        let now = self.now();
        self.host.restart(now, how);
    }

    pub(crate) fn restart_in(&mut self, pause: Duration, how: Restart) {
        self.push(self.now + pause, Event::Restart(how));
    }

    pub(crate) fn move_agent(&mut self, n: usize, port: u16) {
        let listen = SocketAddr::new(self.agents[n].listen.ip(), port);
        let now = self.now;
        self.agents[n].listen = listen;
        self.agents[n].agent.set_listen(now, listen);
        self.pump(n);
    }

    /// Sends bytes on a connection of somebody who is no agent.
    pub(crate) fn intrude(&mut self, source: IpAddr, bytes: &[u8]) {
        let (now, unix) = (self.now(), self.unix());
        let Some(conn) = self.host.open(now, source) else { return };
        let mut out = Vec::new();
        let cut = below(&mut self.rng, bytes.len() as u64 + 1) as usize;
        for part in [&bytes[..cut], &bytes[cut..]] {
            self.host.handle(now, unix, conn, part, &mut out);
        }
        self.carry(out);
        // Replies that wait for a commit find nobody.
        if below(&mut self.rng, 2) == 0 {
            self.host.close(conn);
        }
    }

    /// The connection breaks, and both ends are told.
    pub(crate) fn break_conn(&mut self, n: usize) {
        let number = self.agents[n].number;
        if let Some(conn) = self.conns.remove(&(n, number)) {
            self.owners.remove(&conn);
            self.host.close(conn);
            self.push(self.now, Event::CloseAgent(n, number));
        }
    }

    /// All that is wrong ends.
    pub(crate) fn heal(&mut self) {
        self.host.set_disk(pilotage_sim::registry::DiskState::Healthy);
        self.agents.iter_mut().for_each(|peer| peer.silent_until = self.now);
        if !self.host.is_up() {
            self.restart(Restart::Kept);
        }
    }

    pub(crate) fn run_for(&mut self, time: Duration) -> Result<(), String> {
        let end = self.now + time;
        while self.step(end)? {}
        self.now = end;
        Ok(())
    }

    /// The next event up to `end`. False if there is none.
    fn step(&mut self, end: Instant) -> Result<bool, String> {
        let queued = self.queue.first_key_value().map(|(key, _)| key.0);
        let host = self.host.poll_timeout().map(|at| self.world_time(at));
        let agents = self
            .agents
            .iter()
            .enumerate()
            .map(|(n, peer)| (peer.agent.poll_timeout().max(peer.start), n))
            .min();
        let next = [queued, host, agents.map(|(at, _)| at)].into_iter().flatten().min();
        let Some(next) = next.filter(|at| *at <= end) else { return Ok(false) };
        self.now = self.now.max(next);
        self.count()?;
        if queued == Some(next) {
            if let Some((_, event)) = self.queue.pop_first() {
                self.handle(event);
            }
        } else if host == Some(next) {
            let mut out = Vec::new();
            let (now, unix) = (self.now(), self.unix());
            self.host.handle_timeout(now, unix, &mut out);
            self.carry(out);
        } else if let Some((_, n)) = agents {
            self.agents[n].agent.handle_timeout(self.now);
            self.pump(n);
        }
        self.host.check().map_err(|what| format!("after {:?}: {what}", self.elapsed()))?;
        Ok(true)
    }

    fn count(&mut self) -> Result<(), String> {
        self.stats.events += 1;
        let second = self.elapsed().as_secs();
        self.second = if self.second.0 == second { (second, self.second.1 + 1) } else { (second, 1) };
        if self.second.1 > BUSY { Err(format!("busy loop after {:?}", self.elapsed())) } else { Ok(()) }
    }

    fn push(&mut self, at: Instant, event: Event) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), event);
    }

    fn note(&mut self, what: &str, bytes: &[u8]) {
        if self.verbose {
            eprintln!("{:>12.6} {what} {}", self.elapsed().as_secs_f64(), String::from_utf8_lossy(bytes));
        }
        self.hash.update(&self.elapsed().as_nanos().to_be_bytes());
        self.hash.update(what.as_bytes());
        self.hash.update(bytes);
    }

    /// Adds the way to one end, never overtaking what is on its way.
    fn arrival(&mut self, n: usize, direction: usize) -> Instant {
        let delay = Duration::from_micros(500 + below(&mut self.rng, 40_000));
        let at = (self.now + delay).max(self.agents[n].arrives[direction]);
        self.agents[n].arrives[direction] = at;
        at
    }

    fn handle(&mut self, event: Event) {
        match &event {
            Event::ToHost(n, number, bytes) => self.note(&format!("{n}/{number} says"), bytes),
            Event::ToAgent(n, number, bytes) => self.note(&format!("{n}/{number} hears"), bytes),
            other => self.note(&format!("{other:?}"), &[]),
        }
        let silent = |n: usize| self.agents[n].silent_until > self.now;
        match event {
            Event::Restart(how) => self.restart(how),
            Event::Open(n, _) | Event::ToHost(n, _, _) | Event::CloseHost(n, _) if silent(n) => {
                self.stats.lost += 1
            }
            Event::Opened(n, _) | Event::ToAgent(n, _, _) | Event::CloseAgent(n, _) if silent(n) => {
                self.stats.lost += 1
            }
            Event::Open(n, number) => {
                let now = self.now();
                let opened = self.host.open(now, self.agents[n].source);
                let at = self.arrival(n, 1);
                match opened {
                    Some(conn) => {
                        self.conns.insert((n, number), conn);
                        self.owners.insert(conn, (n, number));
                        self.push(at, Event::Opened(n, number));
                    }
                    None => self.push(at, Event::CloseAgent(n, number)),
                }
            }
            Event::ToHost(n, number, bytes) => match self.conns.get(&(n, number)) {
                Some(&conn) => {
                    let mut out = Vec::new();
                    let (now, unix) = (self.now(), self.unix());
                    self.host.handle(now, unix, conn, &bytes, &mut out);
                    self.carry(out);
                }
                None => {
                    let at = self.arrival(n, 1);
                    self.push(at, Event::CloseAgent(n, number));
                }
            },
            Event::CloseHost(n, number) => {
                if let Some(conn) = self.conns.remove(&(n, number)) {
                    self.owners.remove(&conn);
                    self.host.close(conn);
                }
            }
            Event::Opened(n, number) => {
                self.agents[n].agent.connected(self.now, number);
                self.pump(n);
            }
            Event::ToAgent(n, number, bytes) => {
                self.agents[n].agent.handle(self.now, number, &bytes);
                self.pump(n);
            }
            Event::CloseAgent(n, number) => {
                self.agents[n].agent.connection_lost(self.now, number);
                self.pump(n);
            }
        }
    }

    /// What the host has to say.
    fn carry(&mut self, out: Vec<RegistryOutput>) {
        for output in out {
            match output {
                RegistryOutput::Send(conn, bytes) => {
                    let Some(&(n, number)) = self.owners.get(&conn) else { continue };
                    let at = self.arrival(n, 1);
                    self.push(at, Event::ToAgent(n, number, bytes));
                }
                RegistryOutput::Close(conn) => {
                    let Some((n, number)) = self.owners.remove(&conn) else { continue };
                    self.conns.remove(&(n, number));
                    let at = self.arrival(n, 1);
                    self.push(at, Event::CloseAgent(n, number));
                }
            }
        }
    }

    /// What an agent has to say.
    fn pump(&mut self, n: usize) {
        while let Some(output) = self.agents[n].agent.poll_output() {
            match output {
                AgentOutput::Connect(number) => {
                    self.agents[n].number = number;
                    let at = self.arrival(n, 0);
                    self.push(at, Event::Open(n, number));
                }
                AgentOutput::Send(number, bytes) => {
                    if self.captured.len() < 64 {
                        self.captured.push(bytes.clone());
                    }
                    // TCP keeps no message borders.
                    let cut = below(&mut self.rng, bytes.len() as u64) as usize;
                    for part in [&bytes[..cut], &bytes[cut..]] {
                        let at = self.arrival(n, 0);
                        self.push(at, Event::ToHost(n, number, part.to_vec()));
                    }
                }
                AgentOutput::Disconnect(number) => {
                    let at = self.arrival(n, 0);
                    self.push(at, Event::CloseHost(n, number));
                }
            }
        }
        while let Some(event) = self.agents[n].agent.poll_event() {
            self.note(&format!("{event:?}"), &[]);
            match &event {
                AgentEvent::Registered { .. } => self.stats.registered += 1,
                AgentEvent::Failed(..) => self.stats.refused += 1,
                AgentEvent::Answer(Ask::SetPublic(public), _) => self.agents[n].public = *public,
                _ => {}
            }
            self.events.push((n, event));
        }
    }

    /// Everybody has an address, unless the table is full, and finds everybody public.
    pub(crate) fn demand_liveness(&mut self) -> Result<(), String> {
        let full = self.host.nodes() >= self.max_nodes;
        let known: Vec<usize> =
            (0..self.agents.len()).filter(|&n| self.agents[n].agent.is_registered()).collect();
        if !self.host.is_up() || self.host.is_read_only() || (!full && known.len() < self.agents.len()) {
            return Err(format!(
                "only {} of {} are registered: {:?}",
                known.len(),
                self.agents.len(),
                self.host
            ));
        }
        for &n in &known {
            let (key, node) = (self.agents[n].agent.public_key(), self.agents[n].agent.node());
            let record = node.and_then(|node| self.host.record(node));
            if record.is_none_or(|record| record.public_key != key || record.endpoint.is_none()) {
                return Err(format!("agent {n} believes to be registered: {record:?}"));
            }
        }
        self.events.clear();
        for (&n, &other) in known.iter().zip(known.iter().cycle().skip(1)) {
            let Some(target) = self.agents[other].agent.node() else { continue };
            self.ask(n, Ask::Resolve(target));
            self.ask(n, Ask::Lookup(target));
        }
        self.run_for(Duration::from_secs(12))?;
        for event in &self.events {
            match event {
                (_, AgentEvent::Answer(Ask::Resolve(node), Reply::Resolved(found))) => {
                    self.check_endpoint(*node, &found.real_addr)?
                }
                (n, AgentEvent::Failed(Ask::Resolve(node), why)) => {
                    let public = self.host.record(*node).is_some_and(|record| record.public);
                    if public && !why.contains("too many") {
                        return Err(format!("agent {n} does not find {node}: {why}"));
                    }
                }
                (n, AgentEvent::Failed(ask, why)) if !why.contains("too many") => {
                    return Err(format!("agent {n}: {ask:?} failed: {why}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The endpoint is that of the node or of one of its clones.
    fn check_endpoint(&self, node: pilotage_wire::NodeId, found: &str) -> Result<(), String> {
        let mut clones = self.agents.iter().filter(|peer| peer.agent.node() == Some(node));
        let right = clones.any(|peer| SocketAddr::new(peer.source, peer.listen.port()).to_string() == found);
        if right { Ok(()) } else { Err(format!("node {node} is not at {found}")) }
    }
}
