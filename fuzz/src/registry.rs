//! The registry's engine under requests of any kind, lost batches and restarts; and its stored records.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use pilotage_registry::engine::{
    Config, ConnState, Context, Engine, Outcome, Proof, RateLimits, Record, Row, RowKey, Secret,
    SocialLimits, Unsigned, toy,
};
use pilotage_wire::NodeId;
use pilotage_wire::addressing::derive_node_id;
use pilotage_wire::registry::{self as wire, Base64, Reply, Request, Signature};

use crate::inputs::Input;

/// Operations of one execution, and keys and names that they are about.
const OPS: usize = 120;
const KEYS: u8 = 5;
const NAMES: [&str; 6] = ["ann", "bob", "cid", "", "-bad-", "localhost"];
/// Claims that fit.
const NODES: usize = 4;
const TOKEN: &str = "operator";
/// Nodes in memory only that fit.
const UNCONFIRMED: usize = 2;

/// Stored records: what was understood survives being written and read again. The first byte chooses the id: an
/// arbitrary one, or the one that the key in the record gives, so that the check behind the parser passes; or a row of the
/// other table follows.
pub(crate) fn record(data: &[u8]) {
    let Some((&kind, bytes)) = data.split_first() else { return };
    if kind & 2 != 0 {
        return row(bytes);
    }
    let derived = || {
        let salt = u16::from_be_bytes(*bytes.get(3..)?.first_chunk()?);
        derive_node_id(bytes.get(5..)?.first_chunk()?, salt)
    };
    let id = if kind & 1 == 0 { derived() } else { None }.unwrap_or(NodeId(77));
    let Ok(record) = Record::decode(id, bytes) else { return };
    let mut written = Vec::new();
    record.encode(&mut written);
    assert_eq!(Record::decode(id, &written), Ok(record));
    assert_eq!(written, bytes, "one record has one form");
}

/// Stored rows: the first byte is the length of the key.
fn row(data: &[u8]) {
    let Some((&len, rest)) = data.split_first() else { return };
    let Some((key, bytes)) = rest.split_at_checked(usize::from(len)) else { return };
    let Ok(parsed) = RowKey::decode(key) else { return };
    assert_eq!(parsed.encode(), key, "one key has one form");
    let Ok(row) = Row::decode(&parsed, bytes) else { return };
    let mut written = Vec::new();
    row.encode(&mut written);
    assert_eq!(written, bytes, "one row has one form");
}

/// The engine with what the disk holds, as a server would drive it.
struct World {
    engine: Engine,
    config: Config,
    now: Instant,
    conns: [ConnState; 3],
    /// The last nonce of each connection.
    nonces: [[u8; 32]; 3],
    entropy: Cell<u64>,
    disk: BTreeMap<NodeId, Record>,
    rows: BTreeMap<RowKey, Row>,
    /// Every id that was ever given out, and its key.
    given: BTreeMap<NodeId, [u8; 32]>,
    /// Requests since the last commit, to be asked again after a rollback.
    batch: Vec<(usize, Request)>,
    last: Option<Request>,
}

/// Requests signed rightly, wrongly or not at all, raw JSON, commits, lost batches, read-only times, restarts from the
/// committed records. Checked after every step: an address has one owner for ever and belongs to its key, names are
/// unique, counts agree; nothing is written without the owner's signature, and a key's level of proof never falls; a
/// lost batch leaves no trace; a restart gives the same state; tables keep their bounds.
pub(crate) fn engine(base: Instant, data: &[u8]) {
    let mut input = Input(data);
    let mut world = World::new(base, input.u8());
    for _ in 0..OPS {
        let Some(op) = input.op() else { break };
        world.step(op, &mut input);
        world.check();
    }
    world.commit();
    world.reload();
    world.check();
}

fn key(number: u8) -> [u8; 32] {
    [number % KEYS + 1; 32]
}

