//! Load on a registry of one process: `cargo xtask registry-bench`. The hub is this program started again.
//!
//! Signatures are made before the clocks start; the clients and the hub share the machine.

use ed25519_dalek::{Signer as _, SigningKey};
use pilotage_registry::book::client::BookClient;
use pilotage_registry::book::message::{
    Ask, ClaimAnswer, Hello, Query, RecordAnswer, Reply, Request, Told, Whose,
};
use pilotage_registry::book::server::{Book, BookConfig};
use pilotage_registry::claims::Claim;
use pilotage_registry::claims::local::{LocalConfig, LocalLog};
use pilotage_registry::record::{certify, sign};
use pilotage_registry::replica::node::{MAX_WATCHES_PER_CONNECTION, Replica, ReplicaConfig};
use pilotage_registry::replica::owner_key;
use pilotage_registry::replica::presence::{heartbeat, hello_signed, open_token, public};
use pilotage_registry::server::{Server, ServerConfig};
use pilotage_wire::record::Record;
use pilotage_wire::{NetworkId, NodeId, addressing};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The proof of work is the client's cost; checking it costs the same whatever it is.
const POW: u8 = 1;
/// Registrations under way per connection.
const PIPELINE: usize = 512;
const TIMEOUT: Duration = Duration::from_secs(60);
/// Registrations a second while look-ups are measured.
const WRITE_RATE: u64 = 5_000;
/// Look-ups that each of two clients has under way where rate and times are held against the goals. With 64 the hub is saturated: then
/// the times say how many wait, not how long one takes.
const BUSY: usize = 12;

type Error = Box<dyn std::error::Error + Send + Sync>;

struct Options {
    agents: usize,
    seconds: u64,
    /// Registrations and starts only.
    starts: bool,
    json: bool,
}

struct Agent {
    node: NodeId,
    id: [u8; 32],
    register: Request,
}

#[allow(clippy::disallowed_methods, reason = "a load test reads the clock")]
fn clock() -> Instant {
    Instant::now()
}

#[allow(clippy::disallowed_methods, reason = "a load test reads the clock")]
fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [serve, dir] = arguments.as_slice()
        && serve == "serve"
    {
        return serve_hub(Path::new(dir));
    }
    let mut options = Options { agents: 190_000, seconds: 10, starts: false, json: false };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut number = || rest.next().and_then(|text| text.parse().ok()).ok_or("a number has to follow");
        match argument.as_str() {
            "--agents" => options.agents = number()? as usize,
            "--seconds" => options.seconds = number()?,
            "--quick" => (options.agents, options.seconds) = (20_000, 3),
            "--starts" => options.starts = true,
            "--json" => options.json = true,
            other => {
                return Err(format!(
                    "unknown option {other}; there are --agents N, --seconds N, --quick, --starts, --json"
                )
                .into());
            }
        }
    }
    measure(&options)
}

fn serve_hub(dir: &Path) -> Result<(), Error> {
    let begin = clock();
    let config = LocalConfig { pow_bits: POW, ..LocalConfig::new(Arc::new(unix), [1; 32]) };
    let log = LocalLog::open(&dir.join("claims.redb"), config)?;
    let opened = begin.elapsed();
    let mut server = Server::bind(ServerConfig::new(([127, 0, 0, 1], 0).into(), dir.join("hub.redb")))?;
    let log = Arc::new(log);
    let (node, signer) = (log.node_key(), log.clone());
    let sign = Arc::new(move |message: &[u8]| signer.sign(message));
    let bind = server.local_addr();
    let config = ReplicaConfig::new(dir.join("replicas.redb"), bind, node, sign, Arc::new(unix));
    let replica = Arc::new(Replica::start(config, &[7; 40])?);
    let config = BookConfig { replica: Some(replica.clone()), ..BookConfig::default() };
    server.serve_book(Book::start(log, config)?);
    println!("listening {} {} {}", server.local_addr(), opened.as_millis(), begin.elapsed().as_millis());
    // Each line that comes is answered with the number of heartbeats; after the last one the hub stops.
    let handle = server.handle();
    let asked = std::thread::spawn(move || {
        for _ in std::io::stdin().lines().map_while(Result::ok) {
            println!("{}", replica.stats().heartbeats);
        }
        handle.stop();
    });
    server.run()?;
    asked.join().map_err(|_| "the thread that answers ended")?;
    Ok(())
}

