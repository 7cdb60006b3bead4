//! Records and claims over real sockets (`spec/registry2.md`).

use ed25519_dalek::{Signer as _, SigningKey};
use pilotage_registry::book::client::{BookClient, BookError};
use pilotage_registry::book::handover::Handover;
use pilotage_registry::book::message::{
    ClaimAnswer, HEADER_LEN, Query, RecordAnswer, Reply, Request, next_frame,
};
use pilotage_registry::book::server::{Book, BookConfig, Former};
use pilotage_registry::book::{MAGIC, MAX_MESSAGE};
use pilotage_registry::claims::local::{LocalConfig, LocalLog};
use pilotage_registry::claims::{Claim, Proof, Subject};
use pilotage_registry::client::Client;
use pilotage_registry::record::sign;
use pilotage_registry::server::{Server, ServerConfig, ServerHandle};
use pilotage_wire::record::{Record, Tombstone};
use pilotage_wire::{NetworkId, NodeId, addressing};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const POW: u8 = 4;
const STORE: &str = "PILOTAGE_TEST_BOOK_STORE";
const TIMEOUT: Duration = Duration::from_secs(30);

#[allow(clippy::disallowed_methods, reason = "a test against the real clock")]
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

struct Hub {
    addr: String,
    handle: ServerHandle,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.handle.stop();
        let _ = self.thread.take().unwrap().join();
    }
}

fn server(dir: &Path, seed: u8, former: Option<Former>) -> Server {
    let config = LocalConfig { pow_bits: POW, ..LocalConfig::new(Arc::new(now), [seed; 32]) };
    let log = LocalLog::open(&dir.join("claims.redb"), config).unwrap();
    let mut server =
        Server::bind(ServerConfig::new(([127, 0, 0, 1], 0).into(), dir.join("hub.redb"))).unwrap();
    server.serve_book(Book::start(Arc::new(log), BookConfig { former, ..BookConfig::default() }).unwrap());
    server
}

fn hub(dir: &Path, seed: u8) -> Hub {
    run(server(dir, seed, None))
}

fn run(server: Server) -> Hub {
    let (addr, handle) = (server.local_addr().to_string(), server.handle());
    let thread = std::thread::spawn(move || server.run().unwrap());
    Hub { addr, handle, thread: Some(thread) }
}

fn connect(hub: &Hub) -> BookClient {
    BookClient::connect(&hub.addr, TIMEOUT, Vec::new()).unwrap()
}

fn key(number: u32) -> SigningKey {
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_bytes(&seed)
}

fn lease() -> u32 {
    (now() + 86_400) as u32
}

fn address(number: u32) -> Claim {
    let key = key(number);
    let public = key.verifying_key().to_bytes();
    Claim::address(NetworkId(0), public, 0, 1, lease()).unwrap().sign(POW, &key, None)
}

fn hostname(number: u32, name: &str) -> Claim {
    let subject = Subject::Hostname { network: NetworkId(0), name: name.into() };
    Claim::new(subject, [0; 32], 1, lease()).sign(POW, &key(number), None)
}

fn by_name(name: &str) -> Query {
    Query::Hostname { network: NetworkId(0), name: name.into() }
}

fn node(number: u32) -> NodeId {
    addressing::derive_node_id(key(number).verifying_key().as_bytes(), 0).unwrap()
}

fn record(number: u32, seq: u64) -> Vec<u8> {
    let mut record = Record::new(NetworkId(0), node(number), 0, [0; 32], seq, now() as u32);
    record.tags = vec!["finance.fx".into()];
    record.endpoints = vec!["192.0.2.7:4000".parse().unwrap()];
    record.summary = Some(format!("agent {number}"));
    sign(&mut record, &key(number), None).unwrap()
}

fn register(client: &mut BookClient, number: u32, name: &str) {
    let (claims, stored) =
        client.register(&[address(number), hostname(number, name)], Some(&record(number, 5))).unwrap();
    assert!(claims.iter().all(|claim| matches!(claim, ClaimAnswer::Granted(_))), "{claims:?}");
    assert_eq!(stored, RecordAnswer::Stored);
}

