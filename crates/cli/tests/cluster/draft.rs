//! The reference's registry protocol, spoken to three hubs of one cluster.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use ed25519_dalek::{Signer as _, SigningKey};
use pilotage_wire::registry::{Base64, Request, register_string};
use serde_json::{Value, json};

use super::common::{Running, STEP, run, text};
use super::{Hubs, free};

/// A connection as a daemon of the reference has one: length-prefixed JSON.
struct Daemon(TcpStream);

impl Daemon {
    fn connect(registry: &str) -> std::io::Result<Self> {
        let stream = TcpStream::connect(registry)?;
        stream.set_read_timeout(Some(STEP))?;
        Ok(Self(stream))
    }

    fn ask(&mut self, request: &Value) -> std::io::Result<Value> {
        let json = request.to_string();
        let mut frame = u32::try_from(json.len()).unwrap().to_be_bytes().to_vec();
        frame.extend(json.as_bytes());
        self.0.write_all(&frame)?;
        let mut len = [0; 4];
        self.0.read_exact(&mut len)?;
        let mut reply = vec![0; u32::from_be_bytes(len) as usize];
        self.0.read_exact(&mut reply)?;
        Ok(serde_json::from_slice(&reply).unwrap())
    }
}

fn ask(registry: &str, request: &Value) -> Value {
    Daemon::connect(registry).unwrap().ask(request).unwrap()
}

fn key(n: u16) -> SigningKey {
    let mut secret = [9; 32];
    secret[..2].copy_from_slice(&n.to_be_bytes());
    SigningKey::from_bytes(&secret)
}

fn base64(signature: &[u8; 64]) -> String {
    Base64(*signature).to_string()
}

/// As later clients of the reference register: signed, without a challenge.
fn registration(n: u16, name: &str) -> Value {
    let public = Base64(key(n).verifying_key().to_bytes());
    let listen = format!("127.0.0.1:{}", 20_000 + n);
    let signature = key(n).sign(register_string(&listen, &public).as_bytes()).to_bytes();
    json!({"type": "register", "listen_addr": listen, "public_key": public.to_string(), "hostname": name,
        "public": true, "signature": base64(&signature)})
}

fn register(registry: &str, n: u16, name: &str) -> u32 {
    let reply = ask(registry, &registration(n, name));
    assert_eq!((&reply["type"], &reply["hostname_error"]), (&json!("register_ok"), &Value::Null), "{reply}");
    reply["node_id"].as_u64().unwrap().try_into().unwrap()
}

fn lookup(registry: &str, id: u32) -> Value {
    ask(registry, &json!({"type": "lookup", "node_id": id}))
}

/// With the signature that the reference makes.
fn signed(by: u16, mut request: Value) -> Value {
    let typed = Request::parse(request.to_string().as_bytes()).unwrap();
    let text = typed.signed_string().unwrap();
    request["signature"] = base64(&key(by).sign(text.as_bytes()).to_bytes()).into();
    request
}

fn resolve(registry: &str, id: u32, by: u16, by_id: u32) -> Value {
    ask(registry, &signed(by, json!({"type": "resolve", "node_id": id, "requester_id": by_id})))
}

#[test]
fn the_reference_registers_at_one_hub_and_is_found_at_all() {
    let hubs = Hubs::new();
    let at = &hubs.registries;
    let ann = register(&at[0], 1, "ann");
    for hub in [1, 2, 0] {
        // At once: whoever does not know it yet asks before it says no.
        let found = lookup(&at[hub], ann);
        assert_eq!((&found["hostname"], &found["real_addr"]), (&json!("ann"), &json!("127.0.0.1:20001")));
        let named = ask(&at[hub], &json!({"type": "resolve_hostname", "hostname": "ann"}));
        assert_eq!(named["node_id"], ann, "{named}");
    }
    // Who asks is registered at the third, and asks the second.
    let bob = register(&at[2], 2, "bob");
    assert_eq!(resolve(&at[1], ann, 2, bob)["real_addr"], "127.0.0.1:20001");
    // Ann looks up bob at the first hub; that counts as asking at bob's, where bob has consented (registry.md §11.4).
    let trusted = |hub: usize| {
        let pair = json!({"type": "check_trust", "node_id": ann, "peer_id": bob});
        ask(&at[hub], &pair)["trusted"] == true
    };
    let consent = signed(2, json!({"type": "report_trust", "node_id": bob, "peer_id": ann}));
    assert_eq!(ask(&at[2], &consent)["type"], "report_trust_ok");
    assert!(!trusted(2));
    assert_eq!(resolve(&at[0], bob, 1, ann)["type"], "resolve_ok");
    hubs.until("the call is known at all hubs", |_| trusted(0) && trusted(1) && trusted(2));
    // Three keys, three hubs, one name, ten times.
    let mut ids = BTreeSet::from([ann, bob]);
    for round in 0..10_u16 {
        let start = Barrier::new(3);
        let replies: Vec<Value> = thread::scope(|scope| {
            let race = |hub: usize| {
                let (start, registry) = (&start, &at[hub]);
                scope.spawn(move || {
                    let mut daemon = Daemon::connect(registry).unwrap();
                    start.wait();
                    let n = 100 + round * 3 + u16::try_from(hub).unwrap();
                    daemon.ask(&registration(n, &format!("race-{round}"))).unwrap()
                })
            };
            [0, 1, 2].map(race).map(|racer| racer.join().unwrap()).into()
        });
        let won = replies.iter().filter(|reply| reply["hostname"].is_string()).count();
        let told = replies.iter().filter(|reply| reply["hostname_error"].is_string()).count();
        assert_eq!((won, told), (1, 2), "{replies:#?}");
        ids.extend(replies.iter().map(|reply| u32::try_from(reply["node_id"].as_u64().unwrap()).unwrap()));
    }
    assert_eq!(ids.len(), 32, "an id was given twice");
    // All of them say the same of the whole registry.
    hubs.until("equal registries", |hubs| {
        (0..3).all(|hub| {
            let registry = &hubs.state(hub).unwrap()["hub"]["registry"];
            registry["nodes"] == 32 && registry["names"] == 12 && registry["shared"] == true
        })
    });
    let words = run(&["hub", "status", "--state", hubs.dir(1).to_str().unwrap()]);
    assert!(text(&words.stdout).contains("32 nodes, 12 names of the cluster"), "{}", text(&words.stdout));
}