struct Hub {
    child: Child,
    said: BufReader<ChildStdout>,
    addr: String,
    /// Until all claims were read, and until it listens.
    started_ms: [u64; 2],
}

impl Hub {
    fn start(dir: &Path) -> Result<Self, Error> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("serve")
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().ok_or("no output")?);
        said.read_line(&mut line)?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, addr, opened, all] = words.as_slice() else { return Err("the hub did not start".into()) };
        let started_ms = [opened.parse()?, all.parse()?];
        Ok(Self { addr: (*addr).to_owned(), started_ms, child, said })
    }

    /// As an operator stops it; otherwise it is killed.
    fn stop(mut self) -> Result<(), Error> {
        self.child.stdin.take();
        self.child.wait()?;
        Ok(())
    }

    /// Processor time that it has used, milliseconds.
    fn cpu_ms(&self) -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        // Of the fields behind the name the 12th and the 13th: user and system, in hundredths of a second.
        let fields = text.rsplit_once(')')?.1.split_whitespace().skip(11).take(2);
        Some(fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10)
    }

    fn rss(&self) -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = text.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1_024)
    }

    /// Heartbeats taken so far.
    fn heartbeats(&mut self) -> Result<u64, Error> {
        self.child.stdin.as_mut().ok_or("no input")?.write_all(b"\n")?;
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        Ok(line.trim().parse()?)
    }

    fn connect(&self) -> Result<BookClient, Error> {
        Ok(BookClient::connect(&self.addr, TIMEOUT, Vec::new())?)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As large as records usually are: a prekey with its certificate, an endpoint, tags, a summary.
fn agent(number: u64, now: u64) -> Agent {
    agent_saying(number, now, 1)
}

/// The same with another number of its record.
fn agent_saying(number: u64, now: u64, seq: u64) -> Agent {
    let mut seed = [3; 32];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    let key = SigningKey::from_bytes(&seed);
    let public = key.verifying_key().to_bytes();
    let (salt, node) = addressing::node_ids(&public).next().unwrap_or((0, NodeId(16)));
    let expires = (now + 86_400) as u32;
    let claim = Claim::address(NetworkId(0), public, salt, 1, expires)
        .map(|claim| claim.sign(POW, &key, None).encode());
    let mut record = Record::new(NetworkId(0), node, salt, public, seq, now as u32);
    record.prekeys = vec![certify(&key, seed, expires, 1, 0)];
    record.endpoints = vec![std::net::SocketAddr::from(([192, 0, 2, 1], 4_000))];
    record.tags = vec![format!("bench.group{}", number % 100), "finance.fx.history".into()];
    record.summary = Some(format!("agent number {number} of the load test"));
    let record = sign(&mut record, &key, None).ok();
    Agent {
        node,
        id: addressing::agent_id(&public),
        register: Request::Register { claims: claim.into_iter().collect(), record },
    }
}

fn make(from: u64, count: u64, now: u64) -> Vec<Agent> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let share = count.div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let part = |thread: u64| {
            let (start, end) = ((thread * share).min(count), ((thread + 1) * share).min(count));
            scope.spawn(move || {
                (from + start..from + end).map(|number| agent(number, now)).collect::<Vec<_>>()
            })
        };
        let parts: Vec<_> = (0..threads).map(part).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap_or_default()).collect()
    })
}