#[test]
fn an_agent_is_found_by_name_address_and_id() {
    let dir = tempfile::tempdir().unwrap();
    let first = hub(dir.path(), 1);
    let mut client = connect(&first);
    register(&mut client, 1, "fx");
    let node_key = client.info().unwrap().node;
    let id = addressing::agent_id(key(1).verifying_key().as_bytes());
    let queries = [
        by_name("fx"),
        Query::Address { network: NetworkId(0), node: node(1) },
        Query::Agent { id, network: NetworkId(0) },
    ];
    for query in &queries {
        let found = client.resolve(query, now()).unwrap();
        assert_eq!(found.record.agent_id(), id);
        assert_eq!(found.claim.is_some(), query.subject().is_some());
    }
    assert!(matches!(client.resolve(&by_name("nobody"), now()), Err(BookError::NotFound { .. })));
    // The draft's protocol is still served on the same port.
    assert!(Client::connect(&first.addr, TIMEOUT).unwrap().lookup(NodeId(77)).is_err());
    let heads: Vec<_> = client.heads().cloned().collect();
    drop((client, first));

    // After a restart the log goes on where it was, and the client can tell.
    let again = hub(dir.path(), 2);
    let mut client = BookClient::connect(&again.addr, TIMEOUT, vec![node_key]).unwrap();
    client.remember(heads);
    for number in 2..20 {
        register(&mut client, number, &format!("n{number}"));
    }
    for query in &queries {
        assert_eq!(client.resolve(query, now()).unwrap().record.agent_id(), id);
    }
    // Another registry, which knows nothing of that log, is not believed.
    let other_dir = tempfile::tempdir().unwrap();
    let other = hub(other_dir.path(), 3);
    register(&mut connect(&other), 1, "fx");
    let mut client = BookClient::connect(&other.addr, TIMEOUT, vec![node_key]).unwrap();
    assert!(matches!(client.resolve(&by_name("fx"), now()), Err(BookError::Unsigned)));
}

#[test]
fn one_of_1_000_clients_gets_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path(), 1);
    let (granted, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let winner = std::sync::Mutex::new(Vec::new());
    let claims: Vec<Claim> = (0..1_000).map(|number| hostname(number, "gold")).collect();
    // 1,000 connections at once, ten per thread, all open before the first one asks.
    let barrier = std::sync::Barrier::new(100);
    std::thread::scope(|scope| {
        for claims in claims.chunks(10) {
            let (hub, granted, taken, winner, barrier) = (&hub, &granted, &taken, &winner, &barrier);
            scope.spawn(move || {
                let mut clients: Vec<BookClient> = claims.iter().map(|_| connect(hub)).collect();
                barrier.wait();
                for (client, claim) in clients.iter_mut().zip(claims) {
                    client.send(&[Request::Register { claims: vec![claim.encode()], record: None }]).unwrap();
                }
                for (client, claim) in clients.iter_mut().zip(claims) {
                    let (_, reply) = client.receive().unwrap();
                    let Reply::Registered { claims: answers, .. } = reply else { panic!("{reply:?}") };
                    match &answers[0] {
                        ClaimAnswer::Granted(_) => {
                            granted.fetch_add(1, Ordering::Relaxed);
                            winner.lock().unwrap().push(claim.agent_id());
                        }
                        ClaimAnswer::TakenBy { agent_id, .. } => {
                            taken.fetch_add(1, Ordering::Relaxed);
                            winner.lock().unwrap().push(*agent_id);
                        }
                        ClaimAnswer::Refused(why) => panic!("{why}"),
                    }
                }
            });
        }
    });
    assert_eq!((granted.into_inner(), taken.into_inner()), (1, 999));
    let named = winner.into_inner().unwrap();
    assert!(named.iter().all(|agent| *agent == named[0]), "all are told the same winner");
}

