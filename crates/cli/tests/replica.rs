//! Records at several hubs, and without any, as a user meets them.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Lab, Running, STEP, event, lines};
use pilotage::Identity;
use pilotage_registry::book::client::BookClient;
use pilotage_registry::book::message::{Ask, Attest, RecordAnswer, Reply, Request, Told, next_frame};
use pilotage_registry::claims::Claim;
use pilotage_registry::placement::{Map, MapNode, SignedMap};
use pilotage_registry::record::sign_with;
use pilotage_registry::replica::evidence::attested;
use pilotage_wire::NetworkId;
use pilotage_wire::addressing::{self, Fingerprint};
use pilotage_wire::record::Record;
use serde_json::{Value, json};

fn good(lab: &Lab, node: &str, args: &[&str]) -> Vec<Value> {
    let output = lab.run_tool(node, args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    lines(&output.stdout)
}

/// Asks until it is so.
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + STEP;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn up(lab: &Lab, name: &str) -> Running {
    let node = lab.start(name, &["up", "--name", name, "--records", "--record-refresh", "2s"]);
    node.expect("ready", STEP);
    node
}

fn records(lab: &Lab, node: &str) -> Value {
    event(&good(lab, node, &["status"]), "status")["records"].clone()
}

/// `ping` by way of the `up` that runs in the directory.
fn pings(lab: &Lab, node: &str, peer: &str) -> bool {
    let output = lab.run_tool(node, &["ping", peer, "--count", "1"]);
    output.status.code() == Some(0)
}

#[test]
fn agents_that_met_reach_each_other_when_every_hub_is_dead() {
    let mut lab = Lab::new();
    let mut ann = up(&lab, "ann");
    let _bob = up(&lab, "bob");
    let _carol = up(&lab, "carol");
    for node in ["ann", "bob", "carol"] {
        let stored = || Some(records(&lab, node)).filter(|status| status["stored_at"] == 1);
        let status = until("the record is not published", stored);
        assert_eq!(status["last_error"], Value::Null, "{status}");
    }
    // The hub says when bob was last heard of.
    let resolved = until("no heartbeat arrives", || {
        let resolved = good(&lab, "ann", &["resolve", "bob"]);
        Some(event(&resolved, "resolved").clone()).filter(|found| found["seen_seconds_ago"].is_u64())
    });
    assert_eq!(resolved["evidence"], json!([]));
    until("ann does not reach bob", || pings(&lab, "ann", "bob").then_some(()));
    until("carol does not reach ann", || pings(&lab, "carol", "ann").then_some(()));
    for (node, count) in [("ann", 2), ("bob", 1), ("carol", 1)] {
        let known =
            || Some(records(&lab, node)).filter(|status| status["remembered"].as_u64() >= Some(count));
        until("nobody is remembered", known);
    }
    lab.hub.kill();
    // A friend knows bob, whom carol has never met; and bob asks the friend who carol is.
    until("carol does not reach bob", || pings(&lab, "carol", "bob").then_some(()));
    assert!(records(&lab, "ann")["friends_answered"].as_u64() >= Some(1));
    assert!(!pings(&lab, "carol", "nobody"));
    // After a restart there is nothing but what was on disk.
    ann.kill();
    let _ann = up(&lab, "ann");
    until("ann does not reach bob any more", || pings(&lab, "ann", "bob").then_some(()));
    // The tool finds him too, and says where from.
    let resolved = good(&lab, "ann", &["resolve", "bob"]);
    assert_eq!(event(&resolved, "resolved")["source"], "remembered");
}

#[test]
fn changes_are_watched_and_a_watch_goes_on() {
    let lab = Lab::new();
    for node in ["ann", "bob"] {
        assert!(lab.run_tool(node, &["id", "new"]).status.success());
    }
    good(&lab, "ann", &["record", "publish", "--hostname", "fx", "--summary", "One."]);
    let watch = good(&lab, "bob", &["watch", "fx", "--count", "1"]);
    let first = event(&watch, "changed");
    assert_eq!(first["summary"], "One.");
    let position = first["position"].as_str().unwrap().to_owned();
    good(&lab, "ann", &["record", "publish", "--hostname", "fx", "--summary", "Two."]);
    let watch = good(&lab, "bob", &["watch", "--all", "--count", "1", "--from", &position]);
    assert_eq!(event(&watch, "changed")["summary"], "Two.");
    assert!(!watch.iter().any(|line| line["event"] == "resync"), "{watch:?}");
    let watch = good(&lab, "bob", &["watch", "--all", "--count", "1", "--from", "1:7"]);
    assert_eq!(watch[0]["event"], "resync", "another history: {watch:?}");
    let wrong = lab.run_tool("bob", &["watch", "--from", "1:7"]);
    assert_eq!(wrong.status.code(), Some(2));
}

/// Hubs without a cluster, and what each says of itself: key and address.
fn hubs_of_one_map(dir: &Path, map: &str) -> Vec<(Running, String, String)> {
    let start = |hub: &str| {
        let state = dir.join(hub).to_str().unwrap().to_owned();
        let at = ["--listen", "127.0.0.1", "--registry-port", "0", "--state", &state, "--map", map];
        let running = Running::start(&[&["hub", "--json"][..], &at[..]].concat());
        let ready = running.expect("ready", STEP);
        let word = |key: &str| ready[key].as_str().unwrap().to_owned();
        (running, word("registry_key"), word("registry"))
    };
    ["h1", "h2", "h3"].map(start).into()
}

#[test]
fn three_hubs_hold_a_record_and_the_map_is_made_by_a_command() {
    let dir = tempfile::tempdir().unwrap();
    let map = dir.path().join("map");
    let state = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mut hubs = hubs_of_one_map(dir.path(), map.to_str().unwrap());
    let nodes: Vec<String> = hubs.iter().map(|(_, key, at)| format!("{key}@{at}")).collect();
    let operator = state("op");
    assert!(common::run(&["id", "new", "--state", &operator]).status.success());
    let out = map.to_str().unwrap();
    let mut make = vec!["hub", "map", "--json", "--operator", "--state", &operator, "--out", out];
    nodes.iter().for_each(|node| make.extend(["--node", node]));
    let made = common::run(&make);
    assert!(made.status.success(), "{made:?}");
    let agent = state("ann");
    let registry = hubs[0].2.clone();
    let at = ["up", "--json", "--state", &agent, "--registry", &registry, "--bind", "127.0.0.1:0"];
    let ann = Running::start(&[&at[..], &["--name", "ann", "--records", "--record-refresh", "1s"]].concat());
    ann.expect("ready", STEP);
    let status = || {
        let output = common::run(&["status", "--json", "--state", &agent]);
        let found = lines(&output.stdout);
        Some(event(&found, "status")["records"]["stored_at"].clone()).filter(|stored| *stored == 3)
    };
    until("the record is not at three hubs", status);
    // The hub of the names dies: the fingerprint is enough to find the record at the others.
    let asker = state("bob");
    let resolve = |who: &str| {
        let output = common::run(&["resolve", who, "--json", "--state", &asker, "--registry", &registry]);
        (output.status.code(), lines(&output.stdout))
    };
    let (code, found) = resolve("ann");
    assert_eq!(code, Some(0), "{found:?}");
    let fingerprint = event(&found, "resolved")["fingerprint"].as_str().unwrap().to_owned();
    hubs[0].0.kill();
    // Two are asked, in the order of the agent's key; the third one only in the place of one that is silent.
    let silent = asked_first(&map, &fingerprint).contains(&hubs[0].1);
    for who in [fingerprint.as_str(), "ann"] {
        let (code, found) = resolve(who);
        assert_eq!(code, Some(0), "{found:?}");
        let found = event(&found, "resolved");
        let asked = (&found["nodes_answered"], &found["nodes_silent"]);
        assert_eq!(asked, (&json!(2), &json!(u8::from(silent))), "{found}");
    }
}

/// Keys of the two nodes of a map that are asked first for an agent's record.
fn asked_first(map: &Path, fingerprint: &str) -> Vec<String> {
    let map = SignedMap::decode(&std::fs::read(map).unwrap()).unwrap().map;
    let Ok(Fingerprint::Long(id)) = fingerprint.parse() else { panic!("{fingerprint}") };
    map.ranked(&id).into_iter().take(2).map(|node| hex::encode(node.key)).collect()
}

/// What a false replica gives for every agent.
type Lie = Arc<Mutex<Vec<u8>>>;

/// A replica that gives what it likes, and signs it, and the map, with its key.
fn false_replica(listener: TcpListener, identity: Identity, map: Map, lie: Lie) {
    let signed = map.sign_with(identity.public_key(), |message| identity.sign(message));
    let map = SignedMap { map, signatures: vec![signed] }.encode();
    let answer = Arc::new(move |request| match request {
        Request::Replica(Ask::Get { owner, nonce }) => {
            let record = lie.lock().unwrap().clone();
            let attest = nonce.map(|nonce| {
                let time = unix();
                Attest { time, signature: identity.sign(&attested(&owner, &nonce, time, &record)) }
            });
            Reply::Replica(Told::Held { record, claim: Vec::new(), seen: None, attest })
        }
        Request::Replica(Ask::Map) => Reply::Replica(Told::Map(map.clone())),
        _ => Reply::NotFound,
    });
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(mut client), answer) = (client, answer.clone()) else { return };
            std::thread::spawn(move || {
                let (mut input, mut chunk) = (Vec::new(), [0; 4_096]);
                client.read_exact(&mut [0; 4]).unwrap();
                while let Ok(len @ 1..) = client.read(&mut chunk) {
                    input.extend_from_slice(&chunk[..len]);
                    while let Some((number, kind, body, len)) = next_frame(&input).unwrap() {
                        let mut out = Vec::new();
                        answer(Request::decode(kind, body).unwrap()).encode(number, &mut out);
                        input.drain(..len);
                        if client.write_all(&out).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
}

#[allow(clippy::disallowed_methods, reason = "a test against the real clock")]
fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// An agent's claim and its record of a while ago, so that an honest node has it by now.
fn published(agent: &Identity, seq: u64) -> (Claim, Vec<u8>) {
    let (network, key, now) = (NetworkId(0), agent.public_key(), unix());
    let node = addressing::derive_node_id(&key, 0).unwrap();
    let claim = Claim::address(network, key, 0, 1, now as u32 + 86_400).unwrap();
    let claim = claim.sign_with(1, |message| agent.sign(message));
    let mut record = Record::new(network, node, 0, key, seq, (now - 1_000) as u32);
    record.ttl = 86_400;
    (claim, sign_with(&mut record, key, |message| agent.sign(message)).unwrap())
}

#[test]
fn a_replica_that_lies_is_named_by_evidence() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (hub_state, map_file, asker) = (path("hub"), path("map"), path("bob"));
    let at = ["hub", "--json", "--listen", "127.0.0.1", "--registry-port", "0", "--pow-bits", "1"];
    let hub = Running::start(&[&at[..], &["--state", &hub_state, "--map", &map_file]].concat());
    let ready = hub.expect("ready", STEP);
    let registry = ready["registry"].as_str().unwrap().to_owned();
    let key: [u8; 32] = hex::decode(ready["registry_key"].as_str().unwrap()).unwrap().try_into().unwrap();
    // One map with the hub and one that lies; the hub signs it when it sees it.
    let liar = Identity::from_seed([9; 32]);
    let liar_key = liar.public_key();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let node = |key, at: SocketAddr| MapNode { key, weight: 1, endpoints: vec![at] };
    let mut nodes =
        vec![node(key, registry.parse().unwrap()), node(liar_key, listener.local_addr().unwrap())];
    nodes.sort_by_key(|node| node.key);
    let map = Map { epoch: 1, replicas: 2, nodes, operators: Vec::new() };
    let unsigned = SignedMap { map: map.clone(), signatures: Vec::new() };
    std::fs::write(path("map.new"), unsigned.encode()).unwrap();
    std::fs::rename(path("map.new"), &map_file).unwrap();
    let lie = Lie::default();
    false_replica(listener, liar, map, lie.clone());
    let agent = Identity::from_seed([5; 32]);
    let (claim, record) = published(&agent, 7);
    let mut client = BookClient::connect(&registry, STEP, Vec::new()).unwrap();
    let (_, answer) = client.register(&[claim], Some(&record)).unwrap();
    assert_eq!(answer, RecordAnswer::Stored);
    let who = Fingerprint::Long(addressing::agent_id(&agent.public_key())).to_string();
    let mut forged = record.clone();
    forged[50] ^= 1;
    let lies = [("withheld", Vec::new()), ("old", published(&agent, 6).1), ("forged", forged)];
    for (fault, given) in lies {
        *lie.lock().unwrap() = given.clone();
        // Until the hub has looked at the map, nobody else is asked.
        let found = until("the liar is not asked", || {
            let args = ["resolve", &who, "--json", "--state", &asker, "--registry", &registry];
            let output = common::run(&args);
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            let found = event(&lines(&output.stdout), "resolved").clone();
            let asked = |key: &str| found[key].as_u64().unwrap();
            (asked("nodes_answered") + asked("nodes_silent") == 2).then_some(found)
        });
        assert_eq!(found["bytes"], json!(hex::encode(&record)), "{fault}: believed");
        let [file] = found["evidence"].as_array().unwrap().as_slice() else { panic!("{fault}: {found}") };
        let evidence = std::fs::read(file.as_str().unwrap()).unwrap();
        let evidence: Value = serde_json::from_slice(&evidence).unwrap();
        assert_eq!((&evidence["fault"], &evidence["node"]), (&json!(fault), &json!(hex::encode(liar_key))));
        assert_eq!(evidence["record_given"], json!(hex::encode(&given)));
        assert_eq!(evidence["anybody_can_check_it"], json!(true), "{evidence}");
    }
}