impl World {
    fn new(now: Instant, kind: u8) -> Self {
        let rates = if kind & 1 == 0 {
            RateLimits::UNLIMITED
        } else {
            RateLimits {
                challenge: 10,
                register: 3,
                update: 10,
                heartbeat: 5,
                lookup: 9,
                resolve: 5,
                beacon: 2,
                guess: 2,
            }
        };
        let config = Config {
            unsigned: [Unsigned::Refused, Unsigned::Trusted, Unsigned::UntilSigned]
                [usize::from(kind >> 1) % 3],
            admin_token: Some(Secret::new(TOKEN)),
            open_scores: kind & 16 != 0,
            max_unconfirmed: UNCONFIRMED,
            social: SocialLimits {
                networks: 2,
                members: 3,
                consents: 8,
                consents_per_node: 3,
                inbox: 5,
                inbox_per_node: 2,
                invites: 4,
                invites_per_node: 2,
                calls: 3,
            },
            max_nodes: NODES,
            rates,
            max_sources: 2,
            allow_beacon_register: kind & 4 != 0,
            max_beacons: 2,
            ..Config::default()
        };
        let engine = Engine::new(config.clone(), [], now).expect("no records contradict each other");
        Self {
            engine,
            config,
            now,
            conns: Default::default(),
            nonces: Default::default(),
            entropy: Cell::new(0),
            disk: BTreeMap::new(),
            rows: BTreeMap::new(),
            given: BTreeMap::new(),
            batch: Vec::new(),
            last: None,
        }
    }

    fn step(&mut self, op: u8, input: &mut Input<'_>) {
        match op & 0x0F {
            0..=8 => {
                let conn = usize::from(op >> 4) % 3;
                if let Some(request) = self.request(op & 0x0F, conn, input) {
                    self.ask(conn, request);
                }
            }
            9 => {
                let conn = usize::from(op >> 4) % 3;
                if let Some(request) = self.social(conn, input) {
                    self.ask(conn, request);
                }
            }
            10 => {
                if let Ok(request) = Request::parse(input.bytes(255)) {
                    self.ask(usize::from(op >> 4) % 3, request);
                }
            }
            11 => {
                let byte = u64::from(input.u8());
                self.now +=
                    if byte < 128 { Duration::from_millis(byte * 20) } else { Duration::from_secs(byte) };
            }
            12 | 13 => self.commit(),
            14 => self.lose(op >> 4),
            _ => {
                if op & 0x10 == 0 {
                    self.commit();
                }
                self.reload();
            }
        }
    }