fn measure(options: &Options) -> Result<(), Error> {
    let dir = std::env::temp_dir().join(format!("pilotage-registry-load-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let result = measure_in(options, &dir);
    std::fs::remove_dir_all(&dir)?;
    let value = result?;
    if options.json {
        println!("{value}");
        return Ok(());
    }
    let fields = value.as_object().into_iter().flatten().filter(|(name, _)| *name != "goals");
    fields.for_each(|(name, value)| println!("{name:<36} {value}"));
    for goal in value["goals"].as_array().into_iter().flatten() {
        let met = if goal["met"] == true { "met" } else { "MISSED" };
        let (what, figure) = (goal["what"].as_str().unwrap_or_default(), &goal["figure"]);
        let bound = [("at_least", "≥"), ("at_most", "≤")];
        let bound = bound.iter().find(|(name, _)| goal[*name].is_number());
        let bound = bound.map_or(String::new(), |(name, sign)| format!("{sign} {}", goal[*name]));
        println!("goal: {what:<48} {figure:>10} {bound:<10} {met}");
    }
    if value["agents"] != json!(GOAL_AGENTS) {
        println!("the goals are for {GOAL_AGENTS} agents (--full) on a machine that does nothing else");
    }
    Ok(())
}

/// The goals are for so many agents.
const GOAL_AGENTS: u64 = 190_000;

/// The figures against the goals, on two cores, clients and hub together.
fn goals(figures: &Value) -> Value {
    let least = |what: &str, figure: &Value, least: u64| json!({ "what": what, "figure": figure, "at_least": least, "met": figure.as_f64() >= Some(least as f64) });
    let most = |what: &str, figure: &Value, most: u64| {
        let met = figure.as_f64().is_some_and(|figure| figure <= most as f64);
        json!({ "what": what, "figure": figure, "at_most": most, "met": met })
    };
    let times = &figures["resolve_busy_us_p50_p99_max"];
    // Of so many keys a few have one node id, and no record.
    let agents = figures["agents"].as_u64().map(|agents| agents - agents / 1_000);
    let whole = figures["starts"]["records"].as_u64() >= agents;
    let start = |what: &str, which: &str| {
        let mut start = most(what, &figures["starts"][which][1], 500);
        start["met"] = json!(start["met"] == true && whole);
        start
    };
    json!([
        least("durable registrations a second", &figures["registrations_per_s"], 20_000),
        least("look-ups a second", &figures["resolve_busy_per_s"], 100_000),
        most("their p99, us", &times[1], 1_000),
        most("their maximum, us", &times[2], 10_000),
        // The writer keeps to its rate and is never above it.
        least(
            "registrations a second beside them",
            &figures["writes_during_resolve_per_s"][0],
            WRITE_RATE * 98 / 100
        ),
        least("heartbeats a second", &figures["heartbeats_per_s"], 200_000),
        most("memory per registered agent, bytes", &figures["rss_bytes_per_agent"], 800),
        most("the same with look-ups and heartbeats, bytes", &figures["rss_after_all_bytes_per_agent"], 800),
        start("start with all records, ms", "after_stop_ms"),
        start("the same after it was killed, ms", "after_kill_ms"),
    ])
}

/// Starts of a hub with so many agents and their records: the last after it was stopped, the first after it was killed in the
/// middle of writing.
fn starts(dir: &Path, agents: &[Agent], more: &[Agent]) -> Result<Value, Error> {
    std::fs::create_dir_all(dir)?;
    let hub = Hub::start(dir)?;
    let (empty, begin, cpu) = (hub.rss().unwrap_or(0), clock(), hub.cpu_ms());
    register_all(&hub, agents)?;
    let rate = agents.len() as f64 / begin.elapsed().as_secs_f64();
    let cpu = hub.cpu_ms().zip(cpu).map_or(0, |(after, before)| after - before);
    let rss = hub.rss().unwrap_or(0).saturating_sub(empty) / agents.len().max(1) as u64;
    std::thread::scope(|scope| -> Result<(), Error> {
        // Its connection breaks: that is what is wanted.
        let writer = scope.spawn(|| register(&hub, more));
        std::thread::sleep(Duration::from_millis(20));
        let pid = hub.child.id().to_string();
        Command::new("kill").args(["-9", &pid]).status()?;
        let _ = writer.join();
        Ok(())
    })?;
    drop(hub);
    let killed = Hub::start(dir)?;
    let records = killed.connect()?.info()?.records;
    let (after_kill, after_kill_cpu) = (killed.started_ms, killed.cpu_ms());
    killed.stop()?;
    let stopped = Hub::start(dir)?;
    let rss_started = stopped.rss().unwrap_or(0).saturating_sub(empty) / agents.len().max(1) as u64;
    let figures = json!({
        "registrations_per_s": rate.round(),
        "hub_cpu_us_per_registration": cpu * 1_000 / agents.len().max(1) as u64,
        "rss_bytes_per_agent": rss,
        "records": records,
        "after_kill_ms": after_kill,
        "after_kill_cpu_ms": after_kill_cpu,
        "after_stop_ms": stopped.started_ms,
        "after_stop_cpu_ms": stopped.cpu_ms(),
        "after_stop_rss_bytes_per_agent": rss_started,
    });
    stopped.stop()?;
    std::fs::remove_dir_all(dir)?;
    Ok(figures)
}

fn measure_in(options: &Options, dir: &Path) -> Result<Value, Error> {
    let now = unix();
    eprintln!("signing for {} agents …", options.agents);
    let agents = make(0, options.agents as u64, now);
    let more = make(1 << 40, WRITE_RATE * (options.seconds + 2) * 4, now);
    eprintln!("starting again …");
    let started = starts(&dir.join("starts"), &agents, &more)?;
    if options.starts {
        return Ok(json!({ "starts": started }));
    }
    let mut hub = Hub::start(dir)?;
    let empty = hub.rss().unwrap_or(0);
    eprintln!("registering …");
    let begin = clock();
    register_all(&hub, &agents)?;
    let registered = agents.len() as f64 / begin.elapsed().as_secs_f64();
    let rss = hub.rss().unwrap_or(0);
    let mut writes = more.chunks(more.len().div_ceil(4).max(1));
    eprintln!("look-ups under {WRITE_RATE} registrations a second …");
    let saturated = lookups(&hub, &agents, writes.next().unwrap_or(&[]), options, 2, 64, false)?;
    let busy = lookups(&hub, &agents, writes.next().unwrap_or(&[]), options, 2, BUSY, false)?;
    let proven = lookups(&hub, &agents, writes.next().unwrap_or(&[]), options, 2, 64, true)?;
    let gentle = lookups(&hub, &agents, writes.next().unwrap_or(&[]), options, 1, 1, false)?;
    let after = hub.rss().unwrap_or(0);
    eprintln!("heartbeats …");
    let beats = heartbeats(&mut hub, &agents, now, options)?;
    let (beaten, stored) = (hub.rss().unwrap_or(0), hub.connect()?.info()?.records);
    eprintln!("watching …");
    let watched = watching(&hub, &agents, now)?;
    drop(hub);
    let again = Hub::start(dir)?;
    let opened_ms = again.started_ms[0];
    let count = agents.len() as u64;
    let mut figures = json!({
        "agents": count,
        "registrations_per_s": registered.round(),
        "resolve_per_s_saturated": saturated.rate.round(),
        "resolve_saturated_us_p50_p99_max": saturated.times,
        "resolve_busy_per_s": busy.rate.round(),
        "resolve_busy_us_p50_p99_max": busy.times,
        "resolve_proven_per_s_saturated": proven.rate.round(),
        "resolve_one_at_a_time_per_s": gentle.rate.round(),
        "resolve_one_at_a_time_us_p50_p99_max": gentle.times,
        "writes_during_resolve_per_s": [busy.writes, saturated.writes, proven.writes, gentle.writes],
        "heartbeats_per_s": beats.0,
        "heartbeats_sent_per_s": beats.1,
        "rss_empty_bytes": empty,
        "rss_bytes_per_agent": rss.saturating_sub(empty) / count.max(1),
        "rss_after_lookups_bytes": after,
        "rss_after_all_bytes_per_agent": beaten.saturating_sub(empty) / stored.max(1),
        "watchers_waiting": agents.len().saturating_sub(CHANGES).min(WATCHERS),
        "watch_change_told_us_p50_p99_max": watched,
        "starts": started,
        "restart_ms": opened_ms,
        "records_at_restart": again.connect()?.info()?.records,
        "load_average": std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim(),
    });
    figures["goals"] = goals(&figures);
    Ok(figures)
}

fn register_all(hub: &Hub, agents: &[Agent]) -> Result<(), Error> {
    let share = agents.len().div_ceil(4).max(1);
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            agents.chunks(share).map(|part| scope.spawn(move || register(hub, part))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a client ended")?)
    })
}

fn register(hub: &Hub, agents: &[Agent]) -> Result<(), Error> {
    let mut client = hub.connect()?;
    let requests: Vec<Request> = agents.iter().map(|agent| agent.register.clone()).collect();
    let (mut sent, mut answered) = (0, 0);
    while answered < requests.len() {
        while sent < requests.len() && sent - answered <= PIPELINE / 2 {
            let end = (sent + PIPELINE / 2).min(requests.len());
            client.send(&requests[sent..end])?;
            sent = end;
        }
        check(&client.receive()?.1)?;
        answered += 1;
    }
    Ok(())
}

fn check(reply: &Reply) -> Result<(), Error> {
    match reply {
        Reply::Registered { claims, record: RecordAnswer::Stored }
            if claims.iter().all(|claim| matches!(claim, ClaimAnswer::Granted(_))) =>
        {
            Ok(())
        }
        // Of 190,000 keys a few have the same node id; the next salt is the client's business.
        Reply::Registered { claims, .. } if matches!(claims[..], [ClaimAnswer::TakenBy { .. }]) => Ok(()),
        other => Err(format!("not registered: {other:?}").into()),
    }
}

/// Agents that send heartbeats; each says hello first, which costs signatures.
const BEATING: usize = 2_000;

fn signing_key(number: u64) -> SigningKey {
    let mut seed = [3; 32];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_bytes(&seed)
}

/// Heartbeats taken and sent each second, from one thread that sends as fast as it can.
fn heartbeats(hub: &mut Hub, agents: &[Agent], now: u64, options: &Options) -> Result<(u64, u64), Error> {
    let mut client = hub.connect()?;
    let node = client.info()?.node;
    let (mut slots, mut port) = (Vec::new(), 0);
    for number in 0..BEATING.min(agents.len()) as u64 {
        let (key, secret) = (signing_key(number), [number as u8; 32]);
        let mut hello = Hello {
            key: key.verifying_key().to_bytes(),
            network: NetworkId(0),
            ephemeral: public(&secret),
            time: now,
            signature: [0; 64],
        };
        hello.signature = key.sign(&hello_signed(&node, &hello)).to_bytes();
        let reply = client.call(&Request::Replica(Ask::Hello(hello)))?;
        // Of two keys with one node id only one has a record.
        let Reply::Replica(Told::Welcome(welcome)) = reply else { continue };
        let token = open_token(&welcome.sealed, &secret, &welcome.ephemeral).ok_or("no token")?;
        slots.push((welcome.slot, token));
        port = welcome.port;
    }
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(("127.0.0.1", port))?;
    let before = hub.heartbeats()?;
    let (begin, mut sent) = (clock(), 0_u64);
    while begin.elapsed().as_secs() < options.seconds {
        let counter = sent / slots.len() as u64 + 1;
        for (slot, token) in &slots {
            // A full queue is the hub's loss, not the sender's.
            let _ = socket.send(&heartbeat(*slot, counter, token));
            sent += 1;
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let taken = hub.heartbeats()? - before;
    Ok(((taken as f64 / seconds) as u64, (sent as f64 / seconds) as u64))
}

/// Questions that wait for a change of other agents.
const WATCHERS: usize = 1_000;
/// Changes that are made, one after the other.
const CHANGES: usize = 200;

/// From the sending of a new record until the one who watches its agent has it, while others watch other agents;
/// microseconds.
fn watching(hub: &Hub, agents: &[Agent], now: u64) -> Result<[u64; 3], Error> {
    let mut watcher = hub.connect()?;
    let of = |agent: &Agent| Whose::Of(owner_key(&agent.id, NetworkId(0)));
    let others: Vec<Request> = agents[CHANGES.min(agents.len())..]
        .iter()
        .take(WATCHERS)
        .map(|agent| place(&mut watcher).map(|(history, from)| watch(of(agent), history, from)))
        .collect::<Result<_, _>>()?;
    let mut waiting = Vec::new();
    for questions in others.chunks(MAX_WATCHES_PER_CONNECTION) {
        let mut client = hub.connect()?;
        client.send(questions)?;
        waiting.push(client);
    }
    let mut writer = hub.connect()?;
    let mut times = Vec::new();
    for (agent, number) in agents.iter().zip(0..CHANGES as u64) {
        let Request::Register { record, .. } = agent_saying(number, now, 2).register else { continue };
        let (history, from) = place(&mut watcher)?;
        watcher.send(&[watch(of(agent), history, from)])?;
        let begin = clock();
        writer.send(&[Request::Register { claims: Vec::new(), record }])?;
        let Reply::Registered { record: RecordAnswer::Stored, .. } = writer.receive()?.1 else {
            // Another key has its node id, and so it has no record; nobody waits for it any longer.
            watcher = hub.connect()?;
            continue;
        };
        match watcher.receive()?.1 {
            Reply::Replica(Told::Events { records, .. }) if records.len() == 1 => {}
            other => return Err(format!("not told: {other:?}").into()),
        }
        times.push(begin.elapsed().as_micros() as u64);
    }
    drop(waiting);
    times.sort_unstable();
    let at = |share: f64| times.get(((times.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or(0);
    Ok([at(0.5), at(0.99), at(1.0)])
}

fn watch(whose: Whose, history: u64, from: u64) -> Request {
    Request::Replica(Ask::Watch { whose, history, from })
}

/// The hub's history and its end.
fn place(client: &mut BookClient) -> Result<(u64, u64), Error> {
    match client.call(&watch(Whose::All, 0, 0))? {
        Reply::Replica(Told::Events { history, upto, .. }) => Ok((history, upto)),
        other => Err(format!("no history: {other:?}").into()),
    }
}

struct Figures {
    rate: f64,
    times: [u64; 3],
    writes: u64,
}

fn lookups(
    hub: &Hub,
    agents: &[Agent],
    more: &[Agent],
    options: &Options,
    clients: u64,
    depth: usize,
    proof: bool,
) -> Result<Figures, Error> {
    let stop = AtomicBool::new(false);
    let (done, written) = (AtomicU64::new(0), AtomicU64::new(0));
    let begin = clock();
    let mut times: Vec<u32> = std::thread::scope(|scope| -> Result<_, Error> {
        let writer = scope.spawn(|| write_steadily(hub, more, &stop, &written));
        let readers: Vec<_> = (0..clients)
            .map(|client| {
                let (stop, done) = (&stop, &done);
                scope.spawn(move || read(hub, agents, client, depth, proof, stop, done))
            })
            .collect();
        std::thread::sleep(Duration::from_secs(options.seconds));
        stop.store(true, Ordering::Relaxed);
        let mut times = Vec::new();
        for reader in readers {
            times.extend(reader.join().map_err(|_| "a client ended")??);
        }
        writer.join().map_err(|_| "the writer ended")??;
        Ok(times)
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: f64| {
        u64::from(
            times.get(((times.len() as f64 * share) as usize).min(times.len() - 1)).copied().unwrap_or(0),
        )
    };
    Ok(Figures {
        rate: done.into_inner() as f64 / seconds,
        times: [at(0.5), at(0.99), at(1.0)],
        writes: (written.into_inner() as f64 / seconds) as u64,
    })
}

/// Groups of `depth` questions; the time of each group's last answer is what its slowest question took.
fn read(
    hub: &Hub,
    agents: &[Agent],
    client: u64,
    depth: usize,
    proof: bool,
    stop: &AtomicBool,
    done: &AtomicU64,
) -> Result<Vec<u32>, Error> {
    let mut connection = hub.connect()?;
    let mut random = client * 2 + 1;
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let requests: Vec<Request> = (0..depth)
            .map(|_| {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let agent = &agents[(random >> 33) as usize % agents.len()];
                let network = NetworkId(0);
                let by_address = proof || random & (1 << 20) == 0;
                let query = if by_address {
                    Query::Address { network, node: agent.node }
                } else {
                    Query::Agent { id: agent.id, network }
                };
                Request::Resolve { query, proof }
            })
            .collect();
        let begin = clock();
        connection.send(&requests)?;
        for _ in 0..depth {
            match connection.receive()?.1 {
                Reply::Resolved { record: Some(_), .. } | Reply::NotFound => {}
                // The holder of the address is the other key with that node id.
                Reply::Resolved { record: None, claim: Some(_) } => {}
                other => return Err(format!("not resolved: {other:?}").into()),
            }
        }
        times.push(begin.elapsed().as_micros() as u32);
        done.fetch_add(depth as u64, Ordering::Relaxed);
    }
    Ok(times)
}

fn write_steadily(hub: &Hub, agents: &[Agent], stop: &AtomicBool, written: &AtomicU64) -> Result<(), Error> {
    let mut client = hub.connect()?;
    let begin = clock();
    let (mut sent, mut answered) = (0usize, 0usize);
    while !stop.load(Ordering::Relaxed) {
        let due = ((begin.elapsed().as_secs_f64() * WRITE_RATE as f64) as usize).min(agents.len());
        let due = due.min(answered + PIPELINE);
        if due > sent {
            let requests: Vec<Request> =
                agents[sent..due].iter().map(|agent| agent.register.clone()).collect();
            client.send(&requests)?;
            sent = due;
        }
        // Half of what is under way may stay so.
        while answered < sent.saturating_sub(PIPELINE / 2) {
            check(&client.receive()?.1)?;
            answered += 1;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    while answered < sent {
        check(&client.receive()?.1)?;
        answered += 1;
    }
    written.store(answered as u64, Ordering::Relaxed);
    Ok(())
}
