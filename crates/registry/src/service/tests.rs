//! Two hubs over one log that a test orders and delivers by hand.

use super::shared::Finished;
use super::*;
use crate::claims::CaughtUp;
use crate::engine::{RateLimits, Secret};
use crate::ledger::{Batch, Bounds, Changes, Decided, Ledger, Notice, State, Transaction, decode_verdicts};
use crate::store::faulty::FaultyDisk;
use ed25519_dalek::{Signer as _, SigningKey};
use pilotage_wire::registry::{Base64, Signature};
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

const TOKEN: &str = "operator's token";

/// The log, each hub's copy of the state, and what is on its way.
#[derive(Default)]
struct World {
    log: Vec<Vec<u8>>,
    hubs: Vec<Site>,
    proposed: VecDeque<(usize, Vec<u8>, Decided)>,
    /// No majority.
    down: bool,
}

struct Site {
    state: State,
    applied: usize,
    number: u64,
    late: Vec<CaughtUp>,
    heard: Vec<Notice>,
}

struct Link(Arc<Mutex<World>>, usize);

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Link({})", self.1)
    }
}

impl World {
    /// What is committed reaches a hub.
    fn deliver(&mut self, hub: usize) -> Vec<u8> {
        let mut answer = Vec::new();
        let site = &mut self.hubs[hub];
        for command in &self.log[site.applied..] {
            answer = site.state.apply(command);
        }
        site.applied = self.log.len();
        answer
    }
}

impl Ledger for Link {
    fn propose(&self, transactions: Vec<Transaction>, decided: Decided) {
        let mut world = self.0.lock().unwrap();
        let site = &mut world.hubs[self.1];
        site.number += 1;
        let batch = Batch { proposer: self.1 as u64, number: site.number, transactions };
        world.proposed.push_back((self.1, batch.encode(), decided));
    }

    fn revision(&self) -> u64 {
        let revision = self.0.lock().unwrap().hubs[self.1].state.revision();
        revision.load(std::sync::atomic::Ordering::Acquire)
    }

    fn changes(&self, since: u64) -> Changes {
        self.0.lock().unwrap().hubs[self.1].state.changes(since)
    }

    fn catch_up(&self, then: CaughtUp) -> bool {
        self.0.lock().unwrap().hubs[self.1].late.push(then);
        true
    }

    fn wake_by(&self, _: Arc<dyn Fn() + Send + Sync>) {}

    fn tell(&self, notice: &Notice) {
        let mut world = self.0.lock().unwrap();
        let notice = Notice::decode(&notice.encode()).unwrap();
        for (at, site) in world.hubs.iter_mut().enumerate() {
            if at != self.1 {
                site.heard.push(notice.clone());
            }
        }
    }

    fn heard(&self) -> Vec<Notice> {
        std::mem::take(&mut self.0.lock().unwrap().hubs[self.1].heard)
    }

    fn is_writable(&self) -> bool {
        !self.0.lock().unwrap().down
    }
}

struct Hub {
    service: Service,
    sessions: Vec<Session>,
    replies: Vec<(usize, Value)>,
    now: Instant,
}

thread_local! { static ENTROPY: Cell<u64> = const { Cell::new(0) }; }

fn random() -> Option<[u8; 32]> {
    let n = ENTROPY.with(|n| n.replace(n.get() + 1));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    Some(bytes)
}

fn env(now: Instant) -> Surroundings<'static> {
    Surroundings { now, unix: 1_795_240_732, random: &random }
}

impl Hub {
    fn turn(&mut self) {
        let env = env(self.now);
        self.service.receive(&env);
        for (at, session) in self.sessions.iter_mut().enumerate() {
            self.service.decide(&env, at, session);
        }
        self.service.commit(&env);
        for (at, reply) in self.service.drain() {
            self.replies.push((at, serde_json::to_value(reply.unwrap()).unwrap()));
        }
        for finished in self.service.finished() {
            let Finished { conn, reply, .. } = &finished;
            if self.sessions[*conn].resume(&finished) {
                self.replies.push((*conn, serde_json::to_value(reply).unwrap()));
            }
        }
    }

    fn open(&mut self) -> usize {
        self.sessions.push(Session::new(IpAddr::from([127, 0, 0, 1]), self.now));
        self.sessions.len() - 1
    }

    fn send(&mut self, session: usize, request: &Value) {
        let mut frame = Vec::new();
        Request::parse(request.to_string().as_bytes()).unwrap().encode(&mut frame).unwrap();
        assert_eq!(self.sessions[session].feed(&frame), frame.len());
    }
}