#[test]
fn replayed_and_altered_requests_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path(), 1);
    let mut client = connect(&hub);
    register(&mut client, 1, "mine");
    let second = record(1, 9);
    assert_eq!(client.register(&[], Some(&second)).unwrap().1, RecordAnswer::Stored);
    // What somebody captured: the old record, the old claims.
    let (claims, stored) = client.register(&[address(1), hostname(1, "mine")], Some(&record(1, 5))).unwrap();
    assert!(claims.iter().all(|claim| matches!(claim, ClaimAnswer::Granted(_))));
    assert_eq!(stored, RecordAnswer::Older(9));
    // Every bit of a claim and of a record, a sample of them.
    let good = hostname(2, "other").encode();
    for bit in (0..good.len() * 8).step_by(7) {
        let mut altered = good.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        client.send(&[Request::Register { claims: vec![altered], record: None }]).unwrap();
        let (_, reply) = client.receive().unwrap();
        let Reply::Registered { claims, .. } = reply else { panic!("{reply:?}") };
        assert!(matches!(claims[..], [ClaimAnswer::Refused(_)]), "bit {bit}: {claims:?}");
    }
    for bit in (0..second.len() * 8).step_by(23) {
        let mut altered = second.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        let answer = client.register(&[], Some(&altered)).unwrap().1;
        assert!(matches!(answer, RecordAnswer::Refused(_)), "bit {bit}: {answer:?}");
    }
    // A release that was replayed after the agent came back has no effect.
    let subject = Subject::Hostname { network: NetworkId(0), name: "mine".into() };
    let release = Claim::new(subject.clone(), [0; 32], 2, 0).sign(POW, &key(1), None);
    let back = Claim::new(subject, [0; 32], 3, lease()).sign(POW, &key(1), None);
    for (claim, ok) in [(&release, true), (&back, true), (&release, false)] {
        let answer = &client.register(std::slice::from_ref(claim), None).unwrap().0[0];
        assert_eq!(matches!(answer, ClaimAnswer::Granted(_)), ok, "{answer:?}");
    }
    let found = client.resolve(&by_name("mine"), now()).unwrap();
    assert_eq!(found.record.seq, 9);
    // A record of an agent without an address is not stored.
    let answer = client.register(&[], Some(&record(3, 1))).unwrap().1;
    assert!(matches!(answer, RecordAnswer::Refused(_)));
    // An agent that is gone says so, and is found as that.
    let mut stone = Record::new(NetworkId(0), node(1), 0, [0; 32], 10, now() as u32);
    stone.tombstone = Some(Tombstone::Gone);
    let stone = sign(&mut stone, &key(1), None).unwrap();
    assert_eq!(client.register(&[], Some(&stone)).unwrap().1, RecordAnswer::Stored);
    assert_eq!(client.resolve(&by_name("mine"), now()).unwrap().record.tombstone, Some(Tombstone::Gone));
}

/// A hub in the middle that changes what the true one answers.
fn liar(honest: &str, lie: impl Fn(Reply) -> Reply + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let honest = honest.to_owned();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
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
            let answer = frame(&mut server).unwrap();
            let (number, kind, body, _) = next_frame(&answer).unwrap().unwrap();
            let mut out = Vec::new();
            lie(Reply::decode(kind, body).unwrap()).encode(number, &mut out);
            if client.write_all(&out).is_err() {
                return;
            }
        }
    });
    addr
}

#[test]
fn a_lying_registry_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path(), 1);
    let mut client = connect(&hub);
    for number in 1..40 {
        register(&mut client, number, &format!("n{number}"));
    }
    type Lie = fn(Option<Vec<u8>>, &mut pilotage_registry::book::message::ClaimPart) -> Option<Vec<u8>>;
    let lies: [(&str, Lie); 8] = [
        ("another agent's record", |_, _| Some(record(2, 5))),
        ("an altered record", |record, _| {
            record.map(|mut record| {
                record[90] ^= 1;
                record
            })
        }),
        ("another claim", |record, part| {
            part.claim = hostname(2, "n1").encode();
            record
        }),
        ("a claim that another key signed, with its record", |_, part| {
            part.claim = hostname(2, "n1").encode();
            Some(record(2, 5))
        }),
        ("another leaf", |record, part| {
            part.index += 1;
            record
        }),
        ("no proof", |record, part| {
            part.proof = None;
            record
        }),
        ("half a proof", |record, part| {
            if let Some((proof, _)) = &mut part.proof {
                *proof = Proof(proof.0.iter().skip(1).copied().collect());
            }
            record
        }),
        ("a head that nobody signed", |record, part| {
            if let Some((_, head)) = &mut part.proof {
                head.head.time += 1;
            }
            record
        }),
    ];
    let honest = client.resolve(&by_name("n1"), now()).unwrap();
    assert!(honest.head.is_some_and(|head| head.head.size > 1), "the proof is not empty");
    for (what, lie) in lies {
        let addr = liar(&hub.addr, move |reply| match reply {
            Reply::Resolved { record, claim: Some(mut part) } => {
                let record = lie(record, &mut part);
                Reply::Resolved { record, claim: Some(part) }
            }
            other => other,
        });
        let mut client = BookClient::connect(&addr, TIMEOUT, Vec::new()).unwrap();
        let result = client.resolve(&by_name("n1"), now());
        assert!(result.is_err(), "{what} was believed");
        assert!(
            !matches!(result, Err(BookError::NotFound { .. } | BookError::Io { .. })),
            "{what}: {result:?}"
        );
    }
}

