//! Records at replicas, over real sockets and processes (`spec/replica.md`).

use ed25519_dalek::{Signer as _, SigningKey};
use pilotage_registry::book::client::BookClient;
use pilotage_registry::book::message::{
    Ask, OwnerKey, Query, RecordAnswer, Reply, Request, Told, Whose, next_frame,
};
use pilotage_registry::book::server::{Book, BookConfig};
use pilotage_registry::claims::Claim;
use pilotage_registry::claims::local::{LocalConfig, LocalLog};
use pilotage_registry::placement::{Map, MapKeeper, MapNode, SignedMap};
use pilotage_registry::record::sign;
use pilotage_registry::replica::agent::{Agent, Publication};
use pilotage_registry::replica::cache::Cache;
use pilotage_registry::replica::evidence::Fault;
use pilotage_registry::replica::find::{Finder, fetch_map};
use pilotage_registry::replica::follow::{Change, Follower};
use pilotage_registry::replica::node::{Replica, ReplicaConfig};
use pilotage_registry::replica::owner_key;
use pilotage_registry::server::{Server, ServerConfig, ServerHandle};
use pilotage_wire::record::Record;
use pilotage_wire::{NetworkId, addressing};
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const POW: u8 = 4;
const STORE: &str = "PILOTAGE_TEST_REPLICA_STORE";
const TIMEOUT: Duration = Duration::from_secs(30);
const NETWORK: NetworkId = NetworkId(0);

#[allow(clippy::disallowed_methods, reason = "a test against the real clock")]
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[allow(clippy::disallowed_methods, reason = "a test against the real clock")]
fn clock() -> Instant {
    Instant::now()
}