/// Two hubs.
struct Lab {
    world: Arc<Mutex<World>>,
    hubs: [Hub; 2],
    /// Nothing is delivered to this one.
    lags: Option<usize>,
}

impl Lab {
    fn new() -> Self {
        let world = Arc::new(Mutex::new(World::default()));
        let now = Instant::now();
        let hubs = [0, 1].map(|at| {
            let state = State::new(Bounds::default());
            let site = Site { state, applied: 0, number: 0, late: Vec::new(), heard: Vec::new() };
            world.lock().unwrap().hubs.push(site);
            let (store, records) = FaultyDisk::default().open().unwrap();
            let config = Config {
                rates: RateLimits::UNLIMITED,
                admin_token: Some(Secret::new(TOKEN)),
                ..Config::default()
            };
            let mut service = Service::new(config, store, records, now).unwrap();
            service.share(Arc::new(Link(world.clone(), at)), Arc::new(|| {}), &env(now));
            Hub { service, sessions: Vec::new(), replies: Vec::new(), now }
        });
        Self { world, hubs, lags: None }
    }

    /// The log orders one batch; false if none waits.
    fn order(&mut self) -> bool {
        let mut world = self.world.lock().unwrap();
        let Some((hub, command, decided)) = world.proposed.pop_front() else { return false };
        if world.down {
            drop(world);
            decided(Err("no majority".into()));
            return true;
        }
        world.log.push(command);
        let answer = world.deliver(hub);
        drop(world);
        decided(Ok(decode_verdicts(&answer).unwrap()));
        true
    }

    /// Whoever asked to catch up has.
    fn catch_up(&mut self, hub: usize) {
        if self.lags == Some(hub) {
            return;
        }
        let mut world = self.world.lock().unwrap();
        if !world.down {
            world.deliver(hub);
        }
        let late = std::mem::take(&mut world.hubs[hub].late);
        drop(world);
        late.into_iter().for_each(|then| then());
    }

    /// Until nothing moves any more.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.hubs.iter_mut().for_each(Hub::turn);
            let moved = self.order();
            (0..2).for_each(|hub| self.catch_up(hub));
            let idle = |hub: &Hub| {
                let busy = |session: &Session| session.has_request() || session.is_waiting();
                hub.service.waiting() == 0 && !hub.sessions.iter().any(busy)
            };
            if !moved && self.hubs.iter().all(idle) {
                self.hubs.iter_mut().for_each(Hub::turn);
                return;
            }
        }
        panic!("it never ends");
    }

    fn replies(&mut self, hub: usize) -> Vec<Value> {
        std::mem::take(&mut self.hubs[hub].replies).into_iter().map(|(_, reply)| reply).collect()
    }

    /// One request at a hub, on a connection of its own, signed as the reference signs.
    fn ask(&mut self, hub: usize, signer: &SigningKey, request: Value) -> Value {
        self.start(hub, signer, request);
        self.settle();
        self.replies(hub).pop().expect("a reply")
    }

    fn start(&mut self, hub: usize, signer: &SigningKey, request: Value) {
        let session = self.hubs[hub].open();
        self.hubs[hub].send(session, &signed(signer, request));
    }

    fn register(&mut self, hub: usize, n: u8, name: &str) -> u32 {
        let reply = self.ask(hub, &key(n), registration(n, name, 4001));
        assert_eq!(reply["type"], "register_ok", "{reply}");
        reply["node_id"].as_u64().unwrap().try_into().unwrap()
    }

    /// Presence as it is told each second.
    fn tell(&mut self) {
        for hub in &mut self.hubs {
            hub.service.tell();
        }
        self.settle();
    }

    fn down(&mut self, down: bool) {
        self.world.lock().unwrap().down = down;
    }

    /// All of it is on both hubs, and equal.
    fn assert_agreed(&mut self) {
        let world = self.world.lock().unwrap();
        assert_eq!(world.hubs[0].state.snapshot(), world.hubs[1].state.snapshot());
        let of = |hub: &Hub| (hub.service.engine().nodes(), hub.service.engine().names());
        assert_eq!(of(&self.hubs[0]), of(&self.hubs[1]));
        assert_eq!(of(&self.hubs[0]).0, world.hubs[0].state.nodes());
    }
}

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn text(signature: Signature) -> Value {
    signature.to_string().into()
}

fn registration(n: u8, name: &str, port: u16) -> Value {
    let public = Base64(key(n).verifying_key().to_bytes());
    let listen = format!("127.0.0.1:{port}");
    let signature = key(n).sign(pilotage_wire::registry::register_string(&listen, &public).as_bytes());
    json!({"type": "register", "listen_addr": listen, "public_key": public.to_string(), "hostname": name,
        "public": true, "signature": text(Base64(signature.to_bytes()))})
}