#[test]
fn two_logs_of_one_size_are_evidence() {
    // Two registries with one key: a node that shows different logs to different people.
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (hub(a.path(), 9), hub(b.path(), 9));
    register(&mut connect(&a), 1, "gold");
    register(&mut connect(&b), 2, "gold");
    let mut client = connect(&a);
    client.resolve(&by_name("gold"), now()).unwrap();
    let node = client.info().unwrap().node;
    let mut other = BookClient::connect(&b.addr, TIMEOUT, vec![node]).unwrap();
    other.remember(client.heads().cloned());
    match other.resolve(&by_name("gold"), now()) {
        Err(BookError::Equivocation(heads)) => {
            let (first, second) = *heads;
            assert_eq!((first.signed_by(&[node]), second.signed_by(&[node])), (1, 1));
            assert_ne!(first.head.root, second.head.root);
        }
        // One log is longer by chance of the partitions: then it is a rewritten one.
        Err(BookError::Proof(_)) => {}
        other => panic!("{other:?}"),
    }
}

/// A hub that has granted these names, after the one whose key was made of this seed.
fn granted(dir: &Path, seed: u8, former: Option<u8>, claims: &[Claim]) -> (Hub, [u8; 32]) {
    let former = former.map(|seed| {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let sign = key.clone();
        Former {
            key: key.verifying_key().to_bytes(),
            sign: Arc::new(move |message: &[u8]| sign.sign(message).to_bytes()),
        }
    });
    let hub = run(server(dir, seed, former));
    let mut client = connect(&hub);
    for claim in claims {
        let answers = client.register(std::slice::from_ref(claim), None).unwrap().0;
        assert!(matches!(answers[..], [ClaimAnswer::Granted(_)]));
    }
    (hub, client.info().unwrap().node)
}

#[test]
fn an_old_key_hands_over_to_those_who_go_on_with_its_log_only() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let claims: Vec<Claim> = (1..20).map(|number| hostname(number, &format!("n{number}"))).collect();
    let (before, old) = granted(dirs[0].path(), 1, None, &claims);
    // The cluster that it has become goes on with the log, and has granted more.
    let more = [&claims[..], &[hostname(30, "n30"), hostname(31, "n31")]].concat();
    let (after, new) = granted(dirs[1].path(), 2, Some(1), &more);
    // One that was restored without the last names.
    let (short, _) = granted(dirs[2].path(), 3, Some(1), &claims[..5]);
    let mut knows = BookClient::connect(&before.addr, TIMEOUT, vec![old]).unwrap();
    for number in 1..20 {
        knows.holder(&by_name(&format!("n{number}"))).unwrap();
    }
    let at = |addr: &str, nodes: &[[u8; 32]]| {
        let mut client = BookClient::connect(addr, TIMEOUT, nodes.to_vec()).unwrap();
        client.remember(knows.heads().cloned());
        client
    };
    // A lone hub has handed over to nobody, and a key that has not is not asked for the word of another.
    assert!(!at(&before.addr, &[old]).follow([1; 32]).unwrap());
    assert!(!at(&after.addr, &[[9; 32]]).follow([1; 32]).unwrap());
    assert!(!at(&after.addr, &[old, [9; 32]]).follow([1; 32]).unwrap(), "one of two is no majority");
    let mut client = at(&after.addr, &[old]);
    assert!(matches!(client.holder(&by_name("n1")), Err(BookError::Unsigned)));
    assert!(client.follow([1; 32]).unwrap());
    assert_eq!(client.nodes(), [new]);
    assert_eq!(client.holder(&by_name("n30")).unwrap().claim.key, key(30).verifying_key().to_bytes());
    assert!(client.heads().all(|head| head.signed_by(&[new]) == 1));
    let mut client = at(&short.addr, &[old]);
    let error = client.follow([1; 32]).unwrap_err();
    assert!(matches!(error, BookError::Proof(_) | BookError::Equivocation(_)), "{error}");
    assert_eq!((client.nodes(), client.heads().count()), (&[old][..], knows.heads().count()));
    // The word was given to somebody else, or was changed.
    let forged = liar(&after.addr, move |reply| match reply {
        Reply::Handover(mut handover) => {
            handover.nodes = vec![[7; 32]];
            Reply::Handover(handover)
        }
        other => other,
    });
    let key = SigningKey::from_bytes(&[1; 32]);
    let stale = liar(&after.addr, move |reply| match reply {
        Reply::Handover(handover) => {
            let sign = |message: &[u8]| key.sign(message).to_bytes();
            Reply::Handover(Handover::new(&old, &[2; 32], handover.nodes, sign))
        }
        other => other,
    });
    for addr in [forged, stale] {
        let mut client = at(&addr, &[old]);
        assert!(matches!(client.follow([1; 32]), Err(BookError::NotHandedOver)));
        assert_eq!(client.nodes(), [old]);
    }
}