struct Hub {
    addr: SocketAddr,
    node: [u8; 32],
    replica: Arc<Replica>,
    handle: ServerHandle,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Hub {
    fn stop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    fn map_node(&self) -> MapNode {
        MapNode { key: self.node, weight: 1, endpoints: vec![self.addr] }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop();
    }
}

fn node_key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn server(dir: &Path, seed: u8) -> (Server, Arc<Replica>, [u8; 32]) {
    let config = LocalConfig { pow_bits: POW, ..LocalConfig::new(Arc::new(now), [seed; 32]) };
    let log = Arc::new(LocalLog::open(&dir.join("claims.redb"), config).unwrap());
    let bind = ([127, 0, 0, 1], 0).into();
    let (node, of_sign) = (log.node_key(), log.clone());
    let sign = Arc::new(move |message: &[u8]| of_sign.sign(message));
    let mut config = ReplicaConfig::new(dir.join("replicas.redb"), bind, node, sign, Arc::new(now));
    config.map = Some(dir.join("map"));
    config.heartbeat = 1;
    let mut random = [seed; 40];
    random[39] = seed ^ 0x55;
    let replica = Arc::new(Replica::start(config, &random).unwrap());
    let mut server = Server::bind(ServerConfig::new(bind, dir.join("hub.redb"))).unwrap();
    let config = BookConfig { replica: Some(replica.clone()), ..BookConfig::default() };
    server.serve_book(Book::start(log, config).unwrap());
    (server, replica, node)
}

fn hub(dir: &Path, seed: u8) -> Hub {
    let (server, replica, node) = server(dir, seed);
    let (addr, handle) = (server.local_addr(), server.handle());
    let thread = std::thread::spawn(move || server.run().unwrap());
    Hub { addr, node, replica, handle, thread: Some(thread) }
}

fn key(number: u32) -> SigningKey {
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_bytes(&seed)
}

fn public(number: u32) -> [u8; 32] {
    key(number).verifying_key().to_bytes()
}

fn owner(number: u32) -> OwnerKey {
    owner_key(&addressing::agent_id(&public(number)), NETWORK)
}

fn claim(number: u32) -> Vec<u8> {
    let lease = (now() + 86_400) as u32;
    Claim::address(NETWORK, public(number), 0, 1, lease).unwrap().sign(POW, &key(number), None).encode()
}

fn record_of(number: u32, seq: u64, age: u64, change: impl FnOnce(&mut Record)) -> Vec<u8> {
    let node = addressing::derive_node_id(&public(number), 0).unwrap();
    let mut record = Record::new(NETWORK, node, 0, [0; 32], seq, (now() - age) as u32);
    record.summary = Some(format!("agent {number}"));
    change(&mut record);
    sign(&mut record, &key(number), None).unwrap()
}

fn record(number: u32, seq: u64) -> Vec<u8> {
    record_of(number, seq, 0, |_| {})
}

fn map_of(mut nodes: Vec<MapNode>, signers: impl IntoIterator<Item = SigningKey>) -> SignedMap {
    nodes.sort_by_key(|node| node.key);
    let map = Map { epoch: 1, replicas: 3, nodes, operators: Vec::new() };
    let signatures = signers.into_iter().map(|key| map.sign(&key)).collect();
    SignedMap { map, signatures }
}

fn finder(map: SignedMap) -> Arc<Finder> {
    let trusted = [map.map.nodes[0].key];
    let keeper = MapKeeper::trust(map, &trusted).unwrap();
    Arc::new(Finder::new(keeper, TIMEOUT, Duration::from_secs(600)))
}

fn agent(finder: &Arc<Finder>, number: u32, publication: Publication, socket: Option<UdpSocket>) -> Agent {
    let signer = key(number);
    let sign = Arc::new(move |message: &[u8]| signer.sign(message).to_bytes());
    Agent::new(finder.clone(), (public(number), NETWORK), sign, publication, (0, 60_000), socket)
}

fn put(addr: SocketAddr, claim: &[u8], record: &[u8]) -> RecordAnswer {
    let mut client = BookClient::connect(&addr.to_string(), TIMEOUT, Vec::new()).unwrap();
    let ask = Ask::Put { claim: claim.to_vec(), record: record.to_vec() };
    match client.call(&Request::Replica(ask)).unwrap() {
        Reply::Replica(Told::Put(answer)) => answer,
        other => panic!("{other:?}"),
    }
}

fn secret() -> [u8; 32] {
    [42; 32]
}

/// The child's part of the test below. Does nothing in an ordinary test run.
#[test]
fn replica_process() {
    let Ok(dir) = std::env::var(STORE) else { return };
    let dir = Path::new(&dir);
    let seed = dir.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let (server, _replica, _) = server(dir, seed);
    println!("\nlistening {}", server.local_addr());
    std::io::stdout().flush().unwrap();
    server.run().expect("run");
}

fn start(dir: &Path) -> (Child, SocketAddr) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["replica_process", "--exact", "--nocapture", "--test-threads=1"])
        .env(STORE, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let addr = lines
        .by_ref()
        .map_while(Result::ok)
        .find_map(|line| line.split_once("listening ").map(|(_, addr)| addr.trim().parse().unwrap()))
        .expect("the hub says where it listens");
    std::mem::forget(lines);
    (child, addr)
}

struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn found(finder: &Arc<Finder>, numbers: &[u32]) -> usize {
    let parts: Vec<&[u32]> = numbers.chunks(numbers.len().div_ceil(4)).collect();
    std::thread::scope(|scope| {
        let workers: Vec<_> = parts
            .into_iter()
            .map(|part| {
                scope.spawn(move || {
                    let is_found = |number: &&u32| {
                        let search = finder.resolve(&owner(**number), now());
                        assert!(search.evidence.is_empty(), "{:?}", search.evidence);
                        search.best.is_some_and(|best| best.bytes.len() > 100)
                    };
                    part.iter().filter(is_found).count()
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    })
}

/// `spec/cluster.md §7.4` with processes: half of eight are killed at once.
#[test]
fn half_of_eight_processes_killed_leave_most_records_and_refreshes_bring_back_the_rest() {
    const AGENTS: u32 = 240;
    let dir = tempfile::tempdir().unwrap();
    let mut children = Children(Vec::new());
    let mut nodes = Vec::new();
    for seed in 1..=8u8 {
        let dir = dir.path().join(seed.to_string());
        std::fs::create_dir(&dir).unwrap();
        let (child, addr) = start(&dir);
        children.0.push(child);
        let key = node_key(seed).verifying_key().to_bytes();
        nodes.push(MapNode { key, weight: 1, endpoints: vec![addr] });
    }
    let finder = finder(map_of(nodes, (1..=8).map(node_key)));
    let numbers: Vec<u32> = (0..AGENTS).collect();
    let mut agents: Vec<Agent> = numbers
        .iter()
        .map(|&number| {
            let publication = Publication { claim: claim(number), record: record(number, 1) };
            agent(&finder, number, publication, None)
        })
        .collect();
    let refresh = |agents: &mut [Agent], at: u64| -> usize {
        std::thread::scope(|scope| {
            let workers: Vec<_> = agents
                .chunks_mut(60)
                .map(|part| {
                    scope.spawn(move || {
                        part.iter_mut()
                            .map(|agent| agent.step(at, now() * 1_000, secret).stored)
                            .sum::<usize>()
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        })
    };
    assert_eq!(refresh(&mut agents, 0), 3 * AGENTS as usize, "each record at three nodes");
    assert_eq!(found(&finder, &numbers), AGENTS as usize);
    for child in children.0.iter_mut().step_by(2) {
        child.kill().unwrap();
    }
    for child in children.0.iter_mut().step_by(2) {
        child.wait().unwrap();
    }
    let at_once = found(&finder, &numbers);
    println!("{at_once} of {AGENTS} found at once");
    assert!(f64::from(at_once as u32) >= 0.87 * f64::from(AGENTS), "{at_once} of {AGENTS} at once");
    // What the agents do by themselves within 66 s, without the waiting.
    assert!(agents.iter().all(|agent| agent.due() <= 66_000));
    assert_eq!(refresh(&mut agents, 66_000), 3 * AGENTS as usize, "again at three nodes");
    assert_eq!(found(&finder, &numbers), AGENTS as usize, "all found after the refresh");
}

#[test]
fn a_map_is_fetched_signed_and_replaced() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let hubs: Vec<Hub> = dirs.iter().zip(1..).map(|(dir, seed)| hub(dir.path(), seed)).collect();
    let addr = hubs[0].addr.to_string();
    assert!(fetch_map(&addr, TIMEOUT).unwrap().is_none(), "no map yet");
    // An operator lays an unsigned map beside each node; each signs it.
    let map = map_of(hubs.iter().map(Hub::map_node).collect(), []);
    for dir in &dirs {
        std::fs::write(dir.path().join("map"), map.encode()).unwrap();
    }
    let deadline = clock() + TIMEOUT;
    let signed = loop {
        let signed = fetch_map(&addr, TIMEOUT).unwrap();
        match signed.filter(|signed| signed.signatures.len() >= 2) {
            Some(signed) => break signed,
            None if clock() < deadline => std::thread::sleep(Duration::from_millis(50)),
            None => panic!("no majority signed"),
        }
    };
    assert_eq!(signed.map, map.map);
    assert!(MapKeeper::trust(signed.clone(), &[[9; 32]]).is_err(), "nobody we trust");
    let keeper = MapKeeper::trust(signed, &[hubs[0].node]).unwrap();
    let finder = Finder::new(keeper, TIMEOUT, TIMEOUT);
    assert!(!finder.renew(&hubs[1].map_node()).unwrap(), "the one we have");
    // A newer one, which the same nodes sign.
    let mut newer = map;
    newer.map.epoch = 2;
    newer.map.replicas = 2;
    for dir in &dirs {
        std::fs::write(dir.path().join("map.new"), newer.encode()).unwrap();
        std::fs::rename(dir.path().join("map.new"), dir.path().join("map")).unwrap();
    }
    while !finder.renew(&hubs[1].map_node()).unwrap_or(false) {
        assert!(clock() < deadline, "no newer map");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!((finder.map().epoch, finder.map().replicas), (2, 2));
}

#[test]
fn a_replica_keeps_what_has_an_address_and_only_that() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path(), 1);
    assert_eq!(put(hub.addr, &claim(1), &record(1, 5)), RecordAnswer::Stored);
    assert_eq!(put(hub.addr, &claim(1), &record(1, 4)), RecordAnswer::Older(5));
    let newest = record(1, 6);
    assert_eq!(put(hub.addr, &claim(1), &newest), RecordAnswer::Stored);
    assert_eq!(put(hub.addr, &claim(1), &newest), RecordAnswer::Stored, "again");
    // Of agents that did no work one in some is lucky; who was once is not asked again.
    let weak = (2..34).map(|agent| {
        let lease = (now() + 9_999) as u32;
        let claim = Claim::address(NETWORK, public(agent), 0, 1, lease).unwrap().sign(0, &key(agent), None);
        (claim.encode(), record(agent, 1))
    });
    let refused = [
        ("another agent's claim", claim(2), record(1, 7)),
        ("an altered record", claim(2), {
            let mut record = record(2, 1);
            record[60] ^= 1;
            record
        }),
        (
            "an altered claim",
            {
                let mut claim = claim(2);
                claim[20] ^= 1;
                claim
            },
            record(2, 1),
        ),
        ("an expired record", claim(2), record_of(2, 1, 1_000, |record| record.ttl = 10)),
        ("no claim", Vec::new(), record(2, 1)),
        ("no record", claim(2), Vec::new()),
    ];
    for (what, claim, record) in refused {
        assert!(matches!(put(hub.addr, &claim, &record), RecordAnswer::Refused(_)), "{what}");
    }
    let answers: Vec<_> = weak.map(|(claim, record)| put(hub.addr, &claim, &record)).collect();
    assert!(answers.iter().any(|answer| matches!(answer, RecordAnswer::Refused(_))), "too little work");
    let lucky = answers.iter().filter(|answer| **answer == RecordAnswer::Stored).count() as u64;
    assert_eq!(hub.replica.stats().records, 1 + lucky);
    // What was put is there after a restart.
    drop(hub);
    let again = self::hub(dir.path(), 1);
    assert!(again.replica.stats().records >= 1);
}

#[test]
fn heartbeats_say_who_is_alive_and_expire() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path(), 1);
    let finder = Arc::new(Finder::new(MapKeeper::alone(hub.map_node()).unwrap(), TIMEOUT, TIMEOUT));
    let publication = Publication { claim: claim(1), record: record(1, 1) };
    let socket = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        Some(socket)
    };
    let mut one = agent(&finder, 1, publication.clone(), socket());
    let seen = || finder.resolve(&owner(1), now()).best.and_then(|best| best.seen);
    let step = one.step(0, now() * 1_000, secret);
    assert_eq!((step.stored, step.heartbeats), (1, 1));
    let deadline = clock() + TIMEOUT;
    while seen().is_none() {
        assert!(clock() < deadline, "no heartbeat arrived");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!((hub.replica.stats().agents, hub.replica.stats().alive), (1, 1));
    assert!(one.due() <= 1_000, "the node's interval");
    // An agent without a record gets no slot.
    let stranger = Publication { claim: claim(2), record: record(1, 1) };
    let mut stranger = agent(&finder, 2, stranger, socket());
    assert_eq!(stranger.step(0, now() * 1_000, secret).heartbeats, 0);
    // No heartbeat for more than three intervals.
    while hub.replica.stats().alive > 0 {
        assert!(clock() < deadline, "presence does not end");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(seen().is_some_and(|seconds| seconds > 3));
    let beats = hub.replica.stats().heartbeats;
    assert_eq!(one.step(2_000, now() * 1_000 + 1, secret).heartbeats, 1);
    while hub.replica.stats().heartbeats == beats {
        assert!(clock() < deadline, "no second heartbeat arrived");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn who_watches_hears_of_changes_goes_on_and_lists_again() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut first = hub(dir.path(), 1);
    let second = hub(other.path(), 2);
    for number in 1..=100 {
        put(first.addr, &claim(number), &record(number, 1));
        put(second.addr, &claim(number), &record(number, 1));
    }
    put(second.addr, &claim(100), &record(100, 2));
    put(first.addr, &claim(7), &record_of(7, 2, 0, |record| record.private = true));
    let addrs = vec![first.addr.to_string(), second.addr.to_string()];
    let mut all = Follower::new(addrs.clone(), Whose::All, None);
    let mut one = Follower::new(addrs, Whose::Of(owner(3)), None);
    let next = |follower: &mut Follower| match follower.next_change().unwrap().expect("a change") {
        Change::Record(record, _) => (record.key, record.seq),
        Change::Resync => ([0; 32], 0),
    };
    let listed: BTreeSet<_> = (1..100).map(|_| next(&mut all).0).collect();
    assert_eq!(listed.len(), 99);
    assert!(!listed.contains(&public(7)), "a private agent is not listed");
    assert_eq!(next(&mut one), (public(3), 1));
    // Changes that come while nobody asks, and while somebody waits.
    put(first.addr, &claim(3), &record(3, 2));
    assert_eq!(next(&mut one), (public(3), 2));
    assert_eq!(next(&mut all), (public(3), 2));
    let addr = first.addr;
    let waits = std::thread::spawn(move || {
        let heard = next(&mut one);
        (heard, one)
    });
    while first.replica.stats().watches == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    put(addr, &claim(4), &record(4, 2));
    put(addr, &claim(3), &record(3, 3));
    let (heard, _) = waits.join().unwrap();
    assert_eq!(heard, (public(3), 3));
    // Going on from a position, without a list.
    let position = all.position();
    let mut later = Follower::new(vec![addr.to_string()], Whose::All, Some(position));
    let two = BTreeSet::from([next(&mut later).0, next(&mut later).0]);
    assert_eq!(two, BTreeSet::from([public(3), public(4)]));
    // The node dies: the other one has another history, and is listed.
    first.stop();
    drop(first);
    let mut heard = Vec::new();
    while !heard.contains(&(public(100), 2)) {
        heard.push(next(&mut all));
    }
    assert_eq!(heard[0], ([0; 32], 0), "told that everything follows again");
    assert_eq!(
        heard.iter().filter(|(key, _)| *key == public(1)).count(),
        0,
        "what is known is not told again"
    );
}

/// A replica in the middle that changes what the true one answers, and signs it with its key if it was asked to.
fn liar(honest: SocketAddr, lie: impl Fn(Vec<u8>) -> Vec<u8> + Send + 'static, seed: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let lie = Arc::new(std::sync::Mutex::new(lie));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(mut client), lie) = (client, lie.clone()) else { return };
            std::thread::spawn(move || {
                let mut server = TcpStream::connect(honest).unwrap();
                let mut magic = [0; 4];
                client.read_exact(&mut magic).unwrap();
                server.write_all(&magic).unwrap();
                let frame = |stream: &mut TcpStream| -> std::io::Result<Vec<u8>> {
                    let mut frame = vec![0; 4];
                    stream.read_exact(&mut frame)?;
                    let len = u32::from_be_bytes(frame[..].try_into().unwrap()) as usize;
                    frame.resize(4 + len, 0);
                    stream.read_exact(&mut frame[4..])?;
                    Ok(frame)
                };
                while let Ok(request) = frame(&mut client) {
                    server.write_all(&request).unwrap();
                    let Ok(answer) = frame(&mut server) else { return };
                    let (number, kind, body, _) = next_frame(&answer).unwrap().unwrap();
                    let (_, asked, question, _) = next_frame(&request).unwrap().unwrap();
                    let asked = Request::decode(asked, question).unwrap();
                    let mut reply = Reply::decode(kind, body).unwrap();
                    if let (
                        Reply::Replica(Told::Held { record, attest, .. }),
                        Request::Replica(Ask::Get { owner, nonce }),
                    ) = (&mut reply, asked)
                    {
                        *record = lie.lock().unwrap()(std::mem::take(record));
                        if let (Some(nonce), Some(attest)) = (nonce, attest) {
                            let message = pilotage_registry::replica::evidence::attested(
                                &owner,
                                &nonce,
                                attest.time,
                                record,
                            );
                            attest.signature = node_key(seed).sign(&message).to_bytes();
                        }
                    }
                    let mut out = Vec::new();
                    reply.encode(number, &mut out);
                    if client.write_all(&out).is_err() {
                        return;
                    }
                }
            });
        }
    });
    addr
}

#[test]
fn a_lying_replica_is_not_believed_and_what_it_signed_shows_it() {
    type Lie = fn(Vec<u8>) -> Vec<u8>;
    let lies: [(&str, Lie, Fault); 4] = [
        ("an old record", |_| record_of(1, 3, 2_000, |_| {}), Fault::Old),
        ("another agent's record", |_| record(2, 9), Fault::Forged),
        (
            "an altered record",
            |mut record| {
                if let Some(byte) = record.get_mut(50) {
                    *byte ^= 1;
                }
                record
            },
            Fault::Forged,
        ),
        ("nothing", |_| Vec::new(), Fault::Withheld),
    ];
    for (what, lie, fault) in lies {
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let hubs: Vec<Hub> = dirs.iter().zip(1..).map(|(dir, seed)| hub(dir.path(), seed)).collect();
        // The record is from a while ago: an honest node has it by now.
        let published = record_of(1, 5, 1_000, |_| {});
        for hub in &hubs {
            assert_eq!(put(hub.addr, &claim(1), &published), RecordAnswer::Stored);
        }
        let id = addressing::agent_id(&public(1));
        let honest = map_of(hubs.iter().map(Hub::map_node).collect(), (1..=3).map(node_key));
        let first = honest.map.ranked(&id)[0].key;
        let seed = (1..=3).find(|seed| node_key(*seed).verifying_key().to_bytes() == first).unwrap();
        let false_addr = liar(hubs[usize::from(seed) - 1].addr, lie, seed);
        let nodes = hubs.iter().map(|hub| {
            let endpoints = vec![if hub.node == first { false_addr } else { hub.addr }];
            MapNode { endpoints, ..hub.map_node() }
        });
        let finder = finder(map_of(nodes.collect(), (1..=3).map(node_key)));
        let search = finder.resolve(&owner(1), now());
        assert_eq!(search.best.expect(what).bytes, published, "{what} was believed");
        let [evidence] = search.evidence.as_slice() else { panic!("{what}: {:?}", search.evidence) };
        assert_eq!((evidence.fault, evidence.node), (fault, first), "{what}");
        assert!(evidence.is_portable(), "{what}: anybody can check it");
        // Altered evidence proves nothing.
        let mut altered = evidence.clone();
        altered.node = node_key(9).verifying_key().to_bytes();
        assert!(!altered.is_portable());
        let mut altered = evidence.clone();
        if let Some(answer) = &mut altered.answer {
            answer.attest.time += 1;
        }
        assert!(!altered.is_portable());
    }
}

#[test]
fn an_honest_node_that_was_away_is_not_accused_of_what_is_new() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let hubs: Vec<Hub> = dirs.iter().zip(1..).map(|(dir, seed)| hub(dir.path(), seed)).collect();
    let finder = finder(map_of(hubs.iter().map(Hub::map_node).collect(), (1..=3).map(node_key)));
    put(hubs[0].addr, &claim(1), &record(1, 6));
    put(hubs[1].addr, &claim(1), &record(1, 5));
    let search = finder.resolve(&owner(1), now());
    assert!(search.best.is_some() && search.evidence.is_empty());
}

#[test]
fn cached_records_are_verified_again_and_friends_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path(), 1);
    let mut client = BookClient::connect(&hub.addr.to_string(), TIMEOUT, Vec::new()).unwrap();
    for number in 1..20 {
        let claim = Claim::decode(&claim(number)).unwrap();
        let private = number == 9;
        let record = record_of(number, 1, 0, |record| (record.private, record.ttl) = (private, 3_600));
        client.register(&[claim], Some(&record)).unwrap();
    }
    let address = |number| {
        let node = addressing::derive_node_id(&public(number), 0).unwrap();
        Query::Address { network: NETWORK, node }
    };
    let files = tempfile::tempdir().unwrap();
    let open = |nodes: Vec<[u8; 32]>| Cache::open(files.path(), nodes, now()).unwrap();
    let met = UNIX_EPOCH + Duration::from_secs(now());
    let mut cache = open(vec![hub.node]);
    for number in [1, 9] {
        cache.put(&client.resolve(&address(number), now()).unwrap(), met);
    }
    // After a restart, without any registry.
    drop((client, hub));
    let cache = open(vec![hub_key()]);
    assert_eq!(cache.get(&address(1), now()).expect("remembered").record.key, public(1));
    assert!(cache.get(&address(9), now()).is_some(), "we may know a private agent");
    expired_ones_say_whose_key_it_is(&cache, files.path(), &address(1));
    // A friend asks.
    let answer = cache.answer(&address(1), now());
    assert_eq!(cache.answer(&address(9), now()), Reply::NotFound, "nobody is told of it");
    assert_eq!(cache.answer(&address(2), now()), Reply::NotFound);
    let mine = tempfile::tempdir().unwrap();
    let mut friend = Cache::open(mine.path(), vec![hub_key()], now()).unwrap();
    assert_eq!(friend.believe(&address(1), &answer, now(), met).unwrap().record.key, public(1));
    let Reply::Resolved { record: Some(good), claim: Some(part) } = &answer else { panic!("{answer:?}") };
    let lies = [
        ("another record", Reply::Resolved { record: Some(record(2, 1)), claim: Some(part.clone()) }),
        ("another question", Reply::Resolved { record: Some(good.clone()), claim: None }),
        ("no proof", {
            let part = pilotage_registry::book::message::ClaimPart { proof: None, ..part.clone() };
            Reply::Resolved { record: Some(good.clone()), claim: Some(part) }
        }),
        ("another leaf", {
            let part = pilotage_registry::book::message::ClaimPart { index: part.index + 1, ..part.clone() };
            Reply::Resolved { record: Some(good.clone()), claim: Some(part) }
        }),
    ];
    let other = tempfile::tempdir().unwrap();
    let mut other = Cache::open(other.path(), vec![hub_key()], now()).unwrap();
    for (what, lie) in lies {
        assert!(other.believe(&address(1), &lie, now(), met).is_err(), "{what}");
    }
    assert!(other.believe(&address(3), &answer, now(), met).is_err(), "the answer to another question");
    let elsewhere = tempfile::tempdir().unwrap();
    let mut stranger = Cache::open(elsewhere.path(), vec![[8; 32]], now()).unwrap();
    assert!(stranger.believe(&address(1), &answer, now(), met).is_err(), "a registry that we do not trust");
    // A damaged file is removed, not believed.
    for file in std::fs::read_dir(files.path()).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() / 3;
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(open(vec![hub_key()]).is_empty());
    assert_eq!(std::fs::read_dir(files.path()).unwrap().count(), 0);
}