fn signed(signer: &SigningKey, mut request: Value) -> Value {
    let typed = Request::parse(request.to_string().as_bytes()).unwrap();
    let message = match &typed {
        Request::Heartbeat(heartbeat) => Some(pilotage_wire::registry::heartbeat_string(heartbeat.node_id)),
        Request::Register(_) => None,
        typed => typed.signed_string(),
    };
    if let Some(message) = message {
        request["signature"] = text(Base64(signer.sign(message.as_bytes()).to_bytes()));
    }
    request
}

fn lookup(id: u32) -> Value {
    json!({"type": "lookup", "node_id": id})
}

fn resolve(id: u32, by: u32) -> Value {
    json!({"type": "resolve", "node_id": id, "requester_id": by})
}

fn pair(kind: &str, a: u32, b: u32) -> Value {
    json!({"type": kind, "node_id": a, "peer_id": b})
}

#[test]
fn a_node_of_one_hub_is_found_at_the_other() {
    let mut lab = Lab::new();
    let a = lab.register(0, 1, "ann");
    let found = lab.ask(1, &key(1), lookup(a));
    assert_eq!((&found["hostname"], &found["real_addr"]), (&json!("ann"), &json!("127.0.0.1:4001")));
    let named = lab.ask(1, &key(1), json!({"type": "resolve_hostname", "hostname": "ann"}));
    assert_eq!(named["node_id"], a);
    // Who asks is known there, too, and so is the key for the beacon.
    let b = lab.register(1, 2, "bob");
    assert_eq!(lab.ask(0, &key(2), resolve(a, b))["real_addr"], "127.0.0.1:4001");
    let known = lab.hubs[0].service.keys().of(pilotage_wire::NodeId(b));
    assert_eq!(known, Some(key(2).verifying_key().to_bytes()));
    // It registers at the other hub: same id, and it has moved for both.
    let again = lab.ask(1, &key(1), registration(1, "", 4009));
    assert_eq!((&again["node_id"], &again["hostname"]), (&json!(a), &json!("ann")));
    assert_eq!(lab.ask(0, &key(2), resolve(a, b))["real_addr"], "127.0.0.1:4009");
    lab.assert_agreed();
}

#[test]
fn one_name_asked_for_at_both_hubs_is_granted_once() {
    let mut lab = Lab::new();
    lab.start(0, &key(1), registration(1, "same", 1));
    lab.start(1, &key(2), registration(2, "same", 2));
    // Both have decided before either has heard of the other.
    lab.hubs.iter_mut().for_each(Hub::turn);
    assert_eq!(lab.world.lock().unwrap().proposed.len(), 2);
    lab.settle();
    let replies = [lab.replies(0).remove(0), lab.replies(1).remove(0)];
    assert_eq!(replies[0]["hostname"], "same");
    // The other is registered, without the name, as in one process.
    assert_eq!(replies[1]["type"], "register_ok");
    assert!(replies[1]["hostname_error"].as_str().unwrap().contains("taken"), "{}", replies[1]);
    assert_ne!(replies[0]["node_id"], replies[1]["node_id"]);
    lab.assert_agreed();
}

#[test]
fn networks_are_common_and_their_ids_and_names_given_once() {
    let mut lab = Lab::new();
    let (a, b) = (lab.register(0, 1, ""), lab.register(1, 2, ""));
    let create = |node: u32, name: &str| json!({"type": "create_network", "node_id": node, "name": name, "join_rule": "open", "admin_token": TOKEN});
    lab.start(0, &key(1), create(a, "one"));
    lab.start(1, &key(2), create(b, "two"));
    lab.start(1, &key(2), create(b, "one"));
    lab.settle();
    let mut ids: Vec<_> = [lab.replies(0), lab.replies(1)].concat();
    ids.retain(|reply| reply["type"] == "create_network_ok");
    let ids: std::collections::BTreeSet<_> = ids.iter().map(|reply| reply["network_id"].as_u64()).collect();
    assert_eq!(ids, [Some(1), Some(2)].into());
    // Many enter at both hubs at once: nobody is lost.
    let ids: Vec<(u8, u32)> = (10..40).map(|n| (n, lab.register(usize::from(n % 2), n, ""))).collect();
    for (n, id) in ids {
        lab.start(
            usize::from(n % 2),
            &key(n),
            json!({"type": "join_network", "node_id": id, "network_id": 1}),
        );
    }
    lab.settle();
    let joined = [lab.replies(0), lab.replies(1)].concat();
    assert!(joined.iter().all(|reply| reply["type"] == "join_network_ok"), "{joined:?}");
    let list = lab.ask(1, &key(1), json!({"type": "list_networks"}));
    assert_eq!(list["networks"][1]["members"], 31);
    lab.assert_agreed();
}