#[test]
fn what_the_reference_was_told_outlives_the_leader() {
    let mut hubs = Hubs::new();
    let leader = hubs.leader();
    let (other, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let registry = hubs.registries[other].clone();
    let mut told: Vec<u32> = (1..30).map(|n| register(&registry, n, "")).collect();
    let old = hubs.registries[leader].clone();
    told.push(register(&old, 30, "last"));
    // kill -9.
    hubs.running[leader] = None;
    let killed = Instant::now();
    let mut n = 31;
    let back = loop {
        let reply = ask(&registry, &registration(n, ""));
        if reply["type"] == "register_ok" {
            told.push(reply["node_id"].as_u64().unwrap().try_into().unwrap());
            break killed.elapsed();
        }
        n += 1;
    };
    println!("registrations were back {} ms after the leader was killed", back.as_millis());
    // 2 s on a machine of its own; others may be busy here.
    assert!(back < Duration::from_secs(10), "{back:?}");
    told.extend((100..110).map(|n| register(&hubs.registries[third], n, "")));
    for hub in [other, third] {
        for id in &told {
            assert_eq!(lookup(&hubs.registries[hub], *id)["type"], "lookup_ok", "{id} is lost at {hub}");
        }
        let named = ask(&hubs.registries[hub], &json!({"type": "resolve_hostname", "hostname": "last"}));
        assert_eq!(named["type"], "resolve_hostname_ok", "{named}");
    }
    // Alone, a hub registers nobody and says why; what it knows it still tells, and who is there stays there.
    hubs.running[other] = None;
    let left = hubs.registries[third].clone();
    let refused = ask(&left, &registration(200, ""));
    assert!(refused["error"].as_str().unwrap().contains("majority"), "{refused}");
    assert_eq!(lookup(&left, told[0])["type"], "lookup_ok");
    assert_eq!(ask(&left, &registration(100, ""))["type"], "register_ok", "nothing changes by that");
    hubs.until("no majority in the status", |hubs| {
        hubs.state(third).is_some_and(|status| status["hub"]["registry"]["read_only"] == true)
    });
    // All back: nothing is lost, also at those that were killed.
    hubs.start(leader);
    hubs.start(other);
    hubs.until("a registration", |hubs| {
        ask(&hubs.registries[leader], &registration(300, "again"))["hostname"] == "again"
    });
    for id in &told {
        assert_eq!(lookup(&hubs.registries[leader], *id)["type"], "lookup_ok", "{id} is lost");
    }
    hubs.until("writable again", |hubs| {
        (0..3)
            .all(|hub| hubs.state(hub).is_some_and(|status| status["hub"]["registry"]["read_only"] == false))
    });
}

#[test]
fn a_hub_that_has_registered_nodes_alone_brings_them_into_no_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let at = ["--state", state, "--registry-port", "0", "--listen", "127.0.0.1", "--json"];
    let hub = Running::start(&[&["hub"][..], &at].concat());
    let ready = hub.expect("ready", STEP);
    let registry = ready["registry"].as_str().unwrap();
    let id = register(registry, 1, "ann");
    drop(hub);
    let bind = free().to_string();
    let refused = run(&[&["hub", "--cluster", &bind][..], &at].concat());
    assert!(!refused.status.success());
    assert!(text(&refused.stdout).contains("--store"), "{}", text(&refused.stdout));
    // Nothing was founded: it goes on alone.
    let hub = Running::start(&[&["hub"][..], &at].concat());
    let ready = hub.expect("ready", STEP);
    assert_eq!(lookup(ready["registry"].as_str().unwrap(), id)["hostname"], "ann");
}