    /// A request about some key's node, signed by the key that the input chooses.
    fn request(&mut self, kind: u8, conn: usize, input: &mut Input<'_>) -> Option<Request> {
        let choice = input.u8();
        let owner = key(choice & 7);
        let signer = if choice & 0x18 == 0x18 { key(input.u8()) } else { owner };
        // No proof, a proof, or a signature that anybody could repeat.
        let (proved, signed) = (choice & 0x20 != 0, choice & 0x40 != 0);
        let nonce = self.nonces[conn];
        let node_id = self.given.iter().find(|(_, k)| **k == owner).map_or(NodeId(77), |(id, _)| *id);
        let name = NAMES[usize::from(choice >> 5) % NAMES.len()];
        let sign = |text: &[u8]| toy::sign(&signer, text);
        let proof = |message: Vec<u8>| proved.then(|| sign(&message));
        let signature = |text: String| signed.then(|| sign(text.as_bytes()));
        Some(match kind {
            0 => Request::Challenge,
            1..=3 => {
                let mut request = wire::Register {
                    listen_addr: ["10.0.0.1:4001", "[::1]:4002", ":0", "x", "host:65535"]
                        [usize::from(choice) % 5]
                        .into(),
                    public_key: Base64(if choice == 0xFF { [0; 32] } else { owner }),
                    hostname: (kind == 2).then(|| name.to_owned()),
                    lan_addrs: (0..input.u8() % 20).map(|i| format!("10.0.0.{i}:{i}")).collect(),
                    public: [None, Some(true), Some(false)][usize::from(choice) % 3],
                    signature: None,
                    proof: None,
                };
                request.signature =
                    signature(wire::register_string(&request.listen_addr, &request.public_key));
                request.proof = proof(wire::register_proof(&nonce, &request));
                Request::Register(request)
            }
            4 => Request::SetHostname(wire::SetHostname {
                node_id,
                hostname: name.into(),
                signature: signature(wire::set_hostname_string(node_id)),
                proof: proof(wire::set_hostname_proof(&nonce, node_id, name)),
            }),
            5 => {
                let public = choice & 1 == 0;
                Request::SetVisibility(wire::SetVisibility {
                    node_id,
                    public,
                    signature: signature(wire::set_visibility_string(node_id)),
                    proof: proof(wire::set_visibility_proof(&nonce, node_id, public)),
                })
            }
            6 => Request::Deregister(wire::Deregister {
                node_id,
                signature: signature(wire::deregister_string(node_id)),
                proof: proof(wire::deregister_proof(&nonce, node_id)),
            }),
            7 => {
                let listen_addr = (choice & 0x80 != 0).then(|| "10.0.0.9:4009".to_owned());
                let text = match &listen_addr {
                    Some(addr) => wire::heartbeat_addr_string(node_id, addr),
                    None => wire::heartbeat_string(node_id),
                };
                Request::Heartbeat(wire::Heartbeat { node_id, listen_addr, signature: signature(text) })
            }
            8 => {
                let target = self.given.keys().nth(usize::from(input.u8()) % KEYS as usize).copied()?;
                let signature = signature(wire::resolve_string(node_id, target));
                Request::Resolve(wire::Resolve { node_id: target, requester_id: node_id, signature })
            }
            _ if choice & 1 == 0 => Request::Lookup(wire::Lookup { node_id }),
            _ => {
                Request::ResolveHostname(wire::ResolveHostname { hostname: name.into(), requester_id: None })
            }
        })
    }