/// Each decided upon what the other was about to change.
#[test]
fn an_acceptance_is_not_lost_between_hubs() {
    let mut lab = Lab::new();
    let (a, b) = (lab.register(0, 1, ""), lab.register(1, 2, ""));
    let request =
        json!({"type": "request_handshake", "from_node_id": a, "to_node_id": b, "justification": "hi"});
    let accept = json!({"type": "respond_handshake", "node_id": b, "peer_id": a, "accept": true});
    lab.start(0, &key(1), request);
    lab.start(1, &key(2), accept);
    lab.hubs.iter_mut().for_each(Hub::turn);
    assert_eq!(lab.world.lock().unwrap().proposed.len(), 2);
    lab.settle();
    lab.replies(0);
    lab.replies(1);
    let polled = lab.ask(1, &key(1), json!({"type": "poll_handshakes", "node_id": a}));
    assert_eq!(polled["responses"][0]["from_node_id"], b, "{polled}");
    // Told once, whichever hub is asked.
    let polled = lab.ask(0, &key(1), json!({"type": "poll_handshakes", "node_id": a}));
    assert_eq!(polled["responses"].as_array().map_or(0, Vec::len), 0, "{polled}");
    assert_eq!(lab.ask(0, &key(1), pair("check_trust", a, b))["trusted"], true);
    lab.assert_agreed();
}

/// What a hub that lags decides upon an old key does not hold.
#[test]
fn an_old_key_does_nothing_at_a_hub_that_lags() {
    let mut lab = Lab::new();
    let (a, b) = (lab.register(0, 1, ""), lab.register(0, 2, ""));
    lab.lags = Some(1);
    let public = Base64(key(3).verifying_key().to_bytes()).to_string();
    let rotated = lab.ask(0, &key(1), json!({"type": "rotate_key", "node_id": a, "new_public_key": public}));
    assert_eq!(rotated["type"], "rotate_key_ok", "{rotated}");
    // It believes the signature at first, and proposes.
    lab.start(1, &key(1), pair("report_trust", a, b));
    lab.hubs[1].turn();
    assert_eq!(lab.world.lock().unwrap().proposed.len(), 1);
    lab.lags = None;
    lab.settle();
    let refused = lab.replies(1).pop().unwrap();
    assert!(refused["error"].as_str().unwrap().contains("signature"), "{refused}");
    lab.assert_agreed();
}

#[test]
fn without_a_majority_nothing_changes_and_reading_goes_on() {
    let mut lab = Lab::new();
    let a = lab.register(0, 1, "ann");
    lab.settle();
    lab.ask(1, &key(1), lookup(a));
    lab.down(true);
    assert!(lab.hubs[0].service.is_read_only());
    lab.start(0, &key(2), registration(2, "bob", 2));
    lab.start(0, &key(3), registration(3, "eve", 3));
    lab.settle();
    for refused in lab.replies(0) {
        assert!(refused["error"].as_str().unwrap().contains("no majority"), "{refused}");
    }
    for hub in [0, 1] {
        assert_eq!(lab.ask(hub, &key(1), lookup(a))["hostname"], "ann");
        // A heartbeat and a registration that change nothing need no majority.
        let beat = lab.ask(hub, &key(1), json!({"type": "heartbeat", "node_id": a}));
        assert_eq!(beat["type"], "heartbeat_ok", "{beat}");
        let same = lab.ask(hub, &key(1), registration(1, "ann", 4001));
        assert_eq!(same["type"], "register_ok", "{same}");
        let unknown = lab.ask(hub, &key(1), lookup(77));
        assert!(unknown["error"].as_str().unwrap().contains("unknown"), "{unknown}");
    }
    lab.down(false);
    lab.register(0, 2, "bob");
    lab.assert_agreed();
}