/// Agent 1's record has expired after an hour, its claim after a day: till then that says whose address it is, also after a restart.
fn expired_ones_say_whose_key_it_is(cache: &Cache, files: &Path, address: &Query) {
    let (later, too_late) = (now() + 7_200, now() + 90_000);
    assert!(cache.get(address, later).is_none() && cache.agents(later).is_empty());
    let late = Cache::open(files, vec![hub_key()], later).unwrap();
    assert_eq!((late.key(address, later), late.key(address, too_late)), (Some(public(1)), None));
    assert_eq!((late.get(address, later), late.answer(address, later)), (None, Reply::NotFound));
    assert_eq!(late.last(&public(1), NETWORK).map(|known| known.record.key), Some(public(1)));
}

fn hub_key() -> [u8; 32] {
    node_key(1).verifying_key().to_bytes()
}

#[test]
fn too_many_watches_displace_the_oldest() {
    use pilotage_registry::replica::node::MAX_WATCHES_PER_CONNECTION;
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path(), 1);
    let mut client = BookClient::connect(&hub.addr.to_string(), TIMEOUT, Vec::new()).unwrap();
    let Reply::Replica(Told::Events { history, upto, .. }) =
        client.call(&Request::Replica(Ask::Watch { whose: Whose::All, history: 0, from: 0 })).unwrap()
    else {
        panic!()
    };
    let ask = Request::Replica(Ask::Watch { whose: Whose::All, history, from: upto });
    let asks = vec![ask; MAX_WATCHES_PER_CONNECTION + 5];
    let first = client.send(&asks).unwrap();
    let answered: BTreeSet<u32> = (0..5).map(|_| client.receive().unwrap().0).collect();
    assert_eq!(answered, (first..first + 5).collect());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            put(hub.addr, &claim(1), &record(1, 1));
            done.store(true, Ordering::Relaxed);
        });
        for _ in 0..MAX_WATCHES_PER_CONNECTION {
            let (_, reply) = client.receive().unwrap();
            assert!(matches!(reply, Reply::Replica(Told::Events { records, .. }) if records.len() == 1));
        }
    });
    assert_eq!(hub.replica.stats().watches, 0);
}