    /// A request about trust, networks, keys or scores; fields that a type has not are ignored by its parser.
    fn social(&mut self, conn: usize, input: &mut Input<'_>) -> Option<Request> {
        let kinds = &wire::REQUEST_TYPES[9..];
        let kind = kinds[usize::from(input.u8()) % kinds.len()];
        let (who, whom, how, value) = (input.u8(), input.u8(), input.u8(), input.u8());
        let id = |n: u8| self.given.keys().nth(usize::from(n & 7)).map_or(77, |id| id.0);
        let (a, b, network) = (id(who), id(whom), u16::from(value & 3));
        let token = ["", TOKEN, "wrong", ""][usize::from(how & 3)];
        let rule = ["open", "token", "invite", "x"][usize::from(value >> 2) % 4];
        let name = ["lab", "net", "-bad-", ""][usize::from(value >> 4) % 4];
        let expires = ["never", "2030-01-01T00:00:00Z", "2026-11-21T05:58:53Z", "x"][usize::from(value) % 4];
        let new_key = Base64(key(value));
        let text = format!(
            r#"{{"type":"{kind}","node_id":{a},"peer_id":{b},"requester_id":{a},"from_node_id":{a},"to_node_id":{b},
            "network_id":{network},"target_node_id":{b},"new_owner_id":{b},"inviter_id":{a},"node_a":{a},"node_b":{b},
            "hostname":"ann","tags":["a","b"],"enabled":true,"accept":{},"name":"{name}","delta":{value},
            "polo_score":-1,"token":"{token}","admin_token":"{token}","join_rule":"{rule}","new_public_key":"{new_key}",
            "expires_at":"{expires}","beacon_id":{value},"addr":"h:1","max_members":{},"allowed_ports":[7],
            "description":"d","justification":"j","after":{value}}}"#,
            value & 1 == 0,
            value & 7,
        );
        let mut value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let request = Request::parse(text.as_bytes()).expect("all fields are there");
        // By the actor's present key, by another one, or not at all.
        let present = request.credentials().and_then(|c| self.engine.record(c.actor?)).map(|r| r.public_key);
        let signer = if how & 0x0C == 0x0C { key(whom) } else { present.unwrap_or(key(who)) };
        if how & 0x10 != 0
            && let Some(text) = request.signed_string()
        {
            value["signature"] = toy::sign(&signer, text.as_bytes()).to_string().into();
        }
        if how & 0x20 != 0
            && let Some(message) = request.proof_message(&self.nonces[conn])
        {
            value["proof"] = toy::sign(&signer, &message).to_string().into();
            value["new_proof"] = toy::sign(&new_key.0, &message).to_string().into();
        }
        Request::parse(value.to_string().as_bytes()).ok()
    }

    fn apply(&mut self, conn: usize, request: &Request, again: bool) -> Outcome {
        let random = || {
            self.entropy.set(self.entropy.get() + 1);
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&self.entropy.get().to_be_bytes());
            Some(bytes)
        };
        let source = IpAddr::V4(Ipv4Addr::new(192, 0, 2, conn as u8));
        let ctx = Context { now: self.now, unix: 1_795_240_732, source, random: &random };
        let state = &mut self.conns[conn];
        if again {
            self.engine.reapply(&ctx, state, request)
        } else {
            self.engine.apply(&ctx, state, request)
        }
    }

    fn ask(&mut self, conn: usize, request: Request) {
        let before = self.records();
        let nonce = self.nonces[conn];
        let outcome = self.apply(conn, &request, false);
        let after = self.records();
        if outcome.refused.is_some() && !outcome.wrote {
            assert_eq!(before, after, "a refused request changed something");
        }
        match &outcome.reply {
            Reply::Challenge { nonce } => self.nonces[conn] = nonce.0,
            Reply::Registered(done) => {
                let Request::Register(register) = &request else { panic!("a reply to something else") };
                let owner = self.given.entry(done.node_id).or_insert(register.public_key.0);
                // Nodes that have signed nothing come and go, and keys can be changed.
                let record = self.engine.record(done.node_id);
                let present = record.map_or(register.public_key.0, |record| record.public_key);
                assert_eq!(present, register.public_key.0, "an address got another owner");
                *owner = present;
            }
            _ => {}
        }
        if outcome.refused.is_none() {
            self.check_credentials(&request, &nonce, &before);
        }
        self.last = Some(request.clone());
        for (id, record) in self.records() {
            if let Some(old) = before.get(&id) {
                assert!(record.proof >= old.proof, "the level of proof fell");
                assert_eq!((record.first_key(), record.salt), (old.first_key(), old.salt));
                let rotated = matches!(&self.last, Some(Request::RotateKey(r)) if r.node_id == id);
                assert!(rotated || record.public_key == old.public_key, "a key changed by itself");
            }
        }
        self.batch.push((conn, request));
    }

    /// An accepted write carries a signature of the owner, as strong as the best one ever given.
    fn check_credentials(&self, request: &Request, nonce: &[u8; 32], before: &BTreeMap<NodeId, Record>) {
        let fits = |record: &Record,
                    text: &str,
                    signature: &Option<Signature>,
                    proof: &Option<Signature>,
                    fresh: Vec<u8>| {
            let is = |given: &Option<Signature>, message: &[u8]| {
                given.as_ref().is_some_and(|s| *s == toy::sign(&record.public_key, message))
            };
            let proved = is(proof, &fresh);
            assert!(proved || (record.proof < Proof::Fresh && is(signature, text.as_bytes())), "{request:?}");
        };
        match request {
            Request::SetHostname(r) if before.contains_key(&r.node_id) => fits(
                &before[&r.node_id],
                &wire::set_hostname_string(r.node_id),
                &r.signature,
                &r.proof,
                wire::set_hostname_proof(nonce, r.node_id, &r.hostname),
            ),
            Request::SetVisibility(r) if before.contains_key(&r.node_id) => fits(
                &before[&r.node_id],
                &wire::set_visibility_string(r.node_id),
                &r.signature,
                &r.proof,
                wire::set_visibility_proof(nonce, r.node_id, r.public),
            ),
            Request::Deregister(r) if before.contains_key(&r.node_id) => fits(
                &before[&r.node_id],
                &wire::deregister_string(r.node_id),
                &r.signature,
                &r.proof,
                wire::deregister_proof(nonce, r.node_id),
            ),
            Request::Register(r) => {
                let known = before.values().find(|record| record.public_key == r.public_key.0);
                let refused = self.config.unsigned == Unsigned::Refused;
                if known.is_some_and(|record| record.proof == Proof::Fresh) || refused {
                    let proof = toy::sign(&r.public_key.0, &wire::register_proof(nonce, r));
                    assert!(r.proof.as_ref() == Some(&proof), "{request:?}");
                }
            }
            _ => {}
        }
    }

    fn records(&self) -> BTreeMap<NodeId, Record> {
        let ids = self.given.keys().chain(self.disk.keys());
        ids.filter_map(|id| Some((*id, self.engine.record(*id)?.clone()))).collect()
    }

    fn commit(&mut self) {
        for (id, record) in self.engine.staged() {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            let stored = Record::decode(id, &bytes).expect("what is staged can be stored");
            assert_eq!(&stored, record);
            self.disk.insert(id, stored);
        }
        for (key, row) in self.engine.staged_rows() {
            let key = RowKey::decode(&key.encode()).expect("a key");
            let Some(row) = row else {
                self.rows.remove(&key);
                continue;
            };
            let mut bytes = Vec::new();
            row.encode(&mut bytes);
            self.rows.insert(key, Row::decode(&key, &bytes).expect("what is staged can be stored"));
        }
        self.engine.commit();
        assert_eq!(self.engine.staged().count() + self.engine.staged_rows().count(), 0);
        self.batch.clear();
    }

    /// The batch could not be written: its requests are asked again, read-only.
    fn lose(&mut self, which: u8) {
        self.engine.rollback();
        self.forget_lost();
        assert_eq!(self.records(), self.disk, "a lost batch left a trace");
        if which & 1 == 0 {
            self.batch.clear();
            return;
        }
        self.engine.set_read_only(Some("disk full".into()));
        for (conn, request) in std::mem::take(&mut self.batch) {
            let outcome = self.apply(conn, &request, true);
            if let Reply::Challenge { nonce } = &outcome.reply {
                self.nonces[conn] = nonce.0;
            }
        }
        assert_eq!(self.records(), self.disk, "read-only, and yet changed");
        if which & 2 == 0 {
            self.engine.set_read_only(None);
        }
    }

    fn reload(&mut self) {
        self.batch.clear();
        let stored = self.disk.iter().map(|(id, record)| (*id, record.clone()));
        self.engine = Engine::new(self.config.clone(), stored, self.now).expect("what was stored loads");
        self.engine.load_rows(self.rows.clone());
        self.conns = Default::default();
        self.forget_lost();
        assert_eq!(self.records(), self.disk, "a restart changed something");
        assert_eq!(self.engine.nodes(), self.disk.len());
        for (id, record) in &self.disk {
            assert_eq!(derive_node_id(record.first_key(), record.salt), Some(*id));
        }
    }

    /// Claims that never became durable were told to nobody.
    fn forget_lost(&mut self) {
        self.given.retain(|id, _| self.disk.contains_key(id));
    }

    fn check(&self) {
        let records = self.records();
        assert_eq!(self.engine.nodes(), records.len(), "claims");
        assert!(records.len() <= NODES && self.engine.tracked_sources() <= 2);
        assert!(self.engine.calls() <= 3, "calls");
        assert!(self.engine.unconfirmed() <= UNCONFIRMED, "nodes in memory only");
        for (key, row) in &self.rows {
            if self.batch.is_empty() {
                assert_eq!(self.engine.row(key), Some(row), "a stored row");
            }
        }
        let names: BTreeSet<&str> = records.values().filter_map(|r| r.hostname.as_deref()).collect();
        let named = records.values().filter(|r| r.hostname.is_some()).count();
        assert_eq!((names.len(), self.engine.names()), (named, named), "names");
        let keys: BTreeSet<[u8; 32]> = records.values().map(|r| r.public_key).collect();
        assert_eq!(keys.len(), records.len(), "a key has one address");
    }
}