#[test]
fn signs_of_life_reach_the_other_hub() {
    let mut lab = Lab::new();
    let (a, b) = (lab.register(0, 1, ""), lab.register(1, 2, ""));
    lab.tell();
    for _ in 0..20 {
        for hub in &mut lab.hubs {
            hub.now += Duration::from_secs(30);
        }
        for (hub, n, id) in [(0, 1, a), (1, 2, b)] {
            let beat = lab.ask(hub, &key(n), json!({"type": "heartbeat", "node_id": id}));
            assert_eq!(beat["type"], "heartbeat_ok");
        }
        lab.tell();
    }
    assert_eq!(lab.ask(1, &key(2), resolve(a, b))["real_addr"], "127.0.0.1:4001");
    // Silent at its hub, it goes off line at both.
    for hub in &mut lab.hubs {
        hub.now += Duration::from_secs(181);
    }
    let beat = lab.ask(1, &key(2), json!({"type": "heartbeat", "node_id": b}));
    assert_eq!(beat["type"], "heartbeat_ok");
    lab.tell();
    for hub in [0, 1] {
        let silent = lab.ask(hub, &key(2), resolve(a, b));
        assert!(silent["error"].as_str().unwrap().contains("not on line"), "{silent}");
    }
}

/// `spec/registry.md §11.4` over two hubs.
#[test]
fn a_call_at_one_hub_counts_at_the_other() {
    let mut lab = Lab::new();
    let (a, b) = (lab.register(0, 1, ""), lab.register(1, 2, ""));
    let trust = lab.ask(1, &key(2), pair("report_trust", b, a));
    assert_eq!(trust["type"], "report_trust_ok", "{trust}");
    assert_eq!(lab.ask(1, &key(2), pair("check_trust", a, b))["trusted"], false);
    assert_eq!(lab.ask(0, &key(1), resolve(b, a))["type"], "resolve_ok");
    lab.tell();
    assert_eq!(lab.ask(1, &key(2), pair("check_trust", a, b))["trusted"], true);
}

#[test]
fn replies_of_a_connection_come_in_order() {
    let mut lab = Lab::new();
    let a = lab.register(0, 1, "ann");
    let session = lab.hubs[0].open();
    let name = |name: &str| json!({"type": "set_hostname", "node_id": a, "hostname": name});
    for request in [lookup(a), name("one"), lookup(a), lookup(9), name("two"), name("two"), lookup(a)] {
        lab.hubs[0].send(session, &signed(&key(1), request));
    }
    lab.settle();
    let replies = lab.replies(0);
    let names: Vec<_> = replies.iter().map(|reply| reply["hostname"].as_str().unwrap_or("-")).collect();
    assert_eq!(names, ["ann", "one", "one", "-", "two", "two", "two"], "{replies:?}");
}

#[test]
fn an_answer_is_not_given_to_whoever_came_in_the_place_of_the_one_who_asked() {
    let mut lab = Lab::new();
    let session = lab.hubs[0].open();
    lab.hubs[0].send(session, &registration(1, "ann", 1));
    lab.hubs[0].turn();
    // The connection breaks, another one gets its place, and asks.
    lab.hubs[0].sessions[session] = Session::new(IpAddr::from([127, 0, 0, 1]), lab.hubs[0].now);
    lab.hubs[0].send(session, &registration(2, "bob", 2));
    lab.settle();
    let replies = lab.replies(0);
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0]["hostname"], "bob");
    // The first was acknowledged to nobody, and done.
    assert_eq!(lab.hubs[0].service.engine().names(), 2);
}

/// More than a batch takes, in requests and in bytes.
#[test]
fn many_requests_need_several_batches() {
    let mut lab = Lab::new();
    for n in 0..MAX_BATCH + 200 {
        let mut secret = [7; 32];
        secret[..8].copy_from_slice(&n.to_be_bytes());
        let key = SigningKey::from_bytes(&secret);
        let public = Base64(key.verifying_key().to_bytes());
        let signature = key.sign(pilotage_wire::registry::register_string("127.0.0.1:9", &public).as_bytes());
        let lan: Vec<String> = (1..=16).map(|port| format!("[2001:db8::1]:{port}")).collect();
        let request = json!({"type": "register", "listen_addr": "127.0.0.1:9", "public_key": public.to_string(),
            "lan_addrs": lan, "signature": text(Base64(signature.to_bytes()))});
        let session = lab.hubs[0].open();
        lab.hubs[0].send(session, &request);
    }
    lab.settle();
    let replies = lab.replies(0);
    assert_eq!(replies.len(), MAX_BATCH + 200);
    assert!(replies.iter().all(|reply| reply["type"] == "register_ok"));
    let world = lab.world.lock().unwrap();
    assert!(
        world.log.len() > 1
            && world.log.iter().all(|batch| batch.len() <= crate::ledger::MAX_BATCH + (32 << 10))
    );
    drop(world);
    lab.assert_agreed();
    assert_eq!(lab.hubs[1].service.engine().nodes(), MAX_BATCH + 200);
}