#[test]
fn nonsense_is_cut_or_answered_with_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path(), 1);
    let mut stream = TcpStream::connect(&hub.addr).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    // An unknown kind is answered; the connection lives.
    let unknown = [&MAGIC[..], &[0, 0, 0, 6, 0, 0, 0, 7, 200, 1]].concat();
    for byte in unknown {
        // In pieces: the magic may come byte by byte.
        stream.write_all(&[byte]).unwrap();
    }
    let mut answer = [0; HEADER_LEN];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[4..], [0, 0, 0, 7, 0]);
    // A length beyond the bound ends it.
    stream.write_all(&(MAX_MESSAGE as u32 + 1).to_be_bytes()).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < 600);
}

/// The child's part of the test below. Does nothing in an ordinary test run.
#[test]
fn book_process() {
    let Ok(dir) = std::env::var(STORE) else { return };
    let server = server(Path::new(&dir), 1, None);
    println!("\nlistening {}", server.local_addr());
    std::io::stdout().flush().unwrap();
    server.run().expect("run");
}

fn start(dir: &Path) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["book_process", "--exact", "--nocapture", "--test-threads=1"])
        .env(STORE, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let addr = lines
        .by_ref()
        .map_while(Result::ok)
        .find_map(|line| line.split_once("listening ").map(|(_, addr)| addr.trim().to_owned()))
        .expect("the hub says where it listens");
    std::mem::forget(lines);
    (child, addr)
}

#[test]
fn kill_9_loses_no_acknowledged_claim_or_record() {
    let dir = tempfile::tempdir().unwrap();
    let acknowledged = std::sync::Mutex::new(Vec::new());
    let next = AtomicUsize::new(1);
    for round in 0..5u64 {
        let (mut child, addr) = start(dir.path());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let Ok(mut client) = BookClient::connect(&addr, TIMEOUT, Vec::new()) else { return };
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed) as u32;
                        let claims = [address(number), hostname(number, &format!("a{number}"))];
                        match client.register(&claims, Some(&record(number, 5))) {
                            Ok((answers, stored)) => {
                                assert!(
                                    answers.iter().all(|one| matches!(one, ClaimAnswer::Granted(_))),
                                    "{answers:?}"
                                );
                                assert_eq!(stored, RecordAnswer::Stored);
                                acknowledged.lock().unwrap().push(number);
                            }
                            Err(_) => return,
                        }
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(150 + round * 37));
            child.kill().unwrap();
            child.wait().unwrap();
        });
    }
    let numbers = acknowledged.into_inner().unwrap();
    assert!(numbers.len() > 20, "{} acknowledged", numbers.len());
    let hub = hub(dir.path(), 2);
    let mut client = connect(&hub);
    for number in &numbers {
        let found = client.resolve(&by_name(&format!("a{number}")), now()).unwrap();
        assert_eq!(found.record.key, key(*number).verifying_key().to_bytes());
    }
}
